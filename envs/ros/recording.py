"""What happened in a run, as one MCAP file: a ROS 2 bag that any ROS tool reads.

The command clock hands things over and goes on at once; a thread writes them. What waits for the
disk is bounded in bytes: beyond that things are left out, counted, and the file itself says so.

Topics have names of their own (``/run/...``), none a robot's: a recording that is played back moves
nothing. Log times are arrivals on this machine, headers keep the robot's own stamps.
`scripts.import_bag` makes a LeRobot dataset of a recording.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter
from rosbags.typesys import Stores, get_typestore

ABOUT, EVENTS = "/run/about", "/run/events"
JOINTS, CHUNK = "/run/joint_states", "/run/chunk"
POINTS = "/run/points"
"""What the safety filter let through, at controller rate; why it changed something: in events."""
COMMAND, UNSENT = "/run/command", "/run/unsent"
"""Trajectories that were sent, and those that were not: in a dry run, or for lack of a link."""

PICTURES = ("jpeg", "png", "raw")
FORMAT = "selfflow_run"
VERSION = 1
"""Of bags: the oldest that says of which ROS it is; newer readers take it too."""

JOINT_STATE = "sensor_msgs/msg/JointState"
TRAJECTORY, POINT = (
    "trajectory_msgs/msg/JointTrajectory",
    "trajectory_msgs/msg/JointTrajectoryPoint",
)
COMPRESSED, IMAGE, STRING = (
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/Image",
    "std_msgs/msg/String",
)
JPEG_QUALITY = 95
FLUSH_S = 1.0
"""Seconds: as much a recording loses whose process is killed."""

_NONE = np.zeros(0)
_FOREVER = QosTime(9223372036, 854775807)
_LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    _FOREVER,
    _FOREVER,
    QosLiveliness.AUTOMATIC,
    _FOREVER,
    False,
)


class Measurement(Protocol):
    """What `envs.ros.arm.Arrived` is."""

    @property
    def value(self) -> np.ndarray: ...
    @property
    def arrival(self) -> float: ...
    @property
    def stamp(self) -> float | None: ...
    @property
    def sequence(self) -> int: ...


class Seen(Protocol):
    """What `envs.ros.arm.ArmState` is."""

    @property
    def joints(self) -> Measurement | None: ...
    @property
    def images(self) -> Mapping[str, Measurement]: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def problem(self) -> str: ...


@dataclass(frozen=True)
class Recorded:
    """What a recording came to.

    Attributes:
        folder: the bag.
        written, lost: messages, by topic; lost ones did not fit into what may wait for the disk, or
            came after it had failed.
        problem: why the file does not hold everything; "" where it does.
    """

    folder: Path
    written: Mapping[str, int]
    lost: Mapping[str, int]
    problem: str


def camera_topic(camera: str, pictures: str) -> str:
    """Under which a camera's pictures are recorded."""
    name = re.sub(r"\W", "_", camera, flags=re.ASCII)
    return f"/run/camera/{name}" + ("" if pictures == "raw" else "/compressed")


class RunRecorder:
    """Writes one bag; what it is called with (`policies.deployment.runtime`) and `observe` go in.

    Safe to use from any thread; nothing blocks on the disk but `close`.

    Args:
        folder: the bag's, made here; it must not exist.
        axes: what is commanded, as a dataset calls it, in order.
        joints: the same as ROS calls it; default: `axes`.
        cameras: names.
        fps: of the policy's actions.
        robot: its name; `robot_type`: that of datasets.
        task: as a sentence.
        dry_run: nothing was sent.
        pictures: "jpeg", "png" (lossless) or "raw".
        capacity: bytes that may wait for the disk.
        facts: whatever else the recording is to say, JSON-ready.

    Raises:
        ValueError: names that are not each once, or another kind of pictures.
        FileExistsError: there is something at `folder`.
        OSError: it cannot be made.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        axes: Sequence[str],
        joints: Sequence[str] | None = None,
        cameras: Sequence[str] = (),
        fps: float,
        robot: str = "",
        robot_type: str = "",
        task: str = "",
        dry_run: bool = False,
        pictures: str = "jpeg",
        capacity: int = 256 << 20,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.fps, self.pictures = Path(folder), float(fps), pictures
        self.joints = tuple(joints or axes)
        if len(self.joints) != len(axes) or len(set(self.joints)) < len(self.joints):
            raise ValueError(f"{list(self.joints)} do not name each of {list(axes)} once")
        if pictures not in PICTURES:
            raise ValueError(f"pictures is one of {list(PICTURES)}, found {pictures!r}")
        if not fps > 0 or capacity < 1:
            raise ValueError(f"fps and capacity are above 0, found {fps} and {capacity}")
        self.topics = {camera: camera_topic(camera, pictures) for camera in cameras}
        if len(set(self.topics.values())) < len(self.topics):
            raise ValueError(f"cameras {list(cameras)} have no topics of their own")
        if self.folder.exists():
            raise FileExistsError(f"{self.folder} exists already; a recording makes its folder")
        self.dry_run, self.capacity = dry_run, capacity
        self._epoch = time.time_ns() - time.monotonic_ns()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str, float, Mapping[str, Any], int]] = deque()
        self._bytes, self._closing = 0, False
        self._lost: Counter[str] = Counter()
        self._unsaid: Counter[str] = Counter()
        self._written: Counter[str] = Counter()
        self._failure = self._unfit = ""
        self._sequences: dict[str, int] = {}
        self._said = (False, "")
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._writer = Writer(self.folder, version=8, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections = self._connect()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "robot": robot,
            "robot_type": robot_type,
            "joints": list(self.joints),
            "axes": list(axes),
            "cameras": self.topics,
            "fps": self.fps,
            "task": task,
            "dry_run": dry_run,
            "facts": dict(facts or {}),
        }
        self._put("about", time.monotonic(), about)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def _connect(self) -> dict[str, Connection]:
        types = {ABOUT: STRING, EVENTS: STRING, JOINTS: JOINT_STATE, POINTS: JOINT_STATE}
        types |= dict.fromkeys((COMMAND, UNSENT, CHUNK), TRAJECTORY)
        kind = IMAGE if self.pictures == "raw" else COMPRESSED
        types |= dict.fromkeys(self.topics.values(), kind)
        return {
            topic: self._writer.add_connection(
                topic,
                name,
                typestore=self._store,
                offered_qos_profiles=[_LATCHED] if topic == ABOUT else [],
            )
            for topic, name in types.items()
        }

    # --- handing over -----------------------------------------------------------------------------

    def __call__(self, kind: str, at: float, values: Mapping[str, Any]) -> None:
        """Take in what happened.

        Args:
            kind: "command" and "brake" (times ``[N]``, positions ``[N, J]``, velocities likewise if
                known, ``sent`` unless it was), "chunk" (number, age, actions ``[K, J]``), "point"
                (position ``[J]``, and the reasons where the filter changed it), or any other,
                which becomes an event as it is.
            at: monotonic time.
            values: not to be changed afterwards.
        """
        self._put(kind, at, values)

    def observe(self, seen: Seen) -> None:
        """Take in what is new of a reading: measurements by their sequence numbers.

        Pictures of cameras that were not named are passed by.
        """
        if seen.joints is not None and self._new(JOINTS, seen.joints):
            self._measured("joints", "", seen.joints)
        for camera, image in seen.images.items():
            if camera in self.topics and self._new(camera, image):
                self._measured("image", camera, image)
        said = seen.stopped, seen.problem
        if said != self._said:
            self._said = said
            self._put("robot", time.monotonic(), {"stopped": seen.stopped, "problem": seen.problem})

    def _new(self, source: str, found: Measurement) -> bool:
        last, self._sequences[source] = self._sequences.get(source), found.sequence
        return last != found.sequence

    def _measured(self, kind: str, camera: str, found: Measurement) -> None:
        values = {"camera": camera, "value": found.value, "stamp": found.stamp}
        self._put(kind, found.arrival, values)

    def _put(self, kind: str, at: float, values: Mapping[str, Any]) -> None:
        size = 500 + sum(v.nbytes for v in values.values() if isinstance(v, np.ndarray))
        with self._changed:
            if self._failure or self._closing or self._bytes + size > self.capacity:
                self._lost[self._topic(kind, values)] += 1
                self._unsaid[self._topic(kind, values)] += 1
                return
            self._bytes += size
            self._waiting.append((kind, at, values, size))
            self._changed.notify()

    def _topic(self, kind: str, values: Mapping[str, Any]) -> str:
        if kind == "image":
            return self.topics[values["camera"]]
        if kind in ("command", "brake"):
            return COMMAND if values.get("sent", not self.dry_run) else UNSENT
        own = {"about": ABOUT, "joints": JOINTS, "chunk": CHUNK, "point": POINTS}
        return own.get(kind, EVENTS)

    # --- writing ----------------------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why the file will not hold everything; "" while it does."""
        with self._changed:
            if self._failure:
                return f"recording has failed: {self._failure}"
            if not self._lost:
                return ""
            lost = ", ".join(f"{n} of {topic}" for topic, n in sorted(self._lost.items()))
            why = self._unfit or "the disk did not keep up"
            return f"{self._lost.total()} messages are lost, {why}: {lost}"

    def close(self) -> Recorded:
        """Write what waits, end the file and say what it came to. Does no harm a second time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        return Recorded(self.folder, dict(self._written), dict(self._lost), self.problem)

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        try:
            self._write_all()
            self._say_lost()
            self._writer.close()
        except Exception as error:  # noqa: BLE001 - nobody else would tell; the run goes on without
            with self._changed:
                self._failure = f"{type(error).__name__}: {error}"
                for kind, _, values, _ in self._waiting:
                    self._lost[self._topic(kind, values)] += 1
                self._waiting.clear()
            with contextlib.suppress(OSError):  # said already: the disk is full, or fails
                self._writer.abort()

    def _write_all(self) -> None:
        flushed = time.monotonic()
        while True:
            with self._changed:
                if not self._waiting and not self._closing:
                    self._changed.wait(FLUSH_S)
                taken = list(self._waiting)
                self._waiting.clear()
                closing = self._closing
            for kind, at, values, size in taken:
                self._try(kind, at, values)
                with self._changed:
                    self._bytes -= size
            self._say_lost()
            if closing and not taken:
                return
            if time.monotonic() - flushed >= FLUSH_S:
                self._flush()
                flushed = time.monotonic()

    def _try(self, kind: str, at: float, values: Mapping[str, Any]) -> None:
        """Write one; what cannot be put into a message is lost, and the rest is not."""
        try:
            self._write(kind, at, values)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - said in the file
            with self._changed:
                self._lost[self._topic(kind, values)] += 1
                self._unfit = f"some fit no message ({error})"
            self._event("unwritable", at, {"of": kind, "why": f"{type(error).__name__}: {error}"})

    def _flush(self) -> None:
        """Out to the disk, a chunk at a time: what is there can be read, however this ends."""
        storage = self._writer.storage
        assert isinstance(storage, McapWriter)
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()

    def _say_lost(self) -> None:
        with self._changed:
            lost, self._unsaid = self._unsaid, Counter()
        if lost:
            self._write("lost", time.monotonic(), dict(lost))

    def _write(self, kind: str, at: float, values: Mapping[str, Any]) -> None:
        nanoseconds = self._nanoseconds(at)
        topic = self._topic(kind, values)
        if kind == "joints":
            stamp = _nanoseconds(values["stamp"])
            self._emit(topic, nanoseconds, self._joint_state(stamp, values["value"]))
        elif kind == "point":
            self._emit(topic, nanoseconds, self._joint_state(nanoseconds, values["position"]))
            if reasons := values.get("reasons"):
                self._event("clip", at, {"reasons": reasons})
        elif kind == "image":
            self._emit(topic, nanoseconds, self._picture(values))
        elif kind in ("command", "brake"):
            self._emit(topic, nanoseconds, self._trajectory(nanoseconds, **_points(values)))
            if kind == "brake":
                self._event(kind, at, {"sent": topic == COMMAND})
        elif kind == "chunk":
            actions = np.asarray(values["actions"], np.float64)
            times = (1 + np.arange(len(actions))) / self.fps
            observed = nanoseconds - round(1e9 * float(values.get("age", 0.0)))
            self._emit(topic, nanoseconds, self._trajectory(observed, times, actions, None))
            self._event(kind, at, {k: v for k, v in values.items() if k != "actions"})
        elif kind == "about":
            self._emit(topic, nanoseconds, self._string(values))
        else:
            self._event(kind, at, values)

    def _event(self, kind: str, at: float, values: Mapping[str, Any]) -> None:
        self._emit(
            EVENTS, self._nanoseconds(at), self._string({"kind": kind, "monotonic": at, **values})
        )

    def _nanoseconds(self, at: float) -> int:
        """A moment of the monotonic clock as time of day, by one offset for the whole recording."""
        return self._epoch + round(1e9 * at)

    def _emit(self, topic: str, nanoseconds: int, message: Any) -> None:
        connection = self._connections[topic]
        data = self._store.serialize_cdr(message, connection.msgtype)
        self._writer.write(connection, nanoseconds, data)
        self._written[topic] += 1

    # --- messages ---------------------------------------------------------------------------------

    def _string(self, values: Mapping[str, Any]) -> Any:
        return self._store.types[STRING](data=json.dumps(_plain(values), allow_nan=False))

    def _joint_state(self, stamp: int, position: np.ndarray) -> Any:
        position = np.ascontiguousarray(position, np.float64)
        if position.shape != (len(self.joints),):
            raise ValueError(f"positions are {position.shape}, joints {len(self.joints)}")
        return self._store.types[JOINT_STATE](
            self._header(stamp), list(self.joints), position, _NONE, _NONE
        )

    def _picture(self, values: Mapping[str, Any]) -> Any:
        image, camera = values["value"], values["camera"]
        header = self._header(_nanoseconds(values["stamp"]), camera)
        if self.pictures == "raw":
            height, width = image.shape[:2]
            data = np.ascontiguousarray(image).reshape(-1)
            return self._store.types[IMAGE](header, height, width, "rgb8", 0, 3 * width, data)
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if self.pictures == "jpeg" else []
        swapped = np.ascontiguousarray(image[..., ::-1])
        fine, data = cv2.imencode(f".{self.pictures}", swapped, options)
        if not fine:
            raise ValueError(f"a picture {image.shape} of {camera} cannot be encoded")
        return self._store.types[COMPRESSED](header, self.pictures, data.reshape(-1))

    def _trajectory(
        self,
        begin: int,
        times: np.ndarray,
        positions: np.ndarray,
        velocities: np.ndarray | None,
    ) -> Any:
        duration = self._store.types["builtin_interfaces/msg/Duration"]
        points: list[Any] = [
            self._store.types[POINT](
                np.ascontiguousarray(positions[i], np.float64),
                _NONE if velocities is None else np.ascontiguousarray(velocities[i], np.float64),
                _NONE,
                _NONE,
                duration(*divmod(round(1e9 * float(seconds)), 10**9)),
            )
            for i, seconds in enumerate(times)
        ]
        if any(point.positions.shape != (len(self.joints),) for point in points):
            raise ValueError(f"positions are {np.shape(positions)}, joints {len(self.joints)}")
        return self._store.types[TRAJECTORY](self._header(begin), list(self.joints), points)

    def _header(self, nanoseconds: int, frame: str = "") -> Any:
        stamp = self._store.types["builtin_interfaces/msg/Time"](*divmod(nanoseconds, 10**9))
        return self._store.types["std_msgs/msg/Header"](stamp, frame)


def _points(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "times": values["times"],
        "positions": values["positions"],
        "velocities": values.get("velocities"),
    }


def _nanoseconds(stamp: float | None) -> int:
    """Of a header; 0 is how ROS says that there is no time."""
    return 0 if stamp is None else round(1e9 * stamp)


def _plain(value: Any) -> Any:
    """JSON-ready; numbers that are none become their names, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple | set | frozenset | deque):
        return [_plain(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
