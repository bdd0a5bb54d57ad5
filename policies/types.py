"""What flows between a world and whatever decides: `Observation` in, `Decision` out.

Everything is batched over environment *slots* (``B`` of them): a slot is a place where one
episode runs after another. Letters: ``B`` slots, ``S`` state size, ``A`` action size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass
class Observation:
    """What every slot sees now.

    Attributes:
        images: camera name -> uint8 ``[B, H, W, C]``; empty when the world has no camera.
        state: float32 ``[B, S]``, in the world's own units.
        task: one task text per slot, or None where the world has none.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    task: list[str] | None = None

    def __len__(self) -> int:
        return len(self.state)


@dataclass
class Decision:
    """What every slot does next.

    Attributes:
        action: float32 ``[B, A]``, in the world's own units; rows of inactive slots are ignored.
        new_chunk: bool ``[B]``, True on the step whose action is the first of a newly computed
            chunk. A policy without chunks says True at every step.
        latency_ms: milliseconds per stage (``observe``, ``preprocess``, ``network``,
            ``postprocess``) of this call if it computed a chunk, else None.
    """

    action: np.ndarray
    new_chunk: np.ndarray
    latency_ms: dict[str, float] | None = None


@runtime_checkable
class Policy(Protocol):
    """Anything that can be evaluated.

    Randomness must derive from (episode seed, chunk or step index) and from nothing else, so that
    an episode plays out the same whichever slot it runs in and however many run beside it.
    """

    name: str

    def reset(self, seeds: Sequence[int]) -> None:
        """Forget everything; slot i starts the episode with seed ``seeds[i]``."""
        ...

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Start new episodes in these slots only; the other slots go on undisturbed."""
        ...

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        """Decide one control step for the slots where `active` (bool ``[B]``) is True."""
        ...
