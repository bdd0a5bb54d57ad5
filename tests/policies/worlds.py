"""A world small enough to reason about, and policies for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TimeLimit

from policies.types import Decision, Observation


class PointWorld(gym.Env):
    """A point in the plane follows position commands, a tenth of a second late; reach the goal.

    Action and state are positions ``[2]``. The goal is left or right of the start by seed.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    task_description = "reach the goal"
    action_names = ("x.pos", "y.pos")
    state_names = ("x.pos", "y.pos")

    def __init__(self, cameras: Sequence[str] = ("front",), render_mode: str | None = None) -> None:
        self.cameras, self.render_mode = cameras, render_mode
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Dict(
            {"agent_pos": gym.spaces.Box(-2.0, 2.0, (2,), np.float32)}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.1, 0.1, 2)
        side = self.np_random.choice([-1.0, 1.0])
        self.goal = np.array([side * self.np_random.uniform(0.4, 0.8), 0.5])
        return self._see()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        # Slipping depends on the world's own generator: a shared one would break determinism.
        slip = self.np_random.normal(0, 0.002, 2)
        self.position = self.position + 0.5 * (np.asarray(action) - self.position) + slip
        observation, info = self._see()
        return observation, 0.0, info["is_success"], False, info

    def render(self) -> np.ndarray:
        return self._picture()

    def _see(self) -> tuple[dict[str, Any], dict[str, Any]]:
        distance = float(np.linalg.norm(self.position - self.goal))
        observation: dict[str, Any] = {"agent_pos": self.position.astype(np.float32)}
        if self.cameras:
            observation["pixels"] = {camera: self._picture() for camera in self.cameras}
        mode = "left" if self.position[0] < 0 else "right"
        return observation, {"is_success": distance < 0.1, "mode": mode, "distance": distance}

    def _picture(self) -> np.ndarray:
        picture = np.zeros((16, 16, 3), np.uint8)
        column, row = np.clip((self.position + 1) * 8, 0, 15).astype(int)
        picture[row, column] = 255
        return picture


def point_world(max_steps: int = 20, **options: Any) -> gym.Env:
    env = TimeLimit(PointWorld(**options), max_steps)
    # What registration would have left there.
    env.unwrapped.spec = EnvSpec("Point-v0", max_episode_steps=max_steps)
    return env


class ChunkedGuess:
    """Draws a target per chunk of `length` steps from (episode seed, chunk index), walks there."""

    name = "guess"

    def __init__(self, length: int = 4) -> None:
        self.length = length

    def reset(self, seeds: Sequence[int]) -> None:
        self.seeds, self.steps = list(seeds), [0] * len(seeds)

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self.seeds[slot], self.steps[slot] = seed, 0

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        action = np.full((len(active), 2), np.nan, np.float32)
        new = np.zeros(len(active), bool)
        for slot in np.flatnonzero(active):
            chunk, step = divmod(self.steps[slot], self.length)
            new[slot] = step == 0
            goal = np.random.default_rng((self.seeds[slot], chunk)).uniform([-0.8, 0.2], [0.8, 0.8])
            action[slot] = observation.state[slot] + 0.5 * (goal - observation.state[slot])
            self.steps[slot] += 1
        return Decision(action, new, {"network": 1.0} if new.any() else None)
