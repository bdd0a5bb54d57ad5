"""Training on demonstrations, exploration and episodes without actions, all at once.

What decides learns from demonstrations, what predicts from all that was done, video from all that
was seen; with every part of training on, from start to checkpoint.
"""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets import write_dataset
from tests.worldmodel.data.test_episodes import plant
from worldmodel import train as module
from worldmodel.checkpoint import open_checkpoint
from worldmodel.data import Data, DataConfig, open_data
from worldmodel.data.errors import EmptyError
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.optimize import FitConfig
from worldmodel.selfflow import ObjectiveConfig, SelfFlow
from worldmodel.tokens import PATTERNS, Horizon, Pattern, pattern
from worldmodel.train import fit
from worldmodel.types import Window

LENGTH = 12
SHOWN, EXPLORED, WATCHED = (0, 1, 2, 3), (4, 5, 6), (7, 8, 9)  # demonstrations, others, no actions
MAY: dict[str, set[int]] = {
    "demonstrated": {*SHOWN},
    "has_action": {*SHOWN, *EXPLORED},
    "any": {*SHOWN, *EXPLORED, *WATCHED},
}
POLICY = {"act", "act_prefix", "joint", "reach"}  # whose actions are to be imitated
CONFIG = FitConfig(
    batch_size=6,
    warmup=2,
    dtype="float32",
    optimizer="muon",
    log_every=1,
    diagnose_every=4,
    validate_every=3,
    save_every=3,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Ten episodes; what is recorded as actions of those that have none are no numbers."""
    folder = tmp_path_factory.mktemp("populations")
    count = len(MAY["any"])
    rng = np.random.default_rng(0)
    root = write_dataset(
        folder / "all",
        episodes=count,
        length=LENGTH,
        size=16,
        flags={
            "demonstration": [e in SHOWN for e in range(count)],
            "next.success": [rng.random(LENGTH) < 0.4 for _ in range(count)],
        },
    )

    def spoil(actions: np.ndarray) -> None:
        actions[min(WATCHED) * LENGTH :] = np.nan

    config = DataConfig(
        root=str(plant(root, folder / "spoilt", spoil)),
        image_size=16,
        past=2,
        past_stride=2,
        future=2,
        future_stride=2,
        chunk=6,
        action_free=[*WATCHED],
        validation=0.25,
        cache_dir=str(folder / "cache"),
    )
    return open_data(config, progress=False)


def learner(data: Data, **options: Any) -> SelfFlow:
    horizon = Horizon(past=2, past_stride=2, future=2, future_stride=2, chunk=6)
    model = WorldModel(data.spec, horizon, ModelConfig(size="debug", width=32))
    patterns = dict.fromkeys(PATTERNS, 1.0)
    settings: dict[str, Any] = {"any_frame": 0.5, "history_noise": 0.3} | options
    return SelfFlow(model, ObjectiveConfig(draws={}, patterns=patterns, **settings))


def test_the_data_holds_all_kinds(data: Data) -> None:
    assert {*data.exploratory_episodes} == {*EXPLORED}
    assert {*data.action_free_episodes} == {*WATCHED}
    assert data.spec.has_success
    for part in (SHOWN, EXPLORED, WATCHED):
        assert {*part} & {*data.train_episodes}
        assert {*part} & {*data.validation_episodes}


def test_each_pattern_sees_its_population_alone_and_all_of_it(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, in looking at the teacher, and in validation."""
    seen: dict[str, set[int]] = {name: set() for name in PATTERNS}
    objective = learner(data)
    plain, signal_of = objective.losses, module.teacher_signal

    def note(window: Window, chosen: Pattern) -> None:
        split = data.train if objective.training else data.validation
        seen[chosen.name] |= set(split.episode_of[window.index.numpy()].tolist())
        assert window.action.isfinite().all()

    def losses(window, chosen, *more):
        note(window, chosen)
        return plain(window, chosen, *more)

    def teacher_signal(objective, window, asked, step):
        note(window, asked)
        return signal_of(objective, window, asked, step)

    objective.losses = losses  # type: ignore[method-assign]
    monkeypatch.setattr(module, "teacher_signal", teacher_signal)
    fit(objective, data.train, data.validation, CONFIG, tmp_path, {}, steps=60)
    train = {*data.train_episodes}
    for name, episodes in seen.items():
        allowed = MAY[pattern(name, objective.model.horizon).source]
        assert episodes == allowed & train, name
        assert (episodes <= {*SHOWN}) is (name in POLICY)
    assert {*WATCHED} & seen["video"]

    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = {k: v for line in lines for k, v in line.items()}
    assert all(math.isfinite(v) for line in lines for v in line.values())
    for name in PATTERNS:
        assert f"{name}/loss" in values
        assert any(k.startswith(f"validation/{name}/") for k in values)
    for name in ("forward", "video", "joint"):
        assert f"{name}/success/loss" in values
        assert f"validation/{name}/success" in values
    opened = open_checkpoint(tmp_path)
    assert all(v.isfinite().all() for v in opened.model.state_dict().values())


def test_validation_sees_the_same_populations(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, held_out = learner(data), data.validation
    batch, seen = held_out.batch, []

    def note(indices, **options):
        seen.append({*held_out.episode_of[indices].tolist()})
        return batch(indices, **options)

    monkeypatch.setattr(held_out, "batch", note)
    logs = module.validate(objective, held_out, 1000, torch.float32)
    there = {*data.validation_episodes}
    assert sorted(map(sorted, seen)) == sorted(sorted(MAY[s] & there) for s in MAY)
    assert all(math.isfinite(v) for v in logs.values())


def test_frames_without_a_pattern_for_them_are_no_reason_to_refuse(data: Data) -> None:
    """Populations are asked for by patterns: exploration alone teaches a world model."""
    explored = replace_episodes(data, demonstrated=False)
    simulator = ObjectiveConfig(patterns={"forward": 1.0, "video": 1.0}, draws={})
    model = learner(data).model
    assert SelfFlow(model, simulator).sources == {"has_action", "any"}
    module.Orders(explored, 4, 0, SelfFlow(model, simulator).sources)
    with pytest.raises(EmptyError, match="demonstration.*objective.patterns"):
        module.Orders(explored, 4, 0, learner(data).sources)


def replace_episodes(data: Data, *, demonstrated: bool):
    """The training windows as if all episodes were demonstrations, or none."""
    windows = data.train
    copy = object.__new__(type(windows))
    copy.__dict__ |= windows.__dict__
    copy.demonstrated = np.full_like(windows.demonstrated, demonstrated)
    return copy


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_stopped_and_resumed_equals_uninterrupted_with_everything_on(
    data: Data, tmp_path: Path, optimizer: str
) -> None:
    """Success head, other frames, noise on the past, several populations, kept checkpoints."""
    config = replace(CONFIG, optimizer=optimizer, keep_every=6)

    def run(out: str, stop: int = 0, **more: Any):
        objective = learner(data)
        plain = objective.after_step

        def hooked(number: int) -> None:
            plain(number)
            if number + 1 == stop:
                signal.raise_signal(signal.SIGTERM)

        objective.after_step = hooked  # type: ignore[method-assign, assignment]
        where = tmp_path / out
        return fit(objective, data.train, data.validation, config, where, {}, steps=11, **more)

    run("whole")
    assert run("parts", stop=7).steps == 7
    assert run("parts", resume=True).resumed_at == 7
    found, expected = (
        {
            str(p.relative_to(tmp_path / out)): p.read_bytes()
            for p in sorted((tmp_path / out).rglob("*"))
            if p.name in ("model.safetensors", "tensors.safetensors", "metrics.jsonl")
        }
        for out in ("parts", "whole")
    )
    assert "checkpoints/00000006/model.safetensors" in expected
    assert "checkpoints/00000011/training_state/tensors.safetensors" in expected
    assert [n for n in expected if found.get(n) != expected[n]] == []
    assert found.keys() == expected.keys()


def test_the_success_head_does_not_press_down_the_gradients_of_the_rest(
    data: Data, tmp_path: Path
) -> None:
    """The rest is clipped, and learns, as if there was none."""
    config = replace(CONFIG, optimizer="adamw", clip=0.05, diagnose_every=0, validate_every=0)
    weights = {}
    for name, factor in (("quiet", 1.0), ("loud", 1e3)):
        objective = learner(data)
        with torch.no_grad():
            objective.model.get_parameter("success.judge.2.weight").mul_(factor)
        fit(objective, data.train, None, config, tmp_path / name, {}, steps=8)
        weights[name] = objective.model.state_dict()
    for n, v in weights["quiet"].items():
        assert torch.equal(v, weights["loud"][n]) is not n.startswith("success."), n
