"""Every question, asked of one freshly trained model, is answered better than by a floor.

Held-out episodes of the moving square: the state follows its commands, and the square the state.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.datasets import write_dataset
from worldmodel.data import DataConfig, Order, Windows, open_data
from worldmodel.flow import TimeConfig
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.sampler import sample
from worldmodel.selfflow import ObjectiveConfig, SelfFlow
from worldmodel.streams import generator
from worldmodel.tokens import PATTERNS, Horizon, pattern
from worldmodel.types import Window

STEPS = 700
PREFIX = 3
FLOW_STEPS = 1  # of x-prediction: the mean answer, which is what a squared error asks for

pytestmark = pytest.mark.timeout(600)  # the first test trains: 20 seconds on a free core


class Trained(NamedTuple):
    objective: SelfFlow
    validation: Windows
    chosen: np.ndarray  # some of its windows

    @property
    def held_out(self) -> Window:
        return self.validation.batch(self.chosen)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder: Path = tmp_path_factory.mktemp("patterns")
    root = write_dataset(folder / "squares", episodes=40, length=40, size=16)
    config = DataConfig(
        root=str(root),
        image_size=16,
        past=2,
        past_stride=2,
        future=2,
        future_stride=2,
        chunk=6,
        validation=0.2,
        cache_dir=str(folder / "cache"),
    )
    data = open_data(config, progress=False)
    horizon = Horizon(past=2, past_stride=2, future=2, future_stride=2, chunk=6)
    model = WorldModel(data.spec, horizon, ModelConfig(size="debug", patch=4))
    learn = ObjectiveConfig(
        name="flow",  # the cheapest: what the others add is the business of test_selfflow.py
        patterns=dict.fromkeys(PATTERNS, 1.0) | {"forward": 3.0},
        prefix=PREFIX,
        draws={"act": 2, "act_prefix": 2, "inverse": 2},
        any_frame=0.3,
        # What actions do to a picture is learned last.
        loss_weight={"video": 3.0, "state": 0.2, "action": 1.0},
        ema=0.98,
        # Mostly noise: half a minute is for what a scene looks like, not for its last details.
        time={kind: TimeConfig(shift=4.0) for kind in ("video", "state", "action")},
    )
    objective = SelfFlow(model, learn)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    order = Order(len(data.train), batch_size=16, seed=0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20, 2 * (1 - step / STEPS))
        chosen = objective.choose(step)
        ahead = np.array(chosen.offsets) if chosen.has_future else None
        window = data.train.batch(order.batch(step), future=chosen.has_future, offsets=ahead)
        objective.losses(window, chosen, step).total.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step)
    count = min(128, len(data.validation))
    some = torch.linspace(0, len(data.validation) - 1, count).long().numpy()
    return Trained(objective, data.validation, some)


def answer(
    trained: Trained,
    name: str,
    window: Window | None = None,
    offsets: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Sampled values by modality, normalised, as patches turned back.

    Args:
        window: what is given; default: what there is.
        offsets: the frames after now that it holds.
    """
    objective = trained.objective
    window = trained.held_out if window is None else window
    model = objective.ema.model
    question = pattern(name, model.horizon, PREFIX, offsets)
    given_steps, wanted_steps = model.slices_of(question)
    given = objective.inputs.patches(window, given_steps)
    target = objective.inputs.patches(window, wanted_steps)
    noise = {n: torch.randn(v.shape, generator=generator(1, n)) for n, v in target.items()}
    time = objective.config.time
    found = sample(model, question, given, window.task, noise, FLOW_STEPS, time).data
    return {n: model.modalities[n].unpatch(v) for n, v in found.items()}


def truth(trained: Trained, name: str, window: Window | None = None) -> Tensor:
    """All steps of a modality, normalised."""
    objective, window = trained.objective, trained.held_out if window is None else window
    modality = objective.model.modalities[name]
    patches = objective.inputs.normalize(name, objective.inputs.values(window, name))
    return modality.unpatch(patches)


def error(found: Tensor, expected: Tensor, valid: Tensor) -> float:
    """Mean squared error over valid steps."""
    return float((found - expected).square().flatten(2).mean(2)[valid].mean())


def require_better(name: str, found: float, floors: dict[str, float], margin: float) -> None:
    text = ", ".join(f"{floor} {value:.4f}" for floor, value in floors.items())
    message = f"{name}: model {found:.4f}, floors: {text}; expected below {margin} x each"
    assert all(found < margin * value for value in floors.values()), message


@pytest.mark.parametrize("name", ["act", "act_prefix", "inverse", "joint", "reach"])
def test_actions_beat_the_mean_action_and_holding_still(trained: Trained, name: str) -> None:
    start = PREFIX if name == "act_prefix" else 0
    actions, state = truth(trained, "action"), truth(trained, "state")
    expected, valid = actions[:, start:], trained.held_out.action_valid[:, start:]
    last = actions[:, start - 1] if start else state[:, 1]  # the arm stays where it is
    floors = {
        "mean action": error(actions.mean((0, 1)).expand_as(expected), expected, valid),
        "hold last": error(last[:, None].expand_as(expected), expected, valid),
    }
    found = error(answer(trained, name)["action"], expected, valid)
    require_better(name, found, floors, margin=0.8)


@pytest.mark.parametrize("name", ["forward", "video", "joint"])
def test_video_beats_the_last_frame(trained: Trained, name: str) -> None:
    frames = truth(trained, "video/front")
    expected, valid = frames[:, 2:], trained.held_out.frame_valid[:, 2:]
    floors = {"copy last frame": error(frames[:, 1:2].expand_as(expected), expected, valid)}
    found = error(answer(trained, name)["video/front"], expected, valid)
    require_better(name, found, floors, margin=0.85)


@pytest.mark.parametrize("name", ["forward", "joint"])
def test_states_beat_staying(trained: Trained, name: str) -> None:
    state = truth(trained, "state")
    expected, valid = state[:, 2:], trained.held_out.frame_valid[:, 2:]
    floors = {"hold last": error(state[:, 1:2].expand_as(expected), expected, valid)}
    found = error(answer(trained, name)["state"], expected, valid)
    require_better(name, found, floors, margin=0.7)


def of_others(values: Tensor) -> Tensor:
    """Each window's values replaced by those of a window of another episode."""
    return values.roll(len(values) // 2, 0)


def test_the_goal_that_is_to_be_reached_counts(trained: Trained) -> None:
    """The same question with another episode's goal is answered worse."""
    window = trained.held_out
    video = {c: torch.cat([v[:, :3], of_others(v[:, 3:])], 1) for c, v in window.video.items()}
    expected, valid = truth(trained, "action"), window.action_valid
    found, other = (
        error(answer(trained, "reach", w)["action"], expected, valid)
        for w in (window, replace(window, video=video))
    )
    require_better("reach", found, {"another goal": other}, margin=0.8)


@pytest.mark.parametrize("name", ["video/front", "state"])
def test_the_actions_that_are_given_count(trained: Trained, name: str) -> None:
    """Frames and states are imagined worse under another episode's actions."""
    window = trained.held_out
    expected, valid = truth(trained, name)[:, 2:], window.frame_valid[:, 2:]
    found, other = (
        error(answer(trained, "forward", w)[name], expected, valid)
        for w in (window, replace(window, action=of_others(window.action)))
    )
    require_better("forward", found, {"other actions": other}, margin=0.8)


@pytest.mark.parametrize("offset", range(1, 7))
def test_any_single_frame_beats_the_last_frame(trained: Trained, offset: int) -> None:
    """On the grid and off it, as far as actions are given."""
    window = trained.validation.batch(trained.chosen, offsets=np.array([offset]))
    frames, valid = truth(trained, "video/front", window), window.frame_valid[:, 2:]
    floors = {"copy last frame": error(frames[:, 1:2], frames[:, 2:], valid)}
    found = error(
        answer(trained, "forward", window, (offset,))["video/front"], frames[:, 2:], valid
    )
    require_better(f"frame {offset}", found, floors, margin=0.95)
