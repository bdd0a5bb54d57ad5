"""One LeRobot v3 dataset on disk: its facts, its episodes, and where their frames are.

Rows: the frames of a root are numbered 0, 1, ... through all its episodes in order. Reading goes
straight to the parquet files, in batches, so that memory stays bounded and nothing is copied
into another cache on the way.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BrokenError, EmptyError
from .locate import locate, read_info, require_parquet

EDGE = 1 << 20  # bytes at each end of a data or video file that enter the fingerprint
READ_ROWS = 4096  # rows of a parquet file in memory at once


@dataclass(frozen=True)
class Clip:
    """An episode's stretch of a video file, in seconds from the file's beginning."""

    path: Path
    start: float
    end: float


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Episode:
    """One episode of a root: its rows are ``start, ..., start + length - 1``."""

    number: int
    start: int
    length: int
    data: Path
    clips: dict[str, Clip]


@dataclass(frozen=True)
class Source:
    """A dataset that was found to be complete, opened but not read.

    Attributes:
        name: what the user typed.
        root: its folder.
        features: LeRobot's description of every feature.
        fps: frames per second.
        robot_type: or "".
        tasks: task index -> text.
        episodes: in order.
        fingerprint: of the content: equal for copies, different after any change (metadata in
            full; of data and video files the size and a megabyte at either end, where their
            tables of contents are).
        stamp: like `fingerprint`, with the files' modification times: notices an edit in place.
    """

    name: str
    root: Path
    features: dict[str, dict[str, Any]]
    fps: float
    robot_type: str
    tasks: dict[int, str]
    episodes: tuple[Episode, ...]
    fingerprint: str
    stamp: str

    @property
    def rows(self) -> int:
        """Frames in all episodes."""
        return self.episodes[-1].start + self.episodes[-1].length

    def read(
        self, columns: list[str], batch_rows: int = READ_ROWS
    ) -> Iterator[tuple[np.ndarray, dict[str, pa.Array]]]:
        """All rows of some columns, file by file and batch by batch.

        Yields:
            The row numbers, int64 ``[n]``, and the columns.

        Raises:
            BrokenError: the files hold more or fewer frames than the metadata says.
        """
        episodes = {e.number: e for e in self.episodes}
        seen = dict.fromkeys(episodes, 0)
        for path in sorted({e.data for e in self.episodes}):
            with pq.ParquetFile(path, pre_buffer=False) as file:
                if lacking := sorted({*columns, "episode_index"} - set(file.schema_arrow.names)):
                    raise BrokenError(
                        f"{path} has no column {', '.join(lacking)}; it has "
                        f"{', '.join(file.schema_arrow.names)}"
                    )
                for batch in file.iter_batches(batch_rows, columns=[*columns, "episode_index"]):
                    numbers = batch.column("episode_index").to_numpy(zero_copy_only=False)
                    rows = np.empty(len(numbers), np.int64)
                    # The frames of an episode follow one another, so batches are few long runs.
                    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
                    for first, end in itertools.pairwise(edges):
                        number, count = int(numbers[first]), end - first
                        self._require_room(episodes.get(number), number, seen, count, path)
                        start = episodes[number].start + seen[number]
                        rows[first:end] = np.arange(start, start + count)
                        seen[number] += count
                    yield rows, {name: batch.column(name) for name in columns}
        for episode in self.episodes:
            if seen[episode.number] < episode.length:
                raise BrokenError(
                    f"episode {episode.number} of {self.name} has {seen[episode.number]} frames in "
                    f"{episode.data.relative_to(self.root)}, and {episode.length} by meta/episodes"
                )

    @staticmethod
    def _require_room(
        episode: Episode | None, number: int, seen: dict[int, int], count: int, path: Path
    ) -> None:
        if episode is None:
            raise BrokenError(
                f"{path} holds frames of episode {number}, which meta/episodes does not list: the "
                "recording was not finalised after it"
            )
        if seen[number] + count > episode.length:
            raise BrokenError(
                f"{path} holds more frames of episode {number} than the {episode.length} that "
                "meta/episodes gives it"
            )

    def vectors(self, key: str) -> np.ndarray:
        """A numeric feature in full: float32 ``[rows, size]``.

        Raises:
            BrokenError: its rows have another size than info.json declares, or are missing.
        """
        width = feature_width(self.features[key])
        out = np.empty((self.rows, width), np.float32)
        for rows, columns in self.read([key]):
            values: Any = columns[key]
            while pa.types.is_nested(values.type) and not values.null_count:
                values = values.flatten()
            if values.null_count or len(values) != len(rows) * width:
                raise BrokenError(
                    f"feature {key!r} of {self.name} should have {width} numbers a frame by "
                    f"info.json; {len(values)} were found in {len(rows)} frames, "
                    f"{values.null_count} of them missing"
                )
            out[rows] = values.to_numpy(zero_copy_only=False).reshape(len(rows), width)
        return out


def feature_width(feature: dict[str, Any]) -> int:
    """Numbers a frame of a numeric feature."""
    return int(np.prod(feature["shape"], dtype=np.int64))


def open_source(root: str) -> Source:
    """Find a dataset, check that it is whole, and read its metadata.

    Args:
        root: as in `worldmodel.data.locate.locate`.

    Raises:
        DatasetError: one of its family, saying what is wrong with the dataset.
    """
    folder = locate(root)
    info = read_info(folder)
    fps = float(info["fps"])
    if not fps > 0:
        raise BrokenError(f"{folder}/meta/info.json says {fps} frames per second")
    features = info["features"]
    videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
    episodes = _episodes(folder, info, videos)
    if not episodes:
        raise EmptyError(f"{root} has no episodes")
    for path in sorted({e.data for e in episodes}):
        require_parquet(path)
    for path in sorted({c.path for e in episodes for c in e.clips.values()}):
        if not path.is_file():
            raise BrokenError(f"{path} is missing, though the metadata names it; download it again")
    fingerprint, stamp = _fingerprint(folder, episodes)
    return Source(
        name=root,
        root=folder,
        features=features,
        fps=fps,
        robot_type=info.get("robot_type") or "",
        tasks=_tasks(folder),
        episodes=episodes,
        fingerprint=fingerprint,
        stamp=stamp,
    )


def _episodes(folder: Path, info: dict[str, Any], videos: list[str]) -> tuple[Episode, ...]:
    place = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    places = [f"videos/{key}/{name}" for key in videos for name in place]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index", *places]
    table: list[dict[str, Any]] = []
    for path in sorted((folder / "meta" / "episodes").rglob("*.parquet")):
        require_parquet(path)
        if lacking := sorted(set(columns) - set(pq.read_schema(path).names)):
            raise BrokenError(f"{path} has no column {', '.join(lacking)}; convert it again")
        table += pq.read_table(path, columns=columns).to_pylist()
    table.sort(key=lambda row: row["episode_index"])
    episodes: list[Episode] = []
    start = 0
    for row in table:
        number, length = row["episode_index"], row["length"]
        if episodes and episodes[-1].number == number:
            raise BrokenError(f"{folder}/meta/episodes lists episode {number} twice")
        if length < 1:
            raise BrokenError(f"{folder}/meta/episodes gives episode {number} {length} frames")
        chunk, file = row["data/chunk_index"], row["data/file_index"]
        data = folder / info["data_path"].format(chunk_index=chunk, file_index=file)
        clips = {}
        for key in videos:
            name = info["video_path"].format(
                video_key=key,
                chunk_index=row[f"videos/{key}/chunk_index"],
                file_index=row[f"videos/{key}/file_index"],
            )
            ends = (float(row[f"videos/{key}/{end}_timestamp"]) for end in ("from", "to"))
            clips[key] = Clip(folder / name, *ends)
        episodes.append(Episode(number, start, length, data, clips))
        start += length
    return tuple(episodes)


def _tasks(folder: Path) -> dict[int, str]:
    path = folder / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    require_parquet(path)
    table = pq.read_table(path)
    # Pandas wrote it: the texts are its index, under whatever name that had.
    text = next(name for name in table.column_names if name != "task_index")
    rows = zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)
    return {int(index): str(task) for index, task in rows}


def _fingerprint(folder: Path, episodes: tuple[Episode, ...]) -> tuple[str, str]:
    content, stamp = hashlib.sha256(), hashlib.sha256()
    meta = [folder / "meta" / "info.json", folder / "meta" / "tasks.parquet"]
    meta += sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    for path in meta:
        if path.is_file():
            content.update(path.read_bytes())
    files = {e.data for e in episodes} | {c.path for e in episodes for c in e.clips.values()}
    for path in sorted(files):
        stat = path.stat()
        content.update(f"{path.relative_to(folder)} {stat.st_size}\n".encode())
        stamp.update(f"{stat.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            content.update(file.read(EDGE))
            file.seek(max(0, stat.st_size - EDGE))
            content.update(file.read(EDGE))
    stamp.update(content.digest())
    return content.hexdigest()[:16], stamp.hexdigest()[:16]
