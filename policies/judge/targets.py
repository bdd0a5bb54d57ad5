"""What is asked of a world model, and reading a report's numbers: value, interval, or why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARTS = {
    "prediction": "Prediction",
    "action_following": "Action following",
    "branching": "Counterfactual branching",
    "inverse": "Independent inverse dynamics",
    "return_correlation": "Imagined against simulated success",
    "decision_lift": "Decision lift",
    "exploitability": "Exploitability",
    "drift": "Drift",
    "surprise": "Surprise",
    "frames_per_s": "Speed",
}
"""The parts of a report in the order in which they are read, and their titles."""

NOT_MEASURED = "not measured in this run"
VALUES = ("mean", "value", "rate")
# Of these the interval stands beside the number, as the part's own `low` and `high`.
HEADLINES = ("accuracy", "auroc", "true_beats_shuffled")


@dataclass(frozen=True)
class Estimate:
    """A number of a report.

    Attributes:
        value: NaN where there is none.
        low, high: its 95 % interval; NaN where there is none.
        why: why there is no number, or "".
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    why: str = ""

    @property
    def known(self) -> bool:
        return math.isfinite(self.value)

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True)
class Target:
    """A number that a world model should reach.

    Attributes:
        name: in words.
        part, key: where the report has it; key "" means the part itself.
        at_least: the target.
        unit: "%" (the number is a share), "dB", "/s", or "" for a bare number.
        chance: what a model without knowledge scores; None where it is not a matter of chance.
        top: of the scale that it is drawn on.
    """

    name: str
    part: str
    key: str
    at_least: float
    unit: str = ""
    chance: float | None = None
    top: float = 1.0


TARGETS = (
    Target(
        "true actions beat shuffled ones", "action_following", "true_beats_shuffled", 0.95, "%", 0.5
    ),
    Target("branches matched with their own", "branching", "accuracy", 0.8, "%", 0.125),
    Target(
        "gain on moving pixels, 8 frames on",
        "prediction",
        "psnr_gain_db_at_8",
        3.0,
        "dB",
        None,
        6.0,
    ),
    Target("rank correlation with success", "return_correlation", "spearman", 0.8, "", 0.0),
    Target("imagined frames per second", "frames_per_s", "", 20.0, "/s", None, 40),
)


def not_run(part: Any) -> str | None:
    """Why a part of a report (or an entry in it) was not run; None where it was."""
    if part is None:
        return NOT_MEASURED
    if isinstance(part, Mapping) and "not_run" in part:
        return str(part["not_run"])
    return None


def estimate(entry: Any, key: str = "") -> Estimate:
    """The number that an entry of a report is, or that a part has under `key`.

    A number may be bare, or a mapping with its value (``mean``, ``value`` or ``rate``), ``low`` and
    ``high``. The interval of a bare one under `key` is ``part["intervals"][key]``, or for a part's
    headline (``accuracy``, ``auroc``, ``true_beats_shuffled``) the part's ``low`` and ``high``.
    """
    if (why := not_run(entry)) is not None:
        return Estimate(why=why)
    if key:
        found = entry.get(key)
        if isinstance(found, Mapping) or found is None:
            reason = entry.get("reasons", {}).get(key) or entry.get("reason")
            return Estimate(why=reason) if found is None and reason else estimate(found)
        beside = (entry.get("low"), entry.get("high")) if key in HEADLINES else (None, None)
        low, high = entry.get("intervals", {}).get(key) or beside
        return Estimate(_float(found), _float(low), _float(high))
    if isinstance(entry, Mapping):
        value = next((entry[name] for name in VALUES if name in entry), None)
        if value is None:
            return Estimate(why=str(entry.get("reason") or NOT_MEASURED))
        return Estimate(_float(value), _float(entry.get("low")), _float(entry.get("high")))
    return Estimate(_float(entry))


def judged(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with what each checkpoint of the report measured.

    Returns:
        One row a target: ``name``, ``target``, ``unit``, ``chance``, ``top``, and ``columns``: name
        of the checkpoint -> ``value``, ``low``, ``high`` (None where unknown), ``met`` (None where
        there is no number) and ``why`` (there is none).
    """
    rows = []
    for target in TARGETS:
        columns = {}
        for name, parts in checkpoints(report).items():
            found = estimate(parts.get(target.part), target.key)
            columns[name] = {
                "value": _known(found.value),
                "low": _known(found.low),
                "high": _known(found.high),
                "met": found.value >= target.at_least if found.known else None,
                "why": "" if found.known else found.why or "undefined",
            }
        part = report.get(target.part)
        # Chance is 1/K for however many branches there were.
        stated = part.get("chance") if isinstance(part, Mapping) else None
        chance = target.chance if stated is None else stated
        rows.append(
            {
                "name": target.name,
                "target": target.at_least,
                "unit": target.unit,
                "top": target.top,
                "chance": chance,
                "columns": columns,
            }
        )
    return rows


def checkpoints(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name -> parts: the report's own checkpoint first, then those of ``columns``."""
    return {str(report.get("name", "this checkpoint")): report, **(report.get("columns") or {})}


def words(value: float, unit: str) -> str:
    """A number with its unit, as a reader wants it."""
    if not math.isfinite(value):
        return "–"
    if unit == "%":
        return f"{100 * value:.1f} %"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    number = f"{value:,.{min(digits, 4)}f}"
    return f"{number}{unit}" if unit.startswith("/") else f"{number} {unit}".rstrip()


def asked(value: float, unit: str) -> str:
    """A target with its unit: a round number, so without digits that say nothing."""
    if unit == "%":
        return f"{100 * value:g} %"
    return f"{value:g}{unit}" if unit.startswith("/") else f"{value:g} {unit}".rstrip()


def with_interval(found: Estimate, unit: str = "") -> str:
    """The same with its interval in brackets, or why there is none."""
    if not found.known:
        return f"not run: {found.why}" if found.why else "–"
    if not found.bounded:
        return words(found.value, unit)
    low, high = (words(bound, unit if unit == "%" else "") for bound in (found.low, found.high))
    return f"{words(found.value, unit)} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
