"""One process at a time writes into a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class LockedError(ValueError):
    """Another process writes into this folder."""


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock`` while the block runs.

    The kernel lets go of it when the process ends, in whatever way, so that nothing is left to
    clean up after a SIGKILL; the file itself stays.

    Raises:
        LockedError: names the folder and the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise LockedError(
                f"another process (pid {holder}) is writing into {folder}; wait for it, stop it, "
                "or choose another out="
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
