"""Write small LeRobot datasets that a model can learn something from, in about a second.

A coloured square sits in the image where the state says it is; an action says where it should
go, and the state follows it with a lag. So video, state and action all explain each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ((230, 60, 40), (40, 200, 90), (60, 90, 240))
LAG = 0.5  # share of the way to its command that the state moves in one frame


def write_dataset(
    root: str | Path,
    *,
    episodes: int = 3,
    length: int | Sequence[int] = 20,
    cameras: Sequence[str] = ("front",),
    size: int | tuple[int, int] = 32,
    fps: int = 20,
    use_videos: bool = True,
    keys: dict[str, str] | None = None,
    state_dim: int = 2,
    action_dim: int = 2,
    state_names: Any = None,
    action_names: Any = None,
    tasks: Sequence[str] = ("move the square",),
    robot_type: str = "square",
    constant: Sequence[int] = (),
    extra: dict[str, dict[str, Any]] | None = None,
    flags: Mapping[str, Sequence[Any]] | None = None,
    actions: bool = True,
    file_per_episode: bool = False,
    seed: int = 0,
) -> Path:
    """Write one finished dataset under `root`, which must not exist.

    Args:
        root: the folder to write.
        episodes: how many; episode i carries ``tasks[i % len(tasks)]``.
        length: frames of every episode, or one number per episode.
        cameras: names; the square of camera i has colour i.
        size: pixels, one number or ``(H, W)``.
        use_videos: mp4 (h264, a key frame every other frame), else PNG inside the parquet files.
        keys: other names for the features, e.g. ``{"action": "actions",
            "observation.state": "state", "observation.images.front": "image"}``.
        state_dim, action_dim: sizes; the first two dimensions move the square, the others follow
            them with other phases.
        state_names, action_names: what the feature's ``names`` field holds, in any form.
        tasks: task texts.
        constant: dimensions of state and action that never change.
        extra: further LeRobot features; their frames are zeros.
        flags: further features of one bool a frame: for each an entry an episode, one bool or one
            a frame.
        actions: False leaves the action feature out.
        file_per_episode: give each its own data and video files, instead of sharing them.
        seed: of the motion.

    Returns:
        `root` as a path.
    """
    import av
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    av.logging.set_libav_level(av.logging.ERROR)  # encoders like to talk
    height, width = (size, size) if isinstance(size, int) else size
    lengths = [length] * episodes if isinstance(length, int) else list(length)
    keys = keys or {}
    flags = flags or {}
    flag = {"dtype": "bool", "shape": (1,), "names": None}
    extra = (extra or {}) | dict.fromkeys(flags, flag)
    action_key = keys.get("action", "action")
    features: dict[str, dict[str, Any]] = {
        keys.get("observation.state", "observation.state"): {
            "dtype": "float32",
            "shape": (state_dim,),
            "names": state_names,
        },
        action_key: {
            "dtype": "float32",
            "shape": (action_dim,),
            "names": action_names,
        },
    }
    if not actions:
        del features[action_key]
    camera_keys = [f"observation.images.{name}" for name in cameras]
    for key in camera_keys:
        features[keys.get(key, key)] = {
            "dtype": "video" if use_videos else "image",
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
    features |= extra
    largest: Any = 1e-6 if file_per_episode else None  # megabytes
    encoder = RGBEncoderConfig(vcodec="h264", g=2, crf=18, preset="ultrafast")
    dataset = LeRobotDataset.create(
        "tests/squares",
        fps=fps,
        features=features,
        root=root,
        robot_type=robot_type,
        use_videos=use_videos,
        video_backend="pyav",
        rgb_encoder=encoder,
        streaming_encoding=use_videos and bool(cameras),
        encoder_queue_maxsize=max(lengths, default=0) + 1,  # a full queue drops frames
        data_files_size_in_mb=largest,
        video_files_size_in_mb=largest,
    )
    rng = np.random.default_rng(seed)
    for episode, frames in enumerate(lengths):
        states, commands = motion(rng, frames, state_dim, action_dim, fps)
        marks = {
            key: np.broadcast_to(np.array(values[episode], bool).ravel(), frames)
            for key, values in flags.items()
        }
        states[:, [d for d in constant if d < state_dim]] = 0.25
        commands[:, [d for d in constant if d < action_dim]] = 0.25
        for number, (state, command) in enumerate(zip(states, commands, strict=True)):
            frame: dict[str, Any] = {
                keys.get("observation.state", "observation.state"): state,
                "task": tasks[episode % len(tasks)],
            }
            if actions:
                frame[action_key] = command
            for camera, key in enumerate(camera_keys):
                frame[keys.get(key, key)] = square(state, height, width, camera)
            for key, feature in extra.items():
                frame[key] = np.zeros(feature["shape"], feature["dtype"])
            for key, values in marks.items():
                frame[key] = values[[number]]
            dataset.add_frame(frame)
        dataset.save_episode()
    dataset.finalize()
    return Path(root)


def motion(
    rng: np.random.Generator, frames: int, state_dim: int, action_dim: int, fps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth commands in [-1, 1], and the states that lag behind them.

    Returns:
        float32 states ``[frames, state_dim]`` and actions ``[frames, action_dim]``.
    """
    time = np.arange(frames) / fps
    width = max(state_dim, action_dim, 1)
    phase = rng.uniform(0, 2 * np.pi, width)
    rate = rng.uniform(0.3, 0.8, width)
    commands = np.sin(2 * np.pi * rate * time[:, None] + phase)
    states = np.empty_like(commands)
    states[0] = commands[0] * 0.5
    for i in range(1, frames):
        states[i] = states[i - 1] + LAG * (commands[i - 1] - states[i - 1])
    return states[:, :state_dim].astype(np.float32), commands[:, :action_dim].astype(np.float32)


def square(state: np.ndarray, height: int, width: int, camera: int) -> np.ndarray:
    """The picture of a state: uint8 ``[height, width, 3]``, a quarter of its side the square's."""
    image = np.full((height, width, 3), 24, np.uint8)
    image[::8] = 40  # lines, so that a vertical shift by less than the square shows
    x, y = (np.clip([state[0], state[min(1, len(state) - 1)]], -1, 1) + 1) / 2
    side = max(2, min(height, width) // 4)
    top, left = round(y * (height - side)), round(x * (width - side))
    image[top : top + side, left : left + side] = COLOURS[camera % len(COLOURS)]
    return image
