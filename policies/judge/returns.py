"""Part five: does a policy that succeeds in imagination succeed in the world?

At least a dozen policies, from useless to good, are run in the simulator and in one fixed world
model, from the same resets. What matters to whoever chooses between policies is their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.checkpoint import Checkpoint
from worldmodel.imagined_env import Dream

from ..evaluation import Evaluation
from ..flow_policy import FlowPolicy
from ..statistics import proportion
from ..types import Decision, Observation
from .ranking import auroc, correlations
from .recorded import Recorded

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
PATIENCES = (1, 2, 3, 4, 6)
ENOUGH = 12
"""With fewer policies a correlation says little: at 8, r = 0.78 has an interval of 0.17 to 0.96."""


class Degraded:
    """A policy whose actions are made worse by noise that drifts from step to step.

    Drifting noise (a first-order process) moves the arm astray; white noise would average out.

    Args:
        policy: the one that is made worse.
        scale: standard deviation of the noise, ``[A]``, in the actions' units.
        label: what it is called.
    """

    CORRELATION = 0.9

    def __init__(self, policy: FlowPolicy, scale: np.ndarray, label: str) -> None:
        self.policy, self.scale, self.name = policy, np.asarray(scale, np.float64), label
        self.spec, self.stamp, self.horizon = policy.spec, policy.stamp, policy.horizon
        self._rng: list[np.random.Generator] = []
        self._noise = np.zeros((0, len(self.scale)))

    def reset(self, seeds: Sequence[int]) -> None:
        self.policy.reset(seeds)
        self._noise = np.zeros((len(seeds), len(self.scale)))
        self._rng = [np.random.default_rng([int(s), 3]) for s in seeds]

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        self.policy.reset_slots(slots, seeds)
        for slot, seed in zip(slots, seeds, strict=True):
            self._noise[slot] = 0
            self._rng[slot] = np.random.default_rng([int(seed), 3])

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        decision = self.policy.act(observation, active)
        keep = self.CORRELATION
        for slot in np.flatnonzero(active):
            fresh = self._rng[slot].standard_normal(len(self.scale)) * self.scale
            self._noise[slot] = keep * self._noise[slot] + (1 - keep**2) ** 0.5 * fresh
        action = (decision.action + self._noise).astype(np.float32)
        return Decision(action, decision.new_chunk, decision.latency_ms)


def calibrate_success(
    checkpoint: Checkpoint, episodes: Sequence[Recorded], *, steps: int = 1
) -> dict[str, Any]:
    """When an imagined episode counts as solved: the threshold and patience that tell best.

    Recorded actions are played again in imagination, from the first frame to the last, and judged
    by what really came of them (balanced accuracy). So what errors of a whole rollout do to the
    judgement is part of it.

    Args:
        episodes: none of which anything is judged on later.
        steps: sampling steps per frame.

    Returns:
        ``threshold``, ``patience`` (see `worldmodel.imagined_env`), ``balanced_accuracy`` on these
        very episodes, ``auroc``, ``n``.

    Raises:
        ValueError: the episodes all succeed, or all fail.
    """
    outcomes = np.array([e.success.any() for e in episodes])
    if outcomes.all() or not outcomes.any():
        raise ValueError(
            f"{int(outcomes.sum())} of {len(outcomes)} episodes succeed; telling success takes both"
        )
    dream = Dream(checkpoint, steps)
    dream.begin(
        [
            {"pixels": {c: v[0] for c, v in e.images.items()}, "agent_pos": e.state[0]}
            for e in episodes
        ],
        range(len(episodes)),
    )
    longest = max(map(len, episodes))
    actions = np.stack([e.action[np.minimum(np.arange(longest), len(e) - 1)] for e in episodes])
    found = np.zeros((len(episodes), longest))
    for t in range(longest):
        success = dream.step(actions[:, t])[2]
        assert success is not None, "this model has no success head"
        found[:, t] = success.numpy()
    for row, episode in zip(found, episodes, strict=True):
        row[len(episode) :] = 0
    best: tuple[float, float, int] = (-1.0, 0.5, 1)
    for patience in PATIENCES:
        # The lowest of so many in a row, at its highest: from this threshold on it is unsolved.
        windows = np.lib.stride_tricks.sliding_window_view(found, patience, axis=1)
        score = windows.min(-1).max(-1)
        for threshold in THRESHOLDS:
            solved = score >= threshold
            balanced = (solved[outcomes].mean() + (~solved[~outcomes]).mean()) / 2
            best = max(best, (float(balanced), threshold, patience))
    _, threshold, patience = best
    windows = np.lib.stride_tricks.sliding_window_view(found, patience, axis=1)
    return {
        "threshold": threshold,
        "patience": patience,
        "balanced_accuracy": best[0],
        "auroc": auroc(windows.min(-1).max(-1), outcomes).to_dict(),
        "n": len(episodes),
        "solved": int(outcomes.sum()),
    }


def return_correlation(
    names: Sequence[str], real: Sequence[Evaluation], imagined: Sequence[Evaluation]
) -> dict[str, Any]:
    """The part "return_correlation" (see `policies.judge.report`).

    Resets that are solved before the first step are left out: they are no policy's success. How
    many there were stands under "solved_at_reset".

    Args:
        names: of the P policies.
        real, imagined: of each, all on the same resets.

    Raises:
        ValueError: other resets, or a different number of policies.
    """
    if not len(names) == len(real) == len(imagined) or not len(names):
        raise ValueError(f"{len(names)} policies, {len(real)} real, {len(imagined)} imagined")
    for name, one, other in zip(names, real, imagined, strict=True):
        if one.seeds != other.seeds:
            raise ValueError(f"{name}: simulated and imagined resets differ")
        if one.seeds != real[0].seeds:
            raise ValueError(f"{name} was run on other resets than {names[0]}")
    solved = np.array([episode.solved_at_reset for episode in real[0].episodes])
    if solved.all():
        return {"not_run": f"all {len(solved)} resets are solved before the first step"}
    a = np.stack([e.outcomes for e in real])[:, ~solved]
    b = np.stack([e.outcomes for e in imagined])[:, ~solved]
    part: dict[str, Any] = correlations(a, b)
    part["policies"] = [
        {"name": name, "real": proportion(x).to_dict(), "imagined": proportion(y).to_dict()}
        for name, x, y in zip(names, a, b, strict=True)
    ]
    episodes = np.tile(np.arange(a.shape[1]), len(names))
    part["episode_auroc"] = auroc(b.ravel().astype(float), a.ravel(), episodes).to_dict()
    part["bias"] = float(b.mean() - a.mean())
    part["solved_at_reset"] = proportion(solved).to_dict()
    if len(names) < ENOUGH:
        part["warning"] = f"{len(names)} policies; with fewer than {ENOUGH} this says little"
    return part
