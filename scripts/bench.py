"""Drive the simulated arm through a real ROS 2 graph, beside the same policy in plain simulation.

::

    python -m scripts.bench checkpoint=outputs/reach_run resets=5
    python -m scripts.bench checkpoint=outputs/reach_run resets=50 'latency_ms=[0,100,200,400]'

``make bench`` does the first, ``make bench-full`` the second. The arm is a ROS 2 node in real time
behind a rosbridge server (`envs.ros.graph`), the policy is driven by `policies.deployment`; resets
are those of `scripts.evaluate`, so that all rows are paired. Without a checkpoint, a policy is
trained first, for a minute or two.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import envs
from envs.ros.arm import RosArm
from envs.ros.bridge import Bridge
from envs.ros.errors import BridgeError
from envs.ros.graph import RosGraph, RosGraphError, RosMissingError
from envs.ros.robot import RobotConfig
from policies.deployment.gates import GateConfig
from policies.deployment.inference import InferenceError, InferenceProcess
from policies.deployment.runtime import MOVING, Runtime, RuntimeConfig, State
from policies.evaluation import Evaluation, episode_seeds, evaluate
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.safety import SafetyFilter
from policies.smoothness import chunk_boundary_ratio, rms_jerk
from policies.statistics import paired_difference, proportion
from worldmodel.checkpoint import Checkpoint, CheckpointError, find, open_checkpoint
from worldmodel.stamp import stamp

from ._arm import BridgedArm, joint_limits
from ._cli import refuse_unknown_keys
from ._world import make_world, options_of
from .collect import CollectConfig, collect
from .evaluate import new_progress
from .train import TrainConfig, train

ROBOT = Path(__file__).parents[1] / "configs" / "robot" / "bench.yaml"


@dataclass
class BenchConfig:
    """What is driven, how often, and under what.

    Attributes:
        checkpoint: a run's folder or one of its checkpoints; null: one is trained first.
        env: the task; null: that of the checkpoint's demonstrations.
        resets: for each row.
        latency_ms: inference latencies that are added.
        prefix: actions that may be committed, each for a row: 0 is without real-time chunking.
        seconds: of an episode, at most.
        seed, purpose: which resets (see `policies.evaluation.episode_seeds`).
        steps: sampling steps per chunk.
        runtime, gates: see `scripts.deploy`.
        out: folder for ``bench.json``, and for the policy that is trained.
    """

    checkpoint: str | None = None
    env: str | None = None
    resets: int = 5
    latency_ms: list[float] = field(default_factory=lambda: [0.0])
    prefix: list[int] = field(default_factory=lambda: [8, 0])
    seconds: float = 10.0
    seed: int = 0
    purpose: str = "reported"
    steps: int = 2
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    out: str = "outputs/bench"


ConfigStore.instance().store(name="bench_schema", node=BenchConfig)


def bench_robot(url: str) -> RobotConfig:
    """The simulated arm, as ``configs/robot/bench.yaml`` has it, behind this bridge."""
    values = OmegaConf.merge(OmegaConf.structured(RobotConfig), OmegaConf.load(ROBOT))
    return replace(cast(RobotConfig, OmegaConf.to_object(values)), url=url)


def quick_policy(out: Path, console: Console) -> Path:
    """A run that reaches easy targets most of the time; trained once, then found again."""
    run = out / "policy"
    if (run / "checkpoints" / "last").exists():
        return run
    console.print("no checkpoint given: a policy for reach is trained first, for a minute or two")
    data = out / "demonstrations"
    if not (data / "meta" / "info.json").exists():
        wanted = CollectConfig(
            env="reach", episodes=400, image_size=48, cameras=["front"], out=str(data)
        )
        with new_progress(console) as progress:
            bar = progress.add_task("collect", total=wanted.episodes)
            collect(wanted, lambda done, _: progress.update(bar, completed=done))
    config = TrainConfig(out=str(run), steps=400)
    config.data.root, config.data.image_size, config.data.future = str(data), 48, 0
    config.model.patch = 12
    config.objective.name = "flow"
    config.objective.patterns = {"act": 0.6, "act_prefix": 0.4}
    config.fit.lr, config.fit.schedule = 0.003, "cooldown"
    train(config, console)
    return run


class Operator:
    """Stands beside the simulated arm: begins episodes and reads what the arm really did."""

    def __init__(self, url: str) -> None:
        self.bridge = Bridge(url, max_bytes=32 << 20)
        self._status = self.bridge.subscribe("/bench/status", "std_msgs/String")
        self._seed = self.bridge.advertise("/bench/reset", "std_msgs/Int64")
        self.bridge.start(10.0)

    @property
    def status(self) -> dict[str, Any]:
        """What the bench says of itself."""
        sample = self._status.wait(after=0, timeout=10.0)
        return json.loads(sample.value["data"])

    def reset(self, seed: int) -> None:
        """Begin the episode with this seed.

        Raises:
            TimeoutError: the bench does not follow.
        """
        deadline = time.monotonic() + 15.0
        while self.status["next_seed"] != seed:  # who has just advertised may not be heard yet
            if time.monotonic() > deadline:
                raise TimeoutError(f"the bench does not take seed {seed}: {self.status}")
            self._seed.publish({"data": seed})
            time.sleep(0.15)
        self.bridge.call("/reset_sim", "std_srvs/Trigger", timeout=10.0)
        while self.status["seed"] != seed:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the bench did not begin seed {seed}: {self.status}")
            time.sleep(0.05)

    def close(self) -> None:
        self.bridge.close()


@dataclass
class Driven:
    """One episode on the bench.

    Attributes:
        success: it was solved in time.
        reason: why it ended otherwise, or "".
        jerk: RMS of the commands at the policy's rate, rad/s^3.
        seam: mean step across chunk joins over that within chunks.
        consumed: actions of each chunk that had passed when it came.
    """

    success: bool
    reason: str
    jerk: float
    seam: float
    consumed: list[int]


def drive(
    arm: RosArm, inference: InferenceProcess, operator: Operator, safety: SafetyFilter,
    config: BenchConfig, runtime_config: RuntimeConfig, seed: int,
) -> Driven:  # fmt: skip
    """One episode."""
    operator.reset(seed)
    while inference.busy:  # the last episode's question is nobody's any more
        inference.poll()
        time.sleep(0.005)
    joins: list[float] = []
    commands: list[tuple[float, np.ndarray]] = []

    def note(kind: str, at: float, values: Any) -> None:
        if kind == "chunk":
            joins.append(at)
        elif kind == "point":
            commands.append((at, values["position"]))

    runtime = Runtime(
        BridgedArm(arm), inference, safety, replace(runtime_config, seed=seed % 2**31),
        config.gates, recorder=note,
    )  # fmt: skip
    began: list[float] = []
    asked = [time.monotonic()]

    def over() -> bool:
        now = time.monotonic()
        if runtime.state is State.RUNNING and not began:
            began.append(now)
        if runtime.state is State.READY and now > asked[-1] + 0.15:
            asked.append(now)  # until it is: joints have to be watched for a moment first
            runtime.request("arm")
        if now - (began or asked[:1])[0] > config.seconds:
            return True
        if began and runtime.state not in MOVING:
            return True
        return bool(operator.status["succeeded_s"])

    runtime.run(over)
    solved = operator.status["succeeded_s"]
    failed = [e.what for e in runtime.events if e.state in (State.HOLDING, State.STOPPED)]
    reason = failed[0] if failed and not solved and failed[0] != "the run-time ended" else ""
    jerk = seam = float("nan")
    fps = inference.spec.fps
    every = round(config.runtime.controller_hz / fps)
    path = np.array([position for _, position in commands][::every])
    if len(path) > 8:
        times = np.array([at for at, _ in commands][::every])
        jerk = rms_jerk(path[:, :-1], fps)
        starts = np.searchsorted(times, joins[1:])
        seam = chunk_boundary_ratio(path[:, :-1], starts[starts < len(path)])
    return Driven(bool(solved), reason, jerk, seam, list(runtime.figures.consumed))


def simulated(
    checkpoint: Checkpoint, env: str, seeds: list[int], config: BenchConfig
) -> Evaluation:
    """The same policy on the same resets, in plain simulation."""
    options = options_of(env, None, checkpoint)
    policy = FlowPolicy(checkpoint, PolicyConfig(steps=config.steps))
    return evaluate(policy, lambda: make_world(env, options), seeds, num_envs=min(25, len(seeds)))


def run_bench(config: BenchConfig, console: Console) -> dict[str, Any]:
    """Drive all rows, print and write them.

    Raises:
        ValueError, RosMissingError, RosGraphError, BridgeError, InferenceError: it cannot be.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    path = find(config.checkpoint or str(quick_policy(out, console)))
    checkpoint = open_checkpoint(path)
    source = checkpoint.stamp.get("environment") or {}
    env = config.env or source.get("env")
    if env is None:
        raise ValueError("the checkpoint does not say which task it is for: env=NAME")
    task = next(name for name in envs.TASKS if envs.find(name).gym_id == envs.find(env).gym_id)
    options = options_of(task, None, checkpoint)
    cameras, size = options.pop("cameras"), options.pop("image_size")
    seeds = episode_seeds(config.resets, config.seed, config.purpose)
    plain = simulated(checkpoint, task, seeds, config)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        graph = stack.enter_context(
            RosGraph(task, seed=0, options=options, cameras=cameras, image_size=size)
        )
        robot = bench_robot(graph.url)
        robot.cameras = {n: c for n, c in robot.cameras.items() if n in cameras}
        arm = RosArm(robot)
        arm.start(10.0)
        stack.callback(arm.close)
        operator = Operator(graph.url)
        stack.callback(operator.close)
        graph.wait_until_found()
        safety = SafetyFilter(joint_limits(robot, None), 1 / config.runtime.controller_hz)
        progress = stack.enter_context(new_progress(console))
        for latency in config.latency_ms:
            for prefix in config.prefix:
                acting = PolicyConfig(steps=config.steps)
                inference = InferenceProcess(str(path), acting, delay_s=latency / 1000)
                try:
                    how = replace(config.runtime, prefix=prefix)
                    bar = progress.add_task(f"{latency:g} ms, prefix {prefix}", total=len(seeds))
                    driven = []
                    for seed in seeds:
                        driven.append(drive(arm, inference, operator, safety, config, how, seed))
                        progress.advance(bar)
                finally:
                    inference.close()
                rows.append(row_of(latency, prefix, driven, plain))
    report = {
        "task": task,
        "simulated": plain.success.to_dict(),
        "simulated_jerk": float(
            np.nanmean([rms_jerk(e.commands[:, :-1], plain.fps) for e in plain.episodes])
        ),
        "rows": rows,
        "stamp": stamp() | {"checkpoint": checkpoint.stamp},
    }
    (out / "bench.json").write_text(json.dumps(report, indent=2, default=str) + "\n")
    show(report, console)
    console.print(f"report: {out / 'bench.json'}", highlight=False)
    return report


def worse(report: dict[str, Any]) -> list[str]:
    """Rows whose success is surely below that of plain simulation, in words."""
    return [
        f"{row['latency_ms']:g} ms, committed {row['prefix']}"
        for row in report["rows"]
        if row["minus_simulated"]["high"] < 0
    ]


def row_of(latency: float, prefix: int, driven: list[Driven], plain: Evaluation) -> dict[str, Any]:
    """One row: the bench beside plain simulation."""
    outcomes = np.array([d.success for d in driven])
    consumed = [c for d in driven for c in d.consumed[1:]]

    def mean(values: list[float]) -> float | None:
        known = [v for v in values if np.isfinite(v)]
        return float(np.mean(known)) if known else None

    return {
        "latency_ms": latency,
        "prefix": prefix,
        "success": proportion(outcomes).to_dict(),
        "minus_simulated": paired_difference(outcomes, plain.outcomes[: len(outcomes)]).to_dict(),
        "rms_jerk": mean([d.jerk for d in driven]),
        "chunk_boundary_ratio": mean([d.seam for d in driven]),
        "consumed": float(np.mean(consumed)) if consumed else None,
        "held": sorted({d.reason for d in driven if d.reason}),
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The rows as a table."""
    table = Table(title=f"{report['task']} through a real ROS 2 graph", title_justify="left")
    columns = ("added latency", "committed", "solved", "minus simulation")
    for column in (*columns, "actions passed", "RMS jerk", "seams"):
        table.add_column(column)
    plain = report["simulated"]
    table.add_row(
        "plain simulation", "", f"{plain['k']} of {plain['n']}", "", "",
        f"{report['simulated_jerk']:.0f}", "",
    )  # fmt: skip
    for row in report["rows"]:
        s, d = row["success"], row["minus_simulated"]
        table.add_row(
            f"{row['latency_ms']:g} ms",
            f"up to {row['prefix']}" if row["prefix"] else "none",
            f"{s['k']} of {s['n']}",
            f"{100 * d['difference']:+.0f} [{100 * d['low']:+.0f}, {100 * d['high']:+.0f}]",
            "-" if row["consumed"] is None else f"{row['consumed']:.1f}",
            "-" if row["rms_jerk"] is None else f"{row['rms_jerk']:.0f}",
            "-" if row["chunk_boundary_ratio"] is None else f"{row['chunk_boundary_ratio']:.2f}",
        )
    console.print(table)
    for row in report["rows"]:
        for reason in row["held"]:
            console.print(f"held at {row['latency_ms']:g} ms: {escape(reason)}", highlight=False)


@hydra.main(version_base="1.3", config_path="../configs", config_name="bench")
def run(values: DictConfig) -> None:
    console = Console()
    try:
        report = run_bench(cast(BenchConfig, OmegaConf.to_object(values)), console)
    except (
        CheckpointError, ValueError, OSError, BridgeError, InferenceError, RosMissingError,
        RosGraphError,
    ) as error:  # fmt: skip
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    if rows := worse(report):
        console.print(f"[bold red]worse than in simulation:[/] {'; '.join(rows)}", highlight=False)
        sys.exit(1)


def main() -> None:
    refuse_unknown_keys(BenchConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
