"""Imagination: what the cameras and joints will show under given actions, window after window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .sampler import draw_noise
from .streams import generator
from .tokens import pattern


@dataclass
class Imagined:
    """An imagined future.

    Attributes:
        video: camera name -> uint8 ``[B, T, C, H, W]``.
        state: float32 ``[B, T, S]`` in physical units, or None where the robot has none.
        frames: int64 ``[T]``, frames after "now" at which these happen.
    """

    video: dict[str, Tensor]
    state: Tensor | None
    frames: Tensor


@torch.no_grad()
def imagine(
    checkpoint: Checkpoint,
    video: Mapping[str, Tensor],
    state: Tensor | None,
    actions: Tensor,
    *,
    task: Tensor | None = None,
    steps: int = 2,
    seed: int = 0,
) -> Imagined:
    """Roll the world model forward under given actions (the pattern "forward").

    Each window imagines F strided frames and hands its last ones over as the past of the next.

    Args:
        video: camera name -> uint8 ``[B, P, C, H, W]``, past frames at the model's past stride.
        state: ``[B, P, S]`` at the same frames, in physical units.
        actions: ``[B, M, A]`` in physical units, the first one leaves now. The future reaches as
            far as whole strides of M allow; a last, shorter window repeats the last action, and
            frames past M are cut off.
        task: int64 ``[B]``; default: none.
        steps: sampling steps per window.
        seed: of the noise.

    Raises:
        ValueError: shapes do not fit the model, or its past frames are not spaced like its future
            ones, so that windows cannot be chained.
    """
    model, inputs, horizon = checkpoint.model, checkpoint.inputs, checkpoint.model.horizon
    if not horizon.future:
        raise ValueError("this model was trained without future frames (data.future=0)")
    batch, total = actions.shape[:2]
    span = horizon.future * horizon.future_stride
    if horizon.past > 1 and horizon.past_stride != horizon.future_stride and total > span:
        raise ValueError(
            f"windows chain only where past frames are spaced like future ones; this model has "
            f"past_stride {horizon.past_stride} and future_stride {horizon.future_stride}"
        )
    device = next(model.parameters()).device
    expected = {
        m.name.removeprefix("video/") for m in model.modalities.values() if m.kind == "video"
    }
    if set(video) != expected:
        raise ValueError(f"the model sees cameras {sorted(expected)}, found {sorted(video)}")
    if total < horizon.future_stride:
        raise ValueError(f"{total} actions reach no frame; one stride is {horizon.future_stride}")
    if horizon.chunk < span:
        raise ValueError(
            f"a window imagines {span} frames but is given {horizon.chunk} actions (data.chunk); "
            "train with data.chunk >= data.future * data.future_stride to imagine"
        )
    task = torch.full((batch,), -1, device=device) if task is None else task.to(device)
    question = pattern("forward", horizon)
    given_steps, wanted_steps = model.slices_of(question)
    past: dict[str, Tensor] = {f"video/{c}": v.to(device) for c, v in video.items()}
    if state is not None:
        past["state"] = state.to(device)
    actions = actions.to(device)
    parts: dict[str, list[Tensor]] = {n: [] for n in wanted_steps}
    for number, start in enumerate(range(0, total, span)):
        at = torch.arange(start, start + horizon.chunk, device=device).clamp(max=total - 1)
        values = past | {"action": actions[:, at]}
        given = {n: inputs.normalize(n, values[n]) for n in given_steps}
        noise = draw_noise(model, question, batch, generator(seed, "imagine", number))
        noise = {n: v.to(device) for n, v in noise.items()}
        patches = checkpoint.sample(question, given, task, noise, steps)
        future = {n: inputs.denormalize(n, v) for n, v in patches.items()}
        for n, v in future.items():
            parts[n].append(v)
            past[n] = torch.cat([past[n], v], dim=1)[:, -horizon.past :]
    count = total // horizon.future_stride
    joined = {n: torch.cat(v, dim=1)[:, :count] for n, v in parts.items()}
    frames = torch.arange(1, count + 1) * horizon.future_stride
    return Imagined({c: joined[f"video/{c}"] for c in video}, joined.get("state"), frames)
