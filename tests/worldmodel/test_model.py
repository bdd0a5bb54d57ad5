"""Who attends to whom, whose time is whose, and what depends on what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.worldmodel.models import (
    HORIZON,
    SPECS,
    Question,
    make_model,
    make_window,
    randomised,
)
from worldmodel.backbone import Block, Rotary, rotate
from worldmodel.checkpoint import open_checkpoint, save_policy
from worldmodel.data.normalize import CLIP
from worldmodel.inputs import Inputs
from worldmodel.model import MASK_BIAS, Clock, ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import PATTERNS, pattern

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients():
    with torch.no_grad():
        yield


def changed(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3)


@pytest.mark.parametrize("robot", SPECS)
def test_every_pattern_answers_with_what_was_asked_for(robot: str) -> None:
    model = make_model(SPECS[robot])
    for name in PATTERNS:
        question = Question(model, name)
        if not question.wanted_steps:
            continue
        out = question.ask()
        assert {n: v.shape for n, v in out.velocity.items()} == {
            n: v.shape for n, v in question.noisy.items()
        }
        assert all(v.isfinite().all() and v.std() > 1e-2 for v in out.data.values())


def test_given_tokens_do_not_see_wanted_ones() -> None:
    """`encode` is not even told of them; here: nor do wanted tokens write into its result."""
    question = Question(make_model(), "joint")
    encoded = question.model.encode(question.given, question.given_steps, question.task)
    before = [k.clone() for k in (*encoded.context.keys, *encoded.context.values)]
    question.model(question.noisy, question.wanted_steps, question.clock(), encoded)
    after = [*encoded.context.keys, *encoded.context.values]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_wanted_tokens_see_each_other() -> None:
    question = Question(make_model(), "joint")
    before = question.ask().data
    question.noisy["action"][:, -1] += 1
    after = question.ask().data
    assert changed(before["action"][:, 0], after["action"][:, 0])
    assert changed(before["video/front"], after["video/front"])
    assert changed(before["state"], after["state"])


@pytest.mark.parametrize("name", ["video/front", "state", "action"])
def test_wanted_tokens_see_every_given_modality(name: str) -> None:
    question = Question(make_model(), "act_prefix")
    before = question.ask().data["action"]
    question.given[name][:, 0, 0] += 1
    assert changed(before, question.ask().data["action"])


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    question = Question(make_model(), "joint")
    before = question.ask().data
    question.noisy["action"][1] += 1
    question.given["state"][1] += 1
    after = question.ask().data
    assert all(torch.equal(before[n][0], after[n][0]) for n in before)


def test_the_task_and_the_time_are_heard() -> None:
    question = Question(make_model(), "act")
    before = question.ask().data["action"]
    assert changed(before, question.ask(question.clock(0.3)).data["action"])
    question.task = torch.tensor([-1, -1])
    assert changed(before, question.ask().data["action"])


def test_two_equal_levels_are_one_level() -> None:
    question = Question(make_model(), "joint")
    one = question.ask()
    clock = question.clock()
    for name, values in question.noisy.items():
        clock.levels[name] = clock.levels[name].repeat(1, 2)
        clock.which[name] = torch.randint(2, (2, values.shape[1] * values.shape[2]))
    two = question.ask(clock)
    for name in one.velocity:
        torch.testing.assert_close(one.velocity[name], two.velocity[name], rtol=1e-4, atol=1e-4)


def test_the_names_of_the_levels_do_not_matter() -> None:
    question = Question(make_model(), "joint")
    clock, swapped = question.clock(), question.clock()
    for name, values in question.noisy.items():
        levels = torch.tensor([[0.2, 0.9], [0.7, 0.4]])
        which = torch.randint(2, (2, values.shape[1] * values.shape[2]))
        clock.levels[name], clock.which[name] = levels, which
        swapped.levels[name], swapped.which[name] = levels.flip(1), 1 - which
    a, b = question.ask(clock), question.ask(swapped)
    for name in a.velocity:
        torch.testing.assert_close(a.velocity[name], b.velocity[name], rtol=1e-4, atol=1e-4)


def test_each_token_is_modulated_by_its_own_level() -> None:
    """Tokens of one time, told one by one, equal a clock with one level of that time."""
    question = Question(make_model(), "act")
    levels = torch.tensor([[0.2, 0.9], [0.2, 0.9]])
    plain = question.ask(Clock({"action": levels[:, 1:]}))
    all_second = Clock({"action": levels}, {"action": torch.ones(2, 6, dtype=torch.long)})
    torch.testing.assert_close(question.ask(all_second).data, plain.data, rtol=1e-4, atol=1e-4)
    one_first = torch.ones(2, 6, dtype=torch.long)
    one_first[:, 2] = 0
    mixed = question.ask(Clock({"action": levels}, {"action": one_first}))
    assert changed(mixed.data["action"][:, 2], plain.data["action"][:, 2])


@pytest.mark.parametrize("name", ["video/front", "state", "action"])
def test_each_modality_has_its_own_time(name: str) -> None:
    question = Question(make_model(), "joint")
    before = question.ask(layers=(1,))
    clock = question.clock()
    clock.levels[name] = clock.levels[name] - 0.4
    after = question.ask(clock, layers=(1,))
    part = before.slices[name]
    assert changed(before.features[1][:, part], after.features[1][:, part])


def test_features_of_a_run_cut_short_are_those_of_the_full_run() -> None:
    question = Question(make_model(), "joint")
    full = question.ask(layers=(1, 2))
    short = question.ask(layers=(1, 2), until=2)
    assert short.velocity == {}
    assert short.slices == full.slices
    for layer in (1, 2):
        assert torch.equal(full.features[layer], short.features[layer])
    tokens = sum(v.shape[1] * v.shape[2] for v in question.noisy.values())
    assert full.features[1].shape == (2, tokens, question.model.size.width)
    encoded = question.model.encode(question.given, question.given_steps, question.task, until=2)
    cut = question.model(
        question.noisy, question.wanted_steps, question.clock(), encoded, layers=(2,), until=2
    )
    assert torch.equal(cut.features[2], full.features[2])


def test_repeated_observations_are_encoded_as_if_each_were_its_own() -> None:
    question = Question(make_model(), "act")
    once = question.model.encode(question.given, question.given_steps, question.task).repeat(3)
    given = {n: v.repeat_interleave(3, 0) for n, v in question.given.items()}
    each = question.model.encode(given, question.given_steps, question.task.repeat_interleave(3))
    torch.testing.assert_close(once.condition, each.condition)
    torch.testing.assert_close(once.context.keys, each.context.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(once.context.values, each.context.values, rtol=1e-4, atol=1e-4)


def test_both_predictions_describe_one_line() -> None:
    for prediction in ("x", "velocity"):
        question = Question(make_model(prediction=prediction), "act")
        out = question.ask(question.clock(0.5))
        line = out.data["action"] + 0.5 * out.velocity["action"]
        torch.testing.assert_close(line, question.noisy["action"], rtol=1e-4, atol=1e-4)


def test_a_fresh_model_imagines_the_last_past_frame_again() -> None:
    fresh = WorldModel(SPECS["one camera"], HORIZON, ModelConfig(size="debug"))
    question = Question(fresh, "joint")
    data = question.ask().data
    for name in ("video/front", "state"):
        now = question.given[name][:, HORIZON.past - 1 : HORIZON.past]
        if name in fresh.masked:  # its new pixels are zeros still, of which a little shows
            now = now * (1 - torch.sigmoid(torch.tensor(MASK_BIAS)))
        torch.testing.assert_close(data[name], now.expand_as(data[name]))


def moved(kind: str, scales: list[float], shift: float) -> dict[str, list[float]]:
    """Statistics of values that lie elsewhere, and reach further."""
    return {
        n: [s * v[0] + (0.0 if n == "std" else shift) for s in scales]
        for n, v in SPECS["one camera"].stats[kind].items()
    }


ABSOLUTE = replace(
    SPECS["one camera"],
    action_kind="absolute",
    action_targets=(2, 0),
    stats={"state": moved("state", [1.0, 2.0, 3.0], -0.3), "action": moved("action", [2, 3], 0.1)},
)


@pytest.mark.parametrize("mode", CLIP)
@pytest.mark.parametrize("offsets", [(2, 4), (1,), (3, 6)])
def test_a_fresh_model_expects_states_where_absolute_actions_want_them(
    offsets: tuple[int, ...], mode: str
) -> None:
    """In physical units; states that no action speaks of are expected to stay."""
    fresh = WorldModel(ABSOLUTE, HORIZON, ModelConfig(size="debug", normalization=mode))
    inputs = Inputs(ABSOLUTE, fresh.modalities, mode)
    question = pattern("forward", HORIZON, offsets=offsets)
    given_steps, wanted_steps = fresh.slices_of(question)
    window = make_window(ABSOLUTE, replace(HORIZON, future=len(offsets)))
    # Within the range of both, so that nothing is clamped.
    window.state, window.action = 0.4 * window.state, 0.4 * window.action
    given = inputs.patches(window, given_steps)
    noisy = {n: torch.randn_like(v) for n, v in inputs.patches(window, wanted_steps).items()}
    clock = Clock({n: torch.full((4, 1), 0.7) for n in noisy})
    encoded = fresh.encode(given, given_steps, window.task, offsets=offsets)
    found = inputs.denormalize("state", fresh(noisy, wanted_steps, clock, encoded).data["state"])
    expected = window.state[:, 1:2].repeat(1, len(offsets), 1)
    at = [o - 1 for o in offsets]
    expected[:, :, 2], expected[:, :, 0] = window.action[:, at, 0], window.action[:, at, 1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["delta", "unknown"])
def test_other_actions_are_no_targets(kind: str) -> None:
    fresh = WorldModel(replace(ABSOLUTE, action_kind=kind), HORIZON, ModelConfig(size="debug"))
    question = Question(fresh, "forward")
    now = question.given["state"][:, HORIZON.past - 1 : HORIZON.past]
    torch.testing.assert_close(question.ask().data["state"], now.expand(-1, 2, -1, -1))


def test_a_frame_is_told_the_action_that_leads_to_it_and_the_mean_so_far() -> None:
    """Its own token, before anything attends to anything."""
    model = make_model()
    question = Question(model, "forward")
    told = model.encode(question.given, question.given_steps, question.task).lead
    assert told is not None
    actions = question.given["action"][:, :, 0]
    for number, offset in enumerate(HORIZON.grid):
        other = dict(question.given)
        other["action"] = torch.zeros_like(other["action"])
        # Ones with the same last action and the same mean, but in another order.
        other["action"][:, offset - 1, 0] = actions[:, offset - 1]
        rest = actions[:, :offset].sum(1) - actions[:, offset - 1]
        other["action"][:, 0, 0] += rest
        same = model.encode(other, question.given_steps, question.task).lead
        assert same is not None
        torch.testing.assert_close(told[:, number], same[:, number], rtol=1e-4, atol=1e-4)
        for changed_step, heard in ((offset - 1, True), (offset, False)):
            if changed_step < HORIZON.chunk:
                other = dict(question.given) | {"action": question.given["action"].clone()}
                other["action"][:, changed_step] += 0.5
                differs = model.encode(other, question.given_steps, question.task).lead
                assert differs is not None
                assert changed(told[:, number], differs[:, number]) is heard
    for name in PATTERNS:
        if name != "forward":
            unled = Question(model, name)
            encoded = model.encode(unled.given, unled.given_steps, unled.task)
            assert encoded.lead is None


def test_new_pixels_are_blended_in_by_the_mask_and_the_rest_is_copied() -> None:
    model = WorldModel(SPECS["one camera"], HORIZON, ModelConfig(size="debug"))
    question, bias = Question(model, "video"), model.state_dict()["head.video_front.bias"]
    width = model.modalities["video/front"].width
    now = question.given["video/front"][:, 1:2].expand(-1, 2, -1, -1)
    for mask, share in ((30.0, 1.0), (-30.0, 0.0), (-MASK_BIAS, 0.5)):
        bias[:width], bias[width:] = 0.3, mask
        found = question.ask().data["video/front"]
        torch.testing.assert_close(found, now + share * (0.3 - now), rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_before_is_what_it_was(tmp_path: Path) -> None:
    """Its settings do not speak of what it did not have."""
    config = ModelConfig(size="debug", per_frame_actions=False, copy_mask=False)
    old = randomised(WorldModel(ABSOLUTE, HORIZON, config))
    assert not any(n.startswith("lead") for n in old.state_dict())
    assert old.masked == {}
    save_policy(tmp_path, old, ObjectiveConfig(), {})
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for name in ("per_frame_actions", "copy_mask"):
        del values["model"][name]
    for name in ("any_frame", "history_noise"):
        del values["objective"][name]
    del values["spec"]["has_success"]
    path.write_text(json.dumps(values))
    opened = open_checkpoint(tmp_path)
    assert opened.model.config == config
    assert (opened.objective.any_frame, opened.objective.history_noise) == (0.0, 0.0)
    assert opened.model.success is None
    assert (ModelConfig().per_frame_actions, ModelConfig().copy_mask) == (True, True)
    a, b = (Question(m, "forward").ask().data for m in (old.eval(), opened.model))
    for n, v in a.items():
        torch.testing.assert_close(b[n], v, rtol=1e-4, atol=1e-4)


def test_rotation_makes_products_depend_on_distances_only() -> None:
    rotary = Rotary(32)
    x = torch.randn(1, 2, 2, 32)
    near = torch.tensor([[0.0, -0.3, 0.1], [5.0, 0.2, 0.4]])
    far = near + torch.tensor([3.0, 0.25, -0.5])
    (q, k), (q2, k2) = (rotate(x, rotary(ids, 2)) for ids in (near, far))
    torch.testing.assert_close(
        q @ k.transpose(-1, -2), q2 @ k2.transpose(-1, -2), rtol=1e-4, atol=1e-4
    )
    assert changed(q, q2)


def test_the_rotation_without_a_gradient_is_the_one_with_it() -> None:
    x, by = torch.randn(2, 5, 4, 16), Rotary(16)(torch.randn(5, 3), 4)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        q, k = rotate(leaf, by)
        weight = torch.randn(2, *q.shape)
        (weight[0] * q + weight[1] * k).sum().backward()
    assert torch.equal(torch.stack([q, k]), torch.stack(rotate(x, by)))
    # The rotation is linear and orthogonal: its gradient is the rotation back.
    assert leaf.grad is not None
    back = rotate(leaf.grad, by)
    torch.testing.assert_close(torch.stack(back), weight, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        spec, config = SPECS["two cameras"], ModelConfig(size="debug")
        model = WorldModel(spec, HORIZON, config, seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    state = torch.random.get_rng_state()
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is left alone


def test_sizes_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown model size 'huge'; there are .*'tiny'"):
        ModelConfig(size="huge").resolve()
    with pytest.raises(ValueError, match="unknown prediction 'noise'"):
        ModelConfig(prediction="noise").resolve()
    with pytest.raises(ValueError, match="multiple of 8, found 12"):
        Rotary(12)
    assert isinstance(make_model().backbone.blocks[0], Block)


def test_rotary_angles_are_exact_under_autocast() -> None:
    rotary, ids = Rotary(32), torch.tensor([[16.0, 0.9, -0.7], [3.0, -0.3, 0.55]])
    exact = rotary(ids, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary(ids, 2), exact)
