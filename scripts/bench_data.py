"""Windows per second of one core: this project's frame cache beside LeRobotDataset itself.

    python -m scripts.bench_data [size=96 batch_size=32 seconds=3 out=DIR]

Writes a synthetic dataset, reads the same windows both ways, checks that they are equal, and
prints both speeds. Measured in one process with one thread, on a warm page cache.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from worldmodel.data import DataConfig, Order, open_data

from ._cli import refuse_unknown_keys

FPS = 20


@dataclass
class BenchDataConfig:
    """What to measure; see configs/bench_data.yaml."""

    size: int = 96
    episodes: int = 40
    length: int = 100
    batch_size: int = 32
    past: int = 2
    future: int = 8
    chunk: int = 16
    seconds: float = 3.0
    out: str | None = None


ConfigStore.instance().store(name="bench_data_schema", node=BenchDataConfig)


@hydra.main(version_base="1.3", config_path="../configs", config_name="bench_data")
def run(raw: DictConfig) -> None:
    config: BenchDataConfig = OmegaConf.to_object(raw)  # type: ignore[assignment]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        measure(config, Path(config.out or temporary))


def measure(config: BenchDataConfig, out: Path) -> None:
    """Write (where missing), read both ways, compare, print."""
    from lerobot.datasets import LeRobotDataset

    console = Console()
    root = out / "dataset"
    if not root.exists():
        console.print(f"writing {config.episodes} episodes of {config.length} frames to {root}")
        write(root, config)
    data = open_data(
        DataConfig(
            root=str(root),
            image_size=config.size,
            past=config.past,
            future=config.future,
            future_stride=1,
            chunk=config.chunk,
            validation=0,
            cache_dir=str(out / "cache"),
        )
    )
    frames = [i / FPS for i in range(1 - config.past, config.future + 1)]
    reference = LeRobotDataset(
        "bench/noise",
        root=root,
        video_backend="pyav",
        return_uint8=True,
        delta_timestamps={
            "observation.images.front": frames,
            "observation.state": frames,
            "action": [i / FPS for i in range(config.chunk)],
        },
    )
    order = Order(len(data.train), config.batch_size, seed=0)
    for i in order.batch(0)[:4].tolist():
        ours, theirs = data.train.batch(np.array([i])), reference[i]
        same_video = torch.equal(ours.video["front"][0], theirs["observation.images.front"])
        if not (same_video and torch.equal(ours.action[0], theirs["action"])):
            raise RuntimeError(f"window {i} differs from LeRobotDataset's")

    steps = itertools.count()
    fast = rate(lambda: len(data.train.batch(order.batch(next(steps))).index), config.seconds)
    shuffled = itertools.cycle(order.batch(0).tolist())

    def read_one() -> int:
        reference[next(shuffled)]
        return 1

    slow = rate(read_one, config.seconds)
    window = config.past + config.future
    copied = fast * window * 3 * config.size**2 / 1e9
    table = Table(
        title=f"{config.size} px, one camera, {config.past}+{config.future} frames, "
        f"{config.chunk} actions, batches of {config.batch_size}"
    )
    for heading in ("reader", "windows/s on one core", "frames copied, GB/s"):
        table.add_column(heading, justify="left" if heading == "reader" else "right")
    table.add_row("frame cache", f"{fast:,.0f}", f"{copied:.1f}")
    table.add_row("LeRobotDataset (PyAV)", f"{slow:,.0f}", "")
    console.print(table)
    console.print(f"{fast / slow:.0f} times faster; equal windows; {os.cpu_count()} cores here")


def rate(read: Callable[[], int], seconds: float) -> float:
    """Windows per second of `read`, which returns how many it read, after a short warm-up."""
    for _ in range(3):
        read()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += read()
    return count / elapsed


def write(root: Path, config: BenchDataConfig) -> None:
    """A dataset of moving blocks: h264 with a key frame every other frame."""
    import av
    from lerobot.configs import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    av.logging.set_libav_level(av.logging.ERROR)  # encoders like to talk
    image = {"dtype": "video", "shape": (config.size, config.size, 3)}
    vector = {"dtype": "float32", "shape": (8,), "names": None}
    dataset = LeRobotDataset.create(
        "bench/noise",
        fps=FPS,
        root=root,
        features={
            "observation.images.front": image | {"names": ["height", "width", "channels"]},
            "observation.state": vector,
            "action": vector,
        },
        rgb_encoder=RGBEncoderConfig(vcodec="h264", g=2, crf=23, preset="ultrafast"),
        streaming_encoding=True,
        encoder_queue_maxsize=config.length + 1,  # a full queue drops frames
        video_backend="pyav",
    )
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    canvas = np.kron(coarse, np.ones((config.size // 4, config.size // 4, 1), np.uint8))
    for _ in range(config.episodes):
        for i in range(config.length):
            numbers = rng.normal(size=8).astype(np.float32)
            picture = canvas[i % config.size :][: config.size, : config.size]
            frame = {"observation.images.front": np.ascontiguousarray(picture), "task": "noise"}
            dataset.add_frame(frame | {"observation.state": numbers, "action": numbers})
        dataset.save_episode()
    dataset.finalize()


def main() -> None:
    refuse_unknown_keys(BenchDataConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
