"""The evaluator: a pure function of the seeds."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.evaluation import Episode, ReplayError, episode_seeds, evaluate, replay
from policies.floors import HoldPolicy, RandomPolicy
from policies.types import Decision, Policy

from .worlds import ChunkedGuess, PointWorld, point_world

SEEDS = list(range(100, 113))


def assert_same(a, b):
    assert a.seeds == b.seeds
    for x, y in zip(a.episodes, b.episodes, strict=True):
        assert (x.success, x.success_step, x.mode) == (y.success, y.success_step, y.mode)
        np.testing.assert_array_equal(x.commands, y.commands)
        np.testing.assert_array_equal(x.positions, y.positions)
        np.testing.assert_array_equal(x.chunk_starts, y.chunk_starts)


class SeenWorld(PointWorld):
    """Its space names what it shows, as a vector environment needs it."""

    def __init__(self, **options):
        super().__init__(**options)
        image = gym.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        shown = gym.spaces.Dict(dict.fromkeys(self.cameras, image))
        self.observation_space["pixels"] = shown  # type: ignore[index]


def seen_world(max_steps: int = 20) -> gym.Env:
    env = gym.wrappers.TimeLimit(SeenWorld(), max_steps)
    env.unwrapped.spec = gym.envs.registration.EnvSpec("Point-v0", max_episode_steps=max_steps)
    return env


def together(count, mode=AutoresetMode.DISABLED, make=seen_world):
    return SyncVectorEnv([make] * count, autoreset_mode=mode)


def position(env):
    return env.unwrapped.position


@pytest.mark.parametrize("num_envs", [2, 4, 13, 50])
def test_slots_side_by_side_change_nothing(num_envs):
    alone = evaluate(ChunkedGuess(), point_world, SEEDS, num_envs=1)
    assert 0 < alone.success.k < alone.success.n, "the test needs both outcomes"
    assert_same(alone, evaluate(ChunkedGuess(), point_world, SEEDS, num_envs=num_envs))


@pytest.mark.parametrize("make", [ChunkedGuess, lambda: RandomPolicy([-1, -1], [1, 1]), HoldPolicy])
def test_an_episode_depends_on_its_own_seed_only(make):
    whole = evaluate(make(), point_world, SEEDS, num_envs=3)
    one = evaluate(make(), point_world, [SEEDS[7]])
    whole.episodes = [whole.episodes[7]]
    assert_same(one, whole)


def test_what_holds_still_is_the_worlds_to_say():
    """With changes for actions it is zero, whatever was measured; asked once an episode."""
    asked = []

    def hold(state):
        asked.append(state)
        return np.zeros(2)

    result = evaluate(HoldPolicy(hold), point_world, SEEDS[:3])
    assert len(asked) == 3
    assert all((e.commands == 0).all() for e in result.episodes)


def test_policies_fulfil_the_protocol():
    for policy in (ChunkedGuess(), RandomPolicy([-1], [1]), HoldPolicy()):
        assert isinstance(policy, Policy)


def test_what_an_episode_holds():
    finished: list[Episode] = []
    result = evaluate(
        ChunkedGuess(length=4),
        point_world,
        SEEDS,
        num_envs=4,
        trace=position,
        on_episode=finished.append,
    )
    assert sorted(e.seed for e in finished) == SEEDS
    assert result.fps == 10
    for e in result.episodes:
        assert e.commands.shape == (e.steps, 2)
        assert e.positions.shape == (e.steps + 1, 2)
        assert e.chunk_starts.tolist() == list(range(0, e.steps, 4))
        assert e.trace is not None
        np.testing.assert_allclose(e.trace, e.positions, atol=1e-6)
        assert e.success == (e.distance < 0.1)
        assert e.success_step == (e.steps if e.success else None)
        assert e.steps == 20 or e.success
    assert sum(call.chunks for call in result.calls) == sum(
        len(e.chunk_starts) for e in result.episodes
    )
    assert all(call.stages_ms == {"network": 1.0} and call.total_ms > 0 for call in result.calls)


def test_solved_at_reset_is_noticed():
    class Solved(PointWorld):
        def reset(self, **kwargs):
            super().reset(**kwargs)
            self.position = self.goal.copy()
            return self._see()

    episode = evaluate(HoldPolicy(), Solved, [1], max_steps=3).episodes[0]
    assert episode.solved_at_reset
    assert episode.success
    assert episode.success_step == 0


def test_policies_may_keep_and_overwrite_what_they_see():
    class Vandal(ChunkedGuess):
        def __init__(self):
            super().__init__()
            self.kept = []

        def act(self, observation, active):
            decision = super().act(observation, active)
            self.kept.append((observation, observation.state.copy()))
            for earlier, copy in self.kept:
                np.testing.assert_array_equal(earlier.state, copy)
            observation.images["front"][:] = 0
            return decision

    plain = evaluate(ChunkedGuess(), point_world, SEEDS[:3], num_envs=2)
    assert_same(plain, evaluate(Vandal(), point_world, SEEDS[:3], num_envs=2))


def test_replay_shows_the_same_episode():
    episode = evaluate(ChunkedGuess(), point_world, SEEDS[:1]).episodes[0]
    frames = replay(point_world(cameras=(), render_mode="rgb_array"), episode)
    assert frames.shape == (episode.steps + 1, 16, 16, 3)
    assert frames.dtype == np.uint8
    episode.success = not episode.success
    with pytest.raises(ReplayError, match="function of its seed"):
        replay(point_world(render_mode="rgb_array"), episode)


def test_a_list_of_environments_stays_open():
    class Closing(PointWorld):
        closed = False

        def close(self):
            self.closed = True

    mine = [Closing(), Closing()]
    evaluate(ChunkedGuess(), mine, SEEDS[:5], max_steps=5)
    assert not any(env.closed for env in mine)
    made = []

    def make():
        made.append(Closing())
        return made[-1]

    evaluate(ChunkedGuess(), make, SEEDS[:5], num_envs=2, max_steps=5)
    assert [env.closed for env in made] == [True, True]


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="different seeds"):
        evaluate(ChunkedGuess(), point_world, [1, 1])
    with pytest.raises(ValueError, match="time limit"):
        evaluate(ChunkedGuess(), PointWorld, [1])
    with pytest.raises(ValueError, match="at least one environment"):
        evaluate(ChunkedGuess(), [], [1])

    class Broken(ChunkedGuess):
        name = "broken"
        bad = np.full((1, 2), np.nan)

        def act(self, observation, active):
            return Decision(self.bad, active)

    with pytest.raises(ValueError, match=r"'broken'.*not finite in slot 0"):
        evaluate(Broken(), point_world, [1])
    Broken.bad = np.zeros((1, 3))
    with pytest.raises(ValueError, match=r"\(1, 3\).*takes\s*\(1, 2\)"):
        evaluate(Broken(), point_world, [1])


def test_seed_blocks_never_meet():
    blocks = [episode_seeds(10_000, seed, p) for p in ("reported", "sweep") for seed in (0, 1, 7)]
    assert len(set().union(*blocks)) == 60_000
    assert episode_seeds(5) == episode_seeds(9)[:5]
    with pytest.raises(ValueError, match="unknown purpose 'test'"):
        episode_seeds(5, purpose="test")
    with pytest.raises(ValueError, match="1 to 10000"):
        episode_seeds(10_001)


def test_random_needs_a_finite_box():
    with pytest.raises(ValueError, match=r"entries \[1\]"):
        RandomPolicy([0, -np.inf], [1, 1])


def test_hold_commands_the_first_position():
    result = evaluate(HoldPolicy(), point_world, SEEDS[:4], num_envs=2)
    for e in result.episodes:
        np.testing.assert_array_equal(e.commands, np.repeat(e.positions[:1], e.steps, axis=0))


@settings(max_examples=15)
@given(
    slots=st.integers(1, 9),
    seeds=st.lists(st.integers(0, 10**11), min_size=1, max_size=11, unique=True),
    limit=st.integers(1, 22),
    length=st.integers(1, 5),
)
def test_a_vector_environment_gives_the_episodes_of_single_ones(slots, seeds, limit, length):
    finished: list[Episode] = []
    vector = together(slots)
    alone = evaluate(ChunkedGuess(length), seen_world, seeds, max_steps=limit)
    result = evaluate(
        ChunkedGuess(length), vector, seeds, max_steps=limit, on_episode=finished.append
    )
    assert_same(alone, result)
    assert result.num_envs == slots
    assert result.fps == alone.fps
    assert sorted(e.seed for e in finished) == sorted(seeds)
    for a, b in zip(alone.episodes, result.episodes, strict=True):
        assert (a.solved_at_reset, a.distance) == (b.solved_at_reset, b.distance)
        assert b.trace is None
    assert not vector.closed
    vector.close()


def test_slots_of_a_vector_environment_see_their_own_pictures_and_task():
    class Looking(ChunkedGuess):
        def act(self, observation, active):
            assert observation.task == ["reach the goal"] * 3
            for i in np.flatnonzero(active):
                column, row = np.clip((observation.state[i] + 1) * 8, 0, 15).astype(int)
                assert observation.images["front"][i, row, column].tolist() == [255] * 3
            return super().act(observation, active)

    assert evaluate(Looking(), together(3), SEEDS[:7]).success.n == 7


def test_what_only_some_slots_say_stays_theirs():
    class Shy(SeenWorld):
        """Tells its distance on the right only."""

        def _see(self):
            observation, info = super()._see()
            if info["mode"] == "left":
                del info["distance"]
            return observation, info

    episodes = evaluate(ChunkedGuess(), together(6, make=Shy), SEEDS[:6], max_steps=9).episodes
    assert {e.mode for e in episodes} == {"left", "right"}
    for e in episodes:
        assert math.isnan(e.distance) == (e.mode == "left")


def test_what_rests_when_it_is_over_is_not_reset_before_its_round_is():
    class Counting(SyncVectorEnv):
        resets, rests = 0, False

        def reset(self, **options):
            self.resets += 1
            return super().reset(**options)

        def step(self, actions):
            if self.rests:
                self._autoreset_envs[:] = False  # else Gymnasium refuses to go past an end
            return super().step(actions)

    make = [seen_world] * 4
    strict = Counting(make, autoreset_mode=AutoresetMode.DISABLED)
    resting = Counting(make, autoreset_mode=AutoresetMode.DISABLED)
    resting.rests = True
    resting.metadata = resting.metadata | {"rests_when_over": True}
    assert_same(
        evaluate(ChunkedGuess(), strict, SEEDS),
        evaluate(ChunkedGuess(), VectorWrapper(resting), SEEDS),
    )
    assert resting.resets == math.ceil(len(SEEDS) / 4) < strict.resets


def test_vector_environments_that_will_not_do_are_named():
    with pytest.raises(ValueError, match="starts new episodes by itself.*DISABLED"):
        evaluate(ChunkedGuess(), together(2, AutoresetMode.NEXT_STEP), [1])
    with pytest.raises(ValueError, match="single environments"):
        evaluate(ChunkedGuess(), together(2), [1], trace=position)
    endless = together(2, make=SeenWorld)
    with pytest.raises(ValueError, match="does not tell a time limit.*max_steps"):
        evaluate(ChunkedGuess(), endless, [1])
    assert evaluate(ChunkedGuess(), endless, [1], max_steps=3).episodes[0].steps <= 3
