"""The experts of all tasks are worth imitating: they succeed, smoothly, and in several ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import envs
from envs.expert import Plan

TASKS = ("pick_place", "push", "reach", "reach_around")
TWO_WAYS = {"pick_place", "reach_around"}


def make(name: str, **options: Any) -> Any:
    """Without wrappers and without pictures."""
    return envs.make(name, cameras=(), **options).unwrapped


def run(env: Any, seed: int) -> dict[str, Any]:
    """The expert's whole plan; the last step's info."""
    expert = env.make_expert(seed)
    expert.reset()
    while not expert.done:
        *_, info = env.step(expert.act())
    return info


@pytest.mark.parametrize(
    ("name", "target", "least"),
    [
        pytest.param("pick_place", "easy", 198, marks=pytest.mark.slow),
        pytest.param("push", "hard", 190, marks=pytest.mark.slow),
        ("reach", "easy", 198),
        ("reach_around", "hard", 198),
    ],
)
def test_experts_succeed_over_200_resets(name: str, target: str, least: int) -> None:
    env = make(name, target=target)
    successes, modes = 0, []
    for seed in range(1000, 1200):
        _, info = env.reset(seed=seed)
        assert info["distance"] > 1.1 * env.tolerance  # not solved at reset, nor nearly
        info = run(env, seed)
        successes += info["is_success"]
        modes.append(info["mode"])
    assert successes >= least
    if name in TWO_WAYS:
        assert min(modes.count("left"), modes.count("right")) >= 70
    else:
        assert set(modes) == {""}


@pytest.mark.parametrize("name", TASKS)
def test_experts_are_smooth_and_followed_closely(name: str) -> None:
    env = make(name)
    observation, _ = env.reset(seed=0)
    expert = env.make_expert(0)
    expert.reset()
    commands, positions = [], [observation["agent_pos"]]
    while not expert.done:
        commands.append(expert.act())
        positions.append(env.step(commands[-1])[0]["agent_pos"])
    command, position = np.array(commands)[:, :7], np.array(positions)[:, :7]
    assert 40 <= len(command) <= 0.75 * envs.find(name).max_episode_steps
    assert np.abs(command[0] - position[0]).max() < 0.01  # no jump at the start
    assert np.abs(np.diff(command, axis=0)).max() < 0.12
    # Control lags by about a step, and adds no wobble of its own.
    assert np.abs(position[2:] - command[:-1]).max() < 0.03

    def jerk(x: np.ndarray) -> float:
        return float(np.sqrt((np.diff(x, 3, axis=0) ** 2).sum(1).mean()))

    assert jerk(position) < 1.15 * jerk(np.vstack([position[:1], command]))


def test_a_point_given_twice_is_a_stop() -> None:
    """The gripper moves while the tip stands; before and after, the path is smooth and at rest."""
    points = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1]], float)
    plan = Plan(points, np.array([0.0, 1, 2, 3, 4]), openings=np.array([0, 0, 0, 1.0, 1]))
    times = np.linspace(0, 4, 4001)
    path = plan.path(times)
    for time, point in zip(plan.times, points, strict=True):
        np.testing.assert_allclose(path[np.searchsorted(times, time), :3], point, atol=1e-6)
    standing = (times >= 2) & (times <= 3)
    assert np.ptp(path[standing, :3], axis=0).max() < 1e-9
    assert np.ptp(path[~standing, 3]) == pytest.approx(1)  # closed before, open after
    assert np.ptp(path[times < 2, 3]) < 1e-9
    velocity = np.gradient(path, times, axis=0)
    acceleration = np.gradient(velocity, times, axis=0)
    assert np.abs(np.diff(velocity, axis=0)).max() < 0.02  # nothing jumps
    assert np.abs(np.diff(acceleration, axis=0)).max() < 0.3
    moving = np.searchsorted(times, 1.0)
    assert np.linalg.norm(velocity[moving, :3]) > 0.1  # a point given once is passed


def test_a_plan_turns_the_hand() -> None:
    env = make("push")
    env.reset(seed=3)
    run(env, 3)
    _, rotation = env.kinematics.tip(env.agent_pos[:7].astype(float))
    turned = np.arctan2(rotation[1, 0], rotation[0, 0])
    assert turned == pytest.approx(env.mark_yaw, abs=0.02)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=0.02)
