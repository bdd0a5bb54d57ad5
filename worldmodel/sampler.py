"""The only sampler: given tokens in, wanted tokens out, for rollouts and for the policy alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .flow import TimeConfig
from .model import Clock, Given, History, Patches, Prediction, WorldModel
from .tokens import Pattern, pattern


@dataclass(frozen=True)
class Guidance:
    """How much more a condition counts than it does by itself (Ho & Salimans, arXiv 2207.12598).

    1 is the model as it is, and costs nothing; w > 1 goes on from the answer without the condition
    past the answer with it: ``v = v_with + (w - 1) (v_with - v_without)``.

    Attributes:
        task: of the task text; needs a model trained with ``model.task_dropout`` above 0.
        action: of the given actions on imagined frames; what the frames would be without them is
            the pattern "video", which must have been trained.
    """

    task: float = 1.0
    action: float = 1.0


PLAIN = Guidance()


def draw_noise(
    model: WorldModel, asked: Pattern, batch: int, source: torch.Generator
) -> dict[str, Tensor]:
    """Where sampling starts: modality name -> ``[batch, steps, n, E]`` from N(0, I), on the CPU."""
    _, wanted = model.slices_of(asked)
    noise = {}
    for name, part in wanted.items():
        m = model.modalities[name]
        steps = len(model.horizon.times(m.axis, asked.offsets)[part])
        noise[name] = torch.randn(batch, steps, m.per_step, m.width, generator=source)
    return noise


@dataclass
class _Branch:
    """One of the answers that guidance combines: the question, and how much its answer counts."""

    asked: Pattern
    given: Patches
    task: Tensor
    weight: float
    encoded: Given | None = None


@torch.no_grad()
def sample(
    model: WorldModel,
    asked: Pattern,
    given: Patches,
    task: Tensor,
    noise: Patches,
    steps: int,
    time: Mapping[str, TimeConfig] | None = None,
    regression: bool = False,
    cache: bool = True,
    guidance: Guidance = PLAIN,
    history: History | None = None,
) -> Prediction:
    """Integrate the velocity from noise (time 1) to data (time 0) by Euler steps.

    All wanted modalities move by one shared grid, each through its own sampling shift. The last
    step lands on the predicted data exactly.

    Args:
        model: usually the EMA weights, in eval mode.
        asked: which steps are given and wanted.
        given: modality name -> clean patches ``[B, steps, n, E]``.
        task: int64 ``[B]``, -1 for none.
        noise: modality name -> start of the wanted patches, ``[B, steps, n, E]``.
        steps: number of Euler steps.
        time: per modality kind, for the sampling shift.
        regression: the model answers at once: zeros instead of `noise`, and one step.
        cache: encode the given tokens once (default) or at every step; the result is the same.
        guidance: how much task and actions count.
        history: noise on the given frames, for a model that was trained with it.

    Returns:
        The last step's prediction: its ``data`` is the sample. ``success`` is the head's judgement
        from the features of that step (with one step, of what the question leads to before any of
        it is drawn); None under guidance, which no features belong to.

    Raises:
        ValueError: no step, or other modalities than the pattern is given and wants.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, found {steps}")
    given_steps, wanted_steps = model.slices_of(asked)
    if set(given) != set(given_steps) or set(noise) != set(wanted_steps):
        raise ValueError(
            f"pattern {asked.name!r} is given {sorted(given_steps)} and wants "
            f"{sorted(wanted_steps)}; found {sorted(given)} and {sorted(noise)}"
        )
    if regression:
        noise, steps = {n: torch.zeros_like(v) for n, v in noise.items()}, 1
    grids = {
        name: (time or {}).get(model.modalities[name].kind, TimeConfig()).grid(steps).to(x.device)
        for name, x in noise.items()
    }
    branches = _branches(model, asked, given, task, guidance)
    x = dict(noise)
    for k in range(steps):
        levels = {name: grid[k].expand(len(task), 1) for name, grid in grids.items()}
        answers = [_answer(model, b, x, levels, history, cache) for b in branches]
        out = _combine(answers, [b.weight for b in branches])
        if k == steps - 1:
            return out
        x = {n: v + (grids[n][k + 1] - grids[n][k]) * out.velocity[n] for n, v in x.items()}
    raise AssertionError("unreachable: the last step returns")


def _branches(
    model: WorldModel, asked: Pattern, given: Patches, task: Tensor, guidance: Guidance
) -> list[_Branch]:
    """The question itself, first, and what guidance subtracts from it."""
    extra_task, extra_action = guidance.task - 1, guidance.action - 1
    found = [_Branch(asked, given, task, 1 + extra_task + extra_action)]
    if extra_task:
        found.append(_Branch(asked, given, torch.full_like(task, -1), -extra_task))
    if extra_action:
        if asked.name != "forward":
            raise ValueError(
                f"guidance on actions needs given actions and wanted frames, the pattern "
                f"'forward'; found {asked.name!r}"
            )
        without = pattern("video", model.horizon, offsets=asked.offsets)
        names, _ = model.slices_of(without)
        found.append(_Branch(without, {n: given[n] for n in names}, task, -extra_action))
    return found


def _answer(
    model: WorldModel,
    branch: _Branch,
    x: Patches,
    levels: dict[str, Tensor],
    history: History | None,
    cache: bool,
) -> Prediction:
    given_steps, wanted_steps = model.slices_of(branch.asked)
    if branch.encoded is None or not cache:
        branch.encoded = model.encode(
            branch.given, given_steps, branch.task, offsets=branch.asked.offsets, history=history
        )
    wanted = {n: x[n] for n in wanted_steps}
    return model(wanted, wanted_steps, Clock({n: levels[n] for n in wanted}), branch.encoded)


def _combine(answers: list[Prediction], weights: list[float]) -> Prediction:
    """The weighted sum of answers; what only the first one wants is taken from it as it is.

    Success is not known: it is read off features, and a sum has none.
    """
    first = answers[0]
    if len(answers) == 1:
        return first
    for field in ("velocity", "data"):
        values = getattr(first, field)
        for name, value in values.items():
            pairs = [
                (getattr(a, field)[name], w)
                for a, w in zip(answers[1:], weights[1:], strict=True)
                if name in getattr(a, field)
            ]
            values[name] = (1 - sum(w for _, w in pairs)) * value + sum(w * v for v, w in pairs)
    return replace(first, success=None)
