"""What a checkpoint says about where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

from tests.datasets import write_dataset
from worldmodel.data import DataConfig, open_data
from worldmodel.stamp import stamp_of
from worldmodel.tokens import Horizon


def test_it_says_what_the_numbers_are_and_when_they_happen(tmp_path: Path) -> None:
    root = write_dataset(
        tmp_path / "data",
        length=30,
        cameras=("front", "wrist"),
        state_names=["x.pos", "y.pos"],
        action_names=["y.pos", "wheel.vel"],
    )
    config = DataConfig(
        root=str(root), image_size=16, action_kind="absolute", cache_dir=str(tmp_path / "cache")
    )
    data = open_data(config, progress=False)
    horizon = Horizon(past=2, past_stride=1, future=3, future_stride=4, chunk=5)
    stamp = stamp_of(data, horizon, seed=7)
    assert json.loads(json.dumps(stamp, allow_nan=False)) == stamp
    targets = stamp["actions"].pop("targets")
    assert targets.keys() == {"y.pos", "wheel.vel"}
    assert targets["wheel.vel"] is None
    units = "as recorded in the dataset"
    assert stamp["actions"] == {
        "names": ["y.pos", "wheel.vel"],
        "units": units,
        "kind": "absolute",
        "fps": 20,
    }
    assert stamp["states"] == {"names": ["x.pos", "y.pos"], "units": units}
    assert stamp["window"] == {
        "past": 2,
        "past_stride": 1,
        "future": 3,
        "future_stride": 4,
        "chunk": 5,
    }
    assert list(stamp["cameras"].items()) == [("front", [16, 16]), ("wrist", [16, 16])]
    assert (stamp["robot"], stamp["seed"]) == ("square", 7)
