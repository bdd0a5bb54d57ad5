"""The shortest stop of one joint, in closed form, when jerk and acceleration are bounded.

A joint is moved at a fixed rate. All here is in the units of its largest jerk: time in periods,
acceleration in what a period of largest jerk adds, speed and position likewise, so that

    a[k] = a[k-1] + j, |j| <= 1, |a[k]| <= most;    v[k] = v[k-1] + a[k];    q[k] = q[k-1] + v[k]

which makes v, a and j the backward differences of q. To stop a joint that moves up is to let its
acceleration fall as fast as it may, hold it at -most, and let it rise to 0 as it comes to rest:

    a[k] = max(-most, a[0] - k, -max(0, r - k))

The real number r, the time at which the rise ends, is what makes the speed end at exactly 0. No
other way of stopping without turning back has a lower speed at *any* k, so none is shorter or
peaks lower: where this one breaks a limit, they all do. And what is left of it after a step is the
shortest stop from there. Sums over k of the three branches are polynomials of r and floor(r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

KINK = 1e-11
"""Distance at which a breakpoint counts as reached: rounding may leave it just ahead."""


@dataclass(slots=True)
class Stop:
    """A stop, and the state that it starts from. `advance` turns it into what is left of it.

    Attributes:
        speed, acceleration: of the state.
        left: periods until it rests, a real number: r.
        side: 1 if it is braked from moving up, -1 from moving down.
        most: largest acceleration.
    """

    speed: float
    acceleration: float
    left: float
    side: int
    most: float

    def advance(self) -> None:
        """Go on by one period."""
        if self.left <= 1:
            self.speed = self.acceleration = 0.0
        elif self.left <= 2:
            # All that follows is rest: this step takes what rounding has left of the speed, too.
            self.acceleration, self.speed = -self.speed, 0.0
        else:
            a = max(-self.most, self.side * self.acceleration - 1, 1 - self.left)
            self.acceleration = self.side * a
            self.speed += self.acceleration
        self.left = max(0.0, self.left - 1)

    @property
    def rests(self) -> bool:
        """Whether it is over: no speed, no acceleration."""
        return self.speed == 0 and self.acceleration == 0

    def reach(self) -> tuple[float, float]:
        """How far below and above where it is now the joint will be: ``(<= 0, >= 0)``."""
        v, a = self.side * self.speed, self.side * self.acceleration
        r, most = self.left, self.most
        if r >= a + 2 * most:
            moment = _moment(r) - _moment(r - most) - _moment(a + most)
        else:
            moment = _moment(r) - 2 * _moment((a + r) / 2)
        travel = moment - v  # each v[k] is the sum of the decelerations after k
        ahead, back = max(0.0, travel), _back(v, a) if v < 0 else 0.0
        return (back, ahead) if self.side > 0 else (-ahead, -back)


def shortest_stop(speed: float, acceleration: float, most: float) -> Stop:
    """The shortest stop from a state; `acceleration` is from -most to most."""
    # Speed once the acceleration is gone, eased as fast as can be: the side to brake from.
    eased = speed + math.copysign(_ramp(abs(acceleration)), acceleration)
    side = 1 if eased >= 0 else -1
    left = _duration(side * speed, side * acceleration, most)
    return Stop(speed, acceleration, left, side, most)


def highest_acceleration(speed: float, top: float) -> float:
    """The highest next acceleration from which the speed need not pass `top` (from below)."""
    room = top - speed
    if room <= 0:
        return room
    # a + (a - 1) + (a - 2) + ... = room
    n = math.floor((math.sqrt(8 * room + 1) - 1) / 2)
    return room / (n + 1) + n / 2


def _ramp(x: float) -> float:
    """Sum of (x - k) over the integers k from 1 to x, continued to x < 0 by its polynomial."""
    n = math.floor(x)
    return n * (x - (n + 1) / 2)


def _moment(x: float) -> float:
    """Sum of k (x - k) over the same k."""
    n = math.floor(x)
    return n * (n + 1) / 2 * (x - (2 * n + 1) / 3)


def _duration(v: float, a: float, most: float) -> float:
    """The r at which the decelerations sum up to v, if braked from moving up.

    The sum is that of min(k - a, r - k) over k, which is ramp(r) - 2 ramp((a + r) / 2), less what
    that has above `most`. It grows with r, linearly between breakpoints.
    """
    held = a + 2 * most  # from this r on, there is a phase at -most, and a period of it adds `most`
    if v >= (at := _ramp(held) - 2 * _ramp(a + most)):
        fixed = _ramp(a + most)
        r = held + math.floor((v - at) / most)
        total = _ramp(r) - _ramp(r - most) - fixed
        if total >= v:
            return r
        while True:
            kink = min(math.floor(r + KINK) + 1, math.floor(r - most + KINK) + 1 + most)
            after = _ramp(kink) - _ramp(kink - most) - fixed
            if after >= v:
                return r + (kink - r) * (v - total) / (after - total)
            r, total = kink, after
    # ramp(x) is (x^2 - x) / 2 plus 0 to 1/8: no smaller r than this one will do.
    r = max(abs(a), a + 2 * math.sqrt(max(0.0, v + (a * a - a) / 2 - 0.125)))
    total = _ramp(r) - 2 * _ramp((a + r) / 2)
    if total >= v:
        return r
    while True:
        kink = min(math.floor(r + KINK) + 1, 2 * (math.floor((a + r) / 2 + KINK) + 1) - a)
        after = _ramp(kink) - 2 * _ramp((a + kink) / 2)
        if after >= v:
            return r + (kink - r) * (v - total) / (after - total)
        r, total = kink, after


def _back(v: float, a: float) -> float:
    """How far (<= 0) a joint goes down first that is to move up: v < 0, and a falls by 1 each."""
    # v[k] = v + k a - k (k + 1) / 2 is below 0 until about this k.
    b = a - 0.5
    n = math.floor(b - math.sqrt(max(0.0, b * b + 2 * v)))
    return min(0.0, *(k * (v + (k + 1) * (a / 2 - (k + 2) / 6)) for k in (n, n + 1)))


def path(stops: Sequence[Stop]) -> np.ndarray:
    """Where joints will be while they stop together: positions ``[N, J]`` relative to now.

    The first row is one period from now; in the last one all rest.
    """
    v, a, r, side, most = np.array(
        [(s.speed, s.acceleration, s.left, s.side, s.most) for s in stops], np.float64
    ).T
    k = np.arange(1, max(1, math.ceil(r.max())) + 1)[:, None]
    decelerated = np.maximum(np.maximum(-most, side * a - k), -np.maximum(0, r - k))
    return np.cumsum(v + np.cumsum(side * decelerated, 0), 0)
