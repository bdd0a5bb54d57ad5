"""`fit`: the training loop. Everything it does is a function of (config, seed, step).

With ``steps`` set, a run that is killed at any moment and resumed equals the uninterrupted run bit
for bit on the same machine and thread count: data order, draws, weights and ``metrics.jsonl``. What
depends on the clock (windows per second) goes to ``timing.jsonl``. It holds because nothing is
remembered between steps but what a checkpoint stores, and because a checkpoint of step N is written
after every line of step N.

Several processes (`worldmodel.distributed`) do the same steps on the same batches, each with its
rows of them; the leader alone writes. Sums over processes are rounded otherwise than one process
would, so that another number of them gives the same run but for the last digits.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from . import checkpoint
from .data import Orders, Windows
from .diagnostics import teacher_signal
from .distributed import ALONE, World
from .interrupt import stop_on_signal
from .lock import sole_writer
from .optimize import FitConfig, choose_dtype, make_optimizers
from .progress import TrainProgress
from .record import Record
from .resume import (
    RunState,
    clear_ahead,
    never_written,
    require_same_run,
    restore,
    resumable,
    state_of,
)
from .selfflow import SelfFlow
from .tokens import pattern
from .validate import validate


@dataclass
class FitResult:
    """How a run ended.

    Attributes:
        steps: optimiser steps done in all.
        resumed_at: how many of them earlier parts of the run had done.
        seconds: of training in all, earlier parts of the run included.
        signal: SIGINT (Ctrl-C) or SIGTERM if one ended the run early; what was done is saved.
        best: lowest validation score, None when none was computed.
        checkpoint: the last checkpoint's folder.
    """

    steps: int
    resumed_at: int
    seconds: float
    signal: signal.Signals | None
    best: float | None
    checkpoint: Path


class NotFiniteError(FloatingPointError):
    """The loss or the gradient is NaN or infinite; says where."""


def fit(
    objective: SelfFlow,
    train: Windows,
    validation: Windows | None,
    config: FitConfig,
    out: Path,
    stamp: dict[str, Any],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    resume: bool = False,
    settings: str | None = None,
    console: Console | None = None,
    world: World = ALONE,
) -> FitResult:
    """Train until `steps` or `minutes` are reached, whichever comes first.

    Args:
        objective: what to learn; its EMA weights are what checkpoints ship.
        train, validation: windows of the two splits.
        out: the run's folder; ``checkpoints/``, ``metrics.jsonl`` and ``timing.jsonl`` go there.
        stamp: saved with every checkpoint.
        steps, minutes: at least one of them. `minutes` counts training time over all resumes.
        resume: go on from ``out/checkpoints/last``; starts afresh where there is none.
        settings: what the run was configured with, kept as ``out/config.yaml``.
        console: where progress is shown; None is quiet.
        world: the processes that train together, each calling this with the same arguments.

    Raises:
        ValueError: neither steps nor minutes, or a run already in `out` without `resume`; or the
            batch does not go evenly into the processes, or they are not at the same work.
        LockedError: another process trains into `out`.
        checkpoint.CheckpointError: the run in `out` has other settings or data, by name; its
            training state is missing or broken; or the disk is full.
        NotFiniteError: the loss or gradient left the numbers; the last checkpoint stays.
        PeerError: another process of this run ended.
    """
    length = Length(steps, minutes)
    world.require_divides(config.batch_size, "fit.batch_size")
    with sole_writer(out) if world.leads else contextlib.nullcontext():

        def begin() -> Path | None:
            last = resumable(out, resume)
            if last:
                require_same_run(last, objective, config, stamp)
            if settings is not None:
                (out / "config.yaml").write_text(settings)
            return last

        world.require_same(
            {
                "the configuration": settings or config,
                "the data": (len(train), stamp.get("dataset")),
                "the version of the code": stamp.get("revision"),
            }
        )
        last = world.leader(begin)
        run = Run(objective, train, validation, config, out, stamp, seed, last, world)
        return run.until(length, console)


@dataclass(frozen=True)
class Length:
    """How long to train: `steps` or `minutes`, whichever comes first; see `fit`."""

    steps: int | None
    minutes: float | None

    def __post_init__(self) -> None:
        require_length(self.steps, self.minutes)

    def share(self, step: int, seconds: float) -> float:
        """How much of it is done, from 0; 1 and above is the end."""
        share = step / self.steps if self.steps else 0.0
        if self.minutes is not None:
            share = max(share, seconds / (60 * self.minutes))
        return share


class Run:
    """A run under way, in a folder that is its own.

    Args:
        last: checkpoint that it goes on from; None where it starts. The others: see `fit`.

    Attributes:
        keeper, record: of the process that leads; None in the others, which write nothing.
    """

    def __init__(
        self,
        objective: SelfFlow,
        train: Windows,
        validation: Windows | None,
        config: FitConfig,
        out: Path,
        stamp: dict[str, Any],
        seed: int,
        last: Path | None,
        world: World,
    ) -> None:
        self.objective, self.train, self.validation = objective, train, validation
        self.config, self.last, self.world = config, last, world
        self.optimizers = make_optimizers(objective, config)
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        # The success head learns apart from the rest: it must not press down its gradients.
        head = objective.model.success
        apart = {id(p) for p in head.parameters()} if head is not None else set()
        self.clipped = [
            [p for p in self.parameters if (id(p) in apart) == head_only]
            for head_only in (False, True)
        ]
        self.state = state = restore(last, objective, self.optimizers) if last else RunState()
        if state.dtype is None:
            chosen = world.leader(lambda: choose_dtype(config.dtype, objective.device))
            state.dtype = str(chosen).removeprefix("torch.")
        self.dtype = choose_dtype(state.dtype, objective.device)
        self.stamp = stamp | {
            "dtype": state.dtype,
            "threads": torch.get_num_threads(),
            "processes": world.size,
        }
        self.keeper: checkpoint.Keeper | None = None
        self.record: Record | None = None
        if world.leads:
            self.keeper = checkpoint.Keeper(out / "checkpoints", config.keep_every)
            clear_ahead(self.keeper.root, int(last.name) if last else -1)
            if state.best_step is not None:  # perhaps killed between moving its two links
                self.keeper.write(state.best_step, never_written, ("best",))
            self.record = Record(out, config, state.step, state.pending)
        self.orders = Orders(train, config.batch_size, seed, objective.sources)
        self.begun = time.perf_counter() - state.seconds

    @property
    def seconds(self) -> float:
        """Of training, earlier parts of the run included."""
        return time.perf_counter() - self.begun

    def until(self, length: Length, console: Console | None) -> FitResult:
        """Train until the length is reached or a signal comes."""
        state, world = self.state, self.world
        start, before = state.step, state.seconds
        self.objective.train()
        with (
            stop_on_signal() as stopped,
            TrainProgress(console if world.leads else None) as shown,
        ):
            while True:
                share, number = self.agree(length, stopped)
                if share >= 1 or number:
                    break
                scale = self.step(share)
                if world.leads:
                    done = (state.step - start) * self.config.accumulate * self.config.batch_size
                    rate = done / max(1e-9, self.seconds - before)
                    self.log(scale, rate, shown)
                    seconds, share = self.seconds, max(self.share(length), 1e-9)
                    left = max(0.0, seconds / share - seconds)
                    shown.update(min(1.0, share), state.step, rate, left)
                    self.keep()
            # A run that had nothing left to do stays as it is.
            idle = self.last if state.step == start else None
            folder = world.leader(lambda: idle or self.save())
            share, number = self.agree(length, stopped)
        if self.record:
            self.record.close()
        ended = signal.Signals(number) if number else None
        return FitResult(state.step, start, self.seconds, ended, state.best, folder)

    def share(self, length: Length) -> float:
        """How much of the run is done, by this process's clock."""
        return length.share(self.state.step, self.seconds)

    def agree(self, length: Length, stopped: list[int]) -> tuple[float, int]:
        """What all processes go by: the leader's `share`, and a signal that one got (0: none)."""
        share = self.share(length) if self.world.leads else -1.0
        own = torch.tensor([share, stopped[0] if stopped else 0], dtype=torch.float64)
        share, number = self.world.greatest(own).tolist()
        return share, int(number)

    def step(self, share: float) -> float:
        """One optimiser step at this share of the run; returns the factor on the learning rates."""
        config, objective, step = self.config, self.objective, self.state.step
        scale = config.lr_scale(step, share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
        diagnose = bool(config.diagnose_every) and step % config.diagnose_every == 0
        if diagnose and self.world.leads:
            self.diagnose()
        names = [self.learn(micro, diagnose) for micro in range(config.accumulate)]
        self.world.add_all([p.grad for p in self.parameters])
        norm, head = (float(nn.utils.clip_grad_norm_(p, config.clip)) for p in self.clipped)
        require_finite(norm, "gradient norm", step, ", ".join(names))
        require_finite(head, "gradient norm of the success head", step, ", ".join(names))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        objective.after_step(step)
        self.add({"gradient_norm": norm})
        self.state.step += 1
        return scale

    def learn(self, micro: int, diagnose: bool) -> str:
        """Gradients of one micro-batch, added to those of the step; returns its pattern's name.

        With several processes these are this one's part of them.
        """
        objective, step, world = self.objective, self.state.step, self.world
        chosen = objective.choose(step, micro)
        indices = self.orders.batch(chosen.source, step * self.config.accumulate + micro)
        indices = indices[world.rows(len(indices))]
        ahead = np.array(chosen.offsets) if chosen.has_future else None
        window = self.train.batch(indices, future=chosen.has_future, offsets=ahead)
        window = window.to(objective.device)
        with self.autocast():
            losses = objective.losses(window, chosen, step, micro, diagnose, world)
        parts = [float(losses.total.detach()), *map(float, losses.logs.values())]
        total, *logs = world.add(torch.tensor(parts, dtype=torch.float64)).tolist()
        require_finite(total, "loss", step, chosen.name)
        (losses.total / self.config.accumulate).backward()
        self.add(dict(zip(losses.logs, logs, strict=True)))
        return chosen.name

    def autocast(self) -> torch.autocast:
        """The token stream in its dtype."""
        enabled = self.dtype != torch.float32
        return torch.autocast(self.objective.device.type, self.dtype, enabled=enabled)

    def diagnose(self) -> None:
        """Log what the teacher has to teach in each pattern, on the step's first micro-batch."""
        objective, step = self.objective, self.state.step
        horizon = objective.model.horizon
        for name in objective.shares:
            asked = pattern(name, horizon, min(1, horizon.chunk - 1))
            indices = self.orders.batch(asked.source, step * self.config.accumulate)
            window = self.train.batch(indices).to(objective.device)
            with self.autocast():
                self.add(teacher_signal(objective, window, asked, step))

    # --- what the leader alone does ---------------------------------------------------------------

    def add(self, logs: Mapping[str, Tensor | float]) -> None:
        """Take values into the next line of ``metrics.jsonl``."""
        if self.record:
            self.record.add(logs)

    def log(self, scale: float, rate: float, shown: TrainProgress) -> None:
        """Write a line where it is time to."""
        every, step, shares = self.config.log_every, self.state.step, self.objective.shares
        if self.record and every and step % every == 0:
            timing = {"seconds": round(self.seconds, 3), "windows_per_s": round(rate, 2)}
            line = self.record.flush(step, timing, lr=self.config.lr * scale)
            main = "act/action/loss" if "act" in shares else f"{next(iter(shares))}/loss"
            shown.loss = line.get(main, shown.loss)

    def keep(self) -> None:
        """Validate and save where it is time to, and where the score is the best so far."""
        improved, every = self.validate(), self.config.save_every
        if improved or (every and self.state.step % every == 0):
            self.save(improved)

    def validate(self) -> bool:
        """Validate where it is time to; whether the score is the best so far."""
        state, every = self.state, self.config.validate_every
        if not (self.record and self.validation and every and state.step % every == 0):
            return False
        count = self.config.validation_windows
        line = validate(self.objective, self.validation, count, self.dtype)
        score = line.get("validation/score")
        self.record.write(state.step, line)
        if score is None:
            return False
        require_finite(score, "validation score", state.step, "validation")
        improved = state.best is None or score < state.best
        if improved:
            state.best = score
        return improved

    def save(self, is_best: bool = False) -> Path:
        """Write a checkpoint; returns its folder."""
        assert self.keeper is not None, "only the leader writes"
        state, objective = self.state, self.objective
        state.seconds = self.seconds
        is_best = is_best or state.best is None  # without a score the best is the last
        if is_best:
            state.best_step = state.step

        def fill(folder: Path) -> None:
            facts = self.stamp | {"step": state.step}
            checkpoint.save_policy(folder, objective.ema.model, objective.source, facts)
            tensors, scalars = state_of(objective, self.optimizers)
            values = {"scalars": scalars, "optimizer": self.config.optimizer} | asdict(state)
            checkpoint.save_state(folder / "training_state", tensors, values)

        return self.keeper.write(state.step, fill, ("last", "best") if is_best else ("last",))


def require_length(steps: int | None, minutes: float | None) -> None:
    """Refuse a run without an end, or without a step.

    Raises:
        ValueError: says what to set.
    """
    if steps is None and minutes is None:
        raise ValueError("say how long to train: steps=N, minutes=M, or both (the first one ends)")
    for name, value in (("steps", steps), ("minutes", minutes)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0")


def require_finite(value: float, what: str, step: int, where: str) -> None:
    """Raise NotFiniteError for a NaN or an infinity."""
    if not math.isfinite(value):
        raise NotFiniteError(
            f"step {step}, {where}: the {what} is {value:g}. The last checkpoint is kept; lower "
            "fit.lr, raise fit.warmup, or look for extreme numbers in the data"
        )
