"""Scripted experts: a plan of joint positions, made at reset and followed step by step.

A task's expert says through which points the tip is to pass and when (`Expert.plan`); the base
class turns that into a minimum-jerk path and, by inverse kinematics, into one action per control
step. Which of several ways it takes, and how fast, comes from its own seeded generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .kinematics import minimum_jerk

if TYPE_CHECKING:
    from .base import ArmEnv


class Expert:
    """Follows a plan through way points of the tip.

    Use: ``env.reset()``, ``expert.reset()``, then ``env.step(expert.act())`` until `done`.

    Args:
        env: the environment it acts in, without wrappers.
        seed: of the expert's own choices; None draws one.
    """

    SETTLE_STEPS = 8
    """Steps spent at rest at the last point, so that a policy learns to stay there."""

    def __init__(self, env: ArmEnv, seed: int | None = None):
        self.env = env
        self.rng = np.random.default_rng(seed)
        self._actions: np.ndarray = np.empty((0, len(env.action_names)), np.float32)
        self._step = 0

    def plan(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the tip goes, from where it is.

        Returns:
            Way points ``[N, 3]`` in metres, the tip's present position first; times ``[N]`` in
            seconds, starting at 0; gripper openings ``[N]`` in metres.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Make a new plan for the environment's present state."""
        points, times, openings = self.plan()
        fps = self.env.metadata["render_fps"]
        steps = int(np.ceil(times[-1] * fps)) + self.SETTLE_STEPS
        sample_times = np.arange(1, steps + 1) / fps
        path = minimum_jerk(np.column_stack([points, openings]), times, sample_times)

        joints = self.env.agent_pos[:7].astype(np.float64)
        # The hand may start a little askew: turn it upright with the same smooth profile.
        _, start_rotation = self.env.kinematics.tip(joints)
        fractions = minimum_jerk(
            np.array([[0.0], [1.0]]), np.array([0.0, times[-1] / 2]), sample_times
        )
        actions = []
        for *position, opening, fraction in np.column_stack([path, fractions]):
            rotation = self.env.kinematics.towards_down(start_rotation, fraction)
            joints = self.env.kinematics.solve(np.array(position), joints, rotation)
            actions.append(np.append(joints, opening))
        self._actions = np.array(actions, np.float32)
        self._step = 0

    def act(self) -> np.ndarray:
        """The next action, float32 ``[8]``; after the plan's end, its last one."""
        if not len(self._actions):
            raise RuntimeError("act was called before reset: the expert has no plan yet")
        action = self._actions[min(self._step, len(self._actions) - 1)]
        self._step += 1
        return action.copy()

    @property
    def done(self) -> bool:
        """Whether the plan has been carried out, settling included."""
        return self._step >= len(self._actions)
