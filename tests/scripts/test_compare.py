"""The comparison of objectives: arms differ in what they name and in nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from scripts import compare as script

from ..datasets import write_dataset
from ..test_configs import compose

TINY = (
    "train.data.image_size=16", "train.data.future=1", "train.data.chunk=4",
    "train.model.size=debug", "train.fit.batch_size=4", "cost_steps=1", "seeds=[0,1]",
    "steps=4", "curve=[0.5]", "episodes=4", "curve_episodes=2", "workers=1",
    "train.fit.log_every=1",
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> script.CompareConfig:
    root = write_dataset(tmp_path / "data", episodes=3, length=12, size=16)
    values = compose("compare", f"train.data.root={root}", f"out={tmp_path / 'out'}", *TINY)
    config = OmegaConf.to_object(values)
    assert isinstance(config, script.CompareConfig)
    config.train.data.cache_dir = str(tmp_path / "cache")
    return config


def test_arms_share_everything_but_what_they_name(config) -> None:
    runs = {n: script.arm_config(config, a, 3, Path("x"), 7) for n, a in config.arms.items()}
    for name, run in runs.items():
        assert (run.seed, run.steps, run.minutes, run.fit.schedule) == (3, 7, None, "constant")
        assert run.objective.name == config.arms[name].objective
        run.objective = runs["flow"].objective
        run.fit.diagnose_every = 0  # looking at the teacher changes nothing
        assert run == runs["flow"]


def test_without_video_only_acting_patterns_are_left(config) -> None:
    run = script.arm_config(config, script.Arm("selfflow", video=False), 0, Path("x"), 1)
    assert set(run.objective.patterns) == {"act", "act_prefix"}
    assert set(config.train.objective.patterns) > {"act", "act_prefix"}


def test_it_goes_on_where_it_stopped_and_pairs_the_same_resets(config, monkeypatch) -> None:
    calls = []

    def judge(config, run, episodes, purpose):
        calls.append((run.name, purpose))
        good = [int((i + len(run.name)) % 2) for i in range(episodes)]
        return {"success": script.wilson(sum(good), episodes).to_dict(), "outcomes": good,
                "modes": {}, "rms_jerk": 1.0, "purpose": purpose}  # fmt: skip

    monkeypatch.setattr(script, "judge", judge)
    table = script.compare(config, Console(quiet=True))
    first = len(calls)
    assert {run for run, _ in calls} == {f"{n}-{s}" for n in config.arms for s in (0, 1)}
    script.compare(config, Console(quiet=True))
    assert len(calls) == first
    row = table["rows"]["flow"]["equal_steps"]
    assert row["minus_baseline"]["difference"] == 0
    assert row["pooled"]["n"] == 8
    out = Path(config.out)
    assert json.loads((out / "compare.json").read_text())["baseline"] == "flow"
    text = (out / "compare.md").read_text()
    assert all(f"| {name} |" in text for name in config.arms)
    # The teacher is looked at in the arms that have one, in every modality that they want.
    shown = {n: set(r["asymmetry"]["0"]) for n, r in table["rows"].items() if "asymmetry" in r}
    every = {"video/front", "state", "action"}
    assert shown == {"selfflow": every, "selfflow_clean": every, "selfflow_no_video": {"action"}}
    assert (out / "compare.png").stat().st_size > 5000


def test_the_trimmed_mean_ignores_a_stall() -> None:
    assert script.trimmed_mean([1.0] * 9 + [100.0]) == 1
