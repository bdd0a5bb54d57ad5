"""Train a Self-Flow world model and policy on LeRobot datasets.

::

    python -m scripts.train data.root=outputs/demonstrations minutes=8 out=outputs/train

The run's folder holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``timing.jsonl`` and
``checkpoints/last`` and ``checkpoints/best``. Ended in any way, ``resume=true`` goes on. Exit
codes: 0 done, 1 an error that the last lines explain, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from worldmodel.checkpoint import CheckpointError
from worldmodel.data import Data, DataConfig, DatasetError, open_data
from worldmodel.finetune import start_from
from worldmodel.lock import require_free
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.progress import clock
from worldmodel.selfflow import ObjectiveConfig, SelfFlow
from worldmodel.stamp import command, stamp_of
from worldmodel.tokens import Horizon
from worldmodel.train import (
    FitConfig,
    FitResult,
    NotFiniteError,
    fit,
    require_length,
    resumable,
)
from worldmodel.types import SpecMismatchError

from ._cli import refuse_unknown_keys


@dataclass
class TrainConfig:
    """Everything that a run is made of; values in ``configs/train.yaml``.

    Attributes:
        data, model, objective, fit: see these classes.
        out: the run's folder.
        steps, minutes: how long to train; whichever comes first.
        seed: of weights, data order and all draws.
        device: "auto", "cpu", "cuda", ...
        init: checkpoint whose weights to start from (fine-tuning).
        resume: go on with the run in `out`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    out: str = "outputs/train"
    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    init: str | None = None
    resume: bool = False


ConfigStore.instance().store(name="train_schema", node=TrainConfig)


EXPECTED = (
    DatasetError,
    CheckpointError,
    SpecMismatchError,
    NotFiniteError,
    OmegaConfBaseException,
    ValueError,
    OSError,
)
"""What the user can mend: shown as a message. Anything else is our mistake: a traceback."""


def choose_device(name: str) -> torch.device:
    """A torch device; "auto" takes a GPU where there is one.

    Raises:
        ValueError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"device={name} cannot be used here ({reason}); there are {known}, and device=auto "
            "takes a GPU where there is one"
        ) from error
    return device


def train(config: TrainConfig, console: Console, data: Data | None = None) -> FitResult:
    """Run one training as configured.

    Args:
        data: already opened data, to spare opening it twice.

    Raises:
        LockedError: another process trains into ``config.out``.
    """
    out = Path(config.out)
    # What can be refused at once, before minutes of decoding.
    require_length(config.steps, config.minutes)
    config.model.resolve()
    device = choose_device(config.device)
    require_free(out)
    last = resumable(out, config.resume)
    data = data or open_data(config.data, progress=not console.quiet)
    console.print(repr(data), highlight=False)
    c = config.data
    horizon = Horizon(
        past=c.past,
        past_stride=c.past_stride,
        future=c.future,
        future_stride=c.future_stride,
        chunk=c.chunk,
    )
    model = WorldModel(data.spec, horizon, config.model, config.seed)
    stamp = stamp_of(data, horizon, config.seed)
    if config.init:
        stamp["init"] = str(config.init)
        if not last:
            notes = [config.init, *start_from(model, config.init)]
            say(console, escape("init        " + "\n            ".join(notes)))
    objective = SelfFlow(model, config.objective, config.seed).to(device)
    count = sum(p.numel() for p in model.parameters())
    console.print(
        f"model       {config.model.size}, {count / 1e6:.2f}M parameters, {device}; "
        f"objective {config.objective.name}",
        highlight=False,
    )
    return fit(
        objective,
        data.train,
        data.validation if len(data.validation) else None,
        config.fit,
        out,
        stamp,
        steps=config.steps,
        minutes=config.minutes,
        seed=config.seed,
        resume=config.resume,
        settings=OmegaConf.to_yaml(OmegaConf.structured(config)),
        console=console,
    )


def how_to_resume() -> str:
    """The command that goes on with the run that this process did."""
    line = command()
    return line if "resume=true" in sys.argv else f"{line} resume=true"


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def run(values: DictConfig) -> None:
    console = Console()
    try:
        config: Any = OmegaConf.to_object(values)
        result = train(config, console)
    except KeyboardInterrupt:
        say(console, "stopped at once; what was saved before stays. Go on with:", how_to_resume())
        sys.exit(128 + signal.SIGINT)
    except EXPECTED as error:
        say(console, f"[bold red]{type(error).__name__}:[/] {escape(str(error))}")
        sys.exit(1)
    if result.signal:
        say(
            console,
            f"{result.signal.name}: stopped after step {result.steps}, saved. Go on with:",
            how_to_resume(),
        )
        sys.exit(128 + result.signal)
    done = f"{result.steps} steps in {clock(result.seconds)}"
    if result.steps == result.resumed_at:
        say(console, f"nothing left to do: {config.out} has its {done}")
    else:
        say(console, f"done: {done} -> {config.out}")
    if result.best is not None:
        say(console, f"best validation score {result.best:.4f} -> {config.out}/checkpoints/best")


def say(console: Console, *lines: str) -> None:
    """Print lines as they are: no wrapping, so that paths and commands can be copied."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def main() -> None:
    refuse_unknown_keys(TrainConfig, sys.argv[1:], ("model", "objective", "experiment"))
    run()


if __name__ == "__main__":
    main()
