"""What every world offers, and how one is found: our own tasks, other people's suites."""

from __future__ import annotations

import importlib.util
import sys
import types
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs
from envs.world import World

MISSING = [s for s in envs.SUITES if importlib.util.find_spec(s.package) is None]


@pytest.mark.parametrize("name", envs.names())
def test_our_tasks_are_worlds(name: str) -> None:
    env = envs.make(name, cameras=())
    world: Any = env.unwrapped
    assert isinstance(env.unwrapped, World)
    for attribute in World.__annotations__:
        assert getattr(world, attribute) is not None
    assert world.has_expert
    assert world.make_expert(0) is not None
    assert world.metadata["render_fps"] > 0
    observation, info = world.reset(seed=0)
    assert set(info) == set(world.info_keys) >= set(World.info_keys)
    assert world.tip.shape == (3,)
    assert world.get_state().ndim == 1
    assert len(world.state_names) == len(observation["agent_pos"])
    np.testing.assert_array_equal(world.hold_action(observation["agent_pos"]), world.agent_pos)


class Pusher(World):
    """The least that a world can be."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    task_description = "Push."
    robot_type = "pusher"
    state_names = ("y.pos", "x.pos", "finger.pos")
    action_names = ("x.pos", "y.pos")
    camera_names = ("top",)

    def __init__(self, lag: float = 0.1, **options: Any):
        super().__init__(**options)
        self.lag = lag
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = self.observation_space_of(gym.spaces.Box(-2, 2, (3,), np.float32))


class Nudger(Pusher):
    action_kind = "delta"


def test_holding_still_follows_from_what_actions_mean() -> None:
    state = np.array([1.0, 2.0, 3.0], np.float32)
    np.testing.assert_array_equal(Pusher().hold_action(state), [2.0, 1.0])
    np.testing.assert_array_equal(Nudger().hold_action(state), [0.0, 0.0])


def test_a_world_without_expert_says_so() -> None:
    assert not Pusher().has_expert
    assert Pusher().tip is None
    assert Pusher().get_state() is None
    with pytest.raises(ValueError, match="Pusher has no scripted expert"):
        Pusher().make_expert(0)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> envs.Suite:
    """A suite as it stands in `envs.SUITES`, its file made here."""
    module = types.ModuleType("envs.suites.shove")
    module.Pusher = Pusher  # type: ignore[attr-defined]
    module.TASKS = {  # type: ignore[attr-defined]
        name: envs.Task(f"shove-{name}-v3", "suites.shove:Pusher", 7, {"lag": lag})
        for name, lag in (("door", 0.2), ("drawer", 0.3))
    }
    monkeypatch.setitem(sys.modules, "envs.suites.shove", module)
    entry = envs.Suite("shove:", "shove", package="numpy")
    monkeypatch.setattr(envs, "SUITES", (*envs.SUITES, entry))
    return entry


def test_a_suite_is_one_line(suite: envs.Suite) -> None:
    env: Any = envs.make("shove:drawer", cameras=["top"], image_size=32)
    assert env.spec.max_episode_steps == 7
    assert env.unwrapped.lag == 0.3
    assert env.unwrapped.image_size == (32, 32)
    assert envs.make("shove:drawer", lag=0.5).unwrapped.lag == 0.5  # type: ignore[attr-defined]
    assert envs.find("shove:door") is envs.find("selfflow/shove-door-v3")
    assert {"shove:door", "shove:drawer"} <= set(envs.suite_names())
    assert "shove:door" not in envs.names()
    with pytest.raises(ValueError, match="shove-door-v3 has no scripted expert"):
        envs.make_expert("shove:door", envs.make("shove:door"))


def test_names_are_suggested_from_the_suite_that_is_meant(suite: envs.Suite) -> None:
    with pytest.raises(ValueError, match="'shove:drawer'. There are: shove:door, shove:drawer$"):
        envs.make("shove:drawr")
    with pytest.raises(ValueError, match="Did you mean 'shove:'"):
        envs.make("shov:drawer")
    with pytest.raises(
        ValueError, match=r"There are: .*reach, .*fetch_\.\.\., metaworld:\.\.\., pusht"
    ):
        envs.make("xyz")


def test_a_missing_extra_is_named_with_its_remedy(
    suite: envs.Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(suite, package="not_installed")
    monkeypatch.setattr(envs, "SUITES", (absent,))
    for name in ("shove:door", "shove:dor", "selfflow/shove-door-v3"):
        with pytest.raises(envs.MissingExtraError, match="not_installed.*make setup-suites"):
            envs.make(name)
    assert envs.suite_names() == []


@pytest.mark.parametrize("missing", MISSING, ids=[s.module for s in MISSING])
def test_without_the_extra_every_suite_says_so(missing: envs.Suite) -> None:
    with pytest.raises(ValueError, match=f"{missing.package}.*make setup-suites"):
        envs.find(f"{missing.prefix}x")
