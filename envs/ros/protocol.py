"""The rosbridge v2 protocol: one message to text, one frame to a message.

Nothing here knows of sockets. What arrives is not trusted: a frame becomes a checked dict or a
`ProtocolError`, never another exception, and how much memory it can take is bounded before it is
parsed. NaN and infinity are refused in both directions, with the place where they stand.

CBOR is what cameras come in (server to client only: a binary frame from a client makes the official
server drop the connection). Its arrays of numbers come as NumPy arrays, its bytes as bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2
import numpy as np

from .errors import NonFiniteError, ProtocolError

Message = dict[str, Any]

MAX_BYTES = 16 * 2**20
"""Of one message that arrives, fragments put together: a raw 1920 x 1080 picture and to spare."""
MAX_SENT = 2**20
"""Of one message that is sent, characters."""
MAX_ITEMS = 100_000
"""Values, keys and containers in one message; an array of numbers in CBOR, and text, are one."""
MAX_DEPTH = 32
"""Containers in containers."""
MAX_INT = 2**64
"""Integers are smaller than that in ROS; what is not would overflow a float later."""
MAX_FRAGMENTED, MAX_FRAGMENTS = 4, 10_000
"""Messages in pieces at a time, and pieces of one."""
FRAGMENT_SECONDS = 10.0
"""How long the pieces of a message are waited for."""
SHOWN = 120
"""Characters of foreign text in an error."""

# What each op has to hold. A tuple is a choice; optional fields are checked if they are there.
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "publish": {"topic": str, "msg": dict},
    "service_response": {"service": str},
    "action_feedback": {"id": str, "values": dict},
    "action_result": {"id": str},
    "status": {"msg": str},
    "fragment": {"id": (str, int), "data": str, "num": (int, float), "total": (int, float)},
}
OPTIONAL: Mapping[str, Mapping[str, Any]] = {
    "service_response": {"id": str, "result": bool},
    "action_result": {"result": bool, "status": int},
    "status": {"level": str, "id": (str, type(None))},
}

# RFC 8746: tags of little-endian arrays. uint8 (64) is handed over as bytes.
ARRAYS = {
    64: "u1", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8", 72: "i1", 77: "<i2", 78: "<i4", 79: "<i8",
    84: "<f2", 85: "<f4", 86: "<f8",
}  # fmt: skip

# Text as one token (its end may be missing), so that brackets inside it do not count. Possessive:
# linear in its length, whatever it is.
BRACKETS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


# --- to the server -------------------------------------------------------------------------------


def encode(message: Mapping[str, Any]) -> str:
    """A message as JSON text. NumPy arrays and numbers may stand for lists and numbers.

    Raises:
        NonFiniteError: NaN or infinity in it; says where.
        ProtocolError: it holds what JSON cannot, goes in circles, or is longer than `MAX_SENT`.
    """
    try:
        text = json.dumps(message, allow_nan=False, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ValueError) and "range" in str(error):
            raise NonFiniteError(f"not sent: {_where_not_finite(message)}") from None
        raise ProtocolError(f"not sent: {error}") from error
    if len(text) > MAX_SENT:
        raise ProtocolError(f"not sent: {len(text)} characters, at most {MAX_SENT} may be")
    return text


def _plain(value: object) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


def _where_not_finite(message: object) -> str:
    """Of a message that JSON refused for its numbers, which."""
    stack: list[tuple[str, Any]] = [("", message)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        if isinstance(value, Mapping):
            stack += [(f"{path}.{key}" if path else str(key), v) for key, v in value.items()]
        elif isinstance(value, list | tuple):
            stack += [(f"{path}[{i}]", v) for i, v in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{path} is {value}"
    return "a number that is not finite"


def advertise(topic: str, type_: str, latch: bool = False) -> Message:
    """The op that announces what we publish."""
    return {"op": "advertise", "topic": topic, "type": type_, "latch": latch, "queue_size": 1}


def unadvertise(topic: str) -> Message:
    return {"op": "unadvertise", "topic": topic}


def publish(topic: str, message: Mapping[str, Any]) -> Message:
    return {"op": "publish", "topic": topic, "msg": message}


def subscribe(topic: str, type_: str, throttle_s: float = 0.0, cbor: bool = False) -> Message:
    """The op that asks for a topic.

    A queue of one is what keeps the newest message while throttled; without one it may be dropped.
    """
    return {
        "op": "subscribe",
        "topic": topic,
        "type": type_,
        "throttle_rate": round(throttle_s * 1000),
        "queue_length": 1,
        "compression": "cbor" if cbor else "none",
    }


def unsubscribe(topic: str) -> Message:
    return {"op": "unsubscribe", "topic": topic}


def call_service(id_: str, service: str, type_: str, args: Mapping[str, Any]) -> Message:
    return {"op": "call_service", "id": id_, "service": service, "type": type_, "args": args}


def send_action_goal(id_: str, action: str, type_: str, goal: Mapping[str, Any]) -> Message:
    return {
        "op": "send_action_goal", "id": id_, "action": action, "action_type": type_,
        "args": goal, "feedback": True,
    }  # fmt: skip


def cancel_action_goal(id_: str, action: str) -> Message:
    return {"op": "cancel_action_goal", "id": id_, "action": action}


# --- from the server -----------------------------------------------------------------------------


def decode(frame: str | bytes, max_bytes: int = MAX_BYTES) -> Message:
    """The message in a websocket frame: JSON in a text frame, CBOR in a binary one.

    Returns:
        A dict with "op", and with all that `REQUIRED` lists for it in the right types.

    Raises:
        NonFiniteError: NaN or infinity in it; says where.
        ProtocolError: it is malformed, of an unknown op, too large, too deep or of too many parts.
    """
    if len(frame) > max_bytes:
        raise ProtocolError(f"a frame of {len(frame)}, at most {max_bytes} are read")
    message = _from_json(frame) if isinstance(frame, str) else _from_cbor(bytes(frame))
    if not isinstance(message, dict):
        raise ProtocolError(f"a message is a map, found {type(message).__name__}")
    _require_sane(message)
    _require_fields(message)
    return message


def _from_json(text: str) -> Any:
    # Deep nesting would exhaust the C stack; how many parts there are bounds what parsing takes.
    if text.count(",") + text.count("[") + text.count("{") > MAX_ITEMS:
        raise ProtocolError(f"more than {MAX_ITEMS} parts")
    if text.count("[") + text.count("{") > MAX_DEPTH:
        depth = 0
        for token in BRACKETS.finditer(text):
            first = text[token.start()]
            depth += (first in "[{") - (first in "]}")
            if depth > MAX_DEPTH:
                raise ProtocolError(f"deeper than {MAX_DEPTH}")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except NonFiniteError:
        raise
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {_short(str(error))}") from None


def _refuse_constant(name: str) -> float:
    raise NonFiniteError(f"{name} in a message")


def _from_cbor(data: bytes) -> Any:
    _measure(data)
    try:
        return cbor2.loads(data)
    # cbor2 hands on what converting a value raises, wrapped or bare.
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ProtocolError(f"no CBOR: {_short(str(error))}") from None


def _measure(data: bytes) -> None:
    """Walk over CBOR without building anything: its bounds, before a parser sees it.

    Raises:
        ProtocolError: lengths beyond the end, too many or too deep parts, a tag other than those of
            arrays of numbers, or an indefinite length (no server sends them).
    """
    left = [1]  # items still to come, per container that is open
    at = items = 0
    while left:
        if left[-1] == 0:
            left.pop()
            continue
        left[-1] -= 1
        items += 1
        if at >= len(data) or items > MAX_ITEMS:
            raise ProtocolError(
                f"CBOR ends early, at byte {at}" if at >= len(data) else f"over {MAX_ITEMS} parts"
            )
        major, short = data[at] >> 5, data[at] & 31
        at += 1
        if short > 27:
            raise ProtocolError("CBOR of indefinite length, or malformed")
        extra = 1 << (short - 24) if short > 23 else 0
        if at + extra > len(data):
            raise ProtocolError("CBOR ends within a number")
        value = int.from_bytes(data[at : at + extra], "big") if extra else short
        at += extra
        if major in (2, 3):
            at += value
            if at > len(data):
                raise ProtocolError("CBOR ends within text or bytes")
        elif major in (4, 5):
            left.append(value * (major - 3))
            if value > MAX_ITEMS:
                raise ProtocolError(f"over {MAX_ITEMS} parts")
        elif major == 6:
            if value not in ARRAYS:
                raise ProtocolError(f"CBOR tag {value} is not known")
            left.append(1)
        if len(left) > MAX_DEPTH + 1:
            raise ProtocolError(f"deeper than {MAX_DEPTH}")
    if at != len(data):
        raise ProtocolError(f"{len(data) - at} bytes after the end of the CBOR")


# --- both serialisations -------------------------------------------------------------------------


def _require_sane(message: Message) -> None:
    """Check every value, and turn tagged bytes into arrays, in place.

    Containers are walked with a stack of our own: no message can exhaust Python's.
    """
    stack: list[tuple[str, dict[str, Any] | list[Any]]] = [("", message)]
    while stack:
        path, container = stack.pop()
        if isinstance(container, dict):
            pairs: Iterable[tuple[Any, Any]] = container.items()
            if not all(isinstance(key, str) for key in container):
                raise ProtocolError(f"a key in {path or 'a message'} is not text")
        else:
            pairs = enumerate(container)
        tagged = []
        for key, value in pairs:
            if isinstance(value, dict | list):
                stack.append((_join(path, key), value))
            elif isinstance(value, float):
                if not math.isfinite(value):
                    raise NonFiniteError(f"{_join(path, key)} is {value}")
            elif isinstance(value, cbor2.CBORTag):
                tagged.append((key, value))
            elif isinstance(value, int):
                if abs(value) >= MAX_INT:
                    raise ProtocolError(f"{_join(path, key)} is beyond 64 bits")
            elif value is not None and not isinstance(value, str | bytes):
                raise ProtocolError(f"{_join(path, key)} is a {type(value).__name__}")
        for key, value in tagged:
            container[key] = _array(value, _join(path, key))


def _array(tagged: cbor2.CBORTag, path: str) -> np.ndarray | bytes:
    """``[N]`` numbers from a tag of RFC 8746; bytes where they are uint8."""
    data = tagged.value
    if not isinstance(data, bytes):
        raise ProtocolError(f"{path}: an array of numbers without bytes")
    dtype = np.dtype(ARRAYS[tagged.tag])
    if len(data) % dtype.itemsize:
        raise ProtocolError(f"{path}: {len(data)} bytes are no whole number of {dtype}")
    if dtype == np.uint8:
        return data
    array = np.frombuffer(data, dtype)
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise NonFiniteError(f"{path} holds a number that is not finite")
    return array


def _require_fields(message: Message) -> None:
    op = message.get("op")
    if not isinstance(op, str) or op not in REQUIRED:
        raise ProtocolError(f"op {_short(repr(op))} is not known")
    for name, kind in REQUIRED[op].items():
        if not isinstance(message.get(name), kind) or isinstance(message[name], bool):
            raise ProtocolError(f"{op}: {name} is missing or of a wrong type")
    for name, kind in OPTIONAL.get(op, {}).items():
        if name in message and not isinstance(message[name], kind):
            raise ProtocolError(f"{op}: {name} is of a wrong type")


def _join(path: str, key: object) -> str:
    step = f"[{key}]" if isinstance(key, int) else _short(str(key))
    return _short(f"{path}.{step}" if path and not isinstance(key, int) else path + step)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


# --- fragments -----------------------------------------------------------------------------------


@dataclass
class _Pieces:
    total: int
    since: float
    data: dict[int, str] = field(default_factory=dict)


class Fragments:
    """Puts messages together that come in pieces.

    Bounded: pieces of `MAX_FRAGMENTED` messages are held, the oldest make room, and all pieces
    together are at most `max_bytes` characters. What is not whole within `FRAGMENT_SECONDS` is
    dropped. One per connection: pieces of two connections are never joined.
    """

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes = max_bytes
        self._held: OrderedDict[str | int, _Pieces] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        """Messages that are not whole yet."""
        return len(self._held)

    @property
    def size(self) -> int:
        """Characters held."""
        return self._size

    def add(self, fragment: Message, now: float) -> Message | None:
        """The message that this piece (as `decode` gave it) completes, or None.

        Args:
            fragment: pieces come in any order, and may come twice.
            now: seconds, on any clock that runs evenly.

        Raises:
            ProtocolError: the piece contradicts itself or others, the message that it completes is
                malformed, or there is no room. What was held of that message is dropped.
        """
        for key in [k for k, p in self._held.items() if now - p.since > FRAGMENT_SECONDS]:
            self._drop(key)
        key, data = fragment["id"], fragment["data"]
        # The official server writes the total as a float.
        number, total = int(fragment["num"]), int(fragment["total"])
        if number != fragment["num"] or total != fragment["total"]:
            raise ProtocolError("fragment: num and total are whole numbers")
        if not 0 <= number < total <= MAX_FRAGMENTS:
            self._drop(key)
            raise ProtocolError(f"fragment {number} of {total}, at most {MAX_FRAGMENTS} are read")
        if key not in self._held:
            if len(self._held) >= MAX_FRAGMENTED:
                self._drop(next(iter(self._held)))
            self._held[key] = _Pieces(total, now)
        pieces = self._held[key]
        if pieces.total != total or pieces.data.get(number, data) != data:
            self._drop(key)
            raise ProtocolError("fragment: two pieces of one message contradict each other")
        if number not in pieces.data:
            if self._size + len(data) > self.max_bytes:
                self._drop(key)
                raise ProtocolError(f"fragments of over {self.max_bytes} characters")
            pieces.data[number] = data
            self._size += len(data)
        if len(pieces.data) < total:
            return None
        self._drop(key)
        message = decode("".join(pieces.data[i] for i in range(total)), self.max_bytes)
        if message["op"] == "fragment":
            raise ProtocolError("a fragment of fragments")
        return message

    def _drop(self, key: str | int) -> None:
        if pieces := self._held.pop(key, None):
            self._size -= sum(map(len, pieces.data.values()))
