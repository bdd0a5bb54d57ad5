"""The policy's configuration: what a user sets before training, what a checkpoint then holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from worldmodel.checkpoint import parse_objective
from worldmodel.data.keys import camera_name
from worldmodel.model import ModelConfig
from worldmodel.optimize import SCHEDULES, FitConfig
from worldmodel.tokens import Horizon
from worldmodel.types import Spec

STATE = "observation.state"
DTYPES = ("float32", "bfloat16")

# Nested value of a checkpoint -> the field that sets it for a new policy.
MODEL = {"size": "size", "patch": "patch"}
WINDOW = {
    "past": "n_obs_steps",
    "past_stride": "past_stride",
    "future": "future",
    "future_stride": "future_stride",
    "chunk": "chunk_size",
}


def _identity() -> dict[str, NormalizationMode]:
    return dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)


@LRSchedulerConfig.register_subclass("selfflow")
@dataclass
class SelfflowSchedulerConfig(LRSchedulerConfig):
    """The learning rate of `worldmodel.optimize.FitConfig`: warm-up, then one of `SCHEDULES`."""

    num_warmup_steps: int | None = 100
    schedule: str = "constant"
    cooldown: float = 0.3

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        fit = FitConfig(
            warmup=self.num_warmup_steps or 0, schedule=self.schedule, cooldown=self.cooldown
        )
        return LambdaLR(optimizer, lambda step: fit.lr_scale(step, step / num_training_steps))


@PreTrainedConfig.register_subclass("selfflow")
@dataclass
class SelfflowConfig(PreTrainedConfig):
    """A policy's configuration, as LeRobot's commands parse it.

    With ``--policy.type=selfflow`` it describes a new policy, whose `spec` comes from the dataset.
    With ``--policy.path=CHECKPOINT`` the checkpoint's model and window rule; setting them to
    something else is refused.

    Attributes:
        n_obs_steps: P, past frames in a window ("now" included).
        chunk_size: K, actions in a chunk.
        n_action_steps: actions executed before the next chunk is computed, at most K.
        sampling_steps: Euler steps from noise to a chunk.
        save_predicted_video: ``lerobot-eval`` writes what the world model imagined beside what the
            cameras saw, as ``pred_episode_N.mp4``.
        seed: of the initial weights, of all draws in training, and of the noise that chunks are
            sampled from.
        size: a key of `worldmodel.model.SIZES`; "tiny" if not set.
        patch: side of a video patch in pixels; 8 if not set.
        image_size: pixels of the frames that the model sees, one number or ``[H, W]``; 64 if not
            set.
        past_stride: frames between two past frames; 1 if not set.
        future, future_stride: F future frames, and frames between two of them; 4 if not set.
        action_kind: "auto", "absolute", "delta" or "unknown" (see `worldmodel.data.DataConfig`).
        objective: how it learns: fields of `worldmodel.selfflow.ObjectiveConfig`, those that are
            left out at their defaults.
        dtype: of the token stream in training, "float32" or "bfloat16".
        optimizer_lr, optimizer_weight_decay, optimizer_betas, optimizer_grad_clip_norm: of AdamW.
        scheduler_warmup_steps, schedule, cooldown: see `worldmodel.optimize.FitConfig`.
        normalization_mapping: IDENTITY throughout. The model normalises by itself (with floored
            scales and clamping, which LeRobot's processors lack), so that observations and
            actions are in physical units on both sides of the policy.
        format: version of the checkpoint folder.
        spec: `worldmodel.types.Spec.to_dict`; empty before a dataset is known.
        model: fields of `worldmodel.model.ModelConfig`.
        window: fields of `worldmodel.tokens.Horizon`.
    """

    n_obs_steps: int = 1
    chunk_size: int = 16
    n_action_steps: int = 8
    sampling_steps: int = 2
    save_predicted_video: bool = False
    seed: int = 0
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=_identity)
    push_to_hub: bool = False  # LeRobot uploads by default
    license: str | None = "apache-2.0"

    size: str | None = None
    patch: int | None = None
    image_size: int | list[int] | None = None
    past_stride: int | None = None
    future: int | None = None
    future_stride: int | None = None
    action_kind: str = "auto"
    objective: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    optimizer_lr: float = 1e-3
    optimizer_weight_decay: float = 0.01
    optimizer_betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 100
    schedule: str = "constant"
    cooldown: float = 0.3

    format: int = 1
    spec: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model = self._settle(self.model, MODEL, asdict(ModelConfig()))
        self.window = self._settle(self.window, WINDOW, asdict(Horizon()))
        if self.spec:
            size = self.image_size
            size = [size] * 2 if isinstance(size, int) else size
            self.image_size = list(self.spec["image_size"])
            if size is not None and list(size) != self.image_size:
                raise _fixed("image_size", size, self.image_size)
        elif self.image_size is None:
            self.image_size = 64
        ModelConfig(**self.model).resolve()
        self.objective = asdict(parse_objective(self.objective))
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}; a chunk has {self.chunk_size} actions, "
                f"so it must lie in [1, {self.chunk_size}]"
            )
        if self.sampling_steps < 1:
            raise ValueError(f"sampling_steps is {self.sampling_steps}; it must be at least 1")
        for name, known in (("dtype", DTYPES), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; there are {list(known)}")
        wrong = {k: m for k, m in self.normalization_mapping.items() if m.value != "IDENTITY"}
        if wrong:
            raise ValueError(
                f"normalization_mapping is {wrong}; it must be IDENTITY, since the model "
                "normalises by itself and would do so twice"
            )

    def _settle(
        self, nested: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make a nested value and the fields that set it say the same.

        Raises:
            ValueError: the nested value is a checkpoint's, and a field says something else.
        """
        given = {k: v for k, name in names.items() if (v := getattr(self, name)) is not None}
        settled = dict(nested) or {**defaults, **given}
        for key, name in names.items():
            if key in settled:  # else `parse_config` says what is missing
                if given.get(key, settled[key]) != settled[key]:
                    raise _fixed(name, given[key], settled[key])
                setattr(self, name, settled[key])
        return settled

    def require_spec(self) -> Spec:
        """The robot or dataset that the policy is for.

        Raises:
            ValueError: there is none, because it came from neither checkpoint nor dataset.
        """
        if not self.spec:
            raise ValueError(
                "a selfflow policy is opened from a checkpoint: --policy.path=CHECKPOINT, or "
                "SelfflowPolicy.from_pretrained(CHECKPOINT); to train one, use "
                "`lerobot-train --policy.type=selfflow --dataset.repo_id=NAME "
                "--dataset.root=DATASET` or `python -m scripts.train data.root=DATASET`"
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
        first, second = self.optimizer_betas
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=(first, second),
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> SelfflowSchedulerConfig:
        return SelfflowSchedulerConfig(self.scheduler_warmup_steps, self.schedule, self.cooldown)

    def validate_features(self) -> None:
        """Check that LeRobot's idea of the inputs and outputs is the checkpoint's.

        LeRobot replaces `output_features` (and, where empty, `input_features`) by those of the
        dataset or environment that a command is run with.

        Raises:
            ValueError: a camera, the state or the action is missing or has another size.
        """
        spec = self.require_spec()
        found = {**(self.input_features or {}), **(self.output_features or {})}
        sizes: dict[str, int | None] = dict.fromkeys(
            (camera_key(camera, found) for camera in spec.cameras), None
        )
        sizes["action"] = spec.action_dim
        if spec.state_dim:
            sizes[STATE] = spec.state_dim
        for key, size in sizes.items():
            if key not in found:
                raise ValueError(
                    f"this checkpoint needs {key}; found {sorted(found)} "
                    "(LeRobot's --rename_map gives a feature another name)"
                )
            shape = tuple(found[key].shape)
            if size is not None and shape != (size,):
                raise ValueError(f"this checkpoint needs {key} of shape ({size},), found {shape}")


def camera_key(camera: str, keys: Collection[str]) -> str:
    """Which of these features is a camera, by its name in the spec.

    LeRobot's own name comes first; some datasets and environments say ``observation.image``.
    """
    standard = f"observation.images.{camera}"
    other = [k for k in keys if k == camera or camera_name(k) == camera]
    return other[0] if other and standard not in keys else standard


def _fixed(name: str, found: Any, trained: Any) -> ValueError:
    return ValueError(
        f"{name} is {found!r}, but this checkpoint was trained with {trained!r}, which cannot be "
        f"changed: leave --policy.{name} out, or train a new policy with --policy.type=selfflow"
    )
