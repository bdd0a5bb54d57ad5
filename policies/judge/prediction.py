"""Parts one and two of a world model's report: does it predict, and does it listen to actions?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.checkpoint import Checkpoint
from worldmodel.imagine import Imagined, imagine

from ..statistics import Interval, mean_intervals, paired_share
from . import pictures
from .probe import Probe
from .recorded import Windows, hold

BATCH = 64


def imagined(
    checkpoint: Checkpoint,
    windows: Windows,
    actions: Tensor,
    *,
    every: int,
    steps: int,
    seed: int = 0,
    form: str = "window",
    history: float = 0.0,
) -> Imagined:
    """`worldmodel.imagine.imagine` for all windows, in batches of bounded size."""
    parts = []
    for begin in range(0, len(windows), BATCH):
        some = slice(begin, begin + BATCH)
        parts.append(
            imagine(
                checkpoint,
                {c: v[some] for c, v in windows.seen.items()},
                windows.seen_state[some],
                actions[some],
                every=every,
                steps=steps,
                seed=seed + begin,
                form=form,
                history=history,
            )
        )

    def join(values: list[Tensor | None]) -> Tensor | None:
        there = [v.cpu() for v in values if v is not None]
        return torch.cat(there) if there else None

    video = {c: join([p.video[c] for p in parts]) for c in parts[0].video}
    return Imagined(
        {c: v for c, v in video.items() if v is not None},
        join([p.state for p in parts]),
        parts[0].frames,
        join([p.success for p in parts]),
    )


Measure = Callable[[Tensor, Tensor, Tensor], Tensor]
MEASURES: dict[str, tuple[Measure, int]] = {
    "psnr": (lambda guess, truth, last: pictures.psnr(guess, truth), 1),
    "psnr_moving": (pictures.moving_psnr, 1),
    "ssim": (lambda guess, truth, last: pictures.ssim(guess, truth), pictures.WINDOW),
    "gmsd": (lambda guess, truth, last: pictures.gmsd(guess, truth), 6),
    "lpips": (lambda guess, truth, last: pictures.lpips(guess, truth), pictures.LPIPS_SMALLEST),
}
"""Name -> what compares guess, truth and last given frame, and the least pixels a side."""
GREY = 128
"""A picture of nothing, a floor."""
FVD_FRAMES = 10
"""I3D pools over time: of fewer frames nothing is left."""


def _measures(side: int) -> tuple[dict[str, Measure], dict[str, str]]:
    """What can be measured of frames with so many pixels a side, and why the rest cannot."""
    missing = {
        name: f"needs {least} pixels a side, frames have {side}"
        for name, (_, least) in MEASURES.items()
        if side < least
    }
    if (why := pictures.lpips_missing()) is not None:
        missing["lpips"] = why
    return {n: measure for n, (measure, _) in MEASURES.items() if n not in missing}, missing


def prediction(
    checkpoint: Checkpoint,
    windows: Windows,
    mean: Mapping[str, Tensor],
    probe: Probe | None,
    *,
    every: int,
    steps: int,
    unit: str = "",
) -> tuple[dict[str, Any], Imagined]:
    """Imagined futures under the true actions against what came, for each imagined frame.

    Args:
        windows: of held-out episodes.
        mean: camera -> mean picture of the training world ``[C, H, W]``: a floor.
        probe: reads facts off frames; None where there are none to read.
        every: distance of the imagined frames.
        steps: sampling steps.
        unit: of the states; "rad" is shown in degrees, "" is not known.

    Returns:
        The part "prediction" (see `policies.judge.report`), and what was imagined. Errors of
        several cameras are averaged.
    """
    found = imagined(checkpoint, windows, windows.action, every=every, steps=steps)
    frames = found.frames.tolist()
    truth = windows.at(frames)
    guesses = {
        "model": dict(found.video),
        "copy_last": {c: v[:, -1:].expand_as(truth[c]) for c, v in windows.seen.items()},
        "mean_frame": {c: mean[c][None, None].expand_as(truth[c]) for c in truth},
        # Where the last frame is wrong everywhere, saying nothing at all is less wrong than it.
        "grey": {c: torch.full_like(truth[c], GREY) for c in truth},
    }
    last = {c: v[:, -1:] for c, v in windows.seen.items()}
    known, missing = _measures(min(checkpoint.spec.image_size))
    tables = {
        who: {
            name: _known_mean(
                [_chunked(measure, guess[c], truth[c], last[c]).numpy() for c in truth]
            )
            for name, measure in known.items()
        }
        for who, guess in guesses.items()
    }
    lists: dict[str, Any] = {
        who: {name: _dicts(mean_intervals(v, windows.episode)) for name, v in table.items()}
        for who, table in tables.items()
    }
    for table in lists.values():
        table.update({name: {"not_run": why} for name, why in missing.items()})
    gains_over = {
        who: {
            name: mean_intervals(tables["model"][name] - tables[who][name], windows.episode)
            for name in ("psnr_moving", "psnr")
        }
        for who in guesses
        if who != "model"
    }
    gains = dict(zip(frames, gains_over["copy_last"]["psnr_moving"], strict=True))
    at = min(frames, key=lambda f: abs(f - 8))
    least = {
        name: min(((g[name][frames.index(at)], who) for who, g in gains_over.items()), key=_mean)
        for name in ("psnr_moving", "psnr")
    }
    part: dict[str, Any] = {
        "psnr_gain_db_at_8": gains[at].mean,
        "gain_at_frame": at,
        "intervals": {"psnr_gain_db_at_8": [gains[at].low, gains[at].high]},
        "gains": {str(f): g.to_dict() for f, g in gains.items()},
        "gains_over": {
            who: {name: _dicts(values) for name, values in g.items()}
            for who, g in gains_over.items()
        },
        "gain_over_best_floor_at_8": {
            name: interval.to_dict() | {"floor": who} for name, (interval, who) in least.items()
        },
        "n": len(windows),
        "episodes": len(np.unique(windows.episode)),
        "sampling_steps": steps,
        "steps": {"frames": frames} | lists,
        "fvd": _fvd(found, truth),
        "state": _states(checkpoint, windows, found, probe, unit),
    }
    return part, found


def _mean(gain: tuple[Interval, str]) -> float:
    return gain[0].mean


def _known_mean(cameras: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over cameras ``[N, T]``, of those that have a number; NaN where none has."""
    table = np.stack(cameras)
    known = np.isfinite(table)
    count = known.sum(0)
    total = np.where(known, table, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _chunked(measure: Measure, guess: Tensor, truth: Tensor, last: Tensor) -> Tensor:
    """A measure over ``[N, T, ...]`` in parts of bounded memory."""
    parts = []
    for begin in range(0, len(truth), BATCH):
        some = [x[begin : begin + BATCH].float() for x in (guess, truth, last)]
        parts.append(measure(*some))
    return torch.cat(parts)


def _dicts(intervals: list[Interval]) -> list[dict[str, float]]:
    return [{"mean": i.mean, "low": i.low, "high": i.high} for i in intervals]


def _fvd(found: Imagined, truth: Mapping[str, Tensor]) -> Any:
    if (why := pictures.fvd_missing()) is not None:
        return {"not_run": why}
    camera = next(iter(truth))
    count, length = truth[camera].shape[:2]
    if count < 2 or length < FVD_FRAMES:
        return {"not_run": f"needs 2 films of {FVD_FRAMES} frames, found {count} of {length}"}
    return {"value": pictures.fvd(truth[camera], found.video[camera]), "n": len(truth[camera])}


def _states(
    checkpoint: Checkpoint, windows: Windows, found: Imagined, probe: Probe | None, unit: str
) -> Any:
    """Joints as the model says them, and facts as a linear probe reads them off the frames."""
    frames = found.frames.tolist()
    index = found.frames + windows.past - 1
    errors: list[dict[str, Any]] = []
    if found.state is not None:
        joints = [i for i, n in enumerate(checkpoint.spec.state_names) if "gripper" not in n]
        scale = float(np.degrees(1)) if unit == "rad" else 1.0

        def off(guess: Tensor) -> np.ndarray:
            wrong = (guess - windows.state[:, index]).abs()[..., joints].mean(-1)
            return scale * wrong.numpy()

        now = windows.seen_state[:, -1:].expand_as(windows.state[:, index])
        errors.append(
            {
                "name": "joints, as the model says",
                "unit": "deg" if unit == "rad" else unit or "unit",
                "model": _dicts(mean_intervals(off(found.state), windows.episode)),
                "floor": _dicts(mean_intervals(off(now), windows.episode)),
                "floor_name": "stay",
            }
        )
    if probe is not None:
        truth = windows.at(frames)
        last = {c: v[:, -1:].expand_as(truth[c]) for c, v in windows.seen.items()}
        for name, values in windows.facts.items():
            aim = values[:, index].numpy()
            rows = {
                who: 100 * np.linalg.norm(probe.read(name, video) - aim, axis=-1)
                for who, video in (("model", found.video), ("floor", last), ("real", truth))
            }
            errors.append(
                {"name": f"{name}, read off the frames", "unit": "cm"}
                | {w: _dicts(mean_intervals(r, windows.episode)) for w, r in rows.items()}
                | {"floor_name": "last frame"}
            )
    return {"frames": frames, "errors": errors} if errors else {"not_run": "no states, no facts"}


def following(
    checkpoint: Checkpoint,
    windows: Windows,
    found: Imagined,
    *,
    every: int,
    steps: int,
    seed: int = 0,
) -> dict[str, Any]:
    """The part "action_following": the same starts with the true, another's and no actions.

    Shuffled actions are those of a window of another episode, moved so that they begin where the
    true ones do: what differs is what is done, not where it starts. The error is that of all
    imagined frames, root mean square in grey levels.

    Args:
        found: what was imagined under the true actions.
    """
    rng = np.random.default_rng(seed)
    count = len(windows)
    partner = np.arange(count)
    for i in range(count):
        others = np.flatnonzero(windows.episode != windows.episode[i])
        if not len(others):
            return {"not_run": "one held-out episode has no other one's actions to be given"}
        partner[i] = rng.choice(others)
    other = windows.action[torch.from_numpy(partner)]
    if checkpoint.spec.action_kind != "delta":
        other = other + (windows.action[:, :1] - other[:, :1])
    still = hold(checkpoint.spec, windows.seen_state[:, -1], windows.action)
    truth = windows.at(found.frames)

    def error_of(guess: Imagined) -> np.ndarray:
        squares = [
            (guess.video[c].float() - v.float()).square().mean((1, 2, 3, 4))
            for c, v in truth.items()
        ]
        return torch.stack(squares).mean(0).sqrt().numpy()

    values = {
        "true": error_of(found),
        "shuffled": error_of(imagined(checkpoint, windows, other, every=every, steps=steps)),
        "zero": error_of(imagined(checkpoint, windows, still, every=every, steps=steps)),
    }
    groups = windows.episode
    share = paired_share(values["true"], values["shuffled"], groups)
    zero = paired_share(values["true"], values["zero"], groups).to_dict()
    error: dict[str, Any] = {
        name: _dicts(mean_intervals(v[:, None], groups))[0] for name, v in values.items()
    }
    if checkpoint.spec.action_kind == "unknown":
        zero = error["zero"] = {"not_run": "what does nothing is not known of these actions"}
    gap = mean_intervals((values["shuffled"] - values["true"])[:, None], groups)[0]
    return {
        "true_beats_shuffled": share.mean,
        "low": share.low,
        "high": share.high,
        "true_beats_zero": zero,
        "error": error,
        "gap": gap.to_dict(),
        "unit": "grey levels",
        "n": count,
        "episodes": len(np.unique(groups)),
        "by_kind": {
            kind: paired_share(
                values["true"][here], values["shuffled"][here], groups[here]
            ).to_dict()
            for kind in sorted(set(windows.kind))
            for here in [np.array([k == kind for k in windows.kind])]
        },
    }
