"""PushT (gym-pusht): a disc pushes a T-shaped block onto its outline, in the plane.

There is no scripted expert; people's demonstrations are the LeRobot dataset ``lerobot/pusht``. Its
names of cameras and dimensions are used here, so that a model that learned from it can act.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from .. import Task
from ..world import World

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pygame's, about how it looks for its own files
    from gym_pusht.envs.pusht import PushTEnv

TASKS = {"": Task("pusht-v0", "suites.pusht:PushT", 300)}

SIDE = 512
"""Of the square world, in its own unit, pixels."""


class PushT(World):
    """The disc follows position commands; only pictures show the block.

    State: the disc's position ``[2]`` in pixels of a square of `SIDE`, x to the right and y down.
    Action: the position that it is to go to. Success: 95 % of the target is covered;
    ``info["coverage"]`` says how much is.

    Args:
        cameras: ["image"], from above, or [].
        **options: see `World`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    task_description = "Push the T-shaped block onto the T-shaped target."
    robot_type = ""  # its datasets name none
    state_names = ("motor_0", "motor_1")
    action_names = state_names
    camera_names = ("image",)
    info_keys: ClassVar[tuple[str, ...]] = ("is_success", "mode", "coverage")
    length_unit: ClassVar[str] = "px"

    def __init__(self, *, cameras: Sequence[str] = camera_names, **options: Any):
        super().__init__(cameras=cameras, **options)
        self.inner = PushTEnv(obs_type="state", render_mode="rgb_array")
        self.action_space = gym.spaces.Box(0, SIDE, (2,), np.float32)
        self.observation_space = self.observation_space_of(
            gym.spaces.Box(-SIDE, 2 * SIDE, (2,), np.float32)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. All randomness comes from `seed`; `options` are accepted, unused."""
        super().reset(seed=seed)
        self.inner.np_random = self.np_random
        self.inner.reset()
        return self.current_observation(), self.task_info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step of 100 ms.

        Raises:
            ValueError: an action of another shape, or with an entry that is not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"expected 2 finite numbers {self.action_names}, found {action}")
        self.inner.step(np.clip(action, 0, SIDE))
        info = self.task_info()
        success = info["is_success"]
        return self.current_observation(), float(success), success, False, info

    def render(self) -> np.ndarray | None:
        """The world from above, uint8 ``[H, W, 3]``; None without a render mode."""
        return None if self.render_mode is None else self.draw("image", self.render_size)

    def task_info(self) -> dict[str, Any]:
        """The values of `info_keys` now."""
        coverage = float(self.inner._get_coverage())
        return {
            "is_success": coverage > self.inner.success_threshold,
            "mode": "",
            "coverage": coverage,
        }

    @property
    def agent_pos(self) -> np.ndarray:
        """float32 ``[2]``, see `PushT`."""
        return np.array(self.inner.agent.position, np.float32)

    def draw(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        height, width = size
        return self.inner._get_img(self.inner._draw(), width=width, height=height)
