"""Messages of ROS 1 and ROS 2: written as the type has it, read only if they hold what it says."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from envs.ros import messages
from envs.ros.messages import MessageError, float64_array, joint_reading, joint_trajectory, picture


@pytest.mark.parametrize("kind", ["msg", "srv", "action"])
def test_types_are_spelt_as_the_ros_has_them(kind: str) -> None:
    for name in ("std_srvs/Trigger", f"std_srvs/{kind}/Trigger"):
        assert messages.type_name(name, 1, kind) == "std_srvs/Trigger"
        assert messages.type_name(name, 2, kind) == f"std_srvs/{kind}/Trigger"


@pytest.mark.parametrize("name", ["", "Trigger", "a/b/c", "a/msg/b/c", "a/msg/", "/a/b", "a b/C"])
def test_what_is_no_type_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no type"):
        messages.type_name(name, 2)


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1), st.sampled_from([1, 2]))
def test_a_stamp_that_is_written_is_read(sec: int, nanosec: int, ros: int) -> None:
    seconds = sec + nanosec * 1e-9
    stamp = messages.time_message(seconds, ros)
    assert all(isinstance(v, int) for v in stamp.values())
    assert 0 <= list(stamp.values())[1] < 10**9
    found = messages.stamp_of({"header": messages.header(ros, seconds)})
    assert (found or 0.0) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"header": None},
        {"header": {"stamp": 5}},
        {"header": {"stamp": {}}},
        {"header": {"stamp": {"sec": 0, "nanosec": 0}}},
        {"header": {"stamp": {"sec": "1", "nanosec": 0}}},
        {"header": {"stamp": {"sec": True, "nanosec": 0}}},
    ],
)
def test_no_stamp_is_none(message: Any) -> None:
    assert messages.stamp_of(message) is None


# --- commands ------------------------------------------------------------------------------------


def test_a_trajectory_holds_its_points_and_starts_now() -> None:
    positions, velocities = np.arange(6.0).reshape(3, 2), np.ones((3, 2))
    message = joint_trajectory(["b", "a"], positions, velocities, np.array([0.05, 0.1, 1.5]), ros=2)
    assert message["joint_names"] == ["b", "a"]
    assert message["header"]["stamp"] == {"sec": 0, "nanosec": 0}
    assert [p["positions"] for p in message["points"]] == positions.tolist()
    assert [p["velocities"] for p in message["points"]] == velocities.tolist()
    assert message["points"][2]["time_from_start"] == {"sec": 1, "nanosec": 500_000_000}
    assert "seq" not in message["header"]
    json.dumps(message)


def test_a_trajectory_of_ros_1() -> None:
    message = joint_trajectory(["a"], np.zeros((1, 1)), None, np.array([0.05]), ros=1)
    assert message["header"] == {"seq": 0, "stamp": {"secs": 0, "nsecs": 0}, "frame_id": ""}
    assert message["points"][0]["time_from_start"] == {"secs": 0, "nsecs": 50_000_000}
    assert message["points"][0]["velocities"] == []


ZEROS, TIMES = np.zeros((2, 2)), np.array([0.1, 0.2])


@pytest.mark.parametrize(
    "arguments",
    [
        (["a"], ZEROS, None, TIMES),
        (["a", "a"], ZEROS, None, TIMES),
        ([], np.zeros((2, 0)), None, TIMES),
        (["a", "b"], np.zeros((0, 2)), None, np.zeros(0)),
        (["a", "b"], np.zeros(2), None, TIMES),
        (["a", "b"], ZEROS, np.zeros((1, 2)), TIMES),
        (["a", "b"], ZEROS, None, np.array([0.1])),
        (["a", "b"], ZEROS, None, np.array([0.0, 0.1])),
        (["a", "b"], ZEROS, None, np.array([0.2, 0.1])),
        (["a", "b"], ZEROS, None, np.array([0.1, math.nan])),
        (["a", "b"], ZEROS + math.nan, None, TIMES),
        (["a", "b"], ZEROS, ZEROS + math.inf, TIMES),
    ],
)
def test_a_trajectory_that_is_none_is_refused(arguments: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each has words of its own)
        joint_trajectory(*arguments)


def test_an_array_of_numbers() -> None:
    assert float64_array(np.array([1, 2]))["data"] == [1.0, 2.0]
    for wrong in (np.zeros((1, 2)), np.array([math.nan])):
        with pytest.raises(ValueError, match="values are"):
            float64_array(wrong)


# --- joints --------------------------------------------------------------------------------------


def state(**changes: Any) -> dict[str, Any]:
    whole = {"name": ["b", "a"], "position": [1.0, 2], "velocity": [3.0, 4.0], "effort": []}
    return whole | changes


@pytest.mark.parametrize("as_array", [False, True])
def test_joints_are_read_by_name(as_array: bool) -> None:
    message = state(header=messages.header(1, 7.5), effort=[None, None])
    if as_array:
        message |= {k: np.array(message[k], float) for k in ("position", "velocity")}
    reading = joint_reading(message)
    assert (reading.names, reading.stamp) == (("b", "a"), 7.5)
    assert reading.velocity is not None
    ordered = reading.ordered(["a", "b"])
    assert ordered.position.tolist() == [2.0, 1.0]
    assert ordered.velocity is not None
    assert ordered.velocity.tolist() == [4.0, 3.0]
    assert reading.ordered(["a"]).position.tolist() == [2.0]
    with pytest.raises(MessageError, match=r"no joints \['c'\]"):
        reading.ordered(["a", "c"])


@pytest.mark.parametrize("velocity", [[], None, [None, None], np.zeros(0)])
def test_a_driver_may_measure_no_velocity(velocity: Any) -> None:
    reading = joint_reading(state(velocity=velocity))
    assert reading.velocity is None
    assert reading.ordered(["a"]).velocity is None


@pytest.mark.parametrize(
    "changes",
    [
        {"name": []},
        {"name": "ab"},
        {"name": ["a", "a"]},
        {"name": ["a", 1]},
        {"name": None},
        {"position": [1.0]},
        {"position": []},
        {"position": [1.0, None]},
        {"position": [1.0, "2"]},
        {"position": [1.0, True]},
        {"position": [1.0, [2.0]]},
        {"position": [1.0, math.nan]},
        {"position": {"0": 1.0, "1": 2.0}},
        {"velocity": [1.0]},
        {"velocity": [1.0, None]},
        {"velocity": "none"},
    ],
)
def test_a_reading_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MessageError):
        joint_reading(state(**changes))


# --- pictures ------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def encoded(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **({"quality": 95} if form == "JPEG" else {}))
    return file.getvalue()


@pytest.mark.parametrize("as_text", [False, True])
def test_png_is_exact_and_jpeg_is_near_in_either_serialisation(as_text: bool) -> None:
    smooth = np.full((32, 24, 3), (200, 100, 30), np.uint8)
    for form, pixels, error in (("PNG", PIXELS, 0), ("JPEG", smooth, 3)):
        data: Any = encoded(pixels, form)
        data = base64.b64encode(data).decode() if as_text else data
        found = picture({"format": form.lower(), "data": data})
        assert (found.shape, found.dtype) == (pixels.shape, np.uint8)
        assert np.abs(found.astype(int) - pixels).max() <= error


def test_a_grey_compressed_picture_has_three_equal_channels() -> None:
    found = picture({"format": "png", "data": encoded(PIXELS[..., 0], "PNG")})
    assert (found == PIXELS[..., :1]).all()


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8"])
def test_raw_pictures_are_rgb(encoding: str, padding: int) -> None:
    shown = {"rgb8": PIXELS, "bgr8": PIXELS[..., ::-1], "mono8": PIXELS[..., :1]}[encoding]
    rows = np.pad(shown.reshape(6, -1), ((0, 0), (0, padding)))
    message = {"height": 6, "width": 5, "step": rows.shape[1], "encoding": encoding}
    found = picture(message | {"data": rows.tobytes()})
    assert (found == (PIXELS[..., :1] if encoding == "mono8" else PIXELS)).all()
    assert found.shape == (6, 5, 3)
    assert found.flags.writeable
    assert found.flags.c_contiguous


RAW = {"height": 2, "width": 2, "step": 6, "encoding": "rgb8", "data": bytes(12)}
WIDE = encoded(np.zeros((1, messages.MAX_SIDE + 1), np.uint8), "PNG")


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"data": ""},
        {"data": None},
        {"data": [1, 2, 3]},
        {"data": "not base64!"},
        {"data": "ünicode"},
        {"data": b"\xff\xd8\xff"},
        {"data": encoded(PIXELS, "JPEG")[:-200]},
        {"data": encoded(PIXELS, "PNG")[:60]},
        {"data": encoded(PIXELS, "BMP")},
        {"data": WIDE},
        RAW | {"encoding": "yuv422"},
        RAW | {"encoding": []},
        RAW | {"height": 3},
        RAW | {"height": 0, "data": b"x"},
        RAW | {"height": -2, "step": -6},
        RAW | {"width": 3},
        RAW | {"step": 5},
        RAW | {"width": 2.0},
        RAW | {"height": 2**40},
        {k: v for k, v in RAW.items() if k != "step"},
    ],
)
def test_a_picture_that_is_none_is_refused(message: Any) -> None:
    with pytest.raises(MessageError):
        picture(message)
