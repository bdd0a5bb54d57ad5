"""From what the user typed to a folder that is known to hold a readable LeRobot v3 dataset.

LeRobot itself takes any folder without complete metadata for something to download, creates the
folder if it has to, and reports that the hub cannot be reached. So everything is looked at here
first, and nothing is ever created.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from pathlib import Path
from typing import Any

from .errors import (
    BrokenError,
    EmptyError,
    HubError,
    RootError,
    UnfinishedError,
    VersionError,
    did_you_mean,
)

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_PREFIX = "hf://"
PARQUET_MAGIC = b"PAR1"
HDF5 = (".hdf5", ".h5")


def locate(root: str) -> Path:
    """The local folder of a dataset.

    Args:
        root: a folder; or a hub id ``owner/name`` where there is no folder ``owner`` here;
            ``hf://owner/name`` always means the hub.

    Raises:
        RootError: nothing there.
        HubError: the hub could not be asked, or does not have it.
    """
    path = Path(root).expanduser()
    if root.startswith(HUB_PREFIX):
        return _download(root.removeprefix(HUB_PREFIX))
    if path.exists():
        return path
    if HUB_ID.fullmatch(root) and not path.parent.exists():
        return _download(root)
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    folders = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
    missing = path.relative_to(parent).parts[0]
    guess = did_you_mean(missing, folders)
    listed = ", ".join(folders[:12]) + (", ..." if len(folders) > 12 else "") or "no folders"
    message = f"there is no dataset at {root}: {parent}/ has no {missing!r}.{guess}"
    message += f" It holds: {listed}."
    if HUB_ID.fullmatch(root):
        message += f" If a dataset of the hub is meant, write {HUB_PREFIX}{root}."
    raise RootError(message)


def read_info(root: Path) -> dict[str, Any]:
    """``meta/info.json``, after making sure that this is a finished dataset of format v3.

    Raises:
        RootError: not a LeRobot dataset.
        VersionError: an older or newer format.
        UnfinishedError: recorded, never finalised.
        EmptyError: created, nothing recorded.
        BrokenError: the file is not JSON, or lacks what every dataset has.
    """
    path = root / "meta" / "info.json"
    if not path.is_file():
        raise RootError(_not_a_dataset(root))
    try:
        info = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BrokenError(f"{path} is not JSON ({error}); record or download it again") from error
    if not isinstance(info, dict):
        raise BrokenError(f"{path} holds no JSON object; record or download it again")
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith("v3."):
        raise VersionError(_wrong_version(root, version))
    needed = ("features", "fps", "data_path")
    if lacking := [name for name in needed if not info.get(name)]:
        raise BrokenError(f"{path} lacks {', '.join(lacking)}; it holds {', '.join(sorted(info))}")
    recorded = any((root / "data").rglob("*.parquet"))
    if not any((root / "meta" / "episodes").rglob("*.parquet")):
        if not recorded and not info.get("total_episodes"):
            raise EmptyError(f"{root} was created, but no episode was recorded into it")
        raise UnfinishedError(
            f"{root} was never finalised: there is no meta/episodes, so nothing says where its "
            f"{info.get('total_episodes', 'unknown number of')} episodes begin. The recording was "
            "killed before LeRobotDataset.finalize(); record it again"
        )
    return info


def require_parquet(path: Path) -> None:
    """Refuse a parquet file that is missing, or that has no footer.

    Raises:
        BrokenError: missing.
        UnfinishedError: the magic bytes that a finished file ends with are not there.
    """
    if not path.is_file():
        raise BrokenError(f"{path} is missing, though the metadata refers to it; download it again")
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(max(0, path.stat().st_size - 4))
        tail = file.read(4)
    if head != PARQUET_MAGIC or tail != PARQUET_MAGIC:
        raise UnfinishedError(
            f"{path} is cut short ({path.stat().st_size:,} bytes, no parquet footer): the "
            "recording was killed before LeRobotDataset.finalize(), or a copy is incomplete. "
            "Record or copy it again"
        )


def _not_a_dataset(root: Path) -> str:
    if root.is_file():
        message = f"{root} is a file; a LeRobot dataset is a folder with meta/, data/ and videos/"
        return f"{message}. {_import_first(root)}" if root.suffix in HDF5 else message
    entries = sorted(p.name for p in root.iterdir())
    if not entries:
        return f"{root} is an empty folder; a LeRobot dataset has a meta/info.json"
    message = f"{root} is not a LeRobot dataset: it has no meta/info.json"
    if (root.parent / "meta" / "info.json").is_file():
        return f"{message}, but the folder above has one. Did you mean {str(root.parent)!r}?"
    inner = [name for name in entries if (root / name / "meta" / "info.json").is_file()]
    if inner:
        return f"{message}, but it contains datasets: {', '.join(inner)}. Name one, or a list"
    if any(root.glob("*.h5")) or any(root.glob("*.hdf5")):
        return f"{message}, but HDF5 files. {_import_first(root)}"
    return f"{message}; it holds {', '.join(entries[:8])}{', ...' if len(entries) > 8 else ''}"


def _import_first(source: Path) -> str:
    command = f"python -m scripts.import_hdf5 source={shlex.quote(str(source))} fps=RATE out=DIR"
    return f'Make a dataset of them first: {command} task="..."'


def _wrong_version(root: Path, version: str) -> str:
    message = f"{root} is in LeRobot's format {version}; v3.0 is needed."
    if not version.startswith("v2."):
        return f"{message} It was written by another LeRobot than this project knows"
    folder = root.resolve()  # the converter names its copies after the folder
    name, path = shlex.quote(folder.name), shlex.quote(str(folder))
    command = (
        f"python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={name} --root={path} "
        "--push-to-hub=false"
    )
    kept = folder.with_name(f"{folder.name}_old")
    if kept.exists():
        # The converter would take that for the original, and delete the folder that was named.
        command = f"mv {shlex.quote(str(kept))} SOMEWHERE_ELSE && {command}"
    step = f"{command} (in place; what is there now is kept as {kept.name})"
    if version == "v2.1":
        return f"{message} Convert it: {step}"
    return (
        f"{message} Two steps lead there: the LeRobot of its time (pip install lerobot==0.3.3) "
        "makes v2.1 of it, from the hub only (python -m "
        f"lerobot.datasets.v21.convert_dataset_v20_to_v21 --repo-id=OWNER/{name}); then {step}"
    )


def _download(hub_id: str) -> Path:
    """Fetch a dataset from the hub into LeRobot's own cache, or find it there when offline."""
    # Imported here: it takes seconds, and local datasets do not need it.
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from lerobot.datasets.dataset_metadata import CODEBASE_VERSION
    from lerobot.datasets.utils import CompatibilityError, get_safe_version
    from lerobot.utils.constants import HF_LEROBOT_HOME, HF_LEROBOT_HUB_CACHE

    if (HF_LEROBOT_HOME / hub_id / "meta" / "info.json").is_file():
        return HF_LEROBOT_HOME / hub_id

    def fetch(revision: str, *, local: bool) -> Path:
        return Path(
            snapshot_download(
                hub_id,
                repo_type="dataset",
                revision=revision,
                cache_dir=HF_LEROBOT_HUB_CACHE,
                local_files_only=local,
            )
        )

    try:
        return fetch(get_safe_version(hub_id, CODEBASE_VERSION), local=False)
    except CompatibilityError as error:
        raise VersionError(f"{hub_id} (from the hub): {error}") from error
    except (OSError, RuntimeError, HfHubHTTPError, httpx.HTTPError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        try:
            path = fetch(CODEBASE_VERSION, local=True)
        except LocalEntryNotFoundError:
            raise HubError(
                f"there is no folder {hub_id!r} here, so it was taken for a dataset of the hub, "
                f"which could not be fetched ({reason}). Check the name and the connection, or "
                "give the path of a local dataset"
            ) from error
        log.warning("could not ask the hub for %s (%s); using the copy in %s", hub_id, reason, path)
        return path
