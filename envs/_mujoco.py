"""The one place that imports MuJoCo: after its rendering backend has been chosen."""

from .rendering import choose_backend

choose_backend()  # MuJoCo reads MUJOCO_GL only once, while it is imported

import mujoco  # noqa: E402

__all__ = ["mujoco"]
