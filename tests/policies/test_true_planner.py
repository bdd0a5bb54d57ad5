"""Planning with true frames: what is looked at is what happens, and worlds are left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.judge.decisions import lacking
from policies.planner import PlannerConfig
from policies.true_planner import JUDGES, TruePlanner
from tests.policies.test_planner import POINT, SavedWorld, look, make, worlds
from tests.policies.worlds import point_world

TRUE = replace(POINT, has_success=True)


@pytest.mark.parametrize("judge", JUDGES)
def test_worlds_are_left_as_they_were(judge: str) -> None:
    made = worlds(2)
    plan = PlannerConfig(candidates=4, lookahead=2)
    planner = TruePlanner(make(TRUE), made, plan=plan, judge=judge)
    observation, states = look(made), [world.get_state() for world in made]
    planner.reset([7, 8])
    planner.act(observation, np.ones(2, bool))
    for world, state in zip(made, states, strict=True):
        assert np.array_equal(world.get_state(), state)
        assert world.cameras == ("front",)
    assert [record.evaluated for record in planner.log] == [4, 4]


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("lookahead", [1, 2, 3])
def test_what_is_looked_at_is_what_happens(lookahead: int, judge: str) -> None:
    """One candidate is the policy: where it is seen to end is where the policy alone gets to."""
    (world,) = worlds(1)
    policy = make(TRUE)
    plan = PlannerConfig(candidates=1, lookahead=lookahead, every=1)
    planner = TruePlanner(policy, [world], plan=plan, judge=judge)
    planner.reset([7])
    planner.act(look([world]), np.ones(1, bool))
    (record,) = planner.log
    policy.reset([7])
    chunk, execute = policy.horizon.chunk, policy.config.execute
    (twin,) = worlds(1)
    for step in range((lookahead - 1) * execute + chunk):
        if step <= (lookahead - 1) * execute:
            action = policy.act(look([twin]), np.ones(1, bool)).action[0]
        else:
            action = policy._chunk[0, step - (lookahead - 1) * execute]
        _, _, _, _, info = twin.step(action)
    np.testing.assert_allclose(record.final[0], twin.position, atol=1e-5)
    if judge == "outcome":
        assert info["distance"] > 0.1
        assert record.predicted == pytest.approx(-info["distance"], abs=1e-5)
    else:
        assert 0 < record.predicted < 1


def test_the_truly_best_candidate_is_executed() -> None:
    (world,) = worlds(1)
    planner = TruePlanner(make(TRUE), [world], plan=PlannerConfig(candidates=8, every=1))
    for seed in range(3):
        planner.reset([seed])
        planner.act(look([world]), np.ones(1, bool))
        record = planner.log[seed]
        assert record.chosen == np.argmax(record.values)
        assert len(np.unique(record.values)) == 8


def test_a_solved_task_is_worth_1_whatever_comes_after() -> None:
    (world,) = worlds(1)
    planner = TruePlanner(make(TRUE), [world], plan=PlannerConfig(every=1))
    success = torch.tensor([[-0.3, 1.0, 1.0], [-0.1, -0.2, -0.3]])
    assert planner.worth(success).tolist() == pytest.approx([1.0, -0.3])
    head = TruePlanner(make(TRUE), [world], plan=PlannerConfig(every=1), judge="head")
    assert head.worth(success).tolist() == pytest.approx([1.0, -0.1])


def test_the_head_is_asked_about_true_frames() -> None:
    """Its word on a candidate is that of a model that is asked for the frame after true ones."""
    (world,) = worlds(1)
    policy = make(TRUE)
    planner = TruePlanner(policy, [world], plan=PlannerConfig(every=3), judge="head")
    assert planner.pictures >= {2, 3, 5, 6}
    seen = []
    model = planner.world.model
    encode = model.encode

    def note(given, *rest, **options):
        seen.append(given["video/front"])
        return encode(given, *rest, **options)

    planner.reset([1])
    model.encode = note  # type: ignore[method-assign]
    planner.act(look([world]), np.ones(1, bool))
    frames = torch.cat([v.flatten(0, 1) for v in seen])
    assert frames.unique().numel() < 8  # of one white pixel, resized: not what a model draws


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="judge is one of"):
        TruePlanner(make(TRUE), worlds(1), judge="crystal ball")
    with pytest.raises(TypeError, match="PointWorld cannot be saved"):
        TruePlanner(make(TRUE), [point_world()])
    (world,) = worlds(1)
    world.get_state = lambda: None  # type: ignore[method-assign, return-value, assignment]
    planner = TruePlanner(make(TRUE), [world])
    planner.reset([1])
    with pytest.raises(ValueError, match=r"cannot be saved \(get_state gave None\)"):
        planner.act(look([world]), np.ones(1, bool))
    assert isinstance(world, SavedWorld)


def test_what_is_lacking_is_told_apart_on_the_same_resets(run_of) -> None:
    alone, planner = run_of([0, 0, 1, 0, 1]), run_of([0, 1, 1, 0])
    truer = {"true frames, head": run_of([1, 1, 1, 0]), "true frames, outcome": run_of([1] * 4)}
    part = lacking(16, alone, planner, truer)
    assert part["n"] == 4
    assert {name: value["k"] for name, value in part["success"].items()} == {
        "policy alone": 1,
        "imagined frames, head": 2,
        "true frames, head": 3,
        "true frames, outcome": 4,
    }
    assert [value["difference"] for value in part["gained"].values()] == [0.25, 0.25, 0.25]
    with pytest.raises(ValueError, match="on other resets"):
        lacking(16, alone, planner, {"true frames, head": run_of([1, 1], first=5)})


@pytest.fixture
def run_of():
    """An evaluation with these outcomes, on resets from `first`."""
    from policies.evaluation import Episode, Evaluation

    def made(outcomes: list[int], first: int = 0) -> Evaluation:
        nothing = np.zeros((1, 2))
        episodes = [
            Episode(
                seed=first + i, success=bool(o), solved_at_reset=False, success_step=None, mode="",
                commands=nothing, positions=nothing, chunk_starts=np.zeros(1, int), trace=None,
                distance=0.0,
            )
            for i, o in enumerate(outcomes)
        ]  # fmt: skip
        return Evaluation("p", 10.0, episodes, [], 1, 0.0)

    return made
