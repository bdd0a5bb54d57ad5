"""The arm as an MJCF model: Franka Panda kinematics, drawn with a handful of primitives.

The joint frames are those of the Panda (modified Denavit-Hartenberg parameters of Franka's
documentation: d1 = 0.333, d3 = 0.316, a4 = -a5 = 0.0825, d5 = 0.384, a7 = 0.088, flange 0.107 m),
its joint limits and torque limits too, so joint angles mean what they mean on the real arm. The
shapes are capsules and boxes: rendering on a CPU costs vertices, not pixels, and meshes would make
a frame a hundred times dearer.

World frame: origin at the base, on the table top; x forward, y to the arm's left, z up; metres,
radians, kilograms, seconds.
"""

from __future__ import annotations

import math

import numpy as np

ARM_JOINTS = tuple(f"joint_{i}" for i in range(1, 8))
FINGER_JOINTS = ("finger_left", "finger_right")
TIP_SITE = "tip"
"""The point between the fingertips; its z axis points out of the hand, y along the opening."""

JOINT_LOW = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
JOINT_HIGH = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
GRIPPER_MAX = 0.08
"""Largest distance between the fingers, in metres."""

HOME = np.array([0.0, -0.35, 0.0, -2.6, 0.0, 2.25, math.pi / 4])
"""A comfortable posture over the table, hand pointing down, fingers opening along y."""

TIMESTEP = 0.005

# Collision classes: the arm meets the world, the world meets itself, the arm ignores itself.
_ARM = 'contype="1" conaffinity="2"'
WORLD = 'contype="2" conaffinity="3"'
"""Attributes of a geom that the arm (and other world geoms) can touch."""
VISUAL = 'contype="0" conaffinity="0"'
"""Attributes of a geom that is only seen."""

_ARM_COLOUR = "0.24 0.25 0.29 1"
_HAND_COLOUR = "0.97 0.97 0.97 1"
_FINGER_COLOUR = "1.0 0.78 0.05 1"
_TABLE_COLOUR = "0.72 0.70 0.66 1"

# Per joint: stiffness [N m / rad], damping [N m s / rad], torque limit [N m]. Stiffness over
# damping is 25 / s throughout: all joints lag alike (40 ms), so a straight path stays straight.
_GAINS = ((2500, 100, 87),) * 2 + ((2000, 80, 87),) * 2 + ((600, 24, 12),) * 3
_FINGER_GAINS = (1000, 30, 40)


def _body(name: str, frame: str, mass: float, inertia: float, inside: str) -> str:
    """One link: its joint turns about the z axis of `frame`."""
    index = int(name[-1]) - 1
    low, high = JOINT_LOW[index], JOINT_HIGH[index]
    return f"""
    <body name="{name}" {frame} gravcomp="1">
      <inertial pos="0 0 0" mass="{mass}" diaginertia="{inertia} {inertia} {inertia}"/>
      <joint name="joint_{name[-1]}" axis="0 0 1" range="{low} {high}" armature="0.1"/>
      {inside}
    </body>"""


def _capsule(start: str, end: str, radius: float, colour: str = _ARM_COLOUR) -> str:
    return f'<geom type="capsule" fromto="{start} {end}" size="{radius}" rgba="{colour}" {_ARM}/>'


def _finger(name: str, side: int) -> str:
    """A finger that slides along y, away from the other; `side` is +1 or -1."""
    return f"""
    <body name="{name}" pos="0 0 0.0584" gravcomp="1">
      <inertial pos="0 0 0.025" mass="0.05" diaginertia="2e-5 2e-5 2e-5"/>
      <joint name="{name}" type="slide" axis="0 {side} 0" range="0 {GRIPPER_MAX / 2}"
             armature="0.2"/>
      <geom type="box" pos="0 {side * 0.008} 0.0245" size="0.011 0.008 0.0245"
            friction="1.2 0.01 0.0001" rgba="{_FINGER_COLOUR}" {_ARM}/>
    </body>"""


def _arm() -> str:
    """The arm's bodies, nested from the fingers (innermost) to the base."""
    hand = f"""
    <body name="hand" pos="0 0 0.107" quat="0.9238795 0 0 -0.3826834" gravcomp="1">
      <inertial pos="0 0 0.03" mass="0.7" diaginertia="0.002 0.002 0.002"/>
      <geom type="box" pos="0 0 0.03" size="0.024 0.045 0.032" rgba="{_HAND_COLOUR}" {_ARM}/>
      <site name="{TIP_SITE}" pos="0 0 0.1034" size="0.004" group="5"/>
      <camera name="wrist" pos="0.075 0 0.03" xyaxes="0 1 0 0.940 0 0.342" fovy="75"/>
      {_finger("finger_left", 1)}{_finger("finger_right", -1)}
    </body>"""
    turn, back = 'quat="1 1 0 0"', 'quat="1 -1 0 0"'
    link7 = _body("link7", f'pos="0.088 0 0" {turn}', 0.7, 0.004, hand)
    wrist = _capsule("0 0 0", "0.088 0 0", 0.042) + _capsule("0.088 0 0", "0.088 -0.09 0", 0.04)
    link6 = _body("link6", turn, 1.7, 0.01, wrist + link7)
    forearm = _capsule("0 0 -0.29", "0 0 0", 0.05)
    link5 = _body("link5", f'pos="-0.0825 0.384 0" {back}', 2.5, 0.03, forearm + link6)
    elbow = _capsule("0 0 0", "-0.0825 0.09 0", 0.055)
    link4 = _body("link4", f'pos="0.0825 0 0" {turn}', 2.5, 0.03, elbow + link5)
    shoulder = _capsule("0 0 0", "0.0825 0 0", 0.055)
    link3 = _body("link3", f'pos="0 -0.316 0" {turn}', 2.5, 0.03, shoulder + link4)
    upper = _capsule("0 0 0", "0 -0.316 0", 0.06)
    link2 = _body("link2", back, 3.0, 0.04, upper + link3)
    column = _capsule("0 0 -0.15", "0 0 0", 0.065)
    link1 = _body("link1", 'pos="0 0 0.333"', 3.0, 0.03, column + link2)
    base = f'<geom type="cylinder" pos="0 0 0.075" size="0.085 0.075" rgba="{_ARM_COLOUR}" {_ARM}/>'
    return f'<body name="base">{base}{link1}</body>'


def _actuators() -> str:
    lines = []
    limits = list(zip(JOINT_LOW, JOINT_HIGH, strict=True)) + [(0.0, GRIPPER_MAX / 2)] * 2
    gains = _GAINS + (_FINGER_GAINS,) * 2
    for joint, (low, high), (kp, kv, force) in zip(
        ARM_JOINTS + FINGER_JOINTS, limits, gains, strict=True
    ):
        lines.append(
            f'<position name="{joint}" joint="{joint}" kp="{kp}" kv="{kv}" '
            f'ctrlrange="{low} {high}" forcerange="-{force} {force}"/>'
        )
    return "\n".join(lines)


def front_camera(look_at: tuple[float, float, float], distance: float, elevation: float,
                 width: float) -> str:  # fmt: skip
    """A camera opposite the arm that looks down at the table, as MJCF.

    Far away with a narrow field of view, so that table coordinates map almost linearly to pixels.

    Args:
        look_at: the point at the picture's centre, in metres.
        distance: from that point, in metres.
        elevation: above the horizon, in degrees; 90 is straight down.
        width: metres of the world that a square picture spans at `look_at`.
    """
    angle = math.radians(elevation)
    x = look_at[0] + distance * math.cos(angle)
    z = look_at[2] + distance * math.sin(angle)
    fovy = math.degrees(2 * math.atan(width / 2 / distance))
    return (
        f'<camera name="front" pos="{x} {look_at[1]} {z}" fovy="{fovy}" '
        f'xyaxes="0 1 0 {-math.sin(angle)} 0 {math.cos(angle)}"/>'
    )


def arm_mjcf(scene: str) -> str:
    """The whole model as MJCF text.

    Args:
        scene: MJCF elements of the world beside arm, table and light: what a task adds, its
            ``front`` camera included. Things that move from reset to reset are mocap bodies, whose
            poses belong to the simulator's state.
    """
    return f"""
    <mujoco model="selfflow_arm">
      <compiler angle="radian" autolimits="true"/>
      <option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic"/>
      <visual>
        <quality offsamples="0" shadowsize="0" numslices="16" numstacks="8" numquads="1"/>
        <headlight ambient="0.45 0.45 0.45" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
        <map znear="0.01" zfar="10"/>
      </visual>
      <statistic extent="1" center="0.5 0 0.1"/>
      <worldbody>
        <light directional="true" pos="0.8 0.5 2" dir="-0.3 -0.3 -1" castshadow="false"
               diffuse="0.5 0.5 0.5" specular="0 0 0"/>
        <geom name="table" type="box" pos="0.4 0 -0.02" size="0.9 0.9 0.02"
              rgba="{_TABLE_COLOUR}" {WORLD}/>
        {_arm()}
        {scene}
      </worldbody>
      <actuator>{_actuators()}</actuator>
    </mujoco>"""
