"""A linear probe: where the tip or an object is, read off a frame by ridge regression.

Fitted on real frames of other episodes than those that are judged. What it reads from imagined
frames, beside what it reads from the real ones, says in centimetres what pictures say in decibels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

COMPONENTS = 256
RIDGES = (1.0, 10.0, 100.0, 1000.0)


class Probe:
    """Pixels -> facts, linear in the leading principal components of the frames.

    Args:
        video: camera -> uint8 ``[N, C, H, W]``, real frames.
        facts: name -> ``[N, D]``.
        episode: int64 ``[N]``, of which a fifth is held out to choose the ridge.

    Attributes:
        error: name -> mean distance on the held-out episodes, in the unit of the facts.
    """

    def __init__(
        self,
        video: Mapping[str, Tensor],
        facts: Mapping[str, np.ndarray],
        episode: Sequence[int] | np.ndarray,
    ) -> None:
        pixels = _flat(video)
        names = np.unique(episode)
        held = np.isin(episode, names[::5])
        fit = ~held if (~held).any() and held.any() else np.ones(len(pixels), bool)
        self.mean = pixels[fit].mean(0)
        centred = pixels - self.mean
        count = min(COMPONENTS, int(fit.sum()) - 1, pixels.shape[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # pca_lowrank draws its first guess
            _, scale, axes = torch.pca_lowrank(
                torch.from_numpy(centred[fit]), q=max(1, count), center=False
            )
        self.axes = (axes / scale.clamp_min(1e-6) * fit.sum() ** 0.5).numpy()
        features = self._with_one(centred @ self.axes)
        self.weights: dict[str, np.ndarray] = {}
        self.error: dict[str, float] = {}
        for name, values in facts.items():
            best = (np.inf, np.zeros(0))
            for ridge in RIDGES:
                weights = _ridge(features[fit], values[fit], ridge)
                check = held if held.any() else fit
                off = np.linalg.norm(features[check] @ weights - values[check], axis=-1).mean()
                best = min(best, (float(off), weights), key=lambda pair: pair[0])
            self.error[name], self.weights[name] = best

    def read(self, name: str, video: Mapping[str, Tensor]) -> np.ndarray:
        """One fact off frames ``[..., C, H, W]``: ``[..., D]``."""
        lead = next(iter(video.values())).shape[:-3]
        pixels = _flat({c: v.reshape(-1, *v.shape[-3:]) for c, v in video.items()})
        found = self._with_one((pixels - self.mean) @ self.axes) @ self.weights[name]
        return found.reshape(*lead, -1)

    @staticmethod
    def _with_one(features: np.ndarray) -> np.ndarray:
        return np.concatenate([features, np.ones((len(features), 1), features.dtype)], 1)


def _flat(video: Mapping[str, Tensor]) -> np.ndarray:
    """All pixels of all cameras, in [0, 1], float32 ``[N, pixels]``."""
    return np.concatenate(
        [(v.flatten(1).float() / 255).numpy() for _, v in sorted(video.items())], axis=1
    )


def _ridge(features: np.ndarray, values: np.ndarray, ridge: float) -> np.ndarray:
    gram = features.T @ features
    gram[np.diag_indices(len(gram) - 1)] += ridge  # but for the constant
    return np.linalg.solve(gram.astype(np.float64), (features.T @ values).astype(np.float64))
