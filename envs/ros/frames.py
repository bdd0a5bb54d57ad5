"""Topics that come when they like -> frames at one rate: what was newest at each moment.

That is what a policy sees when it is deployed: the latest value, if it is not too old. Where one is
too old, or was never there, there is no frame; so a gap ends an episode and another begins after.
Nothing is interpolated but commands, which are curves by what they mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Ages:
    """How old what is taken for a frame may be, seconds.

    Attributes:
        joints, camera: since it was measured.
        command: since a trajectory had ended, or a single target was sent.

    Raises:
        ValueError: one that is not above 0.
    """

    joints: float = 0.1
    camera: float = 0.2
    command: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"ages.{name} must be above 0, found {value}")


@dataclass(frozen=True)
class Series:
    """One topic over time.

    Attributes:
        times: int64 ``[N]`` nanoseconds, not falling.
        values: float64 ``[N, J]``; None for pictures.
        oldest: int64 ``[N]``: when the oldest part of a value was measured, where a topic carries
            some joints in one message and some in another.
    """

    times: np.ndarray
    values: np.ndarray | None = None
    oldest: np.ndarray | None = None

    def latest(self, at: np.ndarray) -> np.ndarray:
        """Number of the newest value at each moment, -1 before the first."""
        return np.searchsorted(self.times, at, side="right") - 1

    def fresh(self, at: np.ndarray, age: float) -> np.ndarray:
        """bool ``[M]``: whether the newest value at each moment is at most `age` seconds old."""
        if not len(self.times):
            return np.zeros(len(at), bool)
        newest = self.latest(at)
        times = self.times if self.oldest is None else self.oldest
        return (newest >= 0) & (at - times[np.maximum(newest, 0)] <= round(1e9 * age))


@dataclass(frozen=True)
class Motion:
    """One command: from `start`, through points; a single target is reached at once.

    Attributes:
        start: nanoseconds.
        times: seconds from there ``[K]``, rising.
        positions: ``[K, C]``.
        velocities: ``[K, C]``, or None: straight lines.
    """

    start: int
    times: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray | None = None

    @property
    def end(self) -> int:
        return self.start + round(1e9 * float(self.times[-1]))

    def at(self, when: int, begin: np.ndarray) -> np.ndarray:
        """Position ``[C]`` that is commanded at a moment; the last one after the end.

        Args:
            when: nanoseconds, not before the start.
            begin: ``[C]``, where the motion begins.
        """
        elapsed = 1e-9 * (when - self.start)
        if elapsed >= self.times[-1]:
            return self.positions[-1]
        i = int(np.searchsorted(self.times, elapsed, side="right"))
        before, left = (begin, 0.0) if i == 0 else (self.positions[i - 1], self.times[i - 1])
        width = self.times[i] - left
        s = (elapsed - left) / width
        after = self.positions[i]
        if self.velocities is None or i == 0:
            return before + s * (after - before)
        u, v = width * self.velocities[i - 1], width * self.velocities[i]
        return (
            (1 + 2 * s) * (1 - s) ** 2 * before
            + s * (1 - s) ** 2 * u
            + s**2 * (3 - 2 * s) * after
            - s**2 * (1 - s) * v
        )


@dataclass(frozen=True)
class Commands:
    """What one topic commanded.

    Attributes:
        joints: which of the wanted joints, numbers ``[C]``.
        motions: in order of their starts; each replaces the one before.
    """

    joints: np.ndarray
    motions: Sequence[Motion]

    def sample(self, at: np.ndarray, measured: Series, age: float) -> tuple[np.ndarray, np.ndarray]:
        """What is commanded at moments ``[M]``: ``[M, C]``, and bool ``[M]`` whether anything is.

        Args:
            at: nanoseconds, rising.
            measured: of all joints; where a first motion begins.
            age: seconds that a command counts after its end.
        """
        assert measured.values is not None
        starts = np.array([m.start for m in self.motions], np.int64)
        ends = np.array([m.end for m in self.motions], np.int64)
        found = np.zeros((len(at), len(self.joints)))
        newest = np.searchsorted(starts, at, side="right") - 1
        there = newest >= 0
        if not len(starts):
            return found, there
        there &= at - ends[np.maximum(newest, 0)] <= round(1e9 * age)
        begins: dict[int, np.ndarray] = {}
        for row in np.flatnonzero(there):
            i = int(newest[row])
            if i not in begins:
                begins[i] = self._begin(i, measured, age)
            found[row] = self.motions[i].at(int(at[row]), begins[i])
        return found, there

    def _begin(self, i: int, measured: Series, age: float) -> np.ndarray:
        """Where motion i begins: where the one before it has come to, else where the joints are."""
        assert measured.values is not None
        start = self.motions[i].start
        if i and start - self.motions[i - 1].end <= round(1e9 * age):
            before = self.motions[i - 1]
            return before.at(start, before.positions[0])
        row = max(0, int(measured.latest(np.array([start]))[0]))
        return measured.values[row, self.joints]


@dataclass(frozen=True)
class Segment:
    """Frames without a gap.

    Attributes:
        times: int64 ``[T]`` nanoseconds.
        state, action: float32 ``[T, J]``.
        pictures: camera -> int64 ``[T]``, number of the picture.
    """

    times: np.ndarray
    state: np.ndarray
    action: np.ndarray
    pictures: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Gap:
    """A stretch without frames between two with.

    Attributes:
        what: the topic's role: "joints", "command", or a camera's name.
        at, seconds: since the first frame, and how long.
    """

    what: str
    at: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.what} missing or too old for {self.seconds:.2f} s at {self.at:.2f} s"


def cut(
    joints: Series,
    commands: Sequence[Commands],
    cameras: Mapping[str, Series],
    fps: float,
    ages: Ages,
) -> tuple[list[Segment], list[Gap]]:
    """Frames at `fps`, in stretches without a gap.

    A frame's action is what is commanded for the moment of the next frame; of joints that nobody
    commands, where they are then.

    Args:
        joints: all of them, in order.
        commands: of topics that share no joint.
        cameras: their times.
    """
    assert joints.values is not None
    streams = {"joints": joints, **cameras}
    if any(not len(s.times) for s in streams.values()):
        return [], []
    begin = max(int(s.times[0]) for s in streams.values())
    end = min(int(s.times[-1]) for s in streams.values())
    if end < begin:
        return [], []
    count = int((end - begin) * 1e-9 * fps) + 1
    grid = begin + np.round(np.arange(count + 1) * (1e9 / fps)).astype(np.int64)
    now, then = grid[:-1], grid[1:]
    fresh = {"joints": joints.fresh(now, ages.joints)}
    fresh |= {name: camera.fresh(now, ages.camera) for name, camera in cameras.items()}
    state = joints.values[np.maximum(joints.latest(now), 0)]
    action = joints.values[np.maximum(joints.latest(then), 0)].copy()
    free = set(range(joints.values.shape[1]))
    fresh["command"] = np.ones(count, bool)
    for topic in commands:
        sampled, there = topic.sample(then, joints, ages.command)
        action[:, topic.joints] = sampled
        fresh["command"] &= there
        free -= set(topic.joints.tolist())
    if free:  # where they are then has to be known, then
        measured = joints.fresh(then, ages.joints) & (then <= joints.times[-1])
        fresh["joints"] = fresh["joints"] & measured
    valid = np.logical_and.reduce(list(fresh.values()))
    pictures = {name: np.maximum(camera.latest(now), 0) for name, camera in cameras.items()}
    edges = np.flatnonzero(np.diff(np.concatenate([[False], valid, [False]]).astype(np.int8)))
    spans = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    segments = [
        Segment(
            now[a:b],
            state[a:b].astype(np.float32),
            action[a:b].astype(np.float32),
            {name: numbers[a:b] for name, numbers in pictures.items()},
        )
        for a, b in spans
    ]
    gaps = []
    for (_, last), (first, _) in itertools.pairwise(spans):
        what = next(name for name, fine in fresh.items() if not fine[last])
        gaps.append(Gap(what, (last - spans[0][0]) / fps, (first - last) / fps))
    return segments, gaps
