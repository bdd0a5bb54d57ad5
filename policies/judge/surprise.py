"""Does surprise tell that something went wrong? Undisturbed episodes against faulty ones.

A policy drives worlds that behave and worlds in which something goes wrong at a known step, with
two monitors beside it: one that knows the world model and one that knows none, the floor. Three
kinds of episodes, none of which the model was trained on: undisturbed ones to calibrate on, others
to count false alarms in, and faulty ones, which start like those others.

A faulty episode often lasts longer (nothing succeeds any more), and a longer one has more chances
to surprise. So everything is judged *within the same steps* of the faulty and the undisturbed
episode of one seed: from the fault on, for at most a few seconds, until the first of the two ends.
An episode counts with its highest score.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium as gym
import numpy as np

from worldmodel.checkpoint import Checkpoint

from ..evaluation import Episode, evaluate
from ..monitor import (
    Calibration,
    Monitor,
    MonitorConfig,
    PlainMonitor,
    SurpriseMonitor,
    episodes_needed,
    require_enough,
)
from ..statistics import percentiles, proportion
from ..types import Decision, Observation, Policy
from .ranking import auroc, roc_curve

Make = Callable[[int], gym.Env]
"""From the seed of an episode to its world, which is reset with that seed and closed after it."""

Driver = Policy | Callable[[Sequence[gym.Env]], Policy]
"""A policy, or what makes one from the worlds that it is to drive (an expert that looks inside)."""

MODEL, FLOOR = "model", "baseline"


@dataclass
class Watched:
    """One episode as a monitor saw it.

    Attributes:
        at: int64 ``[N]``, the observations that were compared; 0 is that of the reset.
        features: name -> ``[N]``.
    """

    at: np.ndarray
    features: dict[str, np.ndarray]


@dataclass
class Watch:
    """Episodes of one kind of world.

    Attributes:
        episodes: in the order of their seeds.
        seen: monitor -> seed -> what it saw.
        fps: control steps per second.
        ms: monitor -> milliseconds of each call that compared something.
    """

    episodes: list[Episode]
    seen: dict[str, dict[int, Watched]]
    fps: float
    ms: dict[str, list[float]]


class Watcher:
    """A policy with monitors beside it, which see what it sees and what it sends.

    It is itself a `policies.types.Policy` and decides what the policy decides.
    """

    def __init__(self, policy: Policy, monitors: Mapping[str, Monitor]) -> None:
        self.policy, self.monitors, self.name = policy, monitors, policy.name
        self.seen: dict[str, dict[int, list[tuple[int, dict[str, float]]]]] = {
            name: {} for name in monitors
        }
        self.ms: dict[str, list[float]] = {name: [] for name in monitors}

    def reset(self, seeds: Sequence[int]) -> None:
        self.policy.reset(seeds)
        for monitor in self.monitors.values():
            monitor.reset(seeds)
        self._begin(range(len(seeds)), seeds, [0] * len(seeds), list(seeds))

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        self.policy.reset_slots(slots, seeds)
        for monitor in self.monitors.values():
            monitor.reset_slots(slots, seeds)
        self._begin(slots, seeds, self._steps, self._seeds)

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        decision = self.policy.act(observation, active)
        for name, monitor in self.monitors.items():
            clock = time.perf_counter()
            found = monitor.observe(observation, decision.action, active)
            elapsed_ms = 1e3 * (time.perf_counter() - clock)
            slots = np.flatnonzero(found.compared)
            if len(slots):
                self.ms[name].append(elapsed_ms)
            for slot in slots:
                values = {n: float(v[slot]) for n, v in found.features.items()}
                self.seen[name][self._seeds[slot]].append((self._steps[slot], values))
        for slot in np.flatnonzero(active):
            self._steps[slot] += 1
        return decision

    def watched(self, name: str) -> dict[int, Watched]:
        """What a monitor saw, by the seeds of the episodes."""
        features = list(self.monitors[name].floors)
        return {
            seed: Watched(
                np.array([step for step, _ in rows], np.int64),
                {f: np.array([values[f] for _, values in rows]) for f in features},
            )
            for seed, rows in self.seen[name].items()
        }

    def _begin(
        self, slots: Sequence[int], seeds: Sequence[int], steps: list[int], of: list[int]
    ) -> None:
        self._steps, self._seeds = steps, of
        for slot, seed in zip(slots, seeds, strict=True):
            self._steps[slot], self._seeds[slot] = 0, int(seed)
            for seen in self.seen.values():
                seen[int(seed)] = []


def watch(
    driver: Driver,
    monitors: Mapping[str, Monitor],
    make: Make,
    seeds: Sequence[int],
    *,
    num_envs: int = 1,
    max_steps: int | None = None,
) -> Watch:
    """Run one episode per seed, each in a world of its own, and keep what the monitors measured.

    Raises:
        ValueError: as `policies.evaluation.evaluate`.
    """
    whole = Watch([], {name: {} for name in monitors}, 0.0, {name: [] for name in monitors})
    for first in range(0, len(seeds), num_envs):
        group = list(seeds[first : first + num_envs])
        worlds: list[gym.Env] = []
        try:
            for seed in group:
                worlds.append(make(seed))
            watcher = Watcher(_policy(driver, worlds), monitors)
            run = evaluate(watcher, worlds, group, max_steps=max_steps)
        finally:
            for world in worlds:
                world.close()
        whole.episodes += run.episodes
        whole.fps = run.fps
        for name in monitors:
            whole.seen[name] |= watcher.watched(name)
            whole.ms[name] += watcher.ms[name]
    return whole


def _policy(driver: Driver, worlds: Sequence[gym.Env]) -> Policy:
    # A class of policies has all that a policy has, but is still to be made.
    if isinstance(driver, Policy) and not isinstance(driver, type):
        return driver
    return cast(Callable[[Sequence[gym.Env]], Policy], driver)(worlds)


def run_surprise(
    driver: Driver,
    world: Checkpoint,
    make_nominal: Make,
    make_faulty: Mapping[str, Make],
    *,
    seeds_calibration: Sequence[int],
    seeds_test: Sequence[int],
    at_step: int | Callable[[int], int],
    false_alarm_rate: float = 0.05,
    window_s: float = 3.0,
    config: MonitorConfig | None = None,
    num_envs: int = 1,
    max_steps: int | None = None,
    is_usual: Callable[[Episode], bool] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How well surprise finds faults, beside how well it goes without a world model.

    Args:
        driver: drives all worlds.
        world: the world model.
        make_nominal: undisturbed worlds.
        make_faulty: fault -> worlds in which it begins with step `at_step`.
        seeds_calibration, seeds_test: of the undisturbed episodes that set the threshold, and of
            those that are judged, undisturbed and with each fault.
        at_step: number of steps before the fault, the same for all or by seed.
        false_alarm_rate: chosen, per undisturbed episode.
        window_s: seconds from the fault on in which it is to be found.
        config: of both monitors.
        num_envs: worlds side by side.
        max_steps: see `policies.evaluation.evaluate`.
        is_usual: which undisturbed episodes may set the threshold; None: all. One that fails (the
            arm hits a post) surprises rightly. Where too few are left for the false-alarm rate, all
            set it (``calibrated_on`` says which).
        seed: of the resampling.

    Returns:
        The part "surprise" of a report (`policies.judge.report`): ``auroc``, ``low``, ``high`` of
        all faults together; ``n`` (pairs of a faulty and an undisturbed episode), ``episodes``
        (resets, which are what is resampled); ``false_alarm_rate``: {chosen, rate, low, high, k,
        n} of all undisturbed episodes, ``false_alarm_rate_usual`` of those that are as those that
        set the threshold; ``failures``: {auroc, low, high} of telling undisturbed episodes that
        fail by their highest score; ``faults``: name -> {auroc, low, high, fpr, tpr, positives,
        negatives, detected: {rate, low, high, k, n}, delay_s (median of those detected),
        false_alarms (the same of the undisturbed episodes in these steps), early (alarms before the
        fault, left out of `detected`), success (of the driver), causes: feature -> detections}};
        ``ms_per_comparison``
        with ``num_envs``; ``calibration`` (`policies.monitor.Calibration.to_dict`);
        ``baseline``: the same of `policies.monitor.PlainMonitor`; ``window_s``.

    Raises:
        ValueError: no fault; seeds shared by calibration and test; too few episodes to calibrate.
    """
    shared = sorted(set(seeds_calibration) & set(seeds_test))
    if shared:
        raise ValueError(
            f"the threshold is not judged on episodes that set it: {len(shared)} seeds are in both "
            f"seeds_calibration and seeds_test, such as {shared[:3]}"
        )
    if not make_faulty:
        raise ValueError("expected at least one fault to find, found none")
    require_enough(len(seeds_calibration), false_alarm_rate)
    model = SurpriseMonitor(world, config)
    monitors = {MODEL: model, FLOOR: PlainMonitor(world.spec, model.config)}

    def run(make: Make, seeds: Sequence[int]) -> Watch:
        return watch(driver, monitors, make, seeds, num_envs=num_envs, max_steps=max_steps)

    calibrating, nominal = run(make_nominal, seeds_calibration), run(make_nominal, seeds_test)
    usual = [e.seed for e in calibrating.episodes if is_usual is None or is_usual(e)]
    enough = len(usual) >= episodes_needed(false_alarm_rate)
    if not enough:  # a driver that hardly ever does as it should
        usual = [e.seed for e in calibrating.episodes]
    alike = {e.seed for e in nominal.episodes if not enough or is_usual is None or is_usual(e)}
    faulty = {name: run(make, seeds_test) for name, make in make_faulty.items()}
    starts = {s: at_step(s) if callable(at_step) else at_step for s in seeds_test}
    parts = {}
    for name, monitor in monitors.items():
        calibration = monitor.calibrate(
            [calibrating.seen[name][s].features for s in usual], false_alarm_rate
        )
        window = round(window_s * nominal.fps)
        parts[name] = judge(
            name, calibration, nominal, faulty, starts, window, alike=alike, seed=seed
        ) | {
            "ms_per_comparison": percentiles(nominal.ms[name]),
            "calibration": calibration.to_dict(),
        }
    success = proportion([e.success for e in nominal.episodes]).to_dict()
    left_out = len(calibrating.episodes) - len(usual)
    more = {"num_envs": num_envs, "window_s": window_s, "success": success}
    more |= {
        "calibration_left_out": left_out,
        "calibrated_on": "usual episodes" if enough and is_usual is not None else "all episodes",
    }
    return parts[MODEL] | more | {FLOOR: parts[FLOOR]}


@dataclass
class _Scored:
    """An episode's scores at the observations that were compared, and what each is due to."""

    at: np.ndarray
    scores: np.ndarray
    causes: list[str]

    @classmethod
    def of(cls, calibration: Calibration, seen: Watched) -> _Scored:
        names = list(calibration.centre)
        largest = calibration.standardised(seen.features).argmax(0)
        return cls(seen.at, calibration.scores(seen.features), [names[i] for i in largest])

    def within(self, after: int, last: int) -> _Scored:
        """The part of observations `after` + 1 to `last`."""
        kept = np.flatnonzero((self.at > after) & (self.at <= last))
        return _Scored(self.at[kept], self.scores[kept], [self.causes[i] for i in kept])


@dataclass
class _Pairs:
    """Highest scores of faulty and undisturbed episodes over the same steps, and their seeds."""

    faulty: list[float] = field(default_factory=list)
    undisturbed: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def __add__(self, other: _Pairs) -> _Pairs:
        return _Pairs(
            self.faulty + other.faulty,
            self.undisturbed + other.undisturbed,
            self.seeds + other.seeds,
        )

    @property
    def scores(self) -> list[float]:
        return self.faulty + self.undisturbed

    @property
    def labels(self) -> list[bool]:
        return [True] * len(self.faulty) + [False] * len(self.undisturbed)

    def auroc(self, seed: int) -> dict[str, Any]:
        found = auroc(self.scores, self.labels, self.seeds * 2, seed=seed)
        reason = {"reason": found.reason} if found.reason else {}
        return {"auroc": found.auroc, "low": found.low, "high": found.high} | reason


def judge(
    name: str,
    calibration: Calibration,
    nominal: Watch,
    faulty: Mapping[str, Watch],
    starts: Mapping[int, int],
    window: int,
    *,
    alike: Collection[int],
    seed: int = 0,
) -> dict[str, Any]:
    """Score one monitor, see `run_surprise`.

    Args:
        name: of the monitor.
        starts: seed -> number of steps before the fault.
        window: steps from the fault on in which it is to be found.
        alike: undisturbed episodes that are as those that set the threshold.
    """
    calm = {s: _Scored.of(calibration, seen) for s, seen in nominal.seen[name].items()}
    lengths = {e.seed: e.steps for e in nominal.episodes}
    alarms = {s: bool((c.scores > calibration.threshold).any()) for s, c in calm.items()}
    everything, faults = _Pairs(), {}
    for fault, run in faulty.items():
        pairs, causes = _Pairs(), Counter[str]()
        detected: list[bool] = []
        delays: list[float] = []
        early = 0
        for episode in run.episodes:
            s, start = episode.seed, starts[episode.seed]
            # Of T steps, observations 0 to T - 1 were decided on, and compared.
            last = min(start + window, episode.steps - 1, lengths[s] - 1)
            scored = _Scored.of(calibration, run.seen[name][s])
            inside, beside = scored.within(start, last), calm[s].within(start, last)
            if not len(inside.at):
                continue  # one of the two ended before the fault, or just after it
            pairs += _Pairs([float(inside.scores.max())], [float(beside.scores.max())], [s])
            if (scored.within(-1, start).scores > calibration.threshold).any():
                early += 1
                continue
            late = np.flatnonzero(inside.scores > calibration.threshold)
            detected.append(bool(len(late)))
            if len(late):
                delays.append(float(inside.at[late[0]] - start) / run.fps)
                causes[inside.causes[late[0]]] += 1
        if not pairs.seeds:
            reason = f"none of {len(run.episodes)} episodes was compared after the fault began"
            faults[fault] = {"not_run": reason}
            continue
        fpr, tpr, _ = roc_curve(pairs.scores, pairs.labels)
        false_alarms = np.array(pairs.undisturbed) > calibration.threshold
        faults[fault] = pairs.auroc(seed) | {
            "fpr": fpr.tolist(),
            "tpr": tpr.tolist(),
            "positives": len(pairs.faulty),
            "negatives": len(pairs.undisturbed),
            "detected": proportion(detected).to_dict(),
            "delay_s": float(np.median(delays)) if delays else math.nan,
            "false_alarms": proportion(false_alarms).to_dict(),
            "early": early,
            "success": proportion([e.success for e in run.episodes]).to_dict(),
            "causes": dict(causes.most_common()),
        }
        everything += pairs
    chosen = {"chosen": calibration.false_alarm_rate}
    rate = chosen | proportion(list(alarms.values())).to_dict()
    usual = [alarm for s, alarm in alarms.items() if s in alike]
    compared = [e for e in nominal.episodes if len(calm[e.seed].at)]
    failures = auroc(
        [float(calm[e.seed].scores.max()) for e in compared],
        [not e.success for e in compared],
        seed=seed,
    )
    return everything.auroc(seed) | {
        "n": len(everything.seeds),
        "episodes": len(set(everything.seeds)),
        "false_alarm_rate": rate,
        "false_alarm_rate_usual": chosen | proportion(usual).to_dict()
        if usual
        else {"not_run": "no undisturbed episode was as those that set the threshold"},
        "failures": failures.to_dict(),
        "faults": faults,
    }
