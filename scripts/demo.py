"""The whole loop on one page: collect, train, drive the arm, imagine, report.

``make demo``, or ``python -m scripts.demo``. Each stage is the same code as its own script; a demo
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .collect import CollectConfig, collect
from .evaluate import EvaluateConfig, new_progress, print_summary, run_evaluation
from .train import TrainConfig, train


@dataclass
class DemoConfig:
    """The demo's stages; values in ``configs/demo.yaml``.

    Attributes:
        out: folder of everything that the demo makes.
        fresh: start over although `out` holds an earlier demo.
        collect, train, evaluate: the stages' own configurations.
    """

    out: str = "outputs/demo"
    fresh: bool = True
    collect: CollectConfig = field(default_factory=CollectConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


ConfigStore.instance().store(name="demo_schema", node=DemoConfig)


def peak_memory_gb() -> float:
    """Largest resident memory of this process and, apart, of any child, summed, in GB."""
    own, children = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return (own + children) * 1024 / 1e9


def demo(config: DemoConfig, console: Console) -> dict[str, Any]:
    """Run all stages; returns the report, also written to ``out/report.json``."""
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
    train(config.train, console)
    lap("train")

    from policies.flow_policy import FlowPolicy, PolicyConfig

    console.rule("3/3  held-out resets: drive the arm, imagine, judge")
    e = config.evaluate
    policy = FlowPolicy.from_checkpoint(
        e.checkpoint, PolicyConfig(steps=e.steps, execute=e.execute, prefix=e.prefix)
    )
    with new_progress(console) as progress:
        report = run_evaluation(e, policy, progress)
    lap("evaluate")
    report["seconds_total"] = round(time.perf_counter() - start, 1)
    report["seconds_by_stage"] = seconds
    report["peak_memory_gb"] = round(peak_memory_gb(), 2)
    path = Path(config.out) / "report.json"
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def clear(out: Path) -> None:
    """Remove an earlier demo's stages (never anything else) from `out`."""
    import shutil

    for name in ("demonstrations", "train"):
        shutil.rmtree(out / name, ignore_errors=True)


@hydra.main(version_base="1.3", config_path="../configs", config_name="demo")
def main(values: Any) -> None:
    config: Any = OmegaConf.to_object(values)
    console = Console()
    out = Path(config.out)
    if config.fresh:
        clear(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        report = demo(config, console)
    except KeyboardInterrupt:
        console.print("stopped; `python -m scripts.demo fresh=false` goes on from here")
        sys.exit(130)
    print_summary(report, out, console)
    minutes, rest = divmod(report["seconds_total"], 60)
    console.print(
        f"{int(minutes)}:{int(rest):02d} minutes in all {report['seconds_by_stage']}, "
        f"peak memory {report['peak_memory_gb']} GB",
        highlight=False,
    )


if __name__ == "__main__":
    main()
