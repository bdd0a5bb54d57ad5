"""What the user may say about the data; the schema of the ``data`` part of every configuration."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from .errors import DatasetError, did_you_mean

ACTION_KINDS = ("auto", "absolute", "delta", "unknown")


@dataclass
class KeysConfig:
    """Names of a dataset's features; None finds them (see `worldmodel.data.keys`).

    Attributes:
        action: key of the action vector.
        state: key of the state vector.
        images: keys of the cameras in order, as a list; ``[]`` for none.
        demonstration: key of the flag that is False in exploratory episodes, whose actions are
            nothing to imitate.
        success: key of the flag that says whether the world after the action counts as solved.
    """

    action: str | None = None
    state: str | None = None
    images: Any = None
    demonstration: str | None = None
    success: str | None = None


@dataclass
class DataConfig:
    """Which data, cut into which windows.

    With frame "now" at t, a window holds the frames t - (past - 1) * past_stride, ..., t, then
    t + future_stride, ..., t + future * future_stride, and the actions t, ..., t + chunk - 1.

    Attributes:
        root: local folder or hub id ``owner/name``, or a list of them.
        keys: names of the features.
        image_size: pixels of the frames that the model sees, one number or ``[H, W]``.
        past, past_stride: past frames ("now" included), and frames between two of them.
        future, future_stride: future frames, and frames between two of them.
        chunk: actions in a window.
        action_kind: "absolute" (targets in the units of the state), "delta", or "unknown"; "auto"
            takes what the dataset says (ours do, see `keys.recorded_kind`); where it says nothing,
            it finds absolute ones by comparing actions with the states of the same names.
        validation: share of the episodes that is held out (at least one of two or more, unless 0).
        split_seed: chooses which ones.
        episodes: restrict to these episodes; with several roots one list (or null) a root.
        action_free: in the same form, episodes that are taken as if they had no actions, whatever
            is recorded there. A root without an action feature, beside another one that has it,
            needs no mention.
        cache_dir: where decoded frames go; default ``$SELFFLOW_CACHE``, else the user's cache.
    """

    root: Any = None
    keys: KeysConfig = field(default_factory=KeysConfig)
    image_size: Any = 64
    past: int = 1
    past_stride: int = 1
    future: int = 4
    future_stride: int = 4
    chunk: int = 16
    action_kind: str = "auto"
    validation: float = 0.05
    split_seed: int = 0
    episodes: Any = None
    action_free: Any = None
    cache_dir: str | None = None

    def roots(self) -> list[str]:
        """`root` as a list of strings.

        Raises:
            DatasetError: not set, or neither text nor a list of texts.
        """
        roots = list(self.root) if isinstance(self.root, (list, tuple)) else [self.root]
        if not roots or not all(r and isinstance(r, (str, os.PathLike)) for r in roots):
            raise DatasetError(
                f"data.root is {self.root!r}; set it to a LeRobot dataset: data.root=FOLDER, "
                "data.root=owner/name, or data.root=[FOLDER,FOLDER]"
            )
        return [os.fspath(r) for r in roots]

    def size(self) -> tuple[int, int]:
        """`image_size` as ``(H, W)``.

        Raises:
            DatasetError: not one or two positive whole numbers.
        """
        one = isinstance(self.image_size, int)
        size = (self.image_size,) * 2 if one else tuple(self.image_size or ())
        if len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise DatasetError(
                f"data.image_size is {self.image_size!r}; it takes pixels, as 64 or as [48,64] "
                "(height, width)"
            )
        return size

    def check(self) -> None:
        """Refuse numbers that describe no window or no split.

        Raises:
            DatasetError: names the field, its value and its least value.
        """
        self.roots()
        self.size()
        least = {"past": 1, "past_stride": 1, "future": 0, "future_stride": 1, "chunk": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise DatasetError(f"data.{name} is {value}; it must be at least {minimum}")
        if self.action_kind not in ACTION_KINDS:
            raise DatasetError(
                f"data.action_kind is {self.action_kind!r}; there are {list(ACTION_KINDS)}."
                f"{did_you_mean(self.action_kind, ACTION_KINDS)}"
            )
        if not 0 <= self.validation < 1:
            raise DatasetError(
                f"data.validation is {self.validation}; it is the share of episodes held out, "
                "at least 0 and below 1"
            )
