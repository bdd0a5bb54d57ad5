"""The evaluation script on the real task, with the expert in the policy's place."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import envs
from policies.evaluation import episode_seeds, evaluate
from policies.smoothness import MotionLimits
from policies.types import Decision
from scripts.evaluate import (
    EvaluateConfig,
    ExpertPolicy,
    LimitsConfig,
    environment_options,
    environment_spec,
    motion_limits,
    run_evaluation,
    world_of,
)
from worldmodel.types import Spec, SpecMismatchError


class HomeSick:
    """Commands zeros; carries a checkpoint's facts."""

    name = "zeros"

    def __init__(self, state_names):
        source: dict[str, Any] = {
            "env": "selfflow/ReachAround-v0", "options": {"target": "hard"},
            "image_size": [40, 40], "action_kind": "absolute",
        }  # fmt: skip
        self.stamp = {"environment": source}
        self.spec = Spec(("front",), (32, 32), state_names, state_names, 20.0)

    def reset(self, seeds):
        self.size = len(seeds)

    def reset_slots(self, slots, seeds):
        pass

    def act(self, observation, active):
        assert observation.images["front"].shape[1:] == (40, 40, 3)
        return Decision(np.zeros((self.size, 8), np.float32), active)


@pytest.fixture
def names():
    env = envs.make("reach_around", cameras=())
    yield tuple(environment_spec(env).state_names)
    env.close()


def test_run_evaluation_writes_a_report(tmp_path, names):
    config = EvaluateConfig(
        checkpoint="", episodes=2, num_envs=2, latency_episodes=1, videos=1, video_size=48,
        out=str(tmp_path / "first"),
    )  # fmt: skip
    report = run_evaluation(config, HomeSick(names))
    assert report == json.loads((tmp_path / "first" / "report.json").read_text())
    assert report["success"]["k"] == 0
    assert report["expert"]["k"] == 2
    assert report["environment"]["options"] == {
        "cameras": ["front"], "image_size": [40, 40], "target": "hard",
    }  # fmt: skip
    assert report["single_slot"] == {"n": 1, "same_outcome": 1}
    assert report["stamp"]["seeds"]["purpose"] == "reported"
    config.out, config.compare = str(tmp_path / "second"), [str(tmp_path / "first")]
    config.floors = config.expert = False
    config.videos = 0
    again = run_evaluation(config, HomeSick(names))
    assert again["comparisons"][str(tmp_path / "first")]["difference"] == 0
    assert again["episodes"] == report["episodes"]


def test_a_policy_for_another_robot_is_refused_by_name(tmp_path, names):
    config = EvaluateConfig(checkpoint="", episodes=1, out=str(tmp_path))
    with pytest.raises(SpecMismatchError, match=r"environment reach_around.*state_names"):
        run_evaluation(config, HomeSick((*names[:-1], "thumb.pos")))


def test_options_given_win_over_those_of_the_checkpoint(names):
    policy = HomeSick(names)
    mine = EvaluateConfig(env="reach_around", options={"target": "easy"})
    assert environment_options(mine, policy)["target"] == "easy"
    elsewhere = EvaluateConfig(env="reach")
    assert environment_options(elsewhere, policy) == {
        "cameras": ["front"],
        "image_size": [32, 32],
    }


@pytest.mark.parametrize("options", ["target:hard", ["target"]])
def test_options_that_are_no_mapping_are_named(names, options):
    config = EvaluateConfig(env="reach", options=options)
    with pytest.raises(ValueError, match="options is .*expected a mapping, in quotes"):
        environment_options(config, HomeSick(names))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("reach_arund", "reach_around"), ("imagned:x", "imagined:FOLDER"), ("imagined", "imagined:")],
)
def test_a_misspelt_environment_is_guessed(tmp_path, names, name, meant):
    config = EvaluateConfig(checkpoint="", env=name, out=str(tmp_path))
    with pytest.raises(ValueError, match=f"Did you mean '{meant}"):
        run_evaluation(config, HomeSick(names))


def test_options_of_older_checkpoints_are_read_too(names):
    policy = HomeSick(names)
    config = EvaluateConfig(env="reach_around")
    now = environment_options(config, policy)
    world = policy.stamp["environment"]
    world["target"] = world.pop("options")["target"]
    assert environment_options(config, policy) == now
    world["target"] = None
    assert "target" not in environment_options(config, policy)


def test_limits_are_those_of_their_robot():
    env = envs.make("reach", cameras=())
    world = world_of(env)
    seven = [1.0] * 7
    limits = LimitsConfig(world.robot_type, seven, seven, seven)
    assert motion_limits(EvaluateConfig(limits=limits), world) == MotionLimits(seven, seven, seven)
    assert motion_limits(EvaluateConfig(limits=replace(limits, robot="")), world) is not None
    assert motion_limits(EvaluateConfig(limits=replace(limits, robot="sawyer")), world) is None
    assert motion_limits(EvaluateConfig(limits=None), world) is None


def test_the_expert_solves_its_task_in_any_number_of_slots():
    slots = [envs.make("reach_around", cameras=()) for _ in range(3)]
    seeds = episode_seeds(6, purpose="sweep")
    many = evaluate(ExpertPolicy("reach_around", slots), slots, seeds)
    one = evaluate(ExpertPolicy("reach_around", slots[:1]), slots[:1], seeds)
    assert many.success.k == 6
    for a, b in zip(many.episodes, one.episodes, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    for env in slots:
        env.close()
