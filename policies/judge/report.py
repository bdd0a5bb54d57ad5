"""The report of a world model: one dictionary, written as JSON, as a web page and as a picture.

`write_worldmodel_report` writes ``report.json``, ``report.html`` (self-contained) and
``report.png``. The dictionary has one entry a part, in the order in which they are read: what looks
right says little about what helps control, so pictures come first and count least.

An *estimate* is a number, or a mapping with ``mean`` (or ``value``, or ``rate``), ``low`` and
``high``, such as `policies.statistics.Interval.to_dict`. Numbers that a target is set for are bare,
with their intervals beside them: ``part["intervals"][key] = [low, high]``, or for ``accuracy``,
``auroc`` and ``true_beats_shuffled`` the part's own ``low`` and ``high``. In place of any part, and
of any entry marked (*), stands ``{"not_run": "why"}`` where it was not run; a part that is left out
was "not measured in this run". NaN becomes null. Rates are shares in [0, 1], "L" is a list with an
estimate for each entry of ``frames`` (frames ahead) or ``n`` (candidate plans).

::

    title, subtitle     in words
    name                of the checkpoint, where several are compared
    stamp               how this was made

    prediction          psnr_gain_db_at_8 (on moving pixels, over copying), intervals, n, episodes
      steps (*)         frames, model, copy_last, mean_frame, grey: each psnr L, psnr_moving L,
                        ssim L, gmsd L (*), lpips L (*)
      gains_over        floor -> {psnr_moving L, psnr L}, paired; gain_over_best_floor_at_8: of
                        either, an estimate and which floor
      fvd (*)           estimate
      state (*)         frames, errors: list of {name, unit, model L, floor L, floor_name, real L
                        (*)}, what a linear probe reads from imagined and from real frames
    action_following    true_beats_shuffled, low, high; true_beats_zero (*); error: {true, shuffled,
                        zero}; gap (shuffled minus true, paired); unit, n, episodes
    branching           k, accuracy, low, high, chance, n, starts, confusion [K][K]
                        (`policies.judge.ranking.Branching.to_dict`); names; by_frame (*): {frames,
                        accuracy L}; difference_correlation (*), displacement_cosine (*)
    inverse             imagined, real (floor), present_only (without the later frame), repeat
                        (repeat the current joints), cycle (*) and own_on_real (*) (the model's own,
                        a diagnostic); unit, n, episodes
    return_correlation  pearson, spearman, mmrv, intervals, reasons, n, episodes
                        (`policies.judge.ranking.correlations`); policies: list of {name, real,
                        imagined}
    decision_lift       n, planner L, simulator L (*) (ceiling), policy (*) (alone),
                        policy_same_time L (*) (as much time as planning takes), episodes, foresight
                        and simulator_foresight (control steps); lacking (*):
                        `policies.judge.decisions.lacking`
    exploitability      n, gap L (predicted minus realised return of the chosen plan), predicted L
                        (*), realised L (*), growth (*) (gap at most candidates minus at fewest),
                        unit, episodes
    drift               frames, forms: {"window": {error L} (*), "causal": {error L} (*)}, copy_last
                        L, mean_frame L (*), unit, episodes; window_minus_causal; each form's
                        horizon is added
    surprise            auroc, low, high; faults: name -> (*) {auroc, low, high, fpr, tpr,
                        positives, negatives}; more: `policies.judge.surprise.run_surprise`
    frames_per_s        estimate, with any facts (device, batch, steps, form)
    columns             name -> parts as above, of other checkpoints: shown beside this one where
                        targets are judged
    targets             added: `policies.judge.targets.judged`
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import figure as plots
from ..media import data_uri
from ..report import ReportPaths, embedded, strict, template
from . import figure
from .media import BranchPicture, SideBySide
from .ranking import drift_horizon
from .targets import (
    NOT_MEASURED,
    PARTS,
    asked,
    checkpoints,
    estimate,
    judged,
    not_run,
    with_interval,
    words,
)

CURVES = frozenset(
    [
        *(*figure.MEASURES, *figure.LIFT, *figure.GUESSES),
        *("real", "floor", "accuracy", "gap", "predicted", "realised", "error"),
    ]
)
"""Entries that are lists along frames or candidates."""


def write_worldmodel_report(
    report: Mapping[str, Any],
    folder: str | Path,
    *,
    videos: Sequence[SideBySide] = (),
    branches: Sequence[BranchPicture] = (),
) -> ReportPaths:
    """Write ``report.json``, ``report.html`` and ``report.png`` into `folder`.

    Args:
        report: as the module describes it.
        videos: imagined beside real futures; the picture shows the first.
        branches: futures of one start after K action sequences; the picture shows the first.

    Raises:
        ValueError: an entry looks like a misspelt part, or lists do not fit their frames.
    """
    whole = completed(report)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(target / "report.json", target / "report.html", target / "report.png")
    paths.json.write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n")
    paths.png.write_bytes(figure.page(whole, videos=videos, branches=branches))
    paths.html.write_text(_html(whole, videos, branches), encoding="utf-8")
    return paths


def completed(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report in JSON's own types, with every part, the drift horizons and the targets.

    Raises:
        ValueError: as `write_worldmodel_report`.
    """
    whole = strict(report)
    for name, parts in checkpoints(whole).items():
        for key in parts:
            near = difflib.get_close_matches(key, PARTS, 1, 0.8)
            if key not in PARTS and near and near[0] not in parts:
                raise ValueError(f"{name} has no part {key!r}: did you mean {near[0]!r}?")
        for part, entry in parts.items():
            if part in PARTS:
                _check_lengths(entry, f"{name}: {part}")
        drift: Any = parts.get("drift") or None
        if not_run(drift) is None:
            for form in drift["forms"].values():
                if not_run(form) is None and not_run(drift.get("copy_last")) is None:
                    errors = [
                        [estimate(v).value for v in values]
                        for values in (form["error"], drift["copy_last"])
                    ]
                    form["horizon"] = drift_horizon(drift["frames"], *errors)
    left_out = [part for part in PARTS if whole.get(part) in (None, {})]
    whole |= {part: {"not_run": NOT_MEASURED} for part in left_out}
    return whole | {"targets": judged(whole), "stamp": whole.get("stamp", {})}


def _check_lengths(entry: Any, where: str, expected: int | None = None) -> None:
    """Every list of estimates is as long as the frames or candidates that it goes with."""
    if not isinstance(entry, Mapping):
        return
    along = entry.get("frames") or entry.get("n")
    if isinstance(along, list):
        expected = len(along)
    for key, value in entry.items():
        curve = isinstance(value, list) and key in CURVES
        if curve and expected is not None and len(value) != expected:
            raise ValueError(
                f"{where}.{key} has {len(value)} entries for {expected} frames or candidates"
            )
        if key == "errors":
            for number, row in enumerate(value):
                _check_lengths(row, f"{where}.errors[{number}]", expected)
        _check_lengths(value, f"{where}.{key}", expected)


def _html(
    report: dict[str, Any], videos: Sequence[SideBySide], branches: Sequence[BranchPicture]
) -> str:
    pictures: dict[str, tuple[plots.Panel, float, float]] = {}
    parts = {part: report[part] for part in PARTS}
    shown = {part: entry for part, entry in parts.items() if not_run(entry) is None}
    others = report.get("columns") or {}
    if (prediction := shown.get("prediction")) is not None:
        if not_run(prediction.get("steps")) is None:
            for measure in figure.MEASURES:
                curve = prediction["steps"]["model"].get(measure)
                if not_run(curve) is None:
                    panel = partial(figure.draw_steps, part=prediction, measure=measure)
                    pictures[measure] = (panel, 5.4, 3.2)
        if not_run(prediction.get("state")) is None:
            for number in range(len(prediction["state"]["errors"])):
                panel = partial(figure.draw_state, part=prediction, number=number)
                pictures[f"state_{number}"] = (panel, 5.4, 3.2)
    panels_of: dict[str, dict[str, tuple[Callable[..., None], float, float]]] = {
        "action_following": {"following": (figure.draw_following, 5.4, 2.2)},
        "branching": {
            "branching": (partial(figure.draw_branching, others=others), 5.4, 2.4),
            "matrix": (figure.draw_matrix, 5.4, 4.4),
        },
        "inverse": {"inverse": (figure.draw_inverse, 6.4, 2.6)},
        "return_correlation": {"returns": (figure.draw_returns, 6.0, 4.2)},
        "decision_lift": {"lift": (figure.draw_lift, 6.4, 3.8)},
        "exploitability": {"exploitability": (figure.draw_exploitability, 6.4, 3.8)},
        "drift": {"drift": (figure.draw_drift, 7.4, 3.4)},
        "surprise": {"surprise": (figure.draw_surprise, 6.0, 3.8)},
    }
    for part, panels in panels_of.items():
        if part in shown:
            for name, (draw, width, height) in panels.items():
                pictures[name] = (partial(draw, part=shown[part]), width, height)
    drawn = {
        name: data_uri(plots.panel_png(panel, width, height), "image/png")
        for name, (panel, width, height) in pictures.items()
    }
    met = [next(iter(row["columns"].values()))["met"] for row in report["targets"]]
    return template("worldmodel.html").render(
        report=report,
        titles=PARTS,
        names=list(checkpoints(report)),
        plots=drawn,
        measures=[m for m in figure.MEASURES if m in drawn],
        measure_names=figure.MEASURES,
        guesses=figure.GUESSES,
        forms=figure.FORMS,
        met=sum(m is True for m in met),
        not_run=not_run,
        estimate=estimate,
        words=words,
        asked=asked,
        shown=lambda entry, key="", unit="": with_interval(estimate(entry, key), unit),
        videos=[_side_by_side(video) for video in videos],
        branches=[_branches(picture) for picture in branches],
    )


def _side_by_side(video: SideBySide) -> dict[str, Any]:
    strip = video.strip()
    strip.title = ""  # the page has it above the film
    frames, height = strip.rows.shape[1], strip.rows.shape[2] / strip.rows.shape[3]
    width = max(6.0, min(14.0, 1.3 * frames + 1))
    picture = plots.panel_png(
        partial(plots.draw_strip, strip=strip), width, width / frames * 3 * height + 0.3
    )
    return {
        "title": video.title,
        "caption": video.caption,
        "labels": video.labels,
        "film": embedded(video.film())["source"],
        "picture": data_uri(picture, "image/png"),
    }


def _branches(picture: BranchPicture) -> dict[str, Any]:
    count, columns = len(picture.names), 2 * len(picture.frames)
    aspect = picture.real.shape[2] / picture.real.shape[3]
    grid = plots.panel_png(
        partial(figure.draw_branches, picture=replace(picture, title="")),
        1.1 * (columns + 1.6), 1.1 * count * aspect + 0.9,
    )  # fmt: skip
    matrix = None
    if picture.distances is not None:
        panel = partial(figure.draw_distances, picture=picture)
        matrix = data_uri(plots.panel_png(panel, 5.4, 5.0), "image/png")
    return {
        "title": picture.title,
        "caption": picture.caption,
        "grid": data_uri(grid, "image/png"),
        "matrix": matrix,
    }
