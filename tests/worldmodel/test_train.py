"""`fit`: what it optimises, when it stops, how it goes on, what it refuses, what it shows."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.datasets import write_dataset
from worldmodel import train as module
from worldmodel.checkpoint import CheckpointError, open_checkpoint
from worldmodel.data import Data, DataConfig, Order, open_data
from worldmodel.lock import LockedError
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.progress import TrainProgress, clock
from worldmodel.selfflow import ObjectiveConfig, SelfFlow
from worldmodel.tokens import Horizon
from worldmodel.train import FitConfig, FitResult, NotFiniteError, fit, make_optimizers

CONFIG = FitConfig(
    batch_size=4,
    warmup=2,
    dtype="float32",
    log_every=3,
    diagnose_every=0,
    validate_every=0,
    save_every=2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = write_dataset(tmp_path_factory.mktemp("fit") / "data", episodes=3, length=16, size=16)
    config = DataConfig(root=str(root), image_size=16, past=1, future=1, chunk=4)
    return open_data(config, progress=False)


def objective(data: Data, seed: int = 0) -> SelfFlow:
    horizon = Horizon(past=1, past_stride=1, future=1, future_stride=4, chunk=4)
    model = WorldModel(data.spec, horizon, ModelConfig(size="debug", width=32), seed)
    return SelfFlow(model, ObjectiveConfig(draws={}), seed)


def train(data: Data, out: Path, config: FitConfig = CONFIG, **more: Any) -> FitResult:
    learner = more.pop("learner", None) or objective(data)
    return fit(learner, data.train, data.validation, config, out, {}, **more)


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def files(out: Path) -> dict[str, bytes]:
    last = out / "checkpoints/last"
    names = ("model.safetensors", "training_state/tensors.safetensors")
    return {n: (last / n).read_bytes() for n in names} | {
        "metrics": (out / "metrics.jsonl").read_bytes()
    }


def after(step: int, act: Callable[[], None], learner: SelfFlow) -> SelfFlow:
    """`learner`, which calls `act` once optimiser step number `step` (from 1) is done."""
    plain = learner.after_step

    def hooked(number: int) -> None:
        plain(number)
        if number + 1 == step:
            act()

    learner.after_step = hooked  # type: ignore[method-assign, assignment]
    return learner


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "muon"},
        {"schedule": "cosine", "accumulate": 2},
        {"schedule": "cooldown", "validate_every": 2, "dtype": "bfloat16"},
    ],
    ids=lambda change: "-".join(map(str, change.values())),
)
def test_stopped_and_resumed_equals_uninterrupted(
    data: Data, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = replace(CONFIG, **change)
    train(data, tmp_path / "whole", config, steps=7)
    stop = after(4, lambda: signal.raise_signal(signal.SIGTERM), objective(data))
    first = train(data, tmp_path / "parts", config, steps=7, learner=stop)
    assert (first.steps, first.signal) == (4, signal.SIGTERM)
    second = train(data, tmp_path / "parts", config, steps=7, resume=True)
    assert (second.steps, second.resumed_at, second.signal) == (7, 4, None)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_muon_takes_the_matrices_of_the_blocks_and_learns(data: Data, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer="muon")
    learner = objective(data)
    adamw, muon = make_optimizers(learner, config)
    assert all(p.ndim == 2 for g in muon.param_groups for p in g["params"])
    count = sum(len(g["params"]) for o in (adamw, muon) for g in o.param_groups)
    assert count == sum(p.requires_grad for p in learner.parameters())
    before = {k: v.clone() for k, v in learner.model.backbone.state_dict().items()}
    train(data, tmp_path, config, steps=3, learner=learner)
    moved = learner.model.backbone.state_dict()
    assert any(not before[k].equal(v) for k, v in moved.items())
    assert all(v.isfinite().all() for v in moved.values())


def test_accumulation_averages_the_gradients_of_its_micro_batches(
    data: Data, tmp_path: Path
) -> None:
    """Bit for bit what one would write down by hand."""
    config = replace(CONFIG, accumulate=2, clip=math.inf, warmup=0)
    learner = objective(data)
    train(data, tmp_path, config, steps=1, learner=learner)

    other = objective(data)
    order = Order(len(data.train), config.batch_size, 0)
    for micro in range(2):
        chosen = other.choose(0, micro)
        window = data.train.batch(order.batch(micro), future=chosen.has_future)
        (other.losses(window, chosen, 0, micro).total / 2).backward()
    for optimizer in make_optimizers(other, config):
        optimizer.step()
    expected, found = other.state_dict(), learner.state_dict()
    assert all(expected[k].equal(found[k]) for k in expected)


def test_gradients_are_clipped_and_their_norm_is_logged_before(data: Data, tmp_path: Path) -> None:
    norms = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norms.append(float(nn.utils.get_total_norm(grads)))

    hook = register_optimizer_step_pre_hook(look)
    try:
        train(data, tmp_path, replace(CONFIG, clip=1e-3), steps=3)
    finally:
        hook.remove()
    assert len(norms) == 3
    assert max(norms) <= 1e-3 * 1.001
    assert metrics(tmp_path)[0]["gradient_norm"] > 1e-2


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_number_that_is_none_ends_the_run_and_keeps_the_last_checkpoint(
    data: Data, tmp_path: Path, what: str
) -> None:
    learner = objective(data)
    plain = learner.losses

    def poisoned(window, chosen, step, *more):
        losses = plain(window, chosen, step, *more)
        if step == 5 and what == "loss":
            losses.total = losses.total * math.nan
        if step == 5 and what == "gradient norm":  # finite itself, its derivative is not
            losses.total = losses.total + (losses.total * 0).sqrt()
        return losses

    learner.losses = poisoned  # type: ignore[method-assign]
    pattern = learner.choose(5).name
    with pytest.raises(NotFiniteError, match=f"step 5, {pattern}: the {what} is nan"):
        train(data, tmp_path, steps=9, learner=learner)
    assert (tmp_path / "checkpoints/last").resolve().name == "00000004"
    assert train(data, tmp_path, steps=6, resume=True).resumed_at == 4


class Clock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: fake.now))
    return fake


def timed(data: Data, fake: Clock, stop_at: int = 0) -> SelfFlow:
    """A learner whose steps take a second each, and that is stopped after step `stop_at`."""
    learner = objective(data)
    plain = learner.after_step

    def hooked(number: int) -> None:
        plain(number)
        fake.tick()
        if number + 1 == stop_at:
            signal.raise_signal(signal.SIGINT)

    learner.after_step = hooked  # type: ignore[method-assign, assignment]
    return learner


def test_minutes_count_training_over_all_parts_of_a_run(
    data: Data, tmp_path: Path, fake_time: Clock
) -> None:
    minutes = 9.5 / 60
    first = train(data, tmp_path, minutes=minutes, learner=timed(data, fake_time, stop_at=4))
    assert (first.steps, first.seconds, first.signal) == (4, 4.0, signal.SIGINT)
    fake_time.tick(1e6)  # a night off does not count
    more: dict[str, Any] = {"minutes": minutes, "resume": True}
    second = train(data, tmp_path, learner=timed(data, fake_time), **more)
    assert (second.steps, second.seconds) == (10, 10.0)
    fake_time.tick(1e6)
    third = train(data, tmp_path, learner=timed(data, fake_time), **more)
    assert (third.steps, third.resumed_at) == (10, 10)


def test_whichever_of_steps_and_minutes_comes_first(
    data: Data, tmp_path: Path, fake_time: Clock
) -> None:
    for name, steps, expected in (("a", 3, 3), ("b", 50, 5)):
        learner = timed(data, fake_time)
        result = train(data, tmp_path / name, steps=steps, minutes=5 / 60, learner=learner)
        assert result.steps == expected


@pytest.mark.parametrize("length", [{"steps": 8}, {"minutes": 8 / 60}], ids=["steps", "minutes"])
def test_schedules_follow_the_share_of_the_run(
    data: Data, tmp_path: Path, fake_time: Clock, length: dict[str, Any]
) -> None:
    expected = {
        "constant": lambda share: 1.0,
        "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
        "cooldown": lambda share: min(1.0, (1 - share) / 0.5),
    }
    for schedule, scale in expected.items():
        config = replace(CONFIG, schedule=schedule, cooldown=0.5, warmup=0, log_every=1)
        out = tmp_path / schedule
        train(data, out, config, learner=timed(data, fake_time), **length)
        rates = [line["lr"] for line in metrics(out)]
        assert rates == pytest.approx([config.lr * scale(step / 8) for step in range(8)])


def test_the_best_checkpoint_has_the_lowest_score(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(
        module, "validate", lambda *_: {"validation/score": next(scores), "validation/x": 0.0}
    )
    result = train(data, tmp_path, replace(CONFIG, validate_every=2, save_every=1), steps=7)
    assert result.best == 1.0
    assert (tmp_path / "checkpoints/best").resolve().name == "00000004"
    assert (tmp_path / "checkpoints/last").resolve().name == "00000007"


def checkpoints(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "checkpoints").iterdir())


def test_checkpoints_of_every_so_many_steps_stay(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the best and the last; killed at a step of no mark, that one goes."""
    scores = iter([3.0, 1.0, 2.0, 4.0])
    monkeypatch.setattr(module, "validate", lambda *_: {"validation/score": next(scores)})
    config = replace(CONFIG, validate_every=2, save_every=1, keep_every=3)
    stop = after(5, lambda: signal.raise_signal(signal.SIGTERM), objective(data))
    train(data, tmp_path, config, steps=8, learner=stop)
    assert checkpoints(tmp_path) == ["00000003", "00000004", "00000005", "best", "last"]
    train(data, tmp_path, config, steps=8, resume=True)
    kept = ["00000003", "00000004", "00000006", "00000008", "best", "last"]
    assert checkpoints(tmp_path) == kept
    assert open_checkpoint(tmp_path / "checkpoints/00000003").stamp["step"] == 3


def test_only_what_is_saved_can_stay(data: Data, tmp_path: Path) -> None:
    train(data, tmp_path / "rare", replace(CONFIG, save_every=4, keep_every=3), steps=13)
    assert checkpoints(tmp_path / "rare") == ["00000012", "00000013", "best", "last"]
    train(data, tmp_path / "none", replace(CONFIG, save_every=1, keep_every=0), steps=4)
    assert checkpoints(tmp_path / "none") == ["00000004", "best", "last"]


def test_killed_between_its_two_links_the_best_is_put_right(data: Data, tmp_path: Path) -> None:
    train(data, tmp_path, replace(CONFIG, validate_every=4), steps=4)
    folder = tmp_path / "checkpoints"
    best, stale = folder / "best", folder / "00000001"
    stale.mkdir()
    best.unlink()
    best.symlink_to(stale.name)
    (folder / ".last-1").symlink_to(stale.name)
    train(data, tmp_path, replace(CONFIG, validate_every=4), steps=5, resume=True)
    assert best.resolve().name == "00000004"
    assert checkpoints(tmp_path) == ["00000004", "00000005", "best", "last"]


def test_a_finished_but_unlinked_checkpoint_of_another_run_is_not_taken_for_its_own(
    data: Data, tmp_path: Path
) -> None:
    train(data, tmp_path, steps=2)
    for link in ("last", "best"):  # killed after the rename, before the links
        (tmp_path / "checkpoints" / link).unlink()
    train(data, tmp_path, learner=objective(data, seed=1), steps=2, seed=1)
    train(data, tmp_path / "other", learner=objective(data, seed=1), steps=2, seed=1)
    assert files(tmp_path) == files(tmp_path / "other")


def test_a_checkpoint_that_cannot_resume_says_so(data: Data, tmp_path: Path) -> None:
    train(data, tmp_path, steps=1)
    last = tmp_path / "checkpoints/last"
    shutil.rmtree(last / "training_state")
    with pytest.raises(CheckpointError, match="no training state.*init="):
        train(data, tmp_path, steps=2, resume=True)
    target = last.resolve()
    last.unlink()
    target.rename(last)  # a copy that followed the links
    with pytest.raises(CheckpointError, match="instead of a link.*init="):
        train(data, tmp_path, steps=2, resume=True)
    assert open_checkpoint(tmp_path).stamp["step"] == 1


def test_a_folder_that_is_trained_into_is_refused_until_that_ends(
    data: Data, tmp_path: Path
) -> None:
    refused = []

    def second() -> None:
        with pytest.raises(LockedError, match=rf"pid {os.getpid()}\) is writing into {tmp_path}"):
            train(data, tmp_path, steps=9, resume=True, settings="another")
        refused.append((tmp_path / "config.yaml").read_text())

    learner = after(3, second, objective(data))
    train(data, tmp_path, steps=4, learner=learner, settings="its own")
    assert refused == ["its own"]
    assert train(data, tmp_path, steps=5, resume=True).steps == 5


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for wandb: what its runs were begun with."""
    begun: list[dict[str, Any]] = []

    def init(**settings: Any) -> SimpleNamespace:
        begun.append(settings)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    fake = SimpleNamespace(init=init, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return begun


def test_a_resumed_run_is_the_same_run_to_wandb(
    data: Data, tmp_path: Path, wandb_runs: list[dict[str, Any]]
) -> None:
    config = replace(CONFIG, wandb="offline")
    train(data, tmp_path / "a", config, steps=1)
    train(data, tmp_path / "a", steps=2, resume=True)  # wandb=off in between changes nothing
    train(data, tmp_path / "a", config, steps=3, resume=True)
    train(data, tmp_path / "b", config, steps=1)
    first, resumed, other = wandb_runs
    assert first["id"] == resumed["id"] != other["id"]
    assert {run["resume"] for run in wandb_runs} == {"allow"}
    shutil.rmtree(tmp_path / "a" / "checkpoints")  # from the beginning: no longer that run
    train(data, tmp_path / "a", config, steps=1, resume=True)
    assert wandb_runs[-1]["id"] not in (first["id"], other["id"])


def test_the_dtype_that_auto_chose_is_kept(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, dtype="auto")
    train(data, tmp_path, config, steps=1)
    chosen = json.loads((tmp_path / "checkpoints/last/stamp.json").read_text())["dtype"]
    other = {"float32": torch.bfloat16, "bfloat16": torch.float32}[chosen]
    plain = module.choose_dtype
    monkeypatch.setattr(
        module, "choose_dtype", lambda want, dev: other if want == "auto" else plain(want, dev)
    )
    train(data, tmp_path, config, steps=2, resume=True)
    assert json.loads((tmp_path / "checkpoints/last/stamp.json").read_text())["dtype"] == chosen


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"accumulate": 0}, "at least 1"),
        ({"save_every": -1}, "at least 0"),
        ({"keep_every": -1}, "at least 0"),
        ({"betas": [0.9]}, "two numbers"),
        ({"clip": 0.0}, "above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        replace(CONFIG, **change)


# --- what is shown --------------------------------------------------------------------------------


def shown(width: int, terminal: bool, shares: list[float]) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=terminal, color_system=None)
    with TrainProgress(console) as progress:
        progress.loss = 0.1234
        for share in shares:
            progress.update(share, 12345, 412.3, 187)
    return text.getvalue()


def test_the_bar_fits_eighty_columns() -> None:
    last = shown(80, True, [0.45]).split("\r")[-1].splitlines()[-2:]
    line = next(x for x in last if "train" in x)
    for part in ("train", "━━━━", " 45%", "step 12345", "loss 0.123", "412 windows/s", "3:07 left"):
        assert part in line
    assert "…" not in line


def test_without_a_terminal_there_are_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 10.5, 11.0, 12.0])
    monkeypatch.setattr("worldmodel.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    text = shown(40, False, [0.1, 0.5, 0.6, 1.0])
    assert [line[:10] for line in text.splitlines()] == ["train  50%", "train 100%"]
    assert text.splitlines()[0].endswith("loss 0.123  412 windows/s  3:07 left")


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (187.4, "3:07"), (7387, "2:03:07")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
