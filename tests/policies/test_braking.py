"""Shortest stops against simulation, and against every other stop there is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from policies.braking import Stop, highest_acceleration, path, shortest_stop

MOST = st.one_of(st.sampled_from([0.25, 1.0, 2.0, 7.0]), st.floats(0.05, 40))
SHARES = st.one_of(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), st.floats(-1, 1))
SPEEDS = st.one_of(st.integers(-300, 300).map(float), st.floats(-300, 300), st.floats(-2, 2))


def states(stop: Stop) -> np.ndarray:
    """``[N + 1, 2]``: speed and acceleration, the first those that it starts from."""
    stop = replace(stop)
    found = [(stop.speed, stop.acceleration)]
    for _ in range(math.ceil(stop.left)):
        stop.advance()
        found.append((stop.speed, stop.acceleration))
    return np.array(found)


@given(SPEEDS, SHARES, MOST)
def test_a_stop_keeps_the_limits_and_ends_at_rest_when_and_where_it_says(speed, share, most):
    stop = shortest_stop(speed, share * most, most)
    v, a = states(stop).T
    length = len(v)
    assert (v[-1], a[-1]) == (0, 0)
    assert abs(np.diff(a)).max(initial=0) <= 1 + 1e-9
    assert abs(a).max() <= most + 1e-9
    np.testing.assert_allclose(v[1:], v[:-1] + a[1:], atol=1e-9)
    q = np.concatenate([[0], np.cumsum(v[1:])])
    scale = 1e-13 * (1 + length**3)
    np.testing.assert_allclose(stop.reach(), (q.min(), q.max()), atol=scale)
    laid_out = path([stop, shortest_stop(0, 0, 1)])
    np.testing.assert_allclose(laid_out[: length - 1, 0], q[1 : len(laid_out) + 1], atol=scale)
    assert not laid_out[:, 1].any()


@given(SPEEDS, SHARES, MOST)
def test_what_is_left_of_a_stop_is_the_shortest_one_from_there(speed, share, most):
    stop = shortest_stop(speed, share * most, most)
    assume(stop.left > 2)
    stop.advance()
    again = shortest_stop(stop.speed, stop.acceleration, most)
    np.testing.assert_allclose(again.reach(), stop.reach(), atol=1e-9 * (1 + stop.left**3))


@given(SPEEDS, SHARES, MOST)
def test_up_and_down_are_alike(speed, share, most):
    up = shortest_stop(speed, share * most, most).reach()
    down = shortest_stop(-speed, -share * most, most).reach()
    assert down == pytest.approx((-up[1], -up[0]), abs=1e-9)


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("scale", [1, 2])
def test_no_stop_without_turning_back_is_shorter_or_slower_at_any_time(most, scale):
    """Against all whose jerks are multiples of 1 / scale: every one of up to 7 periods."""
    jerks = np.arange(-scale, scale + 1) / scale
    periods = 7 if scale == 1 else 5
    j = np.array(list(itertools.product(jerks, repeat=periods)))
    compared = 0
    for speed, first in itertools.product(range(6), range(-most, most + 1)):
        a = first + np.cumsum(j, 1)
        v = speed + np.cumsum(a, 1)
        stops = (abs(a) <= most).all(1) & (v >= 0).all(1) & (v[:, -1] == 0) & (a[:, -1] == 0)
        if not stops.any():
            continue
        v = v[stops]
        ours = states(shortest_stop(speed, first, most))[1:, 0]
        assert len(ours) <= periods
        ours = np.concatenate([ours, np.zeros(periods - len(ours))])
        assert (ours <= v.min(0) + 1e-9).all()
        compared += len(v)
    assert compared > 20


@given(st.floats(-200, 200), st.floats(0, 200))
def test_the_highest_acceleration_lets_the_speed_peak_at_the_top(speed, top):
    assume(speed < top)
    a = highest_acceleration(speed, top)
    peak = speed + sum(max(0.0, a - k) for k in range(math.ceil(a) + 1))
    assert peak == pytest.approx(top, abs=1e-9)
