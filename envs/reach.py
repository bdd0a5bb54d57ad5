"""Reach: bring the fingertips to a marker on the table. The smoke test among the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .arm import HOME, VISUAL, front_camera
from .base import CONTROL_HZ, ArmEnv
from .expert import Expert, Plan
from .options import checked_pair

TARGETS = {"easy": (0.07, 0.05), "hard": (0.04, 0.03)}
"""Name -> (width of the marker, tolerance), in metres."""


class Reach(ArmEnv):
    """Bring the fingertips to a red marker, and hold them there.

    Success: within the tolerance of the target point (`HOVER` above the marker's centre), slower
    than `SLOW`, for `HOLD_STEPS` control steps in a row.

    Args:
        target: "easy" (a marker 7 cm wide, tolerance 5 cm), "hard" (4 cm, 3 cm), or
            ``(width, tolerance)`` in metres.
        **options: see `ArmEnv`.
    """

    task_description = "Move the gripper to the red marker."
    task_variables: ClassVar[tuple[str, ...]] = ("held",)

    HOVER = 0.03
    SLOW = 0.10
    HOLD_STEPS = 4
    START = np.array([[0.36, 0.40], [-0.03, 0.03], [0.05, 0.10]])
    """Where the tip starts: low and high per axis, in metres."""
    REGION = np.array([[0.52, 0.67], [-0.12, 0.12]])
    """Where the marker's centre can be, in metres."""

    held: float

    def __init__(self, *, target: str | Sequence[float] = "easy", **options: Any):
        self.target_width, self.tolerance = checked_pair(target, TARGETS, "width", "tolerance")
        super().__init__(**options)
        self._marker = self.model.body("marker").mocapid[0]

    def scene(self) -> str:
        # From in front and above: the arm, reaching towards the camera, hides what lies behind its
        # hand but not what it reaches for.
        return f"""
            {front_camera(look_at=(0.522, 0.0, 0.02), distance=1.6, elevation=58, width=0.36)}
            <body name="marker" mocap="true">
              <geom type="cylinder" pos="0 0 0.001" size="{self.target_width / 2} 0.001"
                    rgba="0.95 0.05 0.05 1" {VISUAL}/>
            </body>"""

    def reset_task(self) -> np.ndarray:
        tip = self.np_random.uniform(*self.START.T)
        self.data.mocap_pos[self._marker, :2] = self.np_random.uniform(*self.REGION.T)
        joints = self.kinematics.solve(tip, HOME)
        return joints + self.np_random.uniform(-0.02, 0.02, size=7)

    def update_task(self, tip_before: np.ndarray) -> None:
        slow = np.linalg.norm(self.tip - tip_before) * CONTROL_HZ < self.SLOW
        self.held = self.held + 1 if slow and self.distance < self.tolerance else 0.0

    @property
    def target(self) -> np.ndarray:
        """The point to reach, ``[3]`` in metres."""
        return self.data.mocap_pos[self._marker] + [0.0, 0.0, self.HOVER]

    @property
    def distance(self) -> float:
        """From the tip to the point to reach, in metres."""
        return float(np.linalg.norm(self.tip - self.target))

    def task_info(self) -> dict[str, Any]:
        return {
            "is_success": self.held >= self.HOLD_STEPS,
            "mode": "",
            "distance": self.distance,
        }

    def make_expert(self, seed: int | None = None) -> Expert:
        return ReachExpert(self, seed)


class ReachExpert(Expert):
    """Straight to the target, in 1.6 to 2.2 seconds."""

    env: Reach

    def plan(self) -> Plan:
        points = np.array([self.env.tip, self.env.target])
        times = np.array([0.0, self.rng.uniform(1.6, 2.2)])
        return Plan(points, times, openings=np.zeros(2))
