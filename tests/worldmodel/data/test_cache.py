"""The frame cache: built once, built whole or not at all, by one process at a time."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.datasets import write_dataset
from worldmodel.data import DataConfig, cache, open_data
from worldmodel.data.errors import CacheSpaceError


def config(root: Path, directory: Path, **options) -> DataConfig:
    return DataConfig(root=str(root), image_size=32, cache_dir=str(directory), **options)


def files(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.suffix != ".lock")


def first_frames(root: Path, directory: Path) -> torch.Tensor:
    data = open_data(config(root, directory), progress=False)
    return data.train.batch(np.arange(4)).video["front"]


def test_built_once_and_contiguous(squares: Path, tmp_path: Path, monkeypatch) -> None:
    frames = first_frames(squares, tmp_path)
    (name,) = files(tmp_path)
    with h5py.File(tmp_path / name) as file:
        assert all(d.chunks is None for d in (file["state"], file["frames/front"]))
        assert file["frames/front"].id.get_offset() % cache.PAGE == 0
        assert file.attrs["source"]
    monkeypatch.setattr(cache, "_build", None)  # would raise if it were called
    assert torch.equal(first_frames(squares, tmp_path), frames)


def test_other_sizes_and_other_content_have_their_own_file(tmp_path: Path) -> None:
    root, directory = write_dataset(tmp_path / "d", length=6), tmp_path / "cache"
    open_data(config(root, directory), progress=False)
    open_data(DataConfig(root=str(root), image_size=16, cache_dir=str(directory)), progress=False)
    assert len(files(directory)) == 2
    video = next(root.rglob("*.mp4"))
    os.utime(video, ns=(0, 0))  # as an edit in place would
    open_data(config(root, directory), progress=False)
    assert len(files(directory)) == 3


def test_the_users_cache_folder(squares: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SELFFLOW_CACHE", str(tmp_path / "mine"))
    open_data(DataConfig(root=str(squares), image_size=32), progress=False)
    assert len(files(tmp_path / "mine")) == 1
    monkeypatch.delenv("SELFFLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_cache_dir() == tmp_path / "xdg" / "selfflow"


def test_a_damaged_file_is_built_anew(squares: Path, tmp_path: Path, caplog) -> None:
    frames = first_frames(squares, tmp_path)
    (name,) = files(tmp_path)
    os.truncate(tmp_path / name, 5000)
    assert torch.equal(first_frames(squares, tmp_path), frames)
    assert "damaged" in caplog.text


def test_a_disk_too_small_is_noticed_before(squares: Path, tmp_path: Path, monkeypatch) -> None:
    usage = cache.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheSpaceError, match=r"needs [\d,]+ bytes, 1,000 are free"):
        open_data(config(squares, tmp_path), progress=False)
    assert files(tmp_path) == []


@pytest.mark.parametrize("when", ["reserving", "writing"])
def test_a_disk_that_fills_up_leaves_nothing(
    squares: Path, tmp_path: Path, monkeypatch, when: str
) -> None:
    def full(*args):
        if when == "reserving":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise OSError("Can't write data (file write failed: errno = 28, error message = '...')")

    if when == "reserving":
        monkeypatch.setattr(cache.os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(cache, "_fill", full)
    with pytest.raises(CacheSpaceError, match="data.cache_dir"):
        open_data(config(squares, tmp_path), progress=False)
    assert files(tmp_path) == []


def test_other_failures_leave_nothing_either(squares: Path, tmp_path: Path, monkeypatch) -> None:
    def fail(*args):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(cache, "_fill", fail)
    with pytest.raises(PermissionError):
        open_data(config(squares, tmp_path), progress=False)
    assert files(tmp_path) == []


def build_slowly(root: Path, directory: Path, builders, results) -> None:
    """In a process of its own: build, a while a frame, and tell what was built and read."""
    torch.set_num_threads(1)
    decode, builds = cache.decode, []

    def slow(*args):
        builds.append(1)
        builders.put(os.getpid())
        for pair in decode(*args):
            time.sleep(0.02)
            yield pair

    cache.decode = slow
    total = int(first_frames(root, directory).long().sum())
    results.put((len(builds), total))


def test_of_three_at_once_one_is_killed_one_builds_and_one_waits(tmp_path: Path) -> None:
    root, directory = write_dataset(tmp_path / "d", length=20), tmp_path / "cache"
    spawn = multiprocessing.get_context("spawn")
    builders, results = spawn.SimpleQueue(), spawn.Queue()
    three = [
        spawn.Process(target=build_slowly, args=(root, directory, builders, results))
        for _ in range(3)
    ]
    for process in three:
        process.start()
    os.kill(builders.get(), signal.SIGKILL)
    told = [results.get(timeout=60) for _ in range(2)]
    for process in three:
        process.join(60)
    assert sorted(process.exitcode for process in three) == [-signal.SIGKILL, 0, 0]
    assert sorted(builds for builds, _ in told) == [0, 1]
    assert {total for _, total in told} == {int(first_frames(root, tmp_path / "other").sum())}
    (whole,) = files(directory)
    assert whole.endswith(".h5")
