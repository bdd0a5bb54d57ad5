"""The types that flow through the world model.

Dimension letters, used in every docstring of this package:

====  =====================================================
B     batch
T     frames of a window: P past ones, then F future ones
P, F  past frames (the last one is "now"), future frames
C, H, W  channels, height, width of a frame
S, A  size of the state vector, of the action vector
K     steps of an action chunk; step 0 leaves frame "now"
N     tokens of one modality;  L  tokens of all modalities
D     width of the transformer;  E  width of one patch
====  =====================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

STATISTICS = ("mean", "std", "min", "max", "q01", "q99")


class SpecMismatchError(ValueError):
    """Two specs (checkpoint, dataset, environment, robot) disagree; says where first."""


@dataclass(frozen=True)
class Spec:
    """The facts of a dataset or a robot that a model is built for.

    Discovered from data, saved with every checkpoint, never written into a config.

    Attributes:
        cameras: camera names in order; empty when there is no video.
        image_size: ``(H, W)`` in pixels of the frames that the model sees.
        state_names: one name per state dimension.
        action_names: one name per action dimension.
        fps: frames, states and actions per second.
        tasks: task texts; a window's ``task`` is an index into them.
        stats: ``{"state"|"action": {statistic: [float, ...]}}`` of the training split, the
            statistics being those of `STATISTICS`.
        robot_type: the dataset's robot type, or "".
        action_kind: "absolute" (targets in the units of the state), "delta", or "unknown".
        action_targets: per action dimension, the index of the state dimension that it is a target
            for, -1 for none; empty where it was not found out.
        action_rank: per action dimension, how many coefficients a polynomial needs to follow its
            chunks; 0 where none does, empty where it was not measured.
        has_success: the training split says of frames whether the task is solved there, and holds
            both kinds (see `Window.success`).
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    fps: float
    tasks: tuple[str, ...] = ()
    stats: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    robot_type: str = ""
    action_kind: str = "unknown"
    action_targets: tuple[int, ...] = ()
    action_rank: tuple[int, ...] = ()
    has_success: bool = False

    @property
    def state_dim(self) -> int:
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        """The inverse of `to_dict` (JSON turns tuples into lists; this turns them back)."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown fields in a spec: {unknown}; it has {sorted(known)}")
        tuples = {f.name for f in dataclasses.fields(cls) if str(f.type).startswith("tuple")}
        fields: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items()}
        return cls(**fields)

    def require_same(
        self,
        other: Spec,
        mine: str,
        theirs: str,
        *,
        image_size: bool = True,
        may_differ: Collection[str] = (),
    ) -> None:
        """Refuse `other` by naming the first difference that would change what the model means.

        What one of the two does not know (``robot_type`` "", ``action_kind`` "unknown") is no
        difference.

        Args:
            mine, theirs: what the two specs are called in the error.
            image_size: also compare image sizes (frames can be resized, so it is optional).
            may_differ: further fields that are left out.

        Raises:
            SpecMismatchError: at the first difference.
        """
        names = ["cameras", "state_names", "action_names", "robot_type", "fps", "action_kind"]
        if image_size:
            names.append("image_size")
        unknown = {"robot_type": "", "action_kind": "unknown"}
        for name in names:
            a, b = getattr(self, name), getattr(other, name)
            if a != b and name not in may_differ and unknown.get(name) not in (a, b):
                raise SpecMismatchError(
                    f"{theirs} does not fit {mine}: {name} is {b!r}, expected {a!r}"
                )


@dataclass
class Window:
    """One batch of windows, as the dataset gives them: unnormalised.

    Attributes:
        video: camera name -> uint8 ``[B, T, C, H, W]``, past frames then future frames.
        state: float32 ``[B, T, S]`` at the same frames.
        action: float32 ``[B, K, A]``; step k leaves frame ``now + k``.
        frame_valid: bool ``[B, T]``, False where the frame lies outside the episode
            (its content is then the nearest frame inside).
        action_valid: bool ``[B, K]``, False past the episode's end (last action repeated), and
            throughout where the episode has no actions (zeros).
        task: int64 ``[B]``, index into ``Spec.tasks``; -1 for "no task".
        index: int64 ``[B]``, the window's number in its split.
        success: int8 ``[B, T]``, whether the world at that frame counts as solved: 1 or 0, -1
            where it is not known (and wherever ``frame_valid`` is False). None where whoever made
            the window does not say; the dataset always does.
    """

    video: dict[str, Tensor]
    state: Tensor
    action: Tensor
    frame_valid: Tensor
    action_valid: Tensor
    task: Tensor
    index: Tensor
    success: Tensor | None = None

    def to(self, device: torch.device | str) -> Window:
        """The same window on another device."""
        moved: dict[str, Any] = {
            f.name: None if (value := getattr(self, f.name)) is None
            else value.to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if f.name != "video"
        }  # fmt: skip
        video = {k: v.to(device, non_blocking=True) for k, v in self.video.items()}
        return Window(video=video, **moved)


@dataclass
class Losses:
    """What an objective returns: the scalar to minimise and what to log beside it."""

    total: Tensor
    logs: dict[str, float | Tensor] = field(default_factory=dict)
