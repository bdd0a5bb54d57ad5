"""A real recording (Unitree G1, 26 joints, 480x640 AV1 video) goes through the whole path."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

SHARED = Path(os.environ.get("SELFFLOW_SHARED", ROOT.parent / "shared"))
ROOT_G1 = SHARED / "data" / "unitree_g1_bottle"

pytestmark = pytest.mark.skipif(
    not (ROOT_G1 / "meta" / "info.json").is_file(),
    reason="the recording is not here; point SELFFLOW_SHARED at the folder that holds it",
)


def test_it_trains_and_is_judged_on_held_out_episodes(tmp_path, monkeypatch) -> None:
    from rich.console import Console

    from policies.offline import held_out
    from scripts.evaluate_data import EvaluateDataConfig, open_held_out, strip
    from worldmodel.checkpoint import open_checkpoint

    from .test_configs import compose

    monkeypatch.setenv("SELFFLOW_CACHE", str(tmp_path / "cache"))
    from omegaconf import OmegaConf

    import scripts.train as script

    config: Any = OmegaConf.to_object(
        compose(
            "train",
            "experiment=debug",
            f"data.root={ROOT_G1}",
            f"out={tmp_path / 'run'}",
            "data.image_size=[24,32]",
            "data.validation=0.2",
            "steps=6",
            "fit.validate_every=0",
        )
    )  # fmt: skip
    script.train(config, Console(quiet=True))
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.spec.action_dim == 26
    assert checkpoint.spec.cameras == ("cam_high",)
    judged = EvaluateDataConfig(checkpoint=str(tmp_path / "run"))
    data = open_held_out(judged, checkpoint)
    assert len(data.validation_episodes) == 1
    report = held_out(checkpoint, data.validation, every=40, draws=1, steps=1)
    json.dumps(report, allow_nan=False)
    assert report["action"]["hold_last"] < report["action"]["mean_action"]
    strip(checkpoint, data, tmp_path / "strip.png")
    assert (tmp_path / "strip.png").stat().st_size > 10_000


def test_it_is_inspected(tmp_path) -> None:
    from omegaconf import OmegaConf

    from scripts.inspect_data import inspect

    from .test_configs import compose

    config: Any = OmegaConf.to_object(
        compose("inspect_data", f"data.root={ROOT_G1}", f"out={tmp_path}", "shown=2")
    )
    report, paths = inspect(config)
    assert (report["episodes"], report["frames"], report["fps"]) == (5, 1305, 30)
    (camera,) = report["cameras"]
    assert (camera["codec"], camera["height"], camera["width"]) == ("av1", 480, 640)
    assert not camera["black"]
    assert not camera["frozen"]
    assert report["timing"]["max"] < 1e-4
    assert report["semantics"]["guess"] == "absolute"
    assert 0.1 < report["semantics"]["lag_seconds"] < 0.5
    assert [d["name"] for d in report["action"]["dimensions"] if d["saturated"]] == [
        "kRightHandThumbBend"
    ]
    assert report["smoothness"]["commands"]["names"][0] == "kLeftShoulderPitch"
    assert len(report["smoothness"]["commands"]["names"]) == 14  # without the hands
    assert report["settings"]["data.image_size"] == [48, 64]
    assert paths["png"].stat().st_size > 100_000
