"""Reach and ReachAround: what is shown, what counts, and that the experts are worth imitating."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import envs
from envs.expert import Expert, Plan
from envs.reach import Reach
from envs.reach_around import ReachAround


def make(name: str, **options: Any) -> Any:
    """Without wrappers, and without pictures unless asked for."""
    return envs.make(name, **{"cameras": (), **options}).unwrapped


def run(env: Reach, expert: Expert) -> dict[str, Any]:
    expert.reset()
    while not expert.done:
        *_, info = env.step(expert.act())
    return info


REACHING = ("reach", "reach_around")


@pytest.mark.parametrize("target", ["easy", "hard"])
@pytest.mark.parametrize("name", REACHING)
def test_experts_succeed(name: str, target: str) -> None:
    env = make(name, target=target)
    modes = []
    for seed in range(30):
        _, info = env.reset(seed=seed)
        assert info["distance"] > 2 * env.tolerance  # not solved at reset, nor nearly
        info = run(env, env.make_expert(seed))
        assert info["is_success"]
        assert info["distance"] < 0.005
        modes.append(info["mode"])
    if name == "reach_around":
        assert min(modes.count("left"), modes.count("right")) >= 8
        assert len(modes) == modes.count("left") + modes.count("right")
    else:
        assert set(modes) == {""}


def test_an_expert_repeats_itself_by_seed_only() -> None:
    env = make("reach_around")
    plans = []
    for seed in (1, 1, 2):
        env.reset(seed=0)
        expert = env.make_expert(seed)
        expert.reset()
        plans.append(np.array([expert.act() for _ in range(50)]))
    np.testing.assert_array_equal(plans[0], plans[1])
    assert not np.array_equal(plans[0], plans[2])
    with pytest.raises(RuntimeError, match="before reset"):
        env.make_expert(0).act()


class _Direct(Expert):
    """Ignores the post."""

    env: ReachAround

    def plan(self) -> Plan:
        return Plan(np.array([self.env.tip, self.env.target]), np.array([0.0, 2.5]), np.zeros(2))


def test_the_straight_way_always_hits_the_post_and_fails() -> None:
    env = make("reach_around")
    for seed in range(25):
        env.reset(seed=seed)
        info = run(env, _Direct(env))
        assert info["collision"]
        assert not info["is_success"]


def test_the_straight_way_hits_in_the_corners_too() -> None:
    env = make("reach_around")
    assert isinstance(env, ReachAround)
    corners = itertools.product(env.START[1], env.REGION[0], env.REGION[1], *env.POST)
    for start_y, *target_and_post in corners:
        env.reset(seed=0)
        joints = env.kinematics.solve(
            np.array([env.START[0, 0], start_y, 0.045]), env.agent_pos[:7].astype(float)
        )
        env.data.qpos[:7] = joints
        env.data.ctrl[:7] = joints
        env.data.mocap_pos[env._marker, :2] = target_and_post[:2]
        env.data.mocap_pos[env._post, :2] = target_and_post[2:]
        env.set_state(env.get_state())
        assert run(env, _Direct(env))["collision"]


def test_touching_the_post_spoils_the_rest() -> None:
    """Back off after a collision, round the post properly, and arrive: still no success."""
    env = make("reach_around")
    env.reset(seed=0)
    start = env.agent_pos.copy()
    run(env, _Direct(env))
    for _ in range(30):
        env.step(start)
    info = run(env, env.make_expert(0))
    assert info["collision"]
    assert not info["is_success"]


def test_success_is_held_and_slow() -> None:
    """Rushing through the target is not reaching it; success ends an episode on one step."""
    env = make("reach")
    env.reset(seed=0)
    expert = env.make_expert(0)
    expert.reset()
    within = 0
    while True:
        _, reward, terminated, truncated, info = env.step(expert.act())
        within += info["distance"] < env.tolerance
        if terminated:
            break
        assert reward == 0.0
        assert not truncated
    assert reward == 1.0
    assert info["is_success"]
    assert within >= env.HOLD_STEPS


def colour_mask(image: np.ndarray, channel: int) -> np.ndarray:
    """Where one colour clearly outweighs both others."""
    others = np.delete(image, channel, axis=-1).astype(int).max(-1)
    return image[..., channel].astype(int) - others > 60


@pytest.mark.parametrize("name", REACHING)
def test_the_marker_is_seen_whole_wherever_it_is(name: str) -> None:
    """At 48 px and at least 9 px wide, before the arm comes near; its image moves as it moves."""
    env = make(name, cameras=("front",), image_size=48)
    places, centres = [], []
    for x, y in itertools.product(*(np.linspace(low, high, 4) for low, high in env.REGION)):
        env.reset(seed=0)
        env.data.mocap_pos[env._marker, :2] = x, y
        env.set_state(env.get_state())
        rows, columns = np.nonzero(colour_mask(env.current_observation()["pixels"]["front"], 0))
        assert np.ptp(columns) + 1 >= 9
        assert np.ptp(rows) + 1 >= 7
        assert rows.min() > 0
        assert rows.max() < 47
        assert columns.min() > 0
        assert columns.max() < 47
        places.append([x, y, 1.0])
        centres.append([rows.mean(), columns.mean()])
    fit, *_ = np.linalg.lstsq(np.array(places), np.array(centres), rcond=None)
    assert np.abs(np.array(places) @ fit - centres).max() < 0.6  # pixels off a linear map
    env.close()


def test_the_hard_marker_is_smaller_and_the_post_is_blue() -> None:
    areas = {}
    for target in ("easy", "hard", (0.1, 0.02)):
        env = make("reach_around", cameras=("front",), image_size=64, target=target)
        image = env.reset(seed=0)[0]["pixels"]["front"]
        areas[target] = colour_mask(image, 0).sum()
        assert colour_mask(image, 2).sum() > 80
        env.close()
    assert areas["hard"] < 0.5 * areas["easy"] < 0.5 * areas[0.1, 0.02]
