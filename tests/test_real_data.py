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
