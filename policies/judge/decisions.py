"""Parts six and seven: is deciding with the model better, and does it believe itself too much?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..evaluation import Evaluation
from ..search import Record
from ..statistics import mean_interval, paired_difference, proportion


def decision_lift(
    numbers: Sequence[int],
    planner: Mapping[int, Evaluation],
    simulator: Mapping[int, Evaluation] | str,
    policy: Evaluation,
    same_time: Mapping[int, Evaluation | str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The part "decision_lift" (see `policies.judge.report`).

    Args:
        numbers: of candidates, ascending.
        planner, simulator, same_time: by number of candidates: with the world model; with the
            true simulator; the policy alone with as much time. Resets are a prefix of `policy`'s.
            A text says why there is none.
        policy: the policy alone.
        facts: what else belongs into the part.

    Raises:
        ValueError: a run is on other resets.
    """
    timed = {n: run for n, run in same_time.items() if not isinstance(run, str)}

    def rate(run: Evaluation | str | None) -> Any:
        return {"not_run": run} if isinstance(run, str) else run and run.success.to_dict()

    def against(run: Evaluation, base: Evaluation) -> dict[str, Any]:
        count = min(len(run.episodes), len(base.episodes))
        if run.seeds[:count] != base.seeds[:count]:
            raise ValueError(f"{run.policy} and {base.policy} were run on other resets")
        return paired_difference(run.outcomes[:count], base.outcomes[:count]).to_dict()

    return {
        "n": list(numbers),
        "planner": [rate(planner[n]) for n in numbers],
        "simulator": rate(simulator)
        if isinstance(simulator, str)
        else [rate(simulator.get(n)) for n in numbers],
        "policy": policy.success.to_dict(),
        "policy_same_time": [rate(same_time.get(n)) for n in numbers],
        "episodes": [len(planner[n].episodes) for n in numbers],
        "solved_at_reset": proportion([e.solved_at_reset for e in policy.episodes]).to_dict(),
        "minus_policy": {str(n): against(planner[n], policy) for n in numbers},
        "minus_same_time": {str(n): against(planner[n], timed[n]) for n in numbers if n in timed},
    } | dict(facts)


def lacking(
    number: int, policy: Evaluation, planner: Evaluation, truer: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """What a planner lacks: success with ever more of the truth, on the same resets.

    From top to bottom, what is gained at each step is what was missing before it: frames that are
    true (prediction), the true outcome (scoring); the rest up to 1 is what no choice among these
    candidates gives (diversity), or lies beyond what is looked ahead.

    Args:
        number: of candidates.
        policy, planner: the policy alone and the planner in the world model, on these resets and
            maybe more.
        truer: by what is true, in that order.

    Raises:
        ValueError: runs on other resets.
    """
    rows = {"policy alone": policy, "imagined frames, head": planner, **truer}
    count = min(len(run.episodes) for run in rows.values())
    seeds = policy.seeds[:count]
    if any(run.seeds[:count] != seeds for run in rows.values()):
        raise ValueError("the runs are on other resets")
    outcomes = {name: run.outcomes[:count] for name, run in rows.items()}
    names = list(rows)
    return {
        "candidates": number,
        "n": count,
        "success": {name: proportion(values).to_dict() for name, values in outcomes.items()},
        "gained": {
            f"{new}, minus {old}": paired_difference(outcomes[new], outcomes[old]).to_dict()
            for old, new in pairwise(names)
        },
    }


def exploitability(
    numbers: Sequence[int],
    logs: Mapping[int, Sequence[Record]],
    runs: Mapping[int, Evaluation],
    horizon: int,
) -> dict[str, Any]:
    """The part "exploitability": what was expected of the chosen plans minus what came of them.

    A decision expects success within the steps that it imagines, with some probability; what came
    of it is whether there was success within as many steps. Both speak of the same steps, so that
    the gap is 0 for a model that is right. Left out are decisions whose steps the time limit cut
    short, those that had no time to judge, and episodes that were solved at reset. Where more
    candidates raise what is expected and not what happens, the planner exploits its model.

    Args:
        logs: every decision, by number of candidates.
        runs: the episodes that they were made in.
        horizon: control steps that a decision looks ahead.
    """
    part: dict[str, list[Any]] = {"predicted": [], "realised": [], "gap": []}
    spread, counts, gaps = [], [], []
    for n in numbers:
        seeds, expected, came = _decisions(logs[n], runs[n], horizon)
        gap = expected - came
        for name, values in (("predicted", expected), ("realised", came), ("gap", gap)):
            part[name].append(mean_interval(values, seeds).to_dict())
        judged = [r.diversity for r in logs[n] if r.evaluated > 1 and r.diversity.size]
        spread.append(float(np.mean(judged)) if judged else 0.0)
        counts.append(len(gap))
        gaps.append({int(s): float(gap[seeds == s].mean()) for s in np.unique(seeds)})
    shared = sorted(set(gaps[0]) & set(gaps[-1]))  # the most candidates often have fewer resets
    growth = mean_interval([gaps[-1][s] - gaps[0][s] for s in shared]).to_dict()
    return {
        "n": list(numbers),
        **part,
        "growth": growth if shared else {"not_run": "no reset has decisions of both"},
        "candidate_spread": spread,
        "horizon": horizon,
        "unit": f"probability of success within {horizon} steps",
        "decisions": counts,
        "episodes": [len(runs[n].episodes) for n in numbers],
    }


def _decisions(
    log: Sequence[Record], run: Evaluation, horizon: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the decisions whose outcome is known: seed, what was expected and what came, ``[D]``."""
    episodes = {e.seed: e for e in run.episodes if not e.solved_at_reset}
    limit = max((e.steps for e in run.episodes if not e.success), default=math.inf)
    rows = []
    for record in log:
        episode = episodes.get(record.seed)
        if episode is None or not np.isfinite(record.predicted):
            continue
        end = int(episode.chunk_starts[record.number]) + horizon
        solved = episode.success_step
        if end > limit:
            continue  # what would have come after the time limit nobody knows
        rows.append((record.seed, record.predicted, solved is not None and solved <= end))
    seeds = np.array([r[0] for r in rows], np.int64)
    expected, came = (np.array([r[i] for r in rows], np.float64) for i in (1, 2))
    return seeds, expected, came
