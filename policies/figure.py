"""The report as one picture: every panel is a function that draws on given axes.

The numbers come from the report's dictionary (`policies.report`); paths and traces, which are too
long for it, come as `TopView` and `JointTrace`.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeGuard

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator

from .media import Strip, Video

INK, MUTED, FAINT, GRID = "#17202B", "#667382", "#C9D1DA", "#E9EDF1"
POLICY, EXPERT, FLOOR = "#2457D6", "#8795A5", "#C9D1DA"
GOOD, BAD = "#17885B", "#C8402F"
WAYS = ("#E58A00", "#109AA5", "#8B5CD6", "#B8336A")

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.facecolor": "white",
}

METRIC_NAMES = {
    "rms_jerk": "RMS jerk",
    "ldlj": "log dimensionless jerk",
    "sparc": "spectral arc length",
    "high_frequency_share": "power above 3 Hz",
    "chunk_boundary_ratio": "jump at chunk seams",
    "action_tv": "speed",
    "action_tv_second": "change of speed",
}
SHOWN_METRICS = ("rms_jerk", "ldlj", "sparc", "high_frequency_share", "chunk_boundary_ratio")


@dataclass
class Landmark:
    """Something round on the floor plan: centre and radius in the plan's unit."""

    center: tuple[float, float]
    radius: float
    color: str
    label: str = ""


@dataclass
class TopView:
    """Paths seen from above.

    Attributes:
        paths: ``[T, 2]`` each, in the unit of `unit`; the first coordinate is drawn to the right.
        modes: the way each path took, or "".
        successes: whether each path ended in success.
        landmarks: drawn under the paths.
    """

    paths: Sequence[np.ndarray]
    modes: Sequence[str]
    successes: Sequence[bool]
    landmarks: Sequence[Landmark] = field(default_factory=tuple)
    unit: str = "m"
    title: str = "Paths of the fingertip, from above"


@dataclass
class JointTrace:
    """One episode's commands and the motion that followed.

    Attributes:
        seconds: ``[T]``.
        commands, motion: ``[T, D]``, row t of both belonging to ``seconds[t]``.
        names: one per joint.
        chunk_starts: rows whose command was the first of a new chunk.
    """

    seconds: np.ndarray
    commands: np.ndarray
    motion: np.ndarray
    names: Sequence[str]
    chunk_starts: np.ndarray
    unit: str = "rad"
    title: str = "Commanded and measured joints of one episode"


Panel = Callable[[Axes], None]

WIDTH, MARGIN, HEAD = 16.0, 0.5, 1.8
"""Of the page, in inches: width, room at either side, height of the title with what follows it."""
LEGEND_PAD = 28
"""Points between axes and title where a line of legend goes between them."""


def draw_success(ax: Axes, report: dict[str, Any]) -> None:
    """Success rates with Wilson intervals: policy, expert, floors."""
    rows = [("policy", report["success"], POLICY)]
    if report.get("expert"):
        rows.append(("expert", report["expert"], EXPERT))
    for name, floor in (report.get("floors") or {}).items():
        rows.append(({"hold": "hold still"}.get(name, name), floor, FLOOR))
    for y, (_, value, color) in enumerate(rows):
        rate, low, high = (100 * value[k] for k in ("rate", "low", "high"))
        ax.barh(y, rate, 0.58, color=color)
        ax.errorbar(
            rate, y, xerr=[[rate - low], [high - rate]], color=INK, lw=1.4, capsize=4, capthick=1.4
        )
        number = f"{rate:.0f} %" if rate == round(rate) else f"{rate:.1f} %"
        main: Any = {"fontsize": 14, "weight": "bold"} if y == 0 else {"fontsize": 11}
        for text, offset, look in (
            (number, 10, main),
            (f"{value['k']} of {value['n']}", 74, {"fontsize": 10, "color": MUTED}),
        ):
            ax.annotate(
                text, (100, y), xytext=(offset, 0), textcoords="offset points", va="center", **look
            )
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(0, 100)
    ax.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.set_title("Success, with 95 % Wilson intervals")


def draw_modes(ax: Axes, report: dict[str, Any]) -> None:
    """Shares of the ways taken among successes, the policy's above the expert's."""
    rows = [("policy", report["modes"])]
    if report.get("expert_modes"):
        rows.append(("expert", report["expert_modes"]))
    names = sorted({name for _, modes in rows for name in modes["shares"]})
    colors = way_colors(names)
    for y, (_, modes) in enumerate(rows):
        left = 0.0
        for name in names:
            share = 100 * (modes["shares"].get(name) or 0.0)
            ax.barh(y, share, 0.5, left=left, color=colors[name], edgecolor="white", lw=1.5)
            if share >= 14:
                label = f"{name} {share:.0f} %"
                ax.text(
                    left + share / 2, y, label, ha="center", va="center", color="white",
                    weight="bold", fontsize=10,
                )  # fmt: skip
            left += share
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set_ylim(len(rows) - 0.45, -0.55)
    ax.set_xlim(0, 100)
    ax.set_xticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title("Ways taken, of its successes")


def draw_top_view(ax: Axes, view: TopView) -> None:
    """Every path from above, coloured by the way it took; failures end in a cross."""
    for mark in view.landmarks:
        ax.add_patch(Circle(mark.center, mark.radius, color=mark.color, lw=0, zorder=1))
        if mark.label:
            ax.annotate(
                mark.label, mark.center, ha="center", va="center", fontsize=9, color="white",
                weight="bold", zorder=5,
            )  # fmt: skip
    colors = way_colors(sorted({mode for mode in view.modes if mode}))
    for mode, color in colors.items():
        ax.plot([], [], color=color, lw=2.2, label=mode)
    for path, mode, success in zip(view.paths, view.modes, view.successes, strict=True):
        color = colors.get(mode, POLICY)
        ax.plot(path[:, 0], path[:, 1], color=color, lw=1.1, alpha=0.65, zorder=3)
        if success:
            ax.plot(*path[-1], "o", color=color, ms=4, mec="white", mew=0.6, zorder=4)
        else:
            ax.plot(*path[-1], "x", color=BAD, ms=6, mew=1.8, zorder=4)
    if not all(view.successes):
        ax.plot([], [], "x", color=BAD, ms=6, mew=1.8, label="failed here")
    ax.set_aspect("equal", anchor="W")
    ax.margins(0.04)
    ax.grid()
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(view.unit)
    ax.set_title(view.title)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), handlelength=1.2)


def draw_smoothness(ax: Axes, report: dict[str, Any]) -> None:
    """Ratios to the demonstrations, commands and motion; successes only."""
    ratios = {
        path: report["smoothness"][path]["successes"].get("to_demonstrations") or {}
        for path in ("commands", "motion")
    }
    shown = [m for m in SHOWN_METRICS if any(is_number(r.get(m)) for r in ratios.values())]
    ax.set_title("Roughness relative to the demonstrations", pad=LEGEND_PAD)
    if not shown:
        say_nothing(ax, "no successes to compare with demonstrations")
        return
    values = [r[m] for r in ratios.values() for m in shown if is_number(r.get(m)) and r[m] > 0]
    # At least an octave to both sides, so that a ratio near 1 looks near 1.
    low, high = min([0.5, *values]) / 1.15, max([2.0, *values]) * 1.15
    ax.axvline(1, color=INK, lw=1.2, zorder=1)
    for y, metric in enumerate(shown):
        for path, offset, color in (("commands", -0.13, POLICY), ("motion", 0.13, WAYS[1])):
            value = ratios[path].get(metric)
            if not is_number(value) or value <= 0:
                continue
            ax.plot([1, value], [y + offset] * 2, color=color, lw=3, alpha=0.3, zorder=2)
            ax.plot(
                value, y + offset, "o", color=color, ms=8, zorder=3,
                label=path if y == 0 else None,
            )  # fmt: skip
            ax.annotate(
                f"{value:.3g}", (value, y + offset), xytext=(8 if value >= 1 else -8, 0),
                textcoords="offset points", va="center", ha="left" if value >= 1 else "right",
                fontsize=9, color=color,
            )  # fmt: skip
    low, high = low / 1.25, high * 1.25
    base = 2 if high / low < 200 else 10
    ax.set_xscale("log", base=base)
    ax.set_xlim(low, high)
    powers = [float(base) ** i for i in range(-8, 9)]
    ticks = [tick for tick in powers if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(shown)), [METRIC_NAMES[m] for m in shown])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel("of successes; 1x is as smooth as the demonstrations, more is rougher")
    legend_below_title(ax)


def draw_joints(ax: Axes, trace: JointTrace) -> None:
    """Each joint's way since the start: commands as dots, motion as lines, seams as marks."""
    colors = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, trace.commands.shape[1]))
    origin = trace.motion[0]
    for joint, color in enumerate(colors):
        sent, seen = trace.commands[:, joint], trace.motion[:, joint]
        ax.plot(trace.seconds, sent - origin[joint], "o", ms=3, color=color, alpha=0.8, mew=0)
        ax.plot(trace.seconds, seen - origin[joint], color=color, lw=1.4)
    ax.plot([], [], "o", ms=3.5, color=INK, label="commanded")
    ax.plot([], [], color=INK, lw=1.6, label="measured")
    inside = trace.chunk_starts[trace.chunk_starts < len(trace.seconds)]
    # Every step starts a "chunk" of a policy without chunks: nothing to mark then.
    if 0 < len(inside) < len(trace.seconds):
        for start in inside:
            ax.axvline(trace.seconds[start], color=GRID, lw=1.4, zorder=0)
        ax.plot([], [], color=FAINT, lw=1.6, label="new chunk")
    ax.margins(x=0.01)
    ax.set_xlabel("s")
    ax.set_ylabel(f"{trace.unit} from the start")
    ax.set_title(trace.title, pad=LEGEND_PAD)
    legend_below_title(ax)


def draw_latency(ax: Axes, report: dict[str, Any]) -> None:
    """How long one arm waits for a chunk, and what the time goes into."""
    latency = report["latency_ms"]
    ax.set_title("Observation in, chunk out")
    quantiles = ("p50", "p95", "p99")
    if not all(is_number(latency.get(q)) for q in quantiles):
        say_nothing(ax, "no chunk was timed")
        return
    for y, quantile in enumerate(quantiles):
        ax.barh(y, latency[quantile], 0.5, color=POLICY, alpha=(1, 0.72, 0.48)[y])
        ax.text(
            latency[quantile], y, f"  {latency[quantile]:.1f} ms", va="center", weight="bold",
            fontsize=11,
        )  # fmt: skip
    ax.set_yticks(range(3), ["median", "95 %", "99 %"])
    ax.set_ylim(2.55, -0.55)
    ax.set_xlim(0, 1.35 * latency["p99"])
    ax.set_xticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    stages = [f"{name} {value['p50']:.1f}" for name, value in latency["stages"].items()]
    if stages:
        text = "\n".join(textwrap.wrap("medians: " + ", ".join(stages), 38))
        ax.set_xlabel(text, fontsize=9.5, loc="left")


def draw_pace(ax: Axes, report: dict[str, Any]) -> None:
    """What smoothness must be read with: time to success, lag, and what was given for free."""
    time, lag = report["completion_time"], report["lag"]
    lines = []
    if is_number(time["median"]):
        lines.append(("median time to success", f"{time['median']:.1f} s"))
    if is_number(time["relative_to_expert"]):
        lines.append(("time relative to the expert", f"{time['relative_to_expert']:.2f}x"))
    if is_number(lag["mean"]):
        lines.append(("motion trails commands by", f"{1000 * lag['mean']:.0f} ms"))
    lines.append(
        ("solved before the first step", f"{100 * report['solved_at_reset']['rate']:.0f} %")
    )
    for y, (name, value) in enumerate(lines):
        ax.text(0, y, name, va="center", color=MUTED)
        ax.text(1, y, value, va="center", ha="right", weight="bold")
    ax.set_ylim(3.5, -0.5)
    ax.set_axis_off()
    ax.set_title("Pace")


def draw_film(ax: Axes, video: Video, frames: int = 8) -> None:
    """One episode as a row of pictures, evenly spaced from first to last."""
    picks = np.linspace(0, len(video.frames) - 1, min(frames, len(video.frames))).round()
    picks = picks.astype(int)
    labels = [f"{pick / video.fps:.1f} s" for pick in picks]
    draw_grid(ax, video.frames[picks][None], [""], labels)
    ax.set_title(f"{video.title}: {video.caption}" if video.caption else video.title)


def draw_strip(ax: Axes, strip: Strip) -> None:
    """Rows of pictures above one another."""
    draw_grid(ax, strip.rows, strip.labels, strip.columns)
    ax.set_title(strip.title)


def page(
    report: dict[str, Any],
    *,
    view: TopView | None = None,
    trace: JointTrace | None = None,
    film: Video | None = None,
    strips: Sequence[Strip] = (),
) -> bytes:
    """The whole report on one page, as PNG, 2400 pixels wide."""
    first = [Column([partial(draw_success, report=report)], 6.0, left=0.95, right=1.75)]
    if report["modes"]["shares"]:
        first[0].panels.append(partial(draw_modes, report=report))
    if view is not None:
        first.append(Column([partial(draw_top_view, view=view)], 4.6, left=0.5))
    side: list[Panel] = [partial(draw_latency, report=report), partial(draw_pace, report=report)]
    first.append(Column(side, 4.0, left=0.8))
    second = [Column([partial(draw_smoothness, report=report)], 7.0, left=2.0, right=0.3)]
    if trace is not None:
        second.append(Column([partial(draw_joints, trace=trace)], 7.2, left=0.6))
    rows: list[tuple[float, list[Column]]] = [(3.8, first), (2.8, second)]
    if film is not None:
        film_height = grid_height(1, min(8, len(film.frames)), film.frames)
        rows.append((film_height, [Column([partial(draw_film, video=film)], 1.0)]))
    for strip in strips:
        strip_height = grid_height(len(strip.rows), strip.rows.shape[1], strip.rows)
        rows.append((strip_height, [Column([partial(draw_strip, strip=strip)], 1.0)]))

    # Below a row of plots there is room for its axis and for the next title and legend.
    gaps = [1.35, 1.1] + [0.9] * (len(rows) - 2)
    success = report["success"]
    facts = [f"95 % interval {100 * success['low']:.1f} to {100 * success['high']:.1f} %"]
    if is_number(report["completion_time"]["median"]):
        facts.append(f"median {report['completion_time']['median']:.1f} s to success")
    head = Head(
        report.get("title", report["policy"]),
        report.get("subtitle", ""),
        f"{success['k']} of {success['n']} resets solved",
        ", ".join(facts),
    )
    return sheet(head, [(*row, gap) for row, gap in zip(rows, gaps, strict=False)])


def sheet(head: Head, rows: Sequence[tuple[float, list[Column], float]]) -> bytes:
    """Rows of panels below a head, as PNG, 2400 pixels wide.

    Args:
        rows: height, columns, and the gap below, in inches.
    """
    with mpl.rc_context(STYLE):
        # Below the last row there is an axis, but no next title.
        height = HEAD + sum(row_height + gap for row_height, _, gap in rows) - 0.45
        figure = Figure(figsize=(WIDTH, height), dpi=150)
        _draw_head(figure, head, height)
        y = height - HEAD
        for row_height, columns, gap in rows:
            place(figure, columns, y - row_height, row_height, height)
            y -= row_height + gap
        return png(figure)


def panel_png(panel: Panel, width: float, height: float) -> bytes:
    """One panel on its own, as PNG; `width` and `height` in inches at 150 dots each."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        panel(figure.add_subplot())
        return png(figure)


def way_colors(names: Sequence[str]) -> dict[str, str]:
    """One colour per way, the same in every panel: left and right have their own."""
    fixed = {"left": WAYS[0], "right": WAYS[1]}
    others = [name for name in names if name not in fixed]
    spare = {name: WAYS[(2 + i) % len(WAYS)] for i, name in enumerate(others)}
    return {name: (fixed | spare)[name] for name in names}


@dataclass(frozen=True)
class Head:
    """Of a page: title with a line below it, and to the right the number that matters most."""

    title: str
    subtitle: str
    headline: str
    facts: str


@dataclass
class Column:
    """Panels above one another; all but the ratio `weight` in inches.

    Attributes:
        weight: share of the row's width.
        left, right: room beside the axes for tick labels and numbers.
    """

    panels: list[Panel]
    weight: float
    left: float = 0.0
    right: float = 0.0


def place(
    figure: Figure, columns: Sequence[Column], bottom: float, row_height: float, height: float
) -> None:
    """Columns side by side over the page's width; measures in inches."""
    gap = 0.35
    usable = WIDTH - 2 * MARGIN - gap * (len(columns) - 1)
    total = sum(column.weight for column in columns)
    x = MARGIN
    for column in columns:
        share = usable * column.weight / total
        top = bottom + row_height
        # The first panel of a column is the larger one; between two there is room for a title.
        heights = [row_height]
        if len(column.panels) == 2:
            heights = [row_height * 0.52, row_height * 0.25]
        for panel, panel_height in zip(column.panels, heights, strict=True):
            panel(
                figure.add_axes(
                    (
                        (x + column.left) / WIDTH,
                        (top - panel_height) / height,
                        (share - column.left - column.right) / WIDTH,
                        panel_height / height,
                    )
                )
            )
            top = bottom + heights[-1]
        x += share + gap


def _draw_head(figure: Figure, head: Head, height: float) -> None:
    """The page's title, the headline number, and a rule below them."""
    left, right = MARGIN / WIDTH, 1 - MARGIN / WIDTH
    big: Any = {"fontsize": 21, "weight": "bold", "va": "center"}
    small: Any = {"fontsize": 11.5, "color": MUTED, "va": "center"}
    first, second, rule = (1 - inches / height for inches in (0.45, 0.85, 1.15))
    figure.text(left, first, head.title, **big)
    figure.text(left, second, head.subtitle, **small)
    figure.text(right, first, head.headline, color=POLICY, ha="right", **big)
    figure.text(right, second, head.facts, ha="right", **small)
    line = Rectangle((left, rule), right - left, 0.012 / height, color=FAINT, lw=0)
    line.set_transform(figure.transFigure)
    figure.add_artist(line)


def grid_height(rows: int, columns: int, frames: np.ndarray) -> float:
    """Inches that `rows` of `columns` pictures need to fill the page's width, within reason."""
    aspect = frames.shape[-3] / frames.shape[-2]
    return min((WIDTH - 2 * MARGIN) / max(columns, 6) * aspect * rows, 4.8)


def legend_below_title(ax: Axes, columns: int = 4) -> Legend:
    """A legend in one line between title and axes; the title needs `LEGEND_PAD`."""
    return ax.legend(
        loc="lower left", bbox_to_anchor=(0, 0.985), ncols=columns, handlelength=1.2,
        handletextpad=0.5, columnspacing=1.4, borderpad=0, borderaxespad=0.4,
    )  # fmt: skip


def draw_grid(
    ax: Axes, rows: np.ndarray, labels: Sequence[str], columns: Sequence[str], gap: float = 0.03
) -> None:
    """Pictures ``[R, T, H, W, C]`` on one axes; one unit of it is one picture's width."""
    aspect = rows.shape[2] / rows.shape[3]
    count = rows.shape[1]
    for r, row in enumerate(rows):
        for t, frame in enumerate(row):
            x, y = t * (1 + gap), -(r + 1) * aspect - r * gap
            ax.imshow(frame, extent=(x, x + 1, y, y + aspect), interpolation="nearest")
        if labels[r]:
            y = -(r + 0.5) * aspect - r * gap
            ax.text(-0.06, y, labels[r], ha="right", va="center", fontsize=11)
    bottom = -len(rows) * aspect - (len(rows) - 1) * gap
    for t, label in enumerate(columns):
        ax.text(
            t * (1 + gap) + 0.5, bottom - 0.05, label, ha="center", va="top", fontsize=9.5,
            color=MUTED,
        )  # fmt: skip
    # Row labels sit left of the pictures, inside the axes.
    ax.set_xlim(-0.55 if any(labels) else 0, count * (1 + gap) - gap)
    ax.set_ylim(bottom, 0)
    ax.set_aspect("equal", anchor="NW")
    ax.set_axis_off()


def say_nothing(ax: Axes, why: str) -> None:
    ax.text(0.5, 0.5, why, ha="center", va="center", color=MUTED, transform=ax.transAxes)
    ax.set_axis_off()


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
