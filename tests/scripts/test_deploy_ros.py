"""The run-time through a real rosbridge server: what breaks ends motion, and nothing comes later.

Judged from the robot's side: its own record of what it was commanded, 100 times a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs.reach import Reach
from envs.ros.arm import RosArm
from envs.ros.graph import RosGraph
from policies.deployment.gates import GateConfig
from policies.deployment.inference import InferenceError, InlineInference, Question
from policies.deployment.runtime import Runtime, RuntimeConfig, State
from policies.safety import SafetyFilter
from scripts._arm import BridgedArm, joint_limits
from scripts.bench import bench_robot
from tests.envs.rosbridge import JOINTS, Client
from worldmodel.tokens import Horizon
from worldmodel.types import Spec

pytestmark = pytest.mark.ros

SPEC = Spec(
    cameras=("front",),
    image_size=(96, 96),
    state_names=Reach.state_names,
    action_names=Reach.action_names,
    fps=20.0,
    robot_type="selfflow_panda",
    action_kind="absolute",
)
HORIZON = Horizon(past=1, future=0, chunk=16)
WATCHDOG_S = 0.3
STILL = 1e-4
"""rad or m: what a command that holds may differ by."""


@pytest.fixture(scope="module")
def graph() -> Iterator[RosGraph]:
    with RosGraph("reach", cameras=("front",), watchdog_s=WATCHDOG_S) as graph:
        yield graph


@pytest.fixture
def bench(graph: RosGraph) -> Iterator[Client]:
    with Client(graph.url) as client:
        client.begin(seed=1)
        yield client


class Swing(InlineInference):
    """A policy that swings one joint to and fro, for as long as it is asked; or fails."""

    def __init__(self) -> None:
        super().__init__(SPEC, HORIZON, self.swing)
        self.start: tuple[float, np.ndarray] | None = None
        self.fails = False

    def swing(self, question: Question) -> np.ndarray:
        if self.fails:
            raise InferenceError("the inference process has died")
        if self.start is None:
            self.start = question.observed, question.moment.state[0, -1].astype(float)
        began, home = self.start
        due = question.observed - began + (1 + np.arange(HORIZON.chunk)) / SPEC.fps
        actions = np.repeat(home[None], HORIZON.chunk, axis=0)
        actions[:, 0] += 0.4 * np.sin(2.0 * due)
        return actions


class Driver:
    """A run-time on a thread of its own, with an operator who arms when asked."""

    def __init__(self, graph: RosGraph, **gates: float) -> None:
        config = RuntimeConfig(ramp_s=0.5)
        robot = bench_robot(graph.url)
        robot.cameras = {"front": robot.cameras["front"]}
        self.arm = RosArm(robot)
        self.policy = Swing()
        safety = SafetyFilter(joint_limits(robot, None), 1 / config.controller_hz)
        self.runtime = Runtime(
            BridgedArm(self.arm), self.policy, safety, config, replace(GateConfig(), **gates)
        )
        self._ended = threading.Event()

    def __enter__(self) -> Driver:
        self.arm.start(10.0)
        self._thread = threading.Thread(target=self.runtime.run, args=(self._ended.is_set,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.arm.close()

    def wait(self, state: State, timeout: float = 8.0) -> float:
        """Seconds until the run-time is in this state."""
        begin = time.monotonic()
        while self.runtime.state is not state:
            assert time.monotonic() - begin < timeout, list(self.runtime.events)[-5:]
            time.sleep(0.002)
        return time.monotonic() - begin

    def rearm(self) -> None:
        """Ask until it moves: joints have to be watched for a moment first."""
        self.policy.start = None
        deadline = time.monotonic() + 8.0
        while self.runtime.state is not State.RUNNING:
            assert time.monotonic() < deadline, list(self.runtime.events)[-5:]
            if self.runtime.state in (State.READY, State.HOLDING):
                self.runtime.request("arm")
            time.sleep(0.15)

    def swing(self, seconds: float = 1.2) -> None:
        """Arm, and move for a while."""
        self.wait(State.READY)
        for _ in range(3):
            self.rearm()
            time.sleep(seconds)
            # A machine that is busy with other things stops the clock: rightly held, tried again.
            if "clock stood still" not in self.runtime.reason:
                break
        assert self.runtime.state is State.RUNNING, self.runtime.reason


@contextmanager
def moving(graph: RosGraph, bench: Client, **gates: float) -> Iterator[Driver]:
    with Driver(graph, **gates) as driver:
        driver.swing()
        assert bench.call("/bench/trace")["state"][-1] != "ready"
        yield driver


def require_held(bench: Client, driver: Driver, settle: float = 0.8) -> dict[str, Any]:
    """The arm stands still where it was braked, although time passes; only an operator moves it."""
    time.sleep(settle)
    record = bench.call("/bench/trace")
    time.sleep(0.5)
    later = bench.call("/bench/trace")
    tail = np.array(later["command"])[-50:]
    assert np.abs(tail - tail[-1]).max() < STILL
    assert bench.status["accepted"] == accepted_of(bench)
    assert np.abs(np.array(record["command"])[-1] - tail[-1]).max() < STILL
    assert driver.runtime.state in (State.HOLDING, State.STOPPED, State.DISCONNECTED)
    within_limits(later)
    return later


def accepted_of(bench: Client) -> int:
    """How many trajectories the robot has taken, once no more come."""
    before = bench.status["accepted"]
    time.sleep(0.3)
    assert bench.status["accepted"] == before
    return before


def within_limits(record: dict[str, Any]) -> None:
    """What the robot was commanded keeps the velocities and accelerations of the arm."""
    robot = bench_robot("ws://127.0.0.1:1")
    command = np.array(record["command"])
    speed = np.diff(command, axis=0) / record["period_s"]
    assert (np.abs(speed) <= robot.array("velocity") * 1.01).all()
    # Points arrive at another phase than the robot's clock, so that its cubics go a little beyond.
    acceleration = np.abs(np.diff(speed, axis=0)) / record["period_s"]
    assert (acceleration <= robot.array("acceleration") * 1.5).all(), acceleration.max(axis=0)


def test_it_drives_the_arm_and_an_operator_holds_it(graph: RosGraph, bench: Client) -> None:
    with moving(graph, bench) as driver:
        record = bench.call("/bench/trace")
        assert np.ptp(np.array(record["position"])[:, 0]) > 0.2
        driver.runtime.request("hold")
        driver.wait(State.HOLDING)
        require_held(bench, driver)
        driver.rearm()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ('{"camera_stopped": true}', "camera front"),
        ('{"camera_frozen": true}', "camera front"),
        ('{"camera_frozen_restamped": true}', "the same picture"),
        ('{"joints_stopped": true}', "joint"),
        ('{"joints_delay_s": 0.5}', "joint"),
        ('{"joints_nan": true}', "joint_states"),
        ('{"camera_skew_s": 0.5}', "apart by their own stamps"),
        ('{"joints_mislabelled": true}', ""),
    ],
)
def test_what_the_robot_says_wrongly_ends_motion(
    graph: RosGraph, bench: Client, fault: str, words: str
) -> None:
    with moving(graph, bench) as driver:
        bench.publish("/bench/fault", {"data": fault})
        took = driver.wait(State.HOLDING, timeout=3.0)
        assert words in driver.runtime.reason, driver.runtime.reason
        assert took < 2.0
        require_held(bench, driver)
        bench.publish("/bench/fault", {"data": "{}"})
        time.sleep(0.5)
        assert driver.runtime.state is State.HOLDING  # mended, and still nobody has armed


def test_joints_in_another_order_are_joints_all_the_same(graph: RosGraph, bench: Client) -> None:
    with moving(graph, bench) as driver:
        bench.publish("/bench/fault", {"data": '{"joints_reordered": true}'})
        time.sleep(1.0)
        assert driver.runtime.state is State.RUNNING


def test_the_emergency_stop_is_latched(graph: RosGraph, bench: Client) -> None:
    with moving(graph, bench) as driver:
        bench.publish("/estop", {"data": True})
        driver.wait(State.STOPPED, timeout=2.0)
        assert "emergency stop" in driver.runtime.reason
        require_held(bench, driver)
        driver.runtime.request("arm")
        time.sleep(0.2)
        assert driver.runtime.state is State.STOPPED


def test_a_bridge_that_dies_leaves_an_arm_that_ends_its_motion_and_holds(
    graph: RosGraph, bench: Client
) -> None:
    with moving(graph, bench) as driver:
        began = time.monotonic()
        graph.kill_bridge()
        driver.wait(State.HOLDING, timeout=3.0)
        assert time.monotonic() - began < 1.0
        time.sleep(0.5 + WATCHDOG_S + 0.5)
        graph.start_bridge()
        graph.wait_until_found()
        with Client(graph.url) as again:
            again.wait(lambda: again.status)
            require_held(again, driver)
            record = again.call("/bench/trace")
            assert any("no command for" in str(event[3]) for event in record["events"])
            # Connected again, it has armed nothing: that is the operator's.
            accepted = again.status["accepted"]
            time.sleep(0.5)
            assert again.status["accepted"] == accepted
            assert driver.runtime.state is State.HOLDING


def test_ten_reconnects_in_a_row_move_nothing(graph: RosGraph, bench: Client) -> None:
    with moving(graph, bench) as driver:
        graph.kill_bridge()
        driver.wait(State.HOLDING, timeout=3.0)
        for _ in range(10):
            graph.start_bridge()
            time.sleep(0.1)
            graph.kill_bridge()
        graph.start_bridge()
        graph.wait_until_found()
        with Client(graph.url) as again:
            again.wait(lambda: again.status)
            require_held(again, driver)


def test_inference_that_dies_ends_motion(graph: RosGraph, bench: Client) -> None:
    with moving(graph, bench) as driver:
        driver.policy.fails = True
        driver.wait(State.HOLDING, timeout=1.0)
        assert "has died" in driver.runtime.reason
        require_held(bench, driver)


def test_a_second_commander_ends_motion(graph: RosGraph, bench: Client) -> None:
    with moving(graph, bench) as driver:
        here = bench.position()
        for _ in range(10):
            bench.go([here], [0.3], names=JOINTS, name="somebody")
            time.sleep(0.033)
        driver.wait(State.HOLDING, timeout=1.0)
        assert "somebody else" in driver.runtime.reason
