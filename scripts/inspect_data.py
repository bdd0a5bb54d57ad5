"""What to know about LeRobot datasets before training on them.

::

    python -m scripts.inspect_data data.root=DIR out=outputs/inspect

prints a report and writes ``inspect.json`` (every number), ``inspect.png`` (one page) and, with
``html=true``, ``inspect.html``. ``data.root`` is what ``scripts.train`` takes. Numbers are read
from the parquet files, and a few frames are decoded: seconds, whatever the size of the videos.
Nothing is written into the dataset. Exit code 1 where there is no dataset to read; a dataset that
cannot be trained on as it is gets its report, which says so.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from policies.data_page import LEVEL_NAMES, Trace, write_inspection
from policies.demonstrations import paths_of, smoothness
from policies.figure import METRIC_NAMES
from policies.report import strict
from worldmodel.data import DataConfig, DatasetError, KeysConfig
from worldmodel.data.advice import mend_first, notices, training_commands, training_settings
from worldmodel.data.inspect import SATURATED, inspect_cameras, inspect_recording, sample_frames
from worldmodel.data.recording import Recording, Span, read_recording
from worldmodel.progress import clock
from worldmodel.stamp import stamp

from ._cli import refuse_unknown_keys

TRACED = 8  # dimensions in the picture of one episode
PRINTED = 40  # rows of a table; the rest is in inspect.json


@dataclass
class InspectedData:
    """What to look at; as in `worldmodel.data.DataConfig`."""

    root: Any = None
    keys: KeysConfig = field(default_factory=KeysConfig)
    episodes: Any = None
    action_free: Any = None


@dataclass
class InspectDataConfig:
    """Attributes:
    data: see `InspectedData`.
    shown: episodes of which frames are shown, evenly spread.
    html: also write ``inspect.html``.
    out: folder.
    """

    data: InspectedData = field(default_factory=InspectedData)
    shown: int = 4
    html: bool = False
    out: str = "outputs/inspect"


ConfigStore.instance().store(name="inspect_data_schema", node=InspectDataConfig)


def inspect(config: InspectDataConfig) -> tuple[dict[str, Any], dict[str, Path]]:
    """Look at the data and write what was found.

    Returns:
        The content of ``inspect.json``, and the files that were written.

    Raises:
        DatasetError: one of its family: there is no dataset, or it cannot be read.
        ValueError: a setting that makes no sense, or `out` lies in a dataset.
    """
    if config.shown < 1:
        raise ValueError(f"shown is {config.shown}; at least 1 episode is shown")
    wanted = DataConfig(**vars(config.data))
    recording = read_recording(wanted)
    out = Path(config.out).expanduser()
    refuse_inside(out, recording)
    samples = sample_frames(recording, config.shown)
    facts = inspect_recording(recording)
    cameras = inspect_cameras(recording, samples)
    settings = training_settings(facts, cameras, wanted)
    found = notices(facts, cameras)
    report = strict(
        headlines(facts)
        | facts
        | {
            "cameras": cameras,
            "smoothness": {
                "commands": smoothness_of(recording, facts, "action"),
                "motion": smoothness_of(recording, facts, "state"),
            },
            "notices": [asdict(notice) for notice in found],
            "mend_first": mend_first(found, settings),
            "settings": settings,
            "commands": training_commands(facts, settings),
            "stamp": stamp(),
        }
    )
    trace = trace_of(recording, facts)
    return report, write_inspection(report, out, samples, trace, html=config.html)


def refuse_inside(out: Path, recording: Recording) -> None:
    """Datasets are only read.

    Raises:
        ValueError: `out` is a dataset's folder or lies in it.
    """
    for source in recording.sources:
        if out.resolve().is_relative_to(source.root.resolve()):
            raise ValueError(
                f"out={out} lies in the dataset {source.root}, which is only read; choose another "
                "folder, such as out=outputs/inspect"
            )


def headlines(facts: dict[str, Any]) -> dict[str, str]:
    """The two lines at the top of the page."""
    datasets = facts["datasets"]
    robots = sorted({d["robot_type"] for d in datasets if d["robot_type"]})
    rates = sorted({d["fps"] for d in datasets})
    sizes = [
        f"{len(facts[role]['dimensions'])} {role}s" for role in ("state", "action") if facts[role]
    ]
    texts = [t["text"] for t in facts["tasks"] if t["text"]]
    task = f"“{texts[0]}”" if len(texts) == 1 else f"{len(texts)} tasks"
    return {
        "title": ", ".join(Path(d["name"]).name or d["name"] for d in datasets),
        "subtitle": "; ".join([", ".join(robots) or "robot not named", *([task] if texts else [])]),
        "headline": f"{facts['episodes']:,} episodes",
        "headline_facts": ", ".join(
            [
                f"{facts['frames']:,} frames",
                f"{clock(facts['seconds'])} at {' and '.join(f'{r:g}' for r in rates)} fps",
                *sizes,
            ]
        ),
    }


def smoothness_of(recording: Recording, facts: dict[str, Any], role: str) -> dict[str, Any] | None:
    """See `policies.demonstrations.smoothness`; None where there is no such vector.

    Of actions only demonstrations are judged; ``episodes`` still has a place for every episode.
    """
    if not facts[role]:
        return None
    values = getattr(recording, role)
    spans = recording.shown if role == "action" else recording.spans
    paths = paths_of(
        [values[span.rows] for span in spans],
        facts[role]["dimensions"],
        deltas=role == "action" and facts["semantics"]["guess"] == "delta",
    )
    labels = [recording.label(span) for span in spans]
    found = smoothness(paths, [span.fps for span in spans], labels)
    if found is not None:
        for name, values in found["episodes"].items():
            known = dict(zip(labels, values, strict=True))
            found["episodes"][name] = [known.get(recording.label(s), nan) for s in recording.spans]
    return found


def trace_of(recording: Recording, facts: dict[str, Any]) -> Trace | None:
    """The episode of median length: the dimensions that move most, for their own range."""
    order = sorted(recording.shown or recording.spans, key=lambda s: s.seconds)
    span: Span = order[len(order) // 2]
    columns: dict[str, dict[str, np.ndarray]] = {}
    moved: dict[str, float] = {}
    for role in ("action", "state"):
        values, names = getattr(recording, role), getattr(recording, f"{role}_names")
        columns[role] = {}
        for d, name in enumerate(names):
            path, known = values[span.rows, d], facts[role]["dimensions"][d]
            if known["constant"] or not np.isfinite(path).all():
                continue
            columns[role][name] = path
            share = float(np.ptp(path)) / (known["max"] - known["min"])
            moved[name] = max(share, moved.get(name, 0.0))
    if not moved:
        return None
    # Those with the largest share of their range, in the dataset's order.
    most = sorted(moved, key=lambda name: -moved[name])[:TRACED]
    return Trace(
        seconds=np.arange(span.length) / span.fps,
        names=[name for name in moved if name in most],
        action=columns["action"],
        state=columns["state"],
        title=f"{recording.label(span).capitalize()}, the one of median length",
    )


# --- what is printed -----------------------------------------------------------------------------


def print_report(report: dict[str, Any], console: Console) -> None:
    """The report for a terminal, from the content of ``inspect.json``."""
    console.rule(f"[bold]{escape(report['title'])}", align="left")
    print_overview(report, console)
    print_cameras(report, console)
    print_vectors(report, console)
    print_semantics(report, console)
    print_smoothness(report, console)
    print_notices(report, console)
    print_commands(report, console)


def print_overview(report: dict[str, Any], console: Console) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for d in report["datasets"]:
        robot = d["robot_type"] or "robot not named"
        table.add_row(
            "dataset",
            escape(
                f"{d['name']}: {robot}, {d['episodes']:,} episodes, {d['frames']:,} frames, "
                f"{clock(d['seconds'])} at {d['fps']:g} fps, fingerprint {d['fingerprint']}"
            ),
        )
    frames, seconds = (report["lengths"][k] for k in ("frames", "seconds"))
    table.add_row(
        "length of an episode",
        f"{seconds['min']:.3g} / {seconds['median']:.3g} / {seconds['max']:.3g} s, "
        f"{frames['min']:.0f} / {frames['median']:.0f} / {frames['max']:.0f} frames "
        "(least, median, most)",
    )
    table.add_row("", bars(report["lengths"]["histogram"]))
    if timing := report["timing"]:
        table.add_row(
            "timestamps",
            f"off frame number / fps by {milliseconds(timing['max'])} at most, "
            f"{milliseconds(timing['p99'])} in 99 %; gaps: {timing['gaps']['count']}, "
            f"not later than the one before: {timing['backwards']}",
        )
    else:
        table.add_row("timestamps", "none recorded")
    for task in report["tasks"][:PRINTED]:
        text = escape(repr(task["text"])) if task["text"] else "none"
        table.add_row("task", f"{text}: {task['episodes']:,} episodes")
    if success := report["success"]:
        table.add_row(
            "success",
            f"{success['k']} of {success['n']} episodes, "
            f"{report['kinds']['success_frames']:,} frames ({escape(success['key'])})",
        )
    else:
        table.add_row("success", "not recorded")
    if (kinds := report["kinds"])["exploratory"] or kinds["action_free"]:
        table.add_row(
            "kinds of episodes",
            f"{kinds['demonstrations']:,} demonstrations, {kinds['exploratory']:,} exploratory, "
            f"{kinds['action_free']:,} without actions",
        )
    if still := report["still"]:
        table.add_row(
            "standing still",
            f"{100 * still['share']:.1f} % of the frames; at the start "
            f"{still['start']['median']:.2f} s (most {still['start']['max']:.2f} s), at the end "
            f"{still['end']['median']:.2f} s (most {still['end']['max']:.2f} s), medians",
        )
    same = report["duplicates"]
    if same["repeated_frames"] is not None:
        table.add_row(
            "repetition",
            f"{100 * same['repeated_frames']:.1f} % of the frames equal the one before; "
            f"{len(same['episodes'])} episodes equal another one",
        )
    console.print(table, highlight=False)


def print_cameras(report: dict[str, Any], console: Console) -> None:
    if not report["cameras"]:
        console.print("\nno camera", highlight=False)
        return
    table = sheet("camera", "pixels", "stored as", "MB", "files", "looks")
    for camera in report["cameras"]:
        faults = [f"{k} in {len(camera[k])} of {camera['sampled']}" for k in ("black", "frozen")
                  if camera[k]]  # fmt: skip
        stored = camera["stored"]
        if camera["codec"]:
            stored = f"{camera['codec']} {camera['pixel_format']} {number(camera['fps'])} fps"
        table.add_row(
            escape(camera["name"]),
            f"{camera['width']}x{camera['height']}",
            stored,
            number(camera["megabytes"]),
            number(camera["files"]),
            f"[bold yellow]{', '.join(faults)}[/]" if faults else "fine",
        )
    console.print(table, highlight=False)


def print_vectors(report: dict[str, Any], console: Console) -> None:
    for role in ("state", "action"):
        vector = report[role]
        if vector is None:
            console.print(f"\nno {role}", highlight=False)
            continue
        unit = f"unit {vector['unit']}" if vector["unit"] else (
            f"unit not recorded; the ranges would fit {vector['unit_guess']}"
        )  # fmt: skip
        console.print(f"\n[bold]{role}[/] ({escape(vector['key'])}); {escape(unit)}",
                      highlight=False)  # fmt: skip
        table = sheet("", "min", "1 %", "mean", "std", "99 %", "max", "")
        for d in vector["dimensions"][:PRINTED]:
            table.add_row(
                escape(d["name"]),
                *(number(d[k]) for k in ("min", "q01", "mean", "std", "q99", "max")),
                remarks(d),
            )
        if len(vector["dimensions"]) > PRINTED:
            table.add_row(f"and {len(vector['dimensions']) - PRINTED} more")
        console.print(table, highlight=False)


def remarks(d: dict[str, Any]) -> str:
    """What is special about a dimension."""
    words = []
    if d["constant"]:
        words.append("constant")
    elif d["switch"]:
        words.append("switch")
    elif d["saturated"]:
        ends = [f"{100 * d[k]:.0f} % {k.replace('_', ' ')}" for k in ("at_min", "at_max")
                if d[k] >= SATURATED]  # fmt: skip
        words += ["saturated:", *ends]
    if d["not_finite"]:
        words.append(f"{d['not_finite']} NaN/inf")
    return " ".join(words)


def print_semantics(report: dict[str, Any], console: Console) -> None:
    semantics = report["semantics"]
    if semantics["stated"] == "unknown":
        meaning = f"{semantics['guess']} (a guess; data.action_kind=auto decides: "
        meaning += f"{semantics['auto']})\nbecause"
    else:
        meaning = f"{semantics['stated']}, as the dataset says\nas for the motion,"
    console.print(
        f"\n[bold]what actions mean[/]: {meaning} {escape(semantics['reason'])}",
        highlight=False,
    )
    if semantics["lag_seconds"] is not None:
        console.print(
            f"states are there {semantics['lag_seconds']:.2f} s later (median)", highlight=False
        )
    if not semantics["dimensions"]:
        return
    named = all(d["by"] in ("name", None) for d in semantics["dimensions"])
    alike = "change" if semantics["guess"] == "delta" else "state"
    other = [] if named else ["goes with change of" if alike == "change" else "most like state"]
    table = sheet("", *other, "at once", "at best", "after", "RMS off", "r", "r change")
    for d in semantics["dimensions"][:PRINTED]:
        explained = [d["explained"], d["explained_later"]]
        table.add_row(
            escape(d["name"]),
            *([] if named else [escape(d[alike] or "–")]),
            *("–" if v is None else f"{100 * v:.1f} %" for v in explained),
            "–" if d["lag_seconds"] is None else f"{d['lag_seconds']:.2f} s",
            *(number(d[k]) for k in ("error", "correlation", "change_correlation")),
        )
    table.caption = (
        "share of the action's variance that the state explains, and how far it is off, in the "
        "same frame and later; correlation with the state, and with its change"
    )
    console.print(table, highlight=False)


def print_smoothness(report: dict[str, Any], console: Console) -> None:
    kinds = {k: v for k, v in report["smoothness"].items() if v is not None}
    if not kinds:
        return
    table = sheet("smoothness, mean of the episodes", *kinds)
    shown = METRIC_NAMES | {"rms_jerk": "RMS jerk, units/s³", "action_tv": "speed, ranges a frame",
                            "action_tv_second": "change of speed, ranges a frame"}  # fmt: skip
    for metric in next(iter(kinds.values()))["mean"]:
        name = shown.get(metric, "mean speed, units/s")
        table.add_row(name, *(number(v["mean"][metric]) for v in kinds.values()))
    console.print(table, highlight=False)
    for kind, entry in kinds.items():
        worst = ", ".join(f"{r['label']} ({number(r['rms_jerk'])})" for r in entry["roughest"])
        added = ", changes added up" if entry["summed"] else ""
        console.print(
            escape(f"{kind}: {len(entry['names'])} dimensions{added}; roughest by RMS jerk: "
                   f"{worst}"),
            highlight=False,
        )  # fmt: skip


def print_notices(report: dict[str, Any], console: Console) -> None:
    colors = {"stop": "bold red", "warn": "bold yellow", "note": "dim"}
    console.print()
    if not report["notices"]:
        console.print("[green]nothing unusual was found")
    for notice in report["notices"]:
        console.print(
            f"[{colors[notice['level']]}]{LEVEL_NAMES[notice['level']]}[/]  "
            f"{escape(notice['text'])}",
            highlight=False,
        )


def print_commands(report: dict[str, Any], console: Console) -> None:
    console.print("\n[bold]to train" + (", once that is mended" if report["mend_first"] else ""))
    for what, key in (("seconds, to see that it fits", "trial"), ("a real run", "train")):
        console.print(f"[dim]# {what}", highlight=False)
        console.print(report["commands"][key], highlight=False, markup=False, soft_wrap=True)


def sheet(*headings: str) -> Table:
    """A table with one line under its head; numbers to the right, none of them broken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
                  caption_justify="left")  # fmt: skip
    for i, heading in enumerate(headings):
        table.add_column(
            heading,
            justify="right" if i and heading else "left",
            no_wrap=heading != "" or i == 0,
            overflow="ellipsis" if i == 0 else "fold",
        )
    return table


def bars(histogram: dict[str, list[float]]) -> str:
    """A histogram on one line: its ends, and a block a bar."""
    counts, edges = histogram["counts"], histogram["edges"]
    most = max(counts)
    blocks = "".join(" ▁▂▃▄▅▆▇█"[-(-8 * int(c) // int(most))] for c in counts)
    return f"{edges[0]:.3g} s {blocks} {edges[-1]:.3g} s"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds >= 1e-5 else "0 ms"


def number(value: float | None) -> str:
    """Three significant digits; a dash for what does not exist."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


@hydra.main(version_base="1.3", config_path="../configs", config_name="inspect_data")
def run(values: DictConfig) -> None:
    console = Console()
    try:
        config: Any = OmegaConf.to_object(values)
        with console.status("reading"):
            report, paths = inspect(config)
    except (DatasetError, OmegaConfBaseException, ValueError, OSError) as error:
        console.print(
            f"[bold red]{type(error).__name__}:[/] {escape(str(error))}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)
    print_report(report, console)
    console.print(
        "\n" + ", ".join(os.fspath(p) for p in paths.values()), highlight=False, soft_wrap=True
    )


def main() -> None:
    refuse_unknown_keys(InspectDataConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
