"""Does the model put things in the right order? Correlations, matching, detection.

A number that the data cannot give (nothing varies, one class is missing) is NaN, with the reason in
words beside it, never a stand-in.

Sources: J. A. Hanley and B. J. McNeil, "The meaning and use of the area under a receiver operating
characteristic (ROC) curve", Radiology 143 (1982); R. G. Newcombe, "Confidence intervals for an
effect size measure based on the Mann-Whitney statistic, part 2", Statistics in Medicine 25 (2006);
X. Li et al., "Evaluating real-world robot manipulation policies in simulation" (SIMPLER), 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from ..statistics import Interval, mean_interval, resampled, share_interval

REPEATS = 2000
CONFIDENCE = 0.95
FEW = 0.5
"""Share of resampled sets that must yield a number before an interval is given."""


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve with its 95 % interval.

    Attributes:
        auroc: chance that a positive scores above a negative, ties half; 0.5 is chance.
        low, high: bounds.
        positives, negatives: how many there are of each.
        groups: how many groups were resampled; None where every score counted as independent.
        reason: why there is no number or no interval, or "".
    """

    auroc: float
    low: float
    high: float
    positives: int
    negatives: int
    groups: int | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Branching:
    """K-way matching of imagined to real branches.

    Attributes:
        k: branches of one start.
        accuracy: share of imagined branches whose nearest real one is their own.
        low, high: 95 % interval over starts.
        chance: 1 / k.
        n: matched branches, k times the starts.
        starts: number of starting states.
        confusion: ``[K][K]``, share of the starts in which imagined branch i was matched with real
            branch j; a row falls short of 1 by its ties.
    """

    k: int
    accuracy: float
    low: float
    high: float
    chance: float
    n: int
    starts: int
    confusion: list[list[float]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def roc_curve(
    scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve of calling positive what scores at least a threshold.

    Args:
        scores: ``[N]``, higher speaks for positive.
        labels: bool ``[N]``.

    Returns:
        False positive rate, true positive rate and threshold, each ``[M]``, from (0, 0) at infinity
        to (1, 1). Equal scores share one point. A class without members has a rate of NaN.
    """
    values, positive = _scored(scores, labels)
    order = np.argsort(-values, kind="stable")
    values, positive = values[order], positive[order]
    last = np.flatnonzero(np.append(np.diff(values) != 0, True)[: len(values)])
    hits, alarms = np.cumsum(positive)[last], np.cumsum(~positive)[last]
    rates = []
    for counts, total in ((alarms, (~positive).sum()), (hits, positive.sum())):
        rates.append(np.append(0, counts) / total if total else np.full(len(counts) + 1, np.nan))
    return rates[0], rates[1], np.append(np.inf, values[last])


def auroc(
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[bool] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
) -> Auroc:
    """Area under the ROC curve with a 95 % interval.

    Without groups the interval is Hanley and McNeil's, solved for the true area as Wilson's is for
    a rate (Newcombe's method 5), so that it stays in [0, 1] and keeps a width at 0 and 1. With
    groups whole groups are resampled; where that leaves no width, the number of groups stands for
    the number of scores.

    Args:
        scores: ``[N]``, higher speaks for positive.
        labels: bool ``[N]``.
        groups: ``[N]``, such as the episode that each score is from.
        seed: of the resampling.

    Raises:
        ValueError: scores, labels and groups differ in length, or a score is NaN.
    """
    values, positive = _scored(scores, labels)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        reason = f"there is no {'negative' if m else 'positive'} among {m + n} scores"
        return Auroc(math.nan, math.nan, math.nan, m, n, reason=reason)
    area = _area(values, positive)
    if groups is None:
        return Auroc(area, *_area_interval(area, m, n), m, n)
    units = np.asarray(groups)
    if units.shape != values.shape:
        raise ValueError(f"expected a group for each of {len(values)} scores, found {units.shape}")
    names, of = np.unique(units, return_inverse=True)
    count = len(names)
    if count < 2:
        reason = "all scores are of one group: nothing to resample"
        return Auroc(area, math.nan, math.nan, m, n, count, reason)
    wins = _wins(values, positive, of, count)
    per_positive = np.bincount(of[positive], minlength=count).astype(float)
    per_negative = np.bincount(of[~positive], minlength=count).astype(float)
    drawn = resampled(count, REPEATS, np.random.default_rng(seed))
    pairs = (drawn @ per_positive) * (drawn @ per_negative)
    areas = ((drawn @ wins) * drawn).sum(1)[pairs > 0] / pairs[pairs > 0]
    if len(areas) < FEW * REPEATS:
        reason = "too few groups hold positives or negatives to resample"
        return Auroc(area, math.nan, math.nan, m, n, count, reason)
    low, high = _percentile_interval(areas)
    if low == high:
        low, high = _area_interval(
            area, int((per_positive > 0).sum()), int((per_negative > 0).sum())
        )
    return Auroc(area, low, high, m, n, count)


def pearson(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson's correlation of ``[N]`` and ``[N]``; NaN where one of them does not vary."""
    first, second = _paired(x, y)
    return float(_pearsons(first[None], second[None])[0])


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's correlation, of ranks; ties share their average rank. NaN as `pearson`."""
    first, second = _paired(x, y)
    return pearson(ranks(first), ranks(second))


def ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks from 1 ``[N]``; equal values get the mean of the ranks that they take up."""
    _, number, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[number]


def mmrv(real: Sequence[float] | np.ndarray, imagined: Sequence[float] | np.ndarray) -> float:
    """Mean maximum rank violation: what a wrong order costs, in units of `real`; 0 is perfect.

    ``mean_i max_j |R_i - R_j| * 1[the order of i and j differs between real and imagined]``. A tie
    in `imagined` of two that differ in reality counts as a violation of both, so that a model that
    finds everything equal is not rewarded (SIMPLER's own code counts one of the two).
    """
    first, second = _paired(real, imagined)
    if len(first) < 2:
        return math.nan
    return float(_mmrvs(first[None], second[None])[0])


def correlations(
    real: np.ndarray, imagined: np.ndarray, *, seed: int = 0, repeats: int = REPEATS
) -> dict[str, Any]:
    """How imagined outcomes of P policies follow the real ones, with intervals.

    Both policies and episodes are resampled: another dozen of policies, judged on other resets,
    would have given other numbers. Drawing episodes anew adds noise to noise, so the intervals of
    noisy rates lie a little below the numbers themselves.

    Args:
        real, imagined: outcomes ``[P, E]``, bool or numbers; column e of both is the same reset.
        seed: of the resampling.

    Returns:
        ``pearson``, ``spearman``, ``mmrv`` (of the P mean outcomes), ``intervals`` (name ->
        ``[low, high]``, 95 %), ``n`` (P), ``episodes`` (E), and ``reasons`` (name -> why there is
        no number or no interval).

    Raises:
        ValueError: the tables differ in shape or hold a NaN.
    """
    first, second = np.asarray(real, np.float64), np.asarray(imagined, np.float64)
    if first.shape != second.shape or first.ndim != 2 or not first.size:
        raise ValueError(
            f"expected two tables [policies, episodes] of one shape, found {first.shape} and "
            f"{second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("an outcome is not a finite number; leave that episode out for all")
    policies, episodes = first.shape
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, policies, (repeats, policies))
    weights = resampled(episodes, repeats, rng) / episodes
    rates = [np.take_along_axis(weights @ table.T, chosen, axis=1) for table in (first, second)]
    means = (first.mean(1), second.mean(1))
    why = _constant(*means)
    report: dict[str, Any] = {"n": policies, "episodes": episodes, "intervals": {}, "reasons": {}}
    measures: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "pearson": _pearsons,
        "spearman": lambda x, y: _pearsons(_rank_rows(x), _rank_rows(y)),
        "mmrv": _mmrvs,
    }
    for name, measure in measures.items():
        usable = policies >= 2 if name == "mmrv" else not why
        report[name] = float(measure(*(m[None] for m in means))[0]) if usable else math.nan
        draws = measure(*rates) if usable else np.full(repeats, math.nan)
        draws = draws[np.isfinite(draws)]
        if not usable:
            report["reasons"][name] = why
        elif len(draws) < FEW * repeats:
            report["reasons"][name] = "too few policies differ to resample them"
        enough = usable and len(draws) >= FEW * repeats
        report["intervals"][name] = list(
            _percentile_interval(draws) if enough else (math.nan, math.nan)
        )
    return report


def matching(distances: np.ndarray) -> float:
    """Share of rows whose own column is strictly the nearest.

    Args:
        distances: ``[K, K]``, row = imagined branch, column = real branch.

    Raises:
        ValueError: not square, or NaN.
    """
    return float(_matched(np.asarray(distances)[None]).mean())


def branching_accuracy(distances: np.ndarray, *, seed: int = 0) -> Branching:
    """`matching` over B starting states, which are what is resampled for the interval.

    Args:
        distances: ``[B, K, K]``, row = imagined branch, column = real branch. A tie is wrong.

    Raises:
        ValueError: no starts, not square, or NaN.
    """
    table = np.asarray(distances, np.float64)
    right = _matched(table)
    starts, k = right.shape
    interval = share_interval(right.ravel(), np.repeat(np.arange(starts), k), seed=seed)
    nearest = table == table.min(-1, keepdims=True)
    nearest &= nearest.sum(-1, keepdims=True) == 1
    return Branching(
        k, interval.mean, interval.low, interval.high, 1 / k, right.size, starts,
        nearest.mean(0).tolist(),
    )  # fmt: skip


def difference_correlation(real: np.ndarray, imagined: np.ndarray, *, seed: int = 0) -> Interval:
    """Do two branches differ in imagination as they do in reality? Correlation, mean over starts.

    For every start, Pearson's correlation between ``x_i - x_j`` imagined and real, over all
    pairs i < j and all entries. About 0 where actions are ignored; a start whose branches do not
    differ at all in one of the two is left out.

    Args:
        real, imagined: ``[B, K, ...]``, pictures or states after the same actions.

    Raises:
        ValueError: shapes differ.
    """
    first, second = np.asarray(real, np.float64), np.asarray(imagined, np.float64)
    if first.shape != second.shape or first.ndim < 3:
        raise ValueError(f"expected [B, K, ...] twice, found {first.shape} and {second.shape}")
    i, j = np.triu_indices(first.shape[1], 1)
    each = [
        pearson((a[i] - a[j]).ravel(), (b[i] - b[j]).ravel())
        for a, b in zip(first, second, strict=True)
    ]
    return mean_interval(each, seed=seed)


def cosines(real: np.ndarray, imagined: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Cosine between real and imagined displacements.

    Args:
        real, imagined: ``[..., D]``.
        least: real displacements up to this length have no direction worth comparing.

    Returns:
        ``[...]``; NaN where the real displacement is not above `least` or the imagined one is 0.
    """
    first, second = np.asarray(real, np.float64), np.asarray(imagined, np.float64)
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    known = (lengths[0] > least) & (lengths[1] > 0)
    product = np.where(known, lengths[0] * lengths[1], 1.0)
    return np.where(known, (first * second).sum(-1) / product, math.nan)


def drift_horizon(
    frames: Sequence[int] | np.ndarray,
    error: Sequence[float] | np.ndarray,
    floor: Sequence[float] | np.ndarray,
) -> int | None:
    """The first frame from which on the error is not below the floor's; None if it ends below.

    Args:
        frames, error, floor: ``[T]``, lower errors being better. One unlucky frame is no drift: the
            error must stay above to the end.
    """
    above = ~(np.asarray(error, np.float64) < np.asarray(floor, np.float64))
    if not above.size or not above[-1]:
        return None
    below = np.flatnonzero(~above)
    return int(frames[below[-1] + 1 if below.size else 0])


def _scored(
    scores: Sequence[float] | np.ndarray, labels: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    values, positive = np.asarray(scores, np.float64), np.asarray(labels, bool)
    if values.shape != positive.shape or values.ndim != 1:
        raise ValueError(
            f"expected a label for each score [N], found {values.shape} scores and "
            f"{positive.shape} labels"
        )
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} of {len(values)} scores are NaN")
    return values, positive


def _area(values: np.ndarray, positive: np.ndarray) -> float:
    m, n = int(positive.sum()), int((~positive).sum())
    return float((ranks(values)[positive].sum() - m * (m + 1) / 2) / (m * n))


def _wins(values: np.ndarray, positive: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
    """``[G, G]``: how often positives of one group beat negatives of another, ties half."""
    table = np.zeros((count, count))
    negatives, group = values[~positive], of[~positive]
    order = np.argsort(negatives, kind="stable")
    negatives, group = negatives[order], group[order]
    passed = np.concatenate([np.zeros((1, count)), np.cumsum(np.eye(count)[group], axis=0)])
    for score, row in zip(values[positive], of[positive], strict=True):
        below, upto = (np.searchsorted(negatives, score, side=side) for side in ("left", "right"))
        table[row] += (passed[below] + passed[upto]) / 2
    return table


def _area_interval(area: float, m: int, n: int) -> tuple[float, float]:
    """The areas whose own standard error, times z, reaches the area that was found."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)

    def outside(true: float) -> bool:
        positive = true / (2 - true) - true**2
        negative = 2 * true**2 / (1 + true) - true**2
        # Newcombe's method 5: both weights are the mean of m - 1 and n - 1, so that turning scores
        # and labels around mirrors the interval.
        weight = (m + n) / 2 - 1
        variance = (true * (1 - true) + weight * (positive + negative)) / (m * n)
        return (area - true) ** 2 > z * z * variance

    def bound(end: float) -> float:
        if area == end:
            return end
        inner, outer = area, end
        for _ in range(60):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        return (inner + outer) / 2

    return bound(0.0), bound(1.0)


def _paired(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected pairs [N], found shapes {first.shape} and {second.shape}")
    return first, second


def _pearsons(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of each row of ``[R, N]``."""
    deviations, lengths = [], []
    for rows in (x, y):
        centred = rows - rows.mean(1, keepdims=True)
        # Rounding leaves equal values a hair apart from their mean: that is no variation.
        length = np.linalg.norm(centred, axis=1)
        tiny = 1e-12 * np.linalg.norm(rows, axis=1)
        deviations.append(centred)
        lengths.append(np.where(length > tiny, length, math.nan))
    return (deviations[0] * deviations[1]).sum(1) / (lengths[0] * lengths[1])


def _rank_rows(rows: np.ndarray) -> np.ndarray:
    # Means of resampled outcomes that are equal may differ in their last digit.
    return np.stack([ranks(row) for row in rows.round(12)])


def _mmrvs(real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """`mmrv` of each row of ``[R, P]``."""
    differences = [
        rows[:, :, None] - rows[:, None, :] for rows in (real.round(12), imagined.round(12))
    ]
    flipped = np.sign(differences[0]) != np.sign(differences[1])
    return (np.abs(differences[0]) * flipped).max(2).mean(1)


def _constant(real: np.ndarray, imagined: np.ndarray) -> str:
    """Why the two have no correlation, or ""."""
    if len(real) < 2:
        return "one policy has no order"
    for name, means in (("real", real), ("imagined", imagined)):
        if np.ptp(means.round(12)) == 0:
            return f"all policies have the same {name} outcome, {means[0]:.3g}"
    return ""


def _percentile_interval(draws: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _matched(distances: np.ndarray) -> np.ndarray:
    """bool ``[B, K]``: whether each imagined branch is strictly nearest to its own."""
    if distances.ndim != 3 or distances.shape[1] != distances.shape[2] or not distances.size:
        raise ValueError(
            f"expected distances [B, K, K] (imagined, real), found shape {distances.shape}"
        )
    if distances.shape[1] < 2:
        raise ValueError("one branch matches itself: take at least two")
    if np.isnan(distances).any():
        raise ValueError(f"{int(np.isnan(distances).sum())} distances are NaN")
    own = np.einsum("bkk->bk", distances)
    others = np.where(np.eye(distances.shape[1], dtype=bool), np.inf, distances).min(-1)
    return own < others
