"""Sampling: one way from noise to data, whatever is cached."""

from __future__ import annotations

import pytest
import torch

from tests.worldmodel.models import HORIZON, SPECS, Question, make_checkpoint, make_model
from worldmodel.flow import TimeConfig
from worldmodel.model import Prediction
from worldmodel.sampler import draw_noise, sample
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import PATTERNS, pattern


def run(question: Question, steps: int = 3, **options) -> dict[str, torch.Tensor]:
    return sample(
        question.model,
        question.pattern,
        question.given,
        question.task,
        question.noisy,
        steps,
        **options,
    ).data


@pytest.mark.parametrize("prediction", ["x", "velocity"])
@pytest.mark.parametrize("name", PATTERNS)
def test_encoding_the_given_once_changes_nothing(name: str, prediction: str) -> None:
    question = Question(make_model(SPECS["two cameras"], prediction=prediction), name)
    cached, uncached = run(question), run(question, cache=False)
    assert all(torch.equal(cached[n], uncached[n]) for n in question.noisy)
    assert all((cached[n] - question.noisy[n]).abs().max() > 1e-2 for n in question.noisy)


def test_the_given_tokens_are_encoded_once_where_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    question, calls = Question(make_model(), "act"), []
    encode = question.model.encode

    def count(*arguments, **options):
        calls.append(1)
        return encode(*arguments, **options)

    monkeypatch.setattr(question.model, "encode", count)
    run(question, steps=3)
    assert len(calls) == 1
    run(question, steps=3, cache=False)
    assert len(calls) == 1 + 3


def test_the_outcome_follows_from_the_noise() -> None:
    question, other = (Question(make_model(), "joint", seed=s) for s in (0, 0))
    assert all(
        torch.equal(a, b) for a, b in zip(run(question).values(), run(other).values(), strict=True)
    )
    other.noisy["action"] = other.noisy["action"] + 1
    assert not torch.equal(run(question)["action"], run(other)["action"])
    untouched = Question(make_model(), "joint").noisy
    assert all(torch.equal(v, untouched[n]) for n, v in question.noisy.items())


def test_one_step_of_x_prediction_is_the_predicted_data() -> None:
    question = Question(make_model(), "joint")
    with torch.no_grad():
        expected = question.ask(question.clock(1.0)).data
    torch.testing.assert_close(run(question, steps=1), expected, rtol=1e-4, atol=1e-4)


def test_the_last_of_many_steps_lands_on_the_predicted_data() -> None:
    question = Question(make_model(), "act")
    seen: list[Prediction] = []
    question.model.register_forward_hook(lambda model, inputs, out: seen.append(out))
    result = run(question, steps=4)
    assert len(seen) == 4
    torch.testing.assert_close(result["action"], seen[-1].data["action"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_more_steps_come_closer_to_the_exact_flow(shift: float) -> None:
    """The flow to normal data of standard deviation 1/2 is known: it halves every noise."""
    question = Question(make_model(), "act", batch=2)

    def exact(model, inputs, out: Prediction) -> Prediction:
        noisy, _, clock, _ = inputs
        (x,), (t,) = noisy.values(), clock.levels.values()
        t = t[:, :, None, None]
        variance = 0.25 * (1 - t) ** 2 + t**2
        velocity = (t - 0.25 * (1 - t)) / variance * x
        return Prediction({"action": velocity}, {"action": x - t * velocity}, {}, {})

    question.model.register_forward_hook(exact)
    time = {"action": TimeConfig(sampling_shift=shift)}
    errors = [
        float((run(question, n, time=time)["action"] - question.noisy["action"] / 2).abs().max())
        for n in (2, 8, 32, 128)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


# --- noise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ["one camera", "two cameras", "no state"])
@pytest.mark.parametrize("name", PATTERNS)
def test_noise_is_drawn_for_what_is_wanted(name: str, robot: str) -> None:
    question = Question(make_model(SPECS[robot]), name, batch=3)
    noise = draw_noise(question.model, question.pattern, 3, torch.Generator().manual_seed(0))
    assert {n: v.shape for n, v in noise.items()} == {n: v.shape for n, v in question.noisy.items()}
    question.noisy, question.task = noise, torch.arange(3) % 2
    assert all(v.isfinite().all() for v in run(question, steps=1).values())


def test_noise_is_normal_and_follows_from_its_source() -> None:
    model, asked = make_model(), pattern("joint", HORIZON)

    def draw(seed: int) -> dict[str, torch.Tensor]:
        return draw_noise(model, asked, 500, torch.Generator().manual_seed(seed))

    first, again, other = draw(0), draw(0), draw(1)
    for name, noise in first.items():
        assert noise.mean().abs() < 0.05
        assert noise.std() == pytest.approx(1, abs=0.05)
        assert torch.equal(noise, again[name])
        assert not torch.equal(noise, other[name])
    flat = [first[n].flatten()[:1000] for n in ("state", "action")]
    assert torch.corrcoef(torch.stack(flat))[0, 1].abs() < 0.1  # not the same numbers twice


# --- regression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["act", "joint"])
def test_a_regression_answers_once_and_whatever_the_noise(name: str) -> None:
    question = Question(make_model(), name)
    before = {n: v.clone() for n, v in question.noisy.items()}
    calls: list[int] = []
    question.model.register_forward_hook(lambda *_: calls.append(1))
    answer = run(question, steps=7, regression=True)
    assert len(calls) == 1
    assert all(torch.equal(v, before[n]) for n, v in question.noisy.items())
    question.noisy = {n: v + 1 for n, v in before.items()}
    other = run(question, steps=2, regression=True)
    question.noisy = {n: torch.zeros_like(v) for n, v in before.items()}
    plain = run(question, steps=1)
    question.noisy = before
    sampled = run(question, steps=1)
    for n in before:
        assert torch.equal(answer[n], other[n])
        assert torch.equal(answer[n], plain[n])
        assert (answer[n] - sampled[n]).abs().max() > 1e-2


@pytest.mark.parametrize("objective", ["flow", "selfflow", "regression"])
def test_a_checkpoint_is_sampled_the_way_it_was_trained(objective: str) -> None:
    question = Question(make_model(), "joint")
    time = {"action": TimeConfig(sampling_shift=3.0)}
    opened = make_checkpoint(question.model, ObjectiveConfig(name=objective, time=time))
    asked = (question.pattern, question.given, question.task, question.noisy, 3)
    found = opened.sample(*asked)
    expected = run(question, time=time, regression=objective == "regression")
    other = run(question, regression=objective != "regression")
    unshifted = run(question, regression=objective == "regression")
    for n in question.noisy:
        assert torch.equal(found[n], expected[n])
        assert not torch.equal(found[n], other[n])
        assert torch.equal(found[n], unshifted[n]) is (objective == "regression")


# --- what is asked -------------------------------------------------------------------------------


def test_what_is_missing_or_too_much_is_named() -> None:
    question = Question(make_model(), "act")
    del question.given["state"]
    with pytest.raises(ValueError, match="'act' is given .*'state'.*found .'video/front'."):
        run(question)
    question = Question(make_model(), "act")
    question.noisy["state"] = question.noisy["action"]
    with pytest.raises(ValueError, match="wants .'action'.; found .*'state'"):
        run(question)
    with pytest.raises(ValueError, match="at least one step, found 0"):
        run(Question(make_model(), "act"), steps=0)
