"""Decode the frames of episodes out of video files and parquet images: all in order, or a few.

A video file holds many episodes end to end. Going through it once from the front is many times
faster than looking frames up by time, as no frame is decoded twice and nothing is sought; for a
few frames it is the other way round.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
from av.video.reformatter import VideoReformatter
from PIL import Image, UnidentifiedImageError

from .errors import BrokenError
from .source import Episode, Source

IMAGE_ROWS = 64  # encoded images of a parquet file in memory at once


def decode(source: Source, key: str) -> Iterator[tuple[int, np.ndarray]]:
    """All frames of a camera.

    Yields:
        A row of the source and its frame, uint8 ``[h, w, 3]`` RGB; rows in the files' order.

    Raises:
        BrokenError: a file cannot be decoded, or does not reach to the end of an episode.
    """
    if source.features[key]["dtype"] == "image":
        yield from _decode_images(source, key)
        return
    files: dict[Path, list[Episode]] = {}
    for episode in source.episodes:
        files.setdefault(episode.clips[key].path, []).append(episode)
    for path, episodes in sorted(files.items()):
        yield from _decode_video(path, episodes, key, source.fps)


def require_whole_clips(source: Source, key: str, episodes: Iterable[Episode]) -> None:
    """Refuse episodes with fewer frames in the video than in the data.

    LeRobot drops frames when its streaming encoder falls behind. From there on, pictures and
    actions do not belong together, and the last pictures are those of the next episode.

    Raises:
        BrokenError: names the first such episode and counts them.
    """
    if source.features[key]["dtype"] != "video":
        return
    frames = {e: round((e.clips[key].end - e.clips[key].start) * source.fps) for e in episodes}
    if short := [e for e, count in frames.items() if count < e.length]:
        first = short[0]
        raise BrokenError(
            f"episode {first.number} of {source.name} has {first.length} frames, but only "
            f"{frames[first]} in its video ({key!r}); so it is in {len(short)} episodes: frames "
            "were dropped while recording. Record these again, or train without them: "
            "data.episodes=[...] takes those to keep"
        )


def _decode_video(
    path: Path, episodes: Sequence[Episode], key: str, fps: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Give every row the frame nearest in time to its episode's start + (frame number) / fps.

    Times are computed rather than read from the ``timestamp`` column, which jitters in real
    recordings; they may be off from the file's by half a frame, not more.
    """
    wanted = [
        (e.clips[key].start + i / fps, e, i)
        for e in sorted(episodes, key=lambda e: e.clips[key].start)
        for i in range(e.length)
    ]
    tolerance = 0.5 / fps + 1e-4
    to_rgb = VideoReformatter()  # one for all frames: setting one up costs more than using it
    done = 0

    def frames_at(time: float, frame: av.VideoFrame) -> tuple[int, np.ndarray]:
        due, episode, i = wanted[done]
        if abs(due - time) > tolerance:
            raise BrokenError(
                f"{path} has no frame for frame {i} of episode {episode.number}: {due:.3f} s is "
                f"needed, the nearest is at {time:.3f} s. The file is truncated, or belongs to "
                "another recording"
            )
        return episode.start + i, to_rgb.reformat(frame, format="rgb24").to_ndarray()

    previous: tuple[float, av.VideoFrame] | None = None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BrokenError(f"{path} holds no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                if previous is not None:
                    middle = (previous[0] + frame.time) / 2
                    while done < len(wanted) and wanted[done][0] <= middle:
                        yield frames_at(*previous)
                        done += 1
                if done == len(wanted):
                    return
                previous = (frame.time, frame)
    except av.FFmpegError as error:
        raise BrokenError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be decoded: {error.strerror}. It is "
            "truncated or was never finalised; record or download it again"
        ) from error
    if previous is None:
        raise BrokenError(f"{path} holds no frames; record or download it again")
    while done < len(wanted):
        yield frames_at(*previous)
        done += 1


def _decode_images(source: Source, key: str) -> Iterator[tuple[int, np.ndarray]]:
    for rows, columns in source.read([key], IMAGE_ROWS):
        for row, cell in zip(rows.tolist(), columns[key], strict=True):
            yield row, _image(source, key, row, cell.as_py())


def _image(source: Source, key: str, row: int, image: dict[str, Any]) -> np.ndarray:
    """One encoded image of a parquet file, decoded."""
    content = image["bytes"]
    if content is None:  # a file beside the parquet file instead of bytes inside it
        content = (source.root / image["path"]).read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise BrokenError(f"row {row} of {key!r} of {source.name}: {error}") from error


def decode_at(source: Source, key: str, wanted: Sequence[tuple[Episode, int]]) -> list[np.ndarray]:
    """A few frames of a camera, looked up one by one.

    Args:
        wanted: episodes and the numbers of their frames, from 0.

    Returns:
        uint8 ``[h, w, 3]`` RGB each, in the order of `wanted`; equal to those of `decode`.

    Raises:
        BrokenError: as `decode`.
    """
    if source.features[key]["dtype"] == "image":
        return [_image_at(source, key, episode, frame) for episode, frame in wanted]
    found: dict[int, np.ndarray] = {}
    files: dict[Path, list[int]] = {}
    for place, (episode, _) in enumerate(wanted):
        files.setdefault(episode.clips[key].path, []).append(place)
    for path, places in files.items():
        with _opened(path) as (container, stream):
            for place in places:
                episode, frame = wanted[place]
                found[place] = _frame_at(container, stream, path, episode, key, frame, source.fps)
    return [found[place] for place in range(len(wanted))]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A video file's container and stream; the decoder's errors become ours."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BrokenError(f"{path} holds no video stream")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise BrokenError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be decoded: {error.strerror}. It is "
            "truncated or was never finalised; record or download it again"
        ) from error


def _frame_at(
    container: Any, stream: Any, path: Path, episode: Episode, key: str, frame: int, fps: float
) -> np.ndarray:
    """The frame nearest in time, from the key frame before it on."""
    due = episode.clips[key].start + frame / fps
    container.seek(int(due / stream.time_base), stream=stream, backward=True)
    nearest: av.VideoFrame | None = None
    for candidate in container.decode(stream):
        if candidate.time is None:
            continue
        if nearest is None or abs(candidate.time - due) < abs(_time(nearest) - due):
            nearest = candidate
        if candidate.time >= due:
            break
    if nearest is None or abs(_time(nearest) - due) > 0.5 / fps + 1e-4:
        there = "it has none" if nearest is None else f"the nearest is at {_time(nearest):.3f} s"
        raise BrokenError(
            f"{path} has no frame for frame {frame} of episode {episode.number}: {due:.3f} s is "
            f"needed, {there}. The file is truncated, or belongs to another recording"
        )
    return nearest.to_ndarray(format="rgb24")


def _time(frame: av.VideoFrame) -> float:
    assert frame.time is not None
    return frame.time


def _image_at(source: Source, key: str, episode: Episode, frame: int) -> np.ndarray:
    with pq.ParquetFile(episode.data, pre_buffer=False) as file:
        numbers = file.read(["episode_index"])["episode_index"].to_numpy()
        row = int(np.flatnonzero(numbers == episode.number)[frame])
        first = 0
        for batch in file.iter_batches(IMAGE_ROWS, columns=[key]):
            if row < first + len(batch):
                cell = batch.column(key)[row - first]
                return _image(source, key, episode.start + frame, cell.as_py())
            first += len(batch)
    raise BrokenError(f"{episode.data} ends before frame {frame} of episode {episode.number}")


@dataclass(frozen=True)
class Stream:
    """What a video file says of itself."""

    codec: str
    pixel_format: str
    height: int
    width: int
    fps: float | None


def stream_of(path: Path) -> Stream:
    """The video stream of a file, nothing decoded.

    Raises:
        BrokenError: the file cannot be read.
    """
    with _opened(path) as (_, stream):
        context = stream.codec_context
        rate = stream.average_rate
        return Stream(
            codec=context.codec.canonical_name,  # "av1", whichever decoder reads it
            pixel_format=context.pix_fmt or "",
            height=context.height,
            width=context.width,
            fps=float(rate) if rate else None,
        )
