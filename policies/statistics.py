"""Intervals for success rates and for differences between two of them.

No bootstrap and no random numbers: every interval here is a closed formula, so that a report is
the same every time it is computed.

Sources: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
JASA 22 (1927); R. G. Newcombe, "Improved confidence intervals for the difference between binomial
proportions based on paired data", Statistics in Medicine 17 (1998), method 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

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
