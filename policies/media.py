"""Pictures and films as bytes: what a report embeds, so that it stays one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np


@dataclass
class Video:
    """One filmed episode.

    Attributes:
        title: one line above it.
        frames: uint8 ``[T, H, W, 3]``.
        fps: frames per second.
        success: how the episode ended; None where that means nothing.
        caption: one line below it.
    """

    title: str
    frames: np.ndarray
    fps: float
    success: bool | None = None
    caption: str = ""


@dataclass
class Strip:
    """Films to compare frame by frame, such as real above imagined.

    Attributes:
        title: one line above it.
        rows: uint8 ``[R, T, H, W, C]``, C being 1 or 3.
        labels: one per row.
        columns: one per frame (say, "+0.2 s"), or none.
        fps: frames per second of the film made of it.
        caption: one line below it.
    """

    title: str
    rows: np.ndarray
    labels: Sequence[str]
    columns: Sequence[str] = ()
    fps: float = 4.0
    caption: str = ""

    def __post_init__(self) -> None:
        shape = self.rows.shape
        if self.rows.dtype != np.uint8 or len(shape) != 5 or shape[-1] not in (1, 3):
            raise ValueError(
                f"expected a strip's rows as uint8 [R, T, H, W, 1 or 3], found {self.rows.dtype} "
                f"{list(shape)}"
            )
        if len(self.labels) != shape[0] or len(self.columns) not in (0, shape[1]):
            raise ValueError(
                f"a strip of {shape[0]} rows and {shape[1]} frames has {len(self.labels)} row "
                f"labels and {len(self.columns)} column labels"
            )
        if shape[-1] == 1:
            self.rows = np.repeat(self.rows, 3, axis=-1)

    def film(self) -> Video:
        """The rows side by side, as one film."""
        return Video(self.title, np.concatenate(list(self.rows), axis=2), self.fps)


def encode_mp4(frames: np.ndarray, fps: float, *, min_height: int = 0, crf: int = 20) -> bytes:
    """H.264 in an MP4 that every browser plays (yuv420p).

    Args:
        frames: uint8 ``[T, H, W, 3]``. Odd sides are padded by repeating the last row or column,
            since yuv420p needs even ones.
        min_height: small frames are magnified by whole pixels until they are at least this high.
        crf: x264's quality, smaller is better.

    Raises:
        ValueError: for anything but a non-empty uint8 RGB film.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"expected uint8 [T, H, W, 3], found {frames.dtype} {list(frames.shape)}")
    frames = magnified(frames, min_height)
    height, width = frames.shape[1:3]
    frames = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


def magnified(frames: np.ndarray, min_height: int) -> np.ndarray:
    """Frames ``[..., H, W, C]`` repeated by whole pixels until H >= `min_height`."""
    factor = max(1, -(-min_height // frames.shape[-3]))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def data_uri(content: bytes, media_type: str) -> str:
    """The content as a ``data:`` address that HTML can embed."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
