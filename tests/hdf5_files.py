"""Write small HDF5 files in robomimic's and ALOHA's layouts, as those projects write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from tests.datasets import motion

SIZE = (16, 24)
OSC_POSE = {
    "type": "OSC_POSE",
    "input_max": 1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "control_delta": True,
    "interpolation": None,
}
ENV_ARGS: dict[str, Any] = {
    "env_name": "Lift",
    "env_version": "1.4.1",
    "type": 1,
    "env_kwargs": {
        "robots": ["Panda"],
        "controller_configs": OSC_POSE,
        "control_freq": 20,
        "reward_shaping": False,
    },
}


def pictures(rng: np.random.Generator, frames: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Uint8 ``[frames, H, W, 3]``: a gradient that JPEG keeps well, in other colours each frame."""
    height, width = size
    ramp = np.linspace(0, 160, width) + np.linspace(0, 60, height)[:, None]
    colour = rng.uniform(0.2, 1, (frames, 1, 1, 3))
    return (ramp[..., None] * colour).astype(np.uint8)


def write_robomimic(
    path: Path,
    *,
    lengths: Sequence[int] = (12, 9, 14),
    numbers: Sequence[int] | None = None,
    cameras: Sequence[str] = ("agentview_image", "robot0_eye_in_hand_image"),
    env_args: dict[str, Any] | None = None,
    solved: Sequence[bool] | None = None,
    seed: int = 0,
    change: Callable[[h5py.File], None] | None = None,
) -> Path:
    """Write ``data/demo_N`` for every length, with observations as robosuite names them.

    Args:
        numbers: N of each; the file's own order is that of its text: demo_10 before demo_2.
        solved: whether the last two rewards are 1, for each.
        change: called with the file at the end.
    """
    rng = np.random.default_rng(seed)
    numbers = range(len(lengths)) if numbers is None else numbers
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(ENV_ARGS if env_args is None else env_args)
        for i, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = "<mujoco/>"
            states, actions = (v[:length] for v in motion(rng, max(1, length), 7, 7, 20))
            rewards = np.zeros(length)
            rewards[-2:] = solved is None or solved[i]
            demo["actions"] = actions.astype(np.float64)
            demo["states"] = rng.standard_normal((length, 32))
            demo["rewards"] = rewards
            demo["dones"] = (np.arange(length) == length - 1).astype(np.int64)
            for group in ("obs", "next_obs"):
                obs = demo.create_group(group)
                obs["object"] = rng.standard_normal((length, 10))
                obs["robot0_joint_pos"] = states + rng.standard_normal(7) * 1e-9  # not float32
                obs["robot0_joint_pos_cos"] = np.cos(states)
                obs["robot0_joint_vel"] = rng.standard_normal((length, 7))
                obs["robot0_eef_pos"] = rng.standard_normal((length, 3))
                obs["robot0_eef_quat"] = rng.standard_normal((length, 4))
                obs["robot0_gripper_qpos"] = rng.standard_normal((length, 2))
                for camera in cameras:
                    obs[camera] = pictures(rng, length)
        masks = file.create_group("mask")
        names = [f"demo_{n}".encode() for n in numbers]
        masks["train"], masks["valid"] = np.array(names[:-1]), np.array(names[-1:])
        if change is not None:
            change(file)
    return path


def write_aloha(
    folder: Path,
    *,
    lengths: Sequence[int] = (12, 9, 14),
    numbers: Sequence[int] | None = None,
    cameras: Sequence[str] = ("cam_high", "cam_left_wrist"),
    compress: bool = False,
    dimensions: int = 14,
    seed: int = 0,
    change: Callable[[h5py.File], None] | None = None,
) -> Path:
    """Write ``episode_N.hdf5`` for every length, as ALOHA's recorder does.

    Args:
        compress: one JPEG a frame, made by OpenCV of RGB, padded with zeros to one length.
        change: called with every file at its end.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(len(lengths)) if numbers is None else numbers
    for number, length in zip(numbers, lengths, strict=True):
        states, actions = motion(rng, length, dimensions, dimensions, 50)
        images = {camera: pictures(rng, length) for camera in cameras}
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = not compress
            file["action"] = actions.astype(np.float64)
            obs = file.create_group("observations")
            obs["qpos"] = states.astype(np.float64)
            obs["qvel"] = np.gradient(states, axis=0)
            obs["effort"] = rng.standard_normal(states.shape)
            group = obs.create_group("images")
            if compress:
                file.attrs["compress"] = True
                encoded = {c: [encode(frame) for frame in images[c]] for c in cameras}
                longest = max(len(e) for es in encoded.values() for e in es)
                for camera, rows in encoded.items():
                    padded = [np.pad(row, (0, longest - len(row))) for row in rows]
                    group[camera] = np.stack(padded)
                # In the recorder's order of cameras, not HDF5's, which is that of the alphabet.
                file["compress_len"] = [[len(e) for e in encoded[c]] for c in reversed(cameras)]
            else:
                for camera in cameras:
                    group.create_dataset(camera, data=images[camera], chunks=(1, *SIZE, 3))
            if change is not None:
                change(file)
    return folder


def encode(frame: np.ndarray) -> np.ndarray:
    """A JPEG as ALOHA's recorder makes it: uint8 ``[N]``."""
    done, encoded = cv2.imencode(".jpg", frame, [int(cv2.IMWRITE_JPEG_QUALITY), 50])
    assert done
    return encoded.ravel()
