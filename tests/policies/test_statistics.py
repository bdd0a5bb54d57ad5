"""Intervals: known values, symmetries, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.statistics import (
    mean_interval,
    mean_intervals,
    paired_difference,
    paired_share,
    percentiles,
    proportion,
    wilson,
)


def test_wilson_matches_published_values():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        interval = wilson(k, n)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_rate_and_mirrors(k_n):
    k, n = k_n
    a, b = wilson(k, n), wilson(n - k, n)
    assert 0 <= a.low <= a.rate <= a.high <= 1
    assert (a.low, a.high) == pytest.approx((1 - b.high, 1 - b.low))


def test_wilson_of_nothing_is_nan_and_nonsense_is_refused():
    assert math.isnan(wilson(0, 0).rate)
    with pytest.raises(ValueError, match="k = 3, n = 2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, confidence=95)


outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(outcomes)
def test_paired_difference_is_antisymmetric_and_bounded(pairs):
    a, b = np.array(pairs).T
    ab, ba = paired_difference(a, b), paired_difference(b, a)
    assert ab.difference == pytest.approx(-ba.difference)
    assert (ab.low, ab.high) == pytest.approx((-ba.high, -ba.low))
    assert -1 <= ab.low <= ab.difference <= ab.high <= 1
    assert ab.p_value == pytest.approx(ba.p_value)
    assert 0 <= ab.p_value <= 1


def test_equal_outcomes_differ_by_nothing_with_an_interval():
    same = np.arange(100) % 3 == 0
    difference = paired_difference(same, same)
    assert difference.difference == 0
    assert difference.low < 0 < difference.high
    assert difference.p_value == 1


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(0)
    a = rng.random(200) < 0.6
    b = a.copy()
    b[:20] = False
    shuffled = rng.permutation(b)
    paired, unpaired = paired_difference(a, b), paired_difference(a, shuffled)
    assert paired.high - paired.low < unpaired.high - unpaired.low


@pytest.mark.parametrize(("pa", "pb"), [(0.6, 0.5), (0.95, 0.9), (1.0, 0.97)])
def test_paired_difference_covers_the_truth(pa, pb):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        luck = rng.random(100)  # one common draw per reset: strongly correlated outcomes
        interval = paired_difference(luck < pa, luck < pb)
        covered.append(interval.low <= pa - pb <= interval.high)
    assert np.mean(covered) >= 0.93


def test_mcnemar_is_the_sign_test():
    a = np.array([True] * 8 + [False] * 2)
    result = paired_difference(a, ~a)
    assert result.p_value == pytest.approx(2 * (1 + 10 + 45) / 1024)
    many = np.ones(2000, bool)
    assert paired_difference(many, ~many).p_value == 0


def test_paired_difference_refuses_unpaired_lists():
    with pytest.raises(ValueError, match="same resets"):
        paired_difference([True], [True, False])
    with pytest.raises(ValueError, match="same resets"):
        paired_difference([], [])


def test_percentiles_and_proportion():
    assert percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert math.isnan(percentiles([])["p95"])
    assert str(proportion([True, False])).startswith("1 of 2 = 50.0%")


def test_a_mean_with_the_textbook_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )
    assert (interval.n, interval.groups) == (400, 400)
    assert interval == mean_interval(values), "the same seed gives the same interval"
    assert interval.low != mean_interval(values, seed=1).low


def test_windows_of_one_episode_are_not_independent():
    rng = np.random.default_rng(0)
    covered, naive = [], []
    for trial in range(150):
        episode = np.repeat(np.arange(25), 10)
        values = rng.normal(0, 1, 25)[episode] + 0.1 * rng.normal(size=250)
        by_episode, alone = (mean_interval(values, g, seed=trial) for g in (episode, None))
        covered.append(by_episode.low <= 0 <= by_episode.high)
        naive.append(alone.low <= 0 <= alone.high)
    assert np.mean(covered) >= 0.88
    assert np.mean(naive) < 0.7


def test_columns_are_resampled_together_and_what_is_unknown_is_left_out():
    values = np.random.default_rng(0).normal(size=(40, 3))
    values[:, 2] = math.nan
    values[5:, 1] = math.nan
    groups = np.arange(40) % 8
    full, some, none = mean_intervals(values, groups)
    assert full == mean_interval(values[:, 0], groups)
    assert some.mean == pytest.approx(values[:5, 1].mean())
    assert (some.n, some.groups) == (5, 5)
    assert some.low < some.mean < some.high
    assert none.n == 0
    assert all(math.isnan(v) for v in (none.mean, none.low, none.high))


def test_one_episode_has_a_mean_and_no_interval():
    interval = mean_interval([1.0, 2.0], [7, 7])
    assert interval.mean == 1.5
    assert math.isnan(interval.low)
    assert mean_interval([]).n == 0
    with pytest.raises(ValueError, match="a group for each"):
        mean_interval([1.0, 2.0], [7])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_paired_share_is_antisymmetric(pairs):
    a, b = np.array(pairs).T
    ab, ba = paired_share(a, b), paired_share(b, a)
    assert ab.mean == pytest.approx(1 - ba.mean)
    assert (ab.low, ab.high) == pytest.approx((1 - ba.high, 1 - ba.low))
    assert 0 <= ab.low <= ab.high <= 1
    assert paired_share(a, a).mean == 0.5


def test_paired_share_of_all_is_not_certainty():
    a, b = np.zeros(100), np.ones(100)
    always = paired_share(a, b, np.arange(100) // 5)
    assert always.mean == always.high == 1
    assert always.low == pytest.approx(wilson(20, 20).low)
    b[0] = math.nan
    assert paired_share(a, b).n == 99
    with pytest.raises(ValueError, match="pairs"):
        paired_share(a, b[1:])
