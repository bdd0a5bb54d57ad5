"""Statistics of state and action over the training episodes, and the search for broken values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .errors import ValuesError
from .source import Episode


def statistics(values: np.ndarray) -> dict[str, list[float]]:
    """The statistics that `worldmodel.types.STATISTICS` names, of every dimension.

    Args:
        values: ``[frames, dimensions]``, finite, at least one frame.

    Returns:
        statistic -> one float per dimension. Computed in float64, one dimension at a time, so
        that the extra memory is one column.
    """
    out: dict[str, list[float]] = {n: [] for n in ("mean", "std", "min", "max", "q01", "q99")}
    for dimension in range(values.shape[1]):
        column = values[:, dimension].astype(np.float64)
        q01, q99 = np.quantile(column, (0.01, 0.99))
        numbers = (column.mean(), column.std(), column.min(), column.max(), q01, q99)
        for name, number in zip(out, numbers, strict=True):
            out[name].append(float(number))
    return out


def require_finite(
    values: np.ndarray,
    episodes: Iterable[Episode],
    names: Sequence[str],
    key: str,
    where: str,
) -> None:
    """Refuse NaN and infinity.

    Args:
        values: ``[frames, dimensions]`` of a whole root.
        episodes: those that will be used.
        names: of the dimensions.
        key, where: the feature and the root, for the message.

    Raises:
        ValuesError: names the first bad value's episode, frame and dimension, and counts them.
    """
    first: str | None = None
    bad_episodes: list[int] = []
    count = 0
    for episode in episodes:
        number, start = episode.number, episode.start
        bad = ~np.isfinite(values[start : start + episode.length])
        if not bad.any():
            continue
        frame, dimension = (int(i) for i in np.argwhere(bad)[0])
        count += int(bad.sum())
        bad_episodes.append(number)
        if first is None:
            value = values[start + frame, dimension]
            first = f"{value} in episode {number}, frame {frame}, dimension {dimension}"
            first += f" ({names[dimension]!r})"
    if first is not None:
        listed = ", ".join(map(str, bad_episodes[:10])) + ", ..." * (len(bad_episodes) > 10)
        raise ValuesError(
            f"{key!r} of {where} is {first}; {count} such values in {len(bad_episodes)} "
            f"episodes ({listed}). Record these again, or train without them: "
            "data.episodes=[...] takes those to keep."
        )
