"""What the command lines of all scripts share."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts._cli import unknown_key
from scripts.compare import CompareConfig
from scripts.evaluate import EvaluateConfig
from scripts.train import TrainConfig
from tests.test_configs import SCRIPTS, compose, schemas


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_typo_in_any_key_ends_a_script_with_the_nearest_key_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    module = importlib.import_module(f"scripts.{script}")
    monkeypatch.setattr(module, "run", lambda: pytest.fail("it went on"))
    config = compose(script)
    seen = 0
    for prefix in schemas(config):
        for name in OmegaConf.select(config, prefix.rstrip(".")) if prefix else config:
            key = f"{prefix}{name!s}"
            typo = key + key[-1]
            monkeypatch.setattr(sys, "argv", [script, f"{typo}=1"])
            with pytest.raises(SystemExit) as ended:
                module.main()
            said = ended.value.code
            assert isinstance(said, str), "a text ends a program with exit code 1"
            assert said.startswith(f"There is no setting {typo!r}. Did you mean {key!r}?")
            seen += 1
    assert seen > 5


@pytest.mark.parametrize(
    ("schema", "key"),
    [
        (TrainConfig, "objective.mask_ratio.anything"),
        (EvaluateConfig, "options.target"),
        (EvaluateConfig, "limits.velocity"),
        (CompareConfig, "arms.anything.objective"),
        (CompareConfig, "options.target"),
    ],
)
def test_keys_of_mappings_are_free(schema: type, key: str) -> None:
    assert unknown_key(schema, key) is None


def test_keys_of_the_values_of_a_mapping_are_not_free() -> None:
    said = unknown_key(CompareConfig, "arms.anything.objectiv")
    assert said is not None
    assert "Did you mean 'arms.anything.objective'?" in said


def test_collecting_does_not_load_pytorch(root: Path) -> None:
    """Its workers import the script as well."""
    code = "import sys, scripts.collect; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
