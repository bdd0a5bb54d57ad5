"""Write small recordings of ROS 1 and 2, as their own recorders write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.rosbag2 import StoragePlugin
from rosbags.typesys import Stores, get_typestore

STORES = {1: get_typestore(Stores.ROS1_NOETIC), 2: get_typestore(Stores.ROS2_HUMBLE)}
KINDS = ("mcap", "mcap file", "db3", "db3 file", "bag")
BEGIN = 1_700_000_000_000_000_000
"""Nanoseconds since the epoch at which recordings begin."""


class BagFile:
    """A recording that is being written; messages in any order of topics.

    Args:
        folder: in which it is made.
        kind: of `KINDS`; "file" is the storage file alone, without its metadata.
        name: its own.
    """

    def __init__(self, folder: Path, kind: str = "mcap", name: str = "demo") -> None:
        self.ros, self.kind = (1 if kind == "bag" else 2), kind
        self.store = STORES[self.ros]
        self._connections: dict[str, Any] = {}
        self._writer: Any
        if self.ros == 1:
            self.path = folder / f"{name}.bag"
            self._writer = rosbag1.Writer(self.path)
        else:
            plugin = StoragePlugin.MCAP if kind.startswith("mcap") else StoragePlugin.SQLITE3
            self.path = folder / name
            self._writer = rosbag2.Writer(self.path, version=8, storage_plugin=plugin)
        self._writer.open()

    def write(self, topic: str, kind: str, seconds: float, message: Any) -> None:
        """A message at a time since `BEGIN`."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self.store
            )
        serialize = self.store.serialize_ros1 if self.ros == 1 else self.store.serialize_cdr
        at = BEGIN + round(1e9 * seconds)
        self._writer.write(self._connections[topic], at, serialize(message, kind))

    def close(self) -> Path:
        """The path to read it from."""
        self._writer.close()
        if self.kind.endswith("file"):
            (self.path / "metadata.yaml").unlink()
            (storage,) = self.path.iterdir()
            return storage
        return self.path

    def _time(self, seconds: float, name: str = "Time") -> Any:
        nanoseconds = round(1e9 * seconds)
        parts = divmod(nanoseconds, 10**9)
        return self.store.types[f"builtin_interfaces/msg/{name}"](*parts)

    def _header(self, stamp: float) -> Any:
        header = self.store.types["std_msgs/msg/Header"]
        time = self._time(0 if stamp < 0 else BEGIN // 10**9 + stamp)
        return header(0, time, "") if self.ros == 1 else header(time, "")

    def joints(
        self,
        seconds: float,
        names: Sequence[str],
        positions: Sequence[float],
        topic: str = "/joint_states",
        stamp: float | None = None,
    ) -> None:
        kind = "sensor_msgs/msg/JointState"
        header = self._header(seconds if stamp is None else stamp)
        values = np.array(positions, float)
        message = self.store.types[kind](header, list(names), values, np.zeros(0), np.zeros(0))
        self.write(topic, kind, seconds, message)

    def picture(
        self,
        seconds: float,
        image: np.ndarray,
        topic: str = "/camera/front/compressed",
        raw: bool = False,
        stamp: float | None = None,
    ) -> None:
        header = self._header(seconds if stamp is None else stamp)
        if raw:
            kind = "sensor_msgs/msg/Image"
            height, width = image.shape[:2]
            message = self.store.types[kind](
                header, height, width, "rgb8", 0, 3 * width, image.reshape(-1)
            )
        else:
            kind = "sensor_msgs/msg/CompressedImage"
            data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].reshape(-1)
            message = self.store.types[kind](header, "png", data)
        self.write(topic, kind, seconds, message)

    def trajectory(
        self,
        seconds: float,
        names: Sequence[str],
        times: Sequence[float],
        positions: np.ndarray,
        velocities: np.ndarray | None = None,
        topic: str = "/command",
        stamp: float = -1,
    ) -> None:
        kind, point = (f"trajectory_msgs/msg/JointTrajectory{n}" for n in ("", "Point"))
        none = np.zeros(0)
        points = [
            self.store.types[point](
                np.array(positions[i], float),
                none if velocities is None else np.array(velocities[i], float),
                none,
                none,
                self._time(t, "Duration"),
            )
            for i, t in enumerate(times)
        ]
        message = self.store.types[kind](self._header(stamp), list(names), points)
        self.write(topic, kind, seconds, message)

    def array(self, seconds: float, values: Sequence[float], topic: str = "/command") -> None:
        kind, layout = "std_msgs/msg/Float64MultiArray", "std_msgs/msg/MultiArrayLayout"
        message = self.store.types[kind](self.store.types[layout]([], 0), np.array(values, float))
        self.write(topic, kind, seconds, message)


def shown(number: int, size: tuple[int, int] = (16, 24), seed: int = 0) -> np.ndarray:
    """A picture that no other number has, uint8 ``[H, W, 3]``."""
    return np.random.default_rng([seed, number]).integers(0, 255, (*size, 3), np.uint8)


def write_demo(
    folder: Path,
    kind: str = "mcap",
    name: str = "demo",
    seconds: float = 2.0,
    seed: int = 0,
    pause: tuple[float, float] | None = None,
) -> Path:
    """Two joints at 50 Hz (of three, in another order), pictures at 25 Hz, targets at 20 Hz.

    Joint a is at ``t``, b at ``10 + t``, t being the time of the message; targets are `ahead` of
    them by 0.5. Between the times of `pause` there are no pictures.
    """
    bag = BagFile(folder, kind, name)
    rows: list[tuple[float, str, int]] = []
    rows += [(k / 50, "joints", k) for k in range(round(50 * seconds) + 1)]
    rows += [(k / 25, "picture", k) for k in range(round(25 * seconds) + 1)]
    rows += [(k / 20, "target", k) for k in range(round(20 * seconds) + 1)]
    for t, what, k in sorted(rows):
        if what == "joints":
            bag.joints(t, ["b", "other", "a"], [10 + t, -1, t])
        elif what == "target":
            bag.array(t, [t + 0.5, 10.5 + t])
        elif pause is None or not pause[0] <= t < pause[1]:
            bag.picture(t, shown(k, seed=seed))
    return bag.close()
