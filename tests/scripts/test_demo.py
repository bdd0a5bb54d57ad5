"""The demo, at the smallest settings: whole, and going on where it was interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts import demo as script
from scripts.demo import PeakMemory
from scripts.evaluate import EvaluateConfig, policy_config
from tests.test_configs import compose
from worldmodel.lock import LockedError, sole_writer

TINY = (
    "collect.episodes=3",
    "collect.workers=0",
    "train.model.size=debug",
    "train.minutes=null",
    "train.steps=3",
    "train.fit.batch_size=4",
    "train.fit.dtype=float32",
    "train.fit.diagnose_every=0",
    "evaluate.episodes=2",
    "evaluate.num_envs=2",
    "evaluate.latency_episodes=1",
    "evaluate.videos=1",
    "evaluate.video_size=64",
)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """``python -m scripts.demo TINY ARGUMENTS`` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["demo", *TINY, *arguments])
    monkeypatch.setenv("COLUMNS", "300")
    before = signal.getsignal(signal.SIGTERM)
    try:
        script.run.__wrapped__(compose("demo", *TINY, *arguments))
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def test_it_goes_on_after_an_interruption_and_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    plain = script.train

    def stopped(config, console):
        """Ctrl-C after the second step."""
        with monkeypatch.context() as patch:
            from worldmodel.selfflow import SelfFlow

            after = SelfFlow.after_step

            def hooked(self: SelfFlow, step: int) -> None:
                after(self, step)
                if step == 1:
                    signal.raise_signal(signal.SIGINT)

            patch.setattr(SelfFlow, "after_step", hooked)
            return plain(config, console)

    with monkeypatch.context() as patch:
        patch.setattr(script, "train", stopped)
        assert run(monkeypatch, f"out={out}") == 130
    said = capsys.readouterr().out
    assert "what is finished is kept. Go on with:" in said
    assert not (out / "report.json").exists()
    collected = sorted((p, p.stat().st_mtime_ns) for p in (out / "demonstrations").rglob("*.mp4"))
    assert (out / "train/checkpoints/last").resolve().name == "00000002"

    assert run(monkeypatch, f"out={out}") == 0
    said = capsys.readouterr().out
    for name in ("report.html", "report.png"):
        assert str(out / name) in said
        assert (out / name).stat().st_size > 1000
    assert collected == sorted(
        (p, p.stat().st_mtime_ns) for p in (out / "demonstrations").rglob("*.mp4")
    )
    assert (out / "train/checkpoints/last").resolve().name == "00000003"
    report = json.loads((out / "report.json").read_text())
    assert report["success"]["n"] == 2
    assert report["seconds_total"] > 0
    assert list(report["seconds_by_stage"]) == ["collect", "train", "evaluate"]
    assert 0.1 < report["peak_memory_gb"] < 8


def test_a_mistake_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = run(monkeypatch, f"out={tmp_path / 'demo'}", "collect.env=reach_aroun")
    assert code == 1
    assert "reach_around" in capsys.readouterr().out


def test_only_the_stages_of_an_earlier_demo_are_cleared(tmp_path: Path) -> None:
    for name in ("demonstrations", "train", "notes"):
        (tmp_path / name).mkdir()
    script.clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]


def test_a_demo_that_is_training_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "demonstrations").mkdir()
    with (
        sole_writer(tmp_path / "train"),
        pytest.raises(LockedError, match=f"pid {os.getpid()}.*{tmp_path / 'train'}"),
    ):
        script.clear(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"demonstrations", "train"}


def test_the_configuration_is_whole() -> None:
    config = OmegaConf.to_object(compose("demo", "out=here"))
    assert isinstance(config, script.DemoConfig)
    assert config.collect.out == config.train.data.root == "here/demonstrations"
    assert config.train.out == config.evaluate.checkpoint == "here/train"


def hold(seconds: float, after: float = 0.0) -> subprocess.Popen[bytes]:
    """A running process that holds 100 MB for a while (and the few of the interpreter).

    It has said that it runs: until a new process has become another program, what its parent holds
    counts as its own.
    """
    code = (
        f"import time; print(flush=True); time.sleep({after}); "
        f"memory = b'x' * 100_000_000; time.sleep({seconds})"
    )
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_peak_memory_is_that_of_all_processes_at_once() -> None:
    with PeakMemory(every=0.05) as alone:
        time.sleep(0.1)
    peaks = []
    for after in (0.0, 0.8):  # both at once, one after the other
        processes = [hold(0.6), hold(0.6, after)]
        with PeakMemory(every=0.05) as measured:
            for process in processes:
                process.communicate()
        peaks.append(measured.gb - alone.gb)
    assert peaks[0] == pytest.approx(0.21, abs=0.06)
    assert peaks[1] == pytest.approx(0.115, abs=0.06)


def test_the_policy_gets_every_setting_that_an_evaluation_has_for_it() -> None:
    config = EvaluateConfig(checkpoint="x", steps=5, prefix=1, smooth=0, history=1)
    acting = policy_config(config)
    assert (acting.steps, acting.prefix, acting.smooth, acting.history) == (5, 1, 0, 1)
