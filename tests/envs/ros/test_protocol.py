"""Encoding and decoding: what is allowed comes back as it was, all else is refused by name."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.ros import protocol
from envs.ros.errors import NonFiniteError, ProtocolError

NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6), v, max_size=4),
    max_leaves=20,
)
MESSAGES = st.dictionaries(st.text(max_size=6), VALUES, max_size=5)


def frame(message: Any) -> str:
    return json.dumps({"op": "publish", "topic": "/t", "msg": message})


def cbor_frame(message: Any) -> bytes:
    return cbor2.dumps({"op": "publish", "topic": "/t", "msg": message})


# --- both directions -----------------------------------------------------------------------------


@given(MESSAGES)
def test_what_is_encoded_decodes_to_the_same(message: dict[str, Any]) -> None:
    op = protocol.publish("/t", message)
    assert protocol.decode(protocol.encode(op)) == op


@given(MESSAGES)
def test_cbor_decodes_to_the_same_as_json(message: dict[str, Any]) -> None:
    assert protocol.decode(cbor_frame(message)) == protocol.decode(frame(message))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        (lambda v: {"a": [0.0, {"b": v}]}, "msg.a[1].b"),
        (lambda v: {"a": np.array([0.0, v])}, "msg.a[1]"),
        (lambda v: {"a": np.float32(v)}, "msg.a"),
        (lambda v: {"a": (0, v)}, "msg.a[1]"),
    ],
)
def test_non_finite_is_not_encoded_and_the_error_says_where(
    value: float, wrap: Any, where: str
) -> None:
    with pytest.raises(NonFiniteError) as refused:
        protocol.encode(protocol.publish("/t", wrap(value)))
    assert where in str(refused.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_non_finite_json_is_refused(text: str) -> None:
    with pytest.raises(NonFiniteError):
        protocol.decode('{"op":"publish","topic":"/t","msg":{"a":[0,' + text + "]}}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["plain", "<f2", "<f4", "<f8"])
def test_non_finite_cbor_is_refused(value: float, kind: str) -> None:
    tag = {"<f2": 84, "<f4": 85, "<f8": 86}
    held: Any = value
    if kind != "plain":
        held = cbor2.CBORTag(tag[kind], np.array([0, value], kind).tobytes())
    with pytest.raises(NonFiniteError, match=r"msg\.a"):
        protocol.decode(cbor_frame({"a": held}))


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"a": b"bytes"}, "bytes is nothing"),
        ({"a": object()}, "object is nothing"),
        ({"a": "x" * (protocol.MAX_SENT + 1)}, "characters"),
    ],
)
def test_what_json_cannot_hold_is_not_encoded(message: Any, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        protocol.encode(protocol.publish("/t", message))


def test_circles_are_not_encoded() -> None:
    message: dict[str, Any] = {}
    message["a"] = message
    with pytest.raises(ProtocolError):
        protocol.encode(protocol.publish("/t", message))


def test_arrays_are_encoded_as_lists() -> None:
    text = protocol.encode({"op": "x", "a": np.arange(3.0), "b": np.int64(3)})
    assert json.loads(text) == {"op": "x", "a": [0.0, 1.0, 2.0], "b": 3}


@pytest.mark.parametrize("tag", [t for t, kind in protocol.ARRAYS.items() if kind != "u1"])
def test_arrays_of_cbor_are_arrays(tag: int) -> None:
    array = np.array([0, 1, 2], protocol.ARRAYS[tag])
    found = protocol.decode(cbor_frame({"a": cbor2.CBORTag(tag, array.tobytes())}))["msg"]["a"]
    assert found.dtype == array.dtype
    assert (found == array).all()


def test_bytes_of_cbor_are_bytes() -> None:
    message = {"a": b"\x00\xff", "b": cbor2.CBORTag(64, b"\x00\xff")}
    assert protocol.decode(cbor_frame(message))["msg"] == {"a": b"\x00\xff", "b": b"\x00\xff"}


# --- what is refused -----------------------------------------------------------------------------

PUBLISH = '{"op":"publish","topic":"/t","msg":{}}'
BAD_TEXT = {
    "nothing": "",
    "no JSON": "{",
    "no map": "[1]",
    "no op": "{}",
    "op that is none": '{"op":3}',
    "unknown op": '{"op":"shutdown"}',
    "png": '{"op":"png","data":""}',
    "no topic": '{"op":"publish","msg":{}}',
    "topic of a wrong type": '{"op":"publish","topic":[],"msg":{}}',
    "msg of a wrong type": '{"op":"publish","topic":"/t","msg":[]}',
    "id of a wrong type": '{"op":"service_response","service":"/s","id":{}}',
    "result of a wrong type": '{"op":"service_response","service":"/s","id":"1","result":"no"}',
    "status of a wrong type": '{"op":"action_result","id":"1","status":"4"}',
    "level of a wrong type": '{"op":"status","msg":"","level":[]}',
    "fragment number of a wrong type": '{"op":"fragment","id":"1","data":"","num":true,"total":1}',
    "huge number": '{"op":"publish","topic":"/t","msg":{"a":' + "9" * 400 + "}}",
    "number of too many digits": '{"op":"publish","topic":"/t","msg":{"a":' + "9" * 9000 + "}}",
    "deep lists": '{"op":"publish","topic":"/t","msg":{"a":' + "[" * 100_000,
    "deep maps": '{"op":' * 90_000,
    "deep, closed": '{"a":' * 40 + "1" + "}" * 40,
    "too many parts": '{"op":"publish","topic":"/t","msg":{"a":[' + "0," * 200_000 + "0]}}",
    "two messages": PUBLISH + PUBLISH,
}
HEAD = bytes.fromhex("a3626f70677075626c69736865746f706963622f74636d7367")  # ... "msg":
BAD_BYTES = {
    "nothing": b"",
    "no map": cbor2.dumps([1]),
    "key that is no text": cbor2.dumps({"op": "publish", "topic": "/t", "msg": {1: 2}}),
    "list of 2^60": HEAD + bytes.fromhex("a161619b1000000000000000"),
    "map of 2^64": HEAD + bytes.fromhex("bbffffffffffffffff"),
    "bytes of 2^60": HEAD + bytes.fromhex("a161615b1000000000000000"),
    "text of 2^30": HEAD + bytes.fromhex("a161617a40000000"),
    "indefinite": HEAD + bytes.fromhex("bf616100ff"),
    "circle": HEAD + bytes.fromhex("a16161d81c81d81d00"),
    "huge decimal": HEAD + bytes.fromhex("a16161c4821a7fffffff01"),
    "regular expression": HEAD + bytes.fromhex("a16161d82361282828"),
    "date": HEAD + bytes.fromhex("a16161c11bffffffffffffffff"),
    "bignum": HEAD + bytes.fromhex("a16161c249") + b"\xff" * 9,
    "undefined": HEAD + bytes.fromhex("a16161f7"),
    "simple value": HEAD + bytes.fromhex("a16161e0"),
    "no utf-8": HEAD + bytes.fromhex("a1616162c328"),
    "array of no bytes": HEAD + bytes.fromhex("a16161d85600"),
    "array of seven bytes": HEAD + bytes.fromhex("a16161d856") + b"\x47" + b"1234567",
    "array in an array": HEAD + bytes.fromhex("a16161d856d85640"),
    "deep": HEAD + b"\xa1\x61\x61" + b"\x81" * 100_000 + b"\x00",
    "too many parts": HEAD + b"\xa1\x61\x61\x9a\x00\x03\x0d\x40" + b"\x80" * 200_000,
    "more after the end": cbor2.dumps({"op": "publish", "topic": "/t", "msg": {}}) + b"\x00",
}


def test_the_head_of_the_bad_bytes_is_good() -> None:
    assert protocol.decode(HEAD + b"\xa0") == protocol.decode(PUBLISH)


@pytest.mark.parametrize("text", BAD_TEXT.values(), ids=BAD_TEXT.keys())
def test_bad_text_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(text)


@pytest.mark.parametrize("data", BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_bad_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(data)


def test_an_error_does_not_repeat_the_message() -> None:
    for bad in ('{"op":"' + "x" * 10**6 + '"}', cbor_frame({"y" * 10**6: math.nan})):
        with pytest.raises(ProtocolError) as refused:
            protocol.decode(bad)
        assert len(str(refused.value)) < 1000


def test_a_frame_that_is_too_large_is_refused() -> None:
    with pytest.raises(ProtocolError, match="at most 10"):
        protocol.decode(PUBLISH, max_bytes=10)


def test_brackets_in_text_are_no_depth() -> None:
    assert protocol.decode(frame({"a": '[{\\"' * 100}))["msg"] == {"a": '[{\\"' * 100}


@pytest.mark.parametrize("text", ['{"a":"' + '\\"' * 10**6, "[" * 33 + '"' + '\\"' * 10**6])
def test_looking_for_depth_takes_linear_time(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ProtocolError):
        protocol.decode(text)
    assert time.process_time() - start < 2


def test_decoding_leaves_the_recursion_limit_alone() -> None:
    before = sys.getrecursionlimit()
    with pytest.raises(ProtocolError):
        protocol.decode("[" * 10**6)
    assert sys.getrecursionlimit() == before


# --- fragments -----------------------------------------------------------------------------------


def pieces(text: str, count: int, id_: str = "1") -> list[dict[str, Any]]:
    cuts = [len(text) * i // count for i in range(count + 1)]
    return [
        {"op": "fragment", "id": id_, "data": text[cuts[i] : cuts[i + 1]], "num": i, "total": count}
        for i in range(count)
    ]


@given(MESSAGES, st.integers(1, 7), st.randoms(use_true_random=False))
def test_pieces_in_any_order_make_the_message(message: Any, count: int, random: Any) -> None:
    text = frame(message)
    parts = pieces(text, count)
    parts = [*parts, *(random.choices(parts[:-1], k=2) if count > 1 else [])]  # some come twice
    random.shuffle(parts)
    held = protocol.Fragments()
    made = [m for p in parts if (m := held.add(p, 0.0)) is not None]
    assert made[:1] == [protocol.decode(text)]
    assert held.size <= len(text)


def test_a_total_may_be_a_float() -> None:
    held = protocol.Fragments()
    first, second = pieces(PUBLISH, 2)
    assert held.add(first | {"total": 2.0}, 0.0) is None
    assert held.add(second | {"total": 2.0}, 0.0) == protocol.decode(PUBLISH)
    assert (len(held), held.size) == (0, 0)


def test_messages_in_pieces_may_be_interleaved() -> None:
    held = protocol.Fragments()
    a, b = pieces(frame({"a": 1}), 2, "a"), pieces(frame({"b": 1}), 2, "b")
    made = [held.add(p, 0.0) for p in (a[0], b[0], a[1], b[1])]
    assert [m and m["msg"] for m in made] == [None, None, {"a": 1}, {"b": 1}]


@pytest.mark.parametrize(
    "change",
    [
        {"num": -1},
        {"num": 2},
        {"num": 0.5},
        {"total": 10**9},
        {"total": 3},
        {"num": 0, "data": "?"},
    ],
)
def test_pieces_that_contradict_are_refused(change: dict[str, Any]) -> None:
    held = protocol.Fragments()
    first, second = pieces(PUBLISH, 2)
    held.add(first, 0.0)
    with pytest.raises(ProtocolError):
        held.add(second | change, 0.0)
    assert held.size <= len(PUBLISH)


def test_pieces_of_pieces_are_refused() -> None:
    held = protocol.Fragments()
    with pytest.raises(ProtocolError, match="fragment of fragments"):
        held.add(pieces(json.dumps(pieces(PUBLISH, 1)[0]), 1)[0], 0.0)


def test_pieces_are_bounded_in_number_size_and_time() -> None:
    held = protocol.Fragments(max_bytes=1000)
    for i in range(100):
        held.add(pieces("x" * 400, 2, str(i))[0], 0.0)
        assert len(held) <= protocol.MAX_FRAGMENTED
        assert held.size <= 1000
    with pytest.raises(ProtocolError, match="over 1000"):
        held.add(pieces("x" * 4000, 2, "long")[0], 0.0)
    held.add(pieces("x" * 4, 2, "late")[0], protocol.FRAGMENT_SECONDS + 1)
    assert len(held) == 1
