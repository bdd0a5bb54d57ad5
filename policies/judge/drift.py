"""Part eight: how far a long rollout goes before it is worth no more than the last frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.checkpoint import Checkpoint
from worldmodel.imagine import FORMS

from ..statistics import mean_interval, mean_intervals
from .prediction import imagined
from .recorded import Windows


def drift(
    checkpoint: Checkpoint,
    windows: Windows,
    mean: Mapping[str, Tensor],
    *,
    every: int,
    steps: int,
    history: float,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Error over hundreds of frames, for both forms of rolling out, beside what knows nothing.

    Args:
        windows: of long episodes; all their M actions are given at once.
        mean: camera -> mean picture ``[C, H, W]``.
        every: distance of the imagined frames, and of the causal form's hand-over.
        steps: sampling steps.
        history: time that the causal form's imagined past counts as noised to.

    Returns:
        The part "drift" (root mean square error in grey levels; see `policies.judge.report`), and
        the frames that the window form imagined.
    """
    errors: dict[str, np.ndarray] = {}
    shown: dict[str, Tensor] = {}
    frames: list[int] = []
    for form in FORMS:
        noise = history if form == "causal" else 0.0
        found = imagined(
            checkpoint, windows, windows.action, every=every, steps=steps, form=form, history=noise
        )
        frames = found.frames.tolist()
        errors[form] = _error(found.video, windows.at(frames))
        if form == "window":
            shown = found.video
    truth = windows.at(frames)
    errors["copy_last"] = _error(
        {c: v[:, -1:].expand_as(truth[c]) for c, v in windows.seen.items()}, truth
    )
    errors["mean_frame"] = _error({c: mean[c].expand_as(v) for c, v in truth.items()}, truth)
    rows = {
        name: [i.to_dict() for i in mean_intervals(values, windows.episode)]
        for name, values in errors.items()
    }
    return {
        "frames": frames,
        "forms": {form: {"error": rows[form]} for form in FORMS},
        "copy_last": rows["copy_last"],
        "mean_frame": rows["mean_frame"],
        "mean_error": {name: float(v.mean()) for name, v in errors.items()},
        "window_minus_causal": mean_interval(
            (errors["window"] - errors["causal"]).mean(1), windows.episode
        ).to_dict(),
        "causal_history": history,
        "unit": "grey levels",
        "episodes": len(np.unique(windows.episode)),
    }, shown


def _error(guess: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> np.ndarray:
    """Root mean square error of each frame, ``[N, T]``, over all cameras."""
    squares = [(guess[c].float() - v.float()).square().mean((2, 3, 4)) for c, v in truth.items()]
    return torch.stack(squares).mean(0).sqrt().numpy()
