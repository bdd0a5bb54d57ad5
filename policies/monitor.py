"""Surprise at run time: does the world do what was to be expected of the commands that were sent?

Every few steps a monitor looks back. `SurpriseMonitor` asks the world model what the cameras and
joints were to show now, given the frame of some steps ago and the commands since, and compares it
with what they do show. `PlainMonitor` knows no model: frames against frames, joints against their
commands; what a model adds is what it finds beyond that.

A monitor measures *features*. `Calibration` turns them into one score and an alarm: each is
expressed in its own usual spread, the largest counts, and an alarm takes several large ones in a
row. Its threshold is the quantile of undisturbed episodes that keeps the chance of an alarm in
another such episode at most at a chosen rate, however the scores are distributed. What an alarm
leads to (planning anew, stopping) is the caller's business.

Source of the threshold: V. Vovk, A. Gammerman and G. Shafer, "Algorithmic learning in a random
world" (2005), inductive conformal prediction.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.checkpoint import Checkpoint
from worldmodel.data import resize_frames
from worldmodel.imagine import ask
from worldmodel.selfflow import until_last_frame
from worldmodel.tokens import pattern
from worldmodel.types import Spec

from .flow_policy import FEW_ROWS, one_thread
from .types import Observation

Features = Mapping[str, np.ndarray]
"""Feature -> its value at each comparison of an episode, ``[N]``."""

DELAY = 4
"""Steps looked back where nobody says how many: what happened long ago is imagined less well."""
GREY_LEVELS = 1.0
"""Smallest spread of a picture's error that counts: cameras and codecs err by as much."""
RANGE_SHARE = 1e-3
"""The same for a joint, as a share of its range in the data."""
STILL, NEARBY = 10.0, 2
"""Motion (grey levels) up to which a cell counts as still, and how many cells around it do not
move either, where something odd is looked for."""
TAIL = 0.95
"""Share of comparisons below a feature's tail."""
MAD_TO_STD = 1.4826
FEWEST_FITTED, FITTED_SHARE = 8, 5
"""Of n undisturbed episodes, max(8, n // 5) say what is usual, the others set the threshold."""


@dataclass
class MonitorConfig:
    """What is compared, how often, and what raises an alarm.

    Attributes:
        delay: steps from the frame that is imagined from to the one that is compared; None: 4, or
            the first frame that the model knows.
        every: steps between comparisons; None: half the delay, so that what lasts as long as the
            delay is seen twice.
        steps: sampling steps.
        cells: a picture is compared in about this many rows and columns of cells.
        worst: number of cells that count, those that differ most: what is missing may be small.
        need, of: an alarm takes `need` large scores among the last `of` comparisons.
    """

    delay: int | None = None
    every: int | None = None
    steps: int = 1
    cells: int = 12
    worst: int = 4
    need: int = 2
    of: int = 3


@dataclass
class Surprise:
    """How surprised a monitor is by every slot.

    Attributes:
        score: ``[B]``, of the last comparison; -inf before there were enough, NaN uncalibrated.
        alarm: bool ``[B]``, whether that is above the threshold.
        compared: bool ``[B]``, whether this step was compared; else the last one stands.
        features: name -> ``[B]``, as measured (grey levels, or the units of the state); NaN before
            the first comparison. ``video/CAMERA``: error of the picture; ``odd/CAMERA``: the same
            where no motion was imagined nearby, over the motion that was; ``still/CAMERA``: motion
            that was imagined but did not come; ``state/JOINT``: error of the joint.
        cause: per slot, the feature that stands out most; "" where nothing was compared.
    """

    score: np.ndarray
    alarm: np.ndarray
    compared: np.ndarray
    features: dict[str, np.ndarray]
    cause: list[str]


@dataclass(frozen=True)
class Calibration:
    """What is usual, and from where on it is not.

    Attributes:
        centre, spread: of each feature in undisturbed episodes; see `usual`.
        threshold: scores above it raise an alarm.
        false_alarm_rate: share of undisturbed episodes that the threshold lets raise one, at most.
        episodes: how many episodes the threshold is from.
        fitted: how many others `centre` and `spread` are from.
        need, of: see `MonitorConfig`.
        settings: of the monitor that measured the features; another one measures others.
    """

    centre: dict[str, float]
    spread: dict[str, float]
    threshold: float
    false_alarm_rate: float
    episodes: int
    fitted: int
    need: int
    of: int
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`.

        Raises:
            ValueError: names the fields that are missing or unknown.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if set(values) != known:
            raise ValueError(
                f"a calibration has the fields {sorted(known)}; missing here: "
                f"{sorted(known - set(values))}, unknown: {sorted(set(values) - known)}"
            )
        return cls(**values)

    def standardised(self, features: Features) -> np.ndarray:
        """``[F, N]``: each feature, in its order in `centre`, in spreads above its centre.

        Raises:
            ValueError: other features than were calibrated.
        """
        _require_features(features, self.centre)
        rows = [(np.asarray(features[n]) - c) / self.spread[n] for n, c in self.centre.items()]
        # A number that is none is no reason to be calm.
        return np.nan_to_num(np.stack(rows), nan=np.inf, posinf=np.inf)

    def scores(self, features: Features) -> np.ndarray:
        """``[N]`` scores of an episode's comparisons, in their order."""
        return smoothed(self.standardised(features).max(0), self.need, self.of)


def smoothed(scores: np.ndarray, need: int, of: int) -> np.ndarray:
    """``[N]``: what `need` of the last `of` scores reach; -inf where there are fewer."""
    padded = np.concatenate([np.full(of, -np.inf), scores])
    windows = np.lib.stride_tricks.sliding_window_view(padded, of)[1:]
    return np.sort(windows, axis=1)[:, -need]


def episodes_needed(false_alarm_rate: float) -> int:
    """How many undisturbed episodes it takes to keep false alarms at this rate.

    Raises:
        ValueError: the rate is no share.
    """
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"a false-alarm rate is between 0 and 1, found {false_alarm_rate}")
    return next(n for n in itertools.count(1) if _allowed(n - _fitted(n), false_alarm_rate) >= 1)


def require_enough(episodes: int, false_alarm_rate: float) -> None:
    """Refuse to calibrate on fewer undisturbed episodes than a false-alarm rate takes.

    Raises:
        ValueError: says how many it takes, and what rate these can keep.
    """
    wanted, rest = episodes_needed(false_alarm_rate), episodes - _fitted(episodes)
    if episodes < wanted:
        kept = f"a rate of {1 / (rest + 1):.2g}" if rest > 0 else "no rate"
        raise ValueError(
            f"a false-alarm rate of {false_alarm_rate:g} per episode takes {wanted} undisturbed "
            f"episodes, found {episodes}, with which {kept} can be kept: run more of them, or "
            "accept more false alarms"
        )


def calibrate(
    episodes: Sequence[Features],
    false_alarm_rate: float,
    *,
    floors: Mapping[str, float],
    need: int = 2,
    of: int = 3,
    settings: Mapping[str, Any] | None = None,
) -> Calibration:
    """Learn what is usual from undisturbed episodes that no model was trained on.

    The first few say where each feature usually lies and how far it strays; the others say how high
    the highest score of an episode goes. Being different ones, these compare to a new episode as
    any of them to the others, which is all that the bound needs: with m of them, the threshold is
    the k-th highest of their maxima, k = floor((m + 1) * rate), and a new episode goes above it
    with a chance of k / (m + 1) at most. That is the mean over calibrations: what one of them
    achieves varies (with k = 1, as the smallest of m + 1 shares of a randomly broken stick).

    Args:
        episodes: features of each, in any order that has nothing to do with them.
        false_alarm_rate: share of undisturbed episodes that may raise an alarm.
        floors: feature -> the smallest spread that counts.
        need, of, settings: see `Calibration`.

    Raises:
        ValueError: too few episodes for this rate, or too few that are long enough to compare.
    """
    require_enough(len(episodes), false_alarm_rate)
    fitted = _fitted(len(episodes))
    m = len(episodes) - fitted
    for features in episodes:
        _require_features(features, floors)
    centre, spread = {}, {}
    for name, floor in floors.items():
        values = np.concatenate([np.asarray(e[name], np.float64) for e in episodes[:fitted]])
        if not len(values):
            raise ValueError(f"none of the first {fitted} episodes is long enough to compare once")
        centre[name], spread[name] = usual(values, floor)
    found = Calibration(
        centre, spread, math.inf, false_alarm_rate, m, fitted, need, of, dict(settings or {})
    )
    highest = sorted(float(found.scores(e).max(initial=-np.inf)) for e in episodes[fitted:])
    threshold = highest[m - _allowed(m, false_alarm_rate)]
    if not math.isfinite(threshold):
        short = sum(not math.isfinite(v) for v in highest)
        raise ValueError(
            f"no threshold: {short} of {m} episodes are too short for {need} comparisons, or hold "
            "values that are not finite"
        )
    return dataclasses.replace(found, threshold=threshold)


def usual(values: np.ndarray, floor: float) -> tuple[float, float]:
    """Centre and spread of a feature's values ``[N]``: robust, and fair to its upper tail.

    The centre is the median. The spread is the geometric mean of two: the median absolute deviation
    (as a standard deviation), and how far above the centre the tail begins. By the first alone a
    feature with a long tail raises the threshold for all others; by the second alone one that never
    strays as far as it does in a fault (no motion at all) is drowned.

    Args:
        floor: the smallest that either of them counts as.
    """
    centre = float(np.median(values))
    middle = MAD_TO_STD * float(np.median(np.abs(values - centre)))
    tail = float(np.quantile(values, TAIL)) - centre
    return centre, math.sqrt(max(middle, floor) * max(tail, floor))


def _fitted(episodes: int) -> int:
    return min(episodes, max(FEWEST_FITTED, episodes // FITTED_SHARE))


def _allowed(episodes: int, rate: float) -> int:
    """How many of them may lie at or above the threshold."""
    return math.floor((episodes + 1) * rate + 1e-9) if episodes > 0 else 0


def _require_features(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    if set(found) != set(expected):
        raise ValueError(
            f"these features were not measured alike: expected {list(expected)}, missing "
            f"{sorted(set(expected) - set(found))}, unknown {sorted(set(found) - set(expected))}"
        )


# --- monitors ------------------------------------------------------------------------------------


@dataclass
class _Moment:
    """A step of one slot.

    Attributes:
        frames: camera -> uint8 ``[C, H, W]``, as the model sees them.
        state: float32 ``[S]``.
        command: float32 ``[A]``, sent at this step.
        task: index, -1 for none.
    """

    frames: dict[str, Tensor]
    state: np.ndarray
    command: np.ndarray
    task: int


class Monitor:
    """Compares now with some steps ago, for every slot (see `policies.types`) on its own.

    Args:
        spec: of the robot.
        config: see `MonitorConfig`.
        delay: that of the configuration, or what stands for None.
        reach: steps that are kept beyond the delay.
        calibration: of such a monitor; None: features are measured, nothing is judged.

    Raises:
        ValueError: numbers that fit nothing, or a calibration of another monitor.
    """

    def __init__(
        self,
        spec: Spec,
        config: MonitorConfig,
        delay: int,
        reach: int,
        calibration: Calibration | None,
    ) -> None:
        every = max(1, delay // 2) if config.every is None else config.every
        c = dataclasses.replace(config, delay=delay, every=every)
        if min(delay, every, c.steps, c.cells, c.worst) < 1 or not 1 <= c.need <= c.of:
            raise ValueError(
                "delay, every, steps, cells and worst are at least 1, and need is from 1 to of; "
                f"found {c}"
            )
        self.spec, self.config = spec, c
        self.delay, self.every = delay, every
        self._kept = delay + reach + 1
        self.floors = self._floors()
        self.calibration = calibration
        if calibration is not None:
            self._require_own(calibration)
        self.reset([])

    @property
    def settings(self) -> dict[str, Any]:
        """What a calibration of this monitor is bound to."""
        return {"monitor": type(self).__name__} | dataclasses.asdict(self.config)

    def reset(self, seeds: Sequence[int]) -> None:
        """Forget everything; slot i starts the episode with seed ``seeds[i]``."""
        count = len(seeds)
        self._seeds = [int(s) for s in seeds]
        self._past: list[list[_Moment]] = [[] for _ in range(count)]
        self._steps = np.zeros(count, np.int64)  # observations seen in this episode
        self._recent: list[list[float]] = [[] for _ in range(count)]
        self._features = {name: np.full(count, np.nan) for name in self.floors}
        self._score = np.full(count, -np.inf if self.calibration else np.nan)
        self._cause = [""] * count

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Start new episodes in these slots only."""
        for slot, seed in zip(slots, seeds, strict=True):
            self._seeds[slot], self._past[slot], self._recent[slot] = int(seed), [], []
            self._steps[slot], self._cause[slot] = 0, ""
            self._score[slot] = -np.inf if self.calibration else np.nan
            for values in self._features.values():
                values[slot] = np.nan

    def observe(
        self, observation: Observation, command: np.ndarray, active: np.ndarray | None = None
    ) -> Surprise:
        """One control step: what is seen now, and what is about to be sent.

        Args:
            observation: images of any size (resized to the model's).
            command: ``[B, A]``, in the world's own units.
            active: bool ``[B]``, the slots where an episode goes on; default: all.

        Raises:
            ValueError: cameras, joints or commands are not those of the model; another number of
                slots than at `reset`.
        """
        count = len(self._seeds)
        active = np.ones(count, bool) if active is None else np.asarray(active, bool)
        self._remember(observation, np.asarray(command, np.float32), active)
        now = self._steps - 1 - self.delay
        due = np.flatnonzero(active & (now >= 0) & (now % self.every == 0))
        if len(due):
            self._judge(due, self.compare(due))
        return Surprise(
            score=self._score.copy(),
            alarm=self._score > (self.calibration.threshold if self.calibration else np.inf),
            compared=np.isin(np.arange(count), due),
            features={name: values.copy() for name, values in self._features.items()},
            cause=list(self._cause),
        )

    def calibrate(self, episodes: Sequence[Features], false_alarm_rate: float) -> Calibration:
        """`calibrate`, for the features of this monitor, which judges by it from now on."""
        c = self.config
        self.calibration = calibrate(
            episodes, false_alarm_rate, floors=self.floors, need=c.need, of=c.of,
            settings=self.settings,
        )  # fmt: skip
        self.reset(self._seeds)
        return self.calibration

    def compare(self, due: np.ndarray) -> dict[str, np.ndarray]:
        """Features ``[len(due)]`` of these slots now."""
        raise NotImplementedError

    def _floors(self) -> dict[str, float]:
        """The features, each with the smallest spread that counts."""
        raise NotImplementedError

    def _judge(self, due: np.ndarray, features: dict[str, np.ndarray]) -> None:
        for name, values in features.items():
            self._features[name][due] = values
        if (calibration := self.calibration) is None:
            return
        table = calibration.standardised(features)
        names = list(calibration.centre)
        for slot, column in zip(due, table.T, strict=True):
            recent = [*self._recent[slot], float(column.max())][-calibration.of :]
            self._recent[slot] = recent
            self._score[slot] = smoothed(np.array(recent), calibration.need, calibration.of)[-1]
            self._cause[slot] = names[int(column.argmax())]

    def _remember(self, observation: Observation, command: np.ndarray, active: np.ndarray) -> None:
        spec, count = self.spec, len(self._seeds)
        expected = {"state": (count, spec.state_dim), "command": (count, spec.action_dim)}
        for name, value in (("state", observation.state), ("command", command)):
            known = name == "command" or spec.state_dim
            if known and np.shape(value) != expected[name]:
                raise ValueError(
                    f"{name} is {list(np.shape(value))}; this monitor takes {expected[name]}: "
                    f"{count} slots (reset says how many)"
                )
        if missing := set(spec.cameras) - set(observation.images):
            raise ValueError(
                f"no picture of {sorted(missing)}; found {sorted(observation.images)}, and the "
                f"model sees {list(spec.cameras)}"
            )
        slots = np.flatnonzero(active)
        frames = {}
        for camera in spec.cameras if len(slots) else ():
            pictures = torch.from_numpy(np.ascontiguousarray(observation.images[camera][slots]))
            frames[camera] = resize_frames(pictures.movedim(-1, -3), spec.image_size)
        for row, slot in enumerate(slots):
            moment = _Moment(
                {c: v[row] for c, v in frames.items()},
                np.array(observation.state[slot], np.float32),
                command[slot].copy(),
                self._task(observation.task[slot] if observation.task else ""),
            )
            self._past[slot].append(moment)
            del self._past[slot][: -self._kept]
            self._steps[slot] += 1

    def _task(self, text: str) -> int:
        known = self.spec.tasks
        if not text or not known:
            return 0 if len(known) == 1 else -1
        if text not in known:
            near = difflib.get_close_matches(text, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown task {text!r}.{hint} The world model knows {list(known)}")
        return known.index(text)

    def _require_own(self, calibration: Calibration) -> None:
        _require_features(calibration.centre, self.floors)
        for name, value in self.settings.items():
            if (found := calibration.settings.get(name)) != value:
                raise ValueError(
                    f"the calibration was made with {name}={found}, this monitor has {name}="
                    f"{value}: calibrate it anew, or configure it alike"
                )

    def difference(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean squared difference ``[B, rows, columns]`` of pictures ``[B, C, H, W]`` by cells."""
        squares = ((a - b) ** 2).mean(1, keepdim=True)
        height, width = (math.ceil(n / self.config.cells) for n in squares.shape[-2:])
        return F.avg_pool2d(squares, (height, width), ceil_mode=True)[:, 0]

    def worst(self, cells: Tensor, where: Tensor | None = None) -> np.ndarray:
        """``[B]``: root mean of the largest `cells` ``[B, rows, columns]``, or of those that are
        largest in `where`."""
        flat, order = cells.flatten(1), (cells if where is None else where).flatten(1)
        chosen = order.topk(min(self.config.worst, order.shape[1])).indices
        return flat.gather(1, chosen).mean(1).sqrt().double().numpy()


class SurpriseMonitor(Monitor):
    """Compares what a world model imagined with what came.

    A slot's surprise depends on its own past and seed alone, not on what runs beside it (but for
    the rounding of batched products). Before the first frame there is only the first frame.

    Args:
        world: the world model; where it was trained without ``objective.any_frame``, `delay` is one
            of the frames on its grid.
        config: see `MonitorConfig`.
        calibration: of a monitor like this one; None: see `Monitor.calibrate`.

    Raises:
        ValueError: the model imagines nothing, or nothing at this delay; or as `Monitor`.
    """

    def __init__(
        self,
        world: Checkpoint,
        config: MonitorConfig | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        horizon = world.model.horizon
        if not horizon.future:
            raise ValueError("this model was trained without future frames (data.future=0)")
        if not world.spec.cameras and not world.spec.state_dim:
            raise ValueError("this model sees neither cameras nor joints: nothing can surprise it")
        c = config or MonitorConfig()
        known = [f for f in horizon.grid if f <= horizon.chunk]
        if world.objective.any_frame:
            known = list(range(1, min(horizon.reach, horizon.chunk) + 1))
        if not known:
            raise ValueError(
                f"the first frame that this model imagines is {horizon.grid[0]} steps on, but it "
                f"is given {horizon.chunk} actions (data.chunk)"
            )
        first = min(known[-1], DELAY) if world.objective.any_frame else known[0]
        delay = first if c.delay is None else c.delay
        if delay not in known:
            more = "" if world.objective.any_frame else " (objective.any_frame=0)"
            raise ValueError(f"delay={delay}: this model knows frames {known} steps on{more}")
        # Without any_frame it has learnt to answer for whole grids, not for single frames.
        asked = (delay,) if world.objective.any_frame else tuple(f for f in known if f <= delay)
        self.world, self.horizon = world, horizon
        self.question = pattern("forward", horizon, offsets=asked)
        reach = (horizon.past - 1) * horizon.past_stride
        super().__init__(world.spec, c, delay, reach, calibration)

    def _floors(self) -> dict[str, float]:
        floors = {"video": GREY_LEVELS, "odd": GREY_LEVELS / STILL, "still": GREY_LEVELS}
        pictures = {f"{what}/{c}": v for what, v in floors.items() for c in self.spec.cameras}
        return pictures | _joint_floors(self.spec)

    @torch.no_grad()
    def compare(self, due: np.ndarray) -> dict[str, np.ndarray]:
        """See `Monitor.compare`; asks the model once for all of them."""
        spec, horizon = self.spec, self.horizon
        starts, commands = [], []
        for slot in due:
            past = self._past[slot]
            begin = len(past) - 1 - self.delay
            back = [max(0, begin - j * horizon.past_stride) for j in range(horizon.past)]
            starts.append([past[i] for i in reversed(back)])
            sent = [m.command for m in past[begin:-1]]
            commands.append(np.stack(sent + sent[-1:] * (horizon.chunk - len(sent))))
        video = {
            c: torch.stack([torch.stack([m.frames[c] for m in row]) for row in starts])
            for c in spec.cameras
        }
        state = torch.from_numpy(np.stack([np.stack([m.state for m in row]) for row in starts]))
        action = until_last_frame(torch.from_numpy(np.stack(commands)), self.question)
        with one_thread(len(due) <= FEW_ROWS):
            found = ask(
                self.world, self.question, video, state if spec.state_dim else None,
                {"action": action}, torch.tensor([row[-1].task for row in starts]),
                self.config.steps,
                [(self._seeds[s], "surprise", int(self._steps[s])) for s in due],
            )  # fmt: skip
        features = {}
        for camera in spec.cameras:
            imagined = found.video[camera][:, -1].cpu().float()
            real = torch.stack([self._past[s][-1].frames[camera] for s in due]).float()
            before = video[camera][:, -1].float()
            error, meant = self.difference(imagined, real), self.difference(imagined, before)
            # What moves is imagined less exactly, and a little beside where it comes to be.
            nearby = F.max_pool2d(meant, 2 * NEARBY + 1, stride=1, padding=NEARBY)
            came = self.difference(real, before)
            features[f"video/{camera}"] = self.worst(error)
            features[f"odd/{camera}"] = self.worst(error / (STILL**2 + nearby))
            features[f"still/{camera}"] = self.worst(meant) - self.worst(came, where=meant)
        if found.state is not None:
            measured = np.stack([self._past[s][-1].state for s in due])
            off = np.abs(found.state[:, -1].cpu().numpy() - measured).astype(np.float64)
            features |= {f"state/{n}": off[:, i] for i, n in enumerate(spec.state_names)}
        return features


class PlainMonitor(Monitor):
    """The floor: how much pictures change, and how far joints are from where they were sent.

    Features: ``jump/CAMERA``, the change since `delay` steps ago in the cells that changed most;
    ``still/CAMERA``, the same with its sign turned, since too little is suspicious too;
    ``track/JOINT``, the distance of a joint from the command that was to bring it here, for
    absolute actions.

    Args:
        spec: of the robot.
        config: see `MonitorConfig`; `delay` None is 4, and `steps` means nothing.
        calibration: of a monitor like this one; None: see `Monitor.calibrate`.

    Raises:
        ValueError: as `Monitor`; or there is nothing to compare.
    """

    def __init__(
        self,
        spec: Spec,
        config: MonitorConfig | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        c = config or MonitorConfig()
        delay = DELAY if c.delay is None else c.delay
        absolute = spec.action_kind == "absolute"
        self.targets = {
            spec.state_names[s]: (a, s)
            for a, s in enumerate(spec.action_targets if absolute else ())
            if s >= 0
        }
        if not spec.cameras and not self.targets:
            raise ValueError("no cameras, and no joint whose target is commanded: nothing to watch")
        super().__init__(spec, c, delay, 0, calibration)

    def _floors(self) -> dict[str, float]:
        joints = _joint_floors(self.spec)
        jumps = {f"jump/{c}": GREY_LEVELS for c in self.spec.cameras}
        stills = {f"still/{c}": GREY_LEVELS for c in self.spec.cameras}
        return jumps | stills | {f"track/{n}": joints[f"state/{n}"] for n in self.targets}

    def compare(self, due: np.ndarray) -> dict[str, np.ndarray]:
        """See `Monitor.compare`."""
        features: dict[str, np.ndarray] = {}
        for camera in self.spec.cameras:
            real, before = (
                torch.stack([self._past[s][i].frames[camera] for s in due]).float()
                for i in (-1, -1 - self.delay)
            )
            change = self.worst(self.difference(real, before))
            features |= {f"jump/{camera}": change, f"still/{camera}": -change}
        for name, (a, s) in self.targets.items():
            pairs = [
                (self._past[slot][-2].command[a], self._past[slot][-1].state[s]) for slot in due
            ]
            features[f"track/{name}"] = np.abs(np.subtract(*np.array(pairs, np.float64).T))
        return features


def _joint_floors(spec: Spec) -> dict[str, float]:
    stats = spec.stats.get("state")
    if not stats:
        return {f"state/{n}": RANGE_SHARE for n in spec.state_names}
    ranges = zip(spec.state_names, stats["min"], stats["max"], strict=True)
    return {f"state/{n}": max(RANGE_SHARE * (high - low), 1e-6) for n, low, high in ranges}


def features_of(
    monitor: Monitor, episode: Iterable[tuple[Observation, np.ndarray]], seed: int = 0
) -> dict[str, np.ndarray]:
    """Features of one recorded episode, for `Monitor.calibrate`.

    Args:
        monitor: is reset.
        episode: what was seen at each step, and the command that was sent then, of one slot.
        seed: of the episode.
    """
    monitor.reset([seed])
    seen = [monitor.observe(observation, command) for observation, command in episode]
    kept = [s.features for s in seen if s.compared[0]]
    return {name: np.array([f[name][0] for f in kept]) for name in monitor.floors}
