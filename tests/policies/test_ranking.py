"""Orders: perfect, reversed, by chance, tied, and data that can give no number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.judge.ranking import (
    auroc,
    branching_accuracy,
    correlations,
    cosines,
    difference_correlation,
    drift_horizon,
    matching,
    mmrv,
    pearson,
    ranks,
    roc_curve,
    spearman,
)

small = st.integers(-4, 4).map(float)
pairs = st.lists(st.tuples(small, st.booleans()), min_size=4, max_size=40).filter(
    lambda rows: 0 < sum(label for _, label in rows) < len(rows)
)
columns = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(small, min_size=n, max_size=n)] * 2)
)


@given(pairs)
def test_auroc_is_the_share_of_pairs_in_order(rows):
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    above = scores[labels][:, None] - scores[~labels][None]
    expected = ((above > 0) + 0.5 * (above == 0)).mean()
    found = auroc(scores, labels)
    assert found.auroc == pytest.approx(expected)
    assert 0 <= found.low <= found.auroc <= found.high <= 1
    fpr, tpr, _ = roc_curve(scores, labels)
    assert np.trapezoid(tpr, fpr) == pytest.approx(expected)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all()
    assert (np.diff(tpr) >= 0).all()


@given(pairs)
def test_auroc_mirrors_when_scores_or_labels_are_turned(rows):
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))
    found = auroc(scores, labels)
    for turned in (auroc(-scores, labels), auroc(scores, ~labels)):
        assert (turned.low, turned.auroc, turned.high) == pytest.approx(
            (1 - found.high, 1 - found.auroc, 1 - found.low), abs=1e-9
        )


def test_perfect_detection_is_not_certainty():
    scores, labels = np.arange(20.0), np.arange(20) >= 10
    perfect = auroc(scores, labels)
    assert (perfect.auroc, perfect.high) == (1, 1)
    assert 0.6 < perfect.low < 1
    grouped = auroc(scores, labels, np.arange(20) // 2)
    assert grouped.auroc == 1
    assert grouped.low < perfect.low, "five episodes a class are less than ten scores a class"


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.2])
def test_auroc_covers_the_truth(grouped, shift):
    rng = np.random.default_rng(0)
    truth = 0.5 * math.erfc(-shift / 2)  # two normals, `shift` standard deviations apart
    covered = []
    for trial in range(120):
        labels = np.arange(60) % 2 == 0
        found = auroc(
            rng.normal(size=60) + shift * labels, labels, np.arange(60) if grouped else None,
            seed=trial,
        )  # fmt: skip
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.88


def test_scores_of_one_episode_do_not_count_as_many():
    rng = np.random.default_rng(1)
    episode = np.repeat(np.arange(24), 20)
    labels = episode % 2 == 0
    scores = rng.normal(size=24)[episode] + 0.8 * labels
    alone, grouped = auroc(scores, labels), auroc(scores, labels, episode)
    assert grouped.auroc == alone.auroc
    assert grouped.groups == 24
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_auroc_of_one_class_is_no_number():
    for labels, what in (([True] * 3, "negative"), ([False] * 3, "positive")):
        found = auroc([1.0, 2.0, 3.0], labels)
        assert math.isnan(found.auroc)
        assert f"no {what} among 3" in found.reason
    one = auroc([1.0, 2.0], [True, False], [0, 0])
    assert one.auroc == 0
    assert math.isnan(one.low)
    assert "nothing to resample" in one.reason
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auroc([math.nan, 1], [True, False])
    with pytest.raises(ValueError, match="a label for each"):
        auroc([1.0], [True, False])


@given(columns)
def test_correlations_are_symmetric_bounded_and_blind_to_scale(xy):
    x, y = (np.array(column) for column in xy)
    for measure in (pearson, spearman):
        r = measure(x, y)
        if math.isnan(r):
            assert np.ptp(x) == 0 or np.ptp(y) == 0
            continue
        assert abs(r) <= 1 + 1e-12
        assert measure(y, x) == pytest.approx(r)
        assert measure(3 * x + 7, y) == pytest.approx(r)
        assert measure(-x, y) == pytest.approx(-r)
        assert measure(x, x) == pytest.approx(1)


def test_correlations_match_numpy_and_textbook():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [3.5, 1, 3.5, 2]
    assert spearman(x, np.exp(y)) == pytest.approx(spearman(x, y))
    # Without ties it is 1 - 6 sum d^2 / (n^3 - n); with one, the tied ranks 2.5 and 2.5.
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / 120)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9))


@given(columns)
def test_mmrv_is_the_costliest_wrong_order(xy):
    real, imagined = (np.array(column) for column in xy)
    worst = []
    for i in range(len(real)):
        costs = [0.0]
        for j in range(len(real)):
            if np.sign(real[i] - real[j]) != np.sign(imagined[i] - imagined[j]):
                costs.append(abs(real[i] - real[j]))
        worst.append(max(costs))
    assert mmrv(real, imagined) == pytest.approx(np.mean(worst))
    assert mmrv(real, np.exp(real)) == 0


def test_mmrv_of_known_orders():
    real = np.linspace(0, 1, 5)
    assert mmrv(real, real[::-1]) == pytest.approx(np.mean([1, 0.75, 0.5, 0.75, 1]))
    assert mmrv(real, np.zeros(5)) == mmrv(real, real[::-1]), "all alike is no better than reversed"
    assert mmrv([0.2, 0.5, 0.9], [0.1, 0.95, 0.9]) == pytest.approx(0.8 / 3)
    assert math.isnan(mmrv([1.0], [1.0]))


def outcomes(rates, episodes, rng):
    return rng.random((len(rates), episodes)) < np.asarray(rates)[:, None]


def test_policies_in_the_right_order():
    rng = np.random.default_rng(0)
    rates = np.linspace(0.02, 0.98, 12)
    luck = rng.random((1, 60))
    real, imagined = luck < rates[:, None], luck < 0.2 + 0.6 * rates[:, None]
    found = correlations(real, imagined)
    assert (found["n"], found["episodes"], found["reasons"]) == (12, 60, {})
    assert found["pearson"] == pytest.approx(pearson(real.mean(1), imagined.mean(1)))
    assert found["spearman"] > 0.95
    assert found["mmrv"] < 0.05
    for name in ("pearson", "spearman", "mmrv"):
        low, high = found["intervals"][name]
        assert low <= found[name] <= high
    assert found == correlations(real, imagined), "the same seed gives the same intervals"
    turned = correlations(real, ~imagined)
    assert turned["pearson"] == pytest.approx(-found["pearson"])
    assert turned["mmrv"] > 0.5


def test_few_policies_and_few_episodes_leave_doubt():
    def width(policies, episodes):
        rng = np.random.default_rng(3)
        rates = np.linspace(0.1, 0.9, policies)
        imagined = np.clip(rates + rng.normal(0, 0.2, policies), 0, 1)
        found = correlations(outcomes(rates, episodes, rng), outcomes(imagined, episodes, rng))
        low, high = found["intervals"]["pearson"]
        return high - low

    assert width(30, 100) < width(8, 100)
    assert width(30, 100) < width(30, 8)


def test_unrelated_policies_correlate_with_nothing():
    rng = np.random.default_rng(5)
    covered = []
    for seed in range(40):
        rates = rng.random((2, 14))
        found = correlations(*(outcomes(r, 40, rng) for r in rates), seed=seed, repeats=400)
        low, high = found["intervals"]["spearman"]
        covered.append(low <= 0 <= high)
    assert np.mean(covered) >= 0.85


def test_degenerate_outcomes_give_a_reason_and_no_number():
    rng = np.random.default_rng(0)
    real = outcomes(np.linspace(0.1, 0.9, 6), 20, rng)
    found = correlations(real, np.ones_like(real))
    for name in ("pearson", "spearman"):
        assert math.isnan(found[name])
        assert np.isnan(found["intervals"][name]).all()
        assert found["reasons"][name] == "all policies have the same imagined outcome, 1"
    assert found["mmrv"] > 0.3, "a wrong order costs something even where no correlation exists"
    alone = correlations(real[:1], real[:1])
    assert set(alone["reasons"].values()) == {"one policy has no order"}
    assert math.isnan(alone["mmrv"])
    with pytest.raises(ValueError, match="of one shape"):
        correlations(real, real[:, 1:])
    with pytest.raises(ValueError, match="not a finite number"):
        correlations(np.where(real, np.nan, 0), real)


def test_matching_perfect_reversed_tied():
    near = 1 - np.eye(8)
    assert matching(near) == 1
    assert matching(np.eye(8)) == 0
    assert matching(np.zeros((8, 8))) == 0, "a tie is not a match"
    near[0, 3] = 0
    assert matching(near) == 7 / 8
    assert matching(near.T) == 7 / 8
    for wrong, message in (
        (np.zeros((2, 3)), r"\[B, K, K\]"),
        (np.full((2, 2), math.nan), "4 distances are NaN"),
        (np.zeros((1, 1)), "at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            matching(wrong)


def test_branching_by_chance_and_beyond():
    rng = np.random.default_rng(0)
    distances = rng.random((150, 8, 8))
    guess = branching_accuracy(distances)
    assert (guess.k, guess.chance, guess.n, guess.starts) == (8, 1 / 8, 1200, 150)
    assert guess.low < 1 / 8 < guess.high
    assert np.sum(guess.confusion, axis=1) == pytest.approx(np.ones(8))
    distances -= 0.9 * np.eye(8)
    better = branching_accuracy(distances)
    assert better.accuracy == pytest.approx(np.mean([matching(d) for d in distances]))
    assert guess.high < better.low < better.accuracy < better.high < 1
    assert np.diagonal(better.confusion).mean() == pytest.approx(better.accuracy)
    tied = branching_accuracy(np.ones((20, 4, 4)))
    assert tied.accuracy == 0
    assert tied.high == pytest.approx(0.161, abs=1e-3), "Wilson's bound for 0 of 20 starts"
    assert np.sum(tied.confusion) == 0


def test_a_start_where_all_goes_wrong_counts_as_one():
    """Branches of one start fail together, so the starts are what the interval is made of."""
    distances = np.stack([1 - np.eye(8) if i % 2 else np.eye(8) for i in range(20)])
    found = branching_accuracy(distances)
    assert found.accuracy == 0.5
    assert found.high - found.low > 0.3


def test_differences_between_branches():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(12, 4, 3, 5))
    assert difference_correlation(real, 2 * real + 5).mean == pytest.approx(1)
    assert difference_correlation(real, -real).mean == pytest.approx(-1)
    found = difference_correlation(real, rng.normal(size=real.shape))
    assert found.low < 0 < found.high
    assert found.groups == 12
    ignored = difference_correlation(real, np.repeat(real[:, :1], 4, axis=1))
    assert ignored.n == 0
    assert math.isnan(ignored.mean)


def test_cosines_need_a_displacement():
    real = np.array([[1.0, 0], [0, 2], [1, 1], [0.001, 0], [3, 0]])
    imagined = np.array([[5.0, 0], [0, -1], [1, 0], [1, 0], [0, 0]])
    found = cosines(real, imagined, least=0.01)
    assert found[:3] == pytest.approx([1, -1, math.sqrt(0.5)])
    assert np.isnan(found[3:]).all()


def test_drift_is_where_the_error_stays_above_the_floor():
    frames, floor = [8, 16, 24, 32], [2.0, 2, 2, 2]
    assert drift_horizon(frames, [1, 1, 1, 1], floor) is None
    assert drift_horizon(frames, [1, 3, 1, 3], floor) == 32
    assert drift_horizon(frames, [1, 1, 2, 3], floor) == 24
    assert drift_horizon(frames, [3, 3, 3, 3], floor) == 8
    assert drift_horizon([], [], []) is None
