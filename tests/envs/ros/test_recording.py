"""A recording holds what was handed over, when it was, and never holds up who hands it over."""

from __future__ import annotations

import errno
import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.interfaces import ConnectionExtRosbag2
from rosbags.rosbag2 import Reader

from envs.ros.bags import Bag, BagError
from envs.ros.messages import picture
from envs.ros.recording import (
    ABOUT,
    CHUNK,
    COMMAND,
    EVENTS,
    JOINTS,
    PICTURES,
    POINTS,
    UNSENT,
    RunRecorder,
    camera_topic,
)


@dataclass
class Arrival:
    value: np.ndarray
    arrival: float
    stamp: float | None
    sequence: int


@dataclass
class Reading:
    joints: Arrival | None = None
    images: dict[str, Arrival] = field(default_factory=dict)
    stopped: bool = False
    problem: str = ""


def recorder(folder: Path, **changes: Any) -> RunRecorder:
    values: dict[str, Any] = {"axes": ["a.pos", "b.pos"], "joints": ["a", "b"], "fps": 20}
    return RunRecorder(folder, **(values | changes))


def shot(number: int, size: tuple[int, int] = (12, 16)) -> np.ndarray:
    """Tiles of 4 pixels in colours that no other number has."""
    tiles = (size[0] // 4, size[1] // 4, 3)
    colours = np.random.default_rng(number).integers(0, 255, tiles, np.uint8)
    return np.kron(colours, np.ones((4, 4, 1), np.uint8))


def events(bag: Bag) -> list[dict[str, Any]]:
    return [json.loads(message["data"]) for _, message in bag.messages(EVENTS)]


def fill(record: RunRecorder, count: int = 20, camera: str = "front") -> float:
    """`count` periods of 0.05 s, handed over at once; returns when they began."""
    begin = time.monotonic()
    for i in range(count):
        at = begin + i / 20
        joints = Arrival(np.array([i, -i], float), at - 0.004, 5000 + i / 20, i + 1)
        images = {camera: Arrival(shot(i), at - 0.01, 5000 + i / 20 - 0.006, i + 1)}
        record.observe(Reading(joints, images))
        times = np.arange(1, 26) / 100
        positions = np.linspace(i, i + 1, 50).reshape(25, 2)
        values = {"times": times, "positions": positions, "velocities": positions / 2}
        record("command", at, values)
    return begin


@pytest.mark.parametrize("pictures", PICTURES)
def test_what_was_handed_over_comes_back(tmp_path: Path, pictures: str) -> None:
    """Values bit for bit (JPEG: nearly), in order, log times to the nanosecond of the clock."""
    record = recorder(tmp_path / "run", cameras=["front"], pictures=pictures)
    begin = fill(record)
    actions = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    record("chunk", begin + 0.2, {"number": 3, "age": 0.125, "actions": actions})
    record("brake", begin + 1, {"times": np.array([0.01]), "positions": np.ones((1, 2))})
    record("event", begin + 1.1, {"state": "holding", "what": "the operator asked to hold"})
    record("clip", begin + 1.2, {"reasons": {"a": "jerk"}, "worst": np.float64("nan")})
    record("point", begin + 1.3, {"position": np.array([0.5, 0.25]), "reasons": {}})
    strided = np.array([[0.6, 9], [0.3, 9]])[:, 0]
    record("point", begin + 1.31, {"position": strided, "reasons": {"b": "position"}})
    done = record.close()
    assert done.problem == ""
    assert not done.lost
    assert done.written[JOINTS] == done.written[camera_topic("front", pictures)] == 20
    with Bag(tmp_path / "run") as bag:
        joints = list(bag.messages(JOINTS))
        assert [m["position"].tolist() for _, m in joints] == [[i, -i] for i in range(20)]
        assert joints[0][1]["name"] == ["a", "b"]
        first = joints[0][0]
        for i, (at, message) in enumerate(joints):
            assert abs(at - first - round(1e9 * i / 20)) < 1000  # a float of seconds holds no more
            stamp = message["header"]["stamp"]
            assert stamp["sec"] + 1e-9 * stamp["nanosec"] == pytest.approx(5000 + i / 20, abs=1e-6)
        assert abs(first * 1e-9 - (time.time() - (time.monotonic() - begin) - 0.004)) < 0.1
        found = [picture(m) for _, m in bag.messages(camera_topic("front", pictures))]
        for i, image in enumerate(found):
            if pictures == "jpeg":  # of noise, the worst that there is
                assert np.abs(image.astype(int) - shot(i)).mean() < 45
            else:
                np.testing.assert_array_equal(image, shot(i))
        commands = [m for _, m in bag.messages(COMMAND)]
        assert len(commands) == 21
        steps = commands[7]["points"]
        np.testing.assert_array_equal(
            [p["positions"] for p in steps], np.linspace(7, 8, 50).reshape(25, 2)
        )
        np.testing.assert_array_equal(steps[0]["velocities"], steps[0]["positions"] / 2)
        assert steps[4]["time_from_start"] == {"sec": 0, "nanosec": 50_000_000}
        assert commands[7]["joint_names"] == ["a", "b"]
        ((at, chunk),) = bag.messages(CHUNK)
        np.testing.assert_array_equal([p["positions"] for p in chunk["points"]], actions)
        assert chunk["points"][1]["time_from_start"] == {"sec": 0, "nanosec": 100_000_000}
        stamp = chunk["header"]["stamp"]
        assert at - (stamp["sec"] * 10**9 + stamp["nanosec"]) == 125_000_000  # its observation
        said = events(bag)
        assert [e["kind"] for e in said] == ["chunk", "brake", "event", "clip", "clip"]
        assert said[4]["reasons"] == {"b": "position"}
        points = [m["position"].tolist() for _, m in bag.messages(POINTS)]
        assert points == [[0.5, 0.25], [0.6, 0.3]]
        assert said[0]["number"] == 3
        assert said[2]["what"] == "the operator asked to hold"
        assert (said[3]["reasons"], said[3]["worst"]) == ({"a": "jerk"}, "nan")
        ((_, about),) = bag.messages(ABOUT)
        told = json.loads(about["data"])
        assert (told["joints"], told["axes"], told["fps"]) == (["a", "b"], ["a.pos", "b.pos"], 20)


def test_it_is_a_bag_that_commands_nothing_when_it_is_played(tmp_path: Path) -> None:
    """Opened by rosbags as folder and as file; every topic is a name of its own."""
    with recorder(tmp_path / "run", cameras=["front"]) as record:
        fill(record, 3)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["metadata.yaml", "run.mcap"]
    for path in (tmp_path / "run", tmp_path / "run/run.mcap"):
        with AnyReader([path]) as reader:
            assert all(c.topic.startswith("/run/") for c in reader.connections)
            times = [at for _, at, _ in reader.messages()]
            assert times == sorted(times)
            assert reader.message_count == len(times) == 3 * 3 + 1
    with Reader(tmp_path / "run") as reader2:
        latched = next(c for c in reader2.connections if c.topic == ABOUT)
        assert isinstance(latched.ext, ConnectionExtRosbag2)
        assert latched.ext.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"


def test_only_what_is_new_is_recorded(tmp_path: Path) -> None:
    with recorder(tmp_path / "run", cameras=["front"]) as record:
        now = time.monotonic()
        seen = Reading(
            Arrival(np.zeros(2), now, None, 1),
            {c: Arrival(shot(0), now, None, 1) for c in ("front", "unnamed")},
        )
        for _ in range(5):
            record.observe(seen)
        record.observe(Reading(stopped=True))
        record.observe(Reading(stopped=True))
        record.observe(Reading(stopped=True, problem="camera front: cut off"))
    with Bag(tmp_path / "run") as bag:
        assert bag.counts[JOINTS] == bag.counts["/run/camera/front/compressed"] == 1
        assert [(e["stopped"], e["problem"]) for e in events(bag)] == [
            (True, ""),
            (True, "camera front: cut off"),
        ]
        ((_, message),) = bag.messages(JOINTS)
        assert message["header"]["stamp"] == {"sec": 0, "nanosec": 0}


def test_a_dry_run_and_what_was_not_sent_are_told_apart(tmp_path: Path) -> None:
    values = {"times": np.array([0.05]), "positions": np.zeros((1, 2))}
    with recorder(tmp_path / "dry", dry_run=True) as record:
        record("command", time.monotonic(), values)
    with recorder(tmp_path / "run") as record:
        record("command", time.monotonic(), values)
        record("command", time.monotonic(), values | {"sent": False})
    for name, sent, unsent in (("dry", 0, 1), ("run", 1, 1)):
        with Bag(tmp_path / name) as bag:
            assert (bag.counts[COMMAND], bag.counts[UNSENT]) == (sent, unsent)


def test_a_slow_disk_costs_messages_that_are_counted_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing can be written, 2,000 calls take no time and memory stays within its bound."""
    gate = threading.Event()
    record = recorder(tmp_path / "run", cameras=["front"], capacity=200_000)
    real = RunRecorder._emit

    def wait(self: RunRecorder, *given: Any) -> None:
        gate.wait(20)
        real(self, *given)

    monkeypatch.setattr(RunRecorder, "_emit", wait)
    longest = 0.0
    for i in range(2000):
        start = time.perf_counter()
        record("image", start, {"camera": "front", "value": shot(0), "stamp": None})
        record("event", start, {"number": i})
        longest = max(longest, time.perf_counter() - start)
        assert record._bytes <= 200_000
    assert longest < 0.2  # of a machine that does other things too
    assert "messages are lost" in record.problem
    assert "/run/camera/front/compressed" in record.problem
    gate.set()
    done = record.close()
    assert done.problem == record.problem
    with Bag(tmp_path / "run") as bag:
        said = events(bag)
        kept = [e["number"] for e in said if e["kind"] == "event"]
        lost = [e for e in said if e["kind"] == "lost"]
        assert kept == sorted(kept)
        assert len(kept) + done.lost[EVENTS] == 2000
        assert sum(e.get(EVENTS, 0) for e in lost) == done.lost[EVENTS]
        shots = bag.counts["/run/camera/front/compressed"]
        assert shots + done.lost["/run/camera/front/compressed"] == 2000


def test_a_full_disk_ends_the_recording_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunRecorder, *given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    record = recorder(tmp_path / "run", cameras=["front"])
    fill(record, 2)
    until(lambda: record._written[COMMAND] == 2)
    monkeypatch.setattr(RunRecorder, "_emit", full)
    for i in range(10):
        record("event", float(i), {})
    until(lambda: "No space left" in record.problem)
    fill(record, 2)  # does no harm
    done = record.close()
    assert "No space left" in done.problem
    assert done.lost[JOINTS] == 2
    assert record.close().problem == done.problem


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("chunk", {"number": 0, "age": 0.1, "actions": np.zeros(3)}),
        ("chunk", {"number": 0, "age": 0.1, "actions": np.zeros((4, 3))}),
        ("command", {"times": np.zeros(2), "positions": np.zeros((1, 2))}),
        ("command", {}),
        ("joints", {"value": np.array(["x"]), "stamp": None}),
        ("image", {"camera": "front", "value": np.zeros((0, 0, 3), np.uint8), "stamp": None}),
    ],
)
def test_what_fits_no_message_is_said_and_the_rest_is_recorded(
    tmp_path: Path, kind: str, values: dict[str, Any]
) -> None:
    with recorder(tmp_path / "run", cameras=["front"]) as record:
        record(kind, time.monotonic(), values)
        record("event", time.monotonic(), {"what": "after"})
    with Bag(tmp_path / "run") as bag:
        said = events(bag)
        assert [(e["kind"], e.get("of")) for e in said] == [("unwritable", kind), ("event", None)]
    assert "1 messages are lost, some fit no message" in record.problem


def test_several_threads_hand_over_at_once(tmp_path: Path) -> None:
    record = recorder(tmp_path / "run")

    def work(number: int) -> None:
        for i in range(300):
            record("event", time.monotonic(), {"thread": number, "i": i})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.close()
    with Bag(tmp_path / "run") as bag:
        said = events(bag)
    for number in range(4):
        assert [e["i"] for e in said if e["thread"] == number] == list(range(300))


def test_a_killed_recording_can_be_read_to_where_it_was_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the file ends, what comes back is a beginning of what was recorded."""
    monkeypatch.setattr("envs.ros.recording.FLUSH_S", 0.02)
    record = recorder(tmp_path / "run", cameras=["front"])
    file = tmp_path / "run/run.mcap"
    for i in range(60):
        record("event", time.monotonic() - (i % 2), {"number": i})  # not in order of time
        time.sleep(0.003)
    until(lambda: record._written[EVENTS] == 60)
    time.sleep(0.1)
    torn = file.read_bytes()  # as SIGKILL leaves it
    record.close()
    read: list[int] = []
    steps = [*range(len(torn), 20, -len(torn) // 40), len(torn)]
    for size in sorted(steps):
        cut = tmp_path / "cut.mcap"
        cut.write_bytes(torn[:size])
        try:
            with Bag(cut) as bag:
                assert bag.cut
                found = sorted(e["number"] for e in events(bag)) if EVENTS in bag.types else []
        except BagError:
            assert size < 10_000  # before anything was flushed
            continue
        assert found == list(range(len(found)))
        read.append(len(found))
    assert read == sorted(read)
    assert read[-1] == 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joints": ["a"]}, "do not name each"),
        ({"joints": ["a", "a"]}, "do not name each"),
        ({"pictures": "gif"}, "pictures is one of"),
        ({"fps": 0}, "fps and capacity are above 0"),
        ({"cameras": ["a.b", "a_b"]}, "have no topics of their own"),
    ],
)
def test_wrong_values_are_refused_before_a_folder_is_made(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        recorder(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_recording_replaces_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="exists already"):
        recorder(tmp_path)


# --- a real graph --------------------------------------------------------------------------------

READ_BY_ROS = """
import importlib, json, sys
from rclpy.serialization import deserialize_message
found = {}
for line in sys.stdin:
    kind, data = json.loads(line)
    package, _, name = kind.split("/")
    message = deserialize_message(
        bytes.fromhex(data), getattr(importlib.import_module(f"{package}.msg"), name))
    found.setdefault(kind, []).append(
        list(message.position) if name == "JointState"
        else [list(p.positions) for p in message.points] if name == "JointTrajectory"
        else bytes(message.data).hex() if name == "CompressedImage"
        else message.data)
print(json.dumps(found))
"""


@pytest.mark.ros
def test_a_run_on_a_real_graph_is_recorded_and_ros_reads_it(root: Path, tmp_path: Path) -> None:
    """Rates, what was sent and what was measured; every message is one to ROS itself too."""
    from omegaconf import OmegaConf

    from envs.ros.arm import RosArm
    from envs.ros.graph import ENVIRONMENT, RosGraph
    from scripts.import_bag import ImportConfig, import_bag
    from tests.test_configs import compose

    robot: Any = OmegaConf.to_object(
        compose("import_bag", "source=x", "out=y", "robot=bench").robot
    )
    with RosGraph("reach", cameras=["front"]) as graph:
        robot.url = graph.url
        arm = RosArm(robot)
        arm.start()
        try:
            until(lambda: (s := arm.read()).joints is not None and "front" in s.images)
            first = arm.read().joints
            assert first is not None
            rest = first.value
            with RunRecorder(
                tmp_path / "run",
                axes=arm.axes,
                joints=robot.names,
                cameras=["front"],
                fps=20,
                robot_type=robot.type,
                task="move",
            ) as record:
                begin = time.monotonic()
                while (now := time.monotonic()) < begin + 2.5:
                    record.observe(arm.read())
                    times = np.arange(1, 26) / 100
                    swing = 0.1 * np.sin(now - begin + times)[:, None] * np.eye(1, 8)
                    speed = 0.1 * np.cos(now - begin + times)[:, None] * np.eye(1, 8)
                    speed[-1] = 0
                    arm.send(times, rest + swing, speed, arm.generation)
                    sent = {"times": times, "positions": rest + swing, "velocities": speed}
                    record("command", now, sent)
                    time.sleep(0.01)
            done = record.close()
        finally:
            arm.close()
    assert done.problem == ""
    assert 100 < done.written[JOINTS] < 140  # 50 a second
    assert 40 < done.written["/run/camera/front/compressed"] < 60
    result = import_bag(ImportConfig(source=str(done.folder), out=str(tmp_path / "data")))
    assert result.episodes == 1
    (episode,) = result.found.episodes
    state, action = episode.segment.state[:, 0], episode.segment.action[:, 0]
    assert len(episode) > 40
    seconds = (episode.segment.times - episode.segment.times[0]) / 1e9
    phase = np.polyfit(seconds[:20], np.arcsin((action[:20] - rest[0]) / 0.1), 1)
    assert phase[0] == pytest.approx(1, abs=0.02)  # what was sent, at its pace
    assert np.abs(action[:-1] - state[1:]).max() < 0.02  # and the arm followed

    with AnyReader([done.folder]) as reader:
        lines = [(c.msgtype, data.hex()) for c, _, data in reader.messages()]
        ours = [
            (c.msgtype, reader.deserialize(data, c.msgtype)) for c, _, data in reader.messages()
        ]
    theirs = subprocess.run(
        [str(ENVIRONMENT / "bin/python"), "-c", READ_BY_ROS],
        input="\n".join(json.dumps(line) for line in lines),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    read = json.loads(theirs.stdout)
    values: dict[str, Callable[[Any], Any]] = {
        "sensor_msgs/msg/JointState": lambda m: m.position.tolist(),
        "trajectory_msgs/msg/JointTrajectory": lambda m: [p.positions.tolist() for p in m.points],
        "sensor_msgs/msg/CompressedImage": lambda m: bytes(m.data).hex(),
        "std_msgs/msg/String": lambda m: m.data,
    }
    for kind, value in values.items():
        assert read[kind] == [value(message) for name, message in ours if name == kind]
