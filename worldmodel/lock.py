"""One process at a time writes into a run's folder.

The kernel holds the lock on behalf of the open file: it lets go when the process ends, in whatever
way, so that after a SIGKILL there is nothing to clean up. The file itself stays; what it says, the
process that wrote last, means something only while the lock is held.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class LockedError(ValueError):
    """Another process writes into this folder."""


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock`` while the block runs; makes the folder where there is none.

    Raises:
        LockedError: names the folder and the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("a+") as file:
        _lock(file, folder)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def require_free(folder: Path) -> None:
    """Refuse a folder that another process writes into, without leaving anything in it.

    To say so before the work that comes ahead of writing; `sole_writer` is what keeps it so.

    Raises:
        LockedError: names the folder and the process that holds it.
    """
    path = folder / NAME
    if path.exists():
        with path.open("a+") as file:
            _lock(file, folder)


def _lock(file: TextIO, folder: Path) -> None:
    """Take the lock, which lasts until `file` is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        pid = file.read().strip()
        stop = f", end it (kill {pid} lets it save first)" if pid else ""
        raise LockedError(
            f"another process{f' (pid {pid})' * bool(pid)} is writing into {folder}: wait for it"
            f"{stop}, or choose another out="
        ) from error
    except OSError as error:
        # Some network file systems have no locks: training there is worth more than this guard.
        if error.errno not in NO_LOCKS:
            raise
