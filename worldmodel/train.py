"""`fit`: the training loop. Everything it does is a function of (config, seed, step).

With ``steps`` set, a run that is killed at any moment and resumed equals the uninterrupted run bit
for bit on the same machine and thread count: data order, draws, weights and ``metrics.jsonl``. What
depends on the clock (windows per second) goes to ``timing.jsonl``. It holds because nothing is
remembered between steps but what a checkpoint stores, and because a checkpoint of step N is written
after every line of step N.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from . import checkpoint
from .data import Order, Windows
from .data.errors import did_you_mean
from .diagnostics import teacher_signal
from .lock import sole_writer
from .progress import TrainProgress
from .selfflow import SelfFlow
from .tokens import pattern
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
                found = getattr(self, name)
                raise ValueError(
                    f"fit.{name} is {found!r}; there are {list(known)}.{did_you_mean(found, known)}"
                )
        least = {"batch_size": 1, "accumulate": 1, "validation_windows": 1, "warmup": 0}
        least |= dict.fromkeys(("log_every", "diagnose_every", "validate_every", "save_every"), 0)
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"fit.{name} is {getattr(self, name)}; it must be at least {minimum}"
                )
        if len(self.betas) != 2:
            raise ValueError(f"fit.betas is {self.betas}; it takes two numbers, as [0.9,0.95]")
        if not self.clip > 0:
            raise ValueError(f"fit.clip is {self.clip}; it must be above 0 (inf for no clipping)")

    def lr_scale(self, step: int, progress: float) -> float:
        """Factor on the learning rates at optimiser step `step`, at share `progress` of the run."""
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


def keep_lines(path: Path, step: int) -> None:
    """Drop lines of a JSONL file that a killed run wrote after its last checkpoint, at `step`."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line cut off by the kill
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
    temporary = path.with_name(path.name + ".new")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


class Metrics:
    """``metrics.jsonl``: means over the steps since the last line, resumable to the byte.

    Args:
        path: the file.
        pending: sums and counts since the last line, as a checkpoint stored them.
    """

    def __init__(self, path: Path, pending: dict[str, list[float]]) -> None:
        self.path = path
        self.pending = pending

    def add(self, logs: dict[str, Tensor | float]) -> None:
        for key, value in logs.items():
            entry = self.pending.setdefault(key, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += 1

    def flush(self, step: int, **more: float) -> dict[str, float]:
        """Write one line and start afresh."""
        line = {"step": step} | {k: s / n for k, (s, n) in sorted(self.pending.items())} | more
        append_line(self.path, line)
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
    settings: str | None = None,
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
        settings: what the run was configured with, kept as ``out/config.yaml``.
        console: where progress is shown; None is quiet.

    Raises:
        ValueError: neither steps nor minutes, or a run already in `out` without `resume`.
        LockedError: another process trains into `out`.
        checkpoint.CheckpointError: the run in `out` has other settings or data, by name; its
            training state is missing or broken; or the disk is full.
        NotFiniteError: the loss or gradient left the numbers; the last checkpoint stays.
    """
    require_length(steps, minutes)
    with sole_writer(out):
        return _fit(
            objective,
            train,
            validation,
            config,
            out,
            stamp,
            steps=steps,
            minutes=minutes,
            seed=seed,
            resume=resume,
            settings=settings,
            console=console,
        )


def _fit(
    objective: SelfFlow,
    train: Windows,
    validation: Windows | None,
    config: FitConfig,
    out: Path,
    stamp: dict[str, Any],
    *,
    steps: int | None,
    minutes: float | None,
    seed: int,
    resume: bool,
    settings: str | None,
    console: Console | None,
) -> FitResult:
    """`fit` in a folder that is its own."""
    last = resumable(out, resume)
    if last:
        require_same_run(last, objective, config, stamp)
    if settings is not None:
        (out / "config.yaml").write_text(settings)
    keeper = checkpoint.Keeper(out / "checkpoints")
    clear_ahead(keeper.root, int(last.name) if last else -1)
    optimizers = make_optimizers(objective, config)
    device = objective.device
    state = restore(last, objective, optimizers) if last else RunState()
    if state.best_step is not None:  # the run may have been killed between moving its two links
        keeper.write(state.best_step, _never_written, ("best",))
    if state.dtype is None:
        state.dtype = str(choose_dtype(config.dtype, device)).removeprefix("torch.")
    dtype = choose_dtype(state.dtype, device)
    stamp = stamp | {"dtype": state.dtype, "threads": torch.get_num_threads()}
    timing = out / "timing.jsonl"
    metrics = Metrics(out / "metrics.jsonl", state.pending)
    for path in (metrics.path, timing):
        keep_lines(path, state.step)
    order = Order(len(train), config.batch_size, seed)
    run = start_wandb(config, out, resumed=last is not None)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    elapsed = state.seconds
    begun = time.perf_counter() - elapsed
    start = step = state.step
    windows = 0

    def progress() -> float:
        share = step / steps if steps else 0.0
        if minutes is not None:
            share = max(share, (time.perf_counter() - begun) / (60 * minutes))
        return share

    def save(is_best: bool = False) -> Path:
        # Without a score the best is the last.
        is_best = is_best or state.best is None
        state.step, state.seconds = step, time.perf_counter() - begun
        if is_best:
            state.best_step = step

        def fill(folder: Path) -> None:
            facts = stamp | {"step": step}
            checkpoint.save_policy(folder, objective.ema.model, objective.source, facts)
            tensors, scalars = state_of(objective, optimizers)
            values = {"scalars": scalars, "optimizer": config.optimizer} | asdict(state)
            checkpoint.save_state(folder / "training_state", tensors, values)

        return keeper.write(step, fill, ("last", "best") if is_best else ("last",))

    objective.train()
    first = next(iter(objective.shares))
    main_loss = "act/action/loss" if "act" in objective.shares else f"{first}/loss"
    with stop_on_signal() as stopped, TrainProgress(console) as shown:
        while progress() < 1 and not stopped:
            scale = config.lr_scale(step, progress())
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * scale
            diagnose = bool(config.diagnose_every) and step % config.diagnose_every == 0
            if diagnose:
                for name in objective.shares:
                    horizon = objective.model.horizon
                    asked = pattern(name, horizon, min(1, horizon.chunk - 1))
                    window = train.batch(order.batch(step * config.accumulate)).to(device)
                    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                        metrics.add({**teacher_signal(objective, window, asked, step)})
            patterns = []
            for micro in range(config.accumulate):
                chosen = objective.choose(step, micro)
                indices = order.batch(step * config.accumulate + micro)
                window = train.batch(indices, future=objective.needs_future(chosen)).to(device)
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    losses = objective.losses(window, chosen, step, micro, diagnose)
                require_finite(float(losses.total.detach()), "loss", step, chosen.name)
                (losses.total / config.accumulate).backward()
                metrics.add(losses.logs)
                windows += len(indices)
                patterns.append(chosen.name)
            norm = float(nn.utils.clip_grad_norm_(parameters, config.clip))
            require_finite(norm, "gradient norm", step, ", ".join(patterns))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            objective.after_step(step)
            metrics.add({"gradient_norm": norm})
            step += 1
            seconds = time.perf_counter() - begun
            rate = windows / max(1e-9, seconds - elapsed)
            if config.log_every and step % config.log_every == 0:
                line = metrics.flush(step, lr=config.lr * scale)
                facts = {"seconds": round(seconds, 3), "windows_per_s": round(rate, 2)}
                append_line(timing, {"step": step} | facts)
                if run:
                    run.log(line | facts, step=step)
                shown.loss = line.get(main_loss, shown.loss)
            share = max(progress(), 1e-9)
            shown.update(min(1.0, share), step, rate, max(0.0, seconds / share - seconds))
            improved = False
            if validation and config.validate_every and step % config.validate_every == 0:
                line = validate(objective, validation, config.validation_windows, dtype)
                require_finite(line["validation/score"], "validation score", step, "validation")
                append_line(metrics.path, {"step": step} | line)
                if run:
                    run.log(line, step=step)
                improved = state.best is None or line["validation/score"] < state.best
                if improved:
                    state.best = line["validation/score"]
            if improved or (config.save_every and step % config.save_every == 0):
                save(improved)
        # A run that had nothing left to do stays as it is.
        folder = last if last and step == start else save()
    if run:
        run.finish()
    number = signal.Signals(stopped[0]) if stopped else None
    return FitResult(step, start, time.perf_counter() - begun, number, state.best, folder)


# --- before the first step ------------------------------------------------------------------------


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


def resumable(out: Path, resume: bool) -> Path | None:
    """The checkpoint that a run in `out` goes on from; None where it starts from the beginning.

    Raises:
        ValueError: there is a run, and it is not to be resumed.
        checkpoint.CheckpointError: the run was copied in a way that lost its links.
    """
    link = out / "checkpoints" / "last"
    if not link.exists():
        return None
    last = link.resolve()
    if not last.name.isdigit():
        raise checkpoint.CheckpointError(
            f"{link} is a folder instead of a link to one, as if {out} was copied with its links "
            f"followed. It can act, but not resume: use init={out} and another out="
        )
    if not resume:
        raise ValueError(
            f"{out} holds a run already ({int(last.name)} steps done): go on with resume=true, or "
            "choose another out="
        )
    return last


def require_same_run(
    last: Path, objective: SelfFlow, config: FitConfig, stamp: Mapping[str, Any]
) -> None:
    """Refuse to go on from checkpoint `last` with other data, another model or another objective.

    How to optimise (rates, schedule, batch size, how often to save) may change, but for the
    optimiser, whose state is of its kind, and the dtype.

    Raises:
        checkpoint.CheckpointError: names the first difference, and both values.
    """
    if not (last / "training_state" / "state.json").is_file():
        raise checkpoint.CheckpointError(
            f"{last} holds no training state: it can act, but not resume; use init={last} and "
            "another out="
        )
    model = objective.model
    before = checkpoint._read_json(last / "config.json")
    stamped = checkpoint._read_json(last / "stamp.json")
    state = checkpoint._read_json(last / "training_state" / "state.json")
    pairs: list[tuple[str, Any, Any]] = [("seed", stamped.get("seed"), stamp.get("seed"))]
    if stamp.get("init") is not None:  # leaving it out when resuming is fine
        pairs.append(("init", stamped.get("init"), stamp["init"]))
    data_then, data_now = (_flat("dataset", x.get("dataset", {})) for x in (stamped, stamp))
    # Not the roots, as the same data may have moved; the hash of the statistics says least: last.
    names = ["fingerprint", "train_episodes", "validation_episodes"]
    pairs += [(k, data_then.get(k), data_now.get(k)) for k in (f"dataset.{n}" for n in names)]
    # What was measured on the data follows from the data, which is compared, and the window.
    measured: dict[str, Any] = {"stats": None, "action_rank": None}
    for prefix, key, values in (
        ("the data's ", "spec", model.spec.to_dict() | measured),
        ("data.", "window", asdict(model.horizon)),
        ("model.", "model", asdict(model.config)),
        ("objective.", "objective", asdict(objective.source)),
    ):
        now = _flat(prefix, json.loads(json.dumps(values)))  # as reading it back would give it
        then = _flat(prefix, before[key] | (measured if key == "spec" else {}))
        pairs += [(k, then.get(k), now.get(k)) for k in sorted({*then, *now})]
    key = "dataset.statistics"
    pairs.append((key, data_then.get(key), data_now.get(key)))
    pairs.append(("fit.optimizer", state["optimizer"], config.optimizer))
    if config.dtype != "auto":
        pairs.append(("fit.dtype", state["dtype"], config.dtype))
    for name, then, now in pairs:
        if then != now:
            run = last.parent.parent
            raise checkpoint.CheckpointError(
                f"{run} cannot be resumed: {name} was {then!r} in this run and is {now!r} now. "
                f"Resume with the run's own settings ({run / 'config.yaml'}), or start a new run "
                f"with another out= (init={run} starts it from these weights)"
            )


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with dotted names that begin with `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}" if prefix.endswith((".", " ")) else f"{prefix}.{key}"
        flat |= _flat(name, value) if isinstance(value, Mapping) else {name: value}
    return flat


def clear_ahead(checkpoints: Path, step: int) -> None:
    """Remove what a killed run left after its last checkpoint, at `step` (-1: it has none).

    A checkpoint that was finished but not yet linked would otherwise pass for the one that the
    run, possibly with other settings by now, writes when it reaches that step.
    """
    for entry in checkpoints.iterdir():
        if entry.is_symlink():
            if entry.name.startswith("."):
                entry.unlink()
        elif entry.name.startswith(".writing-") or (
            entry.name.isdigit() and int(entry.name) > step
        ):
            shutil.rmtree(entry)


def _never_written(folder: Path) -> None:
    raise checkpoint.CheckpointError(
        f"{folder.parent} lacks a checkpoint that its last one calls the best so far; a run's "
        "checkpoints can only be resumed together. Start a new run, with init= this one"
    )


def require_finite(value: float, what: str, step: int, where: str) -> None:
    """Raise NotFiniteError for a NaN or an infinity."""
    if not math.isfinite(value):
        raise NotFiniteError(
            f"step {step}, {where}: the {what} is {value:g}. The last checkpoint is kept; lower "
            "fit.lr, raise fit.warmup, or look for extreme numbers in the data"
        )


# --- the state of a run ---------------------------------------------------------------------------


@dataclass
class RunState:
    """What a run carries from step to step beside tensors; saved with every checkpoint.

    Attributes:
        step: optimiser steps done.
        seconds: of training so far.
        best: lowest validation score, None before the first.
        best_step: of the checkpoint that the link ``best`` means.
        pending: see `Metrics`.
        dtype: of the token stream; None before it is settled.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    pending: dict[str, list[float]] = field(default_factory=dict)
    dtype: str | None = None


def state_of(
    objective: SelfFlow, optimizers: list[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raw weights, feature head and optimiser state: tensors, and what is no tensor."""
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
    return tensors, scalars


def restore(folder: Path, objective: SelfFlow, optimizers: list[torch.optim.Optimizer]) -> RunState:
    """Load a training state: the inverse of `state_of` and of what `fit` saves beside it.

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
    return RunState(**{f.name: values[f.name] for f in fields(RunState)})


def start_wandb(config: FitConfig, out: Path, *, resumed: bool) -> Any:
    """A wandb run, or None when it is off.

    Its id is kept in ``out/wandb_id``, so that a run that goes on from a checkpoint goes on there
    too; one that begins anew in the same folder gets another id. What a killed run had logged
    after its last checkpoint wandb keeps as it is: the same steps, logged again, are the same
    numbers. Offline, each part is a folder of its own under that id; ``wandb sync --append`` joins
    them.

    Raises:
        ValueError: wandb refuses, as it does online without a login.
    """
    if config.wandb == "off":
        return None
    import wandb  # slow to import, and most runs do without

    path = out / "wandb_id"
    kept = path.read_text().strip() if resumed and path.exists() else ""
    number = kept or secrets.token_hex(4)
    path.write_text(number + "\n")
    mode: Any = config.wandb
    try:
        return wandb.init(
            project=config.wandb_project,
            group=str(out),
            id=number,
            resume="allow",
            dir=str(out),
            mode=mode,
            config=asdict(config),
        )
    except wandb.Error as error:
        raise ValueError(
            f"fit.wandb={config.wandb}: {error}. Log in with `wandb login`, or use "
            "fit.wandb=offline or off; metrics.jsonl is written in any case"
        ) from error
