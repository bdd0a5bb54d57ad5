"""What the run-time sends keeps all limits and ends at rest, and every failure ends motion."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from policies.deployment.arm import Reading
from policies.deployment.gates import GateConfig, Gates
from policies.deployment.inference import InferenceError
from policies.deployment.runtime import Runtime, RuntimeConfig, State
from policies.safety import SafetyFilter
from worldmodel.types import SpecMismatchError

from .arms import (
    AXES,
    FINE,
    HOME,
    HORIZON,
    LIMITS,
    SPEC,
    TICK,
    Bench,
    FakeArm,
    Swinger,
    picture_of,
    require_limits,
    swing,
    told,
)

LEAD = RuntimeConfig().lead_s


def whats(bench: Bench) -> list[str]:
    return [event.what for event in bench.runtime.events]


def no_ramp(**options) -> RuntimeConfig:
    return RuntimeConfig(**{"ramp_s": 0.0} | options)


# --- the operator --------------------------------------------------------------------------------


def test_nothing_is_sent_before_an_operator_has_armed():
    bench = Bench()
    bench.run(2)
    assert bench.runtime.state is State.READY
    assert bench.arm.sent == []
    for what in ("hold", "clear", "stop", "clear"):
        bench.ask(what)
        bench.run(0.2)
    assert bench.arm.sent == []
    assert bench.ask("arm") is State.ARMED
    assert bench.arm.sent == []  # it waits for a chunk
    bench.run(0.2)
    assert bench.runtime.state is State.RUNNING
    assert bench.arm.sent


def test_arming_moves_nothing_until_a_chunk_is_there_and_does_not_wait_for_ever():
    bench = Bench(RuntimeConfig(first_chunk_s=1.0))
    bench.policy.delay = 100.0
    bench.run(0.2)
    bench.ask("arm")
    bench.run(2)
    assert bench.runtime.state is State.HOLDING
    assert "no chunk that could be taken came within 1 s" in bench.runtime.reason
    assert bench.arm.sent == []


def test_a_stop_takes_clearing_before_arming():
    bench = Bench().start()
    assert bench.ask("stop") is State.STOPPED
    bench.run(1)
    bench.ask("arm")
    bench.run(0.5)
    assert bench.runtime.state is State.STOPPED
    assert whats(bench)[-1] == "not armed: stopped, the operator stopped"
    bench.ask("clear")
    assert bench.runtime.state is State.READY
    assert bench.ask("arm") is State.ARMED


def test_an_emergency_stop_is_not_cleared_while_it_is_pressed():
    bench = Bench().start()
    bench.arm.stopped = True
    assert bench.tick() is State.STOPPED
    bench.run(1)
    events = len(bench.runtime.events)
    assert bench.ask("clear") is State.STOPPED
    assert whats(bench)[-1] == "not cleared: the emergency stop is pressed"
    bench.run(1)
    assert len(bench.runtime.events) == events + 1
    bench.arm.stopped = False
    bench.run(0.2)
    assert bench.runtime.state is State.STOPPED
    assert bench.ask("clear") is State.READY


def test_a_stop_counts_while_nothing_can_be_read_and_a_wish_to_arm_is_not_kept_for_later():
    bench = Bench()
    bench.run(0.3)
    bench.arm.read_error = "cable"
    bench.ask("arm")
    assert whats(bench)[-1].startswith("not armed: disconnected, RuntimeError: cable")
    bench.arm.read_error = ""
    bench.run(1)
    assert bench.runtime.state is State.READY
    bench.arm.read_error = "cable"
    assert bench.ask("stop") is State.STOPPED
    assert bench.arm.sent == []


def test_a_wish_to_arm_from_before_the_clock_stood_still_is_refused():
    bench = Bench()
    bench.run(0.3)
    bench.runtime.request("arm")
    bench.tick(2.0)
    assert bench.runtime.state is State.READY
    assert whats(bench)[-1] == "not armed: the command clock stood still when it was asked for"


def test_other_wishes_are_refused_by_name():
    with pytest.raises(ValueError, match="arm, hold, stop or clear; found 'go'"):
        Bench().runtime.request("go")


def test_an_arm_that_moves_or_is_not_watched_yet_is_not_armed():
    bench = Bench()
    assert bench.ask("arm") is State.READY
    assert "watched for less than 0.1 s" in whats(bench)[-1]
    for step in range(1, 7):
        bench.arm.offset = np.array([0.0, 0.02 * step])
        bench.ask("arm")
        assert bench.runtime.state is State.READY
    assert whats(bench)[-1] == "not armed: turn is moving"
    bench.run(0.2)
    assert bench.ask("arm") is State.ARMED


def test_joints_beyond_their_limits_are_not_pulled_back_with_a_jerk():
    bench = Bench()
    bench.arm.controller.reset(LIMITS.high)
    bench.arm.offset = np.array([0.05, 0.0])  # within what the gates let pass
    bench.run(0.3)
    assert bench.runtime.state is State.READY
    bench.ask("arm")
    assert whats(bench)[-1] == "not armed: lift is 0.050 rad beyond its limits"


def test_an_arm_that_something_else_moves_while_it_waits_for_a_chunk_is_not_pulled_back():
    bench = Bench()
    bench.policy.delay = 0.3
    bench.run(0.2)
    bench.ask("arm")
    bench.arm.offset = np.array([0.1, 0.0])
    bench.run(1)
    assert bench.runtime.state is State.HOLDING
    assert "lift has moved 0.100 rad since arming" in bench.runtime.reason
    assert bench.arm.sent == []


# --- gates ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        begin, end: make it go wrong, and right again.
        reason: is part of what is shown.
        within: seconds from `begin` to the gate tripping; a control period comes on top.
        state: that it leads to.
        brakes: whether the braking can be sent.
    """

    begin: Callable[[Bench], None]
    reason: str
    end: Callable[[Bench], None] = lambda bench: None
    within: float = 0.0
    state: State = State.HOLDING
    brakes: bool = True


def setting(name: str, value, of: str = "arm") -> Callable[[Bench], None]:
    return lambda bench: setattr(getattr(bench, of), name, value)


def now_in(name: str) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench.arm, name, bench.now)


def freeze(bench: Bench) -> None:
    bench.arm.frozen = picture_of(np.ones(2))


def answers(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Bench], None]:
    return lambda bench: setattr(bench.policy, "answer", change)


def holed(actions: np.ndarray) -> np.ndarray:
    actions = actions.copy()
    actions[7, 1] = np.nan
    return actions


def same(actions: np.ndarray) -> np.ndarray:
    return actions


def broken_watch(reading: Reading, now: float) -> str:
    raise ZeroDivisionError("watch")


def broken_recorder(kind: str, at: float, values) -> None:
    raise OSError("disk full")


def fails_to_poll(bench: Bench) -> None:
    def poll():
        raise KeyError("poll")

    bench.policy.inference.poll = poll  # type: ignore[method-assign]


def heals_poll(bench: Bench) -> None:
    del bench.policy.inference.poll


FAULTS = {
    "stale joints": Fault(
        now_in("joints_stop"),
        "joint states are stale",
        setting("joints_stop", np.inf),
        within=0.15,
    ),
    "stale camera": Fault(
        lambda bench: vars(bench.arm).update(camera_stop=bench.now, stamped=False),
        "camera front is stale",
        lambda bench: vars(bench.arm).update(camera_stop=np.inf, stamped=True),
        within=0.3,
    ),
    "skew": Fault(setting("skew", 0.25), "0.250 s apart", setting("skew", 0.0)),
    "skew the other way": Fault(setting("skew", -0.25), "0.250 s apart", setting("skew", 0.0)),
    "skew without a number": Fault(setting("skew", np.nan), "apart", setting("skew", 0.0)),
    "frozen camera": Fault(freeze, "the same picture", setting("frozen", None), within=1.5),
    "joints without a number": Fault(
        setting("joint_values", lambda q: q * [1, np.nan]),
        "joints ['turn'] are measured as no number",
        setting("joint_values", lambda q: q),
    ),
    "a joint missing": Fault(
        setting("joint_values", lambda q: q[:1]),
        "joints are measured as (1,)",
        setting("joint_values", lambda q: q),
    ),
    "joints beyond their limits": Fault(
        setting("joint_values", lambda q: q + np.array([9, 0])),
        "beyond their limits: lift",
        setting("joint_values", lambda q: q),
    ),
    "another commander": Fault(
        setting("offset", np.array([0.0, 0.4])),
        "turn is 0.400 rad from where it was commanded to be",
        setting("offset", np.zeros(2)),
    ),
    "emergency stop": Fault(
        setting("stopped", True),
        "the emergency stop is pressed",
        setting("stopped", False),
        state=State.STOPPED,
    ),
    "the arm complains": Fault(
        setting("problem", "motor 3 is hot"), "motor 3 is hot", setting("problem", "")
    ),
    "the operator holds": Fault(lambda b: b.runtime.request("hold"), "the operator asked to hold"),
    "the operator stops": Fault(
        lambda b: b.runtime.request("stop"), "the operator stopped", state=State.STOPPED
    ),
    "link lost": Fault(
        setting("generation", 0),
        "link to the robot is lost",
        setting("generation", 2),
        brakes=False,
    ),
    "another link": Fault(setting("generation", 2), "another one now", brakes=False),
    "late chunks": Fault(
        setting("delay", 0.7, "policy"),
        "no new chunk came",
        setting("delay", 0.0, "policy"),
        within=1.1,
    ),
    "no chunks": Fault(
        setting("delay", 1e9, "policy"),
        "no new chunk came",
        setting("delay", 0.0, "policy"),
        within=1.1,
    ),
    "a chunk without numbers": Fault(
        answers(holed), "values that are no numbers", answers(same), within=0.25
    ),
    "a chunk of another shape": Fault(
        answers(lambda a: a[:, :1]), "a chunk has shape (16, 1)", answers(same), within=0.25
    ),
    "inference fails": Fault(
        setting("error", "out of memory", "policy"),
        "out of memory",
        setting("error", "", "policy"),
        within=0.2,
    ),
    "inference raises": Fault(fails_to_poll, "KeyError: 'poll'", heals_poll),
    "reading fails": Fault(
        setting("read_error", "cable"), "RuntimeError: cable", setting("read_error", "")
    ),
    "sending fails": Fault(
        setting("send_error", "socket"),
        "RuntimeError: socket",
        setting("send_error", ""),
        brakes=False,
    ),
    "watch": Fault(
        setting("watch", lambda reading, now: "a surprise", "runtime"),
        "a surprise",
        setting("watch", None, "runtime"),
    ),
    "watch fails": Fault(
        setting("watch", broken_watch, "runtime"),
        "ZeroDivisionError: watch",
        setting("watch", None, "runtime"),
    ),
    "recorder fails": Fault(
        setting("_recorder", broken_recorder, "runtime"),
        "the recorder failed: OSError: disk full",
        setting("_recorder", None, "runtime"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("running", [0.7, 1.75], ids=["slow", "fast"])
def test_every_failure_brakes_and_then_nothing_is_sent_until_an_operator_arms_again(name, running):
    fault = FAULTS[name]
    bench = Bench(no_ramp(), noise=0.02).start(running)
    arm, runtime = bench.arm, bench.runtime
    begun, numbers = bench.now, len(bench.policy.asked)
    fault.begin(bench)
    while runtime.state is State.RUNNING and bench.now < begun + 3:
        sent = len(arm.sent)
        bench.tick()
    tripped = bench.now
    assert runtime.state is fault.state
    assert fault.reason in runtime.reason
    assert fault.reason in whats(bench)[-1 if fault.brakes else -2] + whats(bench)[-1]
    assert tripped - begun <= fault.within + TICK + 1e-6
    # Braking is sent in that very period, and nothing after it.
    assert len(arm.sent) - sent == fault.brakes
    sent = len(arm.sent)
    if fault.brakes:
        # Within the shortest stops there are: it does nothing but brake.
        assert arm.sent[-1][1].times[-1] <= LEAD + bench.safety.longest_stop_s + 1e-6
    bench.run(1)
    fault.end(bench)
    bench.run(1)
    assert len(arm.sent) == sent
    assert runtime.state is fault.state
    assert fault.reason in runtime.reason
    require_limits(arm)
    # The arm rests where it was told to.
    still = np.array(arm.path)[-round(0.5 / FINE) :]
    assert np.ptp(still, axis=0).max() == 0
    # And only an operator moves it again.
    if fault.state is State.STOPPED:
        bench.ask("clear")
    assert bench.ask("arm") is State.ARMED, whats(bench)[-1]
    first = len(bench.policy.asked)
    bench.run(0.5)
    assert runtime.state is State.RUNNING, runtime.reason
    again = bench.policy.asked[first:]
    assert numbers
    assert again[0].number == 0
    assert again[0].moment.executed is None
    assert again[0].moment.committed is None
    np.testing.assert_allclose(
        again[0].moment.state[0], still[-1:].repeat(HORIZON.past, 0), atol=1e-6
    )
    np.testing.assert_allclose(arm.sent[sent][1].positions[0], still[-1], atol=1e-6)


def test_after_the_link_is_lost_the_arm_ends_what_it_has_accepted_within_half_a_second():
    bench = Bench(no_ramp()).start(1.75)
    bench.arm.generation = 0
    bench.tick()
    lost = len(bench.arm.path)
    bench.run(1)
    moving = np.abs(np.diff(np.array(bench.arm.path)[lost:], axis=0)).max(axis=1) > 0
    assert moving.any()
    assert np.flatnonzero(moving)[-1] * FINE <= 0.5
    assert any("braking was not sent" in what for what in whats(bench))
    require_limits(bench.arm)


@pytest.mark.parametrize("pause", [0.2, 0.24, 0.3, 0.45, 2.0])
def test_a_clock_that_stood_still_goes_on_from_where_the_arm_has_braked_to(pause):
    bench = Bench(no_ramp(), gates=GateConfig(joints_age_s=9, camera_age_s=9)).start(1.75)
    bench.tick(pause)
    stopped = bench.runtime.state is State.HOLDING
    assert stopped == (pause > 0.25 - LEAD)
    assert not stopped or "the command clock stood still" in bench.runtime.reason
    bench.run(1)
    require_limits(bench.arm)
    if pause > 0.5:
        # It rests already where it was told to: the stop says the same once more.
        np.testing.assert_allclose(np.ptp(bench.arm.sent[-1][1].positions, axis=0), 0)


def test_a_clock_that_goes_back_ends_motion():
    bench = Bench(no_ramp()).start(1.75)
    sent = len(bench.arm.sent)
    bench.runtime.tick(bench.now - 0.01)
    assert bench.runtime.state is State.HOLDING
    assert "the command clock stood still for -0.010 s" in bench.runtime.reason
    bench.run(1)
    assert len(bench.arm.sent) == sent + 1
    assert bench.arm.controller.refused == 0


def test_an_arm_that_still_brakes_is_not_armed():
    bench = Bench(no_ramp()).start(1.75)
    bench.runtime.request("hold")
    bench.ask("arm")
    assert bench.runtime.state is State.HOLDING
    assert whats(bench)[-1] == "not armed: the arm is still ending what it was sent"
    bench.run(1)
    assert bench.ask("arm") is State.ARMED
    bench.run(1)
    require_limits(bench.arm)


def test_a_chunk_that_was_asked_for_before_the_last_arming_is_dropped():
    bench = Bench(no_ramp(late_s=5.0)).start(1.0)
    bench.policy.delay = 0.6
    while not bench.policy.inference.busy:
        bench.tick()
    bench.ask("hold")
    bench.run(0.4)
    assert bench.policy.inference.busy
    assert bench.ask("arm") is State.ARMED
    old = len(bench.policy.asked)
    sent = len(bench.arm.sent)
    while len(bench.policy.asked) == old:
        bench.tick()
    assert bench.runtime.state is State.ARMED
    assert len(bench.arm.sent) == sent
    assert any("asked for before the last arming" in what for what in whats(bench))
    bench.policy.delay = 0.0
    bench.run(1.5)
    assert bench.runtime.state is State.RUNNING
    require_limits(bench.arm)


def test_a_far_first_target_is_refused_before_anything_is_sent():
    bench = Bench()
    bench.policy.answer = lambda actions: actions + np.array([0.0, 0.6])
    bench.run(0.2)
    bench.ask("arm")
    bench.run(0.2)
    assert bench.runtime.state is State.HOLDING
    assert "the first target is far: turn would move 0." in bench.runtime.reason
    assert bench.arm.sent == []


def test_a_frozen_picture_is_fine_while_the_arm_rests():
    bench = Bench()
    freeze(bench)
    bench.run(5)
    assert bench.runtime.state is State.READY


def test_no_gate_lets_through_what_is_no_number():
    gates = Gates(GateConfig(), AXES, ("front",), LIMITS.low, LIMITS.high)
    reading = FakeArm().read()
    assert reading.joints is not None
    assert gates.check(reading, 0.1, 1) == ""
    assert "stale" in gates.check(reading, np.nan, 1)
    for name in ("joints_age_s", "camera_age_s", "skew_s", "frozen_rad", "tracking_rad"):
        for wrong in (0, -1, np.nan):
            with pytest.raises(ValueError, match=f"{name} must be above 0"):
                GateConfig(**{name: wrong})


# --- motion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("prefix", [0, 10])
def test_all_that_is_sent_keeps_the_limits_however_slow_and_jumpy_inference_is(
    noise, delay, prefix
):
    bench = Bench(no_ramp(prefix=prefix, first_target_rad=2.0), noise=noise)
    bench.policy.delay = delay
    bench.start(3.0)
    bench.ask("hold")
    bench.run(1)
    require_limits(bench.arm)
    path = np.array(bench.arm.path)
    speed = np.diff(path, axis=0) / FINE
    assert (np.abs(speed) / LIMITS.velocity).max() < 1.05
    # Between the points cubics join; what they bend more is a share of the limit.
    assert (np.abs(np.diff(speed, axis=0)) / FINE / LIMITS.acceleration).max() < 1.5


def test_messages_that_arrive_early_and_late_by_milliseconds_do_not_jolt_the_arm():
    bench = Bench(no_ramp(), noise=0.02)
    rng = np.random.default_rng(0)
    bench.arm.wire = lambda: rng.uniform(0, 0.004)
    bench.start(3.0)
    acceleration = np.diff(np.array(bench.arm.path), 2, axis=0) / FINE**2
    assert (np.abs(acceleration) / LIMITS.acceleration).max() < 2.5
    require_limits(bench.arm)


def test_a_smooth_plan_passes_the_filter_as_it_is():
    bench = Bench(RuntimeConfig(ramp_s=0.3)).start(3.0)
    assert bench.runtime.figures.clips.total() == 0
    begin, home = bench.policy.begin, bench.policy.home
    motion = told(bench.arm.sent)[0]
    start = bench.arm.sent[0][0] + bench.arm.sent[0][1].times[0]
    times = start + 0.01 * np.arange(len(motion))
    wanted = home + np.stack([swing(t - begin) for t in times])
    settled = (times > start + 0.5) & (times < bench.now)
    np.testing.assert_allclose(motion[settled], wanted[settled], atol=2e-3)


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4])
def test_what_is_committed_is_what_is_executed_meanwhile(delay):
    bench = Bench(no_ramp(prefix=10), noise=0.05)
    bench.policy.delay = delay
    bench.start(4.0)
    motion = told(bench.arm.sent)[0]
    start = bench.arm.sent[0][0] + bench.arm.sent[0][1].times[0]
    times = start + 0.01 * np.arange(len(motion))
    looked = 0
    for question in bench.policy.asked[2:]:
        committed = question.moment.committed
        assert committed is not None
        due = question.observed + (1 + np.arange(committed.shape[1])) / SPEC.fps
        # All that is past when the chunk takes effect was committed, where there was a plan for it.
        assert due[-1] >= question.observed + min(delay + LEAD, 0.8 - delay - TICK) - 1e-6
        for at, action in zip(due, committed[0], strict=True):
            if at < bench.now:
                executed = [np.interp(at, times, column) for column in motion.T]
                np.testing.assert_allclose(action, executed, atol=3e-3)
                looked += 1
    assert looked > 10
    # And what had been executed before is told as it was.
    executed_before = bench.policy.asked[-1].moment.executed
    assert executed_before is not None
    ago = bench.policy.asked[-1].observed - np.array([2, 1, 0]) / SPEC.fps
    wanted = np.stack([[np.interp(t, times, c) for c in motion.T] for t in ago])
    np.testing.assert_allclose(executed_before[0], wanted, atol=1e-3)


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_a_committed_prefix_joins_chunks_more_smoothly(delay):
    def roughness(prefix: int) -> float:
        bench = Bench(no_ramp(prefix=prefix), noise=0.01)
        bench.policy.delay = delay
        bench.start(3.0)
        motion = told(bench.arm.sent)[0][50:-50]
        return float(np.abs(np.diff(motion, 3, axis=0)).mean())

    assert roughness(10) < roughness(0) / 3


def test_actions_are_executed_when_they_are_due_however_late_the_chunk():
    """The part that is past is dropped: a slow chunk does not play out late."""
    for delay in (0.0, 0.2, 0.4):
        bench = Bench(no_ramp(prefix=0))
        bench.policy.delay = delay
        bench.start(3.0)
        wanted = bench.policy.home + swing(bench.now - bench.policy.begin)
        np.testing.assert_allclose(bench.arm.controller.command, wanted, atol=5e-3)
        assert set(itertools.islice(bench.runtime.figures.consumed, 2, None)) <= {
            round((delay + LEAD) * SPEC.fps + k) for k in (0, 1, 2)
        }


def test_the_first_motion_is_blended_in():
    bench = Bench(RuntimeConfig(ramp_s=1.0))
    bench.policy.answer = lambda actions: actions + 0.4
    bench.start(0.4)
    assert np.abs(bench.arm.controller.command - HOME).max() < 0.2
    speed = np.abs(np.diff(np.array(bench.arm.path), axis=0)).max(axis=0) / FINE
    assert (speed < 1.2).all()
    bench.run(1.0)
    assert np.abs(bench.arm.controller.command - HOME).max() > 0.35
    require_limits(bench.arm)


def test_positions_that_are_sent_left_the_filter():
    seen: set[bytes] = set()

    class Spy(SafetyFilter):
        def _commit(self, states, targets):
            found = super()._commit(states, targets)
            seen.add(found.position.tobytes())
            return found

    bench = Bench(no_ramp(), noise=0.1)
    bench.runtime.safety = Spy(LIMITS, 0.01)
    bench.start(1.0)
    bench.ask("hold")
    points = np.concatenate([t.positions for _, t in bench.arm.sent])
    points = points[np.abs(points - HOME).max(axis=1) > 0]
    assert len(points) > 300
    assert all(point.tobytes() in seen for point in points)


def test_a_dry_run_sends_nothing_and_does_all_else():
    records: list[str] = []
    bench = Bench(no_ramp(), dry_run=True, recorder=lambda kind, at, values: records.append(kind))
    bench.start(3.0)
    bench.ask("hold")
    assert bench.arm.sent == []
    assert bench.runtime.figures.sent == 0
    assert {"event", "question", "chunk", "command", "point", "brake"} == set(records)
    np.testing.assert_array_equal(bench.arm.controller.command, HOME)


def test_what_is_recorded_is_what_is_sent():
    records: list[tuple[str, float, dict]] = []
    bench = Bench(recorder=lambda kind, at, values: records.append((kind, at, dict(values))))
    bench.start(1.0)
    bench.ask("stop")
    kept = [(at, v) for kind, at, v in records if kind in ("command", "brake")]
    assert len(kept) == len(bench.arm.sent)
    for (at, values), (when, trajectory) in zip(kept, bench.arm.sent, strict=True):
        assert at == when
        np.testing.assert_array_equal(values["positions"], trajectory.positions)
    told_events = [v["what"] for kind, _, v in records if kind == "event"]
    assert told_events == whats(bench)


def test_the_same_again_is_the_same_again():
    def motion() -> np.ndarray:
        bench = Bench(noise=0.05)
        bench.policy.delay = 0.1
        bench.start(2.0)
        bench.ask("hold")
        return np.concatenate([t.positions for _, t in bench.arm.sent])

    np.testing.assert_array_equal(motion(), motion())


def test_running_ends_by_braking_whatever_ends_it():
    bench = Bench(no_ramp())
    clock = itertools.count(1)

    def shown(runtime: Runtime) -> None:
        step = next(clock)
        bench.arm.run_to(bench.arm.now + TICK)
        if step == 4:
            runtime.request("arm")
        if step == 12:
            assert runtime.state is State.RUNNING, runtime.reason
            raise KeyboardInterrupt

    bench.arm.run_to(TICK)
    import policies.deployment.runtime as module

    class Clock:
        monotonic = staticmethod(lambda: bench.arm.now)
        perf_counter = staticmethod(lambda: 0.0)
        sleep = staticmethod(lambda seconds: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", Clock)
        with pytest.raises(KeyboardInterrupt):
            bench.runtime.run(lambda: False, shown)
    assert bench.runtime.state is State.HOLDING
    assert bench.runtime.reason == "the run-time ended"
    bench.arm.run_to(bench.arm.now + 1)
    require_limits(bench.arm)


# --- what it is made for -------------------------------------------------------------------------


def made(config: RuntimeConfig | None = None, arm: FakeArm | None = None, **changes) -> Runtime:
    arm = arm or FakeArm()
    policy = Swinger(arm).inference
    policy.spec = dataclasses.replace(SPEC, **changes)
    return Runtime(arm, policy, SafetyFilter(LIMITS, 0.01), config)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"action_names": ("turn", "lift")}, "action_names is ['lift', 'turn'], expected ['turn'"),
        ({"state_names": ("turn", "lift")}, "state_names is"),
        ({"cameras": ("front", "wrist")}, "no camera ['wrist']"),
        ({"action_kind": "delta"}, "the checkpoint's actions are delta"),
    ],
)
def test_a_checkpoint_for_something_else_is_refused_by_name(changes, named):
    with pytest.raises(SpecMismatchError) as error:
        made(**changes)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prefix": 13}, "execute=4, prefix=13"),
        ({"execute": 17, "prefix": 0}, "execute=17"),
        ({"controller_hz": 125.0}, "the safety filter is for 100 points a second"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(options, named):
    with pytest.raises(ValueError, match=named):
        made(RuntimeConfig(**options))


def test_more_is_not_committed_than_the_model_was_trained_for():
    arm = FakeArm()
    policy = Swinger(arm).inference
    policy.prefix = 2
    with pytest.raises(ValueError, match="committed prefixes of up to 2 actions"):
        Runtime(arm, policy, SafetyFilter(LIMITS, 0.01), RuntimeConfig(prefix=3))


@pytest.mark.parametrize(
    "options",
    [
        {"command_hz": 0},
        {"command_hz": np.nan},
        {"late_s": np.inf},
        {"execute": 0},
        {"prefix": -1},
        {"ramp_s": np.nan},
        {"horizon_s": 0.51},
        {"horizon_s": 0.13},
        {"lead_s": 0.01},
    ],
)
def test_numbers_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RuntimeConfig(**options)


# --- for a long time -----------------------------------------------------------------------------


class Still(SafetyFilter):
    """A filter that costs nothing, so that a hundred thousand periods take seconds."""

    def step(self, target):
        return self._held

    def brake(self):
        return self._held

    def reset(self, position):
        super().reset(position)
        self._held = super().brake()

    def copy(self):
        return self


LONG = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("count", "share"),
    [
        (4_000, 0.01),
        pytest.param(100_000, 0.01, marks=LONG),
        pytest.param(100_000, 0.9, marks=LONG),
    ],
)
def test_memory_and_events_are_bounded_however_long_it_runs(count, share):
    bench = Bench(no_ramp(controller_hz=50.0, command_hz=20.0, horizon_s=0.14))
    bench.runtime.safety = Still(LIMITS, 1 / 50)
    bench.policy.answer = lambda actions: np.tile(HOME, (len(actions), 1))
    arm, runtime = bench.arm, bench.runtime
    reading = arm.read()

    def cheap(now: float) -> Reading:
        assert reading.joints is not None
        joints = dataclasses.replace(reading.joints, arrival=now, stamp=now)
        front = dataclasses.replace(reading.images["front"], arrival=now, stamp=now)
        return dataclasses.replace(
            reading, joints=joints, images={"front": front}, problem=arm.problem
        )

    def tick() -> None:
        bench.now += TICK
        arm.now = bench.now
        arm.read = lambda: cheap(bench.now)  # type: ignore[method-assign]
        runtime.tick(bench.now)
        arm.sent.clear()
        arm._arriving.clear()
        bench.policy.asked.clear()
        bench.policy.given.clear()

    def many(count: int, share: float) -> None:
        """Periods, a share of them in motion; else gates flicker and armings are refused."""
        end = 10 + round(990 * share)
        for step in range(count):
            if step % 1000 == 10:
                runtime.request("arm")
            if step % 1000 == end:
                runtime.request("hold")
            if step % 1000 > end:
                arm.problem = "flicker" if step % 7 < 3 else ""
                if step % 7 == 0:
                    runtime.request("arm")
            tick()
        arm.problem = ""

    def held(count: int) -> int:
        tracemalloc.start()
        many(count, 0.1)
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held

    many(1_000, 0.5)
    assert runtime.figures.chunks > 50
    before = held(1_000)
    many(count, share)
    after = held(1_000)
    assert runtime.figures.ticks > count
    assert len(runtime.events) <= 1000
    assert abs(after - before) < 200_000
    kept = {name: len(v) for name, v in vars(runtime).items() if hasattr(v, "__len__")}
    assert sum(kept.values()) < 2_000, kept


def test_a_state_that_lasts_is_told_once_and_not_in_every_period():
    bench = Bench()
    bench.run(0.3)
    bench.arm.joints_stop = bench.now
    bench.run(20)
    stale = [what for what in whats(bench) if "stale" in what]
    assert len(stale) == 1
    assert "20." in bench.runtime.reason or "19." in bench.runtime.reason
    bench.arm.read_error = "cable"
    bench.run(20)
    assert len(bench.runtime.events) < 10


def test_an_inference_that_is_asked_twice_says_so():
    bench = Bench().start(0.5)
    while not bench.policy.inference.busy:
        bench.tick()
    with pytest.raises(InferenceError, match="still open"):
        bench.policy.inference.ask(bench.policy.asked[-1])
