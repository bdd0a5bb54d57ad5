"""What the data says of its actions: what they command, how smooth they are; and it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.datasets
from tests.worldmodel.models import SPECS, make_model
from worldmodel.checkpoint import open_checkpoint, save_policy
from worldmodel.data import DataConfig, DatasetError, open_data
from worldmodel.data.dataset import RANK_WINDOWS, _whole_chunks
from worldmodel.data.errors import BrokenError, RootsDisagreeError
from worldmodel.data.stats import FIT_TOLERANCE, action_rank, action_targets, statistics
from worldmodel.selfflow import ObjectiveConfig
from worldmodel.types import Spec

NAMES = ("x", "y", "grip", "spare")


def reaches(rng: np.random.Generator, frames: int, pace: int = 30) -> np.ndarray:
    """One joint's minimum-jerk reaches between random targets: ``[frames]``."""
    s = np.arange(pace) / pace
    shape = 10 * s**3 - 15 * s**4 + 6 * s**5
    goals = rng.uniform(-1, 1, frames // pace + 2)
    path = goals[:-1, None] + (goals[1:] - goals[:-1])[:, None] * shape
    return path.ravel()[:frames]


def episodes(count: int = 12, frames: int = 120, seed: int = 0) -> np.ndarray:
    """Commands ``[count, frames, 4]``: a joint, a switching gripper, a parked joint, noise."""
    rng = np.random.default_rng(seed)
    joint = np.stack([reaches(rng, frames) for _ in range(count)])
    switch = np.sign(np.sin(np.arange(frames) / 17 + rng.uniform(0, 6, (count, 1))))
    parked = np.full((count, frames), 0.7)
    return np.stack([joint, switch, parked, rng.standard_normal((count, frames))], axis=-1)


def chunks(commands: np.ndarray, length: int = 16) -> np.ndarray:
    """Every chunk of ``[count, frames, A]``."""
    return np.concatenate(
        [commands[:, i : i + length] for i in range(commands.shape[1] - length + 1)]
    )


# --- rank ----------------------------------------------------------------------------------------


def test_a_joint_needs_few_coefficients_a_switch_none_a_parked_joint_one() -> None:
    joint, switch, parked, noise = action_rank(chunks(episodes()))
    assert 3 <= joint <= 7
    assert (switch, parked, noise) == (0, 1, 0)


@pytest.mark.parametrize("length", [1, 2, 8, 16, 32])
def test_the_rank_is_the_number_of_coefficients_up_to_ten_or_half_the_chunk(length: int) -> None:
    rng, t = np.random.default_rng(0), np.linspace(-1, 1, length)
    most = max(1, min(10, length // 2))
    for rank in range(1, min(length, 13) + 1):
        basis = np.polynomial.legendre.legvander(t, rank - 1)
        paths = np.einsum("tr,nr->nt", basis, rng.standard_normal((200, rank)))
        assert action_rank(paths[..., None]) == (rank if rank <= most else 0,)


@pytest.mark.parametrize("length", [16, 24])
def test_the_rank_is_the_least_that_leaves_a_thousandth_of_the_range(length: int) -> None:
    paths = chunks(episodes()[..., :1], length)[..., 0]
    (rank,) = action_rank(paths[..., None])
    low, high = np.quantile(paths, (0.01, 0.99))
    t = np.linspace(-1, 1, length)

    def error(count: int) -> float:
        best = np.polynomial.polynomial.polyfit(t, paths.T, count - 1)
        left = paths - np.polynomial.polynomial.polyval(t, best)
        return float(np.sqrt(np.square(left).mean()))

    assert error(rank) <= FIT_TOLERANCE * (high - low) / 2 < error(rank - 1)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 57.3, 1e4])
@pytest.mark.parametrize("offset", [0.0, -3.0, 100.0])
def test_units_do_not_change_the_rank(scale: float, offset: float) -> None:
    found = chunks(episodes())
    assert action_rank(scale * (found + offset)) == action_rank(found)
    assert action_rank(-found[::-1]) == action_rank(found)


def test_a_dimension_has_its_rank_whatever_is_beside_it() -> None:
    found = chunks(episodes())
    every = action_rank(found)
    assert action_rank(found[..., ::-1]) == every[::-1]
    assert tuple(action_rank(found[..., [d]])[0] for d in range(4)) == every


def test_a_switch_that_is_rarely_thrown_has_no_rank() -> None:
    rare = np.zeros((1000, 16, 1))
    rare[3, 9:] = 1.0  # both percentiles are 0
    assert action_rank(rare) == (0,)


def test_without_chunks_there_is_no_rank() -> None:
    assert action_rank(np.zeros((0, 16, 3), np.float32)) == (0, 0, 0)


# --- chunks of the training episodes -------------------------------------------------------------


def numbered(lengths: list[int]) -> np.ndarray:
    """Actions that say where they are: ``[frames, 2]``, episode and frame."""
    return np.concatenate(
        [np.stack([np.full(n, e), np.arange(n)], 1) for e, n in enumerate(lengths)]
    )


def test_chunks_are_whole_and_of_one_episode() -> None:
    lengths = [7, 3, 4, 1, 12]
    found = _whole_chunks(numbered(lengths), lengths, 4)
    expected = {(e, i) for e, n in enumerate(lengths) for i in range(n - 3)}
    assert found.shape == (len(expected), 4, 2)
    assert {tuple(chunk[0]) for chunk in found.tolist()} == expected
    assert (found[:, :, 0] == found[:, :1, 0]).all()
    assert (np.diff(found[:, :, 1], axis=1) == 1).all()


def test_of_many_chunks_some_are_taken_evenly() -> None:
    lengths = [6000, 10, 9000]
    found = _whole_chunks(numbered(lengths), lengths, 16)
    assert len(found) == RANK_WINDOWS
    assert found[0, 0].tolist() == [0, 0]
    assert found[-1, -1].tolist() == [2, 8999]
    assert np.mean(found[:, 0, 0] == 0) == pytest.approx(0.4, abs=0.01)
    assert set(np.diff(found[found[:, 0, 0] == 2][:, 0, 1])) == {7, 8}


def test_episodes_shorter_than_a_chunk_give_none() -> None:
    lengths = [15, 3]
    assert _whole_chunks(numbered(lengths), lengths, 16).shape == (0, 16, 2)


# --- targets -------------------------------------------------------------------------------------


def moves(fps: int = 50, dimensions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """States that follow actions, dimension by dimension: ``[frames, dimensions]`` each."""
    rng = np.random.default_rng(0)
    parts = [tests.datasets.motion(rng, 80, dimensions, dimensions, fps) for _ in range(5)]
    states, actions = zip(*parts, strict=True)
    return np.concatenate(states), np.concatenate(actions)


def test_what_the_state_of_the_same_name_follows_is_a_target() -> None:
    state, action = moves()
    assert action_targets(state, action, ("x", "y", "z"), ("x", "y", "z")) == (0, 1, 2)
    other = action_targets(state, action, ("x", "y", "z"), ("x", "force", "z"))
    assert other == (0, -1, 2)
    assert action_targets(state, action, ("a", "b", "c"), ("x", "y", "z")) == (-1, -1, -1)


def test_targets_are_found_by_name_in_any_order() -> None:
    state, action = moves()
    names, order = np.array(["x", "y", "z"]), [2, 0, 1]
    permuted = action_targets(state[:, order], action, tuple(names[order]), tuple(names))
    assert permuted == (1, 2, 0)
    # Names in another order than the values: what follows has another name.
    assert action_targets(state[:, order], action, tuple(names), tuple(names)) == (-1, -1, -1)
    fewer = action_targets(state[:, 2:], action[:, 1:], ("z",), ("y", "z"))
    assert fewer == (-1, 0)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s, a: a - s, id="delta to the state"),
        pytest.param(lambda s, a: np.diff(a, axis=0, prepend=a[:1]), id="delta to the last"),
        pytest.param(lambda s, a: np.gradient(a, axis=0) * 50, id="velocity"),
        pytest.param(lambda s, a: np.degrees(a), id="other unit"),
        pytest.param(lambda s, a: -a, id="other sign"),
        pytest.param(lambda s, a: a + 3, id="other zero"),
        pytest.param(lambda s, a: np.zeros_like(a), id="never moves"),
    ],
)
def test_a_change_a_speed_or_another_unit_is_no_target(change) -> None:
    state, action = moves()
    names = ("x", "y", "z")
    assert action_targets(state, change(state, action), names, names) == (-1, -1, -1)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_targets_are_found_in_any_common_unit(scale: float) -> None:
    state, action = moves()
    names = ("x", "y", "z")
    assert action_targets(scale * state, scale * action, names, names) == (0, 1, 2)


# --- opened data ---------------------------------------------------------------------------------


def record(
    root: Path, *, delta: bool = False, state_names=NAMES, action_names=NAMES, episodes: int = 8
) -> Path:
    """Episodes of 60 frames: two reaching joints, a switching gripper, a parked joint."""

    def motion(rng, frames, state_dim, action_dim, fps):
        switch = np.sign(np.sin(np.arange(frames) / 11 + rng.uniform(0, 6)))
        parked = np.full(frames, 0.5)
        commands = np.stack([reaches(rng, frames), reaches(rng, frames), switch, parked], axis=-1)
        states = np.concatenate([commands[:1], commands[:-1]])
        actions = np.diff(commands, axis=0, append=commands[-1:]) if delta else commands
        return states.astype(np.float32), actions.astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.datasets, "motion", motion)
        return tests.datasets.write_dataset(
            root,
            episodes=episodes,
            length=60,
            cameras=(),
            state_dim=4,
            action_dim=4,
            state_names=list(state_names),
            action_names=list(action_names),
        )


@pytest.fixture(scope="module")
def absolute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("facts") / "absolute")


@pytest.fixture
def opened(tmp_path: Path):
    def call(root: Path | list[str], **options):
        config = DataConfig(
            root=root if isinstance(root, list) else str(root),
            cache_dir=str(tmp_path / "cache"),
            **options,
        )
        return open_data(config, progress=False)

    return call


def test_positions_by_name_are_absolute(absolute: Path, opened) -> None:
    spec = opened(absolute).spec
    assert spec.action_kind == "absolute"
    assert spec.action_targets == (0, 1, 2, -1)  # what never moves cannot be told
    x, y, grip, parked = spec.action_rank
    assert 3 <= min(x, y) <= max(x, y) <= 7
    assert (grip, parked) == (0, 1)


def test_changes_and_nameless_actions_are_unknown(blind: Path, tmp_path: Path, opened) -> None:
    delta = opened(record(tmp_path / "delta", delta=True)).spec
    assert (delta.action_kind, delta.action_targets) == ("unknown", (-1,) * 4)
    assert opened(tmp_path / "delta", action_kind="delta").spec.action_kind == "delta"
    nameless = opened(blind).spec
    assert (nameless.action_kind, nameless.action_targets) == ("unknown", (-1,) * 4)


def test_most_of_what_moves_must_be_a_target(tmp_path: Path, opened) -> None:
    """Two of three are most, one of three is not; the parked joint does not count."""
    two = record(tmp_path / "two", action_names=("x", "y", "jaw", "spare"))
    assert opened(two).spec.action_targets == (0, 1, -1, -1)
    assert opened(two).spec.action_kind == "absolute"
    one = record(tmp_path / "one", action_names=("x", "force", "jaw", "spare"))
    assert opened(one).spec.action_targets == (0, -1, -1, -1)
    assert opened(one).spec.action_kind == "unknown"


def say(root: Path, kind: str | None) -> Path:
    """Let a dataset say what its actions are, as our tools do."""
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text())
    info["features"]["action"]["info"] = {} if kind is None else {"action_kind": kind}
    path.write_text(json.dumps(info))
    return root


def test_what_the_dataset_says_of_its_actions_counts(tmp_path: Path, opened) -> None:
    root = say(record(tmp_path / "delta", delta=True), "delta")
    assert opened(root).spec.action_kind == "delta"
    assert opened(root, action_kind="unknown").spec.action_kind == "unknown"
    say(root, None)
    assert opened(root).spec.action_kind == "unknown"
    silent = record(tmp_path / "silent", delta=True, episodes=7)
    say(root, "delta")
    assert opened([str(root), str(silent)]).spec.action_kind == "delta"
    say(silent, "absolute")
    with pytest.raises(RootsDisagreeError, match="action_kind is"):
        opened([str(root), str(silent)])
    say(root, "sideways")
    with pytest.raises(BrokenError, match="'sideways'.*it can be absolute, delta, unknown"):
        opened(root)


@pytest.mark.parametrize("kind", ["absolute", "delta", "unknown"])
def test_the_user_may_say_what_actions_are(kind: str, absolute: Path, opened) -> None:
    spec = opened(absolute, action_kind=kind).spec
    assert spec == replace(opened(absolute).spec, action_kind=kind)


def test_a_misspelt_kind_is_refused_with_the_right_one() -> None:
    with pytest.raises(DatasetError, match="data.action_kind is 'absolut'; .*mean 'absolute'"):
        open_data(DataConfig(root="x", action_kind="absolut"))


def test_facts_are_of_the_training_split_and_the_chunk(absolute: Path, opened) -> None:
    for chunk, episodes in ((8, None), (16, None), (16, [1, 4])):
        data = opened(absolute, validation=0.5, chunk=chunk, episodes=episodes)
        every = data.train.batch(np.arange(len(data.train)), future=False)
        whole = every.action[every.action_valid.all(1)].numpy()
        assert len(whole) == len(data.train_episodes) * (61 - chunk)
        assert data.spec.action_rank == action_rank(whole)
    long, short = (opened(absolute, chunk=n).spec.action_rank for n in (24, 6))
    assert long[0] > short[0] > 0


def test_episodes_too_short_for_a_chunk_tell_no_rank(absolute: Path, opened) -> None:
    spec = opened(absolute, chunk=61).spec
    assert spec.action_rank == (0, 0, 0, 0)
    assert spec.action_targets == (0, 1, 2, -1)


# --- kept ----------------------------------------------------------------------------------------


FACTS: dict[str, Any] = {
    "action_kind": "absolute",
    "action_targets": (2, -1),
    "action_rank": (5, 0),
}


def test_the_facts_survive_json(absolute: Path, opened) -> None:
    for spec in (opened(absolute).spec, replace(SPECS["no camera"], **FACTS)):
        again = Spec.from_dict(json.loads(json.dumps(spec.to_dict(), allow_nan=False)))
        assert again == spec
        assert type(again.action_targets) is type(again.action_rank) is tuple


def test_a_spec_from_before_there_were_such_facts_has_none() -> None:
    old = replace(SPECS["one camera"], **FACTS).to_dict()
    for name in FACTS:
        del old[name]
    spec = Spec.from_dict(json.loads(json.dumps(old)))
    assert spec == SPECS["one camera"]
    assert (spec.action_kind, spec.action_targets, spec.action_rank) == ("unknown", (), ())


def test_a_checkpoint_keeps_the_facts(tmp_path: Path) -> None:
    spec = replace(SPECS["no camera"], **FACTS)
    save_policy(tmp_path, make_model(spec), ObjectiveConfig(), {})
    assert open_checkpoint(tmp_path).spec == spec
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in FACTS:  # a folder from before there were such facts
        del config["spec"][name]
    path.write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).spec == SPECS["no camera"]


def test_facts_about_the_path_of_actions_do_not_make_another_robot() -> None:
    spec = SPECS["one camera"]
    spec.require_same(replace(spec, action_targets=(0, 1), action_rank=(4, 4)), "a", "b")
    spec.require_same(replace(spec, action_kind="delta"), "a", "b")  # ours is unknown
    with pytest.raises(ValueError, match="action_kind is 'delta', expected 'absolute'"):
        replace(spec, action_kind="absolute").require_same(
            replace(spec, action_kind="delta"), "a", "b"
        )


def test_far_from_zero_is_no_reason_to_fail() -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal((300, 8, 1))
        assert action_rank((5e5 + noise).astype(np.float32))[0] in range(9)


def test_a_parked_joint_has_no_spread() -> None:
    """In float32 the spread of many equal numbers is not zero; `open_data` asks `statistics`."""
    rows = np.full((100_000, 2), 1.7, np.float32)
    assert rows.std(0)[0] > 1e-6
    assert statistics(rows)["std"][0] < 1e-6
