"""Every configuration composes, is checked against its dataclass, and refuses typos by name."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from .conftest import ROOT

CONFIGS = ROOT / "configs"
SCRIPTS = sorted(p.stem for p in (ROOT / "scripts").glob("*.py") if not p.stem.startswith("_"))
FILES = sorted(CONFIGS.rglob("*.yaml"))
OPTIONS = [p for p in FILES if p.parent != CONFIGS]


def compose(script: str, *overrides: str) -> DictConfig:
    """What ``python -m scripts.SCRIPT OVERRIDES`` would run with."""
    importlib.import_module(f"scripts.{script}")  # registers the schema
    with hydra.initialize_config_dir(str(CONFIGS), version_base=None):
        return hydra.compose(script, list(overrides))


def name_of(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def schemas(config: DictConfig, at: str = "") -> Iterator[str]:
    """Dotted prefixes ("" or "data.") of all nodes that a dataclass describes."""
    if dataclasses.is_dataclass(OmegaConf.get_type(config)):
        yield at
    for key in config:
        if not OmegaConf.is_missing(config, key):
            node = config._get_node(key)
            if isinstance(node, DictConfig) and not node._is_none():
                yield from schemas(node, f"{at}{key!s}.")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_a_configuration_with_a_schema(script: str) -> None:
    assert (CONFIGS / f"{script}.yaml").is_file()
    config = compose(script)
    assert dataclasses.is_dataclass(OmegaConf.get_type(config)), (
        f"configs/{script}.yaml must list its schema first in `defaults`, found a plain dict"
    )
    try:
        values = OmegaConf.to_object(config)
    except MissingMandatoryValue:
        return  # something only the user can say, such as a path
    assert dataclasses.is_dataclass(values)


def test_every_top_level_configuration_belongs_to_a_script() -> None:
    assert {p.stem for p in FILES if p.parent == CONFIGS} == set(SCRIPTS)


@pytest.mark.parametrize("path", OPTIONS, ids=name_of)
def test_every_group_option_can_be_chosen_by_name(path: Path) -> None:
    group = str(path.parent.relative_to(CONFIGS))
    errors = {}
    for script in SCRIPTS:
        try:
            compose(script, f"{group}={path.stem}")
        except ConfigCompositionException as error:
            errors[script] = str(error)
    assert len(errors) < len(SCRIPTS), f"no script accepts {group}={path.stem}: {errors}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_key_fails_by_name_at_every_level(script: str) -> None:
    prefixes = list(schemas(compose(script)))
    assert "" in prefixes
    for prefix in prefixes:
        with pytest.raises(ConfigCompositionException, match="no_such_key"):
            compose(script, f"{prefix}no_such_key=1")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_configurations_hold_values_not_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b_target_\b", text)
    assert "${oc.env" not in text


def test_the_demo_evaluates_as_the_script_does_but_for_what_it_says() -> None:
    """What ``scripts.evaluate`` gets from its configuration, such as limits, the demo gets too."""
    demo, alone = compose("demo").evaluate, compose("evaluate")
    said = {"checkpoint", "env", "episodes", "seed", "steps", "out"}
    assert said <= set(OmegaConf.load(CONFIGS / "demo.yaml").evaluate)
    for name in sorted(set(alone) - said):
        assert demo[name] == alone[name], name
    assert len(demo.limits.velocity) == len(demo.limits.jerk) == 7


def test_limits_can_be_left_out() -> None:
    assert compose("evaluate", "limits=null").limits is None
    assert compose("demo", "evaluate.limits=null").evaluate.limits is None
