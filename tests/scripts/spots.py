"""The monitor's soft spot as somebody else's world: with an expert, without saving or exploring."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TimeLimit

from envs.world import World
from tests.policies.test_monitor import SIZE, SpotWorld, commands


class Rounds:
    """Sends the spot round and round."""

    def __init__(self, seed: int | None) -> None:
        self.seed = seed or 0

    def reset(self) -> None:
        self.plan = list(commands(self.seed))

    def act(self) -> np.ndarray:
        return self.plan.pop(0)

    @property
    def done(self) -> bool:
        return not self.plan


class SpotSuite(World):
    """Solved where the spot is far to the right."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    task_description = "go to the right"
    robot_type = ""
    state_names = ("x", "y")
    action_names = ("x", "y")
    camera_names = ("front",)

    def __init__(self, **options: Any) -> None:
        seen: dict[str, Any] = {"image_size": SIZE, "cameras": ("front",)}
        super().__init__(**(seen | options))
        self.inner = SpotWorld(slip=0.0)
        self.action_space = self.inner.action_space
        space: Any = self.inner.observation_space
        self.observation_space = self.observation_space_of(space["agent_pos"])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._seen = self.inner.reset(seed=seed)[0]
        return self._seen, self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self._seen = self.inner.step(action)[0]
        return self._seen, 0.0, False, False, self._info()

    def make_expert(self, seed: int | None = None) -> Rounds:
        return Rounds(seed)

    def _info(self) -> dict[str, Any]:
        return {"is_success": bool(self._seen["agent_pos"][0] > 0.65), "mode": "", "distance": 0.0}


def spot_suite(**options: Any) -> gym.Env:
    world = SpotSuite(**options)
    world.spec = EnvSpec("Spot-v0", max_episode_steps=40)  # what registration would have left there
    return TimeLimit(world, 40)
