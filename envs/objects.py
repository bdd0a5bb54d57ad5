"""Things that the arm can move: boxes that lie free on the table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._mujoco import mujoco
from .arm import WORLD


def box_mjcf(
    name: str, half_size: Sequence[float], mass: float, colour: str, extra: str = ""
) -> str:
    """MJCF of a free box, to be placed by `FreeBody.place` at every reset.

    Args:
        name: of the body, of its geom and of its joint.
        half_size: ``[3]`` in metres, half of each edge.
        mass: in kilograms.
        colour: ``"r g b a"``, each in [0, 1].
        extra: further MJCF elements inside the body, such as a mark to be seen.
    """
    size = " ".join(str(s) for s in half_size)
    # Four contact dimensions: friction against turning holds a box between two fingertips.
    return f"""
        <body name="{name}" pos="0 0 {half_size[2]}">
          <freejoint name="{name}"/>
          <geom name="{name}" type="box" size="{size}" mass="{mass}" rgba="{colour}" condim="4"
                friction="0.8 0.01 0.0001" {WORLD}/>
          {extra}
        </body>"""


class FreeBody:
    """Pose and velocity of a free body in a simulation, by its name.

    Args:
        model, data: the simulation; `data` is read and written at every call.
        name: of the body and of its free joint, as `box_mjcf` gives both.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, name: str):
        joint = model.joint(name)
        self._data = data
        self._body = model.body(name).id
        self._qpos = slice(joint.qposadr[0], joint.qposadr[0] + 7)
        self._qvel = slice(joint.dofadr[0], joint.dofadr[0] + 6)
        self.geom: int = model.geom(name).id

    def place(self, x: float, y: float, z: float, yaw: float) -> None:
        """Put it there, at rest: metres, and radians about the vertical."""
        quaternion = [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]
        self._data.qpos[self._qpos] = [x, y, z, *quaternion]
        self._data.qvel[self._qvel] = 0.0

    @property
    def position(self) -> np.ndarray:
        """``[3]`` in metres; a view, not a copy."""
        return self._data.xpos[self._body]

    @property
    def yaw(self) -> float:
        """Angle of its x axis about the vertical, in radians."""
        rotation = self._data.xmat[self._body]
        return math.atan2(rotation[3], rotation[0])

    @property
    def upright(self) -> float:
        """Cosine of the angle between its z axis and the vertical: 1 as it was placed."""
        return float(self._data.xmat[self._body][8])

    @property
    def speed(self) -> float:
        """Of its centre, in m/s."""
        return float(np.linalg.norm(self._data.qvel[self._qvel][:3]))


def angle_between(a: float, b: float, period: float = 2 * math.pi) -> float:
    """The angle ``a - b`` in radians, brought into ``[-period / 2, period / 2)``."""
    return (a - b + period / 2) % period - period / 2
