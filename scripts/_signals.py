"""Ctrl-C and SIGTERM, put off to a moment at which nothing is half written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM wait for the end of the block; yields the list of those received.

    An exception out of the middle of writing an episode would leave half of it in the video. At the
    end of the block the signal is raised again and takes its usual course.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread receives signals
        return
    previous = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
