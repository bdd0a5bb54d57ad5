"""A monitor is calm where the world does as imagined, and says what is wrong where it does not.

The world is a soft spot that follows position commands, beside a square that stays where it is; the
world model is an oracle that knows how the spot moves and believes the rest of the picture.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.monitor import (
    Calibration,
    Monitor,
    MonitorConfig,
    PlainMonitor,
    SurpriseMonitor,
    calibrate,
    episodes_needed,
    features_of,
    smoothed,
)
from policies.types import Observation
from tests.worldmodel.models import SPECS, make_checkpoint, make_model, make_spec
from worldmodel.checkpoint import Checkpoint
from worldmodel.model import Patches, Prediction
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon, Pattern

SIZE = 24
FOLLOWS = 0.5  # share of the way to its command that the spot goes in a step
SPOT, SQUARE = 150, 40  # their grey levels
HORIZON = Horizon(past=1, past_stride=1, future=2, future_stride=4, chunk=8)
SPEC = dataclasses.replace(
    make_spec(state_dim=2),
    image_size=(SIZE, SIZE),
    action_names=("x", "y"),
    fps=10,
    tasks=(),
    action_kind="absolute",
    action_targets=(0, 1),
)
FAULTS = {
    "camera_frozen": ("still/front", "video/front"),
    "camera_shifted": ("video/front", "odd/front"),
    "arm_pushed": ("state/x", "state/y", "video/front"),
    "action_delayed": ("state/x", "state/y", "video/front"),
    "object_removed": ("video/front", "odd/front"),
}
"""Fault -> the features that may give it away."""


def spot(position: np.ndarray) -> np.ndarray:
    """``[..., H, W]`` in [0, 1]: the spot at positions ``[..., 2]`` in [-1, 1]."""
    along = np.linspace(-1.2, 1.2, SIZE)
    x, y = (np.exp(-((along - position[..., i, None]) ** 2) / 0.03) for i in (0, 1))
    return y[..., :, None] * x[..., None, :]


class SpotWorld(gym.Env):
    """Succeeds never; slips a little, so that nothing can be foreseen exactly."""

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 10}  # noqa: RUF012

    def __init__(self, fault: str = "", at_step: int = 0, slip: float = 0.002) -> None:
        self.fault, self.at_step, self.slip = fault, at_step, slip
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Dict(
            {"agent_pos": gym.spaces.Box(-2.0, 2.0, (2,), np.float32)}
        )
        self.spec = EnvSpec("Spot-v0", max_episode_steps=40)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.5, 0.5, 2)
        self.square = self.np_random.integers(2, SIZE - 6, 2)
        self.steps, self.sent = 0, [self.position] * 4
        self.picture = self._draw()
        return self._see()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        wrong = self.fault if self.steps >= self.at_step else ""
        self.sent = [*self.sent[1:], np.asarray(action, np.float64)]
        target = self.sent[0] if wrong == "action_delayed" else self.sent[-1]
        self.position = self.position + FOLLOWS * (target - self.position)
        self.position = self.position + self.np_random.normal(0, self.slip, 2)
        if wrong == "arm_pushed" and self.steps < self.at_step + 3:
            self.position = self.position + 0.2
        if wrong != "camera_frozen":
            self.picture = self._draw(square=wrong != "object_removed")
        if wrong == "camera_shifted":
            self.picture = np.roll(self.picture, 3, axis=1)
        self.steps += 1
        observation, info = self._see()
        return observation, 0.0, False, False, info

    def _draw(self, square: bool = True) -> np.ndarray:
        picture = SPOT * spot(self.position)
        row, column = self.square
        if square:
            picture[row : row + 4, column : column + 4] += SQUARE
        return picture.round().astype(np.uint8)[..., None].repeat(3, -1)

    def _see(self) -> tuple[dict[str, Any], dict[str, Any]]:
        observation = {
            "pixels": {"front": self.picture.copy()},
            "agent_pos": self.position.astype(np.float32),
        }
        return observation, {"is_success": False}


def spot_world(fault: str = "", at_step: int = 0, **options: Any) -> gym.Env:
    return TimeLimit(SpotWorld(fault, at_step, **options), 40)


class Oracle(Checkpoint):
    """A world model that knows how the spot moves, and that the rest of a picture stays."""

    def answer(self, asked: Pattern, given: Patches, *_: Any, **__: Any) -> Prediction:
        values = {n: self.inputs.denormalize(n, v).numpy() for n, v in given.items()}
        before = values["state"][:, -1]
        position, path = before.astype(np.float64), []
        for action in values["action"].swapaxes(0, 1):
            position = position + FOLLOWS * (action - position)
            path.append(position)
        after = np.stack([path[offset - 1] for offset in asked.offsets], 1)
        change = SPOT * (spot(after) - spot(before[:, None]))
        frames = values["video/front"][:, -1:].astype(np.float64) + change[:, :, None]
        video = torch.from_numpy(frames.round().clip(0, 255).astype(np.uint8))
        state = torch.from_numpy(after.astype(np.float32))
        data = {
            "video/front": self.inputs.normalize("video/front", video),
            "state": self.inputs.normalize("state", state),
        }
        return Prediction({}, data, {}, {})


def oracle(any_frame: float = 0.5) -> Oracle:
    base = make_checkpoint(make_model(SPEC, HORIZON), ObjectiveConfig(any_frame=any_frame))
    return Oracle(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)})


def commands(seed: int, steps: int = 40) -> np.ndarray:
    """``[T, 2]``: round and round, now faster, now slower."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    angle = phase + np.cumsum(0.35 + 0.2 * np.sin(phase + 0.5 * np.arange(steps)))
    return np.stack([0.7 * np.cos(angle), 0.7 * np.sin(angle)], 1).astype(np.float32)


def episode(
    seed: int, fault: str = "", at_step: int = 16, **options: Any
) -> list[tuple[Observation, np.ndarray]]:
    """What was seen and sent at each step of an episode, of one slot."""
    world = SpotWorld(fault, at_step, **options)
    seen, _ = world.reset(seed=seed)
    rows = []
    for command in commands(seed):
        images = {c: v[None] for c, v in seen["pixels"].items()}
        rows.append((Observation(images, seen["agent_pos"][None]), command[None]))
        seen, *_ = world.step(command)
    return rows


def beside(*episodes: list[tuple[Observation, np.ndarray]]) -> list[tuple[Observation, np.ndarray]]:
    """Equally long episodes as slots."""
    rows = []
    for steps in zip(*episodes, strict=True):
        images = {c: np.concatenate([o.images[c] for o, _ in steps]) for c in steps[0][0].images}
        state = np.concatenate([o.state for o, _ in steps])
        rows.append((Observation(images, state), np.concatenate([a for _, a in steps])))
    return rows


def measured(monitor: Monitor, rows: list[tuple[Observation, np.ndarray]], seeds: range):
    """Features of the episodes of some slots."""
    monitor.reset(seeds)
    found = [f.features for o, a in rows if (f := monitor.observe(o, a)).compared.all()]
    return [
        {name: np.array([f[name][slot] for f in found]) for name in monitor.floors}
        for slot in range(len(seeds))
    ]


def calibrated[M: Monitor](monitor: M) -> M:
    """Calibrated on 30 episodes to one false alarm in 20."""
    seeds = range(30)
    monitor.calibrate(measured(monitor, beside(*map(episode, seeds)), seeds), 0.05)
    return monitor


@pytest.fixture(scope="module")
def watchful() -> Monitor:
    """A monitor with the oracle, calibrated; every test resets it."""
    return calibrated(SurpriseMonitor(oracle()))


# --- what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize("any_frame", [0.0, 0.5])
def test_nothing_surprises_where_all_comes_as_imagined(any_frame):
    monitor = SurpriseMonitor(oracle(any_frame))
    found = features_of(monitor, episode(1, slip=0.0))
    assert len(found["video/front"]) == 18  # observations 4, 6, ..., 38
    assert found["video/front"].max() < 1  # grey levels: what rounding leaves
    assert found["still/front"].max() < 1
    assert max(found["state/x"].max(), found["state/y"].max()) < 1e-5


@pytest.mark.parametrize("delay", [1, 3, 8])
def test_the_commands_that_were_sent_in_between_are_those_imagined_under(delay):
    monitor = SurpriseMonitor(oracle(), MonitorConfig(delay=delay, every=1))
    found = features_of(monitor, episode(2, slip=0.0))
    assert len(found["state/x"]) == 40 - delay
    assert found["state/x"].max() < 1e-5


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_raises_an_alarm_for_the_right_reason(fault, watchful):
    watchful.reset([100])
    alarms, causes = [], []
    for observation, command in episode(100, fault, at_step=16):
        found = watchful.observe(observation, command)
        alarms.append(bool(found.alarm[0]))
        causes.append(found.cause[0])
    assert not any(alarms[:17])  # observation 17 is the first that shows it
    assert any(alarms[17:25])
    assert causes[alarms.index(True)] in FAULTS[fault]


def alarmed(monitor: Monitor, seeds: range, fault: str = "") -> int:
    """In how many episodes there is an alarm."""
    rows = beside(*(episode(s, fault) for s in seeds))
    monitor.reset(seeds)
    return int(np.any([monitor.observe(o, a).alarm for o, a in rows], axis=0).sum())


def test_undisturbed_episodes_seldom_raise_one(watchful):
    assert alarmed(watchful, range(200, 240)) <= 8  # 2 expected


def test_without_a_model_a_missing_object_goes_unnoticed_but_a_delay_does_not(watchful):
    floor, seeds = calibrated(PlainMonitor(SPEC)), range(100, 110)
    for fault, expected in (("action_delayed", 10), ("object_removed", 0)):
        assert alarmed(floor, seeds, fault) == pytest.approx(expected, abs=2)
        assert alarmed(watchful, seeds, fault) == 10


# --- slots and episodes --------------------------------------------------------------------------


def test_slots_do_not_share_anything():
    monitor = SurpriseMonitor(make_checkpoint(make_model(), ObjectiveConfig(any_frame=0.5)))
    generator = np.random.default_rng(0)
    rows = [
        (
            Observation(
                {"front": generator.integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)},
                generator.uniform(-1, 1, (3, 3)).astype(np.float32),
            ),
            generator.uniform(-1, 1, (3, 2)).astype(np.float32),
        )
        for _ in range(14)
    ]

    def run(slots: list[int]) -> np.ndarray:
        monitor.reset([7 + s for s in slots])
        found = [
            monitor.observe(
                Observation({c: v[slots] for c, v in o.images.items()}, o.state[slots]), a[slots]
            )
            for o, a in rows
        ]
        return np.stack([np.stack(list(f.features.values())) for f in found])

    together = run([0, 1, 2])
    assert np.isfinite(together[-1]).all()
    for slot in range(3):
        np.testing.assert_allclose(together[..., [slot]], run([slot]), atol=0.5, rtol=1e-3)


def test_a_new_episode_begins_where_another_left_off_without_a_trace(watchful):
    first, second = episode(300, "object_removed"), episode(301)
    watchful.reset([301])
    alone = [watchful.observe(o, a) for o, a in second[:20]]
    watchful.reset([300, 302])
    other = episode(302)
    for (o, a), (p, b) in zip(first[:25], other[:25], strict=True):
        before = watchful.observe(*beside([(o, a)], [(p, b)])[0])
    watchful.reset_slots([0], [301])
    after = []
    for step in range(15):
        after.append(watchful.observe(*beside([second[step]], [other[25 + step]])[0]))
    assert before.score[0] > -np.inf
    for a, b in zip(alone, after, strict=False):
        assert a.compared[0] == b.compared[0]
        assert a.alarm[0] == b.alarm[0]
        assert a.score[0] == pytest.approx(b.score[0], abs=1e-3)
        np.testing.assert_allclose(a.features["video/front"][0], b.features["video/front"][0])
    assert after[0].score[1] == before.score[1]  # the other slot went on


def test_slots_that_are_not_active_stand_still(watchful):
    watchful.reset([1, 2])
    rows = beside(episode(1), episode(2))
    for observation, command in rows[:20]:
        found = watchful.observe(observation, command, np.array([True, False]))
    assert np.isfinite(found.score[0])
    assert found.score[1] == -np.inf
    assert found.cause[1] == ""
    assert np.isnan(found.features["video/front"][1])


def test_scores_afterwards_are_those_of_the_run(watchful):
    rows = episode(400, "camera_shifted")
    watchful.reset([400])
    online = [f.score[0] for o, a in rows if (f := watchful.observe(o, a)).compared[0]]
    offline = watchful.calibration.scores(features_of(watchful, rows, 400))
    np.testing.assert_array_equal(online, offline)


def test_a_value_that_is_no_number_is_no_reason_to_be_calm(watchful):
    found = {name: np.array([v, np.nan, np.nan]) for name, v in watchful.calibration.centre.items()}
    assert watchful.calibration.scores(found)[-1] == np.inf


def test_what_the_model_does_not_know_is_refused_by_name(watchful):
    (observation, command), *_ = episode(1)
    watchful.reset([1])
    with pytest.raises(ValueError, match="no picture of \\['front'\\]; found \\['top'\\]"):
        watchful.observe(
            Observation({"top": observation.images["front"]}, observation.state), command
        )
    with pytest.raises(ValueError, match="state is \\[1, 3\\]"):
        watchful.observe(Observation(observation.images, np.zeros((1, 3), np.float32)), command)
    with pytest.raises(ValueError, match="command is \\[2, 2\\]"):
        watchful.observe(observation, np.zeros((2, 2)))
    known = SurpriseMonitor(make_checkpoint(make_model(), ObjectiveConfig(any_frame=0.5)))
    known.reset([1])
    seen = Observation({"front": np.zeros((1, 16, 24, 3), np.uint8)}, np.zeros((1, 3), np.float32))
    seen.task = ["reach the bal"]
    with pytest.raises(ValueError, match="Did you mean 'reach the ball'"):
        known.observe(seen, np.zeros((1, 2)))


def test_models_without_cameras_or_joints_are_watched_by_what_they_have():
    for name, expected in (("no camera", {"state"}), ("no state", {"video", "odd", "still"})):
        spec = SPECS[name]
        monitor = SurpriseMonitor(make_checkpoint(make_model(spec), ObjectiveConfig(any_frame=0.5)))
        assert {f.partition("/")[0] for f in monitor.floors} == expected
        monitor.reset([0])
        images = {c: np.zeros((1, 16, 24, 3), np.uint8) for c in spec.cameras}
        state = np.zeros((1, spec.state_dim), np.float32)
        for _ in range(7):
            found = monitor.observe(Observation(images, state), np.zeros((1, 2), np.float32))
        assert all(np.isfinite(v).all() for v in found.features.values())
        assert not found.alarm.any()  # nothing is judged uncalibrated


def test_delays_are_those_that_the_model_knows():
    assert SurpriseMonitor(oracle(0.5)).delay == 4
    grid = SurpriseMonitor(oracle(0.0))
    assert (grid.delay, grid.every, grid.question.offsets) == (4, 2, (4,))
    far = SurpriseMonitor(oracle(0.0), MonitorConfig(delay=8))
    assert far.question.offsets == (4, 8)  # it has learnt to answer for whole grids
    with pytest.raises(ValueError, match=r"delay=5: this model knows frames \[4, 8\]"):
        SurpriseMonitor(oracle(0.0), MonitorConfig(delay=5))
    with pytest.raises(ValueError, match="need is from 1 to of"):
        SurpriseMonitor(oracle(), MonitorConfig(need=4))
    blind = make_checkpoint(make_model(SPEC, Horizon(past=1, future=0, chunk=4)))
    with pytest.raises(ValueError, match="without future frames"):
        SurpriseMonitor(blind)


# --- calibration ---------------------------------------------------------------------------------


def made_up(seed: int, episodes: int) -> list[dict[str, np.ndarray]]:
    """Exchangeable episodes of any length, one feature with a long tail."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 30, episodes)
    return [
        {"a": generator.normal(size=n), "b": 5 + np.exp(2 * generator.normal(size=n))}
        for n in lengths
    ]


def test_false_alarms_are_at_most_as_many_as_chosen_on_average():
    floors, rates = {"a": 0.01, "b": 0.01}, {0.05: 27, 0.2: 20}
    for rate, episodes in rates.items():
        false = []
        for seed in range(60):
            rows = made_up(seed, episodes + 40)
            found = calibrate(rows[:episodes], rate, floors=floors)
            false.append(
                np.mean([found.scores(r).max() > found.threshold for r in rows[episodes:]])
            )
        allowed = np.floor((found.episodes + 1) * rate + 1e-9) / (found.episodes + 1)
        error = np.std(false) / np.sqrt(len(false))
        assert abs(np.mean(false) - allowed) < 4 * error
        assert allowed <= rate


@given(st.floats(0.005, 0.9))
@settings(max_examples=25)
def test_one_episode_less_than_needed_is_too_few(rate):
    needed = episodes_needed(rate)
    rows = made_up(0, needed)
    found = calibrate(rows, rate, floors={"a": 0.01, "b": 0.01})
    assert found.fitted + found.episodes == needed
    assert found.episodes + 1 >= 1 / rate - 1e-6
    with pytest.raises(
        ValueError, match=f"takes {needed} undisturbed episodes, found {needed - 1},"
    ):
        calibrate(rows[:-1], rate, floors={"a": 0.01, "b": 0.01})


def test_episodes_too_short_to_compare_cannot_calibrate():
    empty = [{"a": np.empty(0)}] * 30
    with pytest.raises(ValueError, match="long enough"):
        calibrate(empty, 0.05, floors={"a": 0.01})
    short = [{"a": np.zeros(1)}] * 30  # two comparisons are needed to raise an alarm
    with pytest.raises(ValueError, match="22 of 22 episodes are too short for 2 comparisons"):
        calibrate(short, 0.05, floors={"a": 0.01})
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibrate(empty, 0.0, floors={"a": 0.01})


def test_a_calibration_is_plain_json_and_comes_back(watchful):
    values = json.loads(json.dumps(watchful.calibration.to_dict(), allow_nan=False))
    back = Calibration.from_dict(values)
    assert back == watchful.calibration
    again = SurpriseMonitor(oracle(), calibration=back)
    again.reset([5])
    watchful.reset([5])
    for observation, command in episode(5, "arm_pushed"):
        expected, found = (m.observe(observation, command) for m in (watchful, again))
        assert (found.score == expected.score).all()
        assert found.cause == expected.cause
    with pytest.raises(ValueError, match=r"missing here: \['threshold'\], unknown: \['treshold'\]"):
        Calibration.from_dict({"treshold" if k == "threshold" else k: v for k, v in values.items()})


def test_a_calibration_of_another_monitor_is_refused(watchful):
    calibration = watchful.calibration
    with pytest.raises(ValueError, match="delay=4, this monitor has delay=2"):
        SurpriseMonitor(oracle(), MonitorConfig(delay=2, every=2), calibration)
    with pytest.raises(ValueError, match="not measured alike"):
        PlainMonitor(SPEC, calibration=calibration)


@given(st.lists(st.floats(-5, 5), max_size=8), st.integers(1, 4), st.integers(0, 3))
def test_an_alarm_takes_as_many_large_scores_as_are_needed(scores, need, more):
    of = need + more
    found = smoothed(np.array(scores), need, of)
    assert len(found) == len(scores)
    for i, value in enumerate(found):
        recent = scores[max(0, i + 1 - of) : i + 1]
        for threshold in (-1.0, 0.0, 2.0):
            assert (value > threshold) == (sum(s > threshold for s in recent) >= need)
