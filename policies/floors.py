"""Floors: what a policy must beat before its success rate means anything.

A task that random actions or an arm that stands still can solve measures nothing, so both are
evaluated in the same run, on the same resets, as the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .types import Decision, Observation


class RandomPolicy:
    """Uniform in the action box, every step anew, drawn from (episode seed, step).

    Args:
        low, high: ``[A]``, the finite bounds of the action box.

    Raises:
        ValueError: if the box is not finite (uniform would mean nothing) or is upside down.
    """

    name = "random"

    def __init__(self, low: ArrayLike, high: ArrayLike) -> None:
        self.low, self.high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        bad = ~(np.isfinite(self.low) & np.isfinite(self.high) & (self.low <= self.high))
        if bad.any():
            raise ValueError(
                f"random actions need a finite action box with low <= high, but entries "
                f"{np.flatnonzero(bad).tolist()} range over "
                f"{[(self.low[i], self.high[i]) for i in np.flatnonzero(bad)]}"
            )
        self._seeds: list[int] = []
        self._steps: list[int] = []

    def reset(self, seeds: Sequence[int]) -> None:
        self._seeds, self._steps = [int(s) for s in seeds], [0] * len(seeds)

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._seeds[slot], self._steps[slot] = int(seed), 0

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        action = np.zeros((len(active), len(self.low)), np.float32)
        for slot in np.flatnonzero(active):
            generator = np.random.default_rng((self._seeds[slot], self._steps[slot]))
            action[slot] = generator.uniform(self.low, self.high)
            self._steps[slot] += 1
        return Decision(action, np.asarray(active, bool).copy())


class HoldPolicy:
    """Stay where the arm was measured at the episode's first step, for the whole episode.

    Args:
        hold: the action ``[A]`` that stays at a measured state ``[S]``; by default that state
            itself, for absolute position actions that match it one to one.
    """

    name = "hold"

    def __init__(self, hold: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.hold = hold or np.array
        self._held: list[np.ndarray | None] = []

    def reset(self, seeds: Sequence[int]) -> None:
        self._held = [None] * len(seeds)

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        for slot, _ in zip(slots, seeds, strict=True):
            self._held[slot] = None

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        rows = []
        for slot in range(len(active)):
            held = self._held[slot]
            if held is None:
                held = np.asarray(self.hold(observation.state[slot]), np.float32)
                if active[slot]:
                    self._held[slot] = held
            rows.append(held)
        return Decision(np.stack(rows), np.asarray(active, bool).copy())
