"""A rosbridge client for tests of the bench alone: a few lines, so that it is no second subject."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TRAJECTORY = "/joint_trajectory_controller/joint_trajectory"
FRONT, WRIST = "/camera/front/compressed", "/camera/wrist/compressed"
TYPES = {
    "/joint_states": "sensor_msgs/msg/JointState",
    FRONT: "sensor_msgs/msg/CompressedImage",
    WRIST: "sensor_msgs/msg/CompressedImage",
    "/robot_description": "std_msgs/msg/String",
    "/bench/status": "std_msgs/msg/String",
    "/bench/fault": "std_msgs/msg/String",
    "/bench/reset": "std_msgs/msg/Int64",
    "/estop": "std_msgs/msg/Bool",
    TRAJECTORY: "trajectory_msgs/msg/JointTrajectory",
    "/joint_group/commands": "std_msgs/msg/Float64MultiArray",
}
HEARD = (
    "/joint_states",
    FRONT,
    WRIST,
    "/robot_description",
    "/bench/status",
    "/estop",
    TRAJECTORY,
)
SPOKEN = ("/bench/fault", "/bench/reset", "/estop", TRAJECTORY, "/joint_group/commands")
ARM = [f"joint_{i}" for i in range(1, 8)]
JOINTS = [*ARM, "gripper"]


class Client:
    """Hears all topics and speaks on all, for as long as the block runs.

    Attributes:
        heard: topic -> the last 500 ``(time.time() of arrival, message)``.
    """

    def __init__(self, url: str):
        self._connection = connect(url, max_size=None)
        self.heard: dict[str, deque[tuple[float, Any]]] = {t: deque(maxlen=500) for t in HEARD}
        self.problems: list[Any] = []
        self._answers: dict[str, Any] = {}
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        self._socket = self._connection.__enter__()
        self._thread.start()
        for topic in HEARD:
            self._send(op="subscribe", topic=topic, type=TYPES[topic])
        for topic in SPOKEN:
            self._send(op="advertise", topic=topic, type=TYPES[topic])
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.__exit__(None, None, None)
        self._thread.join()

    def publish(self, topic: str, message: dict[str, Any]) -> None:
        self._send(op="publish", topic=topic, msg=message)

    def call(self, service: str, timeout: float = 10.0) -> Any:
        """Call a Trigger; its message, read as JSON."""
        number = str(next(self._numbers))
        self._send(op="call_service", service=service, type="std_srvs/srv/Trigger", id=number)
        answer = self.wait(lambda: self._answers.pop(number, None), timeout)
        assert answer["success"], answer
        return json.loads(answer["message"])

    def wait[T](self, get: Callable[[], T], timeout: float = 10.0) -> T:
        """The first value of `get` that is true."""
        deadline = time.monotonic() + timeout
        while not (value := get()):
            assert time.monotonic() < deadline, (self.status, self.problems)
            assert self._thread.is_alive(), "the connection has ended"
            time.sleep(0.005)
        return value

    def repeat(self, action: Callable[[], object], until: Callable[[], bool]) -> None:
        """Act every 0.2 s until it has shown effect: who has just advertised may not be heard."""
        deadline, due = time.monotonic() + 10.0, 0.0
        while not until():
            assert time.monotonic() < deadline, (self.status, self.problems)
            if time.monotonic() > due:
                action()
                due = time.monotonic() + 0.2
            time.sleep(0.005)

    def be_heard(self) -> None:
        """Return when trajectories arrive, and all that was sent to find out has."""
        refused = self.wait(lambda: self.status)["refused"]
        self.repeat(
            lambda: self.go([], [], name="a probe"), lambda: self.status["refused"] > refused
        )
        self.go([], [], name="the last probe")
        self.wait(lambda: "the last probe" in str(self.call("/bench/trace")["events"][-5:]))

    # What the bench says.

    @property
    def status(self) -> dict[str, Any]:
        messages = self.heard["/bench/status"]
        return json.loads(messages[-1][1]["data"]) if messages else {}

    def wait_for(self, **wanted: Any) -> dict[str, Any]:
        """The first status that has these values."""
        self.wait(lambda: all(self.status.get(k) == v for k, v in wanted.items()))
        return self.status

    def since(self, when: float, topic: str, least: int = 0) -> list[tuple[float, Any]]:
        """What arrived on a topic after `when`, once there are `least` of it."""

        def found() -> list[tuple[float, Any]]:
            # A copy at once: the other thread adds to it.
            return [m for m in list(self.heard[topic]) if m[0] > when]

        self.wait(lambda: len(found()) >= least)
        return found()

    def position(self) -> np.ndarray:
        """``[8]``, as last heard."""
        self.since(0.0, "/joint_states", least=1)
        return np.array(self.heard["/joint_states"][-1][1]["position"])

    def picture(self, camera: str = "front") -> np.ndarray:
        """uint8 ``[H, W, 3]``, as last heard."""
        data = self.heard[f"/camera/{camera}/compressed"][-1][1]["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))

    # What the bench is told.

    def begin(self, seed: int) -> dict[str, Any]:
        """A new episode, with nothing broken; returns when the status shows it."""

        # Another way through the graph than the service's, so it may come later.
        def prepare() -> None:
            self.publish("/bench/fault", {"data": "{}"})
            self.publish("/bench/reset", {"data": seed})

        self.repeat(
            prepare, lambda: self.status.get("next_seed") == seed and not self.status["faults"]
        )
        answer = self.call("/reset_sim")
        assert answer["seed"] == seed
        return self.wait_for(episode=answer["episode"])

    def go(
        self,
        positions: Any,
        times: Sequence[float],
        *,
        velocities: Any = None,
        names: Sequence[str] = JOINTS,
        name: str = "",
        stamp: float = 0.0,
    ) -> None:
        """A trajectory; without `velocities`, zero at every point."""
        rows = np.asarray(positions, float)
        velocities = np.zeros_like(rows) if velocities is None else np.asarray(velocities)
        points = [
            {
                "positions": p.tolist(),
                "velocities": v.tolist(),
                "time_from_start": {"sec": int(t), "nanosec": round(t % 1 * 1e9)},
            }
            for p, v, t in zip(rows, velocities, times, strict=True)
        ]
        header = {
            "stamp": {"sec": int(stamp), "nanosec": round(stamp % 1 * 1e9)},
            "frame_id": name,
        }
        message = {"header": header, "joint_names": list(names), "points": points}
        self.publish(TRAJECTORY, message)

    def _send(self, **message: Any) -> None:
        self._socket.send(json.dumps(message))

    def _listen(self) -> None:
        try:
            for text in self._socket:
                message = json.loads(text)
                if message["op"] == "publish":
                    self.heard[message["topic"]].append((time.time(), message["msg"]))
                elif message["op"] == "service_response":
                    self._answers[message["id"]] = message["values"]
                else:
                    self.problems.append(message)
        except ConnectionClosed:  # the bridge was killed
            pass
