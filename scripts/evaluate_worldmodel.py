"""Judge a world model: what it predicts, and what that is worth to control.

::

    python -m scripts.evaluate_worldmodel checkpoint=outputs/push_run env=push out=outputs/judged

writes ``report.json``, ``report.html`` and ``report.png`` into ``out``, with ``config.yaml``. What
each part means stands in `policies.judge.report`. Everything is measured on resets that no dataset
of `scripts.collect` holds. A part that was measured is kept in ``out/parts``, so that the same
command goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import envs
from envs.base import ArmEnv
from envs.faults import FAULTS, inject
from envs.world import World
from policies.evaluation import Evaluation, evaluate
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.judge.branching import branching
from policies.judge.decisions import decision_lift, exploitability
from policies.judge.drift import drift
from policies.judge.inverse import InverseModel, inverse
from policies.judge.prediction import following, imagined, prediction
from policies.judge.probe import Probe
from policies.judge.recorded import Recorded, Windows, cut, mean_frame
from policies.judge.report import SideBySide, completed, write_worldmodel_report
from policies.judge.returns import Degraded, return_correlation
from policies.judge.speed import frames_per_s
from policies.judge.success import success_auroc
from policies.judge.surprise import run_surprise
from policies.judge.targets import PARTS, Estimate, asked, not_run, with_interval
from policies.planner import (
    Planner,
    PlannerConfig,
    SearchConfig,
    SimulatorPlanner,
    equal_cost_steps,
)
from policies.types import Policy
from worldmodel.checkpoint import Checkpoint, CheckpointError, find, open_checkpoint
from worldmodel.imagine import window_length
from worldmodel.imagined_env import ImaginedVectorEnv
from worldmodel.stamp import stamp
from worldmodel.types import SpecMismatchError

from . import _held_out as held_out
from ._cli import refuse_unknown_keys
from ._imagined import ImaginedWorld, imagined_world
from ._world import environment_spec, make_world, options_of, world_of
from .evaluate import new_progress
from .train import choose_device


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


@dataclass
class WorldmodelConfig:
    """What is judged, and on how much.

    Attributes:
        checkpoint: a run's folder or one of its checkpoints: the world model, and the policy.
        env: short name or Gymnasium id of the world that it models.
        options: of the environment; they override those of the demonstrations.
        out: folder for the report.
        parts: of the report (`policies.judge.targets.PARTS`); null: all.
        columns: name -> checkpoint of other world models, whose first parts stand beside.
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
        threshold: probability from which an imagined episode counts as solved.
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
    columns: dict[str, str] = field(default_factory=dict)
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
    branch_steps: int = 16
    starts: int = 50
    apart: float = 10.0
    films: int = 10
    film_steps: int = 300
    history: float | None = None
    policies: Any = None
    noise: list[float] = field(default_factory=lambda: [0.1, 0.2, 0.3, 0.5, 0.8, 1.2])
    policy_episodes: int = 50
    threshold: float = 0.5
    decide: DecisionConfig = field(default_factory=DecisionConfig)
    false_alarm_rate: float = 0.05
    calibration_episodes: int = 60
    fault_episodes: int = 30
    device: str = "auto"
    fresh: bool = False


ConfigStore.instance().store(name="evaluate_worldmodel_schema", node=WorldmodelConfig)

VALUES = ("value", "low", "high")
COLUMNS = ("prediction", "action_following", "branching", "drift", "frames_per_s")
"""Parts that other checkpoints are judged by too: those that need no policy."""
FAULT_AT = 15
"""Control steps before a fault, plus up to as many again, by seed."""


class Judge:
    """Everything that the parts share, made when it is first needed.

    Args:
        config: what is judged.
        checkpoint: the world model.
        bars: a running display of progress.

    Raises:
        worldmodel.types.SpecMismatchError: the world is not the one that the model was trained on.
    """

    def __init__(self, config: WorldmodelConfig, checkpoint: Checkpoint, bars: Progress) -> None:
        self.config, self.checkpoint, self.bars = config, checkpoint, bars
        self.spec, self.horizon = checkpoint.spec, checkpoint.model.horizon
        self.options = options_of(config.env, config.options, checkpoint)
        env = self.make()
        self.spec.require_same(
            environment_spec(env), "the checkpoint", f"environment {config.env}", image_size=False
        )
        self.world: World = world_of(env)
        self.seeds = held_out.Seeds(config.seed, config.purpose)
        known = checkpoint.objective.any_frame > 0
        window_length(self.horizon, known)  # or what it cannot imagine, before anything is run
        self.every = config.every if known else self.horizon.future_stride
        self.history = config.history
        if self.history is None:
            self.history = checkpoint.objective.history_noise / 2
        self.videos: list[SideBySide] = []
        self.grids: list[Any] = []

    def make(self) -> gym.Env:
        return make_world(self.config.env, self.options)

    def bar(self, title: str, total: int) -> Callable[[], None]:
        task = self.bars.add_task(title, total=total)
        return lambda: self.bars.advance(task)

    # --- what is looked at ------------------------------------------------------------------------

    def _episodes(self, part: str, title: str, count: int) -> list[Recorded]:
        both = self.seeds.of(part, 2 * count)
        if not self.world.has_expert:
            raise NotRunError(f"{self.config.env} has no expert to show held-out episodes")
        advance = self.bar(title, 2 * count)
        return held_out.episodes(self.world, both[:count], both[count:], advance)

    def cut(self, episodes: Sequence[Recorded], ahead: int, each: int) -> Windows:
        past, stride = self.horizon.past, self.horizon.past_stride
        return cut(episodes, self.spec, past=past, past_stride=stride, ahead=ahead, each=each)

    @property
    def ahead(self) -> int:
        """Frames of a prediction: one window, at least as far as frame 8."""
        return max(8, window_length(self.horizon, True)) // self.every * self.every

    @cached_property
    def episodes(self) -> list[Recorded]:
        return self._episodes("episodes", "held-out episodes", self.config.episodes)

    @cached_property
    def fitting(self) -> list[Recorded]:
        return self._episodes("fit", "episodes to fit", self.config.fit_episodes)

    @cached_property
    def windows(self) -> Windows:
        return self.cut(self.episodes, self.ahead, self.config.windows)

    @cached_property
    def mean(self) -> Mapping[str, Any]:
        return mean_frame(self.fitting, self.spec)

    @cached_property
    def probe(self) -> Probe | None:
        some = self.cut(self.fitting, 1, 40)
        now = some.past - 1
        if not some.facts or not self.spec.cameras:
            return None
        facts = {name: values[:, now].numpy() for name, values in some.facts.items()}
        return Probe({c: v[:, now] for c, v in some.video.items()}, facts, some.episode)

    @cached_property
    def predicted(self) -> tuple[dict[str, Any], Any]:
        c = self.config
        return prediction(
            self.checkpoint, self.windows, self.mean, self.probe, every=self.every, steps=c.steps
        )

    @property
    def arm(self) -> ArmEnv:
        """The world, where it can be saved, restored and explored.

        Raises:
            NotRunError: it cannot.
        """
        if not isinstance(self.world, ArmEnv):
            raise NotRunError(
                f"{self.config.env} cannot be saved, restored and explored; our own arm's tasks can"
            )
        return self.world

    def policy(self, path: str | Path | None = None) -> FlowPolicy:
        """The policy of a checkpoint; default: of the one that is judged."""
        acting = PolicyConfig(steps=self.config.act_steps)
        if path is None:
            return FlowPolicy(self.checkpoint, acting)
        device = str(next(self.checkpoint.model.parameters()).device)
        return FlowPolicy.from_checkpoint(path, acting, device)

    def run(
        self, title: str, policy: Policy, seeds: Sequence[int], slots: int = 16, envs: Any = None
    ) -> Evaluation:
        """Episodes of a policy in the simulator, or in the environments given."""
        advance = self.bar(title, len(seeds))
        limit = envs.max_steps if isinstance(envs, ImaginedVectorEnv) else None
        return evaluate(
            policy, envs or self.make, seeds, num_envs=slots, max_steps=limit,
            on_episode=lambda _: advance(),
        )  # fmt: skip

    # --- the parts --------------------------------------------------------------------------------

    def prediction(self) -> dict[str, Any]:
        part, found = self.predicted
        part["success"] = success_auroc(found, self.windows)
        self._film(found)
        return part

    def _film(self, found: Any) -> None:
        """Every frame of a few held-out futures, imagined beside the truth."""
        kinds = list(dict.fromkeys(self.windows.kind))
        rows = [next(i for i, k in enumerate(self.windows.kind) if k == kind) for kind in kinds]
        some = self.windows.part(np.array(rows[:4]))
        every = 1 if self.checkpoint.objective.any_frame else self.every
        shown = imagined(self.checkpoint, some, some.action, every=every, steps=self.config.steps)
        camera = self.spec.cameras[0]
        truth = some.at(shown.frames)[camera].movedim(-3, -1).numpy()
        guess = shown.video[camera].movedim(-3, -1).numpy()
        for kind, real, imagined_ in zip(some.kind, truth, guess, strict=True):
            self.videos.append(
                SideBySide(
                    title=f"A held-out future ({kind})",
                    real=real,
                    imagined=imagined_,
                    fps=self.spec.fps / every,
                    caption="The model sees the frame before and the actions, no later frame.",
                    seconds=[f / self.spec.fps for f in shown.frames.tolist()],
                )
            )

    def action_following(self) -> dict[str, Any]:
        found = self.predicted[1]
        return following(
            self.checkpoint, self.windows, found, every=self.every, steps=self.config.steps
        )

    def branching(self) -> dict[str, Any]:
        c = self.config
        starts = held_out.branch_starts(
            self.arm,
            self.seeds.of("branches", c.starts),
            count=c.branches,
            steps=c.branch_steps,
            past=self.horizon.past,
            past_stride=self.horizon.past_stride,
            apart=c.apart,
            advance=self.bar("branches", c.starts),
        )
        if not starts:
            raise NotRunError(f"no start has {c.branches} branches that differ to the eye")
        part, grids = branching(
            self.checkpoint, starts, self.probe, every=self.every, steps=c.steps
        )
        part["apart"] = c.apart
        part["starts_left_out"] = c.starts - len(starts)
        self.grids += grids
        return part

    def inverse(self) -> dict[str, Any]:
        gap = self.every
        train = self.cut(self.fitting, gap, 60)
        model = InverseModel(self.checkpoint, train, gap, steps=self.config.inverse_steps)
        found = self.predicted[1]
        ahead = {c: v[:, 0] for c, v in found.video.items()}
        return inverse(self.checkpoint, model, self.windows, ahead, steps=self.config.act_steps)

    @cached_property
    def dream(self) -> ImaginedWorld:
        """The world, imagined."""
        device = str(next(self.checkpoint.model.parameters()).device)
        own = {"sampling_steps": self.config.steps, "threshold": self.config.threshold}
        try:
            return imagined_world(self.checkpoint.path, own, device)
        except ValueError as error:
            raise NotRunError(str(error)) from error

    def return_correlation(self) -> dict[str, Any]:
        c = self.config
        last = self.policy()
        policies: dict[str, Policy] = {}
        for path in c.policies or run_checkpoints(self.checkpoint.path, 6):
            policies[Path(path).name.lstrip("0") or "0"] = self.policy(path)
        spread = np.array(self.spec.stats["action"]["std"])
        for share in c.noise:
            policies[f"noise {share:g}"] = Degraded(last, share * spread, f"noise {share:g}")
        seeds = self.seeds.first(c.policy_episodes)
        real, dreamt = [], []
        for name, policy in policies.items():
            real.append(self.run(f"simulated: {name}", policy, seeds, slots=25))
            dreams = self.dream.vector(len(seeds))
            dreamt.append(self.run(f"imagined: {name}", policy, seeds, envs=dreams))
        return return_correlation(list(policies), real, dreamt)

    @cached_property
    def decided(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both parts about decisions, from the same episodes."""
        c, d = self.config, self.config.decide
        policy = self.policy(d.proposals)
        counts = [200 if d.full else n for n in d.episodes]
        seeds = self.seeds.first(max(counts))
        alone = self.run("policy alone", policy, seeds, d.slots)
        planned: dict[int, Evaluation] = {}
        ceiling: dict[int, Evaluation] = {}
        same_time: dict[int, Evaluation] = {}
        logs: dict[int, Any] = {}
        costs = {}
        for n, count in zip(d.candidates, counts, strict=True):
            some, slots = seeds[:count], min(d.slots, count)
            plan = PlannerConfig(
                candidates=n, method=d.method if n >= 8 else "best_of", lookahead=d.lookahead,
                every=self.every if d.every is None else d.every, steps=c.steps,
                budget_ms=d.budget_ms, max_rows=256,
            )  # fmt: skip
            planner = Planner(policy, self.checkpoint, plan)
            planned[n] = self.run(f"best of {n}, imagined", planner, some, slots)
            logs[n] = list(planner.log)
            worlds = [self.make() for _ in range(slots)]
            search = SimulatorPlanner(policy, worlds, SearchConfig(candidates=n, max_rows=256))
            if isinstance(self.world, ArmEnv):
                ceiling[n] = self.run(f"best of {n}, simulated", search, some, slots, worlds)
            for world in worlds:
                world.close()
            if n > 1:
                cost = equal_cost_steps(planner, self._observed(slots))
                costs[str(n)] = asdict(cost)
                longer = FlowPolicy(policy.checkpoint, replace(policy.config, steps=cost.steps))
                same_time[n] = self.run(f"policy, {cost.steps} steps", longer, some, slots)
        facts = {"lookahead": d.lookahead, "method": d.method, "costs": costs, "slots": d.slots}
        return (
            decision_lift(d.candidates, planned, ceiling, alone, same_time, facts),
            exploitability(d.candidates, logs, planned),
        )

    def _observed(self, slots: int) -> Any:
        """First observations of as many slots, to time decisions on."""
        from policies.types import Observation

        seen = []
        for seed in self.seeds.first(slots):
            observation, _ = self.world.reset(seed=seed)
            seen.append(observation)
        return Observation(
            {c: np.stack([o["pixels"][c] for o in seen]) for c in self.spec.cameras},
            np.stack([o["agent_pos"] for o in seen]),
            [self.world.task_description] * slots,
        )

    def decision_lift(self) -> dict[str, Any]:
        return self.decided[0]

    def exploitability(self) -> dict[str, Any]:
        return self.decided[1]

    def drift(self) -> dict[str, Any]:
        c = self.config
        films = held_out.long_films(
            self.arm, self.seeds.of("long", c.films), c.film_steps + 20, self.bar("films", c.films)
        )
        windows = self.cut(films, c.film_steps, 1)
        part, shown = drift(
            self.checkpoint, windows, self.mean, every=self.every, steps=c.steps,
            history=float(self.history or 0.0),
        )  # fmt: skip
        camera = self.spec.cameras[0]
        real = windows.at(part["frames"])[camera][0].movedim(-3, -1).numpy()
        self.videos.append(
            SideBySide(
                title=f"{c.film_steps} frames, imagined from the first one",
                real=real,
                imagined=shown[camera][0].movedim(-3, -1).numpy(),
                fps=self.spec.fps / self.every,
                caption="Windows that hand over their last frame.",
                seconds=[f / self.spec.fps for f in part["frames"]],
            )
        )
        return part

    def surprise(self) -> dict[str, Any]:
        c = self.config

        def begins(seed: int) -> int:
            return FAULT_AT + seed % FAULT_AT

        def faulty(name: str) -> Callable[[int], gym.Env]:
            return lambda seed: inject(self.make(), name, begins(seed), seed)

        return run_surprise(
            self.policy(),
            self.checkpoint,
            lambda seed: self.make(),
            {name: faulty(name) for name in FAULTS},
            seeds_calibration=self.seeds.of("calibration", c.calibration_episodes),
            seeds_test=self.seeds.of("faults", c.fault_episodes),
            at_step=begins,
            false_alarm_rate=c.false_alarm_rate,
            num_envs=min(15, c.fault_episodes),
        )

    def frames_per_s(self) -> dict[str, Any]:
        return frames_per_s(self.checkpoint, steps=self.config.steps)


class NotRunError(RuntimeError):
    """A part of the report that this world or this model does not allow; says why."""


def run_checkpoints(path: Path, most: int) -> list[Path]:
    """Up to `most` checkpoints of the run that a checkpoint belongs to, ascending."""
    beside = sorted(p for p in path.parent.iterdir() if p.name.isdigit() and p.is_dir())
    if len(beside) < 2:
        return [path]
    # Most of what a policy learns it learns early.
    at = np.unique(np.round(np.geomspace(1, len(beside), most)).astype(int)) - 1
    return [beside[i] for i in at]


def judge(
    config: WorldmodelConfig, checkpoint: Checkpoint, console: Console, progress: Progress
) -> dict[str, Any]:
    """Measure all parts, write the report, return it."""
    out = Path(config.out)
    wanted = list(PARTS) if config.parts is None else list(config.parts)
    report: dict[str, Any] = {
        "title": f"{envs.find(config.env).gym_id}, imagined",
        "subtitle": _subtitle(config, checkpoint),
        "name": config.name,
        "stamp": stamp() | {"config": asdict(config), "checkpoint": checkpoint.stamp},
    }
    worker = Judge(config, checkpoint, progress)
    report |= _measured(worker, wanted, out / "parts", config.fresh)
    columns = {}
    for name, path in config.columns.items():
        other = open_checkpoint(path, device=str(next(checkpoint.model.parameters()).device))
        beside = Judge(config, other, progress)
        some = [p for p in wanted if p in COLUMNS]
        columns[name] = _measured(
            beside, some, out / "parts" / name.replace("/", "_"), config.fresh
        )
    if columns:
        report["columns"] = columns
    write_worldmodel_report(report, out, videos=worker.videos, branches=worker.grids)
    return completed(report)


def _measured(worker: Judge, wanted: Sequence[str], folder: Path, fresh: bool) -> dict[str, Any]:
    """Parts by name; those that pictures are made of are always measured."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in asdict(worker.config).items() if k not in ("parts", "fresh", "out")}
    weights = str(worker.checkpoint.path), worker.checkpoint.stamp.get("step")
    key = hashlib.sha256(json.dumps([config, weights], sort_keys=True).encode()).hexdigest()[:16]
    pictured = ("prediction", "branching", "drift")
    parts: dict[str, Any] = {}
    for name in PARTS:
        path = folder / f"{name}.json"
        if name not in wanted:
            parts[name] = {"not_run": "not asked for"}
            continue
        kept = json.loads(path.read_text()) if path.is_file() and not fresh else {}
        if kept.get("key") == key and name not in pictured:
            parts[name] = kept["part"]
            continue
        try:
            parts[name] = getattr(worker, name)()
        except NotRunError as error:
            parts[name] = {"not_run": str(error)}
        whole = completed({name: parts[name]})[name]
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({"key": key, "part": whole}, indent=2) + "\n")
        temporary.replace(path)
    return parts


def _subtitle(config: WorldmodelConfig, checkpoint: Checkpoint) -> str:
    height, width = checkpoint.spec.image_size
    cameras = " and ".join(checkpoint.spec.cameras) or "no"
    step = checkpoint.stamp.get("step", "?")
    return (
        f"{checkpoint.model.config.size} model after {step} steps, {cameras} camera at "
        f"{width}x{height} px, {config.steps} sampling steps, {config.purpose} resets, block "
        f"{config.seed}"
    )


def print_summary(report: Mapping[str, Any], out: Path, console: Console) -> None:
    """The targets as a table, and where the rest is."""
    table = Table(title=report["title"], title_justify="left")
    names = list(report["targets"][0]["columns"]) if report["targets"] else []
    for column in ("", "target", *names):
        table.add_column(column)
    for row in report["targets"]:
        cells = [with_interval(_estimate(c), row["unit"]) for c in row["columns"].values()]
        table.add_row(row["name"], asked(row["target"], row["unit"]), *cells)
    console.print(table)
    for part, title in PARTS.items():
        if (why := not_run(report[part])) is not None:
            console.print(f"{title}: not run ({escape(why)})", highlight=False)
    console.print(f"report: {out / 'report.html'}", highlight=False)


def _estimate(column: Mapping[str, Any]) -> Estimate:
    """A column of `policies.judge.targets.judged`, as it is shown."""
    value, low, high = (math.nan if column[k] is None else column[k] for k in VALUES)
    return Estimate(value, low, high, column["why"])


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate_worldmodel")
def run(values: DictConfig) -> None:
    console = Console()
    try:
        config = cast(WorldmodelConfig, OmegaConf.to_object(values))
        envs.find(config.env)
        if unknown := sorted(set(config.parts or []) - set(PARTS)):
            raise ValueError(f"there are no parts {unknown}; there are {list(PARTS)}")
        device = str(choose_device(config.device))
        checkpoint = open_checkpoint(find(config.checkpoint), device=device)
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(OmegaConf.to_yaml(values))
        with new_progress(console) as progress:
            report = judge(config, checkpoint, console, progress)
    except MissingMandatoryValue as error:
        console.print(f"[bold red]Missing:[/] {error.full_key}=..., see --help", highlight=False)
        sys.exit(1)
    except (CheckpointError, SpecMismatchError, ValueError, OSError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    print_summary(report, out, console)


def main() -> None:
    refuse_unknown_keys(WorldmodelConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
