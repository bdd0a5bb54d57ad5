"""Numbers of the world <-> numbers that a network likes, each way beside its inverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CLIP = {"quantile": 1.5, "mean_std": 5.0, "min_max": 1.5, "identity": float("inf")}

# A spread below this share of the range says nothing about a dimension: think of a gripper that
# is open in half a percent of the frames, whose 1st and 99th percentile are the same number.
LEAST_SPREAD = 0.05


class Normalizer:
    """Normalise vectors dimension by dimension, and back.

    ========== ===================================== ======================
    mode       maps                                  default clip
    ========== ===================================== ======================
    quantile   1st and 99th percentile to -1 and 1   1.5
    mean_std   mean to 0, standard deviation to 1    5
    min_max    smallest and largest value to -1, 1   1.5
    identity   nothing                               none
    ========== ===================================== ======================

    Three guards, because an unguarded scale turns 0.001 rad into 100,000:

    - A dimension that never moved (by less than ``floor / 100``, in units of its own magnitude or
      1, whichever is more) gets the scale `floor` in those units: it maps to about 0, an input
      0.001 off to 0.1, and errors of the network come out small.
    - Percentiles closer together than 5 % of the range give way to smallest and largest value;
      a standard deviation below 5 % of the range is raised to that.
    - What `normalize` returns is clamped to [-clip, clip]; inside, `denormalize` is its inverse.

    Args:
        stats: one entry of ``Spec.stats``: statistic name -> one number per dimension.
        mode: a row of the table.
        floor: scale of a dimension that never moved.
        clip: largest normalised magnitude; None takes the table's.

    Attributes:
        center, scale: float32 ``[dimensions]``; normalised = (value - center) / scale.
    """

    def __init__(
        self,
        stats: Mapping[str, Sequence[float]],
        mode: str = "quantile",
        *,
        floor: float = 1e-2,
        clip: float | None = None,
    ):
        if mode not in CLIP:
            raise ValueError(f"no normalisation mode {mode!r}; there are {sorted(CLIP)}")
        if floor <= 0 or (clip is not None and clip <= 0):
            raise ValueError(f"floor and clip must be positive; got {floor} and {clip}")
        self.mode = mode
        self.clip = CLIP[mode] if clip is None else float(clip)
        s = {name: torch.tensor(values, dtype=torch.float64) for name, values in stats.items()}
        low, high = s["min"], s["max"]
        middle, half = (low + high) / 2, (high - low) / 2
        if mode == "identity":
            center, scale = torch.zeros_like(low), torch.ones_like(low)
        elif mode == "min_max":
            center, scale = middle, half
        elif mode == "mean_std":
            center, scale = s["mean"], torch.maximum(s["std"], LEAST_SPREAD * 2 * half)
        else:
            center, scale = (s["q01"] + s["q99"]) / 2, (s["q99"] - s["q01"]) / 2
            telling = scale > LEAST_SPREAD * half
            center, scale = torch.where(telling, center, middle), torch.where(telling, scale, half)
        if mode != "identity":
            unit = middle.abs().clamp(min=1)
            still = half <= floor / 100 * unit
            center = torch.where(still, middle, center)
            scale = torch.where(still, floor * unit, scale)
        self.center = center.float()
        self.scale = scale.float()

    def normalize(self, x: Tensor) -> Tensor:
        """``[..., dimensions]`` in the data's units -> the same shape within [-clip, clip]."""
        return ((x - self.center) / self.scale).clamp(-self.clip, self.clip)

    def denormalize(self, y: Tensor) -> Tensor:
        """The inverse of `normalize`; not clamped."""
        return y * self.scale + self.center

    def to(self, device: torch.device | str) -> Normalizer:
        """Move to another device, in place; returns self."""
        self.center = self.center.to(device)
        self.scale = self.scale.to(device)
        return self

    def __repr__(self) -> str:
        return f"Normalizer({self.mode!r}, dimensions={len(self.center)}, clip={self.clip:g})"


def frames_to_float(frames: Tensor) -> Tensor:
    """Video uint8 in [0, 255], any shape -> float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1


def frames_to_uint8(video: Tensor) -> Tensor:
    """The inverse of `frames_to_float`: rounds, and clamps what lies outside [-1, 1]."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
