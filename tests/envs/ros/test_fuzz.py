"""Malformed messages by the ten thousand: no crash, no growth, and good ones still come through."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import io
import json
import random
import resource
import sys
import time
from typing import Any

import cbor2
import numpy as np
import pytest
from PIL import Image

from envs.ros import protocol, statuses
from envs.ros.actions import Goal
from envs.ros.bridge import Bridge
from envs.ros.link import Link
from envs.ros.messages import MessageError, joint_reading, picture
from envs.ros.slots import Slot

from .fake import FakeServer, wait_until

JOINTS, CAMERA = "/joint_states", "/camera"
GOOD: list[dict[str, Any]] = [
    {
        "op": "publish",
        "topic": JOINTS,
        "msg": {
            "header": {"stamp": {"sec": 12, "nanosec": 5}, "frame_id": "base"},
            "name": ["a", "b"],
            "position": [0.25, -1.5e-3],
            "velocity": [0.0, None],
        },
    },
    {"op": "publish", "topic": CAMERA, "msg": {"format": "jpeg", "data": "/9j/4AAQSkZJRg=="}},
    {
        "op": "publish",
        "topic": CAMERA,
        "msg": {"height": 2, "width": 1, "step": 3, "encoding": "rgb8", "data": "AAECAwQF"},
    },
    {"op": "service_response", "service": "/s", "id": "call", "values": {"ok": 1}, "result": True},
    {"op": "action_feedback", "id": "goal", "action": "/a", "values": {"error": [1, 2]}},
    {
        "op": "action_result",
        "id": "other",
        "action": "/a",
        "values": {},
        "status": 4,
        "result": True,
    },
    {
        "op": "publish",
        "topic": "/a/result",
        "msg": {"status": {"goal_id": {"id": "goal"}, "status": 3}, "result": {}},
    },
    {
        "op": "publish",
        "topic": "/a/feedback",
        "msg": {"status": {"goal_id": {"id": "other"}, "status": 1}, "feedback": {"error": 1}},
    },
    {"op": "status", "level": "error", "msg": "something", "id": "1"},
    {"op": "fragment", "id": "f", "data": '{"op":"publish",', "num": 0, "total": 2.0},
    {"op": "fragment", "id": "f", "data": '"topic":"/a","msg":{}}', "num": 1, "total": 2.0},
]
NASTY: list[Any] = [
    None, True, -1, 0, 0.5, 2**31, 2**63, 2**64, -(2**80), 1e308, "", "NaN", "\ud800", "\x00",
    "x" * 500, [], {}, [[]], [{}] * 20, [None] * 50, {"": ""}, "publish", "fragment", "status",
    JOINTS, "goal", "call", float("nan"), float("-inf"), ["a"] * 3,
    {"stamp": {"sec": -1, "nanosec": 2**70}},
]  # fmt: skip
PARTS = [
    '"',
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "NaN",
    "1e999",
    "\\ud800",
    "null",
    "\x00",
    "[" * 40,
]
BYTES = [
    b"\xff",
    b"\xd8\x56",
    b"\xd8\x1c",
    b"\xc2",
    b"\xbf",
    b"\x9f",
    b"\x5b" + b"\xff" * 8,
    b"\x00",
]


def changed(value: Any, rng: random.Random) -> Any:
    """A copy with something inside replaced, doubled, renamed or missing."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        copy = dict(value)
        key = rng.choice(list(copy))
        kind = rng.random()
        if kind < 0.7:
            copy[key] = changed(copy[key], rng)
        elif kind < 0.85:
            del copy[key]
        else:
            copy[rng.choice(["op", "id", "msg", "data", "total", "x" * 300])] = copy.pop(key)
        return copy
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + rng.randrange(2) :]]
    return rng.choice(NASTY)


def mutant(rng: random.Random) -> str | bytes:
    """A frame near a good one: another structure, other characters, or bytes of nothing."""
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(80))
    message: Any = rng.choice(GOOD)
    for _ in range(rng.randrange(4)):
        message = changed(message, rng)
    if kind < 0.5:
        text = json.dumps(message)
        for _ in range(rng.randrange(4) if kind < 0.4 else 0):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice([*PARTS, ""]) + text[at + rng.randrange(4) :]
        return text
    if rng.random() < 0.3:
        tag = rng.choice([64, 69, 84, 85, 86, 4, 28, 258])
        message = {
            "op": "publish",
            "topic": JOINTS,
            "msg": {"a": cbor2.CBORTag(tag, rng.randbytes(8))},
        }
    try:
        data = bytearray(cbor2.dumps(message))
    except (cbor2.CBORError, UnicodeError):  # a lone surrogate
        return b"\x61\xff"
    for _ in range(rng.randrange(4) if kind < 0.9 else 0):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(4)] = rng.choice([*BYTES, rng.randbytes(2), b""])
    return bytes(data)


def resident() -> int:
    """Bytes of memory of this process now, or at most so far where that is not told."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fuzz(count: int, seed: int) -> None:
    """Feed a bridge, as its thread would, and read whatever gets through."""
    rng = random.Random(seed)
    client = Bridge(max_bytes=100_000)
    client._sinks |= {"/a/feedback": client._ros1_feedback, "/a/result": client._ros1_result}
    slots = [client.subscribe(topic, "std_msgs/String") for topic in (JOINTS, CAMERA)]
    link = Link(None, 1, protocol.Fragments(100_000))  # type: ignore[arg-type]
    before, read, looked, now = 0, 0, [0, 0], time.monotonic()
    for i in range(count):
        if i == count // 4:
            gc.collect()
            before = resident()
        client._calls.setdefault("call", concurrent.futures.Future())
        for id_ in ("goal", "other", "1"):
            client._goals.setdefault(id_, Goal(id_, "/a", Slot(), lambda: None))
        client._receive(link, mutant(rng))
        for at, slot in enumerate(slots):
            sample = slot.read()
            if sample is None or sample.sequence == looked[at]:
                continue
            looked[at] = sample.sequence
            with contextlib.suppress(MessageError):
                assert np.isfinite(joint_reading(sample.value).position).all()
            with contextlib.suppress(MessageError):
                assert picture(sample.value).dtype == np.uint8
            read += 1
    gc.collect()
    assert resident() - before < 16 * 2**20
    assert len(client.statuses) <= statuses.KEPT_STATUSES
    assert len(client.errors) <= statuses.KEPT_ERRORS
    for status in client.statuses:
        assert len(status.text.encode()) <= 4 * statuses.STATUS_TEXT
    assert len(link.fragments) <= protocol.MAX_FRAGMENTED
    assert link.fragments.size <= 100_000
    # It is the edge that is tried: a good part is refused, and a good part gets through.
    assert client.error_count > count // 4
    assert read > count // 20
    client._receive(link, json.dumps(GOOD[0] | {"msg": {"still": "there"}}))
    last = slots[0].read()
    assert last is not None
    assert last.value == {"still": "there"}
    assert last.arrival >= now


def test_twenty_thousand_malformed_messages() -> None:
    fuzz(20_000, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_hundreds_of_thousands_of_malformed_messages(seed: int) -> None:
    fuzz(100_000, seed)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_that_are_damaged_are_shown_or_refused(form: str, mode: str) -> None:
    rng = random.Random(f"{form} {mode}")
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, form)
    whole = file.getvalue()
    refused = 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(min(len(data), 120) if rng.random() < 0.6 else len(data))
            data[at : at + rng.choice([1, 1, 1, 8])] = rng.randbytes(rng.choice([1, 1, 1, 3]))
        try:
            found = picture({"format": form.lower(), "data": bytes(data)})
            assert (found.dtype, found.shape[2]) == (np.uint8, 3)
        except MessageError:
            refused += 1
    assert refused > 200


def test_over_a_real_socket_the_connection_and_its_commands_live_on() -> None:
    rng = random.Random(7)
    frames = [mutant(rng) for _ in range(2000)]
    # A lone surrogate is no UTF-8, so no server could put it into a text frame.
    frames = [f.encode("utf-8", "replace").decode() if isinstance(f, str) else f for f in frames]
    with FakeServer() as server, Bridge(server.url) as client:
        slot = client.subscribe("/after", "std_msgs/String")
        publisher = client.advertise("/c", "std_msgs/String")
        wait_until(lambda: len(server.got) == 2)
        server.send(*frames)
        server.publish("/after", {"data": "still there"})
        assert slot.wait(0, 5).value == {"data": "still there"}
        publisher.publish({"data": "too"}, generation=1)
        wait_until(lambda: server.of("publish"))
        assert client.generation == 1
