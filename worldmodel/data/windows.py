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
    its last action; ``frame_valid`` and ``action_valid`` say where. Actions of episodes without any
    are zeros, and not valid.

    Args:
        frames: camera name -> `Rows` of uint8 ``[C, H, W]``.
        state, action: `Rows` of float32 ``[S]``, ``[A]``.
        task: int64 ``[rows]``, task of every row of the data.
        episodes: (episode number, first row, length) of the split's episodes.
        past_offsets, future_offsets: frames of a window relative to "now", int64 ``[P]``, ``[F]``.
        chunk: actions in a window.
        success: int8 ``[rows]``, whether the world at every frame of the data counts as solved
            (-1: not known); None where that is known of none.
        has_action: bool, one an episode: False leaves its actions unread; None: all have some.
        demonstrated: bool, one an episode: whether actions, where there are some, are to be
            imitated; None: all are.

    Attributes:
        episode_of, frame_of: int64 ``[len(self)]``: the episode of every window, and which of its
            frames (from 0) is "now". With several roots, episodes are numbered through all of them.
        has_action: bool ``[len(self)]``, whether the window's episode has actions.
        demonstrated: bool ``[len(self)]``, whether it has, and they are to be imitated.
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
        success: np.ndarray | None = None,
        has_action: Sequence[bool] | None = None,
        demonstrated: Sequence[bool] | None = None,
    ):
        self._frames = frames
        self._state = state
        self._action = action
        self._past = past_offsets
        self._future = future_offsets
        self._steps = np.arange(chunk)
        numbers, starts, lengths = np.array(list(episodes), np.int64).reshape(-1, 3).T
        self.episode_of = np.repeat(numbers, lengths)
        self._first = np.repeat(starts, lengths)
        self._last = self._first + np.repeat(lengths, lengths) - 1
        before = np.repeat(np.cumsum(lengths) - lengths, lengths)
        self.frame_of = np.arange(len(self.episode_of)) - before
        self._task = task[self._first + self.frame_of]
        self._success = success
        every = np.ones(len(lengths), bool)
        acts = every if has_action is None else np.asarray(has_action, bool)
        shown = every if demonstrated is None else np.asarray(demonstrated, bool)
        self.has_action = np.repeat(acts, lengths)
        self.demonstrated = np.repeat(acts & shown, lengths)

    def __len__(self) -> int:
        return len(self.episode_of)

    def batch(
        self,
        indices: np.ndarray,
        *,
        future: bool | None = True,
        offsets: np.ndarray | None = None,
    ) -> Window:
        """Some windows, as CPU tensors of their own memory.

        Args:
            indices: int64 ``[B]``, numbers in ``0, ..., len(self) - 1``.
            future: False leaves the future frames out and unread: T = P. None is True.
            offsets: int64 ``[F']``, frames after "now" that take the place of the future ones of
                this data: T = P + F'.

        Returns:
            A `Window`, unnormalised; its video uint8.

        Raises:
            IndexError: a number that is not there.
            ValueError: `offsets` without a future.
        """
        if offsets is not None and future is False:
            raise ValueError("batch(future=False) reads no future frames; leave out offsets")
        indices = np.asarray(indices, np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(
                f"windows {indices.min()} to {indices.max()} were asked for; there are "
                f"{len(self)}, numbered from 0"
            )
        first, last = self._first[indices, None], self._last[indices, None]
        now = first + self.frame_of[indices, None]
        ahead = self._future if offsets is None else np.asarray(offsets, np.int64)
        frames = now + (self._past if future is False else np.concatenate([self._past, ahead]))
        actions = now + self._steps
        inside = np.clip(frames, first, last)
        valid = frames == inside
        success = np.full(frames.shape, -1, np.int8)
        if self._success is not None:
            success[valid] = self._success[inside[valid]]
        action, action_valid = self._action.take(np.minimum(actions, last)), actions <= last
        if not (acts := self.has_action[indices]).all():
            action[~torch.from_numpy(acts)] = 0  # whatever was recorded there, it may be NaN
            action_valid &= acts[:, None]
        return Window(
            video={camera: rows.take(inside) for camera, rows in self._frames.items()},
            state=self._state.take(inside),
            action=action,
            frame_valid=torch.from_numpy(valid),
            action_valid=torch.from_numpy(action_valid),
            task=torch.from_numpy(self._task[indices]),
            index=torch.from_numpy(indices.copy()),
            success=torch.from_numpy(success),
        )

    def __repr__(self) -> str:
        return f"Windows({len(self):,} of {len(np.unique(self.episode_of)):,} episodes)"
