"""Inverse kinematics and minimum-jerk paths: what a scripted expert is made of."""

from __future__ import annotations

import math

import numpy as np

from ._mujoco import mujoco
from .arm import ARM_JOINTS, HOME, JOINT_HIGH, JOINT_LOW, TIP_SITE

HAND_DOWN = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])
"""Rotation of the tip, ``[3, 3]``: pointing down, fingers opening along y."""


class UnreachableError(ValueError):
    """Inverse kinematics found no joint angles for a pose."""


class InverseKinematics:
    """Damped least squares for the tip of the arm, with a posture to prefer among solutions.

    Works on its own copy of the simulator's data, so that asking changes nothing in the world.
    """

    def __init__(self, model: mujoco.MjModel, damping: float = 1e-2, posture_gain: float = 0.1):
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(TIP_SITE).id
        self._qpos = np.array([model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self._dofs = np.array([model.joint(name).dofadr[0] for name in ARM_JOINTS])
        self._damping = damping**2 * np.eye(6)
        self._posture_gain = posture_gain
        self._jacobian = np.zeros((6, model.nv))

    def tip(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Forward kinematics: joints ``[7]`` -> the tip's position ``[3]``, rotation ``[3, 3]``."""
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        return self._data.site_xpos[self._site].copy(), rotation.copy()

    def solve(
        self,
        position: np.ndarray,
        start: np.ndarray,
        rotation: np.ndarray = HAND_DOWN,
        *,
        iterations: int = 100,
        tolerance: float = 1e-4,
    ) -> np.ndarray:
        """Joint angles that bring the tip to a pose.

        Args:
            position: ``[3]`` in metres, world frame.
            start: ``[7]`` joint angles in radians to search from; the solution stays close.
            rotation: ``[3, 3]`` of the tip.
            tolerance: largest error accepted, in metres and in radians.

        Returns:
            ``[7]`` joint angles within the limits.

        Raises:
            UnreachableError: the pose is outside the workspace.
        """
        joints = np.clip(start, JOINT_LOW, JOINT_HIGH)
        error = np.zeros(6)
        for _ in range(iterations):
            tip, current = self.tip(joints)
            error[:3] = position - tip
            error[3:] = _rotation_vector(rotation @ current.T)
            if np.abs(error).max() < tolerance:
                return joints
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(
                self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._site
            )
            jacobian = self._jacobian[:, self._dofs]
            # Pull towards the preferred posture, in the null space only.
            posture = self._posture_gain * (HOME - joints)
            inverse = np.linalg.solve(jacobian @ jacobian.T + self._damping, jacobian).T
            step = posture + inverse @ (error - jacobian @ posture)
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), JOINT_LOW, JOINT_HIGH)
        raise UnreachableError(
            f"no joint angles bring the tip to {np.round(position, 3).tolist()} m: "
            f"off by {np.linalg.norm(error[:3]):.3f} m and {np.linalg.norm(error[3:]):.3f} rad "
            f"after {iterations} iterations"
        )

    @staticmethod
    def towards_down(rotation: np.ndarray, fraction: float) -> np.ndarray:
        """From `rotation` (at fraction 0) along the shortest turn to `HAND_DOWN` (at 1)."""
        turn = np.zeros(4)
        mujoco.mju_mat2Quat(turn, (HAND_DOWN @ rotation.T).ravel())
        axis_angle = np.zeros(3)
        mujoco.mju_quat2Vel(axis_angle, turn, 1.0)
        angle = np.linalg.norm(axis_angle)
        if angle < 1e-9:
            return HAND_DOWN
        partial = np.zeros(4)
        mujoco.mju_axisAngle2Quat(partial, axis_angle / angle, fraction * angle)
        matrix = np.zeros(9)
        mujoco.mju_quat2Mat(matrix, partial)
        return matrix.reshape(3, 3) @ rotation


def turn_about_vertical(angle: float) -> np.ndarray:
    """The rotation ``[3, 3]`` by `angle` radians about the world's z axis."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def _rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Axis times angle ``[3]`` of a small rotation (first order in the angle: sin, not angle)."""
    return 0.5 * np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )


def minimum_jerk(points: np.ndarray, times: np.ndarray, sample_times: np.ndarray) -> np.ndarray:
    """The smoothest path through points at given times, from rest to rest.

    Of all paths through the points it has the least integral of squared jerk: a quintic per
    segment, joined with continuous derivatives up to the fourth (Flash & Hogan 1985; with more
    than one via point, Todorov & Jordan 1998). Velocity and acceleration vanish at both ends.

    Args:
        points: ``[N, D]``, N >= 2.
        times: ``[N]`` strictly increasing, in seconds.
        sample_times: ``[M]``; before the first and after the last point the path stands still.

    Returns:
        ``[M, D]`` positions.
    """
    points, times = np.asarray(points, float), np.asarray(times, float)
    segments = len(points) - 1
    if segments < 1 or len(times) != len(points) or np.any(np.diff(times) <= 0):
        raise ValueError(
            f"expected at least two points at strictly increasing times, found {len(points)} "
            f"points at times {times.tolist()}"
        )
    durations = np.diff(times)
    equations = np.zeros((6 * segments, 6 * segments))
    values = np.zeros((6 * segments, points.shape[1]))
    row = 0

    def require(terms: list[tuple[int, float, int, float]], value: np.ndarray | float) -> None:
        """One equation: sum of sign * derivative `order` of `segment` at its time t = value."""
        nonlocal row
        for segment, t, order, sign in terms:
            equations[row, 6 * segment : 6 * segment + 6] += sign * _powers(t, order)
        values[row] = value
        row += 1

    last = segments - 1
    for order in (1, 2):
        require([(0, 0.0, order, 1.0)], 0.0)
        require([(last, durations[last], order, 1.0)], 0.0)
    for i in range(segments):
        require([(i, 0.0, 0, 1.0)], points[i])
        require([(i, durations[i], 0, 1.0)], points[i + 1])
    for i in range(last):
        for order in (1, 2, 3, 4):
            require([(i, durations[i], order, 1.0), (i + 1, 0.0, order, -1.0)], 0.0)

    coefficients = np.linalg.solve(equations, values).reshape(segments, 6, -1)
    clamped = np.clip(sample_times, times[0], times[-1])
    segment = np.clip(np.searchsorted(times, clamped, side="right") - 1, 0, last)
    powers = (clamped - times[segment])[:, None] ** np.arange(6)
    return np.einsum("mp,mpd->md", powers, coefficients[segment])


def _powers(t: float, order: int) -> np.ndarray:
    """Derivative `order` of (1, t, ..., t^5), ``[6]``."""
    result = np.zeros(6)
    for power in range(order, 6):
        factor = np.prod(np.arange(power - order + 1, power + 1)) if order else 1.0
        result[power] = factor * t ** (power - order)
    return result
