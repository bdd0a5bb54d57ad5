"""Turn recordings of ROS (MCAP, .bag, .db3; ROS 1 and 2) into a LeRobot v3.0 dataset.

``python -m scripts.import_bag source=DIR robot=ur5e fps=20 task="lift the cube" out=DIR``

Runs that `scripts.deploy` recorded say the rest themselves: ``source=RUN out=DIR``. Frames hold
what was newest at each moment, as a policy sees it that is deployed; where a topic was silent for
too long, one episode ends and another begins. All recordings are looked through before anything is
written. Interrupted (Ctrl-C, SIGTERM, SIGKILL), the same command goes on where it stopped. The
recordings are only read.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from envs.dataset import SOURCE, DatasetWriter
from envs.ros.bags import files_of
from envs.ros.episodes import BagEpisodes, Choice, open_episodes
from envs.ros.frames import Ages
from envs.ros.robot import RobotConfig, checked
from worldmodel.data.hdf5 import fingerprint

from ._cli import refuse_unknown_keys
from ._importing import require_given, require_same_beginning, run_import
from ._signals import deferred_signals

Progress = Callable[[str, int, int], None]
"""Called with what is counted ("recordings read" or "frames"), how many are done, of how many."""

_COMMIT_BYTES = 1 << 30
"""Decoded pictures after which a commit comes early."""


@dataclass
class ImportConfig:
    """What to import, and as what.

    Attributes:
        source: a recording (file or folder), a folder of recordings, or a pattern with ``*``.
        robot: topics, joints and cameras; see ``configs/robot``.
        out: the dataset's folder.
        fps: frames and actions per second of the dataset; null: a run's own.
        task: the task as a sentence; null: a run's own.
        joints: names in ROS, in order; null: the robot's, else those of the first message.
        joint_states: topic; null: the robot's, else the only one.
        cameras: camera -> topic; null: the robot's, else all pictures; {} none.
        action: "command": what the command topics asked for by the next frame; "next_state": where
            the joints are in the next frame; "auto": commands where there are some.
        command: topics of commands (JointTrajectory, Float64MultiArray, or a leader's JointState);
            null: the robot's.
        command_joints: what commands call the joints, in order; null: the same.
        clock: "log" takes the time at which messages were recorded, "header" their own stamps.
        ages: seconds that values may be old.
        gaps: "split" makes episodes of what is between gaps, "error" refuses recordings with gaps.
        min_seconds: shorter stretches are left out.
        skip: recordings or episodes to leave out, by name.
        episodes: import the first so many; null: all.
        crf: of the video encoder: 0 is lossless, 18 looks so and is several times smaller.
        commit_every: episodes per file; a SIGKILL loses at most these.
    """

    source: str = MISSING
    robot: RobotConfig = field(default_factory=RobotConfig)
    out: str = MISSING
    fps: int | None = None
    task: str | None = None
    joints: list[str] | None = None
    joint_states: str | None = None
    cameras: dict[str, str] | None = None
    action: str = "auto"
    command: list[str] | None = None
    command_joints: list[str] | None = None
    clock: str = "log"
    ages: Ages = field(default_factory=Ages)
    gaps: str = "split"
    min_seconds: float = 1.0
    skip: list[str] = field(default_factory=list)
    episodes: int | None = None
    crf: int = 0
    commit_every: int = 20


ConfigStore.instance().store("import_bag_schema", ImportConfig)


@dataclass
class ImportResult:
    """What an import came to.

    Attributes:
        found: the episodes.
        root: the dataset's folder.
        episodes, frames: in the dataset.
        imported: episodes added by this call.
        seconds: it took.
    """

    found: BagEpisodes
    root: Path
    episodes: int
    frames: int
    imported: int
    seconds: float


def import_bag(config: ImportConfig, progress: Progress | None = None) -> ImportResult:
    """Import until the dataset holds all episodes that the configuration asks for.

    Raises:
        KeyboardInterrupt: at Ctrl-C, after what is finished has been committed.
        ValueError: what is wrong with the recordings (`envs.ros.bags.BagError`), the robot or the
            configuration, and how to mend it.
        FileExistsError: `out` holds something else.
        OSError: the disk is full, or fails; what was committed before stays.
    """
    report = progress or (lambda what, done, total: None)
    _check(config)
    start = time.perf_counter()
    found = open_episodes(
        config.source,
        Choice(
            robot=config.robot,
            joints=config.joints,
            joint_states=config.joint_states,
            cameras=config.cameras,
            action=config.action,
            command=config.command,
            command_joints=config.command_joints,
            fps=config.fps,
            task=config.task,
            clock=config.clock,
            ages=config.ages,
            gaps=config.gaps,
            min_seconds=config.min_seconds,
            skip=config.skip,
        ),
        lambda done, total: report("recordings read", done, total),
    )
    episodes = found.episodes[: config.episodes]
    meaning = found.meaning
    writer = DatasetWriter(
        Path(config.out),
        fps=meaning.fps,
        cameras=list(meaning.cameras),
        image_size=dict(found.sizes),
        state_names=meaning.features,
        action_names=meaning.features,
        task=meaning.task,
        robot_type=meaning.robot_type,
        source=_source(config, found),
        action_kind="absolute",
        crf=config.crf,
    )
    before = writer.total_episodes
    require_same_beginning(writer, [e.name for e in episodes])
    lengths = [len(episode) for episode in episodes]
    cameras = max(1, len(meaning.cameras))
    done, total = cameras * sum(lengths[:before]), cameras * sum(lengths)
    report("frames", done, total)

    def counted(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal done
        for frame in frames:
            yield frame
            done += 1
            report("frames", done, total)

    pixels = sum(height * width for height, width in found.sizes.values())
    waiting = 0
    with deferred_signals() as received:
        try:
            for number in range(before, len(episodes)):
                if received:
                    break
                episode = episodes[number]
                writer.append(
                    {c: counted(found.frames(episode, c)) for c in meaning.cameras},
                    episode.segment.state,
                    episode.segment.action,
                    task=episode.task,
                    attempt=number,
                    record={"name": episode.name, "began": int(episode.segment.times[0])},
                )
                if not meaning.cameras:
                    done += len(episode)
                    report("frames", done, total)
                waiting += 3 * pixels * len(episode)
                if (number + 1) % config.commit_every == 0 or waiting > _COMMIT_BYTES:
                    writer.commit()
                    waiting = 0
        finally:
            writer.commit()
    return ImportResult(
        found=found,
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
    if config.min_seconds < 0:
        raise ValueError(f"min_seconds is {config.min_seconds}; it must be at least 0")
    if not 0 <= config.crf <= 51:
        raise ValueError(f"crf is {config.crf}; it is 0 (lossless) to 51 (worst)")
    if config.robot.joints:
        checked(config.robot)
    root = Path(config.out)
    # The writer would say so too, but after all recordings have been looked through.
    if root.is_file() or (root.is_dir() and any(root.iterdir()) and not (root / SOURCE).is_file()):
        raise FileExistsError(
            f"{root} exists and is no import that could be resumed; choose another out="
        )


def _source(config: ImportConfig, found: BagEpisodes) -> dict[str, Any]:
    """What an import depends on: one that was begun goes on only with the same."""
    meaning = found.meaning
    files = list(chain.from_iterable(files_of(bag) for bag in found.bags))
    return {
        "imported_from": "ros",
        "files": [path.name for path in files],
        "fingerprint": fingerprint(files),
        "fps": meaning.fps,
        "task": config.task,
        "joints": list(meaning.joints),
        "joint_states": meaning.joint_states,
        "cameras": {name: dataclasses.asdict(c) for name, c in meaning.cameras.items()},
        "command": list(meaning.command),
        "command_joints": list(meaning.command_joints),
        "clock": config.clock,
        "ages": dataclasses.asdict(config.ages),
        "min_seconds": config.min_seconds,
        "crf": config.crf,
    }


@hydra.main(version_base=None, config_path="../configs", config_name="import_bag")
def run(values: DictConfig) -> None:
    """Import, with a progress bar."""
    missing = {
        "source": "say what to import, as in source=recordings/",
        "out": "say where the dataset goes, as in out=outputs/imported",
    }
    require_given(values, missing)
    try:
        config: ImportConfig = OmegaConf.to_object(values)  # type: ignore[assignment]
    except ValueError as error:  # ages that mean nothing
        raise SystemExit(str(error)) from None
    run_import(lambda show: import_bag(config, show), config.out, summary)


def summary(result: ImportResult) -> list[str]:
    """What is in the dataset now, and what to do with it."""
    found, meaning = result.found, result.found.meaning
    sizes = found.sizes
    pictures = [
        f"{name} {sizes[name][1]}x{sizes[name][0]} ({camera.topic})"
        for name, camera in meaning.cameras.items()
    ]
    lines = [
        f"{result.root}: {result.episodes} episodes of {len(found.bags)} recordings, "
        f"{result.frames} frames at {meaning.fps} a second; {result.imported} new in "
        f"{result.seconds:.1f} s",
        f"  joints   {len(meaning.joints)}: {', '.join(meaning.joints)} ({meaning.joint_states})",
        f"  action   {', '.join(meaning.command) or 'next state'} ({meaning.why})",
        f"  cameras  {', '.join(pictures) or 'none'}",
        "  success  recordings do not tell",
    ]
    if found.following:
        lines.append(f"  NOTE     nobody commands {', '.join(found.following)}: next state")
    for name, gaps in found.gaps.items():
        if gaps:
            more = f" ({len(gaps)} gaps)" if len(gaps) > 1 else ""
            lines.append(f"  gap      {name}: {gaps[0]}{more}")
    if found.short:
        lines.append(f"  left out {found.short} stretches for being short (min_seconds)")
    if found.unfinished:
        lines.append(f"  NOTE     never finished, read to where it ends: {found.unfinished}")
    lines.append(f"Train on it: python -m scripts.train data.root={result.root} out=RUN")
    return lines


def main() -> None:
    refuse_unknown_keys(ImportConfig, sys.argv[1:], groups=("robot",))
    run()


if __name__ == "__main__":
    main()
