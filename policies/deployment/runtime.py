"""The loop between inference and an arm: chunks in, short trajectories that end at rest out.

In every control period: read, look at the gates, take a chunk if one is there, ask for the next,
and send what the coming fraction of a second is to look like, at controller rate, through the
safety filter, with its end braked to rest. The clock never waits for inference. If nothing is sent
any more, for whatever reason, the arm comes to rest by itself on what it has accepted.

Chunks carry the time of their observation: what of a chunk is past when it arrives is dropped, and
a chunk that arrives too late is refused. While one is computed the running one goes on; the part of
it that will have been executed by then is committed (real-time chunking by a clean prefix, K. Black
et al., arXiv 2506.07339, in the form of arXiv 2512.05964: the model is trained on prefixes).
"""

from __future__ import annotations

import enum
import math
import queue
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..flow_policy import Moment, span_of
from ..safety import Filtered, SafetyFilter
from .arm import Arm, LinkError, Reading, Trajectory, require_fit
from .gates import PRESSED, GateConfig, Gates
from .inference import Chunk, Inference, InferenceError, Question
from .plan import Plan, eased, ending_at_rest


class State(enum.Enum):
    """What the run-time is doing.

    Nothing moves before ``ARMED``, which takes an operator's act; nothing but that act leads there.
    """

    DISCONNECTED = "disconnected"
    READY = "ready"
    ARMED = "armed"
    RUNNING = "running"
    HOLDING = "holding"
    STOPPED = "stopped"


MOVING = (State.ARMED, State.RUNNING)


@dataclass
class RuntimeConfig:
    """When what is sent.

    Attributes:
        command_hz: control periods, and at most so many trajectories, a second.
        controller_hz: points of a trajectory a second.
        horizon_s: how far ahead a trajectory goes before it brakes.
        execute: actions of a chunk that are executed before the next is asked for; fewer, where
            inference is fast, means more recent eyes.
        prefix: actions that may be committed at most (0: each chunk is planned afresh and joined by
            the filter alone); bounded by what the model was trained for.
        late_s: a chunk whose observation is older is refused.
        lead_s: from when on a new decision, a stop too, changes what the arm was told: time for a
            message to arrive and for the arm to join in.
        wait_s: so long the arm may rest at the end of a chunk, waiting for the next one. (As one is
            computed at a time, that is how inference that takes more than half a chunk is lived
            with.)
        ramp_s: first motion is blended in over so long.
        first_chunk_s: an armed arm that has had no chunk for so long is not armed any more.
        first_target_rad: a first target further from the measured joints is refused.
        still_rad: joints that moved further within 0.1 s are moving, and are not armed; nor are
            joints further beyond their limits.
        seed: of the noise of the chunks.

    Raises:
        ValueError: a number that means nothing, or a horizon that leaves no time to the link.
    """

    command_hz: float = 20.0
    controller_hz: float = 100.0
    horizon_s: float = 0.25
    execute: int = 4
    prefix: int = 4
    late_s: float = 0.6
    wait_s: float = 0.2
    lead_s: float = 0.04
    ramp_s: float = 1.0
    first_chunk_s: float = 5.0
    first_target_rad: float = 0.5
    still_rad: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("execute", "prefix", "wait_s", "ramp_s", "seed"):
                continue
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, found {value}")
        for name in ("wait_s", "ramp_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, found {getattr(self, name)}")
        if self.execute < 1 or self.prefix < 0:
            raise ValueError(
                f"execute is at least 1 and prefix at least 0; found execute={self.execute}, "
                f"prefix={self.prefix}"
            )
        if self.lead_s < 2 / self.controller_hz - 1e-9:
            raise ValueError(
                f"lead_s={self.lead_s:g} is less than two periods of the controller "
                f"({2 / self.controller_hz:g} s)"
            )
        least = 2 / self.command_hz + self.lead_s
        if not least - 1e-9 <= self.horizon_s <= 0.5:
            raise ValueError(
                f"horizon_s={self.horizon_s:g}: a trajectory outlasts two control periods and "
                f"lead_s ({least:g} s) and is at most 0.5 s long before it brakes"
            )


@dataclass(frozen=True)
class Event:
    """Something that an operator wants to know afterwards.

    Attributes:
        at: monotonic time.
        state: after it.
        what: in words.
    """

    at: float
    state: State
    what: str


@dataclass
class Figures:
    """What is measured while it runs.

    Attributes:
        clips: by reason, controller ticks at which the filter changed what was wanted of any joint.
        ticks, sent: control periods, and trajectories that were sent.
        chunks, refused: that were taken, and not.
        latency_ms: of the newest chunks, from observation to hand-over.
        consumed: actions that had passed when each of them came.
        lateness_ms: of the newest control periods.
        wire_ms: of the newest chunks, from their observation's arrival to the first trajectory that
            was made of them being handed over.
        stages_ms: of the newest chunk.
    """

    clips: Counter[str] = field(default_factory=Counter)
    ticks: int = 0
    sent: int = 0
    chunks: int = 0
    refused: int = 0
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    consumed: deque[int] = field(default_factory=lambda: deque(maxlen=1000))
    lateness_ms: deque[float] = field(default_factory=lambda: deque(maxlen=10000))
    wire_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    stages_ms: Mapping[str, float] = field(default_factory=dict)


class Runtime:
    """Drives one arm; see the module. Not thread-safe but for `request`.

    Args:
        arm: what is driven.
        inference: who computes chunks.
        safety: the filter, of the arm's axes at `RuntimeConfig.controller_hz`.
        config, gates: see there.
        task: text for a model that knows tasks.
        dry_run: everything but sending.
        watch: asked in every period with the newest reading; says why to stop, or "" (a surprise
            monitor, `policies.monitor`).
        recorder: called with (kind, monotonic time, values) for everything that happens.

    Raises:
        worldmodel.types.SpecMismatchError: axes or cameras are not the model's.
        ValueError: the filter is for another rate, or a chunk is too short for what is to be
            executed and committed, or the model was not trained for so much of it.
    """

    def __init__(
        self,
        arm: Arm,
        inference: Inference,
        safety: SafetyFilter,
        config: RuntimeConfig | None = None,
        gates: GateConfig | None = None,
        *,
        task: str = "",
        dry_run: bool = False,
        watch: Callable[[Reading, float], str] | None = None,
        recorder: Callable[[str, float, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.arm, self.inference, self.safety = arm, inference, safety
        self.config, self.task, self.dry_run = config or RuntimeConfig(), task, dry_run
        self.watch, self._recorder = watch, recorder
        spec = inference.spec
        require_fit(spec, arm.axes, arm.cameras)
        c, chunk = self.config, inference.horizon.chunk
        if c.execute + c.prefix > chunk or c.prefix > inference.prefix:
            raise ValueError(
                f"execute={c.execute}, prefix={c.prefix}: together they must be at most the "
                f"{chunk} actions of a chunk, and this model was trained with committed prefixes "
                f"of up to {inference.prefix} actions"
            )
        if not math.isclose(safety.period_s, 1 / self.config.controller_hz, rel_tol=1e-6):
            raise ValueError(
                f"the safety filter is for {1 / safety.period_s:g} points a second, "
                f"controller_hz is {self.config.controller_hz:g}"
            )
        self.gates = Gates(
            gates or GateConfig(), arm.axes, spec.cameras, safety.limits.low, safety.limits.high
        )
        self.state, self.reason = State.DISCONNECTED, "not started"
        self.events: deque[Event] = deque(maxlen=1000)
        self.figures = Figures()
        self._operator: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._history: deque[tuple[float, dict[str, np.ndarray], np.ndarray]] = deque(
            maxlen=5 * span_of(inference.horizon) + 8  # `_remember` keeps up to 5 a frame
        )
        self._poses: list[tuple[float, np.ndarray]] = []  # those of the last `STILL_S`
        self._ticked, self._gap = -math.inf, math.inf
        self._ends = -math.inf  # when the arm will be at rest after all that it was sent
        self._broken = ""  # how the recorder failed
        self._news: float | None = None  # observation behind a chunk that nothing was sent of yet
        self._forget()

    # --- the operator -----------------------------------------------------------------------------

    def request(self, what: str) -> None:
        """Ask for "arm", "hold", "stop" or "clear"; from any thread. Done in the next period.

        ``arm`` begins to move from ready or holding; ``hold`` ends motion; ``stop`` ends it and
        takes ``clear`` before arming is possible again. What cannot be done then is refused, never
        kept for later.

        Raises:
            ValueError: another word.
        """
        if what not in ("arm", "hold", "stop", "clear"):
            raise ValueError(f"an operator asks for arm, hold, stop or clear; found {what!r}")
        self._operator.put(what)

    def _obey(self, reading: Reading, generation: int, now: float, why: str) -> None:
        while True:
            try:
                wish = self._operator.get_nowait()
            except queue.Empty:
                return
            if wish == "stop":
                self._trip(now, "the operator stopped", State.STOPPED)
            elif wish == "hold":
                if self.state in MOVING:
                    self._trip(now, "the operator asked to hold")
            elif wish == "clear":
                self._clear(reading, now, why)
            elif refusal := self._unfit(reading, now, why):
                self._note(now, f"not armed: {refusal}")
            else:
                self._arm(reading, generation, now)

    def _clear(self, reading: Reading, now: float, why: str) -> None:
        if self.state is not State.STOPPED:
            return
        if reading.stopped:
            self._note(now, f"not cleared: {PRESSED}")
        else:
            self._enter(State.READY if not why else State.DISCONNECTED, why, now)

    def _unfit(self, reading: Reading, now: float, why: str) -> str:
        """Why the arm cannot be armed, or ""."""
        if self.state not in (State.READY, State.HOLDING):
            return f"{self.state.value}, {self.reason}" if self.reason else self.state.value
        if why:
            return why
        if self._gap > self.config.horizon_s:
            return "the command clock stood still when it was asked for"
        if now < self._ends:
            return "the arm is still ending what it was sent"
        assert reading.joints is not None
        joints, limits = reading.joints.value, self.safety.limits
        before = [q for at, q in self._poses if at <= reading.joints.arrival - STILL_S]
        if not before:
            return f"the joints have been watched for less than {STILL_S:g} s"
        moved = np.abs(joints - before[-1])
        if moved.max() > self.config.still_rad:
            return f"{self.arm.axes[int(moved.argmax())]} is moving"
        beyond = np.maximum(limits.low - joints, joints - limits.high)
        if beyond.max() > self.config.still_rad:
            worst = int(beyond.argmax())
            return f"{self.arm.axes[worst]} is {beyond[worst]:.3f} rad beyond its limits"
        try:
            trial = SafetyFilter(limits, self.safety.period_s, self.safety.workspace)
            trial.reset(np.clip(joints, limits.low, limits.high))
        except ValueError as error:
            return str(error)
        return ""

    def _arm(self, reading: Reading, generation: int, now: float) -> None:
        self._forget()
        self._history.clear()
        self._remember(reading)
        self._settle(reading)
        self._generation, self._armed = generation, now
        self._broken = ""
        self._enter(State.ARMED, "waiting for the first chunk", now)

    def _settle(self, reading: Reading) -> None:
        """The filter begins at rest where the joints are measured."""
        assert reading.joints is not None
        limits = self.safety.limits
        self._rest = np.clip(reading.joints.value, limits.low, limits.high)
        self.safety.reset(self._rest)

    def _forget(self) -> None:
        """Nothing of an earlier motion is left: no chunk, no plan, no commands."""
        self._plan: Plan | None = None
        self._sent: _Sent | None = None
        self._number = 0
        self._asked: float | None = None
        self._open: tuple[int, float] | None = None  # the question whose answer is waited for
        self._begun: float | None = None
        self._generation, self._armed, self._clock = 0, -math.inf, -math.inf
        self._rest = np.zeros(len(self.arm.axes))
        self._last: Filtered | None = None
        lasting = HISTORY / self.inference.spec.fps + self.config.late_s
        self._commands: deque[tuple[float, np.ndarray]] = deque(
            maxlen=round(self.config.controller_hz * lasting) + 8
        )
        self._latencies: deque[float] = deque(maxlen=5)

    # --- one control period -----------------------------------------------------------------------

    def tick(self, now: float | None = None) -> State:
        """One control period; whatever goes wrong in it ends motion.

        Args:
            now: monotonic; default: the clock's.
        """
        now = time.monotonic() if now is None else now
        self.figures.ticks += 1
        try:
            self._tick(now)
        except Exception as error:  # noqa: BLE001 - the arm is braked whatever it is, and it is shown
            self._fail(f"{type(error).__name__}: {error}", now)
        if self._broken and self.state in MOVING:
            self._trip(now, self._broken)
        return self.state

    def _tick(self, now: float) -> None:
        started = time.perf_counter()
        self._gap, self._ticked = now - self._ticked, now
        if self.state in MOVING:
            self._advance(now)
        reading = self.arm.read()
        generation = self.arm.generation
        if reading.stopped and self.state is not State.STOPPED:
            self._trip(now, PRESSED, State.STOPPED)
        why = self.gates.check(reading, now, generation)
        if not why and self.watch is not None:
            why = self.watch(reading, now)
        if not why:
            self._remember(reading)
        if self.state in MOVING:
            if why := why or self._unsafe(reading, generation, now):
                self._trip(now, why)
        elif self.state in (State.DISCONNECTED, State.READY):
            self._show(State.DISCONNECTED if why else State.READY, why, now)
        self._obey(reading, generation, now, why)
        if self.state in MOVING:
            self._think(reading, now)
        if self.state is State.RUNNING:
            self._send(now)
            if self._news is not None:
                spent = time.perf_counter() - started
                self.figures.wire_ms.append(1e3 * (now - self._news + spent))
                self._news = None

    def _fail(self, what: str, now: float) -> None:
        """A period could not be gone through."""
        if self.state in MOVING:
            self._trip(now, what)
        elif self.state in (State.DISCONNECTED, State.READY):
            self._show(State.DISCONNECTED, what, now)
        # An operator's stop counts all the same, and nothing is left for when it works again.
        self._obey(Reading(stopped=True), 0, now, what)

    def _unsafe(self, reading: Reading, generation: int, now: float) -> str:
        """Why motion must not go on, beyond what `Gates.check` looks at; or ""."""
        c = self.config
        if generation != self._generation:
            return "the link was lost and is another one now"
        if not 0 <= self._gap <= c.horizon_s - c.lead_s:
            return f"the command clock stood still for {self._gap:.3f} s"
        if self.state is State.ARMED and now - self._armed > c.first_chunk_s:
            return f"no chunk that could be taken came within {c.first_chunk_s:g} s"
        if self._plan is not None and now > self._plan.end + c.wait_s:
            return "no new chunk came before the running one had ended"
        if self.dry_run:
            return ""  # the arm does not follow
        assert reading.joints is not None
        then = np.array([reading.joints.arrival])
        return self.gates.tracking(reading, self._commanded(then)[0])

    # --- seeing and thinking ----------------------------------------------------------------------

    def _remember(self, reading: Reading) -> None:
        """Keep what was seen, at the rate of the model's frames."""
        assert reading.joints is not None
        joints = reading.joints
        if not self._poses or joints.arrival > self._poses[-1][0]:
            self._poses.append((joints.arrival, joints.value))
            while len(self._poses) > 1 and self._poses[1][0] <= joints.arrival - STILL_S:
                self._poses.pop(0)
        images = {c: reading.images[c].value for c in self.inference.spec.cameras}
        seen = min([joints.arrival, *(reading.images[c].arrival for c in images)])
        period = 1 / self.inference.spec.fps
        if self._history and seen - self._history[-1][0] < 0.2 * period:
            return
        self._history.append((seen, images, joints.value.astype(np.float32)))

    def _think(self, reading: Reading, now: float) -> None:
        """Take a chunk that is there, ask for the next one."""
        try:
            chunk = self.inference.poll()
            if chunk is not None:
                if self._open == (chunk.number, chunk.observed):
                    self._take(chunk, reading, now)
                else:
                    self._note(now, "a chunk was dropped: it was asked for before the last arming")
                self._open = None
            if self.state in MOVING and not self.inference.busy and self._due(now):
                self._ask(now)
        except (InferenceError, _UnfitChunkError) as error:
            self._trip(now, str(error))

    def _due(self, now: float) -> bool:
        if self._plan is None or self._asked is None:
            return True
        return now - self._asked >= self.config.execute / self.inference.spec.fps - 1e-9

    def _ask(self, now: float) -> None:
        spec, horizon = self.inference.spec, self.inference.horizon
        if not self._history:
            return
        seen = self._history[-1][0]
        period = 1 / spec.fps
        rows = [self._frame(seen - n * horizon.past_stride * period) for n in range(horizon.past)]
        rows.reverse()
        executed = committed = None
        if self._plan is not None:
            ago = seen - period * np.arange(HISTORY)[::-1]
            executed = self._commanded(ago).astype(np.float32)[None]
            if depth := self._depth(seen, now):
                ahead = seen + period * np.arange(1, depth + 1)
                committed = self._expected(ahead).astype(np.float32)[None]
        moment = Moment(
            np.zeros(1, np.int64),
            np.array([self.config.seed], np.int64),
            np.array([self._number], np.int64),
            {c: np.stack([images[c] for images, _ in rows])[None] for c in spec.cameras},
            np.stack([state for _, state in rows])[None],
            [self.task] if self.task else None,
            executed,
            committed,
        )
        self._record("question", now, {"number": self._number, "observed": seen})
        self.inference.ask(Question(self._number, seen, moment))
        self._asked, self._open = now, (self._number, seen)
        self._number += 1

    def _depth(self, seen: float, now: float) -> int:
        """Actions that will have passed when the chunk is there, by what it took lately."""
        assert self._plan is not None
        fps = self.inference.spec.fps
        # The next points are as good as executed already.
        expected = max([now - seen, *self._latencies]) + self.config.lead_s
        planned = math.floor((self._plan.end - seen) * fps + 1e-6)
        return max(0, min(math.ceil(expected * fps - 1e-6), self.config.prefix, planned))

    def _frame(self, at: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What was seen nearest to a time; of a beginning, the first."""
        _, images, state = min(self._history, key=lambda seen: abs(seen[0] - at))
        return images, state

    def _commanded(self, at: np.ndarray) -> np.ndarray:
        """What was commanded at times ``[N]``: ``[N, J]``; before the motion, where it began."""
        if not self._commands:
            return np.tile(self._rest, (len(at), 1))
        times = np.array([t for t, _ in self._commands])
        return _between(at, times, np.stack([q for _, q in self._commands]))

    def _expected(self, at: np.ndarray) -> np.ndarray:
        """What will be commanded at times ``[N]`` as things stand: ``[N, J]``.

        While the first motion is blended in, it is what the plan says: the model goes on with a
        plan, of which the arm is then given a share.
        """
        assert self._plan is not None
        planned = np.stack([self._plan.at(t)[0] for t in at])
        if self._ramps(float(at[0])) or not self._commands:
            return planned
        points, _, _ = self._rehearse(self._plan, float(at[-1]))
        times = np.array([t for t, _ in (*self._commands, *points)])
        path = np.stack([*(q for _, q in self._commands), *(p.position for _, p in points)])
        return _between(at, times, path)

    def _take(self, chunk: Chunk, reading: Reading, now: float) -> None:
        """Go on with a chunk, without what of it is past."""
        assert reading.joints is not None
        spec, age = self.inference.spec, now - chunk.observed
        self.figures.latency_ms.append(1e3 * age)
        self._latencies.append(age)
        self.figures.stages_ms = chunk.ms
        self._record("chunk", now, {"number": chunk.number, "age": age, "actions": chunk.actions})
        wanted = (self.inference.horizon.chunk, spec.action_dim)
        if chunk.actions.shape != wanted:
            raise _UnfitChunkError(f"a chunk has shape {chunk.actions.shape}, expected {wanted}")
        if not np.isfinite(chunk.actions).all():
            raise _UnfitChunkError("a chunk holds values that are no numbers")
        due = chunk.observed + (1 + np.arange(len(chunk.actions))) / spec.fps
        # A knot that is nearly now would only bend the curve.
        left = due > now + self.config.lead_s + 0.5 / spec.fps
        if age > self.config.late_s or not left.any():
            self.figures.refused += 1
            self._note(now, f"a chunk was refused: its observation is {age:.3f} s old")
            return
        self.figures.consumed.append(int((~left).sum()))
        actions, limits = chunk.actions[left], self.safety.limits
        if self._plan is None:
            self._begin(actions[0], reading, now)
        start, velocity = self._heading()
        knots = np.clip(actions, limits.low, limits.high)
        self._plan = Plan.through(self._clock, start, velocity, due[left], knots)
        self.figures.chunks += 1
        self._news = chunk.observed
        if self.state is State.ARMED:
            self._enter(State.RUNNING, "", now)

    def _begin(self, first: np.ndarray, reading: Reading, now: float) -> None:
        """Motion begins; what was measured when the operator armed may be seconds old."""
        assert reading.joints is not None
        joints = reading.joints.value
        moved = np.abs(joints - self._rest)
        if moved.max() > 2 * self.config.still_rad:
            worst = int(moved.argmax())
            raise _UnfitChunkError(
                f"{self.arm.axes[worst]} has moved {moved[worst]:.3f} rad since arming, and not by "
                "a command of this run-time"
            )
        away = np.abs(first - joints)
        if away.max() > self.config.first_target_rad:
            worst = int(away.argmax())
            raise _UnfitChunkError(
                f"the first target is far: {self.arm.axes[worst]} would move {away[worst]:.3f} rad "
                f"(at most {self.config.first_target_rad:g})"
            )
        self._settle(reading)
        self._begun = self._clock

    def _heading(self) -> tuple[np.ndarray, np.ndarray]:
        """From where and how fast a new plan goes on."""
        if self._plan is None:
            return self._rest, np.zeros_like(self._rest)
        position, velocity = self._plan.at(self._clock)
        sent = self.safety.position
        if self._ramps(self._clock) or len(self._commands) < 3:
            return position, velocity
        if np.abs(position - sent).max() < 1e-6:
            return position, velocity
        # The filter held the arm back: on from where it is, not from where it was wanted.
        (_, p), (_, q), (_, r) = list(self._commands)[-3:]
        return sent, (1.5 * r - 2 * q + 0.5 * p) * self.config.controller_hz

    # --- moving -----------------------------------------------------------------------------------

    def _ramps(self, at: float) -> bool:
        """Whether the first motion is still being blended in."""
        return self._begun is not None and at < self._begun + self.config.ramp_s

    def _target(self, plan: Plan, at: float) -> np.ndarray:
        """Where the joints are to be, first motion blended in."""
        target, _ = plan.at(at)
        if not self._ramps(at):
            return target
        assert self._begun is not None
        share = eased((at - self._begun) / self.config.ramp_s)
        return self._rest + share * (target - self._rest)

    def _advance(self, now: float) -> None:
        """Bring the filter to `lead_s` from now, along what was sent last.

        Past its horizon that is the braking it ended with: where the clock stood still, the arm has
        begun to brake by itself. An error or interrupt leaves filter and clock as they were.
        """
        sent, to = self._sent, now + self.config.lead_s
        if sent is None:
            self._clock = to
            return
        period, safety, at = 1 / self.config.controller_hz, self.safety.copy(), self._clock
        points: list[tuple[float, Filtered]] = []
        while at + period <= to + 1e-9:
            at += period
            if at <= sent.until + 1e-9:
                points.append((at, safety.step(self._target(sent.plan, at))))
            elif not safety.at_rest:
                points.append((at, safety.brake()))
            else:
                at += period * math.floor((to - at) / period + 1e-9)
                points.append((at, safety.brake()))
        if not points:
            return
        self.safety, self._clock, self._last = safety, at, points[-1][1]
        self._commands.extend((t, point.position) for t, point in points)
        for t, point in points:
            self.figures.clips.update(set(point.reasons.values()))
            self._record("point", t, {"position": point.position, "reasons": point.reasons})

    def _ahead(self, now: float) -> tuple[Trajectory, float]:
        """The next `horizon_s` as wanted, then braked to rest; and until when it is as wanted."""
        assert self._plan is not None
        points, end, at = self._rehearse(self._plan, now + self.config.horizon_s)
        return self._trajectory(now, points, end), at

    def _rehearse(
        self, plan: Plan, to: float
    ) -> tuple[list[tuple[float, Filtered]], SafetyFilter, float]:
        """What the filter would make of a plan up to a time, the filter then, and when that is."""
        period, safety, at = 1 / self.config.controller_hz, self.safety.copy(), self._clock
        points = []
        while at + period <= to + 1e-9:
            at += period
            points.append((at, safety.step(self._target(plan, at))))
        return points, safety, at

    def _trajectory(
        self, now: float, points: list[tuple[float, Filtered]], end: SafetyFilter
    ) -> Trajectory:
        """From the point that the arm will be at in `lead_s`, through these, braked to rest."""
        here = np.zeros_like(self._rest) if self._last is None else self._last.velocity
        return ending_at_rest(now, (self._clock, self.safety.position, here), points, end)

    def _send(self, now: float) -> None:
        assert self._plan is not None
        trajectory, until = self._ahead(now)
        self._record("command", now, _values(trajectory))
        if self._broken:
            return  # what happens has to be recorded: it is braked instead
        self._sent = _Sent(self._plan, until)
        try:
            self._hand_over(trajectory, now)
        except LinkError as error:
            self._enter(State.HOLDING, f"nothing can be sent: {error}", now)

    def _hand_over(self, trajectory: Trajectory, now: float) -> None:
        if self.dry_run:
            return
        # Before it is sent: where that fails half-way, the arm may have got it.
        self._ends = max(self._ends, now + float(trajectory.times[-1]))
        self.arm.send(trajectory, self._generation)
        self.figures.sent += 1

    def _trip(self, now: float, why: str, to: State = State.HOLDING) -> None:
        """End motion: brake within the limits, then send nothing more. Raises nothing."""
        moving = self.state is State.RUNNING and self._sent is not None
        self._enter(to, why, now)
        if not moving:
            return
        try:
            self._advance(now)
            trajectory = self._trajectory(now, [], self.safety.copy())
            self._record("brake", now, _values(trajectory))
            self._hand_over(trajectory, now)
        except Exception as error:  # noqa: BLE001 - what was sent before ends at rest, whatever this is
            what = f"{type(error).__name__}: {error}"
            self._note(now, f"braking was not sent ({what}); the arm ends what it has accepted")

    def _show(self, state: State, why: str, now: float) -> None:
        """The state while nobody has armed; told again only where more than figures differ."""
        if state is self.state and FIGURE.sub("", why) == FIGURE.sub("", self.reason):
            self.reason = why
        else:
            self._enter(state, why, now)

    def _enter(self, state: State, why: str, now: float) -> None:
        self.state, self.reason = state, why
        self._note(now, why)

    def _note(self, now: float, what: str) -> None:
        self.events.append(Event(now, self.state, what))
        self._record("event", now, {"state": self.state.value, "what": what})

    def _record(self, kind: str, at: float, values: Mapping[str, Any]) -> None:
        """Tell the recorder; where it fails, motion ends in this very period, and not before."""
        if self._recorder is None:
            return
        try:
            self._recorder(kind, at, values)
        except Exception as error:  # noqa: BLE001 - shown as the reason for the stop
            self._broken = f"the recorder failed: {type(error).__name__}: {error}"

    # --- the clock --------------------------------------------------------------------------------

    def run(
        self, until: Callable[[], bool], shown: Callable[[Runtime], None] | None = None
    ) -> None:
        """Tick at `RuntimeConfig.command_hz` until told to end; then brake.

        Args:
            until: asked before every period.
            shown: called after every period, with time to spare.
        """
        period = 1 / self.config.command_hz
        due = time.monotonic()
        try:
            while not until():
                time.sleep(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                self.figures.lateness_ms.append(1e3 * (now - due))
                self.tick(now)
                if shown is not None:
                    shown(self)
                due = max(due + period, time.monotonic() - period)
        finally:
            now = time.monotonic()
            if self.state in MOVING:
                self._trip(now, "the run-time ended")


@dataclass(frozen=True)
class _Sent:
    """The trajectory that the arm follows.

    Attributes:
        plan: it was made of.
        until: monotonic time at which it begins to brake.
    """

    plan: Plan
    until: float


class _UnfitChunkError(RuntimeError):
    """A chunk that must not be executed."""


def _between(at: np.ndarray, times: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Linear interpolation ``[N, J]`` in points ``[M, J]`` at times ``[M]``."""
    return np.stack([np.interp(at, times, column) for column in points.T], axis=1)


def _values(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Of a trajectory, for a recorder."""
    return {name: getattr(trajectory, name) for name in ("times", "positions", "velocities")}


STILL_S = 0.1
"""An arm is at rest if its joints are where they were so long ago."""
FIGURE = re.compile(r"[-+]?\d+(\.\d+)?")
HISTORY = 3
"""Executed commands that a chunk is fitted to (`policies.flow_policy.PolicyConfig.history`)."""
