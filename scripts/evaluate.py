"""Judge a checkpoint: success, smoothness, latency, beside floors and the expert.

::

    python -m scripts.evaluate checkpoint=outputs/train env=reach_around episodes=200 seed=0 \
        out=outputs/evaluate

writes ``report.json``, ``report.html`` and ``report.png`` into ``out``, with ``config.yaml``. With
``env=imagined:FOLDER`` the same happens in the imagination of a world model (see
`scripts._imagined`), on the resets of the simulator that its data comes from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import envs
from envs.world import World
from policies import report as reports
from policies.evaluation import (
    Episode,
    Evaluation,
    ReplayError,
    episode_seeds,
    evaluate,
    replay,
)
from policies.figure import JointTrace, Landmark, TopView
from policies.floors import HoldPolicy, RandomPolicy
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.media import Strip, Video
from policies.scores import Axes
from policies.smoothness import MotionLimits
from policies.types import Decision, Observation, Policy
from worldmodel.checkpoint import CheckpointError
from worldmodel.stamp import stamp
from worldmodel.types import Spec, SpecMismatchError

from ._cli import refuse_unknown_keys
from ._imagined import Films, ImaginedWorld, imagined_world, is_imagined
from ._world import axes_of, environment_spec, make_world, options_of, require_cameras, world_of
from .train import choose_device


@dataclass
class LimitsConfig:
    """What the joints may do at most, one number per joint: rad/s, rad/s^2, rad/s^3.

    Attributes:
        robot: the ``robot_type`` that they are of; in the world of another they say nothing and
            are left out. "" is any.
    """

    robot: str = ""
    velocity: list[float] = field(default_factory=list)
    acceleration: list[float] = field(default_factory=list)
    jerk: list[float] = field(default_factory=list)


@dataclass
class EvaluateConfig:
    """What is evaluated, and how.

    Attributes:
        checkpoint: a run's folder, or its ``checkpoints/last`` or ``checkpoints/best``.
        env: short name or Gymnasium id of the environment; or ``imagined:FOLDER``, the world model
            in that folder as the environment.
        options: of the environment (a mapping); they override those of the demonstrations that
            the checkpoint was trained on. Cameras and image size are the checkpoint's. Of an
            imagined one: see `scripts._imagined.imagined_world`.
        episodes: how many resets.
        seed: which block of resets; the same for every policy, so that results are paired.
        purpose: "reported" or "sweep" (see `policies.evaluation.episode_seeds`).
        out: folder for the report.
        steps: sampling steps per chunk.
        execute, prefix, smooth, history, history_weight: see `policies.flow_policy.PolicyConfig`.
        num_envs: episodes side by side.
        device: of the policy: "auto", "cpu", "cuda", ...
        floors: also evaluate random actions and holding still.
        expert: also evaluate the scripted expert: ceiling, and the demonstrations that smoothness
            is compared with; None does so where the world has one.
        latency_episodes: run again with one slot, which chunks are timed in.
        videos: of the first successes, and as many of the first failures.
        video_size: their side, in pixels.
        compare: folders of other evaluations on the same resets.
        limits: of the joints; None leaves the shares of steps beyond them out.
    """

    checkpoint: str = MISSING
    env: str = "reach_around"
    options: Any = None
    episodes: int = 200
    seed: int = 0
    purpose: str = "reported"
    out: str = "outputs/evaluate"
    steps: int = 2
    execute: int = 8
    prefix: int = 0
    smooth: int | None = None
    history: int = 3
    history_weight: float = 100.0
    num_envs: int = 16
    device: str = "auto"
    floors: bool = True
    expert: bool | None = None
    latency_episodes: int = 20
    videos: int = 4
    video_size: int = 320
    compare: list[str] = field(default_factory=list)
    limits: LimitsConfig | None = None


ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)


def policy_config(config: EvaluateConfig) -> PolicyConfig:
    """How the policy samples and executes: the fields that both configurations share."""
    return PolicyConfig(**{f.name: getattr(config, f.name) for f in fields(PolicyConfig)})


class ExpertPolicy:
    """The scripted expert of every slot's environment; it reads the simulator, not the cameras.

    Args:
        env_name: short name of the environment.
        slots: the environments that are evaluated, in the order of the slots.
    """

    name = "expert"

    def __init__(self, env_name: str, slots: Sequence[gym.Env]) -> None:
        self.env_name, self.slots = env_name, slots
        self._experts: dict[int, Any] = {}

    def reset(self, seeds: Sequence[int]) -> None:
        self.reset_slots(range(len(seeds)), seeds)

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._experts[slot] = envs.make_expert(self.env_name, self.slots[slot], seed=seed)
            self._experts[slot].reset()

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        size = (len(active), *(self.slots[0].action_space.shape or ()))
        action = np.zeros(size, np.float32)
        for slot in np.flatnonzero(active):
            action[slot] = self._experts[slot].act()
        return Decision(action, np.asarray(active, bool).copy())


def environment_options(config: EvaluateConfig, policy: Policy) -> dict[str, Any]:
    """Options that make the world look as it did in training; ``config.options`` overrides them."""
    return options_of(config.env, config.options, policy)


def motion_limits(config: EvaluateConfig, world: World | Spec) -> MotionLimits | None:
    """The limits that are this robot's."""
    limits = config.limits
    if limits is None or limits.robot not in ("", world.robot_type):
        return None
    return MotionLimits(limits.velocity, limits.acceleration, limits.jerk)


def run_evaluation(
    config: EvaluateConfig, policy: Policy, progress: Progress | None = None
) -> dict[str, Any]:
    """Evaluate `policy` as `config` says, write the report into ``config.out``, return it.

    Args:
        policy: the policy in question. If it has a ``spec`` (`worldmodel.types.Spec`), the world
            is refused by name of the first difference where it does not fit.
        progress: a running rich display to add bars to; None shows nothing.

    Raises:
        worldmodel.types.SpecMismatchError: if the world is not what the policy was made for.
    """
    bars = _Bars(progress)
    seeds = episode_seeds(config.episodes, config.seed, config.purpose)
    others = {folder: _read_report(Path(folder)) for folder in config.compare}
    for other in others.values():  # now rather than after an hour of episodes
        reports.require_same_resets(seeds, reports.seeds_of(other))
    if is_imagined(config.env):
        with closing(
            imagined_world(config.env, config.options, str(choose_device(config.device)))
        ) as imagined:
            return _run_imagined(config, policy, imagined, seeds, others, bars)
    options = environment_options(config, policy)
    spec: Spec | None = getattr(policy, "spec", None)
    if spec is not None:
        require_cameras(config.env, options, spec)
    blind = options | {"cameras": []}

    probe = make_world(config.env, options)
    world = world_of(probe)
    box: Any = probe.action_space
    if spec is not None:
        spec.require_same(
            environment_spec(probe), "the checkpoint", f"environment {config.env}", image_size=False
        )
    axes = axes_of(world)
    has_tip = world.tip is not None
    with_expert = world.has_expert if config.expert is None else config.expert
    if with_expert:
        world.make_expert(0)  # or the error that there is none, before an hour of episodes
    probe.close()

    def run(policy: Policy, title: str, seeds: list[int], slots: int, **kwargs: Any) -> Evaluation:
        with bars.bar(title, len(seeds)) as advance:
            return evaluate(
                policy,
                kwargs.pop("make", lambda: envs.make(config.env, **options)),
                seeds,
                num_envs=slots,
                trace=tip_position if has_tip else None,
                on_episode=lambda _: advance(),
            )

    evaluation = run(policy, "policy", seeds, config.num_envs)
    single = None
    if config.latency_episodes:
        single = run(policy, "latency, one arm", seeds[: config.latency_episodes], 1)

    def unseen() -> gym.Env:
        return envs.make(config.env, **blind)

    floors: dict[str, Evaluation] = {}
    if config.floors:
        floors["random"] = run(RandomPolicy(box.low, box.high), "random", seeds, 1, make=unseen)
        hold = HoldPolicy(world.hold_action)
        floors["hold"] = run(hold, "hold still", seeds, 1, make=unseen)
    expert = None
    if with_expert:
        slot = unseen()
        expert = run(ExpertPolicy(config.env, [slot]), "expert", seeds, 1, make=[slot])
        slot.close()

    report = reports.build_report(
        evaluation,
        axes,
        floors=floors,
        expert=expert,
        single=single,
        limits=motion_limits(config, world),
    )
    report |= {
        "title": envs.find(config.env).gym_id,
        "subtitle": _subtitle(config, policy, options),
        "environment": {"name": config.env, "options": options},
    } | _account(config, policy, evaluation, single)
    report["comparisons"] = _compared(report, others)
    videos = film(config, evaluation, blind, bars)
    strip = imagined_strip(policy, config.env, options, evaluation.episodes[0])
    shown = next((e for e in evaluation.episodes if e.success), evaluation.episodes[0])
    reports.write_report(
        report,
        config.out,
        videos=videos,
        strips=[strip] if strip is not None else [],
        view=top_view(config, evaluation, blind) if has_tip else None,
        trace=joint_trace(shown, axes, evaluation.fps),
    )
    return reports.strict(report)


def _run_imagined(
    config: EvaluateConfig,
    policy: Policy,
    world: ImaginedWorld,
    seeds: list[int],
    others: dict[str, dict[str, Any]],
    bars: _Bars,
) -> dict[str, Any]:
    """`run_evaluation` in the imagination of a world model.

    Raises:
        ValueError: the expert or no slot is asked for, or the policy is for another robot.
    """
    if config.expert:
        raise ValueError(
            f"{config.env} is imagined, and the expert reads the simulator: expert=null"
        )
    if config.num_envs < 1:
        raise ValueError(f"expected num_envs >= 1, found {config.num_envs}")
    _require_fitting(policy, world, config.env)
    # In rounds of equal size, so that few slots run idle.
    rounds = -(-len(seeds) // config.num_envs)
    together = -(-len(seeds) // rounds)
    folder = config.env.partition(":")[2]

    def run(
        policy: Policy, title: str, seeds: list[int], slots: int, films: Films | None = None
    ) -> Evaluation:
        made = world.vector(slots)
        with bars.bar(title, len(seeds)) as advance:

            def ended(episode: Episode) -> None:
                advance()
                if films is not None:
                    films.keep(1 + seeds.index(episode.seed), episode)

            return evaluate(
                policy,
                made if films is None else films.over(made),
                seeds,
                max_steps=world.max_steps,
                on_episode=ended,
            )

    filming = config.videos and world.spec.cameras
    films = Films(world.spec.cameras[0], config.videos) if filming else None
    evaluation = run(policy, "policy", seeds, together, films)
    single = None
    if config.latency_episodes:
        single = run(policy, "latency, one arm", seeds[: config.latency_episodes], 1)
    floors: dict[str, Evaluation] = {}
    if config.floors:
        box = world.action_space
        floors["random"] = run(RandomPolicy(box.low, box.high), "random", seeds, together)
        if world.hold is not None:
            floors["hold"] = run(HoldPolicy(world.hold), "hold still", seeds, together)
    report = reports.build_report(
        evaluation,
        world.axes,
        floors=floors,
        single=single,
        limits=motion_limits(config, world.spec),
    )
    report |= {
        "title": f"{world.title}, imagined",
        "subtitle": _subtitle(
            config,
            policy,
            {k: v for k, v in world.options.items() if k != "starts"}
            | {"cameras": list(world.spec.cameras), "image_size": world.checkpoint.spec.image_size},
            f"imagined by {folder}",
            *([world.note] if world.note else []),
        ),
        "environment": {
            "name": world.name,
            "options": world.options,
            "imagined": True,
            "world_model": {
                "checkpoint": folder,
                **world.settings,
                "stamp": world.checkpoint.stamp,
            },
        },
    } | _account(config, policy, evaluation, single)
    report["comparisons"] = _compared(report, others)
    shown = next((e for e in evaluation.episodes if e.success), evaluation.episodes[0])
    trace = joint_trace(shown, world.axes, evaluation.fps)
    trace.title += ", imagined"
    videos = [
        Video(
            title=f"Reset {number} of {len(seeds)}, imagined",
            frames=frames,
            fps=evaluation.fps,
            success=episode.success,
            caption=_caption(episode, evaluation.fps),
        )
        for number, episode, frames in (films.kept if films else [])
    ]
    reports.write_report(report, config.out, videos=videos, trace=trace)
    return reports.strict(report)


def _require_fitting(policy: Policy, world: ImaginedWorld, name: str) -> None:
    """Refuse a policy for another robot; it may look through fewer cameras than are imagined.

    Raises:
        SpecMismatchError: names the first difference.
    """
    spec: Spec | None = getattr(policy, "spec", None)
    if spec is None:
        return
    theirs = world.spec
    if set(spec.cameras) <= set(theirs.cameras):
        theirs = replace(theirs, cameras=spec.cameras)
    spec.require_same(theirs, "the checkpoint", f"environment {name}", image_size=False)


def _account(
    config: EvaluateConfig, policy: Policy, evaluation: Evaluation, single: Evaluation | None
) -> dict[str, Any]:
    """How a report was made, and whether slots side by side made a difference."""
    seeds = evaluation.seeds
    found: dict[str, Any] = {
        "stamp": stamp()
        | {
            "config": asdict(config),
            "seeds": {"first": seeds[0], "last": seeds[-1], "purpose": config.purpose},
            "checkpoint": getattr(policy, "stamp", None),
        }
    }
    if single is not None:
        # A batched matrix product rounds differently: say how much that matters.
        alone, beside = single.outcomes, evaluation.outcomes[: len(single.episodes)]
        found["single_slot"] = {"n": len(alone), "same_outcome": int((alone == beside).sum())}
    return found


def _compared(report: dict[str, Any], others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Folder -> paired difference to the evaluation that lies there."""
    mine = reports.strict(report)
    return {folder: reports.compare(mine, other) for folder, other in others.items()}


def imagined_strip(
    policy: Policy, env_name: str, options: dict[str, Any], episode: Episode
) -> Strip | None:
    """What the policy's world model expects to see, below what the camera saw.

    The expert plays the reset of `episode`; in a world without expert, the episode's own commands
    are sent again. The world model gets the first frames and the commands. None for a policy
    without a world model (``policy.imagine``) or without a camera.
    """
    imagine: Callable[..., tuple[np.ndarray, np.ndarray]] | None = getattr(policy, "imagine", None)
    if imagine is None or not options.get("cameras"):
        return None
    horizon = getattr(policy, "horizon", None)
    if horizon is not None and not horizon.future:
        return None  # trained without future frames: it acts, and imagines nothing
    env = envs.make(env_name, **options)
    observation, _ = env.reset(seed=episode.seed)
    by_expert = world_of(env).has_expert
    if by_expert:
        expert = envs.make_expert(env_name, env, seed=episode.seed)
        expert.reset()
    commands: list[np.ndarray] = []
    seen, over = [observation], False
    while not over:
        commands.append(expert.act() if by_expert else episode.commands[len(commands)])
        observation, _, terminated, truncated, _ = env.step(commands[-1])
        seen.append(observation)
        over = terminated or truncated
    env.close()
    images = {c: np.stack([o["pixels"][c] for o in seen]) for c in options["cameras"]}
    state = np.stack([o["agent_pos"] for o in seen])
    imagined, at = imagine(images, state, np.stack(commands))
    fps = float(env.metadata["render_fps"])
    real = images[options["cameras"][0]][at]
    return Strip(
        title="Imagined from the commands, beside what the camera saw",
        rows=np.stack([real, imagined]),
        labels=["camera", "imagined"],
        columns=[f"+{index / fps:.1f} s" for index in at],
        caption=f"A held-out reset played by {'the expert' if by_expert else 'the policy'}. The "
        "world model sees the first frames and the commands, never a later frame.",
    )


def film(
    config: EvaluateConfig, evaluation: Evaluation, options: dict[str, Any], bars: _Bars
) -> list[Video]:
    """The first successes and the first failures, replayed in a larger picture."""
    numbered = list(enumerate(evaluation.episodes, start=1))
    chosen = [
        pair
        for outcome in (True, False)
        for pair in [(i, e) for i, e in numbered if e.success == outcome][: config.videos]
    ]
    videos: list[Video] = []
    if not chosen:
        return videos
    env = envs.make(
        config.env,
        render_mode="rgb_array",
        **(options | {"render_size": config.video_size}),
    )
    with bars.bar("filming", len(chosen)) as advance:
        for number, episode in chosen:
            videos.append(
                Video(
                    title=f"Reset {number} of {len(numbered)}",
                    frames=replay(env, episode),
                    fps=evaluation.fps,
                    success=episode.success,
                    caption=_caption(episode, evaluation.fps),
                )
            )
            advance()
    env.close()
    return videos


def top_view(
    config: EvaluateConfig, evaluation: Evaluation, options: dict[str, Any], paths: int = 60
) -> TopView:
    """The fingertip's paths of the first episodes from above, the arm below the picture."""
    shown = evaluation.episodes[:paths]
    landmarks = []
    env = envs.make(config.env, **options)
    world: Any = env.unwrapped
    if hasattr(world, "post"):
        posts = []
        for episode in shown:
            env.reset(seed=episode.seed)
            posts.append(world.post[:2].copy())
        x, y = np.mean(posts, axis=0)
        landmarks.append(Landmark((-float(y), float(x)), world.POST_RADIUS, "#3D4B5C", "post"))
    env.close()
    return TopView(
        paths=[from_above(e) for e in shown],
        modes=[e.mode for e in shown],
        successes=[e.success for e in shown],
        landmarks=landmarks,
        unit="m, as the arm sees it",
        title=f"Fingertip from above, first {len(shown)} resets",
    )


def tip_position(env: gym.Env) -> np.ndarray:
    """Where the point between the fingertips is: ``[3]``, metres."""
    tip = world_of(env).tip
    assert tip is not None
    return tip


def from_above(episode: Episode) -> np.ndarray:
    """An episode's path ``[T + 1, 2]`` as the arm sees it: its left to the left, forward up."""
    assert episode.trace is not None, "evaluated without a trace"
    return np.stack([-episode.trace[:, 1], episode.trace[:, 0]], axis=1)


def joint_trace(episode: Episode, axes: Axes, fps: float) -> JointTrace:
    """Commands and motion of one episode, both in the time in which they were known."""
    return JointTrace(
        seconds=np.arange(episode.steps) / fps,
        commands=axes.commanded(episode),
        motion=episode.positions[:-1, axes.state],
        names=axes.names,
        chunk_starts=episode.chunk_starts,
        unit=axes.unit,
        title="Joints of the first solved reset" if episode.success else "Joints of a failed reset",
    )


def print_summary(report: dict[str, Any], out: Path, console: Console) -> None:
    """The report's main numbers as a table, and where the rest is."""
    table = Table(title=report["title"], title_justify="left", show_header=True)
    for column in ("", "solved", "rate", "95 % interval"):
        table.add_column(column)
    rows = {"policy": report["success"]}
    if report["expert"]:
        rows["expert"] = report["expert"]
    for name, value in (rows | report["floors"]).items():
        table.add_row(
            name,
            f"{value['k']} of {value['n']}",
            f"{value['rate']:.1%}",
            f"{value['low']:.1%} to {value['high']:.1%}",
        )
    console.print(table)
    shares = ", ".join(
        f"{k} {v:.0%}" for k, v in report["modes"]["shares"].items() if v is not None
    )
    if shares:
        console.print(f"ways of the successes: {shares}")
    latency = report["latency_ms"]
    if latency["p95"] is not None:
        console.print(f"chunk in {latency['p50']:.1f} ms (p95 {latency['p95']:.1f} ms)")
    for name, difference in report["comparisons"].items():
        console.print(
            f"minus {name}: {100 * difference['difference']:+.1f} points "
            f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
        )
    console.print(f"report: {out / 'report.html'}")


class _Bars:
    """Progress bars, or nothing where there is no display."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def bar(self, title: str, total: int) -> _Bar:
        return _Bar(self.progress, title, total)


class _Bar:
    """One bar; entering it gives the function that advances it by one."""

    def __init__(self, progress: Progress | None, title: str, total: int) -> None:
        self.progress, self.title, self.total = progress, title, total

    def __enter__(self) -> Callable[[], None]:
        if self.progress is None:
            return lambda: None
        progress, task = self.progress, self.progress.add_task(self.title, total=self.total)
        return lambda: progress.advance(task)

    def __exit__(self, *_: object) -> None:
        return None


def _subtitle(config: EvaluateConfig, policy: Policy, options: dict[str, Any], *notes: str) -> str:
    steps = getattr(getattr(policy, "config", None), "steps", None)
    parts = [f"policy {policy.name}" + (f", {steps} sampling steps" if steps else ""), *notes]
    parts += [f"{k} {v}" for k, v in options.items() if k not in ("cameras", "image_size")]
    if size := options.get("image_size"):
        cameras = " and ".join(options.get("cameras") or ["no"])
        parts.append(f"{cameras} camera at {'x'.join(str(s) for s in np.atleast_1d(size))} px")
    parts.append(f"{config.purpose} resets, block {config.seed}")
    return ", ".join(parts)


def _caption(episode: Episode, fps: float) -> str:
    way = f"{episode.mode}, " if episode.mode else ""
    if episode.success_step is not None:
        return f"{way}solved after {episode.success_step / fps:.1f} s"
    distance = f"{100 * episode.distance:.0f} cm to go" if episode.distance >= 0 else "not solved"
    return f"{way}{distance} after {episode.steps / fps:.1f} s"


def _read_report(path: Path) -> dict[str, Any]:
    file = path / "report.json" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"compare: there is no report at {file}; give the folder that an evaluation wrote"
        )
    return json.loads(file.read_text())


def new_progress(console: Console) -> Progress:
    """The bars that this script shows."""
    return Progress(
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate")
def run(config: DictConfig) -> None:
    console = Console()
    try:
        settings = cast(EvaluateConfig, OmegaConf.to_object(config))
        if not is_imagined(settings.env):
            envs.find(settings.env)
        acting = policy_config(settings)
        device = str(choose_device(settings.device))
        policy = FlowPolicy.from_checkpoint(settings.checkpoint, acting, device)
        out = Path(settings.out)
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(OmegaConf.to_yaml(config))
        with new_progress(console) as progress:
            report = run_evaluation(settings, policy, progress)
    except MissingMandatoryValue as error:
        console.print(f"[bold red]Missing:[/] {error.full_key}=..., see --help", highlight=False)
        sys.exit(1)
    except (CheckpointError, SpecMismatchError, ReplayError, ValueError, OSError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    print_summary(report, out, console)


def main() -> None:
    refuse_unknown_keys(EvaluateConfig, sys.argv[1:], ("joint_limits",))
    run()


if __name__ == "__main__":
    main()
