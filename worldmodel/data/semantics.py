"""What the actions of a recording mean, and the evidence: guessed from how the state answers.

Most LeRobot datasets do not say whether an action is where a joint should go, how far it should
move or how fast (ours do). But the state shows what it did: a target is a place that the state
reaches a little later, a change is what the state does next.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .keys import recorded_kind
from .recording import Recording
from .stats import FOLLOWED, action_kind, action_targets

CHANGES = 0.7  # correlation between an action and the state's next change that makes it one
OTHER_UNIT = 0.9  # correlation with the state itself, where the numbers are not the state's
LONGEST_LAG = 0.5  # seconds
MOST_FRAMES = 30_000  # looked at; whole episodes, evenly spread


def action_semantics(recording: Recording) -> dict[str, Any]:
    """What ``data.action_kind=auto`` decides, a guess that goes further, and the evidence.

    Returns:
        JSON-ready: ``stated``, what the dataset says itself ("unknown" where nothing); ``auto``;
        ``guess`` ("absolute", "delta" or "unknown"), whatever is stated; ``reason``, a sentence;
        ``counts`` of the dimensions that move; ``lag_seconds``, the median over followed
        dimensions (None without any); and ``dimensions``, one entry an action dimension:

        - ``state``: the state that it is compared with: the one of its name, else (``by``
          "correlation") the one that it resembles most; None where nothing moves.
        - ``explained``: share of the action's variance that this state explains in the same
          frame, as it stands (negative: none); ``explained_later`` at the best lag,
          ``lag_frames`` and ``lag_seconds``; ``error``: RMS distance there, in the action's unit.
        - ``correlation``: with that state, whatever the unit.
        - ``change``, ``change_correlation``, ``change_factor``: the state whose next change the
          action resembles most, how well, and action per change in one frame.

        Without actions or states ``guess`` is "unknown" and ``dimensions`` is empty.
    """
    stated = stated_kind(recording)
    empty: dict[str, Any] = {
        "stated": stated, "auto": stated, "guess": "unknown", "lag_seconds": None, "dimensions": [],
        "counts": {"moving": 0, "followed": 0, "changes": 0, "resembles": 0},
    }  # fmt: skip
    if not recording.action.shape[1] or not recording.state.shape[1]:
        missing = "actions" if not recording.action.shape[1] else "states"
        return empty | {"reason": f"there are no {missing} to compare with"}
    pairs = _Pairs(recording)
    if pairs.count < 3:
        return empty | {"reason": "there are too few frames to compare"}
    finite_state, finite_action = pairs.state, pairs.action
    targets = action_targets(
        finite_state, finite_action, recording.state_names, recording.action_names
    )
    found = action_kind(targets, finite_action.std(0, dtype=np.float64).tolist())
    dimensions = [_dimension(pairs, recording, i) for i in range(finite_action.shape[1])]
    moving = [d for d in dimensions if d["moves"]]
    counts = {
        "moving": len(moving),
        "followed": sum(d["explained_later"] is not None and d["explained_later"] > FOLLOWED
                        for d in moving),
        "changes": sum(d["change_correlation"] is not None
                       and abs(d["change_correlation"]) >= CHANGES for d in moving),
        "resembles": sum(d["correlation"] is not None and abs(d["correlation"]) >= OTHER_UNIT
                         for d in moving),
    }  # fmt: skip
    guess, reason = _guess(found, counts, moving)
    lags = [
        d["lag_seconds"]
        for d in moving
        if d["explained_later"] is not None and d["explained_later"] > FOLLOWED
    ]
    return {
        "stated": stated,
        "auto": found if stated == "unknown" else stated,
        "guess": guess,
        "reason": reason,
        "lag_seconds": float(np.median(lags)) if lags and guess == "absolute" else None,
        "counts": counts,
        "dimensions": dimensions,
    }


def stated_kind(recording: Recording) -> str:
    """What the datasets say of their actions, "unknown" where they say nothing."""
    pairs = zip(recording.sources, recording.keys, strict=True)
    kinds = [recorded_kind(source.features.get(key.action, {})) for source, key in pairs]
    return next((kind for kind in kinds if kind != "unknown"), "unknown")


class _Pairs:
    """Actions and the states of the same and of later frames, never across episodes.

    Attributes:
        state, action: float32 ``[n, S]`` and ``[n, A]`` of some episodes, rows with NaN left out.
    """

    def __init__(self, recording: Recording):
        spans = list(recording.spread(MOST_FRAMES))
        rows = np.concatenate([np.arange(s.first, s.first + s.length) for s in spans])
        left = np.concatenate([np.arange(s.length)[::-1] for s in spans])
        fps = np.concatenate([np.full(s.length, s.fps) for s in spans])
        state, action = recording.state[rows], recording.action[rows]
        self.fine = np.isfinite(state).all(1) & np.isfinite(action).all(1)
        self.left = left  # frames until the episode ends
        self.fps = float(np.median(fps))
        self._state, self._action = state, action
        self.state, self.action = state[self.fine], action[self.fine]
        self.count = len(self.state)
        with np.errstate(invalid="ignore"):
            self.change = np.diff(state.astype(np.float64), axis=0, append=np.nan)
        self.change[left == 0] = np.nan

    def later(self, i: int, j: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
        """Action i and state j `lag` frames later, float64, equally long."""
        now = np.flatnonzero(self.fine & (self.left >= lag))
        now = now[self.fine[now + lag]]
        return (
            self._action[now, i].astype(np.float64),
            self._state[now + lag, j].astype(np.float64),
        )

    def next_change(self, i: int, states: list[int], lag: int) -> tuple[np.ndarray, np.ndarray]:
        """Action i ``[n]`` and some states' change ``[n, len(states)]``, `lag` frames later."""
        now = np.flatnonzero(self.fine & (self.left > lag))
        change = self.change[now + lag][:, states]
        fine = np.isfinite(change).all(1)
        return self._action[now[fine], i].astype(np.float64), change[fine]


def _dimension(pairs: _Pairs, recording: Recording, i: int) -> dict[str, Any]:
    name = recording.action_names[i]
    out: dict[str, Any] = {
        "name": name, "moves": True, "state": None, "by": None, "explained": None,
        "explained_later": None, "lag_frames": None, "lag_seconds": None, "error": None,
        "correlation": None, "change": None, "change_correlation": None, "change_factor": None,
    }  # fmt: skip
    action = pairs.action[:, i].astype(np.float64)
    if action.std() <= 1e-6:
        return out | {"moves": False}
    same = _correlations(action, pairs.state.astype(np.float64))
    if name in recording.state_names:
        j, by = recording.state_names.index(name), "name"
    elif np.isfinite(same).any():
        j, by = int(np.nanargmax(np.abs(same))), "correlation"
    else:
        return out
    out |= {"state": recording.state_names[j], "by": by, "correlation": _number(same[j])}
    scores = []
    for lag in range(round(LONGEST_LAG * pairs.fps) + 1):
        a, s = pairs.later(i, j, lag)
        if len(a) < 3 or not a.var() > 0:
            break
        scores.append(
            (1 - np.square(a - s).mean() / a.var(), lag, math.sqrt(np.mean((a - s) ** 2)))
        )
    if scores:
        best = max(scores, key=lambda score: score[0])
        out |= {
            "explained": float(scores[0][0]), "explained_later": float(best[0]),
            "lag_frames": best[1], "lag_seconds": best[1] / pairs.fps, "error": best[2],
        }  # fmt: skip
    changes = []
    candidates = [j] if by == "name" else list(range(len(recording.state_names)))
    for lag in range(round(LONGEST_LAG / 2 * pairs.fps) + 1):
        a, change = pairs.next_change(i, candidates, lag)
        if len(a) < 3:
            break
        found = _correlations(a, change)
        if np.isfinite(found).any():
            k = int(np.nanargmax(np.abs(found)))
            factor = float(np.sum(a * change[:, k]) / np.sum(change[:, k] ** 2))
            name = recording.state_names[candidates[k]]
            changes.append((float(abs(found[k])), float(found[k]), factor, name))
    if changes:
        _, correlation, factor, state = max(changes)
        out |= {
            "change": state, "change_correlation": float(correlation), "change_factor": factor,
        }  # fmt: skip
    return out


def _guess(auto: str, counts: dict[str, int], moving: list[dict[str, Any]]) -> tuple[str, str]:
    n = counts["moving"]
    if not n:
        return "unknown", "no action ever changes"
    followed, changes, resembles = (counts[k] for k in ("followed", "changes", "resembles"))
    if auto == "absolute" or 2 * followed > n:
        named = ""
        if auto != "absolute":
            same = all(d["by"] == "name" for d in moving)
            named = ", though late" if same else ", though not under the same names"
        return "absolute", f"{followed} of {n} moving dimensions are where a state soon is{named}"
    if 2 * changes > n:
        factors = [abs(d["change_factor"]) for d in moving
                   if d["change_correlation"] is not None
                   and abs(d["change_correlation"]) >= CHANGES]  # fmt: skip
        return "delta", (
            f"{changes} of {n} moving dimensions go with the next change of a state "
            f"(action = {np.median(factors):.3g} x change in one frame)"
        )
    if 2 * resembles > n:
        return "absolute", (
            f"{resembles} of {n} moving dimensions go with a state, but in another unit or from "
            "another zero"
        )
    return "unknown", (
        f"of {n} moving dimensions {followed} are where a state soon is, {changes} go with the "
        "next change of a state"
    )


def _correlations(a: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Of ``[n]`` with every column of ``[n, S]``; NaN where one of the two never changes."""
    a, columns = a - a.mean(), columns - columns.mean(0)
    norm = np.sqrt(np.sum(a**2) * np.sum(columns**2, axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norm > 1e-12, a @ columns / norm, np.nan)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
