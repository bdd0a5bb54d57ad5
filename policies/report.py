"""The report of an evaluation: one dictionary, written as JSON, as a web page and as a picture.

`build_report` turns evaluations into the dictionary; `write_report` writes ``report.json``,
``report.html`` (self-contained: style, plots and videos are inside the file) and ``report.png``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from . import figure, scores
from .evaluation import Evaluation
from .media import Strip, Video, data_uri, encode_mp4
from .smoothness import MotionLimits
from .statistics import paired_difference, proportion

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class ReportPaths:
    """Where a report was written."""

    json: Path
    html: Path
    png: Path


def build_report(
    evaluation: Evaluation,
    axes: scores.Axes,
    *,
    floors: Mapping[str, Evaluation] | None = None,
    expert: Evaluation | None = None,
    single: Evaluation | None = None,
    limits: MotionLimits | None = None,
) -> dict[str, Any]:
    """All numbers of an evaluation; see the README for their meaning.

    Args:
        evaluation: of the policy in question.
        floors: name -> evaluation of a trivial policy, on the same seeds.
        expert: evaluation of the demonstrator on the same seeds; its successful episodes are the
            demonstrations that smoothness and completion time are compared with.
        single: a run of the policy with one slot, which latency is taken from (chunks computed
            for many slots at once take longer than one arm waits); by default `evaluation`.
        limits: of the joints; adds the shares of steps beyond them.

    Raises:
        ValueError: if floors or expert ran on other seeds.
    """
    for name, other in {**(floors or {}), **({"expert": expert} if expert else {})}.items():
        if other.seeds != evaluation.seeds:
            raise ValueError(f"{name!r} and the policy were evaluated on different seeds")
    latency = scores.latency((single or evaluation).calls)
    latency["slots"] = (single or evaluation).num_envs
    return {
        "policy": evaluation.policy,
        "success": evaluation.success.to_dict(),
        "solved_at_reset": proportion([e.solved_at_reset for e in evaluation.episodes]).to_dict(),
        "floors": {name: floor.success.to_dict() for name, floor in (floors or {}).items()},
        "expert": expert.success.to_dict() if expert else None,
        "to_expert": paired_difference(evaluation.outcomes, expert.outcomes).to_dict()
        if expert
        else None,
        "modes": scores.modes(evaluation),
        "expert_modes": scores.modes(expert) if expert else None,
        "completion_time": scores.completion_time(evaluation, expert),
        "lag": scores.lag(evaluation, axes),
        "expert_lag": scores.lag(expert, axes) if expert else None,
        "smoothness": scores.smoothness(evaluation, axes, expert, limits),
        "axes": {"names": list(axes.names), "unit": axes.unit, "kind": axes.kind},
        "chunk_period": scores.chunk_period(evaluation),
        "latency_ms": latency,
        "fps": evaluation.fps,
        "seconds": evaluation.seconds,
        "episodes": scores.episode_rows(evaluation),
    }


def seeds_of(report: Mapping[str, Any]) -> list[int]:
    """The episode seeds of a report."""
    return [row["seed"] for row in report["episodes"]]


def require_same_resets(mine: Sequence[int], theirs: Sequence[int]) -> None:
    """Refuse to pair evaluations that ran on different episode seeds.

    Raises:
        ValueError: if the two differ, naming both ranges.
    """
    if list(mine) != list(theirs):
        raise ValueError(
            f"a paired difference needs the same resets, but the seeds differ: "
            f"{_range(mine)} here, {_range(theirs)} there"
        )


def compare(report: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Paired difference in success of two reports on the same resets (`report` minus `other`).

    Policies with other cameras or picture sizes may be compared: the resets are the same.

    Raises:
        ValueError: if they ran on different seeds or in different worlds.
    """
    require_same_resets(seeds_of(report), seeds_of(other))
    world, other_world = _world(report), _world(other)
    if world != other_world:
        raise ValueError(
            f"a paired difference needs the same world, but it is {world} here, {other_world} there"
        )
    a, b = ([row["success"] for row in r["episodes"]] for r in (report, other))
    return paired_difference(a, b).to_dict()


def write_report(
    report: Mapping[str, Any],
    folder: str | Path,
    *,
    videos: Sequence[Video] = (),
    strips: Sequence[Strip] = (),
    view: figure.TopView | None = None,
    trace: figure.JointTrace | None = None,
) -> ReportPaths:
    """Write ``report.json``, ``report.html`` and ``report.png`` into `folder`.

    Args:
        report: from `build_report`, with any further entries (``title``, ``subtitle``, ``stamp``).
        videos: filmed episodes; the first success (else the first) is the page's row of pictures.
        strips: films to compare frame by frame, such as real above imagined.
        view: paths from above.
        trace: commands and motion of one episode.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(target / "report.json", target / "report.html", target / "report.png")
    clean = strict(report)
    paths.json.write_text(json.dumps(clean, indent=2, allow_nan=False) + "\n")
    film = next((v for v in videos if v.success), videos[0] if videos else None)
    paths.png.write_bytes(figure.page(clean, view=view, trace=trace, film=film, strips=strips))
    paths.html.write_text(_html(clean, videos, strips, view, trace), encoding="utf-8")
    return paths


def strict(value: Any) -> Any:
    """The value in JSON's own types: no numpy, no tuples, and None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return strict(value.tolist())
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, np.generic):
        return strict(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON: {value!r}")


def _html(
    report: dict[str, Any],
    videos: Sequence[Video],
    strips: Sequence[Strip],
    view: figure.TopView | None,
    trace: figure.JointTrace | None,
) -> str:
    panels: dict[str, tuple[figure.Panel, float, float]] = {
        "success": (partial(figure.draw_success, report=report), 7.4, 2.7),
        "smoothness": (partial(figure.draw_smoothness, report=report), 7.4, 3.6),
        "latency": (partial(figure.draw_latency, report=report), 4.6, 2.2),
    }
    if report["modes"]["shares"]:
        panels["modes"] = (partial(figure.draw_modes, report=report), 4.6, 1.9)
    if view is not None:
        panels["view"] = (partial(figure.draw_top_view, view=view), 4.6, 4.2)
    if trace is not None:
        panels["trace"] = (partial(figure.draw_joints, trace=trace), 7.4, 3.8)
    plots = {
        name: data_uri(figure.panel_png(panel, width, height), "image/png")
        for name, (panel, width, height) in panels.items()
    }
    return template("report.html").render(
        report=report,
        plots=plots,
        successes=[embedded(v) for v in videos if v.success],
        failures=[embedded(v) for v in videos if v.success is False],
        others=[embedded(v) for v in videos if v.success is None],
        strips=[embedded_strip(strip) for strip in strips],
        metric_names=figure.METRIC_NAMES,
    )


def template(name: str) -> Template:
    """One of the pages in ``templates/``, with the filters ``number`` and ``percent``."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": _percent}
    return environment.get_template(name)


def embedded(video: Video) -> dict[str, str]:
    """The film as a page embeds it."""
    mp4 = encode_mp4(video.frames, video.fps, min_height=240)
    return {
        "title": video.title,
        "caption": video.caption,
        "source": data_uri(mp4, "video/mp4"),
    }


def embedded_strip(strip: Strip) -> dict[str, str]:
    """The strip as a page embeds it, as picture and as film."""
    frames = strip.rows.shape[1]
    width = max(6.0, min(14.0, 1.3 * frames + 1))
    height = width / max(frames, 1) * len(strip.rows) * strip.rows.shape[2] / strip.rows.shape[3]
    picture = figure.panel_png(partial(figure.draw_strip, strip=strip), width, height + 0.6)
    return {
        "title": strip.title,
        "labels": " | ".join(strip.labels),
        "caption": strip.caption,
        "picture": data_uri(picture, "image/png"),
        "film": embedded(strip.film())["source"],
    }


def _number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits; a dash for one that does not exist."""
    if value is None:
        return "–"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _world(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the resets depend on: the environment without what only the policy's eyes see.

    A world model imagines from the resets of a simulated world: the two may be compared.
    """
    environment = dict(report.get("environment") or {})
    for name in ("imagined", "world_model"):
        environment.pop(name, None)
    options = environment.get("options") or {}
    seen = ("cameras", "image_size")
    return environment | {"options": {k: v for k, v in options.items() if k not in seen}}


def _range(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} from {min(seeds)} to {max(seeds)}" if seeds else "none"
