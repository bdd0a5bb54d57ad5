"""Part ten: how many frames a second are imagined, for one robot and for many at once."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from worldmodel.checkpoint import Checkpoint
from worldmodel.imagine import imagine


def frames_per_s(
    checkpoint: Checkpoint, *, steps: int, batch: int = 32, repeats: int = 8
) -> dict[str, Any]:
    """Every frame of one window, imagined again and again; median, with the fastest and slowest.

    A frame counts once for each robot; cameras of a robot belong to one frame. Frames between
    those of the model's grid count only where the model imagines them.

    Args:
        steps: sampling steps.
        batch: rollouts side by side, for the second figure.
        repeats: timed windows, after one that is not.
    """
    spec, horizon = checkpoint.spec, checkpoint.model.horizon
    device = next(checkpoint.model.parameters()).device
    any_frame = checkpoint.objective.any_frame > 0
    every = 1 if any_frame else horizon.future_stride
    length = horizon.chunk if any_frame else horizon.grid[-1]  # what one window imagines

    def measure(rows: int) -> dict[str, float]:
        size = (rows, horizon.past, 3, *spec.image_size)
        video = {c: torch.zeros(size, dtype=torch.uint8, device=device) for c in spec.cameras}
        state = torch.zeros(rows, horizon.past, spec.state_dim, device=device)
        action = torch.zeros(rows, length, spec.action_dim, device=device)
        rates = []
        for repeat in range(repeats + 1):
            begin = time.perf_counter()
            found = imagine(checkpoint, video, state, action, every=every, steps=steps, seed=repeat)
            if device.type == "cuda":
                torch.cuda.synchronize()
            rates.append(rows * len(found.frames) / (time.perf_counter() - begin))
        timed = rates[1:]
        return {
            "mean": float(np.median(timed)), "low": float(min(timed)), "high": float(max(timed))
        }  # fmt: skip

    height, width = spec.image_size
    return measure(1) | {
        "batched": measure(batch),
        "batch": batch,
        "interval": "fastest and slowest of the timed windows",
        "every": every,
        "steps": steps,
        "picture": f"{width}x{height}, {len(spec.cameras)} cameras",
        "robot_fps": spec.fps,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
