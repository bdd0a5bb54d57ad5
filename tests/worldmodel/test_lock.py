"""Two processes never write into one folder, and a killed one leaves nothing to clean up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from worldmodel.lock import LockedError, sole_writer

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
        refusal = pytest.raises(LockedError, match=rf"pid {other.pid}\) is writing into .*/run")
        with refusal, sole_writer(tmp_path / "run"):
            pytest.fail("two writers")
        os.kill(other.pid, signal.SIGKILL)
    with sole_writer(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())


def test_folders_are_held_one_by_one_and_again_after_an_error(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "a"), sole_writer(tmp_path / "b"):
        pass
    with pytest.raises(RuntimeError, match="mine"), sole_writer(tmp_path / "a"):
        raise RuntimeError("mine")
    with sole_writer(tmp_path / "a"):
        pass
