"""How smooth demonstrations are: what a policy that learns from them is measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import smoothness as sm

METRICS = (
    "rms_jerk", "ldlj", "sparc", "high_frequency_share", "action_tv", "action_tv_second",
)  # fmt: skip
ROUGHEST = 5  # episodes that are named
HANDS = ("gripper", "hand", "finger", "jaw", "claw")
"""Parts of names of what opens and closes, which is left out: it is meant to be abrupt."""


@dataclass(frozen=True)
class Paths:
    """One kind of path of every episode.

    Attributes:
        paths: ``[T, D]`` each.
        names: of the columns that are judged.
        span: ``[D]``, range of each.
        summed: the recorded values were changes and have been added up.
    """

    paths: Sequence[np.ndarray]
    names: tuple[str, ...]
    span: np.ndarray
    summed: bool = False


def paths_of(
    values: Sequence[np.ndarray], dimensions: Sequence[dict[str, Any]], *, deltas: bool = False
) -> Paths:
    """The arm's part of every episode: without what is constant, a switch or a hand.

    Args:
        values: ``[T, dimensions]`` of each episode.
        dimensions: facts of each (`worldmodel.data.inspect`).
        deltas: the values are changes; they are added up to a path, in units of their own.
    """
    moving = [i for i, d in enumerate(dimensions) if not (d["constant"] or d["switch"])]
    moving = [i for i in moving if not dimensions[i]["not_finite"]]
    arm = [i for i in moving if not any(h in dimensions[i]["name"].lower() for h in HANDS)]
    chosen = arm or moving
    paths = [np.asarray(v[:, chosen], np.float64) for v in values]
    if deltas:
        paths = [np.cumsum(p, axis=0) for p in paths]
    everything = np.concatenate(paths) if chosen else np.empty((1, 0))
    low, high = np.quantile(everything, (0.01, 0.99), axis=0)
    full = everything.max(0) - everything.min(0)
    span = np.where(high > low, high - low, np.where(full > 0, full, 1.0))
    return Paths(paths, tuple(dimensions[i]["name"] for i in chosen), span, deltas)


def smoothness(paths: Paths, fps: Sequence[float], labels: Sequence[str]) -> dict[str, Any] | None:
    """Every metric of every episode and their means.

    Args:
        fps: of each episode.
        labels: what each is called.

    Returns:
        ``names`` (the columns judged), ``summed``, ``mean`` and ``median`` (metric -> number, over
        the episodes that have it), ``still`` (episodes without motion), ``roughest`` (label and
        RMS jerk of the first few), and ``episodes``: metric -> one number an episode, and
        ``speed``, the mean one. None where nothing is left to judge.
    """
    if not paths.names:
        return None
    rows: dict[str, list[float]] = {name: [] for name in (*METRICS, "speed")}
    for path, rate in zip(paths.paths, fps, strict=True):
        steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
        numbers = (
            sm.rms_jerk(path, rate),
            sm.ldlj(path, rate),
            sm.sparc(path, rate),
            sm.high_frequency_share(path, rate),
            sm.action_tv(path, paths.span),
            sm.action_tv(path, paths.span, order=2),
            float(steps.mean() * rate) if len(steps) else math.nan,
        )
        for name, number in zip(rows, numbers, strict=True):
            rows[name].append(number)
    jerk = np.array(rows["rms_jerk"])
    order = np.argsort(-np.where(np.isfinite(jerk), jerk, -np.inf), kind="stable")
    worst = [int(i) for i in order[:ROUGHEST] if math.isfinite(jerk[i])]
    return {
        "names": list(paths.names),
        "summed": paths.summed,
        "mean": {name: _over(np.mean, values) for name, values in rows.items()},
        "median": {name: _over(np.median, values) for name, values in rows.items()},
        "still": sum(math.isnan(v) for v in rows["sparc"]),
        "roughest": [{"label": labels[i], "rms_jerk": float(jerk[i])} for i in worst],
        "episodes": rows,
    }


def _over(function: Any, values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    return float(function(finite)) if finite else math.nan
