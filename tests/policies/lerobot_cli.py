"""Run LeRobot's commands inside the test's process, as a shell would call them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any


def run(command: Callable[[], Any], *args: str) -> None:
    """Call a command's main function with these arguments.

    It sets up logging for a whole process; what pytest had set up is put back.
    """
    root, argv = logging.getLogger(), sys.argv
    handlers, level = list(root.handlers), root.level
    sys.argv = ["lerobot", *args]
    try:
        command()
    finally:
        sys.argv = argv
        root.handlers[:] = handlers
        root.setLevel(level)
