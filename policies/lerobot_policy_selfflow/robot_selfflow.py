"""An arm behind a rosbridge under LeRobot's commands: ``--robot.type=selfflow_ros``.

::

    lerobot-rollout --robot.type=selfflow_ros --robot.config=ur5e --robot.fps=30 --fps=30 ...

`envs.ros` talks to it; every action passes `policies.safety` on its way, and what is sent are short
trajectories that end at rest. LeRobot's loop calls when it likes, so between two calls nothing is
looked at: an arm whose loop has hung ends what it has accepted, and holds.

Running the command is the operator's act: it arms the arm when it connects. Whatever makes it hold
is final until it is connected anew. This is no safety function.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.lerobot_types import RobotAction, RobotObservation
from lerobot.robots import Robot
from lerobot.robots import RobotConfig as LeRobotConfig
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected
from omegaconf import OmegaConf

from envs.ros.arm import RosArm
from envs.ros.errors import BridgeError
from envs.ros.robot import CameraConfig, RobotConfig, checked, tip_of
from policies.deployment.arm import Reading, require_fit
from policies.deployment.gates import GateConfig, Gates
from policies.deployment.linked import LinkedArm, joint_limits
from policies.deployment.stream import Stream, StreamConfig
from policies.safety import SafetyFilter, Workspace

from .env_selfflow import demonstrations

log = logging.getLogger(__name__)

PRESETS = Path(__file__).with_name("robots")
"""``configs/robot`` of the clone, which is a part of this package in a wheel."""


class ArmHeldError(RuntimeError):
    """The arm holds, and takes nothing more before it is connected anew; says why."""


@LeRobotConfig.register_subclass("selfflow_ros")
@dataclass(kw_only=True)
class SelfflowRosConfig(LeRobotConfig):
    """An arm that ``configs/robot`` describes.

    Attributes:
        config: a preset's name ("bench", "panda", ...) or the path of a YAML file like those.
        url: of the bridge; None: what the file says.
        overrides: of the file, as ``{cameras: {front: {size: [240, 320]}}}``. The size of every
            picture has to be known before the arm is connected, by ``size`` or ``crop``.
        fps: of LeRobot's loop. Pictures are asked for at this rate; how often actions really come
            is measured.
        timeout_s: how long anything may take to arrive while connecting.
        motion, gates: how actions become motion, and when the arm must not go on.
    """

    config: str
    url: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    fps: float = 30.0
    timeout_s: float = 5.0
    motion: StreamConfig = field(default_factory=StreamConfig)
    gates: GateConfig = field(default_factory=GateConfig)

    def described(self) -> RobotConfig:
        """What the arm is.

        Raises:
            ValueError: no such file or preset, or it means nothing; says what and where.
        """
        path = Path(self.config)
        if path.suffix not in (".yaml", ".yml"):
            path = PRESETS / f"{self.config}.yaml"
        if not path.is_file():
            presets = sorted(p.stem for p in PRESETS.glob("*.yaml"))
            raise ValueError(
                f"--robot.config={self.config} is neither a file that ends in .yaml nor one of the "
                f"presets {presets}"
            )
        url = {} if self.url is None else {"url": self.url}
        try:
            merged = OmegaConf.merge(
                OmegaConf.structured(RobotConfig), OmegaConf.load(path), self.overrides, url
            )
            found = OmegaConf.to_object(merged)
            assert isinstance(found, RobotConfig)
            found = checked(found)
        except Exception as error:
            raise ValueError(f"--robot.config={self.config}: {error}") from error
        if found.interface != "joint_trajectory":
            raise ValueError(
                f"--robot.config={self.config}: interface {found.interface} takes every point at "
                "its own time, which LeRobot's loop cannot keep; use a joint_trajectory interface"
            )
        return found


class SelfflowRos(Robot):
    """See the module.

    Attributes:
        name: the robot's own type, which datasets that are recorded with it say.
        arm: what it is.
        cameras: by name.

    Raises:
        ValueError: a configuration that means nothing.
        worldmodel.types.SpecMismatchError: the command's ``--policy.path`` is a checkpoint of ours
            and was trained for another arm.
    """

    config_class = SelfflowRosConfig
    name = "selfflow_ros"

    def __init__(self, config: SelfflowRosConfig) -> None:
        self._bridge: RosArm | None = None  # before anything fails: `Robot.__del__` asks for it
        self.config, self.arm = config, config.described()
        self.name = self.arm.type or SelfflowRos.name
        self.cameras: dict[str, CameraConfig] = self.arm.cameras
        super().__init__(config)
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._held = ""
        spec, _, _ = demonstrations()
        if spec is not None:
            require_fit(spec, self.arm.features, tuple(self.cameras))

    # --- what it is -------------------------------------------------------------------------------

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joint -> float, camera -> ``(H, W, 3)``.

        Raises:
            ValueError: a picture's size is not known before one has arrived.
        """
        return {**self.action_features, **{c: self._shape(c) for c in self.cameras}}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(self.arm.features, float)

    def _shape(self, camera: str) -> tuple[int, int, int]:
        config = self.cameras[camera]
        if config.size is not None:
            return config.size[0], config.size[1], 3
        if config.crop is not None:
            return config.crop[2], config.crop[3], 3
        if camera in self._shapes:
            return self._shapes[camera]
        raise ValueError(
            f"how large the pictures of camera {camera} are is not known before one has arrived: "
            f"set --robot.overrides='{{cameras: {{{camera}: {{size: [HEIGHT, WIDTH]}}}}}}'"
        )

    # --- connecting -------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """From `connect` to `disconnect`, whatever becomes of the link in between."""
        return self._bridge is not None

    @property
    def is_calibrated(self) -> bool:
        """Always: what ROS speaks are radians."""
        return True

    def calibrate(self) -> None:
        """There is nothing to calibrate."""

    def configure(self) -> None:
        """There is nothing to set: what the arm's controller is, is said in its own files."""

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Connect and arm; nothing moves before the first action.

        Raises:
            envs.ros.errors.NotConnectedError: there is no bridge.
            ArmHeldError: something that is needed does not arrive, or the emergency stop is
                pressed; says what.
            ValueError: the robot's description contradicts its configuration.
        """
        bridge = RosArm(self.arm, period_s=1 / self.config.fps)
        try:
            bridge.start(self.config.timeout_s)
            self._begin(bridge)
        except BaseException:
            bridge.close()
            raise
        self._bridge = bridge
        log.info("%s is connected, at %s", self.arm.name, self.arm.url)

    def _begin(self, bridge: RosArm) -> None:
        try:
            description = bridge.description(self.config.timeout_s)
        except TimeoutError as error:
            raise ArmHeldError(
                f"no description has arrived on {self.arm.description} ({error})"
            ) from error
        tip, box = tip_of(self.arm, description), self.arm.workspace
        limits = joint_limits(self.arm, description)
        space = None
        if tip is not None:
            space = Workspace(np.array(box.low), np.array(box.high), tip, box.margin)
        motion = self.config.motion
        safety = SafetyFilter(limits, 1 / motion.controller_hz, space)
        self._stream = Stream(safety, motion, 1 / self.config.fps)
        self._link = LinkedArm(bridge, BridgeError)
        self._gates = Gates(
            self.config.gates, self._link.axes, self._link.cameras, limits.low, limits.high
        )
        end = time.monotonic() + self.config.timeout_s
        while why := self._why(reading := self._link.read(), self._link.generation):
            if time.monotonic() > end:
                raise ArmHeldError(why)
            time.sleep(0.01)
        self._shapes = {c: image.value.shape for c, image in reading.images.items()}
        self._generation, self._held = self._link.generation, ""

    def disconnect(self) -> None:
        """Brake, if it moves, and let go of the bridge. A second call changes nothing."""
        if self._bridge is None:
            return
        try:
            if not self._held:
                self._hold("disconnected")
        finally:
            self._bridge.close()
            self._bridge = None

    # --- moving -----------------------------------------------------------------------------------

    @check_if_not_connected
    def get_observation(self) -> RobotObservation:
        """The newest of everything: joint -> rad, camera -> uint8 ``[H, W, 3]``.

        Raises:
            ArmHeldError: something is missing or stale, by name, or the arm holds already.
        """
        reading = self._look()
        assert reading.joints is not None
        joints = zip(self.arm.features, reading.joints.value.tolist(), strict=True)
        return {**dict(joints), **{c: reading.images[c].value for c in self.cameras}}

    @check_if_not_connected
    def send_action(self, action: RobotAction) -> RobotAction:
        """Move towards an action; what is no joint of the arm is ignored.

        Args:
            action: joint -> rad, where it is to be when the next action comes.

        Returns:
            Where the trajectory that was sent is by then.

        Raises:
            ArmHeldError: the arm must not go on, or the action cannot be; it brakes and holds.
        """
        reading = self._look()
        assert reading.joints is not None
        now = time.monotonic()
        try:
            if missing := [n for n in self.arm.features if n not in action]:
                raise ValueError(f"the action lacks {missing}")
            target = np.array([float(action[n]) for n in self.arm.features])
            if not self._stream.started:
                self._stream.start(reading.joints.value, now)
            trajectory = self._stream.aim(target, now)
            self._link.send(trajectory, self._generation)
        except Exception as error:
            self._hold(f"{error}")
            raise ArmHeldError(self._held) from error
        due = int(np.abs(trajectory.times - self._stream.interval_s).argmin())
        return dict(zip(self.arm.features, trajectory.positions[due].tolist(), strict=True))

    def _look(self) -> Reading:
        """What is measured, if the arm may go on."""
        if self._held:
            raise ArmHeldError(f"{self._held}; to go on, connect anew")
        reading, generation = self._link.read(), self._link.generation
        why = self._why(reading, generation)
        if not why and generation != self._generation:
            why = "the link was lost and is another one now"
        if not why and self._stream.started:
            self._stream.advance(time.monotonic())
            why = self._gates.tracking(reading, self._stream.position)
        if why:
            self._hold(why)
            raise ArmHeldError(why)
        return reading

    def _why(self, reading: Reading, generation: int) -> str:
        return self._gates.check(reading, time.monotonic(), generation)

    def _hold(self, why: str) -> None:
        """Brake within the limits, and send nothing more."""
        self._held = why
        level = logging.INFO if why == "disconnected" else logging.ERROR
        log.log(level, "%s holds: %s", self.arm.name, why)
        if not self._stream.started:
            return
        if self._stream.clips:
            log.warning("held back by the safety filter, points: %s", dict(self._stream.clips))
        try:
            self._link.send(self._stream.brake(time.monotonic()), self._generation)
        except Exception as error:  # noqa: BLE001 - whatever it is, the arm ends what it has accepted
            log.error("braking cannot be sent (%s); the arm ends what it has accepted", error)
