"""The plots of a world model's report: every panel draws one part of it on given axes.

A part that was not run leaves its reason where the plot would be.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..figure import (
    BAD,
    EXPERT,
    FAINT,
    FLOOR,
    GOOD,
    GRID,
    INK,
    LEGEND_PAD,
    MUTED,
    POLICY,
    WAYS,
    Column,
    Head,
    Panel,
    draw_grid,
    draw_strip,
    grid_height,
    legend_below_title,
    say_nothing,
    sheet,
)
from .media import BranchPicture, SideBySide
from .targets import Estimate, asked, estimate, not_run, with_interval, words

MODEL = POLICY
GUESSES = {
    "model": ("model", MODEL),
    "copy_last": ("copy last", EXPERT),
    "mean_frame": ("mean frame", FLOOR),
    "grey": ("grey", WAYS[2]),
}
MEASURES = {
    "psnr": "PSNR, dB: higher is closer",
    "psnr_moving": "PSNR on moving pixels, dB",
    "ssim": "SSIM: 1 is equal",
    "gmsd": "GMSD: 0 is equal",
    "lpips": "LPIPS: 0 is equal",
}
LIFT = {
    "simulator": ("simulator", EXPERT),
    "planner": ("model", MODEL),
    "policy_same_time": ("policy, same time", WAYS[0]),
}
CORRELATIONS = {"pearson": "Pearson", "spearman": "Spearman", "mmrv": "MMRV"}
REACHED, ABSENT = "#DDEFE7", "#F6F8FA"
FORMS = {"window": ("windows", MODEL), "causal": ("causal", WAYS[1])}


def draw_targets(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """What was asked beside what was measured: a track per target, a point per checkpoint."""
    for y, row in enumerate(rows):
        columns = row["columns"]
        highs = [c["high"] or c["value"] or 0.0 for c in columns.values()]
        # A share or a correlation ends at 1, other scales with the numbers.
        top = max([row["top"], *highs]) if row["top"] > 1 else row["top"]
        goal = row["target"] / top
        track: Any = {"lw": 0, "height": 0.66}
        ax.add_patch(Rectangle((0, y - 0.33), 1, color=GRID, zorder=0, **track))
        ax.add_patch(Rectangle((goal, y - 0.33), 1 - goal, color=REACHED, zorder=1, **track))
        ax.plot([goal] * 2, [y - 0.33, y + 0.33], color=GOOD, lw=2, zorder=3)
        if row["chance"]:
            chance = row["chance"] / top
            ax.plot([chance] * 2, [y - 0.33, y + 0.33], color=MUTED, lw=1.4, ls=":")
        ax.text(-0.02, y, row["name"], ha="right", va="center", fontsize=11.5)
        ax.text(1.015, y, f"≥ {asked(row['target'], row['unit'])}", va="center", color=GOOD)
        for i, (name, column) in enumerate(columns.items()):
            at = y + 0.62 * (i - (len(columns) - 1) / 2) / len(columns)
            _draw_measured(ax, at, name if len(columns) > 1 else "", column, row["unit"], top)
    ax.set_xlim(0, 1)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_axis_off()
    ax.set_title("What is asked of it")
    ax.text(
        1, 1.045, "green: the target is met; dotted: chance", ha="right", color=MUTED,
        transform=ax.transAxes, fontsize=10,
    )  # fmt: skip


def _draw_measured(
    ax: Axes, y: float, name: str, column: Mapping[str, Any], unit: str, top: float
) -> None:
    """One checkpoint's number on a target's track, and in words beside it."""
    found = estimate(column) if column["value"] is not None else Estimate(why=column["why"])
    color, mark = (GOOD, "✓") if column["met"] else (BAD, "✗")
    if found.bounded:
        ends = np.clip([found.low / top, found.high / top], 0, 1)
        ax.plot(ends, [y, y], color=color, lw=2.2, zorder=4, solid_capstyle="butt")
    if found.known:
        ax.plot(np.clip(found.value / top, 0, 1), y, "o", color=color, ms=8, mec="white", zorder=5)
        look: Any = {"weight": "bold"}
        text = with_interval(found, unit)
    else:
        color, mark, look = MUTED, "–", {"color": MUTED}
        text = textwrap.shorten(f"not run: {found.why}", 38 if name else 52, placeholder=" …")
    size = 10 if name else 11.5
    ax.text(1.165, y, mark, color=color, weight="bold", va="center", ha="center")
    if name:
        short = textwrap.shorten(name, 24, placeholder=" …")
        ax.text(1.19, y, short, va="center", fontsize=size, color=MUTED)
    ax.text(1.48 if name else 1.19, y, text, va="center", fontsize=size, **look)


def draw_steps(ax: Axes, part: Any, measure: str) -> None:
    """One measure over the horizon: the model beside copying and the mean frame."""
    ax.set_title(MEASURES[measure], pad=1.7 * LEGEND_PAD)  # the legend takes two lines
    steps = _inside(part, "steps")
    if _missing(ax, steps):
        return
    curves = {name: steps[name].get(measure) for name in GUESSES if name in steps}
    if _missing(ax, curves.get("model")):
        return
    for name, values in curves.items():
        if not_run(values) is None:
            label, color = GUESSES[name]
            draw_curve(ax, steps["frames"], values, label, color, strong=name == "model")
    ax.set_xlabel("frames ahead")
    _finish(ax)


def draw_state(ax: Axes, part: Any, number: int) -> None:
    """What a linear probe reads out of imagined frames, against holding still."""
    state = _inside(part, "state")
    entries = state["errors"] if not_run(state) is None else []
    if number >= len(entries):
        ax.set_title("State read from imagined frames", pad=LEGEND_PAD)
        _missing(ax, state if not_run(state) else {"not_run": "no such quantity"})
        return
    entry = entries[number]
    ax.set_title(f"Error of the {entry['name']}, {entry['unit']}", pad=LEGEND_PAD)
    lines = {
        "model": ("in imagined frames", MODEL),
        "real": ("in real frames", WAYS[1]),
        "floor": (entry.get("floor_name", "hold still"), EXPERT),
    }
    for key, (label, color) in lines.items():
        if not_run(entry.get(key)) is None:
            draw_curve(ax, state["frames"], entry[key], label, color, strong=key == "model")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frames ahead")
    _finish(ax)


def draw_following(ax: Axes, part: Any) -> None:
    """Errors after true, shuffled and zero actions from the same start."""
    ax.set_title("Error by the actions given", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    bars = [(f"{name} actions", part["error"].get(name)) for name in ("true", "shuffled", "zero")]
    draw_bars(ax, bars, [MODEL, EXPERT, FLOOR])
    won = with_interval(estimate(part, "true_beats_shuffled"), "%")
    _below_title(ax, ", ".join(filter(None, [part.get("unit"), f"true better in {won}"])))


def draw_branching(ax: Axes, part: Any, others: Mapping[str, Any]) -> None:
    """Branches matched, of every checkpoint and horizon, against chance."""
    ax.set_title("Branches matched with their own", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    bars: list[tuple[str, Any]] = [("all frames", _headline(part))]
    by_frame = part.get("by_frame")
    if not_run(by_frame) is None:
        assert by_frame is not None
        pairs = zip(by_frame["frames"], by_frame["accuracy"], strict=True)
        bars = [(f"frame +{frame}", value) for frame, value in pairs]
    colors = [MODEL] * len(bars)
    for name, other in others.items():
        if not_run(other.get("branching")) is None:
            bars.append(("\n".join(textwrap.wrap(name, 14)), _headline(other["branching"])))
            colors.append(WAYS[1])
    draw_bars(ax, bars, colors, "%", top=1)
    ax.axvline(part["chance"], color=INK, lw=1.2, ls=":")
    _below_title(ax, f"dotted: chance, 1 of {part['k']}; {part['n']} branches")


def draw_matrix(ax: Axes, part: Any) -> None:
    """Which real branch the imagined ones were matched with."""
    ax.set_title("Which real branch it was matched with", pad=LEGEND_PAD)
    confusion = _inside(part, "confusion")
    if _missing(ax, confusion):
        return
    names = part.get("names") or [str(i + 1) for i in range(len(confusion))]
    draw_cells(ax, 100 * np.array(confusion, float), names, "{:.0f}")
    _below_title(ax, "row: imagined, column: real; % of starts")


def draw_distances(ax: Axes, picture: BranchPicture) -> None:
    """One start's distances; the nearest real branch of each imagined one is framed."""
    assert picture.distances is not None
    distances = np.asarray(picture.distances, float)
    ax.set_title("Distances between its branches", pad=LEGEND_PAD)
    # Of one start they differ by some percent: the scale is from the nearest to the farthest.
    low, high = distances.min(), distances.max()
    shown = (distances - low) / ((high - low) or 1.0)
    draw_cells(ax, 100 * shown, picture.names, "{:.0f}", dark_is_high=False)
    _below_title(ax, "row: imagined, column: real; 0 is nearest, of a row framed")
    for row, column in enumerate(distances.argmin(1)):
        color = GOOD if row == column else BAD
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=color, lw=2.4))


def draw_inverse(ax: Axes, part: Any) -> None:
    """Actions read from imagined and real frames by a network that saw real ones only."""
    ax.set_title("Actions read from frames", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    rows = (
        ("imagined frames", "imagined", MODEL),
        ("real frames", "real", WAYS[1]),
        ("present frame alone", "present_only", FLOOR),
        ("repeat the joints", "repeat", EXPERT),
        ("own cycle", "cycle", FLOOR),
    )
    there = [row for row in rows if not_run(part.get(row[1])) is None]
    bars = [(name, part[key]) for name, key, _ in there]
    draw_bars(ax, bars, [color for _, _, color in there])
    _below_title(ax, ", ".join(filter(None, ["error", part.get("unit")])))


def draw_returns(ax: Axes, part: Any) -> None:
    """One point a policy: success in the simulator and in imagination."""
    ax.set_title("Imagined and simulated success", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    ax.plot([0, 1], [0, 1], color=FAINT, lw=1.4, zorder=1)
    for policy in part["policies"]:
        real, imagined = estimate(policy["real"]), estimate(policy["imagined"])
        for found, other, vertical in ((imagined, real, True), (real, imagined, False)):
            if found.bounded:
                ends, fixed = [found.low, found.high], [other.value] * 2
                ax.plot(
                    *((fixed, ends) if vertical else (ends, fixed)), color=MODEL, lw=1, alpha=0.35
                )
        ax.plot(real.value, imagined.value, "o", color=MODEL, ms=7, mec="white", zorder=3)
    _square(ax)
    ax.set_xlabel("in the simulator")
    ax.set_ylabel("imagined")
    _below_title(ax, f"{part['n']} policies, one point each")
    for i, (key, label) in enumerate(CORRELATIONS.items()):
        found, y = estimate(part, key), 0.97 - 0.3 * i
        place: Any = {"transform": ax.transAxes, "va": "top"}
        ax.text(1.08, y, label, fontsize=10, color=MUTED, **place)
        number = words(found.value, "") if found.known else "undefined"
        ax.text(1.08, y - 0.075, number, fontsize=13, weight="bold", **place)
        if found.bounded:
            interval = f"[{words(found.low, '')}, {words(found.high, '')}]"
            ax.text(1.08, y - 0.175, interval, fontsize=10, **place)


def draw_lift(ax: Axes, part: Any) -> None:
    """Success of planning with N candidates, under a ceiling and over baselines."""
    ax.set_title("Success of the best of N plans", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    for key, (label, color) in LIFT.items():
        if not_run(part.get(key)) is None:
            draw_curve(ax, part["n"], part[key], label, color, strong=key == "planner", dots=True)
    alone = estimate(part.get("policy"))
    if alone.known:
        ax.axhline(alone.value, color=INK, lw=1.3, ls=":", label="policy")
    _candidates(ax, part["n"])
    ax.set_ylim(0, 1.04)
    ax.yaxis.set_major_formatter(FuncFormatter(_percent))
    ax.grid(axis="y")
    _legend(ax, 4)


def draw_exploitability(ax: Axes, part: Any) -> None:
    """Predicted minus realised return of the chosen plan: a gap that must not grow with N."""
    ax.set_title("Return of the chosen plan", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    if part.get("unit"):
        ax.set_ylabel(part["unit"])
    ax.axhline(0, color=FAINT, lw=1.2)
    lines = {
        "predicted": ("predicted", WAYS[1], False),
        "realised": ("realised", EXPERT, False),
        "gap": ("difference", MODEL, True),
    }
    for key, (label, color, strong) in lines.items():
        if not_run(part.get(key)) is None:
            draw_curve(ax, part["n"], part[key], label, color, strong=strong, dots=True)
    _candidates(ax, part["n"])
    ax.grid(axis="y")
    _legend(ax, 4)


def draw_drift(ax: Axes, part: Any) -> None:
    """Error of long rollouts against a still picture; where they cross is marked."""
    unit = f", {part['unit']}" if not_run(part) is None and part.get("unit") else ""
    ax.set_title(f"Error of long rollouts{unit}", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    for key in ("copy_last", "mean_frame"):
        if not_run(part.get(key)) is None:
            draw_curve(ax, part["frames"], part[key], *GUESSES[key])
    for name, form in part["forms"].items():
        if not_run(form) is not None:
            continue
        label, color = FORMS.get(name, (name, WAYS[2]))
        draw_curve(ax, part["frames"], form["error"], label, color, strong=True)
        if form.get("horizon") is not None:
            ax.axvline(form["horizon"], color=color, lw=1.2, ls=":")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("frames ahead; dotted: no better than copying from here on")
    _finish(ax)


def draw_surprise(ax: Axes, part: Any) -> None:
    """ROC curve of each fault."""
    ax.set_title("Failures told by surprise", pad=LEGEND_PAD)
    if _missing(ax, part):
        return
    ax.plot([0, 1], [0, 1], color=FAINT, lw=1.4)
    colors = (MODEL, *WAYS)
    for i, (name, fault) in enumerate(part["faults"].items()):
        if not_run(fault) is not None:
            continue
        label = f"{name}\n{with_interval(estimate(fault, 'auroc'))}"
        ax.plot(fault["fpr"], fault["tpr"], color=colors[i % len(colors)], lw=2, label=label)
    _square(ax)
    ax.set_xlabel("false alarms")
    ax.set_ylabel("found")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.02), handlelength=1.1, labelspacing=0.9,
            title="AUROC", alignment="left",
        )  # fmt: skip


def draw_branches(ax: Axes, picture: BranchPicture) -> None:
    """A row a branch: what came of it at each frame, then what was imagined."""
    gap, count = 0.03, len(picture.frames)
    rows = np.concatenate([picture.real, picture.imagined], axis=1)
    draw_grid(ax, rows, picture.names, [f"+{f}" for f in picture.frames] * 2, gap)
    middle = count * (1 + gap) - gap / 2
    ax.axvline(middle, color="white", lw=5)
    for name, x in (("real", middle / 2), ("imagined", 1.5 * middle)):
        ax.text(x, 0.06, name, ha="center", va="bottom", fontsize=10.5, color=MUTED)
    longest = max(len(name) for name in picture.names)
    ax.set_xlim(left=-0.2 - 0.1 * longest)
    ax.set_title(picture.title, pad=LEGEND_PAD)


def draw_curve(
    ax: Axes,
    x: Sequence[float],
    values: Sequence[Any],
    label: str,
    color: str,
    *,
    strong: bool = False,
    dots: bool = False,
) -> None:
    """Estimates over x, as a line in its interval."""
    found = [estimate(value) for value in values]
    table = np.array([[f.value, f.low, f.high] for f in found], float).T
    at = np.asarray(x, float)
    ax.fill_between(at, table[1], table[2], color=color, alpha=0.16, lw=0)
    ax.plot(
        at, table[0], color=color, lw=2.4 if strong else 1.7, label=label,
        zorder=3 if strong else 2, marker="o" if dots or len(at) == 1 else None, ms=5,
    )  # fmt: skip


def draw_bars(
    ax: Axes,
    bars: Sequence[tuple[str, Any]],
    colors: Sequence[str],
    unit: str = "",
    *,
    top: float | None = None,
) -> None:
    """Horizontal bars with intervals and their numbers."""
    found = [estimate(value) for _, value in bars]
    ends = [max(f.value, f.high if f.bounded else f.value) for f in found if f.known]
    end = top or 1.02 * max(ends, default=1.0) or 1.0
    for y, (f, color) in enumerate(zip(found, colors, strict=True)):
        if f.known:
            ax.barh(y, f.value, 0.56, color=color)
        if f.bounded:
            ax.plot([f.low, f.high], [y, y], color=INK, lw=1.4)
        text = words(f.value, unit) if f.known else f"not run: {f.why}"
        ax.annotate(
            text, (end if f.known else 0, y), xytext=(8, 0), textcoords="offset points",
            va="center", weight="bold" if f.known else "normal", fontsize=10.5,
            color=INK if f.known else MUTED,
        )  # fmt: skip
    ax.set_yticks(range(len(bars)), [name for name, _ in bars])
    ax.set_ylim(len(bars) - 0.45, -0.55)
    ax.set_xlim(0, end)
    ax.set_xticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def draw_cells(
    ax: Axes,
    values: np.ndarray,
    names: Sequence[str],
    form: str,
    *,
    dark_is_high: bool = True,
) -> None:
    """A square table as a picture with its numbers in it."""
    top = float(np.max(values)) or 1.0
    shade = values / top if dark_is_high else 1 - values / top
    white, blue = np.array([1.0, 1.0, 1.0]), np.array([0x24, 0x57, 0xD6]) / 255
    ax.imshow(white + shade[..., None].clip(0, 1) * (blue - white), interpolation="nearest")
    ax.set_aspect("equal", anchor="NW")
    if len(values) <= 10:
        for i, j in np.ndindex(values.shape):
            color = "white" if shade[i, j] > 0.5 else (MUTED if values[i, j] else FAINT)
            ax.text(
                j, i, form.format(values[i, j]), ha="center", va="center", fontsize=9, color=color
            )
    places = range(len(names))
    ax.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9.5)
    ax.set_yticks(places, names, fontsize=9.5)
    ax.tick_params(axis="x", colors=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)


AFTER: dict[str, Callable[..., None]] = {
    "return_correlation": draw_returns,
    "decision_lift": draw_lift,
    "exploitability": draw_exploitability,
    "drift": draw_drift,
    "surprise": draw_surprise,
}


def page(
    report: dict[str, Any],
    *,
    videos: Sequence[SideBySide] = (),
    branches: Sequence[BranchPicture] = (),
) -> bytes:
    """The main plots on one page, as PNG, 2400 pixels wide; of films and branches the first."""
    part, others = report["prediction"], report.get("columns") or {}
    following, branching = report["action_following"], report["branching"]
    lines = sum(len(row["columns"]) for row in report["targets"])
    targets = Column([partial(draw_targets, rows=report["targets"])], 1.0, left=3.3, right=5.7)
    rows: list[tuple[float, list[Column], float]] = [(max(2.2, 0.31 * lines), [targets], 1.25)]

    def add(height: float, gap: float, *columns: tuple[Any, Panel, float, float, float]) -> None:
        """A row of (entry, panel, weight, left, right); flat if nothing of it was run."""
        flat = all(not_run(entry) is not None for entry, *_ in columns)
        placed = [Column([panel], weight, left, right) for _, panel, weight, left, right in columns]
        rows.append((0.7, placed, 1.1) if flat else (height, placed, gap))

    def of_steps(measure: str) -> tuple[Any, Panel, float, float, float]:
        panel = partial(draw_steps, part=part, measure=measure)
        return _inside(part, "steps"), panel, 1.0, 0.5, 0.05

    def of_state(number: int) -> tuple[Any, Panel, float, float, float]:
        panel = partial(draw_state, part=part, number=number)
        return _inside(part, "state"), panel, 1.0, 0.5, 0.05

    add(2.5, 1.35, *(of_steps(m) for m in ("psnr", "psnr_moving", "ssim", "gmsd")))
    if videos:
        strip = videos[0].strip()
        height = grid_height(3, strip.rows.shape[1], strip.rows)
        add(height, 1.3, (strip, partial(draw_strip, strip=strip), 1.0, 0.3, 0.0))
    add(
        2.5, 1.35, of_state(0), of_state(1),
        (following, partial(draw_following, part=following), 1.0, 1.45, 0.75),
    )  # fmt: skip
    add(
        3.0, 1.6,
        (branching, partial(draw_branching, part=branching, others=others), 1.0, 1.2, 0.75),
        (branching, partial(draw_matrix, part=branching), 1.0, 0.9, 0.0),
        (report["inverse"], partial(draw_inverse, part=report["inverse"]), 1.0, 1.45, 0.75),
    )  # fmt: skip
    if branches:
        shown: list[tuple[Any, Panel, float, float, float]] = []
        for picture in branches[:2]:
            shown.append((picture, partial(draw_branches, picture=picture), 3.6, 0.0, 0.0))
        if branches[0].distances is not None:
            panel = partial(draw_distances, picture=branches[0])
            shown.insert(1, (branches[0], panel, 6.0, 0.9, 0.0))
        add(min(6.0, 0.65 * len(branches[0].names)), 1.6, *shown)
    for height, names in (
        (2.9, ("return_correlation", "decision_lift", "exploitability")),
        (2.9, ("drift", "surprise")),
    ):
        panels = [(report[n], partial(AFTER[n], part=report[n]), 1.0, 0.6, 0.1) for n in names]
        add(height, 1.3, *panels)
    met = [row["columns"][next(iter(row["columns"]))]["met"] for row in report["targets"]]
    head = Head(
        report.get("title", "World model"),
        report.get("subtitle", ""),
        f"{sum(m is True for m in met)} of {len(met)} targets met",
        f"{sum(m is None for m in met)} not run" if None in met else "95 % intervals throughout",
    )
    return sheet(head, rows)


def _inside(part: Any, key: str) -> Any:
    """An entry of a part, or the part where it was not run."""
    return part.get(key) if not_run(part) is None else part


def _headline(branching: Mapping[str, Any]) -> dict[str, float]:
    """Its accuracy with the interval that stands beside it."""
    found = estimate(branching, "accuracy")
    return {"value": found.value, "low": found.low, "high": found.high}


def _missing(ax: Axes, entry: Any) -> bool:
    """Leave the reason in the plot's place if there is nothing to plot."""
    why = not_run(entry)
    if why is None:
        return False
    ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, color=ABSENT, lw=0))
    say_nothing(ax, "\n".join(textwrap.wrap(f"not run: {why}", 30)))
    return True


def _below_title(ax: Axes, text: str) -> None:
    """A line where other panels have their legend."""
    ax.annotate(
        text, (0, 1), xytext=(0, 8), xycoords="axes fraction", textcoords="offset points",
        color=MUTED, fontsize=10,
    )  # fmt: skip


def _square(ax: Axes) -> None:
    """Shares against shares."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([0, 0.25, 0.5, 0.75, 1])
        axis.set_major_formatter(FuncFormatter(_percent))
    ax.set_xlim(-0.03, 1.03)
    ax.set_ylim(-0.03, 1.03)
    ax.set_aspect("equal", anchor="W")
    ax.grid()


def _finish(ax: Axes) -> None:
    ax.margins(x=0.02)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    _legend(ax, 3)


def _legend(ax: Axes, columns: int) -> None:
    if ax.get_legend_handles_labels()[0]:
        legend_below_title(ax, columns)


def _candidates(ax: Axes, numbers: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(numbers), [str(n) for n in numbers])
    ax.minorticks_off()
    ax.margins(x=0.06)
    ax.set_xlabel("candidate plans N")


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.0f} %" if value in (0.0, 1.0) else f"{100 * value:.0f}"
