"""The latest value of a topic.

Nobody is called back: what is slow to look at a message cannot make the next one old. A reader
gets what came last, and sees from its times and its number whether it is new, how old it is, and
how many it missed.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from .messages import stamp_of


@dataclass(frozen=True)
class Sample:
    """One message of a topic.

    Attributes:
        value: the message, shared by all readers: not to be changed.
        stamp: of its header, seconds since the epoch on the sender's clock; None without one.
        arrival: when it was read off the socket, `time.monotonic` seconds.
        sequence: 1 for the first message of the slot; gaps are messages that nobody read.
        generation: of the connection that it came by, see `Bridge.generation`.
    """

    value: dict[str, Any]
    stamp: float | None
    arrival: float
    sequence: int
    generation: int = 0

    @property
    def age(self) -> float:
        """Seconds since it arrived."""
        return time.monotonic() - self.arrival


class Slot:
    """Holds one sample: the newest. Safe to use from any thread."""

    def __init__(self, name: str = ""):
        self.name = name
        self._changed = threading.Condition()
        self._sample: Sample | None = None

    def put(self, value: dict[str, Any], arrival: float, generation: int = 0) -> None:
        """Replace the sample."""
        stamp = stamp_of(value)
        with self._changed:
            number = self._sample.sequence + 1 if self._sample else 1
            self._sample = Sample(value, stamp, arrival, number, generation)
            self._changed.notify_all()

    def read(self) -> Sample | None:
        """The newest sample, at once; None before the first. It may be old: see `Sample.age`."""
        return self._sample

    def wait(self, after: int, timeout: float) -> Sample:
        """The newest sample whose sequence is above `after`; 0 takes any.

        Raises:
            TimeoutError: none came within `timeout` seconds.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._sample is not None and self._sample.sequence > after, timeout
            )
            if self._sample is None or self._sample.sequence <= after:
                raise TimeoutError(f"nothing new on {self.name or 'the topic'} in {timeout:g} s")
            return self._sample
