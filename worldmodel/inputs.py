"""Physical units <-> normalised patches: the one place where the two meet."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .data.normalize import Normalizer, frames_to_float, frames_to_uint8
from .tokens import Modality, Steps
from .types import Spec, Window


class Inputs:
    """Turns windows into patches and patches back into frames, states and actions.

    Args:
        spec: with the statistics of the training split.
        modalities: of the model, by name.
        mode: normalisation of states and actions, a mode of `Normalizer`.
    """

    def __init__(self, spec: Spec, modalities: Mapping[str, Modality], mode: str) -> None:
        self.modalities = dict(modalities)
        self.normalizers = {
            kind: Normalizer(spec.stats[kind], mode)
            for kind in ("state", "action")
            if any(m.kind == kind for m in modalities.values())
        }

    def to(self, device: torch.device | str) -> Inputs:
        """Move the statistics to another device, in place; returns self."""
        for normalizer in self.normalizers.values():
            normalizer.to(device)
        return self

    def normalize(self, name: str, values: Tensor) -> Tensor:
        """One modality's values (frames uint8, vectors in physical units) -> patches."""
        modality = self.modalities[name]
        if modality.kind == "video":
            return modality.patch(frames_to_float(values))
        return modality.patch(self.normalizers[modality.kind].normalize(values))

    def denormalize(self, name: str, patches: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        modality = self.modalities[name]
        values = modality.unpatch(patches)
        if modality.kind == "video":
            return frames_to_uint8(values)
        return self.normalizers[modality.kind].denormalize(values)

    def patches(self, window: Window, steps: Mapping[str, Steps]) -> dict[str, Tensor]:
        """The patches of these modalities at these steps, each ``[B, steps, n, E]``."""
        return {
            name: self.normalize(name, self.values(window, name)[:, part])
            for name, part in steps.items()
        }

    def values(self, window: Window, name: str) -> Tensor:
        """A modality's values in a window."""
        kind = self.modalities[name].kind
        if kind == "video":
            return window.video[name.removeprefix("video/")]
        if kind not in ("state", "action"):
            raise NotImplementedError(f"windows hold no values of kind {kind!r} yet")
        return window.state if kind == "state" else window.action

    def valid(self, window: Window, name: str, part: Steps, padded_actions: bool) -> Tensor:
        """Bool ``[B, steps]``: which steps carry a loss.

        Args:
            padded_actions: count actions past the episode's end, where the last one is repeated:
                with absolute targets they mean "stay", which the end of an episode needs.
        """
        if self.modalities[name].axis == "frame":
            return window.frame_valid[:, part]
        valid = window.action_valid[:, part]
        # An episode without actions has none to repeat.
        has_action = window.action_valid.any(1, keepdim=True)
        return has_action.expand_as(valid) if padded_actions else valid
