"""What can be broken on the bench's robot, by name: all as it is seen from outside."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Faults:
    """What is broken; ``/bench/fault`` takes any of these as JSON, ``{}`` mends all.

    Attributes:
        camera_frozen: the same pictures with the stamps that they had.
        camera_frozen_restamped: the same pictures with new stamps.
        camera_stopped: no pictures.
        joints_delay_s: joint states come late by that much, with the stamps that they had.
        joints_stopped: no joint states.
        joints_nan: the first position is not a number.
        joints_reordered: names and values in another order, which is allowed.
        joints_mislabelled: the names alone in another order.
        skew_s: seconds by which the robot's clock is ahead, joints and cameras alike.
        camera_skew_s: seconds by which the cameras' clock is ahead of the joints'.
    """

    camera_frozen: bool = False
    camera_frozen_restamped: bool = False
    camera_stopped: bool = False
    joints_delay_s: float = 0.0
    joints_stopped: bool = False
    joints_nan: bool = False
    joints_reordered: bool = False
    joints_mislabelled: bool = False
    skew_s: float = 0.0
    camera_skew_s: float = 0.0

    @staticmethod
    def parse(text: str) -> Faults:
        """From JSON.

        Raises:
            ValueError: it is no JSON object, or has a key or value that is none of these.
        """
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError(f"{text} is no JSON object")
        known = {name: type(value) for name, value in asdict(Faults()).items()}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"there is no fault {name!r}; there are: {', '.join(known)}")
            kind = known[name]
            if kind is float and type(value) is int:
                given[name] = float(value)
            elif type(value) is not kind or (kind is float and not math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}; expected a {kind.__name__}")
        return Faults(**given)
