"""Decoded, resized frames on disk, laid out so that a window is a few memory copies.

One HDF5 file per (content of a dataset, feature keys, image size): ``frames/CAMERA`` uint8
``[N, C, H, W]``, ``state`` ``[N, S]`` and ``action`` ``[N, A]`` (where the source has actions)
float32, N the rows of the source.
The datasets are contiguous, so each is one stretch of the file, which is memory-mapped: the page
cache holds hot frames once for all processes, and memory is never spent on copies. The source
stays the truth: a cache file may be deleted at any time.

A file appears under its name only when it is complete: it is written under another one, flushed
and renamed. A file lock lets a second process wait for the first instead of decoding again; the
system drops a lock with the process that held it, so a crash leaves none behind, and what it
left half-written is removed by the next process that builds.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .errors import CacheSpaceError
from .keys import Keys
from .resize import resize_frames
from .source import Source, feature_width
from .video import decode

log = logging.getLogger(__name__)

LAYOUT = 1  # raise it whenever the content of a cache file changes
PAGE = 4096  # datasets begin at a page, so that rows of whole pages never straddle two
RESIZE_BYTES = 16 << 20  # decoded frames in memory at once
SLACK = 1 << 20  # the file's own bookkeeping


@dataclass(frozen=True)
class Cache:
    """Memory-mapped content of one cache file; rows are those of its source.

    Attributes:
        path: the file.
        frames: camera name -> uint8 ``[N, C, H, W]``.
        state: float32 ``[N, S]``.
        action: float32 ``[N, A]``; no columns where the source has no actions.
    """

    path: Path
    frames: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray


def default_cache_dir() -> Path:
    """``$SELFFLOW_CACHE``, else ``selfflow`` in the user's cache folder."""
    if chosen := os.environ.get("SELFFLOW_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "selfflow"


def open_cache(
    source: Source,
    keys: Keys,
    size: tuple[int, int],
    directory: Path | None = None,
    *,
    progress: bool = True,
) -> Cache:
    """Map the cache of a source, after building it where it is missing.

    Args:
        source: the dataset.
        keys: its state, action and cameras.
        size: ``(H, W)`` of the frames in pixels.
        directory: where cache files live; None takes `default_cache_dir`.
        progress: show a bar while building.

    Raises:
        BrokenError: the dataset cannot be decoded.
        CacheSpaceError: the disk is full; nothing is left behind.
    """
    directory = directory or default_cache_dir()
    directory.mkdir(parents=True, exist_ok=True)
    identity = repr((LAYOUT, source.stamp, keys, size))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = directory / f"{source.root.resolve().name}-{size[0]}x{size[1]}-{digest}.h5"
    if not path.exists():
        with _locked(path):
            if not path.exists():  # another process may have built it while this one waited
                _build(path, source, keys, size, progress)
    try:
        return _map(path, keys)
    except (OSError, KeyError) as error:
        # Complete files are renamed into place, so somebody damaged this one. It is only a copy.
        log.warning("rebuilding the damaged frame cache %s (%s)", path, error)
        with _locked(path):
            _build(path, source, keys, size, progress)
        return _map(path, keys)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("another process is building %s; waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _map(path: Path, keys: Keys) -> Cache:
    with h5py.File(path, "r") as file:
        frames = {name: _map_one(path, file[f"frames/{name}"]) for name in keys.images}
        state = _map_one(path, file["state"])
        if not keys.action:
            return Cache(path, frames, state, np.empty((len(state), 0), np.float32))
        return Cache(path, frames, state, _map_one(path, file["action"]))


def _map_one(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    offset = dataset.id.get_offset()
    if offset is None or path.stat().st_size < offset + dataset.nbytes:
        raise OSError(f"{dataset.name} is not contained in the file")
    if dataset.size == 0:
        return np.empty(dataset.shape, dataset.dtype)
    # Shared and read-only: a private mapping would count against memory, whatever it touches.
    mapped = np.memmap(path, dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
    return mapped.view(np.ndarray)


def _build(path: Path, source: Source, keys: Keys, size: tuple[int, int], progress: bool) -> None:
    """Write the cache file; the caller holds its lock."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)  # of a process that died while building
    vectors = {"state": keys.state, "action": keys.action}
    if not keys.action:
        del vectors["action"]
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        name: ((source.rows, feature_width(source.features[key])), np.float32)
        for name, key in vectors.items()
    }
    for name in keys.images:
        shapes[f"frames/{name}"] = ((source.rows, 3, *size), np.uint8)
    needed = SLACK + sum(int(np.prod(s)) * np.dtype(t).itemsize for s, t in shapes.values())
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise _no_space(path, needed, free)
    try:
        _reserve(part, shapes)
        with h5py.File(part, "r+") as file:
            for name, key in vectors.items():
                file[name][...] = source.vectors(key)
            total = source.rows * len(keys.images)
            with _bar(total, f"caching {source.root.name}", progress) as advance:
                for name, key in keys.images.items():
                    _fill(file[f"frames/{name}"], source, key, size, advance)
            file.attrs["source"] = source.fingerprint
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    except OSError as error:
        if _is_full(error):
            part.unlink(missing_ok=True)  # before asking, as its space is free again without it
            raise _no_space(path, needed, shutil.disk_usage(path.parent).free) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _reserve(part: Path, shapes: dict[str, tuple[tuple[int, ...], Any]]) -> None:
    """Create the file at its full size: a disk that is too small shows now, not after an hour."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(part, "w", alignment_threshold=PAGE, alignment_interval=PAGE) as file:
        file.create_group("frames")
        for name, (shape, dtype) in shapes.items():
            space = h5py.h5s.create_simple(shape)
            kind = h5py.h5t.py_create(np.dtype(dtype))
            h5py.h5d.create(file.id, name.encode(), kind, space, plist)
    with part.open("r+b") as file_on_disk:
        os.posix_fallocate(file_on_disk.fileno(), 0, part.stat().st_size)


def _fill(dataset: h5py.Dataset, source: Source, key: str, size: tuple[int, int], advance) -> None:
    """Decode, resize and write one camera, a few frames at a time."""
    rows: list[int] = []
    frames: list[np.ndarray] = []

    def write() -> None:
        stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        small = resize_frames(stacked, size).numpy()
        # Rows come as runs, at least within an episode; each run is one write.
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, end in itertools.pairwise(edges):
            dataset[rows[first] : rows[first] + end - first] = small[first:end]
        advance(len(rows))
        rows.clear()
        frames.clear()

    for row, frame in decode(source, key):
        if frames and (frame.shape != frames[0].shape or len(frames) * frame.nbytes > RESIZE_BYTES):
            write()
        rows.append(row)
        frames.append(frame)
    if frames:
        write()


@contextmanager
def _bar(total: int, text: str, show: bool) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show or total == 0) as bar:
        task = bar.add_task(text, total=total)
        yield lambda n: bar.advance(task, n)


def _is_full(error: OSError) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    # HDF5 reports the system's error inside its own message.
    return error.errno in full or any(f"errno = {number}" in str(error) for number in full)


def _no_space(path: Path, needed: int, free: int) -> CacheSpaceError:
    return CacheSpaceError(
        f"no space for the frame cache: {path} needs {needed:,} bytes, {free:,} are free on that "
        "disk. Delete caches that are not used any more from that folder, choose another one "
        "(data.cache_dir=DIR or SELFFLOW_CACHE), or a smaller data.image_size"
    )
