"""ROS messages as dicts, in the forms of ROS 1 and ROS 2, and what we need out of them.

The two differ in type names (``pkg/Type`` and ``pkg/msg/Type``), in stamps (secs/nsecs and
sec/nanosec) and in ``header.seq``. Reading takes either; writing takes ``ros``.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Message = dict[str, Any]

MAX_SIDE = 4096
"""Of a picture, pixels: what it takes to decode one is known before it is decoded."""
RAW = {"rgb8": 3, "bgr8": 3, "mono8": 1}
"""Encodings of raw pictures -> bytes of a pixel."""
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
NAME = re.compile(r"([A-Za-z]\w*)/(?:(msg|srv|action)/)?([A-Za-z]\w*)")


class MessageError(ValueError):
    """A message that does not hold what its type says."""


# --- types and stamps ----------------------------------------------------------------------------


def type_name(name: str, ros: int, kind: str = "msg") -> str:
    """A type's name as this ROS spells it: ``sensor_msgs/msg/Image`` or ``sensor_msgs/Image``.

    Args:
        name: in either form.
        ros: 1 or 2.
        kind: "msg", "srv" or "action": what a name without a middle part is taken for.

    Raises:
        ValueError: no name of a type, or no ROS.
    """
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError(f"{name!r} is no type: expected pkg/Type or pkg/{kind}/Type")
    package, middle, last = found.groups()
    return f"{package}/{last}" if _checked_ros(ros) == 1 else f"{package}/{middle or kind}/{last}"


def stamp_of(message: Mapping[str, Any]) -> float | None:
    """Stamp of a message's header, seconds since the epoch; None without one, or one of zero.

    Zero is how ROS says that there is no time.
    """
    header = message.get("header")
    stamp = header.get("stamp") if isinstance(header, Mapping) else None
    if not isinstance(stamp, Mapping):
        return None
    whole, part = stamp.get("sec", stamp.get("secs")), stamp.get("nanosec", stamp.get("nsecs"))
    if not _is_number(whole) or not _is_number(part):
        return None
    seconds = float(whole) + float(part) * 1e-9
    return seconds or None


def time_message(seconds: float, ros: int) -> Message:
    """A time or duration of `seconds` >= 0, to the nanosecond that is nearest."""
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"a time is finite and at least 0, found {seconds}")
    whole, part = divmod(round(seconds * 1e9), 10**9)
    if _checked_ros(ros) == 1:
        return {"secs": whole, "nsecs": part}
    return {"sec": whole, "nanosec": part}


def header(ros: int, stamp: float = 0.0, frame: str = "") -> Message:
    """A header. A stamp of 0 has to be there: a server fills one that is left out with its now."""
    head: Message = {"stamp": time_message(stamp, ros), "frame_id": frame}
    return {"seq": 0} | head if ros == 1 else head


def _checked_ros(ros: int) -> int:
    if ros not in (1, 2):
        raise ValueError(f"ros is {ros!r}; there are 1 and 2")
    return ros


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- commands ------------------------------------------------------------------------------------


def joint_trajectory(
    names: Sequence[str],
    positions: np.ndarray,
    velocities: np.ndarray | None,
    times: np.ndarray,
    ros: int = 2,
    frame: str = "",
    stamp: float = 0.0,
) -> Message:
    """A trajectory_msgs JointTrajectory.

    Args:
        names: of J joints, each once.
        positions: ``[K, J]``, rad or m, K >= 1.
        velocities: ``[K, J]`` per second; None sends none, and controllers draw straight lines.
        times: ``[K]`` seconds from the start, rising, the first above 0.
        ros: 1 or 2.
        frame: who sends it: controllers do not look at it.
        stamp: when it starts, seconds since the epoch on the robot's clock; 0: when it arrives.

    Raises:
        ValueError: shapes that do not fit, names twice, numbers that are not finite, or times that
            do not rise.
    """
    names = list(names)
    positions = _finite("positions", positions, (None, len(names)))
    count = len(positions)
    times = _finite("times", times, (count,))
    if not names or len(set(names)) < len(names):
        raise ValueError(f"joints have names, each once; found {names}")
    if not count or times[0] <= 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"times rise from above 0, found {times.tolist()}")
    speeds: list[list[float]] = [[] for _ in range(count)]
    if velocities is not None:
        speeds = _finite("velocities", velocities, positions.shape).tolist()
    points = [
        {
            "positions": position.tolist(),
            "velocities": speed,
            "accelerations": [],
            "effort": [],
            "time_from_start": time_message(float(time), ros),
        }
        for position, speed, time in zip(positions, speeds, times, strict=True)
    ]
    return {"header": header(ros, stamp, frame), "joint_names": names, "points": points}


def float64_array(values: np.ndarray) -> Message:
    """A std_msgs Float64MultiArray of ``[J]`` values; the same in ROS 1 and 2.

    Raises:
        ValueError: of another shape, or not finite.
    """
    values = _finite("values", values, (None,))
    return {"layout": {"dim": [], "data_offset": 0}, "data": values.tolist()}


def _finite(what: str, values: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    fits = array.ndim == len(shape) and all(
        n is None or n == m for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{what} are {list(array.shape)}, expected {list(shape)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} are not finite")
    return array


# --- observations --------------------------------------------------------------------------------


@dataclass(frozen=True)
class JointReading:
    """What a sensor_msgs JointState says.

    Attributes:
        names: of J joints, in the message's order, which may be any.
        position: float64 ``[J]``, rad or m.
        velocity: float64 ``[J]`` per second; None where the driver measures none.
        stamp: seconds since the epoch, see `stamp_of`.
    """

    names: tuple[str, ...]
    position: np.ndarray
    velocity: np.ndarray | None
    stamp: float | None

    def ordered(self, names: Sequence[str]) -> JointReading:
        """The same of these joints in this order.

        Raises:
            MessageError: names those that are not in the message.
        """
        if missing := [n for n in names if n not in self.names]:
            raise MessageError(f"no joints {missing} in the message; it has {list(self.names)}")
        at = [self.names.index(n) for n in names]
        velocity = None if self.velocity is None else self.velocity[at]
        return JointReading(tuple(names), self.position[at], velocity, self.stamp)


def joint_reading(message: Mapping[str, Any]) -> JointReading:
    """Read a JointState. Efforts are not looked at: many drivers leave NaN there.

    The official server writes NaN as null. Velocities that are all null are none; where some are,
    or a position is, nothing can be told from the message.

    Raises:
        MessageError: names that are none or not each once, arrays of other lengths, or values that
            are no finite numbers.
    """
    names = message.get("name")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise MessageError("JointState: no names")
    if len(set(names)) < len(names):
        raise MessageError(f"JointState: a name twice in {names}")
    position = _numbers(message.get("position"), "position", len(names))
    speeds = message.get("velocity")
    none = speeds is None or (isinstance(speeds, list) and all(v is None for v in speeds))
    if none or (isinstance(speeds, np.ndarray) and not len(speeds)):
        velocity = None
    else:
        velocity = _numbers(speeds, "velocity", len(names))
    return JointReading(tuple(names), position, velocity, stamp_of(message))


def _numbers(values: Any, what: str, count: int) -> np.ndarray:
    """float64 ``[count]``."""
    if not isinstance(values, list | np.ndarray) or len(values) != count:
        found = len(values) if isinstance(values, list | np.ndarray) else type(values).__name__
        raise MessageError(f"JointState: {what} has {found} of {count} values")
    if isinstance(values, list) and not all(_is_number(v) for v in values):
        raise MessageError(f"JointState: {what} holds what is no number: {values!r:.200}")
    array = np.array(values, np.float64)
    if not np.isfinite(array).all():
        raise MessageError(f"JointState: {what} is not finite")
    return array


def picture(message: Mapping[str, Any]) -> np.ndarray:
    """The picture in a CompressedImage (JPEG or PNG) or a raw Image (rgb8, bgr8, mono8).

    Args:
        message: its data as bytes (CBOR) or as base64 (JSON).

    Returns:
        uint8 ``[H, W, 3]`` RGB; a grey picture has three equal channels.

    Raises:
        MessageError: it cannot be decoded, is cut off, of another encoding, or wider or higher
            than `MAX_SIDE`.
    """
    data = message.get("data")
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MessageError(f"a picture that is no base64: {error}") from None
    if not isinstance(data, bytes) or not data:
        raise MessageError("a picture without data")
    return _raw(message, data) if "encoding" in message else _compressed(data)


def _compressed(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            _require_size(*image.size)
            return np.array(image.convert("RGB"))
    except MessageError:
        raise
    # Pillow lets the errors of its decoders through.
    except (OSError, ValueError, SyntaxError, EOFError, *BOMBS) as error:
        raise MessageError(f"a picture that cannot be decoded: {error}") from None


def _raw(message: Mapping[str, Any], data: bytes) -> np.ndarray:
    encoding = message["encoding"]
    if not isinstance(encoding, str) or encoding not in RAW:
        raise MessageError(f"encoding {encoding!r:.50}; read are {', '.join(RAW)}")
    channels = RAW[encoding]
    height, width, step = (message.get(n) for n in ("height", "width", "step"))
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in (height, width, step)):
        raise MessageError("a raw picture without height, width and step")
    assert isinstance(height, int)
    assert isinstance(width, int)
    assert isinstance(step, int)
    _require_size(width, height)
    if step < width * channels or len(data) != step * height:
        raise MessageError(
            f"{len(data)} bytes are no {height} rows of {step}, with {width} pixels of {channels}"
        )
    rows = np.frombuffer(data, np.uint8).reshape(height, step)[:, : width * channels]
    pixels: np.ndarray = rows.reshape(height, width, channels)
    if encoding == "bgr8":
        pixels = pixels[..., ::-1]
    return np.array(np.broadcast_to(pixels, (height, width, 3)), order="C")


def _require_size(width: int, height: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise MessageError(f"a picture of {width} x {height}, at most {MAX_SIDE} each")
