"""Scores and the three files of a report."""

from __future__ import annotations

import io
import json
import math
import re

import av
import numpy as np
import pytest

from policies import scores
from policies import smoothness as sm
from policies.evaluation import ChunkCall, Episode, Evaluation, evaluate, replay
from policies.figure import JointTrace, TopView
from policies.floors import HoldPolicy, RandomPolicy
from policies.media import Strip, Video, encode_mp4
from policies.report import build_report, compare, strict, write_report
from policies.smoothness import MotionLimits
from policies.types import Decision

from .worlds import ChunkedGuess, point_world

SEEDS = list(range(100, 116))
NAMES = ("x.pos", "y.pos")
AXES = scores.Axes.from_names(NAMES, NAMES, np.full(2, -1.0), np.full(2, 1.0))


class Expert(HoldPolicy):
    """Walks to the goal in ten equal steps."""

    name = "expert"

    def __init__(self, env):
        super().__init__()
        self.env, self.fresh, self.step = env, True, 0

    def act(self, observation, active):
        held = super().act(observation, active)
        self.step = 0 if self.fresh else self.step + 1
        self.fresh = False
        share = min((self.step + 1) / 10, 1.0)
        action = held.action + share * (self.env.unwrapped.goal - held.action)
        return Decision(action.astype(np.float32), active)

    def reset(self, seeds):
        super().reset(seeds)
        self.fresh = True

    def reset_slots(self, slots, seeds):
        super().reset_slots(slots, seeds)
        self.fresh = True


@pytest.fixture(scope="module")
def runs():
    env = point_world()
    return {
        "policy": evaluate(ChunkedGuess(), point_world, SEEDS, num_envs=4),
        "expert": evaluate(Expert(env), [env], SEEDS),
        "random": evaluate(RandomPolicy([-1, -1], [1, 1]), point_world, SEEDS),
        "hold": evaluate(HoldPolicy(), point_world, SEEDS),
    }


@pytest.fixture(scope="module")
def report(runs):
    return build_report(
        runs["policy"],
        AXES,
        floors={"random": runs["random"], "hold": runs["hold"]},
        expert=runs["expert"],
        limits=MotionLimits([1.0, 1.0], [5.0, 5.0], [50.0, 50.0]),
    )


def test_report_has_what_is_promised(report):
    proportion = {"n", "k", "rate", "low", "high"}
    for entry in (report["success"], report["expert"], *report["floors"].values()):
        assert set(entry) == proportion
    assert set(report["floors"]) == {"random", "hold"}
    metrics = {"rms_jerk", "ldlj", "sparc", "high_frequency_share", "chunk_boundary_ratio"}
    for path in ("commands", "motion"):
        entry = report["smoothness"][path]
        for values in (entry, entry["successes"]):
            assert metrics <= set(values)
            assert metrics <= set(values["to_demonstrations"])
        ratio = entry["successes"]["to_demonstrations"]["rms_jerk"]
        assert ratio == entry["successes"]["rms_jerk"] / entry["demonstrations"]["rms_jerk"]
    assert {"p50", "p95", "p99"} <= set(report["latency_ms"])
    assert report["success"]["k"] == sum(row["success"] for row in report["episodes"])
    assert report["expert"]["rate"] == 1
    assert report["floors"]["hold"]["k"] == 0


def test_modes_are_shares_of_the_successes(report, runs):
    modes = report["modes"]
    assert sum(modes["counts"].values()) == report["success"]["k"]
    assert sum(modes["shares"].values()) == pytest.approx(1)
    assert modes["rarer_share"] == min(modes["shares"].values())
    for way in ("left", "right"):
        expected = sum(e.success and e.mode == way for e in runs["policy"].episodes)
        assert modes["counts"][way] == expected


def test_the_expert_compared_with_itself_is_one(runs):
    report = scores.smoothness(runs["expert"], AXES, runs["expert"])
    for path in ("commands", "motion"):
        for metric, ratio in report[path]["to_demonstrations"].items():
            if not math.isnan(ratio):
                assert ratio == pytest.approx(1), metric
    time = scores.completion_time(runs["expert"], runs["expert"])
    assert time["relative_to_expert"] == pytest.approx(1)


def test_still_episodes_are_counted_not_averaged(runs):
    report = scores.smoothness(runs["hold"], AXES)
    assert report["commands"]["still"] == len(SEEDS)
    assert math.isnan(report["commands"]["sparc"])
    assert report["commands"]["rms_jerk"] == 0


def test_chunk_period(runs):
    assert scores.chunk_period(runs["policy"]) == 4
    assert scores.chunk_period(runs["random"]) is None


def test_latency_keeps_warm_up_apart():
    calls = [ChunkCall(1, ms, {"network": ms - 1}) for ms in (900.0, 30.0, 20.0, 10.0, 10.0, 12.0)]
    latency = scores.latency(calls, warmup=3)
    assert latency["warmup"] == [900.0, 30.0, 20.0]
    assert latency["p50"] == 10
    assert latency["stages"]["network"]["p50"] == 9
    assert math.isnan(scores.latency([])["p95"])


def test_axes_leave_the_gripper_out():
    names = ["joint_1.pos", "joint_2.pos", "gripper.pos"]
    axes = scores.Axes.from_names(names, names[::-1], np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert (axes.action, axes.state, axes.span) == ((0, 1), (2, 1), (1.0, 2.0))
    with pytest.raises(ValueError, match="no joint"):
        scores.Axes.from_names(["a"], ["b"], np.zeros(1), np.ones(1))


def test_changes_are_judged_by_the_path_that_they_add_up_to():
    """A world that is sent changes scores as one that is sent the same path as positions."""
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.normal(0, 0.01, (40, 2)), axis=0).astype(np.float32)
    positions = np.concatenate([[[0.0, 0.0]], path[:-1], path[-1:]]).astype(np.float32)
    changes = np.diff(path, axis=0, prepend=np.zeros((1, 2), np.float32)) / 0.05
    names, changed = ["x.pos", "y.pos"], ["delta_x", "delta_y", "gripper"]
    box = -np.ones(3), np.ones(3)
    moves = {"delta_x": "x.pos", "delta_y": "y.pos"}
    delta = scores.Axes.from_moves(moves, changed, names, *box, scale=0.05)
    assert (delta.action, delta.state, delta.names) == ((0, 1), (0, 1), ("x.pos", "y.pos"))
    absolute = scores.Axes((0, 1), (0, 1), delta.names, (0.1, 0.1))

    def evaluation(commands):
        starts = np.arange(0, 40, 8)
        row = Episode(0, True, False, 40, "", commands, positions, starts, None, 0.0)
        return Evaluation("p", 20.0, [row], [], 1, 1.0)

    sent = np.concatenate([changes, np.ones((40, 1))], axis=1).astype(np.float32)
    np.testing.assert_allclose(delta.commanded(evaluation(sent).episodes[0]), path, atol=1e-5)
    a = scores.smoothness(evaluation(sent), delta)
    b = scores.smoothness(evaluation(path), absolute)
    seam = "chunk_boundary_ratio"
    for metric in scores.METRICS:
        assert a["motion"][metric] == pytest.approx(b["motion"][metric])
        if metric != seam:
            assert a["commands"][metric] == pytest.approx(b["commands"][metric], rel=1e-3)
    assert a["commands"][seam] == pytest.approx(
        sm.chunk_boundary_ratio(changes, np.arange(0, 40, 8))
    )
    assert scores.lag(evaluation(sent), delta)["mean"] == pytest.approx(
        scores.lag(evaluation(path), absolute)["mean"], rel=1e-3
    )


@pytest.mark.parametrize("moves", [{}, {"delta_x": "y"}, {"dx": "x"}])
def test_moves_must_name_what_there_is(moves):
    with pytest.raises(ValueError, match="expected at least one of the actions.*delta_x"):
        scores.Axes.from_moves(moves, ["delta_x"], ["x"], -np.ones(1), np.ones(1))


def test_other_seeds_are_refused(runs, report):
    other = evaluate(HoldPolicy(), point_world, SEEDS[1:])
    with pytest.raises(ValueError, match="different seeds"):
        build_report(runs["policy"], AXES, floors={"hold": other})
    with pytest.raises(ValueError, match="seeds differ: 16 from 100 to 115 here, 15 from 101"):
        compare(report, build_report(other, AXES))
    moved = report | {"environment": {"name": "elsewhere"}}
    with pytest.raises(ValueError, match="same world"):
        compare(report, moved)
    assert compare(report, report)["difference"] == 0
    near, far = ({"environment": {"name": "a", "options": {"image_size": n}}} for n in (48, 96))
    assert compare(report | near, report | far)["only_a"] == 0


def test_strict_json_has_no_nan():
    value = {"a": np.float32(np.nan), "b": (1, np.int64(2)), "c": np.array([math.inf, 1.0])}
    assert strict(value) == {"a": None, "b": [1, 2], "c": [None, 1.0]}
    with pytest.raises(TypeError, match="set"):
        strict({"a": {1}})


def test_write_report(runs, report, tmp_path):
    episodes = runs["policy"].episodes
    won = next(e for e in episodes if e.success)
    lost = next(e for e in episodes if not e.success)
    videos = [
        Video("<one>", replay(point_world(render_mode="rgb_array"), e), 10, e.success)
        for e in (won, lost)
    ]
    rows = np.random.default_rng(0).integers(0, 255, (2, 5, 12, 12, 3), np.uint8)
    paths = write_report(
        report,
        tmp_path / "deep" / "folder",
        videos=videos,
        strips=[Strip("imagined beside real", rows, ["real", "imagined"])],
        view=TopView(
            [e.positions for e in episodes],
            [e.mode for e in episodes],
            [e.success for e in episodes],
        ),
        trace=JointTrace(
            np.arange(won.steps) / 10, won.commands, won.positions[:-1], NAMES, won.chunk_starts
        ),
    )
    read = json.loads(paths.json.read_text(), parse_constant=pytest.fail)
    assert read["success"] == report["success"]
    html = paths.html.read_text()
    assert html.count("data:video/mp4;base64,") == 3
    assert "&lt;one&gt;" in html
    assert not re.search(r"""(src|href)=["'](?!data:)""", html), "the page needs other files"
    assert paths.png.read_bytes().startswith(b"\x89PNG")


def test_a_bare_report_is_written_too(tmp_path):
    """No expert, no floors, no chunk, no success, no way, no film; but limits."""
    run = evaluate(HoldPolicy(), point_world, SEEDS[:2])
    for episode in run.episodes:
        episode.mode = ""
    run.calls.clear()
    limits = MotionLimits([1.0, 1.0], [5.0, 5.0], [50.0, 50.0])
    paths = write_report(build_report(run, AXES, limits=limits), tmp_path)
    read = json.loads(paths.json.read_text(), parse_constant=pytest.fail)
    assert read["expert"] is None
    assert read["latency_ms"]["p95"] is None
    assert read["modes"]["rarer_share"] is None


@pytest.mark.parametrize(("height", "width"), [(48, 48), (15, 31)])
def test_mp4_is_h264_that_browsers_play(height, width):
    ramp = np.linspace(0, 250, 6).astype(np.uint8)
    frames = np.broadcast_to(ramp[:, None, None, None], (6, height, width, 3))
    with av.open(io.BytesIO(encode_mp4(frames, 20, min_height=32)), "r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 20
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    factor = -(-32 // height)
    expected = [side * factor + side * factor % 2 for side in (height, width)]
    assert decoded.shape == (6, *expected, 3)
    assert np.abs(decoded.mean(axis=(1, 2, 3)) - ramp).max() < 4
    with pytest.raises(ValueError, match="uint8"):
        encode_mp4(np.zeros((1, 4, 4, 3)), 20)


def test_strips_are_checked():
    with pytest.raises(ValueError, match="row labels"):
        Strip("", np.zeros((2, 3, 4, 4, 3), np.uint8), ["real"])
    with pytest.raises(ValueError, match="float64"):
        Strip("", np.zeros((2, 3, 4, 4, 3)), ["real", "imagined"])
    grey = Strip("", np.zeros((2, 3, 4, 4, 1), np.uint8), ["real", "imagined"])
    assert grey.film().frames.shape == (3, 4, 8, 3)
