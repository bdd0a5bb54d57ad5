"""robomimic's layout, which MimicGen, LIBERO and RoboCasa use too: many episodes a file.

``data/demo_N/{actions, obs/<key>, rewards, dones, states}``, ``data.attrs["env_args"]`` (JSON: the
simulated environment and its controller) and ``mask/<name>``, lists of demos.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from .file import natural
from .layout import Actions, Layout, json_attribute

# Joints, gripper and hand, not what the robot cannot feel ("object"): robomimic's names, LIBERO's.
STATE = (
    r"(robot\d+_)?(.*_)?joint_(pos|states)",
    r"(robot\d+_)?(.*_)?eef_pos|ee_pos",
    r"(robot\d+_)?(.*_)?eef_quat|ee_ori",
    r"(robot\d+_)?(.*_)?gripper_(qpos|states)",
)
PICTURE = re.compile(r"(.+)_(image|rgb)|(image|rgb)")
AXES = {"pos": "xyz", "ori": "xyz", "quat": "xyzw"}  # robosuite's quaternions end with w
OSC_POSE = ("dx", "dy", "dz", "rx", "ry", "rz", "gripper")


class Robomimic(Layout):
    name = "robomimic"
    looks = "data/demo_0/actions, data/demo_0/obs/<key>, data/demo_1/..."
    observations = "obs"
    action = "actions"
    no_images = (
        "robomimic's dataset_states_to_obs.py renders them into a new file "
        "(--camera_names agentview robot0_eye_in_hand)"
    )

    def fits(self, file: h5py.File) -> bool:
        data = file.get("data")
        return isinstance(data, h5py.Group) and any(
            isinstance(data.get(name), h5py.Group) and "actions" in data[name] for name in data
        )

    def groups(self, file: h5py.File) -> list[str]:
        data = file["data"]
        groups = [n for n in data if isinstance(data.get(n), h5py.Group)]
        return [f"data/{name}" for name in sorted(groups, key=natural)]

    def images(self, episode: h5py.Group) -> dict[str, str]:
        observations = episode.get("obs", {})
        pictures = {}
        for key in sorted(observations):
            item = observations[key]
            if not isinstance(item, h5py.Dataset):
                continue
            if match := PICTURE.fullmatch(key):
                name = match[1] if match[1] and match[1] not in pictures else key
                pictures[name] = f"obs/{key}"
            elif item.dtype == np.uint8 and item.ndim == 4 and item.shape[-1] == 3:
                pictures[key] = f"obs/{key}"
        return pictures

    def default_state(self, keys: Sequence[str]) -> list[str]:
        return [key for form in STATE for key in sorted(keys) if re.fullmatch(form, key)]

    def state_names(self, key: str, width: int) -> list[str]:
        axes = AXES.get(key.rpartition("_")[2], "")
        return [f"{key}_{axes[i] if len(axes) == width else i}" for i in range(width)]

    def actions(self, file: h5py.File, widths: Mapping[str, int]) -> Actions:
        names = tuple(f"{key}_{i}" for key, width in widths.items() for i in range(width))
        if list(widths) != [self.action]:
            return Actions("unknown", f"env_args does not describe {', '.join(widths)}", names)
        controllers = list(_arms(_env_kwargs(file).get("controller_configs")))
        types = sorted({str(controller["type"]) for controller in controllers})
        told = (
            f"env_args: controller {', '.join(types)}" if types else "env_args names no controller"
        )
        if {_is_delta(controller) for controller in controllers} != {True}:
            return Actions("unknown", told, names)
        arms, rest = divmod(len(names), len(OSC_POSE))
        if types == ["OSC_POSE"] and not rest:
            names = tuple(f"robot{i}_{name}" for i in range(arms) for name in OSC_POSE)
        return Actions("delta", f"{told} takes changes", names)

    def success(self, episode: h5py.Group) -> np.ndarray | None:
        """From sparse rewards: 1 where the task is solved, else 0. Shaped ones do not tell."""
        rewards = episode.get("rewards")
        shaped = _env_kwargs(episode.file).get("reward_shaping")
        if not isinstance(rewards, h5py.Dataset) or rewards.ndim != 1 or shaped:
            return None
        values = rewards[()]
        return values == 1 if np.isin(values, (0, 1)).all() else None

    def task(self, file: h5py.File, episode: h5py.Group) -> str:
        """RoboCasa's sentence of the episode, else LIBERO's of the file."""
        said = json_attribute(episode, "ep_meta").get("lang")
        said = said or json_attribute(file["data"], "problem_info").get("language_instruction")
        return " ".join(said) if isinstance(said, list) else str(said or "")

    def masks(self, file: h5py.File) -> dict[str, list[str]]:
        masks = file.get("mask")
        if not isinstance(masks, h5py.Group):
            return {}
        return {
            name: [n.decode() if isinstance(n, bytes) else str(n) for n in masks[name][()]]
            for name in masks
            if isinstance(masks[name], h5py.Dataset)
        }

    def rate(self, file: h5py.File) -> float | None:
        rate = _env_kwargs(file).get("control_freq")
        return float(rate) if isinstance(rate, (int, float)) else None

    def facts(self, file: h5py.File) -> dict[str, Any]:
        arguments, kwargs = json_attribute(file["data"], "env_args"), _env_kwargs(file)
        robots = kwargs.get("robots") or []
        robots = [robots] if isinstance(robots, str) else robots
        facts = {k: arguments[k] for k in ("env_name", "env_version") if k in arguments}
        return facts | ({"robot_type": "+".join(map(str, robots))} if robots else {})


def _env_kwargs(file: h5py.File) -> dict[str, Any]:
    kwargs = json_attribute(file["data"], "env_args").get("env_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _arms(node: Any) -> Iterator[dict[str, Any]]:
    """The controllers of arms in robosuite's description: one dict, a list, or parts of a body."""
    if isinstance(node, list):
        for part in node:
            yield from _arms(part)
    elif isinstance(node, dict) and "body_parts" in node:
        parts = node["body_parts"]
        parts = parts.get("arms", parts) if isinstance(parts, dict) else {}
        for name in ("right", "left"):
            yield from _arms(parts.get(name))
    elif isinstance(node, dict) and "type" in node:
        yield node


def _is_delta(controller: dict[str, Any]) -> bool | None:
    """Whether a controller takes changes; None where the file does not say.

    ``control_delta`` until robosuite 1.4, ``input_type`` since; operational-space controllers take
    changes unless told otherwise.
    """
    if "input_type" in controller:
        return controller["input_type"] == "delta"
    if isinstance(controller.get("control_delta"), bool):
        return controller["control_delta"]
    return True if str(controller["type"]).startswith("OSC_") else None
