"""Sampling: one way from noise to data, whatever is cached."""

from __future__ import annotations

import pytest
import torch

from tests.worldmodel.models import SPECS, Question, make_model
from worldmodel.flow import TimeConfig
from worldmodel.model import Prediction
from worldmodel.sampler import sample
from worldmodel.tokens import PATTERNS


def run(question: Question, steps: int = 3, **options) -> dict[str, torch.Tensor]:
    return sample(
        question.model,
        question.pattern,
        question.given,
        question.task,
        question.noisy,
        steps,
        **options,
    )


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
