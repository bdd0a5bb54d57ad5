"""Does Self-Flow help? The same data, model, seeds and resets; only the objective differs.

::

    python -m scripts.compare train.data.root=DIR out=outputs/compare steps=800

Each arm trains with a constant schedule and is judged by its EMA weights, so that one run gives the
result at equal steps and, read at another step, at equal wall-clock: seconds per step are measured
interleaved, all arms in one process. ``out`` gets ``compare.json``, ``compare.md`` (the table) and
``compare.png`` (success over minutes). Interrupted, the same command goes on.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape

import envs
from envs.world import collected_options
from policies.evaluation import episode_seeds, evaluate
from policies.flow_policy import FlowPolicy, PolicyConfig
from policies.smoothness import rms_jerk
from policies.statistics import paired_difference, wilson
from worldmodel.data import Data, Orders, open_data
from worldmodel.model import WorldModel
from worldmodel.selfflow import SelfFlow
from worldmodel.stamp import stamp
from worldmodel.tokens import Horizon
from worldmodel.train import choose_dtype, make_optimizers

from ._cli import refuse_unknown_keys
from .evaluate import (
    EvaluateConfig,
    axes_of,
    environment_options,
    world_of,
)
from .train import TrainConfig, train


@dataclass
class Arm:
    """One row of the table.

    Attributes:
        objective: "flow", "dts", "selfflow" or "regression".
        video: train the patterns with future video too; without, only those that act.
        teacher_time: of `ObjectiveConfig`.
    """

    objective: str = "flow"
    video: bool = True
    teacher_time: str = "min"


@dataclass
class CompareConfig:
    """What to compare; values in ``configs/compare.yaml``.

    Attributes:
        train: everything that the arms share.
        arms: name -> `Arm`; the first one is the baseline.
        seeds: of training, all arms with each.
        steps: optimiser steps of every arm, at which they are compared.
        curve: shares of `steps` at which the curve has further points.
        env, options: the world to judge in.
        episodes: reported resets, evaluated once per final number.
        curve_episodes: resets of another block, for the points of the curve.
        sampling_steps, execute: of the policy.
        cost_steps: optimiser steps per arm that the cost is measured over.
        workers: processes that judge.
        costs_only: measure the cost of a step of each arm, print it, and stop.
        out: folder.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    arms: dict[str, Arm] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    steps: int = 800
    curve: list[float] = field(default_factory=lambda: [0.4, 0.7])
    env: str = "reach_around"
    options: dict[str, Any] = field(default_factory=dict)
    episodes: int = 200
    curve_episodes: int = 100
    sampling_steps: int = 2
    execute: int = 8
    cost_steps: int = 32
    workers: int = 2
    costs_only: bool = False
    out: str = "outputs/compare"


ConfigStore.instance().store(name="compare_schema", node=CompareConfig)

ACTING = ("act", "act_prefix")


def arm_config(config: CompareConfig, arm: Arm, seed: int, out: Path, steps: int) -> TrainConfig:
    """The training configuration of one arm and seed."""
    run = copy.deepcopy(config.train)
    run.seed, run.out, run.steps, run.minutes, run.resume = seed, str(out), steps, None, True
    patterns = run.objective.patterns
    if not arm.video:
        patterns = {k: v for k, v in patterns.items() if k in ACTING}
    run.objective = replace(
        run.objective, name=arm.objective, patterns=patterns, teacher_time=arm.teacher_time
    )
    diagnose = max(1, config.steps // 6) if arm.objective == "selfflow" else 0
    run.fit = replace(run.fit, schedule="constant", diagnose_every=diagnose, validate_every=0)
    return run


def measure_costs(config: CompareConfig, data: Data) -> dict[str, float]:
    """Mean seconds a step of every arm, interleaved, without the slowest tenth; see below."""
    arms: dict[str, Any] = {}
    device = torch.device("cpu")
    dtype = choose_dtype(config.train.fit.dtype, device)
    for name, arm in config.arms.items():
        run = arm_config(config, arm, 0, Path("unused"), 1)
        d = run.data
        horizon = Horizon(d.past, d.past_stride, d.future, d.future_stride, d.chunk)
        objective = SelfFlow(WorldModel(data.spec, horizon, run.model, 0), run.objective, 0)
        arms[name] = objective, make_optimizers(objective, run.fit)
    sources = set().union(*(objective.sources for objective, _ in arms.values()))
    orders = Orders(data.train, config.train.fit.batch_size, 0, sources)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for step in range(config.cost_steps + 3):
        for name, (objective, optimizers) in arms.items():
            begin = time.perf_counter()
            chosen = objective.choose(step)
            ahead = np.array(chosen.offsets) if chosen.has_future else None
            indices = orders.batch(chosen.source, step)
            window = data.train.batch(indices, future=chosen.has_future, offsets=ahead)
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                losses = objective.losses(window, chosen, step)
            losses.total.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            objective.after_step(step)
            if step >= 3:
                seconds[name].append(time.perf_counter() - begin)
    # Patterns cost differently and are drawn at random, so the mean over the same draws counts;
    # trimming takes out what other processes did to single steps.
    return {name: float(trimmed_mean(values)) for name, values in seconds.items()}


def trimmed_mean(values: list[float], share: float = 0.1) -> float:
    """Mean without the largest `share` of the values."""
    kept = sorted(values)[: max(1, round(len(values) * (1 - share)))]
    return float(np.mean(kept))


@dataclass
class Judged:
    """What became of one reset.

    Attributes:
        success, mode: whether the arm got there, and on which way.
        rms_jerk: of the commands, in rad/s^3 over all joints (m/s^3 where they move the hand).
    """

    success: bool
    mode: str
    rms_jerk: float


def drive(run: str, config: CompareConfig, seeds: list[int]) -> list[Judged]:
    """Outcome of each reset, in a process of its own."""
    torch.set_num_threads(1)
    policy = FlowPolicy.from_checkpoint(
        run, PolicyConfig(steps=config.sampling_steps, execute=config.execute)
    )
    shown = collected_options(policy.stamp.get("environment") or {})
    for name, value in config.options.items():
        if shown.get(name) != value:
            raise ValueError(
                f"the demonstrations show {name}={shown.get(name)}, but options.{name} is {value}: "
                f"collect with options={{{name}:{value}}}"
            )
    world = EvaluateConfig(checkpoint=run, env=config.env, options=config.options)
    options = environment_options(world, policy)
    result = evaluate(policy, lambda: envs.make(config.env, **options), seeds, num_envs=16)
    probe = envs.make(config.env, **(options | {"cameras": []}))
    axes = axes_of(world_of(probe))
    probe.close()
    return [
        Judged(e.success, e.mode, rms_jerk(axes.commanded(e), result.fps)) for e in result.episodes
    ]


def judge(config: CompareConfig, run: Path, episodes: int, purpose: str) -> dict[str, Any]:
    """Success of a run's last checkpoint. Results do not depend on the number of processes."""
    seeds = episode_seeds(episodes, 0, purpose)
    workers = max(1, min(config.workers, episodes))
    shares = [seeds[i::workers] for i in range(workers)]
    context = multiprocessing.get_context("forkserver")  # a fork would copy OpenGL's state
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        parts = list(pool.map(drive, [str(run)] * workers, [config] * workers, shares))
    found: list[Judged] = [parts[i % workers][i // workers] for i in range(episodes)]
    modes = [one.mode for one in found if one.success]
    return {
        "success": wilson(len(modes), episodes).to_dict(),
        "outcomes": [int(one.success) for one in found],
        "modes": {m: modes.count(m) for m in sorted(set(modes))},
        "rms_jerk": float(np.mean([one.rms_jerk for one in found])),
        "purpose": purpose,
    }


def asymmetry(metrics: Path) -> dict[str, list[list[float]]]:
    """From a run's ``metrics.jsonl``: modality -> [step, teacher's median cosine], all patterns."""
    found: dict[str, list[list[float]]] = {}
    for line in map(json.loads, metrics.read_text().splitlines()):
        values: dict[str, list[float]] = {}
        for key, value in line.items():
            parts = key.split("/")  # pattern / modality, itself with a slash for cameras / name
            if parts[-1] == "asymmetry":
                values.setdefault("/".join(parts[1:-1]), []).append(value)
        for name, cosines in values.items():
            found.setdefault(name, []).append([line["step"], float(np.mean(cosines))])
    return found


def compare(config: CompareConfig, console: Console) -> dict[str, Any]:
    """Run what is missing, then put the table together."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    data = open_data(config.train.data)
    costs_path = out / "costs.json"
    if not costs_path.exists():
        costs_path.write_text(json.dumps(measure_costs(config, data), indent=2))
    costs = json.loads(costs_path.read_text())
    baseline = next(iter(config.arms))
    for name, seconds in costs.items():
        ratio = seconds / costs[baseline]
        console.print(f"{name}: {1e3 * seconds:.0f} ms a step, {ratio:.2f} of {baseline}")
    if config.costs_only:
        return {"costs": costs}
    points: dict[str, dict[int, tuple[int, str]]] = {}
    for name in config.arms:
        equal_time = round(config.steps * costs[baseline] / costs[name])
        table = {round(config.steps * c): (config.curve_episodes, "sweep") for c in config.curve}
        table |= dict.fromkeys((equal_time, config.steps), (config.episodes, "reported"))
        points[name] = dict(sorted(table.items()))
    for seed in config.seeds:
        for name, arm in config.arms.items():
            run = out / "runs" / f"{name}-{seed}"
            for steps, (episodes, purpose) in points[name].items():
                path = run / f"judged-{steps}.json"
                if path.exists():
                    continue
                console.print(f"{name}, seed {seed}, to step {steps}", highlight=False)
                fitted = train(arm_config(config, arm, seed, run, steps), Console(quiet=True), data)
                if fitted.signal:
                    raise KeyboardInterrupt
                if fitted.steps != steps:
                    raise ValueError(
                        f"{run} is at step {fitted.steps} already, so step {steps} cannot be "
                        "judged any more; use another out="
                    )
                judged = judge(config, run, episodes, purpose)
                path.write_text(json.dumps(judged))
                s = judged["success"]
                console.print(f"  {s['k']} of {s['n']}", highlight=False)
    result = gather(config, costs, points, out)
    (out / "compare.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    (out / "compare.md").write_text(table_of(result))
    draw(result, out / "compare.png")
    return result


def gather(
    config: CompareConfig, costs: dict[str, float], points: dict[str, dict], out: Path
) -> dict[str, Any]:
    """All results and paired differences to the baseline, as one JSON-ready dict."""
    baseline = next(iter(config.arms))
    judged = {
        (name, seed, steps): json.loads(
            (out / "runs" / f"{name}-{seed}" / f"judged-{steps}.json").read_text()
        )
        for name in config.arms
        for seed in config.seeds
        for steps in points[name]
    }
    rows = {}
    for name in config.arms:
        equal_time = round(config.steps * costs[baseline] / costs[name])
        row: dict[str, Any] = {
            "seconds_per_step": costs[name],
            "relative_cost": costs[name] / costs[baseline],
            "curve": {
                str(seed): [
                    [s * costs[name] / 60, judged[name, seed, s]["success"]["rate"]]
                    for s in points[name]
                ]
                for seed in config.seeds
            },
        }
        for reading, steps in (("equal_steps", config.steps), ("equal_wall_clock", equal_time)):
            results = [judged[name, seed, steps] for seed in config.seeds]
            k = sum(r["success"]["k"] for r in results)
            n = sum(r["success"]["n"] for r in results)
            rates = [r["success"]["rate"] for r in results]
            ours = np.concatenate([r["outcomes"] for r in results])
            base = np.concatenate(
                [judged[baseline, seed, config.steps]["outcomes"] for seed in config.seeds]
            )
            row[reading] = {
                "steps": steps,
                "seeds": [r["success"] for r in results],
                "mean": float(np.mean(rates)),
                "spread": float(np.std(rates, ddof=1)) if len(rates) > 1 else 0.0,
                "rms_jerk": [r["rms_jerk"] for r in results],
                "pooled": wilson(k, n).to_dict(),
                "minus_baseline": paired_difference(ours, base).to_dict(),
                "modes": [r["modes"] for r in results],
            }
        if config.arms[name].objective == "selfflow":
            row["asymmetry"] = {
                str(seed): asymmetry(out / "runs" / f"{name}-{seed}" / "metrics.jsonl")
                for seed in config.seeds
            }
        rows[name] = row
    return {
        "baseline": baseline,
        "rows": rows,
        "steps": config.steps,
        "seeds": config.seeds,
        "episodes": config.episodes,
        "options": config.options,
        "stamp": stamp(),
    }


def table_of(result: dict[str, Any]) -> str:
    """The table in Markdown: every seed, at equal steps and at equal wall-clock."""
    seeds = ", ".join(f"seed {s}" for s in result["seeds"])
    lines = [
        f"| objective | cost of a step | equal steps ({result['steps']}): {seeds} | mean | minus "
        f"{result['baseline']} [95 %] | equal wall-clock: {seeds} | mean | minus "
        f"{result['baseline']} [95 %] | RMS jerk, rad/s^3 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        cells = [name, f"{row['relative_cost']:.2f}"]
        for reading in ("equal_steps", "equal_wall_clock"):
            r = row[reading]
            d = {k: 100 * v for k, v in r["minus_baseline"].items() if k != "n"}
            gap = f"{d['difference']:+.1f} [{d['low']:+.1f}, {d['high']:+.1f}]"
            cells += [
                ", ".join(f"{s['k']}/{s['n']}" for s in r["seeds"]),
                f"{100 * r['mean']:.1f} %",
                "" if name == result["baseline"] else gap,
            ]
        cells.append(f"{np.mean(row['equal_steps']['rms_jerk']):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    taught: dict[tuple[str, str], dict[int, list[float]]] = {}
    for name, row in result["rows"].items():
        for curves in row.get("asymmetry", {}).values():
            for modality, curve in curves.items():
                for step, cosine in curve:
                    taught.setdefault((name, modality), {}).setdefault(int(step), []).append(cosine)
    if taught:
        steps = sorted({step for curve in taught.values() for step in curve})
        lines += [
            "",
            "Teacher's median cosine between the two views (above 0.97 there is nothing to learn), "
            "mean of all patterns and seeds:",
            "",
            "| objective | tokens | " + " | ".join(f"step {s}" for s in steps) + " |",
            "|---|---|" + "---|" * len(steps),
        ]
        for (name, modality), curve in taught.items():
            means = [f"{np.mean(curve[s]):.3f}" if s in curve else "" for s in steps]
            lines.append("| " + " | ".join([name, modality, *means]) + " |")
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Success over minutes of training: thin lines are seeds, thick ones their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=150)
    colours = ["#2457D6", "#109AA5", "#E58A00", "#C2255C", "#8B5CD6", "#8795A5"]
    for (name, row), colour in zip(result["rows"].items(), colours, strict=False):
        curves = [np.array(c) for c in row["curve"].values()]
        for c in curves:
            axes.plot(c[:, 0], 100 * c[:, 1], color=colour, alpha=0.25, lw=1)
        mean = np.mean(curves, axis=0)
        axes.plot(mean[:, 0], 100 * mean[:, 1], "o-", color=colour, lw=2.2, ms=4, label=name)
    axes.set(xlabel="minutes of training on this machine", ylabel="success, %", ylim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare")
def run(values: Any) -> None:
    config: Any = OmegaConf.to_object(values)
    console = Console()
    try:
        compare(config, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        sys.exit(130)
    except (ValueError, OSError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    if not config.costs_only:
        console.print((Path(config.out) / "compare.md").read_text(), highlight=False)


def main() -> None:
    refuse_unknown_keys(CompareConfig, sys.argv[1:], ("model", "objective"))
    run()


if __name__ == "__main__":
    main()
