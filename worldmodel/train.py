"""`fit`: the training loop. Everything it does is a function of (config, seed, step).

With ``steps`` set, a run that is killed at any moment and resumed equals the uninterrupted run bit
for bit on the same machine and thread count: data order, draws, weights and ``metrics.jsonl``. What
depends on the clock (windows per second) goes to ``timing.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from . import checkpoint
from .data import Order, Windows
from .selfflow import SelfFlow
from .validate import validate

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "cooldown")
DTYPES = ("auto", "float32", "bfloat16")
WANDB = ("off", "online", "offline")


@dataclass
class FitConfig:
    """How to optimise.

    Attributes:
        batch_size: windows per micro-batch.
        accumulate: micro-batches per optimiser step, each with a pattern of its own.
        optimizer: "adamw", or "muon" (torch.optim.Muon for the matrices of the blocks, AdamW for
            the rest).
        lr, weight_decay, betas: of AdamW.
        muon_lr: of Muon.
        warmup: steps over which the learning rate rises linearly.
        schedule: "constant", "cosine" to zero, or "cooldown" (constant, then linear to zero).
        cooldown: share of the run that cools down.
        clip: largest gradient norm.
        dtype: of the token stream; "auto" takes bfloat16 where a short probe finds it faster.
        log_every, diagnose_every, validate_every, save_every: in steps; 0 is never.
        validation_windows: windows that each validation looks at.
        wandb: "off", "online" or "offline".
        wandb_project: where wandb files the run.
    """

    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    muon_lr: float = 0.02
    warmup: int = 100
    schedule: str = "constant"
    cooldown: float = 0.3
    clip: float = 1.0
    dtype: str = "auto"
    log_every: int = 20
    diagnose_every: int = 250
    validate_every: int = 500
    save_every: int = 500
    validation_windows: int = 64
    wandb: str = "off"
    wandb_project: str = "selfflow"

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("dtype", DTYPES),
            ("wandb", WANDB),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"fit.{name} is {getattr(self, name)!r}; there are {list(known)}")
        if min(self.batch_size, self.accumulate) < 1:
            raise ValueError("fit.batch_size and fit.accumulate must be at least 1")

    def lr_scale(self, step: int, progress: float) -> float:
        """Factor on the learning rates at optimiser step `step`, `progress` in [0, 1] of the run."""
        scale = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "cosine":
            scale *= 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "cooldown" and self.cooldown > 0:
            scale *= min(1.0, (1 - progress) / self.cooldown)
        return max(scale, 1e-4)


@dataclass
class FitResult:
    """How a run ended.

    Attributes:
        steps: optimiser steps done in all.
        seconds: of training in all, earlier parts of a resumed run included.
        interrupted: by Ctrl-C or SIGTERM; what was done is saved.
        best: lowest validation score, None when none was computed.
        checkpoint: the last checkpoint's folder.
    """

    steps: int
    seconds: float
    interrupted: bool
    best: float | None
    checkpoint: Path


class NotFiniteError(FloatingPointError):
    """The loss or the gradient is NaN or infinite; says where."""


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the token stream; "auto" is settled by a tenth of a second of matrix products.

    bfloat16 pays only where the hardware has it: on CPUs AMX or AVX512-BF16.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32

    def seconds(dtype: torch.dtype) -> float:
        a, w = torch.ones(2048, 256, dtype=dtype), torch.ones(1024, 256, dtype=dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            nn.functional.linear(a, w)
            times.append(time.perf_counter() - start)
        return min(times)

    faster = seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)
    return torch.bfloat16 if faster else torch.float32


def make_optimizers(objective: SelfFlow, config: FitConfig) -> list[torch.optim.Optimizer]:
    """The optimisers over everything trainable; each group remembers its base rate."""
    named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    betas = (config.betas[0], config.betas[1])
    hidden = [
        p
        for n, p in named
        if config.optimizer == "muon"
        and p.ndim == 2
        and ".blocks." in n
        and not n.endswith("offset")
    ]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=betas)
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=0.95
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


class Metrics:
    """``metrics.jsonl``: means over the steps since the last line, resumable to the byte."""

    def __init__(self, path: Path, step: int, pending: dict[str, list[float]]) -> None:
        """Keep lines up to `step`, drop what a killed run wrote after its last checkpoint."""
        self.path = path
        self.pending = pending
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line cut off by the kill
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
        temporary = path.with_suffix(".new")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)

    def add(self, logs: dict[str, Tensor | float]) -> None:
        for key, value in logs.items():
            entry = self.pending.setdefault(key, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += 1

    def flush(self, step: int, **more: float) -> dict[str, float]:
        """Write one line and start afresh."""
        line = {"step": step} | {k: s / n for k, (s, n) in sorted(self.pending.items())} | more
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.pending.clear()
        return line


@contextlib.contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that the step in progress ends and is saved.

    A second Ctrl-C acts at once. Outside the main thread signals cannot be caught; there this does
    nothing.
    """
    seen: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    old = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):
                old[number] = signal.signal(number, note)
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
    console: Console | None = None,
) -> FitResult:
    """Train until `steps` or `minutes` are reached, whichever comes first.

    Args:
        objective: what to learn; its EMA weights are what checkpoints ship.
        train, validation: windows of the two splits.
        out: the run's folder; ``checkpoints/``, ``metrics.jsonl`` and ``timing.jsonl`` go there.
        stamp: saved with every checkpoint.
        steps, minutes: at least one of them. `minutes` counts training time over all resumes.
        resume: go on from ``out/checkpoints/last``; starts afresh where there is none.
        console: where the progress bar goes; None is quiet.

    Raises:
        ValueError: neither steps nor minutes, or a run already in `out` without `resume`.
        NotFiniteError: the loss or gradient left the numbers; the last checkpoint stays.
    """
    if steps is None and minutes is None:
        raise ValueError("say how long to train: steps=N, minutes=M or both")
    keeper = checkpoint.Keeper(out / "checkpoints")
    last = keeper.last()
    if last and not resume:
        raise ValueError(
            f"{out} holds a run already ({last.name.lstrip('0') or 0} steps done): go on with "
            "resume=true, or choose another out="
        )
    optimizers = make_optimizers(objective, config)
    device = objective.device
    start, elapsed, best, pending = 0, 0.0, None, {}
    dtype = choose_dtype(config.dtype, device)
    if last:
        start, elapsed, best, pending, dtype = restore(last, objective, optimizers)
    stamp = stamp | {"dtype": str(dtype).removeprefix("torch."), "threads": torch.get_num_threads()}
    metrics = Metrics(out / "metrics.jsonl", start, pending)
    order = Order(len(train), config.batch_size, seed)
    run = start_wandb(config, out)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    begun = time.perf_counter() - elapsed
    step, windows, interrupted = start, 0, False

    def progress() -> float:
        share = step / steps if steps else 0.0
        if minutes is not None:
            share = max(share, (time.perf_counter() - begun) / (60 * minutes))
        return share

    def save(links: tuple[str, ...]) -> Path:
        def fill(folder: Path) -> None:
            checkpoint.save_policy(
                folder, objective.ema.model, objective.source, stamp | {"step": step}
            )
            tensors, values = state_of(objective, optimizers)
            seconds = time.perf_counter() - begun
            values |= {
                "step": step,
                "seconds": seconds,
                "best": best,
                "pending": metrics.pending,
                "dtype": stamp["dtype"],
            }
            checkpoint.save_state(folder / "training_state", tensors, values)

        return keeper.write(step, fill, links)

    bar = Progress(
        TextColumn("[bold]train"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console or Console(quiet=True),
        transient=False,
    )
    objective.train()
    with stop_on_signal() as stopped, bar:
        task = bar.add_task("train", total=1.0, note="")
        while progress() < 1 and not stopped:
            scale = config.lr_scale(step, progress())
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * scale
            diagnose = bool(config.diagnose_every) and step % config.diagnose_every == 0
            for micro in range(config.accumulate):
                chosen = objective.choose(step, micro)
                indices = order.batch(step * config.accumulate + micro)
                window = train.batch(indices, future=objective.needs_future(chosen)).to(device)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    losses = objective.losses(window, chosen, step, micro, diagnose)
                (losses.total / config.accumulate).backward()
                metrics.add(losses.logs)
                windows += len(indices)
            norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            if not math.isfinite(norm):
                raise NotFiniteError(
                    f"step {step}, pattern {chosen.name}: loss {float(losses.total):g}, gradient "
                    f"norm {float(norm):g}. The last checkpoint is kept; lower fit.lr, or look for "
                    "non-finite numbers in the data"
                )
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            objective.after_step(step)
            metrics.add({"gradient_norm": float(norm)})
            step += 1
            if config.log_every and step % config.log_every == 0:
                line = metrics.flush(step, lr=config.lr * scale)
                seconds = time.perf_counter() - begun
                rate = windows / max(1e-9, seconds - elapsed)
                with (out / "timing.jsonl").open("a") as file:
                    file.write(
                        json.dumps(
                            {
                                "step": step,
                                "seconds": round(seconds, 3),
                                "windows_per_s": round(rate, 2),
                            }
                        )
                        + "\n"
                    )
                if run:
                    run.log(line, step=step)
                share = max(progress(), 1e-9)
                left = seconds / share - seconds
                note = f"step {step}  {summary(line)}  {rate:.0f} windows/s  {clock(left)} left"
                bar.update(task, completed=min(1.0, share), note=note)
            if validation and config.validate_every and step % config.validate_every == 0:
                line = validate(objective, validation, config.validation_windows, dtype)
                with metrics.path.open("a") as file:
                    file.write(json.dumps({"step": step} | line) + "\n")
                if run:
                    run.log(line, step=step)
                if best is None or line["validation/score"] < best:
                    best = line["validation/score"]
                    save(("last", "best"))
            if config.save_every and step % config.save_every == 0:
                save(("last",))
        bar.update(task, completed=min(1.0, progress()))
        interrupted = bool(stopped)
    links = ("last",) if (out / "checkpoints" / "best").exists() else ("last", "best")
    folder = save(links)
    if run:
        run.finish()
    return FitResult(step, time.perf_counter() - begun, interrupted, best, folder)


def state_of(
    objective: SelfFlow, optimizers: list[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raw weights, feature head and optimiser state, as tensors and plain values."""
    tensors = {f"objective.{k}": v for k, v in objective.state_dict().items()}
    scalars: dict[str, Any] = {}
    for number, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                name = f"optimizer.{number}.{index}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    scalars[name] = value
    return tensors, {"scalars": scalars}


def restore(
    folder: Path, objective: SelfFlow, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float, float | None, dict[str, list[float]], torch.dtype]:
    """Load a training state: the inverse of `state_of` and of what `fit` saves beside it.

    Returns:
        Step, seconds trained, best score, pending means, dtype.

    Raises:
        checkpoint.CheckpointError: the state is missing, broken, or of another model.
    """
    tensors, values = checkpoint.load_state(folder / "training_state")
    own = {
        k.removeprefix("objective."): v for k, v in tensors.items() if k.startswith("objective.")
    }
    try:
        objective.load_state_dict(own)
    except RuntimeError as error:
        raise checkpoint.CheckpointError(
            f"{folder} was trained with another model or objective, so it cannot be resumed with "
            f"this configuration: {error}"
        ) from error
    checkpoint.load_weights(objective.ema.model, folder / checkpoint.WEIGHTS)
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        found: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **values["scalars"]}.items():
            head = f"optimizer.{number}."
            if name.startswith(head):
                index, key = name.removeprefix(head).split(".", 1)
                found.setdefault(int(index), {})[key] = value
        state["state"] = found
        optimizer.load_state_dict(state)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[values["dtype"]]
    return values["step"], values["seconds"], values["best"], values["pending"], dtype


def summary(line: dict[str, float]) -> str:
    """The losses worth showing in one line of a terminal."""
    names = {k.removesuffix("/loss"): v for k, v in line.items() if k.endswith("/loss")}
    short = {k: v for k, v in names.items() if k in ("act/action", "forward", "joint")}
    return "  ".join(f"{k} {v:.3f}" for k, v in (short or names).items())


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def start_wandb(config: FitConfig, out: Path) -> Any:
    """A wandb run, or None when it is off."""
    if config.wandb == "off":
        return None
    import wandb  # slow to import, and most runs do without

    return wandb.init(
        project=config.wandb_project, dir=str(out), mode=config.wandb, config=asdict(config)
    )
