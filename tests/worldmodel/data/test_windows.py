"""Cached windows are LeRobotDataset's windows, padding included, and stay inside episodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.datasets import LeRobotDataset

from tests.datasets import write_dataset
from worldmodel.data import DataConfig, open_data, resize_frames
from worldmodel.data.source import open_source
from worldmodel.data.video import decode
from worldmodel.data.windows import Rows, Windows

SHAPE: dict[str, Any] = {"past": 3, "past_stride": 2, "future": 4, "future_stride": 3, "chunk": 6}
FRAMES = [-4, -2, 0, 3, 6, 9, 12]


def require_equal(root: Path, cache: Path, size, native, indices) -> None:
    data = open_data(
        DataConfig(root=str(root), image_size=size, validation=0, cache_dir=str(cache), **SHAPE),
        progress=False,
    )
    fps = data.spec.fps
    keys = data.keys[0]
    seen = [f / fps for f in FRAMES]
    deltas = {keys.state: seen, keys.action: [k / fps for k in range(SHAPE["chunk"])]}
    deltas |= dict.fromkeys(keys.images.values(), seen)
    reference = LeRobotDataset(
        "any/name", root=root, video_backend="pyav", return_uint8=True, delta_timestamps=deltas
    )
    assert len(data.train) == len(reference)
    window = data.train.batch(np.array(indices))
    for b, i in enumerate(indices):
        item = reference[i]
        for camera, key in keys.images.items():
            frames = item[key]
            if frames.dtype != torch.uint8:  # images in parquet files come as floats
                frames = (frames * 255).round().to(torch.uint8)
            expected = frames if native else resize_frames(frames, data.spec.image_size)
            assert torch.equal(window.video[camera][b], expected)
            assert torch.equal(window.frame_valid[b], ~item[f"{key}_is_pad"])
        # Vectors of size 1 are scalars to LeRobot.
        assert torch.equal(window.state[b], item[keys.state].reshape(window.state[b].shape))
        assert torch.equal(window.action[b], item[keys.action].reshape(window.action[b].shape))
        assert torch.equal(window.frame_valid[b], ~item[f"{keys.state}_is_pad"])
        assert torch.equal(window.action_valid[b], ~item[f"{keys.action}_is_pad"])
        assert data.spec.tasks[window.task[b]] == item["task"]
        assert data.train.episode_of[i] == item["episode_index"]
        assert data.train.frame_of[i] == item["frame_index"]


def test_equals_lerobot_at_native_size(squares: Path, tmp_path: Path) -> None:
    require_equal(squares, tmp_path, 32, True, [0, 1, 5, 19, 20, 21, 22, 23, 36, 37, 50, 61])


def test_equals_lerobot_and_resize(squares: Path, tmp_path: Path) -> None:
    require_equal(squares, tmp_path, [20, 24], False, [0, 10, 21, 40, 61])


def test_equals_lerobot_with_two_cameras_and_odd_sizes(tmp_path: Path) -> None:
    root = write_dataset(
        tmp_path / "d", length=12, cameras=("a", "b.c"), size=(32, 48), state_dim=1, action_dim=7
    )
    require_equal(root, tmp_path, [32, 48], True, [0, 11, 12, 30])


def test_equals_lerobot_with_images(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", length=9, cameras=("front",), use_videos=False)
    require_equal(root, tmp_path, 32, True, [0, 8, 9, 20])


def test_equals_lerobot_without_a_camera(blind: Path, tmp_path: Path) -> None:
    require_equal(blind, tmp_path, 64, True, list(range(0, 120, 7)))


def test_equals_lerobot_with_many_small_files(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d", episodes=3, length=8, file_per_episode=True)
    assert len(list(root.rglob("*.mp4"))) == 3
    require_equal(root, tmp_path, 32, True, [0, 7, 8, 16, 23])


def test_equals_lerobot_on_a_real_recording(humanoid: Path, tmp_path: Path) -> None:
    require_equal(humanoid, tmp_path, [48, 64], False, [0, 220, 221, 700, 1304])


def test_decodes_a_real_recording_as_lerobot_does(humanoid: Path) -> None:
    source = open_source(str(humanoid))
    key = "observation.images.cam_high"
    reference = LeRobotDataset("any/name", root=humanoid, video_backend="pyav", return_uint8=True)
    wanted = {0, 1, 220, 221, 222}
    for row, frame in decode(source, key):
        if row in wanted:
            assert torch.equal(torch.from_numpy(frame).permute(2, 0, 1), reference[row][key])
            wanted.remove(row)
        if not wanted:
            break
    assert not wanted


def test_two_roots_are_one_after_the_other(squares: Path, tmp_path: Path) -> None:
    other = write_dataset(
        tmp_path / "d", episodes=2, length=10, size=(40, 48), seed=5, tasks=("right", "new")
    )

    def opened(root):
        config = DataConfig(root=root, image_size=32, validation=0, cache_dir=str(tmp_path))
        return open_data(config, progress=False)

    both, first, second = (
        opened([str(squares), str(other)]),
        opened(str(squares)),
        opened(str(other)),
    )
    assert len(both.train) == len(first.train) + len(second.train)
    assert both.spec.tasks == ("left", "right", "new")
    assert both.train_episodes == list(range(6))
    n = len(first.train)
    mixed = both.train.batch(np.array([n + 3, 2, n, n - 1, n + 19]))
    for b, (windows, i) in enumerate(
        [(second, 3), (first, 2), (second, 0), (first, n - 1), (second, 19)]
    ):
        alone = windows.train.batch(np.array([i]))
        assert torch.equal(mixed.video["front"][b], alone.video["front"][0])
        assert torch.equal(mixed.state[b], alone.state[0])
        assert torch.equal(mixed.action[b], alone.action[0])
        assert torch.equal(mixed.frame_valid[b], alone.frame_valid[0])
        assert both.spec.tasks[mixed.task[b]] == windows.spec.tasks[alone.task[0]]


def test_without_the_future_only_the_past_is_read(squares: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(squares), image_size=32, cache_dir=str(tmp_path), past=3)
    windows = open_data(config, progress=False).train
    indices = np.arange(0, len(windows), 4)
    whole, past = windows.batch(indices), windows.batch(indices, future=False)
    assert past.video["front"].shape[1] == past.state.shape[1] == past.frame_valid.shape[1] == 3
    assert torch.equal(past.video["front"], whole.video["front"][:, :3])
    assert torch.equal(past.state, whole.state[:, :3])
    assert torch.equal(past.action, whole.action)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    past=st.integers(1, 4),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    future=st.integers(0, 5),
    chunk=st.integers(1, 12),
    cut=st.integers(0, 40),
)
def test_windows_never_leave_their_episode(lengths, past, strides, future, chunk, cut) -> None:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    episode = np.repeat(np.arange(len(lengths)), lengths)
    frame = np.arange(ends[-1]) - starts[episode]
    told = np.stack([episode, frame], 1).astype(np.float32)
    cut = min(cut, int(ends[-1]))
    windows = Windows(
        frames={"c": Rows([told[:cut], told[cut:]])},
        state=Rows([told]),
        action=Rows([told]),
        task=np.zeros(len(told), np.int64),
        episodes=[(i, int(s), n) for i, (s, n) in enumerate(zip(starts, lengths, strict=True))],
        past_offsets=np.arange(1 - past, 1) * strides[0],
        future_offsets=np.arange(1, future + 1) * strides[1],
        chunk=chunk,
    )
    everything = windows.batch(np.arange(len(windows)))
    assert len(windows) == ends[-1]
    assert torch.equal(everything.video["c"], everything.state)
    offsets = [*range((1 - past) * strides[0], 1, strides[0])]
    offsets += [strides[1] * (i + 1) for i in range(future)]
    for i in range(len(windows)):
        e, now = int(windows.episode_of[i]), int(windows.frame_of[i])
        for vectors, valid, wanted in (
            (everything.state[i], everything.frame_valid[i], [now + o for o in offsets]),
            (everything.action[i], everything.action_valid[i], [now + k for k in range(chunk)]),
        ):
            assert (vectors[:, 0] == e).all()
            inside = [0 <= w < lengths[e] for w in wanted]
            assert valid.tolist() == inside
            nearest = [min(max(w, 0), lengths[e] - 1) for w in wanted]
            assert vectors[:, 1].tolist() == nearest


def test_batches_own_their_memory(squares: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(squares), image_size=32, cache_dir=str(tmp_path))
    windows = open_data(config, progress=False).train
    first = windows.batch(np.array([0, 1]))
    copy = first.video["front"].clone()
    first.video["front"].zero_()
    assert torch.equal(windows.batch(np.array([0, 1])).video["front"], copy)


def test_a_window_that_is_not_there(squares: Path, tmp_path: Path) -> None:
    windows = open_data(
        DataConfig(root=str(squares), image_size=32, cache_dir=str(tmp_path)), progress=False
    ).train
    with pytest.raises(IndexError, match=f"there are {len(windows)}"):
        windows.batch(np.array([0, len(windows)]))
    with pytest.raises(IndexError):
        windows.batch(np.array([-1]))
    assert len(windows.batch(np.array([], np.int64)).index) == 0
