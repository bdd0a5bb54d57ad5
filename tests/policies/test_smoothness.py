"""Smoothness metrics against paths whose values are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policies.smoothness import (
    MotionLimits,
    action_tv,
    chunk_boundary_ratio,
    command_lag,
    high_frequency_share,
    ldlj,
    limit_violations,
    rms_jerk,
    sparc,
)

RATES = [20.0, 50.0, 200.0, 1000.0]


def minimum_jerk(fs: float, duration: float = 1.0, length: float = 1.0) -> np.ndarray:
    """One-dimensional rest-to-rest reach ``[T, 1]``."""
    s = np.arange(round(duration * fs) + 1) / (duration * fs)
    return (length * (10 * s**3 - 15 * s**4 + 6 * s**5))[:, None]


def jittered(fs: float, size: float = 0.01) -> np.ndarray:
    path = minimum_jerk(fs)
    return path + np.random.default_rng(0).normal(0, size, path.shape)


@pytest.mark.parametrize("fs", RATES)
def test_sparc_of_a_minimum_jerk_reach_is_the_same_at_any_rate(fs):
    assert sparc(minimum_jerk(fs), fs) == pytest.approx(-1.4, abs=0.02)


@pytest.mark.parametrize("fs", RATES)
def test_jitter_reads_as_less_smooth_in_every_metric(fs):
    smooth, rough = minimum_jerk(fs), jittered(fs)
    assert sparc(rough, fs) < sparc(smooth, fs) - 0.1
    assert ldlj(rough, fs) < ldlj(smooth, fs)
    assert rms_jerk(rough, fs) > rms_jerk(smooth, fs)
    assert high_frequency_share(rough, fs) > high_frequency_share(smooth, fs)
    assert action_tv(rough, 1.0, order=2) > action_tv(smooth, 1.0, order=2)


def test_ldlj_of_a_minimum_jerk_reach_is_minus_log_204_8():
    # integral of jerk^2 = 720 L^2 / D^5 and peak speed = 15/8 L / D.
    assert ldlj(minimum_jerk(2000.0), 2000.0) == pytest.approx(-math.log(204.8), abs=0.01)


@pytest.mark.parametrize(("duration", "length"), [(0.5, 0.1), (2.0, 3.0)])
def test_ldlj_ignores_scale_and_pace(duration, length):
    path = minimum_jerk(2000.0, duration, length)
    assert ldlj(path, 2000.0) == pytest.approx(-math.log(204.8), abs=0.02)


def test_rms_jerk_of_a_minimum_jerk_reach():
    assert rms_jerk(minimum_jerk(2000.0), 2000.0) == pytest.approx(math.sqrt(720), rel=0.01)


def test_rms_jerk_of_a_sine():
    # A sine's third difference has the exact amplitude a (2 sin(w dt / 2))^3.
    fs, frequency, amplitude = 20.0, 1.0, 0.3
    t = np.arange(200) / fs
    path = amplitude * np.sin(2 * np.pi * frequency * t)
    exact = amplitude * (2 * math.sin(math.pi * frequency / fs)) ** 3 * fs**3 / math.sqrt(2)
    assert rms_jerk(path, fs) == pytest.approx(exact, rel=0.02)
    limit = amplitude * (2 * math.pi * frequency) ** 3 / math.sqrt(2)
    fine = amplitude * np.sin(2 * np.pi * frequency * np.arange(20000) / 2000)
    assert rms_jerk(fine, 2000.0) == pytest.approx(limit, rel=1e-3)


def test_noise_enters_jerk_with_the_third_power_of_the_rate():
    noise = np.random.default_rng(0).normal(0, 1e-3, (4000, 3))
    assert rms_jerk(noise, 200.0) == pytest.approx(1000 * rms_jerk(noise, 20.0))
    # Binomial coefficients 1, 3, 3, 1: the third difference of white noise has variance 20.
    assert rms_jerk(noise, 20.0) == pytest.approx(1e-3 * math.sqrt(20 * 3) * 20**3, rel=0.05)


def test_turning_the_axes_changes_nothing():
    fs = 20.0
    path = np.cumsum(np.random.default_rng(1).normal(size=(60, 3)), axis=0) * 0.01
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    for metric in (rms_jerk, ldlj, sparc, high_frequency_share):
        assert metric(path @ turn, fs) == pytest.approx(metric(path, fs))


def test_standing_still_has_no_smoothness():
    still = np.full((40, 7), 0.3)
    assert rms_jerk(still, 20.0) == 0
    assert math.isnan(ldlj(still, 20.0))
    assert math.isnan(sparc(still, 20.0))
    assert math.isnan(high_frequency_share(still, 20.0))
    assert math.isnan(chunk_boundary_ratio(still, [0, 10]))
    assert math.isnan(command_lag(still, still, 20.0))
    trembling = still + np.random.default_rng(0).normal(0, 1e-7, still.shape)
    assert math.isnan(sparc(trembling, 20.0))
    assert math.isnan(ldlj(trembling, 20.0))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_path_too_short_gives_nan(steps):
    short = np.arange(steps, dtype=float)
    assert math.isnan(rms_jerk(short, 20.0))
    assert math.isnan(ldlj(short, 20.0))
    assert math.isnan(command_lag(short, short, 20.0))


@pytest.mark.parametrize(("frequency", "share"), [(1.0, 0.0), (5.0, 1.0)])
def test_high_frequency_share_separates_slow_from_fast(frequency, share):
    # 201 samples have 200 differences: a whole number of periods, so nothing leaks.
    path = np.sin(2 * np.pi * frequency * np.arange(201) / 20.0)
    assert high_frequency_share(path, 20.0) == pytest.approx(share, abs=1e-9)


def test_high_frequency_share_of_white_steps_is_the_share_of_the_band():
    path = np.cumsum(np.random.default_rng(0).normal(size=(20001, 2)), axis=0)
    assert high_frequency_share(path, 20.0) == pytest.approx(0.7, abs=0.02)


def test_action_tv_of_a_ramp():
    ramp = np.stack([np.arange(11.0), 2 * np.arange(11.0)], axis=1)
    assert action_tv(ramp, [10.0, 20.0]) == pytest.approx(0.1)
    assert action_tv(ramp, [10.0, 20.0], order=2) == 0


def test_chunk_boundary_ratio_counts_seams_only():
    ramp = np.arange(12.0)
    assert chunk_boundary_ratio(ramp, [0, 4, 8]) == pytest.approx(1.0)
    jumping = ramp + 2.0 * (np.arange(12) // 4)
    assert chunk_boundary_ratio(jumping, [0, 4, 8]) == pytest.approx(3.0)
    assert math.isnan(chunk_boundary_ratio(ramp, [0]))
    assert math.isnan(chunk_boundary_ratio(ramp, range(12)))
    with pytest.raises(ValueError, match=r"0 \.\.\. 11"):
        chunk_boundary_ratio(ramp, [0, 12])


def test_limit_violations():
    path = np.zeros((11, 2))
    path[5:, 1] = 0.1  # one step of 2 / s at 20 Hz
    calm = MotionLimits([3.0, 3.0], [1e3, 1e3], [1e6, 1e6])
    assert limit_violations(path, 20.0, calm)["velocity"] == 0
    tight = MotionLimits([3.0, 1.0], [1e3, 1.0], [1e6, 1e6])
    shares = limit_violations(path, 20.0, tight)
    assert shares["velocity"] == pytest.approx(1 / 10)
    assert shares["acceleration"] == pytest.approx(2 / 9)
    assert shares["jerk"] == 0
    with pytest.raises(ValueError, match="2 velocity limits"):
        limit_violations(path, 20.0, MotionLimits([1.0], [1.0], [1.0]))


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_lag_of_a_delayed_copy(delay):
    rng = np.random.default_rng(0)
    path = np.cumsum(np.cumsum(rng.normal(size=(80, 4)), axis=0), axis=0) * 1e-2
    assert command_lag(path[delay:], path[: len(path) - delay], 20.0) == pytest.approx(
        delay / 20, abs=0.01
    )


def test_lag_between_samples_is_interpolated():
    fs, delay = 20.0, 0.085
    t = np.arange(0, 3, 1 / fs)

    def reach(t: np.ndarray) -> np.ndarray:
        s = np.clip(t / 2.5, 0, 1)
        return 10 * s**3 - 15 * s**4 + 6 * s**5

    assert command_lag(reach(t), reach(t - delay), fs) == pytest.approx(delay, abs=0.01)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="step 2, column 1"):
        rms_jerk(np.array([[0, 0], [0, 0], [0, np.nan], [0, 0]]), 20.0)
    with pytest.raises(ValueError, match="sampling rate"):
        sparc(np.zeros(10), 0.0)
    with pytest.raises(ValueError, match="range > 0"):
        action_tv(np.zeros(10), 0.0)
    with pytest.raises(ValueError, match=r"\[T, D\]"):
        ldlj(np.zeros((2, 3, 4)), 20.0)
