"""Broken, unfinished, mistyped and empty datasets are named as what they are."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import write_dataset
from worldmodel.data import DataConfig, open_data
from worldmodel.data.errors import (
    BrokenError,
    DatasetError,
    EmptyError,
    HubError,
    KeysError,
    RootError,
    UnfinishedError,
    ValuesError,
    VersionError,
)


@pytest.fixture
def copy(blind: Path, tmp_path: Path) -> Path:
    """A dataset without cameras, to be broken."""
    return shutil.copytree(blind, tmp_path / "demonstrations")


@pytest.fixture
def filmed(squares: Path, tmp_path: Path) -> Path:
    """A dataset with a camera, to be broken."""
    return shutil.copytree(squares, tmp_path / "demonstrations")


@pytest.fixture
def refused(tmp_path: Path):
    def call(root, error, *words: str, **options) -> None:
        config = DataConfig(root=str(root), image_size=32, cache_dir=str(tmp_path / "c"), **options)
        with pytest.raises(error) as caught:
            open_data(config, progress=False)
        assert isinstance(caught.value, DatasetError)
        for word in words:
            assert word in str(caught.value)

    return call


def change_info(root: Path, **changes) -> None:
    path = root / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_column(root: Path, key: str, change) -> None:
    (path,) = (root / "data").rglob("*.parquet")
    table = pq.read_table(path)
    values = np.stack(table[key].to_numpy())
    change(values)
    column = pa.array(values.tolist(), table.schema.field(key).type)
    pq.write_table(table.set_column(table.schema.get_field_index(key), key, column), path)


def test_a_mistyped_root_is_not_created(copy: Path, refused) -> None:
    typo = copy.parent / "demonstration"
    refused(typo, RootError, "has no 'demonstration'", "Did you mean 'demonstrations'")
    assert not typo.exists()
    refused(copy.parent / "demonstrationz" / "deeper", RootError, "Did you mean 'demonstrations'")


def test_empty_and_other_folders(copy: Path, refused) -> None:
    empty = copy.parent / "empty"
    empty.mkdir()
    refused(empty, RootError, "is an empty folder")
    assert list(empty.iterdir()) == []
    (empty / "notes.txt").write_text("")
    refused(empty, RootError, "no meta/info.json", "it holds notes.txt")
    refused(copy.parent, RootError, "contains datasets: demonstrations")
    refused(copy / "meta", RootError, f"Did you mean {str(copy)!r}")
    refused(copy / "meta" / "info.json", RootError, "is a file")


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (
            "v2.1",
            ["v3.0 is needed", "-m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id"],
        ),
        ("v2.0", ["Two steps", "lerobot==0.3.3"]),
        ("v4.0", ["another LeRobot"]),
    ],
)
def test_another_version(copy: Path, refused, version: str, words: list[str]) -> None:
    change_info(copy, codebase_version=version)
    refused(copy, VersionError, version, *words)


def test_the_converter_is_where_the_error_says() -> None:
    from lerobot.scripts import convert_dataset_v21_to_v30  # noqa: F401


def test_never_finalised(copy: Path, refused) -> None:
    shutil.rmtree(copy / "meta" / "episodes")
    refused(copy, UnfinishedError, "never finalised", "finalize()", "10 episodes")


@pytest.mark.parametrize("folder", ["data", "meta/episodes"])
def test_a_parquet_file_without_footer(copy: Path, refused, folder: str) -> None:
    (path,) = (copy / folder).rglob("*.parquet")
    os.truncate(path, path.stat().st_size - 6)
    refused(copy, UnfinishedError, str(path), "no parquet footer")


def test_a_missing_parquet_file(copy: Path, refused) -> None:
    (path,) = (copy / "data").rglob("*.parquet")
    path.unlink()
    refused(copy, BrokenError, str(path), "is missing")


def test_nothing_recorded(copy: Path, refused) -> None:
    shutil.rmtree(copy / "meta" / "episodes")
    shutil.rmtree(copy / "data")
    change_info(copy, total_episodes=0)
    refused(copy, EmptyError, "no episode was recorded")


def test_info_that_is_not_json(copy: Path, refused) -> None:
    (copy / "meta" / "info.json").write_text('{"fps": 20')
    refused(copy, BrokenError, "is not JSON")
    (copy / "meta" / "info.json").write_text('{"codebase_version": "v3.0"}')
    refused(copy, BrokenError, "lacks features, fps, data_path")


def test_frames_that_the_metadata_does_not_know(copy: Path, refused) -> None:
    (path,) = (copy / "data").rglob("*.parquet")
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 2), path)
    refused(copy, BrokenError, "episode 9", "has 10 frames", "12 by meta/episodes")
    pq.write_table(pa.concat_tables([table, table.slice(len(table) - 1)]), path)
    refused(copy, BrokenError, "more frames of episode 9 than the 12")
    index = table.schema.get_field_index("episode_index")
    beyond = pa.array(np.full(len(table), 10), pa.int64())
    pq.write_table(
        pa.concat_tables([table, table.set_column(index, "episode_index", beyond)]), path
    )
    refused(copy, BrokenError, "episode 10, which meta/episodes does not list")


def test_a_feature_of_another_size(copy: Path, refused) -> None:
    info = json.loads((copy / "meta" / "info.json").read_text())
    info["features"]["action"]["shape"] = [5]
    change_info(copy, features=info["features"])
    refused(copy, BrokenError, "'action'", "5 numbers a frame")


def test_nan(copy: Path, refused) -> None:
    def spoil(values: np.ndarray) -> None:
        values[2 * 12 + 7, 3] = np.nan
        values[5 * 12 + 1, 0] = np.inf

    change_column(copy, "action", spoil)
    words = ["'action'", "nan in episode 2, frame 7, dimension 3 ('action_3')", "2 such values"]
    refused(copy, ValuesError, *words, "(2, 5)", "data.episodes")
    refused(copy, ValuesError, "inf in episode 5, frame 1", episodes=[4, 5, 6])
    keep = DataConfig(root=str(copy), cache_dir=str(copy.parent / "c"), episodes=[0, 1, 3])
    assert len(open_data(keep, progress=False).train) == 24


def test_a_video_that_is_missing_or_cut_short(filmed: Path, refused) -> None:
    (path,) = filmed.rglob("*.mp4")
    content = path.read_bytes()
    # An index at the front plays until the data end; one at the back is lost altogether.
    for size in (len(content) - 400, len(content) // 2, 500, 0):
        path.write_bytes(content[:size])
        refused(filmed, BrokenError, str(path), "truncated")
        assert not list((filmed.parent / "c").glob("*.h5*"))
        assert not list((filmed.parent / "c").glob("*.part"))
    path.unlink()
    refused(filmed, BrokenError, str(path), "is missing")


def test_a_video_of_another_recording(filmed: Path, refused, tmp_path: Path) -> None:
    (path,) = filmed.rglob("*.mp4")
    other = write_dataset(tmp_path / "short", episodes=2, length=9)
    shutil.copy(next(other.rglob("*.mp4")), path)
    refused(filmed, BrokenError, "episode 0", "0.900 s is needed", "nearest is at 0.850 s")


def test_frames_dropped_while_recording(filmed: Path, refused) -> None:
    (path,) = (filmed / "meta" / "episodes").rglob("*.parquet")
    table = pq.read_table(path)
    name = "videos/observation.images.front/to_timestamp"
    ends = table[name].to_pylist()
    ends[2] -= 1 / 20
    index = table.schema.get_field_index(name)
    pq.write_table(table.set_column(index, name, pa.array(ends)), path)
    words = ["episode 2", "has 14 frames, but only 13 in its video", "in 1 episodes"]
    refused(filmed, BrokenError, *words, "data.episodes")
    rest = DataConfig(root=str(filmed), cache_dir=str(filmed.parent / "c"), episodes=[0, 1, 3])
    assert len(open_data(rest, progress=False).train) > 0


def test_a_camera_that_is_not_there(filmed: Path, refused) -> None:
    from worldmodel.data import KeysConfig

    keys = KeysConfig(images=["observation.images.frnt"])
    refused(filmed, KeysError, "Did you mean 'observation.images.front'", "video", keys=keys)


def test_a_hub_id_while_offline(refused, monkeypatch, tmp_path: Path) -> None:
    from lerobot.datasets import utils

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.OfflineModeIsEnabled("Cannot reach the hub")

    monkeypatch.setattr(utils, "get_safe_version", offline)
    monkeypatch.chdir(tmp_path)
    refused("nobody-here/no-such-set", HubError, "'nobody-here/no-such-set'", "Cannot reach")
    refused("hf://nobody-here/no-such-set", HubError, "Check the name and the connection")
    assert not (tmp_path / "nobody-here").exists()
    (tmp_path / "nobody-here").mkdir()
    refused("nobody-here/no-such-set", RootError, "write hf://nobody-here/no-such-set")
