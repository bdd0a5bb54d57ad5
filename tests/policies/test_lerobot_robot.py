"""An arm behind a rosbridge as LeRobot's commands know it: a fake server's, then the bench's."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lerobot.datasets import LeRobotDataset
from lerobot.robots import RobotConfig as LeRobotConfig
from lerobot.robots import make_robot_from_config
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError
from PIL import Image
from websockets.exceptions import ConnectionClosed

from envs.ros.errors import NotConnectedError
from envs.ros.graph import RosGraph
from lerobot_policy_selfflow import ArmHeldError, SelfflowRos, SelfflowRosConfig
from policies.deployment.gates import GateConfig
from policies.deployment.stream import StreamConfig
from tests.conftest import ROOT
from tests.envs.ros.fake import FakeServer, wait_until
from tests.envs.rosbridge import Client
from worldmodel.checkpoint import save_policy
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon
from worldmodel.types import STATISTICS, Spec, SpecMismatchError

COMMAND, JOINT_STATES, CAMERA, ESTOP = "/command", "/joint_states", "/camera", "/estop"
NAMES = ["shoulder", "elbow", "wrist"]
KEYS = [f"{n}.pos" for n in NAMES]
HOME = np.array([0.1, -0.2, 0.3])
ARM = {
    "name": "toy",
    "type": "toy_arm",
    "joints": [
        {"name": n, "low": -2.0, "high": 2.0, "velocity": 2.0, "acceleration": 10.0, "jerk": 1000.0}
        for n in NAMES
    ],
    "command": COMMAND,
    "description": None,
    "cameras": {"front": {"topic": CAMERA, "size": [24, 32]}},
}


GATES = GateConfig(joints_age_s=0.2, camera_age_s=0.2, frozen_rad=10.0)
"""The fake arm always sends the same picture."""


class FakeArm:
    """A server with an arm behind it, which follows the trajectories that it is sent.

    Attributes:
        sent: arrival, times ``[N]``, positions and velocities ``[N, J]`` of each trajectory.
        silent: topics that nothing is published on.
    """

    def __init__(self, server: FakeServer) -> None:
        self.server, self.silent, self.stopped = server, set[str](), False
        self.sent: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]] = []
        server.answers["publish"] = self._take
        buffer = io.BytesIO()
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(buffer, "JPEG")
        self._picture = base64.b64encode(buffer.getvalue()).decode()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _take(self, message: dict[str, Any]) -> list[Any]:
        if message["topic"] == COMMAND:
            points = message["msg"]["points"]
            assert message["msg"]["joint_names"] == NAMES
            since = [p["time_from_start"] for p in points]
            times = np.array([t["sec"] + t["nanosec"] / 1e9 for t in since])
            positions, velocities = (
                np.array([p[what] for p in points]) for what in ("positions", "velocities")
            )
            self.sent.append((time.monotonic(), times, positions, velocities))
        return []

    def position(self, now: float) -> np.ndarray:
        """``[J]``, straight between the points of what came last."""
        if not self.sent:
            return HOME
        came, times, positions, _ = self.sent[-1]
        return np.array([np.interp(now - came, times, column) for column in positions.T])

    def _work(self) -> None:
        turned = [2, 0, 1]  # names count, not places
        while not self._end.wait(0.02):
            now = time.time()
            header = {"stamp": {"sec": int(now), "nanosec": int(now % 1 * 1e9)}, "frame_id": ""}
            position = self.position(time.monotonic())
            joints = {
                "header": header,
                "name": [NAMES[i] for i in turned],
                "position": position[turned].tolist(),
                "velocity": [],
                "effort": [],
            }
            picture = {"header": header, "format": "jpeg", "data": self._picture}
            for topic, message in (
                (JOINT_STATES, joints),
                (CAMERA, picture),
                (ESTOP, {"data": self.stopped}),
            ):
                if topic not in self.silent:
                    with contextlib.suppress(ConnectionClosed):  # who has just let go
                        self.server.publish(topic, message)

    def close(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def arm(server: FakeServer) -> Iterator[FakeArm]:
    arm = FakeArm(server)
    yield arm
    arm.close()


@pytest.fixture
def make(server: FakeServer, tmp_path: Path) -> Iterator[Callable[..., SelfflowRos]]:
    made: list[SelfflowRos] = []

    def make(**config: Any) -> SelfflowRos:
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(ARM))
        values = {"motion": StreamConfig(ramp_s=0.0), "gates": GATES, "timeout_s": 2.0, **config}
        made.append(
            SelfflowRos(SelfflowRosConfig(**{"config": str(path), "url": server.url, **values}))
        )
        return made[-1]

    yield make
    for robot in made:
        robot.disconnect()


@pytest.fixture
def robot(arm: FakeArm, make: Callable[..., SelfflowRos]) -> SelfflowRos:
    robot = make()
    robot.connect()
    return robot


def action(position: Any) -> dict[str, float]:
    return dict(zip(KEYS, np.asarray(position).tolist(), strict=True))


# --- what it is ----------------------------------------------------------------------------------


def test_lerobot_makes_it_by_its_type(tmp_path: Path) -> None:
    assert LeRobotConfig.get_choice_class("selfflow_ros") is SelfflowRosConfig
    sizes = {"front": {"size": [96, 128]}, "wrist": {"crop": [0, 0, 48, 64]}}
    overrides = {"cameras": sizes}
    robot = make_robot_from_config(SelfflowRosConfig(config="bench", overrides=overrides))
    assert isinstance(robot, SelfflowRos)
    assert robot.name == robot.robot_type == "selfflow_panda"
    assert list(robot.action_features) == [*(f"joint_{i}.pos" for i in range(1, 8)), "gripper.pos"]
    assert robot.observation_features == robot.action_features | {
        "front": (96, 128, 3),
        "wrist": (48, 64, 3),
    }
    assert list(robot.cameras) == ["front", "wrist"]
    assert (robot.is_connected, robot.is_calibrated) == (False, True)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "robot").glob("*.yaml")))
def test_every_preset_is_found_by_name_and_by_path(path: Path) -> None:
    by_name = SelfflowRosConfig(config=path.stem).described()
    assert by_name.name == path.stem
    assert SelfflowRosConfig(config=str(path)).described() == by_name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"config": "bensch"}, "bensch.*'bench'"),
        ({"config": "bench", "overrides": {"joint": []}}, "bench.*joint"),
        ({"config": "bench", "overrides": {"ros": 3}}, "ros is 1 or 2"),
        ({"config": "bench", "overrides": {"interface": "joint_group"}}, "joint_group"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused_by_name(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        SelfflowRos(SelfflowRosConfig(**config))


def test_the_size_of_a_picture_has_to_be_known_or_seen(
    arm: FakeArm, make: Callable[..., SelfflowRos]
) -> None:
    robot = make(overrides={"cameras": {"front": {"size": None}}})
    with pytest.raises(ValueError, match="camera front.*size: \\[HEIGHT, WIDTH\\]"):
        _ = robot.observation_features
    robot.connect()
    assert robot.observation_features["front"] == (48, 64, 3)


def test_a_checkpoint_for_another_arm_is_refused(
    make: Callable[..., SelfflowRos], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Spec(
        cameras=("front",),
        image_size=(24, 32),
        state_names=tuple(KEYS),
        action_names=tuple(KEYS),
        fps=20,
        action_kind="absolute",
    )
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", f"--policy.path={tmp_path}"])
    for change, message in (
        ({}, ""),
        ({"action_names": tuple(KEYS[::-1])}, "action_names.*wrist"),
        ({"cameras": ("top",)}, "camera.*top"),
        ({"action_kind": "delta"}, "delta"),
    ):
        values = dataclasses.replace(spec, **change).to_dict()
        (tmp_path / "config.json").write_text(json.dumps({"spec": values}))
        if not message:
            make()
            continue
        with pytest.raises(SpecMismatchError, match=message):
            make()


# --- connecting ----------------------------------------------------------------------------------


def test_it_observes_what_it_says_it_does_and_moves_nothing(
    robot: SelfflowRos, arm: FakeArm
) -> None:
    seen = robot.get_observation()
    assert list(seen) == list(robot.observation_features)
    np.testing.assert_allclose([seen[k] for k in KEYS], HOME)
    assert (seen["front"].shape, seen["front"].dtype) == ((24, 32, 3), np.uint8)
    assert abs(seen["front"].astype(int) - 90).max() < 5
    with pytest.raises(DeviceAlreadyConnectedError):
        robot.connect()
    robot.disconnect()
    assert not arm.sent
    robot.disconnect()
    for use in (robot.get_observation, lambda: robot.send_action(action(HOME))):
        with pytest.raises(DeviceNotConnectedError):
            use()


@pytest.mark.parametrize(
    ("topic", "message"),
    [(CAMERA, "camera front has sent no picture"), (JOINT_STATES, "no joint state has arrived")],
)
def test_what_does_not_arrive_while_connecting_is_named(
    topic: str, message: str, arm: FakeArm, make: Callable[..., SelfflowRos]
) -> None:
    arm.silent = {topic}
    robot = make(timeout_s=0.3)
    with pytest.raises(ArmHeldError, match=message):
        robot.connect()
    assert not robot.is_connected
    arm.silent = set()
    robot.connect()
    assert robot.is_connected


def test_without_a_description_or_a_bridge_it_says_so(
    arm: FakeArm, server: FakeServer, make: Callable[..., SelfflowRos]
) -> None:
    with pytest.raises(ArmHeldError, match="/robot_description"):
        make(overrides={"description": "/robot_description"}, timeout_s=0.3).connect()
    arm.close()
    server.kill()
    with pytest.raises(NotConnectedError):
        make(timeout_s=0.3).connect()


def test_a_pressed_stop_is_no_arm_to_connect_to(
    arm: FakeArm, make: Callable[..., SelfflowRos]
) -> None:
    arm.stopped = True
    with pytest.raises(ArmHeldError, match="emergency stop"):
        make(timeout_s=0.3).connect()


# --- moving --------------------------------------------------------------------------------------


def drive(robot: SelfflowRos, goal: np.ndarray, steps: int, hz: float = 20.0) -> dict[str, float]:
    """What a teleoperator does, from where the arm is; returns what was sent last."""
    start = np.array([robot.get_observation()[k] for k in KEYS])
    sent = {}
    for step in range(1, steps + 1):
        robot.get_observation()
        sent = robot.send_action(action(start + step / steps * (goal - start)))
        time.sleep(1 / hz)
    return sent


def test_actions_become_trajectories_within_the_limits_that_end_at_rest(
    robot: SelfflowRos, arm: FakeArm
) -> None:
    goal = HOME + np.array([0.3, -0.2, 0.1])
    drive(robot, goal, 12)
    for _ in range(8):
        sent = robot.send_action(action(goal))
        time.sleep(0.05)
    np.testing.assert_allclose([sent[k] for k in KEYS], goal, atol=1e-6)
    assert len(wait_until(lambda: len(arm.sent) >= 20 and arm.sent)) == 20
    for _, times, positions, velocities in arm.sent:
        assert 0.03 <= times[0] <= 0.0401
        np.testing.assert_allclose(np.diff(times), 0.01, atol=1e-6)
        assert not velocities[-1].any()
        for order, most in ((1, 2.0), (2, 10.0), (3, 1000.0)):
            assert np.abs(np.diff(positions, order, axis=0)).max() <= most * 0.01**order * 1.001
    time.sleep(0.4)
    seen = robot.get_observation()
    np.testing.assert_allclose([seen[k] for k in KEYS], goal, atol=1e-3)


def test_what_is_sent_back_is_what_was_sent(robot: SelfflowRos) -> None:
    """A limit of the joint, and what LeRobot's teardown passes beside the joints."""
    drive(robot, HOME + 0.0, 2)
    sent = robot.send_action(action(HOME + np.array([0.45, 0.0, 0.0])) | {"base.pos": 1.0})
    assert list(sent) == KEYS
    assert HOME[0] < sent["shoulder.pos"] < HOME[0] + 0.45  # as far as it gets before it brakes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shoulder.pos": np.nan}, "finite"),
        ({"elbow.pos": 1.0}, "first target is far: elbow"),
        ({"wrist.pos": None}, "lacks.*wrist"),
    ],
)
def test_an_action_that_cannot_be_ends_it(
    wrong: dict[str, Any], message: str, robot: SelfflowRos, arm: FakeArm
) -> None:
    asked = {k: v for k, v in (action(HOME) | wrong).items() if v is not None}
    with pytest.raises(ArmHeldError, match=message):
        robot.send_action(asked)
    with pytest.raises(ArmHeldError, match=f"(?s){message}.*connect anew"):
        robot.send_action(action(HOME))
    assert all(np.abs(positions - HOME).max() < 1e-6 for _, _, positions, _ in arm.sent)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("joints", "joint states are stale"),
        ("camera", "camera front is stale"),
        ("stop", "emergency stop"),
        ("frozen", "camera front shows the same picture"),
        ("hindered", ".pos is .* rad from where it was commanded"),
    ],
)
def test_a_gate_brakes_and_holds_until_it_is_connected_anew(
    fault: str,
    message: str,
    arm: FakeArm,
    make: Callable[..., SelfflowRos],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    robot = make(gates=GateConfig() if fault == "frozen" else GATES)
    robot.connect()
    with monkeypatch.context() as broken:
        if fault == "hindered":
            broken.setattr(arm, "position", lambda now: HOME)

        def work() -> None:
            for step in range(60):
                if step == 6:
                    arm.silent = {"joints": {JOINT_STATES}, "camera": {CAMERA}}.get(fault, set())
                    arm.stopped = fault == "stop"
                robot.get_observation()
                robot.send_action(action(HOME + 0.02 * step))
                time.sleep(0.04)

        with pytest.raises(ArmHeldError, match=message):
            work()
    sent = wait_until(lambda: arm.sent)
    time.sleep(0.05)
    count, (_, times, positions, velocities) = len(sent), sent[-1]
    assert times[-1] < 0.3  # shorter than what it replaced, which goes on for the horizon first
    assert not velocities[-1].any()
    arm.silent, arm.stopped = set(), False
    time.sleep(0.3)
    for use in (robot.get_observation, lambda: robot.send_action(action(HOME))):
        with pytest.raises(ArmHeldError, match="connect anew"):
            use()
    assert len(arm.sent) == count
    if fault == "hindered":
        return
    robot.disconnect()
    assert len(arm.sent) == count
    robot.connect()
    robot.send_action(action(positions[-1]))
    wait_until(lambda: len(arm.sent) == count + 1)


def test_a_lost_link_is_final_though_it_comes_back(
    robot: SelfflowRos, arm: FakeArm, server: FakeServer
) -> None:
    drive(robot, HOME + 0.05, 3)
    count = len(arm.sent)
    server.kill()
    with pytest.raises(ArmHeldError, match="link to the robot is lost"):
        wait_until(lambda: robot.get_observation() and None)
    server.start()
    wait_until(lambda: server.opened == 2)
    time.sleep(0.2)
    with pytest.raises(ArmHeldError, match="link to the robot is lost.*connect anew"):
        robot.send_action(action(HOME))
    assert len(arm.sent) == count
    assert robot.is_connected  # so that LeRobot's teardown lets go of it


def test_a_pause_lets_the_arm_come_to_rest_and_go_on(robot: SelfflowRos, arm: FakeArm) -> None:
    """As a policy that computes a chunk for a second does."""
    drive(robot, HOME + 0.1, 4)
    time.sleep(0.8)

    def there() -> bool:
        time.sleep(0.05)
        sent = robot.send_action(action(HOME + 0.2))
        return np.allclose([sent[k] for k in KEYS], HOME + 0.2, atol=1e-6)

    wait_until(there)


def test_letting_go_brakes(robot: SelfflowRos, arm: FakeArm) -> None:
    for step in range(1, 9):
        robot.send_action(action(HOME + 0.04 * step))
        time.sleep(0.04)
    robot.disconnect()
    last = wait_until(lambda: len(arm.sent) == 9 and arm.sent[-1])
    assert last[1][-1] < arm.sent[-2][1][-1]
    assert not last[3][-1].any()


# --- a real graph --------------------------------------------------------------------------------

SIZES = {"cameras": {"front": {"size": [96, 96]}, "wrist": {"size": [96, 96]}}}
ARM_KEYS = [*(f"joint_{i}.pos" for i in range(1, 8)), "gripper.pos"]


@pytest.fixture(scope="module")
def graph() -> Iterator[RosGraph]:
    with RosGraph("reach", image_size=96) as graph:
        yield graph


@pytest.fixture
def client(graph: RosGraph) -> Iterator[Client]:
    with Client(graph.url) as client:
        client.begin(seed=1)
        yield client


def lerobot(command: str, graph: RosGraph, *arguments: str) -> str:
    """Run one of LeRobot's commands on the bench arm as a shell does; what it printed."""
    done = subprocess.run(
        [
            sys.executable, "-m", f"lerobot.scripts.lerobot_{command}",
            "--robot.type=selfflow_ros",
            "--robot.config=bench",
            f"--robot.url={graph.url}",
            f"--robot.overrides={json.dumps(SIZES)}",
            "--robot.fps=20",
            "--robot.gates.camera_age_s=0.5",
            "--dataset.fps=20",
            "--dataset.num_episodes=1",
            "--dataset.no_stamp=true",
            "--dataset.push_to_hub=false",
            "--dataset.rgb_encoder.vcodec=h264",
            "--dataset.single_task=move",
            "--play_sounds=false",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def opened(folder: Path, name: str) -> tuple[LeRobotDataset, np.ndarray, np.ndarray]:
    """A dataset of one episode, its states and its actions ``[N, 8]``."""
    dataset = LeRobotDataset(name, root=folder, video_backend="pyav")
    assert dataset.num_episodes == 1
    assert dataset.meta.robot_type == "selfflow_panda"
    assert dataset.features["action"]["names"] == ARM_KEYS
    frame = dataset[len(dataset) // 2]
    assert frame["observation.images.front"].shape == (3, 96, 96)
    assert 0.05 < frame["observation.images.front"].mean() < 0.95
    assert frame["task"] == "move"
    rows = dataset.hf_dataset.with_format("numpy")[:]
    return dataset, np.stack(rows["observation.state"]), np.stack(rows["action"])


def require_smooth(record: dict[str, Any]) -> np.ndarray:
    """The commands of the robot's own trace ``[N, 8]``, which move as the arm may."""
    assert record["episode"], record
    command = np.array(record["command"])
    limits = SelfflowRosConfig(config="bench").described()
    for order, what in ((1, "velocity"), (2, "acceleration")):
        found = np.abs(np.diff(command, order, axis=0)) / record["period_s"] ** order
        beyond = (found > 1.3 * limits.array(what)).any(1)
        # A message that the system holds up for longer than `lead_s` finds the arm elsewhere.
        assert beyond.mean() < 0.005, (what, found.max(0))
    return command


@pytest.mark.ros
@pytest.mark.timeout(240)
def test_lerobot_records_what_a_hand_does_with_the_bench_arm(
    graph: RosGraph, client: Client, tmp_path: Path
) -> None:
    reach = [0.2, 0.15, -0.1, 0.1, 0.1, -0.1, 0.2, 0.03]
    lerobot(
        "record",
        graph,
        "--teleop.discover_packages_path=tests.policies.scripted",
        "--teleop.type=scripted",
        f"--teleop.names={json.dumps(ARM_KEYS)}",
        f"--teleop.start={client.position().tolist()}",
        f"--teleop.reach={reach}",
        "--dataset.repo_id=local/moved",
        f"--dataset.root={tmp_path / 'moved'}",
        "--dataset.episode_time_s=4",
    )
    command = require_smooth(client.call("/bench/trace"))
    np.testing.assert_allclose(np.ptp(command, axis=0), np.abs(reach), rtol=0.1)
    dataset, states, actions = opened(tmp_path / "moved", "local/moved")
    assert 50 <= len(dataset) <= 81
    assert np.abs(states - actions).max() < 0.15
    assert client.status["refused"] == 0


@pytest.mark.ros
@pytest.mark.timeout(240)
def test_lerobot_rolls_a_policy_out_on_the_bench_arm(
    graph: RosGraph, client: Client, tmp_path: Path
) -> None:
    start = client.position()
    save_checkpoint(tmp_path / "checkpoint", start)
    lerobot(
        "rollout",
        graph,
        f"--policy.path={tmp_path / 'checkpoint'}",
        "--policy.device=cpu",
        "--policy.n_action_steps=4",
        "--strategy.type=episodic",
        "--fps=20",
        "--dataset.repo_id=local/rollout_bench",
        f"--dataset.root={tmp_path / 'rollout'}",
        "--dataset.episode_time_s=4",
    )
    record = client.call("/bench/trace")
    command = require_smooth(record)
    assert np.ptp(command, axis=0).max() > 0.02
    # LeRobot has driven it back to where it was.
    np.testing.assert_allclose(command[-1], start, atol=0.02)
    dataset, states, actions = opened(tmp_path / "rollout", "local/rollout_bench")
    assert len(dataset) >= 30
    assert np.ptp(actions, axis=0).max() > 0.02
    assert np.abs(states - start).max() < 0.4


@pytest.mark.ros
def test_the_bench_arms_stop_ends_it(graph: RosGraph, client: Client) -> None:
    robot = SelfflowRos(SelfflowRosConfig(config="bench", url=graph.url, fps=20.0))
    robot.connect()
    try:
        start = client.position()
        reach = np.array([0.3, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])

        def work() -> None:
            for step in range(80):
                robot.get_observation()
                target = (start + min(step / 40, 1) * reach).tolist()
                robot.send_action(dict(zip(ARM_KEYS, target, strict=True)))
                if step == 20:
                    client.publish("/estop", {"data": True})
                time.sleep(0.05)

        with pytest.raises(ArmHeldError, match="emergency stop"):
            work()
        client.wait_for(state="stopped")
        time.sleep(0.2)
        there = client.position()
        with pytest.raises(ArmHeldError, match="connect anew"):
            robot.send_action(dict.fromkeys(ARM_KEYS, 0.0))
        time.sleep(0.3)
        assert np.abs(client.position() - there).max() < 2e-3
        assert 0.02 < (there - start)[0] < 0.29
    finally:
        robot.disconnect()


def save_checkpoint(folder: Path, about: np.ndarray) -> None:
    """Random weights whose actions lie about a position ``[8]``."""
    spread = np.append(np.full(7, 0.05), 0.005)
    values = {"mean": about, "std": spread, "min": about - 2 * spread, "max": about + 2 * spread}
    values |= {"q01": values["min"], "q99": values["max"]}
    table = {name: values[name].tolist() for name in STATISTICS}
    spec = Spec(
        cameras=("front",),
        image_size=(16, 16),
        state_names=tuple(ARM_KEYS),
        action_names=tuple(ARM_KEYS),
        fps=20,
        tasks=("move",),
        stats={"state": table, "action": table},
        robot_type="selfflow_panda",
        action_kind="absolute",
        action_targets=tuple(range(8)),
        action_rank=(3,) * 8,
    )
    model = WorldModel(spec, Horizon(past=1, future=0, chunk=6), ModelConfig(size="debug", patch=8))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))
    folder.mkdir()
    save_policy(folder, model, ObjectiveConfig(patterns={"act": 1.0}), {})
