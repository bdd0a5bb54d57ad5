"""What the frames of a dataset are marked as: explored or demonstrated, solved or not."""

from __future__ import annotations

import numpy as np

from .keys import Keys
from .source import Episode, Source


def exploratory_episodes(source: Source, keys: Keys) -> set[Episode]:
    """Episodes that are no demonstrations: some frame is marked so. Without marks there are none.

    Raises:
        BrokenError: marks are missing.
    """
    if not keys.demonstration:
        return set()
    shown = _flag(source, keys.demonstration)
    return {e for e in source.episodes if not shown[e.start : e.start + e.length].all()}


def solved_frames(source: Source, keys: Keys) -> np.ndarray:
    """Whether the world counts as solved at every frame: int8 ``[rows]``, 1 or 0; -1: not known.

    ``next.success`` of a row speaks of the world after the row's action, where the next frame is;
    an episode's first frame counts as not solved. What follows its last action has no frame.

    Raises:
        BrokenError: marks are missing.
    """
    if not keys.success:
        return np.full(source.rows, -1, np.int8)
    after = _flag(source, keys.success)
    solved = np.zeros(source.rows, np.int8)
    solved[1:] = after[:-1]
    solved[[e.start for e in source.episodes]] = 0
    return solved


def _flag(source: Source, key: str) -> np.ndarray:
    """One bool a frame, in full: bool ``[rows]``."""
    return source.vectors(key)[:, 0] > 0
