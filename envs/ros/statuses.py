"""What the server, or this client about it, has to say: bounded, and errors are not forgotten."""

from __future__ import annotations

import time
from dataclasses import dataclass

KEPT_STATUSES, KEPT_ERRORS = 64, 32
STATUS_TEXT = 500
"""Characters kept of a status."""


@dataclass(frozen=True)
class Status:
    """Something that the server, or this client about it, has to say.

    Attributes:
        level: "error", "warning", "info" or "none".
        text: what.
        generation: of the connection, see `Bridge.generation`.
        arrival: `time.monotonic` seconds.
    """

    level: str
    text: str
    generation: int
    arrival: float


class Statuses:
    """The last of any level, and the first errors: no flood pushes those out.

    One thread adds; any may read, since the tuples are replaced as a whole.
    """

    def __init__(self) -> None:
        self.latest: tuple[Status, ...] = ()
        self.clear_errors()

    def clear_errors(self) -> None:
        """Forget the errors."""
        self.errors: tuple[Status, ...] = ()
        self.error_count = 0

    def add(self, generation: int, level: str, text: str) -> None:
        """A level that is none counts as an error."""
        if level not in ("error", "warning", "info", "none"):
            level = "error"
        # Half a surrogate pair can come in JSON, and could not be printed or recorded.
        text = text[:STATUS_TEXT].encode("utf-8", "replace").decode()
        status = Status(level, text, generation, time.monotonic())
        self.latest = (*self.latest, status)[-KEPT_STATUSES:]
        if level == "error":
            self.error_count += 1
            if len(self.errors) < KEPT_ERRORS:
                self.errors = (*self.errors, status)
