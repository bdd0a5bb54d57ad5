"""Start programs as a launcher would: several processes of one run, without importing each time.

A server that has everything heavy imported forks one process for each line of commands. The store
through which the processes of a run meet lives in the caller, as `torchrun` has it in the launcher;
unlike `torchrun` nobody stops the others when one of them ends, so that they must end themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

SERVER = """
import json, os, runpy, sys, traceback
import hydra, torch, worldmodel.data, worldmodel.train

def start(job):
    pid = os.fork()
    if pid:
        return pid
    file = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(job["environment"])
    sys.argv = job["command"]
    code = 0
    try:
        runpy.run_module(job["command"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else print(end.code, file=sys.stderr) or 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code or 0)

for line in sys.stdin:
    pids = [start(job) for job in json.loads(line)]
    print(json.dumps(pids), flush=True)
    codes = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
    print(json.dumps([codes[pid] for pid in pids]), flush=True)
"""


class Started:
    """Processes that were started together.

    Attributes:
        pids: of the processes, by rank.
        logs: files with what each printed.
    """

    def __init__(self, server: subprocess.Popen[str], logs: list[Path], store: Any) -> None:
        assert server.stdout is not None
        self._stdout, self.logs, self._store = server.stdout, logs, store
        self.pids: list[int] = json.loads(self._stdout.readline())

    def wait(self) -> tuple[list[int], list[str]]:
        """Exit codes (negative: killed by that signal), and what each printed."""
        codes = json.loads(self._stdout.readline())
        return codes, [log.read_text() for log in self.logs]

    def kill_when(
        self, condition: Callable[[], bool], number: int, which: int, within: float = 90
    ) -> tuple[list[int], list[str]]:
        """Send a signal to one of them the moment that `condition` holds; see `wait`."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                self.end()
                raise AssertionError(self.wait())
            time.sleep(0.01)
        os.kill(self.pids[which], number)
        return self.wait()

    def end(self) -> None:
        """Kill all of them, so that the server takes the next commands."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)


class Launcher:
    """Starts ``python -m MODULE ARGUMENTS``."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder = server, folder

    def start(self, *commands: list[str], together: bool = True, **environment: str) -> Started:
        """One process a command.

        Args:
            together: they are the processes of one run, in the order of their ranks.
            environment: more variables for all of them.
        """
        store = None
        settings: list[dict[str, str]] = [dict(environment) for _ in commands]
        if together:
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            for rank, variables in enumerate(settings):
                variables |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(len(commands)),
                    "LOCAL_WORLD_SIZE": str(len(commands)),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(store.port),
                    "TORCHELASTIC_USE_AGENT_STORE": "True",
                    "TORCHELASTIC_RESTART_COUNT": "0",
                }
        logs = [self._folder / f"log-{number}.txt" for number in range(len(commands))]
        jobs = [
            {"command": command, "log": str(log), "environment": variables}
            for command, log, variables in zip(commands, logs, settings, strict=True)
        ]
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(jobs) + "\n")
        self._server.stdin.flush()
        return Started(self._server, logs, store)

    def run(self, *commands: list[str], **options: Any) -> tuple[list[int], list[str]]:
        """`start` and `Started.wait`."""
        return self.start(*commands, **options).wait()


@contextlib.contextmanager
def launcher(root: Path, folder: Path) -> Iterator[Launcher]:
    """A server for as long as the block runs.

    Args:
        root: the clone.
        folder: for what the processes print.
    """
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "500"},
    ) as server:
        yield Launcher(server, folder)
        assert server.stdin is not None
        server.stdin.close()
