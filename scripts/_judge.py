"""Judging a world model: every part of the report, and what the parts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.progress import Progress

import envs
from envs.base import ArmEnv
from envs.faults import FAULTS, inject
from envs.world import World
from policies.equal_cost import equal_cost_steps
from policies.evaluation import Evaluation, evaluate
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.judge.branching import branching
from policies.judge.decisions import decision_lift, exploitability, lacking
from policies.judge.drift import drift
from policies.judge.inverse import InverseModel, inverse
from policies.judge.prediction import following, imagined, prediction
from policies.judge.probe import Probe
from policies.judge.recorded import Recorded, Windows, cut, mean_frame
from policies.judge.report import SideBySide
from policies.judge.returns import Degraded, calibrate_success, return_correlation
from policies.judge.speed import frames_per_s
from policies.judge.success import success_auroc
from policies.judge.surprise import run_surprise
from policies.monitor import PlainMonitor, SurpriseMonitor, require_enough
from policies.planner import Planner, PlannerConfig
from policies.search import Record, SearchConfig
from policies.simulator_planner import SimulatorPlanner
from policies.true_planner import JUDGES, TruePlanner
from policies.types import Observation, Policy
from worldmodel.checkpoint import Checkpoint, find
from worldmodel.imagine import Imagined, window_length
from worldmodel.imagined_env import ImaginedVectorEnv
from worldmodel.stamp import stamp

from . import _held_out as held_out
from ._imagined import ImaginedWorld, imagined_world
from ._judge_config import PART_SETTINGS, SHARED_SETTINGS, WHY_CANDIDATES, WorldmodelConfig
from ._kept import Key, Measured, Picture, code, weights
from ._world import environment_spec, make_world, mapping_of, options_of, require_cameras, world_of

FAULT_AT = 15
"""Control steps before a fault, plus up to as many again, by seed."""


class NotRunError(RuntimeError):
    """A part of the report that this world or this model does not allow; says why."""


class Judge:
    """Everything that the parts share, made when it is first needed.

    Args:
        config: what is judged.
        checkpoint: the world model.
        bars: a running display of progress.

    Raises:
        worldmodel.types.SpecMismatchError: the world is not the one that the model was trained on.
        ValueError: a setting that this model cannot follow.
    """

    def __init__(self, config: WorldmodelConfig, checkpoint: Checkpoint, bars: Progress) -> None:
        self.config, self.checkpoint, self.bars = config, checkpoint, bars
        self.spec, self.horizon = checkpoint.spec, checkpoint.model.horizon
        self.device = str(next(checkpoint.model.parameters()).device)
        self.options = options_of(config.env, config.options, checkpoint)
        require_cameras(config.env, self.options, self.spec)
        self.env = self.make()
        self.world: World = world_of(self.env)
        self.spec.require_same(
            environment_spec(self.env),
            "the checkpoint",
            f"environment {config.env}",
            image_size=False,
        )
        self.unit = self.world.length_unit
        self.seeds = held_out.Seeds(config.seed, config.purpose)
        self.any_frame = checkpoint.objective.any_frame > 0
        self.every = config.every if self.any_frame else self.horizon.future_stride
        self.span, self.unchained = spans(checkpoint)
        if self.span and not 1 <= self.every <= self.span:
            raise ValueError(f"every={self.every}: the distance of frames is from 1 to {self.span}")
        largest = checkpoint.objective.history_noise
        self.history = largest / 2 if config.history is None else config.history
        if not 0 <= self.history <= largest:
            raise ValueError(
                f"history={self.history}: this model was trained with noise on its past up to "
                f"{largest} (objective.history_noise)"
            )
        self.pictures: list[Picture] = []

    def close(self) -> None:
        """Close the worlds."""
        self.env.close()
        if "dream" in self.__dict__:
            self.dream.close()

    def measure(self, part: str) -> Measured:
        """One part of the report.

        Raises:
            NotRunError: this world or this model does not allow it.
        """
        self.pictures = []
        return Measured(getattr(self, part)(), self.pictures)

    def require(self, part: str) -> None:
        """Refuse a part that this world or this model does not allow, before anything is run.

        Raises:
            NotRunError: says why.
        """
        needs: dict[str, list[Callable[[], object]]] = {
            "prediction": [self._require_imagining, self._require_expert],
            "action_following": [self._require_imagining, self._require_expert],
            "branching": [self._require_imagining, lambda: self.arm, self._require_branches],
            "inverse": [self._require_imagining, self._require_expert, self._require_state],
            "return_correlation": [self._require_same_world, lambda: self.dream],
            "decision_lift": [self._require_imagining, self._require_planners],
            "exploitability": [self._require_imagining, self._require_planners],
            "drift": [self._require_imagining, lambda: self.arm, self._require_chains],
            "surprise": [self._require_monitors],
            "frames_per_s": [self._require_imagining],
        }
        try:
            for need in needs[part]:
                need()
        except ValueError as error:  # what a model cannot do, in the words of whoever asks it
            raise NotRunError(str(error)) from error

    def key(self, part: str) -> Key:
        """All that a part is measured of; see `scripts._kept`."""
        c = self.config
        config = asdict(c)
        settings = {name: config[name] for name in (*SHARED_SETTINGS, *PART_SETTINGS[part])}
        key: dict[str, Any] = {
            "code": self._code,
            "weights": weights([self.checkpoint.path]),
            "settings": settings | {"device": self.device},
        }
        if part == "return_correlation":
            key["policies"] = weights([find(path) for path in self.policy_paths])
        elif "decide" in settings and c.decide.proposals is not None:
            key["policies"] = weights([find(c.decide.proposals)])
        elif part == "frames_per_s":
            key["machine"] = {n: stamp()[n] for n in ("hardware", "threads")}
        return key

    @cached_property
    def _code(self) -> str:
        return code()

    def make(self) -> gym.Env:
        return make_world(self.config.env, self.options)

    def bar(self, title: str, total: int) -> Callable[[], None]:
        task = self.bars.add_task(title, total=total)
        return lambda: self.bars.advance(task)

    # --- what is needed ---------------------------------------------------------------------------

    def _require_imagining(self) -> None:
        if not self.spec.cameras:
            raise NotRunError("this model sees no camera, so that it imagines no pictures")
        if not self.span:
            raise NotRunError(self.unchained)

    def _require_expert(self) -> None:
        if not self.world.has_expert:
            raise NotRunError(f"{self.config.env} has no expert to show held-out episodes")

    def _require_state(self) -> None:
        if not self.spec.state_dim:
            raise NotRunError("this robot has no joints for an inverse model to begin from")

    def _require_chains(self) -> None:
        if self.unchained:
            raise NotRunError(self.unchained)

    def _require_branches(self) -> None:
        steps = self.config.branch_steps
        if steps < self.every:
            raise NotRunError(
                f"branch_steps={steps} reach no frame; the first one is {self.every} steps on"
            )
        if steps > self.span:
            try:
                self._require_chains()
            except NotRunError as error:
                raise NotRunError(
                    f"branch_steps={steps} is longer than a window of {self.span}, and {error}"
                ) from error

    def _require_same_world(self) -> None:
        """Imagined episodes start in the world that the data is from; so must simulated ones."""
        source = (self.checkpoint.stamp.get("environment") or {}).get("env")
        here = envs.find(self.config.env).gym_id
        if source != here:
            raise NotRunError(
                f"imagined episodes start where those of the data's world do, which is "
                f"{source or 'not known'}; simulated ones are of {here}"
            )

    def _require_planners(self) -> None:
        for n in self.config.decide.candidates:
            Planner(self.proposer, self.checkpoint, self.plan(n))

    def _require_monitors(self) -> None:
        SurpriseMonitor(self.checkpoint)
        PlainMonitor(self.spec)
        require_enough(self.config.calibration_episodes, self.config.false_alarm_rate)
        if not self.faults[0]:
            raise NotRunError("; ".join(self.faults[1].values()))

    # --- what is looked at ------------------------------------------------------------------------

    def _episodes(self, part: str, title: str, count: int) -> list[Recorded]:
        both = self.seeds.of(part, 2 * count)
        # Exploration is for our own arm.
        explored = both[count:] if isinstance(self.world, ArmEnv) else []
        advance = self.bar(title, count + len(explored))
        return held_out.episodes(self.world, both[:count], explored, advance)

    def cut(
        self, episodes: Sequence[Recorded], ahead: int, each: int, unsolved: bool = False
    ) -> Windows:
        past, stride = self.horizon.past, self.horizon.past_stride
        try:
            return cut(
                episodes, self.spec, past=past, past_stride=stride, ahead=ahead, each=each,
                unsolved=unsolved,
            )  # fmt: skip
        except ValueError as error:
            raise NotRunError(str(error)) from error

    @property
    def ahead(self) -> int:
        """Frames of a prediction: one window, and at least as far as frame 8 where it can be."""
        return (self.span if self.unchained else max(8, self.span)) // self.every * self.every

    @cached_property
    def episodes(self) -> list[Recorded]:
        return self._episodes("episodes", "held-out episodes", self.config.episodes)

    @cached_property
    def fitting(self) -> list[Recorded]:
        return self._episodes("fit", "episodes to fit", self.config.fit_episodes)

    @cached_property
    def windows(self) -> Windows:
        return self.cut(self.episodes, self.ahead, self.config.windows, unsolved=True)

    @cached_property
    def mean(self) -> Mapping[str, Any]:
        return mean_frame(self.fitting, self.spec)

    @cached_property
    def probe(self) -> Probe | None:
        some = self.cut(self.fitting, 1, 40)
        now = some.past - 1
        if not some.facts:
            return None
        facts = {name: values[:, now].numpy() for name, values in some.facts.items()}
        return Probe({c: v[:, now] for c, v in some.video.items()}, facts, some.episode)

    @cached_property
    def predicted(self) -> tuple[dict[str, Any], Imagined]:
        return prediction(
            self.checkpoint, self.windows, self.mean, self.probe, every=self.every,
            steps=self.config.steps, unit=self.unit,
        )  # fmt: skip

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
        """The policy of a checkpoint; default: of the one that is judged.

        Raises:
            worldmodel.types.SpecMismatchError: it is for another robot or other cameras.
        """
        acting = PolicyConfig(steps=self.config.act_steps)
        if path is None:
            return FlowPolicy(self.checkpoint, acting)
        policy = FlowPolicy.from_checkpoint(path, acting, self.device)
        self.spec.require_same(policy.spec, "the world model", f"policy {path}", image_size=False)
        return policy

    @cached_property
    def proposer(self) -> FlowPolicy:
        """Proposes what decisions choose from."""
        return self.policy(self.config.decide.proposals)

    @property
    def policy_paths(self) -> list[str | Path]:
        """Checkpoints whose success is correlated."""
        return list(self.config.policies or run_checkpoints(self.checkpoint.path, 6))

    def run(
        self, title: str, policy: Policy, seeds: Sequence[int], slots: int, worlds: Any = None
    ) -> Evaluation:
        """Episodes of a policy in the simulator, or in the worlds given."""
        advance = self.bar(title, len(seeds))
        limit = worlds.max_steps if isinstance(worlds, ImaginedVectorEnv) else None
        return evaluate(
            policy, self.make if worlds is None else worlds, seeds, num_envs=slots,
            max_steps=limit, on_episode=lambda _: advance(),
        )  # fmt: skip

    # --- the parts --------------------------------------------------------------------------------

    def prediction(self) -> dict[str, Any]:
        part, found = self.predicted
        self._film()
        return part | {"success": success_auroc(found, self.windows)}

    def _film(self) -> None:
        """Every frame of a few held-out futures, imagined beside the truth."""
        kinds = list(dict.fromkeys(self.windows.kind))
        rows = [self.windows.kind.index(kind) for kind in kinds]
        some = self.windows.part(np.array(rows[:4]))
        every = 1 if self.any_frame else self.every
        shown = imagined(self.checkpoint, some, some.action, every=every, steps=self.config.steps)
        camera = self.spec.cameras[0]
        truth = some.at(shown.frames)[camera].movedim(-3, -1).numpy()
        guess = shown.video[camera].movedim(-3, -1).numpy()
        for kind, real, made in zip(some.kind, truth, guess, strict=True):
            self.pictures.append(
                SideBySide(
                    title=f"A held-out future ({kind})",
                    real=real,
                    imagined=made,
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
        self.pictures += grids
        return part | {"apart": c.apart, "starts_left_out": c.starts - len(starts)}

    def inverse(self) -> dict[str, Any]:
        gap = self.every
        train = self.cut(self.fitting, gap, 60)
        model, blind = (
            InverseModel(self.checkpoint, train, gap, steps=self.config.inverse_steps, blind=b)
            for b in (False, True)
        )
        found = self.predicted[1]
        ahead = {c: v[:, 0] for c, v in found.video.items()}
        return inverse(
            self.checkpoint,
            model,
            blind,
            self.windows,
            ahead,
            steps=self.config.act_steps,
            unit=self.unit,
        )

    @cached_property
    def dream(self) -> ImaginedWorld:
        """The world, imagined."""
        own = {"sampling_steps": self.config.steps}
        options = mapping_of(self.config.options) | own
        return imagined_world(self.checkpoint.path, options, self.device)

    @cached_property
    def solved(self) -> dict[str, Any]:
        """When an imagined episode counts as solved."""
        c = self.config
        found: dict[str, Any] = {}
        if c.threshold is None or c.patience is None:
            try:
                found = calibrate_success(self.checkpoint, self.fitting, steps=c.steps)
            except ValueError as error:
                raise NotRunError(f"{error}; or state threshold and patience") from error
        stated = {"threshold": c.threshold, "patience": c.patience}
        return found | {k: v for k, v in stated.items() if v is not None}

    def return_correlation(self) -> dict[str, Any]:
        c = self.config
        self.dream.settings |= {k: self.solved[k] for k in ("threshold", "patience")}
        paths = self.policy_paths
        makers: dict[str, Callable[[], Policy]] = {
            name: partial(self.policy, path)
            for name, path in zip(labels(paths), paths, strict=True)
        }
        last, spread = self.policy(), np.array(self.spec.stats["action"]["std"])
        for share in c.noise:
            name = f"noise {share:g}"
            makers[name] = partial(Degraded, last, share * spread, name)
        seeds = self.seeds.first(c.policy_episodes)
        real, dreamt = [], []
        for name, make in makers.items():
            policy = make()
            real.append(self.run(f"simulated: {name}", policy, seeds, slots=25))
            slots = min(50, len(seeds))
            dreams = self.dream.vector(slots)
            dreamt.append(self.run(f"imagined: {name}", policy, seeds, slots, dreams))
        return return_correlation(list(makers), real, dreamt) | {"solved_when": self.solved}

    def plan(self, candidates: int) -> PlannerConfig:
        """How decisions among so many candidates are made."""
        d = self.config.decide
        return PlannerConfig(
            candidates=candidates,
            # A handful is too few to refine.
            method=d.method if candidates >= 8 else "best_of",
            lookahead=d.lookahead,
            every=self.every if d.every is None else d.every,
            steps=self.config.steps,
            budget_ms=d.budget_ms,
            max_rows=256,
        )

    @cached_property
    def decided(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both parts about decisions, from the same episodes."""
        d = self.config.decide
        policy = self.proposer
        counts = [200] * len(d.candidates) if d.full else d.episodes
        seeds = self.seeds.first(max(counts))
        alone = self.run("policy alone", policy, seeds, d.slots)
        planned: dict[int, Evaluation] = {}
        ceiling: dict[int, Evaluation] = {}
        same_time: dict[int, Evaluation | str] = {}
        logs: dict[int, list[Record]] = {}
        costs = {}
        why: dict[str, Any] = {
            "not_run": f"decide.why=0, no N from 2 to {WHY_CANDIDATES}, or a world that cannot be "
            "saved and restored"
        }
        for n, count in zip(d.candidates, counts, strict=True):
            some, slots = seeds[:count], min(d.slots, count)
            planner = Planner(policy, self.checkpoint, self.plan(n))
            planned[n] = self.run(f"best of {n}, imagined", planner, some, slots)
            logs[n] = list(planner.log)
            if n == 1:
                ceiling[n] = replace(alone, episodes=alone.episodes[:count])  # nothing to choose
                same_time[n] = "one candidate is the policy alone"
                continue
            if isinstance(self.world, ArmEnv):
                ceiling[n] = self._best_by_simulator(n, some, slots)
            try:
                cost = equal_cost_steps(planner, self._observed(slots))
            except (ValueError, RuntimeError) as error:  # a regression model; nothing to time
                same_time[n] = str(error)
                continue
            costs[str(n)] = asdict(cost)
            longer = FlowPolicy(policy.checkpoint, replace(policy.config, steps=cost.steps))
            same_time[n] = self.run(f"policy, {cost.steps} steps", longer, some, slots)
        some = [n for n in d.candidates if 1 < n <= WHY_CANDIDATES]
        if d.why and some and isinstance(self.world, ArmEnv):
            why = self._lacking(max(some), alone, planned)
        simulated = f"{self.config.env} cannot be saved and restored"
        facts = {"lookahead": d.lookahead, "method": d.method, "costs": costs, "slots": d.slots}
        facts |= {"foresight": self.foresight, "simulator_foresight": policy.horizon.chunk}
        facts |= {"lacking": why}
        return (
            decision_lift(
                d.candidates, planned, ceiling if isinstance(self.world, ArmEnv) else simulated,
                alone, same_time, facts,
            ),
            exploitability(d.candidates, logs, planned, self.foresight),
        )  # fmt: skip

    @property
    def foresight(self) -> int:
        """Control steps that a decision looks ahead: executed parts, then a whole chunk."""
        reach = self.horizon.chunk if self.any_frame else self.horizon.grid[-1]
        length = min(self.proposer.horizon.chunk, reach)
        every = self.plan(1).every or self.horizon.future_stride
        executed = (self.config.decide.lookahead - 1) * self.proposer.config.execute
        return executed + length // every * every

    def _lacking(
        self, n: int, alone: Evaluation, planned: Mapping[int, Evaluation]
    ) -> dict[str, Any]:
        """The same decisions with more of the truth; see `policies.true_planner`."""
        d = self.config.decide
        count = min(d.why, len(planned[n].episodes))
        seeds = self.seeds.first(count)
        slots = min(d.slots, count)
        worlds = [self.make() for _ in range(slots)]
        try:
            runs = {
                f"true frames, {judge}": self.run(
                    f"best of {n}, true frames, {judge}",
                    TruePlanner(self.proposer, worlds, self.checkpoint, self.plan(n), judge),
                    seeds,
                    slots,
                    worlds,
                )
                for judge in JUDGES
            }
        finally:
            for world in worlds:
                world.close()
        return lacking(n, alone, planned[n], runs)

    def _best_by_simulator(self, n: int, seeds: Sequence[int], slots: int) -> Evaluation:
        """Decisions by the true simulator, the ceiling."""
        worlds = [self.make() for _ in range(slots)]
        try:
            plan = SearchConfig(candidates=n, max_rows=256)
            search = SimulatorPlanner(self.proposer, worlds, plan)
            return self.run(f"best of {n}, simulated", search, seeds, slots, worlds)
        finally:
            for world in worlds:
                world.close()

    def _observed(self, slots: int) -> Observation:
        """First observations of as many slots, to time decisions on."""
        seen = [self.world.reset(seed=seed)[0] for seed in self.seeds.first(slots)]
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
            history=self.history,
        )  # fmt: skip
        camera = self.spec.cameras[0]
        self.pictures.append(
            SideBySide(
                title=f"{c.film_steps} frames, imagined from the first one",
                real=windows.at(part["frames"])[camera][0].movedim(-3, -1).numpy(),
                imagined=shown[camera][0].movedim(-3, -1).numpy(),
                fps=self.spec.fps / self.every,
                caption="Windows that hand over their last frame.",
                seconds=[f / self.spec.fps for f in part["frames"]],
            )
        )
        return part

    @cached_property
    def faults(self) -> tuple[list[str], dict[str, str]]:
        """Names of the faults that this world can have, and why it cannot have others."""
        possible: list[str] = []
        why: dict[str, str] = {}
        for name in FAULTS:
            try:
                inject(self.env, name, FAULT_AT, 0)
                possible.append(name)
            except ValueError as error:
                why[name] = str(error)
        return possible, why

    def surprise(self) -> dict[str, Any]:
        c = self.config

        def begins(seed: int) -> int:
            return FAULT_AT + seed % FAULT_AT

        def faulty(name: str) -> Callable[[int], gym.Env]:
            return lambda seed: inject(self.make(), name, begins(seed), seed)

        possible, why = self.faults
        part = run_surprise(
            self.policy(),
            self.checkpoint,
            lambda seed: self.make(),
            {name: faulty(name) for name in possible},
            seeds_calibration=self.seeds.of("calibration", c.calibration_episodes),
            seeds_test=self.seeds.of("faults", c.fault_episodes),
            at_step=begins,
            false_alarm_rate=c.false_alarm_rate,
            num_envs=min(15, c.fault_episodes),
            is_usual=lambda episode: episode.success,
        )
        part["faults"] |= {name: {"not_run": reason} for name, reason in why.items()}
        return part

    def frames_per_s(self) -> dict[str, Any]:
        return frames_per_s(self.checkpoint, steps=self.config.steps)


def spans(checkpoint: Checkpoint) -> tuple[int, str]:
    """How many frames one window imagines (0: none), and why windows cannot be chained, or ""."""
    horizon, any_frame = checkpoint.model.horizon, checkpoint.objective.any_frame > 0
    try:
        return window_length(horizon, any_frame), ""
    except ValueError as error:
        try:
            window_length(horizon, True)
        except ValueError:
            return 0, str(error)
        return horizon.grid[-1], str(error)


def run_checkpoints(path: Path, most: int) -> list[Path]:
    """Up to `most` checkpoints of the run that a checkpoint belongs to, ascending."""
    beside = sorted(p for p in path.parent.iterdir() if p.name.isdigit() and p.is_dir())
    if len(beside) < 2:
        return [path]
    if len(beside) <= most:
        return beside
    # Most of what a policy learns it learns early.
    at = np.round(np.geomspace(1, len(beside), most)).astype(int) - 1
    # Rounded, the first ones may coincide: then the next ones are taken.
    at = np.maximum.accumulate(at - np.arange(most)) + np.arange(most)
    return [beside[i] for i in np.minimum(at, len(beside) - most + np.arange(most))]


def labels(paths: Sequence[str | Path]) -> list[str]:
    """What policies are called: a checkpoint's step; the whole path where that is no name."""
    short = [Path(path).name.lstrip("0") or "0" for path in paths]
    if len(set(short)) == len(short):
        return short
    return [str(path) for path in paths]
