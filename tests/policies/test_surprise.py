"""Faults in a small world: found by what knows the world, with honest false alarms beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

import envs
from envs.faults import inject
from envs.reach import Reach
from policies.evaluation import Episode
from policies.judge.report import completed
from policies.judge.surprise import Make, Watch, Watched, judge, run_surprise, watch
from policies.judge.targets import estimate
from policies.monitor import Calibration, PlainMonitor, SurpriseMonitor
from policies.types import Decision, Observation
from tests.policies.test_monitor import FAULTS, HORIZON, SPEC, commands, oracle, spot_world
from tests.worldmodel.models import make_checkpoint, make_model
from worldmodel.selfflow import ObjectiveConfig


class Rounds:
    """Sends the spot round and round; where it begins follows from the seed."""

    name = "rounds"

    def reset(self, seeds):
        self.plans, self.steps = [commands(s) for s in seeds], [0] * len(seeds)

    def reset_slots(self, slots, seeds):
        for slot, seed in zip(slots, seeds, strict=True):
            self.plans[slot], self.steps[slot] = commands(seed), 0

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        action = np.full((len(active), 2), np.nan, np.float32)
        for slot in np.flatnonzero(active):
            action[slot] = self.plans[slot][self.steps[slot]]
            self.steps[slot] += 1
        return Decision(action, active.copy())


CALIBRATION, TEST = range(27), range(1000, 1008)


def begins(seed: int) -> int:
    return 12 + seed % 5


def world_with(fault: str) -> Make:
    return lambda seed: spot_world(fault, begins(seed))


@pytest.fixture(scope="module")
def part():
    """The report of the oracle in the small world."""
    return run_surprise(
        Rounds(),
        oracle(),
        lambda seed: spot_world(),
        {f: world_with(f) for f in FAULTS},
        seeds_calibration=CALIBRATION,
        seeds_test=TEST,
        at_step=begins,
        num_envs=9,
    )


def test_an_oracle_finds_every_fault_soon(part):
    assert set(part["faults"]) == set(FAULTS)
    for found in part["faults"].values():
        assert found["auroc"] == 1
        assert found["low"] > 0.6
        assert found["detected"]["k"] == found["detected"]["n"] == len(TEST) - found["early"]
        assert 0.1 <= found["delay_s"] <= 0.8
        assert (found["positives"], found["negatives"]) == (len(TEST), len(TEST))
        assert (found["fpr"][0], found["tpr"][0]) == (0, 0)
        assert (found["fpr"][-1], found["tpr"][-1]) == (1, 1)
    assert part["auroc"] > 0.95
    assert part["n"] == len(TEST) * len(FAULTS)
    assert part["episodes"] == len(TEST)


def test_false_alarms_are_counted_beside_what_was_chosen(part):
    rate = part["false_alarm_rate"]
    assert rate["chosen"] == 0.05
    assert rate["n"] == len(TEST)
    assert rate["low"] <= rate["rate"] <= rate["high"]
    assert rate["low"] <= 0.05


def test_the_floor_misses_what_only_a_picture_of_the_future_shows(part):
    floor = part["baseline"]["faults"]
    assert floor["object_removed"]["auroc"] < 0.8
    assert floor["action_delayed"]["auroc"] > 0.9
    assert part["baseline"]["auroc"] < part["auroc"]


def test_the_part_fits_into_a_report_and_its_calibration_into_a_monitor(part):
    whole = completed({"surprise": part})
    assert estimate(whole["surprise"], "auroc").bounded
    back = Calibration.from_dict(whole["surprise"]["calibration"])
    assert SurpriseMonitor(oracle(), calibration=back).calibration == back
    assert whole["surprise"]["ms_per_comparison"]["p50"] > 0


def test_episodes_do_not_depend_on_how_many_run_beside_them():
    monitors = {"model": SurpriseMonitor(oracle()), "floor": PlainMonitor(SPEC)}
    seeds = [5, 6, 7]
    runs = [
        watch(Rounds(), monitors, lambda seed: spot_world("arm_pushed", 15), seeds, num_envs=n)
        for n in (1, 2)
    ]
    assert [e.seed for e in runs[0].episodes] == seeds
    for name in monitors:
        for seed in seeds:
            one, two = (run.seen[name][seed] for run in runs)
            np.testing.assert_array_equal(one.at, np.arange(4, 40, 2))
            np.testing.assert_array_equal(one.at, two.at)
            for feature in one.features:
                np.testing.assert_allclose(one.features[feature], two.features[feature], atol=1e-5)


# --- judging, on scores that are known -----------------------------------------------------------

FPS = 10.0


def scored(episodes: dict[int, list[float]], steps: dict[int, int] | None = None) -> Watch:
    """Episodes compared at every step, with one feature "a"."""
    nothing = np.zeros((1, 1))
    made = [
        Episode(s, False, False, None, "", np.zeros((n, 1)), nothing, nothing, None, math.nan)
        for s, n in (steps or {s: len(v) for s, v in episodes.items()}).items()
    ]
    seen = {s: Watched(np.arange(len(v)), {"a": np.array(v)}) for s, v in episodes.items()}
    return Watch(made, {"model": seen}, FPS, {"model": []})


CALM = Calibration({"a": 0.0}, {"a": 1.0}, 5.0, 0.05, 19, 8, 1, 1)


def judged(nominal: Watch, faulty: Watch, start: int, window: int = 100) -> dict:
    starts = {e.seed: start for e in nominal.episodes}
    alike = {e.seed for e in nominal.episodes if e.seed != 4}
    return judge("model", CALM, nominal, {"f": faulty}, starts, window, alike=alike)


def test_a_fault_counts_from_its_beginning_to_the_end_of_the_shorter_episode():
    nominal = scored({1: [0.0] * 10, 2: [0.0] * 9 + [1.0]})
    # High until the step in which the fault begins, and after the other episode has ended.
    faulty = scored({1: [4.0] * 4 + [0.0] * 6 + [9.0] * 5, 2: [0.0] * 10})
    found = judged(nominal, faulty, start=3)["faults"]["f"]
    assert found["auroc"] == pytest.approx(0.25)  # 0, 0 against 0, 1
    assert found["detected"]["k"] == 0
    assert math.isnan(found["delay_s"])
    late = scored({1: [0.0] * 6 + [9.0] * 4, 2: [0.0] * 10})
    assert judged(nominal, late, start=3, window=2)["faults"]["f"]["detected"]["k"] == 0
    assert judged(nominal, late, start=3, window=3)["faults"]["f"]["detected"]["k"] == 1


def test_delays_are_seconds_from_the_fault_and_early_alarms_stand_apart():
    nominal = scored({s: [0.0] * 10 for s in (1, 2, 3, 4)})
    faulty = scored(
        {
            1: [0.0] * 4 + [9.0] * 6,
            2: [0.0] * 6 + [9.0] * 4,
            3: [0.0] * 10,
            4: [0.0, 9.0] + [9.0] * 8,
        }
    )
    found = judged(nominal, faulty, start=3)["faults"]["f"]
    assert found["detected"]["k"] == 2
    assert found["detected"]["n"] == 3
    assert found["early"] == 1
    assert found["delay_s"] == pytest.approx(0.2)  # of 0.1 and 0.3
    assert found["causes"] == {"a": 2}


def test_episodes_that_end_before_the_fault_say_nothing():
    nominal, faulty = scored({1: [0.0] * 5, 2: [0.0] * 20}), scored({1: [0.0] * 5, 2: [9.0] * 20})
    found = judged(nominal, faulty, start=10)
    assert found["faults"]["f"]["positives"] == 1
    assert found["episodes"] == 1
    assert "none of 2 episodes" in judged(nominal, faulty, start=30)["faults"]["f"]["not_run"]


def test_false_alarms_are_those_of_whole_undisturbed_episodes():
    nominal = scored({1: [9.0] + [0.0] * 9, 2: [0.0] * 10, 3: [0.0] * 10})
    found = judged(nominal, nominal, start=3)
    assert found["false_alarm_rate"]["k"] == 1
    assert found["false_alarm_rate"]["n"] == 3
    assert found["faults"]["f"]["false_alarms"]["k"] == 0
    assert found["auroc"] == 0.5


def test_what_cannot_be_judged_is_refused_before_any_episode():
    def run(faults: tuple[str, ...], calibration: Sequence[int]) -> None:
        run_surprise(
            Rounds(), oracle(), lambda seed: spot_world(), {f: world_with(f) for f in faults},
            seeds_calibration=calibration, seeds_test=[26, 27], at_step=begins,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"1 seeds are in both .* such as \[26\]"):
        run(("arm_pushed",), range(27))
    with pytest.raises(ValueError, match="at least one fault"):
        run((), [1])
    with pytest.raises(ValueError, match="takes 27 undisturbed episodes, found 2,"):
        run(("arm_pushed",), [1, 2])


def test_faults_of_the_real_worlds_are_watched_with_an_expert():
    class Expert:
        name = "expert"

        def __init__(self, slots):
            self.slots = slots

        def reset(self, seeds):
            self.experts = [
                envs.make_expert("reach", w, seed=s) for w, s in zip(self.slots, seeds, strict=True)
            ]
            for expert in self.experts:
                expert.reset()

        def reset_slots(self, slots, seeds):
            raise AssertionError("every episode has a world of its own")

        def act(self, observation, active):
            return Decision(np.stack([e.act() for e in self.experts]), active.copy())

    spec = dataclasses.replace(
        SPEC,
        image_size=(16, 16),
        state_names=(names := Reach.state_names),
        action_names=names,
        action_targets=tuple(range(len(names))),
        stats={k: {n: v[:1] * len(names) for n, v in t.items()} for k, t in SPEC.stats.items()},
    )
    world = make_checkpoint(make_model(spec, HORIZON), ObjectiveConfig(any_frame=0.5))

    def make(seed):
        return envs.make("reach", image_size=16, cameras=("front",), max_episode_steps=14)

    part = run_surprise(
        Expert, world, make,
        {"camera_frozen": lambda seed: inject(make(seed), "camera_frozen", 6, seed)},
        seeds_calibration=range(10), seeds_test=range(100, 103), at_step=6, false_alarm_rate=0.4,
        num_envs=3,
    )  # fmt: skip
    found = part["baseline"]["faults"]["camera_frozen"]
    assert found["positives"] == found["negatives"] == 3
    assert part["calibration"]["fitted"] == 8
