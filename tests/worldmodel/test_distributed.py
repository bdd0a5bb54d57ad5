"""Several processes that share each batch: what they compute, what they write, how they fail."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.datasets import write_dataset
from tests.processes import Launcher, launcher
from tests.worldmodel.models import SPECS, make_window
from tests.worldmodel.shared_batches import BATCH, CASES, gradients, one_sided, rows
from worldmodel import distributed
from worldmodel.distributed import ALONE, World
from worldmodel.selfflow import masked_mean


@pytest.fixture(scope="module")
def start(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with launcher(root, tmp_path_factory.mktemp("logs")) as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("shared") / "data", episodes=3, length=16, size=16)


@pytest.fixture(scope="module")
def shared(
    start: Launcher, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two processes got for each of `CASES`, and of the runs beside them."""
    out = tmp_path_factory.mktemp("shared")
    command = ["tests.worldmodel.shared_batches", str(out), str(data)]
    codes, logs = start.run(command, command)
    assert codes == [0, 0], logs
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


# --- what they compute ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_logs_are_those_of_one_process(shared: list[Any], case: str) -> None:
    """To 5e-6 of the gradient's norm, in float32; the same bits in both processes."""
    expected, expected_logs = gradients(case)
    (found, logs), (other, other_logs) = (part[case] for part in shared)
    assert found.keys() == other.keys() == expected.keys()
    assert all(found[n].equal(other[n]) for n in found)
    assert logs == other_logs
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    off = torch.stack([(found[n] - g).norm() for n, g in expected.items()]).norm()
    assert norm > 1e-3
    assert off <= 5e-6 * norm
    assert logs.keys() == expected_logs.keys()
    for name, value in expected_logs.items():
        assert logs[name] == pytest.approx(value, rel=1e-5, abs=1e-7)


def test_a_mean_of_means_would_be_another_gradient() -> None:
    """So that the test above can fail: the masks make the two halves count differently."""
    values = torch.arange(BATCH * 6.0).reshape(BATCH, 6) ** 2
    window = make_window(SPECS["one camera"], batch=BATCH)
    one_sided(window)
    halves = [rows(window, World(rank, 2).rows(BATCH)).action_valid for rank in range(2)]
    means = [masked_mean(v, h) for v, h in zip(values.chunk(2), halves, strict=True)]
    assert sum(means) / 2 != pytest.approx(float(masked_mean(values, window.action_valid)), rel=0.1)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_processes_share_all_rows(size: int) -> None:
    whole = list(range(12))
    parts = [whole[World(rank, size).rows(12)] for rank in range(size)]
    assert list(itertools.chain(*parts)) == whole


def test_a_batch_that_does_not_divide_is_refused() -> None:
    World(0, 3).require_divides(12, "fit.batch_size")
    with pytest.raises(ValueError, match="fit.batch_size is 32.* into 3 of them: use 30 or 33"):
        World(0, 3).require_divides(32, "fit.batch_size")
    with pytest.raises(ValueError, match="use 3, or another"):
        World(0, 3).require_divides(2, "fit.batch_size")


def test_alone_nothing_is_exchanged() -> None:
    gradient = torch.ones(3)
    assert ALONE.add_all([gradient, None])[0] is gradient
    assert ALONE.add(gradient) is gradient
    assert ALONE.leader(lambda: "made") == "made"
    assert ALONE.first_to_fail()
    ALONE.wait()
    ALONE.leave()


def test_a_loss_that_is_no_number_in_one_process_ends_all(shared: list[Any]) -> None:
    said = {part["poisoned"] for part in shared}
    assert len(said) == 1
    assert said.pop().startswith("step 1, ")


def test_the_leaders_clock_counts_for_all(shared: list[Any]) -> None:
    first, second = (part["timed"] for part in shared)
    assert first == second > 3


def test_buckets_keep_order_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BUCKET", 10)
    sizes = [4, 4, 4, 30, 1, 1]
    tensors = [
        torch.zeros(n, dtype=torch.bfloat16 if i == 5 else None) for i, n in enumerate(sizes)
    ]
    found = list(distributed._buckets(tensors))
    assert [[len(t) for t in bucket] for bucket in found] == [[4, 4], [4], [30], [1], [1]]


def test_accelerate_that_starts_one_process_instead_of_several_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does so on CPUs, without a word; the variables are those that it leaves."""
    assert distributed.launched() == 1
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert distributed.launched() == 1  # --num_processes 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ValueError, match="started one.*--multi_gpu"):
        distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distributed.launched() == 2


def test_one_process_does_without_accelerate(root: Path) -> None:
    for path in (root / "worldmodel").rglob("*.py"):
        assert "import accelerate" not in path.read_text(), path


# --- whole runs ----------------------------------------------------------------------------------

# Saves, log lines and validations fall together at some steps and apart at others.
UNEVEN = ["fit.save_every=3", "fit.log_every=2", "fit.validate_every=5", "fit.diagnose_every=4"]


def command(data: Path, out: Path, *more: str) -> list[str]:
    base = ["scripts.train", "experiment=debug", "model.width=32", "data.image_size=16"]
    return [*base, "fit.dtype=float32", f"data.root={data}", f"out={out}", *UNEVEN, *more]


def twice(data: Path, out: Path, *more: str) -> list[list[str]]:
    return [command(data, out, *more)] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def two(start: Launcher, data: Path, folder: Path) -> Path:
    """A run of two processes, which have no frame cache yet."""
    out = folder / "two"
    codes, logs = start.run(*twice(data, out, "steps=8"), SELFFLOW_CACHE=str(folder / "cache"))
    assert codes == [0, 0], logs
    for part in ("cpu and 1 more", "train 100%", "done: 8 steps", "best validation score"):
        assert logs[0].count(part) == 1
    assert "waiting for it" not in logs[0]
    assert logs[1] == "", "the second process neither speaks nor waits for a lock"
    return out


@pytest.fixture(scope="module")
def one(start: Launcher, data: Path, folder: Path) -> Path:
    """The same run in one process, in two parts: the first one is kept in ``one-half``."""
    out = folder / "one"
    assert start.run(command(data, out, "steps=4"), together=False)[0] == [0]
    shutil.copytree(out, folder / "one-half", symlinks=True)
    more = command(data, out, "steps=8", "resume=true")
    assert start.run(more, together=False)[0] == [0]
    return out


def state(out: Path) -> dict[str, torch.Tensor]:
    """Weights (their average too) and optimiser at the end of a run."""
    last = out / "checkpoints/last"
    files = ("model.safetensors", "training_state/tensors.safetensors")
    return {f"{f}/{k}": v for f in files for k, v in load_file(last / f).items()}


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def require_close(a: Path, b: Path) -> None:
    """The same run, but for the last digits; AdamW turns tiny gradients into steps of size lr."""
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-5)
    assert [line.keys() for line in lines(a)] == [line.keys() for line in lines(b)]
    for x, y in zip(lines(a), lines(b), strict=True):
        assert y == pytest.approx(x, rel=1e-3, abs=1e-5)


def require_equal(a: Path, b: Path) -> None:
    """Bit for bit."""
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    assert [n for n in first if not first[n].equal(second[n])] == []
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def test_two_processes_train_as_one(one: Path, two: Path) -> None:
    require_close(one, two)
    names = {p.name for p in two.iterdir()}
    assert names == {".lock", "checkpoints", "config.yaml", "metrics.jsonl", "timing.jsonl"}
    assert (two / "config.yaml").read_text() == (
        (one / "config.yaml").read_text().replace(str(one), str(two))
    ).replace("resume: true", "resume: false")
    stamps = [json.loads((x / "checkpoints/last/stamp.json").read_text()) for x in (one, two)]
    assert [s["processes"] for s in stamps] == [1, 2]
    assert len(list((two.parent / "cache").glob("*.h5"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_stops_all_and_it_goes_on_exactly(
    start: Launcher,
    data: Path,
    one: Path,
    two: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    out, line = tmp_path / "run", tmp_path / "run/timing.jsonl"
    running = start.start(*twice(data, out, "steps=8"))
    codes, logs = running.kill_when(
        lambda: line.exists() and line.stat().st_size > 0, number, which=number % 2
    )
    assert codes == [code, code], logs
    reached = int((out / "checkpoints/last").readlink().name)
    assert f"{number.name}: stopped after step {reached}, saved" in logs[0]
    assert logs[0].splitlines()[-1].endswith("steps=8 resume=true")
    assert logs[1] == ""
    assert 2 <= reached < 8
    other = tmp_path / "other"
    shutil.copytree(out, other, symlinks=True)
    more = ("steps=8", "resume=true")
    assert start.run(*twice(data, out, *more))[0] == [0, 0]
    require_equal(out, two)
    assert start.run(command(data, other, *more), together=False)[0] == [0]
    require_close(other, one)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(
    start: Launcher, data: Path, one: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(one.parent / "one-half", out, symlinks=True)
    codes, logs = start.run(*twice(data, out, "steps=8", "resume=true"))
    assert codes == [0, 0], logs
    require_close(out, one)


@pytest.mark.parametrize("killed", [0, 1])
def test_killed_one_ends_the_other_at_once_with_a_message(
    start: Launcher, data: Path, tmp_path: Path, killed: int
) -> None:
    out, link = tmp_path / "run", tmp_path / "run/checkpoints/last"
    running = start.start(*twice(data, out, "steps=100000"))
    codes, logs = running.kill_when(link.is_symlink, signal.SIGKILL, killed)
    ended = time.time() - os.stat(running.logs[1 - killed]).st_mtime
    assert ended < 10, "it said so late, or was still there"
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    said = logs[1 - killed]
    assert said.count("PeerError: another process of this run has ended") == 1
    assert "resume=true" in said
    assert "Traceback" not in said
    assert link.resolve().is_dir(), "the last checkpoint stays"


def test_what_is_wrong_is_said_once_and_ends_all(
    start: Launcher, data: Path, two: Path, tmp_path: Path
) -> None:
    held = (two / "metrics.jsonl").read_bytes()
    out = tmp_path / "run"
    for commands, wanted in (
        # found by the leader alone, by all, by all before they meet, by the second one alone
        (twice(data, two, "steps=9"), f"{two} holds a run already"),
        (twice(data, out, "steps=9", "fit.batch_size=9"), "fit.batch_size is 9"),
        (twice(data, out, "stepz=9"), "There is no setting 'stepz'"),
        (
            [command(data, out, "steps=9", f"seed={seed}") for seed in range(2)],
            "the configuration differs between the 2 processes",
        ),
    ):
        codes, logs = start.run(*commands)
        assert codes == [1, 1], logs
        assert "".join(logs).count(wanted) == 1, logs
        assert "Error" not in "".join(logs).replace("ValueError", "", 1)
        assert "Traceback" not in "".join(logs)
    assert (two / "metrics.jsonl").read_bytes() == held


def test_two_runs_that_build_the_same_cache_at_once(
    start: Launcher, data: Path, two: Path, tmp_path: Path
) -> None:
    """Processes that know nothing of each other."""
    outs = [tmp_path / name for name in "ab"]
    commands = [command(data, out, "steps=1") for out in outs]
    cache = tmp_path / "cache"
    codes, logs = start.run(*commands, together=False, SELFFLOW_CACHE=str(cache))
    assert codes == [0, 0], logs
    (built,) = (p for p in cache.iterdir() if p.suffix != ".lock")
    (expected,) = (two.parent / "cache").glob("*.h5")
    with h5py.File(built) as a, h5py.File(expected) as b:
        for name in ("frames/front", "state", "action"):
            assert np.array_equal(a[name], b[name])
    require_equal(*outs)


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["accelerate", "torchrun"])
def test_the_launchers_themselves(
    root: Path, data: Path, two: Path, tmp_path: Path, launch: str
) -> None:
    """And a SIGTERM to a launcher saves the run before it ends."""
    programs = {
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"],
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    out = tmp_path / "run"
    base = [sys.executable, "-m", *programs[launch], "-m", *command(data, out)]
    with subprocess.Popen([*base, "steps=100000", "device=cpu"], cwd=root) as running:
        while not (out / "checkpoints/last").is_symlink():
            assert running.poll() is None
            time.sleep(0.1)
        running.terminate()
    reached = int((out / "checkpoints/last").readlink().name)
    shutil.rmtree(out)
    assert reached >= 3
    subprocess.run([*base, "steps=8", "device=cpu"], cwd=root, check=True)
    require_equal(out, two)
