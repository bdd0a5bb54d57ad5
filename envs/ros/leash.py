"""Run a program that ends when whoever started it ends, however that is.

``python leash.py LOG COMMAND...`` runs the command, prints its process id, and ends it when it
reads anything, or when its standard input closes, which the system sees to even if the starter is
killed. A pipe rather than ``PR_SET_PDEATHSIG``: that one is bound to the thread that forked.

Standard library only, and run by its path: it starts in a few hundredths of a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

PATIENCE_S = 3.0
"""Seconds between asking the program to end and killing it."""


def main() -> int:
    log, *command = sys.argv[1:]
    with open(log, "ab") as output:
        # A group of its own: Ctrl-C reaches the starter, which then lets go.
        program = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
    # What is sent to the whole group (Ctrl-C, `timeout`) ends the starter, and so the program. Were
    # the leash ended by it, too, it would leave the program behind, which must not inherit this.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    print(program.pid, flush=True)

    def let_go() -> None:
        os.read(0, 1)
        program.terminate()
        try:
            program.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            program.kill()

    threading.Thread(target=let_go, daemon=True).start()
    return program.wait()


if __name__ == "__main__":
    code = main()
    os._exit(code if code >= 0 else 128 - code)
