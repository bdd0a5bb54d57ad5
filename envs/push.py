"""Push: slide a block into a marked pose, through nothing but contact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .arm import HOME, VISUAL, front_camera
from .base import ArmEnv
from .expert import Expert, Plan
from .objects import FreeBody, angle_between, box_mjcf
from .options import checked_pair

TARGETS = {"easy": (0.03, 0.25), "hard": (0.015, 0.12)}
"""Name -> (tolerance of the place in metres, of the angle in radians)."""


class Push(ArmEnv):
    """Push the blue block forward until it covers the red mark, place and angle.

    Success: the block's centre and its angle within the tolerances, slower than `SLOW`, for
    `HOLD_STEPS` control steps in a row. Marks are drawn where one curved push can bring the block,
    and never where it already lies.

    Args:
        target: "easy" (3 cm and 0.25 rad), "hard" (1.5 cm and 0.12 rad), or ``(metres, radians)``.
        **options: see `ArmEnv`.
    """

    task_description = "Push the blue block onto the red mark."
    task_variables: ClassVar[tuple[str, ...]] = ("held",)
    info_keys: ClassVar[tuple[str, ...]] = (*ArmEnv.info_keys, "angle")

    BLOCK = (0.025, 0.04, 0.02)
    """Half of the block's edges: along the push, across, up; in metres."""
    SLOW = 0.02
    HOLD_STEPS = 4
    START = np.array([[0.34, 0.38], [-0.03, 0.03], [0.07, 0.11]])
    """Where the tip starts: low and high per axis, in metres."""
    PLACE = np.array([[0.46, 0.50], [-0.06, 0.06]])
    """Where the block's centre can be at first, in metres."""
    YAW = 0.35
    """Largest angle of the block at first, in radians."""
    TURN = 0.4
    """Largest angle between the block at first and the mark, in radians."""
    LENGTH = (0.11, 0.16)
    """How far the mark is, in metres."""
    SIDEWAYS = 0.012
    """How far it can lie beside the arc that a steadily turning push follows, in metres."""

    held: float

    def __init__(self, *, target: str | Sequence[float] = "easy", **options: Any):
        self.tolerance, self.angle_tolerance = checked_pair(target, TARGETS, "metres", "radians")
        super().__init__(**options)
        self._mark = self.model.body("mark").mocapid[0]
        self.block = FreeBody(self.model, self.data, "block")

    def scene(self) -> str:
        length, width, _ = self.BLOCK
        return f"""
            {front_camera(look_at=(0.54, 0.0, 0.02), distance=1.6, elevation=60, width=0.36)}
            <body name="mark" mocap="true">
              <geom type="box" pos="0 0 0.0005" size="{length} {width} 0.0005"
                    rgba="0.95 0.05 0.05 1" {VISUAL}/>
            </body>{box_mjcf("block", self.BLOCK, mass=0.1, colour="0.05 0.20 0.95 1")}"""

    def reset_task(self) -> np.ndarray:
        tip = self.np_random.uniform(*self.START.T)
        x, y = self.np_random.uniform(*self.PLACE.T)
        # Turned towards the middle rather than out of the picture.
        yaw = self.np_random.uniform(-self.YAW, self.YAW) - 2 * y
        self.block.place(x, y, self.BLOCK[2], yaw)
        turn = self.np_random.uniform(-self.TURN, self.TURN)
        length = self.np_random.uniform(*self.LENGTH)
        sideways = self.np_random.uniform(-self.SIDEWAYS, self.SIDEWAYS)
        along = yaw + turn / 2  # the chord of an arc
        mark = self.data.mocap_pos[self._mark]
        mark[:2] = (
            np.array([x, y]) + length * _direction(along) + sideways * _direction(along + np.pi / 2)
        )
        half = (yaw + turn) / 2
        self.data.mocap_quat[self._mark] = [np.cos(half), 0.0, 0.0, np.sin(half)]
        return self.kinematics.solve(tip, HOME) + self.np_random.uniform(-0.02, 0.02, size=7)

    def update_task(self, tip_before: np.ndarray) -> None:
        there = self.distance < self.tolerance and self.angle < self.angle_tolerance
        self.held = self.held + 1 if there and self.block.speed < self.SLOW else 0.0

    @property
    def mark(self) -> np.ndarray:
        """The mark's centre, ``[3]`` in metres."""
        return self.data.mocap_pos[self._mark]

    @property
    def mark_yaw(self) -> float:
        """The mark's angle about the vertical, in radians."""
        w, _, _, z = self.data.mocap_quat[self._mark]
        return 2 * float(np.arctan2(z, w))

    @property
    def distance(self) -> float:
        """From the block's centre to the mark's, in metres."""
        return float(np.linalg.norm(self.block.position[:2] - self.mark[:2]))

    @property
    def angle(self) -> float:
        """Between block and mark, in radians, at least 0; half a turn looks the same."""
        return abs(angle_between(self.block.yaw, self.mark_yaw, period=np.pi))

    def task_info(self) -> dict[str, Any]:
        return {
            "is_success": self.held >= self.HOLD_STEPS,
            "mode": "",
            "distance": self.distance,
            "angle": self.angle,
        }

    def make_expert(self, seed: int | None = None) -> Expert:
        return PushExpert(self, seed)


class PushExpert(Expert):
    """Pushes with both fingertips apart, so that the block turns with the hand.

    A block that two points push does not slip off as long as the path turns gently (Lynch & Mason,
    "Stable Pushing", 1996): the hand follows a smooth curve that begins along the block's first
    angle and ends along the mark's, and the block goes with it.
    """

    env: Push

    HEIGHT = 0.022
    """Of the tip while it pushes, in metres."""
    FINGER = 0.011
    """Half of a finger, along the push, in metres."""
    PUSH_SECONDS = 2.4
    VIA_POINTS = 5

    def plan(self) -> Plan:
        block, mark = self.env.block.position[:2].copy(), self.env.mark[:2]
        yaw = self.env.block.yaw
        end = yaw + angle_between(self.env.mark_yaw, yaw, period=np.pi)
        opening = self.rng.uniform(0.03, 0.045)
        behind = self.env.BLOCK[0] + self.FINGER
        gap, retreat = self.rng.uniform(0.01, 0.025), self.rng.uniform(0.03, 0.05)
        lift = self.rng.uniform(0.0, 0.03)
        speed = self.rng.uniform(0.9, 1.15)

        def tip_at(centre: np.ndarray, angle: float, distance: float, height: float) -> np.ndarray:
            return np.append(centre - distance * _direction(angle), height)

        # A cubic curve from pose to pose (Hermite), whose tangents are the two angles; the tip
        # starts before it touches the block, at rest, and follows it from rest to rest.
        first = block - gap * _direction(yaw)
        span = float(np.linalg.norm(mark - first))
        ready = (tip_at(first, yaw, behind, self.HEIGHT), 0.15, opening, yaw)
        legs = [
            (self.env.tip.copy(), 0.0, 0.0, 0.0),
            (ready[0], 1.3, opening, yaw),
            ready,
        ]
        for share in np.linspace(0, 1, self.VIA_POINTS + 2)[1:]:
            s = 10 * share**3 - 15 * share**4 + 6 * share**5
            centre, angle = _curve(first, yaw, mark, end, span, s)
            seconds_there = self.PUSH_SECONDS / (self.VIA_POINTS + 1)
            legs.append((tip_at(centre, angle, behind, self.HEIGHT), seconds_there, opening, angle))
        legs.append((legs[-1][0], 0.15, opening, end))  # stands still
        legs.append((tip_at(mark, end, behind + retreat, self.HEIGHT + lift), 0.6, opening, end))
        points, seconds, openings, yaws = zip(*legs, strict=True)
        return Plan(
            np.array(points), np.cumsum(seconds) / speed, np.array(openings), np.array(yaws)
        )


def _direction(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def _curve(
    start: np.ndarray, start_angle: float, end: np.ndarray, end_angle: float, span: float, s: float
) -> tuple[np.ndarray, float]:
    """Point ``[2]`` and tangent's angle of a cubic Hermite curve at `s` in [0, 1]."""
    a, b = span * _direction(start_angle), span * _direction(end_angle)
    point = (
        (2 * s**3 - 3 * s**2 + 1) * start
        + (s**3 - 2 * s**2 + s) * a
        + (3 * s**2 - 2 * s**3) * end
        + (s**3 - s**2) * b
    )
    tangent = (
        (6 * s**2 - 6 * s) * (start - end) + (3 * s**2 - 4 * s + 1) * a + (3 * s**2 - 2 * s) * b
    )
    return point, float(np.arctan2(tangent[1], tangent[0]))
