"""Parts six and seven: is deciding with the model better, and does it believe itself too much?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation import Evaluation
from ..planner import Record
from ..statistics import mean_interval, paired_difference


def decision_lift(
    numbers: Sequence[int],
    planner: Mapping[int, Evaluation],
    simulator: Mapping[int, Evaluation],
    policy: Evaluation,
    same_time: Mapping[int, Evaluation],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The part "decision_lift" (see `policies.judge.report`).

    Args:
        numbers: of candidates, ascending.
        planner, simulator, same_time: by number of candidates: with the world model; with the
            true simulator; the policy alone with as much time. Resets are a prefix of `policy`'s.
        policy: the policy alone.
        facts: what else belongs into the part.
    """

    def rates(runs: Mapping[int, Evaluation]) -> list[Any]:
        return [runs[n].success.to_dict() if n in runs else None for n in numbers]

    def against(run: Evaluation, base: Evaluation) -> dict[str, Any]:
        count = min(len(run.episodes), len(base.episodes))
        return paired_difference(run.outcomes[:count], base.outcomes[:count]).to_dict()

    return {
        "n": list(numbers),
        "planner": rates(planner),
        "simulator": rates(simulator),
        "policy": policy.success.to_dict(),
        "policy_same_time": rates(same_time),
        "episodes": [len(planner[n].episodes) for n in numbers],
        "minus_policy": {str(n): against(planner[n], policy) for n in numbers},
        "minus_same_time": {
            str(n): against(planner[n], same_time[n]) for n in numbers if n in same_time
        },
    } | dict(facts)


def exploitability(
    numbers: Sequence[int],
    logs: Mapping[int, Sequence[Record]],
    runs: Mapping[int, Evaluation],
) -> dict[str, Any]:
    """The part "exploitability": what was expected of the chosen plans minus what came of them.

    Of each episode its last decision counts (the others look at less than the episode's end): the
    probability of success that was expected of the plan, and whether the episode succeeded. Where
    more candidates raise what is expected and not what happens, the planner exploits its model.

    Args:
        logs: every decision, by number of candidates.
        runs: the episodes that they were made in.
    """
    part: dict[str, list[Any]] = {"predicted": [], "realised": [], "gap": []}
    spread = []
    for n in numbers:
        last: dict[int, Record] = {}
        for record in logs[n]:
            last[record.seed] = record
        pairs = [
            (last[e.seed].predicted, float(e.success)) for e in runs[n].episodes if e.seed in last
        ]
        expected, came = np.array(pairs).T
        for name, values in (
            ("predicted", expected), ("realised", came), ("gap", expected - came)
        ):  # fmt: skip
            part[name].append(mean_interval(values).to_dict())
        judged = [r.diversity for r in logs[n] if r.evaluated > 1]
        spread.append(float(np.mean(judged)) if judged else 0.0)
    gaps = [g["mean"] for g in part["gap"]]
    return {
        "n": list(numbers),
        **part,
        "growth": gaps[-1] - gaps[0],
        "candidate_spread": spread,
        "unit": "probability of success",
        "episodes": [len(runs[n].episodes) for n in numbers],
    }
