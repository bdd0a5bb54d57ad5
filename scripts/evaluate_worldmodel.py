"""Judge a world model: what it predicts, and what that is worth to control.

::

    python -m scripts.evaluate_worldmodel checkpoint=outputs/push_run env=push out=outputs/judged

writes ``report.json``, ``report.html`` and ``report.png`` into ``out``, with ``config.yaml``. What
each part means stands in `policies.judge.report`. Everything is measured on resets that no dataset
of `scripts.collect` holds. A part that was measured is kept in ``out/parts``, so that the same
command goes on where it was stopped; where weights, settings or code have changed since, the parts
that they concern are measured anew. What a world or a model does not allow is not run, and the
report says why.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

import envs
from policies.judge.media import BranchPicture
from policies.judge.report import SideBySide, completed, write_worldmodel_report
from policies.judge.targets import PARTS, Estimate, asked, checkpoints, not_run, with_interval
from worldmodel.checkpoint import Checkpoint, CheckpointError, find, open_checkpoint
from worldmodel.stamp import stamp
from worldmodel.types import SpecMismatchError

from ._cli import refuse_unknown_keys
from ._judge import Judge, NotRunError
from ._judge_config import WorldmodelConfig, checked_parts
from ._kept import Kept, Measured, Picture
from .evaluate import new_progress
from .train import choose_device

ConfigStore.instance().store(name="evaluate_worldmodel_schema", node=WorldmodelConfig)

VALUES = ("value", "low", "high")
COLUMNS = ("prediction", "action_following", "branching", "drift", "frames_per_s")
"""Parts that other checkpoints are judged by too: those that need no policy."""
TWINS = {"decision_lift": "exploitability", "exploitability": "decision_lift"}
"""Parts that are measured together."""
FAILED = "failed with"
"""So begins why a part was not run that broke off."""


def judge(
    config: WorldmodelConfig, checkpoint: Checkpoint, console: Console, progress: Progress
) -> dict[str, Any]:
    """Measure all parts, write the report, return it.

    Raises:
        worldmodel.types.SpecMismatchError: the world, a policy or another checkpoint does not fit.
        ValueError: a setting that means nothing.
    """
    out = Path(config.out)
    wanted = checked_parts(config)
    report: dict[str, Any] = {
        "title": f"{envs.find(config.env).gym_id}, imagined",
        "subtitle": _subtitle(config, checkpoint),
        "name": config.name,
        "stamp": stamp() | {"config": asdict(config), "checkpoint": checkpoint.stamp},
    }
    with ExitStack() as stack:
        worker = Judge(config, checkpoint, progress)
        stack.callback(worker.close)
        beside = {}
        for name, path in (config.columns or {}).items():
            beside[name] = Judge(config, open_checkpoint(path, device=worker.device), progress)
            stack.callback(beside[name].close)
        # Another robot's policy is refused now rather than after an hour.
        if "return_correlation" in wanted:
            for path in config.policies or []:
                worker.policy(path)
        if {"decision_lift", "exploitability"} & set(wanted):
            assert worker.proposer
        parts, pictures = _measured(worker, wanted, Kept(out / "parts"), console)
        report |= parts
        columns = {}
        for name, other in beside.items():
            kept = Kept(out / "parts" / name.replace("/", "_"))
            some = [p for p in wanted if p in COLUMNS]
            columns[name], _ = _measured(other, some, kept, console)
    if columns:
        report["columns"] = columns
    write_worldmodel_report(
        report,
        out,
        videos=[p for p in pictures if isinstance(p, SideBySide)],
        branches=[p for p in pictures if isinstance(p, BranchPicture)],
    )
    return completed(report)


def _measured(
    worker: Judge, wanted: Sequence[str], kept: Kept, console: Console
) -> tuple[dict[str, Any], list[Picture]]:
    """Parts by name, and the pictures that belong to them; what is kept is not measured again."""
    parts: dict[str, Any] = {}
    pictures: list[Picture] = []
    for part in PARTS:  # what was measured before stays in the report, as long as it still holds
        if part not in wanted:
            before = kept.read(part, worker.key(part)) or Measured({"not_run": "not asked for"})
            parts[part] = before.part
            pictures += before.pictures
    todo = []
    for part in wanted:
        try:
            worker.require(part)
            todo.append(part)
        except NotRunError as error:
            parts[part] = {"not_run": str(error)}
    for part in todo:
        key = worker.key(part)
        found = None if worker.config.fresh else kept.read(part, key)
        if found is None:
            if changed := kept.differences(part, key):
                console.print(f"{PARTS[part]}: measured anew, other {' and '.join(changed)}")
            try:
                found = worker.measure(part)
                kept.write(part, key, found)
                if twin := TWINS.get(part):  # measured already
                    kept.write(twin, worker.key(twin), worker.measure(twin))
            except NotRunError as error:
                found = Measured({"not_run": str(error)})
            except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
                # What takes hours is not lost to one part of it; the command fails at its end.
                console.print_exception()
                found = Measured({"not_run": f"{FAILED} {type(error).__name__}: {error}"})
        parts[part] = found.part
        pictures += found.pictures
    return parts, pictures


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


def failures(report: Mapping[str, Any]) -> list[str]:
    """Parts that broke off with an error, of all checkpoints."""
    return [
        f"{name}: {part}"
        for name, parts in checkpoints(report).items()
        for part in PARTS
        if (not_run(parts.get(part)) or "").startswith(FAILED)
    ]


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate_worldmodel")
def run(values: DictConfig) -> None:
    console = Console()
    try:
        config = cast(WorldmodelConfig, OmegaConf.to_object(values))
        envs.find(config.env)
        checked_parts(config)
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
    except KeyboardInterrupt:
        console.print(
            f"Stopped. {config.out}/parts holds what is measured; the same command goes on."
        )
        sys.exit(130)
    except (CheckpointError, SpecMismatchError, ValueError, OSError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    print_summary(report, out, console)
    if broken := failures(report):
        console.print(f"[bold red]Failed:[/] {escape(', '.join(broken))}", highlight=False)
        sys.exit(1)


def main() -> None:
    refuse_unknown_keys(WorldmodelConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
