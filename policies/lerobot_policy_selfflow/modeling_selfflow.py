"""A Self-Flow checkpoint behind LeRobot's policy interface."""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from policies.flow_policy import FlowPolicy, PolicyConfig
from worldmodel.checkpoint import (
    PREFIX,
    WEIGHTS,
    Checkpoint,
    load_weights,
    parse_config,
    write_json,
    write_tensors,
)
from worldmodel.data import resize_frames
from worldmodel.imagine import imagine
from worldmodel.inputs import Inputs
from worldmodel.model import WorldModel
from worldmodel.selfflow import SelfFlow
from worldmodel.streams import derive
from worldmodel.types import Spec

from .configuration_selfflow import STATE, SelfflowConfig, camera_key
from .training_selfflow import TRAINING, Learner, facts_of

log = logging.getLogger(__name__)

GAP = 4  # white pixels between what the cameras saw and what was imagined
SHOWN = 192  # least height of a predicted video in pixels


class SelfflowPolicy(PreTrainedPolicy):
    """`policies.flow_policy.FlowPolicy` with LeRobot's batches in and tensors out.

    A batch to act on holds ``observation.state`` float32 ``[B, S]``, ``observation.images.CAMERA``
    float32 ``[B, 3, h, w]`` in [0, 1] of any size, and optionally ``task``, one text for all or one
    each. States and actions are in physical units. B stays the same between two calls of `reset`.

    Args:
        config: of a checkpoint, or for a new policy.
        dataset_stats: what LeRobot's factory passes; the statistics are measured anew.
        dataset_meta: LeRobot's metadata of the dataset to train on; None: the policy only acts.

    Attributes:
        model: the averaged (EMA) weights: those that act, and that checkpoints ship.
        learner: training, or None.
        seed: of the noise that chunks are sampled from. A chunk's noise follows from it, the number
            of resets, the number of the chunk, and the place in the batch.
        last_predicted_latents: with ``config.save_predicted_video``, what `lerobot-eval` collects
            after every action: uint8 ``[1, 3, 1, height, width]``, the cameras of the batch's first
            row one below the other, as seen (left) and as imagined up to a chunk earlier (right).

    Raises:
        ValueError: the configuration is of no checkpoint and there is no dataset, or it does not
            fit the features; or FSDP was asked for.
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
        facts = None
        self._opened_spec = Spec.from_dict(config.spec) if config.spec else None
        if dataset_meta is not None:
            if os.environ.get("ACCELERATE_USE_FSDP") == "true":
                raise ValueError(
                    "selfflow policies are not trained under FSDP, which shards the weights that "
                    "the average has to follow: use one device, or accelerate's data parallelism"
                )
            facts = facts_of(config, dataset_meta)
            config.spec = json.loads(json.dumps(facts.spec.to_dict()))
        config.validate_features()
        self.spec, self.horizon, model, objective = parse_config(vars(config))
        world = WorldModel(self.spec, self.horizon, model, config.seed)
        self.learner: Learner | None = None
        if facts is not None:
            self.learner = Learner(SelfFlow(world, objective, config.seed), facts)
            world = self.learner.objective.ema.model
        self.model = world
        self.inputs = Inputs(self.spec, self.model.modalities, model.normalization)
        self.flow = FlowPolicy(
            Checkpoint(Path(), self.model, self.inputs, objective, stamp={}),
            PolicyConfig(steps=config.sampling_steps, execute=config.n_action_steps),
        )
        self.seed = config.seed
        self.last_predicted_latents: Tensor | None = None
        self._stamp: dict[str, Any] = {}
        self._expected_size: tuple[int, int] | None = None
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
        self._step = 0
        self._imagined: dict[int, dict[str, Tensor]] = {}  # step -> camera -> frame
        self.last_predicted_latents = None

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """The next action ``[B, A]``; call it once every control step.

        A new chunk is computed when `config.n_action_steps` of the last one have been returned.
        """
        self._see(batch)
        if not self._waiting:
            known = np.stack(self._done, axis=1) if self._done else None
            chunk = self._sample(batch, known, **kwargs)
            if self.config.save_predicted_video:
                self._imagine(chunk, batch.get("task"))
            self._waiting.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        action = self._waiting.popleft()
        self._done.append(action.cpu().numpy())
        if self.config.save_predicted_video:
            self.last_predicted_latents = self._picture()
        self._step += 1
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

    def decode_predicted_latents(self, latents: Tensor) -> np.ndarray:
        """Collected `last_predicted_latents` as a video.

        Args:
            latents: uint8 ``[1, 3, T, height, width]``.

        Returns:
            uint8 ``[T, H, W, 3]``, enlarged to at least `SHOWN` pixels, of even sizes (which video
            encoders want).
        """
        video = latents[0].permute(1, 2, 3, 0)
        times = max(1, -(-SHOWN // video.shape[1]))
        video = video.repeat_interleave(times, 1).repeat_interleave(times, 2)
        return video[:, : video.shape[1] // 2 * 2, : video.shape[2] // 2 * 2].cpu().numpy()

    # --- training ---------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of windows, under the pattern that is its turn; see `Learner`.

        Raises:
            ValueError: the policy was opened without a dataset.
        """
        return self._training().loss(batch)

    def update(self) -> None:
        """What LeRobot calls after every optimiser step: the average follows."""
        self._training().update()

    def get_optim_params(self) -> list[dict[str, Any]]:
        return self._training().parameter_groups()

    def _training(self) -> Learner:
        if self.learner is None:
            raise ValueError(
                "this policy was opened to act. `lerobot-train` trains (--policy.path=CHECKPOINT "
                "fine-tunes), as does `python -m scripts.train`; from Python, "
                "from_pretrained(CHECKPOINT, dataset_meta=LeRobotDatasetMetadata(...))"
            )
        return self.learner

    def _save_pretrained(
        self, save_directory: Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Write a checkpoint (see `worldmodel.checkpoint`), with what training goes on from.

        Args:
            save_directory: an existing folder.
            state_dict: weights gathered from several machines, which only FSDP does.
        """
        assert state_dict is None, "the constructor refuses FSDP"
        self.config._save_pretrained(save_directory)
        stamp = self.learner.stamp() if self.learner else self._stamp
        write_json(save_directory / "stamp.json", stamp)
        weights = {PREFIX + k: v for k, v in self.model.state_dict().items()}
        write_tensors(save_directory / WEIGHTS, weights)
        if self.learner:
            write_tensors(save_directory / TRAINING, self.learner.tensors())

    # --- acting -----------------------------------------------------------------------------------

    def _see(self, batch: Mapping[str, Any]) -> None:
        """Keep an observation: cameras uint8 ``[B, h, w, 3]`` by name, and the state."""
        now: dict[str, np.ndarray] = {}
        for camera in self.spec.cameras:
            frames = self._feature(batch, camera_key(camera, batch), dimensions=4)
            self._require_expected_size(camera, frames)
            frames = (frames * 255).round().clamp(0, 255).to(torch.uint8)
            now[camera] = frames.movedim(1, -1).cpu().numpy()
        state = self._feature(batch, STATE, dimensions=2)
        now[STATE] = state.float().cpu().numpy()
        if self.spec.state_dim and state.shape[1] != self.spec.state_dim:
            raise ValueError(
                f"{STATE} has {state.shape[1]} dimensions; this policy needs "
                f"{self.spec.state_dim}: {list(self.spec.state_names)}"
            )
        if self._seen and (rows := len(self._seen[-1][STATE])) != len(state):
            raise ValueError(
                f"the batch has {len(state)} rows, the one before had {rows}; call reset() between"
            )
        self._seen.append(now)

    def _require_expected_size(self, camera: str, frames: Tensor) -> None:
        """Say it once where pictures are not rendered at the demonstrations' size."""
        expected, found = self._expected_size, tuple(frames.shape[2:])
        if expected is not None and found != expected:
            log.warning(
                "camera %s shows %dx%d pixels; the demonstrations were rendered at %dx%d. "
                "Rendering is not resizing: expect less success "
                "(--env.options='{image_size: [%d, %d]}')",
                *(camera, *found, *expected, *expected),
            )
            self._expected_size = None

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
        stacked, state = self._past()
        if noise is None:
            seeds = [derive(self.seed, "lerobot", self._episode, row) for row in range(len(state))]
            start = np.stack([self.flow.noise(seed, self._chunk) for seed in seeds])
        else:
            start = noise.float().cpu().numpy()
        self._chunk += 1
        device = next(self.model.parameters()).device
        self.inputs.to(device)  # no submodule, so `policy.to(device)` has not moved it
        task = self._tasks(batch.get("task"), len(state))
        # Where lerobot-train evaluates between its steps, it does so in the dtype of training.
        with torch.autocast(device.type, enabled=False):
            chunk = self.flow.predict_action_chunk(stacked, state, task, start)
        chunk = self.flow.smooth(chunk, known, state[:, -1])
        return torch.from_numpy(chunk).to(device)

    def _past(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Past frames ``[B, P, h, w, 3]`` by camera, and states ``[B, P, S]``.

        At the start of an episode its first observation stands in for those before it.
        """
        past, stride = self.horizon.past, self.horizon.past_stride
        seen = [self._seen[max(0, len(self._seen) - 1 - k * stride)] for k in range(past)][::-1]
        stacked = {name: np.stack([now[name] for now in seen], axis=1) for name in seen[-1]}
        state = stacked.pop(STATE)
        return stacked, state

    def _imagine(self, chunk: Tensor, task: str | list[str] | None) -> None:
        """What the first row's cameras will show under its new chunk.

        Raises:
            ValueError: the model was trained without cameras or without future frames.
        """
        if not self.spec.cameras:
            raise ValueError("save_predicted_video: this policy sees no camera, so nothing to show")
        h = self.horizon
        frames, state = self._past()
        video = {
            camera: resize_frames(
                torch.from_numpy(frames[camera][:1]).movedim(-1, -3), self.spec.image_size
            )
            for camera in self.spec.cameras
        }
        texts = self._tasks(task, len(state))
        index = self.spec.tasks.index(texts[0]) if texts and texts[0] else -1
        with torch.autocast(chunk.device.type, enabled=False):
            imagined = imagine(
                self.flow.checkpoint,
                video,
                torch.from_numpy(state[:1]),
                chunk[:1, : h.future * h.future_stride],
                task=torch.tensor([index]),
                steps=self.config.sampling_steps,
                seed=derive(self.seed, "lerobot", self._episode, self._chunk),
            )
        if not self._imagined:  # until the first imagined frame, the one that was given
            self._imagined[self._step] = {camera: given[0, -1] for camera, given in video.items()}
        for number, later in enumerate(imagined.frames.tolist()):
            self._imagined[self._step + later] = {
                camera: frame[0, number].cpu() for camera, frame in imagined.video.items()
            }

    def _picture(self) -> Tensor:
        """`last_predicted_latents` of this step; the last imagined frame stays until the next."""
        now = {
            camera: resize_frames(
                torch.from_numpy(self._seen[-1][camera][0]).movedim(-1, 0), self.spec.image_size
            )
            for camera in self.spec.cameras
        }
        imagined = self._imagined[max(step for step in self._imagined if step <= self._step)]
        rows = [
            torch.cat([now[c], torch.full_like(now[c][:, :, :GAP], 255), imagined[c]], dim=-1)
            for c in self.spec.cameras
        ]
        return torch.cat(rows, dim=1)[None, :, None]

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
        path = Path(model_file)
        stamp = path.parent / "stamp.json"
        model._stamp = json.loads(stamp.read_text()) if stamp.is_file() else {}
        size = (model._stamp.get("environment") or {}).get("image_size")
        model._expected_size = (size[0], size[1]) if size else None
        if model.learner is None:
            load_weights(model.model, path)
        else:
            assert model._opened_spec is not None, "a checkpoint's configuration has a spec"
            model.learner.go_on(path.parent, model._opened_spec)
        return model
