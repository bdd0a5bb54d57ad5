"""Imagination: windows chained to any length, the same as one window where one is enough."""

from __future__ import annotations

import pytest
import torch

from tests.worldmodel.models import SPECS, make_checkpoint, make_model
from worldmodel.imagine import imagine
from worldmodel.sampler import draw_noise, sample
from worldmodel.selfflow import until_last_frame
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


def checkpoint(robot: str = "one camera", horizon: Horizon = HORIZON):
    return make_checkpoint(make_model(SPECS[robot], horizon))


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
    seen: list[dict] = []
    encode = opened.model.encode

    def note(given, *rest, **options):
        seen.append(given)
        return encode(given, *rest, **options)

    opened.model.encode = note
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
