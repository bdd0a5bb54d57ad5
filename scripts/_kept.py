"""Measured parts of a report on disk, so that a stopped command need not measure them again.

A part is kept with what it was measured of (`Key`): the weights, the settings that it depends on
and the code. Where any of them differs it is measured anew. Pictures are kept beside the numbers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from policies.judge.media import BranchPicture, SideBySide
from policies.judge.report import completed
from worldmodel.checkpoint import WEIGHTS

Picture = SideBySide | BranchPicture
Key = Mapping[str, Any]
"""What a part was measured of: name -> plain value."""

ROOT = Path(__file__).resolve().parents[1]
MEASURING = ("worldmodel/**/*.py", "envs/**/*.py", "policies/*.py", "policies/judge/*.py")
SCRIPTS = ("_held_out", "_imagined", "_judge", "_world", "evaluate_worldmodel")
PAGES = frozenset({"data_page", "figure", "media", "report", "targets"})
"""Modules that show numbers and make none."""


@dataclass
class Measured:
    """A part of the report and the pictures that belong to it."""

    part: dict[str, Any]
    pictures: list[Picture] = field(default_factory=list)


class Kept:
    """A folder of measured parts, each written as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, name: str, key: Key) -> Measured | None:
        """A part that was measured of the same; None where there is none."""
        if self.differences(name, key) != []:
            return None
        kept = json.loads(self._numbers(name).read_text())
        pictures: list[Picture] = []
        if kept["pictures"]:
            with np.load(self._pictures(name)) as arrays:
                if str(arrays["of"]) != _digest(key):
                    return None  # stopped between the two files
                for number, (kind, values) in enumerate(kept["pictures"]):
                    made = {n: arrays[f"{number}.{n}"] for n in values.pop("arrays")}
                    pictures.append(_KINDS[kind](**values, **made))
        return Measured(kept["part"], pictures)

    def differences(self, name: str, key: Key) -> list[str] | None:
        """In what a kept part was measured of something else; None where none is kept."""
        path = self._numbers(name)
        if not path.is_file():
            return None
        found, plain = json.loads(path.read_text())["key"], json.loads(json.dumps(key))
        if not isinstance(found, dict):
            return ["code"]
        return [n for n in sorted(found | plain) if found.get(n) != plain.get(n)]

    def write(self, name: str, key: Key, measured: Measured) -> None:
        """Keep a part."""
        arrays: dict[str, np.ndarray] = {}
        facts = []
        for number, picture in enumerate(measured.pictures):
            values = {f.name: getattr(picture, f.name) for f in dataclasses.fields(picture)}
            large = [n for n, v in values.items() if isinstance(v, np.ndarray)]
            arrays |= {f"{number}.{n}": values.pop(n) for n in large}
            facts.append((type(picture).__name__, values | {"arrays": large}))
        if arrays:
            temporary = self.folder / f"{name}.{os.getpid()}.npz"
            np.savez_compressed(temporary, of=np.array(_digest(key)), **arrays)  # type: ignore[arg-type]
            temporary.replace(self._pictures(name))
        part = completed({name: measured.part})[name]
        text = json.dumps({"key": dict(key), "part": part, "pictures": facts}, indent=2)
        temporary = self.folder / f"{name}.{os.getpid()}.json"
        temporary.write_text(text + "\n")
        temporary.replace(self._numbers(name))

    def _numbers(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _pictures(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (SideBySide, BranchPicture)}


def code() -> str:
    """A digest of all source that a measured number can depend on."""
    files = [path for pattern in MEASURING for path in ROOT.glob(pattern) if path.stem not in PAGES]
    files += [ROOT / "scripts" / f"{name}.py" for name in SCRIPTS]
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def weights(checkpoints: Sequence[Path]) -> list[str]:
    """Digests of the weights in these folders: the same path may hold others tomorrow."""
    return [hashlib.sha256((path / WEIGHTS).read_bytes()).hexdigest()[:16] for path in checkpoints]


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
