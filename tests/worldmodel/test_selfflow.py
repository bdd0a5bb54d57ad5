"""The objective: what is drawn, what is learned from it, and what each switch leaves alone."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace

import pytest
import torch

from tests.worldmodel.models import HORIZON, SPECS, make_model, make_window, randomised
from worldmodel.checkpoint import parse_objective
from worldmodel.diagnostics import teacher_signal, time_gap
from worldmodel.flow import TimeConfig, interpolate
from worldmodel.model import Clock, Prediction, token_times
from worldmodel.selfflow import Ema, ObjectiveConfig, Question, SelfFlow, until_last_frame
from worldmodel.tokens import ACTING, PATTERNS, pattern

SPEC = SPECS["one camera"]
NONE = {"video": 0.0, "state": 0.0, "action": 0.0}
LONG = {"video/front": (64, 2, 6, 192), "state": (64, 40, 1, 3), "action": (64, 40, 1, 2)}


def make(name: str = "selfflow", seed: int = 0, spec=SPEC, **options) -> SelfFlow:
    objective = SelfFlow(make_model(spec), ObjectiveConfig(name=name, **options), seed)
    randomised(objective.ema.model, seed=7, scale=0.05)  # a teacher unlike the student
    return objective


def train(objective: SelfFlow, steps: int = 4) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A few optimiser steps; the losses, and the student's and teacher's weights after them."""
    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for step in range(steps):
        loss = objective(make_window(SPEC, seed=step), step).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(step)
        losses.append(float(loss.detach()))
    weights = {f"student.{k}": v for k, v in objective.model.state_dict().items()}
    return losses, weights | {f"ema.{k}": v for k, v in objective.ema.model.state_dict().items()}


def same(a: tuple, b: tuple) -> bool:
    return a[0] == b[0] and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


def draw(objective: SelfFlow, shapes: dict | None = None, step: int = 0):
    return objective.draw({n: torch.zeros(s) for n, s in (shapes or LONG).items()}, step)


# --- objectives compared -------------------------------------------------------------------------


def test_self_flow_without_masks_and_features_is_flow_bit_for_bit() -> None:
    flow = train(make("flow"))
    assert same(flow, train(make("selfflow", mask_ratio=NONE, feature_weight=0.0)))
    assert not same(flow, train(make("selfflow", feature_weight=0.0)))
    assert not same(flow, train(make("selfflow", mask_ratio=NONE)))


def test_dts_is_self_flow_without_features_bit_for_bit() -> None:
    assert same(train(make("dts")), train(make("selfflow", feature_weight=0.0)))


def test_training_is_a_function_of_the_seed() -> None:
    assert same(train(make(seed=3)), train(make(seed=3)))
    assert train(make(seed=3))[0] != train(make(seed=4))[0]


def test_regression_is_the_mean_squared_error_of_one_answer() -> None:
    objective, window = make("regression"), make_window(SPEC)
    question = pattern("act", HORIZON)
    given_steps, wanted_steps = objective.model.slices_of(question)
    objective.model.config.task_dropout = 0.0
    given = objective.inputs.patches(window, given_steps)
    target = objective.inputs.patches(window, wanted_steps)["action"]
    found = objective.losses(window, question, 0).total
    clock = objective.draw({"action": target}, 0).clock
    encoded = objective.model.encode(given, given_steps, window.task)
    answer = objective.model({"action": torch.zeros_like(target)}, wanted_steps, clock, encoded)
    torch.testing.assert_close(found, torch.nn.functional.mse_loss(answer.data["action"], target))


# --- draws ---------------------------------------------------------------------------------------


def test_a_sample_has_two_times_and_the_teacher_the_cleaner_one() -> None:
    drawn = draw(make(plain_share=0.0))
    for name, levels in drawn.clock.levels.items():
        assert levels.shape == (64, 2)
        assert (levels[:, 0] != levels[:, 1]).all()
        assert (drawn.clock.which[name] <= 1).all()
        torch.testing.assert_close(drawn.teacher.levels[name], levels.min(1, keepdim=True).values)
        assert name not in drawn.teacher.which
    assert (drawn.clock.levels["action"][:, 0] > drawn.clock.levels["action"][:, 1]).any()
    assert (drawn.clock.levels["action"][:, 0] < drawn.clock.levels["action"][:, 1]).any()


def test_modalities_of_a_sample_share_their_quantile() -> None:
    time = {"state": TimeConfig(), "action": TimeConfig(), "video": TimeConfig("logit_normal")}
    levels = draw(make(time=time)).clock.levels
    torch.testing.assert_close(levels["state"], levels["action"])
    torch.testing.assert_close(time["video"].from_quantile(levels["action"]), levels["video/front"])


@pytest.mark.parametrize("shape", ["iid", "block"])
def test_the_share_of_masked_tokens_is_the_ratio_of_its_modality(shape: str) -> None:
    ratios = {"video": 0.1, "state": 0.25, "action": 0.4}
    objective = make(mask_ratio=ratios, mask_shape=shape)
    shapes = {"video/front": (400, 4, 6, 192), "state": (400, 24, 1, 3), "action": (400, 24, 1, 2)}
    which = draw(objective, shapes).clock.which
    for name, kind in (("video/front", "video"), ("state", "state"), ("action", "action")):
        assert which[name].float().mean() == pytest.approx(ratios[kind], abs=0.04)


def test_block_masks_are_runs() -> None:
    which = draw(make(mask_shape="block", mask_block=4)).clock.which["action"]
    runs = which.unflatten(1, (10, 4))
    assert (runs == runs[:, :, :1]).all()
    assert which.float().mean(1).unique().numel() > 3
    short = draw(make(mask_shape="block", mask_block=4), {"action": (8, 6, 1, 2)})
    assert short.clock.which["action"].shape == (8, 6)  # a last run may be cut off


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_plain_samples_have_one_time(share: float) -> None:
    levels = draw(make(plain_share=share), {"action": (2000, 4, 1, 2)}).clock.levels["action"]
    plain = (levels[:, 0] == levels[:, 1]).float().mean()
    assert plain == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)


def test_switching_one_thing_leaves_the_other_draws_as_they_were() -> None:
    base = draw(make())
    other_masks = draw(make(mask_ratio={"video": 0.3, "state": 0.5, "action": 0.2}))
    plain, flow = draw(make(plain_share=1.0)), draw(make("flow"))
    for name in LONG:
        for other in (other_masks, plain, flow):
            assert torch.equal(base.noise[name], other.noise[name])
            assert torch.equal(base.clock.levels[name][:, :1], other.clock.levels[name][:, :1])
        assert torch.equal(base.clock.levels[name], other_masks.clock.levels[name])
        assert torch.equal(base.clock.which[name], plain.clock.which[name])
    assert not torch.equal(base.clock.which["action"], other_masks.clock.which["action"])
    assert not torch.equal(base.noise["action"], draw(make(), step=1).noise["action"])


def test_patterns_are_drawn_by_their_shares() -> None:
    objective = make(patterns={"act": 2.0, "forward": 1.0, "act_prefix": 1.0}, prefix=4)
    chosen = [objective.choose(step) for step in range(2000)]
    names = [c.name for c in chosen]
    assert {n: names.count(n) / 2000 for n in set(names)} == pytest.approx(
        {"act": 0.5, "forward": 0.25, "act_prefix": 0.25}, abs=0.04
    )
    steps = torch.arange(HORIZON.chunk)
    prefixes = {len(steps[c.given["action"]]) for c in chosen if c.name == "act_prefix"}
    assert prefixes == {1, 2, 3, 4}
    again = make(patterns=objective.config.patterns, prefix=4)
    assert chosen[:50] == [again.choose(step) for step in range(50)]


def test_only_patterns_that_the_robot_allows_are_trained() -> None:
    shares = make(spec=SPECS["no camera"]).shares
    assert set(shares) == {"act", "act_prefix", "forward", "joint"}
    assert sum(shares.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="none of the patterns .'video'. can be trained"):
        make(spec=SPECS["no camera"], patterns={"video": 1.0})


# --- which frames, which past --------------------------------------------------------------------


def test_without_other_frames_and_noise_on_the_past_all_is_as_if_there_were_no_such_settings() -> (
    None
):
    """As a run whose configuration was written before there were any."""
    before = asdict(ObjectiveConfig())
    del before["any_frame"], before["history_noise"]
    old = SelfFlow(make_model(), parse_objective(before))
    randomised(old.ema.model, seed=7, scale=0.05)
    now = make(any_frame=0.0, history_noise=0.0)
    assert same(train(now), train(old))
    assert {now.choose(step).offsets for step in range(50)} == {HORIZON.grid}


def test_asking_for_other_frames_changes_the_frames_asked_for_and_nothing_else() -> None:
    usual, any_frame = make(), make(any_frame=0.4)
    pairs = [(usual.choose(step), any_frame.choose(step)) for step in range(1000)]
    asked = [found for _, found in pairs if found.name not in ACTING]
    assert all(replace(b, offsets=a.offsets) == a or b.name == "reach" for a, b in pairs)
    assert all(a == b for a, b in pairs if b.name in ACTING)
    elsewhere = sum(found.offsets != HORIZON.grid for found in asked)
    assert elsewhere / len(asked) == pytest.approx(0.4, abs=0.08)
    # A batch about the grid is the very same batch.
    step = next(n for n, (a, b) in enumerate(pairs) if b.offsets == a.offsets and b.has_future)
    window, question = make_window(SPEC), pairs[step][1]
    assert torch.equal(*(o.losses(window, question, step).total for o in (usual, any_frame)))


def test_other_frames_are_ascending_within_the_horizon_and_follow_from_seed_and_step() -> None:
    objective, again, other = (make(any_frame=1.0, seed=s) for s in (0, 0, 1))
    found = [objective._offsets(step, 1) for step in range(300)]
    assert found == [again._offsets(step, 1) for step in range(300)]
    assert found != [other._offsets(step, 1) for step in range(300)]
    assert found != [objective._offsets(step, 0) for step in range(300)]
    for offsets in found:
        assert list(offsets) == sorted(set(offsets))
        assert 1 <= offsets[0] <= offsets[-1] <= HORIZON.reach
        assert 1 <= len(offsets) <= HORIZON.future
    alone = [offsets[0] for offsets in found if len(offsets) == 1]
    assert set(alone) == set(range(1, HORIZON.reach + 1))  # any frame can be


@pytest.mark.parametrize("name", PATTERNS)
def test_noise_on_the_past_is_for_imagining_only(name: str) -> None:
    window, question = make_window(SPEC), pattern(name, HORIZON, 2)
    usual, noised = (make(history_noise=h).losses(window, question, 3).total for h in (0.0, 0.4))
    assert torch.equal(usual, noised) is ("video" not in question.wanted)


def test_the_student_sees_a_noised_past_and_the_teacher_a_clean_one() -> None:
    """Wherever the student sees the last frame, it is the noised one; actions are clean."""
    objective, window = make(history_noise=0.4, draws={}), make_window(SPEC)
    question = pattern("forward", HORIZON)
    seen: dict[str, list[dict[str, torch.Tensor]]] = {"student": [], "teacher": []}
    anchors: dict[str, dict[str, torch.Tensor]] = {}
    for role, model in (("student", objective.model), ("teacher", objective.ema.model)):
        pack = model._pack

        def note(patches, steps, anchored, *rest, role=role, pack=pack):
            seen[role].append(dict(patches))
            anchors[role] = dict(anchored)
            return pack(patches, steps, anchored, *rest)

        model._pack = note  # type: ignore[method-assign]
    objective.losses(window, question, step=2)
    asked = objective.ask(window, question, 2)
    assert asked.history is not None
    level = asked.history.level
    assert ((level > 0) & (level < 0.4)).all()
    assert level.unique().numel() == len(level)  # a sample has its own
    assert set(asked.history.noise) == {"video/front", "state"}
    student, teacher = seen["student"][0], seen["teacher"][0]
    for name, clean in asked.given.items():
        assert torch.equal(teacher[name], clean)
        expected = clean
        if name in asked.history.noise:
            expected = interpolate(clean, asked.history.noise[name], level[:, None, None, None])
        assert torch.equal(student[name], expected)
        if name == "video/front":
            now = slice(HORIZON.past - 1, HORIZON.past)
            assert torch.equal(anchors["student"][name], expected[:, now])
            assert torch.equal(anchors["teacher"][name], clean[:, now])


def test_noise_on_the_past_of_no_strength_is_a_clean_past() -> None:
    """The time of the given frames is the one that they always had."""
    objective = make(history_noise=0.4)
    question = pattern("forward", HORIZON)
    asked = objective.ask(make_window(SPEC), question, 2)
    assert asked.history is not None
    asked.history.level.zero_()
    model, noisy = objective.model, asked.noisy(asked.draw.clock)
    clean, noised = (
        model(
            noisy,
            asked.wanted_steps,
            asked.draw.clock,
            model.encode(asked.given, asked.given_steps, asked.task, history=history),
        ).data
        for history in (None, asked.history)
    )
    for name, values in clean.items():
        torch.testing.assert_close(noised[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [1, 3, 6])
def test_actions_after_the_last_frame_asked_for_never_count(last: int) -> None:
    question = pattern("forward", HORIZON, offsets=sorted({1, last}))
    window = make_window(SPEC, replace(HORIZON, future=len(question.offsets)))
    told = until_last_frame(window.action, question)
    assert torch.equal(told[:, :last], window.action[:, :last])
    assert (told[:, last:] == told[:, last - 1 : last]).all()
    for step in range(HORIZON.chunk):
        other = replace(window, action=window.action.clone())
        other.action[:, step] += 0.3
        a, b = (make().losses(w, question, 0).total for w in (window, other))
        assert torch.equal(a, b) is (step >= last)


# --- teacher -------------------------------------------------------------------------------------


def test_student_and_teacher_see_the_same_data_noise_and_task() -> None:
    objective, window = make(draws={}), make_window(SPEC)
    seen: dict[str, tuple] = {}
    tasks: dict[str, torch.Tensor] = {}
    for role, model in (("student", objective.model), ("teacher", objective.ema.model)):

        def note(module, inputs, role=role):
            seen[role] = inputs

        def note_task(module, inputs, role=role):
            tasks[role] = inputs[0]

        model.register_forward_pre_hook(note)
        model.task.register_forward_pre_hook(note_task)
    objective.losses(window, pattern("joint", HORIZON), step=2)
    target = objective.inputs.patches(window, seen["student"][1])
    drawn = objective.draw(target, 2)
    for role, clock in (("student", drawn.clock), ("teacher", drawn.teacher)):
        for name, data in target.items():
            expected = interpolate(data, drawn.noise[name], token_times(clock, name, data))
            assert torch.equal(seen[role][0][name], expected)
    assert torch.equal(tasks["student"], tasks["teacher"])


@pytest.mark.parametrize("plain", [0.0, 1.0])
def test_a_clean_teacher_sees_the_data_and_all_else_is_as_it_was(plain: float) -> None:
    window, asked = make_window(SPEC), pattern("joint", HORIZON)
    usual, clean = (
        make(teacher_time=time, plain_share=plain).ask(window, asked, 3)
        for time in ("min", "clean")
    )
    for n, target in clean.target.items():
        assert torch.equal(clean.noisy(clean.draw.teacher)[n], target)
        assert not torch.equal(usual.noisy(usual.draw.teacher)[n], target)
        assert torch.equal(clean.noisy(clean.draw.clock)[n], usual.noisy(usual.draw.clock)[n])
        assert torch.equal(clean.draw.clock.levels[n], usual.draw.clock.levels[n])
        assert torch.equal(clean.draw.clock.which[n], usual.draw.clock.which[n])
        gap = time_gap(clean.draw.clock, clean.draw.teacher, n)
        assert torch.equal(gap, clean.draw.clock.per_token(n))
    assert make().config.teacher_time == "min"  # the paper's


def test_a_clean_teacher_changes_the_features_to_learn_and_nothing_else() -> None:
    window, asked = make_window(SPEC), pattern("joint", HORIZON)
    usual, clean = (
        make(teacher_time=time).losses(window, asked, 0).logs for time in ("min", "clean")
    )
    for n in ("video/front", "state", "action"):
        assert float(usual[f"joint/{n}/loss"]) == float(clean[f"joint/{n}/loss"])
        assert usual[f"joint/{n}/feature_loss"] != clean[f"joint/{n}/feature_loss"]


def test_the_teacher_gets_no_gradient_and_the_student_head_does() -> None:
    objective = make()
    objective.losses(make_window(SPEC), pattern("act", HORIZON), 0).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.ema.model.parameters())
    assert objective.head is not None
    assert all(p.grad is not None and p.grad.any() for p in objective.head.parameters())
    assert not any(n.startswith("ema") for n, _ in objective.named_parameters())


def test_the_feature_loss_is_the_mean_of_its_modalities() -> None:
    objective, question = make(feature_weight=0.5), pattern("joint", HORIZON)
    losses = objective.losses(make_window(SPEC), question, 0)
    names = ("video/front", "state", "action")
    features = [torch.as_tensor(losses.logs[f"joint/{n}/feature_loss"]) for n in names]
    assert all(0.05 < float(f) < 2 for f in features)
    weights = [objective.config.loss_weight[k] for k in ("video", "state", "action")]
    flow = sum(w * losses.logs[f"joint/{n}/loss"] for w, n in zip(weights, names, strict=True))
    torch.testing.assert_close(losses.total.detach(), flow + 0.5 * torch.stack(features).mean())


def test_the_feature_weight_can_be_warmed_up() -> None:
    window, question = make_window(SPEC), pattern("act", HORIZON)
    logs = make(feature_weight=0.5, feature_warmup=10).losses(window, question, 3).logs
    expected = logs["act/action/loss"] + 0.5 * 0.4 * logs["act/action/feature_loss"]
    torch.testing.assert_close(logs["act/loss"], expected)


def test_the_average_moves_by_the_formula() -> None:
    model = make_model()
    ema, expected = Ema(model, decay=0.3), copy.deepcopy(model)
    for step in (1, 2, 50):
        randomised(model, seed=step)
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, new in zip(expected.parameters(), model.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * new)
    for mean, found in zip(expected.parameters(), ema.model.parameters(), strict=True):
        torch.testing.assert_close(found, mean)


# --- what counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [True, False])
def test_padded_actions_count_only_where_asked_for(padded: bool) -> None:
    window = make_window(SPEC)
    window.action_valid[:, 4:] = False
    other = replace(window, action=window.action.clone())
    other.action[:, 4:] = -other.action[:, 4:]
    question = pattern("act", HORIZON)
    # Regression: noisy tokens are zeros whatever the targets are, so only the loss can tell.
    a, b = (
        make("regression", padded_actions=padded).losses(w, question, 0) for w in (window, other)
    )
    assert torch.equal(a.total, b.total) is not padded


@pytest.mark.parametrize("kind", ["delta", "absolute", "unknown"])
def test_changes_past_the_end_never_count(kind: str) -> None:
    """Repeating the last change is not staying put, whatever the setting says."""
    window = make_window(SPEC)
    window.action_valid[:, 4:] = False
    other = replace(window, action=window.action.clone())
    other.action[:, 4:] = -other.action[:, 4:]
    objective = make("regression", spec=replace(SPEC, action_kind=kind), padded_actions=True)
    a, b = (objective.losses(w, pattern("act", HORIZON), 0).total for w in (window, other))
    assert torch.equal(a, b) is (kind == "delta")
    assert objective.config.padded_actions is (kind != "delta")
    assert objective.source.padded_actions  # as configured: what checkpoints store


def test_frames_outside_the_episode_carry_no_loss() -> None:
    window = make_window(SPEC)
    window.frame_valid[:, 3] = False
    other = replace(
        window, video={"front": window.video["front"].clone()}, state=window.state.clone()
    )
    other.video["front"][:, 3] = 255 - other.video["front"][:, 3]
    other.state[:, 3] = -other.state[:, 3]
    question = pattern("forward", HORIZON)
    a, b = (make("regression").losses(w, question, 0) for w in (window, other))
    assert torch.equal(a.total, b.total)
    other.frame_valid[:, 3] = True
    assert not torch.equal(a.total, make("regression").losses(other, question, 0).total)


@pytest.mark.parametrize("robot", SPECS)
def test_every_pattern_can_be_learned_and_diagnosed(robot: str) -> None:
    objective, window = make(spec=SPECS[robot], plain_share=0.0), make_window(SPECS[robot])
    for name in objective.shares:
        asked = pattern(name, HORIZON)
        losses = objective.losses(window, asked, 0, gradient_shares=True)
        assert losses.total.isfinite()
        shares = [v for k, v in losses.logs.items() if k.endswith("gradient_share")]
        assert sum(shares) == pytest.approx(1)
        signal = teacher_signal(objective, window, asked, 0)
        for m in objective.model.slices_of(asked)[1]:
            assert f"{name}/{m}/loss" in losses.logs
            assert -1 <= signal[f"{name}/{m}/asymmetry"] <= 1
            assert any(k.startswith(f"{name}/{m}/distance/") for k in signal)


def test_equal_views_show_no_teacher_signal_and_others_do() -> None:
    window, asked = make_window(SPEC), pattern("joint", HORIZON)
    plain = make(plain_share=1.0)
    assert teacher_signal(plain, window, asked, 0) == {}  # both times of a sample are the same
    mixed = make(plain_share=0.0)
    mixed_signal = teacher_signal(mixed, window, asked, 0)
    assert 1 - mixed_signal["joint/action/asymmetry"] > 1e-4
    clean = make(plain_share=0.0, teacher_time="clean")
    clean_signal = teacher_signal(clean, window, asked, 0)
    # A teacher that sees the data itself is further from the student's view than one at min(t, s).
    assert clean_signal["joint/action/asymmetry"] < mixed_signal["joint/action/asymmetry"]


@pytest.mark.parametrize("name", ["flow", "regression"])
def test_an_objective_with_one_time_a_sample_has_no_signal(name: str) -> None:
    objective = make(name)
    assert teacher_signal(objective, make_window(SPEC), pattern("joint", HORIZON), 0) == {}
    masked = make(mask_ratio=NONE | {"state": 0.3}, plain_share=0.0)
    signal = teacher_signal(masked, make_window(SPEC), pattern("joint", HORIZON), 0)
    assert {k.split("/")[1] for k in signal} == {"state"}


@pytest.mark.parametrize("padded", [True, False])
def test_the_signal_is_of_the_tokens_that_count_and_differ(
    padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With features that turn with time, the cosine of two views is that of their time gap."""
    objective = make(plain_share=0.5, padded_actions=padded, draws={})

    def turn(asked: Question, clock: Clock) -> Prediction:
        features, slices, start = [], {}, 0
        for name, v in asked.target.items():
            count = v.shape[1] * v.shape[2]
            time = clock.per_token(name).expand(len(v), count)
            features.append(torch.stack([time.cos(), time.sin()], -1))
            slices[name] = slice(start, start + count)
            start += count
        return Prediction({}, {}, {objective.teacher_layer: torch.cat(features, 1)}, slices)

    monkeypatch.setattr(objective, "teach", turn)
    window, chosen = make_window(SPEC, batch=32), pattern("joint", HORIZON)
    window.action_valid[:, 2:] = False
    window.frame_valid[:, 3:] = False
    signal = teacher_signal(objective, window, chosen, 5)
    drawn = objective.ask(window, chosen, 5).draw
    for name, per_step, valid in (
        ("video/front", 6, window.frame_valid[:, 2:]),
        ("state", 1, window.frame_valid[:, 2:]),
        ("action", 1, window.action_valid | padded),
    ):
        gap = drawn.clock.per_token(name) - drawn.teacher.per_token(name)
        gap = gap[valid.repeat_interleave(per_step, 1) & (gap > 1e-3)]
        assert 0 < len(gap) < drawn.clock.which[name].numel()
        assert signal[f"joint/{name}/asymmetry"] == pytest.approx(float(gap.cos().median()))
        distances = {k: v for k, v in signal.items() if k.startswith(f"joint/{name}/distance")}
        for k, v in distances.items():
            low, high = (float(edge) for edge in k.split("/")[-1].split("-"))
            here = gap[(gap > low) & (gap <= high)]
            assert v == pytest.approx(float((1 - here.cos()).mean()), abs=1e-6)
        assert list(distances.values()) == sorted(distances.values())
        assert len(distances) >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "flows"}, "unknown objective 'flows'; there are"),
        ({"mask_shape": "tube"}, "unknown mask_shape 'tube'"),
        ({"teacher_time": "max"}, "unknown teacher_time 'max'; there are .'min', 'clean'."),
        ({"patterns": {"acts": 1.0}}, r"unknown patterns \['acts'\]"),
        ({"mask_ratio": {"action": 0.6}}, r"mask_ratio.action is in \[0, 0.5\], found 0.6"),
        ({"student_depth": 0.8}, "student_depth < teacher_depth"),
        ({"ema": 1.0}, "found 1.0"),
        ({"any_frame": 1.5}, r"any_frame is in \[0, 1\], found 1.5"),
        ({"history_noise": -0.1}, r"history_noise is in \[0, 1\], found -0.1"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**options)


def test_a_setting_for_an_unknown_modality_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown modality kinds \['sound'\]"):
        make(loss_weight={"sound": 1.0})
