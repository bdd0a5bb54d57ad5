"""The six questions: what comes back, that rows are alone, what noise and guidance do, refusals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worldmodel.models import HORIZON, SPECS, make_checkpoint, make_model, make_window
from worldmodel import questions
from worldmodel.checkpoint import Checkpoint
from worldmodel.imagine import Imagined, ask
from worldmodel.sampler import Guidance
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import PATTERNS, pattern
from worldmodel.types import Spec

SEEING = ("infer_actions", "predict", "reach")
WITH_GUIDANCE = ("act", "imagine", "predict", "act_and_imagine", "reach")


@dataclass
class Seen:
    """What a question is asked about: B windows, all of their frames and actions."""

    video: dict[str, Tensor]
    state: Tensor | None
    action: Tensor
    task: Tensor

    @property
    def past(self) -> dict[str, Tensor]:
        return {c: v[:, : HORIZON.past] for c, v in self.video.items()}

    @property
    def goal(self) -> dict[str, Tensor]:
        return {c: v[:, -1] for c, v in self.video.items()}

    def row(self, number: int) -> Seen:
        part = slice(number, number + 1)
        state = None if self.state is None else self.state[part]
        video = {c: v[part] for c, v in self.video.items()}
        return Seen(video, state, self.action[part], self.task[part])


def look(spec: Spec, batch: int = 3, seed: int = 0) -> Seen:
    window = make_window(spec, batch=batch, seed=seed)
    state = window.state[:, : HORIZON.past] if spec.state_dim else None
    return Seen(window.video, state, window.action, window.task)


@functools.cache
def opened(robot: str = "one camera", success: bool = False, **objective: Any) -> Checkpoint:
    spec = replace(SPECS[robot], has_success=success)
    return make_checkpoint(make_model(spec), ObjectiveConfig(any_frame=0.3, **objective))


QUESTIONS: dict[str, Callable[..., Tensor | Imagined]] = {
    "act": lambda c, s, **o: questions.act(c, s.past, s.state, **o),
    "imagine": lambda c, s, **o: questions.imagine(c, s.past, s.state, s.action[:, :4], **o),
    "infer_actions": lambda c, s, **o: questions.infer_actions(c, s.video, s.state, **o),
    "predict": lambda c, s, **o: questions.predict(c, s.past, s.state, **o),
    "act_and_imagine": lambda c, s, **o: questions.act_and_imagine(c, s.past, s.state, **o),
    "reach": lambda c, s, **o: questions.reach(c, s.past, s.state, s.goal, **o),
}


def answer(name: str, checkpoint: Checkpoint, seen: Seen, **options: Any) -> dict[str, Tensor]:
    """The answer by modality, in physical units; "success" beside."""
    found = QUESTIONS[name](checkpoint, seen, task=seen.task, **options)
    if isinstance(found, Tensor):
        return {"action": found}
    values: dict[str, Tensor | None] = {f"video/{c}": v for c, v in found.video.items()}
    values |= {"state": found.state, "action": found.action, "success": found.success}
    return {n: v for n, v in values.items() if v is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("robot", SPECS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_each_question_is_answered_with_what_it_asks_for(name: str, robot: str) -> None:
    spec = SPECS[robot]
    checkpoint, seen = opened(robot, success=True), look(spec)
    if name in SEEING and not spec.cameras:
        with pytest.raises(ValueError, match="is about frames; the model sees no camera"):
            answer(name, checkpoint, seen)
        return
    shapes: dict[str, tuple[int, ...]] = {}
    if name not in ("imagine", "predict"):
        shapes["action"] = (3, HORIZON.chunk, 2)
    if name in ("imagine", "predict", "act_and_imagine"):
        shapes |= {f"video/{c}": (3, 2, 3, *spec.image_size) for c in spec.cameras}
        shapes["success"] = (3, 2)
    if name in ("imagine", "act_and_imagine") and spec.state_dim:
        shapes["state"] = (3, 2, spec.state_dim)
    found = answer(name, checkpoint, seen)
    assert {n: tuple(v.shape) for n, v in found.items()} == shapes
    for n, v in found.items():
        assert v.dtype == (torch.uint8 if n.startswith("video") else torch.float32)
        assert v.isfinite().all()
    if "success" in found:
        assert ((found["success"] > 0) & (found["success"] < 1)).all()


@pytest.mark.parametrize("name", ["imagine", "predict", "act_and_imagine"])
def test_a_model_that_was_not_told_of_success_does_not_speak_of_it(name: str) -> None:
    assert "success" not in answer(name, opened(), look(SPECS["one camera"]))


@pytest.mark.parametrize("name", ["predict", "act_and_imagine"])
@pytest.mark.parametrize("frames", [(1,), (5,), (1, 6), (2, 4)])
def test_any_frames_can_be_asked_for(name: str, frames: tuple[int, ...]) -> None:
    found = QUESTIONS[name](opened(), look(SPECS["one camera"]), frames=frames)
    assert isinstance(found, Imagined)
    assert found.frames.tolist() == list(frames)
    assert found.video["front"].shape[1] == len(frames)


def test_frames_further_ahead_are_other_frames() -> None:
    seen = look(SPECS["one camera"])
    near, far = (answer("predict", opened(), seen, frames=(f,)) for f in (1, 6))
    assert not same(near, far)
    frames = {"front": seen.video["front"][:, :3]}
    ahead = [questions.infer_actions(opened(), frames, seen.state, frames=(f,)) for f in (1, 6)]
    assert not torch.equal(*ahead)
    within = [answer("reach", opened(), seen, within=f)["action"] for f in (1, 6)]
    assert not torch.equal(*within)


def test_the_goal_of_reach_is_by_default_the_last_frame_of_the_grid() -> None:
    seen = look(SPECS["one camera"])
    expected = answer("reach", opened(), seen, within=4)
    assert same(answer("reach", opened(), seen), expected)
    elsewhere = {"front": seen.goal["front"].flip(-1)}
    found = questions.reach(opened(), seen.past, seen.state, elsewhere, task=seen.task)
    assert not torch.equal(found, expected["action"])


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_committed_actions_come_back_as_they_are_and_are_heeded(depth: int) -> None:
    seen = look(SPECS["one camera"])
    committed = seen.action[:, :depth]
    found = answer("act", opened(), seen, committed=committed)["action"]
    assert found.shape == seen.action.shape
    assert torch.equal(found[:, :depth], committed)
    other = answer("act", opened(), seen, committed=-committed)["action"]
    assert torch.equal(found[:, depth:], other[:, depth:]) is (depth == 0)


# --- noise, rows, steps --------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_follow_from_the_seed_and_the_number_of_steps(name: str) -> None:
    checkpoint, seen = opened(), look(SPECS["one camera"])
    found = answer(name, checkpoint, seen, seed=1, steps=3)
    assert same(found, answer(name, checkpoint, seen, seed=1, steps=3))
    assert not same(found, answer(name, checkpoint, seen, seed=2, steps=3))
    assert not same(found, answer(name, checkpoint, seen, seed=1, steps=1))


@pytest.mark.parametrize("name", QUESTIONS)
def test_rows_of_a_batch_are_answered_alone(name: str) -> None:
    """Whatever stands beside a row; without noise a row by itself is answered as in the batch."""
    checkpoint, seen = opened(success=True), look(SPECS["one camera"])
    found, other = answer(name, checkpoint, seen), look(SPECS["one camera"], seed=1)
    for each, own in ((other.video, seen.video), (vars(other), vars(seen))):
        for n, v in each.items():
            if isinstance(v, Tensor):
                v[1] = own[n][1]
    beside = answer(name, checkpoint, other)
    assert all(torch.equal(v[1], beside[n][1]) for n, v in found.items())
    assert not any(torch.equal(v[0], beside[n][0]) for n, v in found.items())

    noiseless = opened(success=True, name="regression")
    together = answer(name, noiseless, seen)
    alone = answer(name, noiseless, seen.row(2))
    for n, v in together.items():
        near = 1.0 if v.dtype == torch.uint8 else 1e-4  # a pixel may be rounded the other way
        torch.testing.assert_close(alone[n].float(), v[2:].float(), rtol=1e-4, atol=near)


def test_rows_with_draws_of_their_own_are_answered_as_if_alone() -> None:
    checkpoint, seen = opened(), look(SPECS["one camera"])
    question = pattern("joint", HORIZON)
    draws = [(seed, "some purpose", 4) for seed in (7, 8, 9)]
    together = ask(checkpoint, question, seen.past, seen.state, {}, seen.task, 2, draws)
    one = seen.row(1)
    alone = ask(checkpoint, question, one.past, one.state, {}, one.task, 2, draws[1])
    assert together.action is not None
    assert alone.action is not None
    torch.testing.assert_close(alone.action, together.action[1:2], rtol=1e-4, atol=1e-4)
    assert not torch.equal(together.action[0], together.action[1])


# --- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_GUIDANCE)
def test_guidance_of_weight_one_is_none_and_more_changes_the_answer(name: str) -> None:
    checkpoint, seen = opened(success=True), look(SPECS["one camera"])
    plain = answer(name, checkpoint, seen)
    assert same(plain, answer(name, checkpoint, seen, guidance=Guidance(task=1, action=1)))
    assert not same(plain, answer(name, checkpoint, seen, guidance=Guidance(task=2)))


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_guidance_goes_on_from_the_answer_without_the_task_past_that_with_it(weight: float) -> None:
    """In one step; 0 is the answer without it."""
    checkpoint, seen = opened(), look(SPECS["one camera"])
    told = answer("act", checkpoint, seen, steps=1)["action"]
    untold = questions.act(checkpoint, seen.past, seen.state, steps=1)
    guided = answer("act", checkpoint, seen, steps=1, guidance=Guidance(task=weight))["action"]
    assert (told - untold).abs().max() > 1e-2
    torch.testing.assert_close(guided, untold + weight * (told - untold), rtol=1e-4, atol=1e-3)


def test_guidance_on_actions_is_for_imagined_frames_under_actions_only() -> None:
    checkpoint, seen = opened(), look(SPECS["one camera"])
    strong = Guidance(action=2.0)
    plain, guided = (
        answer("imagine", checkpoint, seen, steps=1, guidance=g) for g in (Guidance(), strong)
    )
    assert not torch.equal(plain["video/front"], guided["video/front"])
    assert torch.equal(plain["state"], guided["state"])  # which "video" does not tell
    for name in WITH_GUIDANCE:
        if name != "imagine":
            with pytest.raises(ValueError, match="needs given actions and wanted frames"):
                answer(name, checkpoint, seen, guidance=strong)


# --- refusals ------------------------------------------------------------------------------------


def seeing(change: Callable[[Tensor], Tensor]) -> Callable[[Seen], Seen]:
    return lambda seen: replace(seen, video={"front": change(seen.video["front"])})


def as_is(seen: Seen) -> Seen:
    return seen


ASCENDING = "ascending order, from 1 to 6 after now; found "


@pytest.mark.parametrize(
    ("name", "change", "options", "message"),
    [
        (
            "act",
            lambda s: replace(s, video={"top": s.video["front"]}),
            {},
            r"sees cameras \['front'\], found \['top'\]",
        ),
        ("act", seeing(lambda v: v.float()), {}, "float32; frames are uint8"),
        ("act", seeing(lambda v: v[:, :1]), {}, r"front is \[3, 1, 3, 16, 24\].*takes \[B, 2, 3,"),
        ("act", lambda s: replace(s, state=None), {}, "no state"),
        (
            "act",
            lambda s: replace(s, state=s.state[..., :2]),
            {},
            r"\[3, 2, 2\].*takes \[B, 2, 3\]",
        ),
        ("act", lambda s: replace(s, state=s.state * torch.nan), {}, "state .* not finite"),
        ("act", as_is, {"steps": 0}, "at least one step, found 0"),
        ("act", as_is, {"committed": torch.zeros(3, 6, 2)}, r"in \[0, 6\), found 6"),
        ("act", as_is, {"committed": torch.zeros(3, 2, 5)}, r"\[3, 2, 5\].*takes \[B, 2, 2\]"),
        ("imagine", lambda s: replace(s, action=s.action[:, :1]), {}, "1 actions reach no frame"),
        ("infer_actions", seeing(lambda v: v[:, :2]), {}, r"takes \[B, 4, 3, 16, 24\]"),
        ("infer_actions", as_is, {"frames": (2, 4, 6)}, r"takes \[B, 5, 3, 16, 24\]"),
        ("predict", as_is, {"frames": (4, 2)}, ASCENDING + r"\[4, 2\]"),
        ("predict", as_is, {"frames": (7,)}, ASCENDING + r"\[7\]"),
        ("act_and_imagine", as_is, {"frames": ()}, ASCENDING + r"\[\]"),
        ("reach", as_is, {"within": 0}, ASCENDING + r"\[0\]"),
        ("reach", seeing(lambda v: v[..., :8]), {}, r"takes \[B, 3, 3, 16, 24\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(
    name: str, change: Callable[[Seen], Seen], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        answer(name, opened(), change(look(SPECS["one camera"])), **options)


def test_a_goal_that_no_camera_could_see_is_named() -> None:
    seen = look(SPECS["two cameras"])
    goal = seen.goal
    for wrong, found in ((goal["wrist"][:, :, :8], r"\[3, 3, 8, 24\]"), (None, "nothing")):
        shown = {"front": goal["front"]} | ({} if wrong is None else {"wrist": wrong})
        with pytest.raises(ValueError, match=rf"wrist will see, \[3, 3, 16, 24\]; found {found}"):
            questions.reach(opened("two cameras"), seen.past, seen.state, shown)


@pytest.mark.parametrize("name", ["infer_actions", "predict", "act_and_imagine", "reach"])
def test_a_model_is_not_asked_for_frames_that_it_never_learned(name: str) -> None:
    usual = make_checkpoint(make_model(), ObjectiveConfig(any_frame=0.0))
    seen = look(SPECS["one camera"])
    option: dict[str, Any] = {"within": 3} if name == "reach" else {"frames": (1, 3)}
    with pytest.raises(ValueError, match=r"only, of its grid; train with objective.any_frame"):
        answer(name, usual, seen, **option)
    assert answer(name, usual, seen)


@pytest.mark.parametrize(
    ("name", "pattern_name"),
    [
        ("act", "act"),
        ("imagine", "forward"),
        ("infer_actions", "inverse"),
        ("predict", "video"),
        ("act_and_imagine", "joint"),
        ("reach", "reach"),
    ],
)
def test_a_question_that_was_not_trained_is_refused(name: str, pattern_name: str) -> None:
    checkpoint = without(pattern_name)
    with pytest.raises(ValueError, match=rf"not trained on the question '{pattern_name}'"):
        answer(name, checkpoint, look(SPECS["one camera"]))


def without(pattern_name: str) -> Checkpoint:
    shares = {n: float(n != pattern_name) for n in PATTERNS}
    config = ObjectiveConfig(any_frame=0.3, patterns=shares)
    return make_checkpoint(make_model(SPECS["one camera"]), config)


def test_guidance_and_commitments_that_were_not_trained_are_refused() -> None:
    seen = look(SPECS["one camera"])
    with pytest.raises(ValueError, match="'video', which guidance on actions subtracts"):
        answer("imagine", without("video"), seen, guidance=Guidance(action=2.0))
    with pytest.raises(ValueError, match=r"'act_prefix' \(objective.patterns.act_prefix was 0\)"):
        answer("act", without("act_prefix"), seen, committed=seen.action[:, :2])
    answer("act", without("act_prefix"), seen)
    with pytest.raises(ValueError, match="up to 1 committed actions"):
        answer("act", opened(prefix=1), seen, committed=seen.action[:, :2])
    with pytest.raises(ValueError, match=r"or -1 for none; found \[7, 7, 7\]"):
        questions.act(opened(), seen.past, seen.state, task=torch.full((3,), 7))


def test_under_guidance_nothing_is_said_of_success() -> None:
    """It is read off features, and a sum of answers has none."""
    checkpoint, seen = opened(success=True), look(SPECS["one camera"])
    assert "success" in answer("imagine", checkpoint, seen)
    assert "success" not in answer("imagine", checkpoint, seen, guidance=Guidance(action=2.0))
