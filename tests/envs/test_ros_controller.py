"""The robot's side of the bench without ROS: controller, arm, URDF, faults, processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from envs.arm import ARM_JOINTS, JOINT_HIGH, JOINT_LOW
from envs.base import ArmEnv
from envs.ros import graph, leash
from envs.ros.bench_faults import Faults
from envs.ros.controller import Controller, RefusedError
from envs.ros.graph import RosGraph, RosMissingError
from envs.ros.simulated import JOINTS, PERIOD_S, SimulatedArm
from envs.ros.urdf import JOINT_VELOCITY, robot_description

DECELERATION = 5.0


def controller(start: float = 0.0) -> Controller:
    """Two joints and a gripper that may be left out, at `start`."""
    made = Controller(
        ("a", "b", "grip"),
        np.full(3, -1.0),
        np.full(3, 1.0),
        required=2,
        watchdog_s=0.3,
        deceleration=np.full(3, DECELERATION),
    )
    made.reset(np.full(3, start))
    return made


def follow(it: Controller, positions: list[float], times: list[float], now: float, **more) -> None:
    """A trajectory of joint a alone; the others stay at 0. Zero velocity at each point."""
    rows = np.array([[p, 0.0] for p in positions])
    velocities = more.pop("velocities", np.zeros_like(rows))
    it.follow(["a", "b"], rows, velocities, np.array(times), now=now, **more)


def ticks(it: Controller, begin: float, end: float, period: float = 0.01) -> np.ndarray:
    """Commands ``[N, 3]``, by ticks after `begin` until `end`."""
    count = round((end - begin) / period)
    return np.array([it.tick(begin + (i + 1) * period).copy() for i in range(count)])


@given(st.lists(st.floats(-0.9, 0.9), min_size=1, max_size=5), st.floats(0.05, 0.6))
def test_it_passes_every_point_at_its_time_and_never_jumps(
    points: list[float], spacing: float
) -> None:
    it = controller()
    it.tick(1.0)
    times = spacing * np.arange(1, len(points) + 1)
    follow(it, points, times.tolist(), now=1.0)
    steps = round(spacing / 0.001)
    passed = np.array(
        [it.tick(1.0 + i * spacing / steps)[0] for i in range(steps * len(points) + 1)]
    )
    np.testing.assert_allclose(passed[::steps], [0.0, *points], atol=1e-9)
    # A cubic between points at rest goes 1.5 times as fast as a straight line.
    jumps = np.abs(np.diff([0.0, *points])).max()
    assert np.abs(np.diff(passed)).max() <= 1.51 * jumps / steps + 1e-12


def test_a_replacement_begins_at_the_position_and_velocity_commanded_now() -> None:
    it = controller()
    follow(it, [0.8], [1.0], now=0.0)
    before = ticks(it, 0.0, 0.5)
    follow(it, [-0.2], [0.5], now=0.5)
    passed = np.concatenate([before, ticks(it, 0.5, 1.1)])[:, 0]
    assert np.abs(np.diff(passed, 2)).max() / 0.01**2 < 40
    assert passed[-1] == pytest.approx(-0.2)
    assert it.accepted == 2


def test_without_velocities_it_goes_straight() -> None:
    it = controller()
    follow(it, [0.5], [0.5], now=0.0, velocities=None)
    np.testing.assert_allclose(np.diff(ticks(it, 0.0, 0.5)[:, 0]), 0.01, atol=1e-9)
    assert it.velocity[0] == pytest.approx(1.0, abs=1.1)


def test_points_that_are_past_are_left_out_and_a_trajectory_that_is_past_is_refused() -> None:
    it = controller()
    it.tick(1.0)
    follow(it, [0.9, 0.1], [0.1, 0.5], now=1.0, start=0.8)
    assert ticks(it, 1.0, 1.3)[:, 0].max() <= 0.1 + 1e-9
    with pytest.raises(RefusedError, match="ended 0.500 s ago"):
        follow(it, [0.9], [0.5], now=2.0, start=1.0)
    assert (it.accepted, it.refused) == (1, 1)


@pytest.mark.parametrize(
    ("names", "rows", "times", "why"),
    [
        (["a"], [[0.1]], [0.1], r"leaves out the joints \['b'\]"),
        (["a", "b", "c"], [[0.1] * 3], [0.1], "expected a choice of"),
        (["a", "b", "a"], [[0.1] * 3], [0.1], "expected a choice of"),
        (["a", "b"], [[0.1] * 3], [0.1], "the shape"),
        (["a", "b"], [[0.1, np.nan]], [0.1], "not finite"),
        (["a", "b"], np.zeros((0, 2)), [], "without points"),
        (["a", "b"], [[0.1] * 2] * 2, [0.2, 0.2], "does not rise"),
        (["a", "b"], [[0.1] * 2], [np.inf], "does not rise"),
        (["a", "b"], [[0.1] * 2], [-0.1], "does not rise"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_changes_nothing(
    names: list[str], rows: list, times: list[float], why: str
) -> None:
    it = controller()
    follow(it, [0.5], [1.0], now=0.0)
    ticks(it, 0.0, 0.2)
    with pytest.raises(RefusedError, match=why):
        it.follow(names, np.array(rows), None, np.array(times), now=0.2)
    assert it.refused == 1
    assert ticks(it, 0.2, 1.0)[-1, 0] == pytest.approx(0.5)


def test_the_watchdog_waits_for_the_end_and_its_time_and_a_command_ends_its_hold() -> None:
    it = controller()
    assert it.state == "ready"
    ticks(it, 0.0, 5.0)
    assert it.state == "ready"  # nothing was commanded: nobody is missing
    follow(it, [0.5], [0.4], now=5.0)
    ticks(it, 5.0, 5.69)
    assert it.state == "running"
    held = ticks(it, 5.69, 6.5)
    assert it.state == "holding"
    assert "no command for 0.3 s" in it.reason
    assert np.ptp(held[:, 0]) < 1e-9
    follow(it, [0.0], [0.4], now=6.5)
    assert (it.state, it.reason) == ("running", "")


@given(st.floats(-0.9, 0.9), st.floats(0.05, 1.0), st.floats(0.0, 1.0))
def test_a_stop_brakes_as_fast_as_it_may_stays_there_and_refuses(
    goal: float, duration: float, share: float
) -> None:
    it = controller()
    follow(it, [goal], [duration], now=0.0)
    at = round(share * duration, 2)
    ticks(it, 0.0, at)
    speed, position = it.velocity[0], it.command[0]
    it.stop("because")
    passed = ticks(it, at, at + 2.0)[:, 0]
    assert abs(passed[-1] - position) <= speed**2 / 2 / DECELERATION + abs(speed) * 0.011
    assert (np.diff(passed) * np.sign(speed) >= -1e-12).all()
    assert np.ptp(passed[-20:]) == 0.0
    for command in (
        lambda: follow(it, [0.0], [1.0], now=9.0),
        lambda: it.jump(np.zeros(2), now=9.0),
    ):
        with pytest.raises(RefusedError, match="because"):
            command()
    it.reset(np.zeros(3))
    follow(it, [0.1], [1.0], now=10.0)


def test_a_jump_is_taken_as_it_is_within_the_limits() -> None:
    it = controller()
    it.tick(0.0)
    it.jump(np.array([0.5, 3.0]), now=0.0)
    np.testing.assert_array_equal(it.tick(0.01), [0.5, 1.0, 0.0])
    assert it.clipped == 1
    for values in ([0.1], [0.1] * 4, [0.1, np.nan]):
        with pytest.raises(RefusedError):
            it.jump(np.array(values), now=0.02)


@pytest.fixture(scope="module")
def reach() -> ArmEnv:
    env = envs.make("reach", cameras=()).unwrapped
    assert isinstance(env, ArmEnv)
    return env


def test_actions_as_straight_lines_do_to_the_arm_what_a_step_does(reach: ArmEnv) -> None:
    """Success means the same on the bench and in simulation."""
    reach.reset(seed=3)
    expert = reach.make_expert(3)
    expert.reset()
    actions, states, infos = [], [], []
    while not expert.done:
        actions.append(expert.act())
        *_, info = reach.step(actions[-1])
        states.append(reach.get_state())
        infos.append(info)
    arm = SimulatedArm(reach, seed=3, watchdog_s=0.3)
    rows = np.array(actions, float)
    arm.controller.follow(JOINTS, rows, None, 0.05 * np.arange(1, len(rows) + 1), now=arm.time)
    for state, info in zip(states, infos, strict=True):
        for _ in range(5):
            arm.tick()
        np.testing.assert_allclose(reach.get_state(), state, atol=1e-5)
        assert arm.info["is_success"] == info["is_success"]
    solved = [i["is_success"] for i in infos].index(True)
    assert arm.status()["is_success"]
    assert arm.succeeded_s == pytest.approx((solved + 1) * 0.05, abs=0.011)


def test_the_record_is_what_was_done_and_has_an_end(reach: ArmEnv) -> None:
    arm = SimulatedArm(reach, seed=0, watchdog_s=0.3, trace_s=1.0)
    for _ in range(150):
        arm.tick()
    record = arm.record()
    assert len(record["time"]) == 100
    np.testing.assert_allclose(np.diff(record["time"]), PERIOD_S)
    np.testing.assert_allclose(record["position"][-1], reach.agent_pos, atol=1e-4)
    arm.reset(5)
    assert arm.record()["time"] == []
    assert [e[1:] for e in arm.record()["events"]] == [
        [1, "reset", "seed 0"],
        [2, "reset", "seed 5"],
    ]
    assert arm.status()["seed"] == 5


def test_the_urdf_has_the_arms_frames_and_limits(reach: ArmEnv) -> None:
    robot = ElementTree.fromstring(robot_description(reach.model))
    joints = {joint.get("name"): joint for joint in robot.iter("joint")}
    limits = [joints[name].find("limit").attrib for name in ARM_JOINTS]  # type: ignore[union-attr]
    np.testing.assert_allclose([float(limit["lower"]) for limit in limits], JOINT_LOW)
    np.testing.assert_allclose([float(limit["upper"]) for limit in limits], JOINT_HIGH)
    np.testing.assert_allclose([float(limit["velocity"]) for limit in limits], JOINT_VELOCITY)

    def turn(axis: int, angle: float) -> np.ndarray:
        i, j = (axis + 1) % 3, (axis + 2) % 3
        made = np.eye(4)
        made[[i, i, j, j], [i, j, i, j]] = (
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        )
        return made

    def hand(angles: np.ndarray) -> np.ndarray:
        pose = np.eye(4)
        for name, angle in zip((*ARM_JOINTS, "hand"), (*angles, 0.0), strict=True):
            origin = joints[name].find("origin").attrib  # type: ignore[union-attr]
            step = np.eye(4)
            step[:3, 3] = [float(v) for v in origin["xyz"].split()]
            roll, pitch, yaw = (float(v) for v in origin["rpy"].split())
            pose = pose @ step @ turn(2, yaw) @ turn(1, pitch) @ turn(0, roll) @ turn(2, angle)
        return pose

    rng = np.random.default_rng(0)
    reach.reset(seed=0)
    for _ in range(20):
        angles = rng.uniform(JOINT_LOW, JOINT_HIGH)
        reach.data.qpos[:7] = angles
        reach.conclude(reach.tip.copy())
        tip = (hand(angles) @ [0.0, 0.0, 0.1034, 1.0])[:3]
        np.testing.assert_allclose(tip, reach.tip, atol=1e-6)
    assert {link.get("name") for link in robot.iter("link")} >= {
        joint.find("child").get("link")  # type: ignore[union-attr]
        for joint in robot.iter("joint")
    }


def test_faults_are_read_or_refused_by_name() -> None:
    assert Faults.parse("{}") == Faults()
    assert Faults.parse('{"skew_s": 2, "camera_frozen": true}') == Faults(
        skew_s=2.0, camera_frozen=True
    )
    for text, why in (
        ("[]", "no JSON object"),
        ("{", "Expecting"),
        ('{"skew": 1}', "there is no fault 'skew'; there are: camera_frozen"),
        ('{"skew_s": NaN}', "expected a float"),
        ('{"skew_s": true}', "expected a float"),
        ('{"camera_frozen": 1}', "expected a bool"),
    ):
        with pytest.raises(ValueError, match=why):
            Faults.parse(text)


def test_without_its_environment_the_graph_says_how_to_make_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(graph, "ENVIRONMENT", tmp_path / ".venv-ros")
    with pytest.raises(RosMissingError, match="make setup-ros"):
        RosGraph("reach")


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_program_on_a_leash_ends_with_whoever_started_it(
    how: signal.Signals, tmp_path: Path
) -> None:
    start = f"""
import subprocess, sys, time
process = subprocess.Popen([sys.executable, "-I", "-S", {leash.__file__!r},
    {str(tmp_path / "log")!r}, "sleep", "60"], stdin=subprocess.PIPE)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        program = int(starter.stdout.readline())
        assert not ended(program)
        os.kill(starter.pid, how)
    deadline = time.monotonic() + 5
    for _ in itertools.count():
        if ended(program):
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
