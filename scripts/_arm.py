"""Joins an arm behind ROS (`envs.ros`) to the run-time that drives it (`policies.deployment`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from envs.ros.arm import ArmState, RosArm
from envs.ros.errors import BridgeError
from envs.ros.robot import Description, RobotConfig, tip_of
from policies.deployment.linked import LinkedArm, joint_limits
from policies.safety import Workspace

__all__ = ["BridgedArm", "joint_limits", "workspace"]


class BridgedArm(LinkedArm):
    """A `RosArm` as the run-time knows arms; see `policies.deployment.arm.Arm`.

    Args:
        seen: called with everything that is read, such as `envs.ros.recording.RunRecorder.observe`.
    """

    def __init__(self, arm: RosArm, seen: Callable[[ArmState], None] | None = None) -> None:
        super().__init__(arm, BridgeError, seen)
        self.arm = arm


def workspace(config: RobotConfig, description: Description | None) -> Workspace | None:
    """The box that the tip stays in; None where the configuration names none.

    Raises:
        ValueError: there is a box, and no description to compute the tip from.
    """
    tip, box = tip_of(config, description), config.workspace
    if tip is None:
        return None
    return Workspace(np.array(box.low), np.array(box.high), tip, box.margin)
