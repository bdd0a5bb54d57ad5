"""Writing demonstrations as a LeRobot v3.0 dataset that survives being killed.

LeRobot's own recorder is made for one episode a minute: it encodes every episode to a file of its
own, appends that to one growing video (copying it all), and leaves a parquet file without footer,
unreadable, when it is killed. A simulated expert makes ten episodes a second. So this module writes
the same format (LeRobotDataset opens it, a test sees to that) in **commits**: some episodes at a
time go into one data file, one video file per camera and one file of episode records; they are
written under temporary names, renamed, and `meta/info.json` is replaced last. Its
``total_episodes`` decides what exists; whatever lies beyond it, left by a process that was killed
in the middle, is removed when the writer is opened again.

Video is H.264 in RGB, **lossless**: at these sizes that costs no more time than lossy encoding
(40 us a frame at 48 px) and 2-3 times the space. The usual yuv420p halves the resolution of colour,
which at 48 px blurs a red marker to 29 dB PSNR. Browsers do not play it; PyAV and torchcodec do.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .recording import Episode, encode_state
from .world import collected_options

CHUNK_SIZE = 1000
"""Files per ``chunk-NNN`` folder."""
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
SOURCE = "meta/source.json"
"""Where the data come from, ours: compared when a collection is resumed."""

_PART = ".part"
_KEYFRAME_INTERVAL = 10
_BLOCK = 16
"""Frames in memory at once."""
_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Stats = dict[str, dict[str, np.ndarray]]


@dataclass
class _Pending:
    """An episode that was added and not yet committed; its pictures are in the video already."""

    columns: dict[str, np.ndarray]
    simulator_state: np.ndarray | None
    record: dict[str, Any]
    stats: Stats


class DatasetWriter:
    """Appends episodes to a dataset folder, which it creates or resumes.

    `add` (or `append`, for what no simulation made) collects, `commit` makes what was added part
    of the dataset. Reading at any moment, even after a SIGKILL, sees the episodes committed so far.

    Args:
        root: the dataset's folder.
        fps: frames per second.
        cameras: camera names; a video each.
        image_size: ``(height, width)`` in pixels, of all cameras or per camera.
        state_names, action_names: one per dimension.
        task: the task as a sentence, of episodes that bring none of their own.
        robot_type: the robot's name.
        source: where the episodes come from, JSON-ready: a dataset begun with another is refused.
        action_kind: what actions mean, where it is known: "absolute" or "delta".
        crf: of the video encoder; 0 is lossless, 18 looks so.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: the folder holds a dataset from another source.
    """

    def __init__(
        self,
        root: Path,
        *,
        fps: int,
        cameras: Sequence[str],
        image_size: tuple[int, int] | Mapping[str, tuple[int, int]],
        state_names: Sequence[str],
        action_names: Sequence[str],
        task: str,
        robot_type: str,
        source: Mapping[str, Any],
        action_kind: str | None = None,
        crf: int = 0,
    ):
        self.root = Path(root)
        self.fps = fps
        self.task = task
        self.robot_type = robot_type
        self._videos = {f"observation.images.{camera}": camera for camera in cameras}
        self._image_sizes = (
            dict(image_size)
            if isinstance(image_size, Mapping)
            else dict.fromkeys(cameras, image_size)
        )
        self._vectors = {"observation.state": state_names, "action": action_names}
        self._action_kind = action_kind
        self._crf = crf
        self._tasks: list[str] = []
        self.total_episodes = 0
        self.total_frames = 0
        self.next_attempt = 0
        """Number of the first attempt that is not part of the dataset, failures counted."""
        self._has_success = self._has_demonstration = False
        self._simulator_state_size: int | None = None
        self._stats: Stats = {}
        self._file = 0
        self._pending: list[_Pending] = []
        self._pending_frames = 0
        self._encoders: dict[str, _Encoder] = {}
        self._open(dict(source))

    # Opening.

    def _open(self, source: dict[str, Any]) -> None:
        path = self.root / SOURCE
        if not path.is_file():
            if self.root.is_dir() and any(self.root.iterdir()):
                raise FileExistsError(
                    f"{self.root} is not empty and holds no collection that could be resumed "
                    f"(no {SOURCE}); choose another folder or empty this one"
                )
            _write_json(path, source)
            return
        found = _upgraded(json.loads(path.read_text()))
        for key in sorted(found.keys() | source.keys()):
            if found.get(key) != source.get(key):
                raise ValueError(
                    f"{self.root} was begun with {key}={found.get(key)!r} and cannot be resumed "
                    f"with {key}={source.get(key)!r}; choose another folder"
                )
        self._resume()

    def _resume(self) -> None:
        """Take up the counters of what is committed; remove what is not."""
        if (self.root / INFO).is_file():
            info = json.loads((self.root / INFO).read_text())
            self.total_episodes, self.total_frames = info["total_episodes"], info["total_frames"]
            committed = [("episode_index", "<", self.total_episodes)]
            records = pq.read_table(self.root / "meta/episodes", filters=committed).to_pylist()
            last = max(records, key=lambda record: record["episode_index"])
            chunk, file = last["meta/episodes/chunk_index"], last["meta/episodes/file_index"]
            self._file = chunk * CHUNK_SIZE + file + 1
            self.next_attempt = last["attempt"] + 1
            # Not from the statistics file, which may be one commit ahead of the totals.
            self._stats = _pool([_stats_of(record) for record in records])
            self._tasks = list(pd.read_parquet(self.root / TASKS).index)
        for path in self.root.rglob(f".*{_PART}"):
            path.unlink()
        for path in self._paths(self._file).values():
            path.unlink(missing_ok=True)

    def _paths(self, file: int) -> dict[str, Path]:
        """The files of a commit, by what they hold, in the order in which they may appear."""
        index = {"chunk_index": file // CHUNK_SIZE, "file_index": file % CHUNK_SIZE}
        paths = {key: VIDEO_PATH.format(video_key=key, **index) for key in self._videos}
        paths |= {"data": DATA_PATH.format(**index), "episodes": EPISODES_PATH.format(**index)}
        return {key: self.root / path for key, path in paths.items()}

    # Adding and committing.

    def add(self, episode: Episode, attempt: int) -> None:
        """Take an episode in; it is on disk for good with the next `commit`.

        Args:
            attempt: its number among all attempts, failures included; rising.
        """
        kind = {} if episode.kind is None else {"kind": episode.kind}
        self.append(
            episode.images,
            episode.state,
            episode.action,
            success=episode.success,
            demonstration=None if episode.kind is None else episode.kind == "expert",
            simulator_state=episode.simulator_state,
            attempt=attempt,
            record={"seed": episode.seed, "mode": episode.mode} | kind,
        )

    def append(
        self,
        images: Mapping[str, Iterable[np.ndarray]],
        state: np.ndarray,
        action: np.ndarray,
        *,
        success: np.ndarray | None = None,
        demonstration: bool | None = None,
        simulator_state: np.ndarray | None = None,
        task: str | None = None,
        attempt: int,
        record: Mapping[str, Any],
    ) -> None:
        """Take an episode of T frames in, whose pictures may be read while they are written.

        Where `images` raises, that episode is not in the dataset; what was added before may still
        be committed, nothing may be added any more.

        Args:
            images: camera -> T frames, uint8 ``[H, W, 3]``.
            state, action: float32 ``[T, S]`` and ``[T, A]``.
            success: bool ``[T]``, whether the world after the action counts as solved; of all
                episodes of a dataset or of none.
            demonstration: whether its actions are to be imitated; of all or of none.
            simulator_state: float64 ``[T, N]``; of all or of none.
            task: None takes the writer's.
            attempt: its number among all attempts, those left out included; rising.
            record: further columns of the episode's record.

        Raises:
            ValueError: a camera has another number of frames than there are actions.
            OSError: the disk is full, or fails. What was committed before stays; the writer is of
                no use any more, a new one takes up from there.
        """
        paths = self._paths(self._file)
        length = len(action)
        stats: Stats = {}
        for key, camera in self._videos.items():
            if key not in self._encoders:
                size = self._image_sizes[camera]
                self._encoders[key] = _Encoder(_part(paths[key]), size, self.fps, self._crf)
            counts = np.zeros((3, 256), np.int64)
            frames = 0
            for block in itertools.batched(images[camera], _BLOCK):
                pictures = np.stack(block)
                try:
                    self._encoders[key].write(pictures)
                except OSError:
                    self._abandon()
                    raise
                counts += _histogram(pictures)
                frames += len(pictures)
            if frames != length:
                raise ValueError(f"camera {camera} has {frames} frames for {length} actions")
            stats[key] = _image_stats(counts, frames)

        self._has_success = success is not None
        self._has_demonstration = demonstration is not None
        if simulator_state is not None:
            self._simulator_state_size = simulator_state.shape[1]
        task = self.task if task is None else task
        if task not in self._tasks:
            self._tasks.append(task)
        number = self.total_episodes + len(self._pending)
        begin = self.total_frames + self._pending_frames
        index = {"chunk_index": self._file // CHUNK_SIZE, "file_index": self._file % CHUNK_SIZE}
        meta: dict[str, Any] = {
            "episode_index": number,
            "tasks": [task],
            "length": length,
            "dataset_from_index": begin,
            "dataset_to_index": begin + length,
            "attempt": attempt,
            **record,
        }
        for prefix in ("data", "meta/episodes", *(f"videos/{key}" for key in self._videos)):
            meta |= {f"{prefix}/{name}": value for name, value in index.items()}
        for key in self._videos:
            meta[f"videos/{key}/from_timestamp"] = self._pending_frames / self.fps
            meta[f"videos/{key}/to_timestamp"] = (self._pending_frames + length) / self.fps

        # The columns that have statistics, each ``[T]`` or ``[T, width]``.
        steps = np.arange(length)
        columns = {"observation.state": state, "action": action}
        if success is not None:
            columns["next.success"] = success
        if demonstration is not None:
            columns["demonstration"] = np.full(length, demonstration)
        columns |= {
            "next.done": steps == length - 1,
            "timestamp": (steps / self.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": begin + steps,
            "task_index": np.full(length, self._tasks.index(task)),
        }
        stats |= _vector_stats(columns)
        self._pending.append(_Pending(columns, simulator_state, meta, stats))
        self._pending_frames += length

    def commit(self) -> None:
        """Make all added episodes part of the dataset. Does nothing if there are none.

        Raises:
            OSError: the disk is full, or fails. What was committed before stays; the writer is of
                no use any more, a new one takes up from there.
        """
        if not self._pending:
            return
        # Taken out first: committing once more after an error has nothing to write.
        pending, self._pending = self._pending, []
        paths = self._paths(self._file)
        try:
            for encoder in self._encoders.values():
                encoder.close()
        except OSError:
            self._abandon()
            raise
        self._encoders.clear()

        tables = []
        for episode in pending:
            columns = dict(episode.columns)
            if episode.simulator_state is not None:
                columns["simulator_state"] = encode_state(episode.simulator_state)
            tables.append(pa.table({key: _arrow(value) for key, value in columns.items()}))
        _write_table(pa.concat_tables(tables), paths["data"])

        rows = []
        for episode in pending:
            flat = {
                f"stats/{feature}/{name}": value.tolist()
                for feature, values in episode.stats.items()
                for name, value in values.items()
            }
            rows.append(episode.record | flat)
        _write_table(pa.Table.from_pylist(rows), paths["episodes"])

        before = [self._stats] if self._stats else []
        self._stats = _pool(before + [episode.stats for episode in pending])
        self.total_episodes += len(pending)
        self.total_frames += self._pending_frames
        self.next_attempt = pending[-1].record["attempt"] + 1

        # Data before records before totals: at every moment, what the totals promise is there.
        for path in paths.values():
            os.replace(_part(path), path)
        self._write_tasks()
        _write_json(
            self.root / STATS,
            {
                feature: {name: value.tolist() for name, value in values.items()}
                for feature, values in self._stats.items()
            },
        )
        _write_json(self.root / INFO, self._info())
        self._file += 1
        self._pending_frames = 0

    def _abandon(self) -> None:
        """Give up what is not committed, after the disk failed."""
        for encoder in self._encoders.values():
            encoder.abandon()
        self._encoders.clear()
        self._pending.clear()

    def _write_tasks(self) -> None:
        """Write the table of tasks where there are new ones."""
        path = self.root / TASKS
        if path.is_file() and list(pd.read_parquet(path).index) == self._tasks:
            return
        index = pd.Index(self._tasks, name="task")
        pd.DataFrame({"task_index": range(len(index))}, index=index).to_parquet(_part(path))
        os.replace(_part(path), path)

    def _info(self) -> dict[str, Any]:
        features: dict[str, dict[str, Any]] = {}
        for key, camera in self._videos.items():
            height, width = self._image_sizes[camera]
            features[key] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "gbrp",
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "video.g": _KEYFRAME_INTERVAL,
                    "video.crf": self._crf,
                    "is_depth_map": False,
                    "has_audio": False,
                },
            }
        for key, names in self._vectors.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        if self._action_kind is not None:
            features["action"]["info"] = {"action_kind": self._action_kind}
        there = {"next.success": self._has_success, "demonstration": self._has_demonstration}
        for key in (*(key for key, is_there in there.items() if is_there), "next.done"):
            features[key] = {"dtype": "bool", "shape": [1], "names": None}
        if self._simulator_state_size is not None:
            features["simulator_state"] = {
                "dtype": "int32",
                "shape": [2 * self._simulator_state_size],
                "names": None,
            }
        features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
        for key in ("frame_index", "episode_index", "index", "task_index"):
            features[key] = {"dtype": "int64", "shape": [1], "names": None}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.robot_type,
            "total_episodes": self.total_episodes,
            "total_frames": self.total_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{self.total_episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self._videos else None,
            "features": features,
        }


def _upgraded(source: dict[str, Any]) -> dict[str, Any]:
    """The facts of a collection from before worlds had options."""
    if "target" in source:
        source["options"] = collected_options(source)
        del source["target"]
    return source


class _Encoder:
    """An RGB video file that grows frame by frame, lossless with a `crf` of 0."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int, crf: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", format="mp4")
        options = {"preset": "ultrafast", "crf": str(crf), "g": str(_KEYFRAME_INTERVAL)}
        stream = self._container.add_stream("libx264rgb", rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "rgb24"
        # One thread: frames are tiny, and the other cores simulate.
        self._stream.codec_context.thread_count = 1

    def write(self, frames: np.ndarray) -> None:
        """Append uint8 ``[T, H, W, 3]``."""
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Close a file that cannot be finished; PyAV would complain when it is collected."""
        with contextlib.suppress(OSError):
            self._container.close()


def _vector_stats(columns: Mapping[str, np.ndarray]) -> Stats:
    """Exact statistics over time of ``[T]`` and ``[T, width]`` columns, ``[width]`` each."""
    stacked = np.column_stack(list(columns.values())).astype(np.float64)
    quantiles = np.quantile(stacked, list(_QUANTILES.values()), axis=0)
    values = {
        "min": stacked.min(0),
        "max": stacked.max(0),
        "mean": stacked.mean(0),
        "std": stacked.std(0),
        **dict(zip(_QUANTILES, quantiles, strict=True)),
    }
    stats, begin = {}, 0
    for key, column in columns.items():
        end = begin + (column.shape[1] if column.ndim == 2 else 1)
        stats[key] = {name: value[begin:end] for name, value in values.items()}
        stats[key]["count"] = np.array([len(column)])
        begin = end
    return stats


def _histogram(frames: np.ndarray) -> np.ndarray:
    """How often each level occurs in uint8 ``[T, H, W, 3]``: int64 ``[3, 256]``."""
    channels = (frames[..., channel].ravel() for channel in range(3))
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])


def _image_stats(counts: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Exact statistics of pictures on the scale 0 to 1, ``[3, 1, 1]`` each, from a histogram."""
    levels = np.arange(256) / 255
    values: dict[str, list[float]] = {}
    for count in counts:
        present, total = np.flatnonzero(count), count.sum()
        mean = count @ levels / total
        channel_stats = {
            "min": levels[present[0]],
            "max": levels[present[-1]],
            "mean": mean,
            "std": np.sqrt(count @ (levels - mean) ** 2 / total),
        }
        cumulated = np.cumsum(count)
        for name, quantile in _QUANTILES.items():
            channel_stats[name] = levels[np.searchsorted(cumulated, quantile * total)]
        for name, value in channel_stats.items():
            values.setdefault(name, []).append(float(value))
    stats = {name: np.array(value).reshape(3, 1, 1) for name, value in values.items()}
    return stats | {"count": np.array([frames])}


def _pool(parts: Sequence[Stats]) -> Stats:
    """Statistics of the union. Exact but for the quantiles, which LeRobot averages and so do we."""
    pooled: Stats = {}
    for feature in parts[0]:
        stacked = {
            name: np.stack([part[feature][name] for part in parts]) for name in parts[0][feature]
        }
        counts = stacked["count"].astype(np.float64)
        weights = (counts / counts.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
        mean = (weights * stacked["mean"]).sum(0)
        variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0)
        pooled[feature] = {
            "min": stacked["min"].min(0),
            "max": stacked["max"].max(0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": stacked["count"].sum(0),
            **{name: (weights * stacked[name]).sum(0) for name in _QUANTILES},
        }
    return pooled


def _stats_of(record: Mapping[str, Any]) -> Stats:
    """The statistics in an episode's record, where they are ``stats/<feature>/<name>``."""
    stats: Stats = {}
    for key, value in record.items():
        if key.startswith("stats/"):
            _, feature, name = key.split("/")
            stats.setdefault(feature, {})[name] = np.array(value)
    return stats


def _arrow(values: np.ndarray) -> pa.Array:
    """``[T]`` -> a column of scalars, ``[T, width]`` -> one of fixed-size lists."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _part(path: Path) -> Path:
    """Under which a file is written until it is complete; hidden, so that readers pass it by."""
    return path.with_name(f".{path.name}{_PART}")


def _write_table(table: pa.Table, path: Path) -> None:
    """Write the part file of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, _part(path), compression="snappy")


def _write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _part(path).write_text(json.dumps(value, indent=4))
    os.replace(_part(path), path)
