"""Validation at fixed, homogeneous times with fixed noise, so that curves of runs compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .data import Windows, members
from .flow import interpolate, velocity_from_data
from .model import Clock, token_times
from .selfflow import SelfFlow, masked_mean, until_last_frame
from .streams import generator
from .success import success_loss
from .tokens import pattern
from .types import Window

TIMES = (0.2, 0.5, 0.8)
PREFIX = 4  # committed actions in the pattern "act_prefix", where chunks are long enough


@torch.no_grad()
def validate(
    objective: SelfFlow, windows: Windows, count: int, dtype: torch.dtype
) -> dict[str, float]:
    """Velocity losses of the EMA weights, per pattern and modality.

    Args:
        windows: of the held-out episodes.
        count: how many of them, spread evenly.
        dtype: of the token stream.

    Returns:
        ``validation/<pattern>/<modality>`` at the mean over `TIMES` (for a regression objective at
        time 1), and ``validation/score``: the action loss where actions are wanted, else the mean.
        No score where actions are wanted and none of the windows demonstrates any.
    """
    model, config = objective.ema.model, objective.config
    device = objective.device
    found = {source: _some(windows, source, count, device) for source in objective.sources}
    regression = config.name == "regression"
    logs: dict[str, float] = {}
    prefix = min(PREFIX, model.horizon.chunk - 1)
    for name in objective.shares:
        asked = pattern(name, model.horizon, prefix)
        window = found[asked.source]
        if window is None:
            continue
        if name == "forward":
            window = replace(window, action=until_last_frame(window.action, asked))
        given_steps, wanted_steps = model.slices_of(asked)
        given = objective.inputs.patches(window, given_steps)
        target = objective.inputs.patches(window, wanted_steps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            encoded = model.encode(given, given_steps, window.task)
        sums: dict[str, list[float]] = {}
        future = (
            window.success if window.success is None else window.success[:, model.horizon.past :]
        )
        for t in (1.0,) if regression else TIMES:
            source = generator(0, "validation", int(100 * t))
            clock = Clock({n: torch.full((len(window.task), 1), t, device=device) for n in target})
            noisy: dict[str, Tensor] = {}
            for n, v in target.items():
                noise = torch.randn(v.shape, generator=source).to(device) * (not regression)
                noisy[n] = interpolate(v, noise, token_times(clock, n, v))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                out = model(noisy, wanted_steps, clock, encoded)
            for n, v in target.items():
                aim = velocity_from_data(noisy[n], v, token_times(clock, n, v))
                error = (out.velocity[n] - aim).square().mean(dim=(2, 3))
                ok = objective.inputs.valid(window, n, wanted_steps[n], config.padded_actions)
                sums.setdefault(n, []).append(float(masked_mean(error, ok)))
            if out.success is not None and future is not None and (future >= 0).any():
                wrong, known = success_loss(out.success, future)
                sums.setdefault("success", []).append(float(wrong / known))
        for n, values in sums.items():
            logs[f"validation/{name}/{n}"] = sum(values) / len(values)
    losses = [v for name, v in logs.items() if not name.endswith("/success")]
    if "validation/act/action" in logs:
        logs["validation/score"] = logs["validation/act/action"]
    elif losses and "act" not in objective.shares:
        logs["validation/score"] = sum(losses) / len(losses)
    return logs


def _some(windows: Windows, source: str, count: int, device: torch.device) -> Window | None:
    """Up to `count` windows of a population, spread evenly; None where it has none."""
    there = members(windows, source)
    if not len(there):
        return None
    at = np.linspace(0, len(there) - 1, min(count, len(there))).astype(np.int64)
    return windows.batch(there[np.unique(at)]).to(device)
