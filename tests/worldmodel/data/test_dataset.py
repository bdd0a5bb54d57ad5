"""Opening: splits, statistics, several roots, and the facts that a Spec holds."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.datasets import write_dataset
from worldmodel.data import DataConfig, DatasetError, open_data, split_episodes
from worldmodel.data.errors import EmptyError, RootsDisagreeError


@pytest.fixture
def opened(tmp_path: Path):
    def call(root, **options):
        roots = [str(r) for r in root] if isinstance(root, list) else str(root)
        return open_data(
            DataConfig(root=roots, cache_dir=str(tmp_path / "cache"), **options), progress=False
        )

    return call


def test_the_split_is_by_episode(blind: Path, opened) -> None:
    data = opened(blind, validation=0.3, split_seed=1)
    assert len(data.validation_episodes) == 3
    assert sorted(data.train_episodes + data.validation_episodes) == list(range(10))
    assert set(data.train.episode_of) == set(data.train_episodes)
    assert set(data.validation.episode_of) == set(data.validation_episodes)
    assert len(data.train) == 7 * 12
    again = opened(blind, validation=0.3, split_seed=1)
    assert again.validation_episodes == data.validation_episodes
    other = [opened(blind, validation=0.3, split_seed=s).validation_episodes for s in range(2, 6)]
    assert any(o != data.validation_episodes for o in other)


@pytest.mark.parametrize(
    ("count", "share", "held"), [(1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (10, 0, 0), (10, 0.25, 2)]
)
def test_how_many_are_held_out(count: int, share: float, held: int) -> None:
    train, validation = split_episodes(range(count), share, seed=0)
    assert len(validation) == held
    assert sorted(train + validation) == list(range(count))


def test_statistics_are_of_the_training_split(blind: Path, opened) -> None:
    data = opened(blind, validation=0.4)
    everything = data.train.batch(np.arange(len(data.train)))
    now = everything.state[:, 0].numpy()  # with one past frame, the first is "now"
    assert np.allclose(data.spec.stats["state"]["mean"], now.mean(0), atol=1e-6)
    assert np.allclose(data.spec.stats["state"]["max"], now.max(0))
    assert np.allclose(data.spec.stats["action"]["min"], everything.action[:, 0].amin(0))
    assert data.spec.stats != opened(blind, validation=0).spec.stats


def test_facts(squares: Path, opened) -> None:
    data = opened(squares, image_size=16)
    spec = data.spec
    assert spec.cameras == ("front",)
    assert spec.image_size == (16, 16)
    assert spec.fps == 20
    assert spec.tasks == ("left", "right")
    assert spec.robot_type == "square"
    assert spec.state_names == ("state_0", "state_1")
    assert spec.action_dim == 2
    assert data.keys[0].images == {"front": "observation.images.front"}
    assert "4 episodes" not in repr(data)
    assert "59 windows" not in repr(data)
    assert f"{len(data.train)} windows of 3 episodes" in repr(data)
    assert type(spec).from_dict(spec.to_dict()) == spec


def test_unkind_names_and_sizes(tmp_path: Path, opened) -> None:
    root = write_dataset(
        tmp_path / "d",
        length=8,
        cameras=("front",),
        keys={
            "action": "actions",
            "observation.state": "state",
            "observation.images.front": "image",
        },
        state_dim=1,
        action_dim=3,
        action_names={"left": ["a", "b"], "right": ["a"]},
        constant=(2,),
    )
    spec = opened(root, image_size=8).spec
    assert spec.cameras == ("image",)
    assert spec.state_dim == 1
    assert spec.action_names == ("left.a", "left.b", "right.a")
    assert spec.stats["action"]["std"][2] == 0


def test_the_fingerprint_is_of_the_content(blind: Path, opened, tmp_path: Path) -> None:
    copy = shutil.copytree(blind, tmp_path / "copy")
    first = opened(blind)
    assert opened(copy).fingerprint == first.fingerprint
    assert opened(blind, image_size=32, validation=0.5).fingerprint == first.fingerprint
    other = write_dataset(
        tmp_path / "o", episodes=10, length=12, cameras=(), state_dim=3, action_dim=4, seed=1
    )
    assert opened(other).fingerprint != first.fingerprint


def test_episodes_can_be_chosen(blind: Path, opened) -> None:
    data = opened(blind, episodes=[7, 2, 4], validation=0)
    assert data.train_episodes == [2, 4, 7]
    assert len(data.train) == 36
    with pytest.raises(DatasetError, match=r"no episodes \[10\]; it has 10, 0 to 9"):
        opened(blind, episodes=[3, 10])
    with pytest.raises(EmptyError):
        opened(blind, episodes=[])


def test_episodes_of_several_roots(blind: Path, opened, tmp_path: Path) -> None:
    other = write_dataset(
        tmp_path / "d", episodes=2, length=5, cameras=(), state_dim=3, action_dim=4, seed=7
    )
    data = opened([blind, other], episodes=[[0], None], validation=0)
    assert data.train_episodes == [0, 10, 11]
    assert len(data.train) == 12 + 10
    with pytest.raises(DatasetError, match=r"one list .* a root"):
        opened([blind, other], episodes=[0, 1])


@pytest.mark.parametrize(
    ("difference", "word"),
    [
        ({"fps": 10}, "fps"),
        ({"state_names": ["a", "b"]}, "state_names"),
        ({"action_dim": 3}, "action_names"),
        ({"cameras": ("top",)}, "cameras"),
    ],
)
def test_roots_that_disagree(squares: Path, opened, tmp_path: Path, difference, word) -> None:
    other = write_dataset(tmp_path / "other", episodes=1, length=6, **difference)
    with pytest.raises(RootsDisagreeError) as caught:
        opened([squares, other])
    for part in (word, str(squares), str(other)):
        assert part in str(caught.value)


def test_the_same_data_twice_would_leak(blind: Path, opened, tmp_path: Path) -> None:
    with pytest.raises(RootsDisagreeError, match="twice"):
        opened([blind, shutil.copytree(blind, tmp_path / "copy")])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"root": None}, "data.root is None"),
        ({"root": []}, "data.root is"),
        ({"root": 3}, "data.root is 3"),
        ({"image_size": 0}, "data.image_size is 0"),
        ({"image_size": [1, 2, 3]}, "data.image_size is"),
        ({"image_size": None}, "data.image_size is"),
        ({"past": 0}, "data.past is 0; it must be at least 1"),
        ({"chunk": 0}, "data.chunk is 0"),
        ({"future_stride": 0}, "data.future_stride is 0"),
        ({"validation": 1.0}, "data.validation is 1.0"),
    ],
)
def test_numbers_that_mean_nothing(options, words) -> None:
    with pytest.raises(DatasetError, match=words):
        open_data(DataConfig(**({"root": "x"} | options)))


def test_the_config_is_a_schema() -> None:
    schema = OmegaConf.structured(DataConfig)
    composed = OmegaConf.merge(schema, OmegaConf.from_dotlist(["root=[a,b]", "image_size=[48,64]"]))
    config: Any = OmegaConf.to_object(composed)
    assert config.roots() == ["a", "b"]
    assert config.size() == (48, 64)
    assert config.keys.action is None
