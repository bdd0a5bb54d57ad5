"""Injected faults: the plain world before, another one after, and always the same other one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import envs
from envs.faults import FAULTS, inject
from envs.world import World

AT_STEP = 12
SEEN = {"camera_frozen", "camera_shifted", "object_removed"}
"""The arm itself goes on as before."""


def make(name: str, **options: Any) -> gym.Env:
    return envs.make(name, image_size=32, cameras=("front",), **options)


def run(env: gym.Env, steps: int = 24) -> tuple[list[Any], list[Any], list[Any]]:
    """Pictures, states and infos of an episode of the expert's, from the reset on."""
    observation, info = env.reset(seed=2)
    expert: Any = env.unwrapped.make_expert(2)  # type: ignore[attr-defined]
    expert.reset()
    observations, infos = [observation], [info]
    for _ in range(steps):
        observation, *_, info = env.step(expert.act())
        observations.append(observation)
        infos.append(info)
    pictures = [seen["pixels"]["front"].copy() for seen in observations]
    return pictures, [seen["agent_pos"] for seen in observations], infos


@pytest.mark.parametrize("name", ["pick_place", "push", "reach_around"])
def test_plain_before_and_different_after(name: str) -> None:
    env = make(name)
    pictures, states, infos = run(env)
    for fault in FAULTS:
        wrapped = inject(env, fault, AT_STEP, seed=0)
        for episode in range(2):  # the second like the first
            faulty_pictures, faulty_states, faulty_infos = run(wrapped)
            assert wrapped.active
            for t in range(AT_STEP + 1):
                np.testing.assert_array_equal(faulty_pictures[t], pictures[t])
                np.testing.assert_array_equal(faulty_states[t], states[t])
                assert faulty_infos[t] == infos[t]
            later = range(AT_STEP + 1, len(pictures))
            assert any((faulty_pictures[t] != pictures[t]).any() for t in later), (fault, episode)
            moved = max(np.abs(faulty_states[t] - states[t]).max() for t in later)
            assert (moved > 0.01) == (fault not in SEEN), fault
    env.close()


def test_the_seed_decides() -> None:
    env = make("push")
    for fault in FAULTS.keys() - {"camera_frozen", "action_delayed", "object_removed"}:
        one, same, other = (run(inject(env, fault, 3, seed)) for seed in (0, 0, 1))
        for ours, theirs in zip(one[:2], same[:2], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert any((a != b).any() for a, b in zip(one[0], other[0], strict=True))
    env.close()


def test_what_each_fault_does() -> None:
    env = make("reach")
    world: Any = env.unwrapped
    pictures, *_ = run(env)

    frozen, *_ = run(inject(env, "camera_frozen", AT_STEP, 0))
    for picture in frozen[AT_STEP:]:
        np.testing.assert_array_equal(picture, pictures[AT_STEP])

    shifted, *_ = run(inject(env, "camera_shifted", AT_STEP, 0))
    inside = shifted[-1][8:-8, 8:-8]
    places = [
        (down, right)
        for down in range(-4, 5)
        for right in range(-4, 5)
        if (inside == np.roll(pictures[-1], (down, right), (0, 1))[8:-8, 8:-8]).all()
    ]
    assert len(places) == 1
    assert np.linalg.norm(places[0]) == pytest.approx(0.1 * 32, abs=1.1)

    # Late by five steps: where the arm is commanded to be was asked for then.
    delayed = inject(env, "action_delayed", 0, 0)
    delayed.reset(seed=2)
    hold = world.agent_pos
    asked = [hold + 0.01 * t for t in range(12)]
    for t, action in enumerate(asked):
        delayed.step(action)
        expected = np.clip(asked[t - 5] if t >= 5 else hold, env.action_space.low, None)  # type: ignore[attr-defined]
        np.testing.assert_allclose(world.command, expected, atol=1e-6)

    # Where it sets in later, the arm waits for what was asked of it last: nothing is done twice.
    delayed = inject(env, "action_delayed", 3, 0)
    delayed.reset(seed=2)
    done = []
    for t in range(12):
        delayed.step(hold + 0.01 * t)
        done.append(float(world.command[0] - hold[0]) / 0.01)
    assert done == pytest.approx([0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 5, 6], abs=1e-3)

    for seed in range(4):
        tips = []
        for run_env in (env, inject(env, "arm_pushed", AT_STEP, seed)):
            run_env.reset(seed=2)
            expert = world.make_expert(2)
            expert.reset()
            tips.append([world.tip.copy() for _ in range(40) if run_env.step(expert.act())])
        away = np.linalg.norm(np.array(tips[0]) - np.array(tips[1]), axis=1)
        assert 0.008 < away.max() < 0.06
        assert away[-1] < 0.005  # the push is over

    run(inject(env, "object_removed", AT_STEP, 0))
    assert world.target[2] < -0.3
    red = [
        (p[..., 0] > 150) & (p[..., 1] < 80) for p in (pictures[-1], world.draw("front", (32, 32)))
    ]
    assert red[0].any()
    assert not red[1].any()
    env.close()


def test_what_is_removed_stays_away() -> None:
    env = make("push")
    world: Any = env.unwrapped
    _, _, infos = run(inject(env, "object_removed", 5, 0), steps=110)
    assert world.block.position[2] < -0.3
    assert not infos[-1]["is_success"]
    env.close()


def test_what_cannot_be_is_explained() -> None:
    class Other(World):
        """A world without an arm of ours and without pictures."""

        def __init__(self) -> None:
            self.camera_names = ()
            super().__init__()

    env = envs.make("reach", cameras=())
    with pytest.raises(ValueError, match="no fault 'camera_frosen'. Did you mean 'camera_frozen'"):
        inject(env, "camera_frosen", 3, 0)
    with pytest.raises(ValueError, match="'camera_frozen': it was made without cameras"):
        inject(env, "camera_frozen", 3, 0)
    with pytest.raises(ValueError, match="expected at least 0"):
        inject(env, "action_delayed", -1, 0)
    for fault in ("arm_pushed", "object_removed"):
        with pytest.raises(ValueError, match=f"cannot have the fault '{fault}': only tasks of our"):
            inject(Other(), fault, 3, 0)
    assert inject(Other(), "action_delayed", 3, 0).at_step == 3
    with pytest.raises(ValueError, match="no World"):
        inject(gym.make("CartPole-v1"), "action_delayed", 3, 0)
