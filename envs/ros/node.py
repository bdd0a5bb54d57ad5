"""Our MuJoCo arm as a ROS 2 node, in real time: the bench's robot.

Runs under ``.venv-ros`` only, started by `envs.ros.graph`::

    .venv-ros/bin/python -m envs.ros.node --task reach --seed 0

Publishes ``/joint_states``, ``/camera/NAME/compressed`` (JPEG), ``/robot_description`` (latched),
``/estop`` (latched: whether it is stopped) and ``/bench/status`` (JSON). Takes trajectories
(``/joint_trajectory_controller/joint_trajectory``), positions (``/joint_group/commands``) and
``/estop``: true stops it, and only ``/reset_sim`` ends that. ``/reset_sim`` begins the episode
whose seed ``/bench/reset`` named last, or the one after the present; ``/bench/trace`` says what the
arm really did; ``/bench/fault`` breaks something (`envs.ros.bench_faults`).

Three threads: physics and joint states, cameras, and ROS callbacks. Physics keeps the wall clock's
time; where the machine cannot, time slips, and the status says by how much.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from PIL import Image
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Bool, Float64MultiArray, Int64, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from .. import make, names
from ..base import ArmEnv
from .bench_faults import Faults
from .controller import STOPPED, RefusedError
from .simulated import JOINTS, PERIOD_S, SimulatedArm
from .urdf import robot_description

TRAJECTORY_TOPIC = "/joint_trajectory_controller/joint_trajectory"
POSITIONS_TOPIC = "/joint_group/commands"
STATUS_HZ = 10.0
JPEG_QUALITY = 95

# How far physics may fall behind before it gives up catching up, in seconds.
_SLIP_S = 0.25
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Bench:
    """The node; `run` returns when the process is asked to end.

    Args:
        task: a name of `envs.names`.
        seed: of the first episode.
        options: of the task.
        cameras: any of the task's.
        image_size: of the pictures, ``(height, width)``.
        joint_hz, camera_hz: messages per second.
        watchdog_s: see `envs.ros.controller.Controller`.
    """

    def __init__(
        self,
        task: str,
        *,
        seed: int,
        options: dict[str, Any],
        cameras: Sequence[str],
        image_size: Sequence[int],
        joint_hz: float,
        camera_hz: float,
        watchdog_s: float,
    ):
        self.task = task
        body = _task(task, cameras=(), **options)
        # Pictures are drawn in another thread, of a copy of the state: physics does not wait.
        self.eye = _task(task, cameras=cameras, image_size=image_size, **options)
        self.arm = SimulatedArm(body, seed=seed, watchdog_s=watchdog_s)
        self.faults = Faults()
        self.next_seed: int | None = None
        self.slipped_s = 0.0
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self.failed = False
        self.joint_ticks = max(round(1 / (joint_hz * PERIOD_S)), 1)
        # Monotonic time of the arm's time 0; every tick's time follows from its number.
        self.origin = time.monotonic()
        self.status_ticks = max(round(1 / (STATUS_HZ * PERIOD_S)), 1)
        self.camera_period_s = 1 / camera_hz
        self._held: deque[tuple[float, JointState]] = deque(maxlen=10_000)
        self._told_stopped = False
        self._echoes = 0

        self.node = rclpy.create_node("selfflow_bench")
        node = self.node
        self.joint_states = node.create_publisher(JointState, "/joint_states", 5)
        self.status = node.create_publisher(String, "/bench/status", 5)
        self.estop = node.create_publisher(Bool, "/estop", _LATCHED)
        self.description = node.create_publisher(String, "/robot_description", _LATCHED)
        self.pictures = {
            camera: node.create_publisher(CompressedImage, f"/camera/{camera}/compressed", 2)
            for camera in self.eye.cameras
        }
        node.create_subscription(JointTrajectory, TRAJECTORY_TOPIC, self._on_trajectory, 5)
        node.create_subscription(Float64MultiArray, POSITIONS_TOPIC, self._on_positions, 5)
        node.create_subscription(Bool, "/estop", self._on_estop, 5)
        node.create_subscription(Int64, "/bench/reset", self._on_seed, 5)
        node.create_subscription(String, "/bench/fault", self._on_fault, 5)
        node.create_service(Trigger, "/reset_sim", self._on_reset)
        node.create_service(Trigger, "/bench/trace", self._on_trace)
        self.description.publish(String(data=robot_description(body.model)))
        self.estop.publish(Bool(data=False))

    # Threads.

    def run(self) -> None:
        """Until `ending` is set.

        Raises:
            RuntimeError: a thread failed; its traceback has been printed.
        """
        threads = [
            threading.Thread(target=self._whole(work), name=work.__name__)
            for work in (self._physics, self._cameras)
        ]
        for thread in threads:
            thread.start()
        executor = SingleThreadedExecutor()
        executor.add_node(self.node)
        print("ready", flush=True)
        try:
            while not self.ending.is_set():
                executor.spin_once(timeout_sec=0.2)
        finally:
            self.ending.set()
            for thread in threads:
                thread.join()
        if self.failed:
            raise RuntimeError("a thread of the node failed, see above")

    def _whole(self, work: Callable[[], None]) -> Callable[[], None]:
        """A thread that fails ends the node: half a robot would look like a slow one."""

        def guarded() -> None:
            done = False
            try:
                work()
                done = True
            finally:
                self.failed |= not done
                self.ending.set()

        return guarded

    def _physics(self) -> None:
        self.origin = time.monotonic() - self.arm.time
        ticks = 0
        while not self.ending.is_set():
            late = time.monotonic() - self.origin - self.arm.time - PERIOD_S
            if late < 0:
                time.sleep(-late)
            elif late > _SLIP_S:
                self.origin += late
                self.slipped_s += late
            ticks += 1
            with self.lock:
                self.arm.tick()
                stamp = self._stamp(self.faults.skew_s)
                joints = self._joints(stamp) if ticks % self.joint_ticks == 0 else None
                status = self._status() if ticks % self.status_ticks == 0 else None
                delay = self.faults.joints_delay_s
                stopped = self.arm.controller.state == STOPPED
            if joints is not None:
                self._held.append((time.monotonic(), joints))
            while self._held and self._held[0][0] + delay <= time.monotonic():
                self.joint_states.publish(self._held.popleft()[1])
            if status is not None:
                self.status.publish(status)
            if stopped != self._told_stopped:
                self._told_stopped = stopped
                self._tell_stopped(stopped)

    def _cameras(self) -> None:
        try:
            last: dict[str, CompressedImage] = {}
            due = time.monotonic()
            while not self.ending.is_set():
                with self.lock:
                    state = self.arm.env.get_state()
                    faults = self.faults
                    stamp = self._stamp(faults.skew_s + faults.camera_skew_s)
                self.eye.set_state(state)
                for camera, publisher in self.pictures.items():
                    if faults.camera_stopped:
                        continue
                    if faults.camera_frozen or faults.camera_frozen_restamped:
                        message = last.get(camera)
                    else:
                        message = self._picture(camera)
                    if message is None:  # frozen before there was a picture
                        continue
                    if not faults.camera_frozen:
                        message.header.stamp = stamp
                    last[camera] = message
                    publisher.publish(message)
                due = max(due + self.camera_period_s, time.monotonic() - self.camera_period_s)
                self.ending.wait(max(due - time.monotonic(), 0.0))
        finally:
            self.eye.close()  # in the thread that drew

    # Messages out.

    def _stamp(self, skew_s: float) -> Time:
        nanoseconds = time.time_ns() + round(skew_s * 1e9)
        return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)

    def _joints(self, stamp: Time) -> JointState | None:
        if self.faults.joints_stopped:
            return None
        names = list(JOINTS)
        position = self.arm.env.agent_pos.astype(float).tolist()
        velocity = self.arm.env.agent_vel.tolist()
        if self.faults.joints_nan:
            position[0] = math.nan
        if self.faults.joints_reordered:
            names, position, velocity = names[::-1], position[::-1], velocity[::-1]
        if self.faults.joints_mislabelled:
            names = [*names[1:7], names[0], *names[7:]]
        message = JointState(name=names, position=position, velocity=velocity)
        message.header.stamp = stamp
        return message

    def _picture(self, camera: str) -> CompressedImage:
        file = io.BytesIO()
        picture = Image.fromarray(self.eye.draw(camera, self.eye.image_size))
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
        message = CompressedImage(format="jpeg", data=file.getvalue())
        message.header.frame_id = camera
        return message

    def _status(self) -> String:
        more = {
            "task": self.task,
            "next_seed": self.arm.seed + 1 if self.next_seed is None else self.next_seed,
            "faults": {
                name: value for name, value in dataclasses.asdict(self.faults).items() if value
            },
            # A bridge is one publisher, whoever speaks through it; one that was killed counts until
            # its lease has run out.
            "publishers": self.node.count_publishers(TRAJECTORY_TOPIC)
            + self.node.count_publishers(POSITIONS_TOPIC),
            "slipped_s": round(self.slipped_s, 3),
        }
        return String(data=json.dumps(self.arm.status() | more))

    def _tell_stopped(self, stopped: bool) -> None:
        # It hears itself: an echo that comes after a reset must not stop it again.
        with self.lock:
            self._echoes += stopped
        self.estop.publish(Bool(data=stopped))

    # Messages in.

    def _on_trajectory(self, message: JointTrajectory) -> None:
        name = message.header.frame_id or "a trajectory"
        sent = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        try:
            rows = [(p.positions, p.velocities, p.time_from_start) for p in message.points]
            has_velocities = any(len(velocities) for _, velocities, _ in rows)
            with self.lock:
                now = self.arm.time
                taken = self.arm.controller.follow(
                    list(message.joint_names),
                    self._matrix([row[0] for row in rows]),
                    self._matrix([row[1] for row in rows]) if has_velocities else None,
                    np.array([row[2].sec + row[2].nanosec / 1e9 for row in rows]),
                    now=now,
                    # The arm's time goes by ticks; a stamp lies between them.
                    start=time.monotonic() - self.origin + sent - time.time() if sent else None,
                )
                self.arm.note(
                    "accepted",
                    f"{name}: {len(rows)} points, until {taken.end:.3f}, stamp {sent:.3f}",
                )
        except RefusedError as refusal:
            with self.lock:
                self.arm.note("refused", f"{name}: {refusal}")

    def _matrix(self, rows: Sequence[Sequence[float]]) -> np.ndarray:
        if len({len(row) for row in rows}) > 1:
            self.arm.controller.refused += 1
            raise RefusedError("the points have different numbers of values")
        return np.array([list(row) for row in rows], float)

    def _on_positions(self, message: Float64MultiArray) -> None:
        with self.lock:
            try:
                self.arm.controller.jump(np.array(message.data), now=self.arm.time)
                self.arm.note("accepted", "positions")
            except RefusedError as refusal:
                self.arm.note("refused", f"positions: {refusal}")

    def _on_estop(self, message: Bool) -> None:
        with self.lock:
            if not message.data:  # nobody is let go by a message
                return
            if self._echoes:
                self._echoes -= 1
                return
            self.arm.controller.stop("emergency stop")
            self.arm.note("stopped", "emergency stop")

    def _on_seed(self, message: Int64) -> None:
        with self.lock:
            self.next_seed = message.data

    def _on_fault(self, message: String) -> None:
        with self.lock:
            try:
                self.faults = Faults.parse(message.data)
                self.arm.note("fault", message.data)
            except ValueError as error:
                self.arm.note("refused", f"fault: {error}")

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self.lock:
            seed = self.arm.seed + 1 if self.next_seed is None else self.next_seed
            if seed < 0:
                response.success, response.message = False, f"{seed} is no seed"
                return response
            self.next_seed = None
            self.arm.reset(seed)
            response.success = True
            response.message = json.dumps({"episode": self.arm.episode, "seed": seed})
        return response

    def _on_trace(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self.lock:
            record = self.arm.record()
        response.success, response.message = True, json.dumps(record)
        return response


def _task(name: str, **options: Any) -> ArmEnv:
    """Raises:
    ValueError: there is none of that name, or it is no task of our own arm.
    """
    env = make(name, **options).unwrapped
    if not isinstance(env, ArmEnv):
        raise ValueError(f"{name} is no task of our own arm; those are: {', '.join(names())}")
    return env


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", default="reach")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, help="of the task, as JSON")
    parser.add_argument("--cameras", type=lambda text: text.split(",") if text else [])
    parser.add_argument("--image-size", type=int, nargs=2, default=(96, 96))
    parser.add_argument("--joint-hz", type=float, default=50.0)
    parser.add_argument("--camera-hz", type=float, default=20.0)
    parser.add_argument("--watchdog-s", type=float, default=0.3)
    arguments = parser.parse_args()
    # Physics must not wait long for a thread that computes.
    sys.setswitchinterval(0.001)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    bench = Bench(
        arguments.task,
        seed=arguments.seed,
        options=arguments.options,
        cameras=("front", "wrist") if arguments.cameras is None else arguments.cameras,
        image_size=arguments.image_size,
        joint_hz=arguments.joint_hz,
        camera_hz=arguments.camera_hz,
        watchdog_s=arguments.watchdog_s,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: bench.ending.set())
    try:
        bench.run()
    finally:
        bench.node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
