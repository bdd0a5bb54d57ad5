"""Policies in imagination: collected, trained and judged as on the command line, in seconds."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

import envs
from policies.evaluation import episode_seeds, evaluate
from policies.floors import HoldPolicy
from policies.flow_policy import FlowPolicy
from scripts import evaluate as script
from scripts._imagined import UNCALIBRATED, Films, imagined_world, is_imagined
from scripts.collect import collect
from scripts.train import train
from tests.test_configs import compose
from worldmodel.checkpoint import open_checkpoint, save_policy
from worldmodel.data import resize_frames
from worldmodel.types import SpecMismatchError

QUICK = ("episodes=5", "num_envs=3", "latency_episodes=1", "videos=2", "device=cpu")
SHORT = "max_episode_steps:6"
ALL_SOLVED = "threshold:0.001"  # whatever a model of seconds says is success


def settings(script_name: str, *overrides: str) -> Any:
    return OmegaConf.to_object(compose(script_name, *overrides))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data``: six episodes of reach, three of them explored; ``run``: a world model of them."""
    root = tmp_path_factory.mktemp("imagined")
    collect(
        settings(
            "collect", "env=reach", "episodes=6", "exploration=0.5", "image_size=40",
            "cameras=[front]", "workers=0", "options={target:hard}", f"out={root / 'data'}",
        )
    )  # fmt: skip
    train(
        settings(
            "train", "experiment=debug", "objective=flow", "objective.any_frame=0.5", "steps=2",
            "data.validation=0.4", "fit.diagnose_every=0", "fit.validate_every=0", "device=cpu",
            f"data.root={root / 'data'}", f"data.cache_dir={root / 'cache'}", f"out={root / 'run'}",
        ),
        Console(quiet=True),
    )  # fmt: skip
    return root


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """``python -m scripts.evaluate ARGUMENTS`` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    monkeypatch.setenv("COLUMNS", "300")
    try:
        script.run.__wrapped__(compose("evaluate", *arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def model(folder: Path, name: str, **stamp: Any) -> Path:
    """A copy of the world model that says other things of where it comes from."""
    opened = open_checkpoint(folder / "run")
    target = folder / name
    target.mkdir()
    facts = {k: v for k, v in {**opened.stamp, **stamp}.items() if v is not None}
    save_policy(target, opened.model, opened.objective, facts)
    return target


def test_the_command_writes_a_report_that_says_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common, real, out = (f"checkpoint={folder / 'run'}", *QUICK), folder / "real", folder / "mine"
    simulated = ("env=reach", f"options={{{SHORT}}}", "floors=false", "expert=false", "videos=0")
    assert run(monkeypatch, *common, *simulated, "latency_episodes=0", f"out={real}") == 0
    options = (f"options={{{SHORT},{ALL_SOLVED}}}", f"compare=[{real}]", f"out={out}")
    assert run(monkeypatch, *common, f"env=imagined:{folder / 'run'}", *options) == 0
    assert "selfflow/Reach-v0, imagined" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["title"] == "selfflow/Reach-v0, imagined"
    assert f"imagined by {folder / 'run'}" in report["subtitle"]
    world = report["environment"]
    assert (world["name"], world["imagined"]) == ("reach", True)
    assert world["options"] == {
        "cameras": ["front"], "image_size": [40, 40], "target": "hard", "max_episode_steps": 6,
    }  # fmt: skip
    assert world["world_model"]["stamp"] == open_checkpoint(folder / "run").stamp
    assert world["world_model"]["threshold"] == 0.001
    assert report["success"]["k"] == 5
    assert report["expert"] is None
    assert set(report["floors"]) == {"random", "hold"}
    assert report["single_slot"] == {"n": 1, "same_outcome": 1}
    assert [row["seed"] for row in report["episodes"]] == episode_seeds(5)
    page = (out / "report.html").read_text()
    assert [f"Reset {n} of 5, imagined" in page for n in (1, 2, 3)] == [True, True, False]
    assert (out / "report.png").stat().st_size > 5000
    difference = report["comparisons"][str(real)]  # imagined minus simulated, on the same resets
    assert (difference["n"], difference["only_b"]) == (5, 0)
    assert difference["difference"] > 0


def test_episodes_start_where_those_of_the_simulator_do(folder: Path) -> None:
    world = imagined_world(folder / "run", {"max_steps": 3, "threshold": 1.0})
    env = envs.make("reach", cameras=["front"], image_size=40, target="hard")
    box, seeds = env.action_space, episode_seeds(4)
    assert world.action_space == box
    assert world.observation_space["agent_pos"] == env.observation_space["agent_pos"]  # type: ignore[index]
    seen, _ = world.vector(4).reset(seed=seeds)
    one, _ = world.single().reset(seed=seeds[2])
    for i, seed in enumerate(seeds):
        real, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(seen["agent_pos"][i], real["agent_pos"])
        frame = torch.from_numpy(real["pixels"]["front"]).movedim(-1, 0)
        expected = resize_frames(frame, (32, 32)).movedim(0, -1).numpy()
        np.testing.assert_array_equal(seen["pixels"]["front"][i], expected)
    np.testing.assert_array_equal(one["pixels"]["front"], seen["pixels"]["front"][2])
    # What stays still in the one stays still in the other.
    result = evaluate(HoldPolicy(world.hold), world.vector(4), seeds, max_steps=3)
    for episode in result.episodes:
        np.testing.assert_array_equal(episode.commands, episode.positions[:1].repeat(3, 0))
    assert imagined_world(f"imagined:{folder / 'run'}").max_steps == 100
    world.close()
    env.close()


def test_the_policy_reads_the_task_in_imagination_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = FlowPolicy.from_checkpoint(str(folder / "run"))
    read: list[Any] = []
    act = policy.act

    def note(observation: Any, active: Any) -> Any:
        read.append(observation.task)
        return act(observation, active)

    monkeypatch.setattr(policy, "act", note)
    world = imagined_world(folder / "run", {"max_steps": 2, "threshold": 1.0})
    films = Films("front", most=1)
    evaluate(policy, films.over(world.vector(2)), [1, 2], max_steps=2)
    assert read == [list(policy.spec.tasks) * 2] * 2
    assert world.starts(0)["task"] == policy.spec.tasks[0]
    world.close()


def test_films_are_the_first_of_each_outcome_as_they_were_seen(folder: Path) -> None:
    world = imagined_world(folder / "run", {"max_steps": 9, "threshold": 0.5})
    seeds, films, found = list(range(8)), Films("front", most=2), {}
    # Success in the middle of the values that this model gives.
    probe = world.vector(8)
    probe.reset(seed=seeds)
    hold = np.stack([world.hold(world.starts(s)["agent_pos"]) for s in seeds])  # type: ignore[misc]
    peaks = np.max([probe.step(hold)[4]["success"] for _ in range(9)], axis=0)
    world.settings["threshold"] = float(np.median(peaks))

    def ended(episode: Any) -> None:
        found[episode.seed] = episode
        films.keep(1 + seeds.index(episode.seed), episode)

    envs_seen = films.over(world.vector(4))
    evaluate(HoldPolicy(world.hold), envs_seen, seeds, max_steps=9, on_episode=ended)
    outcomes = [found[seed].success for seed in seeds]
    solved, failed = ([i for i, o in enumerate(outcomes) if o is kind] for kind in (True, False))
    assert solved, "the test needs both outcomes"
    assert len(failed) > 1, "the test needs both outcomes"
    assert [number - 1 for number, _, _ in films.kept] == [*solved[:2], *failed[:2]]
    late = Films("front", most=1)  # of two that end in the other order
    both = evaluate(HoldPolicy(world.hold), late.over(world.vector(8)), seeds, max_steps=9)
    for seed in failed[1::-1]:
        late.keep(1 + seed, both.episodes[seed])
    assert [number - 1 for number, _, _ in late.kept] == failed[:1]
    for number, episode, frames in films.kept:
        assert episode is found[seeds[number - 1]]
        assert frames.shape == (episode.steps + 1, 32, 32, 3)
        first, _ = world.single().reset(seed=episode.seed)
        np.testing.assert_array_equal(frames[0], first["pixels"]["front"])
    world.close()


def test_recordings_start_episodes_where_there_is_no_simulator(folder: Path, tmp_path) -> None:
    stranger = model(folder, "stranger", environment=None)
    with pytest.raises(ValueError, match=r"options=\{starts:DATASET\}.*scripts.collect"):
        imagined_world(stranger)
    world = imagined_world(stranger, {"starts": str(folder / "data")})
    held_out = world.checkpoint.stamp["dataset"]["validation_episodes"]
    assert 1 < len(held_out) < 6
    assert world.note == f"starts of {len(held_out)} recorded episodes, {UNCALIBRATED}"
    known = {"starts": str(folder / "data"), "threshold": 0.8, "patience": 2}
    assert "not calibrated" not in imagined_world(stranger, known).note
    assert world.world is None
    n = len(held_out)
    states = [world.starts(seed)["agent_pos"] for seed in range(n + 1)]
    assert len({tuple(s.tolist()) for s in states}) == n, "each its own, then the first again"
    np.testing.assert_array_equal(states[0], states[n])
    simulated = imagined_world(folder / "run")
    assert world.axes.names == simulated.axes.names
    assert world.axes.action == simulated.axes.action
    np.testing.assert_array_equal(world.hold(states[0]), simulated.hold(states[0]))  # type: ignore[misc]
    other = model(folder, "other", dataset={})
    assert imagined_world(other, {"starts": str(folder / "data")}).note.startswith("starts of 6")
    simulated.close()
    config = script.EvaluateConfig(
        checkpoint="", env=f"imagined:{stranger}", episodes=4, latency_episodes=0, videos=0,
        options={"starts": str(folder / "data"), "max_steps": 3}, out=str(tmp_path), device="cpu",
    )  # fmt: skip
    report = script.run_evaluation(config, FlowPolicy.from_checkpoint(str(folder / "run")))
    assert report["environment"]["name"] == "data"
    assert report["environment"]["options"] == {"starts": ["data"]}
    assert report["title"] == "data, imagined"
    assert f"starts of {n} recorded episodes" in report["subtitle"]
    assert all(row["steps"] <= 3 for row in report["episodes"])


def test_names_options_and_policies_that_do_not_fit_are_named(folder: Path) -> None:
    assert is_imagined("imagined:outputs/world")
    assert not any(map(is_imagined, ("reach", "reach_arund", "metaworld:drawer-open-v3", "pusht")))
    for wrong in ("imagined", "imagined:", "imagned:outputs/world", "Imagined:outputs/world"):
        with pytest.raises(ValueError, match="Did you mean 'imagined:FOLDER'"):
            is_imagined(wrong)
    with pytest.raises(ValueError, match="no such folder"):
        imagined_world(folder / "rnu")
    with pytest.raises(ValueError, match=r"options \['targit'\] are of a simulator"):
        imagined_world(folder / "run", {"starts": "x", "targit": "hard"})
    with pytest.raises(ValueError, match="targit"):
        imagined_world(folder / "run", {"targit": "hard"})
    with pytest.raises(ValueError, match="expected a mapping"):
        imagined_world(folder / "run", "max_steps:3")  # type: ignore[arg-type]
    policy = FlowPolicy.from_checkpoint(str(folder / "run"))
    config = script.EvaluateConfig(checkpoint="", env=f"imagined:{folder / 'run'}", device="cpu")
    with pytest.raises(ValueError, match="the expert reads the simulator"):
        script.run_evaluation(replace(config, expert=True), policy)
    spec = policy.spec
    monkey = replace(spec, state_names=(*spec.state_names[:-1], "thumb.pos"))
    policy.model.spec = monkey
    policy._spec = monkey
    with pytest.raises(SpecMismatchError, match="environment imagined:.*state_names"):
        script.run_evaluation(config, policy)


def test_a_policy_may_look_through_fewer_cameras_than_are_imagined(folder: Path) -> None:
    world = imagined_world(folder / "run")

    class Blind:
        spec = replace(world.spec, cameras=())

    script._require_fitting(Blind(), world, "x")  # type: ignore[arg-type]
    Blind.spec = replace(world.spec, cameras=("top",))
    with pytest.raises(SpecMismatchError, match="cameras"):
        script._require_fitting(Blind(), world, "x")  # type: ignore[arg-type]
    world.close()
