"""The dataset writer: LeRobot reads what was written, and no moment is a bad one to be killed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

import envs
from envs import dataset
from envs.dataset import DatasetWriter
from envs.recording import Episode, decode_state, record

CAMERAS = ("front", "wrist")
SIZE = (16, 24)


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    env: Any = envs.make("reach", image_size=SIZE, cameras=CAMERAS).unwrapped
    recorded = [record(env, seed) for seed in range(5)]
    env.close()
    return recorded


def open_writer(root: Path, **changes: Any) -> DatasetWriter:
    arguments: dict[str, Any] = {
        "fps": 20,
        "cameras": CAMERAS,
        "image_size": SIZE,
        "state_names": [f"s{i}" for i in range(8)],
        "action_names": [f"a{i}" for i in range(8)],
        "task": "Reach.",
        "robot_type": "arm",
        "source": {"seed": 0},
    }
    return DatasetWriter(root, **(arguments | changes))


def write(root: Path, episodes: list[Episode], per_commit: int = 2) -> None:
    """What a collection does: from where the dataset ends, commit by commit."""
    writer = open_writer(root)
    for attempt in range(writer.next_attempt, len(episodes)):
        writer.add(episodes[attempt], attempt)
        if (attempt + 1) % per_commit == 0:
            writer.commit()
    writer.commit()


def read(root: Path) -> dict[str, Any]:
    """The content, however it is spread over files: columns, pictures, records; checked."""
    info = json.loads((root / "meta/info.json").read_text())
    n = info["total_episodes"]
    table = pq.read_table(root / "data", filters=[("episode_index", "<", n)]).sort_by("index")
    assert len(table) == info["total_frames"]
    rows = pq.read_table(root / "meta/episodes", filters=[("episode_index", "<", n)])
    records = rows.sort_by("episode_index").to_pylist()
    content: dict[str, Any] = {name: table[name].to_pylist() for name in table.column_names}
    for feature in info["features"]:
        if not feature.startswith("observation.images"):
            continue
        frames = []
        for row in records:
            path = info["video_path"].format(
                video_key=feature,
                chunk_index=row[f"videos/{feature}/chunk_index"],
                file_index=row[f"videos/{feature}/file_index"],
            )
            with av.open(str(root / path)) as container:
                pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            begin = round(row[f"videos/{feature}/from_timestamp"] * info["fps"])
            frames.append(np.stack(pictures[begin : begin + row["length"]]))
            assert len(frames[-1]) == row["length"]
        content[feature] = np.concatenate(frames).tolist()
    content["seeds"] = [(row.get("seed"), row["attempt"], row.get("mode")) for row in records]
    content["stats"] = json.loads((root / "meta/stats.json").read_text())
    return content


def test_lerobot_reads_what_was_written(tmp_path: Path, episodes: list[Episode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    write(tmp_path / "data", episodes)
    data = LeRobotDataset("local/test", root=tmp_path / "data", video_backend="pyav")
    assert data.meta.total_episodes == 5
    assert len(data) == sum(len(episode) for episode in episodes)
    assert data.meta.camera_keys == ["observation.images.front", "observation.images.wrist"]
    index = 0
    for episode in episodes:
        for t in (0, 17, len(episode) - 1):
            frame = data[index + t]
            for camera in CAMERAS:
                image = frame[f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255
                np.testing.assert_array_equal(image.round(), episode.images[camera][t])
            np.testing.assert_array_equal(frame["observation.state"], episode.state[t])
            np.testing.assert_array_equal(frame["action"], episode.action[t])
            assert frame["next.success"] == episode.success[t]
            assert frame["next.done"] == (t == len(episode) - 1)
            assert frame["task"] == "Reach."
            restored = decode_state(frame["simulator_state"].numpy())
            assert episode.simulator_state is not None
            np.testing.assert_array_equal(restored, episode.simulator_state[t])
        index += len(episode)


def test_a_world_that_cannot_be_restored_leaves_its_state_out(
    tmp_path: Path, episodes: list[Episode]
) -> None:
    write(tmp_path / "data", [replace(episode, simulator_state=None) for episode in episodes])
    assert (
        "simulator_state"
        not in json.loads((tmp_path / "data/meta/info.json").read_text())["features"]
    )
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("local", root=tmp_path / "data", video_backend="pyav")
    np.testing.assert_array_equal(data[0]["action"], episodes[0].action[0])


def test_kinds_of_episodes_are_told_apart(tmp_path: Path, episodes: list[Episode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    kinds = ["expert", "noise", "expert", "play", "failure"]
    write(tmp_path / "data", [replace(e, kind=k) for e, k in zip(episodes, kinds, strict=True)])
    data = LeRobotDataset("local", root=tmp_path / "data", video_backend="pyav")
    assert data.meta.features["demonstration"]["dtype"] == "bool"
    index = 0
    for number, kind in enumerate(kinds):
        assert data.meta.episodes[number]["kind"] == kind
        for t in (0, len(episodes[number]) - 1):
            assert data[index + t]["demonstration"] == (kind == "expert")
        index += len(episodes[number])
    write(tmp_path / "plain", episodes)
    assert "demonstration" not in read(tmp_path / "plain")


def test_a_collection_from_before_options_goes_on(tmp_path: Path, episodes: list[Episode]) -> None:
    old = {"seed": 0, "target": "hard"}
    open_writer(tmp_path / "data", source=old).add(episodes[0], 0)
    new = {"seed": 0, "options": {"target": "hard"}}
    assert open_writer(tmp_path / "data", source=new).total_episodes == 0
    with pytest.raises(ValueError, match="begun with options={'target': 'hard'}"):
        open_writer(tmp_path / "data", source=new | {"options": {}})


def test_windows_and_selected_episodes_work_too(tmp_path: Path, episodes: list[Episode]) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    write(tmp_path / "data", episodes)
    data = LeRobotDataset(
        "local/test",
        root=tmp_path / "data",
        video_backend="pyav",
        episodes=[1, 4],
        delta_timestamps={"action": [0.0, 0.05], "observation.images.front": [-0.05, 0.0]},
    )
    assert len(data) == len(episodes[1]) + len(episodes[4])
    frame = data[len(episodes[1]) + 3]
    np.testing.assert_array_equal(frame["action"], episodes[4].action[3:5])
    image = frame["observation.images.front"].permute(0, 2, 3, 1).numpy() * 255
    np.testing.assert_array_equal(image.round(), episodes[4].images["front"][2:4])


def test_statistics_are_those_of_the_data(tmp_path: Path, episodes: list[Episode]) -> None:
    write(tmp_path / "data", episodes)
    stats = read(tmp_path / "data")["stats"]
    action = np.concatenate([episode.action for episode in episodes]).astype(float)
    image = np.concatenate([episode.images["front"] for episode in episodes]) / 255
    for name in ("min", "max", "mean", "std"):
        expected = getattr(np, name)(action, axis=0)
        np.testing.assert_allclose(stats["action"][name], expected, atol=1e-9)
        expected = getattr(np, name)(image, axis=(0, 1, 2)).reshape(3, 1, 1)
        np.testing.assert_allclose(stats["observation.images.front"][name], expected, atol=1e-9)
    assert stats["action"]["count"] == [len(action)]
    for low, high in (("min", "q01"), ("q01", "q50"), ("q50", "q99"), ("q99", "max")):
        assert np.all(np.array(stats["action"][low]) <= np.array(stats["action"][high]) + 1e-9)
    assert "simulator_state" not in stats


def test_commits_do_not_show_in_the_content(tmp_path: Path, episodes: list[Episode]) -> None:
    write(tmp_path / "a", episodes, per_commit=1)
    write(tmp_path / "b", episodes, per_commit=5)
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    for name in a.keys() - {"stats"}:
        assert a[name] == b[name], name


def test_a_dataset_without_cameras_has_no_videos(tmp_path: Path, episodes: list[Episode]) -> None:
    writer = open_writer(tmp_path / "data", cameras=())
    writer.add(episodes[0], 0)
    writer.commit()
    assert not (tmp_path / "data/videos").exists()
    assert json.loads((tmp_path / "data/meta/info.json").read_text())["video_path"] is None


def test_episodes_of_another_origin(tmp_path: Path) -> None:
    """Pictures that are read as they are written, sizes per camera, a task per episode."""
    rng = np.random.default_rng(0)
    sizes = {"front": (16, 24), "wrist": (8, 12)}
    pictures = {c: rng.integers(0, 256, (5, *size, 3), np.uint8) for c, size in sizes.items()}
    vectors = rng.standard_normal((2, 5, 8)).astype(np.float32)
    writer = open_writer(tmp_path / "data", image_size=sizes, action_kind="delta")
    for number, task in enumerate(("Push.", "Pull.", "Push.")):
        frames = {camera: iter(images) for camera, images in pictures.items()}
        writer.append(frames, *vectors, task=task, attempt=number, record={"name": f"e{number}"})
        writer.commit()
    content = read(tmp_path / "data")
    assert content["task_index"] == [0] * 5 + [1] * 5 + [0] * 5
    for camera, images in pictures.items():
        assert content[f"observation.images.{camera}"] == 3 * images.tolist()
    assert content.keys().isdisjoint({"next.success", "simulator_state"})
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert info["total_tasks"] == 2
    assert info["features"]["action"]["info"] == {"action_kind": "delta"}
    assert info["features"]["observation.images.wrist"]["shape"] == [8, 12, 3]


def test_an_episode_whose_pictures_fail_is_not_there(tmp_path: Path) -> None:
    """Those before it are, though pictures of it are in the video already."""

    def fail(images: np.ndarray) -> Any:
        yield from images[:17]
        raise KeyError("lost")

    images, vectors = np.zeros((20, *SIZE, 3), np.uint8), np.zeros((2, 20, 8), np.float32)
    for bad, error in ((fail(images), KeyError), (images[:19], ValueError)):
        root = tmp_path / error.__name__
        writer = open_writer(root)
        good = {"front": images, "wrist": images + 7}
        writer.append(good, *vectors, attempt=0, record={})
        with pytest.raises(error):
            writer.append(good | {"wrist": bad}, *vectors, attempt=1, record={})
        writer.commit()
        again = open_writer(root)
        assert again.next_attempt == 1
        again.append(good, *vectors, attempt=1, record={})
        again.commit()
        table = pq.read_table(root / "data").sort_by("index")
        assert table["episode_index"].to_pylist() == [0] * 20 + [1] * 20
        rows = pq.read_table(root / "meta/episodes").sort_by("episode_index").to_pylist()
        assert [r["videos/observation.images.wrist/from_timestamp"] for r in rows] == [0, 0]


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("survived", range(7))
def test_killed_at_any_point_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, episodes: list[Episode], survived: int
) -> None:
    """After each of the renamings of the second commit: readable as it is, resumed as if whole."""
    root = tmp_path / "data"
    write(root, episodes[:2])
    before = read(root)

    renamings = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal renamings
        if renamings == survived:
            raise _KilledError
        renamings += 1
        real_replace(source, target)

    real_replace = os.replace
    with monkeypatch.context() as patched:
        patched.setattr(dataset.os, "replace", replace)
        try:
            write(root, episodes[:4])
            killed = False
        except _KilledError:
            killed = True
    assert killed == (survived < 6)  # two videos, data, records, statistics, totals

    content = read(root)
    if killed:
        assert content["seeds"] == before["seeds"]
        assert content["observation.images.front"] == before["observation.images.front"]
    write(root, episodes)
    write(tmp_path / "whole", episodes)
    resumed, whole = read(root), read(tmp_path / "whole")
    stats, expected = resumed.pop("stats"), whole.pop("stats")
    assert resumed == whole
    for feature, values in expected.items():
        for name, value in values.items():
            np.testing.assert_allclose(stats[feature][name], value, atol=1e-9)
    assert not list(root.rglob("*.part"))


def test_killed_before_the_first_commit(tmp_path: Path, episodes: list[Episode]) -> None:
    writer = open_writer(tmp_path / "data")
    writer.add(episodes[0], 0)
    del writer
    assert list((tmp_path / "data").rglob("*.part"))
    write(tmp_path / "data", episodes)
    assert read(tmp_path / "data")["seeds"] == [(e.seed, i, e.mode) for i, e in enumerate(episodes)]


def test_other_folders_and_other_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        open_writer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    open_writer(tmp_path / "data")
    with pytest.raises(ValueError, match="begun with seed=0 and cannot be resumed with seed=1"):
        open_writer(tmp_path / "data", source={"seed": 1})
