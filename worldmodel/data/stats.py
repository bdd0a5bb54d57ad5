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


FOLLOWED = 0.8  # share of an action's variance that the state it is a target for explains
FIT_TOLERANCE = 0.002  # of half a dimension's range
LARGEST_RANK = 10


def action_targets(
    state: np.ndarray, action: np.ndarray, state_names: Sequence[str], action_names: Sequence[str]
) -> tuple[int, ...]:
    """For every action dimension the state dimension that it is a target for; -1: none.

    A target has the name of what it moves, and most of its variance (`FOLLOWED`) is explained by
    where that is in the same frame; a change, a velocity, a force or another unit is not.

    Args:
        state, action: ``[frames, dimensions]``.
    """
    targets = []
    for i, name in enumerate(action_names):
        where = state_names.index(name) if name in state_names else -1
        if where >= 0:
            a, s = action[:, i].astype(np.float64), state[:, where].astype(np.float64)
            if not np.square(a - s).mean() < (1 - FOLLOWED) * a.var():
                where = -1
        targets.append(where)
    return tuple(targets)


def action_kind(targets: Sequence[int], std: Sequence[float]) -> str:
    """ "absolute" where most of the dimensions that move are targets, else "unknown".

    Args:
        targets: of `action_targets`.
        std: standard deviation of every action dimension.
    """
    moving = [target for target, spread in zip(targets, std, strict=True) if spread > 1e-6]
    return "absolute" if 2 * sum(t >= 0 for t in moving) > len(moving) else "unknown"


def action_rank(chunks: np.ndarray) -> tuple[int, ...]:
    """How many coefficients a polynomial needs to follow the demonstrated chunks.

    Args:
        chunks: ``[N, K, dimensions]``.

    Returns:
        Per dimension the smallest number that leaves an RMS error below `FIT_TOLERANCE` of half
        the dimension's 1-99 % range; 1 for one that never moves; 0 where `LARGEST_RANK`
        coefficients, or half of K, do not suffice, and everywhere when there are no chunks.
    """
    if not len(chunks):
        return (0,) * chunks.shape[2]
    steps = chunks.shape[1]
    basis = np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, steps), steps - 1))[0]
    ranks = []
    for d in range(chunks.shape[2]):
        values = chunks[:, :, d].astype(np.float64)
        low, high = np.quantile(values, (0.01, 0.99))
        power = np.square(values @ basis).mean(0)  # of each coefficient; the basis is orthonormal
        # What the later coefficients hold; after the last one exactly nothing.
        after = np.append(np.cumsum(power[::-1])[::-1][1:], 0)
        left = np.sqrt(after / steps)
        enough = np.flatnonzero(left <= max(FIT_TOLERANCE * (high - low) / 2, 1e-6))
        rank = int(enough[0]) + 1
        ranks.append(rank if rank <= max(1, min(LARGEST_RANK, steps // 2)) else 0)
    return tuple(ranks)


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
