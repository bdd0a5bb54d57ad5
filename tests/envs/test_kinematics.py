"""Inverse kinematics against forward kinematics, and minimum-jerk paths against their formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs._mujoco import mujoco
from envs.arm import HOME, JOINT_HIGH, JOINT_LOW, VISUAL, arm_mjcf
from envs.kinematics import (
    HAND_DOWN,
    InverseKinematics,
    UnreachableError,
    minimum_jerk,
)


@pytest.fixture(scope="module")
def kinematics() -> InverseKinematics:
    scene = f'<camera name="front"/><geom size="0.01" {VISUAL}/>'
    return InverseKinematics(mujoco.MjModel.from_xml_string(arm_mjcf(scene)))


def panda_tip(joints: np.ndarray) -> np.ndarray:
    """The tip from Franka's table of modified Denavit-Hartenberg parameters, ``[4, 4]``."""
    a = [0, 0, 0, 0.0825, -0.0825, 0, 0.088, 0]
    d = [0.333, 0, 0.316, 0, 0.384, 0, 0, 0.107]
    alpha = np.array([0, -1, 1, 1, -1, 1, 1, 0]) * np.pi / 2
    pose = np.eye(4)
    for ai, di, twist, angle in zip(a, d, alpha, [*joints, 0.0], strict=True):
        ct, sin, ca, sa = np.cos(angle), np.sin(angle), np.cos(twist), np.sin(twist)
        pose = pose @ [
            [ct, -sin, 0, ai],
            [sin * ca, ct * ca, -sa, -di * sa],
            [sin * sa, ct * sa, ca, di * ca],
            [0, 0, 0, 1],
        ]
    turn, reach = np.eye(4), np.eye(4)
    c = np.cos(-np.pi / 4)
    turn[:2, :2] = [[c, c], [-c, c]]
    reach[2, 3] = 0.1034
    return pose @ turn @ reach


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=7, max_size=7))
def test_the_arm_is_a_panda(kinematics: InverseKinematics, fractions: list[float]) -> None:
    joints = JOINT_LOW + np.array(fractions) * (JOINT_HIGH - JOINT_LOW)
    position, rotation = kinematics.tip(joints)
    expected = panda_tip(joints)
    np.testing.assert_allclose(position, expected[:3, 3], atol=1e-6)
    np.testing.assert_allclose(rotation, expected[:3, :3], atol=1e-6)


@settings(max_examples=30)
@given(st.floats(0.32, 0.68), st.floats(-0.25, 0.25), st.floats(0.02, 0.3))
def test_solutions_reach_the_pose_within_the_limits(
    kinematics: InverseKinematics, x: float, y: float, z: float
) -> None:
    joints = kinematics.solve(np.array([x, y, z]), HOME)
    position, rotation = kinematics.tip(joints)
    np.testing.assert_allclose(position, [x, y, z], atol=2e-4)
    np.testing.assert_allclose(rotation, HAND_DOWN, atol=2e-4)
    assert np.all((joints >= JOINT_LOW) & (joints <= JOINT_HIGH))


def test_out_of_reach_is_an_error(kinematics: InverseKinematics) -> None:
    with pytest.raises(UnreachableError, match=r"\[2\.0, 0\.0, 0\.1\]"):
        kinematics.solve(np.array([2.0, 0.0, 0.1]), HOME)


def test_towards_down_turns_all_the_way(kinematics: InverseKinematics) -> None:
    start = kinematics.tip(HOME + 0.1)[1]
    np.testing.assert_allclose(kinematics.towards_down(start, 0.0), start, atol=1e-9)
    np.testing.assert_allclose(kinematics.towards_down(start, 1.0), HAND_DOWN, atol=1e-9)
    halfway = kinematics.towards_down(start, 0.5)
    np.testing.assert_allclose(halfway @ start.T @ halfway, HAND_DOWN, atol=1e-9)


def test_two_points_give_the_known_polynomial() -> None:
    t = np.linspace(0, 2, 50)
    path = minimum_jerk(np.array([[1.0], [3.0]]), np.array([0.0, 2.0]), t)
    s = t / 2
    np.testing.assert_allclose(path[:, 0], 1 + 2 * (10 * s**3 - 15 * s**4 + 6 * s**5), atol=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=5))
def test_paths_pass_their_points_smoothly_from_rest_to_rest(values: list[float]) -> None:
    points = np.array(values)[:, None]
    times = np.arange(len(points), dtype=float)
    np.testing.assert_allclose(minimum_jerk(points, times, times), points, atol=1e-7)

    step = 1e-3
    t = np.arange(-5, round(times[-1] / step) + 6) * step
    path = minimum_jerk(points, times, t)[:, 0]
    velocity = np.diff(path) / step
    acceleration = np.diff(velocity) / step
    assert np.abs(velocity[[0, -1]]).max() < 1e-6
    # No jump at a via point: from sample to sample the acceleration changes by jerk * step only.
    assert np.abs(np.diff(acceleration)).max() < 1.0


def test_times_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        minimum_jerk(np.zeros((3, 1)), np.array([0.0, 1.0, 1.0]), np.zeros(1))
