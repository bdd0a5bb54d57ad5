"""Training under ``lerobot-train``: LeRobot's batches in, losses of `worldmodel.selfflow` out.

LeRobot owns the loop: data order, optimiser, clipping, schedule, when to save. A `Learner` owns
what is ours: the facts of the dataset, the objective with its average, and which step it is.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worldmodel.checkpoint import WEIGHTS, CheckpointError, load_weights
from worldmodel.data import DataConfig, DatasetError, Facts, read_facts, resize_frames
from worldmodel.finetune import start_from
from worldmodel.selfflow import SelfFlow
from worldmodel.stamp import stamp_of
from worldmodel.train import NotFiniteError
from worldmodel.types import Spec, Window

from .configuration_selfflow import STATE, SelfflowConfig

log = logging.getLogger(__name__)

TRAINING = "training.safetensors"
"""Beside a checkpoint's averaged weights: the raw ones, the feature head and the step."""


def facts_of(config: SelfflowConfig, dataset: Any) -> Facts:
    """The facts of a LeRobot dataset, as ``scripts.train`` finds them, but over all its episodes.

    LeRobot's own statistics cover all episodes too, whichever of them it trains on. Its windows do
    not say whether the world is solved at their frames, so the facts do not either.

    Args:
        dataset: LeRobot's metadata of it; only its folder is used.

    Raises:
        DatasetError: no dataset for us, one whose features LeRobot cannot cut windows of, or one
            of which not all is to be imitated.
        ValueError: an objective that asks for frames that LeRobot's windows do not hold.
    """
    if config.objective["any_frame"] > 0:
        raise ValueError(
            f"objective.any_frame is {config.objective['any_frame']}, but windows of lerobot-train "
            "hold the frames of the grid only. `python -m scripts.train "
            f"data.root={dataset.root}` learns others (init=CHECKPOINT fine-tunes)"
        )
    window = {k: config.window[k] for k in ("past", "past_stride", "future", "future_stride")}
    facts = read_facts(
        DataConfig(
            root=str(dataset.root),
            image_size=config.image_size,
            chunk=config.chunk_size,
            action_kind=config.action_kind,
            validation=0.0,
            **window,
        )
    )
    keys = facts.keys[0]
    foreign = [k for k in keys.images.values() if not k.startswith("observation.")]
    foreign += [k for k, own in ((keys.state, STATE), (keys.action, "action")) if k != own]
    if foreign:
        raise DatasetError(
            f"lerobot-train cuts windows of {STATE}, action and observation.images.*; this dataset "
            f"says {foreign}. `python -m scripts.train data.root={dataset.root}` trains on it"
        )
    if some := sorted({*facts.exploratory_episodes, *facts.action_free_episodes}):
        raise DatasetError(
            f"lerobot-train would imitate all {len(facts.train_episodes)} episodes; {len(some)} of "
            f"them are exploratory or without actions ({', '.join(map(str, some[:8]))}"
            f"{', ...' * (len(some) > 8)}). `python -m scripts.train data.root={dataset.root}` "
            "learns from each what it is good for"
        )
    return replace(facts, spec=replace(facts.spec, has_success=False))


class Learner(nn.Module):
    """A policy's training half.

    Args:
        objective: student, feature head and average.
        facts: of the dataset.

    Attributes:
        step: optimiser steps done.
        init: the checkpoint that the weights come from, if training did not go on from one.
    """

    def __init__(self, objective: SelfFlow, facts: Facts) -> None:
        super().__init__()
        self.objective, self.facts = objective, facts
        self.step = 0
        self.init: str | None = None
        self._micro = 0  # batches since the last step
        self._latest: dict[str, float] = {}

    # --- where it starts --------------------------------------------------------------------------

    def go_on(self, folder: Path, spec: Spec) -> None:
        """Load a checkpoint: its training state where there is one, else its averaged weights.

        Args:
            folder: of the checkpoint.
            spec: the checkpoint's. If the dataset's is another, this is fine-tuning on other data:
                it starts as ``scripts.train init=CHECKPOINT`` does.

        Raises:
            CheckpointError: the training state is broken or belongs to another objective.
            SpecMismatchError: the dataset is of another robot.
        """
        objective, state = self.objective, folder / TRAINING
        if spec == self.facts.spec and state.is_file():
            load_weights(objective.ema.model, folder / WEIGHTS)
            self._restore(state)
            log.info("%s: going on after step %d", folder, self.step)
            return
        self.init = str(folder)
        changes = start_from(objective.model, folder)
        objective.ema.model.load_state_dict(objective.model.state_dict())
        log.info("%s: starting from its averaged weights", folder)
        for line in changes:
            log.warning("fine-tuning: %s", line)

    def _restore(self, path: Path) -> None:
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from error
        step = int(state.pop("step"))
        try:
            self.objective.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} belongs to a training with another objective, which cannot go on with "
                f"this one. Without that file, training starts from the averaged weights: {error}"
            ) from error
        self.step = step

    def tensors(self) -> dict[str, Tensor]:
        """What `go_on` needs beside the averaged weights."""
        return {**self.objective.state_dict(), "step": torch.tensor(self.step)}

    def stamp(self) -> dict[str, Any]:
        """Where a checkpoint saved now comes from."""
        objective = self.objective
        stamp = stamp_of(self.facts, objective.model.horizon, objective.seed)
        return stamp | ({"init": self.init} if self.init else {}) | {"step": self.step}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Everything trainable; only matrices decay."""
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if p.ndim >= 2]},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]

    # --- a step -----------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch under the pattern that is its turn, and what to log beside it.

        To log are the latest velocity losses of every pattern and modality.

        In evaluation mode the pattern and all draws follow from the batch alone, so that losses of
        different steps are comparable; they are those of the raw weights.

        Raises:
            NotFiniteError: the loss is NaN or infinite.
        """
        objective, window = self.objective, self.window(batch)
        objective.inputs.to(objective.device)  # no submodule, so `policy.to` has not moved it
        if self.training:
            step, micro = self.step, self._micro
            self._micro += 1
        else:
            step, micro = 0, int(window.index[0])
        losses = objective(window, step, micro)
        value = float(losses.total.detach())
        if not math.isfinite(value):
            raise NotFiniteError(
                f"step {step}: the loss is {value:g}. Lower --policy.optimizer_lr, raise "
                "--policy.scheduler_warmup_steps, or look for extreme numbers in the data"
            )
        shown = {k: float(v) for k, v in losses.logs.items() if k.endswith("/loss")}
        shown = {k: v for k, v in shown.items() if k.count("/") > 1}  # PATTERN/MODALITY/loss
        if self.training:
            # LeRobot shows what a step does not mention as 0: repeat each pattern's latest.
            shown = self._latest = self._latest | shown
        return losses.total, dict(shown)

    def update(self) -> None:
        """Follow an optimiser step: the average moves, the next turn begins."""
        self.objective.after_step(self.step)
        self.step += 1
        self._micro = 0

    def window(self, batch: dict[str, Any]) -> Window:
        """One batch of LeRobot's windows as ours: frames uint8 at the model's size.

        Args:
            batch: ``observation.state`` ``[B, T, S]``, every camera float in [0, 1]
                ``[B, T, 3, h, w]``, ``action`` ``[B, K, A]``, ``*_is_pad``, ``task``, ``index``.

        Raises:
            ValueError: it has other frames or actions than the model's window, or an unknown task.
        """
        spec, horizon, keys = self.facts.spec, self.objective.model.horizon, self.facts.keys[0]
        device = self.objective.device
        frames, chunk = len(horizon.times("frame")), horizon.chunk
        for key, steps in ((STATE, frames), ("action", chunk)):
            if batch[key].ndim != 3 or batch[key].shape[1] != steps:
                raise ValueError(
                    f"{key} has shape {tuple(batch[key].shape)}; training takes windows of "
                    f"[batch, {steps}, dimensions], as `delta_timestamps` of the policy's "
                    "observation_delta_indices and action_delta_indices cuts them"
                )
        video = {}
        for camera, key in keys.images.items():
            pictures = batch[key]
            if pictures.ndim == 4:  # LeRobot drops the axis of a single frame
                pictures = pictures[:, None]
            pictures = (pictures * 255).round().clamp(0, 255).to(torch.uint8)
            video[camera] = resize_frames(pictures, spec.image_size)
        tasks = [self._task(text) for text in batch.get("task") or [""] * len(batch["action"])]
        return Window(
            video=video,
            state=batch[STATE].float(),
            action=batch["action"].float(),
            frame_valid=~batch[f"{STATE}_is_pad"],
            action_valid=~batch["action_is_pad"],
            task=torch.tensor(tasks),
            index=torch.as_tensor(batch["index"]).reshape(-1),
        ).to(device)

    def _task(self, text: str) -> int:
        tasks = self.facts.spec.tasks
        if text and text not in tasks:
            raise ValueError(f"unknown task {text!r}; the dataset has {list(tasks)}")
        return tasks.index(text) if text else -1
