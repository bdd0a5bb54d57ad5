"""What a world model is judged on, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from policies.judge.targets import PARTS
from worldmodel.data.errors import did_you_mean

WHY_CANDIDATES = 16
"""Simulated one by one, more of them take long."""


@dataclass
class DecisionConfig:
    """How deciding with the model is judged.

    Attributes:
        candidates: N of best-of-N, ascending.
        episodes: resets for each N.
        proposals: checkpoint of the policy that proposes; null: the one that is judged.
        lookahead, every: see `policies.planner.PlannerConfig`.
        method: "best_of" or "cem".
        budget_ms: time for a decision; null: none.
        slots: episodes side by side.
        full: 200 resets for every N.
        why: resets on which prediction, scoring and diversity are told apart, by the largest N up
            to `WHY_CANDIDATES`; 0: none.
    """

    candidates: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    episodes: list[int] = field(default_factory=lambda: [200, 200, 200, 50])
    proposals: str | None = None
    lookahead: int = 2
    every: int | None = None
    method: str = "best_of"
    budget_ms: float | None = None
    slots: int = 25
    full: bool = False
    why: int = 50


@dataclass
class WorldmodelConfig:
    """What is judged, and on how much.

    Attributes:
        checkpoint: a run's folder or one of its checkpoints: the world model, and the policy.
        env: short name or Gymnasium id of the world that it models.
        options: of the environment; they override those of the demonstrations.
        out: folder for the report.
        parts: of the report (`policies.judge.targets.PARTS`); null: all.
        columns: name -> checkpoint of other world models, whose first parts stand beside; null:
            none.
        name: of this one, where there are others.
        seed, purpose: which block of resets (see `policies.evaluation.episode_seeds`).
        steps: sampling steps of imagination; `act_steps`: of the policy.
        every: distance of imagined frames.
        episodes: held-out episodes of the expert, and as many exploratory ones.
        windows: of each of them.
        fit_episodes: other episodes of either kind, for the probe and the inverse model.
        inverse_steps: of training the inverse model.
        branches, branch_steps, starts: K, their length, and how many presents.
        apart: least difference of two branches of a start, see `_held_out.branch_starts`.
        films, film_steps: long rollouts and their length.
        history: time that the causal form's past counts as noised to; null: half of what the model
            was trained with.
        policies: checkpoints to correlate; null: up to six of the run's own.
        noise: standard deviations of actions (in shares of their spread in the data) with which the
            last policy is made worse, for further ones.
        policy_episodes: resets for each policy, simulated and imagined.
        threshold, patience: an imagined episode counts as solved once the probability of success
            has been so high for so many frames; null: what tells recorded episodes best.
        decide: see `DecisionConfig`.
        false_alarm_rate: chosen, per episode; calibration_episodes, fault_episodes: resets.
        device: "auto", "cpu", "cuda", ...
        fresh: measure again what ``out/parts`` holds.
    """

    checkpoint: str = MISSING
    env: str = "reach_around"
    options: Any = None
    out: str = "outputs/evaluate_worldmodel"
    parts: Any = None
    columns: Any = None
    name: str = "this one"
    seed: int = 0
    purpose: str = "reported"
    steps: int = 1
    act_steps: int = 2
    every: int = 4
    episodes: int = 40
    windows: int = 4
    fit_episodes: int = 40
    inverse_steps: int = 1500
    branches: int = 8
    branch_steps: int = 32
    starts: int = 50
    apart: float = 10.0
    films: int = 10
    film_steps: int = 300
    history: float | None = None
    policies: Any = None
    noise: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.5, 0.8, 1.2])
    policy_episodes: int = 50
    threshold: float | None = None
    patience: int | None = None
    decide: DecisionConfig = field(default_factory=DecisionConfig)
    false_alarm_rate: float = 0.05
    calibration_episodes: int = 80
    fault_episodes: int = 30
    device: str = "auto"
    fresh: bool = False


SHARED_SETTINGS = ("env", "options", "seed", "purpose", "steps")
"""What every part depends on."""
HELD_OUT = ("every", "episodes", "windows")
SOLVED = ("patience", "fit_episodes")
DECISIONS = ("every", "act_steps", "decide")
PART_SETTINGS: dict[str, tuple[str, ...]] = {
    "prediction": (*HELD_OUT, "fit_episodes"),
    "action_following": HELD_OUT,
    "branching": ("every", "branches", "branch_steps", "starts", "apart", "fit_episodes"),
    "inverse": (*HELD_OUT, "fit_episodes", "inverse_steps", "act_steps"),
    "return_correlation": (
        "act_steps",
        "policies",
        "noise",
        "policy_episodes",
        "threshold",
        *SOLVED,
    ),
    "decision_lift": DECISIONS,
    "exploitability": DECISIONS,
    "drift": ("every", "films", "film_steps", "history", "fit_episodes"),
    "surprise": ("act_steps", "false_alarm_rate", "calibration_episodes", "fault_episodes"),
    "frames_per_s": (),
}
"""What else each part depends on: where it changes, the part is measured anew."""


def checked_parts(config: WorldmodelConfig) -> list[str]:
    """The parts that are asked for, in the order in which they are read.

    Raises:
        ValueError: an unknown part, or settings that do not fit each other.
    """
    wanted = list(PARTS) if config.parts is None else config.parts
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    for part in wanted:
        if part not in PARTS:
            raise ValueError(
                f"there is no part {part!r}.{did_you_mean(str(part), PARTS)} There are: "
                f"{', '.join(PARTS)}"
            )
    if config.columns is not None and not isinstance(config.columns, Mapping):
        raise ValueError(f"columns is {config.columns!r}; expected columns={{NAME:DIR,NAME:DIR}}")
    if config.name in (config.columns or {}):
        raise ValueError(f"a column is called {config.name!r} like the checkpoint: name=OTHER")
    policies = [str(path) for path in config.policies or []]
    if twice := sorted({path for path in policies if policies.count(path) > 1}):
        raise ValueError(f"policies names {twice} more than once")
    d = config.decide
    if len(d.candidates) != len(d.episodes) or not d.candidates:
        raise ValueError(
            f"decide.episodes says for each of decide.candidates how many resets; found "
            f"{d.episodes} for {d.candidates}"
        )
    if sorted(set(d.candidates)) != d.candidates or d.candidates[0] < 1 or min(d.episodes) < 1:
        raise ValueError(
            f"decide.candidates ascend from at least 1, decide.episodes are at least 1; found "
            f"{d.candidates} and {d.episodes}"
        )
    return [part for part in PARTS if part in wanted]
