"""Normalisation: inverse, bounded, and calm where a dimension hardly moves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data import Normalizer, frames_to_float, frames_to_uint8
from worldmodel.data.stats import statistics

MODES = ("quantile", "mean_std", "min_max", "identity")


def stats_of(*columns) -> dict[str, list[float]]:
    return statistics(np.stack([np.asarray(c, np.float32) for c in columns], 1))


@settings(max_examples=40, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    scale=st.floats(1e-3, 1e4),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 99),
)
def test_denormalize_inverts_inside_the_clamp(mode, scale, shift, seed) -> None:
    values = np.random.default_rng(seed).normal(size=500) * scale + shift
    normalizer = Normalizer(stats_of(values), mode)
    x = torch.tensor(values[:, None], dtype=torch.float32)
    y = normalizer.normalize(x)
    assert y.abs().max() <= normalizer.clip
    inside = y.abs() < normalizer.clip
    back = normalizer.denormalize(y)
    assert inside.float().mean() > 0.95
    assert torch.allclose(back[inside], x[inside], rtol=1e-4, atol=1e-5 * (scale + abs(shift)))
    again = normalizer.normalize(back)
    assert torch.allclose(again, y, atol=1e-3 + 1e-6 * abs(shift) / scale)


@pytest.mark.parametrize("mode", ["quantile", "mean_std", "min_max"])
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 2048.0])
def test_a_constant_dimension_stays_small(mode: str, value: float) -> None:
    normalizer = Normalizer(stats_of(np.full(100, value), np.linspace(-1, 1, 100)), mode)
    x = torch.tensor([[value, 0.0], [value + 0.001, 0.0], [value + 1000, 0.0]])
    y = normalizer.normalize(x)
    assert y[0, 0].abs() < 1e-3
    assert y[1, 0].abs() <= 0.11
    assert y[2, 0].abs() <= normalizer.clip
    # and a network that is off by a tenth is off by little
    error = normalizer.denormalize(torch.tensor([0.1, 0.0]))[0] - value
    assert abs(error) <= 0.0011 * max(1, abs(value))


@pytest.mark.parametrize("mode", ["quantile", "min_max"])
def test_small_motions_are_not_muted(mode: str) -> None:
    values = np.linspace(-0.001, 0.001, 200)  # radians a step, as delta actions are
    y = Normalizer(stats_of(values), mode).normalize(torch.tensor(values[:, None]).float())
    assert y.max() > 0.9
    assert y.min() < -0.9


def test_a_gripper_that_is_rarely_open_can_still_open() -> None:
    gripper = np.zeros(1000)
    gripper[:5] = 1.0  # both percentiles are 0
    normalizer = Normalizer(stats_of(gripper), "quantile")
    states = torch.tensor([[0.0], [1.0]])
    y = normalizer.normalize(states)
    assert torch.allclose(normalizer.denormalize(y), states, atol=1e-5)
    assert y[1] - y[0] > 1.0


def test_quantiles_are_at_one() -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    stats = stats_of(values)
    normalizer = Normalizer(stats)
    ends = torch.tensor([[stats["q01"][0]], [stats["q99"][0]]])
    assert torch.allclose(normalizer.normalize(ends), torch.tensor([[-1.0], [1.0]]), atol=1e-5)


def test_identity_changes_nothing() -> None:
    x = torch.tensor([[1e6, -3.0]])
    normalizer = Normalizer(stats_of([0, 1], [0, 1]), "identity")
    assert torch.equal(normalizer.normalize(x), x)
    assert torch.equal(normalizer.denormalize(x), x)


def test_what_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="no normalisation mode 'quantiles'"):
        Normalizer(stats_of([0, 1]), "quantiles")
    with pytest.raises(ValueError, match="positive"):
        Normalizer(stats_of([0, 1]), clip=0)


def test_statistics_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    stats = statistics(values)
    assert np.allclose(stats["mean"], values.mean(0), atol=1e-6)
    assert np.allclose(stats["std"], values.std(0), atol=1e-6)
    assert np.array_equal(stats["min"], values.min(0).astype(float))
    assert np.array_equal(stats["max"], values.max(0).astype(float))
    assert np.allclose(stats["q99"], np.quantile(values, 0.99, axis=0), atol=1e-6)


def test_frames_round_trip() -> None:
    every_level = torch.arange(256, dtype=torch.uint8)
    video = frames_to_float(every_level)
    assert video.min() == -1
    assert video.max() == 1
    assert torch.equal(frames_to_uint8(video), every_level)
    assert frames_to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    assert torch.equal(frames_to_uint8(video + 0.003), every_level)  # less than half a level
