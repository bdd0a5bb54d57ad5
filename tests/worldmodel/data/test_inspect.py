"""What is wrong with a dataset is planted, and found; what is right is not complained about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policies.report import strict
from tests.datasets import write_dataset
from worldmodel.data import DataConfig, DatasetError, KeysConfig, open_data
from worldmodel.data.advice import Notice, mend_first, notices, training_commands, training_settings
from worldmodel.data.inspect import (
    FROZEN,
    Samples,
    inspect_cameras,
    inspect_recording,
    sample_frames,
)
from worldmodel.data.recording import read_recording
from worldmodel.data.video import decode, decode_at

NAMES = ["x", "y", "grip", "spare"]
LENGTHS = [30, 40, 50, 40]


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes without cameras, to copy and to plant things in; states named like actions."""
    return write_dataset(
        tmp_path_factory.mktemp("inspect") / "arm",
        episodes=4,
        length=LENGTHS,
        cameras=(),
        state_dim=4,
        action_dim=4,
        state_names=NAMES,
        action_names=NAMES,
        tasks=("left", "left", "right"),
        extra={"next.success": {"dtype": "bool", "shape": (1,), "names": None}},
    )


@pytest.fixture
def copy(arm: Path, tmp_path: Path) -> Path:
    return shutil.copytree(arm, tmp_path / "arm")


def plant(root: Path, **changes: Callable[[np.ndarray, np.ndarray], None]) -> Path:
    """Edit columns in place: each function gets the values and the episodes' numbers."""
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    numbers = table["episode_index"].to_numpy()
    for name, change in changes.items():
        key = {"state": "observation.state", "success": "next.success"}.get(name, name)
        values = np.stack(table[key].to_numpy(zero_copy_only=False))
        change(values, numbers)
        column = pa.array(values.tolist(), table.schema.field(key).type)
        table = table.set_column(table.schema.get_field_index(key), key, column)
    pq.write_table(table, path)
    return root


def look(*roots: Path, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Facts, and topic -> text of the notices."""
    config = DataConfig(root=[str(r) for r in roots], **options)
    recording = read_recording(config)
    facts = inspect_recording(recording)
    cameras = inspect_cameras(recording, sample_frames(recording))
    json.dumps(strict(facts), allow_nan=False)
    facts["cameras"] = cameras
    return facts, {n.topic: f"{n.level}: {n.text}" for n in notices(facts, cameras)}


def dimension(facts: dict[str, Any], role: str, name: str) -> dict[str, Any]:
    return next(d for d in facts[role]["dimensions"] if d["name"] == name)


# --- a dataset with nothing wrong ----------------------------------------------------------------


def test_counts_lengths_tasks_and_statistics(arm: Path) -> None:
    facts, found = look(arm)
    assert (facts["episodes"], facts["frames"], facts["fps"]) == (4, sum(LENGTHS), 20)
    assert facts["lengths"]["frames"] == {"min": 30, "median": 40, "mean": 40, "max": 50}
    assert sum(facts["lengths"]["histogram"]["counts"]) == 4
    assert {t["text"]: t["episodes"] for t in facts["tasks"]} == {"left": 3, "right": 1}
    assert [row["frames"] for row in facts["rows"]] == LENGTHS
    assert facts["success"] == {
        "key": "next.success", "k": 0, "n": 4, "failed": [f"episode {i}" for i in range(4)],
    }  # fmt: skip
    trained = open_data(DataConfig(root=str(arm), validation=0), progress=False)
    for role in ("state", "action"):
        for name, values in trained.spec.stats[role].items():
            assert [d[name] for d in facts[role]["dimensions"]] == pytest.approx(values)
    assert set(found) == {"few_episodes", "no_cameras", "failures"}
    assert facts["timing"]["max"] < 1e-5
    assert facts["duplicates"] == {"episodes": [], "repeated_frames": 0}


def test_only_the_chosen_episodes_count(arm: Path) -> None:
    facts, _ = look(arm, episodes=[1, 3])
    assert [row["episode"] for row in facts["rows"]] == [1, 3]
    assert facts["frames"] == 80
    with pytest.raises(DatasetError, match="has no episodes"):
        look(arm, episodes=[7])


# --- values --------------------------------------------------------------------------------------


def test_constant_and_saturated_dimensions_and_switches(copy: Path) -> None:
    def spoil(values: np.ndarray, episodes: np.ndarray) -> None:
        values[:, 3] = 0.25
        values[:, 1] = np.clip(values[:, 1], -2, 0.5)
        values[:, 2] = np.sign(values[:, 2])

    clipped = np.mean(np.stack(pq.read_table(copy / "data")["action"].to_numpy())[:, 1] >= 0.5)
    facts, found = look(plant(copy, action=spoil))
    y = dimension(facts, "action", "y")
    assert y["saturated"]
    assert y["at_max"] == pytest.approx(clipped)
    assert dimension(facts, "action", "spare")["constant"]
    assert dimension(facts, "action", "grip")["switch"]
    assert [d["name"] for d in facts["action"]["dimensions"] if d["saturated"]] == ["y"]
    assert f"y ({100 * clipped:.0f} % at its most, 0.5)" in found["saturated"]
    assert "1 dimension of action never changes: spare" in found["constant"]


def test_not_a_number_is_named_and_left_out_of_the_command(copy: Path) -> None:
    def spoil(values: np.ndarray, episodes: np.ndarray) -> None:
        values[np.flatnonzero(episodes == 2)[3:5], 1] = [np.nan, np.inf]

    facts, found = look(plant(copy, state=spoil))
    assert facts["state"]["not_finite"] == dimension(facts, "state", "y")["not_finite"] == 2
    assert facts["state"]["bad_episodes"] == ["episode 2"]
    assert found["nan"].startswith("stop: 2 values of observation.state: NaN")
    assert np.isfinite(dimension(facts, "state", "y")["max"])
    settings = training_settings(facts, [], DataConfig(root=str(copy)))
    assert settings["data.episodes"] == [0, 1, 3]
    assert not mend_first([Notice("stop", "nan", "")], settings)
    assert mend_first([Notice("stop", "mixed_fps", "")], settings)
    keep = DataConfig(root=str(copy), episodes=settings["data.episodes"], validation=0)
    assert len(open_data(keep, progress=False).train) == sum(LENGTHS) - LENGTHS[2]


def test_a_dimension_that_is_nothing_but_nan(copy: Path) -> None:
    def spoil(values: np.ndarray, episodes: np.ndarray) -> None:
        values[:, 0] = np.nan

    facts, found = look(plant(copy, state=spoil))
    assert dimension(facts, "state", "x")["mean"] is None
    assert found["nan"].startswith("stop")


def test_a_spike_is_an_outlier(copy: Path) -> None:
    def spoil(values: np.ndarray, episodes: np.ndarray) -> None:
        values[17, 0] = 40

    _, found = look(plant(copy, state=spoil))
    assert "in x: spikes" in found["outliers"]


# --- time ----------------------------------------------------------------------------------------


def test_jitter_and_gaps(copy: Path) -> None:
    rng = np.random.default_rng(0)

    def jitter(values: np.ndarray, episodes: np.ndarray) -> None:
        values += rng.uniform(-0.01, 0.01, values.shape).astype(values.dtype)
        values[np.flatnonzero(episodes == 1)[25:]] += 0.3

    facts, found = look(plant(copy, timestamp=jitter))
    timing = facts["timing"]
    assert 0.28 < timing["max"] < 0.34
    assert timing["where"].startswith("episode 1")
    assert timing["gaps"]["count"] == 1
    (gap,) = timing["gaps"]["largest"]
    assert (gap["episode"], gap["frame"]) == ("episode 1", 24)
    assert gap["seconds"] == pytest.approx(0.35, abs=0.025)
    assert found["jitter"].startswith("warn")
    assert "episode 1 after frame 24" in found["gaps"]


def test_a_rate_that_is_not_the_declared_one_is_no_jitter_of_each_episode(copy: Path) -> None:
    def slow(values: np.ndarray, episodes: np.ndarray) -> None:
        values *= 1.25

    facts, found = look(plant(copy, timestamp=slow))
    assert facts["timing"]["rate"] == pytest.approx(0.8)
    assert "runs at 16 frames a second; 20 is declared" in found["rate"]


def test_missing_frame_numbers(copy: Path) -> None:
    def skip(values: np.ndarray, episodes: np.ndarray) -> None:
        values[np.flatnonzero(episodes == 3)[10:]] += 2

    _, found = look(plant(copy, frame_index=skip))
    assert "episode 3" in found["frame_index"]


# --- what actions mean ---------------------------------------------------------------------------


@pytest.mark.parametrize(("lag", "auto"), [(1, "absolute"), (3, "unknown")])
def test_targets_are_absolute_and_the_lag_is_found(copy: Path, lag: int, auto: str) -> None:
    """`auto` looks at the same frame only, which says too little where the state is late."""
    states = np.stack(pq.read_table(copy / "data")["observation.state"].to_numpy())

    def lead(values: np.ndarray, episodes: np.ndarray) -> None:
        for number in range(4):
            mine = np.flatnonzero(episodes == number)
            values[mine] = states[np.minimum(mine + lag, mine[-1])]

    facts, found = look(plant(copy, action=lead))
    semantics = facts["semantics"]
    assert (semantics["auto"], semantics["guess"]) == (auto, "absolute")
    for d in semantics["dimensions"]:
        assert (d["state"], d["by"], d["lag_frames"]) == (d["name"], "name", lag)
        assert d["explained_later"] > 0.999 > d["explained"]
    assert semantics["lag_seconds"] == pytest.approx(lag / 20)
    assert ("action_kind" in found) == (auto == "unknown")
    trained = open_data(DataConfig(root=str(copy), validation=0), progress=False)
    assert trained.spec.action_kind == auto


@pytest.mark.parametrize("scale", [1.0, 20.0, 0.3])
def test_changes_are_delta_and_said_to_be_a_guess(copy: Path, scale: float) -> None:
    states = np.stack(pq.read_table(copy / "data")["observation.state"].to_numpy())

    def change(values: np.ndarray, episodes: np.ndarray) -> None:
        values[:-1] = scale * np.diff(states, axis=0)
        values[-1] = 0
        values[np.flatnonzero(np.diff(episodes))] = 0

    facts, found = look(plant(copy, action=change))
    semantics = facts["semantics"]
    assert (semantics["auto"], semantics["guess"]) == ("unknown", "delta")
    assert f"action = {scale:.3g} x change" in semantics["reason"]
    assert "This is a guess" in found["delta"]
    settings = training_settings(facts, [], DataConfig(root=str(copy)))
    assert settings["data.action_kind"] == "delta"


def test_what_the_dataset_states_is_no_guess_and_is_checked(copy: Path) -> None:
    path = copy / "meta" / "info.json"
    info = json.loads(path.read_text())
    for stated, doubted in (("absolute", False), ("delta", True)):
        info["features"]["action"]["info"] = {"action_kind": stated}
        path.write_text(json.dumps(info))
        facts, found = look(copy)
        semantics = facts["semantics"]
        assert (semantics["stated"], semantics["auto"], semantics["guess"]) == (
            stated, stated, "absolute",
        )  # fmt: skip
        assert ("says that its actions are delta" in found.get("action_kind", "")) is doubted
        assert "data.action_kind" not in training_settings(facts, [], DataConfig(root=str(copy)))


def test_targets_under_other_names_are_found_by_likeness(tmp_path: Path) -> None:
    root = write_dataset(
        tmp_path / "named", cameras=(), length=60, state_names=["b", "a"], action_names=["p", "q"]
    )
    facts, found = look(root)
    semantics = facts["semantics"]
    assert (semantics["auto"], semantics["guess"]) == ("unknown", "absolute")
    assert [(d["state"], d["by"]) for d in semantics["dimensions"]] == [
        ("b", "correlation"), ("a", "correlation"),
    ]  # fmt: skip
    assert found["action_kind"].startswith("warn")


def test_noise_means_nothing(copy: Path) -> None:
    rng = np.random.default_rng(0)

    def noise(values: np.ndarray, episodes: np.ndarray) -> None:
        values[:] = rng.standard_normal(values.shape)

    facts, found = look(plant(copy, action=noise))
    assert facts["semantics"]["guess"] == "unknown"
    assert found["action_kind"].startswith("note")


# --- content -------------------------------------------------------------------------------------


def test_standing_still_at_the_ends(copy: Path) -> None:
    def rest(values: np.ndarray, episodes: np.ndarray) -> None:
        for number, length in enumerate(LENGTHS):
            mine = np.flatnonzero(episodes == number)
            values[mine[:8]] = values[mine[8]]
            values[mine[length - 14 :]] = values[mine[length - 14]]

    facts, found = look(plant(copy, state=rest))
    still = facts["still"]
    # A frame counts as still while nothing moves in the quarter of a second after it.
    assert still["start"]["median"] == pytest.approx(8 / 20 - 0.25, abs=0.101)
    assert still["end"]["median"] == pytest.approx(14 / 20, abs=0.101)
    assert "idle" in found
    assert 0.3 < still["share_at_ends"] < 0.55
    assert facts["duplicates"]["repeated_frames"] == 0  # the actions go on
    assert facts["rows"][0]["still_end"] == pytest.approx(14 / 20, abs=0.101)


def test_repeated_episodes_frames_and_motionless_ones(copy: Path) -> None:
    def repeat(values: np.ndarray, episodes: np.ndarray) -> None:
        values[episodes == 3] = values[episodes == 1]
        values[np.flatnonzero(episodes == 2)] = 0.1

    facts, found = look(plant(copy, state=repeat, action=repeat))
    assert facts["duplicates"]["episodes"] == [["episode 1", "episode 3"]]
    assert facts["duplicates"]["repeated_frames"] == pytest.approx(49 / (sum(LENGTHS) - 4))
    assert "episode 3 = episode 1" in found["duplicates"]
    assert found["motionless"].endswith("episode 2.")


def test_success_is_counted_where_it_is_recorded(copy: Path, squares: Path) -> None:
    def won(values: np.ndarray, episodes: np.ndarray) -> None:
        values[np.flatnonzero(np.diff(episodes))] = True

    facts, found = look(plant(copy, success=won))
    assert (facts["success"]["k"], facts["success"]["n"]) == (3, 4)
    assert "1 of 4 episodes are not marked as a success (episode 3)" in found["failures"]
    assert look(squares)[0]["success"] is None


# --- pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_videos", [True, False])
def test_single_frames_are_those_of_the_whole_video(tmp_path: Path, use_videos: bool) -> None:
    root = write_dataset(
        tmp_path / "d", episodes=3, length=[9, 70, 12], size=24, use_videos=use_videos
    )
    recording = read_recording(DataConfig(root=str(root)))
    source, key = recording.sources[0], recording.keys[0].images["front"]
    every = dict(decode(source, key))
    wanted = [(e, i) for e in reversed(source.episodes) for i in (e.length - 1, 0, e.length // 2)]
    for (episode, frame), found in zip(wanted, decode_at(source, key, wanted), strict=True):
        assert np.array_equal(found, every[episode.start + frame])


def test_cameras_say_what_they_are(squares: Path) -> None:
    facts, found = look(squares)
    (camera,) = facts["cameras"]
    assert (camera["name"], camera["codec"], camera["height"], camera["width"]) == (
        "front", "h264", 32, 32,
    )  # fmt: skip
    assert camera["fps"] == pytest.approx(20)
    assert camera["megabytes"] > 0
    assert not camera["black"]
    assert not camera["frozen"]
    assert not {"black", "frozen"} & set(found)


def test_black_and_frozen_cameras(squares: Path) -> None:
    recording = read_recording(DataConfig(root=str(squares)))
    real = sample_frames(recording, 2)
    noise = np.random.default_rng(0).integers(-1, 2, (3, 32, 32, 3))
    still = [
        [np.clip(e[0] + n, 0, 255).astype(np.uint8) for n in noise] for e in real.frames["front"]
    ]
    black = [[np.abs(n).astype(np.uint8) for n in noise] for _ in real.spans]
    for frames, expected in ((still, "frozen"), (black, "black")):
        planted = Samples(real.spans, {"front": frames}, real.numbers)
        (camera,) = inspect_cameras(recording, planted)
        other = {"frozen": "black", "black": "frozen"}[expected]
        assert len(camera[expected]) == 2
        assert camera[other] == []
        facts = inspect_recording(recording)
        topics = {n.topic: n.text for n in notices(facts, [camera])}
        assert "in 2 of 2 episodes looked at" in topics[expected]
    assert FROZEN > 1


def test_frames_that_were_dropped_stop_training(squares: Path, tmp_path: Path) -> None:
    root = shutil.copytree(squares, tmp_path / "short")
    (path,) = (root / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(path)
    name = "videos/observation.images.front/to_timestamp"
    ends = table[name].to_pylist()
    ends[2] -= 1 / 20
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, pa.array(ends)), path)
    _, found = look(root)
    assert found["short_video"].startswith("stop: front: episode 2")


# --- several roots, and what is missing ----------------------------------------------------------


def test_two_roots_are_one_recording(arm: Path, tmp_path: Path) -> None:
    other = write_dataset(
        tmp_path / "other", episodes=2, length=25, cameras=(), state_dim=4, action_dim=4,
        state_names=NAMES, action_names=NAMES, tasks=("right",), seed=1, robot_type="round",
    )  # fmt: skip
    facts, found = look(arm, other)
    assert facts["episodes"] == 6
    assert [d["episodes"] for d in facts["datasets"]] == [4, 2]
    assert {t["text"]: t["episodes"] for t in facts["tasks"]} == {"left": 3, "right": 3}
    assert facts["rows"][5]["label"] == f"episode 1 of {other}"
    assert facts["success"] is None  # only one of them records it
    assert "robots" in found
    trained = open_data(DataConfig(root=[str(arm), str(other)], validation=0), progress=False)
    assert [d["mean"] for d in facts["action"]["dimensions"]] == pytest.approx(
        trained.spec.stats["action"]["mean"]
    )
    with pytest.raises(DatasetError, match="twice"):
        look(arm, arm)


def test_mixed_rates_stop_training_but_not_looking(arm: Path, tmp_path: Path) -> None:
    slow = write_dataset(
        tmp_path / "slow", fps=10, cameras=(), state_dim=4, action_dim=4, state_names=NAMES,
        action_names=NAMES,
    )  # fmt: skip
    facts, found = look(arm, slow)
    assert facts["fps"] is None
    assert found["mixed_fps"].startswith("stop")
    with pytest.raises(DatasetError, match="fps is 10"):
        open_data(DataConfig(root=[str(arm), str(slow)]), progress=False)


def test_other_dimensions_are_refused_as_in_training(arm: Path, blind: Path) -> None:
    with pytest.raises(DatasetError, match="state_names"):
        look(arm, blind)


def test_without_a_state(tmp_path: Path) -> None:
    root = write_dataset(
        tmp_path / "d", cameras=(), keys={"observation.state": "observation.force"}
    )
    facts, found = look(root)
    assert facts["state"] is None
    assert facts["semantics"]["guess"] == "unknown"
    assert facts["still"]["of"] == "action"
    assert found["state_missing"].startswith("stop")
    assert "data.keys.state=NAME" in found["state_missing"]
    named, _ = look(root, keys=KeysConfig(state="observation.force"))
    assert named["state"]["key"] == "observation.force"
    with pytest.raises(DatasetError, match="no feature 'nothing'"):
        look(root, keys=KeysConfig(state="nothing"))


def test_one_episode_of_one_frame(tmp_path: Path) -> None:
    facts, found = look(write_dataset(tmp_path / "d", episodes=1, length=1))
    assert facts["frames"] == 1
    assert facts["semantics"]["guess"] == "unknown"
    assert "few_episodes" in found


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "length", "chunk", "stride"),
    [(20, 60, 16, 4), (30, 267, 24, 6), (50, 400, 40, 10), (10, 80, 8, 2), (30, 12, 4, 1)],
)
def test_chunk_and_stride_follow_from_rate_and_length(
    fps: int, length: int, chunk: int, stride: int
) -> None:
    facts = {
        "fps": float(fps), "frames": 20_000, "episodes": 100, "problems": {},
        "lengths": {"frames": {"median": float(length)}}, "rows": [], "state": None,
        "action": None, "datasets": [{}],
        "semantics": {"stated": "unknown", "guess": "absolute", "auto": "absolute"},
    }  # fmt: skip
    found = training_settings(facts, [{"height": 480, "width": 640}], DataConfig(root="D"))
    default = DataConfig()
    assert found.get("data.chunk", default.chunk) == chunk
    assert found.get("data.future_stride", default.future_stride) == stride
    assert found["data.image_size"] == [48, 64]
    assert chunk <= max(2, length // 2)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((48, 48), 48), ((96, 96), None), ((720, 1280), [32, 64]), ((9, 99), [8, 64])],
)
def test_frames_keep_their_shape_in_whole_patches(shape: tuple[int, int], size: Any) -> None:
    facts = {
        "fps": 20.0, "frames": 100, "episodes": 100, "problems": {}, "rows": [], "state": None,
        "lengths": {"frames": {"median": 60.0}}, "action": None, "datasets": [{}],
        "semantics": {"stated": "unknown", "guess": "absolute", "auto": "absolute"},
    }  # fmt: skip
    camera = {"height": shape[0], "width": shape[1]}
    assert training_settings(facts, [camera], DataConfig(root="D")).get("data.image_size") == size


def test_the_command_is_one_that_the_trainer_takes(squares: Path) -> None:
    import shlex

    from tests.test_configs import compose

    config = DataConfig(root=[str(squares), "odd name, here"], episodes=[[0, 1], None])
    facts, _ = look(squares)
    settings = training_settings(facts, facts["cameras"], config)
    for command in training_commands(facts, settings).values():
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "scripts.train"]
        composed = compose("train", *words[3:])
        assert list(composed.data.root) == [str(squares), "odd name, here"]
        assert composed.data.episodes == [[0, 1], None]
