"""From episodes to the numbers of a report: success, modes, smoothness, time, latency.

Smoothness is given for the commands and for the executed motion, over all episodes and over
successes only, and as a ratio to the demonstrations' own value (the expert's episodes of the same
run): 1 is as smooth as the demonstrations, more is rougher, for every metric here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import smoothness as sm
from .evaluation import ChunkCall, Episode, Evaluation
from .statistics import percentiles

METRICS = (
    "rms_jerk",
    "ldlj",
    "sparc",
    "high_frequency_share",
    "chunk_boundary_ratio",
    "action_tv",
    "action_tv_second",
)


@dataclass(frozen=True)
class Axes:
    """Which columns of actions and states are the arm's joints, one to one, gripper left out.

    Where actions are changes ("delta": of the hand's position, say), the path that the commands
    stand for is their sum from where the arm was measured at first. Smoothness of commands is that
    path's, in the state's unit, so that it can be read beside the motion's. Only the jump at chunk
    seams is one of the changes themselves: their sum never jumps.

    Attributes:
        action, state: column indices, equally many.
        names: one per joint.
        span: range of each joint's commands, which total variation is measured in.
        kind: "absolute" or "delta".
        scale: with "delta", by how much one unit of a command changes the state in one step.
        unit: of the states.
    """

    action: tuple[int, ...]
    state: tuple[int, ...]
    names: tuple[str, ...]
    span: tuple[float, ...]
    kind: str = "absolute"
    scale: float = 1.0
    unit: str = "rad"

    @classmethod
    def from_names(
        cls,
        action_names: Sequence[str],
        state_names: Sequence[str],
        low: np.ndarray,
        high: np.ndarray,
    ) -> Axes:
        """Joints are the names that action and state share, without those that say "gripper".

        Args:
            low, high: ``[A]``, the action box.

        Raises:
            ValueError: if no name is shared.
        """
        joints = [n for n in action_names if n in state_names and "gripper" not in n.lower()]
        if not joints:
            raise ValueError(
                f"no joint is both commanded and measured: actions are {list(action_names)}, "
                f"states are {list(state_names)}"
            )
        columns = tuple(list(action_names).index(n) for n in joints)
        return cls(
            action=columns,
            state=tuple(list(state_names).index(n) for n in joints),
            names=tuple(joints),
            span=tuple(float(high[i] - low[i]) for i in columns),
        )

    @classmethod
    def from_moves(
        cls,
        moves: Mapping[str, str],
        action_names: Sequence[str],
        state_names: Sequence[str],
        low: np.ndarray,
        high: np.ndarray,
        *,
        scale: float = 1.0,
    ) -> Axes:
        """Of actions that are changes: `moves` says which state each of them changes.

        Args:
            moves: action name -> state name; what it does not list (a gripper) is left out.
            low, high: ``[A]``, the action box.

        Raises:
            ValueError: nothing moves, or a name is not there.
        """
        unknown = sorted(set(moves) - set(action_names)) + sorted(
            set(moves.values()) - set(state_names)
        )
        if unknown or not moves:
            raise ValueError(
                f"moves is {dict(moves)}; expected at least one of the actions "
                f"{list(action_names)} with one of the states {list(state_names)}"
            )
        columns = tuple(list(action_names).index(n) for n in moves)
        return cls(
            action=columns,
            state=tuple(list(state_names).index(n) for n in moves.values()),
            names=tuple(moves.values()),
            span=tuple(float(high[i] - low[i]) for i in columns),
            kind="delta",
            scale=scale,
        )

    def commanded(self, episode: Episode) -> np.ndarray:
        """The path ``[T, D]`` that an episode's commands stand for, in the state's unit."""
        commands = episode.commands[:, self.action].astype(np.float64)
        if self.kind == "absolute":
            return commands
        start = episode.positions[0, self.state].astype(np.float64)
        return start + self.scale * np.cumsum(commands, axis=0)


def modes(evaluation: Evaluation) -> dict[str, Any]:
    """Ways taken: counts and shares among successes, and counts among failures.

    ``rarer_share`` is the smallest share among the ways that any episode took: 0.5 for a balanced
    pair, 0 if one way never leads to success. None for worlds without ways.
    """
    won = Counter(e.mode for e in evaluation.episodes if e.success and e.mode)
    lost = Counter(e.mode for e in evaluation.episodes if not e.success and e.mode)
    names = sorted(set(won) | set(lost))
    total = sum(won.values())
    shares = {name: won[name] / total if total else math.nan for name in names}
    return {
        "counts": {name: won[name] for name in names},
        "shares": shares,
        "failures": {name: lost[name] for name in names},
        "rarer_share": min(shares.values()) if len(shares) > 1 else None,
    }


def completion_time(evaluation: Evaluation, reference: Evaluation | None = None) -> dict[str, Any]:
    """Seconds until success, over successes; relative to the reference on resets both solved."""
    times = _times(evaluation)
    values = np.array(list(times.values()))
    report: dict[str, Any] = {
        "n": len(values),
        "mean": float(values.mean()) if len(values) else math.nan,
        "median": float(np.median(values)) if len(values) else math.nan,
        "relative_to_expert": None,
    }
    if reference is not None:
        theirs = _times(reference)
        shared = [seed for seed in times if seed in theirs]
        mine = sum(times[seed] for seed in shared)
        other = sum(theirs[seed] for seed in shared)
        report["relative_to_expert"] = mine / other if other > 0 else math.nan
    return report


def lag(evaluation: Evaluation, axes: Axes) -> dict[str, float]:
    """Seconds by which motion trails commands, over the episodes in which both move."""
    values = np.array([episode_lag(e, axes, evaluation.fps) for e in evaluation.episodes])
    values = values[np.isfinite(values)]
    if not len(values):
        return {"n": 0, "mean": math.nan, "median": math.nan}
    return {
        "n": len(values), "mean": float(values.mean()), "median": float(np.median(values)),
    }  # fmt: skip


def episode_lag(episode: Episode, axes: Axes, fps: float) -> float:
    return sm.command_lag(axes.commanded(episode), episode.positions[:-1, axes.state], fps)


def smoothness(
    evaluation: Evaluation,
    axes: Axes,
    demonstrations: Evaluation | None = None,
    limits: sm.MotionLimits | None = None,
) -> dict[str, Any]:
    """``{"commands", "motion"}``, each the means over episodes of every metric.

    Each holds the metrics over all episodes, the same over ``successes``, the demonstrations' own
    values, and (``to_demonstrations``) the ratios to them. ``still`` counts episodes in which
    nothing moved: they have no smoothness and are left out of the means.

    An expert computes no chunks. Its chunk-boundary ratio is taken at the seams that the policy's
    chunks would have had, so that a pace that varies along an episode counts for both alike.
    """
    period = chunk_period(evaluation)
    mine = [_episode_scores(e, axes, evaluation.fps, limits, None) for e in evaluation.episodes]
    theirs = None
    if demonstrations is not None:
        if demonstrations.fps != evaluation.fps:
            raise ValueError(
                f"smoothness cannot be compared across rates: the policy ran at {evaluation.fps} "
                f"Hz, the demonstrations at {demonstrations.fps} Hz"
            )
        theirs = [
            _episode_scores(e, axes, demonstrations.fps, limits, period)
            for e in demonstrations.episodes
            if e.success
        ]
    report = {}
    for path in ("commands", "motion"):
        everything = [scores[path] for scores in mine]
        won = [s[path] for s, e in zip(mine, evaluation.episodes, strict=True) if e.success]
        names = list(everything[0])
        entry = _means(everything, names)
        entry["successes"] = _means(won, names)
        if theirs is not None:
            reference = _means([scores[path] for scores in theirs], names)
            entry["to_demonstrations"] = _ratios(entry, reference)
            entry["successes"]["to_demonstrations"] = _ratios(entry["successes"], reference)
            entry["demonstrations"] = reference
        report[path] = entry
    return report


def chunk_period(evaluation: Evaluation) -> int | None:
    """Median number of steps between chunk starts; None for a policy without chunks."""
    gaps = [np.diff(e.chunk_starts) for e in evaluation.episodes if len(e.chunk_starts) > 1]
    if not gaps:
        return None
    period = round(float(np.median(np.concatenate(gaps))))
    return period if period > 1 else None


def latency(calls: Sequence[ChunkCall], warmup: int = 3) -> dict[str, Any]:
    """Milliseconds from observation in to chunk out, per call and per stage, warm-up apart.

    Give it the calls of a run with one slot: that is what one arm waits for.

    Args:
        warmup: calls at the beginning that are reported on their own.
    """
    warm = list(calls[warmup:])
    stages = list(dict.fromkeys(stage for call in warm for stage in call.stages_ms))
    return {
        **percentiles([call.total_ms for call in warm]),
        "n": len(warm),
        "chunks_per_call": float(np.mean([c.chunks for c in warm])) if warm else math.nan,
        "stages": {
            stage: percentiles([c.stages_ms[stage] for c in warm if stage in c.stages_ms])
            for stage in stages
        },
        "warmup": [call.total_ms for call in calls[:warmup]],
    }


def episode_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """One flat row per episode, in the order of the seeds."""
    return [
        {
            "seed": e.seed,
            "success": e.success,
            "solved_at_reset": e.solved_at_reset,
            "mode": e.mode,
            "steps": e.steps,
            "seconds": None if e.success_step is None else e.success_step / evaluation.fps,
            "distance": e.distance,
        }
        for e in evaluation.episodes
    ]


def _times(evaluation: Evaluation) -> dict[int, float]:
    return {
        e.seed: e.success_step / evaluation.fps
        for e in evaluation.episodes
        if e.success_step is not None and not e.solved_at_reset
    }


def _episode_scores(
    episode: Episode,
    axes: Axes,
    fps: float,
    limits: sm.MotionLimits | None,
    period: int | None,
) -> dict[str, dict[str, float]]:
    starts = episode.chunk_starts if period is None else np.arange(0, episode.steps, period)
    commands = episode.commands[:, axes.action]
    motion = episode.positions[:, axes.state]
    # Total variation is measured in the range of commands; that of a change, in the state's unit.
    span = np.array(axes.span) * (1.0 if axes.kind == "absolute" else axes.scale)
    # Row t of both is what step t commanded, and where it led.
    return {
        "commands": _path_scores(axes.commanded(episode), commands, starts, fps, span, limits),
        "motion": _path_scores(motion, motion[1:], starts, fps, span, limits),
    }


def _path_scores(
    path: np.ndarray,
    stepped: np.ndarray,
    starts: np.ndarray,
    fps: float,
    span: np.ndarray,
    limits: sm.MotionLimits | None,
) -> dict[str, float]:
    """Every metric of `path`; seams are looked for in `stepped`."""
    finite_span = np.isfinite(span).all()
    scores = {
        "rms_jerk": sm.rms_jerk(path, fps),
        "ldlj": sm.ldlj(path, fps),
        "sparc": sm.sparc(path, fps),
        "high_frequency_share": sm.high_frequency_share(path, fps),
        "chunk_boundary_ratio": sm.chunk_boundary_ratio(stepped, starts),
        "action_tv": sm.action_tv(path, span) if finite_span else math.nan,
        "action_tv_second": sm.action_tv(path, span, order=2) if finite_span else math.nan,
    }
    if limits is not None:
        shares = sm.limit_violations(path, fps, limits)
        scores |= {f"{name}_violations": share for name, share in shares.items()}
    return scores


def _means(scores: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, Any]:
    """Mean of every metric over the episodes that have it; NaN where none has."""
    means: dict[str, Any] = {}
    for name in names:
        values = np.array([s[name] for s in scores])
        values = values[np.isfinite(values)]
        means[name] = float(values.mean()) if len(values) else math.nan
    means["n"] = len(scores)
    means["still"] = sum(math.isnan(s["sparc"]) for s in scores)
    return means


def _ratios(values: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    return {
        name: values[name] / reference[name] if reference[name] else math.nan for name in METRICS
    }
