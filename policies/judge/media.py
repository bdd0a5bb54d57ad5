"""Films and pictures of imagination beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..media import Strip, Video

PANELS = ("real", "imagined", "difference")
LINE = 2  # white pixels between the panels of a film


@dataclass
class SideBySide:
    """An imagined future beside the one that came.

    Attributes:
        title: one line above it.
        real, imagined: uint8 ``[T, H, W, 3]``, frame by frame the same moment.
        fps: of both.
        caption: one line below it.
        gain: the difference is shown this many times as strong, and labelled so.
        seconds: of each frame from now; default: 1 / fps, 2 / fps, ...
    """

    title: str
    real: np.ndarray
    imagined: np.ndarray
    fps: float
    caption: str = ""
    gain: float = 4.0
    seconds: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, frames in (("real", self.real), ("imagined", self.imagined)):
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
                raise ValueError(
                    f"expected {name} frames as uint8 [T, H, W, 3], found {frames.dtype} "
                    f"{list(frames.shape)}"
                )
        if self.real.shape != self.imagined.shape or not len(self.real):
            raise ValueError(
                f"real and imagined frames must be of one shape with at least one frame, found "
                f"{list(self.real.shape)} and {list(self.imagined.shape)}"
            )
        if self.seconds is not None and len(self.seconds) != len(self.real):
            raise ValueError(f"{len(self.real)} frames have {len(self.seconds)} times")

    @property
    def difference(self) -> np.ndarray:
        """``|real - imagined|`` times `gain`, uint8 ``[T, H, W, 3]``; black where they agree."""
        apart = np.abs(self.real.astype(np.float32) - self.imagined)
        return np.minimum(self.gain * apart, 255).round().astype(np.uint8)

    @property
    def labels(self) -> tuple[str, str, str]:
        """Of the three panels."""
        return PANELS[0], PANELS[1], f"{PANELS[2]} ×{self.gain:g}"

    def film(self) -> Video:
        """The three panels beside one another."""
        line = np.full((*self.real.shape[:2], LINE, 3), 255, np.uint8)
        panels = [self.real, line, self.imagined, line, self.difference]
        return Video(self.title, np.concatenate(panels, axis=2), self.fps, caption=self.caption)

    def strip(self, frames: int = 10) -> Strip:
        """The three panels above one another, at most `frames` moments evenly spaced."""
        picks = np.linspace(0, len(self.real) - 1, min(frames, len(self.real))).round().astype(int)
        rows = np.stack([x[picks] for x in (self.real, self.imagined, self.difference)])
        at = self.seconds or [(i + 1) / self.fps for i in range(len(self.real))]
        return Strip(
            self.title, rows, self.labels, [f"+{at[i]:.2g} s" for i in picks], self.fps,
            self.caption,
        )  # fmt: skip


@dataclass
class BranchPicture:
    """K futures of one start, each after other actions, real and imagined.

    Attributes:
        title: one line above it.
        names: of the K branches.
        frames: frames after the start that are shown, F of them.
        real, imagined: uint8 ``[K, F, H, W, 3]``.
        distances: ``[K, K]``, row = imagined, column = real, which they were matched by.
        caption: one line below it.
    """

    title: str
    names: Sequence[str]
    frames: Sequence[int]
    real: np.ndarray
    imagined: np.ndarray
    distances: np.ndarray | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        k, f = len(self.names), len(self.frames)
        for name, pictures in (("real", self.real), ("imagined", self.imagined)):
            shape = pictures.shape
            if pictures.dtype != np.uint8 or len(shape) != 5 or shape[-1] != 3:
                raise ValueError(
                    f"expected {name} pictures as uint8 [K, F, H, W, 3], found {pictures.dtype} "
                    f"{list(shape)}"
                )
            if shape[:2] != (k, f):
                raise ValueError(
                    f"{k} names and {f} frames have {name} pictures of {shape[0]} branches at "
                    f"{shape[1]} frames"
                )
        if self.distances is not None and np.shape(self.distances) != (k, k):
            raise ValueError(f"{k} branches have distances {np.shape(self.distances)}")
