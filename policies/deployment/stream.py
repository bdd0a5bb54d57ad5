"""Targets that come one at a time, as short trajectories that end at rest.

Where no chunk says what comes next, the joints run along the quadratic B-spline of the targets: its
speed is continuous, its acceleration that of the targets themselves, and it never goes beyond them.
The price is half an interval of delay. Each trajectory goes on to the newest target and stops
there, in case that it is the last. The interval is measured: who sends targets need not say how
often, and may pause, over which the arm comes to rest.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from ..safety import Filtered, SafetyFilter
from .arm import Trajectory
from .plan import Plan, eased, ending_at_rest


@dataclass
class StreamConfig:
    """How targets become motion.

    Attributes:
        controller_hz: points of a trajectory a second.
        lead_s: a trajectory begins so long after it is sent, where the arm will be by then.
        horizon_s: how far ahead a trajectory goes before it brakes: so late may a target be
            without the arm slowing down.
        ramp_s: first motion is blended in over so long.
        far_rad: from rest, a target further than this from the joints is refused.

    Raises:
        ValueError: a number that means nothing.
    """

    controller_hz: float = 100.0
    lead_s: float = 0.04
    horizon_s: float = 0.25
    ramp_s: float = 1.0
    far_rad: float = 0.5

    def __post_init__(self) -> None:
        if not (self.controller_hz > 0 and self.far_rad > 0 and self.ramp_s >= 0):
            raise ValueError(
                "controller_hz and far_rad are above 0, ramp_s is at least 0; found "
                f"controller_hz={self.controller_hz}, far_rad={self.far_rad}, ramp_s={self.ramp_s}"
            )
        if not 1 / self.controller_hz <= self.lead_s <= self.horizon_s / 3 <= 0.5 / 3:
            raise ValueError(
                f"lead_s={self.lead_s}, horizon_s={self.horizon_s}: a trajectory begins one point "
                f"({1 / self.controller_hz:g} s) from now at least, leads three times as far at "
                "least, and at most 0.5 s"
            )


class Stream:
    """One motion, from rest; see the module. Times are monotonic.

    Args:
        safety: the filter, of the arm's axes.
        config: see there; the filter is for its `controller_hz`.
        interval_s: between targets, until it has been measured.

    Attributes:
        started: whether there is a motion: from `start` on.
        clips: by reason, points at which the filter changed what was wanted.

    Raises:
        ValueError: the filter is for another rate.
    """

    def __init__(self, safety: SafetyFilter, config: StreamConfig, interval_s: float) -> None:
        if abs(safety.period_s * config.controller_hz - 1) > 1e-6:
            raise ValueError(
                f"the safety filter is for {1 / safety.period_s:g} points a second, "
                f"controller_hz is {config.controller_hz:g}"
            )
        self._safety, self.config = safety, config
        self._intervals: deque[float] = deque([interval_s], maxlen=9)
        self.started = False
        self.clips: Counter[str] = Counter()

    def start(self, joints: np.ndarray, now: float) -> None:
        """Begin at rest, where the joints are ``[J]``.

        Raises:
            ValueError: the filter cannot start there.
        """
        limits = self._safety.limits
        self._rest = np.clip(joints, limits.low, limits.high)
        self._safety.reset(self._rest)
        self._speed = np.zeros_like(self._rest)
        self._clock = now + self.config.lead_s
        self._until = self._begun = now
        self._aim, self._aimed, self._due = self._rest, now, now
        self._plan: Plan | None = None
        self.started = True

    @property
    def position(self) -> np.ndarray:
        """Where the joints are commanded to be ``[J]``, `lead_s` after the last `advance`."""
        return self._safety.position

    @property
    def interval_s(self) -> float:
        """Between targets: the median of the newest, within what a trajectory can show."""
        low, high = self._safety.period_s, self.config.horizon_s - self.config.lead_s
        return min(max(statistics.median(self._intervals), low), high)

    def advance(self, now: float) -> None:
        """What the arm will have done in `lead_s`: the points of what was sent last."""
        period, to = self._safety.period_s, now + self.config.lead_s
        while self._clock + period <= to + 1e-9:
            if self._paused(self._clock + period) and self._safety.at_rest:
                self._clock, self._speed = to, np.zeros_like(self._rest)
                return
            self._clock += period
            point = self._next(self._safety, self._clock)
            self._speed = point.velocity
            for joint, reason in point.reasons.items():
                if reason != "brake":
                    self.clips[f"{joint}: {reason}"] += 1

    def aim(self, target: np.ndarray, now: float) -> Trajectory:
        """What to send with a new target ``[J]``: where the joints are to be an interval from now.

        Raises:
            ValueError: the target is no such vector or, from rest, far from the joints; nothing
                has changed then but for `advance`.
        """
        self.advance(now)
        limits, config = self._safety.limits, self.config
        target = np.asarray(target, np.float64)
        if target.shape != self._rest.shape or not np.isfinite(target).all():
            raise ValueError(f"a target is {self._rest.shape[0]} finite numbers, found {target}")
        resting = self._paused(now + config.lead_s)
        away = np.abs(target - self.position)
        if resting and away.max() > config.far_rad:
            worst = int(away.argmax())
            raise ValueError(
                f"the first target is far: {limits.names[worst]} would move {away[worst]:.3f} rad "
                f"(at most {config.far_rad:g})"
            )
        if self._plan is None:
            self._begun = now
        elif not resting:
            self._intervals.append(now - self._aimed)
        self._plan = self._through(target, now, resting)
        self._until = now + config.horizon_s
        return self._ahead(now)

    def _through(self, target: np.ndarray, now: float, resting: bool) -> Plan:
        """The curve from where it is, towards the middle of the last two targets, to the target."""
        interval, limits = self.interval_s, self._safety.limits
        due = now + self.config.lead_s + interval
        if not resting:  # who sends targets jitters; what the joints do is not to
            steady = self._due + interval
            due = min(max(steady + PULL * (due - steady), due - interval / 2), due + interval / 2)
        if due < self._begun + self.config.ramp_s:
            share = eased((due - self._begun) / self.config.ramp_s)
            target = self._rest + share * (target - self._rest)
        target = np.clip(target, limits.low, limits.high)
        last = self.position if resting else self._aim
        knots = [(self._clock, *self._from(resting))]
        if self._plan is not None and not resting and self._clock + interval / 4 < self._due:
            knots.append((self._due, *self._plan.at(self._due)))
        middle, speed = (last + target) / 2, (target - last) / interval
        knots.append((due, middle, speed))
        # The next target may be a little late before the arm slows down.
        knots.append((due + interval / 4, middle + interval / 4 * speed, speed))
        knots.append((due + 3 * interval / 4, target, np.zeros_like(target)))
        self._aim, self._aimed, self._due = target, now, due
        times, positions, velocities = (np.array(column) for column in zip(*knots, strict=True))
        return Plan(times, positions, velocities)

    def brake(self, now: float) -> Trajectory:
        """What to send so that the arm comes to rest as soon as the limits allow."""
        self.advance(now)
        self._until = self._clock
        return self._ahead(now)

    def _ahead(self, now: float) -> Trajectory:
        rehearsed, at = self._safety.copy(), self._clock
        points: list[tuple[float, Filtered]] = []
        while not self._paused(at + self._safety.period_s):
            at += self._safety.period_s
            points.append((at, self._next(rehearsed, at)))
        begin = self._clock, self._safety.position, self._speed
        return ending_at_rest(now, begin, points, rehearsed)

    def _paused(self, at: float) -> bool:
        """Whether what was sent last is braking at that time, or at rest."""
        return self._plan is None or at > self._until + 1e-9

    def _next(self, safety: SafetyFilter, at: float) -> Filtered:
        if self._plan is None or self._paused(at):
            return safety.brake()
        return safety.step(self._plan.at(at)[0])

    def _from(self, resting: bool) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity ``[J]`` from which to go on."""
        if self._plan is not None and not resting:
            there, speed = self._plan.at(self._clock)
            if np.abs(there - self.position).max() < ON_PLAN:
                return there, speed
        # The filter has held the arm back, or braked it.
        return self.position, self._speed


PULL = 0.1
"""Share by which each target's own time moves the beat that the joints keep."""
ON_PLAN = 1e-6
"""Radians by which the filter may be off the plan and still count as following it."""
