"""Importing recordings of ROS: frames hold what was newest, and no interruption changes that."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from envs.ros.bags import Bag, BagError
from envs.ros.episodes import camera_name
from envs.ros.frames import Ages, Commands, Motion, Series, cut
from envs.ros.recording import RunRecorder
from envs.ros.robot import CameraConfig, GripperConfig, JointConfig, RobotConfig
from policies.deployment.runtime import State
from scripts.import_bag import ImportConfig, import_bag, run, summary
from tests.bag_files import BEGIN, KINDS, BagFile, shown, write_demo
from tests.envs.ros.test_recording import Arrival, Reading, shot
from tests.policies.deployment.arms import AXES, FINE, SPEC, TICK, Bench
from tests.scripts.test_import_hdf5 import content, pictures
from tests.test_configs import compose
from worldmodel.data import DataConfig, open_data

FPS = 20
VIDEO = "observation.images.front"


def configure(source: Path | str, out: Path, **changes: Any) -> ImportConfig:
    values: dict[str, Any] = {
        "fps": FPS,
        "task": "lift the cube",
        "joints": ["a", "b"],
        "command": ["/command"],
        "min_seconds": 0.2,
        "out": str(out),
    }
    return ImportConfig(source=str(source), **(values | changes))


def table(root: Path) -> dict[str, np.ndarray]:
    found = pq.read_table(root / "data").sort_by("index")
    return {name: np.array(found[name].to_pylist()) for name in found.column_names}


def expected(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """State and action of `write_demo` at these times."""
    newest = np.floor(times * 50 + 1e-6) / 50
    target = np.minimum(np.floor((times + 1 / FPS) * 20 + 1e-6) / 20, times[-1])
    return (
        np.stack([newest, 10 + newest], 1).astype(np.float32),
        np.stack([target + 0.5, 10.5 + target], 1).astype(np.float32),
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))


# --- what comes out ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_hold_the_newest_of_everything(tmp_path: Path, kind: str) -> None:
    """Joints by name in the order asked for, targets of the next frame, pictures without loss."""
    source = write_demo(tmp_path, kind)
    result = import_bag(configure(source, tmp_path / "data"))
    found = table(tmp_path / "data")
    times = np.arange(result.frames) / FPS
    assert (result.episodes, result.frames) == (1, 41)
    state, action = expected(times)
    np.testing.assert_allclose(found["observation.state"], state, atol=1e-6)
    np.testing.assert_allclose(found["action"], action, atol=1e-6)
    frames = pictures(tmp_path / "data")[VIDEO]
    for t, frame in zip(times, frames, strict=True):
        np.testing.assert_array_equal(frame, shown(math.floor(t * 25 + 1e-6)))
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert info["features"]["action"]["names"] == ["a.pos", "b.pos"]
    assert "next.success" not in info["features"]  # nobody knows


def test_lerobot_opens_it(demo: Path, tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    import_bag(configure(demo, tmp_path / "data"))
    data = LeRobotDataset("local/test", root=tmp_path / "data", video_backend="pyav")
    item = data[7]
    np.testing.assert_allclose(item["observation.state"], expected(np.array([7 / FPS]))[0][0])
    image = item[VIDEO].permute(1, 2, 0).numpy() * 255
    np.testing.assert_array_equal(image.round(), shown(8))
    assert item["task"] == "lift the cube"


def test_training_makes_windows_of_it(demo: Path, tmp_path: Path) -> None:
    import_bag(configure(demo, tmp_path / "data"))
    config = DataConfig(
        str(tmp_path / "data"),
        image_size=16,
        past=2,
        future=4,
        validation=0,
        cache_dir=str(tmp_path / "cache"),
    )
    opened = open_data(config, progress=False)
    assert opened.spec.action_kind == "absolute"
    assert opened.spec.action_names == opened.spec.state_names == ("a.pos", "b.pos")
    batch = opened.train.batch(np.arange(5))
    assert batch.video["front"].shape[:2] == (5, 6)
    assert np.isfinite(batch.action).all()


def test_a_training_run_takes_an_import(demo: Path, tmp_path: Path) -> None:
    from scripts.train import train

    import_bag(configure(demo, tmp_path / "data"))
    overrides = [
        "experiment=debug",
        f"data.root={tmp_path / 'data'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"out={tmp_path / 'run'}",
        "steps=2",
    ]
    config: Any = OmegaConf.to_object(compose("train", *overrides))
    assert train(config, Console(quiet=True)).steps == 2


def test_actions_without_commands_are_next_states(demo: Path, tmp_path: Path) -> None:
    result = import_bag(configure(demo, tmp_path / "data", command=None))
    found = table(tmp_path / "data")
    assert result.frames == 40  # the last frame has no next one
    np.testing.assert_array_equal(found["action"][:-1], found["observation.state"][1:])
    assert "next state (where the joints are one frame later" in "\n".join(summary(result))
    asked = import_bag(configure(demo, tmp_path / "asked", action="next_state"))
    assert content(tmp_path / "asked")["action"] == content(tmp_path / "data")["action"]
    assert asked.frames == 40


def test_a_robot_configuration_says_all(tmp_path: Path) -> None:
    """Joint order, features, crop and size of pictures, topics of arm and hand."""
    bag = BagFile(tmp_path)
    for k in range(101):
        bag.joints(k / 50, ["hand", "arm"], [k, 2 * k], topic="/robot/joint_states")
        if k % 2 == 0:
            bag.picture(k / 50, shown(k), "/eye/image_raw", raw=True)
        if k % 5 == 0:
            bag.trajectory(k / 50, ["arm"], [0.02], np.array([[k + 7.0]]), topic="/arm")
            bag.trajectory(k / 50, ["hand"], [0.02], np.array([[k - 7.0]]), topic="/hand")
    joint = JointConfig(low=-1, high=1, velocity=1, acceleration=1, jerk=1)
    robot = RobotConfig(
        name="mine",
        type="mine_v1",
        joints=[
            dataclasses.replace(joint, name="arm", feature="arm.angle"),
            dataclasses.replace(joint, name="hand"),
        ],
        joint_states="/robot/joint_states",
        command="/arm",
        gripper=GripperConfig(kind="trajectory", joint="hand", topic="/hand"),
        cameras={"eye": CameraConfig("/eye/image_raw", "raw", crop=[2, 4, 12, 16], size=[6, 8])},
    )
    path = bag.close()
    config = configure(path, tmp_path / "data", joints=None, command=None, robot=robot)
    result = import_bag(config)
    assert result.found.meaning.features == ("arm.angle", "hand.pos")
    found = table(tmp_path / "data")
    np.testing.assert_array_equal(found["observation.state"][4], [20, 10])
    # At the moment of the next frame the next command has just come, and moved nothing yet.
    np.testing.assert_array_equal(found["action"][5], [10 + 7, 10 - 7])
    assert pictures(tmp_path / "data")["observation.images.eye"].shape[1:] == (6, 8, 3)
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert info["robot_type"] == "mine_v1"
    # Its hand is left to itself: then it follows what is measured.
    robot.gripper = GripperConfig()
    alone = import_bag(dataclasses.replace(config, out=str(tmp_path / "alone")))
    assert "nobody commands hand: next state" in "\n".join(summary(alone))
    hand = table(tmp_path / "alone")
    np.testing.assert_array_equal(hand["action"][:-1, 1], hand["observation.state"][1:, 1])


def test_joints_may_come_in_parts_and_from_a_leader(tmp_path: Path) -> None:
    """Drivers that publish arm and hand in messages of their own; a leader with other names."""
    bag = BagFile(tmp_path)
    for k in range(101):
        bag.joints(k / 50, ["a"], [k])
        bag.joints(k / 50 + 0.001, ["b"], [-k])
        bag.joints(k / 50 + 0.002, ["x", "leader_b", "leader_a"], [0, -k - 5, k + 5], "/leader")
    names = {"command": ["/leader"], "command_joints": ["leader_a", "leader_b"]}
    config = configure(
        bag.close(), tmp_path / "data", cameras={}, joint_states="/joint_states", **names
    )
    import_bag(config)
    found = table(tmp_path / "data")
    # The first frame is at the first moment at which both joints were known: 1 ms.
    np.testing.assert_array_equal(found["observation.state"][4], [10, -10])
    np.testing.assert_array_equal(found["action"][3], [14, -14])


def test_stamps_may_count_instead_of_arrivals(tmp_path: Path) -> None:
    """Pictures that arrive 0.1 s late, and out of order, belong where they were taken."""
    bag = BagFile(tmp_path)
    late = [(k / 25 + (0.13 if k % 2 else 0.1), k) for k in range(51)]
    rows = [(k / 50, "joints", k) for k in range(120)] + [(t, "picture", k) for t, k in late]
    for t, what, k in sorted(rows):
        if what == "joints":
            bag.joints(t, ["a", "b"], [t, t])
        else:
            bag.picture(t, shown(k), stamp=k / 25)
    path = bag.close()
    config = configure(path, tmp_path / "data", command=None, clock="header")
    import_bag(config)
    state = table(tmp_path / "data")["observation.state"][:, 0]
    for t, frame in zip(state, pictures(tmp_path / "data")[VIDEO], strict=True):
        np.testing.assert_array_equal(frame, shown(math.floor((t + 1e-6) * 25)))


# --- time ----------------------------------------------------------------------------------------


def ns(seconds: Any) -> np.ndarray:
    return BEGIN + np.round(1e9 * np.asarray(seconds, float)).astype(np.int64)


def joints_at(seconds: np.ndarray) -> Series:
    return Series(ns(seconds), np.asarray(seconds, float)[:, None])


def test_commands_are_the_curves_that_a_controller_runs_along() -> None:
    """Cubic with velocities, straight without; replaced when the next arrives; held at the end."""
    curve = Motion(int(ns(1.0)), np.array([0.1, 0.3]), np.array([[1.0], [2.0]]), np.zeros((2, 1)))
    straight = Motion(int(ns(1.2)), np.array([0.1]), np.array([[5.0]]))
    commands = Commands(np.array([0]), [curve, straight])
    measured = joints_at(np.arange(0, 3, 0.01) * 0)
    measured = Series(ns(np.arange(0, 3, 0.01)), np.zeros((300, 1)))
    at = [0.9, 1.05, 1.1, 1.15, 1.199999, 1.25, 1.3, 1.7, 1.9]
    found, there = commands.sample(ns(at), measured, age=0.5)
    assert there.tolist() == [False] + [True] * 7 + [False]
    middle = 1 + 3 * 0.25**2 - 2 * 0.25**3  # a quarter of the way from rest to rest
    expected = [0, 0.5, 1, middle, 1.5, (1.5 + 5) / 2, 5, 5]
    np.testing.assert_allclose(found[:8, 0], expected, atol=1e-4)


def test_a_trajectory_starts_at_its_stamp(tmp_path: Path) -> None:
    bag = BagFile(tmp_path)
    for k in range(101):
        bag.joints(k / 50, ["a", "b"], [0, 0])
    bag.trajectory(2.0, ["a", "b"], [0.5], np.ones((1, 2)), stamp=1.0)
    config = configure(bag.close(), tmp_path / "data", cameras={}, ages=Ages(command=5))
    import_bag(config)
    found = table(tmp_path / "data")["action"][:, 0]
    assert (found[:10] < 1).all()
    np.testing.assert_allclose(found[10:], 1)
    np.testing.assert_allclose(np.diff(found[:9]), 0.1, atol=1e-6)


@pytest.mark.parametrize("silent", ["joints", "front", "command"])
def test_a_silent_topic_splits_an_episode_where_it_is_too_old(silent: str) -> None:
    """No frame holds anything older than allowed, and every frame that could be there is."""
    rng = np.random.default_rng(0)
    ages = Ages(joints=0.1, camera=0.2, command=0.3)
    for _ in range(20):
        sources = {
            name: np.arange(0, 10, 0.03) + rng.uniform(0, 0.029, 334)
            for name in ("joints", "front", "command")
        }
        begin, long = rng.uniform(2, 7), rng.uniform(0.5, 2)
        left = sources[silent]
        sources[silent] = left[(left < begin) | (left > begin + long)]
        motions = [Motion(int(ns(t)), np.zeros(1), np.array([[t]])) for t in sources["command"]]
        segments, gaps = cut(
            joints_at(sources["joints"]),
            [Commands(np.array([0]), motions)],
            {"front": Series(ns(sources["front"]))},
            FPS,
            ages,
        )
        assert silent in {gap.what for gap in gaps}
        assert len(segments) == len(gaps) + 1
        for segment in segments:
            then = segment.times + round(1e9 / FPS)
            assert (np.diff(segment.times) == round(1e9 / FPS)).all()
            at = {
                "joints": (segment.state[:, 0], segment.times, ages.joints),
                "front": (sources["front"][segment.pictures["front"]], segment.times, ages.camera),
                "command": (segment.action[:, 0], then, ages.command),
            }
            for name, (taken, now, age) in at.items():
                assert ((now - BEGIN) / 1e9 - taken < age + 1e-5).all(), name
                newest = np.searchsorted(ns(sources[name]), now, side="right") - 1
                np.testing.assert_allclose(taken, sources[name][newest], atol=1e-5)


def test_a_pause_makes_two_episodes_or_an_error(tmp_path: Path) -> None:
    source = write_demo(tmp_path, pause=(0.8, 1.3))
    result = import_bag(configure(source, tmp_path / "data"))
    rows = pq.read_table(tmp_path / "data/meta/episodes").to_pylist()
    assert [r["name"] for r in rows] == ["demo#0", "demo#1"]
    assert "gap      demo: front missing or too old for 0.35 s at 1.00 s" in summary(result)[-2]
    frames = pictures(tmp_path / "data")[VIDEO]
    np.testing.assert_array_equal(frames[rows[1]["dataset_from_index"]], shown(33))
    with pytest.raises(BagError, match="front missing or too old for 0.35 s.*gaps=split"):
        import_bag(configure(source, tmp_path / "no", gaps="error"))
    only = import_bag(configure(source, tmp_path / "long", min_seconds=0.9))
    assert (only.episodes, only.found.short) == (1, 1)
    left = import_bag(configure(source, tmp_path / "left", skip=["demo#0"]))
    assert left.episodes == 1
    with pytest.raises(BagError, match="holds no stretch of 5 s.*the first gap: front missing"):
        import_bag(configure(source, tmp_path / "none", min_seconds=5))
    assert not (tmp_path / "none").exists()


# --- runs that were recorded ---------------------------------------------------------------------


def record_run(folder: Path, commands: bool = True, **changes: Any) -> float:
    """2 s of joints that are where they are told to be after 0.05 s; returns when it began."""
    with RunRecorder(
        folder,
        axes=["a.pos", "b.pos"],
        joints=["a", "b"],
        cameras=["front"],
        fps=FPS,
        robot_type="mine",
        task="reach",
        pictures="png",
        **changes,
    ) as record:
        begin = time.monotonic()
        for k in range(100):
            at = begin + k / 50
            joints = Arrival(np.array([k / 50, 0.0]), at, None, k + 1)
            images = {"front": Arrival(shot(k // 2), at, None, k // 2 + 1)}
            record.observe(Reading(joints, images))
            if k % 2 == 0 and commands:
                ahead = k / 50 + np.arange(1, 26) / 100
                positions = np.stack([ahead + 0.05, np.zeros(25)], 1)
                record("command", at, {"times": np.arange(1, 26) / 100, "positions": positions})
    return begin


def test_a_run_becomes_a_dataset_without_another_word(tmp_path: Path) -> None:
    """The action of a frame is what was really sent for the moment of the next one."""
    record_run(tmp_path / "run")
    result = import_bag(ImportConfig(source=str(tmp_path / "run"), out=str(tmp_path / "data")))
    found = table(tmp_path / "data")
    state, action = found["observation.state"], found["action"]
    assert result.episodes == 1
    assert result.frames >= 39
    np.testing.assert_allclose(action[:, 0], state[:, 0] + 0.05 + 1 / FPS, atol=0.021)
    assert result.found.meaning.command == ("/run/command",)
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert (info["robot_type"], info["fps"]) == ("mine", FPS)
    config = DataConfig(str(tmp_path / "data"), image_size=12, cache_dir=str(tmp_path / "cache"))
    opened = open_data(config, progress=False)
    assert opened.spec.tasks == ("reach",)
    assert opened.spec.action_kind == "absolute"


def test_actions_of_a_run_are_where_the_run_time_had_the_arm_commanded(tmp_path: Path) -> None:
    """The real run-time, its filter and recorder; judged from the arm's side. A hold between two
    motions ends an episode."""
    with RunRecorder(
        tmp_path / "run", axes=AXES, cameras=["front"], fps=SPEC.fps, task="swing", pictures="raw"
    ) as record:
        bench = Bench(noise=0.03, recorder=record)

        def run(seconds: float) -> None:
            for _ in range(round(seconds / TICK)):
                record.observe(bench.arm.read())
                bench.tick()

        run(0.3)
        for _ in range(2):
            bench.ask("arm")
            run(2.0)
            assert bench.runtime.state is State.RUNNING, bench.runtime.reason
            bench.ask("hold")
            run(1.5)
    assert record.problem == ""
    result = import_bag(ImportConfig(source=str(tmp_path / "run"), out=str(tmp_path / "data")))
    assert [e.name for e in result.found.episodes] == ["run#0", "run#1"]
    assert [g.what for g in result.found.gaps["run"]] == ["command"]
    with Bag(tmp_path / "run") as bag:
        epoch = next(at for at, _ in bag.messages("/run/joint_states")) - round(1e9 * TICK)
        points = [m["position"] for _, m in bag.messages("/run/points")]
        said = [json.loads(m["data"]) for _, m in bag.messages("/run/events")]
    path = np.stack(bench.arm.path)
    for episode in result.found.episodes:
        assert len(episode) > 40
        then = (episode.segment.times - epoch) / 1e9 + 1 / SPEC.fps
        commanded = path[np.round(then / FINE).astype(int) - 1]
        assert np.abs(episode.segment.action - commanded).max() < 2e-3
        assert np.ptp(commanded, axis=0).min() > 0.2
    clips = [set(e["reasons"].values()) for e in said if e["kind"] == "clip"]
    told = Counter(reason for reasons in clips for reason in reasons)
    assert told == bench.runtime.figures.clips
    assert told
    assert len(points) >= 2 * 195  # at controller rate
    words = [e["what"] for e in said if e["kind"] == "event"]
    assert words.count("the operator asked to hold") == 2


@pytest.mark.parametrize("changes", [{"commands": False}, {"dry_run": True}])
def test_of_a_run_that_commanded_nothing_actions_are_next_states(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    record_run(tmp_path / "run", **changes)
    result = import_bag(ImportConfig(source=str(tmp_path / "run"), out=str(tmp_path / "data")))
    assert result.found.meaning.command == ()
    found = table(tmp_path / "data")
    np.testing.assert_array_equal(found["action"][:-1], found["observation.state"][1:])


def test_a_run_that_was_killed_is_read_to_its_end(tmp_path: Path) -> None:
    record_run(tmp_path / "run")
    file = tmp_path / "run/run.mcap"
    whole = file.read_bytes()
    (tmp_path / "run/metadata.yaml").unlink()
    file.write_bytes(whole[: whole.index(b"serialized_metadata") - 40])
    result = import_bag(ImportConfig(source=str(tmp_path / "run"), out=str(tmp_path / "data")))
    assert result.frames >= 39
    assert "never finished, read to where it ends: run" in "\n".join(summary(result))


def test_a_run_of_another_robot_is_refused(tmp_path: Path) -> None:
    record_run(tmp_path / "run")
    robot: Any = OmegaConf.to_object(compose("import_bag", "source=x", "out=y", "robot=ur5e")).robot  # type: ignore[union-attr]
    with pytest.raises(BagError, match="joints ..a., .b.., ur5e has"):
        import_bag(
            ImportConfig(source=str(tmp_path / "run"), out=str(tmp_path / "data"), robot=robot)
        )


# --- interrupted ---------------------------------------------------------------------------------


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("frames", [1, 50, 100])
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    from envs.dataset import DatasetWriter

    source = tmp_path / "source"
    for i in range(3):
        write_demo(source, name=f"demo_{i}", seed=i)
    import_bag(configure(source, tmp_path / "whole", commit_every=1))
    whole = content(tmp_path / "whole")
    assert [name for name, *_ in whole["names"]] == ["demo_0", "demo_1", "demo_2"]

    def stop(what: str, done: int, total: int) -> None:
        if what == "frames" and done == frames:
            monkeypatch.setattr(DatasetWriter, "commit", lambda self: None)
            raise _KilledError

    out = tmp_path / "data"
    with pytest.raises(_KilledError):
        import_bag(configure(source, out, commit_every=1), stop)
    monkeypatch.undo()
    result = import_bag(configure(source, out, commit_every=1))
    assert result.imported == 3 - frames // 41
    assert content(out) == whole
    assert not list(out.rglob("*.part"))
    assert import_bag(configure(source, out)).imported == 0


def test_an_import_goes_on_only_as_what_it_was(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    import_bag(configure(demo, out))
    for name, value in {
        "fps": 10,
        "task": "other",
        "joints": ["b", "a"],
        "ages": Ages(joints=0.2),
        "crf": 9,
    }.items():
        with pytest.raises(ValueError, match=f"begun with .*{name}="):
            import_bag(configure(demo, out, **{name: value}))
    with pytest.raises(ValueError, match="begun with"):
        import_bag(configure(write_demo(tmp_path, seed=1), out))


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"joint_states": "/joint_state"}, "Did you mean '/joint_states'?.*in all /camera/front"),
        ({"joint_states": "/command"}, "Float64MultiArray, expected JointState.*there are /joint_"),
        (
            {"joints": ["a", "c"]},
            r"/joint_states has no joints \['c'\]; it has \['a', 'b', 'other'",
        ),
        ({"joints": ["a", "a"]}, "named, each once"),
        ({"cameras": {"front": "/front"}}, "has no topic /front.*it has /camera/front/compressed"),
        ({"command": ["/cmd"]}, "has no topic /cmd"),
        ({"command": ["/camera/front/compressed"]}, "expected JointTrajectory or Float64"),
        ({"command": None, "action": "command"}, r"needs command=\[TOPIC\].*/command"),
        ({"joints": ["a"]}, "has 2 values for 1 joints"),
        ({"command_joints": ["a"]}, "command_joints names each"),
        ({"fps": None}, "fps is missing"),
        ({"fps": 0}, "fps is 0"),
        ({"task": None}, 'say task="..."'),
        ({"action": "x"}, "action is one of"),
        ({"clock": "x"}, "clock is one of"),
        ({"gaps": "x"}, "gaps is one of"),
        ({"crf": 60}, "0 .lossless. to 51"),
        ({"min_seconds": -1}, "at least 0"),
        ({"skip": ["demo"]}, "skip leaves none of the 1"),
        ({"skip": ["demo_7"]}, "skip names"),
    ],
)
def test_wrong_values_are_explained_before_anything_is_written(
    demo: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        import_bag(configure(demo, tmp_path / "data", **changes))
    assert not (tmp_path / "data").exists()


def test_what_is_there_instead_of_recordings_is_named(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for source, words in (
        (tmp_path / "notes.txt", "notes.txt is no recording: known are .bag, .mcap, .db3"),
        (tmp_path, "holds no recordings .*it holds notes.txt"),
        (demo.parent / "demp", "there is no recording .*Did you mean 'demo'?"),
        (tmp_path / "*.bag", "there is no recording"),
    ):
        with pytest.raises(BagError, match=words):
            import_bag(configure(source, tmp_path / "data"))
    with pytest.raises(FileExistsError, match="choose another out="):
        import_bag(configure(demo, tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_recordings_that_differ_are_not_mixed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_demo(source, name="demo_1")
    bag = BagFile(source, name="demo_2")
    for k in range(101):
        bag.joints(k / 50, ["a", "b"], [0, 0])
        bag.picture(k / 50, shown(k, (8, 8)))
        bag.array(k / 50, [0, 0])
    bag.close()
    with pytest.raises(BagError, match="demo_2: front is 8x8, that of the recordings before it 16"):
        import_bag(configure(source, tmp_path / "data"))
    assert import_bag(configure(source, tmp_path / "data", skip=["demo_2"])).episodes == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bag: bag.joints(1.5, ["a", "b"], [np.nan, 0]), "/joint_states, message .*not fin"),
        (lambda bag: bag.joints(1.5, ["a", "b"], [0]), "/joint_states, message .*1 of 2 values"),
        (lambda bag: bag.array(1.5, [np.inf, 0]), "/command, message .*no numbers"),
    ],
)
def test_messages_that_mean_nothing_are_named(
    tmp_path: Path, change: Callable[[BagFile], None], words: str
) -> None:
    bag = BagFile(tmp_path)
    for k in range(75):
        bag.joints(k / 50, ["a", "b"], [0, 0])
        bag.array(k / 50, [0, 0])
    change(bag)
    with pytest.raises(BagError, match=words):
        import_bag(configure(bag.close(), tmp_path / "data", cameras={}))


def test_a_picture_that_cannot_be_decoded_is_skipped_without_starting_again(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    write_demo(source, name="demo_1")
    bag = BagFile(source, name="demo_2")
    for k in range(101):
        bag.joints(k / 50, ["a", "b"], [0, 0])
        bag.array(k / 50, [0, 0])
        kind = "sensor_msgs/msg/CompressedImage"
        if k == 50:
            message = bag.store.types[kind](bag._header(1), "png", np.zeros(9, np.uint8))
            bag.write("/camera/front/compressed", kind, k / 50, message)
        else:
            bag.picture(k / 50, shown(k))
    bag.close()
    out = tmp_path / "data"
    with pytest.raises(BagError, match=r"front, picture 50.*cannot be decoded.*skip=\['demo_2'\]"):
        import_bag(configure(source, out))
    assert [name for name, *_ in content(out)["names"]] == ["demo_1"]


@pytest.mark.parametrize("kind", ["mcap file", "db3 file", "bag", "mcap"])
def test_damaged_files_are_read_or_refused_by_name(tmp_path: Path, kind: str) -> None:
    """Cut off or with bytes changed anywhere: a `BagError`, or what can be read; nothing else."""
    source = write_demo(tmp_path, kind, seconds=0.6)
    broken = source if source.is_file() else next(source.glob("*.mcap"))
    whole = broken.read_bytes()
    rng = random.Random(0)
    refused: list[str] = []
    for number in range(40):
        data = bytearray(whole)
        if number % 2:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice((1, 20, 300))):
                data[rng.randrange(len(data))] = rng.randrange(256)
        broken.write_bytes(data)
        try:
            with Bag(source) as bag:
                for topic in bag.types:
                    if topic in ("/joint_states", "/command", "/camera/front/compressed"):
                        list(bag.messages(topic))
        except BagError as error:
            refused.append(str(error))
    assert len(refused) > 5
    assert all(str(source) in words for words in refused)


@pytest.mark.parametrize("name", ["x.mcap", "x.db3", "x.bag"])
@pytest.mark.parametrize("data", [b"", b"not a recording", bytes(5000)])
def test_foreign_files_are_refused_by_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BagError, match=f"{name} cannot be read as a recording of ROS"):
        import_bag(configure(tmp_path / name, tmp_path / "data"))


@pytest.mark.parametrize(
    ("given", "words"),
    [([], "source is missing"), (["source=x"], "out is missing"),
     (["source=no/such.bag", "out=y"], "there is no recording no/such.bag"),
     (["source=x", "out=y", "ages.joints=0"], "ages.joints must be above 0")],
)  # fmt: skip
def test_what_is_missing_is_asked_for(given: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        run.__wrapped__(compose("import_bag", *given))


def test_the_configuration_composes_into_the_dataclass() -> None:
    config: Any = OmegaConf.to_object(compose("import_bag", "source=a/*.bag", "out=b", "fps=20"))
    assert config == ImportConfig(source="a/*.bag", out="b", fps=20)
    robot: Any = OmegaConf.to_object(
        compose("import_bag", "source=a", "out=b", "robot=panda", "robot.joint_states=/mine")
    )
    assert robot.robot.joint_states == "/mine"
    assert robot.robot.names[0] == "panda_joint1"
    assert isinstance(robot.robot.joints[0], JointConfig)


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("/camera/front/compressed", "front"),
        ("/wrist_camera/color/image_raw/compressed", "wrist_camera"),
        ("/camera/image_raw", "camera"),
        ("/left/camera/image_raw", "left"),
    ],
)
def test_cameras_are_called_by_what_tells_them_apart(topic: str, name: str) -> None:
    assert camera_name(topic) == name
