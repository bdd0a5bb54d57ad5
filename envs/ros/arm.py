"""An arm behind a rosbridge: what it measures, in the checkpoint's order, and trajectories to it.

`RosArm` holds the newest message of every topic and turns it into numbers when it is asked. It
decides nothing: what is stale, far or forbidden is for whoever drives it to say.
"""

from __future__ import annotations

import math
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from .bridge import Bridge, Publisher
from .messages import float64_array, joint_reading, joint_trajectory, picture
from .robot import CameraConfig, Description, RobotConfig, checked, read_description
from .slots import Sample, Slot

TRAJECTORY, ARRAY = "trajectory_msgs/JointTrajectory", "std_msgs/Float64MultiArray"
JOINT_STATE, STRING, BOOL = "sensor_msgs/JointState", "std_msgs/String", "std_msgs/Bool"
IMAGES = {"compressed": "sensor_msgs/CompressedImage", "raw": "sensor_msgs/Image"}


@dataclass(frozen=True)
class Arrived:
    """One measurement: `value`, monotonic `arrival`, the robot's `stamp`, a `sequence` number."""

    value: np.ndarray
    arrival: float
    stamp: float | None
    sequence: int


@dataclass(frozen=True)
class ArmState:
    """The newest of everything.

    Attributes:
        joints: positions ``[J]`` in the configuration's order.
        images: camera -> uint8 ``[H, W, 3]``, cropped and resized as the configuration says.
        stopped: the emergency stop topic says so.
        problem: a message that could not be understood, or an error that the bridge reported.
    """

    joints: Arrived | None = None
    images: Mapping[str, Arrived] = field(default_factory=dict)
    stopped: bool = False
    problem: str = ""


class RosArm:
    """An arm behind a bridge.

    Args:
        config: what it is.
        bridge: started by `start`, closed by `close`; default: one to ``config.url``.
        period_s: of the cameras, at least; pictures are throttled to it.

    Attributes:
        axes: the checkpoint's names of what is commanded, in order.
        cameras: names of the cameras.
    """

    def __init__(
        self, config: RobotConfig, bridge: Bridge | None = None, period_s: float = 0.05
    ) -> None:
        self.config = checked(config)
        self.bridge = bridge or Bridge(config.url, ros=config.ros, allow_remote=config.allow_remote)
        self.axes, self.cameras = config.features, tuple(config.cameras)
        self._joints = self.bridge.subscribe(config.joint_states, JOINT_STATE)
        self._images: dict[str, Slot] = {
            name: self.bridge.subscribe(
                c.topic, IMAGES[c.encoding], throttle_s=0.8 * period_s, cbor=True
            )
            for name, c in config.cameras.items()
        }
        self._estop = None if config.estop is None else self.bridge.subscribe(config.estop, BOOL)
        self._described = (
            None
            if config.description is None
            else self.bridge.subscribe(config.description, STRING)
        )
        self._publishers = self._advertised()
        # What is sent comes back, too, and so does what somebody else sends.
        self.me = f"selfflow-{uuid.uuid4().hex[:8]}"
        self._sent = [
            self.bridge.subscribe(publisher.topic, TRAJECTORY)
            for publisher, _ in self._publishers
            if publisher.type.endswith("JointTrajectory")
        ]
        self._stop = None if config.estop is None else self.bridge.advertise(config.estop, BOOL)
        self._ahead: deque[float] = deque(maxlen=CLOCK_SAMPLES)
        self._decoded: dict[str, Arrived] = {}

    def _advertised(self) -> list[tuple[Publisher, list[int]]]:
        """Publishers, and which of the joints each commands."""
        c, count = self.config, len(self.config.joints)
        arm = list(range(count))
        extra: list[tuple[Publisher, list[int]]] = []
        if c.gripper.kind == "trajectory" and c.gripper.topic:
            hand = c.names.index(c.gripper.joint)
            arm.remove(hand)
            extra.append((self.bridge.advertise(c.gripper.topic, TRAJECTORY), [hand]))
        elif c.gripper.kind == "action":
            arm.remove(c.names.index(c.gripper.joint))
        kind = TRAJECTORY if c.interface == "joint_trajectory" else ARRAY
        return [(self.bridge.advertise(c.command, kind), arm), *extra]

    def start(self, timeout: float = 5.0) -> None:
        """Connect; see `Bridge.start`."""
        self.bridge.start(timeout)

    def close(self) -> None:
        self.bridge.close()

    @property
    def generation(self) -> int:
        """Which connection this is; 0 while there is none."""
        return self.bridge.generation if self.bridge.connected else 0

    def description(self, timeout: float) -> Description | None:
        """What the robot says of itself; None where the configuration names no such topic.

        Raises:
            TimeoutError: nothing came.
            ValueError: it is no URDF of these joints.
        """
        if self._described is None:
            return None
        text = self._described.wait(after=0, timeout=timeout).value.get("data", "")
        return read_description(str(text), self.config.names)

    @property
    def clock_ahead(self) -> float | None:
        """By how much the robot's clock is ahead of `time.monotonic` here, seconds.

        Of the newest joint states, the one that took least to arrive says it best; None while they
        carry no stamps.
        """
        return max(self._ahead, default=None)

    def read(self) -> ArmState:
        """The newest of everything. Never blocks."""
        problems = []
        joints = None
        if (sample := self._joints.read()) is not None:
            try:
                if sample.stamp is not None:
                    self._ahead.append(sample.stamp - sample.arrival)
                joints = Arrived(
                    self._in_order(sample), sample.arrival, sample.stamp, sample.sequence
                )
            except ValueError as error:
                problems.append(f"{self.config.joint_states}: {error}")
        images = {}
        for name, slot in self._images.items():
            try:
                if (image := self._image(name, slot)) is not None:
                    images[name] = image
            except ValueError as error:
                problems.append(f"camera {name}: {error}")
        problems += [
            f"somebody else sends trajectories to {slot.name}"
            for slot in self._sent
            if (sample := slot.read()) is not None and self._is_foreign(sample)
        ]
        pressed = None if self._estop is None else self._estop.read()
        return ArmState(
            joints,
            images,
            bool(pressed is not None and pressed.value.get("data")),
            "; ".join(problems),
        )

    def _is_foreign(self, sample: Sample) -> bool:
        """Whether a command of these seconds is somebody else's."""
        head = sample.value.get("header")
        frame = head.get("frame_id") if isinstance(head, Mapping) else None
        return sample.age < FOREIGN_S and frame != self.me

    def _in_order(self, sample: Sample) -> np.ndarray:
        """Positions by joint *name*: the order on the topic is the sender's business."""
        reading = joint_reading(sample.value)
        at = {name: i for i, name in enumerate(reading.names)}
        if missing := [n for n in self.config.names if n not in at]:
            raise ValueError(f"no joint {missing}; there are {sorted(at)}")
        return reading.position[[at[n] for n in self.config.names]]

    def _image(self, name: str, slot: Slot) -> Arrived | None:
        sample = slot.read()
        if sample is None:
            return None
        last = self._decoded.get(name)
        if last is None or last.sequence != sample.sequence:
            shown = fitted(picture(sample.value), self.config.cameras[name])
            last = Arrived(shown, sample.arrival, sample.stamp, sample.sequence)
            self._decoded[name] = last
        return last

    def send(
        self,
        times: np.ndarray,
        positions: np.ndarray,
        velocities: np.ndarray,
        generation: int,
        start: float | None = None,
    ) -> None:
        """Replace what the arm is doing.

        Args:
            times: seconds from `start` ``[N]``.
            positions, velocities: ``[N, J]``.
            generation: the connection on which whoever commands was armed.
            start: monotonic time that it begins at; None: when it arrives. A robot whose joint
                states carry stamps is told it on its own clock: else each trajectory is shifted by
                the time that its message takes, and where that varies, the arm jerks at each join.

        Raises:
            NotConnectedError, StaleGenerationError: nothing was sent.
            NonFiniteError: a value is no number.
        """
        c = self.config
        ahead = self.clock_ahead
        stamp = 0.0 if start is None or ahead is None else start + ahead
        for publisher, joints in self._publishers:
            if publisher.type.endswith("Float64MultiArray"):
                # Such a controller does not interpolate: it is given the next point alone.
                message = float64_array(positions[0, joints])
            else:
                names = tuple(c.names[j] for j in joints)
                message = joint_trajectory(
                    names, positions[:, joints], velocities[:, joints], times, c.ros, self.me, stamp
                )
            publisher.publish(message, generation)
        if c.gripper.kind == "action":
            hand = c.names.index(c.gripper.joint)
            self._grip(float(positions[-1, hand]), generation)

    def press_stop(self) -> None:
        """Press the robot's emergency stop.

        Raises:
            ValueError: the configuration names no such topic.
            NotConnectedError: it was not sent.
        """
        if self._stop is None:
            raise ValueError(f"robot {self.config.name} names no estop topic")
        self._stop.publish({"data": True})

    _gripped = math.nan

    def _grip(self, position: float, generation: int) -> None:
        """A GripperCommand goal, where it differs from the last one."""
        if abs(position - self._gripped) < GRIP_STEP:
            return
        if generation != self.generation:
            return  # the trajectory was refused already; see `send`
        self._gripped = position
        goal = {"command": {"position": position, "max_effort": self.config.gripper.effort}}
        self.bridge.send_goal(self.config.gripper.topic, "control_msgs/GripperCommand", goal)


CLOCK_SAMPLES = 40
"""Joint states that say how the robot's clock goes: two seconds, read 20 times a second."""
FOREIGN_S = 1.0
"""For so long a trajectory of somebody else's is a reason not to move."""
GRIP_STEP = 0.005
"""Metres (or radians) by which a gripper's goal changes at least."""


def fitted(image: np.ndarray, config: CameraConfig) -> np.ndarray:
    """Crop and resize a picture uint8 ``[H, W, 3]``.

    Raises:
        ValueError: the crop lies outside of it.
    """
    if config.crop is not None:
        top, left, height, width = config.crop
        if top < 0 or left < 0 or top + height > image.shape[0] or left + width > image.shape[1]:
            raise ValueError(
                f"crop {config.crop} (top, left, height, width) lies outside of a picture of "
                f"{image.shape[0]}x{image.shape[1]}"
            )
        image = image[top : top + height, left : left + width]
    if config.size is not None and tuple(config.size) != image.shape[:2]:
        height, width = config.size
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return image
