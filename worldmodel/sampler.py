"""The only sampler: given tokens in, wanted tokens out, for rollouts and for the policy alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .flow import TimeConfig
from .model import Clock, Given, Patches, WorldModel
from .tokens import Pattern


def draw_noise(
    model: WorldModel, pattern: Pattern, batch: int, source: torch.Generator
) -> dict[str, Tensor]:
    """Where sampling starts: modality name -> ``[batch, steps, n, E]`` from N(0, I), on the CPU."""
    _, wanted = model.slices_of(pattern)
    noise = {}
    for name, part in wanted.items():
        m = model.modalities[name]
        steps = len(model.horizon.times(m.axis)[part])
        noise[name] = torch.randn(batch, steps, m.per_step, m.width, generator=source)
    return noise


@torch.no_grad()
def sample(
    model: WorldModel,
    pattern: Pattern,
    given: Patches,
    task: Tensor,
    noise: Patches,
    steps: int,
    time: Mapping[str, TimeConfig] | None = None,
    regression: bool = False,
    cache: bool = True,
) -> dict[str, Tensor]:
    """Integrate the velocity from noise (time 1) to data (time 0) by Euler steps.

    All wanted modalities move by one shared grid, each through its own sampling shift. The last
    step lands on the predicted data exactly.

    Args:
        model: usually the EMA weights, in eval mode.
        pattern: which steps are given and wanted.
        given: modality name -> clean patches ``[B, steps, n, E]``.
        task: int64 ``[B]``, -1 for none.
        noise: modality name -> start of the wanted patches, ``[B, steps, n, E]``.
        steps: number of Euler steps.
        time: per modality kind, for the sampling shift.
        regression: the model answers at once: zeros instead of `noise`, and one step.
        cache: encode the given tokens once (default) or at every step; the result is the same.

    Returns:
        Modality name -> patches ``[B, steps, n, E]``.
    """
    if steps < 1:
        raise ValueError(f"sampling needs at least one step, found {steps}")
    given_steps, wanted_steps = model.slices_of(pattern)
    if set(given) != set(given_steps) or set(noise) != set(wanted_steps):
        raise ValueError(
            f"pattern {pattern.name!r} is given {sorted(given_steps)} and wants "
            f"{sorted(wanted_steps)}; found {sorted(given)} and {sorted(noise)}"
        )
    if regression:
        noise, steps = {n: torch.zeros_like(v) for n, v in noise.items()}, 1
    grids = {
        name: (time or {}).get(model.modalities[name].kind, TimeConfig()).grid(steps).to(x.device)
        for name, x in noise.items()
    }
    x = dict(noise)
    batch = len(task)
    encoded: Given | None = None
    for k in range(steps):
        if encoded is None or not cache:
            encoded = model.encode(given, given_steps, task)
        clock = Clock({name: grid[k].expand(batch, 1) for name, grid in grids.items()})
        out = model(x, wanted_steps, clock, encoded)
        if k == steps - 1:
            return out.data
        x = {n: v + (grids[n][k + 1] - grids[n][k]) * out.velocity[n] for n, v in x.items()}
    raise AssertionError("unreachable: the last step returns")
