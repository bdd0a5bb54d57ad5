"""Random numbers as a function of (seed, purpose, step): nothing to save, nothing to disturb.

Every purpose (times, masks, noise, patterns, ...) has its own stream. Switching one of them off
leaves the others as they were, and a resumed run continues exactly without generator state.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed from a seed, the name of a purpose and any numbers."""
    text = f"{seed}/{purpose}/" + "/".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(
    seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator for one purpose at one step."""
    return torch.Generator(device=device).manual_seed(derive(seed, purpose, *numbers))


def uniform(seed: int, purpose: str, *numbers: int) -> float:
    """One number in [0, 1)."""
    return derive(seed, purpose, *numbers) / 2**63
