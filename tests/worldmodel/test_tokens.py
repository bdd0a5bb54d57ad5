"""Patches come back exactly, positions are where things are, patterns split a window cleanly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.worldmodel.models import SPECS
from worldmodel.tokens import (
    PATTERNS,
    Action,
    Horizon,
    State,
    Video,
    modalities_of,
    pattern,
    unknown_kinds,
)

small = st.integers(1, 4)


@given(batch=small, steps=small, rows=small, columns=small, size=small, channels=small)
def test_video_comes_back_exactly(batch, steps, rows, columns, size, channels) -> None:
    video = Video("video/front", rows * size, columns * size, size, channels)
    x = torch.rand(batch, steps, channels, rows * size, columns * size)
    patches = video.patch(x)
    assert patches.shape == (batch, steps, video.per_step, video.width)
    assert torch.equal(video.unpatch(patches), x)
    assert torch.equal(video.patch(video.unpatch(patches)), patches)


@given(batch=small, steps=small, size=small, kind=st.sampled_from([State, Action]))
def test_vectors_come_back_exactly(batch, steps, size, kind) -> None:
    vector = kind("some", size)
    x = torch.rand(batch, steps, size)
    patches = vector.patch(x)
    assert patches.shape == (batch, steps, vector.per_step, vector.width)
    assert torch.equal(vector.unpatch(patches), x)


def test_a_patch_holds_neighbouring_pixels_and_its_position_is_their_middle() -> None:
    video = Video("video/front", 16, 24, 8)
    rows = torch.linspace(-1, 1, 2 * 16 + 1)[1::2]  # pixel centres
    columns = torch.linspace(-1, 1, 2 * 24 + 1)[1::2]
    place = torch.stack([rows[:, None].expand(16, 24), columns.expand(16, 24), torch.zeros(16, 24)])
    patches = video.patch(place[None, None]).unflatten(-1, (3, -1)).mean(-1)[0, 0]
    ids = video.ids(torch.tensor([7]))
    torch.testing.assert_close(patches[:, :2], ids[:, 1:])
    assert (ids[:, 0] == 7).all()


def test_positions_of_steps_come_in_the_order_of_the_patches() -> None:
    video, times = Video("video/front", 16, 24, 8), torch.tensor([-2, 0, 4])
    ids = video.ids(times).unflatten(0, (3, video.per_step))
    assert torch.equal(ids[:, :, 0], times[:, None].float().expand(3, 6))
    assert torch.equal(ids[0, :, 1:], ids[2, :, 1:])
    assert torch.equal(Action("action", 2).ids(torch.arange(4))[:, 0], torch.arange(4.0))


def test_the_horizon_counts_frames_from_now() -> None:
    horizon = Horizon(past=3, past_stride=2, future=2, future_stride=5, chunk=4)
    assert horizon.times("frame").tolist() == [-4, -2, 0, 5, 10]
    assert horizon.times("chunk").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", PATTERNS)
@given(past=small, future=small, chunk=st.integers(1, 6), prefix=st.integers(0, 5))
def test_given_and_wanted_steps_never_overlap(name, past, future, chunk, prefix) -> None:
    horizon = Horizon(past=past, future=future, chunk=chunk)
    question = pattern(name, horizon, min(prefix, chunk - 1))
    assert question.wanted
    lengths = {"video": past + future, "state": past + future, "action": chunk}
    for kind, length in lengths.items():
        steps = torch.arange(length)
        given_steps, wanted = (
            set(steps[part[kind]].tolist()) if kind in part else set()
            for part in (question.given, question.wanted)
        )
        assert not given_steps & wanted
        if kind == "action":
            assert not wanted or given_steps | wanted == set(steps.tolist())
        else:
            assert set(range(past)) <= given_steps  # the past is always given
    everything = {**question.given, **question.wanted}
    assert set(everything) <= set(lengths)


def test_inverse_dynamics_sees_no_future_state() -> None:
    horizon = Horizon()
    assert pattern("inverse", horizon).given["state"] == slice(0, horizon.past)


@pytest.mark.parametrize("offsets", [(3,), (1, 2, 7), (16,)])
def test_the_goal_of_reach_is_the_last_of_its_frames_and_those_between_are_left_out(
    offsets: tuple[int, ...],
) -> None:
    horizon = Horizon()
    question = pattern("reach", horizon, offsets=offsets)
    times = horizon.times("frame", offsets)
    assert times[question.given["video"]].tolist() == [-1, 0, offsets[-1]]
    assert times[question.given["state"]].tolist() == [-1, 0]
    assert set(question.wanted) == {"action"}


def test_offsets_take_the_place_of_the_grid() -> None:
    horizon = Horizon(past=2, future=2, future_stride=3, chunk=9)
    assert horizon.grid == (3, 6)
    assert horizon.reach == 9
    assert pattern("video", horizon).offsets == horizon.grid
    assert pattern("video", horizon, offsets=[1, 9]).offsets == (1, 9)
    assert horizon.times("frame", (1, 9)).tolist() == [-1, 0, 1, 9]
    assert horizon.times("chunk", (1, 9)).tolist() == list(range(9))


def test_what_decides_learns_from_demonstrations_and_what_predicts_from_more() -> None:
    found = {name: pattern(name, Horizon()).source for name in PATTERNS}
    assert found == {
        "act": "demonstrated",
        "act_prefix": "demonstrated",
        "forward": "has_action",
        "inverse": "has_action",
        "video": "any",
        "joint": "demonstrated",
        "reach": "demonstrated",
    }


def test_an_empty_prefix_is_acting_afresh() -> None:
    act, prefixed = pattern("act", Horizon()), pattern("act_prefix", Horizon(), prefix=0)
    assert prefixed.given == act.given
    steps = torch.arange(Horizon().chunk)
    assert torch.equal(steps[prefixed.wanted["action"]], steps[act.wanted["action"]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("acts", Horizon()), r"unknown pattern 'acts'; there are \['act'"),
        (("forward", Horizon(future=0)), "'forward' needs future frames; data.future is 0"),
        (("act_prefix", Horizon(chunk=4), 4), r"prefix is in \[0, 4\), found 4"),
        (("act_prefix", Horizon(), -1), "found -1"),
        (
            ("video", Horizon(), 1, (0, 4)),
            r"ascending order, from 1 to 16 after now; found \[0, 4\]",
        ),
        (("reach", Horizon(), 1, (17,)), r"from 1 to 16 after now; found \[17\]"),
        (("joint", Horizon(), 1, (4, 4)), r"found \[4, 4\]"),
    ],
)
def test_an_impossible_pattern_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pattern(*arguments)


def test_a_frame_that_does_not_divide_names_a_size_that_does() -> None:
    with pytest.raises(ValueError, match=r"video/front.*50 x 47.*image_size=\[48, 48\]"):
        Video("video/front", 50, 47, 8)


def test_modalities_are_what_the_robot_has() -> None:
    names = {name: [m.name for m in modalities_of(spec, 8)] for name, spec in SPECS.items()}
    assert names == {
        "one camera": ["video/front", "state", "action"],
        "two cameras": ["video/front", "video/wrist", "state", "action"],
        "no camera": ["state", "action"],
        "no state": ["video/front", "action"],
    }
    assert unknown_kinds(["video", "sound"]) == ["sound"]
