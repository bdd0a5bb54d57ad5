"""The rendering backend: what the user chose is kept, and what is missing is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs import rendering


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux machine without display on which nothing has been chosen or imported yet."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)


def test_the_users_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.choose_backend() == "osmesa"


@pytest.mark.usefixtures("headless")
@pytest.mark.parametrize("name", ["DISPLAY", "WAYLAND_DISPLAY"])
def test_a_display_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, ":0")
    assert rendering.choose_backend() == rendering.NATIVE
    assert "MUJOCO_GL" not in os.environ


@pytest.mark.usefixtures("headless")
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert rendering.choose_backend() == rendering.NATIVE


@pytest.mark.usefixtures("headless")
def test_the_first_that_draws_is_left_for_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rendering, "_why_not", lambda backend: None if backend == "osmesa" else "no EGL"
    )
    monkeypatch.setenv("MUJOCO_GL", "")  # so that monkeypatch puts it back
    assert rendering.choose_backend() == "osmesa"
    assert os.environ["MUJOCO_GL"] == "osmesa"


@pytest.mark.usefixtures("headless")
def test_nothing_that_draws_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_why_not", lambda backend: f"no {backend}")
    with pytest.raises(rendering.RenderingUnavailableError) as error:
        rendering.choose_backend()
    assert "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri" in str(error.value)
    assert "no egl" in str(error.value)
    assert "no osmesa" in str(error.value)


@pytest.mark.usefixtures("headless")
def test_too_late_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", object())
    with pytest.raises(RuntimeError, match="imported before"):
        rendering.choose_backend()


def test_a_driver_that_is_missing_ends_the_command_with_the_install_line(root: Path) -> None:
    # An EGL without any vendor library is what a machine without Mesa looks like.
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY")}
    environment |= {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent.json"}
    command = (
        "import sys; from envs import rendering; rendering.CANDIDATES = ('egl',);"
        "sys.exit(rendering.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", command], cwd=root, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert rendering.APT_INSTALL in result.stderr
    assert "Traceback" not in result.stderr
