"""Other people's worlds, each as every tool of ours expects a world to be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.world import World
from policies.evaluation import evaluate
from policies.floors import HoldPolicy, RandomPolicy
from scripts.evaluate import axes_of, environment_spec

pytestmark = pytest.mark.suites

FETCH = ["fetch_reach", "fetch_push", "fetch_pick_and_place"]
METAWORLD = ["metaworld:drawer-open-v3", "metaworld:pick-place-v3", "metaworld:reach-v3"]
ALOHA = ["aloha:transfer-cube", "aloha:insertion"]
NAMES = [*FETCH, *METAWORLD[:2], "pusht", *ALOHA]
WITH_EXPERT = [*FETCH, *METAWORLD]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def world(name: str) -> Iterator[Any]:
    """One instance for all tests of a world, in whatever state the last one left it."""
    made = envs.make(name, image_size=(24, 32), render_mode="rgb_array", render_size=40)
    yield made.unwrapped
    made.close()


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


def test_every_suite_lists_its_tasks() -> None:
    listed = envs.suite_names()
    assert set(NAMES) <= set(listed)
    assert sum(name.startswith("metaworld:") for name in listed) == 50
    ids = [envs.find(name).gym_id for name in listed]
    assert len(set(ids)) == len(ids)
    for short, gym_id in zip(listed, ids, strict=True):
        assert envs.find(gym_id) is envs.find(short)
    with pytest.raises(ValueError, match="Did you mean 'metaworld:drawer-open-v3'"):
        envs.make("metaworld:drawer-open")
    with pytest.raises(ValueError, match="Did you mean 'fetch_push'"):
        envs.make("fetch_pusch")


def test_it_observes_as_our_own_tasks_do(name: str, world: Any) -> None:
    assert isinstance(world, World)
    observation, info = world.reset(seed=0, options={"unknown": 1})
    assert observation in world.observation_space
    assert observation["agent_pos"].dtype == np.float32
    assert len(world.state_names) == len(observation["agent_pos"])
    assert (len(world.action_names),) == world.action_space.shape
    assert tuple(observation["pixels"]) == world.cameras != ()
    for image in observation["pixels"].values():
        assert image.shape == (24, 32, 3)
        assert image.std() > 5  # something is to be seen
    for _ in range(2):
        assert set(info) == set(world.info_keys)
        assert info["is_success"] is False
        _, reward, terminated, truncated, info = world.step(world.action_space.sample())
        assert (reward, terminated, truncated) == (0.0, False, False)
    assert np.shape(world.render()) == (40, 40, 3)  # type: ignore[arg-type]
    spec = environment_spec(world)
    assert spec.fps == envs.make(name, cameras=()).metadata["render_fps"]
    assert spec.tasks[0].endswith(".")
    assert axes_of(world).names
    assert envs.find(name).max_episode_steps >= 100


def test_the_same_seed_gives_the_same_states_and_pictures(name: str, world: Any) -> None:
    """In a fresh instance as in one with a past; seeds may be as large as those of evaluations."""
    seed = 10**10 + 7
    fresh: Any = envs.make(name, image_size=(24, 32)).unwrapped
    rng = np.random.default_rng(0)
    low, high = world.action_space.low, world.action_space.high
    actions = [rng.uniform(low, high) for _ in range(5)]
    first = [fresh.reset(seed=seed), *(fresh.step(a) for a in actions)]
    second = [world.reset(seed=seed), *(world.step(a) for a in actions)]
    for a, b in zip(first, second, strict=True):
        assert_equal(a[0], b[0])
        assert a[1:] == b[1:]
    other, _ = fresh.reset(seed=seed + 1)
    camera = fresh.cameras[0]
    assert not np.array_equal(other["pixels"][camera], first[0][0]["pixels"][camera])
    fresh.close()


def test_check_env_has_only_one_recommendation(world: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(world, skip_render_check=True)
    texts = {str(warning.message) for warning in caught}
    if world.action_kind == "delta":
        assert texts == set()
    assert all("normalized" in text for text in texts), texts


def test_holding_still_holds_still(world: Any) -> None:
    """To a centimetre, 0.02 rad or a pixel; grippers keep what they hold."""
    world.cameras, cameras = (), world.cameras
    before, _ = world.reset(seed=1)
    hold = world.hold_action(before["agent_pos"])
    assert hold in world.action_space
    for _ in range(20):
        after, *_ = world.step(hold)
    tolerance = 1.0 if world.length_unit == "px" else 0.02
    np.testing.assert_allclose(after["agent_pos"], before["agent_pos"], atol=tolerance)
    world.cameras = cameras


def test_bad_actions_are_named(world: Any) -> None:
    world.reset(seed=0)
    action = world.action_space.sample()
    action[1] = np.nan
    for bad in (action, action[1:]):
        with pytest.raises(
            ValueError, match=f"expected .* finite numbers.*{world.action_names[0]}"
        ):
            world.step(bad)


def test_floors_do_not_solve_it(name: str, world: Any) -> None:
    box = world.action_space
    for floor in (RandomPolicy(box.low, box.high), HoldPolicy(world.hold_action)):
        # Seeds whose goal is not where the block already lies.
        result = evaluate(floor, lambda: envs.make(name, cameras=()), [3, 4], max_steps=20)
        assert result.success.k == 0
        if not (floor.name == "random" and name in ALOHA):  # which breaks the simulation
            assert [e.steps for e in result.episodes] == [20, 20]


def test_a_simulation_that_breaks_ends_the_episode_and_the_next_is_sound() -> None:
    env: Any = envs.make("aloha:transfer-cube", cameras=()).unwrapped
    first, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(200):
        observation, _, terminated, truncated, info = env.step(env.action_space.sample())
        assert np.isfinite(observation["agent_pos"]).all()
        if truncated:
            break
    assert info == {"is_success": False, "mode": "", "reward": 0, "diverged": True}
    assert not terminated
    assert_equal(env.reset(seed=0)[0], first)
    assert env.step(env.hold_action(first["agent_pos"]))[4]["diverged"] is False


@pytest.mark.parametrize("name", ["pusht", "fetch_reach"])
def test_copies_step_alike_in_one_process_and_in_several(name: str) -> None:
    options = {"image_size": 24}
    results = []
    for vectorization in ("sync", "async"):
        vector: Any = envs.make_vec(name, 2, vectorization=vectorization, **options)
        steps = [vector.reset(seed=[5, 6])[0]]
        steps.append(vector.step(np.full(vector.action_space.shape, 0.5, np.float32))[0])
        vector.close()
        results.append(steps)
    for a, b in zip(*results, strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize("name", WITH_EXPERT)
def test_experts_succeed_within_the_actions(name: str) -> None:
    env: Any = envs.make(name, cameras=()).unwrapped
    for seed in range(4):
        env.reset(seed=seed)
        expert = env.make_expert(seed)
        expert.reset()
        steps, solved = 0, None
        while not expert.done:
            action = expert.act()
            assert action in env.action_space
            _, reward, terminated, _, info = env.step(action)
            steps += 1
            if terminated:
                assert reward == 1.0
                solved = solved or steps
        assert info["is_success"]
        assert solved is not None
        assert steps <= envs.find(name).max_episode_steps
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", FETCH)
def test_our_experts_succeed_in_190_of_200(name: str) -> None:
    env: Any = envs.make(name, cameras=()).unwrapped
    successes = 0
    for seed in range(1000, 1200):
        _, info = env.reset(seed=seed)
        expert = env.make_expert(seed)
        expert.reset()
        while not expert.done:
            *_, info = env.step(expert.act())
        successes += info["is_success"]
    assert successes >= 190


@pytest.mark.parametrize("name", FETCH)
def test_our_experts_are_smooth(name: str) -> None:
    """No action saturates, and none differs much from the one before."""
    env: Any = envs.make(name, cameras=()).unwrapped
    env.reset(seed=2)
    expert = env.make_expert(2)
    expert.reset()
    actions = []
    while not expert.done:
        actions.append(expert.act())
        env.step(actions[-1])
    moves = np.array(actions)[:, :3]
    assert np.abs(moves).max() < 0.95
    assert np.abs(np.diff(moves, axis=0, prepend=0)).max() < 0.3


@pytest.mark.parametrize("name", ["pusht", "aloha:transfer-cube"])
def test_without_an_expert_it_says_so(name: str) -> None:
    env: Any = envs.make(name, cameras=())
    assert not env.unwrapped.has_expert
    with pytest.raises(ValueError, match="has no scripted expert"):
        envs.make_expert(name, env)


def test_success_is_the_suites_own() -> None:
    """PushT's coverage, ALOHA's highest reward."""
    env: Any = envs.make("pusht", cameras=()).unwrapped
    env.reset(seed=0)
    goal = env.inner.goal_pose
    env.inner._set_state(np.array([20.0, 20.0, goal[0], goal[1], goal[2]]))
    env.inner.block.position, env.inner.block.angle = goal[:2].tolist(), goal[2]
    *_, terminated, _, info = env.step(np.array([20.0, 20.0]))
    assert terminated
    assert info["coverage"] > 0.95
    aloha: Any = envs.make("aloha:transfer-cube", cameras=()).unwrapped
    aloha.reset(seed=0)
    aloha._task.get_reward = lambda physics: 4
    assert aloha.step(aloha.hold_action(aloha.agent_pos))[2]


def colour_mask(image: np.ndarray, channel: int) -> np.ndarray:
    """Where one colour clearly outweighs both others."""
    others = np.delete(image, channel, axis=-1).astype(int).max(-1)
    return image[..., channel].astype(int) - others > 60


@pytest.mark.parametrize("name", FETCH)
def test_fetch_shows_its_goal_and_its_block(name: str) -> None:
    """At 48 px the marker is red and at least 3 px wide, the block black and at least 4 px."""
    env: Any = envs.make(name, image_size=48).unwrapped
    for seed in range(6):
        pixels = env.reset(seed=seed)[0]["pixels"]
        for camera in env.cameras:
            rows, columns = np.nonzero(colour_mask(pixels[camera], 0))
            assert len(rows) >= 6, (seed, camera)
            assert np.ptp(columns) >= 2
        if env.inner.has_object:
            dark = pixels["front"].max(-1) < 60  # the table is white
            assert dark.sum() >= 12, seed
    env.close()
