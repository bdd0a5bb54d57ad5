"""Has the teacher anything to teach? What `fit` logs every `diagnose_every` steps.

Self-Flow's student learns from features that the teacher computes from a cleaner view. Where the
two views give the same features, there is nothing to learn from them, whatever the loss says.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import Clock
from .selfflow import SelfFlow
from .tokens import Pattern
from .types import Window

GAP_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def teacher_signal(
    objective: SelfFlow, window: Window, chosen: Pattern, step: int, micro: int = 0
) -> dict[str, float]:
    """Compare the teacher's features of what the student sees with those of the cleaner view.

    Args:
        window, step, micro: as for `SelfFlow.ask`, whose draws are used.

    Returns:
        Per wanted modality with masked tokens, over the tokens that the teacher sees cleaner:

        - ``<pattern>/<modality>/asymmetry``: median cosine; above 0.97 there is no signal;
        - ``.../centred``: the same after subtracting the mean feature, since a few large channels
          that all tokens share inflate the raw value;
        - ``.../distance/<low>-<high>``: mean of 1 - cosine over tokens whose time differs by
          between low and high: it should rise with the gap.
    """
    asked = objective.ask(window, chosen, step, micro)
    clock, layer = asked.draw.clock, objective.teacher_layer
    if not clock.which:
        return {}
    cleaner = objective.teach(asked, asked.draw.teacher)
    own = objective.teach(asked, clock)
    logs: dict[str, float] = {}
    for name, part in own.slices.items():
        if name not in clock.which:
            continue
        a, b = (x.features[layer][:, part].float() for x in (cleaner, own))
        gap = time_gap(clock, asked.draw.teacher, name)
        per_step = objective.model.modalities[name].per_step
        counts = (gap > 1e-3) & asked.valid[name].repeat_interleave(per_step, dim=1)
        if not counts.any():
            continue
        mean = a.flatten(0, 1).mean(0)
        cosine = F.cosine_similarity(a, b, dim=-1)[counts]
        centred = F.cosine_similarity(a - mean, b - mean, dim=-1)[counts]
        prefix = f"{chosen.name}/{name}"
        logs[f"{prefix}/asymmetry"] = float(cosine.median())
        logs[f"{prefix}/centred"] = float(centred.median())
        for low, high in itertools.pairwise(GAP_EDGES):
            here = (gap[counts] > low) & (gap[counts] <= high)
            if here.any():
                logs[f"{prefix}/distance/{low:g}-{high:g}"] = float((1 - cosine[here]).mean())
    return logs


def time_gap(student: Clock, teacher: Clock, name: str) -> Tensor:
    """By how much the teacher sees each token earlier: ``[B, tokens]``."""
    return student.per_token(name) - teacher.per_token(name)
