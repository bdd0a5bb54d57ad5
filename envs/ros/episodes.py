"""Episodes of recordings: found and checked as a whole before anything is done with them.

What is small (joints, commands) is read at once; of pictures only the times are, and they are
decoded when they are asked for, each one once.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .arm import fitted
from .bags import Bag, BagError, find_bags, seconds_of
from .frames import Ages, Commands, Gap, Motion, Segment, Series, cut
from .messages import MessageError, joint_reading, picture
from .recording import ABOUT, COMMAND, FORMAT, JOINTS
from .robot import CameraConfig, RobotConfig

ACTIONS = ("auto", "command", "next_state")
CLOCKS = ("log", "header")
GAPS = ("split", "error")
PICTURES = ("CompressedImage", "Image")
TARGETS = ("JointTrajectory", "Float64MultiArray", "JointState")
NEAR = 10.0
"""Seconds from its arrival within which a trajectory's stamp is taken for its start."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choice:
    """What the user may choose; None lets the robot, the recording or the file decide.

    Attributes:
        robot: topics, joints and cameras; without joints it says nothing.
        joints: ROS names, in order.
        joint_states: topic.
        cameras: camera -> topic; ``{}`` for none.
        action: "command"; "next_state", where the joints are one frame later; or "auto".
        command: topics.
        command_joints: how the command topics call the joints, in order.
        fps, task: of the dataset.
        clock: "log", when messages were recorded, or "header", their own stamps.
        ages: see there.
        gaps: "split" episodes or "error".
        min_seconds: shorter stretches are left out.
        skip: recordings to leave out, or episodes of one (``NAME#2``).
    """

    robot: RobotConfig = field(default_factory=RobotConfig)
    joints: Sequence[str] | None = None
    joint_states: str | None = None
    cameras: Mapping[str, str] | None = None
    action: str = "auto"
    command: Sequence[str] | None = None
    command_joints: Sequence[str] | None = None
    fps: int | None = None
    task: str | None = None
    clock: str = "log"
    ages: Ages = field(default_factory=Ages)
    gaps: str = "split"
    min_seconds: float = 1.0
    skip: Sequence[str] = ()


@dataclass(frozen=True)
class Meaning:
    """What is taken from where: the same of all recordings.

    Attributes:
        joints: ROS names in order; `features`: the dataset's.
        joint_states: topic.
        cameras: camera -> topic, crop and size.
        command: topics; none: actions are next states.
        command_joints: what the command topics call the joints.
        fps, task, robot_type: of the dataset; `why`: where actions are from, in words.
    """

    joints: tuple[str, ...]
    features: tuple[str, ...]
    joint_states: str
    cameras: Mapping[str, CameraConfig]
    command: tuple[str, ...]
    command_joints: tuple[str, ...]
    fps: int
    task: str
    robot_type: str
    why: str


@dataclass(frozen=True)
class BagEpisode:
    """One episode: `name`, the `bag` it is in, its frames and its `task`."""

    name: str
    bag: Path
    segment: Segment
    task: str

    def __len__(self) -> int:
        return len(self.segment)


@dataclass(frozen=True)
class BagEpisodes:
    """Episodes of recordings that are alike.

    Attributes:
        bags: recordings they come from.
        episodes: in order.
        meaning: what they hold.
        sizes: camera -> ``(H, W)``.
        gaps: by recording.
        short: stretches that were left out for being short.
        following: joints that no command names, whose actions are next states.
        unfinished: recordings whose recorder was killed, by name.
        clock: see `Choice`.
    """

    bags: tuple[Path, ...]
    episodes: tuple[BagEpisode, ...]
    meaning: Meaning
    sizes: Mapping[str, tuple[int, int]]
    gaps: Mapping[str, Sequence[Gap]]
    short: int
    following: tuple[str, ...]
    unfinished: str
    clock: str

    def frames(self, episode: BagEpisode, camera: str) -> Iterator[np.ndarray]:
        """The pictures of an episode, uint8 ``[H, W, 3]``, one a frame.

        Raises:
            BagError: one cannot be decoded, or is of another size.
        """
        numbers = episode.segment.pictures[camera]
        config = self.meaning.cameras[camera]
        with Bag(episode.bag) as bag:
            order = _picture_order(bag, config.topic, self.clock)
            wanted = iter(numbers.tolist())
            if self.clock == "log":  # then the bag can begin where the episode does
                first = int(numbers[0])
                start = int(order.times[first])
                first = int(np.searchsorted(order.times, start))
                messages = enumerate(bag.messages(config.topic, start=start), first)
            else:
                messages = enumerate(bag.messages(config.topic))
            yield from self._in_order(episode, camera, order, wanted, messages)

    def _in_order(
        self,
        episode: BagEpisode,
        camera: str,
        order: _Order,
        wanted: Iterator[int],
        messages: Iterator[tuple[int, tuple[int, dict[str, Any]]]],
    ) -> Iterator[np.ndarray]:
        size = self.sizes[camera]
        shown: tuple[int, np.ndarray] | None = None
        for number in wanted:
            place = int(order.places[number])
            if shown is None or shown[0] != place:
                found = next((m for i, (_, m) in messages if i == place), None)
                if found is None:
                    raise BagError(
                        f"{episode.bag}: pictures of {camera} are not in the order of their stamps "
                        "(clock=log takes them as they were recorded)"
                    )
                try:
                    image = fitted(picture(found), self.meaning.cameras[camera])
                except ValueError as error:
                    raise BagError(
                        f"{episode.bag}: {camera}, picture {place}: {error}. To go on without "
                        f"this episode: skip=['{episode.name}']"
                    ) from None
                if image.shape[:2] != size:
                    raise BagError(
                        f"{episode.bag}: {camera} changes from {size} to {image.shape[:2]} pixels "
                        f"(height, width) at picture {place}; set robot.cameras.{camera}.size"
                    )
                shown = place, image
            yield shown[1]


@dataclass(frozen=True)
class _Order:
    """Times of pictures, int64 ``[N]``, not falling, and their places in the bag."""

    times: np.ndarray
    places: np.ndarray


def open_episodes(source: str, choice: Choice, progress: Progress | None = None) -> BagEpisodes:
    """Find recordings, look through all of them and cut them into episodes.

    Args:
        source: a file, a folder, or a pattern with ``*``.
        progress: called with the number of recordings looked through and of all.

    Raises:
        BagError: what is wrong with a file or with the choice, and what there is instead.
    """
    report = progress or (lambda done, total: None)
    for what, found, known in (
        ("action", choice.action, ACTIONS),
        ("clock", choice.clock, CLOCKS),
        ("gaps", choice.gaps, GAPS),
    ):
        if found not in known:
            raise BagError(f"{what} is one of {list(known)}, found {found!r}")
    all_bags = find_bags(source)
    names = dict(zip(all_bags, _names(all_bags), strict=True))
    bags = [bag for bag in all_bags if names[bag] not in choice.skip]
    if not bags:
        raise BagError(f"skip leaves none of the {len(all_bags)} recordings of {source}")
    meaning: Meaning | None = None
    sizes: dict[str, tuple[int, int]] = {}
    episodes: list[BagEpisode] = []
    gaps: dict[str, Sequence[Gap]] = {}
    short, known_names = 0, set(names.values())
    following: set[int] = set()
    unfinished: list[str] = []
    for done, path in enumerate(bags):
        report(done, len(bags))
        with Bag(path) as bag:
            resolved = resolve(bag, choice)
            if meaning is None:
                meaning = resolved
            _require_same(path, meaning, resolved)
            segments, found_gaps, free = _segments(bag, meaning, choice)
            following |= free
            unfinished += [names[path]] * bag.cut
            _require_size(bag, meaning, sizes)
        gaps[names[path]] = found_gaps
        if found_gaps and choice.gaps == "error":
            raise BagError(
                f"{path}: {found_gaps[0]} ({len(found_gaps)} gaps in all); gaps=split makes "
                "episodes of what is between them, ages.* says how old a value may be"
            )
        for number, segment in enumerate(segments):
            name = names[path] if len(segments) == 1 else f"{names[path]}#{number}"
            known_names.add(name)
            if len(segment) < max(2, choice.min_seconds * meaning.fps):
                short += 1
            elif name not in choice.skip:
                episodes.append(BagEpisode(name, path, segment, resolved.task))
    report(len(bags), len(bags))
    assert meaning is not None
    if unknown := sorted(set(choice.skip) - known_names):
        raise BagError(f"skip names {unknown}; there are {sorted(known_names)}")
    if not episodes:
        raise BagError(_nothing(source, gaps, short, choice))
    return BagEpisodes(
        tuple(bags),
        tuple(episodes),
        meaning,
        sizes,
        gaps,
        short,
        tuple(n for i, n in enumerate(meaning.joints) if meaning.command and i in following),
        ", ".join(unfinished),
        choice.clock,
    )


def _nothing(source: str, gaps: Mapping[str, Sequence[Gap]], short: int, choice: Choice) -> str:
    first = next((f"; the first gap: {g[0]}" for g in gaps.values() if g), "")
    return (
        f"{source} holds no stretch of {choice.min_seconds:g} s in which joints, cameras and "
        f"commands are all there and fresh ({short} shorter ones{first}). ages.joints, ages.camera "
        "and ages.command say how old a value may be, min_seconds how short an episode"
    )


def _names(bags: Sequence[Path]) -> list[str]:
    """Short names, each once: the last part of a path, or more of it."""
    stems = [bag.stem if bag.suffix in (".bag", ".mcap", ".db3") else bag.name for bag in bags]
    parents = [f"{bag.parent.name}/{stem}" for bag, stem in zip(bags, stems, strict=True)]
    return [
        stem if stems.count(stem) == 1 else parent
        for stem, parent in zip(stems, parents, strict=True)
    ]


# --- what is taken from where --------------------------------------------------------------------


def about_run(bag: Bag) -> dict[str, Any] | None:
    """What a recording of ours says of itself; None for another one."""
    if bag.types.get(ABOUT) != "std_msgs/msg/String":
        return None
    for _, message in bag.messages(ABOUT):
        try:
            about = json.loads(message["data"])
        except ValueError:
            return None
        return about if isinstance(about, dict) and about.get("format") == FORMAT else None
    return None


def resolve(bag: Bag, choice: Choice) -> Meaning:
    """What is taken from where, as the user, the robot or the recording says.

    Raises:
        BagError: a topic is missing, or something is left to say.
    """
    about, robot = about_run(bag), choice.robot
    run = about or {}
    configured = bool(robot.joints) and not run
    if run and robot.joints and list(robot.names) != run["joints"]:
        raise BagError(
            f"{bag.path} is a run of {run['robot'] or 'another robot'} with joints "
            f"{run['joints']}, {robot.name} has {list(robot.names)}"
        )
    joint_states = choice.joint_states or (JOINTS if run else None)
    if joint_states is None:
        joint_states = (
            robot.joint_states if configured else _only(bag, "JointState", "joint_states")
        )
    bag.require(joint_states, "JointState")
    if choice.joints is not None:
        joints = tuple(choice.joints)
    else:
        joints = tuple(run.get("joints", ())) or robot.names or _first_names(bag, joint_states)
    if not joints or len(set(joints)) < len(joints):
        raise BagError(f"joints are named, each once; found {list(joints)}")
    features = _features(joints, run, robot)
    cameras = _cameras(bag, choice, run, configured)
    for camera in cameras.values():
        bag.require(camera.topic, *PICTURES)
    command, why = _command(bag, choice, run, configured)
    fps = choice.fps or round(float(run.get("fps", 0)))
    if not fps:
        raise BagError(
            "fps is missing: say how many frames and actions a second the dataset is to have, as "
            "in fps=20; cameras should be at least as fast"
        )
    task = choice.task or str(run.get("task", ""))
    if not task:
        raise BagError(
            f'{bag.path} does not say what it is about; say task="..." as a sentence: the model '
            "is told it"
        )
    command_joints = tuple(choice.command_joints or joints)
    if len(command_joints) != len(joints):
        raise BagError(
            f"command_joints names each of the joints {list(joints)}, found {list(command_joints)}"
        )
    return Meaning(
        joints,
        features,
        joint_states,
        cameras,
        command,
        command_joints,
        fps,
        task,
        str(run.get("robot_type", "")) or robot.type,
        why,
    )


def _features(
    joints: tuple[str, ...], run: Mapping[str, Any], robot: RobotConfig
) -> tuple[str, ...]:
    known = dict(zip(run.get("joints", ()), run.get("axes", ()), strict=False))
    known |= dict(zip(robot.names, robot.features, strict=True))
    return tuple(known.get(name, f"{name}.pos") for name in joints)


def _only(bag: Bag, kind: str, option: str) -> str:
    there = bag.topics(kind)
    if len(there) == 1:
        return there[0]
    raise BagError(
        f"{bag.path} has {len(there)} topics of type {kind}"
        + (f" ({', '.join(there)}): choose one, {option}={there[0]}" if there else
           f"; it has {', '.join(f'{t} ({k})' for t, k in sorted(bag.types.items())) or 'none'}")
    )  # fmt: skip


def _first_names(bag: Bag, topic: str) -> tuple[str, ...]:
    return next((tuple(m["name"]) for _, m in bag.messages(topic)), ())


def _cameras(
    bag: Bag, choice: Choice, run: Mapping[str, Any], configured: bool
) -> dict[str, CameraConfig]:
    robot = choice.robot.cameras
    if choice.cameras is not None:
        return {
            name: replace(robot.get(name, CameraConfig()), topic=topic)
            for name, topic in choice.cameras.items()
        }
    if run:
        return {name: CameraConfig(topic=topic) for name, topic in run["cameras"].items()}
    if configured:
        return dict(robot)
    there = bag.topics(*PICTURES)
    names = [camera_name(topic) for topic in there]
    if len(set(names)) < len(names):
        raise BagError(
            f"{bag.path} has pictures on {', '.join(there)}; name those to take, as in "
            f"cameras={{front: {there[0]}}}"
        )
    return {name: CameraConfig(topic=topic) for name, topic in zip(names, there, strict=True)}


def camera_name(topic: str) -> str:
    """What a topic of pictures is called for short: "front" for /camera/front/image_raw."""
    usual = {"compressed", "image", "image_raw", "color", "rgb", "camera", "cameras"}
    words = [word for word in topic.strip("/").split("/") if word not in usual]
    return re.sub(r"\W", "_", "_".join(words), flags=re.ASCII) or "camera"


def _command(
    bag: Bag, choice: Choice, run: Mapping[str, Any], configured: bool
) -> tuple[tuple[str, ...], str]:
    """The topics that actions are read off, none for next states; and why, in words."""
    if choice.action == "next_state":
        return (), "where the joints are one frame later, as asked for"
    if choice.command is not None:
        topics = list(choice.command)
    elif run:
        topics = [COMMAND]
    elif configured:
        robot = choice.robot
        topics = [robot.command]
        topics += [robot.gripper.topic] if robot.gripper.kind == "trajectory" else []
        topics = [topic for topic in topics if topic]
    else:
        topics = []
    asked = choice.action == "command" or choice.command is not None
    if asked and not topics:
        raise BagError(
            f"action=command needs command=[TOPIC]; {bag.path} has "
            f"{', '.join(bag.topics(*TARGETS)) or 'no topic of commands'}"
        )
    there = [topic for topic in topics if bag.counts.get(topic)]
    if asked:
        for topic in topics:
            bag.require(topic, *TARGETS)
        return tuple(topics), "commands"
    if there:
        for topic in there:
            bag.require(topic, *TARGETS)
        return tuple(there), "commands"
    what = f"nothing was sent on {', '.join(topics)}" if topics else "no command topic is named"
    return (), f"where the joints are one frame later: {what}"


def _require_same(path: Path, first: Meaning, other: Meaning) -> None:
    for name, value in vars(first).items():
        if name != "task" and getattr(other, name) != value:
            raise BagError(
                f"{path}: {name} is {getattr(other, name)!r}, that of the recordings before it "
                f"{value!r}; one dataset holds one kind"
            )


# --- reading -------------------------------------------------------------------------------------


def _segments(
    bag: Bag, meaning: Meaning, choice: Choice
) -> tuple[list[Segment], list[Gap], set[int]]:
    """Stretches without a gap, the gaps, and the joints that no command names."""
    joints = _joints(bag, meaning, choice.clock)
    commands = [_commands(bag, topic, meaning) for topic in meaning.command]
    taken = list(itertools.chain.from_iterable(c.joints.tolist() for c in commands))
    if len(set(taken)) < len(taken):
        raise BagError(f"{bag.path}: {', '.join(meaning.command)} command the same joints")
    cameras = {
        name: Series(_picture_order(bag, camera.topic, choice.clock).times)
        for name, camera in meaning.cameras.items()
    }
    for what, series in {"joints": joints, **cameras}.items():
        if not len(series.times):
            topic = meaning.joint_states if what == "joints" else meaning.cameras[what].topic
            raise BagError(f"{bag.path}: there is no message of {what} on {topic}")
    segments, gaps = cut(joints, commands, cameras, meaning.fps, choice.ages)
    return segments, gaps, set(range(len(meaning.joints))) - set(taken)


def _when(at: int, stamp: float | None, clock: str, where: str) -> int:
    if clock == "log":
        return at
    if stamp is None:
        raise BagError(f"{where} has no stamp in its header; clock=log takes the time of recording")
    return round(1e9 * stamp)


def _joints(bag: Bag, meaning: Meaning, clock: str) -> Series:
    """Positions by name; where a topic carries some joints in one message and some in another, the
    newest of each."""
    topic, wanted = meaning.joint_states, {n: i for i, n in enumerate(meaning.joints)}
    current, seen = np.zeros(len(wanted)), np.full(len(wanted), -1, np.int64)
    times, values, oldest = [], [], []
    names: set[str] = set()
    for number, (at, message) in enumerate(bag.messages(topic)):
        where = f"{bag.path}: {topic}, message {number}"
        try:
            reading = joint_reading(message)
        except MessageError as error:
            raise BagError(f"{where}: {error}") from None
        names.update(reading.names)
        pairs = [(wanted[n], k) for k, n in enumerate(reading.names) if n in wanted]
        if not pairs:
            continue
        when = _when(at, reading.stamp, clock, where)
        for i, k in pairs:
            current[i], seen[i] = reading.position[k], when
        if (seen >= 0).all():
            times.append(when)
            values.append(current.copy())
            oldest.append(int(seen.min()))
    if missing := [n for n, i in wanted.items() if seen[i] < 0]:
        raise BagError(f"{bag.path}: {topic} has no joints {missing}; it has {sorted(names)}")
    order = np.argsort(np.array(times, np.int64), kind="stable")
    return Series(
        np.array(times, np.int64)[order], np.array(values)[order], np.array(oldest, np.int64)[order]
    )


def _commands(bag: Bag, topic: str, meaning: Meaning) -> Commands:
    """The motions on one topic, of those joints that it names."""
    kind = bag.types[topic].rpartition("/")[2]
    wanted = meaning.command_joints
    numbers: np.ndarray | None = None
    motions = []
    for count, (at, message) in enumerate(bag.messages(topic)):
        where = f"{bag.path}: {topic}, message {count}"
        if kind == "Float64MultiArray":
            names: Sequence[str] = wanted
            if len(message["data"]) != len(wanted):
                raise BagError(
                    f"{where} has {len(message['data'])} values for {len(wanted)} joints "
                    f"{list(wanted)}"
                )
        else:
            names = message["joint_names" if kind == "JointTrajectory" else "name"]
        if len(set(names)) < len(names):
            raise BagError(f"{where}: a joint twice in {list(names)}")
        columns = [(i, list(names).index(n)) for i, n in enumerate(wanted) if n in names]
        found = np.array([i for i, _ in columns], np.int64)
        if not len(found):
            raise BagError(
                f"{where} names none of the joints {list(wanted)} but {list(names)}; "
                "command_joints=[...] says what commands call them"
            )
        if numbers is not None and not np.array_equal(numbers, found):
            raise BagError(f"{where} commands other joints ({list(names)}) than those before it")
        numbers = found
        try:
            motion = _motion(at, message, kind, [k for _, k in columns])
        except ValueError as error:
            raise BagError(f"{where}: {error}") from None
        if motion is not None:
            motions.append(motion)
    if numbers is None:
        raise BagError(
            f"{bag.path}: there is no message on {topic}; action=next_state does without"
        )
    motions.sort(key=lambda motion: motion.start)
    return Commands(numbers, motions)


def _motion(at: int, message: dict[str, Any], kind: str, columns: list[int]) -> Motion | None:
    """One command; None for an empty trajectory, which tells a controller to stop."""
    if kind != "JointTrajectory":
        values = message["data" if kind == "Float64MultiArray" else "position"]
        target = _finite(np.asarray(values, float)[columns])
        return Motion(at, np.zeros(1), target[None])
    points = message["points"]
    if not points:
        return None
    stamp = seconds_of(message["header"]["stamp"])
    start = round(1e9 * stamp) if stamp and abs(1e9 * stamp - at) < 1e9 * NEAR else at
    times = np.array([seconds_of(p["time_from_start"]) for p in points])
    if (np.diff(times) <= 0).any() or times[0] < 0:
        raise ValueError(f"times of a trajectory rise from 0, found {times.tolist()}")
    width = len(message["joint_names"])
    if any(len(p["positions"]) != width for p in points):
        raise ValueError(f"a point of a trajectory has not {width} positions")
    positions = _finite(np.stack([p["positions"] for p in points])[:, columns])
    velocities = None
    if all(len(p["velocities"]) == width for p in points):
        velocities = _finite(np.stack([p["velocities"] for p in points])[:, columns])
    return Motion(start, times, positions, velocities)


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("a command holds values that are no numbers")
    return values


def _picture_order(bag: Bag, topic: str, clock: str) -> _Order:
    times = []
    for number, (at, stamp) in enumerate(bag.times(topic)):
        times.append(_when(at, stamp, clock, f"{bag.path}: {topic}, message {number}"))
    found = np.array(times, np.int64)
    order = np.argsort(found, kind="stable")
    return _Order(found[order], order)


def _require_size(bag: Bag, meaning: Meaning, sizes: dict[str, tuple[int, int]]) -> None:
    """Note how large pictures are, or refuse a recording with others."""
    for name, camera in meaning.cameras.items():
        try:
            _, message = next(bag.messages(camera.topic))
            height, width = fitted(picture(message), camera).shape[:2]
        except ValueError as error:
            raise BagError(f"{bag.path}: {camera.topic}, its first picture: {error}") from None
        if sizes.setdefault(name, (height, width)) != (height, width):
            raise BagError(
                f"{bag.path}: {name} is {height}x{width}, that of the recordings before it "
                f"{sizes[name][0]}x{sizes[name][1]}; set robot.cameras.{name}.size"
            )
