"""A recording on one page: what the cameras saw, how long, how far, how fast, and what to mind.

The numbers come from the dictionary that ``scripts.inspect_data`` puts together; pictures and one
episode's path, which are too long for it, come as `Samples` and `Trace`.
"""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from worldmodel.data.inspect import SATURATED, Samples

from .figure import (
    BAD,
    FAINT,
    GOOD,
    GRID,
    INK,
    LEGEND_PAD,
    MARGIN,
    MUTED,
    POLICY,
    STYLE,
    WAYS,
    WIDTH,
)
from .media import data_uri

ACTION, STATE = POLICY, WAYS[1]
LEVEL_COLORS = {"stop": BAD, "warn": WAYS[0], "note": FAINT}
LEVEL_NAMES = {"stop": "stops training", "warn": "warning", "note": "note"}
MOST_ROWS = 40  # of ranges in the picture
MOST_NOTICES = 12
TEMPLATES = Path(__file__).parent / "templates"

Panel = Callable[[Axes], None]


@dataclass(frozen=True)
class Trace:
    """One episode's numbers over time.

    Attributes:
        seconds: ``[T]``.
        names: one a row of the picture.
        action, state: name -> ``[T]``; either may lack a name.
        title: one line above it.
    """

    seconds: np.ndarray
    names: Sequence[str]
    action: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    title: str


GAP, GROUP_GAP, SIDE = 0.03, 0.16, 0.2
"""Between pictures, between episodes, and left of them: in widths of a picture."""


def _samples_size(samples: Samples) -> tuple[float, float]:
    """Width and height of all pictures together, in widths of a picture."""
    groups = [len(n) + GAP * (len(n) - 1) for n in samples.numbers]
    aspects = [_aspect(frames) for frames in samples.frames.values()]
    width = SIDE + sum(groups) + GROUP_GAP * (len(groups) - 1)
    return width, sum(aspects) + GAP * (len(aspects) - 1)


def _aspect(frames: list[list[np.ndarray]]) -> float:
    return frames[0][0].shape[0] / frames[0][0].shape[1]


def draw_samples(ax: Axes, samples: Samples) -> None:
    """A row a camera, a group of pictures an episode; one unit is one picture's width."""
    width, height = _samples_size(samples)
    several = len({span.root for span in samples.spans}) > 1
    inch = ax.get_position().width * WIDTH / width
    top = 0.0
    for camera, frames in samples.frames.items():
        aspect = _aspect(frames)
        name = _short(camera, max(3, int(aspect * inch / 0.1)))
        ax.text(
            -0.06, top - aspect / 2, name, rotation=90, ha="right", va="center", fontsize=10.5,
            weight="bold",
        )  # fmt: skip
        x = 0.0
        for episode in frames:
            for frame in episode:
                extent = (x, x + 1, top - aspect, top)
                ax.imshow(frame, extent=extent, interpolation="nearest")
                x += 1 + GAP
            x += GROUP_GAP - GAP
        top -= aspect + GAP
    x = 0.0
    for span, numbers in zip(samples.spans, samples.numbers, strict=True):
        for i, number in enumerate(numbers):
            ax.text(
                x + i * (1 + GAP) + 0.5, -height - 0.04, f"{number / span.fps:.1f} s",
                ha="center", va="top", fontsize=9, color=MUTED,
            )  # fmt: skip
        group = len(numbers) + GAP * (len(numbers) - 1)
        where = f" of dataset {span.root + 1}" if several else ""
        ax.text(
            x + group / 2, 0.05, f"episode {span.episode.number}{where}", ha="center",
            va="bottom", fontsize=10, color=MUTED,
        )  # fmt: skip
        x += group + GROUP_GAP
    ax.set_xlim(-SIDE, width - SIDE)
    ax.set_ylim(-height, 0)
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()


def draw_lengths(ax: Axes, report: dict[str, Any]) -> None:
    """How long the episodes are, in seconds."""
    lengths = report["lengths"]
    edges, counts = (np.array(lengths["histogram"][k]) for k in ("edges", "counts"))
    width = np.diff(edges)
    ax.bar(edges[:-1] + width / 2, counts, 0.9 * width, color=ACTION)
    median = lengths["seconds"]["median"]
    ax.axvline(median, color=INK, lw=1.2)
    ax.annotate(
        f"median {median:.3g} s, {lengths['frames']['median']:.0f} frames", (median, 1),
        xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points",
        ha="center", fontsize=9.5,
    )  # fmt: skip
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("seconds")
    ax.set_title("Length of the episodes", pad=LEGEND_PAD)


def draw_smoothness(ax: Axes, report: dict[str, Any]) -> None:
    """One dot an episode: how fast it moves, and how jerkily; the roughest have their name."""
    ax.set_title("Speed and jerk of every episode", pad=LEGEND_PAD)
    drawn = False
    for kind, color in (("motion", STATE), ("commands", ACTION)):
        entry = report["smoothness"][kind]
        if entry is None:
            continue
        speed, jerk = (_numbers(entry["episodes"][k]) for k in ("speed", "rms_jerk"))
        fine = np.isfinite(speed) & np.isfinite(jerk) & (jerk > 0)
        if not fine.any():
            continue
        drawn = True
        size = float(np.clip(900 / fine.sum(), 8, 36))
        ax.scatter(
            speed[fine], jerk[fine], s=size, color=color, alpha=0.7, lw=0,
            label="actions" if kind == "commands" else "states",
        )  # fmt: skip
        for entry_of in entry["roughest"][:1]:
            i = [row["label"] for row in report["rows"]].index(entry_of["label"])
            if fine[i] and fine.sum() > 1:
                ax.annotate(
                    _short(entry_of["label"], 24), (speed[i], jerk[i]),
                    xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9,
                    color=color,
                )  # fmt: skip
    if not drawn:
        _say(ax, "nothing moves")
        return
    values = [v for c in ax.collections for v in np.asarray(c.get_offsets())[:, 1]]
    if min(values) > 0 and max(values) / min(values) > 20:
        ax.set_yscale("log")
    ax.margins(x=0.2, y=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.grid()
    ax.set_xlabel("mean speed, units/s")
    ax.set_ylabel("RMS jerk, units/s³")
    _legend(ax)


def draw_trace(ax: Axes, trace: Trace) -> None:
    """One episode: rows of lines, each within its own range."""
    for y, name in enumerate(trace.names):
        lines = [p for p in (trace.action.get(name), trace.state.get(name)) if p is not None]
        low = min(float(np.nanmin(p)) for p in lines)
        high = max(float(np.nanmax(p)) for p in lines)
        span = high - low if high > low else 1.0
        ax.axhline(-y - 0.5, color=GRID, lw=1, zorder=0)
        for values, color, width in (
            (trace.state.get(name), STATE, 2.4), (trace.action.get(name), ACTION, 1.2),
        ):  # fmt: skip
            if values is not None:
                ax.plot(
                    trace.seconds, -y - 0.4 + 0.8 * (values - low) / span, color=color, lw=width
                )
    if trace.action:
        ax.plot([], [], color=ACTION, lw=1.4, label="actions")
    if trace.state:
        ax.plot([], [], color=STATE, lw=2.4, label="states")
    ax.set_yticks([-y for y in range(len(trace.names))], [_short(n, 20) for n in trace.names])
    ax.tick_params(axis="y", labelsize=9)
    ax.set_ylim(-len(trace.names) + 0.45, 0.5)
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.01)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.set_xlabel("seconds; every row within its own range")
    ax.set_title(trace.title, pad=LEGEND_PAD)
    _legend(ax)


def range_rows(report: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, action's facts or {}, state's facts or {}), actions first."""
    action, state = (
        {d["name"]: d for d in report[role]["dimensions"]} if report[role] else {}
        for role in ("action", "state")
    )
    return [(name, action.get(name, {}), state.get(name, {})) for name in {**action, **state}]


def draw_ranges(ax: Axes, report: dict[str, Any]) -> None:
    """All values thin, 1-99 % thick, the mean a dot; every row between its own extremes."""
    every = range_rows(report)
    rows = every[:MOST_ROWS]
    left = -ax.get_position().x0 * WIDTH / (ax.get_position().width * WIDTH)
    left += MARGIN / (ax.get_position().width * WIDTH)  # the page's margin, in widths of the axes
    ax.set_title("Ranges, every row between its own extremes", pad=LEGEND_PAD + 4, x=left)
    follows = {d["name"]: d for d in report["semantics"]["dimensions"]}
    for y, (name, action, state) in enumerate(rows):
        known = [d for d in (action, state) if d and d["min"] is not None]
        if not known:
            ax.text(0.5, y, "NaN only", va="center", ha="center", fontsize=9, color=BAD)
            continue
        low, high = min(d["min"] for d in known), max(d["max"] for d in known)
        if all(d["constant"] for d in known):
            ax.plot(0.5, y, "o", color=FAINT, ms=6)
            ax.text(0.515, y, f" always {_value(known[0]['mean'])}", va="center", fontsize=9,
                    color=MUTED)  # fmt: skip
            continue
        span = high - low
        for d, offset, color in ((action, -0.17, ACTION), (state, 0.17, STATE)):
            if d not in known:
                continue
            at = y + (offset if len(known) == 2 else 0)
            x = {k: (d[k] - low) / span for k in ("min", "q01", "mean", "q99", "max")}
            ax.plot([x["min"], x["max"]], [at, at], color=color, lw=1.2, alpha=0.6)
            ax.barh(at, x["q99"] - x["q01"], 0.2, left=x["q01"], color=color, alpha=0.45, lw=0)
            ax.plot(x["mean"], at, "o", color=color, ms=4.5, mec="white", mew=0.6)
            if d is action and d["saturated"]:
                for end, share in (("min", d["at_min"]), ("max", d["at_max"])):
                    if share >= SATURATED:
                        ax.plot(x[end], at, "s", color=BAD, ms=5, zorder=4, clip_on=False)
        _beside(ax, 0, y, _brief(low), -5, MUTED)
        _beside(ax, 1, y, _brief(high), 5, MUTED)
        found = follows.get(name)
        if found and found["explained_later"] is not None:
            text, color = _following(report, found)
            _beside(ax, 1, y, text, 48, color)
    ax.set_yticks(range(len(rows)), [_short(name, 26) for name, _, _ in rows])
    ax.tick_params(axis="y", labelsize=9.5, pad=44)
    ax.set_ylim(len(rows) - 0.5, -0.6)
    ax.set_xlim(0, 1)
    ax.set_xticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if report["action"]:
        ax.barh(-9, 0, color=ACTION, alpha=0.6, label="actions")
    if report["state"]:
        ax.barh(-9, 0, color=STATE, alpha=0.6, label="states")
    ax.plot([], [], "o", color=MUTED, ms=4.5, ls="", label="mean")
    if any(a and a["saturated"] for _, a, _ in rows):
        ax.plot([], [], "s", color=BAD, ms=5, ls="", label="saturated")
    _legend(ax, left)
    if report["semantics"]["dimensions"]:
        ax.annotate(
            "how actions and states go together", (1, 1), xycoords="axes fraction",
            xytext=(48, 9), textcoords="offset points", fontsize=9, color=MUTED,
        )  # fmt: skip
    if len(every) > len(rows):
        ax.set_xlabel(f"and {len(every) - len(rows)} more in inspect.json", loc="left")


def facts_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What there is no picture of: pairs of a name and a few words."""
    cameras = [
        f"{c['name']} {c['width']}x{c['height']} {c['codec'] or 'images'}"
        for c in report["cameras"]
    ]
    facts = [("cameras", ", ".join(cameras) or "none")]
    timing = report["timing"]
    if timing is None:
        facts.append(("timestamps", "none"))
    else:
        off = f"off by {1000 * timing['max']:.3g} ms at most" if timing["max"] > 1e-5 else "exact"
        gaps = timing["gaps"]["count"]
        facts.append(("timestamps", f"{off}, {gaps or 'no'} gap{'' if gaps == 1 else 's'}"))
    semantics = report["semantics"]
    guess = "could not be told" if semantics["guess"] == "unknown" else (
        f"{semantics['guess']}: a guess"
    )  # fmt: skip
    if semantics["stated"] == "unknown":
        facts.append(("actions mean", f"{guess} (auto: {semantics['auto']})"))
    else:
        facts.append(("actions mean", f"{semantics['stated']}, as the dataset says"))
    if semantics["lag_seconds"] is not None:
        facts.append(("states are there", f"{semantics['lag_seconds']:.2f} s later (median)"))
    success = report["success"]
    facts.append(("success", f"{success['k']} of {success['n']}" if success else "not recorded"))
    if still := report["still"]:
        facts.append(
            ("standing still", f"{100 * still['share']:.3g} %; {still['start']['median']:.1f} s at "
             f"the start, {still['end']['median']:.1f} s at the end")
        )  # fmt: skip
    kinds = [(n, report["smoothness"][k]) for n, k in (("actions", "commands"),
             ("states", "motion")) if report["smoothness"][k]]  # fmt: skip
    for metric, name in (
        ("rms_jerk", "RMS jerk, units/s³"), ("sparc", "spectral arc length"),
        ("high_frequency_share", "power above 3 Hz"),
    ):  # fmt: skip
        values = [f"{_value(entry['mean'][metric])} {of}" for of, entry in kinds]
        if values:
            facts.append((name, ", ".join(values)))
    tasks = [t for t in report["tasks"] if t["text"]]
    if len(tasks) > 1:
        few = [f"{_short(t['text'], 24)} ({t['episodes']})" for t in tasks[:3]]
        facts.append(("tasks", ", ".join(few) + (", …" if len(tasks) > 3 else "")))
    return facts


def draw_facts(ax: Axes, report: dict[str, Any]) -> None:
    """`facts_of` as a table."""
    position = ax.get_position()
    rows = facts_of(report)
    ax.set_xlim(0, position.width * WIDTH)
    ax.set_ylim(len(rows), 0)
    ax.set_axis_off()
    ax.set_title("At a glance", pad=LEGEND_PAD + 4)
    for y, (name, value) in enumerate(rows):
        ax.text(0, y + 0.5, name, va="center", fontsize=10, color=MUTED)
        ax.text(1.62, y + 0.5, _short(value, 46), va="center", fontsize=10)


def draw_notices(ax: Axes, report: dict[str, Any]) -> None:
    """What to mind, the worst first, as text."""
    figure = ax.figure
    width = ax.get_position().width * WIDTH
    height = ax.get_position().height * figure.get_figheight()  # type: ignore[union-attr]
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_axis_off()
    ax.set_title("Good to know")
    y = 0.0
    for level, lines in _notice_lines(report, width):
        ax.plot(0.07, y + 0.1, "o", color=LEVEL_COLORS[level], ms=8, clip_on=False)
        for line in lines:
            ax.text(0.26, y + 0.1, line, va="center", fontsize=10)
            y += LINE
        y += LINE / 2
    if y == 0:
        ax.plot(0.07, 0.1, "o", color=GOOD, ms=8, clip_on=False)
        ax.text(0.26, 0.1, "Nothing unusual was found.", va="center", fontsize=10)


def draw_command(ax: Axes, report: dict[str, Any]) -> None:
    """The command to train with."""
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.add_patch(Rectangle((0, 0), 1, 1, color="#F4F6F8", lw=0))
    ax.text(
        0.01, 0.5, "\n".join(_command_lines(report)), va="center", fontsize=10.5,
        family="monospace", linespacing=1.5,
    )  # fmt: skip
    ax.set_axis_off()
    ax.set_title("To train, once that is mended" if report["mend_first"] else "To train")


LINE = 0.215  # inches from one line of text to the next


def page(report: dict[str, Any], samples: Samples, trace: Trace | None) -> bytes:
    """Everything on one page, as PNG, 2400 pixels wide.

    Args:
        report: of ``scripts.inspect_data``.
        samples: a few frames; without cameras their row is left out.
        trace: one episode; None leaves it out.
    """
    with mpl.rc_context(STYLE):
        usable = WIDTH - 2 * MARGIN
        side = 5.1  # of the column of text
        rows = range_rows(report)[:MOST_ROWS]
        ranges = max(1, len(rows)) * (0.34 if len(rows) <= 12 else 0.27)
        names = 0.75 + 0.085 * max([len(_short(name, 26)) for name, _, _ in rows], default=0)
        facts = 0.27 * len(facts_of(report))
        texts = _notice_lines(report, side)
        notices = max(0.4, sum(len(lines) * LINE + LINE / 2 for _, lines in texts))
        below = max(ranges, facts + 0.75 + notices)
        ranges = max(ranges, min(below, 0.55 * len(rows)))
        commands = 0.3 + 0.24 * len(_command_lines(report))
        frames = _samples_height(samples, usable) if samples.frames else 0.0
        plots = max(2.5, min(3.4, 0.42 * (1 if trace is None else len(trace.names))))
        height = 1.55 + (frames + 1.15 if frames else 0.35) + plots + 1.35 + below + 0.75
        height += commands + 0.45
        figure = Figure(figsize=(WIDTH, height), dpi=150)
        _draw_head(figure, report, height)

        def place(panel: Panel, left: float, top: float, width: float, tall: float) -> None:
            """Axes by inches from the page's left and top."""
            panel(
                figure.add_axes(
                    (left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height)
                )
            )

        top = 1.55
        if frames:
            place(partial(draw_samples, samples=samples), MARGIN, top, usable, frames)
            top += frames + 1.15
        else:
            top += 0.35
        place(partial(draw_lengths, report=report), MARGIN + 0.35, top, 3.5, plots)
        place(partial(draw_smoothness, report=report), MARGIN + 5.0, top, 3.6, plots)
        if trace is not None:
            place(partial(draw_trace, trace=trace), MARGIN + 10.75, top, usable - 10.75, plots)
        top += plots + 1.35
        right = WIDTH - MARGIN - side
        bars = right - MARGIN - names - 3.45  # what is said beside them needs the rest
        place(partial(draw_ranges, report=report), MARGIN + names, top, bars, ranges)
        place(partial(draw_facts, report=report), right, top, side, facts)
        place(partial(draw_notices, report=report), right, top + facts + 0.75, side, notices)
        top += below + 0.75
        place(partial(draw_command, report=report), MARGIN, top, usable, commands)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()


def write_inspection(
    report: dict[str, Any], folder: Path, samples: Samples, trace: Trace | None, *, html: bool
) -> dict[str, Path]:
    """Write ``inspect.json``, ``inspect.png`` and, if asked for, ``inspect.html``.

    Args:
        report: JSON-ready.

    Returns:
        "json", "png" and "html" -> path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"json": folder / "inspect.json", "png": folder / "inspect.png"}
    paths["json"].write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    picture = page(report, samples, trace)
    paths["png"].write_bytes(picture)
    if html:
        paths["html"] = folder / "inspect.html"
        paths["html"].write_text(_html(report, picture), encoding="utf-8")
    return paths


def _html(report: dict[str, Any], picture: bytes) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": _value}
    return environment.get_template("inspect.html").render(
        report=report, picture=data_uri(picture, "image/png"), level_names=LEVEL_NAMES,
        facts=facts_of(report),
    )  # fmt: skip


def _draw_head(figure: Figure, report: dict[str, Any], height: float) -> None:
    left, right = MARGIN / WIDTH, 1 - MARGIN / WIDTH
    big: Any = {"fontsize": 21, "weight": "bold", "va": "center"}
    small: Any = {"fontsize": 11.5, "color": MUTED, "va": "center"}
    first, second, rule = (1 - inches / height for inches in (0.45, 0.85, 1.15))
    figure.text(left, first, _short(report["title"], 60), **big)
    figure.text(left, second, _short(report["subtitle"], 120), **small)
    figure.text(right, first, report["headline"], color=POLICY, ha="right", **big)
    figure.text(right, second, report["headline_facts"], ha="right", **small)
    line = Rectangle((left, rule), right - left, 0.012 / height, color=FAINT, lw=0)
    line.set_transform(figure.transFigure)
    figure.add_artist(line)


def _samples_height(samples: Samples, usable: float) -> float:
    """Inches of the pictures at the page's full width, within reason."""
    width, height = _samples_size(samples)
    return min(usable / max(width, 6.0) * height, 5.5)


def _notice_lines(report: dict[str, Any], width: float) -> list[tuple[str, list[str]]]:
    """Level and wrapped lines of every notice, for a column `width` inches wide."""
    notices = report["notices"]
    out = []
    for notice in notices[:MOST_NOTICES]:
        text = " ".join(notice["text"].split())
        lines = textwrap.wrap(_short(text, 420), int((width - 0.3) / 0.0765))
        out.append((notice["level"], lines))
    if len(notices) > MOST_NOTICES:
        out.append(("note", [f"and {len(notices) - MOST_NOTICES} more in inspect.json"]))
    return out


def _command_lines(report: dict[str, Any]) -> list[str]:
    """The command, broken between words where it is too long for the page."""
    lines = textwrap.wrap(
        report["commands"]["train"], 138, break_long_words=False, break_on_hyphens=False,
        subsequent_indent="    ",
    )  # fmt: skip
    lines = [_short(line, 138) for line in lines]  # a long list of episodes has no place to break
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]


def _following(report: dict[str, Any], found: dict[str, Any]) -> tuple[str, str]:
    """How an action and a state go together, in a few words, and the colour to say it in."""
    other = "" if found["by"] == "name" else f" of {_short(found['state'], 14)}"
    if report["semantics"]["guess"] == "delta":
        change = "" if found["by"] == "name" else f" of {_short(found['change'], 14)}"
        r = found["change_correlation"]
        if r is None:
            return "nothing goes with it", MUTED
        if found["correlation"] is not None and abs(found["correlation"]) > abs(r):
            return f"goes with the state{other}, r = {found['correlation']:.2f}", INK
        return f"goes with the next change{change}, r = {r:.2f}", INK if abs(r) >= 0.7 else MUTED
    share = found["explained_later"]
    if share > 0.5:
        when = f"{found['lag_seconds']:.2f} s later" if found["lag_frames"] else "at once"
        text = f"the state{other} is there {when} ({100 * share:.4g} %)"
        return text, INK if share > 0.8 else MUTED
    return f"no target: r = {found['correlation']:.2f} with the state{other}", MUTED


def _beside(ax: Axes, x: float, y: float, text: str, points: float, color: str) -> None:
    """Small text some points to the right of x, or to the left of it (negative)."""
    ax.annotate(
        text, (x, y), xytext=(points, 0), textcoords="offset points", va="center",
        ha="left" if points > 0 else "right", fontsize=8.5, color=color,
    )  # fmt: skip


def _legend(ax: Axes, left: float = 0.0) -> None:
    ax.legend(
        loc="lower left", bbox_to_anchor=(left, 1.0), ncols=4, handlelength=1.2,
        handletextpad=0.5, columnspacing=1.4, borderpad=0, borderaxespad=0.4,
    )  # fmt: skip


def _say(ax: Axes, what: str) -> None:
    ax.text(0.5, 0.5, what, ha="center", va="center", color=MUTED, transform=ax.transAxes)
    ax.set_axis_off()


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values], np.float64)


def _value(value: float | None) -> str:
    """Three significant digits; a dash for what does not exist."""
    return "–" if value is None else f"{value:.3g}".replace("e+0", "e").replace("e-0", "e-")


def _brief(value: float) -> str:
    """`_value`, at most seven characters of it."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return _value(value)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
