"""Part three: counterfactual branches, and which of K real futures an imagined one resembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.checkpoint import Checkpoint
from worldmodel.data import resize_frames
from worldmodel.imagine import imagine

from ..statistics import mean_interval
from .media import BranchPicture
from .probe import Probe
from .ranking import branching_accuracy, cosines, difference_correlation

ROWS = 64
LEAST_MOVE = 0.01  # metres: a tip that moved less has no direction


@dataclass
class Start:
    """One present and the K futures that a simulator ran from it, M steps each.

    Attributes:
        images: camera -> uint8 ``[P, H, W, 3]``, the past frames, the last one now.
        state: float32 ``[P, S]``.
        names: K of them, what each branch does.
        actions: float32 ``[K, M, A]``.
        futures: camera -> uint8 ``[K, M + 1, H, W, 3]``, frame 0 being now.
        joints: float32 ``[K, M + 1, S]``.
        tip: float64 ``[K, M + 1, 3]`` in metres.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    names: list[str]
    actions: np.ndarray
    futures: dict[str, np.ndarray]
    joints: np.ndarray
    tip: np.ndarray


def branching(
    checkpoint: Checkpoint,
    starts: Sequence[Start],
    probe: Probe | None,
    *,
    every: int,
    steps: int,
    pictures: int = 2,
) -> tuple[dict[str, Any], list[BranchPicture]]:
    """Imagine every branch and match it with the real ones by their frames.

    The distance of an imagined and a real branch is the mean squared difference of all their
    frames. Matching by joints is the same with the states that the model says.

    Args:
        starts: B of them, each with as many branches of the same length.
        probe: reads the tip's place off frames (fact "tip"); None leaves displacements out.
        every: distance of the imagined frames.
        steps: sampling steps.
        pictures: of how many starts to return a grid of frames.

    Returns:
        The part "branching" (see `policies.judge.report`), and pictures.
    """
    spec = checkpoint.spec
    k, length = starts[0].actions.shape[:2]

    def small(frames: np.ndarray) -> Tensor:
        return resize_frames(torch.from_numpy(frames).movedim(-1, -3), spec.image_size)

    past = {c: torch.stack([small(s.images[c]) for s in starts]) for c in spec.cameras}
    state = torch.stack([torch.from_numpy(np.float32(s.state)) for s in starts])
    actions = torch.stack([torch.from_numpy(np.float32(s.actions)) for s in starts])
    rows = {c: v.repeat_interleave(k, 0) for c, v in past.items()}
    states, flat = state.repeat_interleave(k, 0), actions.flatten(0, 1)
    parts = [
        imagine(
            checkpoint, {c: v[i : i + ROWS] for c, v in rows.items()}, states[i : i + ROWS],
            flat[i : i + ROWS], every=every, steps=steps, seed=i,
        )
        for i in range(0, len(flat), ROWS)
    ]  # fmt: skip
    frames = parts[0].frames.tolist()
    video = {c: torch.cat([p.video[c].cpu() for p in parts]) for c in spec.cameras}
    found = {c: v.unflatten(0, (-1, k)) for c, v in video.items()}
    real = {c: torch.stack([small(s.futures[c])[:, frames] for s in starts]) for c in found}
    per_frame = sum(_squares(found[c], real[c]) for c in found)
    assert isinstance(per_frame, np.ndarray)
    whole = branching_accuracy(per_frame.mean(-1))
    by_frame = [branching_accuracy(per_frame[..., i]) for i in range(len(frames))]
    part: dict[str, Any] = whole.to_dict() | {
        "names": _common_names(starts),
        "length": length,
        "by_frame": {
            "frames": frames,
            "accuracy": [{"mean": b.accuracy, "low": b.low, "high": b.high} for b in by_frame],
        },
        "difference_correlation": difference_correlation(
            np.concatenate([_tiny(v[:, :, -1]) for v in real.values()], -1),
            np.concatenate([_tiny(v[:, :, -1]) for v in found.values()], -1),
        ).to_dict(),
        "by_name": _by_name(starts, per_frame.mean(-1)),
    }
    if parts[0].state is not None:
        said = torch.cat([p.state.cpu() for p in parts if p.state is not None])
        said = said.unflatten(0, (-1, k))
        true = torch.stack([torch.from_numpy(np.float32(s.joints))[:, frames] for s in starts])
        scale = torch.tensor(spec.stats["state"]["std"]).clamp_min(1e-6)
        apart = ((said[:, :, None] - true[:, None]) / scale).square().mean((-1, -2)).numpy()
        joints = branching_accuracy(apart)
        part["by_joints"] = {"mean": joints.accuracy, "low": joints.low, "high": joints.high}
    if probe is not None and "tip" in probe.weights:
        now = {c: v[:, None, -1:].expand_as(real[c][:, :, -1:]) for c, v in past.items()}
        begin = probe.read("tip", now)[:, :, 0]
        end = probe.read("tip", {c: v[:, :, -1:] for c, v in found.items()})[:, :, 0]
        moved = np.stack([s.tip[:, frames[-1]] - s.tip[:, 0] for s in starts])
        angle = cosines(moved, end - begin, least=LEAST_MOVE)
        groups = np.repeat(np.arange(len(starts)), k)
        part["displacement_cosine"] = mean_interval(angle.ravel(), groups).to_dict()
    camera = spec.cameras[0]
    shown = [i for i, f in enumerate(frames) if f in (frames[len(frames) // 2 - 1], frames[-1])]
    grids = [
        BranchPicture(
            title=f"Counterfactual futures of start {i + 1}",
            names=starts[i].names,
            frames=[frames[j] for j in shown],
            real=real[camera][i][:, shown].movedim(-3, -1).numpy(),
            imagined=found[camera][i][:, shown].movedim(-3, -1).numpy(),
            distances=np.sqrt(per_frame[i].mean(-1)),
        )
        for i in range(min(pictures, len(starts)))
    ]
    return part, grids


def _squares(imagined: Tensor, real: Tensor) -> np.ndarray:
    """``[B, K, F, C, H, W]`` twice -> mean squared differences ``[B, K imagined, K real, F]``."""
    rows = []
    for a, b in zip(imagined, real, strict=True):
        a, b = (x.flatten(2).float().movedim(1, 0) for x in (a, b))  # [F, K, pixels]
        # Products of whole frames would lose small differences to rounding.
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
        rows.append(apart.square().movedim(0, -1) / a.shape[-1])
    return torch.stack(rows).numpy()


def _tiny(frames: Tensor) -> np.ndarray:
    """Frames ``[B, K, C, H, W]`` as short vectors: differences of branches, not grain, count."""
    small = torch.nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1).float(), 12)
    return small.flatten(1).unflatten(0, frames.shape[:2]).numpy()


def _common_names(starts: Sequence[Start]) -> list[str]:
    """What the K branches do, where it is the same in all starts; else their numbers."""
    columns = [set(names) for names in zip(*(s.names for s in starts), strict=True)]
    return [names.pop() if len(names) == 1 else f"{i}" for i, names in enumerate(columns, start=1)]


def _by_name(starts: Sequence[Start], distances: np.ndarray) -> dict[str, float]:
    """Share of the branches of each name that were matched with their own; a tie is wrong."""
    own = np.diagonal(distances, axis1=1, axis2=2)
    nearest = distances == distances.min(-1, keepdims=True)
    right = (own == distances.min(-1)) & (nearest.sum(-1) == 1)
    names = np.array([s.names for s in starts])
    return {str(n): float(right[names == n].mean()) for n in dict.fromkeys(names.ravel())}
