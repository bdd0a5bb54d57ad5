"""Part four: an independent inverse model reads the actions back off imagined frames.

It is another network with another seed, trained on real frames only. What it makes of imagined
frames tells whether they show the action that was asked for; what it makes of real ones is the
floor. It is not given future states: an absolute joint target could be read off them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldmodel.checkpoint import Checkpoint
from worldmodel.questions import infer_actions

from ..statistics import mean_intervals
from .recorded import Windows, hold

LEARNING_RATE = 2e-3
BATCH = 64


class InverseNetwork(nn.Module):
    """Two frames and the joints at the first -> the actions between, relative to standing still.

    Args:
        channels: of a pair of frames: 6 a camera.
        state: size of the state; actions: numbers to predict.
        seed: of the weights.
    """

    def __init__(self, channels: int, state: int, actions: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.look = nn.Sequential(
                nn.Conv2d(channels, 24, 5, stride=2, padding=2), nn.ReLU(),
                nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU(),
                nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(6), nn.Flatten(),
            )  # fmt: skip
            self.think = nn.Sequential(
                nn.Linear(48 * 36 + state, 192), nn.ReLU(), nn.Linear(192, actions)
            )

    def forward(self, pair: Tensor, state: Tensor) -> Tensor:
        return self.think(torch.cat([self.look(pair), state], 1))


class InverseModel:
    """`InverseNetwork`, trained on windows of real episodes.

    Args:
        checkpoint: for sizes and statistics alone.
        windows: of real episodes, none of which is judged later.
        gap: frames between the two that it sees; it says the `gap` actions between them.
        steps: of training.
        seed: of weights and batches.
        blind: it sees the first frame twice: what can be told without the frame in question.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Windows,
        gap: int,
        *,
        steps: int,
        seed: int = 1234,
        blind: bool = False,
    ) -> None:
        spec = checkpoint.spec
        self.spec, self.gap, self.blind = spec, gap, blind
        self.device = next(checkpoint.model.parameters()).device
        stats = spec.stats["state"]
        self.center = torch.tensor(stats["mean"])
        self.scale = torch.tensor(stats["std"]).clamp_min(1e-6)
        now = {c: v[:, -1] for c, v in windows.seen.items()}
        pair = self._pairs(now, {c: v[:, 0] for c, v in windows.at([gap]).items()})
        state = self._state(windows)
        aim = (windows.action[:, :gap] - self.still(windows)).flatten(1)
        self.spread = aim.std(0).clamp_min(1e-6)
        self.network = InverseNetwork(
            6 * len(spec.cameras), spec.state_dim, gap * spec.action_dim, seed
        ).to(self.device)
        aim = aim / self.spread
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE)
        draws = torch.Generator().manual_seed(seed)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - step / steps))
            rows = torch.randint(len(pair), (BATCH,), generator=draws)
            guess = self.network(*self._batch(pair[rows], state[rows]))
            loss = (guess - aim[rows].to(self.device)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def still(self, windows: Windows) -> Tensor:
        """What nothing has to be seen for, ``[N, gap, A]``: the joints stay.

        What is no joint's target is at its mean in the data, for the true action is not known here.
        """
        mean = torch.tensor(self.spec.stats["action"]["mean"], dtype=torch.float32)
        state = windows.seen_state[:, -1]
        return hold(self.spec, state, mean.expand(len(windows), self.gap, -1))

    @torch.no_grad()
    def infer(self, windows: Windows, ahead: Mapping[str, Tensor]) -> Tensor:
        """Actions ``[N, gap, A]`` from now to the frames `ahead` (camera -> ``[N, C, H, W]``)."""
        pair = self._pairs({c: v[:, -1] for c, v in windows.seen.items()}, ahead)
        state = self._state(windows)
        parts = [
            self.network(*self._batch(pair[i : i + BATCH], state[i : i + BATCH])).cpu()
            for i in range(0, len(pair), BATCH)
        ]
        still = self.still(windows)
        return still + (torch.cat(parts) * self.spread).view_as(still)

    def _pairs(self, now: Mapping[str, Tensor], ahead: Mapping[str, Tensor]) -> Tensor:
        """uint8 ``[N, 6 cameras, H, W]``."""
        ahead = now if self.blind else ahead
        return torch.cat([torch.cat([now[c], ahead[c]], 1) for c in self.spec.cameras], 1)

    def _state(self, windows: Windows) -> Tensor:
        return (windows.seen_state[:, -1] - self.center) / self.scale

    def _batch(self, pair: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return pair.to(self.device).float() / 255, state.to(self.device)


def inverse(
    checkpoint: Checkpoint,
    model: InverseModel,
    blind: InverseModel,
    windows: Windows,
    ahead: Mapping[str, Tensor],
    *,
    steps: int,
    unit: str = "",
) -> dict[str, Any]:
    """The part "inverse": mean absolute error of the actions read off frames, joints only.

    Args:
        blind: the same without the later frame: how far present frame and joints alone tell.
        windows: of held-out episodes that the inverse model has not seen.
        ahead: camera -> imagined frames ``[N, C, H, W]``, `InverseModel.gap` frames after now.
        steps: sampling steps of the model's own inverse dynamics ("cycle", a diagnostic).
        unit: of the states that absolute actions are targets for; "" is not known.
    """
    gap, groups = model.gap, windows.episode
    truth = windows.action[:, :gap]
    spec = checkpoint.spec
    joints = [i for i, n in enumerate(spec.action_names) if "gripper" not in n]
    real = {c: v[:, 0] for c, v in windows.at([gap]).items()}

    def off(guess: Tensor) -> dict[str, float]:
        wrong = (guess - truth).abs()[..., joints].mean((1, 2)).numpy()
        return mean_intervals(wrong[:, None], groups)[0].to_dict()

    def own(frames: Mapping[str, Tensor]) -> Tensor:
        video = {c: torch.cat([v, frames[c][:, None]], 1) for c, v in windows.seen.items()}
        return torch.cat(
            [
                infer_actions(
                    checkpoint, {c: v[i : i + 64] for c, v in video.items()},
                    windows.seen_state[i : i + 64], frames=[gap], steps=steps, seed=i,
                )[:, :gap].cpu()
                for i in range(0, len(windows), 64)
            ]
        )  # fmt: skip

    knows = checkpoint.objective.any_frame > 0 or gap in checkpoint.model.horizon.grid[:1]
    trained = checkpoint.objective.patterns.get("inverse", 0) > 0
    untrained = {"not_run": "the model was not trained for it"}
    return {
        "imagined": off(model.infer(windows, ahead)),
        "real": off(model.infer(windows, real)),
        "present_only": off(blind.infer(windows, real)),
        "repeat": off(model.still(windows)),
        "cycle": off(own(ahead)) if knows and trained else untrained,
        "own_on_real": off(own(real)) if knows and trained else untrained,
        "gap": gap,
        "unit": (unit if spec.action_kind == "absolute" else "") or "unit",
        "n": len(windows),
        "episodes": len(np.unique(groups)),
    }
