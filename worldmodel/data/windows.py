"""Cut batches of windows out of cached episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..types import Window


class Rows:
    """Several arrays, one a root, addressed as if they were concatenated along axis 0."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.shape = parts[0].shape[1:]
        # Flat rows: gathering one is then a single copy of contiguous memory.
        self._parts = [p.reshape(len(p), math.prod(self.shape)) for p in parts]
        self._ends = np.cumsum([len(p) for p in parts])
        self._dtype = torch.from_numpy(np.empty(0, parts[0].dtype)).dtype

    def take(self, rows: np.ndarray) -> Tensor:
        """Gather rows int64 ``[...]`` (they must exist) into a new tensor ``[..., *shape]``."""
        flat = rows.ravel()
        out = torch.empty((flat.size, self._parts[0].shape[1]), dtype=self._dtype)
        target = out.numpy()
        if len(self._parts) == 1:
            # mode="clip" lets numpy write to the target directly instead of through a copy
            np.take(self._parts[0], flat, axis=0, out=target, mode="clip")
        else:
            part_of = np.searchsorted(self._ends, flat, side="right")
            for number in np.unique(part_of).tolist():
                part, here = self._parts[number], part_of == number
                target[here] = part[flat[here] - (self._ends[number] - len(part))]
        return out.view(*rows.shape, *self.shape)


class Windows:
    """The windows of one split: one for each frame of its episodes, in order.

    Frames outside the episode are replaced by its first or last frame, actions past its end by
    its last action; ``frame_valid`` and ``action_valid`` say where.

    Args:
        frames: camera name -> `Rows` of uint8 ``[C, H, W]``.
        state, action: `Rows` of float32 ``[S]``, ``[A]``.
        task: int64 ``[rows]``, task of every row of the data.
        episodes: (episode number, first row, length) of the split's episodes.
        past_offsets, future_offsets: frames of a window relative to "now", int64 ``[P]``, ``[F]``.
        chunk: actions in a window.

    Attributes:
        episode_of, frame_of: int64 ``[len(self)]``: the episode of every window, and which of its
            frames (from 0) is "now". With several roots, episodes are numbered through all of them.
    """

    def __init__(
        self,
        frames: dict[str, Rows],
        state: Rows,
        action: Rows,
        task: np.ndarray,
        episodes: Sequence[tuple[int, int, int]],
        past_offsets: np.ndarray,
        future_offsets: np.ndarray,
        chunk: int,
    ):
        self._frames = frames
        self._state = state
        self._action = action
        self._past = past_offsets
        self._all = np.concatenate([past_offsets, future_offsets])
        self._steps = np.arange(chunk)
        numbers, starts, lengths = np.array(list(episodes), np.int64).reshape(-1, 3).T
        self.episode_of = np.repeat(numbers, lengths)
        self._first = np.repeat(starts, lengths)
        self._last = self._first + np.repeat(lengths, lengths) - 1
        before = np.repeat(np.cumsum(lengths) - lengths, lengths)
        self.frame_of = np.arange(len(self.episode_of)) - before
        self._task = task[self._first + self.frame_of]

    def __len__(self) -> int:
        return len(self.episode_of)

    def batch(self, indices: np.ndarray, *, future: bool = True) -> Window:
        """Some windows, as CPU tensors of their own memory.

        Args:
            indices: int64 ``[B]``, numbers in ``0, ..., len(self) - 1``.
            future: False leaves the future frames out and unread: T = P.

        Returns:
            A `Window`, unnormalised; its video uint8.

        Raises:
            IndexError: a number that is not there.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(
                f"windows {indices.min()} to {indices.max()} were asked for; there are "
                f"{len(self)}, numbered from 0"
            )
        first, last = self._first[indices, None], self._last[indices, None]
        now = first + self.frame_of[indices, None]
        frames = now + (self._all if future else self._past)
        actions = now + self._steps
        inside = np.clip(frames, first, last)
        return Window(
            video={camera: rows.take(inside) for camera, rows in self._frames.items()},
            state=self._state.take(inside),
            action=self._action.take(np.minimum(actions, last)),
            frame_valid=torch.from_numpy(frames == inside),
            action_valid=torch.from_numpy(actions <= last),
            task=torch.from_numpy(self._task[indices]),
            index=torch.from_numpy(indices.copy()),
        )

    def __repr__(self) -> str:
        return f"Windows({len(self):,} of {len(np.unique(self.episode_of)):,} episodes)"
