"""A Self-Flow checkpoint behind LeRobot's policy interface."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from policies.flow_policy import FlowPolicy, PolicyConfig
from worldmodel.checkpoint import Checkpoint, load_weights, parse_config
from worldmodel.inputs import Inputs
from worldmodel.model import WorldModel
from worldmodel.streams import derive

from .configuration_selfflow import SelfflowConfig

STATE = "observation.state"


class SelfflowPolicy(PreTrainedPolicy):
    """`policies.flow_policy.FlowPolicy` with LeRobot's batches in and tensors out.

    A batch holds ``observation.state`` float32 ``[B, S]``, ``observation.images.CAMERA`` float32
    ``[B, 3, h, w]`` in [0, 1] of any size, and optionally ``task``, one text for all or one each.
    States and actions are in physical units. B stays the same between two calls of `reset`.

    Args:
        config: of a checkpoint.
        dataset_stats, dataset_meta: what LeRobot's factory passes; a checkpoint has its own.

    Attributes:
        model: the EMA weights.
        seed: of the noise that chunks are sampled from. A chunk's noise follows from it, the number
            of resets, the number of the chunk, and the place in the batch.

    Raises:
        ValueError: the configuration is of no checkpoint, or does not fit the features.
    """

    config_class = SelfflowConfig
    name = "selfflow"

    def __init__(
        self,
        config: SelfflowConfig,
        dataset_stats: dict[str, dict[str, Tensor]] | None = None,
        dataset_meta: Any = None,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.spec, self.horizon, model, objective = parse_config(vars(config))
        self.model = WorldModel(self.spec, self.horizon, model)
        self.inputs = Inputs(self.spec, self.model.modalities, model.normalization)
        self.flow = FlowPolicy(
            Checkpoint(Path(), self.model, self.inputs, objective, stamp={}),
            PolicyConfig(steps=config.sampling_steps, execute=config.n_action_steps),
        )
        self.seed = 0
        self._episode = -1
        self.reset()

    def reset(self) -> None:
        """Forget the episode: frames seen, actions waiting."""
        span = (self.horizon.past - 1) * self.horizon.past_stride + 1
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=span)
        self._waiting: deque[Tensor] = deque()
        self._done: deque[np.ndarray] = deque(maxlen=self.flow.config.history)
        self._episode += 1
        self._chunk = 0

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action ``[B, A]``; call it once every control step.

        A new chunk is computed when `config.n_action_steps` of the last one have been returned.
        """
        self._see(batch)
        if not self._waiting:
            known = np.stack(self._done, axis=1) if self._done else None
            chunk = self._sample(batch, known, **kwargs)
            self._waiting.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        action = self._waiting.popleft()
        self._done.append(action.cpu().numpy())
        return action

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """A whole chunk ``[B, K, A]``; the first action is for now.

        Which commands were executed before is not known here, so that later chunks of an episode
        are smooth within, but not joined to the one before, as those of `select_action` are.

        The observation is taken for the one that follows those of earlier calls, so the past frames
        are right if this is called every control step.

        Args:
            batch: see the class.
            **kwargs: ``noise`` float32 ``[B, K, A]`` to start from.
        """
        self._see(batch)
        rows = len(self._seen[-1][STATE])
        known = np.zeros((rows, 0, self.spec.action_dim), np.float32) if self._chunk else None
        return self._sample(batch, known, **kwargs)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict | None]:
        """Refused: training needs future frames, the teacher and the patterns of `worldmodel`."""
        raise NotImplementedError(
            "selfflow policies are trained by `python -m scripts.train data.root=DATASET` "
            "(init=CHECKPOINT to fine-tune); the checkpoints open in LeRobot as they are"
        )

    def get_optim_params(self) -> dict:
        return {"params": self.parameters()}

    def _see(self, batch: Mapping[str, Any]) -> None:
        """Keep an observation: cameras uint8 ``[B, h, w, 3]`` by name, and the state."""
        now: dict[str, np.ndarray] = {}
        for camera in self.spec.cameras:
            frames = self._feature(batch, f"observation.images.{camera}", dimensions=4)
            frames = (frames * 255).round().clamp(0, 255).to(torch.uint8)
            now[camera] = frames.movedim(1, -1).cpu().numpy()
        state = self._feature(batch, STATE, dimensions=2)
        now[STATE] = state.float().cpu().numpy()
        if self._seen and (rows := len(self._seen[-1][STATE])) != len(state):
            raise ValueError(
                f"the batch has {len(state)} rows, the one before had {rows}; call reset() between"
            )
        self._seen.append(now)

    def _feature(self, batch: Mapping[str, Any], key: str, dimensions: int) -> Tensor:
        if key not in batch:
            found = sorted(k for k in batch if k.startswith("observation"))
            raise KeyError(f"this policy needs {key}; the batch has {found}")
        value = batch[key]
        if value.ndim != dimensions:
            raise ValueError(
                f"{key} has shape {tuple(value.shape)}; expected {dimensions} dimensions, the "
                "first one being the batch"
            )
        return value

    def _sample(
        self, batch: Mapping[str, Any], known: np.ndarray | None, noise: Tensor | None = None
    ) -> Tensor:
        past, stride = self.horizon.past, self.horizon.past_stride
        # At the start of an episode its first observation stands in for those before it.
        seen = [self._seen[max(0, len(self._seen) - 1 - k * stride)] for k in range(past)][::-1]
        stacked = {name: np.stack([now[name] for now in seen], axis=1) for name in seen[-1]}
        state = stacked.pop(STATE)
        if noise is None:
            seeds = [derive(self.seed, "lerobot", self._episode, row) for row in range(len(state))]
            start = np.stack([self.flow.noise(seed, self._chunk) for seed in seeds])
        else:
            start = noise.float().cpu().numpy()
        self._chunk += 1
        device = next(self.model.parameters()).device
        self.inputs.to(device)  # no submodule, so `policy.to(device)` has not moved it
        task = self._tasks(batch.get("task"), len(state))
        chunk = self.flow.predict_action_chunk(stacked, state, task, start)
        chunk = self.flow.smooth(chunk, known, state[:, -1])
        return torch.from_numpy(chunk).to(device)

    def _tasks(self, texts: str | list[str] | None, rows: int) -> list[str] | None:
        """One task text per row, or None; refuses what the model was not trained on."""
        known = self.spec.tasks
        if not known or not texts:
            return None
        texts = [texts] * rows if isinstance(texts, str) else list(texts)
        for text in texts:
            if text and text not in known:
                near = difflib.get_close_matches(text, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown task {text!r}.{hint} This policy knows {list(known)}")
        return texts

    @classmethod
    def _load_as_safetensor(
        cls, model: SelfflowPolicy, model_file: str, map_location: str, strict: bool
    ) -> SelfflowPolicy:
        """Load all weights or none: LeRobot's default keeps random ones where some are missing."""
        load_weights(model.model, model_file)
        return model
