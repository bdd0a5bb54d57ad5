"""The clock: a straight line, its velocity and their inverses, and how times are drawn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldmodel.flow import (
    TIME_FLOOR,
    TimeConfig,
    data_from_velocity,
    interpolate,
    shift,
    velocity_from_data,
)

CONFIGS = {
    "uniform": TimeConfig(),
    "shifted": TimeConfig(shift=3.0),
    "logit-normal": TimeConfig(kind="logit_normal", mean=-0.5, std=1.3),
    "shifted logit-normal": TimeConfig(kind="logit_normal", shift=2.95),
}


def test_the_line_starts_at_the_data_and_ends_at_the_noise() -> None:
    data, noise = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    assert torch.equal(interpolate(data, noise, torch.zeros(1, dtype=torch.float64)), data)
    torch.testing.assert_close(interpolate(data, noise, torch.ones(1, dtype=torch.float64)), noise)
    middle = interpolate(data, noise, torch.full((1,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(middle, (data + noise) / 2)


@given(st.floats(TIME_FLOOR, 1))
def test_velocity_is_noise_minus_data_wherever_the_floor_is_not_reached(time: float) -> None:
    data, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor(time, dtype=torch.float64)
    velocity = velocity_from_data(interpolate(data, noise, t), data, t)
    torch.testing.assert_close(velocity, noise - data)


@given(st.floats(0, 1))
def test_data_and_velocity_are_inverses_at_every_time(time: float) -> None:
    noisy, data = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    t = torch.tensor(time, dtype=torch.float64)
    velocity = velocity_from_data(noisy, data, t)
    assert velocity.isfinite().all()
    torch.testing.assert_close(data_from_velocity(noisy, velocity, t), data)


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_shifts_keep_the_ends_compose_and_undo_each_other(a: float, b: float) -> None:
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert shift(t, a)[0] == 0
    assert shift(t, a)[-1] == pytest.approx(1)
    torch.testing.assert_close(shift(shift(t, a), b), shift(t, a * b))
    torch.testing.assert_close(shift(shift(t, a), 1 / a), t)
    if a > 1.01:
        assert (shift(t, a)[1:-1] > t[1:-1]).all()  # more than 1 is noisier


def distribution(config: TimeConfig, t: torch.Tensor) -> torch.Tensor:
    """P(time <= t), written down independently of `from_quantile`."""
    unshifted = t / (config.shift + (1 - config.shift) * t)
    if config.kind == "uniform":
        bulk = unshifted
    else:
        bulk = torch.special.ndtr((torch.logit(unshifted) - config.mean) / config.std)
    high = ((t - 0.95) / 0.05).clamp(0, 1)
    return (1 - config.high_noise) * bulk + config.high_noise * high


@pytest.mark.parametrize("high_noise", [0.0, 0.2])
@pytest.mark.parametrize("name", CONFIGS)
def test_draws_follow_the_distribution(name: str, high_noise: float) -> None:
    base = CONFIGS[name]
    config = TimeConfig(base.kind, base.mean, base.std, base.shift, high_noise)
    count = 20_000
    draws = config.from_quantile(torch.rand(count, generator=torch.Generator().manual_seed(1)))
    assert ((draws >= 0) & (draws <= 1)).all()
    found = draws.double().sort().values
    expected = distribution(config, found.clamp(1e-9, 1 - 1e-9))
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = torch.maximum((expected - steps[:-1]).abs(), (expected - steps[1:]).abs()).max()
    assert distance < 1.95 / count**0.5  # Kolmogorov-Smirnov: exceeded by chance once in 1000


@pytest.mark.parametrize("name", CONFIGS)
def test_times_rise_with_their_quantiles(name: str) -> None:
    t = CONFIGS[name].from_quantile(torch.linspace(1e-4, 1 - 1e-4, 1001, dtype=torch.float64))
    assert (t.diff() > 0).all()


def test_the_share_of_high_noise_is_what_was_asked_for() -> None:
    u = (torch.arange(10_000) + 0.5) / 10_000
    # A bulk far from noise, so that every high time comes from the extra share.
    config = TimeConfig(kind="logit_normal", mean=-4.0, std=0.5, high_noise=0.05)
    assert (config.from_quantile(u) >= 0.95).float().mean() == pytest.approx(0.05, abs=2e-4)


@given(st.integers(1, 20), st.floats(0.1, 15))
def test_a_grid_goes_down_from_noise_to_data(steps: int, a: float) -> None:
    grid = TimeConfig(sampling_shift=a).grid(steps)
    assert grid.shape == (steps + 1,)
    assert grid[0] == pytest.approx(1)
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "normal"}, "unknown time distribution 'normal'; there are"),
        ({"high_noise": 1.0}, "high_noise is a share in .*found 1.0"),
        ({"shift": 0.0}, "must be positive"),
    ],
)
def test_a_wrong_distribution_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeConfig(**options)
