"""Recordings of ROS 1 and 2 (``.bag``, ``.mcap``, ``.db3``, folders), read without ROS.

Messages come as the dicts that `envs.ros.messages` reads, so that a bag and a bridge mean the same.
What a damaged or foreign file does to its reader is a `BagError` that says which file.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2.storage_mcap import decompress
from rosbags.typesys import Stores, get_typestore

SUFFIXES = (".bag", ".mcap", ".db3")
METADATA = "metadata.yaml"
MAGIC = b"\x89MCAP0\r\n"
PLAIN = {
    "JointState", "JointTrajectory", "Float64MultiArray", "CompressedImage", "Image", "String",
}  # fmt: skip


class BagError(ValueError):
    """A recording that cannot be read, or does not hold what is looked for."""


class Bag:
    """One recording, open for reading.

    Args:
        path: a file, or a folder of rosbag2.

    Attributes:
        types: topic -> type, as ROS 2 spells it (``sensor_msgs/msg/JointState``).
        counts: topic -> messages; 0 where nobody has counted.
        cut: whether it was never finished (its recorder was killed), and ends where it was cut off.

    Raises:
        BagError: it is damaged, or no recording.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.cut = path, False
        with reading(path):
            self._reader = self._opened(path)
        self.types = {c.topic: c.msgtype for c in self._reader.connections}
        self.counts = dict.fromkeys(self.types, 0)
        for connection in self._reader.connections:
            self.counts[connection.topic] += connection.msgcount

    def _opened(self, path: Path) -> AnyReader:
        given: Any = path
        if path.suffix == ".mcap" and path.is_file() and (end := _missing_end(path)) is not None:
            given, self.cut = _CutFile(path, *end), True
        # ROS 2 before Iron wrote no definitions into its databases: then these are assumed.
        reader = AnyReader([given], default_typestore=get_typestore(Stores.LATEST))
        reader.open()
        return reader

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def topics(self, *names: str) -> list[str]:
        """Topics of these types, by their last word (``JointState``), sorted."""
        return sorted(t for t, kind in self.types.items() if kind.rpartition("/")[2] in names)

    def require(self, topic: str, *names: str) -> None:
        """Refuse to go on without a topic of one of these types.

        Raises:
            BagError: says what there is instead.
        """
        there = self.topics(*names)
        if topic not in self.types:
            near = difflib.get_close_matches(topic, there or list(self.types), n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise BagError(
                f"{self.path} has no topic {topic}.{meant} Of type {' or '.join(names)} it has "
                f"{', '.join(there) or 'none'}; in all {', '.join(sorted(self.types)) or 'none'}"
            )
        if topic not in there:
            raise BagError(
                f"{self.path}: {topic} is {self.types[topic]}, expected {' or '.join(names)}; "
                f"of that type there are {', '.join(there) or 'none'}"
            )

    def times(self, topic: str) -> Iterator[tuple[int, float | None]]:
        """Log time in nanoseconds and the header's stamp in seconds of every message."""
        connections = [c for c in self._reader.connections if c.topic == topic]
        with reading(self.path):
            for connection, at, data in self._reader.messages(connections):
                message: Any = self._reader.deserialize(data, connection.msgtype)
                stamp = message.header.stamp
                yield at, (stamp.sec + 1e-9 * stamp.nanosec) or None

    def messages(
        self, topic: str, start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Log time in nanoseconds and message, in order.

        Args:
            topic: one of `types`, of a type that is read (`PLAIN`).
            start, stop: log times: from, and before which.

        Raises:
            BagError: the file is damaged there.
        """
        connections = [c for c in self._reader.connections if c.topic == topic]
        with reading(self.path):
            for connection, at, data in self._reader.messages(connections, start, stop):
                message = self._reader.deserialize(data, connection.msgtype)
                yield at, plain(message, connection.msgtype)


def plain(message: Any, kind: str) -> dict[str, Any]:
    """A message of rosbags as the dict that a bridge would bring; arrays stay arrays.

    Raises:
        BagError: its type is not read.
    """
    name = kind.rpartition("/")[2]
    if name not in PLAIN:
        raise BagError(f"messages of type {kind} are not read")
    if name in ("String", "Float64MultiArray"):
        return {"data": message.data}
    out: dict[str, Any] = {"header": {"stamp": _time(message.header.stamp)}}
    if name == "JointState":
        velocity = np.asarray(message.velocity, float)
        return out | {
            "name": list(message.name),
            "position": np.asarray(message.position, float),
            "velocity": velocity if len(velocity) == len(message.name) else None,
        }
    if name == "JointTrajectory":
        return out | {
            "joint_names": list(message.joint_names),
            "points": [
                {
                    "positions": np.asarray(point.positions, float),
                    "velocities": np.asarray(point.velocities, float),
                    "time_from_start": _time(point.time_from_start),
                }
                for point in message.points
            ],
        }
    out["data"] = bytes(message.data)
    if name == "CompressedImage":
        return out | {"format": message.format}
    return out | {
        "encoding": message.encoding,
        "height": int(message.height),
        "width": int(message.width),
        "step": int(message.step),
    }


def seconds_of(time: dict[str, int]) -> float:
    """A time or duration as `plain` has it."""
    return time["sec"] + 1e-9 * time["nanosec"]


def _time(value: Any) -> dict[str, int]:
    return {"sec": int(value.sec), "nanosec": int(value.nanosec)}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file in the block is a `BagError` that names it."""
    try:
        yield
    except (BagError, FileNotFoundError, PermissionError):
        raise
    # Readers stumble over damaged files in many ways, from KeyError to MemoryError (of a length).
    except Exception as error:
        words = str(error) or type(error).__name__
        hint = {
            ".bag": "; `rosbag reindex` of ROS 1 mends one whose recorder was killed",
            ".db3": "; one whose recorder was killed may need the .db3-wal beside it",
        }.get(path.suffix, "")
        raise BagError(f"{path} cannot be read as a recording of ROS: {words}{hint}") from error


# --- finding -------------------------------------------------------------------------------------


def find_bags(source: str) -> tuple[Path, ...]:
    """Recordings that a file, a folder or a pattern with ``*`` names, ordered by numbers.

    A folder with a ``metadata.yaml`` is one recording; another one holds some.

    Raises:
        BagError: there are none; says what is there instead.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return (_checked(path),)
    if path.is_dir():
        found = [path] if (path / METADATA).is_file() else _inside(path)
        if not found:
            there = sorted(p.name for p in path.iterdir())
            listed = ", ".join(there[:8]) + ", ..." * (len(there) > 8) if there else "nothing"
            raise BagError(
                f"{source} holds no recordings ({', '.join(SUFFIXES)}, or folders with "
                f"{METADATA}); it holds {listed}"
            )
    else:
        given = [Path(p) for p in glob.glob(str(path))]
        found = [p for p in given if p.suffix in SUFFIXES or (p / METADATA).is_file()]
        if not found:
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            close = difflib.get_close_matches(path.name, near, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise BagError(f"there is no recording {source}.{meant}")
    return tuple(sorted(found, key=_natural))


def files_of(bag: Path) -> tuple[Path, ...]:
    """The files that a recording consists of."""
    if bag.is_file():
        return (bag,)
    return tuple(sorted((p for p in bag.iterdir() if p.is_file()), key=_natural))


def _checked(path: Path) -> Path:
    if path.name == METADATA:
        return path.parent
    if path.suffix not in SUFFIXES:
        raise BagError(f"{path} is no recording: known are {', '.join(SUFFIXES)}")
    return path


def _inside(folder: Path) -> list[Path]:
    found = []
    for path in folder.iterdir():
        if path.is_dir():
            found += [path] if (path / METADATA).is_file() else _storages(path)
    return found + _storages(folder)


def _storages(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_file() and p.suffix in SUFFIXES]


def _natural(path: Path) -> tuple[object, ...]:
    return tuple(int(p) if p.isdigit() else p for p in re.split(r"(\d+)", str(path)))


# --- MCAP files whose recorder was killed ---------------------------------------------------------


def _missing_end(path: Path) -> tuple[int, bytes] | None:
    """Of a file without an end: where its last whole record ends, and an end for it.

    An end is what readers begin with: an index of the chunks, here made of what stands at them.

    Returns:
        None for a file that has one, and for what is no MCAP file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8) != MAGIC or size < 25:
            return None
        file.seek(-8, io.SEEK_END)
        if file.read(8) == MAGIC:
            return None
        at, chunks = 8, []
        while True:
            file.seek(at)
            head = file.read(9)
            end = at + 9 + int.from_bytes(head[1:], "little")
            # Data are 0x01 to 0x07; what comes after them belongs to an end that is not whole.
            if len(head) < 9 or end > size or not 0x01 <= head[0] <= 0x07:
                break
            if head[0] == 0x06:
                chunks.append(_Chunk(at, end - at, file.read(40 + 4)))
            elif head[0] == 0x07 and chunks:
                chunks[-1].indices.append((int.from_bytes(file.read(2), "little"), at))
                chunks[-1].index_length += end - at
            at = end
        if chunks:
            chunks[-1].index_anew(file)  # of which some may be missing
    indexed = [c.record() for c in chunks if c.indices]
    if len(indexed) < len(chunks):
        indexed = []  # its recorder wrote no index: then it is read from its beginning on
    tail = b"".join(indexed)
    if tail:
        # Totals are made anew where the end has no schemas.
        tail += b"\x0b" + struct.pack("<QQHIIIIQQI", 46, 0, 0, 0, 0, 0, len(indexed), 0, 0, 0)
    footer = struct.pack("<BQQQI", 2, 20, at if tail else 0, 0, 0)
    return at, tail + footer + MAGIC


@dataclass
class _Chunk:
    """A chunk: where it is, how long with its head, the beginning of what it holds."""

    at: int
    length: int
    head: bytes
    indices: list[tuple[int, int]] = field(default_factory=list)
    index_length: int = 0

    def index_anew(self, file: IO[bytes]) -> None:
        """Find out which channels are in it. Where their indices would stand is never looked at."""
        _, _, size, crc, letters = struct.unpack("<QQQII", self.head[:32])
        kind = self.head[32 : 32 + letters].decode()
        file.seek(self.at + 9 + 40 + letters)
        packed = file.read(self.length - 9 - 40 - letters)
        data, at, channels = decompress(packed, kind, size, crc), 0, set()
        while at < len(data):
            if data[at] == 0x05:
                channels.add(int.from_bytes(data[at + 9 : at + 11], "little"))
            at += 9 + int.from_bytes(data[at + 1 : at + 9], "little")
        self.index_length = _INDEX * len(channels)
        begin = self.at + self.length
        self.indices = [(c, begin + _INDEX * i) for i, c in enumerate(sorted(channels))]

    def record(self) -> bytes:
        """Its entry in the index at a file's end."""
        first, last, size, _, letters = struct.unpack("<QQQII", self.head[:32])
        kind = self.head[32 : 32 + letters]
        (packed,) = struct.unpack("<Q", self.head[32 + letters : 40 + letters])
        offsets = b"".join(struct.pack("<HQ", *index) for index in self.indices)
        body = struct.pack("<QQQQI", first, last, self.at, self.length, len(offsets)) + offsets
        body += struct.pack("<QI", self.index_length, letters) + kind
        body += struct.pack("<QQ", packed, size)
        return b"\x08" + struct.pack("<Q", len(body)) + body


_INDEX = 31
"""Bytes of a channel's index that holds one message."""


class _CutFile:
    """A path whose file is one's beginning and another end, as readers of bags open it."""

    def __init__(self, path: Path, size: int, tail: bytes) -> None:
        self.path, self.suffix, self.name = path, path.suffix, path.name
        self._size, self._tail = size, tail

    def exists(self) -> bool:
        return True

    def is_dir(self) -> bool:
        return False

    def __str__(self) -> str:
        return str(self.path)

    def open(self, mode: str = "rb") -> IO[bytes]:
        file = self.path.open(mode, buffering=0)
        return io.BufferedReader(_Joined(file, self._size, self._tail))


class _Joined(io.RawIOBase):
    """The beginning of a file, then some bytes."""

    def __init__(self, file: Any, end: int, tail: bytes) -> None:
        self._file, self._end, self._tail, self._at = file, end, tail, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, self._end + len(self._tail))[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at < self._end:
            self._file.seek(self._at)
            found = self._file.read(min(len(buffer), self._end - self._at))
        else:
            found = self._tail[self._at - self._end :][: len(buffer)]
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()
