"""Train a Self-Flow world model and policy on LeRobot datasets.

::

    python -m scripts.train data.root=outputs/demonstrations minutes=8 out=outputs/train
    accelerate launch --multi_gpu --num_processes 2 -m scripts.train data.root=... steps=20000

The run's folder holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``timing.jsonl`` and
``checkpoints/last`` and ``checkpoints/best``. Ended in any way, ``resume=true`` goes on. Exit
codes: 0 done, 1 an error that the last lines explain, 130 Ctrl-C, 143 SIGTERM.

Started by ``accelerate launch`` or ``torchrun``, several processes share each batch: see
`worldmodel.distributed`.
"""

from __future__ import annotations

import os
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

from worldmodel import distributed
from worldmodel.checkpoint import CheckpointError
from worldmodel.data import Data, DataConfig, DatasetError, open_data
from worldmodel.distributed import ALONE, PeerError, World
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
        device: "auto", "cpu", "cuda", ...; of several processes each takes a GPU of its own.
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
    PeerError,
    OmegaConfBaseException,
    ValueError,
    OSError,
)
"""What the user can mend: shown as a message. Anything else is our mistake: a traceback."""


def choose_device(name: str, world: World = ALONE) -> torch.device:
    """A torch device; "auto" takes a GPU where there is one, of several processes each its own.

    Raises:
        ValueError: the device is not there, or not there for each process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if world.size > 1 and name.startswith("cuda"):
        count = torch.cuda.device_count()
        if name != "cuda":
            raise ValueError(
                f"device={name} is one GPU for {world.size} processes; leave device=auto, and "
                "choose GPUs by CUDA_VISIBLE_DEVICES"
            )
        if world.local_rank >= count:
            raise ValueError(
                f"this machine has {count} GPUs and more processes than that were started: start "
                f"{count}, or use device=cpu"
            )
        name = f"cuda:{world.local_rank}"
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


def train(
    config: TrainConfig, console: Console, data: Data | None = None, world: World = ALONE
) -> FitResult:
    """Run one training as configured.

    Args:
        console: of the process that leads; the others are quiet.
        data: already opened data, to spare opening it twice.
        world: the processes that train together.

    Raises:
        LockedError: another process trains into ``config.out``.
    """
    out = Path(config.out)
    # What can be refused at once, before minutes of decoding.
    require_length(config.steps, config.minutes)
    config.model.resolve()
    world.require_divides(config.fit.batch_size, "fit.batch_size")
    device = choose_device(config.device, world)

    def begun() -> Path | None:
        require_free(out)
        return resumable(out, config.resume)

    last = world.leader(begun)
    with world.machine_by_machine():  # the first process builds the frame cache, if there is none
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
        f"model       {config.model.size}, {count / 1e6:.2f}M parameters, {device}"
        f"{f' and {world.size - 1} more' * (world.size > 1)}; objective {config.objective.name}",
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
        world=distributed.on_device(world, device),
    )


def how_to_resume() -> str:
    """The command that goes on with the run that this process did."""
    line = command()
    return line if "resume=true" in sys.argv else f"{line} resume=true"


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def run(values: DictConfig) -> None:
    if distributed.rank() > 0:
        sys.stderr = sys.__stderr__
    console = Console()
    world = None
    try:
        config: Any = OmegaConf.to_object(values)
        world = distributed.join()
        result = train(config, console if world.leads else Console(quiet=True), world=world)
    except (KeyboardInterrupt, *EXPECTED) as error:
        # What is wrong before they join is wrong for all alike.
        speaks = world.first_to_fail() if world else distributed.rank() == 0
        if isinstance(error, KeyboardInterrupt):
            lines = ["stopped at once; what was saved before stays. Go on with:", how_to_resume()]
        else:
            lines = [f"[bold red]{type(error).__name__}:[/] {escape(str(error))}"]
        if speaks:
            say(console, *lines)
        sys.exit(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)
    if world.leads:
        tell(console, config, result)
    world.leave()
    if result.signal:
        sys.exit(128 + result.signal)


def tell(console: Console, config: TrainConfig, result: FitResult) -> None:
    """Say how a run ended, and how it goes on."""
    if result.signal:
        stopped = f"{result.signal.name}: stopped after step {result.steps}, saved. Go on with"
        again = (
            " (in one process; or behind the launcher again)" if distributed.launched() > 1 else ""
        )
        say(console, f"{stopped}{again}:", how_to_resume())
        return
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
    if distributed.rank() > 0:  # the leader says it too, if there is a mistake in the command line
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    refuse_unknown_keys(TrainConfig, sys.argv[1:], ("model", "objective", "experiment"))
    run()


if __name__ == "__main__":
    main()
