"""What one checkpoint can be asked: six questions, each a pattern over the one sampler.

==================  =====================================  ==============================
question            given                                  wanted
==================  =====================================  ==============================
`act`               past video and state                   actions
`imagine`           the same and actions                   future video, state, success
`infer_actions`     past and future video, past state      actions
`predict`           past video and state                   future video
`act_and_imagine`   past video and state                   actions, future video, state
`reach`             past video and state, a goal's video   actions
==================  =====================================  ==============================

All of them take a batch, in physical units (frames as uint8), and the seed of their noise; all
answers of a batch are independent of one another. `imagine` goes on for as long as there are
actions; the others speak of one window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .imagine import Imagined, ask, imagine
from .sampler import PLAIN, Guidance
from .tokens import Pattern, pattern

__all__ = ["Imagined", "act", "act_and_imagine", "imagine", "infer_actions", "predict", "reach"]

Video = Mapping[str, Tensor]
"""Camera name -> uint8 ``[B, T, C, H, W]``."""


def act(
    checkpoint: Checkpoint,
    video: Video,
    state: Tensor | None,
    *,
    committed: Tensor | None = None,
    task: Tensor | None = None,
    steps: int = 2,
    seed: int = 0,
    guidance: Guidance = PLAIN,
) -> Tensor:
    """What a demonstrator would do now (the policy): actions ``[B, K, A]``.

    Args:
        video, state: past frames ``[B, P, ...]`` and states ``[B, P, S]``.
        committed: ``[B, d, A]``, the first d actions of the chunk, which are settled already.
        task: int64 ``[B]``, -1 for none.
        steps: sampling steps.
        seed: of the noise.
        guidance: of the task.

    Raises:
        ValueError: cameras, shapes or more committed actions than the model fits.
    """
    depth = 0 if committed is None else committed.shape[1]
    question = pattern("act_prefix", checkpoint.model.horizon, depth)
    values = {"action": committed} if committed is not None else {}
    answer = ask(checkpoint, question, video, state, values, task, steps, (seed, "act"), guidance)
    assert answer.action is not None
    return answer.action if committed is None else torch.cat([committed, answer.action], 1)


def infer_actions(
    checkpoint: Checkpoint,
    video: Video,
    state: Tensor | None,
    *,
    frames: Sequence[int] | None = None,
    task: Tensor | None = None,
    steps: int = 2,
    seed: int = 0,
) -> Tensor:
    """What was done between these frames (inverse dynamics): actions ``[B, K, A]``.

    Future states are no part of the question: an absolute joint target could be read off them.

    Args:
        video: past and future frames ``[B, P + F, ...]``.
        state: past states ``[B, P, S]``.
        frames: which frames after now the F future ones are; default: the model's grid.
        task, steps, seed: see `act`.
    """
    question = _about("inverse", checkpoint, frames)
    answer = ask(checkpoint, question, video, state, {}, task, steps, (seed, "infer_actions"))
    assert answer.action is not None
    return answer.action


def predict(
    checkpoint: Checkpoint,
    video: Video,
    state: Tensor | None,
    *,
    frames: Sequence[int] | None = None,
    task: Tensor | None = None,
    steps: int = 2,
    seed: int = 0,
    guidance: Guidance = PLAIN,
) -> Imagined:
    """What the cameras will see if nobody says what is done (video prediction).

    Args:
        video, state: past frames and states.
        frames: which frames after now; default: the model's grid. Others take a model that was
            trained with ``objective.any_frame`` above 0.
        task, steps, seed, guidance: see `act`.
    """
    question = _about("video", checkpoint, frames)
    return ask(checkpoint, question, video, state, {}, task, steps, (seed, "predict"), guidance)


def act_and_imagine(
    checkpoint: Checkpoint,
    video: Video,
    state: Tensor | None,
    *,
    frames: Sequence[int] | None = None,
    task: Tensor | None = None,
    steps: int = 2,
    seed: int = 0,
    guidance: Guidance = PLAIN,
) -> Imagined:
    """Actions and what will be seen under them, sampled together (the joint distribution).

    Args:
        video, state: past frames and states.
        frames: which frames after now; default: the model's grid.
        task, steps, seed, guidance: see `act`.
    """
    question = _about("joint", checkpoint, frames)
    draw = (seed, "act_and_imagine")
    return ask(checkpoint, question, video, state, {}, task, steps, draw, guidance)


def reach(
    checkpoint: Checkpoint,
    video: Video,
    state: Tensor | None,
    goal: Mapping[str, Tensor],
    *,
    within: int | None = None,
    task: Tensor | None = None,
    steps: int = 2,
    seed: int = 0,
    guidance: Guidance = PLAIN,
) -> Tensor:
    """Actions ``[B, K, A]`` after which the cameras see the goal.

    Args:
        video, state: past frames and states.
        goal: camera name -> uint8 ``[B, C, H, W]``.
        within: frames after now at which the goal is to be seen; default: the last of the grid.
        task, steps, seed, guidance: see `act`.

    Raises:
        ValueError: the goal is not a frame of each camera; and see `act` and `predict`.
    """
    horizon = checkpoint.model.horizon
    question = _about("reach", checkpoint, horizon.grid[-1:] if within is None else (within,))
    for camera, past in video.items():
        found = list(goal[camera].shape) if camera in goal else "nothing"
        expected = [len(past), *past.shape[2:]]
        if found != expected:
            raise ValueError(f"a goal shows what {camera} will see, {expected}; found {found}")
    seen = {c: torch.cat([v, goal[c][:, None].to(v.device)], 1) for c, v in video.items()}
    answer = ask(checkpoint, question, seen, state, {}, task, steps, (seed, "reach"), guidance)
    assert answer.action is not None
    return answer.action


def _about(name: str, checkpoint: Checkpoint, frames: Sequence[int] | None) -> Pattern:
    """A question about these frames; None is the model's grid.

    Raises:
        ValueError: frames that there are none of, or that the model was not trained to tell.
    """
    horizon = checkpoint.model.horizon
    question = pattern(name, horizon, offsets=frames)
    known = horizon.grid[-1:] if name == "reach" else horizon.grid
    if checkpoint.objective.any_frame == 0 and not {*question.offsets} <= {*known}:
        raise ValueError(
            f"frames {list(question.offsets)}: of this question the model knows {list(known)} "
            "only, of its grid; train with objective.any_frame above 0 for others"
        )
    return question
