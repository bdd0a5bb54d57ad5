"""Where and with what numbers were made: hardware, threads, versions, revision, command."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from .data import Facts
from .tokens import Horizon

UNITS = "as recorded in the dataset"
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "lerobot")


def stamp() -> dict[str, Any]:
    """JSON-ready facts about this machine, this code and this command; unknown ones are None."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "revision": git_revision(),
        "hardware": {
            "cpu": _cpu_name(),
            "cores": _usable_cores(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": f"{platform.system()} {platform.machine()}",
        },
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def command() -> str:
    """The command line that started this process, in the form a shell takes."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = ["-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    python = Path(sys.executable)
    with contextlib.suppress(ValueError):  # outside the clone: the plain name has to do
        return shlex.join([str(python.relative_to(Path.cwd())), *program, *sys.argv[1:]])
    return shlex.join([python.name, *program, *sys.argv[1:]])


def git_revision() -> str | None:
    """Commit of the clone that this file lies in, "-dirty" if changed; None outside a clone."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def stamp_of(data: Facts, horizon: Horizon, seed: int) -> dict[str, Any]:
    """The stamp of a checkpoint: `stamp` of the machine, and what it was trained on.

    ``window`` counts frames (past, future and their strides) and actions (chunk), at ``fps`` a
    second; ``targets`` says which state each absolute action is a target for. Values are in the
    units in which the dataset records them; LeRobot datasets do not say which these are.
    ``environment`` is there when the dataset says which simulated world it was collected in
    (``meta/source.json``, written by ``scripts.collect``).
    """
    spec = data.spec
    statistics = json.dumps(spec.stats, sort_keys=True).encode()
    facts = stamp() | {
        "seed": seed,
        "dataset": {
            "roots": [Path(r).name or r for r in data.roots],
            "fingerprint": data.fingerprint,
            "statistics": hashlib.sha256(statistics).hexdigest()[:16],
            "train_episodes": len(data.train_episodes),
            "validation_episodes": data.validation_episodes,
        },
        "robot": spec.robot_type or None,
        "cameras": {c: list(spec.image_size) for c in spec.cameras},
        "states": {"names": list(spec.state_names), "units": UNITS},
        "actions": {
            "names": list(spec.action_names),
            "units": UNITS,
            "kind": spec.action_kind,
            "fps": spec.fps,
            "targets": {
                name: spec.state_names[where] if where >= 0 else None
                for name, where in zip(spec.action_names, spec.action_targets, strict=False)
            },
        },
        "window": asdict(horizon),
    }
    worlds = [w for root in data.roots if (w := _world(Path(root).expanduser()))]
    if worlds and all(w == worlds[0] for w in worlds):
        facts["environment"] = worlds[0]
    return facts


def _world(root: Path) -> dict[str, Any] | None:
    """The simulated world that a dataset was collected in, with its options, or None."""
    path = root / "meta" / "source.json"
    if not path.is_file():
        return None
    source = json.loads(path.read_text())
    if "env" not in source:  # `scripts.import_hdf5` writes such a file too
        return None
    return {k: v for k, v in source.items() if k not in ("seed", "exploration")}
