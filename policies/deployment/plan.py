"""What the joints are to do: a curve through what is wanted, and what is sent of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..safety import Filtered, SafetyFilter
from .arm import Trajectory


@dataclass(frozen=True)
class Plan:
    """A piecewise cubic (Hermite) curve of joint positions over time.

    Attributes:
        times: ``[N]``, ascending.
        positions, velocities: ``[N, J]``.
    """

    times: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray

    @classmethod
    def through(
        cls,
        start: float,
        position: np.ndarray,
        velocity: np.ndarray,
        times: np.ndarray,
        knots: np.ndarray,
    ) -> Plan:
        """From where the arm is and how fast, through knots ``[K, J]`` at their times ``[K]``.

        The cubic spline through them: position, velocity and acceleration are continuous, for arms
        trip over jumps in them. A controller that interpolates positions and velocities by cubics
        of its own, as ROS's joint_trajectory_controller does, runs along the same one. On the way
        to the last knot the acceleration is constant.
        """
        t = np.concatenate([[start], times])
        q = np.concatenate([position[None], knots])
        h = np.diff(t)
        slope = np.diff(q, axis=0) / h[:, None]
        count = len(t)
        system, aim = np.zeros((count, count)), np.zeros_like(q)
        system[0, 0], aim[0] = 1, velocity
        for i in range(1, count - 1):  # accelerations meet
            system[i, i - 1 : i + 2] = h[i], 2 * (h[i - 1] + h[i]), h[i - 1]
            aim[i] = 3 * (h[i] * slope[i - 1] + h[i - 1] * slope[i])
        system[-1, -2:], aim[-1] = 1, 2 * slope[-1]
        return cls(t, q, np.linalg.solve(system, aim))

    @property
    def end(self) -> float:
        return float(self.times[-1])

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity ``[J]``; before the beginning and after the end it stands still."""
        if time <= self.times[0]:
            return self.positions[0], self.velocities[0]
        if time >= self.times[-1]:
            return self.positions[-1], np.zeros_like(self.positions[-1])
        i = int(np.searchsorted(self.times, time, side="right")) - 1
        h = self.times[i + 1] - self.times[i]
        s = (time - self.times[i]) / h
        p, q = self.positions[i], self.positions[i + 1]
        u, v = h * self.velocities[i], h * self.velocities[i + 1]
        position = (
            (1 + 2 * s) * (1 - s) ** 2 * p
            + s * (1 - s) ** 2 * u
            + s**2 * (3 - 2 * s) * q
            - s**2 * (1 - s) * v
        )
        slope = (
            6 * s * (s - 1) * p
            + (1 - s) * (1 - 3 * s) * u
            - 6 * s * (s - 1) * q
            + s * (3 * s - 2) * v
        )
        return position, slope / h


def eased(share: float) -> float:
    """A share of 0 to 1, with speed and acceleration 0 at both ends: how motion is blended in."""
    s = min(max(share, 0.0), 1.0)
    return s**3 * (10 - 15 * s + 6 * s**2)


def ending_at_rest(
    now: float,
    begin: tuple[float, np.ndarray, np.ndarray],
    points: list[tuple[float, Filtered]],
    end: SafetyFilter,
) -> Trajectory:
    """From where the arm will be, through points, braked to rest.

    The arm is given some time to join in: were it shorter, the few milliseconds by which a message
    is earlier or later than the one before would be made up for by a jolt.

    Velocities are those of a curve through the points: a point's difference to the one before is
    half a period behind it, and cubics would swing about it.

    Args:
        now: the time that the trajectory's times count from.
        begin: when and where it begins, and the filter's velocity there.
        points: ``(time, what the filter lets through)`` after that, at controller rate.
        end: the filter after them; it is used up.
    """
    at, position, velocity = begin
    points = list(points)
    while not end.at_rest:
        points.append(((points[-1][0] if points else at) + end.period_s, end.brake()))
    speeds = np.stack([velocity, *(p.velocity for _, p in points), np.zeros_like(velocity)])
    velocities = (speeds[:-1] + speeds[1:]) / 2
    velocities[-1] = 0
    return Trajectory(
        np.array([at, *(t for t, _ in points)]) - now,
        np.stack([position, *(p.position for _, p in points)]),
        velocities,
        now,
    )
