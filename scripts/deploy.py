"""Drive an arm behind a rosbridge with a trained policy.

::

    python -m scripts.deploy checkpoint=outputs/reach_run robot=bench check=true
    python -m scripts.deploy checkpoint=outputs/reach_run robot=bench dry_run=true
    python -m scripts.deploy checkpoint=outputs/reach_run robot=bench

Nothing moves before the operator types ``a`` (arm). Whatever goes wrong ends motion, with the
reason shown; then it takes another ``a``. None of this is a safety function: keep the robot's own
emergency stop within reach.
"""

from __future__ import annotations

import math
import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import cv2
import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from envs.ros.arm import RosArm
from envs.ros.errors import BridgeError
from envs.ros.recording import RunRecorder
from envs.ros.robot import Description, RobotConfig
from policies.deployment.gates import GateConfig
from policies.deployment.inference import InferenceError, InferenceProcess
from policies.deployment.runtime import Runtime, RuntimeConfig, State
from policies.flow_policy import PolicyConfig
from policies.safety import SafetyFilter
from worldmodel.checkpoint import CheckpointError, find
from worldmodel.types import Spec, SpecMismatchError

from ._arm import BridgedArm, joint_limits, workspace
from ._cli import refuse_unknown_keys
from .train import choose_device


@dataclass
class DeployConfig:
    """What drives which arm, and how.

    Attributes:
        checkpoint: a run's folder or one of its checkpoints.
        robot: see `envs.ros.robot.RobotConfig`; ``robot=NAME`` takes one of ``configs/robot``.
        runtime: see `policies.deployment.runtime.RuntimeConfig`.
        gates: see `policies.deployment.gates.GateConfig`.
        task: the text that the policy reads; "" where it knows one task only.
        steps: sampling steps per chunk.
        check: look only: topics, joints, rates, ages, pictures; then end.
        dry_run: everything but sending.
        arm: arm at once, without an operator: for simulated arms.
        seconds: end after so long; null: when the operator quits.
        delay_s: added to every inference, to rehearse a slower machine.
        record: new folder for a recording of the run, a ROS 2 bag (MCAP); null: none. Without a
            checkpoint, what the arm does is recorded and nothing is commanded.
        out: folder for the pictures of `check`.
        device: "auto", "cpu", "cuda", ...
    """

    checkpoint: str | None = None
    robot: RobotConfig = field(default_factory=RobotConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    gates: GateConfig = field(default_factory=GateConfig)
    task: str = ""
    steps: int = 2
    check: bool = False
    dry_run: bool = False
    arm: bool = False
    seconds: float | None = None
    delay_s: float = 0.0
    record: str | None = None
    out: str = "outputs/deploy"
    device: str = "auto"


ConfigStore.instance().store(name="deploy_schema", node=DeployConfig)

LOOK_S = 3.0
"""How long `check` watches the topics."""
DESCRIPTION_S = 5.0
"""How long the robot's description is waited for."""
RECORD_HZ = 20.0
"""Frames a second of a recording without a policy."""
KEYS = {"a": "arm", " ": "hold", "s": "stop", "c": "clear"}
WORDS = "keys: [b]a[/] arm   [b]space[/] hold   [b]s[/] stop   [b]c[/] clear a stop   [b]q[/] quit"


def described(arm: RosArm) -> Description | None:
    """What the robot says of itself.

    Raises:
        ValueError: its description did not come.
    """
    try:
        return arm.description(DESCRIPTION_S)
    except TimeoutError as error:
        raise ValueError(
            f"{arm.config.description}: no description of the robot came in {DESCRIPTION_S:g} s; "
            "without one, set robot.description=null (then the limits of the configuration count "
            "alone)"
        ) from error


def require_same_robot(spec: Spec, config: RobotConfig) -> None:
    """Refuse a policy that was trained on another robot.

    Raises:
        SpecMismatchError: says which of the two is which.
    """
    if spec.robot_type and config.type and spec.robot_type != config.type:
        raise SpecMismatchError(
            f"robot {config.name} does not fit the checkpoint: robot.type is {config.type!r}, "
            f"expected {spec.robot_type!r}"
        )


def check(arm: RosArm, spec: Spec, out: Path, console: Console) -> list[str]:
    """Look at everything that the arm says, without commanding it.

    Returns:
        What is not as it has to be.
    """
    wrong: list[str] = []
    try:
        description = described(arm)
        limits = joint_limits(arm.config, description)
    except ValueError as error:
        wrong.append(str(error))
        description, limits = None, joint_limits(arm.config, None)
    arrivals: dict[str, dict[int, float]] = {name: {} for name in ("joints", *arm.cameras)}
    begin = time.monotonic()
    while time.monotonic() - begin < LOOK_S:
        state = arm.read()
        seen = {"joints": state.joints} | dict(state.images)
        for name, one in seen.items():
            if one is not None:
                arrivals[name][one.sequence] = one.arrival
        time.sleep(0.005)
    state, now = arm.read(), time.monotonic()
    if state.problem:
        wrong.append(state.problem)
    table = Table("source", "topic", "messages/s", "age", title="topics", title_justify="left")
    topics = {"joints": arm.config.joint_states}
    topics |= {name: camera.topic for name, camera in arm.config.cameras.items()}
    for name, topic in topics.items():
        times = sorted(arrivals[name].values())
        if not times:
            wrong.append(f"{name}: nothing came on {topic} in {LOOK_S:g} s")
            table.add_row(name, topic, "-", "never")
            continue
        rate = (max(arrivals[name]) - min(arrivals[name])) / max(times[-1] - times[0], 1e-9)
        table.add_row(name, topic, f"{rate:.1f}", f"{1e3 * (now - times[-1]):.0f} ms")
    console.print(table)
    joints = Table(
        "joint", "feature", "measured", "low", "high", "velocity", "acceleration", "jerk",
        title="joints, in the order in which they are commanded", title_justify="left",
    )  # fmt: skip
    for i, joint in enumerate(arm.config.joints):
        here = "-" if state.joints is None else f"{state.joints.value[i]:+.4f}"
        numbers = (
            f"{v[i]:.4g}"
            for v in (
                limits.low,
                limits.high,
                limits.velocity,
                limits.acceleration,
                limits.jerk,
            )
        )
        joints.add_row(joint.name, arm.axes[i], here, *numbers)
        if state.joints is not None and not (
            limits.low[i] <= state.joints.value[i] <= limits.high[i]
        ):
            wrong.append(f"{joint.name} is measured at {here}, beyond its limits")
    console.print(joints)
    console.print(
        "Move each joint by hand, in the robot's own teaching mode: its number has to grow in the "
        "direction that the data calls positive."
    )
    if tuple(spec.action_names) != arm.axes:
        wrong.append(
            f"the checkpoint's actions are {list(spec.action_names)}, the arm's {list(arm.axes)}"
        )
    if missing := [c for c in spec.cameras if c not in arm.cameras]:
        wrong.append(f"the checkpoint sees cameras {missing}, which the robot does not have")
    for name, image in state.images.items():
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"camera_{name}.png"
        height, width = spec.image_size
        eyes = cv2.resize(image.value, (width, height), interpolation=cv2.INTER_AREA)
        shown = cv2.resize(eyes, image.value.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(path), np.hstack([image.value, shown])[..., ::-1])
        console.print(f"{name}: what it shows, and what the policy sees of it: {path}")
    return wrong


class Keys:
    """What the operator types: single keys at a terminal, lines elsewhere."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.quit = runtime, threading.Event()
        self._ended = threading.Event()

    def _take(self, text: str) -> None:
        for key in text:
            if key == "q":
                self.quit.set()
            elif key in KEYS:
                self.runtime.request(KEYS[key])

    def _read(self) -> None:
        while not self._ended.is_set():
            ready, _, _ = select.select([sys.stdin], [], [], 0.1)
            if ready:
                data = os.read(sys.stdin.fileno(), 64)
                if not data:
                    return
                self._take(data.decode(errors="ignore"))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen on a thread."""
        if sys.stdin is None or sys.stdin.closed:
            yield
            return
        before = None
        if sys.stdin.isatty():
            before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        thread = threading.Thread(target=self._read, name="operator", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            if before is not None:
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


COLOURS = {State.RUNNING: "green", State.ARMED: "yellow", State.READY: "cyan"}


def view(runtime: Runtime, arm: RosArm) -> Group:
    """What the operator sees."""
    figures, now = runtime.figures, time.monotonic()
    colour = COLOURS.get(runtime.state, "red")
    reading = arm.read()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("link", f"connection {arm.generation}" if arm.generation else "[red]none[/]")
    if reading.joints is not None:
        facts.add_row("joints", f"{1e3 * (now - reading.joints.arrival):.0f} ms old")
    for name, image in reading.images.items():
        facts.add_row(f"camera {name}", f"{1e3 * (now - image.arrival):.0f} ms old")
    latency = list(figures.latency_ms)[-50:]
    if latency:
        stages = ", ".join(f"{n} {v:.0f}" for n, v in figures.stages_ms.items())
        facts.add_row("chunks", f"{np.median(latency):.0f} ms from observation ({stages})")
        facts.add_row("", f"{figures.chunks} taken, {figures.refused} refused")
    late = list(figures.lateness_ms)[-200:]
    if late:
        facts.add_row("clock", f"late by {np.median(late):.1f} ms, at most {max(late):.1f}")
    clips = ", ".join(f"{n} {c}" for n, c in figures.clips.most_common(6))
    facts.add_row("clipped", clips or "nothing")
    events = Table.grid(padding=(0, 2))
    for event in list(runtime.events)[-6:]:
        events.add_row(f"-{now - event.at:.1f} s", event.state.value, escape(event.what))
    head = f"[bold {colour}]{runtime.state.value}[/] {escape(runtime.reason)}"
    if runtime.dry_run:
        head = f"[bold]dry run:[/] {head}"
    return Group(head, facts, events, WORDS)


def drive(config: DeployConfig, console: Console) -> Runtime:
    """Connect, open the checkpoint, and run until the end.

    Raises:
        SpecMismatchError, ValueError, BridgeError, InferenceError: before anything is sent.
    """
    out = Path(config.out)
    assert config.checkpoint is not None
    if config.robot.interface != "joint_trajectory" and not (config.check or config.dry_run):
        raise ValueError(
            f"robot.interface={config.robot.interface} is not built for driving: such a controller "
            "takes one point at a time and stops in a step where the next one does not come. Use a "
            "joint_trajectory_controller; check=true and dry_run=true work"
        )
    with ExitStack() as stack:
        arm = RosArm(config.robot)
        arm.start()
        stack.callback(arm.close)
        description = described(arm)
        limits = joint_limits(config.robot, description)
        box = workspace(config.robot, description)
        inference = InferenceProcess(
            str(find(config.checkpoint)),
            PolicyConfig(steps=config.steps),
            str(choose_device(config.device)),
            config.delay_s,
        )
        stack.callback(inference.close)
        require_same_robot(inference.spec, config.robot)
        if config.check:
            if wrong := check(arm, inference.spec, out, console):
                raise ValueError("not ready: " + "; ".join(wrong))
            console.print("[green]ready[/]")
            raise SystemExit(0)
        safety = SafetyFilter(limits, 1 / config.runtime.controller_hz, box)
        recorder = None
        if config.record is not None:
            recorder = stack.enter_context(
                new_recorder(config, arm, inference.spec.fps, inference.spec.cameras)
            )
        runtime = Runtime(
            BridgedArm(arm, None if recorder is None else recorder.observe),
            inference,
            safety,
            config.runtime,
            config.gates,
            task=config.task,
            dry_run=config.dry_run,
            recorder=recorder,
        )
        keys = Keys(runtime)
        end = None if config.seconds is None else time.monotonic() + config.seconds

        def over() -> bool:
            if config.arm and runtime.state is State.READY and not runtime.figures.chunks:
                runtime.request("arm")
            return keys.quit.is_set() or (end is not None and time.monotonic() > end)

        live = stack.enter_context(Live(console=console, refresh_per_second=4, transient=True))
        drawn = [0.0]

        def shown(_: Runtime) -> None:
            if time.monotonic() - drawn[0] > 0.25:
                drawn[0] = time.monotonic()
                live.update(view(runtime, arm))

        with keys.listening():
            runtime.run(over, shown)
    return runtime


def new_recorder(
    config: DeployConfig, arm: RosArm, fps: float, cameras: Sequence[str]
) -> RunRecorder:
    """What writes the run down."""
    assert config.record is not None
    return RunRecorder(
        config.record,
        axes=arm.axes,
        joints=config.robot.names,
        cameras=cameras,
        fps=fps,
        robot=config.robot.name,
        robot_type=config.robot.type,
        task=config.task,
        dry_run=config.dry_run,
    )


def watch(config: DeployConfig, console: Console) -> None:
    """Record what the arm does, driven by somebody else, until the end; command nothing.

    Raises:
        ValueError: nowhere to record to.
    """
    if config.record is None:
        raise ValueError(
            "checkpoint=DIR is missing, a policy to drive with; or record=DIR, to record without"
        )
    with ExitStack() as stack:
        arm = RosArm(config.robot)
        arm.start()
        stack.callback(arm.close)
        recorder = stack.enter_context(new_recorder(config, arm, RECORD_HZ, arm.cameras))
        end = math.inf if config.seconds is None else time.monotonic() + config.seconds
        console.print(f"recording into {config.record}; Ctrl-C ends it", highlight=False)
        try:
            while time.monotonic() < end and arm.generation:
                recorder.observe(arm.read())
                time.sleep(0.25 / RECORD_HZ)
        except KeyboardInterrupt:
            pass
        ended = recorder.close()
    console.print(
        f"{sum(ended.written.values())} messages in {config.record}"
        + (f"; {escape(ended.problem)}" if ended.problem else ""),
        highlight=False,
    )
    console.print(
        f"python -m scripts.import_bag source={config.record} robot={config.robot.name} makes a "
        "dataset of it",
        highlight=False,
    )


def summary(runtime: Runtime, console: Console) -> None:
    """How it went, in a few lines."""
    f = runtime.figures
    console.print(f"{runtime.state.value}: {runtime.reason or 'ended'}", highlight=False)
    if f.latency_ms:
        p50, p95, p99 = np.percentile(list(f.latency_ms), [50, 95, 99])
        console.print(
            f"{f.chunks} chunks taken, {f.refused} refused; from observation to hand-over "
            f"{p50:.0f} / {p95:.0f} / {p99:.0f} ms (p50 / p95 / p99)",
            highlight=False,
        )
    if f.lateness_ms:
        p50, p95, p99 = np.percentile(list(f.lateness_ms), [50, 95, 99])
        console.print(
            f"{f.sent} trajectories sent in {f.ticks} periods, late by {p50:.1f} / {p95:.1f} / "
            f"{p99:.1f} ms",
            highlight=False,
        )


@hydra.main(version_base="1.3", config_path="../configs", config_name="deploy")
def run(values: DictConfig) -> None:
    console = Console()
    try:
        config = cast(DeployConfig, OmegaConf.to_object(values))
        if config.checkpoint is None:
            return watch(config, console)
        runtime = drive(config, console)
    except (
        CheckpointError, SpecMismatchError, ValueError, OSError, BridgeError, InferenceError,
    ) as error:  # fmt: skip
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    summary(runtime, console)


def main() -> None:
    refuse_unknown_keys(DeployConfig, sys.argv[1:], ("robot",))
    run()


if __name__ == "__main__":
    main()
