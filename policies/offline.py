"""How good are actions and imagined frames on held-out episodes of a recording?

Without a simulator a policy cannot be driven, but its predictions can be compared with what the
demonstrator did and what the camera saw, beside floors that know nothing: hold the last action,
the mean action; the last frame, the mean frame. Neighbouring windows of one recording resemble each
other, so intervals come from a bootstrap over blocks of windows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.checkpoint import Checkpoint
from worldmodel.data import Windows
from worldmodel.sampler import draw_noise
from worldmodel.tokens import pattern

MOVING = 16  # grey levels by which a pixel must differ from the last given frame to count as moving


def held_out(
    checkpoint: Checkpoint,
    windows: Windows,
    *,
    tasks: tuple[str, ...] | None = None,
    every: int = 4,
    steps: int = 5,
    draws: int = 4,
    batch_size: int = 32,
    block: int = 15,
    seed: int = 0,
) -> dict[str, Any]:
    """Score action chunks and imagined frames on windows that training has not seen.

    Args:
        windows: of the held-out episodes, cut with the checkpoint's horizon.
        tasks: the task texts that the windows count in; default: the checkpoint's own.
        every: take each `every`-th window.
        steps: sampling steps.
        draws: chunks sampled per window; their mean error is reported, and the error of their mean.
        block: windows per block of the bootstrap (times `every` frames of the recording).
        seed: of the noise and of the bootstrap.

    Returns:
        ``action``: mean absolute error in units of each dimension's standard deviation (dimensions
        that never move are left out), for the policy and for both floors, with paired differences;
        ``video``: PSNR in dB per horizon step for the model, copy-last-frame and the mean frame,
        on all pixels and on moving ones (None where none moved), with the paired gain over
        copy-last-frame.
    """
    chosen = np.flatnonzero((windows.frame_of > 0) & (np.arange(len(windows)) % every == 0))
    spec, model = checkpoint.spec, checkpoint.model
    std = torch.tensor(spec.stats["action"]["std"])
    mean = torch.tensor(spec.stats["action"]["mean"])
    span = torch.tensor(spec.stats["action"]["max"]) - torch.tensor(spec.stats["action"]["min"])
    moves = std > 1e-3 * span.abs().clamp_min(1e-3)
    actions: dict[str, list[np.ndarray]] = {}
    frames: dict[str, list[np.ndarray]] = {}
    texts = spec.tasks if tasks is None else tasks
    numbers = [spec.tasks.index(t) if t in spec.tasks else -1 for t in texts] + [-1]

    def task_of(task: Tensor) -> Tensor:
        """The windows' tasks as the model numbers them; -1 for those it does not know."""
        return torch.tensor(numbers)[task]

    has_video = bool(spec.cameras) and model.horizon.future > 0
    rng = torch.Generator().manual_seed(seed)
    mean_frame = _mean_frame(windows, chosen) if has_video else {}
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        window = windows.batch(indices)
        window.task = task_of(window.task)
        previous = windows.batch(indices - 1, future=False).action[:, :1]

        def error(
            guess: Tensor, truth: Tensor = window.action, valid: Tensor = window.action_valid
        ) -> np.ndarray:
            """Mean absolute error of each window, ``[B]``."""
            scaled = ((guess - truth).abs() / std.clamp_min(1e-9))[..., moves].mean(-1)
            return ((scaled * valid).sum(1) / valid.sum(1)).numpy()

        guesses = torch.stack(
            [_answer(checkpoint, window, "act", steps, rng)["action"] for _ in range(draws)]
        )
        each = np.mean([error(g) for g in guesses], axis=0)
        for name, values in (
            ("policy", each),
            ("policy_mean_of_draws", error(guesses.mean(0))),
            ("hold_last", error(previous.expand_as(window.action))),
            ("mean_action", error(mean.expand_as(window.action))),
        ):
            actions.setdefault(name, []).append(values)
        if has_video:
            past = model.horizon.past
            imagined = _answer(checkpoint, window, "forward", steps, rng)
            for camera in spec.cameras:
                truth = window.video[camera][:, past:].float()
                last = window.video[camera][:, past - 1 : past].float().expand_as(truth)
                moving = ((truth - last).abs().amax(2, keepdim=True) > MOVING).expand_as(truth)
                valid = window.frame_valid[:, past:]
                for name, guess in (
                    ("model", imagined[f"video/{camera}"].float()),
                    ("copy_last", last),
                    ("mean_frame", mean_frame[camera].expand_as(truth)),
                ):
                    squares = (guess - truth).square()
                    every_pixel = squares.mean((2, 3, 4))
                    masked = (squares * moving).sum((2, 3, 4)) / moving.sum((2, 3, 4)).clamp_min(1)
                    none = ~valid | (moving.sum((2, 3, 4)) == 0)
                    frames.setdefault(f"{name}/all", []).append(
                        every_pixel.masked_fill(~valid, float("nan")).numpy()
                    )
                    frames.setdefault(f"{name}/moving", []).append(
                        masked.masked_fill(none, float("nan")).numpy()
                    )
    report: dict[str, Any] = {
        "windows": len(chosen),
        "episodes": len(np.unique(windows.episode_of)),
        "action": _score_actions({k: np.concatenate(v) for k, v in actions.items()}, block, seed),
        "moving_dimensions": int(moves.sum()),
        "dimensions": spec.action_dim,
    }
    if has_video:
        times = (model.horizon.times("frame")[model.horizon.past :] / spec.fps).tolist()
        report["video"] = {"seconds": times} | _score_frames(
            {k: np.concatenate(v) for k, v in frames.items()}, block, seed
        )
    return report


def _answer(
    checkpoint: Checkpoint, window: Any, question: str, steps: int, rng: torch.Generator
) -> dict[str, Tensor]:
    """The model's answer to a pattern, in physical units (frames uint8)."""
    model, inputs = checkpoint.model, checkpoint.inputs
    asked = pattern(question, model.horizon)
    given_steps, _ = model.slices_of(asked)
    given = inputs.patches(window, given_steps)
    noise = draw_noise(model, asked, len(window.task), rng)
    out = checkpoint.sample(asked, given, window.task, noise, steps)
    return {n: inputs.denormalize(n, v) for n, v in out.items()}


def _mean_frame(windows: Windows, chosen: np.ndarray) -> dict[str, Tensor]:
    """The mean picture of every camera over these very windows: a floor with hindsight."""
    sums: dict[str, Tensor] = {}
    for index in chosen:
        for camera, video in windows.batch(np.array([index]), future=False).video.items():
            picture = video[:, -1:].float()
            sums[camera] = sums.get(camera, torch.zeros_like(picture)) + picture
    return {camera: total / len(chosen) for camera, total in sums.items()}


def _score_actions(errors: dict[str, np.ndarray], block: int, seed: int) -> dict[str, Any]:
    scores: dict[str, Any] = {name: float(values.mean()) for name, values in errors.items()}
    for floor in ("hold_last", "mean_action"):
        scores[f"policy_minus_{floor}"] = block_bootstrap(
            errors["policy"] - errors[floor], block, seed
        )
    return scores


def _score_frames(squares: dict[str, np.ndarray], block: int, seed: int) -> dict[str, Any]:
    def psnr(values: np.ndarray) -> np.ndarray:
        return 10 * np.log10(255**2 / np.maximum(values, 1e-2))

    scores: dict[str, Any] = {}
    for region in ("all", "moving"):
        table = {n: psnr(squares[f"{n}/{region}"]) for n in ("model", "copy_last", "mean_frame")}
        gain = table["model"] - table["copy_last"]
        known = np.isfinite(gain).any(1)  # at the end of an episode no future frame is left
        if not np.isfinite(gain).any(0).all():
            scores[region] = None  # nothing moved: there is nothing to score
            continue
        scores[region] = {n: np.nanmean(v, axis=0).tolist() for n, v in table.items()}
        scores[region]["gain_over_copy_last"] = block_bootstrap(
            np.nanmean(gain[known], axis=1), block, seed
        )
    return scores


def block_bootstrap(
    values: np.ndarray, block: int, seed: int, repeats: int = 2000
) -> dict[str, float]:
    """Mean of a series with a 95 % interval from resampled blocks of neighbours."""
    if len(values) == 0:
        raise ValueError("nothing to average: no window of the held-out episodes qualifies")
    count = max(1, len(values) // block)
    parts = np.array_split(values, count)
    sums, sizes = np.array([p.sum() for p in parts]), np.array([len(p) for p in parts])
    draws = np.random.default_rng(seed).integers(0, count, (repeats, count))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": float(values.mean()),
        "low": float(low),
        "high": float(high),
        "n": len(values),
        "blocks": count,
    }
