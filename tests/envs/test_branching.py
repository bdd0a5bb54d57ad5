"""Counterfactual branches: real futures of one state, distinct, and none of them a teleport."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import envs
from envs.branching import MAX_TIP_SPEED, Branch, branch_actions, run_branches

STEPS = 16


def in_the_middle(name: str, seed: int, before: int, **options: Any) -> tuple[Any, np.ndarray]:
    """A world after some of the expert's actions, and those that it would do next."""
    env: Any = envs.make(name, **options).unwrapped
    env.reset(seed=seed)
    expert = env.make_expert(seed)
    expert.reset()
    actions = []
    while not expert.done:
        actions.append(expert.act())
    for action in actions[:before]:
        env.step(action)
    return env, np.array(actions[before:])


@pytest.mark.parametrize("name", ["reach_around", "push"])
def test_futures_are_what_happens(name: str) -> None:
    """Bit for bit, in any order; and the world is left as it was found."""
    env, plan = in_the_middle(name, 3, 12, image_size=24, cameras=("front",))
    state = env.get_state()
    branches = branch_actions(env, 8, STEPS, seed=0, plan=plan)
    np.testing.assert_array_equal(env.get_state(), state)
    assert env.cameras == ("front",)
    futures = run_branches(env, state, branches)
    np.testing.assert_array_equal(env.get_state(), state)
    assert futures.images["front"].shape == (8, STEPS + 1, 24, 24, 3)
    assert futures.images["front"].dtype == np.uint8
    assert futures.agent_pos.shape == (8, STEPS + 1, 8)
    assert futures.tip.shape == (8, STEPS + 1, 3)
    assert futures.success.shape == futures.distance.shape == (8, STEPS + 1)

    # The first branch is the expert's plan, and gives what plain steps give.
    assert branches[0].name == "expert"
    np.testing.assert_array_equal(branches[0].actions, plan[:STEPS])
    for t, action in enumerate(branches[0].actions):
        observation, *_, info = env.step(action)
        np.testing.assert_array_equal(observation["agent_pos"], futures.agent_pos[0, t + 1])
        np.testing.assert_array_equal(
            observation["pixels"]["front"], futures.images["front"][0, t + 1]
        )
        np.testing.assert_array_equal(env.tip, futures.tip[0, t + 1])
        assert info["distance"] == futures.distance[0, t + 1]
        assert info["is_success"] == futures.success[0, t + 1]

    # From another present of the world, in another order.
    reversed_futures = run_branches(env, state, branches[::-1])
    for ours, theirs in (
        (futures.images["front"], reversed_futures.images["front"]),
        (futures.agent_pos, reversed_futures.agent_pos),
        (futures.tip, reversed_futures.tip),
    ):
        np.testing.assert_array_equal(ours, theirs[::-1])


@pytest.mark.parametrize("name", ["pick_place", "push", "reach", "reach_around"])
def test_branches_differ_and_are_as_fast_as_the_arm(name: str) -> None:
    apart = []
    for seed in range(4):
        env, plan = in_the_middle(name, seed, (2, 10, 18, 25)[seed], cameras=())
        command = env.command
        branches = branch_actions(env, 16, STEPS, seed, plan)
        assert len({branch.name for branch in branches}) == 16
        actions = np.stack([branch.actions for branch in branches])
        assert actions.dtype == np.float32
        # The expert's own plan may open the gripper further than it goes, and stays as it is.
        assert np.all(actions[1:] >= env.action_space.low)
        assert np.all(actions[1:] <= env.action_space.high)
        first = np.abs(actions[:, 0] - command)
        assert first[:, :7].max() < 0.08
        assert first[:, 7].max() < 0.021
        futures = run_branches(env, env.get_state(), branches)
        speed = np.linalg.norm(np.diff(futures.tip, axis=1), axis=-1).max(axis=1) * 20
        assert speed.max() <= MAX_TIP_SPEED
        assert np.median(speed) < 2.5 * max(speed[0], 0.15)
        ends = futures.tip[:8, -1]
        distances = np.linalg.norm(ends[:, None] - ends[None], axis=-1)
        apart += list(distances[np.triu_indices(8, 1)] > 0.005)
    assert np.mean(apart) > 0.9


def test_what_branches_are_named_for() -> None:
    env, plan = in_the_middle("reach_around", 5, 10, cameras=())
    branches = branch_actions(env, 12, 20, 0, plan)
    futures = run_branches(env, env.get_state(), branches)
    moves = {b.name: f[-1] - f[0] for b, f in zip(branches, futures.tip, strict=True)}
    assert {"noise_1", "faster", "slower", "opposite"} < moves.keys()
    expert = moves["expert"]
    assert abs(expert[1]) > 0.02
    assert moves["mirrored"][1] * expert[1] < 0
    assert np.linalg.norm(moves["hold"]) < 0.03
    assert moves["retreat"][2] > 0.03
    assert moves["retreat"][0] < expert[0] - 0.03
    assert moves["slower"][0] < expert[0] < moves["faster"][0]
    sides = [moves[name][1] - expert[1] for name in ("shifted", "opposite")]
    assert min(sides) < -0.02
    assert max(sides) > 0.02
    # The expert is asked where no plan is given.
    assert np.linalg.norm(branch_actions(env, 2, 20, 0)[0].actions[-1] - plan[19]) < 0.8


def test_the_seed_decides() -> None:
    env, plan = in_the_middle("push", 0, 10, cameras=())
    one, same, other = (branch_actions(env, 8, STEPS, seed, plan) for seed in (0, 0, 1))
    assert [b.actions.tobytes() for b in one] == [b.actions.tobytes() for b in same]
    names = [branch.name for branch in one]
    assert names[:7] == ["expert", "mirrored", "hold", "retreat", "shifted", "play_1", "play_2"]
    assert np.abs(one[5].actions - other[5].actions).max() > 0.01


def test_a_plan_that_ends_is_stood_out() -> None:
    env, plan = in_the_middle("reach", 0, 10, cameras=())
    expert = branch_actions(env, 2, STEPS, 0, plan[:4])[0].actions
    np.testing.assert_array_equal(expert[:4], plan[:4])
    np.testing.assert_array_equal(expert[4:], np.repeat(plan[3:4], STEPS - 4, axis=0))


def test_wrong_values_are_explained() -> None:
    env, plan = in_the_middle("reach", 0, 3, image_size=16, cameras=("front",))
    state = env.get_state()
    with pytest.raises(ValueError, match="at least 2 branches"):
        branch_actions(env, 1, STEPS, 0, plan)
    with pytest.raises(ValueError, match="shape \\[M, 8\\], found \\[3\\]"):
        branch_actions(env, 8, STEPS, 0, plan[0, :3])
    short, long = Branch("a", plan[:3]), Branch("b", plan[:4])
    with pytest.raises(ValueError, match="one length, found lengths \\[3, 4\\]"):
        run_branches(env, state, [short, long])
    with pytest.raises(ValueError, match="cameras \\['wrist'\\] are not drawn"):
        run_branches(env, state, [short], ["wrist"])
    env.close()
