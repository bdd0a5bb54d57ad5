"""Collecting: the same dataset with any number of workers and after any interruption."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import envs
from envs.exploration import KINDS
from envs.recording import Episode, record
from envs.world import World
from scripts import collect as script
from scripts.collect import CollectConfig, attempt_seed, collect
from scripts.evaluate import environment_spec
from tests.envs.test_dataset import read
from worldmodel.data import DataConfig, open_data
from worldmodel.types import SpecMismatchError

BASE: dict[str, Any] = {"env": "reach", "image_size": 16, "cameras": ["front"], "commit_every": 2}
EXPLORING = BASE | {"exploration": 0.45}
ARGUMENTS = ["env=reach", "image_size=16", "cameras=[front]", "commit_every=2"]


def start(root: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.collect", f"out={out}", *ARGUMENTS, *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a process group of its own, as in a terminal
    )


def episodes_in(out: Path) -> int:
    info = out / "meta/info.json"
    return json.loads(info.read_text())["total_episodes"] if info.is_file() else 0


def wait_for_episodes(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while episodes_in(out) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no episodes within a minute"
        time.sleep(0.005)


def without_stats(content: dict[str, Any]) -> dict[str, Any]:
    """Pooled in another order, statistics differ in the last bits."""
    return {name: value for name, value in content.items() if name != "stats"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """60 episodes, collected at one go in one process."""
    out = tmp_path_factory.mktemp("whole") / "data"
    result = collect(CollectConfig(**BASE, episodes=60, out=str(out), workers=0))
    assert result.episodes == result.collected == result.attempts == 60
    return without_stats(read(out))


def test_killed_and_resumed_equals_uninterrupted(
    root: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    """With SIGKILL, twice; readable each time, and no worker is left behind."""
    out = tmp_path / "data"
    for count in (2, 20):
        process = start(root, out, "episodes=60", "workers=1")
        wait_for_episodes(process, out, count)
        os.kill(process.pid, signal.SIGKILL)
        # Workers hold the pipe too: it ends when the last of them does.
        process.communicate(timeout=30)
        done = episodes_in(out)
        assert count <= done < 60
        assert read(out)["seeds"] == whole["seeds"][:done]
    result = collect(CollectConfig(**BASE, episodes=60, out=str(out), workers=0))
    assert result.episodes == 60
    assert result.collected == 60 - done
    assert without_stats(read(out)) == whole


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_interrupted_it_keeps_everything_finished(
    root: Path, tmp_path: Path, whole: dict[str, Any], number: signal.Signals, workers: int
) -> None:
    """Ctrl-C reaches the workers as well; what is finished but not yet committed is kept."""
    out = tmp_path / "data"
    process = start(root, out, "episodes=60", f"workers={workers}", "commit_every=7")
    wait_for_episodes(process, out, 7)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert "the same command goes on" in " ".join(output.split())
    assert "Traceback" not in output
    assert read(out)["seeds"] == whole["seeds"][: episodes_in(out)]


def test_failures_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    """Every third attempt fails; resuming in the middle changes nothing."""
    failing = {attempt_seed(0, attempt) for attempt in range(0, 30, 3)}

    def sometimes(env: Any, seed: int) -> Episode:
        episode = record(env, seed)
        episode.success[-1] &= seed not in failing
        return episode

    monkeypatch.setattr(envs.recording, "record", sometimes)
    for episodes in (5, 8):
        config = CollectConfig(**BASE, episodes=episodes, out=str(tmp_path / "data"), workers=0)
        result = collect(config)
    assert result.episodes == 8
    assert result.attempts == 12
    attempts = [attempt for _, attempt, _ in read(tmp_path / "data")["seeds"]]
    assert attempts == [1, 2, 4, 5, 7, 8, 10, 11]
    expected = [seed for seed, attempt, _ in whole["seeds"] if attempt in attempts]
    assert [seed for seed, _, _ in read(tmp_path / "data")["seeds"]] == expected


def test_an_expert_that_always_fails_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(env: Any, seed: int) -> Episode:
        episode = record(env, seed)
        episode.success[:] = False
        return episode

    monkeypatch.setattr(envs.recording, "record", never)
    monkeypatch.setattr(script, "_MAX_FAILURES_IN_A_ROW", 3)
    config = CollectConfig(**BASE, episodes=1, out=str(tmp_path / "data"), workers=0)
    with pytest.raises(RuntimeError, match="expert of reach failed 3 times in a row"):
        collect(config)


def test_a_full_disk_is_named_and_costs_only_the_last_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    written = 0

    def write_table(*arguments: Any, **options: Any) -> None:
        nonlocal written
        written += 1
        if written > 3:  # in the second commit, between data and records
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_write_table(*arguments, **options)

    real_write_table = pq.write_table
    config = CollectConfig(**BASE, episodes=6, out=str(tmp_path / "data"), workers=0)
    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", write_table)
        with pytest.raises(OSError, match="No space left"):
            collect(config)
    assert read(tmp_path / "data")["seeds"] == whole["seeds"][:2]
    collect(config)
    assert read(tmp_path / "data")["seeds"] == whole["seeds"][:6]


def test_progress_is_reported_and_a_finished_collection_stays(tmp_path: Path) -> None:
    config = CollectConfig(**BASE, episodes=3, out=str(tmp_path / "data"), workers=0)
    seen: list[tuple[int, int]] = []
    collect(config, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    again = collect(config)
    assert (again.episodes, again.collected) == (3, 0)


def test_attempts_of_different_collections_do_not_meet() -> None:
    seeds = {attempt_seed(seed, attempt) for seed in range(20) for attempt in range(200)}
    assert len(seeds) == 4000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "reech"}, "Did you mean 'reach'"),
        ({"cameras": ["top"]}, "selection of"),
        ({"options": {"target": "tiny"}}, "easy"),
        ({"options": {"goal": "red"}}, "reach refuses options {'goal': 'red', "),
        ({"options": {"cameras": ["front"]}}, "settings of their own: cameras="),
        ({"episodes": 0}, "at least 1"),
        ({"workers": -1}, "workers at least 0"),
        ({"exploration": 1.0}, "exploration is 1.0; expected a share"),
        ({"exploration": -0.1}, "exploration is -0.1; expected a share"),
    ],
)
def test_wrong_values_are_explained_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = {**BASE, "out": str(tmp_path / "data"), **changes}
    with pytest.raises(ValueError, match=message):
        collect(CollectConfig(**values))
    assert not (tmp_path / "data").exists()


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 episodes, five of them exploratory, collected at one go in one process."""
    out = tmp_path_factory.mktemp("explored") / "data"
    result = collect(CollectConfig(**EXPLORING, episodes=12, out=str(out), workers=0))
    assert (result.episodes, result.attempts, result.exploratory) == (12, 12, 5)
    assert 0 <= result.explored_successes <= 5
    return out


def test_exploration_is_interleaved_marked_and_told_apart(explored: Path, whole: Any) -> None:
    records = pq.read_table(explored / "meta/episodes").sort_by("episode_index").to_pylist()
    kinds = [record["kind"] for record in records]
    exploratory = [script.explores(0.45, attempt) for attempt in range(12)]
    assert sum(exploratory) == 5
    assert "".join("01"[e] for e in exploratory).count("11") == 0  # evenly
    assert [kind in KINDS for kind in kinds] == exploratory
    assert {kind for kind, e in zip(kinds, exploratory, strict=True) if not e} == {"expert"}

    content = read(explored)
    marks, starts = content["demonstration"], [r["dataset_from_index"] for r in records]
    assert [marks[start] for start in starts] == [not e for e in exploratory]
    assert sum(marks) == sum(r["length"] for r in records if r["kind"] == "expert")
    # Demonstrations are those of a collection without exploration.
    assert content["seeds"][0] == whole["seeds"][0]
    n = records[0]["length"]
    assert content["action"][:n] == whole["action"][:n]


def test_success_is_what_happened_in_exploration_too(explored: Path) -> None:
    """Replayed from the seed: the same states, and success where it says so."""
    content = read(explored)
    env: Any = envs.make("reach", cameras=()).unwrapped
    steps = iter(zip(content["observation.state"], content["action"], strict=True))
    begin = 0
    for seed, _, _ in content["seeds"]:
        observation, _ = env.reset(seed=seed)
        end = content["next.done"].index(True, begin) + 1
        for t in range(begin, end):
            state, action = next(steps)
            np.testing.assert_array_equal(observation["agent_pos"], np.float32(state))
            observation, *_, info = env.step(np.float32(action))
            assert info["is_success"] == content["next.success"][t]
        begin = end
    assert begin == len(content["action"])


def test_exploration_does_not_depend_on_workers_or_interruptions(
    explored: Path, tmp_path: Path
) -> None:
    expected = without_stats(read(explored))
    for workers, parts in ((2, (12,)), (0, (7, 12))):
        out = tmp_path / str(workers)
        for episodes in parts:
            config = CollectConfig(**EXPLORING, episodes=episodes, out=str(out), workers=workers)
            result = collect(config)
        assert (result.episodes, result.exploratory) == (12, 5)
        assert without_stats(read(out)) == expected


def test_exploration_is_kept_with_the_dataset(explored: Path, tmp_path: Path) -> None:
    for other in (0.0, 0.4):
        config = CollectConfig(**EXPLORING | {"exploration": other}, episodes=13, out=str(explored))
        with pytest.raises(ValueError, match="begun with exploration=0.45 and cannot be resumed"):
            collect(config)
    collect(CollectConfig(**BASE, episodes=2, out=str(tmp_path / "data"), workers=0))
    info = json.loads((tmp_path / "data/meta/info.json").read_text())
    assert "demonstration" not in info["features"]
    assert "exploration" not in json.loads((tmp_path / "data/meta/source.json").read_text())
    assert "kind" not in pq.read_table(tmp_path / "data/meta/episodes").column_names


def test_with_exploration_failures_of_the_expert_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {attempt_seed(0, attempt) for attempt in (0, 3)}

    def sometimes(env: Any, seed: int, *actor: Any) -> Episode:
        episode = record(env, seed, *actor)
        episode.success[-1] &= seed not in failing
        return episode

    monkeypatch.setattr(envs.recording, "record", sometimes)
    out = tmp_path / "data"
    result = collect(CollectConfig(**EXPLORING, episodes=5, out=str(out), workers=0))
    assert result.episodes == result.attempts == 5
    kinds = pq.read_table(out / "meta/episodes").sort_by("episode_index")["kind"].to_pylist()
    assert [kinds[0], kinds[1], kinds[3]] == ["failure", "expert", "failure"]
    assert result.exploratory == sum(kind != "expert" for kind in kinds)


def test_a_world_of_another_kind_is_not_explored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(World):
        camera_names = ()

        def make_expert(self, seed: int | None = None) -> Any:
            return None

    monkeypatch.setattr(script, "_make_env", lambda config: Other())
    with pytest.raises(ValueError, match="cannot be explored: .* own arm \\(pick_place, push"):
        collect(CollectConfig(**EXPLORING, out=str(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


def test_what_was_collected_fits_its_own_environment_and_no_other_robot(tmp_path: Path) -> None:
    collect(CollectConfig(**BASE, episodes=2, out=str(tmp_path / "data"), workers=0))
    config = DataConfig(str(tmp_path / "data"), image_size=16, cache_dir=str(tmp_path / "cache"))
    data = open_data(config, progress=False).spec
    env = envs.make("reach", cameras=("front",), image_size=16)
    world = environment_spec(env)
    env.close()
    assert world.robot_type == data.robot_type != ""
    data.require_same(world, "the data", "the environment")
    with pytest.raises(SpecMismatchError, match=f"'another', expected '{data.robot_type}'"):
        data.require_same(replace(world, robot_type="another"), "the data", "the environment")


def test_the_configuration_composes_into_the_dataclass(root: Path) -> None:
    with initialize_config_dir(str(root / "configs"), version_base=None):
        config = OmegaConf.to_object(compose("collect", ["out=x", "options={target:[0.05,0.04]}"]))
        assert isinstance(config, CollectConfig)
        assert config.options == {"target": [0.05, 0.04]}
        assert config == CollectConfig(out="x", options={"target": [0.05, 0.04]})
        with pytest.raises(Exception, match="envv"):
            compose("collect", ["envv=reach"])
