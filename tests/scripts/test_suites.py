"""The scripts on other people's worlds: collect, train, evaluate."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import envs
from envs.dataset import DatasetWriter
from envs.recording import Episode
from policies.flow_policy import FlowPolicy
from scripts import collect as collect_script
from scripts import evaluate as evaluate_script
from scripts import train as train_script
from scripts.collect import CollectConfig, collect
from scripts.evaluate import EvaluateConfig, run_evaluation, world_of
from tests.test_configs import compose
from worldmodel.checkpoint import open_checkpoint

pytestmark = pytest.mark.suites


def train(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m scripts.train experiment=debug``, in this process."""
    arguments = [
        "experiment=debug", f"data.root={data}", f"out={out}", "steps=4", "data.image_size=24",
        "fit.diagnose_every=0", f"data.cache_dir={out}.cache",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train_script.run.__wrapped__(compose("train", *arguments))


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("name", "camera"), [("fetch_reach", "front"), ("metaworld:reach-v3", "corner")]
)
def test_collect_train_evaluate(
    name: str, camera: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "evaluation"
    collected = collect(
        CollectConfig(
            env=name,
            episodes=3,
            out=str(data),
            image_size=24,
            cameras=[camera],
            workers=0,
            options={"max_episode_steps": 120},
        )
    )
    assert collected.episodes == 3
    source = json.loads((data / "meta/source.json").read_text())
    info = json.loads((data / "meta/info.json").read_text())
    assert info["features"]["action"]["info"] == {"action_kind": "delta"}
    assert source["options"] == {"max_episode_steps": 120}

    train(data, run, monkeypatch)
    checkpoint = open_checkpoint(run)
    assert checkpoint.spec.action_kind == "delta"
    assert checkpoint.spec.action_targets == (-1,) * 4

    config = EvaluateConfig(
        checkpoint=str(run), env=name, episodes=1, num_envs=1, latency_episodes=0, videos=1,
        video_size=48, out=str(out), options={"max_episode_steps": 90},
    )  # fmt: skip
    report = run_evaluation(config, FlowPolicy.from_checkpoint(run))
    assert report["expert"]["k"] == 1
    assert report["floors"]["random"]["n"] == report["floors"]["hold"]["n"] == 1
    assert report["environment"]["options"]["max_episode_steps"] == 90
    assert report["axes"] == {"names": ["ee.x", "ee.y", "ee.z"], "unit": "m", "kind": "delta"}
    assert report["smoothness"]["commands"]["demonstrations"]["rms_jerk"] > 0
    assert "velocity_violations" not in report["smoothness"]["commands"]
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["pusht", "aloha:transfer-cube"])
def test_worlds_without_expert_take_policies_from_other_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset of wandering stands for people's demonstrations."""
    env = envs.make(name, image_size=24)
    world: Any = world_of(env)
    writer = DatasetWriter(
        tmp_path / "data", fps=world.metadata["render_fps"], cameras=world.cameras,
        image_size=world.image_size, state_names=world.state_names,
        action_names=world.action_names, task=world.task_description, robot_type="somebody's",
        source={},
    )  # fmt: skip
    for seed in range(3):
        writer.add(wander(world, seed), seed)
    writer.commit()
    # As from elsewhere: it says nothing about where it comes from, and the robot is not named.
    (tmp_path / "data/meta/source.json").unlink()
    run = tmp_path / "run"
    train(tmp_path / "data", run, monkeypatch)

    config = EvaluateConfig(
        checkpoint=str(run), env=name, episodes=1, num_envs=1, latency_episodes=0, videos=1,
        video_size=48, out=str(tmp_path / "evaluation"), options={"max_episode_steps": 20},
    )  # fmt: skip
    report = run_evaluation(config, FlowPolicy.from_checkpoint(run))
    assert report["expert"] is None
    assert report["axes"]["kind"] == "absolute"
    assert report["floors"]["hold"]["n"] == 1
    with pytest.raises(ValueError, match="has no scripted expert"):
        run_evaluation(replace(config, expert=True), FlowPolicy.from_checkpoint(run))
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(ValueError, match="has no scripted expert"):
        collect(CollectConfig(env=name, episodes=1, out=str(tmp_path / "data"), workers=0))
    assert not (tmp_path / "data").exists()


def wander(world: Any, seed: int) -> Episode:
    """Twenty smooth steps away from where it starts."""
    observation, _ = world.reset(seed=seed)
    hold = world.hold_action(observation["agent_pos"])
    rng = np.random.default_rng(seed)
    reach = 0.1 * (world.action_space.high - world.action_space.low) * rng.uniform(-1, 1, len(hold))
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in world.cameras}
    states, actions = [], []
    for step in range(20):
        for camera, frames in images.items():
            frames.append(observation["pixels"][camera])
        states.append(observation["agent_pos"])
        actions.append((hold + reach * np.sin(step / 8)).astype(np.float32))
        observation, *_ = world.step(actions[-1])
    return Episode(
        images={camera: np.stack(frames) for camera, frames in images.items()},
        state=np.stack(states),
        action=np.stack(actions),
        success=np.zeros(20, bool),
        simulator_state=None,
        mode="",
        seed=seed,
    )


@pytest.mark.parametrize("script", [collect_script, evaluate_script])
def test_mistyped_tasks_are_suggested_at_the_command_line(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "collect" if script is collect_script else "evaluate"
    extra = ["checkpoint=none"] if kind == "evaluate" else []
    config = compose(kind, f"out={tmp_path}", "env=metaworld:drawr-open-v3", *extra)
    with pytest.raises(SystemExit) as end:
        script.run.__wrapped__(config)
    said = f"{end.value} {capsys.readouterr().out}"
    assert "metaworld:drawer-open-v3" in said
    assert "Traceback" not in said
