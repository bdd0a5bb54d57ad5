"""What holds for every test: no network, nothing written outside a temporary folder, one thread.

The environment is set before anything heavy is imported, since most libraries read theirs once, on
import; subprocesses that tests start inherit it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parents[1]

_HOME = Path(tempfile.mkdtemp(prefix="selfflow-tests-"))

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=str(_HOME / "huggingface"),
    HF_LEROBOT_HOME=str(_HOME / "lerobot"),
    SELFFLOW_CACHE=str(_HOME / "frames"),
    WANDB_MODE="disabled",
    WANDB_DIR=str(_HOME),
    MPLBACKEND="Agg",
    MPLCONFIGDIR=str(_HOME / "matplotlib"),
    # The tensors of tests are small: a second thread costs more than it brings.
    OMP_NUM_THREADS="1",
)

# The same examples on every run, and no database of them in the clone.
hypothesis.settings.register_profile("repository", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repository")


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return ROOT


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test of the ROS graph has failed: it runs only where it was asked for."""
    report = yield
    if report.skipped and item.get_closest_marker("ros"):
        report.outcome = "failed"
        report.longrepr = f"a test marked ros may not be skipped: {report.longrepr}"
    return report
