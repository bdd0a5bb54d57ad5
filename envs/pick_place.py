"""PickPlace: put either of two identical cubes onto the plate.

Two ways are right and their average is wrong: half way between the cubes there is nothing to grasp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .arm import FINGER_JOINTS, GRIPPER_MAX, HOME, VISUAL, front_camera
from .base import ArmEnv
from .expert import Expert, Plan
from .objects import FreeBody, box_mjcf
from .options import checked_pair

TARGETS = {"easy": (0.11, 0.05), "hard": (0.08, 0.03)}
"""Name -> (edge of the plate, tolerance), in metres."""


class PickPlace(ArmEnv):
    """Grasp one of two identical cubes, carry it to the red plate and let go of it there.

    Success: a cube's centre within the tolerance of the plate's, lying on the table, slower than
    `SLOW` and touched by no finger, for `HOLD_STEPS` control steps in a row. ``info["mode"]`` says
    which cube it was, or is on its way, as the arm sees them: "left" or "right"; "" while both lie.

    Args:
        target: "easy" (a plate of 11 cm, tolerance 5 cm), "hard" (8 cm, 3 cm), or
            ``(edge, tolerance)`` in metres.
        **options: see `ArmEnv`.
    """

    task_description = "Put a green cube onto the red plate."
    task_variables: ClassVar[tuple[str, ...]] = ("held", "chosen")

    CUBE = 0.02
    """Half of a cube's edge, in metres."""
    SLOW = 0.02
    HOLD_STEPS = 4
    LIFTED = 0.02
    """A cube this far above the table has been chosen, in metres."""
    START = np.array([[0.40, 0.44], [-0.02, 0.02], [0.13, 0.17]])
    """Where the tip starts: low and high per axis, in metres."""
    CUBES = np.array([[0.48, 0.55], [0.065, 0.12]])
    """Where the left cube's centre can be, and mirrored the right one's, in metres."""
    YAW = 0.2
    """Largest angle by which a cube is turned, in radians."""
    PLATE = np.array([[0.62, 0.66], [-0.04, 0.04]])
    """Where the plate's centre can be, in metres."""

    held: float
    chosen: float

    def __init__(self, *, target: str | Sequence[float] = "easy", **options: Any):
        self.plate_width, self.tolerance = checked_pair(target, TARGETS, "edge", "tolerance")
        super().__init__(**options)
        self._plate = self.model.body("plate").mocapid[0]
        self.cubes = [FreeBody(self.model, self.data, name) for name in ("cube_left", "cube_right")]
        fingers = [self.model.body(name).id for name in FINGER_JOINTS]
        self._finger_geoms = np.flatnonzero(np.isin(self.model.geom_bodyid, fingers))

    def scene(self) -> str:
        cubes = [
            box_mjcf(name, [self.CUBE] * 3, mass=0.05, colour="0.05 0.75 0.15 1")
            for name in ("cube_left", "cube_right")
        ]
        half = self.plate_width / 2
        return f"""
            {front_camera(look_at=(0.54, 0.0, 0.03), distance=1.6, elevation=50, width=0.38)}
            <body name="plate" mocap="true">
              <geom type="box" pos="0 0 0.0005" size="{half} {half} 0.0005"
                    rgba="0.95 0.05 0.05 1" {VISUAL}/>
            </body>{"".join(cubes)}"""

    def reset_task(self) -> np.ndarray:
        tip = self.np_random.uniform(*self.START.T)
        for cube, side in zip(self.cubes, (1.0, -1.0), strict=True):
            x, y = self.np_random.uniform(*self.CUBES.T)
            cube.place(x, side * y, self.CUBE, self.np_random.uniform(-self.YAW, self.YAW))
        self.data.mocap_pos[self._plate, :2] = self.np_random.uniform(*self.PLATE.T)
        joints = self.kinematics.solve(tip, HOME)
        return joints + self.np_random.uniform(-0.02, 0.02, size=7)

    def update_task(self, tip_before: np.ndarray) -> None:
        heights = [cube.position[2] - self.CUBE for cube in self.cubes]
        if max(heights) > self.LIFTED:
            self.chosen = 1.0 if heights[0] >= heights[1] else -1.0
        self.held = self.held + 1 if any(map(self._placed, self.cubes)) else 0.0

    def _placed(self, cube: FreeBody) -> bool:
        """Whether a cube lies on the plate by itself."""
        lies = cube.position[2] < self.CUBE + 0.005
        near = np.linalg.norm(cube.position[:2] - self.plate[:2]) < self.tolerance
        return bool(lies and near and cube.speed < self.SLOW and not self._touched(cube))

    def _touched(self, cube: FreeBody) -> bool:
        pairs = self.data.contact.geom
        with_cube = (pairs == cube.geom).any(axis=1)
        return bool(np.isin(pairs[with_cube], self._finger_geoms).any())

    @property
    def plate(self) -> np.ndarray:
        """The plate's centre, ``[3]`` in metres."""
        return self.data.mocap_pos[self._plate]

    def task_info(self) -> dict[str, Any]:
        distances = [np.linalg.norm(cube.position[:2] - self.plate[:2]) for cube in self.cubes]
        return {
            "is_success": self.held >= self.HOLD_STEPS,
            "mode": {1.0: "left", -1.0: "right"}.get(self.chosen, ""),
            "distance": float(min(distances)),
        }

    def make_expert(self, seed: int | None = None) -> Expert:
        return PickPlaceExpert(self, seed)


class PickPlaceExpert(Expert):
    """Takes a cube drawn by coin flip, at heights and speeds drawn too."""

    env: PickPlace

    GRASP_HEIGHT = 0.018
    CLOSED = 0.03
    """What the gripper is told when it holds a cube of 4 cm: the rest is the force of its grip."""

    def plan(self) -> Plan:
        cube = self.env.cubes[self.rng.integers(2)]
        plate = self.env.plate
        opened = self.rng.uniform(0.07, GRIPPER_MAX)
        hover, carry = self.rng.uniform(0.08, 0.11), self.rng.uniform(0.09, 0.13)
        speed = self.rng.uniform(0.9, 1.15)
        grasp = np.array([*cube.position[:2], self.GRASP_HEIGHT])
        release = np.array([*plate[:2], self.GRASP_HEIGHT + 0.006])
        release[:2] += self.rng.uniform(-0.005, 0.005, size=2)
        above = np.array([0.0, 0.0, 1.0])
        turn = cube.yaw
        # Way point, seconds to get there, gripper's opening, hand's yaw.
        legs = [
            (self.env.tip.copy(), 0.0, self.env.agent_pos[7], 0.0),
            (grasp + hover * above, 0.9, opened, turn),
            (grasp, 0.65, opened, turn),
            (grasp, 0.35, self.CLOSED, turn),  # stands still and closes
            ((grasp + release) / 2 + carry * above, 0.85, self.CLOSED, turn / 2),
            (release, 0.85, self.CLOSED, 0.0),
            (release, 0.35, opened, 0.0),  # stands still and opens
            (release + hover * above, 0.6, opened, 0.0),
        ]
        points, seconds, openings, yaws = zip(*legs, strict=True)
        times = np.cumsum(seconds) / speed
        return Plan(np.array(points), times, np.array(openings), np.array(yaws))
