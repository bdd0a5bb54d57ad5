"""Ctrl-C and SIGTERM end a run after the step in progress, not in the midst of it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def stop_on_signal() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that the step in progress ends and is saved.

    A second Ctrl-C acts at once; a second SIGTERM does not, since of a launcher and a scheduler
    each may send one. Outside the main thread signals cannot be caught; there this does nothing.
    """
    seen: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in seen:
            raise KeyboardInterrupt
        seen.append(number)

    old = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):
                old[number] = signal.signal(number, note)
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
