"""The frame cache: built once, built whole or not at all, by one process at a time."""

import errno
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
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


def build_slowly(root: Path, directory: Path) -> None:
    """In a process of its own: build so slowly that it never ends, saying when it began."""
    torch.set_num_threads(1)
    decode = cache.decode

    def slow(*args):
        for pair in decode(*args):
            (directory / "building").touch()
            time.sleep(60)
            yield pair

    cache.decode = slow
    first_frames(root, directory)


def test_a_builder_that_was_killed_is_no_obstacle(squares: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    process = multiprocessing.get_context("spawn").Process(
        target=build_slowly, args=(squares, directory)
    )
    process.start()
    while not (directory / "building").exists():
        assert process.is_alive()
        time.sleep(0.05)
    (directory / "building").unlink()
    process.kill()
    process.join()
    (part,) = files(directory)
    assert part.endswith(".part")
    expected = first_frames(squares, tmp_path / "other")
    assert torch.equal(first_frames(squares, directory), expected)
    (whole,) = files(directory)
    assert whole.endswith(".h5")


def test_of_two_at_once_one_builds_and_one_waits(
    squares: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    build, builds = cache._build, []

    def counted(*args) -> None:
        builds.append(args)
        time.sleep(0.3)
        build(*args)

    monkeypatch.setattr(cache, "_build", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: first_frames(squares, tmp_path), range(2))
    assert torch.equal(one, other)
    assert len(builds) == 1
    assert "waiting for it" in caplog.text
