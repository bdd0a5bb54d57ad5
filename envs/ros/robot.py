"""What a robot is, beyond its checkpoint: joints, limits, topics, rates. One YAML file each.

Limits stand in the configuration. Where the robot publishes its description (a latched URDF), the
tighter of the two counts: a description narrows what the file says and never widens it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._mujoco import mujoco

COMMANDS = ("joint_trajectory", "joint_group")
GRIPPERS = ("none", "trajectory", "action")
ENCODINGS = ("compressed", "raw")


@dataclass
class JointConfig:
    """One joint that is commanded.

    Attributes:
        name: as ROS calls it.
        feature: as the dataset and the checkpoint call it; "": ``NAME.pos``.
        low, high: rad (prismatic: m).
        velocity, acceleration, jerk: largest magnitudes, per s, s^2, s^3.
    """

    name: str = ""
    feature: str = ""
    low: float = 0.0
    high: float = 0.0
    velocity: float = 0.0
    acceleration: float = 0.0
    jerk: float = 0.0


@dataclass
class CameraConfig:
    """One camera.

    Attributes:
        topic: of `sensor_msgs/CompressedImage` or `sensor_msgs/Image`.
        encoding: "compressed" or "raw".
        crop: top, left, height, width in pixels of the topic's picture; null: all of it.
        size: height, width to which it is then resized; null: as it is.
    """

    topic: str = ""
    encoding: str = "compressed"
    crop: list[int] | None = None
    size: list[int] | None = None


@dataclass
class GripperConfig:
    """The gripper, the last of what is commanded; its joint is among ``joints``.

    Attributes:
        kind: "none"; "trajectory": its joint stands in the arm's trajectories (or in one of its
            own, where `topic` is given); "action": GripperCommand goals.
        joint: its name.
        topic: of its own trajectories, or of the action.
        effort: of a goal, N.
    """

    kind: str = "none"
    joint: str = ""
    topic: str = ""
    effort: float = 20.0


@dataclass
class WorkspaceConfig:
    """A box, in the frame of the arm's base, that the tip stays in; metres.

    Attributes:
        low, high: corners; null: no box.
        link: whose origin the tip is, by its name in the URDF.
        offset: of the tip in that link's frame.
        margin: how far inside the box the filter keeps it.
    """

    low: list[float] | None = None
    high: list[float] | None = None
    link: str = ""
    offset: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    margin: float = 0.01


@dataclass
class RobotConfig:
    """A robot behind a rosbridge; see ``configs/robot``.

    Attributes:
        name: of the robot; `type`: the dataset's ``robot_type``.
        url: of the bridge; `ros`: 1 or 2, the form of its messages.
        allow_remote: the bridge may be on another machine.
        joints: in the order of the checkpoint's actions.
        joint_states, description, command, estop: topics; null description or estop: there is none.
        interface: "joint_trajectory" or "joint_group".
        gripper, cameras, workspace: see there.
        home: joint positions in which it may begin, rad.
    """

    name: str = ""
    type: str = ""
    url: str = "ws://127.0.0.1:9090"
    ros: int = 2
    allow_remote: bool = False
    joints: list[JointConfig] = field(default_factory=list)
    joint_states: str = "/joint_states"
    description: str | None = "/robot_description"
    interface: str = "joint_trajectory"
    command: str = "/joint_trajectory_controller/joint_trajectory"
    estop: str | None = "/estop"
    gripper: GripperConfig = field(default_factory=GripperConfig)
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    workspace: WorkspaceConfig = field(default_factory=WorkspaceConfig)
    home: list[float] = field(default_factory=list)

    @property
    def features(self) -> tuple[str, ...]:
        """What the checkpoint calls the joints."""
        return tuple(j.feature or f"{j.name}.pos" for j in self.joints)

    @property
    def names(self) -> tuple[str, ...]:
        """What ROS calls them."""
        return tuple(j.name for j in self.joints)

    def array(self, what: str) -> np.ndarray:
        """One of the numbers of `JointConfig` for all joints, ``[J]``."""
        return np.array([getattr(j, what) for j in self.joints], float)


def checked(config: RobotConfig) -> RobotConfig:
    """The configuration, if it means something.

    Raises:
        ValueError: names the joint, camera or field, and what it has to be.
    """
    if not config.joints:
        raise ValueError(f"robot {config.name!r} has no joints")
    if config.ros not in (1, 2):
        raise ValueError(f"ros is 1 or 2, found {config.ros}")
    for what, found, known in (
        ("interface", config.interface, COMMANDS),
        ("gripper.kind", config.gripper.kind, GRIPPERS),
        *((f"cameras.{n}.encoding", c.encoding, ENCODINGS) for n, c in config.cameras.items()),
    ):
        if found not in known:
            raise ValueError(f"{what} is one of {list(known)}, found {found!r}")
    names = config.names
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"every joint has a name of its own, found {list(names)}")
    for joint in config.joints:
        if not joint.low < joint.high:
            raise ValueError(f"{joint.name}: low={joint.low} is not below high={joint.high}")
        for what in ("velocity", "acceleration", "jerk"):
            if not getattr(joint, what) > 0:
                raise ValueError(f"{joint.name}: {what}={getattr(joint, what)} is not above 0")
    if config.gripper.kind != "none" and config.gripper.joint not in names:
        raise ValueError(
            f"gripper.joint {config.gripper.joint!r} is none of the joints {list(names)}"
        )
    if config.gripper.kind == "action" and not config.gripper.topic:
        raise ValueError("gripper.kind=action needs gripper.topic, the name of the action")
    for camera, c in config.cameras.items():
        if not c.topic:
            raise ValueError(f"cameras.{camera}.topic is missing")
        for field_, numbers, count in (("crop", c.crop, 4), ("size", c.size, 2)):
            if numbers is not None and len(numbers) != count:
                raise ValueError(
                    f"cameras.{camera}.{field_} holds {count} numbers, found {numbers}"
                )
    box = config.workspace
    if (box.low is None) != (box.high is None):
        raise ValueError("a workspace has both corners, workspace.low and workspace.high, or none")
    if box.low is not None and box.high is not None:
        if len(box.low) != 3 or len(box.high) != 3 or not (np.less(box.low, box.high)).all():
            raise ValueError(f"workspace.low is below workspace.high, found {box.low}, {box.high}")
        if not box.link:
            raise ValueError("a workspace needs workspace.link, the URDF link that carries the tip")
    if config.home and len(config.home) != len(config.joints):
        raise ValueError(f"home holds {len(config.joints)} positions, found {len(config.home)}")
    return config


@dataclass(frozen=True)
class Description:
    """What a URDF says of the joints that are commanded.

    Attributes:
        limits: joint -> low, high, velocity; a value that it does not state is infinite.
        urdf: the text.
    """

    limits: Mapping[str, tuple[float, float, float]]
    urdf: str


def read_description(urdf: str, joints: tuple[str, ...]) -> Description:
    """Read the limits of these joints off a URDF.

    Raises:
        ValueError: it is no URDF, or a joint is missing or cannot be commanded.
    """
    try:
        root = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise ValueError(f"the robot's description is no XML: {error}") from error
    found = {j.get("name", ""): j for j in root.iter("joint") if j.get("type") is not None}
    limits = {}
    for name in joints:
        if name not in found:
            raise ValueError(
                f"the robot's description has no joint {name!r}; it has {sorted(found)}"
            )
        joint, kind = found[name], found[name].get("type")
        if kind not in ("revolute", "continuous", "prismatic"):
            raise ValueError(f"joint {name!r} is {kind} in the robot's description")
        limit = joint.find("limit")
        stated = {} if limit is None else limit.attrib
        free = kind == "continuous" or limit is None
        limits[name] = (
            -np.inf if free else float(stated.get("lower", 0.0)),
            np.inf if free else float(stated.get("upper", 0.0)),
            float(stated.get("velocity", np.inf)) or np.inf,
        )
    return Description(limits, urdf)


class Tip:
    """Where the tip is, by the URDF's kinematics (`mujoco` computes them).

    Args:
        urdf: the robot's description; shapes and meshes are left out.
        joints: ROS names, in the order in which positions come.
        link, offset: see `WorkspaceConfig`.

    Raises:
        ValueError: a link or a joint that the description does not have.
    """

    def __init__(
        self, urdf: str, joints: tuple[str, ...], link: str, offset: tuple[float, ...]
    ) -> None:
        root = ElementTree.fromstring(urdf)
        for part in root.iter("link"):
            for shape in [*part.findall("visual"), *part.findall("collision")]:
                part.remove(shape)
            if part.find("inertial") is None:  # a model needs masses, kinematics do not
                inertial = ElementTree.SubElement(part, "inertial")
                ElementTree.SubElement(inertial, "mass", value="1")
                axes = {n: "1" if n[1] == n[2] else "0" for n in INERTIA}
                ElementTree.SubElement(inertial, "inertia", axes)
        extension = root.find("mujoco")
        if extension is None:
            extension = ElementTree.SubElement(root, "mujoco")
        # Links that hang together rigidly stay bodies of their own: one of them is the tip.
        ElementTree.SubElement(
            extension, "compiler", fusestatic="false", discardvisual="true", strippath="true"
        )
        text = ElementTree.tostring(root, encoding="unicode")
        self.model = mujoco.MjModel.from_xml_string(text)
        self.data = mujoco.MjData(self.model)
        bodies = [self.model.body(i).name for i in range(self.model.nbody)]
        if link not in bodies:
            raise ValueError(f"the robot's description has no link {link!r}; it has {bodies[1:]}")
        self._body = bodies.index(link)
        self._at = [int(self.model.joint(name).qposadr[0]) for name in joints]
        self._offset = np.array(offset, float)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """``[..., J]`` joint positions -> ``[..., 3]`` metres in the base's frame."""
        flat = positions.reshape(-1, len(self._at))
        found = np.empty((len(flat), 3))
        for row, q in enumerate(flat):
            self.data.qpos[self._at] = q
            mujoco.mj_kinematics(self.model, self.data)
            turn = self.data.xmat[self._body].reshape(3, 3)
            found[row] = self.data.xpos[self._body] + turn @ self._offset
        return found.reshape(*positions.shape[:-1], 3)


def tip_of(config: RobotConfig, description: Description | None) -> Tip | None:
    """Where the tip is that a workspace box holds; None where the configuration has no box.

    Raises:
        ValueError: there is a box, and no description to compute the tip from.
    """
    box = config.workspace
    if box.low is None or box.high is None:
        return None
    if description is None:
        raise ValueError(
            f"robot {config.name} has a workspace box, and no description says where its tip is: "
            "set description to the topic of its URDF, or workspace.low=null workspace.high=null"
        )
    return Tip(description.urdf, config.names, box.link, tuple(box.offset))


INERTIA = ("ixx", "ixy", "ixz", "iyy", "iyz", "izz")


def facts(config: RobotConfig) -> dict[str, Any]:
    """What a recording says of the robot: JSON-ready."""
    return {"name": config.name, "type": config.type, "joints": list(config.names)}
