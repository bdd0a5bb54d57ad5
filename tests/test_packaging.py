"""The wheel: what is in it, what it is called, and that one folder has one import name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGES = ("worldmodel", "envs", "policies", "lerobot_policy_selfflow")
ADAPTER = ROOT / "policies" / "lerobot_policy_selfflow"


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built offline, from a copy: setuptools leaves traces beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    # The generic names that must not be packaged are copied too.
    for name in ("worldmodel", "envs", "policies", "scripts", "configs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    target = tmp_path_factory.mktemp("wheel")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel laid out as an installer does it: ours is pure Python, so unpacking is all."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(code: str, path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` with `path` before everything else that is installed."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_our_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert not [name for name in names if name.startswith("policies/lerobot_policy_selfflow")]


def test_every_source_file_and_template_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    expected = {
        str(path.relative_to(ROOT))
        for package in ("worldmodel", "envs", "policies")
        for path in (ROOT / package).rglob("*.py")
        if not path.is_relative_to(ADAPTER)
    }
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "policies/templates").glob("*")}
    expected |= {str(path.relative_to(ADAPTER.parent)) for path in ADAPTER.rglob("*.py")}
    robots = (ROOT / "configs" / "robot").glob("*.yaml")
    expected |= {f"{ADAPTER.name}/robots/{path.name}" for path in robots}
    missing = sorted(expected - packed)
    assert not missing, f"not packaged (is an __init__.py missing beside them?): {missing}"


def test_arms_are_found_by_name_where_there_is_no_clone(installed: Path, tmp_path: Path) -> None:
    code = f"""
from lerobot_policy_selfflow import SelfflowRosConfig, robot_selfflow
assert robot_selfflow.__file__.startswith({str(installed)!r}), robot_selfflow.__file__
print(*SelfflowRosConfig(config="bench").described().names)
"""
    done = run(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "gripper"


def test_the_installed_packages_are_ours(installed: Path, tmp_path: Path) -> None:
    # Specs rather than imports: whether the modules import is what all other tests are about.
    code = f"""
import importlib.util, json
print(json.dumps({{n: importlib.util.find_spec(n).origin for n in {PACKAGES!r}}}))
"""
    done = run(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {name: str(installed / name / "__init__.py") for name in PACKAGES}


def test_the_entry_point_registers_our_environments(installed: Path, tmp_path: Path) -> None:
    code = f"""
import gymnasium, importlib.metadata
(point,) = importlib.metadata.entry_points(group="gymnasium.envs", name="selfflow")
point.load()()
import envs
assert envs.__file__.startswith({str(installed)!r}), envs.__file__
for name in ("selfflow/Reach-v0", "selfflow/ReachAround-v0"):
    assert name in gymnasium.registry, sorted(n for n in gymnasium.registry if "/" in n)
"""
    done = run(code, installed, tmp_path)
    assert done.returncode == 0, done.stderr


def test_lerobot_finds_the_plugin_by_its_distribution_name(wheel: Path) -> None:
    """LeRobot imports every distribution of this prefix by its name, underscores and all."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        (name,) = re.findall(r"^Name: (.*)$", archive.read(metadata).decode(), re.M)
    assert name == ADAPTER.name
    assert name.startswith("lerobot_policy_")


@pytest.mark.parametrize("where", ["clone", "wheel"])
def test_the_adapter_has_one_import_name(where: str, installed: Path, tmp_path: Path) -> None:
    path = ROOT if where == "clone" else installed
    done = run("import policies.lerobot_policy_selfflow", path, tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError", "ModuleNotFoundError")), done.stderr
    if where == "clone":
        assert "import lerobot_policy_selfflow" in last, "the error should say how to mend it"


LOCKS = {"requirements.lock": ["dev"], "requirements-suites.lock": ["dev", "suites"]}
ROS_LOCK = "requirements-ros.lock"


def declared(name: str, project: dict) -> set[str]:
    """Names of the packages that a lock file is made from."""
    if name == ROS_LOCK:
        items = list(project["dependency-groups"]["ros"])
    else:
        items = list(project["project"]["dependencies"])
        for extra in LOCKS[name]:
            items += project["project"]["optional-dependencies"][extra]
    return {re.match(r"[A-Za-z0-9_.-]+", item).group().lower() for item in items}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*LOCKS, ROS_LOCK])
def test_a_lock_file_pins_every_dependency_by_hash_and_names_no_address(
    name: str, project: dict
) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index-url|--extra-index-url|--find-links)\b", text, re.M)
    entries = re.split(r"\n(?=[a-z0-9])", text.split("\n", 1)[1])
    unhashed = [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry]
    assert not unhashed
    locked = {entry.split("==")[0] for entry in entries}
    wanted = declared(name, project)
    assert wanted <= locked, f"run `make lock`: {sorted(wanted - locked)} are not in {name}"


def versions(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / name).read_text(), re.M))


def test_both_environments_run_the_same_of_everything_but_the_simulator() -> None:
    """Or what passes in one says little about the other."""
    ours, theirs = (versions(name) for name in LOCKS)
    different = {n for n in ours.keys() & theirs.keys() if ours[n] != theirs[n]}
    assert different <= {"mujoco"}, f"run `make lock`: {sorted(different)} differ"


def test_the_bench_runs_the_same_simulator_and_holds_nothing_of_the_project(project: dict) -> None:
    ours, bench = versions("requirements.lock"), versions(ROS_LOCK)
    different = {n for n in ours.keys() & bench.keys() if ours[n] != bench[n]}
    assert not different, f"run `make lock`: {sorted(different)} differ"
    assert {"numpy", "mujoco", "gymnasium", "pillow"} <= ours.keys() & bench.keys()
    assert not {"torch", "lerobot"} & bench.keys()
    pinned = [item for item in project["dependency-groups"]["ros"] if "ros" in item]
    assert all("==" in item for item in pinned)


def test_no_file_names_a_machine_or_a_registry() -> None:
    """What is written here is read on other machines."""
    words = ["pypi" + ".org", "python" + "hosted.org", "/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/"]
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wrong = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file():  # deleted, but not yet in the index
            continue
        content = path.read_bytes()
        wrong += [f"{name} contains {word}" for word in words if word.encode() in content]
    assert not wrong, "\n".join(wrong)
