"""The last thing that a command passes before it is sent: within all limits, and able to stop.

`SafetyFilter` takes one target per control period and answers with the position to send. What it
keeps at all times is a stop, computed to its end, from the state that the sent positions have led
to: a certificate that position, velocity, acceleration, jerk and the workspace box can be kept. A
target is taken if the state that it leads to has such a stop, too; else the joint gets as close to
it as that allows, and if nothing else can be certified, the next point of the stop that it has. So
limits hold by construction, whatever is asked for.

What passes unchanged: positions that keep all limits, as long as there is a stop, without turning
back, that does. Such a stop takes a little more way than turning back does, so a swing whose peak
is closer to the end of a joint's range than acceleration^3 / (24 jerk^2) is held back before it.

Velocity, acceleration and jerk are backward differences of the positions that leave the filter, at
controller rate. Joints are limited independently of each other; only the workspace box, for which
all of them count, holds all of them back together.

This is no safety function: it knows what was sent, not what the arm does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from .braking import Stop, highest_acceleration, path, shortest_stop

UNCHANGED = 1e-9
"""A command moved by no more than this (rad) counts as unchanged; of joints that may jerk at will,
whose position is known less exactly at the end of a stop, a few times as much."""
SHARE = 1e-9
"""Share of each limit that is left unused, for rounding."""
CLOSE = 1e-10
"""How close (rad) to the last admissible point the search for it ends, and by how much a target may
be beyond it: what was generated at a limit is to pass when it comes again, rounded."""
TRIES = 12
"""Steps of that search, at most."""
HALVINGS = 3
"""Steps of the search for the last point that keeps the stop inside of the workspace box."""


@dataclass(frozen=True, eq=False)
class JointLimits:
    """What the joints of an arm may do. Infinite: no such limit is known.

    Attributes:
        names: of the joints, in order.
        low, high: range ``[J]``, rad.
        velocity, acceleration, jerk: largest magnitudes ``[J]``, rad/s, rad/s^2, rad/s^3.

    Raises:
        ValueError: shapes that differ, NaN, an empty range, or a magnitude that is not positive.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray

    def __post_init__(self) -> None:
        names = tuple(self.names)
        object.__setattr__(self, "names", names)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"joints have one name each, found {names}")
        for name in ("low", "high", "velocity", "acceleration", "jerk"):
            values = np.array(getattr(self, name), np.float64)
            if values.shape != (len(names),):
                raise ValueError(f"{name} has shape {values.shape}, expected ({len(names)},)")
            values.flags.writeable = False
            object.__setattr__(self, name, values)
            if name in ("velocity", "acceleration", "jerk"):
                self._require(values > 0, f"{name} has to be above 0")
        self._require(self.low < self.high, "the range is empty")

    def tightened(self, other: JointLimits) -> JointLimits:
        """The tighter of both limits for every joint; none is ever widened.

        Args:
            other: limits of the same joints, in any order.

        Raises:
            ValueError: other joints, or ranges that do not meet.
        """
        if set(other.names) != set(self.names):
            raise ValueError(
                f"limits are tightened by those of the same joints: missing "
                f"{sorted(set(self.names) - set(other.names))}, unknown "
                f"{sorted(set(other.names) - set(self.names))}"
            )
        order = [other.names.index(name) for name in self.names]
        return JointLimits(
            self.names,
            np.maximum(self.low, other.low[order]),
            np.minimum(self.high, other.high[order]),
            np.minimum(self.velocity, other.velocity[order]),
            np.minimum(self.acceleration, other.acceleration[order]),
            np.minimum(self.jerk, other.jerk[order]),
        )

    def require_finite(self) -> None:
        """Raise ValueError, by name, where a joint lacks a limit."""
        for name in ("low", "high", "velocity", "acceleration", "jerk"):
            self._require(np.isfinite(getattr(self, name)), f"{name} is not known")

    def _require(self, fine: np.ndarray, what: str) -> None:
        # Comparisons with NaN are false, so NaN is never fine.
        if not fine.all():
            wrong = ", ".join(n for n, ok in zip(self.names, fine, strict=True) if not ok)
            raise ValueError(f"{what}: {wrong}")


@dataclass(frozen=True)
class Workspace:
    """A box that the tip of the arm stays in.

    Attributes:
        low, high: its corners ``[3]``, m.
        tip: forward kinematics, positions ``[N, J]`` (rad) to the tip's ``[N, 3]`` (m).
        margin: m, by how much commands keep away from its faces. The tip is looked at once per
            control period; between two of them it may come closer, by an eighth of its acceleration
            times the period squared (0.1 mm for 10 m/s^2 at 100 Hz).
    """

    low: np.ndarray
    high: np.ndarray
    tip: Callable[[np.ndarray], np.ndarray]
    margin: float = 0.01

    def __post_init__(self) -> None:
        low, high = (np.array(v, np.float64) for v in (self.low, self.high))
        if low.shape != (3,) or high.shape != (3,):
            raise ValueError(f"corners have shapes {low.shape} and {high.shape}, expected (3,)")
        if not (self.margin >= 0 and (low + 2 * self.margin < high).all()):
            raise ValueError(f"no room from {low} to {high} with a margin of {self.margin} m")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def holds(self, positions: np.ndarray) -> bool:
        """Whether the tip is inside, margin kept, at all of these positions ``[N, J]``."""
        tips = np.asarray(self.tip(positions))
        if tips.shape != (len(positions), 3):
            raise ValueError(f"the tip has shape {tips.shape}, expected ({len(positions)}, 3)")
        # NaN is not inside.
        return bool(((tips >= self.low + self.margin) & (tips <= self.high - self.margin)).all())


@dataclass(frozen=True, eq=False)
class Filtered:
    """What may be sent.

    Attributes:
        position, velocity, acceleration: ``[J]``, rad, rad/s, rad/s^2.
        clipped: bool ``[J]``, whether it is not the position that was asked for.
        reasons: for every clipped joint, its name -> what it was clipped for: ``position``,
            ``velocity``, ``acceleration``, ``jerk``, ``workspace``, or ``target`` (it slows down so
            as not to go beyond the target), or ``brake`` (it was told to stop).
    """

    position: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    clipped: np.ndarray
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Next:
    """A joint's next position, and the stop from the state that it leads to."""

    position: float
    stop: Stop
    reason: str = ""
    certified: bool = False  # whether it is the next point of the stop that was certified


class _Joint:
    """One joint; speeds and accelerations are in the units of `policies.braking`."""

    def __init__(self, limits: JointLimits, joint: int, h: float):
        low, high, velocity, acceleration, jerk = (
            float(values[joint])
            for values in (
                limits.low,
                limits.high,
                limits.velocity,
                limits.acceleration,
                limits.jerk,
            )
        )
        size = float(np.finfo(np.float64).eps) * max(abs(low), abs(high))  # rounding of a position
        # Room for rounding, and for targets that are at a limit.
        self.unit = jerk * (1 - SHARE) * h**3 - 64 * size
        self.most = (acceleration * (1 - SHARE) * h**2 - 64 * size) / self.unit
        self.slack = SHARE / 10 + 8 * size / self.unit
        self.speed_slack = (1 + self.most) * self.slack
        self.top = (velocity * (1 - SHARE) * h - 8 * size) / self.unit - 2 * self.speed_slack
        self.fine = self.unit > 32 * size and self.most > 16 * self.slack and self.top > 0
        if self.fine:
            longest = shortest_stop(self.top, 0.0, self.most).left + 2 * self.most
            # The sums in a stop's reach are of cubes of its length.
            self.close = max(CLOSE, size * longest * max(8 * self.most, longest**2 * self.unit))
            self.low, self.high = low + 3 * self.close, high - 3 * self.close
            self.unchanged = max(UNCHANGED, 4 * self.close)
            self.longest = math.ceil(longest)
            self.fine = self.low < self.high

    def reset(self, position: float) -> None:
        self.position = position
        self.stop = shortest_stop(0.0, 0.0, self.most)
        self.targets = (position, position, position)
        self.follows = True

    def copy(self) -> _Joint:
        other = copy.copy(self)
        other.stop = replace(self.stop)
        return other

    def certified(self) -> _Next:
        """The next point of the stop that it has."""
        rest = replace(self.stop)
        rest.advance()
        return _Next(self.position + self.unit * rest.speed, rest, certified=True)

    def at(self, acceleration: float) -> _Next:
        """The state after a step of this acceleration."""
        speed = self.stop.speed + acceleration
        stop = shortest_stop(speed, acceleration, self.most)
        return _Next(self.position + self.unit * speed, stop)

    def excess(self, state: _Next) -> float:
        """How far (rad) the stop from a state goes beyond the joint's range; <= 0: not at all."""
        down, up = state.stop.reach()
        return max(
            state.position + self.unit * up - self.high,
            self.low - state.position - self.unit * down,
        )

    def choose(self, target: float) -> _Next:
        """The admissible next point that is closest to the target."""
        v, a = self.stop.speed, self.stop.acceleration
        wanted = (target - self.position) / self.unit - v
        chosen, reason = wanted, ""
        for name, lowest, highest, slack in (
            ("jerk", a - 1, a + 1, self.slack),
            ("acceleration", -self.most, self.most, self.slack),
            (
                "velocity",
                -highest_acceleration(-v, self.top),
                highest_acceleration(v, self.top),
                self.speed_slack,
            ),
        ):
            if chosen > highest + slack:
                chosen, reason = highest, name
            elif chosen < lowest - slack:
                chosen, reason = lowest, name
        reached = self.unit * abs(chosen - wanted) <= self.unchanged
        state = self.at(chosen)
        if chosen == wanted:
            state.position = target
        trend = self._trend(target)
        free = reached and (self.follows or self._stays(chosen, trend))
        excess = self.excess(state)
        if excess > self.close or not free:
            state = self._closest(state, excess, None if free else target, trend, reason)
        else:
            state.reason = reason
        if abs(state.position - target) <= self.unchanged:
            state.reason = ""
        return state

    def _closest(
        self,
        state: _Next,
        excess: float,
        target: float | None,
        trend: tuple[float, float],
        reason: str,
    ) -> _Next:
        """The last admissible point on the way from the certified one to `state`.

        Args:
            excess: that of `state`.
            target: not to be overshot; None: that does not matter.
            trend: speed and acceleration of the target.
        """
        certified = self.certified()
        side = 1 if target is None or target >= certified.position else -1

        def beyond(state: _Next, excess: float) -> tuple[float, str]:
            """How far it goes beyond range or target, whichever is more."""
            if target is None:
                return excess, "position"
            stop = state.stop
            # Seen from the target, which goes on as it does.
            acceleration = stop.acceleration - trend[1]
            most = max(self.most - abs(trend[1]), abs(acceleration))
            down, up = shortest_stop(stop.speed - trend[0], acceleration, most).reach()
            by = side * (state.position - target) + self.unit * (up if side > 0 else -down)
            return (excess, "position") if excess > by else (by, "target")

        bad, bad_at = beyond(state, excess)[0], state.stop.acceleration
        if bad <= self.close:
            state.reason = reason
            return state
        good_at = certified.stop.acceleration
        best = self.at(good_at)
        good, why = beyond(best, self.excess(best))
        if good > -self.close:
            certified.reason = why
            return certified
        # Regula falsi; of an end that stays, only half counts (Illinois).
        last = 0
        for _ in range(TRIES):
            middle = good_at + (bad_at - good_at) * (-self.close / 2 - good) / (bad - good)
            tried = self.at(middle)
            found, which = beyond(tried, self.excess(tried))
            if found <= 0:
                best, good_at, good = tried, middle, found
                if good > -self.close:
                    break
                bad, last = (bad / 2 if last > 0 else bad), 1
            else:
                bad_at, bad, why = middle, found, which
                good, last = (good / 2 if last < 0 else good), -1
        best.reason = why
        return best

    def _trend(self, target: float) -> tuple[float, float]:
        """Speed and acceleration of a target that moves smoothly; 0 if it jumps or jitters."""
        first, second, third = self.targets
        now, before = (target - first) / self.unit, (first - second) / self.unit
        earlier = (second - third) / self.unit
        speed = _agreed(now, 2 * before)
        bend = _agreed(now - before, before - earlier)
        return (
            max(-self.top, min(self.top, speed)),
            max(-self.most / 2, min(self.most / 2, bend)),
        )

    def _stays(self, acceleration: float, trend: tuple[float, float]) -> bool:
        """Whether it can go along with the target, once it has reached it in the next step."""
        speed, bend = trend
        after = speed + bend - self.stop.speed - acceleration
        return max(abs(after - acceleration), abs(after - bend)) <= 1 and abs(after) <= self.most

    def commit(self, state: _Next, target: float) -> None:
        self.position, self.stop = state.position, state.stop
        self.targets = (target, *self.targets[:2])
        self.follows = not state.reason or state.stop.rests


class SafetyFilter:
    """Limits what is sent, one position per control period.

    Args:
        limits: of the joints, all of them finite.
        period_s: control period, s.
        workspace: box for the tip; None: no such limit.

    Raises:
        ValueError: limits that are missing, or so tight for this period that rounding of positions
            is as large.
    """

    def __init__(
        self, limits: JointLimits, period_s: float, workspace: Workspace | None = None
    ) -> None:
        if not (math.isfinite(period_s) and period_s > 0):
            raise ValueError(f"period_s is {period_s}; expected a positive number of seconds")
        limits.require_finite()
        self.limits, self.period_s, self.workspace = limits, float(period_s), workspace
        self._joints = [_Joint(limits, joint, self.period_s) for joint in range(len(limits.names))]
        wrong = [n for n, j in zip(limits.names, self._joints, strict=True) if not j.fine]
        if wrong:
            raise ValueError(
                f"at a period of {period_s} s the limits of {', '.join(wrong)} are not above the "
                "rounding of positions"
            )
        self._started = False

    @property
    def longest_stop_s(self) -> float:
        """No stop takes longer, s."""
        return max(joint.longest for joint in self._joints) * self.period_s

    @property
    def position(self) -> np.ndarray:
        """``[J]``, what was sent last."""
        self._require_started()
        return np.array([joint.position for joint in self._joints])

    def copy(self) -> SafetyFilter:
        """Another filter in the same state, to see what would be sent."""
        if not self._started:
            return SafetyFilter(self.limits, self.period_s, self.workspace)
        other = copy.copy(self)
        other._joints = [joint.copy() for joint in self._joints]
        return other

    @property
    def at_rest(self) -> bool:
        """Whether position stays what it is unless a target moves it."""
        self._require_started()
        return all(joint.stop.rests for joint in self._joints)

    def reset(self, position: ArrayLike) -> None:
        """Start, or start anew, at rest.

        Args:
            position: where the arm is and was last told to be, ``[J]``, rad.

        Raises:
            ValueError: not finite, misshapen, or outside of range or workspace box.
        """
        values = self._vector(position, "position")
        outside = (values < self.limits.low) | (values > self.limits.high)
        if outside.any():
            raise ValueError(
                "starts outside of its range: "
                + ", ".join(
                    f"{self.limits.names[i]} at {values[i]:g}, range {self.limits.low[i]:g} to "
                    f"{self.limits.high[i]:g}"
                    for i in np.flatnonzero(outside)
                )
            )
        if self.workspace is not None and not self.workspace.holds(values[None]):
            raise ValueError(
                f"the tip starts at {self.workspace.tip(values[None])[0]}, outside of the workspace"
                f" box from {self.workspace.low} to {self.workspace.high} or in its margin"
            )
        for joint, value in zip(self._joints, values, strict=True):
            joint.reset(float(value))
        self._started = True

    def step(self, target: ArrayLike) -> Filtered:
        """The position to send in the place of `target`, ``[J]``, rad.

        Raises:
            ValueError: not finite, or misshapen: nothing has changed then.
            RuntimeError: not started by `reset`.
        """
        self._require_started()
        targets = self._vector(target, "target").tolist()
        states = [j.choose(t) for j, t in zip(self._joints, targets, strict=True)]
        if self.workspace is not None:
            states = self._inside(states, self.workspace)
        return self._commit(states, targets)

    def brake(self) -> Filtered:
        """The next position of the stop; once at rest, where it rests.

        Raises:
            RuntimeError: not started by `reset`.
        """
        self._require_started()
        states = [joint.certified() for joint in self._joints]
        for joint, state in zip(self._joints, states, strict=True):
            state.reason = "" if joint.stop.rests else "brake"
        return self._commit(states, [state.position for state in states])

    def _inside(self, states: list[_Next], workspace: Workspace) -> list[_Next]:
        """`states`, or others so much closer to the certified ones that the box holds."""
        if all(s.certified for s in states) or workspace.holds(self._positions(states)):
            return states
        certified = [joint.certified() for joint in self._joints]
        best, good, bad = certified, 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (good + bad) / 2
            between = [
                c if s.certified else joint.at(_between(c, s, middle))
                for joint, c, s in zip(self._joints, certified, states, strict=True)
            ]
            if all(
                state.certified or joint.excess(state) <= joint.close
                for joint, state in zip(self._joints, between, strict=True)
            ) and workspace.holds(self._positions(between)):
                best, good = between, middle
            else:
                bad = middle
        for state in best:
            state.reason = "workspace"
        return best

    def _positions(self, states: Sequence[_Next]) -> np.ndarray:
        """``[N, J]``: next positions, and those of the stops from there."""
        start = np.array([state.position for state in states])
        unit = np.array([joint.unit for joint in self._joints])
        return np.vstack([start, start + unit * path([state.stop for state in states])])

    def _commit(self, states: list[_Next], targets: list[float]) -> Filtered:
        for joint, state, target in zip(self._joints, states, targets, strict=True):
            joint.commit(state, target)
        position, speed, acceleration, unit = np.array(
            [
                (s.position, s.stop.speed, s.stop.acceleration, j.unit)
                for j, s in zip(self._joints, states, strict=True)
            ]
        ).T
        names = self.limits.names
        return Filtered(
            position,
            speed * unit / self.period_s,
            acceleration * unit / self.period_s**2,
            np.array([bool(state.reason) for state in states]),
            {n: s.reason for n, s in zip(names, states, strict=True) if s.reason},
        )

    def _vector(self, values: ArrayLike, what: str) -> np.ndarray:
        vector = np.asarray(values, np.float64)
        if vector.shape != (len(self._joints),):
            raise ValueError(f"{what} has shape {vector.shape}, expected ({len(self._joints)},)")
        if not np.isfinite(vector).all():
            wrong = ", ".join(self.limits.names[i] for i in np.flatnonzero(~np.isfinite(vector)))
            raise ValueError(f"{what} is not finite: {wrong}")
        return vector

    def _require_started(self) -> None:
        if not self._started:
            raise RuntimeError("the filter knows no position yet: call reset first")


def _agreed(a: float, b: float) -> float:
    """The smaller of two of one sign, else 0."""
    return math.copysign(min(abs(a), abs(b)), a) if a * b > 0 else 0.0


def _between(start: _Next, end: _Next, share: float) -> float:
    """An acceleration on the way from that of one state to that of another."""
    a, b = start.stop.acceleration, end.stop.acceleration
    return a + share * (b - a)
