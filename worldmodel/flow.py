"""The one clock: t = 0 is data, t = 1 is noise, everywhere in this project.

``x_t = (1 - t) x_0 + t x_1`` with ``x_1 ~ N(0, I)`` and velocity ``v = x_1 - x_0`` (rectified flow,
Liu et al. 2022; Self-Flow, arXiv 2603.06507, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("uniform", "logit_normal")

# Below this time an x-prediction is divided by this floor instead of by t (JiT, arXiv 2511.13720).
TIME_FLOOR = 0.05


def interpolate(data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The point at `time` on the straight line from data (0) to noise (1).

    Args:
        data, noise: ``[B, ..., E]``.
        time: broadcastable to them.
    """
    return data + time * (noise - data)


def velocity_from_data(noisy: Tensor, data: Tensor, time: Tensor) -> Tensor:
    """The velocity that leads from `noisy` at `time` away from `data`, bounded near time 0.

    Exact for ``time >= TIME_FLOOR``; below, both the target and the prediction shrink alike.
    """
    return (noisy - data) / time.clamp_min(TIME_FLOOR)


def data_from_velocity(noisy: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
    """The data end of the line through `noisy` with this velocity: the inverse of the above."""
    return noisy - velocity * time.clamp_min(TIME_FLOOR)


def shift(time: Tensor, a: float) -> Tensor:
    """Move times towards noise (a > 1) or data (a < 1), keeping 0 and 1 (SD3, arXiv 2403.03206)."""
    return a * time / (1 + (a - 1) * time)


@dataclass
class TimeConfig:
    """The distribution p(t) of one modality, in training and on the sampling grid.

    Attributes:
        kind: "uniform" or "logit_normal".
        mean, std: of the logit, for "logit_normal".
        shift: training shift a; more than 1 means noisier.
        high_noise: share of draws taken from U[0.95, 1] instead (0.05 for WAN2.2 video in the
            paper), so that the start of sampling is trained.
        sampling_shift: shift of the sampling grid.
    """

    kind: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    high_noise: float = 0.0
    sampling_shift: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown time distribution {self.kind!r}; there are {list(KINDS)}")
        if not 0 <= self.high_noise < 1:
            raise ValueError(f"high_noise is a share in [0, 1), found {self.high_noise}")
        if min(self.std, self.shift, self.sampling_shift) <= 0:
            raise ValueError("std, shift and sampling_shift must be positive")

    def from_quantile(self, u: Tensor) -> Tensor:
        """Map uniform quantiles to times by the inverse distribution function.

        One quantile drawn per sample and mapped through each modality's own distribution keeps the
        modalities of one sample at matching noise, whatever their distributions.

        Args:
            u: any shape, in (0, 1).

        Returns:
            Times in [0, 1], same shape.
        """
        bulk = u / (1 - self.high_noise)
        t = bulk.clamp(1e-6, 1 - 1e-6)
        if self.kind == "logit_normal":
            t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(t))
        t = shift(t, self.shift)
        if self.high_noise == 0:
            return t
        return torch.where(bulk < 1, t, 0.95 + 0.05 * (u - 1 + self.high_noise) / self.high_noise)

    def grid(self, steps: int) -> Tensor:
        """``[steps + 1]`` sampling times from 1 down to 0."""
        return shift(torch.linspace(1, 0, steps + 1), self.sampling_shift)
