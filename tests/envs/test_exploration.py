"""Exploration: unlike the expert, yet reproducible, smooth and within the arm's limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import envs
from envs.exploration import KINDS, MAX_STEP, Explorer
from envs.recording import Episode, record

TASKS = ("pick_place", "push", "reach", "reach_around")


def make(name: str) -> Any:
    return envs.make(name, cameras=()).unwrapped


def explore(env: Any, seed: int, kind: str | None = None) -> Episode:
    return record(env, seed, Explorer(env, seed, kind))


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_moves_as_the_arm_can(name: str) -> None:
    env = make(name)
    for kind in KINDS:
        for seed in range(3):
            episode = explore(env, seed, kind)
            assert 20 <= len(episode) <= envs.find(name).max_episode_steps
            assert np.all(episode.action >= env.action_space.low)
            assert np.all(episode.action <= env.action_space.high)
            commands = np.vstack([episode.state[:1], episode.action])[:, :7]
            assert np.abs(np.diff(commands, axis=0)).max() < MAX_STEP + 1e-5
            # No jerks: the change from step to step changes by little too.
            assert np.percentile(np.abs(np.diff(commands, 2, axis=0)), 99) < 0.05
            tips = np.array([env.kinematics.tip(joints)[0] for joints in commands])
            assert tips[:, 2].min() > 0.01
            assert np.linalg.norm(np.diff(tips, axis=0), axis=1).max() * 20 < 1.0


@pytest.mark.parametrize("name", TASKS)
def test_all_of_it_follows_from_the_seed(name: str) -> None:
    env, other = make(name), make(name)
    explore(other, 99)  # what went before leaves no trace
    kinds = set()
    for seed in range(3):
        one, two = Explorer(env, seed), Explorer(other, seed)
        first, second = record(env, seed, one), record(other, seed, two)
        assert one.kind == two.kind
        np.testing.assert_array_equal(first.action, second.action)
        np.testing.assert_array_equal(first.simulator_state, second.simulator_state)
        kinds.add(one.kind)
    assert len({explore(env, seed).action.tobytes() for seed in range(3)}) == 3


def test_all_kinds_are_drawn() -> None:
    env = make("reach")
    kinds = [Explorer(env, seed).kind for seed in range(300)]
    for kind, share in KINDS.items():
        assert kinds.count(kind) / 300 == pytest.approx(share, abs=0.08)
    assert sum(KINDS.values()) == pytest.approx(1)


@pytest.mark.parametrize(("name", "objects"), [("push", 1), ("pick_place", 2)])
def test_play_moves_objects_in_all_directions(name: str, objects: int) -> None:
    env = make(name)
    things = [env.block] if name == "push" else env.cubes
    moves = []
    for seed in range(12):
        env.reset(seed=seed)
        explorer = Explorer(env, seed, "play")
        explorer.reset()
        before = np.array([thing.position[:2] for thing in things])
        while not explorer.done:
            env.step(explorer.act())
        moves.append(np.array([thing.position[:2] for thing in things]) - before)
    moved = np.array(moves)
    assert moved.shape == (12, objects, 2)
    touched = np.linalg.norm(moved, axis=-1).max(axis=1) > 0.01
    assert touched.mean() >= 0.5
    for axis in (0, 1):
        assert (moved[..., axis] > 0.01).any()
        assert (moved[..., axis] < -0.01).any()


@pytest.mark.parametrize("kind", ["noise", "failure", "near"])
def test_some_succeed_and_some_do_not(kind: str) -> None:
    env = make("reach")
    outcomes = [bool(explore(env, seed, kind).success[-1]) for seed in range(24)]
    assert 0.1 < np.mean(outcomes) < 0.9


def test_near_misses_end_near() -> None:
    """Within 15 cm of the point to reach, most of them beyond the tolerance."""
    env = make("reach")
    distances = []
    for seed in range(20):
        explore(env, seed, "near")
        distances.append(env.distance)
    assert max(distances) < 0.15
    assert np.mean(np.array(distances) > env.tolerance) > 0.5


def test_what_is_misspelt_is_suggested() -> None:
    with pytest.raises(ValueError, match="no kind 'nose'. Did you mean 'noise'"):
        Explorer(make("reach"), 0, "nose")
