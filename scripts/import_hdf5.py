"""Turn HDF5 demonstrations (robomimic's or ALOHA's layout) into a LeRobot v3.0 dataset.

``python -m scripts.import_hdf5 source=FILE fps=20 task="lift the cube" out=DIR``

All episodes are checked before anything is written. States and actions are taken over as they are
(as float32), pictures without loss. Interrupted (Ctrl-C, SIGTERM, SIGKILL), the same command goes
on where it stopped. Ctrl-C and SIGTERM keep every finished episode, SIGKILL all but those since the
last commit. The source is only read.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from envs.dataset import SOURCE, DatasetWriter
from worldmodel.data import DatasetError
from worldmodel.data.hdf5 import (
    Choice,
    Demonstration,
    Demonstrations,
    fingerprint,
    open_demonstrations,
)

from ._cli import refuse_unknown_keys
from ._importing import require_given, require_same_beginning, run_import
from ._signals import deferred_signals

Progress = Callable[[str, int, int], None]
"""Called with what is counted ("files checked" or "frames"), how many are done, and of how many."""

_COMMIT_BYTES = 1 << 30
"""Decoded pictures after which a commit comes early."""


@dataclass
class ImportConfig:
    """What to import, and as what.

    Attributes:
        source: a file, a folder of files, or a pattern with ``*``.
        layout: "robomimic", "aloha" or "auto".
        fps: frames and actions per second of the recording.
        task: the task as a sentence; null takes those in the files (LIBERO and RoboCasa).
        out: the dataset's folder.
        state: observations that make up the state, in order; null: joints, hand and gripper.
        action: datasets that make up the action, in order; null: the layout's.
        cameras: in order; null is all, [] none.
        mask: take only the episodes of this mask (robomimic's filter key), such as "train".
        skip: names of episodes (or of files) to leave out.
        only_successful: leave out episodes in which the task is never solved.
        episodes: import the first so many; null: all.
        jpeg_channels: how the arrays were ordered that OpenCV compressed: "rgb" (ALOHA's recorder;
            ordinary viewers show such files with red and blue swapped) or "bgr".
        crf: of the video encoder: 0 is lossless, 18 looks so and is several times smaller.
        commit_every: episodes per file; a SIGKILL loses at most these.
    """

    source: str = MISSING
    layout: str = "auto"
    fps: int = MISSING
    task: str | None = None
    out: str = MISSING
    state: list[str] | None = None
    action: list[str] | None = None
    cameras: list[str] | None = None
    mask: str | None = None
    skip: list[str] = field(default_factory=list)
    only_successful: bool = False
    episodes: int | None = None
    jpeg_channels: str = "rgb"
    crf: int = 0
    commit_every: int = 20


ConfigStore.instance().store("import_hdf5_schema", ImportConfig)


@dataclass
class ImportResult:
    """What an import came to.

    Attributes:
        demonstrations: what was found.
        root: the dataset's folder.
        episodes, frames: in the dataset.
        imported: episodes added by this call.
        seconds: it took.
    """

    demonstrations: Demonstrations
    root: Path
    episodes: int
    frames: int
    imported: int
    seconds: float


def import_hdf5(config: ImportConfig, progress: Progress | None = None) -> ImportResult:
    """Import until the dataset holds all episodes that the configuration asks for.

    Raises:
        KeyboardInterrupt: at Ctrl-C, after what is finished has been committed.
        DatasetError: what is wrong with the files, and how to mend it.
        ValueError, FileExistsError: see `envs.dataset.DatasetWriter`.
        OSError: the disk is full, or fails; what was committed before stays.
    """
    report = progress or (lambda what, done, total: None)
    _check(config)
    start = time.perf_counter()
    demonstrations = open_demonstrations(
        config.source,
        Choice(
            layout=config.layout,
            state=config.state,
            action=config.action,
            cameras=config.cameras,
            mask=config.mask,
            skip=config.skip,
            only_successful=config.only_successful,
            jpeg_channels=config.jpeg_channels,
        ),
        lambda done, total: report("files checked", done, total),
    )
    episodes = demonstrations.episodes[: config.episodes]
    tasks = [_task(config, episode) for episode in episodes]
    kind = demonstrations.meaning.kind
    writer = DatasetWriter(
        Path(config.out),
        fps=config.fps,
        cameras=list(demonstrations.images),
        image_size=demonstrations.sizes,
        state_names=demonstrations.state_names,
        action_names=demonstrations.meaning.names,
        task=tasks[0],
        robot_type=demonstrations.facts.get("robot_type", ""),
        source=_source(config, demonstrations),
        action_kind=None if kind == "unknown" else kind,
        crf=config.crf,
    )
    before = writer.total_episodes
    require_same_beginning(writer, [e.name for e in episodes])
    lengths = [episode.length for episode in episodes]
    cameras = max(1, len(demonstrations.images))
    done, total = cameras * sum(lengths[:before]), cameras * sum(lengths)
    report("frames", done, total)

    def counted(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal done
        for frame in frames:
            yield frame
            done += 1
            report("frames", done, total)

    pixels = sum(height * width for height, width in demonstrations.sizes.values())
    waiting = 0
    with deferred_signals() as received:
        try:
            for number in range(before, len(episodes)):
                if received:
                    break
                episode = episodes[number]
                state, action = demonstrations.vectors(episode)
                success = episode.success
                writer.append(
                    {c: counted(demonstrations.frames(episode, c)) for c in demonstrations.images},
                    state,
                    action,
                    success=success,
                    task=tasks[number],
                    attempt=number,
                    record={"name": episode.name}
                    | ({} if success is None else {"success": bool(success.any())}),
                )
                if not demonstrations.images:
                    done += episode.length
                    report("frames", done, total)
                waiting += 3 * pixels * episode.length
                if (number + 1) % config.commit_every == 0 or waiting > _COMMIT_BYTES:
                    writer.commit()
                    waiting = 0
        finally:
            writer.commit()
    return ImportResult(
        demonstrations=demonstrations,
        root=writer.root,
        episodes=writer.total_episodes,
        frames=writer.total_frames,
        imported=writer.total_episodes - before,
        seconds=time.perf_counter() - start,
    )


def _check(config: ImportConfig) -> None:
    for name in ("fps", "commit_every", "episodes"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 <= config.crf <= 51:
        raise ValueError(f"crf is {config.crf}; it is 0 (lossless) to 51 (worst)")
    root = Path(config.out)
    # The writer would say so too, but after all files have been looked at.
    if root.is_file() or (root.is_dir() and any(root.iterdir()) and not (root / SOURCE).is_file()):
        raise FileExistsError(
            f"{root} exists and is no import that could be resumed; choose another out="
        )


def _task(config: ImportConfig, episode: Demonstration) -> str:
    task = config.task or episode.task
    if not task:
        raise DatasetError(
            f'{episode.path} does not say what {episode.name} is about; say task="..." as a '
            "sentence: the model is told it"
        )
    return task


def _source(config: ImportConfig, demonstrations: Demonstrations) -> dict[str, Any]:
    """What an import depends on: one that was begun goes on only with the same."""
    return {
        "imported_from": demonstrations.layout.name,
        "files": [path.name for path in demonstrations.files],
        "fingerprint": fingerprint(demonstrations.files),
        "fps": config.fps,
        "task": config.task,
        "state": list(demonstrations.state),
        "action": list(demonstrations.action),
        "cameras": demonstrations.images,
        "jpeg_channels": demonstrations.jpeg_channels,
        "crf": config.crf,
        "facts": demonstrations.facts,
    }


@hydra.main(version_base=None, config_path="../configs", config_name="import_hdf5")
def run(values: DictConfig) -> None:
    """Import, with a progress bar."""
    missing = {
        "source": "say what to import, as in source=demo.hdf5",
        "out": "say where the dataset goes, as in out=outputs/imported",
        "fps": "say how many actions a second were recorded, as in fps=20: robomimic and LIBERO "
        "record at 20, ALOHA at 50",
    }
    require_given(values, missing)
    config: ImportConfig = OmegaConf.to_object(values)  # type: ignore[assignment]
    run_import(
        lambda show: import_hdf5(config, show), config.out, lambda result: summary(config, result)
    )


def summary(config: ImportConfig, result: ImportResult) -> list[str]:
    """What is in the dataset now, and what to do with it."""
    found = result.demonstrations
    pictures = [f"{name} {width}x{height}" for name, (height, width) in found.sizes.items()]
    kind = found.meaning.kind
    if kind == "unknown":
        kind += "; training looks for targets by name, data.action_kind=delta says otherwise"
    lines = [
        f"{result.root}: {result.episodes} of {found.total} episodes, {result.frames} frames; "
        f"{result.imported} new in {result.seconds:.1f} s",
        f"  layout   {found.layout.name} {json.dumps(found.facts)}",
        f"  cameras  {', '.join(pictures) or 'none'}",
        f"  state    {len(found.state_names)}: {', '.join(found.state)}",
        f"  action   {len(found.meaning.names)}: {', '.join(found.action)}; {kind} "
        f"({found.meaning.reason})",
    ]
    told = [e.success for e in found.episodes[: result.episodes] if e.success is not None]
    solved = f"{sum(bool(s.any()) for s in told)} of {len(told)} episodes"
    lines.append(f"  success  {solved if told else 'the files do not tell'}")
    if found.unused:
        lines.append(f"  left out {', '.join(_by_group(found))}")
    if found.rate not in (None, config.fps):
        lines.append(f"  NOTE     the files say {found.rate:g} actions a second, fps={config.fps}")
    lines.append(f"Train on it: python -m scripts.train data.root={result.root} out=RUN")
    return lines


def _by_group(found: Demonstrations) -> list[str]:
    """What is not taken over, a group of which nothing is as one: ``next_obs/``."""
    taken = [*found.state, *found.action, *found.images.values()]
    used = {key.partition("/")[0] for key in taken}
    tops = {key: key.partition("/")[0] for key in found.unused}
    shown = [key if tops[key] in used or "/" not in key else f"{tops[key]}/" for key in tops]
    return list(dict.fromkeys(shown))


def main() -> None:
    refuse_unknown_keys(ImportConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
