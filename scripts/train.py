"""Train a Self-Flow world model and policy on LeRobot datasets.

::

    python -m scripts.train data.root=outputs/demonstrations minutes=8 out=outputs/train

The run's folder holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``timing.jsonl`` and
``checkpoints/last`` and ``checkpoints/best``. Killed in any way, ``resume=true`` goes on.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from worldmodel.checkpoint import CheckpointError, find, load_weights, open_checkpoint
from worldmodel.data import Data, DataConfig, DatasetError, open_data
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig, SelfFlow
from worldmodel.stamp import stamp_of
from worldmodel.tokens import Horizon
from worldmodel.train import FitConfig, FitResult, NotFiniteError, fit
from worldmodel.types import SpecMismatchError


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
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name} cannot be used here: {error}") from error
    return device


def train(config: TrainConfig, console: Console, data: Data | None = None) -> FitResult:
    """Run one training as configured.

    Args:
        data: already opened data, to spare opening it twice.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
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
    device = choose_device(config.device)
    model = WorldModel(data.spec, horizon, config.model, config.seed)
    stamp = stamp_of(data, config.seed)
    if config.init and not (config.resume and (out / "checkpoints" / "last").exists()):
        start_from(model, config.init)
        stamp["init"] = str(config.init)
    objective = SelfFlow(model, config.objective, config.seed).to(device)
    count = sum(p.numel() for p in model.parameters())
    console.print(
        f"model       {config.model.size}, {count / 1e6:.2f}M parameters, {device}; "
        f"objective {config.objective.name}",
        highlight=False,
    )
    (out / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
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
        console=console,
    )


def start_from(model: WorldModel, path: str) -> None:
    """Load a checkpoint's weights into a new model of the same kind.

    Raises:
        SpecMismatchError: the checkpoint is for another robot.
        CheckpointError: other sizes or modalities.
    """
    other = open_checkpoint(path)
    model.spec.require_same(other.spec, "this dataset", f"the checkpoint {path}")
    if len(other.spec.tasks) != len(model.spec.tasks):
        weights = other.model.state_dict()
        own = model.state_dict()
        weights["task.weight"] = own["task.weight"]  # other tasks: their embeddings start afresh
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{path} has another shape: {error}") from error
        return
    load_weights(model, find(path) / "model.safetensors")


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    settings: Any = OmegaConf.to_object(config)
    console = Console()
    try:
        result = train(settings, console)
    except (DatasetError, CheckpointError, SpecMismatchError, NotFiniteError, ValueError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {error}", highlight=False)
        sys.exit(1)
    word = "interrupted, saved" if result.interrupted else "done"
    console.print(
        f"{word}: {result.steps} steps in {result.seconds:.0f} s -> {settings.out}", highlight=False
    )
    last = Path(settings.out) / "metrics.jsonl"
    lines = [json.loads(x) for x in last.read_text().splitlines()]
    scores = [x for x in lines if "validation/score" in x]
    if scores:
        console.print(f"validation  {scores[-1]}", highlight=False)


if __name__ == "__main__":
    main()
