"""LeRobot's pipelines around the policy: units pass through, statistics travel along."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    make_default_pre_post_processors,
)

from worldmodel.types import Spec

from .configuration_selfflow import SelfflowConfig


def make_selfflow_pre_post_processors(
    config: SelfflowConfig,
    dataset_stats: dict[str, dict[str, torch.Tensor]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Rename, batch, move to the device; nothing is scaled, since the model does that itself.

    The normaliser steps are there because LeRobot's commands address them by name, and because
    they carry the statistics that the model normalises by where LeRobot's tools look for them.

    Args:
        config: of the policy.
        dataset_stats: feature name -> statistic -> ``[dimensions]``, for a policy without a spec.
    """
    if config.spec:
        dataset_stats = lerobot_stats(Spec.from_dict(config.spec))
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)


def lerobot_stats(spec: Spec) -> dict[str, dict[str, torch.Tensor]]:
    """A spec's statistics under LeRobot's feature names."""
    names = {"state": "observation.state", "action": "action"}
    return {
        names[kind]: {name: torch.tensor(values) for name, values in statistics.items()}
        for kind, statistics in spec.stats.items()
    }
