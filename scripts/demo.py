"""The whole loop on one page: collect, train, drive the arm, imagine, report.

``make demo``, or ``python -m scripts.demo``. Each stage is the same code as its own script; a demo
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import psutil
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from envs.rendering import RenderingUnavailableError
from policies.evaluation import ReplayError
from policies.flow_policy import FlowPolicy
from worldmodel.lock import require_free
from worldmodel.progress import clock
from worldmodel.stamp import command

from ._cli import refuse_unknown_keys
from .collect import CollectConfig, collect
from .evaluate import EvaluateConfig, new_progress, policy_config, print_summary, run_evaluation
from .train import EXPECTED, TrainConfig, choose_device, say, train


@dataclass
class DemoConfig:
    """The demo's stages; values in ``configs/demo.yaml``.

    Attributes:
        out: folder of everything that the demo makes.
        fresh: start over; null starts over if the demo in `out` has finished, else goes on with it.
        collect, train, evaluate: the stages' own configurations.
    """

    out: str = "outputs/demo"
    fresh: bool | None = None
    collect: CollectConfig = field(default_factory=CollectConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


ConfigStore.instance().store(name="demo_schema", node=DemoConfig)


class PeakMemory:
    """Peak of the memory of this process and all its descendants together; a context manager.

    A thread samples it. A page shared by several processes counts once in all (Linux calls this
    the proportional set size), so libraries that every worker has loaded are not counted again
    for each; mapped files, such as the frame cache, count as far as they are in memory.

    Args:
        every: seconds between two samples.

    Attributes:
        gb: the peak so far, in GB (10^9 bytes).
    """

    def __init__(self, every: float = 1.0) -> None:
        self.every = every
        self.gb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        own = psutil.Process()
        while True:
            total = 0
            for process in (own, *own.children(recursive=True)):
                # One that ended between being listed and being asked has no memory any more.
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_full_info().pss
            self.gb = max(self.gb, total / 1e9)
            if self._stop.wait(self.every):
                return


class InterruptedRunError(Exception):
    """A stage ended early because of `signal`, after saving what it had."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.signal = number


def demo(config: DemoConfig, console: Console) -> dict[str, Any]:
    """Run all stages; returns the report, also written to ``out/report.json``.

    Raises:
        KeyboardInterrupt, InterruptedRunError: stopped; the same command goes on.
    """
    with PeakMemory() as memory:
        return _demo(config, console, memory)


def _demo(config: DemoConfig, console: Console, memory: PeakMemory) -> dict[str, Any]:
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    mark = start

    def lap(name: str) -> None:
        nonlocal mark
        now = time.perf_counter()
        seconds[name], mark = round(now - mark, 1), now

    console.rule("1/3  demonstrations of the scripted expert")
    with Progress(
        TextColumn("collect"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("", total=config.collect.episodes)
        collected = collect(config.collect, lambda done, _: bar.update(task, completed=done))
    console.print(f"{collected.episodes} episodes, {collected.frames:,} frames -> {collected.root}")
    lap("collect")

    console.rule("2/3  one model learns to act and to imagine")
    trained = train(config.train, console)
    if trained.signal:
        raise InterruptedRunError(trained.signal)
    lap("train")

    console.rule("3/3  held-out resets: drive the arm, imagine, judge")
    e = config.evaluate
    device = str(choose_device(e.device))
    policy = FlowPolicy.from_checkpoint(e.checkpoint, policy_config(e), device)
    with new_progress(console) as progress:
        report = run_evaluation(e, policy, progress)
    lap("evaluate")
    report["seconds_total"] = round(time.perf_counter() - start, 1)
    report["seconds_by_stage"] = seconds
    report["peak_memory_gb"] = round(memory.gb, 2)
    path = Path(config.out) / "report.json"
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def clear(out: Path) -> None:
    """Remove an earlier demo's stages (never anything else) from `out`.

    Raises:
        LockedError: another demo is training there.
    """
    require_free(out / "train")
    (out / "report.json").unlink(missing_ok=True)
    for name in ("demonstrations", "train"):
        shutil.rmtree(out / name, ignore_errors=True)


@hydra.main(version_base="1.3", config_path="../configs", config_name="demo")
def run(values: DictConfig) -> None:
    console = Console()
    # Until training takes over the signals, SIGTERM ends like Ctrl-C: what is finished is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config: Any = OmegaConf.to_object(values)
        out = Path(config.out)
        finished = (out / "report.json").is_file()
        if config.fresh or (config.fresh is None and finished):
            clear(out)
        out.mkdir(parents=True, exist_ok=True)
        report = demo(config, console)
    except (KeyboardInterrupt, InterruptedRunError) as error:
        number = getattr(error, "signal", signal.SIGINT)
        say(console, "stopped; what is finished is kept. Go on with:", command())
        sys.exit(128 + number)
    except (*EXPECTED, RenderingUnavailableError, ReplayError) as error:
        say(console, f"[bold red]{type(error).__name__}:[/] {escape(str(error))}")
        sys.exit(1)
    print_summary(report, out, console)
    stages = ", ".join(f"{k} {clock(v)}" for k, v in report["seconds_by_stage"].items())
    say(
        console,
        f"in one picture: {out / 'report.png'}",
        f"{clock(report['seconds_total'])} in all ({stages}), "
        f"peak memory {report['peak_memory_gb']} GB",
    )


def main() -> None:
    refuse_unknown_keys(DemoConfig, sys.argv[1:], ("model", "objective", "joint_limits"))
    run()


if __name__ == "__main__":
    main()
