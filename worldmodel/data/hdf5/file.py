"""HDF5 files: opened, read and listed, with errors that say what is wrong with which file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import h5py

from ..errors import BrokenError, RootError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LISTED = 40  # lines of a listing
MEMBERS = 15  # lines of one group in it
NUMBERED = re.compile(r"^(.*?)(\d+)$")


def natural(text: str) -> tuple[object, ...]:
    """A key to sort by in which numbers count as numbers: demo_2 before demo_10."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text))


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read from; what HDF5 finds wrong in the block is a `BrokenError` too.

    Raises:
        RootError: missing, or no HDF5 file.
        BrokenError: truncated, damaged, or still being written.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(len(SIGNATURE))
    except OSError as error:
        raise RootError(f"{path} cannot be read: {error.strerror}") from error
    size = path.stat().st_size
    # The signature may also stand at 512, 1024, ... bytes: is_hdf5 looks there too.
    if head != SIGNATURE and not h5py.is_hdf5(path):
        found = "is empty" if not size else f"begins with {head!r}"
        raise RootError(f"{path} is no HDF5 file: it {found}")
    try:
        file = h5py.File(path, "r")
    except BlockingIOError as error:
        raise BrokenError(f"{path} is being written by another process; wait for it") from error
    except OSError as error:
        what = "is cut short" if "truncated file" in str(error) else "is damaged"
        raise BrokenError(
            f"{path} {what} ({size:,} bytes; HDF5 says: {error}). Copy or download it again"
        ) from error
    with file, reading(path, "something"):
        yield file


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Errors of HDF5 inside the block as one that names the file and what was read."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError) as error:
        raise BrokenError(
            f"{path}: {what} cannot be read ({error}). The file is damaged: copy or download it "
            "again"
        ) from error


def listing(file: h5py.File) -> str:
    """What a file holds, a line per group and dataset; of ``demo_0, demo_1, ...`` only the first.

    Shortened to `LISTED` lines.
    """
    lines: list[str] = []
    _list(file, "  ", lines)
    if len(lines) > LISTED:
        lines[LISTED:] = [f"  ... and {len(lines) - LISTED} lines more"]
    return "\n".join(lines) or "  nothing"


def _list(group: h5py.Group, indent: str, lines: list[str]) -> None:
    seen: dict[str, int] = {}
    for name in group:
        if match := NUMBERED.match(name):
            seen[match[1]] = seen.get(match[1], 0) + 1
    shown: set[str] = set()
    members = sorted(group, key=natural)
    for place, name in enumerate(members):
        match = NUMBERED.match(name)
        stem = match[1] if match else None
        if stem in shown:
            continue
        if place >= MEMBERS:
            lines.append(f"{indent}... and {len(members) - place} more")
            return
        item = group.get(name)
        if isinstance(item, h5py.Group):
            more = seen[stem] - 1 if stem is not None else 0
            lines.append(f"{indent}{name}/" + (f"  (and {more} more like it)" if more else ""))
            _list(item, indent + "  ", lines)
            if stem is not None:
                shown.add(stem)
        elif isinstance(item, h5py.Dataset):
            lines.append(f"{indent}{name}  {item.dtype} {list(item.shape or ())}")
        else:
            lines.append(f"{indent}{name}  (a link that leads nowhere)")
