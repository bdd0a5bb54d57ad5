"""Datasets that several tests read and none changes."""

import os
from pathlib import Path

import pytest

from tests.datasets import write_dataset

LENGTHS = (20, 3, 14, 25)  # one shorter than every window


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes, one camera of 32 pixels, two tasks."""
    root = tmp_path_factory.mktemp("data") / "squares"
    return write_dataset(root, episodes=4, length=LENGTHS, tasks=("left", "right"))


@pytest.fixture(scope="session")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten episodes without any camera: quick to copy and to break."""
    root = tmp_path_factory.mktemp("data") / "blind"
    return write_dataset(root, episodes=10, length=12, cameras=(), state_dim=3, action_dim=4)


@pytest.fixture(scope="session")
def humanoid() -> Path:
    """A real recording: 5 episodes, 26 joints, one 480x640 AV1 camera."""
    shared = os.environ.get("SELFFLOW_SHARED")
    folder = Path(shared) if shared else Path(__file__).resolve().parents[4] / "shared"
    root = folder / "data" / "unitree_g1_bottle"
    if not root.is_dir():
        pytest.skip("the recording unitree_g1_bottle is not here; SELFFLOW_SHARED says where")
    return root
