"""A Self-Flow checkpoint behind LeRobot's policy interface."""

from __future__ import annotations

import difflib
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from worldmodel.data.resize import resize_frames
from worldmodel.flow import TimeConfig
from worldmodel.inputs import Inputs
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.sampler import sample
from worldmodel.streams import generator
from worldmodel.tokens import pattern

from .configuration_selfflow import SelfflowConfig


class SelfflowPolicy(PreTrainedPolicy):
    """Acts by sampling action chunks from a world model.

    Observations and actions are in physical units, images float ``[B, 3, h, w]`` in [0, 1] of any
    size. B is fixed between two calls of `reset`.

    Args:
        config: of a checkpoint.
        dataset_stats, dataset_meta: what LeRobot's factory passes; a checkpoint has its own.

    Attributes:
        model: the EMA weights.
        seed: of the noise that chunks are sampled from; a chunk's noise follows from it, from the
            number of resets and from the number of the chunk.
    """

    config_class = SelfflowConfig
    name = "selfflow"

    def __init__(
        self,
        config: SelfflowConfig,
        dataset_stats: dict[str, dict[str, Tensor]] | None = None,
        dataset_meta: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        self.spec = config.require_spec()
        self.model = WorldModel(self.spec, config.horizon(), ModelConfig(**config.model))
        self.inputs = Inputs(self.spec, self.model.modalities, config.normalization)
        self.seed = 0
        self._episode = -1
        self.reset()
