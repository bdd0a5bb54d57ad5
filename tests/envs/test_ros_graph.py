"""The bench: a real ROS 2 graph and a real rosbridge server, judged from the robot's side."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
from envs.ros.graph import RosGraph, RosGraphError

from ..conftest import ROOT
from .rosbridge import FRONT, JOINTS, TRAJECTORY, WRIST, Client

pytestmark = pytest.mark.ros

WATCHDOG_S = 0.3


@pytest.fixture(scope="module")
def graph() -> Iterator[RosGraph]:
    with RosGraph("reach", watchdog_s=WATCHDOG_S) as graph:
        yield graph


@pytest.fixture
def client(graph: RosGraph) -> Iterator[Client]:
    with Client(graph.url) as client:
        client.be_heard()
        client.wait(lambda: all(client.heard.values()))
        client.begin(seed=1)
        yield client


def stamps(messages: list[tuple[float, Any]]) -> np.ndarray:
    """``[N]`` seconds since the epoch."""
    found = [m["header"]["stamp"] for _, m in messages]
    return np.array([s["sec"] + s["nanosec"] / 1e9 for s in found])


def ages(messages: list[tuple[float, Any]]) -> np.ndarray:
    """``[N]`` seconds from stamp to arrival."""
    return np.array([arrival for arrival, _ in messages]) - stamps(messages)


def events(record: dict[str, Any], kind: str) -> list[str]:
    """Of the episode, in order."""
    return [e[3] for e in record["events"] if e[1] == record["episode"] and e[2] == kind]


def test_it_says_what_a_robot_says_at_the_rates_that_it_was_told(client: Client) -> None:
    begun = time.time()
    time.sleep(2.0)
    for topic, rate in (("/joint_states", 50.0), (FRONT, 20.0), (WRIST, 20.0)):
        seen = client.since(begun, topic)
        periods = np.diff(stamps(seen))
        assert (periods > 0).all()
        assert 0.9 * rate < 1 / periods.mean() < 1.1 * rate, topic
        assert 0 < np.median(ages(seen)) < 0.05, topic
    message = client.heard["/joint_states"][-1][1]
    assert message["name"] == JOINTS
    assert len(message["position"]) == len(message["velocity"]) == len(JOINTS)
    assert (
        '<joint name="joint_7" type="revolute">'
        in client.heard["/robot_description"][-1][1]["data"]
    )
    assert client.heard["/estop"][-1][1]["data"] is False


def test_it_shows_the_episode_that_the_simulation_would_show(client: Client) -> None:
    status = client.begin(seed=7)
    assert (status["state"], status["is_success"], status["seed"]) == ("ready", False, 7)
    env = envs.make("reach", image_size=96)
    observation, info = env.reset(seed=7)
    env.close()
    assert status["distance"] == pytest.approx(info["distance"], abs=2e-3)
    client.since(time.time(), FRONT, least=3)
    client.since(time.time(), WRIST, least=3)
    np.testing.assert_allclose(client.position(), observation["agent_pos"], atol=2e-3)
    for camera in ("front", "wrist"):
        seen = client.picture(camera).astype(float)
        # What JPEG and a settling arm change.
        assert np.abs(seen - observation["pixels"][camera]).mean() < 3.0


def test_a_trajectory_takes_the_arm_where_it_says_in_the_time_that_it_says(client: Client) -> None:
    start = client.position()
    goal = start + np.array([0.2, 0.15, -0.1, 0.1, 0.1, -0.1, 0.2, 0.04])
    # In another order of the joints: names count, not places.
    turned = list(range(8))[::-1]
    middle = (start + goal) / 2
    client.go(
        np.array([middle, goal])[:, turned],
        [0.4, 0.8],
        velocities=np.array([(goal - start) / 0.8 * 1.2, np.zeros(8)])[:, turned],
        names=[JOINTS[i] for i in turned],
        name="there",
    )
    client.wait_for(state="running")
    client.wait_for(state="holding")
    np.testing.assert_allclose(client.position(), goal, atol=0.003)
    record = client.call("/bench/trace")
    (taken,) = events(record, "accepted")
    assert taken.startswith("there: 2 points")
    command = np.array(record["command"])
    moving = np.abs(np.diff(command, axis=0)).max(1) > 1e-9
    assert moving.sum() * record["period_s"] == pytest.approx(0.8, abs=0.03)
    # Cubic: velocity is continuous.
    assert np.abs(np.diff(command, 2, axis=0)).max() / record["period_s"] ** 2 < 10


def test_a_trajectory_replaces_the_one_that_runs_without_a_jump(client: Client) -> None:
    start = client.position()
    there, back = start.copy(), start.copy()
    there[0] += 0.4
    client.go([there], [0.8])
    client.wait(lambda: client.position()[0] > start[0] + 0.1)
    client.go([back], [0.8])
    client.wait_for(state="holding")
    np.testing.assert_allclose(client.position(), start, atol=0.003)
    record = client.call("/bench/trace")
    command = np.array(record["command"])
    assert command[:, 0].max() < there[0] - 0.05
    assert np.abs(np.diff(command, 2, axis=0)).max() / record["period_s"] ** 2 < 15
    assert client.status["top_speed"] < 1.2


def test_positions_are_taken_as_they_are_and_silence_after_them_is_noticed(client: Client) -> None:
    start = client.position()
    for step in range(1, 11):
        client.publish("/joint_group/commands", {"data": (start[:7] + 0.01 * step).tolist()})
        time.sleep(0.02)
    client.wait_for(state="holding")
    np.testing.assert_allclose(client.position()[:7], start[:7] + 0.1, atol=0.003)
    record = client.call("/bench/trace")
    assert len(events(record, "accepted")) == 10
    (why,) = events(record, "holding")
    assert f"no command for {WATCHDOG_S:g} s" in why
    states = np.array(record["state"])
    assert (states == "running").sum() * record["period_s"] < 0.2 + WATCHDOG_S + 0.15


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"names": [*JOINTS[:7], "elbow"]}, "elbow"),
        ({"names": [*JOINTS[:6], "joint_6", "gripper"]}, "expected a choice of"),
        ({"velocities": np.ones((1, 8))}, "the last velocity is not zero"),
        ({"times": [-1.0]}, "does not rise"),
        ({"stamp": 1000.0}, "it ended"),
    ],
)
def test_what_a_controller_refuses_is_refused_by_name(
    client: Client, what: dict[str, Any], why: str
) -> None:
    start = client.position()
    client.go([start + 0.2], **{"times": [0.2], "name": "wrong", **what})
    client.wait_for(refused=1)
    record = client.call("/bench/trace")
    (refusal,) = events(record, "refused")
    assert refusal.startswith("wrong: ")
    assert why in refusal
    assert np.ptp(record["command"], axis=0).max() == 0.0


def test_an_emergency_stop_halts_it_and_only_a_reset_ends_that(client: Client) -> None:
    start = client.position()
    goal = start.copy()
    goal[0] += 0.8
    client.go([goal], [1.0])
    client.wait(lambda: client.position()[0] > start[0] + 0.2)
    client.publish("/estop", {"data": True})
    client.wait(lambda: client.heard["/estop"][-1][1]["data"] is True)
    client.publish("/estop", {"data": False})
    client.go([goal], [0.2], name="afterwards")
    client.wait_for(refused=1, state="stopped")
    record = client.call("/bench/trace")
    stopped = record["state"].index("stopped")
    after = np.array(record["position"])[stopped:, 0]
    # From about 1.2 rad/s at 10 rad/s^2: 0.12 s, 7 cm at one metre.
    assert after.max() - after[0] < 0.15
    speed = np.abs(np.array(record["velocity"])[stopped:, :7]).max(1)
    assert (speed[30:] < 0.02).all()
    assert record["state"][-1] == "stopped"
    assert client.begin(seed=2)["state"] == "ready"
    client.wait(lambda: client.heard["/estop"][-1][1]["data"] is False)
    # Nor does its own echo stop it again.
    client.go([client.position()], [0.1])
    client.wait_for(state="holding")


def test_the_expert_succeeds_through_the_bridge_as_it_does_in_simulation(client: Client) -> None:
    seed = 11
    env = envs.make("reach", cameras=()).unwrapped
    env.reset(seed=seed)
    expert = env.make_expert(0)  # type: ignore[attr-defined]
    expert.reset()
    rows = [env.command]  # type: ignore[attr-defined]
    succeeded = None
    while not expert.done:
        rows.append(expert.act())
        *_, info = env.step(rows[-1])
        if succeeded is None and info["is_success"]:
            succeeded = (len(rows) - 1) / 20
    assert succeeded is not None
    # The last stays, so that every chunk can end at rest.
    path = np.concatenate([rows, np.repeat(rows[-1:], 10, axis=0)]).astype(float)
    velocities = np.gradient(path, 0.05, axis=0)
    client.begin(seed)
    due = time.monotonic()
    for step in range(0, len(path) - 10, 4):  # half a second of motion, a fifth of a second apart
        chunk = slice(step + 1, step + 11)
        ends = velocities[chunk].copy()
        ends[-1] = 0
        times = 0.05 * np.arange(1, len(ends) + 1)
        client.go(path[chunk], times.tolist(), velocities=ends, name=f"chunk {step}")
        due += 0.2
        time.sleep(max(due - time.monotonic(), 0))
    status = client.wait_for(is_success=True)
    assert status["refused"] == status["clipped"] == 0
    assert status["succeeded_s"] == pytest.approx(succeeded, abs=0.25)


def test_a_killed_bridge_leaves_an_arm_that_ends_its_trajectory_and_holds(
    graph: RosGraph, client: Client
) -> None:
    start = client.position()
    goal = start.copy()
    goal[0] += 0.4
    client.go([goal], [0.6], name="before")
    client.wait_for(state="running")
    graph.kill_bridge()
    time.sleep(0.6 + WATCHDOG_S)
    graph.start_bridge()
    graph.wait_until_found()
    with Client(graph.url) as again:
        again.wait_for(state="holding")
        np.testing.assert_allclose(again.position(), [*goal], atol=0.003)
        record = again.call("/bench/trace")
        assert [e.partition(":")[0] for e in events(record, "accepted")] == ["before"]
        running = (np.array(record["state"]) == "running").sum() * record["period_s"]
        assert running == pytest.approx(0.6 + WATCHDOG_S, abs=0.05)
        # It hears again.
        again.be_heard()
        again.go([start], [0.3], name="after")
        again.wait_for(accepted=2)


def test_a_server_that_hangs_delays_commands_and_a_stamp_is_what_makes_them_void(
    graph: RosGraph, client: Client
) -> None:
    start = client.position()
    client.go([start + 0.05], [0.2], name="before")
    client.wait_for(state="running")
    graph.pause_bridge(True)
    sent = time.time()
    # The socket is open and takes them: nothing tells the sender.
    client.go([start + 0.1], [0.2], name="stamped", stamp=sent)
    client.go([start], [0.2], name="unstamped")
    time.sleep(0.2 + WATCHDOG_S + 0.2)
    assert client.heard["/joint_states"][-1][0] < sent + 0.1
    graph.pause_bridge(False)
    client.wait_for(accepted=2, refused=1)
    record = client.call("/bench/trace")
    told = [(e[2], e[3].partition(":")[0]) for e in record["events"] if e[1] == record["episode"]]
    assert [kind for kind, _ in told[1:]] == ["accepted", "holding", "refused", "accepted"]
    assert told[3] == ("refused", "stamped")
    assert told[4] == ("accepted", "unstamped")


def test_a_second_commander_is_heard_on_the_topic_of_commands_and_not_in_the_graph(
    graph: RosGraph, client: Client
) -> None:
    """A bridge is one publisher, whoever speaks through it: only what is said tells them apart."""
    start = client.position()
    publishers = client.status["publishers"]
    with Client(graph.url) as other:
        other.be_heard()
        now = time.time()
        client.go([start], [0.2], name="ours")
        other.go([start], [0.2], name="theirs")
        client.wait_for(accepted=2)
        assert client.status["publishers"] == publishers
        names = [m["header"]["frame_id"] for _, m in client.since(now, TRAJECTORY, least=2)]
        assert sorted(names) == ["ours", "theirs"]


def test_what_does_not_start_says_why_and_leaves_nothing_running() -> None:
    graph = RosGraph("reech")
    with pytest.raises(RosGraphError, match="there is no environment 'reech'"):
        graph.start()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", graph.port)) != 0


def test_the_graph_ends_with_whoever_started_it(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from envs.ros.graph import RosGraph, RosGraphError
graph = RosGraph("reach", cameras=(), logs=Path({str(tmp_path)!r}))
graph.start()
print(*(p.pid for p in graph.programs), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        programs = [int(pid) for pid in starter.stdout.readline().split()]
        starter.kill()
    assert len(programs) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in programs):
        assert time.monotonic() < deadline, (tmp_path / "node.log").read_text()
        time.sleep(0.05)


class TestFaults:
    def test_frozen_cameras_stand_still_with_old_stamps_or_new_ones(self, client: Client) -> None:
        for fault, grows in (("camera_frozen", False), ("camera_frozen_restamped", True)):
            self.begin(client, fault, True)
            seen = client.since(time.time(), FRONT, least=4)[1:]
            assert (np.diff(stamps(seen)) > 0).all() == grows
            assert len({message["data"] for _, message in seen}) == 1

    def test_stopped_topics_fall_silent_and_come_back(self, client: Client) -> None:
        for fault, topic in (("camera_stopped", FRONT), ("joints_stopped", "/joint_states")):
            self.begin(client, fault, True)
            time.sleep(0.1)
            now = time.time()
            time.sleep(0.2)
            assert not client.since(now, topic)
            self.begin(client, fault, False)
            client.since(now, topic, least=1)

    def test_late_joints_and_skewed_clocks_show_in_the_stamps(self, client: Client) -> None:
        def age(topic: str) -> float:
            return ages(client.since(time.time(), topic, least=4))[-1]

        self.begin(client, "joints_delay_s", 0.3)
        time.sleep(0.3)
        assert age("/joint_states") == pytest.approx(0.3, abs=0.06)
        assert age(FRONT) < 0.06
        self.begin(client, "skew_s", -2)
        assert age("/joint_states") == pytest.approx(2.0, abs=0.06)
        assert age(FRONT) == pytest.approx(2.0, abs=0.06)
        self.begin(client, "camera_skew_s", 1)
        assert age("/joint_states") < 0.06
        assert age(FRONT) == pytest.approx(-1.0, abs=0.06)

    def test_joints_can_be_reordered_mislabelled_and_not_numbers(self, client: Client) -> None:
        def fresh() -> dict[str, Any]:
            return client.since(time.time(), "/joint_states", least=3)[-1][1]

        start = client.position()
        self.begin(client, "joints_reordered", True)
        message = fresh()
        assert message["name"] == JOINTS[::-1]
        np.testing.assert_allclose(message["position"][::-1], start, atol=2e-3)
        self.begin(client, "joints_mislabelled", True)
        message = fresh()
        assert sorted(message["name"]) == sorted(JOINTS)
        assert message["name"] != JOINTS
        np.testing.assert_allclose(message["position"], start, atol=2e-3)
        self.begin(client, "joints_nan", True)
        assert fresh()["position"][0] is None  # so the server writes what is no number

    def test_an_unknown_fault_is_refused_by_name(self, client: Client) -> None:
        client.publish("/bench/fault", {"data": '{"camera_melted": true}'})
        client.wait(lambda: events(client.call("/bench/trace"), "refused"))
        (why,) = events(client.call("/bench/trace"), "refused")
        assert "there is no fault 'camera_melted'; there are: camera_frozen," in why

    @staticmethod
    def begin(client: Client, fault: str, value: Any) -> None:
        """Break this alone, or mend all; returns when the status shows it."""
        client.publish("/bench/fault", {"data": json.dumps({fault: value})})
        client.wait_for(faults={fault: value} if value else {})
