"""Decode the frames of episodes out of video files and parquet images, in order.

A video file holds many episodes end to end. Going through it once from the front is many times
faster than looking frames up by time, as no frame is decoded twice and nothing is sought.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
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
            image = cell.as_py()
            content = image["bytes"]
            if content is None:  # a file beside the parquet file instead of bytes inside it
                content = (source.root / image["path"]).read_bytes()
            try:
                with Image.open(io.BytesIO(content)) as picture:
                    yield row, np.asarray(picture.convert("RGB"))
            except (UnidentifiedImageError, OSError) as error:
                raise BrokenError(f"row {row} of {key!r} of {source.name}: {error}") from error
