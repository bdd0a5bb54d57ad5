"""A program on a leash ends with whoever started it, whatever the leash itself is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT

LEASH = ROOT / "envs" / "ros" / "leash.py"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_whole_group_leaves_nothing_behind(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(LEASH), str(tmp_path / "log"), "sleep", "60"]
    leash = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert leash.stdin is not None
    assert leash.stdout is not None
    program = Path("/proc") / leash.stdout.readline().strip()
    leash.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        leash.wait(0.2)
    assert program.exists()
    leash.stdin.close()  # as the system does for a starter that is gone
    assert leash.wait(5.0) == 128 + signal.SIGTERM
    assert not program.exists()
    leash.stdout.close()
