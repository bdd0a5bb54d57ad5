"""Our arm as URDF: the links, the joints and their limits, as a real arm latches them."""

from __future__ import annotations

import math

import numpy as np

from .._mujoco import mujoco
from ..arm import ARM_JOINTS, GRIPPER_MAX

GRIPPER = "gripper"
"""The joint that stands for the opening between the fingers, in metres."""

JOINT_VELOCITY = np.array([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61])
"""rad/s: the Panda's, as Franka's documentation has them."""
GRIPPER_VELOCITY = 0.1
"""m/s."""
GRIPPER_FORCE = 70.0
"""N."""


def robot_description(model: mujoco.MjModel) -> str:
    """URDF text of the arm in a model of `envs.arm.arm_mjcf`.

    Shapes are left out: what a controller needs are the frames and the limits. The gripper is one
    joint, the opening, which both fingers follow by half.
    """
    lines = ['<robot name="selfflow_panda">', '  <link name="base"/>']
    for number, name in enumerate(ARM_JOINTS):
        joint = model.joint(name)
        body = model.body(int(joint.bodyid[0]))
        low, high = joint.range
        effort = model.actuator(name).forcerange[1]
        lines.append(f'  <link name="{body.name}"/>')
        lines += _joint(
            name,
            "revolute",
            model.body(int(body.parentid[0])).name,
            body.name,
            _origin(body.pos, body.quat),
            "0 0 1",
            f'<limit lower="{low:.9g}" upper="{high:.9g}" effort="{effort:.9g}" '
            f'velocity="{JOINT_VELOCITY[number]:.9g}"/>',
        )
    hand = model.body("hand")
    lines.append('  <link name="hand"/>')
    hand_origin = _origin(hand.pos, hand.quat)
    lines += _joint("hand", "fixed", model.body(int(hand.parentid[0])).name, "hand", hand_origin)
    lines.append('  <link name="opening"/>')
    lines += _joint(
        GRIPPER, "prismatic", "hand", "opening", _origin(np.zeros(3), np.array([1.0, 0, 0, 0])),
        "0 1 0",
        f'<limit lower="0" upper="{GRIPPER_MAX}" effort="{GRIPPER_FORCE:g}" '
        f'velocity="{GRIPPER_VELOCITY:g}"/>',
    )  # fmt: skip
    for side, name in ((1, "finger_left"), (-1, "finger_right")):
        finger = model.body(name)
        lines.append(f'  <link name="{name}"/>')
        lines += _joint(
            name, "prismatic", "hand", name, _origin(finger.pos, finger.quat), f"0 {side} 0",
            f'<limit lower="0" upper="{GRIPPER_MAX / 2}" effort="{GRIPPER_FORCE:g}" '
            f'velocity="{GRIPPER_VELOCITY / 2:g}"/>',
            f'<mimic joint="{GRIPPER}" multiplier="0.5"/>',
        )  # fmt: skip
    return "\n".join([*lines, "</robot>", ""])


def _joint(
    name: str, kind: str, parent: str, child: str, origin: str, axis: str = "", *more: str
) -> list[str]:
    inside = [f'<parent link="{parent}"/>', f'<child link="{child}"/>', origin]
    if axis:
        inside.append(f'<axis xyz="{axis}"/>')
    return [
        f'  <joint name="{name}" type="{kind}">',
        *(f"    {line}" for line in (*inside, *more)),
        "  </joint>",
    ]


def _origin(position: np.ndarray, quaternion: np.ndarray) -> str:
    """A frame in its parent's: URDF wants roll, pitch and yaw about the parent's axes."""
    w, x, y, z = quaternion
    roll = math.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    pitch = math.asin(float(np.clip(2 * (w * y - z * x), -1, 1)))
    yaw = math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    xyz = " ".join(f"{v:.9g}" for v in position)
    return f'<origin xyz="{xyz}" rpy="{roll:.9g} {pitch:.9g} {yaw:.9g}"/>'
