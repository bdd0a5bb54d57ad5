"""Specs, models and windows for tests: small, random, and nowhere zero."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from worldmodel.checkpoint import Checkpoint
from worldmodel.inputs import Inputs
from worldmodel.model import Clock, ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon, Pattern, Steps, pattern
from worldmodel.types import STATISTICS, Spec, Window

HORIZON = Horizon(past=2, past_stride=2, future=2, future_stride=2, chunk=6)


def make_spec(cameras: tuple[str, ...] = ("front",), state_dim: int = 3) -> Spec:
    """A robot with 2 actions and frames of 16 x 24 pixels, 6 patches."""

    def table(dimensions: int) -> dict[str, list[float]]:
        values = {"mean": 0.0, "std": 0.5, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
        return {name: [values[name]] * dimensions for name in STATISTICS}

    return Spec(
        cameras=cameras,
        image_size=(16, 24),
        state_names=("x", "y", "z")[:state_dim],
        action_names=("a", "b"),
        fps=20,
        tasks=("reach the ball", "push the box"),
        stats={"state": table(state_dim), "action": table(2)},
    )


SPECS = {
    "one camera": make_spec(),
    "two cameras": make_spec(("front", "wrist")),
    "no camera": make_spec(()),
    "no state": make_spec(state_dim=0),
}


def randomised[M: nn.Module](module: M, seed: int = 0, scale: float = 0.2) -> M:
    """Add noise to every weight: fresh heads and modulations are zero and make equalities pass."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=source))
    return module


def make_model(
    spec: Spec = SPECS["one camera"], horizon: Horizon = HORIZON, prediction: str = "x"
) -> WorldModel:
    """A randomised debug model."""
    return randomised(WorldModel(spec, horizon, ModelConfig(size="debug", prediction=prediction)))


def make_checkpoint(
    model: WorldModel, objective: ObjectiveConfig | None = None, path: Path = Path()
) -> Checkpoint:
    """The model as if it had been opened from a folder."""
    model = model.eval().requires_grad_(False)
    inputs = Inputs(model.spec, model.modalities, model.config.normalization)
    return Checkpoint(path, model, inputs, objective or ObjectiveConfig(), {})


def make_window(spec: Spec, horizon: Horizon = HORIZON, batch: int = 4, seed: int = 0) -> Window:
    """Random frames, states and actions within the statistics."""
    g = torch.Generator().manual_seed(seed)
    frames = horizon.past + horizon.future
    size = (batch, frames, 3, *spec.image_size)
    return Window(
        video={
            camera: torch.randint(0, 256, size, generator=g, dtype=torch.uint8)
            for camera in spec.cameras
        },
        state=2 * torch.rand(batch, frames, spec.state_dim, generator=g) - 1,
        action=2 * torch.rand(batch, horizon.chunk, spec.action_dim, generator=g) - 1,
        frame_valid=torch.ones(batch, frames, dtype=torch.bool),
        action_valid=torch.ones(batch, horizon.chunk, dtype=torch.bool),
        task=torch.arange(batch) % 2,
        index=torch.arange(batch),
    )


class Question:
    """One pattern asked of one model: random given and noisy patches, ready to vary.

    Attributes:
        given, noisy: modality name -> patches ``[B, steps, n, E]``.
        given_steps, wanted_steps: of `WorldModel.slices_of`.
    """

    def __init__(self, model: WorldModel, name: str, batch: int = 2, seed: int = 0) -> None:
        self.model = model
        self.pattern: Pattern = pattern(name, model.horizon, prefix=2)
        self.given_steps, self.wanted_steps = model.slices_of(self.pattern)
        g = torch.Generator().manual_seed(seed)

        def draw(steps: dict[str, Steps]) -> dict[str, Tensor]:
            found = {}
            for n, part in steps.items():
                m = model.modalities[n]
                count = len(model.horizon.times(m.axis)[part])
                found[n] = torch.randn(batch, count, m.per_step, m.width, generator=g)
            return found

        self.given, self.noisy = draw(self.given_steps), draw(self.wanted_steps)
        self.task = torch.arange(batch) % 2

    def clock(self, time: float = 0.6) -> Clock:
        """Every wanted token at one time."""
        return Clock({n: torch.full((len(self.task), 1), time) for n in self.noisy})

    def ask(self, clock: Clock | None = None, **options):
        """Run the model once."""
        encoded = self.model.encode(self.given, self.given_steps, self.task)
        return self.model(self.noisy, self.wanted_steps, clock or self.clock(), encoded, **options)
