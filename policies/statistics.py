"""Intervals for success rates, for differences between two of them, and for means.

Rates have closed formulas, without random numbers. Means of values that come in groups (the windows
of one episode resemble each other) have none: their intervals come from resampled groups, by a
generator that the caller seeds, so that a report is the same every time it is computed.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
JASA 22 (1927); R. G. Newcombe, "Improved confidence intervals for the difference between binomial
proportions based on paired data", Statistics in Medicine 17 (1998), method 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Proportion:
    """k successes of n, with an interval. `rate`, `low` and `high` lie in [0, 1]; NaN if n = 0."""

    n: int
    k: int
    rate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        if self.n == 0:
            return "0 of 0"
        return f"{self.k} of {self.n} = {self.rate:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class PairedDifference:
    """Success of A minus success of B on the same resets.

    Attributes:
        n: number of resets.
        difference: rate of A minus rate of B, in [-1, 1].
        low, high: bounds of its interval.
        only_a, only_b: resets that only A, only B solved.
        p_value: two-sided exact McNemar test of "neither is better".
    """

    n: int
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    p_value: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        points = f"{100 * self.difference:+.1f} points"
        interval = f"[{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{points} {interval}, {self.only_a} won and {self.only_b} lost of {self.n} resets"


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
        mean: of all values; NaN if there is none.
        low, high: bounds; NaN where fewer than two groups leave nothing to resample.
        n: number of values.
        groups: number of groups that were resampled.
    """

    mean: float
    low: float
    high: float
    n: int
    groups: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}], {self.n} in {self.groups}"


def wilson(k: int, n: int, confidence: float = 0.95) -> Proportion:
    """Wilson's score interval for k successes of n trials.

    With z the normal quantile and p = k/n, its centre is ``(p + z^2/2n) / (1 + z^2/n)`` and its
    half-width ``z / (1 + z^2/n) * sqrt(p(1-p)/n + z^2/4n^2)``. Unlike p +- z*sqrt(p(1-p)/n) it
    stays inside [0, 1] and keeps a width at 0 of n and n of n.

    Raises:
        ValueError: unless 0 <= k <= n and 0 < confidence < 1.
    """
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, found k = {k}, n = {n}")
    z = _quantile(confidence)
    if n == 0:
        return Proportion(0, 0, math.nan, math.nan, math.nan)
    p = k / n
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is exact; rounding would leave it 1e-17 off.
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return Proportion(n, k, p, low, high)


def proportion(successes: Sequence[bool] | np.ndarray, confidence: float = 0.95) -> Proportion:
    """Wilson's interval of a list of outcomes."""
    outcomes = np.asarray(successes, bool)
    return wilson(int(outcomes.sum()), len(outcomes), confidence)


def paired_difference(
    a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray, confidence: float = 0.95
) -> PairedDifference:
    """Difference in success of A and B on the same resets, entry i of both being the same reset.

    Newcombe's method 10: the Wilson bounds of both rates, combined with the correlation phi of the
    outcomes (its numerator corrected for continuity). Good coverage also for rates near 0 or 1,
    where a normal interval of the differences collapses to a point.

    Raises:
        ValueError: if the two differ in length or are empty.
    """
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(
            f"expected two equally long, non-empty lists of outcomes of the same resets, "
            f"found shapes {first.shape} and {second.shape}"
        )
    n = len(first)
    both, only_a = int((first & second).sum()), int((first & ~second).sum())
    only_b, none = int((~first & second).sum()), int((~first & ~second).sum())
    pa, pb = proportion(first, confidence), proportion(second, confidence)
    phi = _phi(both, only_a, only_b, none)
    difference = pa.rate - pb.rate
    down_a, up_a = pa.rate - pa.low, pa.high - pa.rate
    down_b, up_b = pb.rate - pb.low, pb.high - pb.rate
    below = math.sqrt(max(0.0, down_a**2 - 2 * phi * down_a * up_b + up_b**2))
    above = math.sqrt(max(0.0, up_a**2 - 2 * phi * up_a * down_b + down_b**2))
    return PairedDifference(
        n, difference, difference - below, difference + above, only_a, only_b,
        _mcnemar(only_a, only_b),
    )  # fmt: skip


def mean_interval(
    values: Sequence[float] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    repeats: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Mean of the values with an interval from resampled groups.

    Args:
        values: ``[N]``; those that are not finite are left out (a picture in which nothing moved
            has no error on moving pixels).
        groups: ``[N]``, which unit each value belongs to, such as its episode; default: each its
            own. Values of one group stay together, since they are not independent.
        seed: of the resampling.

    Raises:
        ValueError: values and groups do not fit each other.
    """
    column = np.asarray(values, np.float64)
    if column.ndim != 1:
        raise ValueError(f"expected values [N], found shape {column.shape}")
    return mean_intervals(
        column[:, None], groups, seed=seed, repeats=repeats, confidence=confidence
    )[0]


def mean_intervals(
    values: np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    repeats: int = 2000,
    confidence: float = 0.95,
) -> list[Interval]:
    """`mean_interval` of every column of ``[N, T]``, all from the same resampled groups."""
    table = np.asarray(values, np.float64)
    labels = np.arange(len(table)) if groups is None else np.asarray(groups)
    if table.ndim != 2 or labels.shape != (len(table),):
        raise ValueError(
            f"expected values [N, T] and a group for each of the N, found shapes {table.shape} "
            f"and {labels.shape}"
        )
    _quantile(confidence)  # refuses what is no confidence
    known = np.isfinite(table)
    names, numbers = np.unique(labels, return_inverse=True)
    sums, counts = (np.zeros((len(names), table.shape[1])) for _ in range(2))
    np.add.at(sums, numbers, np.where(known, table, 0.0))
    np.add.at(counts, numbers, known)
    drawn = resampled(len(names), repeats, np.random.default_rng(seed)) if len(names) else None
    intervals = []
    for column in range(table.shape[1]):
        inside = counts[:, column] > 0
        n, units = int(counts[:, column].sum()), int(inside.sum())
        mean = sums[:, column].sum() / n if n else math.nan
        low = high = math.nan
        if drawn is not None and units >= 2:
            sizes = drawn @ counts[:, column]
            means = (drawn @ sums[:, column])[sizes > 0] / sizes[sizes > 0]
            tail = (1 - confidence) / 2
            low, high = np.quantile(means, [tail, 1 - tail])
        intervals.append(Interval(float(mean), float(low), float(high), n, units))
    return intervals


def share_interval(
    outcomes: Sequence[float] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """`mean_interval` of outcomes in [0, 1], such as right and wrong, with a width at the ends too.

    Where all outcomes are 0 or all are 1, resampling gives a point, as if there were no doubt; then
    the interval is Wilson's, with as many trials as there are groups.
    """
    found = mean_interval(outcomes, groups, seed=seed, confidence=confidence)
    if found.mean not in (0.0, 1.0):
        return found
    ends = wilson(round(found.mean * found.groups), found.groups, confidence)
    return Interval(found.mean, ends.low, ends.high, found.n, found.groups)


def paired_share(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Share of pairs in which a < b, with an interval from resampled groups (`share_interval`).

    A tie counts half, so that two equal things score 50 %. Pairs with a NaN are left out.

    Raises:
        ValueError: if the two differ in length.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"expected pairs, found shapes {first.shape} and {second.shape}")
    shares = np.where(first < second, 1.0, np.where(first == second, 0.5, 0.0))
    shares[np.isnan(first) | np.isnan(second)] = math.nan
    return share_interval(shares, groups, seed=seed, confidence=confidence)


def resampled(count: int, repeats: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of `count` units is drawn when `count` are drawn with replacement.

    Returns:
        float64 ``[repeats, count]``; each row adds up to `count`.
    """
    drawn = rng.integers(0, count, (repeats, count)) + count * np.arange(repeats)[:, None]
    times = np.bincount(drawn.ravel(), minlength=repeats * count)
    return times.reshape(repeats, count).astype(np.float64)


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """``{"p50", "p95", "p99"}`` of the values, linearly interpolated; NaN when there are none."""
    if len(values) == 0:
        return {"p50": math.nan, "p95": math.nan, "p99": math.nan}
    p50, p95, p99 = np.percentile(np.asarray(values, np.float64), [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, found {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _phi(both: int, only_a: int, only_b: int, none: int) -> float:
    """Correlation of two binary outcomes, 0 where one of them never varies."""
    margins = (both + only_a) * (only_b + none) * (both + only_b) * (only_a + none)
    if margins == 0:
        return 0.0
    cross = float(both * none - only_a * only_b)
    if cross > 0:
        cross = max(cross - (both + only_a + only_b + none) / 2, 0.0)
    return cross / math.sqrt(margins)


def _mcnemar(only_a: int, only_b: int) -> float:
    """P(a split at least this uneven) if either side wins a discordant reset with odds 1/2."""
    discordant, larger = only_a + only_b, max(only_a, only_b)
    tail = sum(math.comb(discordant, i) for i in range(larger, discordant + 1))
    # Integers until the end: 2**discordant overflows a float beyond 1,023 discordant resets.
    return min(1.0, (2 * tail * 10**15 // 2**discordant) / 10**15)
