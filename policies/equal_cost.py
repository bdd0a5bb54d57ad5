"""The same time, spent otherwise: a planner also wins by thinking longer.

The policy alone should have that time too, as sampling steps (`PolicyConfig.steps`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from .flow_policy import FlowPolicy
from .search import SearchPolicy
from .types import Observation


@dataclass(frozen=True)
class EqualCost:
    """What a planner costs, in sampling steps of its policy.

    Attributes:
        planner_ms: mean of a decision.
        policy_ms, step_ms: of the policy alone with one sampling step, and of each further one.
        steps: sampling steps with which the policy takes as long as the planner.
    """

    planner_ms: float
    policy_ms: float
    step_ms: float
    steps: int


def equal_cost_steps(
    planner: SearchPolicy, observation: Observation, repeats: int = 5, probe: int = 9
) -> EqualCost:
    """How many sampling steps give the policy alone the planner's wall-clock.

    All are timed in turn, so that what else runs slows all alike. The planner and its slots begin
    anew, its log stays as it was.

    Args:
        observation: to decide on, with as many slots as are to run side by side.
        repeats: decisions that are timed, after one that is not.
        probe: sampling steps of the second measurement of the policy; the first has 1.

    Raises:
        ValueError: a regression model, which has no use for more steps; or a probe below 2.
        RuntimeError: more steps did not take longer, so the timings say nothing.
    """
    policy = planner.policy
    if policy.checkpoint.objective.name == "regression":
        raise ValueError("a regression model answers in one step, whatever time it is given")
    if probe < 2 or repeats < 1:
        raise ValueError(
            f"probe is at least 2 and repeats at least 1, found probe={probe}, repeats={repeats}"
        )
    one, many = (FlowPolicy(policy.checkpoint, replace(policy.config, steps=n)) for n in (1, probe))
    active, logged = np.ones(len(observation), bool), len(planner.log)
    rows: list[list[float]] = []
    for repeat in range(repeats + 1):
        rows.append([])
        for timed in (planner, one, many):
            timed.reset(range(repeat * len(active), (repeat + 1) * len(active)))
            begin = time.perf_counter()
            timed.act(observation, active)
            rows[-1].append(1e3 * (time.perf_counter() - begin))
    del planner.log[logged:]
    planner.reset([])
    planned, first, probed = np.mean(rows[1:], axis=0)
    step = (probed - first) / (probe - 1)
    if step <= 0:
        raise RuntimeError(
            f"{probe} sampling steps took {probed:.2f} ms and one {first:.2f} ms: too little to "
            "measure. Give more repeats, a larger probe, or a quieter machine"
        )
    steps = max(1, round(1 + (planned - first) / step))
    return EqualCost(float(planned), float(first), float(step), steps)
