"""The Makefile where something is missing. Programs are stand-ins; nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")

# A Python that runs, and that finds the libraries named in FOUND.
PYTHON = """#!/bin/sh
echo "$0 $*" >> "$LOG"
case "$2" in
*sys.argv*)
    shift 2
    for name in "$@"; do case " $FOUND " in *" $name "*) ;; *) exit 1;; esac; done;;
*) echo "Python stand-in";;
esac
"""
# An installer that makes an environment at once.
UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
for last; do :; done
case "$1" in venv) mkdir -p "$last/bin"; cp stand-in "$last/bin/python";; esac
"""


class Clone:
    """A folder with the Makefile, and a PATH that holds little more than what make needs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.log = folder / "clone", folder / "bin", folder / "log"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in (
            "Makefile",
            ".python-version",
            "requirements.lock",
            "requirements-suites.lock",
            "requirements-ros.lock",
            "pyproject.toml",
        ):
            shutil.copy(ROOT / name, self.folder)
        for name in ("sh", "rm", "cp", "mkdir", "cat", "touch", "uname", "test", "echo"):
            (self.bin / name).symlink_to(shutil.which(name) or "/bin/false")
        self.program(self.folder / "stand-in", PYTHON)
        self.program(self.bin / "uv", UV)

    def program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def make(self, target: str, found: str = "") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        environment = {"PATH": str(self.bin), "LOG": str(self.log), "FOUND": found}
        return subprocess.run(
            [shutil.which("make") or "make", target, "SHELL=/bin/sh"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )

    def called(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    if os.uname().sysname != "Linux":
        pytest.skip("only Linux is looked at")
    return Clone(tmp_path)


@pytest.mark.parametrize("target", ["demo", "test"])
def test_without_mesa_it_stops_before_anything_is_made_and_names_the_packages(
    clone: Clone, target: str
) -> None:
    clone.program(clone.bin / "python3", PYTHON)
    done = clone.make(target)
    assert done.returncode != 0
    assert "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri" in done.stdout
    assert not (clone.folder / ".venv").exists()
    assert [c for c in clone.called() if c.startswith("uv") and c != "uv --version"] == []


def test_the_python_of_the_environment_is_asked_where_there_is_one(clone: Clone) -> None:
    clone.program(clone.folder / ".venv/bin/python", PYTHON)
    clone.program(clone.bin / "python3", "#!/bin/sh\nexit 7\n")
    assert clone.make("graphics").returncode != 0
    done = clone.make("graphics", found="libEGL.so.1 libEGL_mesa.so.0")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [c for c in clone.called() if not c.startswith("uv")]
    assert asked
    assert all(c.startswith(".venv/bin/python ") for c in asked)


@pytest.mark.parametrize("library", ["libEGL.so.1 libEGL_nvidia.so.0", "libOSMesa.so.8"])
def test_with_something_to_draw_with_it_goes_on_to_the_setup(clone: Clone, library: str) -> None:
    clone.program(clone.bin / "python3", PYTHON)
    done = clone.make("test", found=library)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(c.startswith("uv venv") for c in clone.called())
    assert clone.called()[-1].startswith(".venv/bin/python -m pytest")


def test_other_peoples_worlds_have_an_environment_of_their_own(clone: Clone) -> None:
    clone.program(clone.bin / "python3", PYTHON)
    done = clone.make("test-suites", found="libEGL.so.1 libEGL_mesa.so.0")
    assert done.returncode == 0, done.stdout + done.stderr
    (synced,) = (c for c in clone.called() if c.startswith("uv pip sync"))
    assert synced.endswith("requirements-suites.lock")
    assert ".venv-suites/bin/python" in synced
    assert not (clone.folder / ".venv").exists()
    assert clone.called()[-1].startswith(".venv-suites/bin/python -m pytest")
    assert "suites and not slow" in clone.called()[-1]
    clone.make("test-suites", found="libEGL.so.1 libEGL_mesa.so.0")
    assert not [c for c in clone.called() if c.startswith("uv pip")]  # complete


def test_the_ros_bench_has_an_environment_of_its_own_and_nothing_of_ours_in_it(
    clone: Clone,
) -> None:
    done = clone.make("setup-ros")
    assert done.returncode == 0, done.stdout + done.stderr
    (synced,) = (c for c in clone.called() if c.startswith("uv pip"))
    assert synced.startswith("uv pip sync")
    assert synced.endswith("requirements-ros.lock")
    assert ".venv-ros/bin/python" in synced
    assert not (clone.folder / ".venv").exists()
    assert (clone.folder / ".venv-ros/.complete").exists()
    clone.make("setup-ros")
    assert not [c for c in clone.called() if c.startswith("uv pip")]  # complete


def test_without_any_python_it_goes_on_too_as_the_setup_will_say_so(clone: Clone) -> None:
    path = clone.folder / "Makefile"
    path.write_text(path.read_text().replace("/usr/bin/python3", "/no/such/python3"))
    assert clone.make("graphics").returncode == 0
    assert clone.make("test").returncode == 0
    assert any(c.startswith("uv venv") for c in clone.called())
