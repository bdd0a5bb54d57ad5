"""The layout of ALOHA and ACT: one file an episode.

``/observations/{qpos, qvel, effort}``, ``/observations/images/<camera>``, ``/action``. Pictures are
uint8 ``[T, H, W, 3]``, or (``attrs["compress"]``) one JPEG a frame as bytes, padded with zeros to
``[T, N]``. How long each was stands in ``/compress_len``, in an order of cameras that the file does
not tell; a JPEG marks its own end, so it is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py

from .layout import Actions, Layout

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
BIMANUAL = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
ROBOTS = {len(BIMANUAL): BIMANUAL, len(JOINTS): JOINTS}
BASE = ("base_linear", "base_angular")
UNITS = {"qvel": ".vel", "effort": ".effort"}


class Aloha(Layout):
    name = "aloha"
    looks = "one file an episode: action, observations/qpos, observations/images/<camera>"
    observations = "observations"
    action = "action"
    no_images = "record with cameras"

    def fits(self, file: h5py.File) -> bool:
        return isinstance(file.get("action"), h5py.Dataset) and isinstance(
            file.get("observations/qpos"), h5py.Dataset
        )

    def groups(self, file: h5py.File) -> list[str]:
        return ["/"]

    def images(self, episode: h5py.Group) -> dict[str, str]:
        images = episode.get("observations/images", {})
        return {
            name: f"observations/images/{name}"
            for name in sorted(images)
            if isinstance(images[name], h5py.Dataset) and "depth" not in name
        }

    def default_state(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key == "qpos"]

    def state_names(self, key: str, width: int) -> list[str]:
        return _names(key, width, "qpos")

    def actions(self, file: h5py.File, widths: Mapping[str, int]) -> Actions:
        names = [n for key, width in widths.items() for n in _names(key, width, "action")]
        if widths.get(self.action) in ROBOTS:
            return Actions("absolute", "the leading arms' positions", tuple(names))
        return Actions("unknown", "not the joints of one or two ViperX arms", tuple(names))

    def facts(self, file: h5py.File) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if "sim" in file.attrs:
            facts["sim"] = bool(file.attrs["sim"])
        if file[self.action].shape[-1] in ROBOTS:
            facts["robot_type"] = "aloha"
        return facts


def _names(key: str, width: int, positions: str) -> list[str]:
    """Names of joints: equal for positions and actions, so that targets are found by name."""
    if key == "base_action" and width == len(BASE):
        return list(BASE)
    if key not in (positions, *UNITS):
        return [f"{key}_{i}" for i in range(width)]
    joints = ROBOTS.get(width) or [f"joint_{i}" for i in range(width)]
    return [f"{joint}{UNITS.get(key, '')}" for joint in joints]
