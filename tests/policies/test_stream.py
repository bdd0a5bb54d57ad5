"""Targets that come one at a time become motion within the limits that ends at rest."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from policies.deployment.arm import Trajectory
from policies.deployment.stream import Stream, StreamConfig
from policies.safety import JointLimits, SafetyFilter

H = 0.01
LIMITS = JointLimits(
    ("shoulder", "elbow"),
    np.array([-2.0, -1.0]),
    np.array([2.0, 1.0]),
    np.array([2.0, 3.0]),
    np.array([10.0, 15.0]),
    np.array([2000.0, 500.0]),
)
START = np.array([0.1, -0.2])


def stream(**motion: float) -> Stream:
    made = Stream(SafetyFilter(LIMITS, H), StreamConfig(**motion), interval_s=0.05)
    made.start(START, now=100.0)
    return made


def executed(
    arm: Stream, targets: Iterable[np.ndarray], gaps: Iterable[float]
) -> tuple[np.ndarray, list[Trajectory]]:
    """What a controller that follows does, ``[N, J]`` at controller rate, and what it was sent."""
    now, sent, begun = 100.0, [], []
    for target, gap in zip(targets, gaps, strict=True):
        begun.append(now)
        sent.append(arm.aim(target, now))
        now += gap
    # Each replaces the one before from its first point on, where that one would be, too.
    starts = [at + t.times[0] for at, t in zip(begun, sent, strict=True)]
    ends = [*starts[1:], np.inf]
    rows = [
        t.positions[at + t.times < end - H / 10]
        for at, t, end in zip(begun, sent, ends, strict=True)
    ]
    return np.concatenate(rows), sent


def require_limits(positions: np.ndarray) -> None:
    """By finite differences, from rest to rest."""
    still = np.concatenate([[positions[0]] * 3, positions, [positions[-1]] * 3])
    assert (positions >= LIMITS.low - 1e-9).all()
    assert (positions <= LIMITS.high + 1e-9).all()
    for order, most in enumerate((LIMITS.velocity, LIMITS.acceleration, LIMITS.jerk), 1):
        found = np.abs(np.diff(still, order, axis=0)).max(0) / H**order
        assert (found <= most * (1 + 1e-6)).all(), (order, found, most)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_asked_for_what_is_executed_keeps_the_limits(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = 40
    targets = np.clip(
        START + np.cumsum(generator.normal(0, 0.15, (count, 2)), 0), -2.5, 2.5
    ) * generator.choice([1.0, 1.3], (count, 1))
    # Most come in time, some late, some after the arm has come to rest. On the controller's grid,
    # so that what one trajectory ends and the next begins with are a period apart.
    gaps = H * generator.choice([2, 5, 5, 6, 20, 40, 120], count)
    arm = stream(ramp_s=0.2, far_rad=10.0)
    positions, sent = executed(arm, targets, gaps)
    require_limits(positions)
    for trajectory in sent:
        assert (np.diff(trajectory.times) > 0).all()
        assert trajectory.times[0] > 0
        assert trajectory.times[-1] < 1.5
        assert not np.abs(trajectory.velocities[-1]).max()
    assert arm.clips


@pytest.mark.parametrize("jitter", [0.0, 0.004])
def test_a_smooth_stream_passes_half_an_interval_late_and_without_ripples(jitter: float) -> None:
    def wanted(times: np.ndarray) -> np.ndarray:
        return START + 0.3 * np.stack([1 - np.cos(2 * times), np.cos(2 * times) - 1], 1)

    arm = stream(ramp_s=0.0)
    gaps = 0.05 + np.random.default_rng(0).uniform(-jitter, jitter, 80)
    # Action k of a chunk is what is wanted at k + 1, whenever it is handed over.
    positions, _ = executed(arm, wanted(0.05 * np.arange(1, 81)), gaps)
    assert not arm.clips
    times = H * np.arange(400)
    assert np.abs(positions[:400] - wanted(times - 0.025))[10:].max() < (0.02 if jitter else 1e-3)
    # Its own acceleration is 1.2.
    bent = np.abs(np.diff(positions[:400], 2, axis=0))[10:].max() / H**2
    assert bent < (4.0 if jitter else 1.3)


def test_it_never_goes_beyond_a_target_that_stays() -> None:
    positions, _ = executed(stream(ramp_s=0.0), [START + 0.01] * 5, [0.05] * 5)
    assert (positions <= START + 0.01 + 1e-9).all()
    np.testing.assert_allclose(positions[-1], START + 0.01, atol=1e-6)


def test_the_interval_is_measured_and_a_pause_is_none() -> None:
    arm = stream(ramp_s=0.0)
    executed(arm, [START] * 12, [0.02] * 11 + [3.0])
    assert arm.interval_s == pytest.approx(0.02)
    arm.aim(START, 100.0 + 11 * 0.02 + 3.0)
    assert arm.interval_s == pytest.approx(0.02)


def test_without_another_target_it_ends_at_the_last_one() -> None:
    positions, _ = executed(stream(ramp_s=0.0), [START + 0.02], [5.0])
    np.testing.assert_allclose(positions[-1], START + 0.02, atol=1e-6)


def test_braking_is_sent_from_where_it_is_and_ends_sooner() -> None:
    arm = stream(ramp_s=0.0)
    for step in range(1, 9):
        ahead = arm.aim(START + 0.05 * step, 100.0 + 0.05 * step)
    brake = arm.brake(100.0 + 0.05 * 8 + 0.02)
    assert brake.times[-1] < ahead.times[-1] - 0.05
    assert not brake.velocities[-1].any()
    assert np.abs(brake.velocities[0]).min() > 0.3
    assert arm.aim(START + 0.4, 110.0).times[0] > 0  # and it can go on


def test_first_motion_is_blended_in() -> None:
    slow, _ = executed(stream(ramp_s=1.0), [START + 0.4] * 20, [0.05] * 20)
    assert np.abs(np.diff(slow, axis=0)).max() / H < 1.0
    np.testing.assert_allclose(slow[-1], START + 0.4, atol=1e-3)


def test_what_is_no_target_or_far_is_refused_by_name() -> None:
    arm = stream()
    with pytest.raises(ValueError, match="elbow would move 0.600 rad"):
        arm.aim(START + np.array([0.0, 0.6]), 100.0)
    for wrong in ([0.0], [0.0, np.nan]):
        with pytest.raises(ValueError, match="2 finite numbers"):
            arm.aim(np.array(wrong), 100.0)
    for motion in ({"horizon_s": 0.6}, {"horizon_s": 0.01}, {"ramp_s": -1.0}, {"far_rad": 0.0}):
        with pytest.raises(ValueError, match=next(iter(motion))):
            StreamConfig(**motion)
    with pytest.raises(ValueError, match="controller_hz is 50"):
        Stream(SafetyFilter(LIMITS, H), StreamConfig(controller_hz=50.0), 0.05)
