"""Imagination: windows chained to any length, the same as one window where one is enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worldmodel.models import SPECS, make_checkpoint, make_model
from worldmodel.checkpoint import Checkpoint
from worldmodel.imagine import FORMS, imagine
from worldmodel.sampler import draw_noise, sample
from worldmodel.selfflow import ObjectiveConfig, until_last_frame
from worldmodel.streams import generator
from worldmodel.tokens import Horizon, pattern

# Two strided frames a window: four actions each, of the six in a chunk.
HORIZON = Horizon(past=2, past_stride=2, future=2, future_stride=2, chunk=6)


def start(robot: str = "one camera", batch: int = 2, actions: int = 4):
    spec = SPECS[robot]
    g = torch.Generator().manual_seed(0)
    size = (batch, 2, 3, *spec.image_size)
    video = {c: torch.randint(0, 256, size, generator=g, dtype=torch.uint8) for c in spec.cameras}
    state = torch.rand(batch, 2, spec.state_dim, generator=g) if spec.state_dim else None
    return video, state, torch.rand(batch, actions, 2, generator=g)


def checkpoint(robot: str = "one camera", horizon: Horizon = HORIZON, **objective: Any):
    return make_checkpoint(make_model(SPECS[robot], horizon), ObjectiveConfig(**objective))


def encodings(opened: Checkpoint) -> list[dict[str, Tensor]]:
    """What the model is given from now on, a window each."""
    seen: list[dict[str, Tensor]] = []
    encode = opened.model.encode

    def note(given, *rest, **options):
        seen.append(given)
        return encode(given, *rest, **options)

    opened.model.encode = note  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("robot", SPECS)
def test_whatever_the_robot_has_is_imagined(robot: str) -> None:
    spec = SPECS[robot]
    found = imagine(checkpoint(robot), *start(robot, actions=9), steps=1)
    assert found.frames.tolist() == [2, 4, 6, 8]
    assert {c: v.shape for c, v in found.video.items()} == {
        c: torch.Size((2, 4, 3, *spec.image_size)) for c in spec.cameras
    }
    assert all(v.dtype == torch.uint8 for v in found.video.values())
    if spec.state_dim:
        assert found.state is not None
        assert found.state.shape == (2, 4, spec.state_dim)
    else:
        assert found.state is None


@pytest.mark.parametrize("actions", [2, 3, 4, 5, 7, 8, 13])
def test_the_future_reaches_as_far_as_whole_strides_of_actions(actions: int) -> None:
    found = imagine(checkpoint(), *start(actions=actions), steps=1)
    assert found.frames.tolist() == list(range(2, actions + 1, 2))
    assert found.video["front"].shape[1] == len(found.frames)


def test_one_window_is_what_the_sampler_gives() -> None:
    opened = checkpoint()
    video, state, actions = start(actions=6)
    assert state is not None
    task = torch.tensor([1, -1])
    found = imagine(opened, video, state, actions[:, :6], task=task, steps=3, seed=5)
    question = pattern("forward", HORIZON)
    known = until_last_frame(actions, question)
    values = {"video/front": video["front"], "state": state, "action": known}
    given = {n: opened.inputs.normalize(n, v) for n, v in values.items()}
    noise = draw_noise(opened.model, question, 2, generator(5, "imagine", 0, 0))
    out = sample(opened.model, question, given, task, noise, 3, opened.objective.time).data
    frames = opened.inputs.denormalize("video/front", out["video/front"])
    assert torch.equal(found.video["front"][:, :2], frames)
    assert found.state is not None
    assert torch.equal(found.state[:, :2], opened.inputs.denormalize("state", out["state"]))


def test_the_next_window_starts_from_the_imagined_frames() -> None:
    """Two windows in one call equal two calls, up to the noise: so the noise is made the same."""
    opened = checkpoint()
    video, state, actions = start(actions=8)
    seen = encodings(opened)
    found = imagine(opened, video, state, actions, steps=2)
    assert found.state is not None
    assert len(seen) == 2
    expected = opened.inputs.normalize("video/front", found.video["front"][:, :2])
    assert torch.equal(seen[1]["video/front"], expected)
    assert torch.equal(seen[1]["state"], opened.inputs.normalize("state", found.state[:, :2]))
    rest = torch.cat([actions[:, 4:], actions[:, -1:].expand(-1, 2, -1)], dim=1)
    assert torch.equal(seen[1]["action"], opened.inputs.normalize("action", rest))


def test_the_future_follows_from_the_seed_and_the_actions() -> None:
    opened = checkpoint()
    video, state, actions = start(actions=8)

    def frames(actions=actions, seed=0):
        return imagine(opened, video, state, actions, steps=2, seed=seed).video["front"]

    assert torch.equal(frames(), frames())
    assert not torch.equal(frames(), frames(seed=1))
    later = actions.clone()
    later[:, 6:] = -later[:, 6:]  # decided after the first window
    assert torch.equal(frames()[:, :2], frames(later)[:, :2]) is True
    assert not torch.equal(frames()[:, 2:], frames(later)[:, 2:])


def test_windows_that_cannot_be_chained_are_refused() -> None:
    unequal = Horizon(past=2, past_stride=1, future=2, future_stride=2, chunk=6)
    with pytest.raises(ValueError, match="past_stride 1 and future_stride 2"):
        imagine(checkpoint(horizon=unequal), *start(actions=8))
    one_window = imagine(checkpoint(horizon=unequal), *start(actions=4), steps=1)
    assert one_window.frames.tolist() == [2, 4]
    blind = Horizon(past=2, past_stride=2, future=0, future_stride=2, chunk=6)
    with pytest.raises(ValueError, match=r"without future frames \(data.future=0\)"):
        imagine(checkpoint(horizon=blind), *start())


def test_a_single_past_frame_chains_at_any_stride() -> None:
    horizon = Horizon(past=1, past_stride=1, future=2, future_stride=2, chunk=6)
    video, state, actions = start(actions=8)
    assert state is not None
    past = {"front": video["front"][:, :1]}
    found = imagine(checkpoint(horizon=horizon), past, state[:, :1], actions, steps=1)
    assert found.frames.tolist() == [2, 4, 6, 8]


def test_wrong_cameras_and_too_few_actions_are_named() -> None:
    video, state, actions = start()
    with pytest.raises(ValueError, match=r"sees cameras \['front'\], found \['top'\]"):
        imagine(checkpoint(), {"top": video["front"]}, state, actions)
    with pytest.raises(ValueError, match="1 actions reach no frame; one stride is 2"):
        imagine(checkpoint(), video, state, actions[:, :1])


# --- any frame, frame after frame ----------------------------------------------------------------

ANY: dict[str, Any] = {"any_frame": 0.3}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_frames_come_at_the_distance_asked_for(every: int, form: str) -> None:
    found = imagine(checkpoint(**ANY), *start(actions=13), steps=1, every=every, form=form)
    assert found.frames.tolist() == list(range(every, 14, every))
    assert found.state is not None
    for values in (found.video["front"], found.state):
        assert values.shape[1] == len(found.frames)
        assert all(not torch.equal(values[:, i], values[:, 0]) for i in range(1, values.shape[1]))


def test_the_grid_is_the_default_distance() -> None:
    for options in ({}, ANY):
        opened = checkpoint(**options)
        found, same = (imagine(opened, *start(actions=9), steps=1, every=e) for e in (None, 2))
        assert torch.equal(found.frames, same.frames)
        assert torch.equal(found.video["front"], same.video["front"])


def test_what_one_window_tells_of_its_grid_any_frame_does_not_change() -> None:
    """Where windows hand over later, because they know more frames, the first ones are the same."""
    usual, able = (imagine(checkpoint(**o), *start(actions=9)) for o in ({}, ANY))
    assert torch.equal(usual.video["front"][:, :2], able.video["front"][:, :2])
    assert not torch.equal(usual.video["front"][:, 2:], able.video["front"][:, 2:])


@pytest.mark.parametrize(("every", "options"), [(2, {}), (2, ANY), (4, ANY)])
def test_the_causal_form_hands_over_after_every_frame(every: int, options: dict) -> None:
    """Where past frames lie no denser, each window's last past frame is the last answer."""
    opened = checkpoint(**options)
    video, state, actions = start(actions=13)
    seen = encodings(opened)
    found = imagine(opened, video, state, actions, steps=1, every=every, form="causal")
    assert found.state is not None
    windows = len(found.frames)
    assert len(seen) - windows in (0, 1)  # perhaps one begun for the actions that are left over
    for number, given in enumerate(seen[1 : windows + 1]):
        frame = opened.inputs.normalize("video/front", found.video["front"][:, [number]])
        assert torch.equal(given["video/front"][:, 1:], frame)
        assert torch.equal(
            given["state"][:, 1:], opened.inputs.normalize("state", found.state[:, [number]])
        )
        begin = (number + 1) * every
        now = opened.inputs.normalize("action", actions[:, [min(begin, 12)]])
        assert torch.equal(given["action"][:, :1], now)


@pytest.mark.parametrize("form", FORMS)
def test_hundreds_of_frames_are_finite_and_each_window_sees_as_much(form: str) -> None:
    opened = checkpoint(**ANY, history_noise=0.3)
    seen = encodings(opened)
    options: dict[str, Any] = {"every": 1, "form": form, "history": 0.2}
    found = imagine(opened, *start(batch=1, actions=300), steps=1, **options)
    assert found.state is not None
    assert found.state.shape == (1, 300, 3)
    assert found.state.isfinite().all()
    assert {tuple((n, v.shape) for n, v in given.items()) for given in seen} == {
        (
            ("video/front", torch.Size((1, 2, 6, 192))),
            ("state", torch.Size((1, 2, 1, 3))),
            ("action", torch.Size((1, 6, 1, 2))),
        )
    }


def test_noise_on_the_past_is_on_what_was_imagined_and_follows_from_the_seed() -> None:
    opened = checkpoint(history_noise=0.3)
    plain, noised, again, other = (
        imagine(opened, *start(actions=8), history=h, seed=s).video["front"]
        for h, s in ((0.0, 0), (0.2, 0), (0.2, 0), (0.2, 1))
    )
    assert torch.equal(plain[:, :2], noised[:, :2])  # the first window's past was seen
    assert not torch.equal(plain[:, 2:], noised[:, 2:])
    assert torch.equal(noised, again)
    assert not torch.equal(noised, other)


def test_success_is_told_of_every_frame_by_models_that_know_of_it() -> None:
    model = make_model(replace(SPECS["one camera"], has_success=True))
    opened = make_checkpoint(model, ObjectiveConfig(**ANY))
    found = imagine(opened, *start(actions=7), every=1)
    assert found.success is not None
    assert found.success.shape == (2, 7)
    assert ((found.success > 0) & (found.success < 1)).all()
    assert imagine(checkpoint(), *start()).success is None


@pytest.mark.parametrize(
    ("options", "known", "message"),
    [
        ({"every": 1}, {}, "knows frames at a distance of 2 only; train with objective.any_frame"),
        ({"every": 0}, ANY, "the distance of frames is from 1 to 6"),
        ({"every": 7}, ANY, "the distance of frames is from 1 to 6"),
        ({"form": "causl"}, {}, r"form is 'causl'; there are \['window', 'causal'\]"),
        ({"history": 0.1}, {}, r"up to 0.0 \(objective.history_noise\)"),
        ({"history": 0.4}, {"history_noise": 0.3}, "up to 0.3"),
        ({"history": -0.1}, {"history_noise": 0.3}, "history=-0.1"),
        ({"every": 6}, ANY, "4 actions reach no frame; one stride is 6"),
    ],
)
def test_what_a_model_has_not_learned_is_refused(options: dict, known: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imagine(checkpoint(**known), *start(), **options)


@pytest.mark.parametrize("past_stride", [1, 3, 5])
def test_strides_that_differ_are_refused_where_frames_are_handed_over_and_only_there(
    past_stride: int,
) -> None:
    horizon = Horizon(past=2, past_stride=past_stride, future=2, future_stride=2, chunk=4)
    opened = checkpoint(horizon=horizon)
    one_window = imagine(opened, *start(actions=4), steps=1)
    assert one_window.frames.tolist() == [2, 4]
    assert imagine(opened, *start(actions=2), steps=1, form="causal").frames.tolist() == [2]
    for actions, form in ((5, "window"), (3, "causal")):
        with pytest.raises(ValueError, match=f"past_stride {past_stride} and future_stride 2"):
            imagine(opened, *start(actions=actions), form=form)


@pytest.mark.parametrize("past_stride", [1, 2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_models_of_any_frame_chain_at_any_stride(form: str, past_stride: int) -> None:
    horizon = Horizon(past=2, past_stride=past_stride, future=2, future_stride=2, chunk=5)
    for every in (1, 2, 3):
        opened = checkpoint(horizon=horizon, **ANY)
        found = imagine(opened, *start(actions=11), steps=1, every=every, form=form)
        assert found.frames.tolist() == list(range(every, 12, every))


@pytest.mark.parametrize("frames", [1, 3])
def test_as_many_past_frames_as_the_model_looks_at_are_given(frames: int) -> None:
    """More of them would silently make an old frame the present one."""
    video, state, actions = start()
    some = {c: v[:, [0] * frames] for c, v in video.items()}
    with pytest.raises(ValueError, match=rf"looks at 2 past frames .* found {{'front': {frames}}}"):
        imagine(checkpoint(), some, state, actions)
