"""A world model is judged as on the command line; what cannot be run is said before anything is."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress

import envs
from policies.judge.media import BranchPicture, SideBySide
from policies.judge.report import completed
from policies.judge.targets import PARTS
from scripts import _judge
from scripts import evaluate_worldmodel as script
from scripts._judge import Judge, labels, run_checkpoints
from scripts._judge_config import PART_SETTINGS, SHARED_SETTINGS, WorldmodelConfig
from scripts._kept import Kept, code, weights
from scripts._world import environment_spec
from scripts.evaluate_worldmodel import COLUMNS
from tests.policies.test_monitor import HORIZON, oracle
from tests.policies.test_surprise import Rounds
from tests.scripts.spots import spot_suite
from tests.test_configs import compose
from tests.worldmodel.models import make_checkpoint, make_model
from worldmodel.checkpoint import WEIGHTS, Checkpoint, open_checkpoint, save_policy
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.tokens import Horizon
from worldmodel.types import STATISTICS, Spec, SpecMismatchError

SIZE = 32
LONG = Horizon(past=1, past_stride=1, future=4, future_stride=4, chunk=16)
OBJECTIVE = ObjectiveConfig(name="flow", any_frame=0.5, history_noise=0.2)
TINY = (
    "env=reach", "device=cpu", "episodes=2", "windows=2", "fit_episodes=2", "inverse_steps=2",
    "branches=3", "branch_steps=16", "starts=2", "apart=4", "films=1", "film_steps=16",
    "noise=[0.5]", "policy_episodes=2", "decide.candidates=[1,2]", "decide.episodes=[2,1]",
    "decide.slots=2", "false_alarm_rate=0.5", "calibration_episodes=9", "fault_episodes=1",
    "options={max_episode_steps:34}",
)  # fmt: skip


def reach_spec(**changes: Any) -> Spec:
    """The facts of reach, and statistics of which actions are about as large."""
    world = envs.make("reach", image_size=SIZE, cameras=["front"])
    spec = environment_spec(world)
    world.close()
    values = {"mean": 0.0, "std": 0.5, "min": -3.0, "max": 3.0, "q01": -3.0, "q99": 3.0}
    table = {name: [values[name]] * 8 for name in STATISTICS}
    facts: dict[str, Any] = {"has_success": True, "stats": {"state": table, "action": table}}
    return replace(spec, **(facts | changes))


def save(
    folder: Path, spec: Spec | None = None, horizon: Horizon = LONG,
    objective: ObjectiveConfig = OBJECTIVE,
) -> Path:  # fmt: skip
    """A checkpoint whose model is random and hears actions."""
    folder.mkdir(parents=True)
    source = {"env": "selfflow/Reach-v0", "options": {}, "image_size": [SIZE, SIZE]}
    save_policy(
        folder, make_model(spec or reach_spec(), horizon), objective,
        {"environment": source, "step": int(folder.name) if folder.name.isdigit() else 0},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run") / "checkpoints" / "00000002")


@dataclasses.dataclass
class Page:
    """What would have been drawn."""

    videos: Sequence[SideBySide]
    branches: Sequence[BranchPicture]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, pages: list[Page] | None = None) -> int:
    """``python -m scripts.evaluate_worldmodel ARGUMENTS`` in this process; the exit code.

    Pages are not drawn, which takes longer than all else here, but handed to `pages`.
    """

    def write(report: dict[str, Any], folder: Path, **shown: Any) -> None:
        (folder / "report.json").write_text(json.dumps(completed(report)))
        if pages is not None:
            pages.append(Page(**shown))

    monkeypatch.setattr(sys, "argv", ["evaluate_worldmodel", *arguments])
    monkeypatch.setattr(script, "write_worldmodel_report", write)
    monkeypatch.setenv("COLUMNS", "400")
    try:
        script.run.__wrapped__(compose("evaluate_worldmodel", *arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def config_of(*arguments: str) -> WorldmodelConfig:
    found: Any = OmegaConf.to_object(compose("evaluate_worldmodel", "checkpoint=x", *arguments))
    return found


def reasons(model: Checkpoint, *arguments: str) -> dict[str, str]:
    """Why parts would not be run."""
    judge = Judge(config_of(*TINY, *arguments), model, Progress(disable=True))
    why = {}
    for part in PARTS:
        try:
            judge.require(part)
        except _judge.NotRunError as error:
            why[part] = str(error)
    judge.close()
    return why


# --- the whole -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """A report with everything: its folder, and what would have been drawn."""
    out, pages = tmp_path_factory.mktemp("judged"), list[Page]()
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, f"checkpoint={checkpoint}", f"out={out}", *TINY, pages=pages) == 0
    return out, pages[0]


@pytest.fixture(scope="module")
def judged(whole: tuple[Path, Page]) -> Path:
    """The folder of a report with everything."""
    return whole[0]


def test_the_report_holds_what_was_asked_for(judged: Path, checkpoint: Path) -> None:
    report = read(judged)
    assert {part: report[part]["not_run"] for part in PARTS if "not_run" in report[part]} == {}
    for part, keys in {
        "prediction": ("psnr_gain_db_at_8", "intervals", "steps", "fvd", "state", "success"),
        "action_following": ("true_beats_shuffled", "low", "high", "true_beats_zero", "gap"),
        "branching": ("k", "accuracy", "low", "high", "chance", "confusion", "by_joints"),
        "inverse": ("imagined", "real", "repeat", "cycle", "own_on_real"),
        "return_correlation": ("pearson", "spearman", "mmrv", "n", "intervals", "solved_at_reset"),
        "decision_lift": ("planner", "simulator", "policy", "policy_same_time", "costs"),
        "exploitability": ("gap", "predicted", "realised", "growth", "horizon"),
        "drift": ("frames", "forms", "copy_last", "mean_frame"),
        "surprise": ("auroc", "faults", "baseline", "false_alarm_rate"),
        "frames_per_s": ("mean", "batched", "threads"),
    }.items():
        assert set(keys) <= set(report[part]), part
    assert report["branching"]["k"] == 3
    assert report["return_correlation"]["n"] == 2  # the run's only checkpoint, and made worse
    assert report["exploitability"]["horizon"] == 24  # 8 actions of a chunk, then a whole one
    assert set(report["drift"]["forms"]) == {"window", "causal"}
    assert report["stamp"]["checkpoint"] == open_checkpoint(checkpoint).stamp
    assert report["stamp"]["config"]["branches"] == 3
    assert not [p for p in (judged / "parts").iterdir() if p.stem not in PARTS]


def test_the_same_command_measures_nothing_again_and_shows_the_same(
    whole: tuple[Path, Page], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, page = whole
    before, pages = read(judged), list[Page]()

    def again(self: Judge, part: str) -> None:
        pytest.fail(f"{part} was measured again")

    monkeypatch.setattr(Judge, "measure", again)
    arguments = (f"checkpoint={checkpoint}", f"out={judged}", *TINY)
    assert run(monkeypatch, *arguments, pages=pages) == 0
    after = read(judged)
    assert {part: after[part] for part in PARTS} == {part: before[part] for part in PARTS}
    assert page.videos[0].title == "A held-out future (expert)"
    assert page.videos[-1].title == "16 frames, imagined from the first one"
    assert [b.title for b in page.branches] == [
        f"Counterfactual futures of start {n}" for n in (1, 2)
    ]
    for old, new in ((page.videos, pages[0].videos), (page.branches, pages[0].branches)):
        for one, other in zip(old, new, strict=True):
            second = vars(other)
            assert list(vars(one)) == list(second)
            for name, value in vars(one).items():
                np.testing.assert_array_equal(value, second[name])


@pytest.mark.slow
def test_the_command_draws_its_report(judged: Path, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(judged, out := tmp_path / "out")
    command = [sys.executable, "-m", "scripts.evaluate_worldmodel", *TINY]
    command += [f"checkpoint={checkpoint}", f"out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "true actions beat shuffled ones" in done.stdout
    page = (out / "report.html").read_text()
    assert "A held-out future (expert)" in page
    assert "Counterfactual futures of start 1" in page
    assert (out / "report.png").stat().st_size > 10_000


def measured_again(
    monkeypatch: pytest.MonkeyPatch, judged: Path, out: Path, *arguments: str
) -> tuple[list[str], int]:
    """Parts that this command would measure where `judged` is there already."""
    shutil.copytree(judged, out)
    seen = []

    def noted(self: Judge, part: str) -> None:
        seen.append(part)
        raise _judge.NotRunError("noted")

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "measure", noted)
        return seen, run(patch, f"out={out}", *TINY, *arguments)


def test_what_has_changed_is_measured_anew_and_nothing_else(
    judged: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    same = f"checkpoint={checkpoint}"

    def anew(name: str, *arguments: str) -> list[str]:
        return measured_again(monkeypatch, judged, tmp_path / name, *arguments)[0]

    assert anew("films", same, "film_steps=20") == ["drift"]
    assert anew("decide", same, "decide.lookahead=1") == ["decision_lift", "exploitability"]
    assert anew("name", same, "name=mine") == []
    assert anew("seed", same, "seed=1") == list(PARTS)
    assert anew("fresh", same, "fresh=true", "parts=[drift]") == ["drift"]
    moved = tmp_path / "moved" / "checkpoints" / "00000002"
    shutil.copytree(checkpoint, moved)
    assert anew("elsewhere", f"checkpoint={moved}") == []  # the same weights elsewhere
    text = (moved / WEIGHTS).read_bytes()
    (moved / WEIGHTS).write_bytes(text[:-4] + b"\x00\x00\x80\x3e")
    capsys.readouterr()
    assert anew("weights", f"checkpoint={moved}") == list(PARTS)
    assert "measured anew, other weights" in capsys.readouterr().out
    monkeypatch.setattr(_judge, "code", lambda: "another version")
    assert anew("code", same, "parts=[inverse]") == ["inverse"]


def test_other_checkpoints_stand_beside(
    judged: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demos = save(tmp_path / "demos", objective=replace(OBJECTIVE, any_frame=0.0))
    out = tmp_path / "out"
    shutil.copytree(judged, out)
    arguments = (f"checkpoint={checkpoint}", f"out={out}", *TINY)
    beside = (f"columns={{demos:{demos}}}", "parts=[action_following,inverse]")
    assert run(monkeypatch, *arguments, *beside) == 0
    report = read(out)
    assert set(report["columns"]) == {"demos"}
    column = report["columns"]["demos"]
    assert column["action_following"]["n"] == report["action_following"]["n"]
    assert {part for part in PARTS if "not_run" in column[part]} == set(PARTS) - {
        "action_following"
    }
    assert "true_beats_shuffled" in report["action_following"]  # kept from before
    assert (out / "parts" / "demos" / "action_following.json").is_file()
    assert list(report["targets"][0]["columns"]) == ["this one", "demos"]


# --- stopped and broken --------------------------------------------------------------------------


def test_ctrl_c_leaves_whole_parts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stopped(self: Judge) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Judge, "frames_per_s", stopped)
    parts = "parts=[frames_per_s,action_following]"
    assert run(monkeypatch, f"checkpoint={checkpoint}", f"out={tmp_path}", parts, *TINY) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["action_following.json"]
    assert not (tmp_path / "report.json").exists()


def test_a_part_that_breaks_costs_itself_only(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def broken(self: Judge) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Judge, "drift", broken)
    parts = "parts=[drift,frames_per_s]"
    assert run(monkeypatch, f"checkpoint={checkpoint}", f"out={tmp_path}", parts, *TINY) == 1
    report = read(tmp_path)
    assert report["drift"]["not_run"] == "failed with RuntimeError: out of memory"
    assert report["frames_per_s"]["mean"] > 0
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["frames_per_s.json"]  # tried anew
    shown = capsys.readouterr().out
    assert "Failed: this one: drift" in shown
    assert "Traceback" in shown


# --- refused before anything is run --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["checkpoint={tmp}/nowhere"], "no such folder"),
        ([], "Missing: checkpoint=..., see --help"),
        (
            ["parts=[drfit]"],
            "there is no part 'drfit'. Did you mean 'drift'? There are: prediction",
        ),
        (["parts=speeds"], "There are: prediction"),
        (["env=reech"], "Did you mean 'reach'"),
        (["decide.episodes=[5]"], "found [5] for [1, 2]"),
        (["decide.candidates=[4,2]"], "ascend"),
        (["columns={mine:{tmp}}", "name=mine"], "name=OTHER"),
        (["columns=mine"], "columns is 'mine'; expected columns={NAME:DIR,NAME:DIR}"),
        (["columns={other:{tmp}/nowhere}"], "no such folder"),
        (["policies=[{tmp}/nowhere]"], "no such folder"),
        (["decide.proposals={tmp}/nowhere"], "no such folder"),
        (["every=99"], "every=99: the distance of frames is from 1 to 16"),
        (["history=0.9"], "history=0.9: this model was trained with noise on its past up to 0.2"),
        (["purpose=other"], "unknown purpose 'other'"),
    ],
)
def test_settings_that_mean_nothing(
    arguments: list[str], words: str, checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Judge, "measure", lambda self, part: pytest.fail("something was measured"))
    given = [a.replace("{tmp}", str(tmp_path)) for a in arguments]
    named = any(a.startswith("checkpoint") for a in given) or not given
    first = [] if named else [f"checkpoint={checkpoint}"]
    assert run(monkeypatch, *TINY, *first, *given, f"out={tmp_path / 'out'}") == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cameras": ("top",)}, r"it has no camera \['top'\], it has \['front'"),
        ({"robot_type": "other"}, "robot_type is 'selfflow_panda', expected 'other'"),
        ({"fps": 30.0}, "fps is 20.0, expected 30.0"),
    ],
)
def test_a_world_of_another_robot(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = open_checkpoint(save(tmp_path / "other", reach_spec(**changes)))
    with pytest.raises(SpecMismatchError, match=words):
        Judge(config_of(*TINY), model, Progress(disable=True))


# --- what a model or a world does not allow ------------------------------------------------------


def opened(tmp_path: Path, **settings: Any) -> Checkpoint:
    return open_checkpoint(save(tmp_path / "checkpoints" / "00000001", **settings))


def test_a_whole_model_in_its_own_world_lacks_nothing(checkpoint: Path) -> None:
    assert reasons(open_checkpoint(checkpoint)) == {}


def test_a_model_that_only_acts(tmp_path: Path) -> None:
    model = opened(tmp_path, horizon=Horizon(past=1, future=0, chunk=16))
    why = reasons(model)
    assert set(why) == set(PARTS)
    assert all("data.future=0" in reason for reason in why.values())


def test_a_model_without_cameras(tmp_path: Path) -> None:
    model = opened(tmp_path, spec=reach_spec(cameras=(), has_success=False))
    why = reasons(model)
    assert set(PARTS) - set(why) <= {"surprise"}
    assert "no camera" in why["prediction"]


def test_a_model_that_cannot_tell_success(tmp_path: Path) -> None:
    why = reasons(opened(tmp_path, spec=reach_spec(has_success=False)))
    assert set(why) == {"return_correlation", "decision_lift", "exploitability"}
    assert all("cannot tell success" in reason for reason in why.values())


def test_a_model_that_knows_its_grid_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = replace(LONG, past=2)
    model = opened(tmp_path, horizon=past, objective=replace(OBJECTIVE, any_frame=0.0))
    why = reasons(model)
    assert set(why) == {"return_correlation", "drift", "decision_lift", "exploitability"}
    assert "objective.any_frame" in why["decision_lift"]
    assert "chain" in why["drift"]
    assert (
        "branch_steps=20 is longer than a window" in reasons(model, "branch_steps=20")["branching"]
    )
    some = "parts=[action_following,branching,frames_per_s]"
    assert run(monkeypatch, f"checkpoint={model.path}", f"out={tmp_path}", some, *TINY) == 0
    report = read(tmp_path)
    assert report["branching"]["by_frame"]["frames"] == [4, 8, 12, 16]
    assert report["frames_per_s"]["every"] == 4


def test_a_regression_model_has_no_use_for_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(tmp_path, objective=replace(OBJECTIVE, name="regression"))
    assert reasons(model) == {}
    few = ("parts=[decision_lift]", "decide.candidates=[2]", "decide.episodes=[1]")
    assert run(monkeypatch, f"checkpoint={model.path}", f"out={tmp_path}", *TINY, *few) == 0
    (time,) = read(tmp_path)["decision_lift"]["policy_same_time"]
    assert "one step" in time["not_run"]
    assert (tmp_path / "parts" / "exploitability.json").is_file()  # measured with it


def test_other_needs_are_said(checkpoint: Path) -> None:
    model = open_checkpoint(checkpoint)
    few = reasons(model, "calibration_episodes=3")
    assert "takes 9 undisturbed episodes, found 3" in few["surprise"]
    assert "reach no frame" in reasons(model, "branch_steps=2")["branching"]
    elsewhere = replace(model, stamp={"environment": {"env": "selfflow/Push-v0"}})
    assert "selfflow/Push-v0" in reasons(elsewhere)["return_correlation"]


def test_somebody_elses_world_is_judged_by_what_its_expert_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = {"act": 0.5, "forward": 0.5}  # an oracle neither says what was done nor acts
    model = oracle()
    model = replace(model, path=tmp_path, objective=replace(model.objective, patterns=patterns))
    monkeypatch.setattr(Judge, "policy", lambda self, path=None: Rounds())
    save_policy(tmp_path, model.model, model.objective, {})
    monkeypatch.setattr(script, "write_worldmodel_report", lambda *_, **__: None)
    monkeypatch.setattr(_judge, "make_world", lambda name, options: spot_suite(**options))
    out = tmp_path / "out"
    parts = [part for part in PARTS if "decide" not in PART_SETTINGS[part]]
    config = config_of(*TINY, "options=null", f"out={out}", f"parts=[{','.join(parts)}]")
    report = script.judge(config, model, Console(quiet=True), Progress(disable=True))
    why = {part: report[part]["not_run"] for part in parts if "not_run" in report[part]}
    assert set(why) == {"branching", "drift", "return_correlation"}
    assert "cannot be saved, restored and explored" in why["branching"]
    assert report["prediction"]["psnr_gain_db_at_8"] > 15
    assert report["prediction"]["episodes"] == report["prediction"]["n"] // 2 == 2
    assert report["action_following"]["true_beats_shuffled"] == 1
    faults = report["surprise"]["faults"]
    assert "only tasks of our own arm" in faults["arm_pushed"]["not_run"]
    assert faults["camera_frozen"]["positives"] == 1


# --- pieces --------------------------------------------------------------------------------------


def test_every_setting_belongs_to_a_part_or_changes_no_number() -> None:
    harmless = {"checkpoint", "out", "parts", "columns", "name", "device", "fresh"}
    used = {name for names in PART_SETTINGS.values() for name in names} | set(SHARED_SETTINGS)
    assert used.isdisjoint(harmless)
    assert used | harmless == {f.name for f in dataclasses.fields(WorldmodelConfig)}
    assert list(PART_SETTINGS) == list(PARTS)
    assert set(COLUMNS) < set(PARTS)


def test_checkpoints_of_a_run_are_spread_over_it(tmp_path: Path) -> None:
    folders = [tmp_path / f"{step:08d}" for step in range(100, 2600, 100)]
    assert run_checkpoints(folders[3], 6) == [folders[3]]  # nothing beside it
    for count in (2, 5, 6, 7, 9, 25):
        for folder in folders[:count]:
            folder.mkdir(exist_ok=True)
        found = run_checkpoints(folders[0], 6)
        assert len(found) == min(6, count)
        assert found == sorted(set(found))
        assert found[-1] == folders[count - 1]
        assert found[0] == folders[0]
    (tmp_path / "last").symlink_to(folders[0])
    assert tmp_path / "last" not in run_checkpoints(folders[0], 6)


def test_policies_are_told_apart() -> None:
    assert labels(["run/checkpoints/00000400", "run/checkpoints/00001000"]) == ["400", "1000"]
    assert labels(["a/checkpoints/last", "b/checkpoints/last"]) == [
        "a/checkpoints/last", "b/checkpoints/last",
    ]  # fmt: skip


def test_a_part_whose_pictures_are_of_another_measurement_is_not_read(
    judged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(judged / "parts", folder)
    kept = Kept(folder)
    key = json.loads((folder / "drift.json").read_text())["key"]
    found = kept.read("drift", key)
    assert found is not None
    assert len(found.pictures) == 1
    kept.write("drift", key | {"code": "other"}, found)
    assert kept.differences("drift", key) == ["code"]
    shutil.copy(judged / "parts" / "drift.json", folder)  # as if it had been stopped in between
    assert kept.read("drift", key) is None
    assert kept.read("nothing", key) is None


def test_digests_tell_code_and_weights_apart(tmp_path: Path) -> None:
    assert code() == code()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS).write_text(name)
    one, other = weights([tmp_path / "a", tmp_path / "b"])
    assert one != other
    assert make_checkpoint(make_model(oracle().spec, HORIZON)).path == Path()
