"""What a layout has to say: where episodes, states, actions and pictures are, what they mean."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import h5py
import numpy as np


@dataclass(frozen=True)
class Actions:
    """What actions mean.

    Attributes:
        kind: "absolute" (targets in the units of the state), "delta", or "unknown".
        reason: how that is known.
        names: one per dimension.
    """

    kind: str
    reason: str
    names: tuple[str, ...]


class Layout(ABC):
    """One way of keeping demonstrations in HDF5 files.

    All paths are relative to an episode's group.

    Attributes:
        name: what the user types.
        looks: how a file of this layout looks, for messages.
        observations: the group that holds what can be part of the state.
        action: the dataset that holds the actions.
        no_images: how files get pictures, for the message where there are none.
    """

    name: ClassVar[str]
    looks: ClassVar[str]
    observations: ClassVar[str]
    action: ClassVar[str]
    no_images: ClassVar[str]

    @abstractmethod
    def fits(self, file: h5py.File) -> bool:
        """Whether a file is of this layout."""

    @abstractmethod
    def groups(self, file: h5py.File) -> list[str]:
        """The groups of its episodes, in order."""

    @abstractmethod
    def images(self, episode: h5py.Group) -> dict[str, str]:
        """Camera name -> dataset, of all that is meant as a colour picture."""

    @abstractmethod
    def default_state(self, keys: Sequence[str]) -> list[str]:
        """Which observations are the state if the user does not say."""

    @abstractmethod
    def state_names(self, key: str, width: int) -> list[str]:
        """Distinct names of the dimensions of an observation."""

    @abstractmethod
    def actions(self, file: h5py.File, widths: Mapping[str, int]) -> Actions:
        """What the actions mean that are made of these datasets, dataset -> numbers a frame."""

    def success(self, episode: h5py.Group) -> np.ndarray | None:
        """Whether the world after each action counts as solved, bool ``[T]``; None: not told."""
        return None

    def task(self, file: h5py.File, episode: h5py.Group) -> str:
        """The task as a sentence, "" where the file does not say."""
        return ""

    def masks(self, file: h5py.File) -> dict[str, list[str]]:
        """Named selections of episodes: name -> last parts of their groups' names."""
        return {}

    def rate(self, file: h5py.File) -> float | None:
        """Actions per second, None where the file does not say."""
        return None

    def facts(self, file: h5py.File) -> dict[str, Any]:
        """What else is worth keeping, JSON-ready; ``robot_type`` is the robot's."""
        return {}


def json_attribute(item: h5py.Group | h5py.File, name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object, {} where there is none."""
    text = item.attrs.get(name)
    if not isinstance(text, (str, bytes)):
        return {}
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
