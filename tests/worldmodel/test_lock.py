"""Two processes never write into one folder, and a killed one leaves nothing to clean up."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.lock import LockedError, require_free, sole_writer

HOLD = """
import sys, time
from pathlib import Path
from worldmodel.lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_until_it_ends_in_whatever_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refusal = rf"pid {other.pid}\) is writing into {tmp_path / 'run'}: .*kill {other.pid}"
        with pytest.raises(LockedError, match=refusal), sole_writer(tmp_path / "run"):
            pytest.fail("two writers")
        with pytest.raises(LockedError, match=refusal):
            require_free(tmp_path / "run")
        os.kill(other.pid, signal.SIGKILL)
    with sole_writer(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == f"{os.getpid()}\n"


def test_folders_are_held_one_by_one_and_again_after_an_error(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "a"), sole_writer(tmp_path / "b"):
        pass
    with pytest.raises(RuntimeError, match="mine"), sole_writer(tmp_path / "a"):
        raise RuntimeError("mine")
    with sole_writer(tmp_path / "a"):
        pass


def test_asking_whether_a_folder_is_free_neither_makes_nor_holds_it(tmp_path: Path) -> None:
    require_free(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with sole_writer(tmp_path / "old"):
        pass
    require_free(tmp_path / "old")
    with sole_writer(tmp_path / "old"):
        pass


def test_a_file_system_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    number = errno.ENOLCK
    with sole_writer(tmp_path):
        pass
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"), sole_writer(tmp_path):
        pytest.fail("not held")
