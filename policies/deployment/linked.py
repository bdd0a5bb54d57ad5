"""An arm that somebody else talks to, as the run-time knows arms and the filter knows limits.

Whoever talks to arms (`envs.ros`) is not imported here: what is needed of theirs is stated as
protocols, which their classes fit as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..safety import JointLimits
from .arm import LinkError, Measured, Reading, Trajectory


class Arrived(Protocol):
    """See `policies.deployment.arm.Measured`."""

    @property
    def value(self) -> np.ndarray: ...
    @property
    def arrival(self) -> float: ...
    @property
    def stamp(self) -> float | None: ...
    @property
    def sequence(self) -> int: ...


class Newest(Protocol):
    """See `policies.deployment.arm.Reading`."""

    @property
    def joints(self) -> Arrived | None: ...
    @property
    def images(self) -> Mapping[str, Arrived]: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def problem(self) -> str: ...


class Link(Protocol):
    """Somebody else's arm; see `policies.deployment.arm.Arm`."""

    @property
    def axes(self) -> tuple[str, ...]: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def generation(self) -> int: ...
    def read(self) -> Newest: ...
    def send(
        self,
        times: np.ndarray,
        positions: np.ndarray,
        velocities: np.ndarray,
        generation: int,
        start: float | None = None,
    ) -> None: ...


class LinkedArm:
    """Somebody else's arm as an `Arm`.

    Args:
        arm: theirs.
        failure: what its `send` raises where nothing was sent.
        seen: called with everything that is read.
    """

    def __init__(
        self, arm: Link, failure: type[Exception], seen: Callable[[Any], None] | None = None
    ) -> None:
        self._arm, self._failure, self._seen = arm, failure, seen
        self.axes, self.cameras = arm.axes, arm.cameras

    @property
    def generation(self) -> int:
        return self._arm.generation

    def read(self) -> Reading:
        found = self._arm.read()
        if self._seen is not None:
            self._seen(found)
        return Reading(
            None if found.joints is None else _measured(found.joints),
            {name: _measured(image) for name, image in found.images.items()},
            found.stopped,
            found.problem,
        )

    def send(self, trajectory: Trajectory, generation: int) -> None:
        t = trajectory
        try:
            self._arm.send(t.times, t.positions, t.velocities, generation, t.start)
        except self._failure as error:
            raise LinkError(str(error)) from error


def _measured(found: Arrived) -> Measured:
    return Measured(found.value, found.arrival, found.stamp, found.sequence)


class Joints(Protocol):
    """What a configuration says of the joints."""

    @property
    def names(self) -> tuple[str, ...]: ...
    def array(self, what: str) -> np.ndarray: ...


class Stated(Protocol):
    """What a robot says of itself: joint -> low, high, velocity; infinite where it is silent."""

    @property
    def limits(self) -> Mapping[str, tuple[float, float, float]]: ...


def joint_limits(config: Joints, stated: Stated | None) -> JointLimits:
    """What the joints may do: the configuration, tightened by what the robot states.

    Raises:
        ValueError: ranges that do not meet.
    """
    names = config.names
    limits = JointLimits(
        names, *(config.array(n) for n in ("low", "high", "velocity", "acceleration", "jerk"))
    )
    if stated is None:
        return limits
    low, high, velocity = np.array([stated.limits[n] for n in names]).T
    unknown = np.full(len(names), np.inf)
    return limits.tightened(JointLimits(names, low, high, velocity, unknown, unknown))
