"""A Self-Flow checkpoint behind LeRobot's policy interface."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from worldmodel.checkpoint import load_weights, parse_config
from worldmodel.data.resize import resize_frames
from worldmodel.inputs import Inputs
from worldmodel.model import WorldModel
from worldmodel.sampler import sample
from worldmodel.streams import generator
from worldmodel.tokens import pattern

from .configuration_selfflow import SelfflowConfig


class SelfflowPolicy(PreTrainedPolicy):
    """Acts by sampling action chunks from a world model.

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

    config_class = SelfflowConfig  # type: ignore[assignment] # LeRobot annotates both as None
    name = "selfflow"  # type: ignore[assignment]

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
        self.time = objective.time
        self.seed = 0
        self._episode = -1
        self.reset()

    def reset(self) -> None:
        """Forget the episode: frames seen, actions waiting."""
        span = (self.horizon.past - 1) * self.horizon.past_stride + 1
        self._seen: deque[dict[str, Tensor]] = deque(maxlen=span)
        self._waiting: deque[Tensor] = deque()
        self._episode += 1
        self._chunk = 0

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action ``[B, A]``; call it once every control step.

        A new chunk is computed when `config.n_action_steps` of the last one have been returned.
        """
        self._see(batch)
        if not self._waiting:
            chunk = self._sample(batch, **kwargs)
            self._waiting.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._waiting.popleft()

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """A whole chunk ``[B, K, A]``; the first action is for now.

        The observation is taken for the one that follows those of earlier calls, so the past frames
        are right if this is called every control step.

        Args:
            batch: see the class.
            **kwargs: ``noise`` float32 ``[B, K, A]`` to start from.
        """
        self._see(batch)
        return self._sample(batch, **kwargs)

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict | None]:
        """Refused: training needs future frames, the teacher and the patterns of `worldmodel`."""
        raise NotImplementedError(
            "selfflow policies are trained by `python -m scripts.train data.root=DATASET` "
            "(init=CHECKPOINT to fine-tune); the checkpoints open in LeRobot as they are"
        )

    def get_optim_params(self) -> dict:
        return {"params": self.parameters()}

    def _see(self, batch: Mapping[str, Any]) -> None:
        """Keep what the model needs of an observation: frames at its size, the state."""
        now: dict[str, Tensor] = {}
        for camera in self.spec.cameras:
            frames = self._feature(batch, f"observation.images.{camera}", dimensions=4)
            frames = (frames * 255).round().clamp(0, 255).to(torch.uint8)
            now[f"video/{camera}"] = resize_frames(frames, self.spec.image_size)
        if self.spec.state_dim:
            now["state"] = self._feature(batch, "observation.state", dimensions=2).float()
        if self._seen and (was := _rows(self._seen[-1])) != _rows(now):
            raise ValueError(
                f"the batch has {_rows(now)} rows, the one before had {was}; call reset() between"
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

    @torch.no_grad()
    def _sample(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        steps = range(self.horizon.past - 1, -1, -1)  # at the start, the first frame stands in
        back = [min(i * self.horizon.past_stride, len(self._seen) - 1) for i in steps]
        past = [self._seen[-1 - i] for i in back]
        device = next(self.model.parameters()).device
        self.inputs.to(device)
        given = {
            name: self.inputs.normalize(name, torch.stack([frame[name] for frame in past], 1))
            for name in past[-1]
        }
        rows = _rows(past[-1])
        if noise is None:
            noise = self._noise(rows)
        self._chunk += 1
        action = self.model.modalities["action"]
        found = sample(
            self.model,
            pattern("act", self.horizon),
            given,
            self._task(batch.get("task"), rows),
            {"action": action.patch(noise.to(device))},
            self.config.sampling_steps,
            self.time,
        )
        return self.inputs.denormalize("action", found["action"])

    def _noise(self, rows: int) -> Tensor:
        shape = (self.horizon.chunk, self.spec.action_dim)
        sources = [
            generator(self.seed, "lerobot", self._episode, self._chunk, row) for row in range(rows)
        ]
        return torch.stack([torch.randn(shape, generator=source) for source in sources])

    def _task(self, texts: str | list[str] | None, rows: int) -> Tensor:
        """Task numbers ``[B]``; -1 where the checkpoint or the batch has no tasks."""
        known = self.spec.tasks
        device = next(self.model.parameters()).device
        if not known or not texts:
            return torch.full((rows,), -1, device=device)
        texts = [texts] * rows if isinstance(texts, str) else list(texts)
        for text in texts:
            if text not in known:
                near = difflib.get_close_matches(text, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown task {text!r}.{hint} This policy knows {list(known)}")
        return torch.tensor([known.index(text) for text in texts], device=device)

    @classmethod
    def _load_as_safetensor(
        cls, model: SelfflowPolicy, model_file: str, map_location: str, strict: bool
    ) -> SelfflowPolicy:
        """Load all weights or none: LeRobot's default keeps random ones where some are missing."""
        load_weights(model.model, model_file)
        return model


def _rows(values: Mapping[str, Tensor]) -> int:
    return len(next(iter(values.values())))
