"""`scripts.train` as a user meets it: killed, interrupted, mistyped."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console
from safetensors.torch import load_file

from scripts import train as script
from scripts.train import TrainConfig
from tests.datasets import write_dataset
from tests.test_configs import compose
from worldmodel.checkpoint import open_checkpoint
from worldmodel.data import Normalizer, open_data
from worldmodel.model import WorldModel

# `python -m scripts.train` with everything heavy imported once: each line on stdin is a command
# line, run in a fork of its own, which is a process to be killed like any other.
LAUNCHER = """
import json, os, runpy, sys, traceback
import hydra, torch, worldmodel.data, worldmodel.train
from lerobot.datasets import LeRobotDataset
for line in sys.stdin:
    arguments, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.argv = ["train", *arguments]
        code = 0
        try:
            runpy.run_module("scripts.train", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else print(end.code) or 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code or 0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Running:
    """One started command."""

    def __init__(self, launcher: subprocess.Popen[str], log: Path) -> None:
        assert launcher.stdout is not None
        self._stdout, self._log = launcher.stdout, log
        self.pid = int(self._stdout.readline())

    def wait(self) -> tuple[int, str]:
        """Exit code (negative: killed by that signal) and everything printed."""
        code = int(self._stdout.readline())
        return code, self._log.read_text()

    def alive(self) -> bool:
        return (
            Path(f"/proc/{self.pid}").exists()
            and Path(f"/proc/{self.pid}/stat").read_text().split(") ")[1][0] != "Z"
        )

    def kill_when(self, condition: Callable[[], bool], number: signal.Signals) -> tuple[int, str]:
        """Send a signal the moment that `condition` holds, or not at all if it never does."""
        deadline = time.monotonic() + 60
        while not condition():
            if not self.alive():
                return self.wait()
            assert time.monotonic() < deadline, self._log.read_text()
        os.kill(self.pid, number)
        return self.wait()


@dataclass
class Trainer:
    """Starts ``python -m scripts.train experiment=debug data.root=... ARGUMENTS``."""

    launcher: subprocess.Popen[str]
    data: Path
    log: Path

    def start(self, *arguments: str) -> Running:
        assert self.launcher.stdin is not None
        line = [["experiment=debug", f"data.root={self.data}", *arguments], str(self.log)]
        self.launcher.stdin.write(json.dumps(line) + "\n")
        self.launcher.stdin.flush()
        return Running(self.launcher, self.log)

    def run(self, *arguments: str) -> tuple[int, str]:
        return self.start(*arguments).wait()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("train") / "data", episodes=4, length=24)


@pytest.fixture(scope="module")
def trainer(root: Path, data: Path) -> Iterator[Trainer]:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "500"},
    ) as launcher:
        yield Trainer(launcher, data, data.parent / "log.txt")
        assert launcher.stdin is not None
        launcher.stdin.close()


def outcome(out: Path) -> dict[str, object]:
    """All that a run leaves, but what depends on the clock."""
    checkpoints = out / "checkpoints"
    found: dict[str, object] = {"metrics": (out / "metrics.jsonl").read_bytes()}
    for link in ("last", "best"):
        folder = checkpoints / link
        found[link] = os.readlink(folder)
        for file in ("model.safetensors", "config.json", "training_state/tensors.safetensors"):
            found[f"{link}/{file}"] = (folder / file).read_bytes()
        state = json.loads((folder / "training_state/state.json").read_text())
        found[f"{link}/state"] = {k: v for k, v in state.items() if k != "seconds"}
    found["folders"] = sorted(p.name for p in checkpoints.iterdir())
    return found


def differences(a: dict[str, object], b: dict[str, object]) -> list[str]:
    return [name for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


# Saves, log lines and validations fall together at some steps and apart at others.
UNEVEN = ("steps=24", "fit.save_every=3", "fit.log_every=4", "fit.validate_every=5")


def last_step(out: Path) -> int:
    link = out / "checkpoints/last"
    return int(os.readlink(link)) if link.is_symlink() else -1


def kill_and_resume(trainer: Trainer, out: Path, kills: int, seed: int) -> list[str]:
    """Run to the end through `kills` SIGKILLs; returns the moments that were hit."""
    chance = random.Random(seed)
    checkpoints, lines = out / "checkpoints", out / "timing.jsonl"
    hit = []

    def names() -> list[str]:
        try:
            return os.listdir(checkpoints)
        except FileNotFoundError:
            return []

    for number in range(kills):
        moment = ("first line", "writing", "finished", "any")[number % 4]
        before, size = last_step(out), lines.stat().st_size if lines.exists() else 0
        running = trainer.start(f"out={out}", "resume=true", "fit.dtype=float32", *UNEVEN)
        at = time.monotonic() + chance.uniform(0.5, 2.5)

        def reached(
            moment: str = moment, before: int = before, size: int = size, at: float = at
        ) -> bool:
            match moment:
                case "first line":  # before the first checkpoint, if this is the first part
                    return lines.exists() and lines.stat().st_size > size
                case "writing":
                    return any(n.startswith(".writing-") for n in names())
                case "finished":  # and perhaps not linked yet
                    return any(n.isdigit() and int(n) > before for n in names())
            return time.monotonic() > at

        code, log = running.kill_when(reached, signal.SIGKILL)
        assert code in (-signal.SIGKILL, 0), log
        hit.append(moment if code else "none")
        if any(n.startswith(".writing-") for n in names()):
            hit.append("half-written checkpoint")
    code, log = trainer.run(f"out={out}", "resume=true", "fit.dtype=float32", *UNEVEN)
    assert code == 0, log
    return hit


@pytest.fixture(scope="module")
def whole(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, log = trainer.run(f"out={out}", "fit.dtype=float32", *UNEVEN)
    assert code == 0, log
    return out


def test_killed_at_any_moment_and_resumed_equals_uninterrupted(
    trainer: Trainer, whole: Path, tmp_path: Path
) -> None:
    """Bit for bit: weights, EMA, optimiser, metrics, which checkpoint is best."""
    out = tmp_path / "run"
    hit = kill_and_resume(trainer, out, kills=4, seed=0)
    assert {"first line", "writing", "half-written checkpoint"} <= set(hit)
    assert differences(outcome(whole), outcome(out)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_many_times_and_resumed_equals_uninterrupted(
    trainer: Trainer, whole: Path, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / "run"
    kill_and_resume(trainer, out, kills=10, seed=seed)
    assert differences(outcome(whole), outcome(out)) == []


@pytest.mark.slow
def test_the_command_itself_survives_a_kill(
    root: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """The same with whole processes, as a shell starts them."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "scripts.train", "experiment=debug", f"data.root={data}"]
    command += [f"out={out}", "resume=true", "fit.dtype=float32", *UNEVEN]
    first = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    while last_step(out) < 6 and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    assert differences(outcome(whole), outcome(out)) == []


def test_a_finished_run_is_left_as_it_is(trainer: Trainer, whole: Path) -> None:
    def files() -> dict[str, tuple[int, bytes]]:
        return {
            str(p): (p.stat().st_mtime_ns, p.read_bytes())
            for p in (whole / "checkpoints").rglob("*")
            if p.is_file()
        }

    before, metrics = files(), (whole / "metrics.jsonl").read_bytes()
    code, log = trainer.run(f"out={whole}", "resume=true", "fit.dtype=float32", *UNEVEN)
    assert code == 0
    assert "nothing left to do" in log
    assert files() == before
    assert (whole / "metrics.jsonl").read_bytes() == metrics


def test_a_second_process_with_the_same_folder_ends_at_once_and_changes_nothing(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
) -> None:
    """And after a SIGKILL the folder is free, with nothing to clean up."""
    out = tmp_path / "run"
    running = trainer.start(f"out={out}", "steps=100000", "fit.save_every=5")
    base = ("experiment=debug", f"out={out}", f"data.root={data}", "steps=9")

    while last_step(out) < 0 and running.alive():
        time.sleep(0.01)
    settings = (out / "config.yaml").read_text()
    try:
        for more in ((), ("resume=true",), ("resume=true", "objective=flow")):
            said = fails(monkeypatch, capsys, *base, *more)
            assert f"pid {running.pid}) is writing into {out}" in said
    finally:
        code, log = running.kill_when(lambda: True, signal.SIGKILL)
    assert code == -signal.SIGKILL, log
    assert (out / "config.yaml").read_text() == settings
    code, log = trainer.run(f"out={out}", f"steps={last_step(out) + 1}", "resume=true")
    assert code == 0, log


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_saves_says_how_to_go_on_and_goes_on_exactly(
    trainer: Trainer, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    arguments = (f"out={out}", "fit.dtype=float32", *UNEVEN)
    line = out / "timing.jsonl"
    found, log = trainer.start(*arguments).kill_when(
        lambda: line.exists() and line.stat().st_size > 0, number
    )
    assert found == code, log
    assert "Traceback" not in log
    assert f"{number.name}: stopped after step {last_step(out)}, saved" in log
    command = log.splitlines()[-1]
    assert "python -m scripts.train experiment=debug" in command
    assert command.endswith("resume=true")
    assert 4 <= last_step(out) < 24
    assert trainer.run(*arguments, "resume=true")[0] == 0
    assert differences(outcome(whole), outcome(out)) == []


def test_the_saved_configuration_is_whole_and_loads_back(whole: Path, data: Path) -> None:
    text = (whole / "config.yaml").read_text()
    assert "${" not in text
    schema = OmegaConf.structured(TrainConfig)
    config = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(text)))
    assert isinstance(config, TrainConfig)
    assert (config.data.root, config.out, config.steps) == (str(data), str(whole), 24)
    assert config.model.size == "debug"


# --- errors --------------------------------------------------------------------------------------


def fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """What a command that must fail says, as one line; in this process, to be fast."""
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(sys, "argv", ["train", *arguments])

    def command() -> None:
        # Unknown keys end it before Hydra; the rest goes where Hydra hands over.
        script.refuse_unknown_keys(TrainConfig, arguments, ("model", "objective", "experiment"))
        script.run.__wrapped__(compose("train", *arguments))

    with pytest.raises(SystemExit) as caught:
        command()
    code, said = caught.value.code, capsys.readouterr()
    assert code not in (0, None)
    out = said.out if isinstance(code, int) else str(code)
    assert "Traceback" not in out + said.err
    return " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["fit.lrr=1"], ["'fit.lrr'", "Did you mean 'fit.lr'?", "fit.warmup"]),
        (["stepz=5"], ["'stepz'", "Did you mean 'steps'?"]),
        (["data.keys.imagez=[a]"], ["Did you mean 'data.keys.images'?"]),
        (["data.root=/no/such/place", "steps=1"], ["/no/such/place"]),
        (["data.root=DATA"], ["steps=N", "minutes=M"]),
        (["data.root=DATA", "steps=0"], ["steps is 0", "above 0"]),
        (["steps=1"], ["data.root", "data.root=FOLDER"]),
        (["data.root=DATA", "steps=1", "objective.name=floww"], ["floww", "'flow'", "'dts'"]),
        (["data.root=DATA", "steps=1", "model.size=tinny"], ["tinny", "'tiny'", "'base'"]),
        (["data.root=DATA", "steps=1", "fit.optimizer=adam"], ["adam", "Did you mean 'adamw'?"]),
        (["data.root=DATA", "steps=1", "fit.schedule=cos"], ["cos", "'cosine'", "'cooldown'"]),
        (["data.root=DATA", "steps=1", "data.image_size=30"], ["patches of 8", "image_size=[32"]),
        (["data.root=DATA", "steps=1", "device=cuda:77"], ["device=cuda:77", "'cpu'", "auto"]),
        (["data.root=DATA", "steps=1", "device=gpu"], ["device=gpu", "'cpu'"]),
        (["data.root=DATA", "steps=1", "init=/no/checkpoint"], ["no such folder", "/no/check"]),
        (["data.root=DATA", "steps=1", "data.episodes=[99]"], ["no episodes [99]", "0 to 3"]),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and "=" in value[-1] else "",
)
def test_mistakes_are_named_with_what_exists(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    arguments: list[str],
    wanted: list[str],
) -> None:
    arguments = [a.replace("DATA", str(data)) for a in arguments]
    out = tmp_path / "run"
    said = fails(monkeypatch, capsys, f"out={out}", *arguments)
    for part in wanted:
        assert part in said
    assert not out.exists(), "a run that never began leaves nothing behind"


def test_a_run_is_neither_overwritten_nor_continued_as_another(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    before = (whole / "config.yaml").read_text()
    base = ("experiment=debug", f"out={whole}", f"data.root={data}", "steps=30")
    assert "24 steps done" in fails(monkeypatch, capsys, *base)
    for override, wanted in {
        "objective.mask_ratio.video=0.45": "objective.mask_ratio.video was",
        "objective=flow": "objective.name was 'selfflow' in this run and is 'flow' now",
        "model.width=32": "model.width was 0 in this run and is 32 now",
        "data.chunk=4": "data.chunk was 8 in this run and is 4 now",
        "data.validation=0.5": "dataset.train_episodes was 3 in this run and is 2 now",
        "data.image_size=16": "the data's image_size was [32, 32] in this run and is [16, 16] now",
        "fit.optimizer=muon": "fit.optimizer was 'adamw' in this run and is 'muon' now",
        "fit.dtype=bfloat16": "fit.dtype was 'float32' in this run and is 'bfloat16' now",
        "seed=1": "seed was 0 in this run and is 1 now",
    }.items():
        assert wanted in fails(monkeypatch, capsys, *base, "resume=true", override)
    other = write_dataset(tmp_path / "other", episodes=4, length=24, seed=5)
    said = fails(monkeypatch, capsys, *base, "resume=true", f"data.root={other}")
    assert "dataset.fingerprint was" in said
    assert (whole / "config.yaml").read_text() == before


def test_init_is_refused_for_another_robot_or_model_by_name(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: Path,
    whole: Path,
    tmp_path: Path,
) -> None:
    robot = write_dataset(tmp_path / "robot", episodes=2, length=12, state_dim=3)
    base = ("experiment=debug", f"out={tmp_path / 'run'}", f"init={whole}")
    said = fails(monkeypatch, capsys, *base, f"data.root={robot}")
    assert "state_names" in said
    assert str(whole) in said
    said = fails(monkeypatch, capsys, *base, f"data.root={data}", "model.patch=4")
    assert "model.patch is 8 there and 4 here" in said


def test_init_matches_tasks_by_their_text(data: Path, whole: Path, tmp_path: Path) -> None:
    """Weights as they are; known tasks keep their embedding, wherever they stand in the list."""
    config: Any = OmegaConf.to_object(compose("train", "experiment=debug"))
    tasks = ("another thing", "move the square")
    config.data.root = str(write_dataset(tmp_path / "more", episodes=4, length=12, tasks=tasks))
    spec = open_data(config.data, progress=False).spec
    old = open_checkpoint(whole).model
    new = WorldModel(spec, old.horizon, config.model, seed=9)
    fresh = new.task.weight.detach().clone()
    script.start_from(new, str(whole))
    then, now = old.state_dict(), new.state_dict()
    assert all(then[k].equal(now[k]) for k in now if k != "task.weight")
    known, unknown = (spec.tasks.index(t) for t in ("move the square", "another thing"))
    assert now["task.weight"][known].equal(then["task.weight"][0])
    assert now["task.weight"][-1].equal(then["task.weight"][-1])
    assert now["task.weight"][unknown].equal(fresh[unknown])


def test_init_says_what_means_something_else_to_the_weights(whole: Path) -> None:
    old = open_checkpoint(whole).model
    assert script.start_from(WorldModel(old.spec, old.horizon, old.config, 1), str(whole)) == []
    stats = json.loads(json.dumps(old.spec.stats))
    for name in stats["action"]:  # the second dimension twice as far, a little to the side
        first, second = stats["action"][name]
        stats["action"][name] = [first, 2 * second if name == "std" else 2 * second + 0.25]
    other = replace(
        old.spec,
        stats=stats,
        fps=30.0,
        robot_type="another",
        action_kind="delta",
        image_size=(16, 32),
        tasks=(*old.spec.tasks, "sort the squares"),
    )
    new = WorldModel(other, replace(old.horizon, chunk=4), old.config, seed=9)
    lines = script.start_from(new, str(whole))
    then, now = (Normalizer(x["action"], "quantile") for x in (old.spec.stats, stats))
    name = other.action_names[1]
    assert lines[0].startswith("action is normalised anew, by this data's statistics")
    assert f"in {name}, {then.center[1]:.3g} to {now.center[1]:.3g}" in lines[0]
    assert f"in {name}, {then.scale[1]:.3g} to {now.scale[1]:.3g}" in lines[0]
    assert lines[1:] == [
        "robot_type was 'square', is 'another'",
        "fps was 20.0, is 30.0",
        "action_kind was 'unknown', is 'delta'",
        "image_size was (32, 32), is (16, 32)",
        "data.chunk was 8, is 4",
        "tasks that start afresh: 'sort the squares'",
    ]
    assert new.state_dict()["head.action.weight"].equal(old.state_dict()["head.action.weight"])


def test_init_tells_the_user(whole: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "other", episodes=2, length=12, seed=5)
    config: Any = OmegaConf.to_object(
        compose("train", "experiment=debug", f"data.root={root}", f"init={whole}", "steps=1")
    )
    config.out, text = str(tmp_path / "run"), io.StringIO()
    script.train(config, Console(file=text, width=60))
    lines = text.getvalue().splitlines()
    at = lines.index(f"init        {whole}")
    assert [line.split()[:3] for line in lines[at + 1 : at + 3]] == [
        ["state", "is", "normalised"],
        ["action", "is", "normalised"],
    ]


def test_a_run_whose_stamp_says_less_resumes(trainer: Trainer, whole: Path, tmp_path: Path) -> None:
    """Stamps of earlier versions lack entries."""
    out = tmp_path / "run"
    shutil.copytree(whole, out, symlinks=True)
    path = out / "checkpoints/last/stamp.json"
    stamp = json.loads(path.read_text())
    for name in ("robot", "states", "actions", "window", "cameras"):
        del stamp[name]
    path.write_text(json.dumps(stamp))
    code, log = trainer.run(f"out={out}", "resume=true", "fit.dtype=float32", "steps=25")
    assert code == 0, log


@pytest.mark.slow
def test_wandb_offline_needs_neither_network_nor_login(trainer: Trainer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for arguments in (["steps=10"], ["steps=12", "resume=true"]):
        code, log = trainer.run(f"out={out}", "fit.wandb=offline", *arguments)
        assert code == 0, log
        time.sleep(1)  # folders are named by the second
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"))
    number = (out / "wandb_id").read_text().strip()
    assert [f.name for f in files] == [f"run-{number}.wandb"] * 2


def test_wandb_is_not_imported_unless_asked_for(root: Path) -> None:
    text = (root / "worldmodel/record.py").read_text()
    assert "\nimport wandb" not in text


def test_checkpoints_hold_ema_weights_beside_raw_ones(whole: Path) -> None:
    folder = whole / "checkpoints/last"
    ema = load_file(folder / "model.safetensors")
    raw = load_file(folder / "training_state/tensors.safetensors")
    name = "model.backbone.blocks.0"
    pairs = [(v, raw[f"objective.{k}"]) for k, v in ema.items() if k.startswith(name)]
    assert pairs
    assert any(not a.equal(b) for a, b in pairs)
