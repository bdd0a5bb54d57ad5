"""LeRobot datasets of formats before v3.0 are named, with a command that really converts them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import motion, square
from worldmodel.data import DataConfig, open_data
from worldmodel.data.errors import VersionError
from worldmodel.data.hdf5 import find_files

FPS = 20
CAMERA = "observation.images.front"


def write_v21(root: Path, lengths: tuple[int, ...] = (8, 12, 10), version: str = "v2.1") -> Path:
    """A dataset in the format of LeRobot 0.3: a data file and a video an episode, JSON lines."""
    rng = np.random.default_rng(0)
    (root / "meta").mkdir(parents=True)
    records, stats = [], []
    begin = 0
    for episode, length in enumerate(lengths):
        states, actions = motion(rng, length, 2, 2, FPS)
        columns = {"observation.state": states, "action": actions}
        numbers = {
            "timestamp": (np.arange(length) / FPS).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode),
            "index": begin + np.arange(length),
            "task_index": np.zeros(length, np.int64),
        }
        begin += length
        data = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        vectors = {k: pa.array(v.tolist(), pa.list_(pa.float32(), 2)) for k, v in columns.items()}
        pq.write_table(pa.table(vectors | numbers), data)

        video = root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(video), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"g": "2", "crf": "10"})
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for state in states:
                frame = av.VideoFrame.from_ndarray(square(state, 32, 32, 0), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

        records.append({"episode_index": episode, "tasks": ["push"], "length": length})
        of = {
            key: {
                "min": np.atleast_1d(v.min(0)).tolist(),
                "max": np.atleast_1d(v.max(0)).tolist(),
                "mean": np.atleast_1d(v.mean(0)).tolist(),
                "std": np.atleast_1d(v.std(0)).tolist(),
                "count": [length],
            }
            for key, v in (columns | numbers).items()
        }
        colour = {name: [[[v]]] * 3 for name, v in (("min", 0.0), ("max", 1.0), ("mean", 0.5))}
        of[CAMERA] = colour | {"std": [[[0.1]]] * 3, "count": [length]}
        stats.append({"episode_index": episode, "stats": of})

    scalar = {"shape": [1], "names": None}
    features = {
        CAMERA: {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "timestamp": {"dtype": "float32", **scalar},
        **{
            key: {"dtype": "int64", **scalar}
            for key in ("frame_index", "episode_index", "index", "task_index")
        },
    }
    info = {
        "codebase_version": version,
        "robot_type": "square",
        "total_episodes": len(lengths),
        "total_frames": begin,
        "total_tasks": 1,
        "total_videos": len(lengths),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
        "episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    tasks = [{"task_index": 0, "task": "push"}]
    for name, rows in (("tasks", tasks), ("episodes", records), ("episodes_stats", stats)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"meta/{name}.jsonl").write_text(lines)
    return root


def refusal(root: Path | str) -> str:
    with pytest.raises(VersionError) as caught:
        open_data(DataConfig(root=str(root)), progress=False)
    return str(caught.value)


def command_in(message: str) -> list[str]:
    """The shell command that an error names, without what it says about it in brackets."""
    start = message.index("python -m lerobot.scripts.")
    return shlex.split(message[start : message.index(" (in place", start)])


@pytest.mark.slow
def test_the_command_that_is_named_converts(tmp_path: Path) -> None:
    """As it stands: offline, in place, with a space in the path; the original is kept."""
    root = write_v21(tmp_path / "my data" / "push it")
    message = refusal(root)
    assert "is in LeRobot's format v2.1; v3.0 is needed" in message
    python, *arguments = command_in(message)
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    data = open_data(
        DataConfig(root=str(root), image_size=32, validation=0, cache_dir=str(tmp_path / "cache")),
        progress=False,
    )
    states, actions = motion(np.random.default_rng(0), 8, 2, 2, FPS)
    batch = data.train.batch(np.arange(8), future=False)
    np.testing.assert_array_equal(batch.state[:, 0], states)
    np.testing.assert_array_equal(batch.action[:, 0], actions)
    seen = batch.video["front"][:, 0].permute(0, 2, 3, 1).numpy().astype(int)
    expected = np.stack([square(state, 32, 32, 0) for state in states]).astype(int)
    assert np.abs(seen - expected).mean() < 4  # yuv420p
    assert data.spec.tasks == ("push",)
    assert (tmp_path / "my data/push it_old/meta/episodes.jsonl").is_file()


def test_it_is_named_from_inside_and_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_v21(tmp_path / "push")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)
    for given in (".", tmp_path / "link"):
        command = command_in(refusal(given))
        assert f"--root={root.resolve()}" in command
        assert "--repo-id=push" in command
        assert "--push-to-hub=false" in command


def test_a_copy_that_the_converter_would_take_instead_is_moved_first(tmp_path: Path) -> None:
    """With ROOT_old there, LeRobot's converter deletes ROOT and converts the other."""
    root = write_v21(tmp_path / "push")
    shutil.copytree(root, tmp_path / "push_old")
    assert f"mv {tmp_path / 'push_old'} SOMEWHERE_ELSE && python -m lerobot" in refusal(root)


def test_a_step_more_for_v20(tmp_path: Path) -> None:
    message = refusal(write_v21(tmp_path / "push", version="v2.0"))
    first, second = "convert_dataset_v20_to_v21", "convert_dataset_v21_to_v30"
    assert message.index(first) < message.index(second)
    assert "lerobot==0.3.3" in message


def test_the_import_names_it_too(tmp_path: Path) -> None:
    with pytest.raises(VersionError, match="convert_dataset_v21_to_v30 --repo-id=push"):
        find_files(str(write_v21(tmp_path / "push")))
