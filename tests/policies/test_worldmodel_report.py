"""A world model's report: all of it, almost none of it, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from policies.judge.ranking import Branching, auroc, branching_accuracy, correlations, roc_curve
from policies.judge.report import BranchPicture, SideBySide, completed, write_worldmodel_report
from policies.judge.targets import PARTS, Estimate, estimate, judged, with_interval
from policies.statistics import mean_interval, proportion

FRAMES = list(range(1, 17))
NAMES = ["expert", "mirrored", "left", "right", "still", "forward", "random 1", "random 2"]


def curve(start, end, count=16, width=0.05):
    values = np.linspace(start, end, count)
    return [
        {"mean": v, "low": v - width * abs(v), "high": v + width * abs(v)} for v in values.tolist()
    ]


def scene(at, size=32):
    """A red square on a grey slope."""
    picture = np.broadcast_to(np.linspace(90, 160, size)[:, None, None], (size, size, 3)).copy()
    x, y = (int(v) for v in at)
    picture[y : y + 6, x : x + 6] = (210, 60, 50)
    return picture.astype(np.uint8)


def film(count=16, off=0.0):
    return np.stack([scene((4 + 1.2 * t, 12 + off * t)) for t in range(count)])


def branches(off=0):
    angles = np.linspace(0, 2 * np.pi, len(NAMES), endpoint=False)
    return np.stack(
        [
            np.stack([scene((13 + r * np.cos(a), 13 + r * np.sin(a) + off)) for r in (6, 11)])
            for a in angles
        ]
    )


def branching(rng) -> Branching:
    return branching_accuracy(rng.random((40, 8, 8)) + 0.45 * (1 - np.eye(8)))


@pytest.fixture(scope="module")
def full():
    rng = np.random.default_rng(0)
    rates = np.linspace(0.02, 0.97, 12)
    luck = rng.random((1, 50))
    real = luck < rates[:, None]
    imagined = rng.random((12, 50)) < (0.1 + 0.75 * rates)[:, None]
    labels = np.arange(60) % 2 == 0
    faults = {}
    for name, shift in (("hand pushed", 2.2), ("cube moved", 1.0), ("camera dark", 5.0)):
        scores = rng.normal(size=60) + shift * labels
        fpr, tpr, _ = roc_curve(scores, labels)
        faults[name] = auroc(scores, labels).to_dict() | {"fpr": fpr, "tpr": tpr}
    ways = {"model": (31, 24), "copy_last": (28, 17), "mean_frame": (20, 19)}
    steps = {"frames": FRAMES} | {
        name: {
            "psnr": curve(a, b, width=0.02),
            "psnr_moving": curve(a - 9, b - 8, width=0.04),
            "ssim": curve(a / 33, b / 33, width=0.01),
            "gmsd": curve(2 / a, 4 / b),
            "lpips": {"not_run": "AlexNet's weights are not in the torch hub cache"},
        }
        for name, (a, b) in ways.items()
    }
    report = {
        "title": "World model of reach_around",
        "subtitle": "small, causal, 20,000 steps; 40 held-out episodes",
        "name": "with exploration",
        "prediction": {
            "psnr_gain_db_at_8": 4.1,
            "intervals": {"psnr_gain_db_at_8": [3.4, 4.8]},
            "n": 400,
            "episodes": 40,
            "steps": steps,
            "fvd": {"not_run": "no file with I3D's weights is named"},
            "state": {
                "frames": FRAMES,
                "errors": [
                    {
                        "name": "fingertip",
                        "unit": "cm",
                        "model": curve(0.3, 2.1),
                        "floor": curve(0.9, 8.2),
                        "real": curve(0.25, 0.3),
                    },
                    {
                        "name": "joints",
                        "unit": "degrees",
                        "model": curve(0.6, 3.0),
                        "floor": curve(1.1, 14.0),
                        "floor_name": "hold still",
                    },
                ],
            },
        },
        "action_following": {
            "true_beats_shuffled": 0.968,
            "low": 0.951,
            "high": 0.981,
            "true_beats_zero": {"mean": 0.94, "low": 0.91, "high": 0.96},
            "error": {
                "true": mean_interval(rng.gamma(4, 2, 90)).to_dict(),
                "shuffled": mean_interval(rng.gamma(4, 6, 90)).to_dict(),
                "zero": mean_interval(rng.gamma(4, 5, 90)).to_dict(),
            },
            "gap": {"mean": 16.0, "low": 14.0, "high": 18.0},
            "unit": "grey levels",
            "n": 400,
            "episodes": 40,
        },
        "branching": branching(rng).to_dict()
        | {
            "names": NAMES,
            "by_frame": {
                "frames": [8, 16],
                "accuracy": [
                    {"mean": 0.86, "low": 0.82, "high": 0.9},
                    {"mean": 0.79, "low": 0.74, "high": 0.84},
                ],
            },
            "difference_correlation": {"mean": 0.81, "low": 0.78, "high": 0.84},
            "displacement_cosine": {"not_run": "the probe has no fingertip"},
        },
        "inverse": {
            "imagined": {"mean": 0.031, "low": 0.028, "high": 0.034},
            "real": {"mean": 0.022, "low": 0.02, "high": 0.024},
            "repeat": {"mean": 0.071, "low": 0.066, "high": 0.077},
            "cycle": {"mean": 0.012, "low": 0.011, "high": 0.013},
            "unit": "rad",
            "n": 400,
        },
        "return_correlation": correlations(real, imagined)
        | {
            "policies": [
                {
                    "name": f"noise {1 - rate:.2f}",
                    "real": proportion(a).to_dict(),
                    "imagined": proportion(b).to_dict(),
                }
                for rate, a, b in zip(rates, real, imagined, strict=True)
            ]
        },
        "decision_lift": {
            "n": [1, 4, 16, 64],
            "planner": curve(0.58, 0.78, 4, 0.08),
            "simulator": curve(0.6, 0.97, 4, 0.04),
            "policy": {"mean": 0.58, "low": 0.51, "high": 0.65},
            "policy_same_time": curve(0.58, 0.6, 4, 0.1),
            "episodes": 200,
        },
        "exploitability": {
            "n": [1, 4, 16, 64],
            "predicted": curve(0.55, 0.82, 4, 0.05),
            "realised": curve(0.53, 0.74, 4, 0.05),
            "gap": curve(0.02, 0.08, 4, 0.4),
            "growth": {"mean": 0.06, "low": -0.01, "high": 0.13},
            "episodes": 200,
        },
        "drift": {
            "frames": list(range(8, 328, 8)),
            "forms": {
                "window": {"error": curve(6, 40, 40)},
                "causal": {"error": curve(5, 24, 40)},
            },
            "copy_last": curve(18, 30, 40, 0.03),
            "unit": "grey levels",
        },
        "surprise": {"auroc": 0.93, "low": 0.89, "high": 0.96, "faults": faults},
        "frames_per_s": {"mean": 46.0, "low": 44.0, "high": 47.0, "device": "cpu", "batch": 1},
        "stamp": {"git": "0" * 40, "seed": 0},
    }
    weaker: Any = copy.deepcopy({k: report[k] for k in ("prediction", "action_following")})
    weaker["prediction"]["psnr_gain_db_at_8"] = 2.2
    weaker["prediction"]["intervals"] = {"psnr_gain_db_at_8": [1.6, 2.9]}
    weaker["action_following"] |= {"true_beats_shuffled": 0.91, "low": 0.88, "high": 0.93}
    weaker["branching"] = branching_accuracy(
        rng.random((40, 8, 8)) + 0.15 * (1 - np.eye(8))
    ).to_dict()
    report["columns"] = {"demonstrations only": weaker}
    return report


def pictures():
    futures = SideBySide("Held-out episode 3", film(), film(off=0.25), 20.0, "The first window.")
    apart = branches(2)[:, None, -1].astype(float) - branches()[None, :, -1]
    distances = np.sqrt(np.square(apart).mean((2, 3, 4)))
    fork = BranchPicture("One start", NAMES, [8, 16], branches(), branches(2), distances)
    return [futures], [fork]


class Page(HTMLParser):
    """Text of every section, by its id, and whether all tags are closed."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.section, self.sections = "", {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
            self.sections[self.section] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data):
        if self.section:
            words = self.sections[self.section] + " " + data
            self.sections[self.section] = " ".join(words.split())


def test_everything_is_written(full, tmp_path):
    videos, forks = pictures()
    paths = write_worldmodel_report(full, tmp_path / "deep", videos=videos, branches=forks)
    read = json.loads(paths.json.read_text(), parse_constant=pytest.fail)
    assert set(PARTS) <= set(read)
    assert read["branching"]["chance"] == 1 / 8
    html = paths.html.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", html), "the page needs other files"
    assert html.count("data:video/mp4;base64,") == 1
    sections = Page(html).sections
    assert list(sections) == ["targets", *PARTS, "stamp"]
    for part in PARTS:
        assert PARTS[part] in sections[part]
    for part, text in {
        "targets": "96.8 % [95.1, 98.1] yes 91.0 % [88.0, 93.0] no",
        "prediction": "not run: AlexNet's weights are not in the torch hub cache (LPIPS)",
        "action_following": "96.8 % [95.1, 98.1]",
        "branching": "not run: the probe has no fingertip",
        "drift": "beyond 320 frames",
        "surprise": "camera dark",
        "frames_per_s": "46.0 [44.0, 47.0]",
    }.items():
        assert text in sections[part]
    assert "demonstrations only" in sections["targets"]
    assert "difference ×4" in sections["prediction"]
    assert paths.png.read_bytes().startswith(b"\x89PNG")


def test_nothing_was_run(tmp_path):
    reasons = {part: {"not_run": f"<{part}> had no time"} for part in PARTS}
    paths = write_worldmodel_report(reasons, tmp_path)
    sections = Page(paths.html.read_text()).sections
    assert list(sections) == ["targets", *PARTS]
    for part in PARTS:
        assert f"not run: <{part}> had no time" in sections[part]
    assert "not run: <frames_per_s> had no time" in sections["targets"]
    assert "0 of 5" in paths.html.read_text()


def test_what_is_left_out_is_said_to_be(tmp_path):
    paths = write_worldmodel_report({"frames_per_s": 30}, tmp_path)
    read = json.loads(paths.json.read_text())
    assert read["drift"] == {"not_run": "not measured in this run"}
    assert read["frames_per_s"] == 30
    met = [row["columns"]["this checkpoint"]["met"] for row in read["targets"]]
    assert met == [None] * 4 + [True]
    assert completed({"frames_per_s": 0, "drift": {}}) | {"targets": []} == completed(
        {"frames_per_s": 0}
    ) | {"targets": []}
    assert judged({"frames_per_s": 0})[4]["columns"]["this checkpoint"]["met"] is False


OPTIONAL = {
    "prediction": ("steps", "state", "psnr_gain_db_at_8"),
    "action_following": ("gap", "true_beats_zero"),
    "branching": ("by_frame", "confusion", "displacement_cosine"),
    "inverse": ("cycle",),
    "decision_lift": ("simulator", "policy", "policy_same_time"),
    "exploitability": ("predicted", "growth"),
    "drift": ("copy_last",),
}
ONLY_DRAWN = ("by_frame", "confusion", "copy_last")


@pytest.mark.parametrize("left_out", [True, False])
def test_entries_of_a_part_may_be_missing(full, tmp_path, left_out):
    lacking = {part: dict(full[part]) for part in OPTIONAL}
    for part, entries in OPTIONAL.items():
        for entry in entries:
            lacking[part][entry] = {"not_run": f"no {part} {entry}"}
            if left_out:
                del lacking[part][entry]
    paths = write_worldmodel_report(lacking, tmp_path)
    sections = Page(paths.html.read_text()).sections
    for part, entries in OPTIONAL.items():
        for entry in entries:
            said = f"not run: no {part} {entry}" in sections[part]
            assert said == (not left_out and entry not in ONLY_DRAWN)


def test_the_smallest_parts_are_enough(tmp_path):
    """One frame, one candidate, one fault, numbers without intervals."""
    report = {
        "prediction": {
            "psnr_gain_db_at_8": math.nan,
            "steps": {"frames": [8], "model": {"psnr": [20.0]}, "copy_last": {"psnr": [18.0]}},
        },
        "action_following": {"true_beats_shuffled": 1, "error": {"true": 1.0, "shuffled": 2.0}},
        "branching": {"k": 4, "accuracy": 0.5, "chance": 0.25, "n": 4},
        "inverse": {"imagined": 0.1, "real": 0.0},
        "return_correlation": correlations(np.ones((1, 3)), np.ones((1, 3))) | {"policies": []},
        "decision_lift": {"n": [1], "planner": [0.0]},
        "exploitability": {"n": [1], "gap": [0.0]},
        "drift": {"frames": [8], "forms": {"window": {"error": [1.0]}, "causal": {"not_run": "x"}}},
        "surprise": {"auroc": 0.5, "faults": {"a": {"not_run": "x"}}},
    }
    paths = write_worldmodel_report(report, tmp_path)
    targets = json.loads(paths.json.read_text())["targets"]
    by_name = {row["name"]: row for row in targets}
    order = by_name["rank correlation with success"]["columns"]["this checkpoint"]
    assert (order["met"], order["why"]) == (None, "one policy has no order")
    assert by_name["branches matched with their own"]["chance"] == 0.25


def test_targets_are_met_by_the_number_not_by_its_interval(full):
    rows = {row["name"]: row["columns"] for row in judged(completed(full))}
    gain = rows["gain on moving pixels, 8 frames on"]
    assert [gain[name]["met"] for name in ("with exploration", "demonstrations only")] == [
        True,
        False,
    ]
    assert gain["demonstrations only"]["high"] == 2.9
    order = rows["rank correlation with success"]
    assert order["with exploration"]["low"] < order["with exploration"]["value"]
    assert order["demonstrations only"]["why"] == "not measured in this run"


def test_estimates_are_read_in_all_their_forms():
    assert estimate(3) == estimate({"mean": 3}) == estimate({"p": {"value": 3}}, "p")
    assert estimate({"rate": 0.5, "low": 0.4, "high": 0.6}) == Estimate(0.5, 0.4, 0.6)
    part = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "k": 8, "intervals": {"k": [7, 9]}}
    assert (estimate(part, "accuracy").low, estimate(part, "k").low) == (0.4, 7)
    assert estimate({"accuracy": {"not_run": "x"}}, "accuracy").why == "x"
    assert estimate({"not_run": "y"}, "accuracy").why == "y"
    assert estimate({"pearson": None, "reasons": {"pearson": "flat"}}, "pearson").why == "flat"
    assert not estimate({"mean": None}).known
    assert with_interval(Estimate(0.5, 0.4, 0.6), "%") == "50.0 % [40.0, 60.0]"
    assert with_interval(Estimate(4.1, 3.4, 4.8), "dB") == "4.10 dB [3.40, 4.80]"
    assert with_interval(Estimate(1 / 3)) == "0.333"
    assert with_interval(Estimate(-1234.5)) == "-1,234"
    assert with_interval(Estimate(why="z")) == "not run: z"


def test_drift_horizons_are_added(full):
    drift = completed(full)["drift"]
    error, floor = ([v["mean"] for v in c] for c in (full["drift"]["forms"]["window"]["error"],
                                                     full["drift"]["copy_last"]))  # fmt: skip
    first = next(i for i in range(40) if error[i] >= floor[i])
    assert drift["forms"]["window"]["horizon"] == full["drift"]["frames"][first]
    assert drift["forms"]["causal"]["horizon"] is None


def test_misspelt_parts_and_lists_that_do_not_fit_are_refused(full):
    with pytest.raises(ValueError, match="no part 'action_folowing': did you mean 'action_follow"):
        completed({"action_folowing": {}})
    short = copy.deepcopy(full)
    short["prediction"]["steps"]["model"]["ssim"].pop()
    with pytest.raises(ValueError, match=r"prediction.steps.model.ssim has 15 entries for 16"):
        completed(short)
    short = copy.deepcopy(full)
    short["prediction"]["state"]["errors"][1]["floor"].pop()
    with pytest.raises(ValueError, match=r"state.errors\[1\].floor has 15"):
        completed(short)
    short = copy.deepcopy(full)
    short["drift"]["forms"]["causal"]["error"].pop()
    with pytest.raises(ValueError, match=r"drift.forms.causal.error has 39"):
        completed(short)


def test_the_difference_is_amplified_and_says_so():
    real, imagined = (np.full((3, 6, 8, 3), v, np.uint8) for v in (100, 110))
    imagined[1] = 250
    pair = SideBySide("", real, imagined, 10.0, gain=3)
    assert pair.difference[:, 0, 0, 0].tolist() == [30, 255, 30]
    assert (SideBySide("", imagined, real, 10.0, gain=3).difference == pair.difference).all()
    assert pair.labels[2] == "difference ×3"
    assert pair.film().frames.shape == (3, 6, 3 * 8 + 4, 3)
    strip = pair.strip(2)
    assert strip.rows.shape == (3, 2, 6, 8, 3)
    assert list(strip.columns) == ["+0.1 s", "+0.3 s"]
    with pytest.raises(ValueError, match=r"one shape .* \[3, 6, 8, 3\] and \[2, 6, 8, 3\]"):
        SideBySide("", real, imagined[:2], 10.0)
    with pytest.raises(ValueError, match="imagined frames as uint8"):
        SideBySide("", real, imagined / 255, 10.0)
    with pytest.raises(ValueError, match="3 frames have 2 times"):
        SideBySide("", real, imagined, 10.0, seconds=[1, 2])


def test_branch_pictures_are_checked():
    pictures = branches()
    with pytest.raises(ValueError, match="7 names and 2 frames have real pictures of 8"):
        BranchPicture("", NAMES[1:], [8, 16], pictures, pictures)
    with pytest.raises(ValueError, match="8 branches have distances"):
        BranchPicture("", NAMES, [8, 16], pictures, pictures, np.zeros((8, 7)))
    with pytest.raises(ValueError, match="uint8"):
        BranchPicture("", NAMES, [8, 16], pictures, pictures.astype(float))
