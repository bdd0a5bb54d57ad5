"""Held-out material follows from reset seeds that no two parts of a report share."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

import envs
from envs.base import ArmEnv
from envs.kinematics import UnreachableError
from envs.reach import Reach
from policies.evaluation import episode_seeds
from policies.judge.branching import Start
from scripts import _held_out as held_out
from tests.scripts.spots import SpotSuite

SIZE = 24


def arm(**options: Any) -> ArmEnv:
    world = envs.make("reach", image_size=SIZE, cameras=["front"], **options).unwrapped
    assert isinstance(world, ArmEnv)
    return world


def nothing() -> None:
    """A bar that nobody looks at."""


@pytest.mark.parametrize("purpose", ["reported", "sweep"])
def test_no_two_parts_share_a_reset(purpose: str) -> None:
    seeds = held_out.Seeds(3, purpose)
    parts = {part: set(seeds.of(part, 833)) for part in seeds.PARTS}
    parts["policies"] = set(seeds.first(5000))
    for one, other in combinations(parts, 2):
        assert not parts[one] & parts[other], (one, other)
    assert seeds.first(20) == episode_seeds(20, 3, purpose)
    assert min(map(min, parts.values())) > 2**32  # below lie those of demonstrations
    for ask in (lambda: seeds.of("fit", 834), lambda: seeds.first(5001), lambda: seeds.first(0)):
        with pytest.raises(ValueError, match="resets, .* were asked for"):
            ask()


def test_an_episode_is_recorded_frame_by_frame_with_what_leaves_it() -> None:
    world = arm()
    found = held_out.record(world, 7, world.make_expert(7), "expert")
    again = held_out.record(world, 7, world.make_expert(7), "expert")
    assert found.kind == "expert"
    assert len(found) == len(found.state) == len(found.images["front"]) == len(found.success)
    assert not found.success[0]
    assert found.success[-1]
    np.testing.assert_array_equal(found.images["front"], again.images["front"])
    world.reset(seed=7)
    for step in range(5):
        np.testing.assert_array_equal(world.agent_pos, found.state[step])
        np.testing.assert_allclose(world.tip, found.facts["tip"][step])
        world.step(found.action[step])
    assert set(held_out.facts_of(world)) == {"tip"}
    pushed = envs.make("push", cameras=[]).unwrapped
    pushed.reset(seed=1)
    assert isinstance(pushed, ArmEnv)
    assert set(held_out.facts_of(pushed)) == {"tip", "object"}


def test_our_arm_is_explored_and_other_worlds_are_not() -> None:
    advanced: list[int] = []
    found = held_out.episodes(arm(), [1], [2, 3], lambda: advanced.append(1))
    assert found[0].kind == "expert"
    assert "expert" not in [e.kind for e in found][1:]
    assert len(found) == len(advanced) == 3
    suite = held_out.episodes(SpotSuite(), [1, 2], [3], nothing)
    assert [e.kind for e in suite] == ["expert", "expert"]
    assert suite[0].facts == {}


def test_a_film_goes_on_past_the_end_of_play_and_none_is_made_where_no_play_is_possible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = arm()
    films = held_out.long_films(world, [5, 6], 120, nothing)
    assert [len(film) for film in films] == [120, 120]
    assert all(np.abs(np.diff(film.state, axis=0)).max() < 0.3 for film in films)  # no reset
    moved = [np.abs(film.state[60:].std(0)).max() for film in films]
    assert min(moved) > 0.01

    def stuck(self: held_out._Chain) -> None:
        raise UnreachableError("no play is possible")

    monkeypatch.setattr(held_out._Chain, "_another", stuck)
    assert held_out.long_films(world, [5], 20, nothing) == []


def starts_of(seeds: list[int], **settings: Any) -> list[Start]:
    options: dict[str, Any] = {"count": 3, "steps": 8, "past": 2, "past_stride": 2, "apart": 4.0}
    return held_out.branch_starts(arm(), seeds, advance=nothing, **(options | settings))


def test_branches_begin_at_one_present_differ_and_are_the_same_every_time() -> None:
    starts, again = starts_of([11, 12]), starts_of([12, 11])
    assert len(starts) == 2
    for start, same in zip(starts, again[::-1], strict=True):
        np.testing.assert_array_equal(start.actions, same.actions)
        np.testing.assert_array_equal(start.futures["front"], same.futures["front"])
    for start in starts:
        films = start.futures["front"].astype(np.float32)
        assert films.shape == (3, 9, SIZE, SIZE, 3)
        assert start.images["front"].shape[0] == len(start.state) == 2
        for film, joints in zip(start.futures["front"], start.joints, strict=True):
            np.testing.assert_array_equal(film[0], start.images["front"][-1])  # the same now
            np.testing.assert_array_equal(joints[0], start.state[-1])
        for i, j in combinations(range(3), 2):
            assert np.sqrt(np.mean((films[i] - films[j]) ** 2)) >= 4
        assert len(set(start.names)) == 3
    assert not np.array_equal(starts[0].state, starts[1].state)


def test_branches_are_what_the_simulator_makes_of_them() -> None:
    (start,) = starts_of([11])
    world = arm()
    world.reset(seed=11)
    expert = world.make_expert(11)
    expert.reset()
    while not np.array_equal(world.agent_pos, start.state[-1]):
        world.step(expert.act())
    state = world.get_state()
    for actions, joints in zip(start.actions, start.joints, strict=True):
        world.set_state(state)
        for action, after in zip(actions, joints[1:], strict=True):
            world.step(action)
            np.testing.assert_array_equal(world.agent_pos, after)


def test_a_solved_start_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert starts_of([11], apart=200.0) == []  # no two branches differ so much
    info = Reach.task_info
    monkeypatch.setattr(Reach, "task_info", lambda self: info(self) | {"is_success": True})
    assert starts_of([11]) == []


def test_films_that_look_alike_are_passed_over() -> None:
    grey = np.array([10, 11, 40, 12, 41, 90], np.uint8)
    films = {"front": np.broadcast_to(grey[:, None, None, None, None], (6, 2, 4, 4, 3))}
    assert held_out.distinct(films, 3, 10.0) == [0, 2, 5]
    assert held_out.distinct(films, 4, 10.0) is None
    assert held_out.distinct(films, 4, 0.0) == [0, 1, 2, 3]
