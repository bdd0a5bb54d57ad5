"""A checkpoint is whole or named as what it is, and comes back exactly."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import stat
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from tests.worldmodel.models import HORIZON, SPECS, make_model
from worldmodel import checkpoint as module
from worldmodel.checkpoint import (
    CheckpointError,
    Keeper,
    find,
    load_state,
    open_checkpoint,
    save_policy,
    save_state,
)
from worldmodel.flow import TimeConfig
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.types import SpecMismatchError

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    save_policy(path, make_model(), ObjectiveConfig(), {"step": 7})
    return path


def write_small(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


# --- round trip ----------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", SPECS)
def test_everything_comes_back_exactly(tmp_path: Path, robot: str) -> None:
    model = make_model(SPECS[robot], prediction="velocity")
    objective = ObjectiveConfig(time={"action": TimeConfig("logit_normal", shift=2.0)}, ema=0.5)
    save_policy(tmp_path, model, objective, {"step": 7, "who": "a test"})
    opened = open_checkpoint(tmp_path)
    assert opened.spec == SPECS[robot]
    assert opened.model.horizon == HORIZON
    assert opened.model.config == model.config
    assert opened.objective == objective
    assert opened.stamp == {"step": 7, "who": "a test"}
    saved, found = model.state_dict(), opened.model.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[k], found[k]) for k in saved)
    assert not opened.model.training
    assert not any(p.requires_grad for p in opened.model.parameters())


def test_the_training_state_comes_back_exactly(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2, 6).t()}
    values = {"step": 3, "best": None, "pending": {"x": [0.1, 2.0]}}
    save_state(tmp_path / "state", tensors, values)
    found, plain = load_state(tmp_path / "state")
    assert plain == values
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)
    with pytest.raises(CheckpointError, match="can act but not resume; use init= instead"):
        load_state(tmp_path / "other")


def test_files_are_readable_by_others(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert {stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {usual}


# --- finding -------------------------------------------------------------------------------------


def test_a_checkpoint_is_found_from_every_folder_around_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    keeper = Keeper(run / "checkpoints")
    first = keeper.write(1, write_small, ("last", "best"))
    second = keeper.write(2, write_small)
    assert first != second
    for path in (run, run / "checkpoints", run / "checkpoints" / "last", second):
        assert find(path) == second.resolve()
    for path in (run, run / "checkpoints", run / "checkpoints" / "best"):
        assert find(path, prefer="best") == first.resolve()


def test_what_is_no_checkpoint_is_described(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    with pytest.raises(CheckpointError, match=r"is no checkpoint.*found \['metrics.jsonl'\]"):
        find(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no such folder.*beside it: \['run'\]"):
        find(tmp_path / "rum")
    with pytest.raises(CheckpointError, match="found a file"):
        find(tmp_path / "run" / "metrics.jsonl")


# --- while a run goes on -------------------------------------------------------------------------


def save_as(step: int):
    """Fills a checkpoint folder whose stamp says `step`."""
    return lambda folder: save_policy(folder, make_model(), ObjectiveConfig(), {"step": step})


@pytest.mark.parametrize("whole", [True, False], ids=["deleted", "being deleted"])
@pytest.mark.parametrize("read", ["config.json", "stamp.json", WEIGHTS])
def test_a_checkpoint_that_is_deleted_while_it_is_opened_gives_way_to_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str, whole: bool
) -> None:
    """The run saves its next one before `read` is read, which deletes the folder that was found."""
    if not whole:  # other files of the folder are still there
        monkeypatch.setattr(module.shutil, "rmtree", lambda f, **_: (f / read).unlink(True))
    keeper = Keeper(tmp_path / "checkpoints")
    keeper.write(1, save_as(1))
    saved: list[Path] = []

    def save_next(before: bool) -> None:
        if before and not saved:
            saved.append(keeper.write(2, save_as(2)))

    plain_exists, plain_open = Path.exists, module._read_json

    def exists(path: Path, **options) -> bool:
        save_next(read == "stamp.json" and path.name == read)
        return plain_exists(path, **options)

    def read_json(path: Path):
        save_next(read == "config.json" and path.name == read)
        return plain_open(path)

    def load_weights(*arguments):
        save_next(read == WEIGHTS)
        return plain_load(*arguments)

    plain_load = module.load_weights
    monkeypatch.setattr(Path, "exists", exists)
    monkeypatch.setattr(module, "_read_json", read_json)
    monkeypatch.setattr(module, "load_weights", load_weights)
    opened = open_checkpoint(tmp_path)
    assert (opened.path.name, opened.stamp) == ("00000002", {"step": 2})


def test_a_run_that_deletes_every_checkpoint_while_it_is_read_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = Keeper(tmp_path / "checkpoints")
    keeper.write(1, save_as(1))
    plain, steps = module.load_weights, iter(range(2, 99))

    def load_weights(*arguments):
        step = next(steps)
        keeper.write(step, save_as(step))
        return plain(*arguments)

    monkeypatch.setattr(module, "load_weights", load_weights)
    with pytest.raises(CheckpointError, match="3 times.*deleted.*fit.save_every"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"no such folder: .*00000004.*'00000005'"):
        open_checkpoint(tmp_path / "checkpoints" / "00000004")  # by name there is no successor


# --- broken folders ------------------------------------------------------------------------------


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="weights are missing: .*model.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_named_as_such(folder: Path, share: float) -> None:
    path = folder / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"cannot be read.*bytes and was probably cut off"):
        open_checkpoint(folder)


def test_weights_that_do_not_fit_are_listed(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    bias = weights.pop("model.head.action.bias")
    save_file({**weights, "model.more": bias}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="missing head.action.bias; unexpected more"):
        open_checkpoint(folder)
    save_file({**weights, "model.head.action.bias": torch.zeros(5)}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"head.action.bias is \(5,\), expected \(2,\)"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "act"}, "a policy of type 'act', not 'selfflow'"),
        ({"format": 99}, "checkpoint format 99; this version reads 1"),
        ({"window": {"past": 2, "futures": 1}}, "does not describe a model: .*futures"),
        ({"objective": {}}, "does not describe a model: KeyError.*time"),
        ({"spec": {"camera": []}}, "does not describe a model: .*unknown fields.*camera"),
    ],
)
def test_a_foreign_config_is_named(folder: Path, change: dict, message: str) -> None:
    change_config(folder, **change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_broken_config_is_named(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cameras", ("wrist",)),
        ("state_names", ("x", "z", "y")),
        ("action_names", ("a", "b", "c")),
        ("robot_type", "another arm"),
        ("fps", 30),
        ("action_kind", "delta"),
        ("image_size", (32, 32)),
    ],
)
def test_another_robot_is_refused_by_its_first_difference(folder: Path, name, value) -> None:
    spec = open_checkpoint(folder).spec
    spec = dataclasses.replace(spec, robot_type="this arm", action_kind="absolute")
    spec.require_same(dataclasses.replace(spec, tasks=("another",)), "the checkpoint", "the robot")
    other = dataclasses.replace(spec, **{name: value})
    both = rf"{name} is {re.escape(repr(value))}, expected {re.escape(repr(getattr(spec, name)))}"
    with pytest.raises(SpecMismatchError, match=f"the robot does not fit the checkpoint: {both}"):
        spec.require_same(other, "the checkpoint", "the robot")
    spec.require_same(other, "the checkpoint", "the robot", may_differ=(name,))


@pytest.mark.parametrize(("name", "value"), [("robot_type", ""), ("action_kind", "unknown")])
def test_what_one_of_two_robots_does_not_know_is_no_difference(name: str, value: str) -> None:
    known = dataclasses.replace(SPECS["one camera"], robot_type="this arm", action_kind="absolute")
    other = dataclasses.replace(known, **{name: value})  # type: ignore[arg-type]
    known.require_same(other, "the checkpoint", "the robot")
    other.require_same(known, "the robot", "the checkpoint")


# --- writing -------------------------------------------------------------------------------------


def content(root: Path) -> set[str]:
    return {p.name for p in root.iterdir()}


def test_only_linked_checkpoints_are_kept(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    assert keeper.last() is None
    keeper.write(1, write_small, ("last", "best"))
    for step in (2, 3):
        keeper.write(step, write_small)
    assert content(tmp_path) == {"00000001", "00000003", "best", "last"}
    last = keeper.last()
    assert last is not None
    assert last.name == "00000003"


class Killed(BaseException):
    """Nothing catches this: the process is gone."""


def test_a_run_killed_while_writing_keeps_its_previous_checkpoint(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.write(1, write_small, ("last", "best"))

    def killed(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        keeper.write(2, killed)
    assert find(tmp_path).name == "00000001"
    assert any(name.startswith(".writing-") for name in content(tmp_path))
    Keeper(tmp_path).write(2, write_small)  # resumed: the leftover goes
    assert content(tmp_path) == {"00000001", "00000002", "best", "last"}


def test_a_run_killed_before_the_link_moved_can_write_again(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    keeper.write(1, write_small)
    (tmp_path / "00000002").mkdir()
    write_small(tmp_path / "00000002")  # whole, but the kill came before its link
    assert find(tmp_path).name == "00000001"
    keeper.write(2, write_small)
    assert content(tmp_path) == {"00000002", "last"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        safetensors.SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, error: Exception) -> None:
    keeper = Keeper(tmp_path)
    keeper.write(1, write_small)

    def full(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"half")
        raise error

    with pytest.raises(CheckpointError, match="checkpoint 2 could not be written.*No space left"):
        keeper.write(2, full)
    assert content(tmp_path) == {"00000001", "last"}
    keeper.write(2, write_small)
    assert find(tmp_path).name == "00000002"
