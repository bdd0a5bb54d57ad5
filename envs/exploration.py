"""Episodes that no expert would show, for a world model to learn what unusual actions do.

Demonstrations hold one action per state. A model of what follows from actions wants others too: in
all directions, at all speeds, into objects and past them, and goals that are missed by little. An
`Explorer` acts like an expert (reset, act, done), but carries out something else; all of it moves
like the expert does, smoothly and within the joints' limits and speeds.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ._mujoco import mujoco
from .arm import GRIPPER_MAX
from .expert import Plan, trace
from .kinematics import UnreachableError

if TYPE_CHECKING:
    from .base import ArmEnv

KINDS = {"noise": 0.25, "play": 0.40, "failure": 0.18, "near": 0.10, "wander": 0.07}
"""Name of a kind of exploration -> its share.

- ``noise``: the expert's actions with smooth noise on all joints, small to large.
- ``play``: from point to point, at any speed; where things lie free, half of it towards them. Some
  of it begins in the middle of what the expert does.
- ``failure``: the expert's plan gone wrong: short, aside, too far, mirrored, given up, undone, ...
- ``near``: the expert's plan towards a goal some centimetres off, or past the goal without a stop.
- ``wander``: holding still, or drifting about in joint space.
"""

WORKSPACE = np.array([[0.33, 0.67], [-0.19, 0.19], [0.014, 0.22]])
"""Where the tip is sent: low and high per axis, in metres. All of it can be reached and seen."""
MAX_STEP = 0.12
"""Largest change of a joint's command in one control step, in radians; experts stay below it."""
MAX_OPENING_STEP = 0.02
"""The same of the gripper's opening, in metres."""
_FINGER = (0.011, 0.016)
"""Of a finger: half its depth and its width, in metres."""
MOMENTUM_STEPS = 3.0
"""How long a motion that is given up goes on."""


class Explorer:
    """Acts in a way of its own, drawn from its seed; an episode is about as long as the expert's.

    Use like an `envs.expert.Expert`. `kind` says what it does.

    Args:
        env: the environment it acts in, without wrappers.
        seed: of all its choices; None draws one.
        kind: one of `KINDS`; None draws one.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(self, env: ArmEnv, seed: int | None = None, kind: str | None = None):
        self.env = env
        self.rng = np.random.default_rng([seed, 1] if seed is not None else None)
        drawn = str(self.rng.choice(list(KINDS), p=list(KINDS.values())))
        self.kind = drawn if kind is None else kind
        if self.kind not in KINDS:
            near = difflib.get_close_matches(self.kind, KINDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no kind {self.kind!r}.{hint} There are: {list(KINDS)}")
        self._expert = env.make_expert(seed)
        self._command = np.empty(0)
        self._motion: Iterator[np.ndarray] = iter(())
        self._steps_left = 0

    def reset(self) -> None:
        """Begin, in the environment's present state."""
        self._expert.reset()
        actions = []
        while not self._expert.done:
            actions.append(self._expert.act())
        plan = np.array(actions, np.float64)
        longer = self.rng.uniform(*((0.75, 1.35) if self.kind in ("play", "wander") else (1, 1.3)))
        limit = self.env.spec.max_episode_steps if self.env.spec else None
        self._steps_left = min(round(longer * len(plan)), limit or round(1.3 * len(plan)))
        self._command = self.env.command
        motions = {
            "noise": self._noise,
            "play": self._play,
            "failure": self._failure,
            "near": self._near,
            "wander": self._wander,
        }
        self._motion = motions[self.kind](plan)

    def act(self) -> np.ndarray:
        """The next action, float32 ``[8]``; where the motion has ended, it stays."""
        wanted = next(self._motion, self._command)
        self._command = bounded(self.env, wanted, self._command)
        self._steps_left -= 1
        return self._command.astype(np.float32)

    @property
    def done(self) -> bool:
        """Whether the episode is as long as it was to be."""
        return self._steps_left <= 0

    # The kinds: each yields actions [8], from the expert's actions [T, 8].

    def _noise(self, plan: np.ndarray) -> Iterator[np.ndarray]:
        scale = np.exp(self.rng.uniform(*np.log([0.005, 0.15])))
        yield from plan + scale * smooth_noise(self.rng, len(plan), self.rng.uniform(3, 12))

    def _wander(self, plan: np.ndarray) -> Iterator[np.ndarray]:
        if self.rng.random() < 0.3:
            return  # and so it stays
        if self.rng.random() < 0.5:
            yield from self._given_up(plan)
        steps = self._steps_left
        scale = np.exp(self.rng.uniform(*np.log([0.05, 0.3])))
        yield from self._command + scale * smooth_noise(self.rng, steps, self.rng.uniform(8, 20))

    def _failure(self, plan: np.ndarray) -> Iterator[np.ndarray]:
        choice = self.rng.integers(len(_MISTAKES) + 2)
        if choice == 0:
            yield from self._given_up(plan)
        elif choice == 1:
            yield from self._given_up(plan)
            back = plan[: np.argmin(np.abs(plan - self._command).sum(1)) + 1][::-1]  # from rest
            yield from with_momentum(back, plan[len(back) - 1] - plan[len(back) - 2])
        else:
            mistake = _MISTAKES[choice - 2]
            yield from self._follow(mistake(self._expert.plan(), self.rng))

    def _near(self, plan: np.ndarray) -> Iterator[np.ndarray]:
        mistake = _beyond if self.rng.random() < 0.3 else _off
        yield from self._follow(mistake(self._expert.plan(), self.rng))

    def _play(self, plan: np.ndarray) -> Iterator[np.ndarray]:
        velocity = np.zeros(8)
        if self.rng.random() < 0.4:
            count = self.rng.integers(5, len(plan))
            yield from plan[:count]
            velocity = plan[count - 1] - plan[count - 2]
        while True:
            # Looked up anew for every leg: what is to be touched has been moved by the last one.
            things = [p for p in free_positions(self.env) if in_workspace(p)]
            if things and self.rng.random() < 0.65:
                leg = self._leg_through(things[self.rng.integers(len(things))])
            else:
                leg = self._leg_anywhere()
            path = list(self._follow(leg)) or [self._command]  # a step's rest, then another leg
            yield from with_momentum(np.array(path), velocity)
            velocity = np.zeros(8)

    # What they are made of.

    def _given_up(self, plan: np.ndarray) -> Iterator[np.ndarray]:
        """Some of the expert's actions; then the motion runs out."""
        count = self.rng.integers(len(plan) // 6 + 2, len(plan) - 8)
        yield from plan[:count]
        still = np.repeat(plan[count - 1 : count], round(5 * MOMENTUM_STEPS), axis=0)
        yield from with_momentum(still, plan[count - 1] - plan[count - 2])

    def _follow(self, plan: Plan) -> Iterator[np.ndarray]:
        """The actions of a plan that begins here; a path that cannot be gone on with ends."""
        points = np.clip(plan.points, *WORKSPACE.T)
        points[0] = self.env.kinematics.tip(self._command[:7])[0]
        openings = np.clip(plan.openings, 0.0, GRIPPER_MAX)
        clipped = replace(plan, points=points, openings=openings)
        try:
            yield from trace(self.env, clipped, self._command[:7])
        except UnreachableError:
            return

    def _leg_anywhere(self) -> Plan:
        low, high = WORKSPACE.T
        points = self.rng.uniform(low, high, size=(int(self.rng.integers(1, 4)), 3))
        if self.rng.random() < 0.5:  # as low as the tasks are
            points[:, 2] = self.rng.uniform(WORKSPACE[2, 0], 0.08, len(points))
        openings = np.repeat(self.rng.uniform(0.0, GRIPPER_MAX), len(points))
        return self._leg(points, openings, self.rng.uniform(-0.8, 0.8, len(points)))

    def _leg_through(self, thing: np.ndarray) -> Plan:
        """Down beside a thing, through where it lies in any direction, and on; or to grasp it."""
        low = self.rng.uniform(0.016, 0.03)
        yaw = self.rng.uniform(-0.8, 0.8)
        above = self.rng.uniform(0.06, 0.12)
        if self.rng.random() < 0.2:
            at = np.array([*(thing[:2] + self.rng.normal(0, 0.006, 2)), low])
            up = at + np.array([*self.rng.uniform(-0.1, 0.1, 2), above])
            points = np.array([[*at[:2], low + above], at, at, up])
            wide = self.rng.uniform(0.065, GRIPPER_MAX)
            closed = self.rng.uniform(0.02, 0.04)
            return self._leg(points, np.array([wide, wide, closed, closed]), np.full(4, yaw))
        angle = self.rng.uniform(-np.pi, np.pi)
        along = np.array([np.cos(angle), np.sin(angle), 0.0])
        aside = np.array([-along[1], along[0], 0.0]) * self.rng.normal(0, 0.015)
        centre = np.array([*thing[:2], low]) + aside
        start = centre - along * self.rng.uniform(0.065, 0.09)
        end = centre + along * self.rng.uniform(0.0, 0.12)
        path = [start, end]
        if self.rng.random() < 0.8:
            path.insert(0, np.array([*start[:2], low + above]))
        if self.rng.random() < 0.5:
            yaw = (angle + np.pi / 2) % np.pi - np.pi / 2  # the open fingers face what they push
        opening = self.rng.choice([0.0, self.rng.uniform(0.0, GRIPPER_MAX)])
        yaws = np.full(len(path), np.clip(yaw, -0.9, 0.9))
        return self._leg(np.array(path), np.full(len(path), opening), yaws)

    def _leg(self, points: np.ndarray, openings: np.ndarray, yaws: np.ndarray) -> Plan:
        """From where the tip is commanded to be, through `points` ``[N, 3]``, at a random speed."""
        joints = self._command[:7]
        here, rotation = self.env.kinematics.tip(joints)
        # The path turns the hand upright from how it is: the angles that it adds begin at 0.
        points = np.vstack([here, np.clip(points, *WORKSPACE.T)])
        speed = np.exp(self.rng.uniform(*np.log([0.07, 0.32])))
        turns = np.abs(np.diff(yaws, prepend=np.arctan2(rotation[1, 0], rotation[0, 0])))
        widths = np.abs(np.diff(openings, prepend=self._command[7]))
        lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
        seconds = np.maximum.reduce(
            [lengths / speed, turns / 1.5, widths / 0.25, np.full(len(turns), 0.25)]
        )
        return Plan(
            points,
            np.append(0.0, np.cumsum(seconds)),
            np.append(self._command[7], openings),
            np.append(0.0, yaws),
        )


# Mistakes: plans that miss the goal of the plan that they are made from.

_Mistake = Callable[[Plan, np.random.Generator], Plan]


def _short(plan: Plan, rng: np.random.Generator) -> Plan:
    """All of it smaller, so that it ends too early."""
    start = plan.points[0]
    return replace(plan, points=start + rng.uniform(0.3, 0.85) * (plan.points - start))


def _aside(plan: Plan, rng: np.random.Generator) -> Plan:
    """All of it 2 to 12 cm to the left or to the right."""
    along = (plan.points[_arrival(plan)] - plan.points[0])[:2]
    across = np.array([-along[1], along[0], 0.0]) / max(float(np.linalg.norm(along)), 1e-3)
    points = plan.points.copy()
    points[1:] += rng.choice([-1, 1]) * rng.uniform(0.02, 0.12) * across
    return replace(plan, points=points)


def _mirrored(plan: Plan, rng: np.random.Generator) -> Plan:
    """Left and right exchanged, about where the tip starts or about the arm's middle."""
    middle = plan.points[0, 1] if rng.random() < 0.5 else 0.0
    points = plan.points.copy()
    points[1:, 1] = 2 * middle - points[1:, 1]
    return replace(plan, points=points, yaws=None if plan.yaws is None else -plan.yaws)


def _straight(plan: Plan, rng: np.random.Generator) -> Plan:
    """The shortest way to where it ends or somewhere beside, whatever stands there."""
    last = _arrival(plan)
    keep = [0, last]
    points = plan.points[keep].copy()
    points[1, :2] += rng.normal(0, 0.03, 2)
    yaws = None if plan.yaws is None else plan.yaws[keep]
    times = np.array([0.0, plan.times[last] * rng.uniform(0.5, 1.0)])
    return Plan(points, times, plan.openings[keep], yaws)


def _ungrasping(plan: Plan, rng: np.random.Generator) -> Plan:
    """The gripper does something else."""
    return replace(plan, openings=np.full(len(plan.times), rng.uniform(0.0, GRIPPER_MAX)))


def _beyond(plan: Plan, rng: np.random.Generator) -> Plan:
    """Over the goal without a stop, and 4 to 12 cm on."""
    last = _arrival(plan)
    along = (plan.points[last] - plan.points[last - 1]) * [1, 1, 0]
    further = rng.uniform(0.04, 0.12)
    end = plan.points[last] + further * along / max(float(np.linalg.norm(along)), 1e-3)
    speed = np.linalg.norm(plan.points[last] - plan.points[0]) / plan.times[last]
    seconds = max(further / float(speed), 0.3)
    after = slice(last + 1, None)
    yaws = np.zeros(len(plan.times)) if plan.yaws is None else plan.yaws
    return Plan(
        np.vstack([plan.points[: last + 1], end, plan.points[after] + end - plan.points[last]]),
        np.concatenate(
            [plan.times[: last + 1], [plan.times[last] + seconds], plan.times[after] + seconds]
        ),
        np.insert(plan.openings, last + 1, plan.openings[last]),
        np.insert(yaws, last + 1, yaws[last]),
    )


def _off(plan: Plan, rng: np.random.Generator) -> Plan:
    """Begun right, then led 2 to 11 cm to some side of the goal."""
    angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(0.02, 0.11)
    share = np.clip((plan.times / plan.times[_arrival(plan)] - 0.45) / 0.55, 0, 1)
    offset = distance * np.array([np.cos(angle), np.sin(angle), 0.0])
    return replace(plan, points=plan.points + share[:, None] * offset)


_MISTAKES: tuple[_Mistake, ...] = (_short, _aside, _mirrored, _straight, _ungrasping, _beyond)


def _arrival(plan: Plan) -> int:
    """The way point at the goal: where it stands last, or the last one; never the first."""
    still = np.flatnonzero(np.all(np.diff(plan.points, axis=0) == 0, axis=1))
    return int(still[-1]) if len(still) and still[-1] > 0 else len(plan.times) - 1


# Motions in joint space.


def smooth_noise(rng: np.random.Generator, steps: int, correlation: float) -> np.ndarray:
    """``[steps, 8]``, 0 at first: drifts of about 1, less on some joints, a tenth for the gripper.

    Args:
        correlation: steps over which it changes.
    """
    width = int(np.ceil(3 * correlation))
    kernel = np.exp(-0.5 * (np.arange(-width, width + 1) / correlation) ** 2)
    kernel /= np.linalg.norm(kernel)
    white = rng.standard_normal((8, steps + 2 * width))
    smooth = np.stack([np.convolve(row, kernel, mode="valid") for row in white], axis=1)
    weights = rng.uniform(0.2, 1.0, 8) * [1, 1, 1, 1, 1, 1, 1, 0.1]
    return weights * (smooth - smooth[:1])


def with_momentum(actions: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Actions ``[T, 8]`` that begin at rest, led into from a motion.

    Args:
        velocity: ``[8]``, change per step of the motion before.
    """
    t = np.arange(1, len(actions) + 1)[:, None]
    return actions + velocity * t * np.exp(-t / MOMENTUM_STEPS)


def bounded(env: ArmEnv, action: np.ndarray, command: np.ndarray) -> np.ndarray:
    """`action` ``[8]`` within the limits of joints and speeds, its tip not below the table.

    Args:
        command: ``[8]``, the action before it.
    """
    step = np.append(np.full(7, MAX_STEP), MAX_OPENING_STEP)
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    action = np.clip(command + np.clip(action - command, -step, step), low, high)
    tip, rotation = env.kinematics.tip(action[:7])
    # A tilted hand has a finger that is lower than the tip.
    sideways, forward = np.abs(rotation[2, 1]), np.abs(rotation[2, 0])
    lowest = WORKSPACE[2, 0] + (action[7] / 2 + _FINGER[1]) * sideways + _FINGER[0] * forward
    if tip[2] < lowest - 1e-3:
        try:
            joints = env.kinematics.solve(np.array([*tip[:2], lowest]), action[:7], rotation)
        except UnreachableError:
            return command
        action[:7] = command[:7] + np.clip(joints - command[:7], -MAX_STEP, MAX_STEP)
    return action


def free_positions(env: ArmEnv) -> np.ndarray:
    """Where the things are that the arm can move, ``[N, 3]`` in metres."""
    joints = np.flatnonzero(env.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    return env.data.xpos[env.model.jnt_bodyid[joints]].copy()


def in_workspace(point: np.ndarray) -> bool:
    """Whether the tip could be sent to a point ``[3]``, its height aside."""
    return bool(np.all((point >= WORKSPACE[:, 0])[:2] & (point <= WORKSPACE[:, 1])[:2]))
