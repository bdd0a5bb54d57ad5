"""What leaves the safety filter keeps all limits, whatever goes in; what keeps them passes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest

from policies.safety import Filtered, JointLimits, SafetyFilter, Workspace

TOLERANCE = 1e-9
"""Of finite differences, as a share of the limit."""


def arm(speed: float = 1.0, acceleration: float = 1.0, jerk: float = 1.0) -> JointLimits:
    """Seven joints like those of a Panda."""
    return JointLimits(
        tuple(f"joint{i}" for i in range(1, 8)),
        np.array([-2.74, -1.76, -2.74, -3.07, -2.74, 0.5, -2.9]),
        np.array([2.74, 1.76, 2.74, -0.07, 2.74, 4.5, 2.9]),
        np.array([2.6, 2.6, 2.6, 2.6, 5.0, 4.0, 5.0]) * speed,
        np.full(7, 10.0) * acceleration,
        np.full(7, 500.0) * jerk,
    )


def joint(
    velocity: float, acceleration: float, jerk: float, low: float = -3.0, high: float = 3.0
) -> JointLimits:
    one = (np.array([v]) for v in (low, high, velocity, acceleration, jerk))
    return JointLimits(("joint",), *one)


ARMS = {
    "usual": (arm(), 0.01),
    "slow and soft": (arm(0.4, 0.3, 0.04), 0.01),
    "at 1 kHz": (arm(), 0.001),
    "at 20 Hz": (arm(), 0.05),
    "stiff": (arm(1.0, 0.2, 100.0), 0.02),
}


def middle(limits: JointLimits) -> np.ndarray:
    return (limits.low + limits.high) / 2


def started(limits: JointLimits, period: float, position: np.ndarray | None = None) -> SafetyFilter:
    made = SafetyFilter(limits, period)
    made.reset(middle(limits) if position is None else position)
    return made


def violations(limits: JointLimits, period: float, sent: np.ndarray) -> dict[str, int]:
    """How many of the positions ``[T, J]``, sent after rest at the first one, break which limit."""
    sent = np.concatenate([np.repeat(sent[:1], 3, 0), sent])
    v = np.diff(sent, axis=0) / period
    a = np.diff(v, axis=0) / period
    j = np.diff(a, axis=0) / period
    return {
        "position": int(((sent < limits.low) | (sent > limits.high)).sum()),
        "velocity": int((abs(v) > limits.velocity * (1 + TOLERANCE)).sum()),
        "acceleration": int((abs(a) > limits.acceleration * (1 + TOLERANCE)).sum()),
        "jerk": int((abs(j) > limits.jerk * (1 + TOLERANCE)).sum()),
    }


NONE = {"position": 0, "velocity": 0, "acceleration": 0, "jerk": 0}


# --- commands ------------------------------------------------------------------------------------


def anywhere(limits: JointLimits, period: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        yield rng.uniform(limits.low - 1, limits.high + 1)


def held(limits: JointLimits, period: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Far targets, each for a while."""
    while True:
        target = rng.uniform(limits.low - 1, limits.high + 1)
        for _ in range(rng.integers(1, 80)):
            yield target


def ends(limits: JointLimits, period: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """One end of the range, or far beyond it, then another."""
    while True:
        far = rng.choice([0.0, 1e-9, 1.0, 1e9, 1e308])
        target = np.where(rng.random(len(limits.names)) < 0.5, limits.low - far, limits.high + far)
        for _ in range(rng.integers(1, 150)):
            yield target


def drunk(limits: JointLimits, period: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A random walk whose steps are about what a period allows."""
    at: np.ndarray = middle(limits)
    while True:
        at = np.clip(at + rng.normal(0, 1, len(at)) * limits.velocity * period, -4, 5)
        yield at


def recorded(limits: JointLimits, period: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """As policies do: smooth reaches in chunks that do not quite join, held over some periods."""
    chunk, hold = round(0.8 / period), max(1, round(0.05 / period))
    at: np.ndarray = middle(limits)
    while True:
        goal = rng.uniform(limits.low, limits.high)
        s = np.linspace(0, 1, 2 * chunk)[:, None]
        way = at + (goal - at) * (10 * s**3 - 15 * s**4 + 6 * s**5)
        for start in range(0, len(way), chunk):
            shift = rng.normal(0, 0.01, len(at))
            yield from way[start : start + chunk : hold].repeat(hold, 0) + shift
        at = goal


class Adversary:
    """Asks, next to what was sent, for what is just within or beyond reach."""

    def __init__(self, limits: JointLimits, period: float, rng: np.random.Generator):
        self.limits, self.period, self.rng = limits, period, rng
        self.bias: np.ndarray = np.zeros(len(limits.names))

    def after(self, last: Filtered) -> np.ndarray:
        rng, h, limits = self.rng, self.period, self.limits
        if rng.random() < 0.02:
            self.bias = rng.choice([-1.0, 0.0, 1.0], len(self.bias))
        unit = limits.jerk * h**3
        least = last.position + h * last.velocity + h**2 * last.acceleration
        push = np.where(self.bias == 0, rng.uniform(-1.5, 1.5, len(unit)), self.bias)
        # The filter leaves 1e-9 of each limit to itself, and lets 1e-10 of that go.
        near = 1 - 1e-9 + rng.choice([-1e-10, 0, 0.9e-10, 1.1e-10, 1e-9])
        target = least + unit * push * rng.choice([near, near, 0.5, 1.5])
        return np.clip(target, limits.low - 1e-3, limits.high + 1e-3)


COMMANDS = (anywhere, held, ends, drunk, recorded)


def fuzz(limits: JointLimits, period: float, count: int, seed: int) -> np.ndarray:
    """Positions ``[T, J]`` sent in answer to `count` commands of all kinds, and while braking."""
    rng = np.random.default_rng(seed)
    kinds = [make(limits, period, rng) for make in COMMANDS]
    adversary = Adversary(limits, period, rng)
    box = limits.low, limits.high
    start = np.where(rng.random(len(box[0])) < 0.3, box[rng.integers(2)], rng.uniform(*box))
    safety = started(limits, period, start)
    most = math.ceil(safety.longest_stop_s / period)
    sent, last, given = [start], safety.brake(), 0
    while given < count:
        kind = rng.integers(len(kinds) + 1)
        for _ in range(min(count - given, int(rng.integers(1, 200)))):
            target = adversary.after(last) if kind == len(kinds) else next(kinds[kind])
            last = safety.step(target)
            sent.append(last.position)
            given += 1
        stopping = 0
        while rng.random() < 0.97 and not safety.at_rest:
            last = safety.brake()
            sent.append(last.position)
            stopping += 1
        assert stopping <= most
    return np.array(sent)


@pytest.mark.parametrize("name", ARMS)
def test_nothing_that_leaves_the_filter_breaks_a_limit(name):
    limits, period = ARMS[name]
    sent = fuzz(limits, period, 4_000, seed=0)
    assert len(sent) > 4_000
    assert violations(limits, period, sent) == NONE


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("seed", range(1, 11))
def test_nothing_that_leaves_the_filter_breaks_a_limit_in_a_million_commands(name, seed):
    limits, period = ARMS[name]
    assert violations(limits, period, fuzz(limits, period, 20_000, seed)) == NONE


@pytest.mark.parametrize("seed", range(3))
def test_limits_of_any_kind_are_kept(seed):
    rng = np.random.default_rng(seed)
    for _ in range(6):
        jerk, period = 10 ** rng.uniform(0.5, 4.5, 7), rng.choice([0.002, 0.01, 0.03])
        low = rng.uniform(-3, 2, 7)
        limits = JointLimits(
            arm().names,
            low,
            low + rng.choice([0.01, 0.3, 3.0], 7),
            10 ** rng.uniform(-1, 1, 7),
            10 ** rng.uniform(-0.5, 1.5, 7),
            jerk,
        )
        sent = fuzz(limits, period, 200, seed)
        assert violations(limits, period, sent) == NONE


# --- what passes unchanged -----------------------------------------------------------------------


def sway(limits: JointLimits, period: float, share: float) -> np.ndarray:
    """Every joint swings, up to a share of one of its limits, after a smooth start."""
    t = np.arange(round(12 / period))[:, None] * period
    w = np.array([0.2, 0.5, 0.8, 1.0, 1.5, 1.2, 0.3]) * 2
    size = np.minimum((limits.high - limits.low) / 2, limits.velocity / w)
    size = share * np.minimum(size, np.minimum(limits.acceleration / w**2, limits.jerk / w**3))
    s = np.clip(t / 4, 0, 1)
    return middle(limits) + size * (10 * s**3 - 15 * s**4 + 6 * s**5) * np.sin(w * t)


@pytest.mark.parametrize("name", ["usual", "at 1 kHz", "at 20 Hz"])
def test_commands_that_keep_the_limits_and_can_still_stop_pass_unchanged(name):
    limits, period = ARMS[name]
    commands = sway(limits, period, 0.9)
    assert violations(limits, period, commands) == NONE
    safety = started(limits, period, commands[0])
    for command in commands:
        passed = safety.step(command)
        np.testing.assert_array_equal(passed.position, command)
        assert not passed.clipped.any()
        assert not passed.reasons


@pytest.mark.parametrize("name", ["usual", "slow and soft", "stiff"])
@pytest.mark.parametrize("make", COMMANDS)
def test_what_left_a_filter_passes_another_unchanged(make, name):
    """It is at its limits most of the time, and can always stop: nothing in reach is refused."""
    limits, period = ARMS[name]
    commands = make(limits, period, np.random.default_rng(0))
    first, second = started(limits, period), started(limits, period)
    for command in itertools.islice(commands, 400):
        sent = first.step(command).position
        again = second.step(sent)
        np.testing.assert_allclose(again.position, sent, rtol=0, atol=1e-9)
        assert not again.clipped.any()


@pytest.mark.parametrize("name", ["usual", "slow and soft", "at 20 Hz", "stiff"])
def test_a_reach_from_one_end_of_the_range_to_the_other_passes(name):
    limits, period = ARMS[name]
    s = np.arange(0, 1 + 1e-9, period / 12)[:, None]
    commands = limits.low + (limits.high - limits.low) * (10 * s**3 - 15 * s**4 + 6 * s**5)
    commands = np.clip(commands, limits.low, limits.high)
    safety = started(limits, period, commands[0])
    for command in commands:
        passed = safety.step(command)
        np.testing.assert_allclose(passed.position, command, rtol=0, atol=1e-8)
        assert not passed.clipped.any()


def test_velocity_and_acceleration_are_differences_of_what_is_sent():
    limits, period = ARMS["usual"]
    safety = started(limits, period)
    commands = itertools.islice(drunk(limits, period, np.random.default_rng(0)), 200)
    answers = [safety.step(c) for c in commands]
    sent = np.array([a.position for a in answers])
    velocity = np.array([a.velocity for a in answers])
    acceleration = np.array([a.acceleration for a in answers])
    np.testing.assert_allclose(np.diff(sent, axis=0) / period, velocity[1:], atol=1e-9)
    np.testing.assert_allclose(np.diff(velocity, axis=0) / period, acceleration[1:], atol=1e-7)


# --- how targets are reached ---------------------------------------------------------------------


def fastest(way: float, velocity: float, acceleration: float, jerk: float) -> float:
    """Seconds from rest to rest, in continuous time."""
    if velocity * jerk >= acceleration**2:
        ramp, speeding = velocity / acceleration + acceleration / jerk, velocity
        if way >= speeding * ramp:
            return way / velocity + ramp
        if way >= 2 * acceleration**3 / jerk**2:
            return acceleration / jerk + math.sqrt(
                (acceleration / jerk) ** 2 + 4 * way / acceleration
            )
    elif way >= 2 * velocity * math.sqrt(velocity / jerk):
        return way / velocity + 2 * math.sqrt(velocity / jerk)
    return 4 * (way / (2 * jerk)) ** (1 / 3)


@pytest.mark.parametrize("seed", range(25))
def test_a_far_target_is_reached_in_the_shortest_time_without_overshoot(seed):
    rng = np.random.default_rng(seed)
    limits = float(rng.uniform(0.3, 3)), float(rng.uniform(1, 12)), float(10 ** rng.uniform(1, 3))
    period = float(rng.choice([0.01, 0.02, 0.005]))
    way = float(rng.choice([2.9, 1.0, 0.3])) * float(rng.choice([-1, 1]))
    safety = started(joint(*limits), period)
    taken, highest, final = 0, 0.0, []
    while not safety.at_rest or not taken:
        answer = safety.step([way])
        highest = max(highest, answer.position[0] / way)
        taken += 1
    assert taken * period <= fastest(abs(way), *limits) + 3 * period
    assert highest <= 1 + 1e-9
    final = [safety.step([way]) for _ in range(20)]
    assert all(answer.position[0] == way for answer in final)
    assert not any(answer.clipped.any() for answer in final)


@pytest.mark.parametrize("way", np.geomspace(1e-7, 0.3, 40))
def test_a_near_target_is_overshot_by_less_than_one_period_of_largest_jerk(way):
    """It is taken at once if it is in reach: it may be the first of a stream."""
    period, jerk = 0.01, 500.0
    safety = started(joint(2.0, 10.0, jerk), period)
    sent = np.array([safety.step([way]).position[0] for _ in range(100)])
    assert sent.max() <= way + jerk * period**3
    assert safety.at_rest
    assert sent[-1] == way


def test_a_target_that_moves_steadily_is_caught_up_with():
    safety = started(joint(2.0, 5.0, 100.0), 0.01)
    behind = []
    for k in range(300):
        target = 0.4 + 0.4 * k * 0.01
        behind.append(target - safety.step([target]).position[0])
    assert min(behind) > -1e-9
    assert max(abs(b) for b in behind[100:]) < 1e-9


def test_a_target_that_swings_is_caught_up_with():
    safety = started(joint(2.0, 5.0, 100.0), 0.01)
    targets = 0.3 + 0.8 * np.sin(np.arange(300) * 0.012)
    beyond = np.array([safety.step([t]).position[0] - t for t in targets])
    assert not beyond[150:].any()
    assert beyond.max() < 0.01


def test_a_joint_that_cannot_follow_does_not_hold_others_back():
    limits, period = ARMS["usual"]
    commands = sway(limits, period, 0.9)
    safety = started(limits, period, commands[0])
    for command in commands[:300]:
        asked = command.copy()
        asked[2] = 100.0
        answer = safety.step(asked)
        np.testing.assert_array_equal(np.delete(answer.position, 2), np.delete(command, 2))
        assert set(answer.reasons) == {"joint3"}


def test_reasons_name_the_limit():
    safety = started(joint(0.5, 5.0, 100.0), 0.01)
    seen = [safety.step([10.0]).reasons["joint"] for _ in range(800)]
    assert list(dict.fromkeys(seen)) == ["jerk", "acceleration", "velocity", "position"]


# --- braking, and the workspace ------------------------------------------------------------------


def test_braking_ends_at_rest_and_stays_there():
    limits, period = ARMS["usual"]
    safety = started(limits, period)
    for command in itertools.islice(ends(limits, period, np.random.default_rng(0)), 120):
        safety.step(command)
    assert not safety.at_rest
    steps = 0
    while not safety.at_rest:
        answer = safety.brake()
        steps += 1
    assert steps <= math.ceil(safety.longest_stop_s / period)
    resting = safety.brake()
    np.testing.assert_array_equal(resting.position, answer.position)
    assert not resting.velocity.any()
    assert not resting.clipped.any()


def planar_tip(positions: np.ndarray) -> np.ndarray:
    """Two links of 0.5 m in the plane z = 0."""
    first, both = positions[..., 0], positions[..., 0] + positions[..., 1]
    x = 0.5 * (np.cos(first) + np.cos(both))
    y = 0.5 * (np.sin(first) + np.sin(both))
    return np.stack([x, y, np.zeros_like(x)], -1)


PLANAR = JointLimits(
    ("shoulder", "elbow"),
    *(np.array(v) for v in ([-3.0, -2.5], [3.0, 2.5], [2.0, 3.0], [8.0, 10.0], [200.0, 300.0])),
)


@pytest.mark.parametrize("make", [anywhere, held, ends, drunk])
def test_the_tip_stays_in_its_box_on_the_way_and_while_stopping(make):
    box = Workspace(np.array([0.2, -0.4, -0.1]), np.array([0.9, 0.4, 0.1]), planar_tip, 0.02)
    safety = SafetyFilter(PLANAR, 0.01, box)
    start = np.array([-0.6, 1.2])
    safety.reset(start)
    sent, held_back = [start], 0
    for command in itertools.islice(make(PLANAR, 0.01, np.random.default_rng(0)), 600):
        answer = safety.step(command)
        sent.append(answer.position)
        held_back += "workspace" in answer.reasons.values()
    while not safety.at_rest:
        sent.append(safety.brake().position)
    path = np.array(sent)
    assert held_back > 10
    assert violations(PLANAR, 0.01, path) == NONE
    assert box.holds(path)
    # Between two samples, the margin is enough: as if joints moved along cubics.
    between = np.concatenate([path[:-1] + s * np.diff(path, axis=0) for s in (0.25, 0.5, 0.75)])
    tips = planar_tip(between)
    assert (tips >= box.low).all()
    assert (tips <= box.high).all()


def test_the_box_holds_all_joints_and_lets_go():
    box = Workspace(np.array([0.2, -0.4, -0.1]), np.array([0.9, 0.4, 0.1]), planar_tip, 0.02)
    safety = SafetyFilter(PLANAR, 0.01, box)
    start = np.array([-0.6, 1.2])
    safety.reset(start)
    for _ in range(200):
        answer = safety.step([0.6, 1.2])
    assert set(answer.reasons.values()) == {"workspace"}
    assert safety.at_rest
    for _ in range(200):
        answer = safety.step(start)
    np.testing.assert_array_equal(answer.position, start)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [np.zeros(6), np.zeros((1, 7)), [np.nan, *[0] * 6], [0] * 6 + [-np.inf]]
)
def test_a_target_that_is_none_changes_nothing(target):
    limits, period = ARMS["usual"]
    safety, other = started(limits, period), started(limits, period)
    for command in sway(limits, period, 0.9)[:20]:
        with pytest.raises(ValueError, match="target (has shape|is not finite)"):
            safety.step(target)
        np.testing.assert_array_equal(safety.step(command).position, other.step(command).position)


def test_nothing_is_sent_before_a_start_or_from_outside_of_the_limits():
    limits, period = ARMS["usual"]
    safety = SafetyFilter(limits, period)
    for act in (lambda: safety.step(middle(limits)), safety.brake, lambda: safety.at_rest):
        with pytest.raises(RuntimeError, match="reset"):
            act()
    with pytest.raises(ValueError, match="joint4 at 0, range -3.07 to -0.07"):
        safety.reset([0, 0, 0, 0, 0, 1, 0])
    box = Workspace(np.array([0.2, -0.4, -0.1]), np.array([0.9, 0.4, 0.1]), planar_tip)
    with pytest.raises(ValueError, match="tip starts at"):
        SafetyFilter(PLANAR, 0.01, box).reset([0, 0])


def test_limits_are_tightened_by_name_and_never_widened():
    def limits(names: str, *rows: list[float]) -> JointLimits:
        return JointLimits(tuple(names), *(np.array(row) for row in rows))

    unknown = [np.inf, np.inf]
    loose = limits("ab", [-1, -np.inf], [1, np.inf], [1, 2], unknown, unknown)
    other = limits("ba", [-2, -3], [2, 0.5], [5, 0.5], [3, 4], [30, 40])
    tight = loose.tightened(other)
    assert tight.names == ("a", "b")
    np.testing.assert_array_equal(tight.low, [-1, -2])
    np.testing.assert_array_equal(tight.high, [0.5, 2])
    np.testing.assert_array_equal(tight.velocity, [0.5, 2])
    np.testing.assert_array_equal(tight.acceleration, [4, 3])
    np.testing.assert_array_equal(tight.jerk, [40, 30])
    with pytest.raises(ValueError, match="missing \\['a', 'b'\\], unknown \\['joint'\\]"):
        loose.tightened(joint(1, 1, 1))
    with pytest.raises(ValueError, match="low is not known: b"):
        SafetyFilter(loose, 0.01)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"low": 3.0}, "range is empty: joint"),
        ({"low": np.nan}, "range is empty: joint"),
        ({"velocity": 0.0}, "velocity has to be above 0: joint"),
        ({"jerk": np.nan}, "jerk has to be above 0: joint"),
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong, match):
    fine = {"velocity": 1.0, "acceleration": 1.0, "jerk": 1.0}
    with pytest.raises(ValueError, match=match):
        joint(**(fine | wrong))


@pytest.mark.parametrize("period", [0, -0.01, np.nan, np.inf])
def test_periods_that_make_no_sense_are_refused(period):
    with pytest.raises(ValueError, match="period_s"):
        SafetyFilter(joint(1, 1, 1), period)


def test_limits_below_the_rounding_of_positions_are_refused():
    with pytest.raises(ValueError, match="rounding of positions"):
        SafetyFilter(joint(1, 10, 100), 1e-6)
