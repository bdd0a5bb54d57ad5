"""The success head: it learns apart from all else, from labelled frames only, and it can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.datasets import motion, write_dataset
from tests.worldmodel.models import (
    HORIZON,
    SPECS,
    make_checkpoint,
    make_model,
    make_window,
    randomised,
)
from worldmodel import questions
from worldmodel.checkpoint import open_checkpoint, save_policy
from worldmodel.data import Data, DataConfig, Order, open_data
from worldmodel.finetune import start_from
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig, SelfFlow
from worldmodel.success import SuccessHead, success_loss
from worldmodel.tokens import PATTERNS, Horizon, pattern
from worldmodel.types import Window

SPEC = replace(SPECS["one camera"], has_success=True)


def learner(**options) -> SelfFlow:
    objective = SelfFlow(make_model(SPEC), ObjectiveConfig(**options))
    randomised(objective.ema.model, seed=7, scale=0.05)
    return objective


def labelled(seed: int = 0) -> Window:
    """Windows with random labels, some of them unknown."""
    window = make_window(SPEC)
    g = torch.Generator().manual_seed(seed)
    window.success = torch.randint(-1, 2, (4, 4), generator=g, dtype=torch.int8)
    return window


# --- apart from all else -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATTERNS)
def test_labels_give_the_head_a_gradient_and_change_no_other(name: str) -> None:
    """Bit for bit, whatever the objective: nothing but the head learns from them."""
    found = {}
    for said in (True, False):
        objective = learner(history_noise=0.2, draws={})
        window = labelled() if said else make_window(SPEC)
        losses = objective.losses(window, pattern(name, HORIZON, 2), 3)
        losses.total.backward()
        found[said] = {n: p.grad for n, p in objective.named_parameters()}
        imagines = "video" in pattern(name, HORIZON, 2).wanted
        assert (f"{name}/success/loss" in losses.logs) is (said and imagines)
    for n, grad in found[True].items():
        other = found[False][n]
        if n.startswith("model.success."):
            assert (grad is not None) is imagines
            assert other is None
        elif grad is None or other is None:
            assert grad is other
        else:
            assert torch.equal(grad, other)


def test_a_model_with_a_head_imagines_what_it_would_without() -> None:
    spec = replace(SPEC, has_success=False)
    plain = WorldModel(spec, HORIZON, ModelConfig(size="debug"))
    able = WorldModel(SPEC, HORIZON, ModelConfig(size="debug"))
    own = plain.state_dict()
    assert all(torch.equal(v, able.state_dict()[n]) for n, v in own.items())
    assert {n.split(".")[0] for n in able.state_dict() if n not in own} == {"success"}


# --- what counts ---------------------------------------------------------------------------------


def test_unknown_labels_are_left_out() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.2, -0.3]])
    success = torch.tensor([[1, -1, 0], [-1, -1, 0]], dtype=torch.int8)
    total, count = success_loss(logits, success)
    known = torch.stack([logits[0, 0], logits[0, 2], logits[1, 2]])
    truth = torch.tensor([1.0, 0.0, 0.0])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(total, bce(known, truth, reduction="sum"))
    assert int(count) == 3
    other = logits.clone()
    other[success < 0] += 5
    assert torch.equal(success_loss(other, success)[0], total)
    nothing = success_loss(logits, torch.full_like(success, -1))
    assert (float(nothing[0]), int(nothing[1])) == (0.0, 0)


def test_the_loss_is_the_mean_over_the_labelled_future_frames() -> None:
    objective, window, question = learner(draws={}), labelled(), pattern("forward", HORIZON)
    assert window.success is not None
    found = float(objective.losses(window, question, 3).logs["forward/success/loss"])
    past = replace(window, success=window.success.clone())
    past.success[:, : HORIZON.past] = -1  # type: ignore[index]
    assert float(objective.losses(past, question, 3).logs["forward/success/loss"]) == found
    asked = objective.ask(window, question, 3)
    encoded = objective.model.encode(asked.given, asked.given_steps, asked.task)
    clock = asked.draw.clock
    out = objective.model(asked.noisy(clock), asked.wanted_steps, clock, encoded)
    total, count = success_loss(out.success, window.success[:, HORIZON.past :])
    assert found == pytest.approx(float(total.detach() / count), rel=1e-4)
    none = replace(window, success=torch.full_like(window.success, -1))
    losses = objective.losses(none, question, 3)
    assert float(losses.logs["forward/success/loss"]) == 0
    assert losses.total.isfinite()


def test_the_head_looks_at_patches_wherever_they_are() -> None:
    """A frame's logit does not depend on the order of its tokens, nor on other frames."""
    head = randomised(SuccessHead(16))
    features = torch.randn(2, 3, 7, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = head(features)
        assert found.shape == (2, 3)
        torch.testing.assert_close(head(features.flip(2)), found)
        other = features.clone()
        other[:, 1] += 1
        other[:, 1] *= torch.linspace(0.5, 2, 7)[:, None] * torch.randn(16)
        again = head(other)
    assert torch.equal(again[:, ::2], found[:, ::2])
    assert not torch.equal(again[:, 1], found[:, 1])


# --- saved, loaded, fine-tuned -------------------------------------------------------------------


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = make_model(SPEC)
    save_policy(tmp_path, model, ObjectiveConfig(), {})
    opened = open_checkpoint(tmp_path)
    assert opened.spec.has_success
    window = make_window(SPEC)
    now = {"front": window.video["front"][:, :2]}, window.state[:, :2], window.action[:, :4]
    found, expected = (questions.imagine(c, *now).success for c in (opened, make_checkpoint(model)))
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.unique().numel() > 4


@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("now", [True, False])
def test_fine_tuning_on_data_that_knows_more_or_less_of_success(
    tmp_path: Path, then: bool, now: bool
) -> None:
    old = make_model(replace(SPEC, has_success=then))
    save_policy(tmp_path, old, ObjectiveConfig(), {})
    new = WorldModel(replace(SPEC, has_success=now), HORIZON, ModelConfig(size="debug"), seed=3)
    fresh = {n: v.clone() for n, v in new.state_dict().items()}
    lines = start_from(new, tmp_path)
    assert lines == [f"has_success was {then}, is {now}"] * (then != now)
    for n, v in new.state_dict().items():
        kept = old.state_dict()[n] if not n.startswith("success.") or then else fresh[n]
        assert torch.equal(v, kept), n


# --- it can tell ---------------------------------------------------------------------------------

EPISODES, LENGTH, STEPS = 20, 24, 100


def inside(states: np.ndarray) -> np.ndarray:
    """Whether the square is in the region."""
    return (states[:, 0] > 0) & (np.abs(states[:, 1]) < 0.8)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("success")
    rng = np.random.default_rng(0)  # as the dataset's own motion is drawn
    marks = []
    for _ in range(EPISODES):
        states, _ = motion(rng, LENGTH, 2, 2, 20)
        marks.append(np.append(inside(states)[1:], False))
    root = write_dataset(
        folder / "squares", episodes=EPISODES, length=LENGTH, size=16, flags={"next.success": marks}
    )
    config = DataConfig(
        root=str(root), image_size=16, past=1, future=2, future_stride=2, chunk=4,
        validation=0.25, cache_dir=str(folder / "cache"),
    )  # fmt: skip
    return open_data(config, progress=False)


def auroc(scores: Tensor, solved: Tensor) -> float:
    """How often a solved frame is scored above one that is not."""
    better = scores[solved][:, None] - scores[~solved][None]
    return float((better > 0).float().mean() + 0.5 * (better == 0).float().mean())


def test_it_tells_success_of_imagined_frames_after_seconds(squares: Data) -> None:
    assert squares.spec.has_success
    horizon = Horizon(past=1, future=2, future_stride=2, chunk=4)
    model = WorldModel(squares.spec, horizon, ModelConfig(size="debug", patch=4))
    objective = SelfFlow(model, ObjectiveConfig(name="flow", patterns={"forward": 1.0}, ema=0.95))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    order = Order(len(squares.train), batch_size=16, seed=0)
    for step in range(STEPS):
        objective(squares.train.batch(order.batch(step)), step).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step)
    held_out = squares.validation.batch(np.arange(len(squares.validation)))
    opened = make_checkpoint(objective.ema.model, objective.source)
    video = {"front": held_out.video["front"][:, :1]}
    found = questions.imagine(opened, video, held_out.state[:, :1], held_out.action).success
    assert found is not None
    assert held_out.success is not None
    labels = held_out.success[:, 1:]
    known = labels >= 0
    assert 0.1 < float((labels[known] == 1).float().mean()) < 0.9
    assert auroc(found[known], labels[known] == 1) > 0.8
