"""What holds for every task: Gymnasium's rules, determinism, restoring, errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.base import ArmEnv
from envs.reach import Reach

SMALL: dict[str, Any] = {"image_size": 24}


@pytest.fixture(params=envs.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def env(name: str) -> Iterator[ArmEnv]:
    made = envs.make(name, **SMALL).unwrapped
    assert isinstance(made, ArmEnv)
    yield made
    made.close()


def assert_equal(a: Any, b: Any) -> None:
    """Nested observations are equal to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


def test_check_env_has_only_one_recommendation(name: str) -> None:
    env = envs.make(name, render_mode="rgb_array", **SMALL)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    texts = {str(warning.message) for warning in caught}
    assert all("normalized" in text for text in texts), texts
    env.close()


def test_make_applies_the_time_limit(name: str) -> None:
    env = envs.make(name, cameras=(), max_episode_steps=3)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        *_, truncated, _ = env.step(observation["agent_pos"])
    assert truncated
    assert envs.find(name).max_episode_steps > 60
    assert env.metadata["render_fps"] == 20


def test_equal_seeds_give_equal_episodes(name: str) -> None:
    def episode(seed: int) -> list[Any]:
        env: Any = envs.make(name, **SMALL).unwrapped
        steps: list[Any] = [env.reset(seed=seed)]
        expert = env.make_expert(seed)
        expert.reset()
        for _ in range(10):
            steps.append(env.step(expert.act()))
        env.close()
        return steps

    first, second, other = episode(3), episode(3), episode(4)
    for a, b in zip(first, second, strict=True):
        assert_equal(a[0], b[0])
        assert a[1:] == b[1:]
    assert not np.array_equal(first[0][0]["agent_pos"], other[0][0]["agent_pos"])
    assert not np.array_equal(first[0][0]["pixels"]["front"], other[0][0]["pixels"]["front"])


def test_info_is_complete_at_every_step_and_reset(env: ArmEnv) -> None:
    observation, info = env.reset(seed=0, options={"unknown": 1})
    for _ in range(3):
        assert set(info) == set(env.info_keys)
        assert type(info["is_success"]) is bool
        assert info["is_success"] is False
        assert type(info["mode"]) is str
        assert type(info["distance"]) is float
        observation, _, _, _, info = env.step(observation["agent_pos"])
    assert env.state_names[7] == "gripper.pos"
    assert len(env.action_names) == 8
    assert env.action_space.shape == (8,)


@pytest.mark.parametrize("steps", [0, 25, 50])
def test_a_restored_state_continues_to_the_bit(name: str, env: ArmEnv, steps: int) -> None:
    """In another instance, from within an episode, contacts included."""
    rng = np.random.default_rng(0)
    env.reset(seed=7)
    start = env.agent_pos
    if isinstance(env, Reach):  # straight into what stands in the way
        goal = env.kinematics.solve(np.append(env.target[:2], 0.02), start[:7].astype(float))
        ramp = np.minimum(1, np.arange(50) / 30)[:, None]
        actions = np.append(start[:7] + (goal - start[:7]) * ramp, np.zeros((50, 1)), axis=1)
    else:
        expert = env.make_expert(0)
        expert.reset()
        actions = np.stack([expert.act() for _ in range(steps + 25)])
    actions = actions + rng.normal(0, 0.01, actions.shape)
    for action in actions[:steps]:
        env.step(action)
    state = env.get_state()
    assert state.dtype == np.float64
    assert state.ndim == 1

    other: Any = envs.make(name, **SMALL).unwrapped
    other.reset(seed=1)
    other.step(actions[0])
    other.set_state(state)
    np.testing.assert_array_equal(other.get_state(), state)
    assert_equal(other.current_observation(), env.current_observation())
    for action in actions[steps:]:
        a, b = env.step(action), other.step(action)
        assert_equal(a[0], b[0])
        assert a[1:] == b[1:]
        np.testing.assert_array_equal(env.get_state(), other.get_state())
    other.close()


def test_states_that_do_not_fit_are_refused(env: ArmEnv) -> None:
    env.reset(seed=0)
    state = env.get_state()
    with pytest.raises(ValueError, match=rf"has shape \({len(state)},\), found \({len(state) - 1}"):
        env.set_state(state[1:])
    state[3] = np.nan
    with pytest.raises(ValueError, match="entry 3 is not finite"):
        env.set_state(state)


def test_bad_actions_are_named(env: ArmEnv) -> None:
    observation, _ = env.reset(seed=0)
    action = observation["agent_pos"].copy()
    action[2] = np.nan
    with pytest.raises(ValueError, match=r"not finite: \{'joint_3.pos': nan\}"):
        env.step(action)
    with pytest.raises(ValueError, match=r"shape \(8,\).*gripper\.pos.*found \(7,\)"):
        env.step(action[:7])


def test_actions_beyond_the_limits_act_as_the_limits(env: ArmEnv) -> None:
    env.reset(seed=0)
    state = env.get_state()
    high = env.action_space.high  # type: ignore[attr-defined]
    env.step(high + 1)
    beyond = env.get_state()
    env.set_state(state)
    env.step(high.astype(np.float64))
    np.testing.assert_allclose(beyond, env.get_state(), atol=1e-5)


def test_holding_still_holds_still(env: ArmEnv) -> None:
    start = env.reset(seed=0)[0]["agent_pos"]
    for _ in range(20):
        now = env.step(start)[0]["agent_pos"]
    np.testing.assert_allclose(now, start, atol=1e-3)


def test_the_gripper_opens_and_closes(env: ArmEnv) -> None:
    action = env.reset(seed=0)[0]["agent_pos"].copy()
    for width in (0.08, 0.03):
        action[7] = width
        for _ in range(20):
            now = env.step(action)[0]["agent_pos"]
        assert now[7] == pytest.approx(width, abs=1e-3)


@pytest.mark.parametrize("cameras", [(), ("wrist",), ("front", "wrist")])
def test_any_selection_of_cameras_at_any_size(name: str, cameras: tuple[str, ...]) -> None:
    env = envs.make(name, cameras=cameras, image_size=(20, 32))
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert tuple(observation.get("pixels", {})) == cameras
    for image in observation.get("pixels", {}).values():
        assert image.shape == (20, 32, 3)
        assert image.std() > 5  # something is to be seen
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": ["top"]}, r"selection of \['front', 'wrist'\]"),
        ({"cameras": "front"}, r"expected a list such as \['front'\]"),
        ({"image_size": 0}, "at least one pixel"),
        ({"image_size": "96"}, r"one number or \(height, width\)"),
        ({"image_size": 9.5}, r"one number or \(height, width\)"),
        ({"target": "medium"}, r"\['easy', 'hard'\]"),
        ({"target": (0.07,)}, r"expected \(\w+, \w+\)"),
        ({"target": (7, 5)}, "above 0 and below 1"),
    ],
)
def test_wrong_options_are_explained(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        envs.make(name, **options)


def test_names_are_looked_up_and_suggested() -> None:
    assert envs.find("reach") is envs.find("selfflow/Reach-v0")
    with pytest.raises(ValueError, match="Did you mean 'reach_around'"):
        envs.make("reach_arund")
    with pytest.raises(ValueError, match="There are: .*reach, reach_around"):
        envs.make("xyz")
    with pytest.raises(ValueError, match="'sync' or 'async'"):
        envs.make_vec("reach", 2, vectorization="thread")
    with pytest.raises(ValueError, match="cannot act in selfflow/Reach-v0"):
        envs.make_expert("reach_around", envs.make("reach", cameras=()))


def test_gymnasium_knows_the_tasks(name: str) -> None:
    gym_id = envs.find(name).gym_id
    assert gym_id.startswith("selfflow/")
    assert str(gym.spec(gym_id).entry_point).startswith(f"envs.{name}:")
    envs.register()  # once more changes nothing
    assert type(gym.make(f"envs:{gym_id}", cameras=()).unwrapped).__module__ == f"envs.{name}"


def test_copies_step_alike_in_one_process_and_in_several() -> None:
    """`async` through forkserver, after this process has used OpenGL."""
    options = {"image_size": 16, "cameras": ("front",)}
    results = []
    for vectorization in ("sync", "async"):
        vector: Any = envs.make_vec("reach_around", 2, vectorization=vectorization, **options)
        observation, info = vector.reset(seed=[5, 6])
        steps = [(observation, info)]
        for _ in range(3):
            observation, *_, info = vector.step(observation["agent_pos"])
            steps.append((observation, info))
        vector.close()
        results.append(steps)
    for (a, info_a), (b, info_b) in zip(*results, strict=True):
        assert_equal(a, b)
        assert_equal(info_a["distance"], info_b["distance"])
        assert list(info_a["mode"]) == list(info_b["mode"])


def test_videos_can_be_recorded(tmp_path: Path) -> None:
    env: Any = envs.make("reach", cameras=(), render_mode="rgb_array", render_size=(48, 64))
    assert env.unwrapped.render_mode == "rgb_array"
    frames = []
    env.reset(seed=0)
    frames.append(env.render())
    assert frames[0].shape == (48, 64, 3)
    env.close()
    assert env.render().shape == (48, 64, 3)  # a closed renderer is made anew
    env.close()
    assert envs.make("reach", cameras=()).unwrapped.render() is None
