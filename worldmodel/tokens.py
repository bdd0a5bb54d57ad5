"""Modalities: what a robot senses and does, as tokens, and exactly back.

A modality turns values with a step axis into patches ``[B, steps, n, E]`` (`patch`), gives every
patch a position (`ids`) and turns patches back (`unpatch`); ``unpatch(patch(x)) == x`` exactly.
Both are parameter-free. Noise and losses live on patches; packed tokens ``[B, L, D]`` exist only
inside the backbone. A new modality (sampled force or audio, depth, ...) is one class here, one line
in `MODALITIES`, its part in `pattern`, and its values in `types.Window`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from einops import rearrange
from torch import Tensor

from .types import Spec


class Modality(Protocol):
    """What the model needs to know of a modality.

    Attributes:
        name: unique among the modalities of a model, e.g. "video/front".
        kind: key of `MODALITIES`; what configs name (mask ratios, p(t), loss weights are per kind).
        width: E, numbers in a patch.
        per_step: n, patches per step.
        axis: "frame" (past and future frames) or "chunk" (the steps of an action chunk).
    """

    kind: ClassVar[str]
    axis: ClassVar[str]

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def per_step(self) -> int: ...
    def patch(self, values: Tensor) -> Tensor: ...
    def unpatch(self, patches: Tensor) -> Tensor: ...
    def ids(self, times: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Video:
    """One camera: square patches of pixels.

    Raises:
        ValueError: when the frame does not divide into patches.
    """

    kind: ClassVar[str] = "video"
    axis: ClassVar[str] = "frame"
    name: str
    height: int
    width_px: int
    size: int
    channels: int = 3

    def __post_init__(self) -> None:
        if self.height % self.size or self.width_px % self.size:
            near = [max(1, round(n / self.size)) * self.size for n in (self.height, self.width_px)]
            raise ValueError(
                f"{self.name}: a frame of {self.height} x {self.width_px} pixels does not divide "
                f"into patches of {self.size}; use data.image_size={near} or another model.patch"
            )

    @property
    def rows(self) -> int:
        return self.height // self.size

    @property
    def columns(self) -> int:
        return self.width_px // self.size

    @property
    def width(self) -> int:
        return self.channels * self.size**2

    @property
    def per_step(self) -> int:
        return self.rows * self.columns

    def patch(self, values: Tensor) -> Tensor:
        """``[B, T, C, H, W]`` -> ``[B, T, n, E]``."""
        return rearrange(values, "b t c (h p) (w q) -> b t (h w) (c p q)", p=self.size, q=self.size)

    def unpatch(self, patches: Tensor) -> Tensor:
        """``[B, T, n, E]`` -> ``[B, T, C, H, W]``."""
        return rearrange(
            patches,
            "b t (h w) (c p q) -> b t c (h p) (w q)",
            h=self.rows,
            p=self.size,
            q=self.size,
        )

    def ids(self, times: Tensor) -> Tensor:
        """Positions ``[T * n, 3]``: time in frames, row and column in [-1, 1] at patch centres."""
        y = (torch.arange(self.rows) + 0.5) * (2 / self.rows) - 1
        x = (torch.arange(self.columns) + 0.5) * (2 / self.columns) - 1
        grid = torch.cartesian_prod(times.float(), y, x)
        return grid.reshape(-1, 3)


@dataclass(frozen=True)
class Vector:
    """A vector per step, one token each: a state or an action."""

    kind: ClassVar[str]
    axis: ClassVar[str]
    name: str
    size: int

    @property
    def width(self) -> int:
        return self.size

    @property
    def per_step(self) -> int:
        return 1

    def patch(self, values: Tensor) -> Tensor:
        """``[B, T, S]`` -> ``[B, T, 1, S]``."""
        return rearrange(values, "b t s -> b t 1 s")

    def unpatch(self, patches: Tensor) -> Tensor:
        """``[B, T, 1, S]`` -> ``[B, T, S]``."""
        return rearrange(patches, "b t 1 s -> b t s")

    def ids(self, times: Tensor) -> Tensor:
        """Positions ``[T, 3]``: time in frames; a vector has no place in the image."""
        return torch.nn.functional.pad(times.float()[:, None], (0, 2))


class State(Vector):
    """Proprioception at the frames of the window."""

    kind = "state"
    axis = "frame"


class Action(Vector):
    """The action chunk; step k leaves frame ``now + k``."""

    kind = "action"
    axis = "chunk"


MODALITIES: dict[str, type] = {m.kind: m for m in (Video, State, Action)}


def modalities_of(spec: Spec, patch: int) -> list[Modality]:
    """The modalities that a dataset or robot of this `spec` has: cameras, state, action."""
    found: list[Modality] = [
        Video(f"video/{camera}", *spec.image_size, size=patch) for camera in spec.cameras
    ]
    if spec.state_dim:
        found.append(State("state", spec.state_dim))
    found.append(Action("action", spec.action_dim))
    return found


@dataclass(frozen=True)
class Horizon:
    """When the steps of a window happen, in frames relative to "now" (frame 0).

    Attributes:
        past, past_stride: P past frames, the last one is now.
        future, future_stride: F future frames, the first one `future_stride` after now.
        chunk: K action steps, the first one leaves now.
    """

    past: int = 2
    past_stride: int = 1
    future: int = 4
    future_stride: int = 4
    chunk: int = 16

    @property
    def grid(self) -> tuple[int, ...]:
        """The future frames that a window holds where nobody asks for others."""
        return tuple(self.future_stride * n for n in range(1, self.future + 1))

    @property
    def reach(self) -> int:
        """The last frame that can be asked for."""
        return max(self.future * self.future_stride, self.chunk) if self.future else 0

    def times(self, axis: str, offsets: Sequence[int] | None = None) -> Tensor:
        """Times ``[P + F]`` of the frames or ``[K]`` of the chunk.

        Args:
            offsets: frames after now that take the place of `grid`.
        """
        if axis == "chunk":
            return torch.arange(self.chunk)
        past = torch.arange(-(self.past - 1), 1) * self.past_stride
        future = torch.tensor(self.grid if offsets is None else tuple(offsets), dtype=torch.long)
        return torch.cat([past, future])


# --- which tokens are given, wanted, left out ----------------------------------------------------

Steps = slice | list[int]
"""Which steps of a modality's axis; both index a tensor."""


@dataclass(frozen=True)
class Pattern:
    """A question to the model: which steps of which kind are given and which are wanted.

    What is neither is left out. Steps run over a modality's own axis: past frames, then future
    ones; or the steps of the chunk.

    Attributes:
        offsets: the future frames of the question, in frames after now, ascending.
    """

    name: str
    given: dict[str, Steps]
    wanted: dict[str, Steps]
    offsets: tuple[int, ...]

    @property
    def has_future(self) -> bool:
        """Whether it needs frames after now, given or wanted."""
        return self.name not in ACTING

    @property
    def source(self) -> str:
        """Which windows it can be learnt from: "demonstrated", "has_action" or "any".

        What decides (actions are wanted that nothing shows yet) learns from demonstrations; what
        predicts or explains, from whatever was done; video alone, from all there is.
        """
        if self.name in DECIDING:
            return "demonstrated"
        return "has_action" if "action" in {**self.given, **self.wanted} else "any"


PATTERNS = ("act", "act_prefix", "forward", "inverse", "video", "joint", "reach")
ACTING = ("act", "act_prefix")
"""Patterns without any future frame."""
DECIDING = (*ACTING, "joint", "reach")
"""Patterns that answer with what a demonstrator would do."""
SEEING = ("inverse", "video", "reach")
"""Patterns that mean nothing to a robot without a camera."""


def pattern(
    name: str, horizon: Horizon, prefix: int = 1, offsets: Sequence[int] | None = None
) -> Pattern:
    """One of `PATTERNS` for windows of this horizon.

    Args:
        prefix: committed steps of the chunk, for "act_prefix"; 0 makes it equal to "act".
        offsets: future frames of the question, in frames after now; default: ``horizon.grid``.

    Raises:
        ValueError: for an unknown name, a prefix outside ``[0, chunk)``, offsets that are not
            ascending within the horizon, or a pattern that needs future frames where the horizon
            has none.
    """
    now, later, chunk = slice(0, horizon.past), slice(horizon.past, None), slice(0, None)
    every = slice(0, None)
    seen: dict[str, Steps] = {"video": now, "state": now}
    if name not in PATTERNS:
        raise ValueError(f"unknown pattern {name!r}; there are {list(PATTERNS)}")
    if name not in ACTING and not horizon.future:
        raise ValueError(f"pattern {name!r} needs future frames; data.future is 0")
    at = horizon.grid if offsets is None else tuple(int(o) for o in offsets)
    if name not in ACTING and (
        not at or list(at) != sorted(set(at)) or not 1 <= at[0] <= at[-1] <= horizon.reach
    ):
        raise ValueError(
            f"a question about future frames names them in ascending order, from 1 to "
            f"{horizon.reach} after now; found {list(at)}"
        )
    if name == "act":
        return Pattern(name, seen, {"action": chunk}, at)
    if name == "act_prefix":
        if not 0 <= prefix < horizon.chunk:
            raise ValueError(f"a committed prefix is in [0, {horizon.chunk}), found {prefix}")
        given = seen | ({"action": slice(0, prefix)} if prefix else {})
        return Pattern(name, given, {"action": slice(prefix, None)}, at)
    if name == "forward":
        return Pattern(name, seen | {"action": chunk}, {"video": later, "state": later}, at)
    if name == "inverse":  # no future state: absolute joint targets would leak through it
        return Pattern(name, {"video": every, "state": now}, {"action": chunk}, at)
    if name == "video":
        return Pattern(name, seen, {"video": later}, at)
    if name == "reach":  # the goal is the last of its frames; those between are left out
        goal: Steps = [*range(horizon.past), horizon.past + len(at) - 1]
        return Pattern(name, {"video": goal, "state": now}, {"action": chunk}, at)
    return Pattern(name, seen, {"action": chunk, "video": later, "state": later}, at)


def unknown_kinds(kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` that are no key of `MODALITIES`, to catch typos in per-kind settings."""
    return sorted(set(kinds) - set(MODALITIES))
