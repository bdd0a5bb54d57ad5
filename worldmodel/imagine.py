"""Imagination: what the cameras and joints will show under given actions, window after window.

A window sees the past and up to K actions and answers with frames within them. Longer futures hand
over: the last imagined frames are the past of the next window. Two forms differ in when:

- "window": after as many frames as its actions reach, so that errors are handed on seldom. As many
  frames as the model was trained on are one question and sampled together; the earlier ones of a
  question see the actions up to its last one.
- "causal": after every frame, as an autoregressive model does; each handed-over frame counts as
  slightly noised (`worldmodel.selfflow.ObjectiveConfig.history_noise`), so that the model corrects
  its own errors instead of believing them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .model import History
from .sampler import PLAIN, Guidance, draw_noise
from .selfflow import until_last_frame
from .streams import generator
from .tokens import ACTING, SEEING, Horizon, Pattern, pattern

FORMS = ("window", "causal")
Draw = tuple[Any, ...]
"""(seed, purpose, numbers...) of some noise; see `worldmodel.streams.generator`."""


@dataclass
class Imagined:
    """An imagined future.

    Attributes:
        video: camera name -> uint8 ``[B, T, C, H, W]``.
        state: float32 ``[B, T, S]`` in physical units; None where it was not asked for, or the
            robot has none.
        frames: int64 ``[T]``, frames after "now" at which these happen.
        success: float32 ``[B, T]``, the probability that the world counts as solved there; None
            for a model whose data does not say when it is.
        action: float32 ``[B, K, A]``, where actions were asked for.
    """

    video: dict[str, Tensor]
    state: Tensor | None
    frames: Tensor
    success: Tensor | None = None
    action: Tensor | None = None


@torch.no_grad()
def ask(
    checkpoint: Checkpoint,
    question: Pattern,
    video: Mapping[str, Tensor],
    state: Tensor | None,
    values: Mapping[str, Tensor],
    task: Tensor | None,
    steps: int,
    draw: Draw | Sequence[Draw],
    guidance: Guidance = PLAIN,
    history: float = 0.0,
) -> Imagined:
    """Ask a model one question, in physical units.

    Args:
        question: which steps are given and wanted.
        video: camera name -> uint8 ``[B, T, C, H, W]``: the given frames, in order.
        state: ``[B, P, S]``, the given states; None where the robot has none.
        values: further given values, such as ``{"action": [B, K, A]}``.
        task: int64 ``[B]``; None for none.
        steps: sampling steps.
        draw: (seed, purpose, numbers...) of the noise, see `worldmodel.streams.generator`; a list
            gives each row of the batch noise of its own, whatever stands beside it.
        guidance: how much task and actions count.
        history: time that the given frames count as noised to.

    Raises:
        ValueError: the cameras, their frames or another value are not those of the model.
    """
    model, inputs = checkpoint.model, checkpoint.inputs
    device = next(model.parameters()).device
    require_trained(checkpoint, question, task, guidance)
    given_steps, wanted_steps = model.slices_of(question)
    seen: dict[str, Tensor] = {f"video/{c}": v for c, v in video.items()} | dict(values)
    if state is not None and model.spec.state_dim:
        seen["state"] = state
    require_fitting(checkpoint, question, seen)
    given = {n: inputs.normalize(n, seen[n].to(device)) for n in given_steps}
    batch = len(next(iter(given.values())))
    tasks = torch.full((batch,), -1) if task is None else task
    rows = [draw] if isinstance(draw, tuple) else list(draw)
    each = batch if isinstance(draw, tuple) else 1
    parts = [draw_noise(model, question, each, generator(*row)) for row in rows]
    noise = {n: torch.cat([p[n] for p in parts]) for n in wanted_steps}
    noised = None
    if history:
        sources = [generator(row[0], f"{row[1]}/history", *row[2:]) for row in rows]
        past = {
            n: torch.cat([torch.randn(each, *v.shape[1:], generator=g) for g in sources])
            for n, v in given.items()
            if model.modalities[n].axis == "frame"
        }
        level = torch.full((batch,), history, device=device)
        noised = History(level, {n: v.to(device) for n, v in past.items()})
    out = checkpoint.answer(
        question, given, tasks.to(device), {n: v.to(device) for n, v in noise.items()}, steps,
        guidance, noised,
    )  # fmt: skip
    found = {n: inputs.denormalize(n, v) for n, v in out.data.items()}
    return Imagined(
        video={c: found[f"video/{c}"] for c in model.spec.cameras if f"video/{c}" in found},
        state=found.get("state"),
        frames=torch.tensor(question.offsets),
        success=None if out.success is None else torch.sigmoid(out.success),
        action=found.get("action"),
    )


def require_trained(
    checkpoint: Checkpoint, question: Pattern, task: Tensor | None, guidance: Guidance
) -> None:
    """Refuse a question that this model was never asked in training.

    Raises:
        ValueError: names the setting that would have to be another one.
    """
    shares, spec = checkpoint.objective.patterns, checkpoint.spec

    def require(name: str, why: str) -> None:
        if not shares.get(name):
            trained = sorted(n for n, share in shares.items() if share)
            raise ValueError(
                f"this model was not trained on the question {name!r}{why} "
                f"(objective.patterns.{name} was 0); it was on {trained}"
            )

    # A chunk without committed actions is the same question under two names.
    acting = question.name in ACTING and "action" not in question.given
    require("act" if acting else question.name, "")
    if guidance.action != 1:
        require("video", ", which guidance on actions subtracts")
    if guidance.task != 1 and not checkpoint.model.config.task_dropout:
        raise ValueError(
            "guidance on the task needs a model that was also trained without one "
            "(model.task_dropout was 0)"
        )
    committed = question.given.get("action") if question.name in ACTING else None
    if isinstance(committed, slice) and committed.stop > checkpoint.objective.prefix:
        raise ValueError(
            f"this model was trained with up to {checkpoint.objective.prefix} committed actions "
            f"(objective.prefix); found {committed.stop}"
        )
    if (
        task is not None
        and len(task)
        and not -1 <= int(task.min()) <= int(task.max()) < max(1, len(spec.tasks))
    ):
        raise ValueError(
            f"a task is an index into {list(spec.tasks)}, or -1 for none; found {task.tolist()}"
        )


def require_fitting(checkpoint: Checkpoint, question: Pattern, seen: Mapping[str, Tensor]) -> None:
    """Refuse what the model was not made for, before it is asked.

    Raises:
        ValueError: names the camera, the frame or the value, what was found and what is expected.
    """
    model, spec = checkpoint.model, checkpoint.spec
    horizon = model.horizon
    given, _ = model.slices_of(question)
    cameras = {n.removeprefix("video/") for n in seen if n.startswith("video/")}
    if question.name in SEEING and not spec.cameras:
        raise ValueError(
            f"the question {question.name!r} is about frames; the model sees no camera"
        )
    if "video" in question.given and cameras != set(spec.cameras):
        raise ValueError(f"the model sees cameras {sorted(spec.cameras)}, found {sorted(cameras)}")
    for name, part in given.items():
        if name not in seen:
            raise ValueError(f"the question {question.name!r} is given {sorted(given)}; no {name}")
        value, m = seen[name], model.modalities[name]
        count = len(horizon.times(m.axis, question.offsets)[part])
        size: tuple[int, ...] = (spec.state_dim if name == "state" else spec.action_dim,)
        if m.kind == "video":
            size = (3, *spec.image_size)
            if value.dtype != torch.uint8:
                raise ValueError(f"{name} is {value.dtype}; frames are uint8")
        if tuple(value.shape[1:]) != (count, *size):
            raise ValueError(
                f"{name} is {list(value.shape)}; the question {question.name!r} to this model "
                f"takes [B, {', '.join(map(str, (count, *size)))}]"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{name} holds values that are not finite")


def window_length(horizon: Horizon, any_frame: bool, chained: bool = True) -> int:
    """After how many frames a window hands over.

    Args:
        any_frame: the model knows other frames than those of its grid.
        chained: there is a window after it.

    Raises:
        ValueError: windows of this horizon cannot be chained, or know too few actions.
    """
    if not horizon.future:
        raise ValueError("this model was trained without future frames (data.future=0)")
    span = horizon.grid[-1]
    if horizon.chunk < span:
        raise ValueError(
            f"a window imagines {span} frames but is given {horizon.chunk} actions (data.chunk); "
            "train with data.chunk >= data.future * data.future_stride to imagine"
        )
    apart = horizon.past > 1 and horizon.past_stride != horizon.future_stride
    if chained and apart and not any_frame:
        raise ValueError(
            f"windows chain only where past frames are spaced like future ones; this model has "
            f"past_stride {horizon.past_stride} and future_stride {horizon.future_stride}, and "
            "knows no other frames (objective.any_frame=0)"
        )
    if any_frame and horizon.past > 1:
        span = horizon.chunk // horizon.past_stride * horizon.past_stride
        if not span:
            raise ValueError(
                f"{horizon.chunk} actions (data.chunk) do not reach the next past frame, "
                f"{horizon.past_stride} later (data.past_stride)"
            )
    return span


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
    every: int | None = None,
    form: str = "window",
    history: float = 0.0,
    guidance: Guidance = PLAIN,
) -> Imagined:
    """Roll the world model forward under given actions (the pattern "forward").

    Args:
        video: camera name -> uint8 ``[B, P, C, H, W]``, past frames at the model's past stride.
        state: ``[B, P, S]`` at the same frames, in physical units.
        actions: ``[B, M, A]`` in physical units, the first one leaves now.
        task: int64 ``[B]``; default: none.
        steps: sampling steps per window.
        seed: of the noise.
        every: distance of the imagined frames, 1 for each of them; default: the model's grid.
            Another one takes a model that was trained with ``objective.any_frame`` above 0.
        form: "window" or "causal"; see above.
        history: time that imagined frames count as noised to when they are handed over; at most
            what the model was trained with (``objective.history_noise``).
        guidance: how much task and actions count.

    Raises:
        ValueError: shapes do not fit the model; it does not know such frames; or its past frames
            are not spaced like its future ones, so that windows cannot be chained.
    """
    horizon = checkpoint.model.horizon
    any_frame = checkpoint.objective.any_frame > 0
    total = actions.shape[1]
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; there are {list(FORMS)}")
    first = horizon.future_stride * (1 if form == "causal" else horizon.future)
    span = window_length(horizon, any_frame, chained=total > first)
    every = horizon.future_stride if every is None else every
    if every != horizon.future_stride and not any_frame:
        raise ValueError(
            f"every={every}: this model knows frames at a distance of {horizon.future_stride} "
            "only; train with objective.any_frame above 0 for others"
        )
    if not 1 <= every <= span:
        raise ValueError(f"every={every}: the distance of frames is from 1 to {span}")
    largest = checkpoint.objective.history_noise
    if not 0 <= history <= largest:
        raise ValueError(
            f"history={history}: this model was trained with noise on its past up to {largest} "
            "(objective.history_noise)"
        )
    if total < every:
        raise ValueError(f"{total} actions reach no frame; one stride is {every}")
    shapes = {c: v.shape[1] for c, v in video.items()}
    shapes |= {} if state is None else {"state": state.shape[1]}
    if wrong := {n: found for n, found in shapes.items() if found != horizon.past}:
        raise ValueError(
            f"this model looks at {horizon.past} past frames ({horizon.past_stride} apart), the "
            f"last of which is now; found {wrong}"
        )
    stride = horizon.past_stride
    hop = every if form == "causal" else span // every * every
    if any_frame and horizon.past > 1:  # what is handed over lies on the grid of past frames
        hop = max(stride, hop // stride * stride)
    past = {
        time: {f"video/{c}": v[:, i] for c, v in video.items()}
        | ({} if state is None else {"state": state[:, i]})
        for i, time in enumerate(horizon.times("frame", ())[: horizon.past].tolist())
    }
    parts: list[Imagined] = []
    names = sorted(next(iter(past.values())))
    for number, start in enumerate(range(0, total, hop)):
        times = [start - j * stride for j in reversed(range(horizon.past))]
        seen = {n: torch.stack([past[t][n] for t in times], 1) for n in names}
        frames = [f for f in range(start + 1, start + hop + 1) if f % every == 0]
        kept = {start + hop - j * stride for j in range(horizon.past)} if any_frame else set()
        asked = sorted({f - start for f in (*frames, *kept) if f > start})
        if not any_frame:
            asked = list(horizon.grid)[: 1 if form == "causal" else None]
        for group in range(0, len(asked), horizon.future):
            question = pattern("forward", horizon, offsets=asked[group : group + horizon.future])
            at = torch.arange(start, start + horizon.chunk).clamp(max=total - 1)
            given = until_last_frame(actions[:, at.to(actions.device)], question)
            found = ask(
                checkpoint, question,
                {c: seen[f"video/{c}"] for c in video}, seen.get("state"), {"action": given},
                task, steps, (seed, "imagine", number, group), guidance, history if number else 0.0,
            )  # fmt: skip
            for i, offset in enumerate(question.offsets):
                past[start + offset] = {f"video/{c}": v[:, i] for c, v in found.video.items()}
                if found.state is not None:
                    past[start + offset]["state"] = found.state[:, i]
            found.frames = found.frames + start
            parts.append(found)
    return _joined(parts, list(range(every, total + 1, every)))


def _joined(parts: list[Imagined], frames: list[int]) -> Imagined:
    """Windows one after the other, of which these frames are kept."""
    at = torch.cat([p.frames for p in parts])
    kept = torch.tensor([at.tolist().index(f) for f in frames])

    def join(values: list[Tensor | None]) -> Tensor | None:
        there = [v for v in values if v is not None]
        return torch.cat(there, 1)[:, kept.to(there[0].device)] if there else None

    video = {c: join([p.video[c] for p in parts]) for c in parts[0].video}
    return Imagined(
        video={c: v for c, v in video.items() if v is not None},
        state=join([p.state for p in parts]),
        frames=at[kept],
        success=join([p.success for p in parts]),
    )
