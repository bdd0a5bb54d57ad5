"""Planning: one candidate is the policy, the best one wins, what is imagined is what is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit

import policies.equal_cost
import policies.planner
import policies.search
from envs.reach import Reach
from policies.equal_cost import equal_cost_steps
from policies.evaluation import evaluate
from policies.flow_policy import ChunkPolicy, FlowPolicy, Moment, PolicyConfig
from policies.planner import Planner, PlannerConfig
from policies.search import Outlook, SearchConfig, SearchPolicy
from policies.simulator_planner import SimulatorPlanner
from policies.types import Observation, Policy
from tests.policies.test_flow_policy import seen
from tests.policies.worlds import PointWorld, point_world
from tests.worldmodel.models import HORIZON, SPECS, make_checkpoint, make_model, make_spec
from worldmodel.checkpoint import Checkpoint
from worldmodel.data import resize_frames
from worldmodel.imagine import Imagined, imagine
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon
from worldmodel.types import Spec, SpecMismatchError

JUDGED = replace(SPECS["one camera"], has_success=True)
FITTED = replace(JUDGED, action_rank=(4, 4), action_targets=(0, -1))


def opened(spec: Spec = JUDGED, horizon: Horizon = HORIZON, **objective: Any) -> Checkpoint:
    config: dict[str, Any] = {"name": "flow", "any_frame": 0.5, **objective}
    return make_checkpoint(make_model(spec, horizon), ObjectiveConfig(**config))


def make(spec: Spec = JUDGED, objective: dict | None = None, **config: Any) -> FlowPolicy:
    return FlowPolicy(
        opened(spec, **(objective or {})), PolicyConfig(**({"steps": 2, "execute": 3} | config))
    )


def play(policy: ChunkPolicy, rows: list[int], steps: int) -> np.ndarray:
    """Actions ``[steps, slots, A]``; slot i plays row ``rows[i]``, whose seed is 100 + row."""
    policy.reset([100 + row for row in rows])
    active = np.ones(len(rows), bool)
    return np.stack(
        [policy.act(seen(policy.spec, t, rows), active).action.copy() for t in range(steps)]
    )


class Judged(SearchPolicy):
    """Judges chunks ``[R, K, A]`` by a function, and keeps what it was shown."""

    def __init__(
        self, policy: FlowPolicy, value: Callable[[np.ndarray], np.ndarray], **plan: Any
    ) -> None:
        super().__init__(policy, SearchConfig(**plan))
        self.value = value
        self.shown: list[np.ndarray] = []
        self.moments: list[Moment] = []

    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        self.shown.append(chunks.copy())
        self.moments.append(moment)
        value = self.value(chunks)
        return Outlook(value, np.zeros(len(rows)), chunks[:, -1])


def near(target: float) -> Callable[[np.ndarray], np.ndarray]:
    """Minus the squared distance of a chunk's second half from a target."""
    return lambda chunks: -((chunks[:, 3:] - target) ** 2).mean((1, 2))


def first(chunks: np.ndarray) -> np.ndarray:
    """The first one shown is best."""
    return -np.arange(len(chunks), dtype=float)


# --- the policy is among the candidates ----------------------------------------------------------


@pytest.mark.parametrize("spec", [JUDGED, FITTED], ids=["raw", "fitted"])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("plan", [{}, {"lookahead": 2}, {"method": "cem"}], ids=str)
def test_one_candidate_is_the_policy_bit_for_bit(spec: Spec, prefix: int, plan: dict) -> None:
    policy = make(spec, prefix=prefix)
    planner = Planner(policy, plan=PlannerConfig(candidates=1, **plan))
    assert np.array_equal(play(planner, [0, 1], 8), play(policy, [0, 1], 8))
    assert [record.evaluated for record in planner.log] == [1] * 6


@pytest.mark.parametrize("method", ["best_of", "cem"])
def test_candidate_0_is_the_policys_own_among_any_number(method: str) -> None:
    policy = make(FITTED, prefix=2)
    planner = Judged(policy, first, candidates=8, rounds=2, method=method)
    assert np.array_equal(play(planner, [4], 8), play(policy, [4], 8))
    assert {record.chosen for record in planner.log} == {0}


def test_a_planner_is_a_policy_that_can_be_evaluated() -> None:
    planner = Planner(make(), plan=PlannerConfig(candidates=2))
    assert isinstance(planner, Policy)
    assert planner.spec is planner.policy.spec
    assert planner.stamp is planner.policy.stamp
    assert planner.horizon == HORIZON
    assert planner.name == "flow, best_of 2"
    images = {"front": np.zeros((9, 16, 24, 3), np.uint8)}
    frames, at = planner.imagine(images, np.zeros((9, 3)), np.zeros((8, 2)))
    assert (len(frames), at.tolist()) == (5, [0, 2, 4, 6, 8])


# --- choosing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 2])
def test_the_best_candidate_is_executed(prefix: int) -> None:
    policy = make(FITTED, prefix=prefix)
    planner = Judged(policy, near(0.7), candidates=16)
    played = play(planner, [0, 1], 6).swapaxes(0, 1)
    for number in range(2):
        (chunks,) = planner.shown[number : number + 1]
        chunks = chunks.reshape(16, 2, 6, 2)  # candidate, slot
        for slot, record in enumerate(planner.log[2 * number : 2 * number + 2]):
            values = near(0.7)(chunks[:, slot])
            assert (record.slot, record.seed, record.number) == (slot, 100 + slot, number)
            assert np.array_equal(record.values, values)
            assert record.chosen == values.argmax()
            assert record.predicted == values.max()
            assert np.array_equal(record.diversity, chunks[:, slot, -1].astype(float).std(0))
            expected = chunks[record.chosen, slot, :3]
            assert np.array_equal(played[slot, 3 * number : 3 * number + 3], expected)


def test_every_candidate_is_what_the_policy_makes_of_noise_of_its_own() -> None:
    policy = make(FITTED, prefix=2)
    planner = Judged(policy, near(0.7), candidates=4)
    play(planner, [0], 6)
    for number, moment in enumerate(planner.moments):
        assert (moment.committed is None) == (number == 0)
        for j in range(4):
            alone, _ = policy.propose(moment, policy.noise(100, number, j)[None])
            np.testing.assert_allclose(planner.shown[number][j], alone[0], atol=1e-4)
            if moment.committed is not None:
                assert np.array_equal(planner.shown[1][j, :2], moment.committed[0])
    noises = np.stack([policy.noise(100, 0, j) for j in range(200)])
    assert len({noise.tobytes() for noise in noises}) == 200
    assert abs(np.corrcoef(noises[:-1].ravel(), noises[1:].ravel())[0, 1]) < 0.1


def test_more_candidates_find_more() -> None:
    found = []
    for count in (1, 4, 16):
        planner = Judged(make(), near(0.7), candidates=count)
        play(planner, [0, 1, 2, 3], 1)
        found.append(np.mean([record.predicted for record in planner.log]))
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize("plan", [{}, {"lookahead": 2}, {"method": "cem"}], ids=str)
def test_decisions_follow_from_the_seed_in_any_slot_and_company(plan: dict) -> None:
    planner = Planner(make(FITTED, prefix=1), plan=PlannerConfig(candidates=6, **plan))
    together = play(planner, [0, 1, 2], 7)
    records = {(r.seed, r.number): r for r in planner.log}
    planner.log.clear()
    assert np.array_equal(play(planner, [0, 1, 2], 7), together)
    for row in range(3):
        planner.log.clear()
        alone = play(planner, [row], 7)[:, 0]
        np.testing.assert_allclose(alone, together[:, row], atol=1e-4)
        for record in planner.log:
            same = records[record.seed, record.number]
            assert record.chosen == same.chosen
            np.testing.assert_allclose(record.values, same.values, atol=1e-4)
    assert {r.chosen for r in records.values()} != {0}


def test_batches_are_bounded_and_change_nothing() -> None:
    whole = Judged(make(), near(0.7), candidates=8)
    parts = Judged(make(), near(0.7), candidates=8, max_rows=5)
    rows = [0, 1, 2]
    np.testing.assert_allclose(play(parts, rows, 4), play(whole, rows, 4), atol=1e-4)
    assert [len(chunks) for chunks in whole.shown] == [24, 24]
    assert [len(chunks) for chunks in parts.shown] == [5, 5, 5, 5, 4] * 2
    for part, record in zip(parts.log, whole.log, strict=True):
        assert part.evaluated == 8
        np.testing.assert_allclose(part.values, record.values, atol=1e-4)


def test_a_value_that_is_not_finite_is_refused() -> None:
    planner = Judged(make(), lambda chunks: np.full(len(chunks), np.nan), candidates=2)
    with pytest.raises(ValueError, match="a value that is not finite"):
        play(planner, [0], 1)


# --- a limited time ------------------------------------------------------------------------------


class SlowJudge(Judged):
    """10 ms a candidate, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *arguments: Any, **plan: Any) -> None:
        super().__init__(*arguments, **plan)
        self.seconds = 0.0
        clock = SimpleNamespace(perf_counter=lambda: self.seconds)
        monkeypatch.setattr(policies.search, "time", clock)

    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        self.seconds += 0.01 * len(rows)
        return super().outlook(moment, rows, chunks)


def test_when_time_is_up_the_best_so_far_is_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = SlowJudge(monkeypatch, make(), near(0.7), candidates=16, budget_ms=45)
    played = play(planner, [0], 1)
    (record,) = planner.log
    assert record.evaluated == 4
    assert record.ms == pytest.approx(40)
    assert np.isnan(record.values).tolist() == [False] * 4 + [True] * 12
    chunks = np.concatenate(planner.shown)
    values = near(0.7)(chunks)
    assert record.predicted == values.max()
    assert np.array_equal(played[0, 0], chunks[values.argmax(), 0])
    assert np.isfinite(record.diversity).all()


def test_candidates_of_all_slots_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = SlowJudge(monkeypatch, make(), near(0.7), candidates=16, budget_ms=65)
    play(planner, [0, 1, 2], 1)
    assert [record.evaluated for record in planner.log] == [2, 2, 2]


def test_without_any_time_the_policy_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make()
    expected = play(policy, [0], 4)
    planner = SlowJudge(monkeypatch, policy, near(0.7), candidates=16, budget_ms=45)
    choose = policy.choose

    def slowly(moment: Moment) -> tuple[np.ndarray, dict[str, float]]:
        planner.seconds += 0.05
        return choose(moment)

    monkeypatch.setattr(policy, "choose", slowly)
    assert np.array_equal(play(planner, [0], 4), expected)
    assert [record.evaluated for record in planner.log] == [0, 0]
    assert np.isnan(planner.log[0].predicted)
    assert np.isnan(planner.log[0].diversity).all()


def test_a_slow_first_decision_is_not_held_against_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planner = SlowJudge(monkeypatch, make(), near(0.7), candidates=8, budget_ms=85)
    planner._pace[1] = 1000.0
    play(planner, [0], 4)
    assert [record.evaluated for record in planner.log] == [8, 8]


# --- cem -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_refining_finds_what_sampling_does_not(spread: float) -> None:
    sampled = Judged(make(FITTED), near(1.5), candidates=48)
    refined = Judged(make(FITTED), near(1.5), candidates=48, method="cem", spread=spread)
    for planner in (sampled, refined):
        play(planner, list(range(12)), 1)
    pairs = zip(refined.log, sampled.log, strict=True)
    gains = np.array([r.predicted - s.predicted for r, s in pairs])
    assert gains.mean() > 0.2
    assert (gains > 0).mean() > 0.8
    # Round by round, and the best of all rounds is taken.
    rounds = np.array([r.values.reshape(4, 12).mean(1) for r in refined.log]).mean(0)
    assert (np.diff(rounds) > 0).all()
    assert all(record.predicted == record.values.max() for record in refined.log)


def test_a_round_has_two_candidates_at_least() -> None:
    planner = Judged(make(), near(0.7), candidates=5, method="cem", rounds=4)
    play(planner, [0], 1)
    assert [len(chunks) for chunks in planner.shown] == [3, 2]


def test_the_best_is_kept_even_if_every_refinement_is_worse() -> None:
    best = []

    def only_once(chunks: np.ndarray) -> np.ndarray:
        values = near(0.7)(chunks)
        best.append(values)
        return values if len(best) == 1 else values - 100

    planner = Judged(make(), only_once, candidates=12, method="cem", rounds=3, max_rows=4)
    play(planner, [0], 1)
    assert planner.log[0].chosen == best[0].argmax() < 4


@pytest.mark.parametrize("prefix", [0, 2])
def test_refined_chunks_are_as_smooth_as_sampled_ones(prefix: int) -> None:
    policy = make(replace(FITTED, action_rank=(3, 3)), prefix=prefix)
    planner = Judged(policy, near(1.5), candidates=32, method="cem", spread=0.2)
    play(planner, [0, 1], 6)
    for chunks in planner.shown:
        # Polynomials of 3 coefficients.
        assert np.abs(np.diff(chunks[:, prefix:], n=3, axis=1)).max() < 1e-3
    # Committed actions stay, and what follows them departs slowly.
    later = np.concatenate(planner.shown[4:])
    for slot in range(2):
        rows = later[slot::2]
        if prefix:
            assert np.ptp(rows[:, :prefix], axis=0).max() == 0
        assert (rows[:, prefix].std(0) < 0.5 * rows[:, -1].std(0)).all()


def test_a_switch_is_not_refined() -> None:
    """What no polynomial follows comes from a sample of the policy as it is."""
    planner = Judged(
        make(replace(JUDGED, action_rank=(4, 0))), near(1.5), candidates=24, method="cem"
    )
    play(planner, [0], 1)
    sampled, *refined = planner.shown
    switches = {chunk[:, 1].tobytes() for chunk in sampled}
    assert {chunk[:, 1].tobytes() for part in refined for chunk in part} <= switches


# --- what is imagined ----------------------------------------------------------------------------


def regression(spec: Spec = JUDGED, **config: Any) -> FlowPolicy:
    """Models without noise can be asked again."""
    return make(spec, {"name": "regression"}, **config)


class Varied(Planner):
    """Its candidates differ although the policy is without noise; it keeps them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.shown: list[np.ndarray] = []

    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        which = np.arange(len(chunks), dtype=np.float32)
        chunks[:] += 0.2 * which[:, None, None]
        self.shown.append(chunks.copy())
        return super().outlook(moment, rows, chunks)


def window(
    world: Checkpoint, rows: list[int], now: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the world model is given at step `now` of these rows, the first frame repeated."""
    h = world.model.horizon
    times = [max(0, now - k * h.past_stride) for k in reversed(range(h.past))]
    at = [seen(world.spec, t, rows) for t in times]
    video = {}
    for camera in world.spec.cameras:
        frames = np.stack([o.images[camera] for o in at], 1)
        small = resize_frames(torch.from_numpy(frames).movedim(-1, -3), world.spec.image_size)
        video[camera] = small
    return video, torch.from_numpy(np.stack([o.state for o in at], 1))


WORLDS = {
    "its own": HORIZON,
    "a longer past": Horizon(past=3, past_stride=2, future=3, future_stride=2, chunk=6),
    "longer chunks": Horizon(past=2, past_stride=1, future=1, future_stride=4, chunk=9),
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("every", [None, 1])
def test_values_are_what_the_world_model_says_of_each_candidate(
    name: str, every: int | None
) -> None:
    policy = regression()
    world = None
    if WORLDS[name] != HORIZON:
        larger = replace(JUDGED, image_size=(24, 32))
        world = opened(larger, WORLDS[name], name="regression")
    planner = Varied(policy, world, PlannerConfig(candidates=3, every=every))
    play(planner, [5], 7)
    world = world or policy.checkpoint
    for number, record in enumerate(planner.log):
        video, state = window(world, [5] * 3, 3 * number)
        actions = torch.from_numpy(planner.shown[number])
        found = imagine(world, video, state, actions, steps=1, every=every)
        assert found.success is not None
        assert found.state is not None
        np.testing.assert_allclose(record.values, found.success.amax(1), atol=1e-4)
        np.testing.assert_allclose(record.final, found.state[:, -1], atol=1e-3)
        assert record.diversity.max() > 0
        assert np.ptp(record.values) > 1e-4


@pytest.mark.parametrize("prefix", [0, 1])
def test_looking_ahead_is_the_policy_going_on_in_imagination(prefix: int) -> None:
    # One frame a question: `imagine` groups frames otherwise than a planner with less to ask.
    single = Horizon(past=2, past_stride=2, future=1, future_stride=2, chunk=6)
    world = opened(FITTED, single, name="regression")
    config = PolicyConfig(execute=3, prefix=prefix)
    policy = FlowPolicy(world, config)
    planner = Planner(policy, plan=PlannerConfig(candidates=1, lookahead=2, every=1))
    play(planner, [5], 4)
    record = planner.log[1]
    assert record.number == 1
    # The same by hand: the second chunk, three steps imagined, a third chunk, and what follows.
    plain = FlowPolicy(world, config)
    played = play(plain, [5], 4)[:, 0]
    chunk = plain._chunk[0].copy()
    video, state = window(world, [5], 3)
    near_future = imagine(world, video, state, torch.from_numpy(chunk[None, :3]), steps=1, every=1)
    assert near_future.state is not None
    frames = {t: near_future.video["front"][0, i] for i, t in enumerate((1, 2, 3))}
    past = {"front": torch.stack([frames[1], frames[3]]).movedim(-3, -1).numpy()[None]}
    states = near_future.state[:, [0, 2]].numpy()
    later = Moment(
        np.array([0]), np.array([105]), np.array([2]), past, states, None,
        chunk[None, :3], chunk[None, 3 : 3 + prefix] if prefix else None,
    )  # fmt: skip
    third, _ = plain.choose(later)
    after = imagine(
        world, {"front": torch.from_numpy(past["front"]).movedim(-1, -3)},
        torch.from_numpy(states), torch.from_numpy(third), steps=1, every=1,
    )  # fmt: skip
    assert near_future.success is not None
    assert after.success is not None
    assert after.state is not None
    expected = max(float(near_future.success.max()), float(after.success.max()))
    assert record.predicted == pytest.approx(expected, abs=1e-4)
    np.testing.assert_allclose(record.final[0], after.state[0, -1], atol=1e-3)
    assert np.array_equal(played[3], chunk[0])


def test_all_candidates_go_on_with_the_noise_that_the_policy_will_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make()
    drawn: list[tuple[int, ...]] = []
    noise = policy.noise

    def note(*numbers: int) -> np.ndarray:
        drawn.append(numbers)
        return noise(*numbers)

    monkeypatch.setattr(policy, "noise", note)
    play(Planner(policy, plan=PlannerConfig(candidates=3, lookahead=3)), [0], 1)
    assert drawn == [(100, 0), (100, 0, 1), (100, 0, 2), *[(100, 1)] * 3, *[(100, 2)] * 3]


def test_success_sooner_and_longer_wins_among_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked about three futures: never, late, soon."""
    success = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.99], [0.1, 0.985, 0.99]])

    def answers(world: Checkpoint, question: Any, video: Any, *_: Any) -> Imagined:
        return Imagined(video, None, torch.tensor(question.offsets), success)

    monkeypatch.setattr(policies.planner, "ask", answers)
    planner = Planner(make(), plan=PlannerConfig(candidates=3))
    play(planner, [0], 1)
    (record,) = planner.log
    assert record.values.tolist() == pytest.approx([0.1, 0.99, 0.99])
    assert record.chosen == 2


def test_a_grid_of_frames_is_kept_to() -> None:
    world = make(objective={"any_frame": 0.0}, execute=2)
    assert Planner(world, plan=PlannerConfig(lookahead=3))._windows == [[(2,)], [(2,)], [(2, 4)]]
    every = make(execute=3)
    found = Planner(every, plan=PlannerConfig(lookahead=2))._windows
    assert found == [[(1, 2), (3,)], [(2, 4), (6,)]]


# --- a goal --------------------------------------------------------------------------------------


def test_the_next_episode_of_a_slot_has_not_the_goal_of_the_last_one() -> None:
    planner = Planner(regression(SPECS["one camera"]), plan=PlannerConfig(score="goal"))
    planner.reset([1, 2])
    for slot in (0, 1):
        planner.set_goal({"front": np.full((16, 24, 3), 255, np.uint8)}, slot)
    planner.reset_slots([1], [3])
    assert planner._goal_of(0) is not None
    with pytest.raises(RuntimeError, match="slot 1 has no goal"):
        planner._goal_of(1)


def test_the_candidate_that_leads_to_the_goal_is_executed() -> None:
    policy = regression(SPECS["two cameras"])
    planner = Varied(policy, None, PlannerConfig(candidates=5, score="goal"))
    planner.set_goal({c: np.zeros((16, 24, 3), np.uint8) for c in ("front", "wrist")})
    play(planner, [5], 1)
    video, state = window(policy.checkpoint, [5] * 5, 0)
    futures = imagine(policy.checkpoint, video, state, torch.from_numpy(planner.shown[0]), steps=1)
    for wanted in (1, 4):
        goal = {c: v[wanted, -1].movedim(0, -1).numpy() for c, v in futures.video.items()}
        planner.set_goal(goal, slot=0)
        planner.log.clear()
        play(planner, [5], 1)
        (record,) = planner.log
        assert record.chosen == wanted
        assert record.predicted == pytest.approx(0, abs=1e-3)
        assert (np.delete(record.values, wanted) < -1e-3).all()


def test_a_still_background_does_not_count() -> None:
    """The same error is worth the same, however large the picture around it is."""
    planner = Planner(make(), plan=PlannerConfig(score="goal"))
    start = torch.full((1, 3, 16, 24), 100, dtype=torch.uint8)
    goal, end, noisy = start.clone(), start.clone(), start + 5
    goal[..., :4, :4] = 200
    end[..., :4, 2:6] = 200
    planner.set_goal({"front": goal[0].movedim(0, -1).numpy()})

    def distance(frame: torch.Tensor) -> float:
        return float(planner._distance(np.array([0]), {"front": start}, {"front": frame}))

    assert distance(goal) == 0
    assert distance(start) == pytest.approx(100 / 255)
    assert distance(noisy) == pytest.approx(95 / 255)
    # Half of it is there; the other half moved where nothing should have.
    assert distance(end) == pytest.approx(100 / 255)


def test_a_goal_must_be_a_picture_of_the_models_cameras() -> None:
    planner = Planner(make(), plan=PlannerConfig(candidates=1, score="goal"))
    with pytest.raises(RuntimeError, match="slot 0 has no goal; call set_goal first"):
        play(planner, [0], 1)
    with pytest.raises(ValueError, match=r"cameras \['front'\], found \['wrist'\]"):
        planner.set_goal({"wrist": np.zeros((16, 24, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"camera front has float64 \[16, 24, 3\]"):
        planner.set_goal({"front": np.zeros((16, 24, 3))})


# --- the true simulator --------------------------------------------------------------------------


class SavedWorld(PointWorld):
    """A point that does not slip, and can be put back."""

    pictures = 0

    def get_state(self) -> np.ndarray:
        return np.concatenate([self.position, self.goal])

    def set_state(self, state: np.ndarray) -> None:
        self.position, self.goal = state[:2].copy(), state[2:].copy()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.position = self.position + 0.5 * (np.asarray(action) - self.position)
        observation, info = self._see()
        return observation, 0.0, info["is_success"], False, info

    def _picture(self) -> np.ndarray:
        self.pictures += 1
        return super()._picture()


POINT = replace(make_spec(state_dim=2), tasks=())


def worlds(count: int) -> list[SavedWorld]:
    made = [SavedWorld() for _ in range(count)]
    for seed, world in enumerate(made, start=1):
        world.reset(seed=seed)
    return made


def look(made: Sequence[SavedWorld]) -> Observation:
    pairs = [world._see()[0] for world in made]
    images = np.stack([p["pixels"]["front"] for p in pairs])
    return Observation({"front": images}, np.stack([p["agent_pos"] for p in pairs]))


def test_trying_in_the_simulator_leaves_it_as_it_was() -> None:
    made = worlds(2)
    planner = SimulatorPlanner(make(POINT), made, SearchConfig(candidates=8))
    observation, states = look(made), [world.get_state() for world in made]
    planner.reset([7, 8])
    before = [world.pictures for world in made]
    planner.act(observation, np.ones(2, bool))
    for world, state, pictures in zip(made, states, before, strict=True):
        assert np.array_equal(world.get_state(), state)
        assert world.pictures == pictures
        assert world.cameras == ("front",)
    assert all(record.evaluated == 8 for record in planner.log)


@pytest.mark.parametrize("steps", [None, 2])
def test_the_truly_best_candidate_is_executed(steps: int | None) -> None:
    policy = make(POINT)
    made = worlds(1)
    planner = SimulatorPlanner(
        policy, made, SearchConfig(candidates=12), horizon_steps=steps, scale=0.5
    )
    proposing = Judged(policy, first, candidates=12)
    for seed in range(4):
        for each in (planner, proposing):
            each.reset([seed])
            each.act(look(made), np.ones(1, bool))
        record = planner.log[seed]
        distances, ends = [], []
        for chunk in proposing.shown[seed]:
            (twin,) = worlds(1)
            for action in chunk[:steps]:
                _, _, _, _, info = twin.step(action)
            distances.append(info["distance"])
            ends.append(twin.position)
        assert min(distances) > 0.1
        np.testing.assert_allclose(record.values, -2 * np.array(distances))
        np.testing.assert_allclose(record.final, ends, atol=1e-6)
        assert record.chosen == np.argmin(distances)
    assert any(record.chosen for record in planner.log)


def test_success_in_the_simulator_is_worth_1_and_better_sooner() -> None:
    (world,) = worlds(1)
    planner = SimulatorPlanner(make(POINT), [world])
    goal = np.repeat(world.goal[None].astype(np.float32), 6, axis=0)
    late = goal.copy()
    late[:2] = 0
    soon, later, never = (planner._try(world, actions) for actions in (goal, late, 0 * goal))
    assert soon[0] == later[0] == 1
    assert 0 < later[1] < soon[1] <= 1
    assert never[:2] == (pytest.approx(-np.linalg.norm(world.goal), abs=0.05), 0.0)


def test_an_arm_moves_on_bit_for_bit_after_the_simulator_was_used() -> None:
    names = Reach.state_names
    stats = {
        kind: {name: list(np.resize(v, 8)) for name, v in table.items()}
        for kind, table in POINT.stats.items()
    }
    spec = replace(
        SPECS["no camera"], state_names=names, action_names=names, stats=stats, has_success=True
    )
    policy = make(spec)
    left, right = Reach(cameras=()), Reach(cameras=())
    planner = SimulatorPlanner(policy, [left], SearchConfig(candidates=3))
    here, there = left.reset(seed=3)[0], right.reset(seed=3)[0]
    planner.reset([3])
    for _ in range(7):
        action = planner.act(Observation({}, here["agent_pos"][None]), np.ones(1, bool)).action[0]
        here, there = left.step(action)[0], right.step(action)[0]
        assert np.array_equal(here["agent_pos"], there["agent_pos"])
        assert np.array_equal(left.get_state(), right.get_state())
    assert len(planner.log) == 3


def test_wrappers_are_left_alone() -> None:
    env = TimeLimit(SavedWorld(), 9)
    env.unwrapped.spec = point_world(9).unwrapped.spec
    planner = SimulatorPlanner(make(POINT), [env], SearchConfig(candidates=4))
    evaluation = evaluate(planner, [env], [1, 2])
    assert all(e.success or e.steps == 9 for e in evaluation.episodes)
    alone = SimulatorPlanner(make(POINT), [env], SearchConfig(candidates=1))
    plain = evaluate(make(POINT), [env], [1, 2])
    for a, b in zip(evaluate(alone, [env], [1, 2]).episodes, plain.episodes, strict=True):
        assert np.array_equal(a.commands, b.commands)
        assert np.array_equal(a.positions, b.positions)


def test_a_world_that_cannot_be_put_back_is_refused() -> None:
    with pytest.raises(TypeError, match="PointWorld cannot be planned in: it has no get_state"):
        SimulatorPlanner(make(POINT), [point_world()])
    (world,) = worlds(1)
    planner = SimulatorPlanner(make(POINT), [world], SearchConfig(candidates=1))
    with pytest.raises(ValueError, match="slot 1 has no simulator; 1 were given"):
        play(planner, [0, 1], 1)
    world.get_state = lambda: None  # type: ignore[method-assign, return-value, assignment]
    with pytest.raises(ValueError, match=r"cannot be saved \(get_state gave None\)"):
        play(planner, [0], 1)


@pytest.mark.parametrize("options", [{"horizon_steps": 0}, {"horizon_steps": 7}, {"scale": 0.0}])
def test_trying_more_than_there_is_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="horizon_steps is from 1 to 6"):
        SimulatorPlanner(make(POINT), worlds(1), **options)


# --- the same time -------------------------------------------------------------------------------


def test_equal_cost_is_read_off_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: seconds[0])
    monkeypatch.setattr(policies.equal_cost, "time", clock)
    planner = Planner(make(), plan=PlannerConfig(candidates=2))
    play(planner, [0], 1)
    act = FlowPolicy.act

    def timed(policy: FlowPolicy, *arguments: Any) -> Any:
        seconds[0] += 1e-3 * (4 + 2 * policy.config.steps)
        return act(policy, *arguments)

    def planned(*arguments: Any) -> Any:
        seconds[0] += 30e-3
        return ChunkPolicy.act(planner, *arguments)

    monkeypatch.setattr(FlowPolicy, "act", timed)
    monkeypatch.setattr(planner, "act", planned)
    cost = equal_cost_steps(planner, seen(planner.spec, 0, [0, 1]), repeats=2)
    assert cost.steps == 13  # 4 + 2 * 13 = 30
    assert cost.planner_ms == pytest.approx(30)
    assert (cost.policy_ms, cost.step_ms) == (pytest.approx(6), pytest.approx(2))
    assert len(planner.log) == 1


def test_equal_cost_of_a_regression_model_means_nothing() -> None:
    planner = Planner(regression(), plan=PlannerConfig(candidates=1))
    with pytest.raises(ValueError, match="answers in one step"):
        equal_cost_steps(planner, seen(planner.spec, 0, [0]))
    with pytest.raises(ValueError, match="probe is at least 2"):
        equal_cost_steps(Planner(make()), seen(planner.spec, 0, [0]), probe=1)


# --- what is refused -----------------------------------------------------------------------------


def test_a_world_model_of_another_robot_is_refused() -> None:
    other = opened(replace(JUDGED, action_names=("a", "c")))
    with pytest.raises(SpecMismatchError, match="the world model does not fit the policy: action"):
        Planner(make(), other)


def test_a_world_model_that_cannot_judge_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot tell success.* or use score=goal"):
        Planner(make(SPECS["one camera"]))
    blind = make(SPECS["no camera"])
    with pytest.raises(ValueError, match="compares pictures; this world model has no camera"):
        Planner(blind, plan=PlannerConfig(score="goal"))


@pytest.mark.parametrize(
    ("execute", "plan", "message"),
    [
        (3, {"lookahead": 2}, r"knows the frames \[2, 4\] of a window only, and \[1, 2, 3\]"),
        (3, {"every": 1}, r"knows the frames \[2, 4\]"),
        (6, {"lookahead": 2}, "6 actions are executed of a chunk, and the world model sees 4"),
        (3, {"every": 5}, "every=5: the distance of frames is from 1 to 4"),
        (3, {"every": 0}, "every=0"),
    ],
)
def test_frames_that_the_world_model_does_not_know_are_refused(
    execute: int, plan: dict, message: str
) -> None:
    policy = make(objective={"any_frame": 0.0}, execute=execute)
    with pytest.raises(ValueError, match=message):
        Planner(policy, plan=PlannerConfig(**plan))


def test_a_world_model_without_a_future_is_refused() -> None:
    world = opened(JUDGED, replace(HORIZON, future=0))
    with pytest.raises(ValueError, match="without future frames"):
        Planner(make(), world)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 0}, "candidates must be at least 1, found 0"),
        ({"method": "bestof"}, "unknown method 'bestof'. Did you mean 'best_of'"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"elites": 0.0}, "elites=0.0"),
        ({"elites": 1.5}, "elites=1.5"),
        ({"spread": -0.1}, "spread=-0.1"),
        ({"budget_ms": 0.0}, "budget_ms must be above 0"),
        ({"score": "succes"}, "unknown score 'succes'. Did you mean 'success'"),
        ({"lookahead": 0}, "lookahead must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlannerConfig(**options)
