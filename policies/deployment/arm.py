"""What an arm is to the run-time: something that is read, and sent short trajectories.

Times are seconds. "Monotonic" ones are of `time.monotonic` on this machine and are what ages are
measured by; "stamps" are of the clock of whoever measured, and say only how far apart two
measurements of the robot are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from worldmodel.types import Spec, SpecMismatchError


class LinkError(RuntimeError):
    """Nothing can be sent: the link is down, or it is another one than the arm was armed on."""


@dataclass(frozen=True)
class Measured:
    """One measurement.

    Attributes:
        value: joint positions ``[J]``, or a picture uint8 ``[H, W, 3]``.
        arrival: monotonic time at which it arrived.
        stamp: when it was measured, by the robot's clock; None where it does not say.
        sequence: counts arrivals of this source.
    """

    value: np.ndarray
    arrival: float
    stamp: float | None = None
    sequence: int = 0


@dataclass(frozen=True)
class Reading:
    """The newest of everything; what has never arrived is missing.

    Attributes:
        joints: positions ``[J]`` in the order of `Arm.axes`, radians (a gripper: metres).
        images: by camera.
        stopped: the emergency stop is pressed.
        problem: what the arm or its link complains about; "" for nothing.
    """

    joints: Measured | None = None
    images: Mapping[str, Measured] = field(default_factory=dict)
    stopped: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Trajectory:
    """What is sent: the next fraction of a second, which ends at rest.

    An arm whose link dies finishes what it has accepted; so every trajectory ends standing still.

    Attributes:
        times: seconds from `start` ``[N]``, ascending, the first one above 0.
        positions, velocities: ``[N, J]``.
        start: monotonic time of the decision. An arm that can be told when a trajectory begins is
            told this, so that what it takes for a message to arrive does not shift it.
    """

    times: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    start: float


class Arm(Protocol):
    """An arm and its cameras.

    Attributes:
        axes: names of what is commanded, in order, as a checkpoint's ``action_names`` call them.
        cameras: names of what it sees.
    """

    axes: tuple[str, ...]
    cameras: tuple[str, ...]

    @property
    def generation(self) -> int:
        """Which connection this is; 0 while there is none. A new connection is a new number."""

    def read(self) -> Reading:
        """The newest of everything. Never blocks."""

    def send(self, trajectory: Trajectory, generation: int) -> None:
        """Replace what the arm is doing. Never blocks, never queues, never sends later.

        Raises:
            LinkError: it was not sent.
        """


def require_fit(spec: Spec, axes: tuple[str, ...], cameras: tuple[str, ...]) -> None:
    """Refuse an arm that is not what a checkpoint was trained for.

    Args:
        spec: the checkpoint's.
        axes, cameras: of the arm; see `Arm`.

    Raises:
        worldmodel.types.SpecMismatchError: says what differs.
    """
    for name, ours in (("action_names", spec.action_names), ("state_names", spec.state_names)):
        if tuple(ours) != tuple(axes):
            raise SpecMismatchError(
                f"the arm does not fit the checkpoint: {name} is {list(axes)}, expected "
                f"{list(ours)}"
            )
    if missing := [c for c in spec.cameras if c not in cameras]:
        raise SpecMismatchError(
            f"the arm does not fit the checkpoint: it has no camera {missing}, it has "
            f"{list(cameras)}"
        )
    if spec.action_kind not in ("absolute", "unknown"):
        raise SpecMismatchError(
            f"the arm takes absolute targets; the checkpoint's actions are {spec.action_kind}"
        )
