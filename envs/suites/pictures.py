"""Cheap pictures of somebody else's MuJoCo model, from cameras of our own.

A software renderer spends its time on shadows, reflections and multisampling, none of which these
tasks need. Where a model's own cameras stand too far away to show an object at 64 px, a `View`
looks at the table from nearer: a free camera, so that the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .._mujoco import mujoco


@dataclass(frozen=True)
class View:
    """A camera in front of the scene.

    Attributes:
        look_at: the point in the middle of the picture, metres.
        distance: from there, metres.
        azimuth: degrees, of the direction in which it looks: 0 is along x, 90 along y.
        elevation: degrees, negative looks down.
        fovy: vertical field of view, degrees; narrow and far away distorts less.
    """

    look_at: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float
    fovy: float = 20.0


class Pictures:
    """Renders a model's state; the renderers are made late, in the process that draws.

    Args:
        model, data: of the simulation.
        cameras: name -> a `View`, or the name of one of the model's own cameras.
    """

    def __init__(
        self, model: mujoco.MjModel, data: mujoco.MjData, cameras: Mapping[str, View | str]
    ):
        self.model, self.data, self.cameras = model, data, dict(cameras)
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}

    def draw(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        """One picture, uint8 ``[H, W, 3]``, upright."""
        renderer = self._renderers.get(size)
        if renderer is None:
            # The off-screen buffer is cleared as a whole: keep it as small as the picture.
            self.model.vis.global_.offheight, self.model.vis.global_.offwidth = size
            self.model.vis.quality.offsamples = 0
            renderer = mujoco.Renderer(self.model, *size)
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG"):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
            self._renderers[size] = renderer
        view = self.cameras[camera]
        if isinstance(view, str):
            renderer.update_scene(self.data, view)
        else:
            free = mujoco.MjvCamera()
            free.lookat[:] = view.look_at
            free.distance, free.azimuth = view.distance, view.azimuth
            free.elevation = view.elevation
            self.model.vis.global_.fovy = view.fovy
            renderer.update_scene(self.data, free)
        return renderer.render()

    def close(self) -> None:
        """Free the OpenGL contexts; drawing again makes new ones."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
