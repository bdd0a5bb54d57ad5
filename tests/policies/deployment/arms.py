"""An arm in memory with a clock of its own, and everything that is needed to drive it by hand.

It follows trajectories with the controller of the bench (`envs.ros.controller`), which is cubic
between points and refuses what a real one would refuse. It keeps what it was told and where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from envs.ros.controller import Controller
from policies.deployment.arm import LinkError, Measured, Reading, Trajectory
from policies.deployment.gates import GateConfig
from policies.deployment.inference import InferenceError, InlineInference, Question
from policies.deployment.runtime import Runtime, RuntimeConfig, State
from policies.safety import JointLimits, SafetyFilter
from worldmodel.tokens import Horizon
from worldmodel.types import Spec

AXES = ("lift", "turn")
LIMITS = JointLimits(
    AXES,
    np.array([-1.5, -2.0]),
    np.array([1.5, 2.0]),
    np.array([2.0, 2.5]),
    np.array([8.0, 10.0]),
    np.array([200.0, 300.0]),
)
SPEC = Spec(
    cameras=("front",),
    image_size=(8, 8),
    state_names=AXES,
    action_names=AXES,
    fps=20,
    action_kind="absolute",
)
HORIZON = Horizon(past=2, past_stride=2, future=0, future_stride=1, chunk=16)
TICK = 0.05
FINE = 0.002
"""Seconds between two looks at the arm's own motion."""
HOME = np.array([0.3, -0.2])


class FakeArm:
    """See the module.

    Attributes:
        now: its clock.
        sent: (when, trajectory) of all that it was given.
        path: where it was commanded to be, every `FINE` seconds.
        joints_stop, camera_stop: since when nothing arrives any more.
        wire: seconds that the next trajectory takes to arrive.
    """

    axes: tuple[str, ...] = AXES
    cameras: tuple[str, ...] = ("front",)

    def __init__(self, position: np.ndarray = HOME) -> None:
        self.now, self.generation = 0.0, 1
        self.controller = Controller(
            AXES,
            LIMITS.low,
            LIMITS.high,
            required=len(AXES),
            watchdog_s=10.0,
            deceleration=LIMITS.acceleration,
        )
        self.controller.reset(position)
        self.sent: list[tuple[float, Trajectory]] = []
        self.path: list[np.ndarray] = []
        self.wire: Callable[[], float] = lambda: 0.0
        self.stopped, self.problem, self.read_error, self.send_error = False, "", "", ""
        self.joints_stop = self.camera_stop = math.inf
        self.stamped, self.skew = True, 0.0
        self.offset: np.ndarray = np.zeros(2)
        self.frozen: np.ndarray | None = None
        self.joint_values: Callable[[np.ndarray], np.ndarray] = lambda q: q
        self._arriving: list[tuple[float, Trajectory]] = []
        self._seen: list[tuple[float, np.ndarray]] = [(0.0, np.array(position))]

    def run_to(self, now: float) -> None:
        """Let time pass."""
        while self.now + FINE <= now + 1e-9:
            self.now += FINE
            while self._arriving and self._arriving[0][0] <= self.now:
                at, t = self._arriving.pop(0)
                self.controller.tick(at)
                self.controller.follow(AXES, t.positions, t.velocities, t.times, now=at)
            self.path.append(self.controller.tick(self.now).copy())
        self.now = now
        self._seen = [*self._seen[-40:], (now, self.controller.command + self.offset)]

    def at(self, when: float) -> np.ndarray:
        return next((q for t, q in reversed(self._seen) if t <= when + 1e-9), self._seen[0][1])

    def read(self) -> Reading:
        if self.read_error:
            raise RuntimeError(self.read_error)
        joints, camera = min(self.now, self.joints_stop), min(self.now, self.camera_stop)
        position = self.joint_values(self.at(joints))
        picture = picture_of(self.at(camera)) if self.frozen is None else self.frozen
        stamp = 100.0 + camera - self.skew if self.stamped else None
        return Reading(
            Measured(position, joints, 100.0 + joints, round(1e3 * joints)),
            {"front": Measured(picture, camera, stamp, round(1e3 * camera))},
            self.stopped,
            self.problem,
        )

    def send(self, trajectory: Trajectory, generation: int) -> None:
        if self.send_error:
            raise RuntimeError(self.send_error)
        if generation != self.generation:
            raise LinkError(f"armed on connection {generation}, this is {self.generation}")
        self.sent.append((self.now, trajectory))
        self._arriving.append((self.now + self.wire(), trajectory))


def picture_of(position: np.ndarray) -> np.ndarray:
    """uint8 ``[8, 8, 3]``, another one wherever the arm is."""
    values = np.frombuffer(position.tobytes() * 12, np.uint8)
    return values.reshape(8, 8, 3)


def swing(at: float) -> np.ndarray:
    """A smooth motion ``[J]``, from 0 at time 0."""
    return np.array([0.5, -0.6]) * (1 - np.cos(1.6 * at)) / 2


class Swinger:
    """A policy that knows where to be when; each chunk is off by a little of its own.

    Of a chunk that begins with committed actions, the rest goes on from where these end.

    Attributes:
        begin, home: when and where the motion began.
        delay: seconds that it takes for a chunk, on the arm's clock.
        asked: what it was asked.
        answer: turns the chunk that it would give into the one that it gives.
    """

    def __init__(self, arm: FakeArm, noise: float = 0.0, honours: bool = True) -> None:
        self.arm, self.noise, self.honours = arm, noise, honours
        self.delay = 0.0
        self.begin, self.home = 0.0, HOME
        self.asked: list[Question] = []
        self.given: list[np.ndarray] = []
        self.error = ""
        self.answer: Callable[[np.ndarray], np.ndarray] = lambda actions: actions
        self.inference = InlineInference(SPEC, HORIZON, self.choose, self.ready)

    def ready(self, question: Question) -> bool:
        if self.error:
            raise InferenceError(self.error)
        # A question is asked right after the newest observation.
        return self.arm.now >= question.observed + self.delay - 1e-9

    def choose(self, question: Question) -> np.ndarray:
        moment = question.moment
        self.asked.append(question)
        if question.number == 0:
            self.begin, self.home = question.observed, moment.state[0, -1].astype(np.float64)
        due = question.observed - self.begin + (1 + np.arange(HORIZON.chunk)) / SPEC.fps
        rng = np.random.default_rng([question.number, int(moment.seeds[0])])
        actions = self.home + np.stack([swing(t) for t in due]) + self.noise * rng.normal(size=2)
        if self.honours and moment.committed is not None:
            depth = moment.committed.shape[1]
            actions += (moment.committed[0, -1] - actions[depth - 1]) * np.exp(
                -(due - due[depth - 1]) / 0.3
            )[:, None]
            actions[:depth] = moment.committed[0]
        self.given.append(self.answer(actions))
        return self.given[-1]


class Bench:
    """An arm, a policy and the run-time between them, on one clock that is moved by hand."""

    def __init__(
        self,
        config: RuntimeConfig | None = None,
        gates: GateConfig | None = None,
        noise: float = 0.0,
        honours: bool = True,
        **options,
    ) -> None:
        self.now = 0.0
        self.arm = FakeArm()
        self.policy = Swinger(self.arm, noise, honours)
        config = config or RuntimeConfig(ramp_s=0.5)
        self.safety = SafetyFilter(LIMITS, 1 / config.controller_hz)
        self.runtime = Runtime(
            self.arm, self.policy.inference, self.safety, config, gates, **options
        )
        self.tick()

    def tick(self, after: float = TICK) -> State:
        self.now += after
        self.arm.run_to(self.now)
        return self.runtime.tick(self.now)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(round(seconds / TICK)):
            if until():
                return
            self.tick()

    def ask(self, what: str) -> State:
        self.runtime.request(what)
        return self.tick()

    def start(self, seconds: float = 2.0) -> Bench:
        """Watched for a moment, armed, and moving for so long."""
        self.run(0.2)
        assert self.ask("arm") is State.ARMED, self.runtime.events
        self.run(seconds)
        assert self.runtime.state is State.RUNNING, self.runtime.reason
        return self


def told(sent: list[tuple[float, Trajectory]], period: float = 0.01) -> list[np.ndarray]:
    """What an arm was told, joined in time: positions ``[T, J]`` at controller rate, per motion.

    A trajectory replaces what follows its first point. Where it begins later than all that was told
    before had ended, it begins another motion.
    """
    motions: list[tuple[list[float], list[np.ndarray]]] = []
    for when, trajectory in sent:
        times = when + trajectory.times
        np.testing.assert_allclose(np.diff(times), period, atol=1e-6)
        if not motions or times[0] > motions[-1][0][-1] + 1.5 * period:
            motions.append(([], []))
        at, points = motions[-1]
        while at and at[-1] > times[0] - period / 2:
            at.pop()
            points.pop()
        if at:
            assert abs(times[0] - at[-1] - period) < 1e-6, "points do not join in time"
        at.extend(times)
        points.extend(trajectory.positions)
    return [np.stack(points) for _, points in motions]


def violations(
    positions: np.ndarray, period: float = 0.01, share: float = 1e-6
) -> dict[str, float]:
    """By how much (a share of the limit, above 1) positions from rest to rest break which limit."""
    rest = np.concatenate([positions[:1].repeat(3, 0), positions, positions[-1:].repeat(3, 0)])
    v = np.diff(rest, axis=0) / period
    a = np.diff(v, axis=0) / period
    j = np.diff(a, axis=0) / period
    worst = {
        "low": float(1 + (LIMITS.low - positions).max()),
        "high": float(1 + (positions - LIMITS.high).max()),
        "velocity": float((abs(v) / LIMITS.velocity).max()),
        "acceleration": float((abs(a) / LIMITS.acceleration).max()),
        "jerk": float((abs(j) / LIMITS.jerk).max()),
    }
    return {name: value for name, value in worst.items() if value > 1 + 1e-6}


def require_limits(arm: FakeArm) -> None:
    """All that an arm was told keeps all limits, and each of it ends at rest."""
    for _, trajectory in arm.sent:
        assert np.isfinite(trajectory.positions).all()
        assert trajectory.times[0] > 0
        assert (trajectory.velocities[-1] == 0).all()
    assert arm.controller.refused == 0
    for motion in told(arm.sent):
        assert violations(motion) == {}
