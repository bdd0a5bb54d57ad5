"""Episodes without actions, explored ones and demonstrations; frames where the task is solved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.datasets import write_dataset
from tests.worldmodel.models import SPECS, make_window
from worldmodel.data import Data, DataConfig, KeysConfig, open_data, read_facts, split_episodes
from worldmodel.data.advice import notices, training_settings
from worldmodel.data.episodes import split_kinds
from worldmodel.data.errors import (
    DatasetError,
    EmptyError,
    KeysError,
    RootsDisagreeError,
    ValuesError,
)
from worldmodel.data.inspect import inspect_recording
from worldmodel.data.keys import Keys
from worldmodel.data.recording import read_recording
from worldmodel.data.stats import statistics
from worldmodel.types import Spec, Window

LENGTHS = [14, 9, 22, 17, 5, 20, 12, 18]
EXPLORED = [1, 2, 5]
VECTORS: dict[str, Any] = {"cameras": (), "state_dim": 3, "action_dim": 2}


def marks(seed: int = 0) -> list[np.ndarray]:
    """Random marks of success, a bool a frame of every episode."""
    rng = np.random.default_rng(seed)
    return [rng.random(n) < 0.4 for n in LENGTHS]


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight episodes without cameras, three of them explored; all with marks of success."""
    return write_dataset(
        tmp_path_factory.mktemp("episodes") / "mixed",
        episodes=len(LENGTHS),
        length=LENGTHS,
        flags={
            "demonstration": [e not in EXPLORED for e in range(len(LENGTHS))],
            "next.success": marks(),
        },
        **VECTORS,
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of the same robot, with neither marks nor exploration."""
    root = tmp_path_factory.mktemp("episodes") / "plain"
    return write_dataset(root, episodes=6, length=12, seed=1, **VECTORS)


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of the same robot without actions."""
    root = tmp_path_factory.mktemp("episodes") / "watched"
    return write_dataset(root, episodes=4, length=10, seed=2, actions=False, **VECTORS)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Data]:
    def call(*roots: Path, **options: Any) -> Data:
        root = str(roots[0]) if len(roots) == 1 else [str(r) for r in roots]
        config = DataConfig(root=root, cache_dir=str(tmp_path / "cache"), **options)
        data = open_data(config, progress=False)
        facts = read_facts(config)
        assert vars(facts) == {k: v for k, v in vars(data).items() if k in vars(facts)}
        return data

    return call


def plant(root: Path, copy: Path, change: Callable[[np.ndarray], None], key="action") -> Path:
    """A copy of a dataset with other values."""
    shutil.copytree(root, copy)
    (path,) = (copy / "data").rglob("*.parquet")
    table = pq.read_table(path)
    values = np.stack(table[key].to_numpy())
    change(values)
    column = pa.array(values.tolist(), table.schema.field(key).type)
    pq.write_table(table.set_column(table.schema.get_field_index(key), key, column), path)
    return copy


def filled(episode: int, value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[episode * 12 : (episode + 1) * 12] = value

    return change


def everything(data: Data) -> Window:
    return data.train.batch(np.arange(len(data.train)))


def success(window: Window) -> torch.Tensor:
    assert window.success is not None
    return window.success


def tensors(window: Window) -> dict[str, torch.Tensor]:
    return {k: v for k, v in vars(window).items() if k != "video"}


# --- without actions -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_actions_of_listed_episodes_are_never_seen(
    plain: Path, tmp_path: Path, opened, value: float
) -> None:
    free = opened(plain, action_free=[1, 4])
    spoilt = plant(plain, tmp_path / "copy", filled(4, value))
    spoilt = plant(spoilt, tmp_path / "spoilt", filled(1, value))
    data = opened(spoilt, action_free=[1, 4])
    assert data.spec == free.spec
    assert data.train_episodes == free.train_episodes
    for (name, a), b in zip(
        tensors(everything(data)).items(), tensors(everything(free)).values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_only_the_actions_are_missing(plain: Path, opened) -> None:
    data, whole = (opened(plain, action_free=some, validation=0) for some in ([1, 4], None))
    window, before = everything(data), everything(whole)
    free = np.isin(data.train.episode_of, [1, 4])
    assert not window.action[free].any()
    assert not window.action_valid[free].any()
    assert torch.equal(window.action[~free], before.action[~free])
    assert torch.equal(window.action_valid[~free], before.action_valid[~free])
    assert torch.equal(window.state, before.state)
    assert data.train.has_action.tolist() == data.train.demonstrated.tolist() == (~free).tolist()
    assert whole.train.has_action.all()
    rest = opened(plain, episodes=[0, 2, 3, 5], validation=0).spec
    assert data.spec.stats == {"state": whole.spec.stats["state"], "action": rest.stats["action"]}
    assert data.spec.action_rank == rest.action_rank
    assert data.action_free_episodes == [1, 4]


def test_nan_elsewhere_is_refused(plain: Path, tmp_path: Path, opened) -> None:
    spoilt = plant(plain, tmp_path / "spoilt", filled(3, np.nan))
    with pytest.raises(ValuesError, match="'action' .* is nan in episode 3, frame 0"):
        opened(spoilt, action_free=[1, 4])
    still = plant(plain, tmp_path / "state", filled(3, np.nan), "observation.state")
    with pytest.raises(ValuesError, match=r"'observation\.state' .* is nan in episode 3"):
        opened(still, action_free=[3])


@pytest.mark.parametrize("first", ["plain", "watched"])
def test_a_root_without_actions(plain: Path, watched: Path, opened, first: str, caplog) -> None:
    roots = (plain, watched) if first == "plain" else (watched, plain)
    data, alone = opened(*roots, validation=0), opened(plain, validation=0)
    assert f"{watched} has no action feature" in caplog.text
    offset = 0 if first == "plain" else 4
    mine = np.isin(data.train.episode_of, np.arange(offset, offset + 6))
    assert data.train.has_action.tolist() == mine.tolist()
    assert len(data.action_free_episodes) == 4
    window, before = everything(data), everything(alone)
    assert torch.equal(window.action[mine], before.action)
    assert torch.equal(window.action_valid[mine], before.action_valid)
    assert not window.action[~mine].any()
    assert not window.action_valid[~mine].any()
    assert window.frame_valid[~mine].any(1).all()
    assert data.spec.action_names == alone.spec.action_names
    assert data.spec.stats["action"] == alone.spec.stats["action"]
    assert data.spec.stats["state"] != alone.spec.stats["state"]


def test_roots_must_still_agree(plain: Path, watched: Path, tmp_path: Path, opened) -> None:
    other = write_dataset(tmp_path / "a", episodes=2, length=6, **(VECTORS | {"state_dim": 4}))
    for roots in ((watched, other), (plain, watched, other)):
        with pytest.raises(RootsDisagreeError, match="state_names"):
            opened(*roots)
    three = write_dataset(tmp_path / "b", episodes=2, length=6, **(VECTORS | {"action_dim": 3}))
    with pytest.raises(RootsDisagreeError, match="action_names"):
        opened(watched, plain, three)


def test_without_any_actions_nothing_can_be_learnt(
    plain: Path, watched: Path, tmp_path: Path, opened
) -> None:
    with pytest.raises(KeysError, match=r"which feature of .* is the action\?"):
        opened(watched)
    again = write_dataset(tmp_path / "d", episodes=2, length=6, actions=False, **VECTORS)
    with pytest.raises(KeysError, match=r"no root has an action feature .*data\.keys\.action"):
        opened(watched, again)
    with pytest.raises(EmptyError, match="none of the 6 episodes has actions"):
        opened(plain, action_free=list(range(6)))
    with pytest.raises(EmptyError, match="none of the 4 episodes has actions"):
        opened(plain, watched, episodes=[[], None])


def test_a_root_whose_actions_bear_another_name_is_not_without(
    plain: Path, watched: Path, tmp_path: Path, opened
) -> None:
    other = write_dataset(
        tmp_path / "d", episodes=2, length=6, keys={"action": "command"}, **VECTORS
    )
    named = KeysConfig(action="command")
    with pytest.raises(KeysError, match="has no feature 'command'"):  # it has 'action'
        opened(other, plain, keys=named)
    assert opened(other, keys=named).train.has_action.all()
    assert len(opened(other, watched, keys=named).action_free_episodes) == 4


@pytest.mark.parametrize(
    ("roots", "listed", "words"),
    [
        (1, [9], r"data.action_free: .* has no episodes \[9\]; it has 6, 0 to 5"),
        (1, "all", "data.action_free is 'all'; it takes numbers"),
        (1, [True], "it takes numbers"),
        (2, [0, 1], r"with 2 roots it takes one list \(or null for none\) a root"),
        (2, [[0]], "one list"),
        (2, [None, [4]], r"has no episodes \[4\]"),
    ],
)
def test_lists_that_mean_nothing(plain, watched, opened, roots, listed, words) -> None:
    with pytest.raises(DatasetError, match=words):
        opened(*(plain, watched)[:roots], action_free=listed)


def test_nothing_is_cached_again(plain: Path, mixed: Path, tmp_path: Path, opened) -> None:
    before = opened(plain)
    listed = opened(plain, action_free=[1])
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 1
    assert listed.fingerprint != before.fingerprint == opened(plain, action_free=[]).fingerprint
    # Cache files and fingerprints of before there were flags are still found.
    assert opened(mixed).keys[0].success == "next.success"
    assert repr(opened(mixed).keys[0]) == (
        "Keys(action='action', state='observation.state', images={})"
    )
    assert Keys("a", "s", {}, success="x") != Keys("a", "s", {})


# --- demonstrations ------------------------------------------------------------------------------


def test_what_was_explored_is_no_demonstration(mixed: Path, opened) -> None:
    data = opened(mixed, validation=0, chunk=4)
    assert data.exploratory_episodes == EXPLORED
    assert data.train.has_action.all()
    assert data.train.demonstrated.tolist() == (~np.isin(data.train.episode_of, EXPLORED)).tolist()
    assert everything(data).action_valid[:, 0].all()
    free = opened(mixed, validation=0, action_free=[1, 7])
    assert free.exploratory_episodes == [2, 5]
    assert (
        free.train.demonstrated.tolist() == (~np.isin(free.train.episode_of, [1, 2, 5, 7])).tolist()
    )


def test_how_smooth_demonstrations_are_is_measured_on_them(
    mixed: Path, tmp_path: Path, opened
) -> None:
    starts = np.cumsum([0, *LENGTHS])
    rng = np.random.default_rng(0)

    def shake(values: np.ndarray) -> None:
        for e in EXPLORED:
            values[starts[e] : starts[e + 1]] = rng.uniform(-1, 1, (LENGTHS[e], 2))

    shaken = opened(plant(mixed, tmp_path / "shaken", shake), validation=0, chunk=8)
    shown = opened(mixed, episodes=[0, 3, 4, 6, 7], validation=0, chunk=8).spec
    assert shaken.spec.action_rank == shown.action_rank != (0, 0)
    assert shaken.spec.action_targets == shown.action_targets
    window = everything(shaken)
    for name, values in (("action", window.action[:, 0]), ("state", window.state[:, 0])):
        assert shaken.spec.stats[name] == statistics(values.numpy())


def test_exploration_alone_has_statistics_only(mixed: Path, opened) -> None:
    spec = opened(mixed, episodes=EXPLORED).spec
    assert (spec.action_kind, spec.action_targets, spec.action_rank) == ("unknown", (), ())
    assert len(spec.stats["action"]["mean"]) == 2


def test_an_episode_with_some_exploration_is_explored(tmp_path: Path, opened) -> None:
    flags = {"shown": [[True] * 8, [True] * 7 + [False], [True] * 8]}
    root = write_dataset(tmp_path / "d", length=8, flags=flags, **VECTORS)
    assert opened(root).exploratory_episodes == []
    named = opened(root, keys=KeysConfig(demonstration="shown"))
    assert named.exploratory_episodes == [1]
    assert named.fingerprint != opened(root).fingerprint


@pytest.mark.parametrize("seed", range(4))
def test_both_splits_hold_every_kind(mixed: Path, opened, seed: int) -> None:
    data = opened(mixed, split_seed=seed, action_free=[3, 4])
    for episodes in (data.train_episodes, data.validation_episodes):
        for kind in (EXPLORED, [3, 4], [0, 6, 7]):
            assert {*episodes} & {*kind}
    assert data.train.demonstrated.any()
    assert data.validation.demonstrated.any()


@given(
    counts=st.lists(st.integers(0, 30), min_size=3, max_size=3).filter(any),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 50),
)
def test_kinds_are_split_one_by_one(counts: list[int], share: float, seed: int) -> None:
    numbers = np.random.default_rng(seed).permutation(sum(counts))
    kinds = [sorted(k.tolist()) for k in np.split(numbers, np.cumsum(counts)[:-1])]
    train, validation = split_kinds(kinds, share, seed)
    assert sorted(train + validation) == list(range(sum(counts)))
    assert (train, validation) == (sorted(train), sorted(validation))
    for kind in kinds:
        assert bool(kind) == bool({*kind} & {*train})
        assert bool({*kind} & {*validation}) == (len(kind) > 1 and share > 0)
    whole = list(range(sum(counts)))
    assert split_kinds([whole, [], []], share, seed) == split_episodes(whole, share, seed)


# --- success -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offsets", [None, [], [1], [3, 7, 40], [-2, 0, 11]])
def test_a_frame_is_solved_where_the_action_before_led(mixed: Path, opened, offsets) -> None:
    data = opened(mixed, past=3, past_stride=2, future=2, future_stride=5, validation=0.3)
    after = marks()
    for windows in (data.train, data.validation):
        asked = None if offsets is None else np.array(offsets, np.int64)
        window = windows.batch(np.arange(len(windows)), offsets=asked)
        assert success(window).dtype == torch.int8
        frames = [-4, -2, 0, *([5, 10] if offsets is None else offsets)]
        for e, now, labels in zip(
            windows.episode_of, windows.frame_of, success(window).tolist(), strict=True
        ):
            for label, frame in zip(labels, now + np.array(frames), strict=True):
                if not 0 <= frame < LENGTHS[e]:
                    assert label == -1
                else:
                    assert label == (0 if frame == 0 else after[e][frame - 1])


def test_unknown_where_nothing_is_marked(plain: Path, mixed: Path, opened) -> None:
    assert (success(everything(opened(plain))) == -1).all()
    both = opened(plain, mixed, validation=0)
    marked = torch.from_numpy(both.train.episode_of >= 6)
    window = everything(both)
    assert (success(window)[~marked] == -1).all()
    assert torch.equal(success(window)[marked] == -1, ~window.frame_valid[marked])
    assert both.spec.has_success


@pytest.mark.parametrize(
    ("after", "both"),
    [
        ([False] * 8, False),
        ([False] * 7 + [True], False),  # the solved world has no frame
        ([False] * 6 + [True] * 2, True),
    ],
)
def test_a_spec_knows_whether_both_labels_are_there(tmp_path, opened, after, both) -> None:
    root = write_dataset(tmp_path / "d", length=8, flags={"solved": [after] * 3}, **VECTORS)
    assert not opened(root).spec.has_success
    assert opened(root, keys=KeysConfig(success="solved")).spec.has_success == both


def test_specs_and_windows_of_before_there_was_success() -> None:
    spec = SPECS["no camera"]
    values = replace(spec, has_success=True).to_dict()
    assert Spec.from_dict(values).has_success
    del values["has_success"]
    assert Spec.from_dict(values) == spec
    window = make_window(spec)
    assert window.success is None
    assert window.to("cpu").success is None
    labels = torch.zeros(4, 2, dtype=torch.int8)
    assert success(replace(window, success=labels).to("meta")).device.type == "meta"


@pytest.mark.parametrize("role", ["demonstration", "success"])
def test_flags_that_are_none(mixed: Path, opened, role: str) -> None:
    with pytest.raises(KeysError, match=f"data.keys.{role}: .* no feature 'next.sucess'. Did you"):
        opened(mixed, keys=KeysConfig(**{role: "next.sucess"}))
    with pytest.raises(KeysError, match=r"is float32 \[2\], not one bool a frame"):
        opened(mixed, keys=KeysConfig(**{role: "action"}))


# --- frames of any distance ----------------------------------------------------------------------


@given(offsets=st.lists(st.integers(-5, 40), max_size=5), seed=st.integers(0, 99))
def test_any_frames_can_be_asked_for(far: Data, offsets: list[int], seed: int) -> None:
    """The configured window holds every frame; any other one is a choice of its columns."""
    indices = np.random.default_rng(seed).integers(0, len(far.train), 6)
    whole = far.train.batch(indices)
    asked = far.train.batch(indices, offsets=np.array(offsets, np.int64))
    columns = [0, 1, 2, 3, 4, 5, *(5 + o for o in offsets)]  # column 5 is now
    for name in ("state", "frame_valid", "success"):
        assert torch.equal(getattr(asked, name), getattr(whole, name)[:, columns])
    for name in ("action", "action_valid", "task", "index"):
        assert torch.equal(getattr(asked, name), getattr(whole, name))


@pytest.fixture(scope="module")
def far(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Windows that reach from five frames back to forty ahead, without a gap."""
    cache = str(tmp_path_factory.mktemp("far"))
    config = DataConfig(root=str(mixed), past=6, future=40, future_stride=1, cache_dir=cache)
    return open_data(config, progress=False)


def test_the_configured_frames_are_the_default(squares: Path, opened) -> None:
    data = opened(squares, image_size=32, past=2, future=3, future_stride=4)
    indices = np.arange(0, len(data.train), 5)
    whole = data.train.batch(indices)
    for same in (
        data.train.batch(indices, offsets=np.array([4, 8, 12])),
        data.train.batch(indices, future=None),
    ):
        assert torch.equal(same.video["front"], whole.video["front"])
        assert torch.equal(same.state, whole.state)
    none = data.train.batch(indices, offsets=np.array([], np.int64))
    assert torch.equal(none.video["front"], data.train.batch(indices, future=False).video["front"])
    with pytest.raises(ValueError, match="leave out offsets"):
        data.train.batch(indices, future=False, offsets=np.array([4]))


# --- what is said of them ------------------------------------------------------------------------


def test_the_summary_counts_them(mixed: Path, plain: Path, watched: Path, opened) -> None:
    shown = repr(opened(mixed, watched, action_free=[[0], None]))
    assert "exploratory 3 episodes, 1 of them for validation" in shown
    assert "action-free 5 episodes, 1 of them for validation" in shown
    assert not {"exploratory", "action-free"} & set(repr(opened(plain)).split())


def test_an_inspection_tells_the_kinds_apart(
    mixed: Path, watched: Path, tmp_path: Path, opened
) -> None:
    spoilt = plant(mixed, tmp_path / "spoilt", lambda v: v.__setitem__(slice(0, 14), np.nan))
    config = DataConfig(root=[str(watched), str(spoilt)], action_free=[None, [0]], validation=0)
    recording = read_recording(config)
    assert np.isfinite(recording.action).all()
    facts = inspect_recording(recording)
    assert facts["problems"] == {}
    assert facts["kinds"] == {
        "demonstrations": 4, "exploratory": 3, "action_free": 5, "success_frames": None,
    }  # fmt: skip
    assert facts["action"]["not_finite"] == 0
    trained = opened(watched, spoilt, action_free=[None, [0]], validation=0)
    for role in ("state", "action"):
        for name, values in trained.spec.stats[role].items():
            assert [d[name] for d in facts[role]["dimensions"]] == pytest.approx(values)
    assert not {n.topic for n in notices(facts, [])} & {"nan", "action_missing", "failures"}
    assert training_settings(facts, [], config)["data.action_free"] == [None, [0]]


def test_an_inspection_counts_frames_of_success_and_only_demonstrations_that_fail(
    mixed: Path,
) -> None:
    def look(**options: Any) -> tuple[dict[str, Any], dict[str, str]]:
        facts = inspect_recording(read_recording(DataConfig(root=str(mixed), **options)))
        return facts, {n.topic: n.text for n in notices(facts, [])}

    facts, found = look()
    assert facts["kinds"]["success_frames"] == sum(int(m.sum()) for m in marks())
    assert "failures" not in found
    facts, found = look(keys=KeysConfig(success="demonstration"))
    assert facts["success"]["failed"] == [f"episode {e}" for e in EXPLORED]
    assert "failures" not in found
    keys = KeysConfig(success="demonstration", demonstration="next.success")
    facts, found = look(keys=keys, episodes=[1, 3])  # neither is marked throughout
    assert "failures" not in found
    spoilt, found = look(action_free=list(range(len(LENGTHS))))
    assert spoilt["action"] is None
    assert "None of the episodes has actions" in found["action_missing"]
