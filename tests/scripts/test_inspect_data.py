"""`scripts.inspect_data` as a user meets it: what is printed, written and refused."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from policies.demonstrations import paths_of
from scripts import inspect_data as script
from tests.datasets import write_dataset
from tests.test_configs import compose
from worldmodel.data import DataConfig, DatasetError, open_data
from worldmodel.data.errors import BrokenError, RootError, VersionError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("inspect") / "squares", episodes=6, length=[20, 30, 24, 5, 25, 40],
        cameras=("front", "side"), size=(24, 32), tasks=("left", "right"),
        state_names=["x", "y"], action_names=["x", "y"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without cameras, names or a state, and with a constant action."""
    return write_dataset(
        tmp_path_factory.mktemp("inspect") / "bare", episodes=2, cameras=(), action_dim=3,
        keys={"observation.state": "observation.force"}, constant=(2,), tasks=("",),
    )  # fmt: skip


def inspect(*overrides: str) -> tuple[dict[str, Any], dict[str, Path]]:
    config: Any = OmegaConf.to_object(compose("inspect_data", *overrides))
    return script.inspect(config)


def printed(report: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    script.print_report(report, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def content(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(root.rglob("*"))}


def png_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    before = content(data)
    found = inspect(
        f"data.root={data}", "html=true", f"out={tmp_path_factory.mktemp('out') / 'new' / 'deep'}"
    )
    assert content(data) == before, "a dataset is only read"
    return found


def test_the_files_hold_what_is_printed(whole: tuple[dict[str, Any], Any], data: Path) -> None:
    report, paths = whole
    assert json.loads(paths["json"].read_text()) == report
    width, height = png_size(paths["png"])
    assert width == 2400
    assert 1500 < height < 5000
    page = paths["html"].read_text()
    assert "http" not in page.replace("http-equiv", "")
    text = printed(report)
    for d in (*report["state"]["dimensions"], *report["action"]["dimensions"]):
        for name in ("min", "q01", "mean", "std", "q99", "max"):
            assert script.number(d[name]) in text
            assert script.number(d[name]) in page
    for camera in report["cameras"]:
        assert camera["name"] in text
        assert f"{camera['width']}x{camera['height']}" == "32x24"
    for task in report["tasks"]:
        assert f"{task['text']!r}: {task['episodes']} episodes" in text
    for notice in report["notices"]:
        assert notice["text"].split()[0] in text
    for command in report["commands"].values():
        assert command in text
    for kind in ("commands", "motion"):
        entry = report["smoothness"][kind]
        assert script.number(entry["mean"]["rms_jerk"]) in text
        assert len(entry["roughest"]) == 5
        assert len(entry["episodes"]["rms_jerk"]) == 6
    assert "a guess; data.action_kind=auto decides: absolute" in text


def test_it_agrees_with_training(whole: tuple[dict[str, Any], Any], data: Path) -> None:
    report, _ = whole
    trained = open_data(DataConfig(root=str(data), image_size=32, validation=0), progress=False)
    assert report["semantics"]["auto"] == trained.spec.action_kind
    assert tuple(c["name"] for c in report["cameras"]) == trained.spec.cameras
    assert report["frames"] == len(trained.train)
    composed = compose("train", *(f"{k}={v}" for k, v in report["settings"].items()))
    assert composed.data.root == str(data)
    assert list(composed.data.image_size) == [24, 32]


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_is_broken_at_any_width(whole: tuple[dict[str, Any], Any], width: int) -> None:
    lines = printed(whole[0], width).splitlines()
    values = [script.number(whole[0]["action"]["dimensions"][0][k]) for k in ("q01", "std", "max")]
    assert any(all(v in line for v in values) for line in lines)


def test_without_cameras_state_and_task(bare: Path, tmp_path: Path) -> None:
    report, paths = inspect(f"data.root={bare}", f"out={tmp_path}", "html=true")
    assert set(paths) == {"json", "png", "html"}
    assert report["cameras"] == []
    assert report["smoothness"]["motion"] is None
    assert report["smoothness"]["commands"]["names"] == ["action_0", "action_1"]
    text = printed(report)
    for words in ("no camera", "no state", "stops training", "once that is mended", "constant"):
        assert words in text, words


def test_two_roots_and_chosen_episodes(data: Path, tmp_path: Path) -> None:
    other = write_dataset(
        tmp_path / "other", episodes=2, length=30, cameras=("front", "side"), size=(24, 32),
        state_names=["x", "y"], action_names=["x", "y"], seed=3,
    )  # fmt: skip
    report, _ = inspect(
        f"data.root=[{data},{other}]", "data.episodes=[[0,1],null]", f"out={tmp_path / 'out'}"
    )
    assert report["title"] == "squares, other"
    assert [d["episodes"] for d in report["datasets"]] == [2, 2]
    assert f"data.root=[{data},{other}]" in report["commands"]["train"]
    assert "episodes=[[0,1],null]" in report["commands"]["train"]
    assert f"episode 1 of {other}" in {row["label"] for row in report["rows"]}


def test_changes_are_added_up_before_they_are_judged() -> None:
    facts = [{"name": "x", "constant": False, "switch": False, "not_finite": 0}]
    path = np.sin(np.linspace(0, 3, 50))[:, None]
    steps = np.diff(path, axis=0, prepend=path[:1])
    added = paths_of([steps], facts, deltas=True)
    assert added.paths[0] == pytest.approx(path - path[0])
    assert added.summed


def test_hands_switches_and_what_is_broken_are_not_judged() -> None:
    def fact(name: str, **other: Any) -> dict[str, Any]:
        return {"name": name, "constant": False, "switch": False, "not_finite": 0} | other

    facts = [
        fact("a"), fact("gripper.pos"), fact("b", constant=True), fact("c", switch=True),
        fact("d", not_finite=1),
    ]  # fmt: skip
    assert paths_of([np.random.default_rng(0).random((9, 5))], facts).names == ("a",)
    assert paths_of([np.random.default_rng(0).random((9, 2))], facts[1:3]).names == ("gripper.pos",)


def test_what_cannot_be_read_is_refused_and_nothing_is_written(data: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'out'}"
    for overrides, error, words in (
        ((), DatasetError, "data.root is None"),
        ((f"data.root={data.parent / 'square'}",), RootError, "Did you mean 'squares'?"),
        ((f"data.root={data}", "shown=0"), ValueError, "shown is 0"),
        ((f"data.root={data}", f"out={data / 'meta'}"), ValueError, "lies in the dataset"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            inspect(out, *overrides)
    assert not (data.parent / "square").exists()
    old = shutil.copytree(data, tmp_path / "old")
    info = json.loads((old / "meta" / "info.json").read_text())
    (old / "meta" / "info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(VersionError):
        inspect(out, f"data.root={old}")
    cut = shutil.copytree(data, tmp_path / "cut")
    for video in cut.rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:500])
    with pytest.raises(BrokenError):
        inspect(out, f"data.root={cut}")
    assert not (tmp_path / "out").exists()


def start(root: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.inspect_data", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_of_the_readme(root: Path, data: Path, tmp_path: Path) -> None:
    done = start(root, tmp_path, f"data.root={data}", "out=outputs/inspect")
    assert done.returncode == 0, done.stderr
    assert "6 episodes" in done.stdout
    for name in ("inspect.json", "inspect.png"):
        assert f"outputs/inspect/{name}" in done.stdout
        assert (tmp_path / "outputs" / "inspect" / name).is_file()
    assert not (tmp_path / "outputs" / "inspect" / "inspect.html").exists()


def test_a_mistyped_root_ends_with_one_message(root: Path, data: Path, tmp_path: Path) -> None:
    done = start(root, tmp_path, f"data.root={data}s")
    assert done.returncode == 1
    assert done.stdout.startswith("RootError: there is no dataset at")
    assert "Traceback" not in done.stdout + done.stderr
