"""Scripted experts: a plan of joint positions, made at reset and followed step by step.

A task's expert says through which points the tip is to pass and when (`Expert.plan`); the base
class turns that into a minimum-jerk path and, by inverse kinematics, into one action per control
step. Which of several ways it takes, and how fast, comes from its own seeded generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .kinematics import minimum_jerk, turn_about_vertical

if TYPE_CHECKING:
    from .base import ArmEnv


@dataclass
class Plan:
    """Way points of the tip, N of them, the first being where it is.

    Attributes:
        points: ``[N, 3]`` in metres. Two equal ones in a row are a stop: the tip comes to rest
            there, and what else is asked for (the gripper, say) happens while it stands.
        times: ``[N]`` in seconds, from 0, strictly increasing.
        openings: ``[N]`` of the gripper, in metres.
        yaws: ``[N]`` radians by which the hand is turned about the vertical, from 0; None for 0.
    """

    points: np.ndarray
    times: np.ndarray
    openings: np.ndarray
    yaws: np.ndarray | None = None

    def path(self, sample_times: np.ndarray) -> np.ndarray:
        """``[M, 5]`` at `sample_times` ``[M]``: position, opening, yaw; smooth between stops."""
        yaws = np.zeros(len(self.times)) if self.yaws is None else self.yaws
        values = np.column_stack([self.points, self.openings, yaws])
        still = np.all(np.diff(self.points, axis=0) == 0, axis=1)
        stops = {i for n in np.flatnonzero(still) for i in (int(n), int(n) + 1)}
        ends = sorted(stops | {0, len(values) - 1})
        path = np.empty((len(sample_times), values.shape[1]))
        for first, last in itertools.pairwise(ends):
            leg = slice(first, last + 1)
            inside = sample_times >= self.times[first]  # later legs overwrite what lies after them
            path[inside] = minimum_jerk(values[leg], self.times[leg], sample_times[inside])
        return path


UPRIGHT_SECONDS = 1.4
"""By then a hand that started askew points down."""


def trace(
    env: ArmEnv, plan: Plan, joints: np.ndarray, settle_steps: int = 0
) -> Iterator[np.ndarray]:
    """The actions that follow a plan, float64 ``[8]`` one by one.

    Args:
        env: whose arm and control rate they are for.
        plan: what to follow; it begins where the tip is at `joints`.
        joints: ``[7]`` in radians, where the path begins.
        settle_steps: spent at rest at the last point.

    Raises:
        UnreachableError: while being iterated, where the path leaves the workspace.
    """
    fps = env.metadata["render_fps"]
    steps = int(np.ceil(plan.times[-1] * fps)) + settle_steps
    sample_times = np.arange(1, steps + 1) / fps
    path = plan.path(sample_times)
    # The hand may start a little askew: turn it upright with the same smooth profile.
    _, start_rotation = env.kinematics.tip(joints)
    upright = np.array([0.0, min(plan.times[-1] / 2, UPRIGHT_SECONDS)])
    fractions = minimum_jerk(np.array([[0.0], [1.0]]), upright, sample_times)
    for *position, opening, yaw, fraction in np.column_stack([path, fractions]):
        rotation = env.kinematics.towards_down(start_rotation, fraction)
        if yaw:
            rotation = turn_about_vertical(yaw) @ rotation
        joints = env.kinematics.solve(np.array(position), joints, rotation)
        yield np.append(joints, opening)


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

    def plan(self) -> Plan:
        """Where the tip goes, from where it is."""
        raise NotImplementedError

    def reset(self) -> None:
        """Make a new plan for the environment's present state."""
        joints = self.env.agent_pos[:7].astype(np.float64)
        actions = trace(self.env, self.plan(), joints, settle_steps=self.SETTLE_STEPS)
        self._actions = np.array(list(actions), np.float32)
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
