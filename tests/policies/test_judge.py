"""Judging finds a perfect model perfect, a deaf one deaf, and looks at nothing it should not.

The world is the soft spot of the monitor's tests: an oracle knows how it moves, a deaf model
believes that nobody does anything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import policies.judge.prediction as module
from policies.evaluation import Episode, Evaluation
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.judge.branching import Start, branching
from policies.judge.decisions import decision_lift, exploitability
from policies.judge.drift import drift
from policies.judge.inverse import InverseModel, inverse
from policies.judge.prediction import following, imagined, prediction
from policies.judge.probe import Probe
from policies.judge.recorded import Recorded, Windows, cut, hold, mean_frame
from policies.judge.report import completed
from policies.judge.returns import Degraded, calibrate_success, return_correlation
from policies.judge.speed import frames_per_s
from policies.judge.success import success_auroc
from policies.search import Record
from policies.types import Policy
from tests.policies.test_flow_policy import seen
from tests.policies.test_monitor import HORIZON, SPEC, Oracle, SpotWorld, commands, oracle
from tests.worldmodel.models import SPECS, make_checkpoint, make_model
from worldmodel.imagine import Imagined
from worldmodel.imagined_env import Dream
from worldmodel.model import Patches, Prediction
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon, Pattern


class Deaf(Oracle):
    """Knows the world, and hears no action: it believes that all are zero."""

    def answer(self, asked: Pattern, given: Patches, *rest: Any, **more: Any) -> Prediction:
        still = self.inputs.normalize("action", torch.zeros(len(given["action"]), 8, 2))
        return super().answer(asked, {**given, "action": still}, *rest, **more)


class Fading(Oracle):
    """Right about the joints, and each frame it looks back on a little brighter."""

    def answer(self, asked: Pattern, given: Patches, *rest: Any, **more: Any) -> Prediction:
        found = super().answer(asked, given, *rest, **more)
        found.data["video/front"] = (found.data["video/front"] + 0.4).clamp(max=1)
        return found


def like(kind: type[Oracle]) -> Oracle:
    """A model of this kind, which is not asked what was done."""
    base = dataclasses.replace(
        oracle(), objective=ObjectiveConfig(any_frame=0.5, patterns={"act": 0.5, "forward": 0.5})
    )
    return kind(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)})


def recorded(seed: int, steps: int = 40, solved_from: int | None = None) -> Recorded:
    """An episode of the spot; its place is the fact "tip"."""
    world = SpotWorld(slip=0.0)
    observation, _ = world.reset(seed=seed)
    frames, states, tips = [], [], []
    plan = commands(seed, steps)
    for action in plan:
        frames.append(observation["pixels"]["front"])
        states.append(observation["agent_pos"])
        tips.append(np.append(world.position, 0.0))
        observation, _ = world.step(action)[0], None
    success = np.arange(steps) >= (steps if solved_from is None else solved_from)
    return Recorded(
        {"front": np.stack(frames)}, np.stack(states), plan, success, {"tip": np.stack(tips)},
        "play" if seed % 2 else "expert",
    )  # fmt: skip


def windows_of(episodes: Sequence[Recorded], ahead: int = 8, each: int = 4, **more: Any) -> Windows:
    return cut(episodes, SPEC, past=1, past_stride=1, ahead=ahead, each=each, **more)


@pytest.fixture(scope="module")
def windows() -> Windows:
    return windows_of([recorded(seed) for seed in range(100, 108)])


@pytest.fixture(scope="module")
def others() -> list[Recorded]:
    """Episodes that nothing is judged on."""
    return [recorded(seed) for seed in range(30)]


@pytest.fixture(scope="module")
def probe(others: list[Recorded]) -> Probe:
    some = windows_of(others, ahead=1, each=30)
    facts = {n: v[:, 0].numpy() for n, v in some.facts.items()}
    return Probe({"front": some.video["front"][:, 0]}, facts, some.episode)


# --- what is looked at ---------------------------------------------------------------------------


def test_windows_hold_what_was_and_what_followed_and_end_inside_the_episode():
    episodes = [recorded(3, steps=20), recorded(4, steps=9), recorded(5, steps=5)]
    found = cut(episodes, SPEC, past=3, past_stride=2, ahead=5, each=50)
    assert np.bincount(found.episode).tolist() == [15, 4]  # the third is too short
    assert [found.kind[0], found.kind[-1]] == ["play", "expert"]
    for row in range(len(found)):
        episode = episodes[found.episode[row]]
        now = row - int(np.flatnonzero(found.episode == found.episode[row])[0])
        at = [max(0, now - 4), max(0, now - 2), *range(now, now + 6)]
        np.testing.assert_array_equal(found.state[row], episode.state[at])
        np.testing.assert_array_equal(found.action[row], episode.action[now : now + 5])
        picture = found.video["front"][row].movedim(-3, -1).numpy()
        np.testing.assert_array_equal(picture, episode.images["front"][at])
        np.testing.assert_allclose(found.facts["tip"][row], episode.facts["tip"][at], rtol=1e-6)
    assert found.seen["front"].shape[1] == found.seen_state.shape[1] == 3
    np.testing.assert_array_equal(found.at([2])["front"][:, 0], found.video["front"][:, 4])


def test_moments_are_drawn_from_a_seed_and_may_have_to_be_unsolved():
    episodes = [recorded(1, solved_from=10), recorded(2, solved_from=12)]
    one, same, other = (windows_of(episodes, each=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.state, same.state)
    assert not torch.equal(one.state, other.state)
    assert windows_of(episodes, each=99).success[:, 0].any()
    some = windows_of(episodes, each=99, unsolved=True)
    assert np.bincount(some.episode).tolist() == [10, 12]
    assert not some.success[:, 0].any()
    assert some.success[:, -1].any()


def test_episodes_that_are_too_short_or_show_another_camera_are_refused():
    with pytest.raises(ValueError, match="window of 50 future frames: the longest of 1 has 40"):
        windows_of([recorded(1)], ahead=50)
    with pytest.raises(ValueError, match="that begins unsolved"):
        windows_of([recorded(1, solved_from=0)], unsolved=True)
    with pytest.raises(ValueError, match=r"sees cameras \['front'\], the episodes show \['top'\]"):
        windows_of([dataclasses.replace(recorded(1), images={"top": np.zeros((40, 8, 8, 3))})])


def test_doing_nothing_is_no_change_or_the_joints_as_they_are():
    state, action = torch.tensor([[0.1, 0.2]]), torch.tensor([[[0.5, 0.6], [0.7, 0.8]]])

    def held(**changes: Any) -> list[list[float]]:
        found = hold(dataclasses.replace(SPEC, **changes), state, action)
        assert torch.equal(found[0, 0], found[0, 1])
        return found[0, 0].tolist()

    assert held() == pytest.approx([0.1, 0.2])
    assert held(action_targets=(1, -1)) == pytest.approx([0.2, 0.2])  # the second by its name
    assert held(action_targets=(), action_names=("y", "grip")) == pytest.approx([0.2, 0.6])
    assert held(action_kind="delta") == [0, 0]
    assert held(action_kind="unknown", action_targets=()) == pytest.approx([0.5, 0.6])
    assert action[0, 1, 0] == pytest.approx(0.7)  # left alone


def test_the_mean_frame_is_that_of_all_frames():
    episodes = [recorded(1), recorded(2)]
    whole = np.concatenate([e.images["front"] for e in episodes]).mean(0)
    found = mean_frame(episodes, SPEC)["front"].movedim(0, -1)
    np.testing.assert_allclose(found, whole, atol=1e-3)


# --- prediction and following --------------------------------------------------------------------


@pytest.fixture(scope="module")
def perfect(windows: Windows, others: list[Recorded], probe: Probe) -> tuple[dict, Imagined]:
    mean = mean_frame(others, SPEC)
    return prediction(oracle(), windows, mean, probe, every=4, steps=1, unit="rad")


def test_an_oracle_predicts_far_better_than_the_floors(perfect, windows):
    part, found = perfect
    assert found.frames.tolist() == part["steps"]["frames"] == [4, 8]
    assert part["psnr_gain_db_at_8"] > 20
    assert part["gain_at_frame"] == 8
    assert part["intervals"]["psnr_gain_db_at_8"][0] > 15
    for measure in ("psnr", "psnr_moving", "ssim"):
        model, copied, mean = (
            part["steps"][who][measure][-1]["mean"] for who in ("model", "copy_last", "mean_frame")
        )
        assert model > max(copied, mean)
    assert part["steps"]["model"]["lpips"]["not_run"]
    assert part["episodes"] == 8
    assert part["n"] == len(windows) == 32


def test_states_are_judged_in_degrees_and_facts_in_centimetres(perfect):
    joints, tip = perfect[0]["state"]["errors"]
    assert (joints["unit"], tip["unit"]) == ("deg", "cm")
    assert joints["model"][1]["mean"] < 0.01
    assert joints["floor"][1]["mean"] > 10  # 0.2 rad and more
    assert tip["model"][1]["mean"] == pytest.approx(tip["real"][1]["mean"], rel=0.02)
    assert tip["real"][1]["mean"] < 0.3 * tip["floor"][1]["mean"]


def test_small_pictures_leave_out_what_needs_larger_ones(windows, monkeypatch):
    monkeypatch.setattr(module.pictures, "lpips_missing", lambda: None)
    dark = {"front": torch.zeros(3, 24, 24)}
    part, _ = prediction(oracle(), windows, dark, None, every=8, steps=1)
    assert part["steps"]["model"]["lpips"] == {"not_run": "needs 31 pixels a side, frames have 24"}
    assert part["steps"]["model"]["ssim"][0]["mean"] > 0.9
    completed({"prediction": part})


def test_the_true_actions_always_win_where_actions_are_heard(perfect, windows):
    part = following(oracle(), windows, perfect[1], every=4, steps=1)
    assert part["true_beats_shuffled"] == part["true_beats_zero"]["mean"] == 1
    assert 0.6 < part["low"] < 1  # eight episodes, whatever the number of windows
    assert part["gap"]["low"] > 3
    assert part["error"]["true"]["mean"] < 0.5
    assert (part["n"], part["episodes"], set(part["by_kind"])) == (32, 8, {"expert", "play"})


def test_a_model_that_hears_no_action_scores_one_half(windows):
    deaf = like(Deaf)
    found = imagined(deaf, windows, windows.action, every=4, steps=1)
    part = following(deaf, windows, found, every=4, steps=1)
    assert part["true_beats_shuffled"] == part["true_beats_zero"]["mean"] == 0.5
    assert part["gap"]["mean"] == 0


def test_shuffled_actions_are_those_of_another_episode_begun_where_the_true_ones_do(
    perfect, windows, monkeypatch
):
    given: list[Tensor] = []

    def spied(checkpoint: Any, windows: Windows, actions: Tensor, **rest: Any) -> Imagined:
        given.append(actions)
        return perfect[1]

    monkeypatch.setattr(module, "imagined", spied)
    following(oracle(), windows, perfect[1], every=4, steps=1)
    shuffled, still = given
    assert torch.allclose(shuffled[:, 0], windows.action[:, 0])
    moves, true = shuffled.diff(dim=1), windows.action.diff(dim=1)
    for row in range(len(windows)):
        apart = (true - moves[row]).abs().amax((1, 2))
        assert windows.episode[int(apart.argmin())] != windows.episode[row]
        assert apart.min() < 1e-5
    assert torch.allclose(still[:, 3], windows.seen_state[:, -1])


def test_what_cannot_be_shuffled_or_stopped_is_said(perfect, windows):
    alone = windows.part(np.flatnonzero(windows.episode == 0))
    found = imagined(oracle(), alone, alone.action, every=4, steps=1)
    assert "one held-out episode" in following(oracle(), alone, found, every=4, steps=1)["not_run"]
    model = make_model(dataclasses.replace(SPEC, action_kind="unknown"), HORIZON)
    unknown = make_checkpoint(model, ObjectiveConfig(any_frame=0.5))
    part = following(unknown, windows, perfect[1], every=4, steps=1)
    assert "not known" in part["true_beats_zero"]["not_run"]
    assert "not_run" in part["error"]["zero"]
    completed({"action_following": part})


def test_only_what_was_seen_reaches_the_model(windows):
    """The future of the windows is replaced by noise, and nothing changes."""
    model = make_checkpoint(make_model(SPEC, HORIZON), ObjectiveConfig(any_frame=0.5))
    changed = dataclasses.replace(
        windows,
        video={c: v.clone() for c, v in windows.video.items()},
        state=windows.state.clone(),
    )
    changed.video["front"][:, 1:] = 77
    changed.state[:, 1:] = 5
    one, other = (imagined(model, w, w.action, every=4, steps=1) for w in (windows, changed))
    assert torch.equal(one.video["front"], other.video["front"])
    assert one.state is not None
    assert other.state is not None
    assert torch.equal(one.state, other.state)


# --- branching -----------------------------------------------------------------------------------


def start_of(seed: int, branches: int = 5, steps: int = 8, names: Sequence[str] = ()) -> Start:
    """A present of the spot's world, and what follows from different commands."""
    plans = [0.8 * commands(1000 * seed + k, steps) for k in range(branches)]
    runs = []
    for plan in plans:
        world = SpotWorld(slip=0.0)
        observations = [world.reset(seed=seed)[0]] + [world.step(action)[0] for action in plan]
        runs.append(observations)
    frames = np.stack([[o["pixels"]["front"] for o in run] for run in runs])
    joints = np.stack([[o["agent_pos"] for o in run] for run in runs])
    tip = np.concatenate([joints, np.zeros((*joints.shape[:2], 1))], -1).astype(np.float64)
    return Start(
        {"front": frames[0, :1]}, joints[0, :1], list(names or "abcde"[:branches]),
        np.stack(plans), {"front": frames}, joints, tip,
    )  # fmt: skip


STARTS = [start_of(seed) for seed in range(6)]


def test_an_oracle_matches_every_branch(probe):
    part, pictures = branching(oracle(), STARTS, probe, every=4, steps=1)
    assert part["accuracy"] == part["by_joints"]["mean"] == 1
    assert (part["k"], part["n"], part["starts"], part["chance"]) == (5, 30, 6, 0.2)
    assert 0.5 < part["low"] < 1
    assert [e["mean"] for e in part["by_frame"]["accuracy"]] == [1, 1]
    assert part["difference_correlation"]["mean"] > 0.95
    assert part["displacement_cosine"]["mean"] > 0.9
    assert part["by_name"] == dict.fromkeys("abcde", 1)
    assert part["names"] == list("abcde")
    assert len(pictures) == 2
    assert pictures[0].distances is not None
    assert (np.argmin(pictures[0].distances, 1) == np.arange(5)).all()
    completed({"branching": part})


def test_a_model_that_hears_no_action_matches_by_chance():
    part, _ = branching(like(Deaf), STARTS, None, every=4, steps=1)
    assert part["accuracy"] == part["by_joints"]["mean"] == pytest.approx(0.2)
    assert "displacement_cosine" not in part
    assert math.isnan(part["difference_correlation"]["mean"])


def test_branches_that_differ_from_start_to_start_have_numbers_for_names():
    starts = [STARTS[0], start_of(9, names=("a", "b", "x", "d", "y"))]
    part, _ = branching(oracle(), starts, None, every=8, steps=1)
    assert part["names"] == ["a", "b", "3", "d", "5"]
    assert set(part["by_name"]) == set("abcdexy")


# --- what reads frames ---------------------------------------------------------------------------


def test_a_probe_recovers_a_linear_fact_and_no_other():
    rng = np.random.default_rng(0)
    hidden = rng.uniform(-1, 1, (300, 2))
    basis = rng.uniform(-40, 40, (2, 3 * 12 * 12))
    pixels = (128 + hidden @ basis).round().clip(0, 255).astype(np.uint8)
    video = {"front": torch.from_numpy(pixels).view(300, 3, 12, 12)}
    facts = {"there": hidden @ rng.normal(size=(2, 3)) + 1, "elsewhere": rng.normal(size=(300, 3))}
    before = torch.get_rng_state()
    found = Probe(video, facts, np.repeat(np.arange(30), 10))
    assert torch.equal(torch.get_rng_state(), before)
    assert found.error["there"] < 0.03
    assert found.error["elsewhere"] > 1
    read = found.read("there", {"front": video["front"].view(15, 20, 3, 12, 12)})
    np.testing.assert_allclose(read.reshape(300, 3), facts["there"], atol=0.1)


@pytest.fixture(scope="module")
def readers(others: list[Recorded]) -> list[InverseModel]:
    """One that sees both frames, and one that sees the first alone."""
    some = windows_of(others, ahead=4, each=30)
    return [InverseModel(oracle(), some, 4, steps=120, blind=blind) for blind in (False, True)]


def test_actions_are_read_off_frames_that_show_them(readers, perfect, windows):
    def part(found: Imagined) -> dict:
        ahead = {c: v[:, 0] for c, v in found.video.items()}
        return inverse(like(Oracle), readers[0], readers[1], windows, ahead, steps=1, unit="rad")

    good = part(perfect[1])
    assert good["real"]["mean"] < 0.7 * good["repeat"]["mean"]
    assert good["real"]["mean"] < 0.8 * good["present_only"]["mean"]
    assert good["imagined"]["mean"] == pytest.approx(good["real"]["mean"], rel=0.05)
    assert good["cycle"] == good["own_on_real"] == {"not_run": "the model was not trained for it"}
    assert (good["unit"], good["gap"], good["episodes"]) == ("rad", 4, 8)
    deaf = part(imagined(like(Deaf), windows, windows.action, every=4, steps=1))
    assert deaf["real"] == good["real"]
    assert deaf["present_only"] == good["present_only"]
    assert deaf["imagined"]["mean"] > 1.5 * good["real"]["mean"]
    completed({"inverse": good})


def test_the_inverse_model_is_shown_neither_actions_nor_later_states(windows, others):
    """Nor as the value that a dimension without target is said to keep."""
    spec = dataclasses.replace(SPEC, action_targets=(0, -1), action_names=("x", "grip"))
    checkpoint = make_checkpoint(make_model(spec, HORIZON))
    model = InverseModel(checkpoint, windows_of(others, ahead=4), 4, steps=2)
    ahead = {c: v[:, 0] for c, v in windows.at([4]).items()}
    changed = dataclasses.replace(windows, action=windows.action + 3, state=windows.state.clone())
    changed.state[:, 1:] = 9
    assert torch.equal(model.infer(windows, ahead), model.infer(changed, ahead))
    assert torch.equal(model.still(windows), model.still(changed))


# --- long rollouts, success, speed ---------------------------------------------------------------


def test_an_oracle_does_not_drift_and_a_fading_one_soon_does(others):
    films = windows_of([recorded(seed, steps=70) for seed in range(5)], ahead=64, each=1)
    mean = mean_frame(others, SPEC)

    def horizons(kind: type[Oracle]) -> tuple[dict[str, Any], dict[str, int | None]]:
        part, shown = drift(like(kind), films, mean, every=4, steps=1, history=0.0)
        assert shown["front"].shape[:2] == (5, 16)
        forms = completed({"drift": part})["drift"]["forms"]
        return part, {name: form["horizon"] for name, form in forms.items()}

    part, found = horizons(Oracle)
    assert found == {"window": None, "causal": None}
    assert part["frames"] == list(range(4, 65, 4))
    assert part["mean_error"]["window"] < 0.1 * part["mean_error"]["copy_last"]
    faded = horizons(Fading)[1]
    assert faded["window"] is not None
    assert faded["causal"] is not None
    assert faded["causal"] <= faded["window"]  # which hands its frames over more often


def test_success_is_judged_frame_by_frame_and_apart_for_what_no_expert_did(windows):
    solved = dataclasses.replace(windows, success=torch.zeros_like(windows.success))
    solved.success[::3, 5:] = True
    truth = solved.success[:, [4, 8]].float()
    video: dict[str, Tensor] = {}
    found = Imagined(video, None, torch.tensor([4, 8]), success=0.1 + 0.5 * truth)
    part = success_auroc(found, solved)
    assert part["auroc"] == part["exploratory"]["auroc"] == 1
    assert part["positives"] == int(truth.sum())
    assert success_auroc(dataclasses.replace(found, success=1 - truth), solved)["auroc"] == 0
    assert (
        "no success head"
        in success_auroc(Imagined(video, None, torch.tensor([4])), solved)["not_run"]
    )


@pytest.mark.parametrize("any_frame", [0.0, 0.5])
def test_speed_counts_the_frames_of_one_window(any_frame):
    horizon = Horizon(past=2, past_stride=1, future=2, future_stride=2, chunk=6)
    model = make_model(SPECS["two cameras"], horizon)
    part = frames_per_s(
        make_checkpoint(model, ObjectiveConfig(any_frame=any_frame)), steps=1, batch=2, repeats=2
    )
    assert part["every"] == (1 if any_frame else 2)
    assert 0 < part["low"] <= part["mean"] <= part["high"]
    assert part["batched"]["mean"] > 0
    assert part["picture"] == "24x16, 2 cameras"
    completed({"frames_per_s": part})


# --- policies ------------------------------------------------------------------------------------


def play(policy: Policy, seeds: Sequence[int], steps: int = 7) -> np.ndarray:
    policy.reset(seeds)
    active = np.ones(len(seeds), bool)
    spec = SPECS["one camera"]
    rows = [seed % 7 for seed in seeds]
    return np.stack([policy.act(seen(spec, t, rows), active).action.copy() for t in range(steps)])


def test_a_degraded_policy_is_the_policy_plus_noise_of_the_episode():
    checkpoint = make_checkpoint(make_model(), ObjectiveConfig(name="flow"))
    policy = FlowPolicy(checkpoint, PolicyConfig(steps=1, execute=3))
    plain = play(policy, [1, 2])
    assert np.array_equal(play(Degraded(policy, np.zeros(2), "same"), [1, 2]), plain)
    worse = Degraded(policy, np.array([0.3, 0.0]), "worse")
    noise = play(worse, [1, 2]) - plain
    assert worse.name == "worse"
    assert np.abs(noise[..., 0]).min() > 0
    assert np.abs(noise[..., 1]).max() < 1e-6
    again = play(worse, [2, 1]) - play(policy, [2, 1])
    np.testing.assert_allclose(noise, again[:, ::-1], atol=1e-6)  # by episode, not by slot
    assert abs(np.corrcoef(noise[:, 0, 0], noise[:, 1, 0])[0, 1]) < 0.999
    assert isinstance(worse, Policy)


def test_noise_drifts_and_is_as_large_as_it_says():
    checkpoint = make_checkpoint(make_model(), ObjectiveConfig(name="flow"))
    policy = FlowPolicy(checkpoint, PolicyConfig(steps=1, execute=6))
    seeds = list(range(40))
    noise = play(Degraded(policy, np.array([0.3, 0.3]), ""), seeds, 40) - play(policy, seeds, 40)
    late = noise[25:]
    assert late.std() == pytest.approx(0.3, rel=0.2)
    assert np.corrcoef(late[1:].ravel(), late[:-1].ravel())[0, 1] == pytest.approx(0.9, abs=0.05)


def episode(
    seed: int, success: bool, steps: int = 40, at_reset: bool = False, solved: int | None = None
) -> Episode:
    end = (0 if at_reset else solved or steps) if success else None
    return Episode(
        seed, success, at_reset, end, "", np.zeros((steps, 1)), np.zeros((steps + 1, 1)),
        np.arange(0, steps, 8), None, math.nan,
    )  # fmt: skip


def evaluation(
    outcomes: Sequence[bool] | Sequence[int] | np.ndarray,
    first: int = 0,
    solved: Sequence[int] = (),
) -> Evaluation:
    episodes = [
        episode(first + i, bool(o) or i in solved, at_reset=i in solved)
        for i, o in enumerate(outcomes)
    ]
    return Evaluation("p", 10.0, episodes, [], 1, 1.0)


def test_policies_in_the_same_order_correlate():
    rng = np.random.default_rng(0)
    tables = [rng.random(60) < rate for rate in np.linspace(0, 1, 12)]
    real = [evaluation(t) for t in tables]
    part = return_correlation([f"{i}" for i in range(12)], real, real)
    assert part["pearson"] == pytest.approx(1)
    assert part["mmrv"] == 0
    assert (part["n"], part["episodes"], part["bias"]) == (12, 60, 0)
    assert part["episode_auroc"]["auroc"] == 1
    assert "warning" not in part
    few = return_correlation(["a", "b"], real[:2], real[1::-1])
    assert "2 policies" in few["warning"]
    completed({"return_correlation": part})


def test_resets_that_are_solved_already_are_left_out_and_counted():
    real = [evaluation(t, solved=(1, 3)) for t in ([0, 0, 0, 0, 1], [1, 0, 1, 0, 1])]
    dreamt = [evaluation(t) for t in ([0, 1, 0, 1, 1], [1, 1, 1, 1, 1])]
    part = return_correlation(["a", "b"], real, dreamt)
    assert (part["episodes"], part["solved_at_reset"]["k"], part["solved_at_reset"]["n"]) == (
        3,
        2,
        5,
    )
    assert part["policies"][0]["real"]["rate"] == pytest.approx(1 / 3)
    assert part["bias"] == 0
    everything = [evaluation([0, 0], solved=(0, 1))] * 2
    assert "all 2 resets" in return_correlation(["a", "b"], everything, everything)["not_run"]


def test_other_resets_are_refused():
    with pytest.raises(ValueError, match="a: simulated and imagined resets differ"):
        return_correlation(["a"], [evaluation([1, 0])], [evaluation([1, 0], first=5)])
    pair = [evaluation([1, 0]), evaluation([1, 0], first=5)]
    with pytest.raises(ValueError, match="b was run on other resets than a"):
        return_correlation(["a", "b"], pair, pair)
    with pytest.raises(ValueError, match="1 policies, 2 real"):
        return_correlation(["a"], pair, pair)


# --- decisions -----------------------------------------------------------------------------------


def test_lift_is_paired_with_the_policy_on_the_same_resets():
    policy = evaluation([1, 0, 0, 0])
    planned = {1: evaluation([1, 0, 0, 0]), 4: evaluation([1, 1])}
    part = decision_lift(
        [1, 4], planned, {1: policy, 4: evaluation([1, 1])}, policy,
        {1: "the policy itself", 4: evaluation([1, 0])}, {"slots": 2},
    )  # fmt: skip
    assert [p["rate"] for p in part["planner"]] == [0.25, 1]
    assert part["minus_policy"]["1"]["difference"] == 0
    assert (part["minus_policy"]["4"]["difference"], part["minus_policy"]["4"]["n"]) == (0.5, 2)
    assert part["policy_same_time"][0] == {"not_run": "the policy itself"}
    assert list(part["minus_same_time"]) == ["4"]
    assert (part["episodes"], part["slots"], part["policy"]["k"]) == ([4, 2], 2, 1)
    completed({"decision_lift": part})
    blind = decision_lift([1], planned, "no simulator", policy, {}, {})
    assert blind["simulator"] == {"not_run": "no simulator"}
    completed({"decision_lift": blind})
    with pytest.raises(ValueError, match="other resets"):
        decision_lift([1], {1: evaluation([1], first=7)}, {}, policy, {}, {})


def decided(seed: int, number: int, value: float) -> Record:
    values = np.array([value - 0.1, value])
    return Record(0, seed, number, values, 1, 2, 1.0, np.array([[0.0], [1.0]]))


def test_a_planner_that_is_right_has_no_gap():
    # Decisions at steps 0, 8, 16, 24 and 32, each of which looks 16 steps ahead.
    run = Evaluation("p", 10.0, [episode(1, True, 30, solved=30), episode(2, False)], [], 1, 1.0)
    log = [decided(1, n, value) for n, value in enumerate((0, 0, 1, 1))]
    log += [decided(2, n, 0) for n in range(3)] + [decided(2, 3, 0.0), decided(2, 4, 0.9)]
    part = exploitability([2], {2: log}, {2: run}, 16)
    # Of the last two steps 24 to 40 are known, 32 to 48 are not: the time limit comes before.
    assert part["decisions"] == [8]
    assert part["gap"][0]["mean"] == 0
    assert part["realised"][0]["mean"] == pytest.approx(2 / 8)
    assert part["growth"]["mean"] == 0
    assert part["candidate_spread"] == [0.5]
    assert "16 steps" in part["unit"]
    completed({"exploitability": part})


def test_a_gap_that_grows_with_the_candidates_is_found_on_the_shared_resets():
    runs = {1: evaluation([0] * 4), 8: evaluation([0] * 2)}
    logs = {
        1: [decided(s, n, 0.1 if s < 2 else 0.9) for s in range(4) for n in range(3)],
        8: [decided(s, n, 0.6) for s in range(2) for n in range(3)],
    }
    part = exploitability([1, 8], logs, runs, 16)
    assert part["gap"][0]["mean"] == pytest.approx(0.5)
    assert part["growth"]["mean"] == pytest.approx(0.5)  # 0.6 - 0.1: resets 2 and 3 had one only
    assert part["episodes"] == [4, 2]


def test_decisions_without_outcome_or_expectation_do_not_count():
    run = evaluation([0, 0, 0], solved=(2,))
    log = [decided(0, 0, math.nan), decided(0, 4, 0.5), decided(2, 0, 0.5), decided(9, 0, 0.5)]
    part = exploitability([4], {4: log}, {4: run}, 16)
    assert part["decisions"] == [0]
    assert math.isnan(part["gap"][0]["mean"])
    assert "not_run" in part["growth"]
    completed({"exploitability": part})


def test_when_success_counts_is_learnt_from_what_came_of_recorded_actions(monkeypatch):
    """A judge that is right for three frames in a row and wrong for single ones needs patience."""
    episodes = [recorded(seed, 30, solved_from=20 if seed % 2 else None) for seed in range(8)]

    def judged(self: Dream, actions: np.ndarray):
        self.at += 1
        solved = np.array([e.success[min(self.at, 29)] for e in episodes], float)
        flicker = 0.8 * (self.at % 5 == 0)
        return {}, None, torch.from_numpy(np.maximum(0.7 * solved, flicker))

    monkeypatch.setattr(Dream, "step", judged)
    model = dataclasses.replace(oracle(), objective=ObjectiveConfig(any_frame=0.5))
    found = calibrate_success(model, episodes)
    assert found["balanced_accuracy"] == 1
    assert found["patience"] > 1
    assert found["threshold"] <= 0.7
    assert (found["n"], found["solved"]) == (8, 4)
    with pytest.raises(ValueError, match="0 of 4 episodes succeed"):
        calibrate_success(model, episodes[::2])
