"""Scores on held-out episodes: perfect answers score perfectly, floors are what they are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from policies import offline
from worldmodel.checkpoint import Checkpoint
from worldmodel.data import Data, DataConfig, open_data
from worldmodel.inputs import Inputs
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon

from ..datasets import write_dataset

HORIZON = Horizon(past=1, future=2, future_stride=2, chunk=4)


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> tuple[Checkpoint, Data]:
    folder = tmp_path_factory.mktemp("offline")
    root = write_dataset(folder / "data", episodes=4, length=24, size=16)
    config = DataConfig(
        root=str(root), image_size=16, past=1, future=2, future_stride=2, chunk=4,
        validation=0.5, cache_dir=str(folder / "cache"),
    )  # fmt: skip
    data = open_data(config, progress=False)
    model = WorldModel(data.spec, HORIZON, ModelConfig(size="debug")).eval()
    inputs = Inputs(data.spec, model.modalities, "quantile")
    return Checkpoint(folder, model, inputs, ObjectiveConfig(), {}), data


def test_the_report_of_an_untrained_model_has_every_score(held) -> None:
    checkpoint, data = held
    report = offline.held_out(checkpoint, data.validation, every=3, draws=2, steps=1)
    assert report["episodes"] == 2
    assert set(report["action"]) >= {"policy", "hold_last", "mean_action"}
    assert len(report["video"]["all"]["model"]) == HORIZON.future


def test_a_perfect_model_scores_perfectly(held, monkeypatch) -> None:
    checkpoint, data = held

    def truth(checkpoint, window, question, steps, rng):
        past = checkpoint.model.horizon.past
        frames = {f"video/{c}": v[:, past:] for c, v in window.video.items()}
        return frames | {"action": window.action, "state": window.state[:, past:]}

    monkeypatch.setattr(offline, "_answer", truth)
    report = offline.held_out(checkpoint, data.validation, every=1, draws=1)
    assert report["action"]["policy"] == 0
    assert report["action"]["policy_minus_hold_last"]["high"] < 0
    assert report["action"]["policy_minus_mean_action"]["high"] < 0
    assert report["video"]["all"]["gain_over_copy_last"]["low"] > 3
    assert report["video"]["moving"]["gain_over_copy_last"]["low"] > 3


def test_holding_the_last_action_is_what_the_floor_is(held) -> None:
    checkpoint, data = held
    windows = data.validation
    report = offline.held_out(checkpoint, windows, every=1, draws=1, steps=1)
    chosen = np.flatnonzero(windows.frame_of > 0)
    std = torch.tensor(data.spec.stats["action"]["std"])
    errors = []
    for i in chosen:
        now, before = windows.batch(np.array([i])), windows.batch(np.array([i - 1]))
        valid = now.action_valid[0]
        gap = (now.action[0] - before.action[0, 0]).abs() / std
        errors.append(float(gap.mean(-1)[valid].mean()))
    assert report["action"]["hold_last"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_block_bootstrap_covers_the_mean_and_widens_with_dependence() -> None:
    rng = np.random.default_rng(0)
    independent = rng.normal(size=600)
    dependent = np.repeat(rng.normal(size=40), 15)

    def width(values: np.ndarray, block: int) -> float:
        d = offline.block_bootstrap(values, block, seed=0)
        assert d["low"] < d["mean"] < d["high"]
        return d["high"] - d["low"]

    assert width(independent, 1) == pytest.approx(2 * 1.96 / 600**0.5, rel=0.15)
    assert width(dependent, 15) > 2.5 * width(dependent, 1)
    with pytest.raises(ValueError, match="nothing to average"):
        offline.block_bootstrap(np.array([]), 5, 0)
