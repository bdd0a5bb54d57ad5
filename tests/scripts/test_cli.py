"""What all scripts do alike."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("script", "typo", "meant"),
    [
        ("bench_data", "episode=3", "episodes"),
        ("collect", "epsiodes=3", "episodes"),
        ("compare", "train.data.rot=x", "train.data.root"),
        ("demo", "colect.seed=1", "collect"),
        ("evaluate", "checkpont=x", "checkpoint"),
        ("evaluate_data", "draw=3", "draws"),
        ("train", "data.image_sise=64", "data.image_size"),
    ],
)
def test_a_mistyped_key_is_refused_with_the_nearest_one(
    script: str, typo: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"scripts.{script}")
    monkeypatch.setattr(sys, "argv", [script, typo])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert f"There is no setting {typo.partition('=')[0]!r}" in str(ended.value.code).replace(
        "'colect'", "'colect.seed'"
    )
    assert f"Did you mean {meant!r}?" in str(ended.value.code)
