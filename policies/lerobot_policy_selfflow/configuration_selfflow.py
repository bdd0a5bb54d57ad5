"""What LeRobot reads from a checkpoint's ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig

from worldmodel.tokens import Horizon
from worldmodel.types import Spec


def _identity() -> dict[str, NormalizationMode]:
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@PreTrainedConfig.register_subclass("selfflow")
@dataclass
class SelfflowConfig(PreTrainedConfig):
    """A checkpoint's configuration, as LeRobot's loader parses it.

    `spec`, `model`, `window` and `objective` are nested values that belong to `worldmodel` (see
    `worldmodel.checkpoint.parse_config`); LeRobot passes them through untouched.

    Attributes:
        n_obs_steps: P, past frames in a window ("now" included).
        chunk_size: K, actions in a chunk.
        n_action_steps: actions executed before the next chunk is computed, at most K.
        sampling_steps: Euler steps from noise to a chunk.
        normalization_mapping: IDENTITY throughout. The model normalises by itself (with floored
            scales and clamping, which LeRobot's processors lack), so that observations and
            actions are in physical units on both sides of the policy.
        format: version of the checkpoint folder.
        spec: `worldmodel.types.Spec.to_dict`.
        model: fields of `worldmodel.model.ModelConfig`.
        window: fields of `worldmodel.tokens.Horizon`.
        objective: fields of `worldmodel.selfflow.ObjectiveConfig`, how it was trained.
    """

    n_obs_steps: int = 2
    chunk_size: int = 16
    n_action_steps: int = 8
    sampling_steps: int = 2
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_identity)
    push_to_hub: bool = False  # LeRobot uploads by default
    license: str | None = "apache-2.0"

    format: int = 1
    spec: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}; a chunk has {self.chunk_size} actions, "
                f"so it must lie in [1, {self.chunk_size}]"
            )
        if self.sampling_steps < 1:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; it must be at least 1")
        wrong = {k: m for k, m in self.normalization_mapping.items() if m.value != "IDENTITY"}
        if wrong:
            raise ValueError(
                f"normalization_mapping is {wrong}; it must be IDENTITY, since the model "
                "normalises by itself and would do so twice"
            )

    def require_spec(self) -> Spec:
        """The robot or dataset that the checkpoint is for.

        Raises:
            ValueError: there is none, because this configuration came from no checkpoint.
        """
        if not self.spec:
            raise ValueError(
                "a selfflow policy is opened from a checkpoint: --policy.path=CHECKPOINT, or "
                "SelfflowPolicy.from_pretrained(CHECKPOINT); to train one, use "
                "`python -m scripts.train data.root=DATASET`"
            )
        return Spec.from_dict(self.spec)

    def horizon(self) -> Horizon:
        """When the steps of a window happen."""
        return Horizon(**self.window)

    @property
    def observation_delta_indices(self) -> list[int]:
        """Frames relative to now, past then future; for every ``observation.*`` key alike."""
        return self.horizon().times("frame").tolist()

    @property
    def action_delta_indices(self) -> list[int]:
        return self.horizon().times("chunk").tolist()

    @property
    def reward_delta_indices(self) -> None:
        return None

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig()

    def get_scheduler_preset(self) -> None:
        return None

    def validate_features(self) -> None:
        """Check that LeRobot's idea of the inputs and outputs is the checkpoint's.

        LeRobot replaces `output_features` (and, where empty, `input_features`) by those of the
        dataset or environment that a command is run with.

        Raises:
            ValueError: a camera, the state or the action is missing or has another size.
        """
        spec = self.require_spec()
        found = {**(self.input_features or {}), **(self.output_features or {})}
        expected = {f"observation.images.{camera}": None for camera in spec.cameras}
        sizes: dict[str, int | None] = {**expected, "action": spec.action_dim}
        if spec.state_dim:
            sizes["observation.state"] = spec.state_dim
        for key, size in sizes.items():
            if key not in found:
                raise ValueError(
                    f"this checkpoint needs {key}; found {sorted(found)} "
                    "(LeRobot's --rename_map gives a feature another name)"
                )
            shape = tuple(found[key].shape)
            if size is not None and shape != (size,):
                raise ValueError(f"this checkpoint needs {key} of shape ({size},), found {shape}")
