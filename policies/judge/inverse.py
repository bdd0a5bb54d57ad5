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
    """

    def __init__(
        self, checkpoint: Checkpoint, windows: Windows, gap: int, *, steps: int, seed: int = 1234
    ) -> None:
        spec = checkpoint.spec
        self.spec, self.gap = spec, gap
        stats = spec.stats["state"]
        self.center = torch.tensor(stats["mean"])
        self.scale = torch.tensor(stats["std"]).clamp_min(1e-6)
        pair, state, aim = self._cases(windows, windows.video, windows.action)
        self.spread = aim.std(0).clamp_min(1e-6)
        self.network = InverseNetwork(
            6 * len(spec.cameras), spec.state_dim, gap * spec.action_dim, seed
        )
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE)
        draws = torch.Generator().manual_seed(seed)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - step / steps))
            rows = torch.randint(len(pair), (64,), generator=draws)
            guess = self.network(pair[rows].float() / 255, state[rows])
            loss = (guess - aim[rows] / self.spread).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _cases(
        self, windows: Windows, video: Mapping[str, Tensor], action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs uint8 ``[N, 6 cameras, H, W]``, states, and actions minus standing still."""
        now = windows.past - 1
        pair = torch.cat(
            [torch.cat([v[:, now], v[:, now + self.gap]], 1) for _, v in sorted(video.items())], 1
        )
        state = (windows.seen_state[:, -1] - self.center) / self.scale
        still = hold(self.spec, windows.seen_state[:, -1], action[:, : self.gap])
        return pair, state, (action[:, : self.gap] - still).flatten(1)

    @torch.no_grad()
    def infer(self, windows: Windows, ahead: Mapping[str, Tensor]) -> Tensor:
        """Actions ``[N, gap, A]`` from now to the frames `ahead`, camera -> ``[N, C, H, W]``."""
        video = {
            c: torch.cat([windows.seen[c], ahead[c][:, None].expand(-1, self.gap, -1, -1, -1)], 1)
            for c in self.spec.cameras
        }
        pair, state, _ = self._cases(windows, video, windows.action)
        still = hold(self.spec, windows.seen_state[:, -1], windows.action[:, : self.gap])
        parts = [
            self.network(pair[i : i + 256].float() / 255, state[i : i + 256])
            for i in range(0, len(pair), 256)
        ]
        return still + (torch.cat(parts) * self.spread).view_as(still)


def inverse(
    checkpoint: Checkpoint,
    model: InverseModel,
    windows: Windows,
    ahead: Mapping[str, Tensor],
    *,
    steps: int,
) -> dict[str, Any]:
    """The part "inverse": mean absolute error of the actions read off frames, joints only.

    Args:
        windows: of held-out episodes that the inverse model has not seen.
        ahead: camera -> imagined frames ``[N, C, H, W]``, `InverseModel.gap` frames after now.
        steps: sampling steps of the model's own inverse dynamics ("cycle", a diagnostic).
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

    asked = checkpoint.objective.any_frame > 0 or gap in checkpoint.model.horizon.grid[:1]
    trained = checkpoint.objective.patterns.get("inverse", 0) > 0
    return {
        "imagined": off(model.infer(windows, ahead)),
        "real": off(model.infer(windows, real)),
        "repeat": off(hold(spec, windows.seen_state[:, -1], truth)),
        "cycle": off(own(ahead)) if asked and trained else {"not_run": "not trained for it"},
        "own_on_real": off(own(real)) if asked and trained else {"not_run": "not trained for it"},
        "gap": gap,
        "unit": "rad" if spec.action_kind == "absolute" else "unit",
        "n": len(windows),
        "episodes": len(np.unique(groups)),
    }
