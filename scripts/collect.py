"""Collect demonstrations of a scripted expert as a LeRobot v3.0 dataset.

``python -m scripts.collect env=reach_around episodes=1000 seed=0 out=DIR``

Attempt number i depends on the seed and on i alone, and attempts enter the dataset in order: the
result is the same with any number of workers, and interrupted (Ctrl-C, SIGTERM, SIGKILL) and
resumed by the same command, the same again. Ctrl-C and SIGTERM keep every finished episode, SIGKILL
all but those since the last commit.

``exploration=0.4`` makes four of ten episodes something else than demonstrations (see
`envs.exploration`), for world models: they show what unusual actions do. They are marked as such.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import numpy as np
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

import envs
from envs.base import ArmEnv
from envs.rendering import RenderingUnavailableError

from ._cli import refuse_unknown_keys
from ._signals import deferred_signals

if TYPE_CHECKING:
    from envs.recording import Episode
    from envs.world import World

Progress = Callable[[int, int], None]
"""Called with the number of episodes in the dataset and the number wanted."""

_MAX_FAILURES_IN_A_ROW = 100


@dataclass
class CollectConfig:
    """What to collect.

    Attributes:
        env: short name or Gymnasium id.
        options: of the environment (a mapping), such as {target: hard}; kept with the dataset, so
            that `scripts.evaluate` makes the same world.
        episodes: wanted in the dataset, those already there included: successful ones, and those
            that explore.
        seed: of the whole collection.
        out: the dataset's folder.
        image_size: pixels: a number, or [height, width].
        cameras: of the environment; [] for none, null for those it has by default.
        workers: simulating processes; 0 simulates in this one.
        commit_every: episodes per file; a SIGKILL loses at most these.
        exploration: share of episodes that are exploratory, from 0 up to below 1. Above 0, failed
            attempts of the expert are kept too, frames have a feature ``demonstration`` (whether
            actions are to be imitated) and records of episodes a column ``kind``.
    """

    env: str = "reach_around"
    options: Any = None
    episodes: int = 1000
    seed: int = 0
    out: str = MISSING
    image_size: Any = 96
    cameras: list[str] | None = None
    workers: int = 2
    commit_every: int = 20
    exploration: float = 0.0


ConfigStore.instance().store("collect_schema", CollectConfig)


@dataclass
class CollectResult:
    """What a collection came to.

    Attributes:
        root: the dataset's folder.
        episodes, frames: in the dataset.
        attempts: episodes tried for them.
        exploratory: episodes that are no demonstrations.
        explored_successes: of these, those that ended solved.
        collected: episodes added by this call.
        seconds: it took.
    """

    root: Path
    episodes: int
    frames: int
    attempts: int
    exploratory: int
    explored_successes: int
    collected: int
    seconds: float


def collect(config: CollectConfig, progress: Progress | None = None) -> CollectResult:
    """Collect until the dataset holds ``config.episodes`` episodes.

    Raises:
        KeyboardInterrupt: at Ctrl-C, after what is finished has been committed.
        ValueError, FileExistsError: see `envs.dataset.DatasetWriter` and `envs.make`.
        OSError: the disk is full, or fails; what was committed before stays.
        RuntimeError: the expert keeps failing.
    """
    from envs.dataset import DatasetWriter  # not for the workers, which import this module too

    if config.episodes < 1 or config.commit_every < 1 or config.workers < 0:
        raise ValueError(
            "episodes and commit_every are at least 1, workers at least 0; found "
            f"episodes={config.episodes}, commit_every={config.commit_every}, "
            f"workers={config.workers}"
        )
    if not 0 <= config.exploration < 1:
        raise ValueError(
            f"exploration is {config.exploration}; expected a share of the episodes, at least 0 "
            "and below 1 (exploration=0.4)"
        )
    start = time.perf_counter()
    env = _make_env(config)
    env.make_expert(0)  # or the error that there is none, before a folder is made
    if config.exploration and not isinstance(env, ArmEnv):
        raise ValueError(
            f"{config.env} cannot be explored: exploration works in tasks of our own arm "
            f"({', '.join(envs.names())}); exploration=0 collects what the expert does"
        )
    writer = DatasetWriter(
        Path(config.out),
        fps=env.metadata["render_fps"],
        cameras=env.cameras,
        image_size=env.image_size,
        state_names=env.state_names,
        action_names=env.action_names,
        task=env.task_description,
        robot_type=env.robot_type,
        action_kind=env.action_kind,
        source={
            "env": envs.find(config.env).gym_id,
            "seed": config.seed,
            "image_size": list(env.image_size),
            "cameras": list(env.cameras),
            "options": dict(config.options or {}),
        }
        | ({"exploration": config.exploration} if config.exploration else {}),
    )
    env.close()
    done = before = writer.total_episodes
    report = progress or (lambda done, total: None)
    report(done, config.episodes)
    failures = 0
    with (
        deferred_signals() as received,
        contextlib.closing(_attempts(config, writer.next_attempt)) as attempts,
    ):
        try:
            while done < config.episodes and not received:
                attempt, episode = next(attempts)
                if episode.success[-1] or config.exploration:
                    writer.add(episode, attempt)
                    done += 1
                    report(done, config.episodes)
                    if done % config.commit_every == 0:
                        writer.commit()
                if explores(config.exploration, attempt):
                    continue
                failures = 0 if episode.success[-1] else failures + 1
                if failures == _MAX_FAILURES_IN_A_ROW:
                    raise RuntimeError(
                        f"the expert of {config.env} failed {failures} times in a row, the last "
                        f"time in attempt {attempt} (seed {episode.seed})"
                    )
        finally:
            writer.commit()
    exploratory, explored_successes = _exploratory(writer.root) if config.exploration else (0, 0)
    return CollectResult(
        root=writer.root,
        episodes=writer.total_episodes,
        frames=writer.total_frames,
        attempts=writer.next_attempt,
        exploratory=exploratory,
        explored_successes=explored_successes,
        collected=writer.total_episodes - before,
        seconds=time.perf_counter() - start,
    )


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of one attempt: 32 bits of a hash of both, so that no two collections overlap."""
    return int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0])


def explores(exploration: float, attempt: int) -> bool:
    """Whether an attempt is exploratory: evenly interleaved, a share of `exploration` of them."""
    return math.floor((attempt + 1) * exploration) > math.floor(attempt * exploration)


def _exploratory(root: Path) -> tuple[int, int]:
    """How many episodes of a dataset are no demonstrations, and how many of these ended solved."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    no_demonstration = ~pc.field("demonstration") & pc.field("next.done")
    ends = pq.read_table(root / "data", columns=["next.success"], filters=no_demonstration)
    return len(ends), pc.sum(ends["next.success"]).as_py() or 0


def _make_env(config: CollectConfig) -> World:
    options = dict(config.options or {})
    if own := sorted(options.keys() & {"image_size", "cameras"}):
        raise ValueError(f"options holds {own}, which are settings of their own: {own[0]}=...")
    if config.cameras is not None:
        options["cameras"] = tuple(config.cameras)
    try:
        env = envs.make(
            config.env, image_size=config.image_size, disable_env_checker=True, **options
        )
    except TypeError as error:
        raise ValueError(f"environment {config.env} refuses options {options}: {error}") from error
    return env.unwrapped  # type: ignore[return-value]


def _attempts(config: CollectConfig, first: int) -> Generator[tuple[int, Episode], None, None]:
    """All attempts from `first` on, in order, without end; simulated by the workers, if any."""
    if config.workers == 0:
        attempt = first
        _start_worker(config, in_worker=False)
        try:
            while True:
                yield attempt, _run_attempt(config, attempt)
                attempt += 1
        finally:
            _worker_env.close()

    pool = ProcessPoolExecutor(
        config.workers,
        # A fork would copy threads and OpenGL's state, which then hangs.
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=partial(_start_worker, config),
    )
    try:
        attempt = first
        running: deque[Future[Episode]] = deque()
        while True:
            while len(running) < 3 * config.workers:
                running.append(pool.submit(_run_attempt, config, attempt + len(running)))
            try:
                episode = running.popleft().result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "a simulating process ended unexpectedly (out of memory, or killed); "
                    "the same command goes on where this one stopped"
                ) from error
            yield attempt, episode
            attempt += 1
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# What a worker process holds.
_worker_env: World


def _start_worker(config: CollectConfig, in_worker: bool = True) -> None:
    global _worker_env
    _worker_env = _make_env(config)
    if in_worker:
        # Ctrl-C reaches the whole process group: the parent decides when to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent is killed, which no one else would tell it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_attempt(config: CollectConfig, attempt: int) -> Episode:
    from envs.recording import record

    seed = attempt_seed(config.seed, attempt)
    if explores(config.exploration, attempt):
        from envs.exploration import Explorer

        explorer = Explorer(_worker_env, seed)  # type: ignore[arg-type]
        return replace(record(_worker_env, seed, explorer), kind=explorer.kind)
    episode = record(_worker_env, seed)
    if config.exploration:
        episode = replace(episode, kind="expert" if episode.success[-1] else "failure")
    return episode


@hydra.main(version_base=None, config_path="../configs", config_name="collect")
def run(values: DictConfig) -> None:
    """Collect, with a progress bar."""
    if OmegaConf.is_missing(values, "out"):
        raise SystemExit("out is missing: say where the dataset goes, as in out=outputs/data")
    config: CollectConfig = OmegaConf.to_object(values)  # type: ignore[assignment]
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    # SIGTERM ends like Ctrl-C: what is finished is committed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    columns = (
        TextColumn("collecting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task("", total=config.episodes)

    def show(done: int, total: int) -> None:
        bar.start()  # not before there is something to show: an error may come first
        bar.update(task, completed=done)

    try:
        result = collect(config, show)
    except KeyboardInterrupt:
        bar.stop()
        console.print(f"Stopped. {config.out} holds what is finished; the same command goes on.")
        raise SystemExit(130) from None
    except (ValueError, OSError, RenderingUnavailableError) as error:
        raise SystemExit(str(error)) from None
    finally:
        bar.stop()
    rate = 60 * result.collected / result.seconds
    if config.exploration:
        outcome = (
            f"{result.exploratory} of them exploratory, of which {result.explored_successes} ended "
            "in success. "
        )
    else:
        outcome = f"the expert succeeded in {result.episodes} of {result.attempts} attempts. "
    console.print(
        f"{result.root}: {result.episodes} episodes, {result.frames} frames; {outcome}"
        f"{result.collected} new in {result.seconds:.1f} s ({rate:.0f} a minute)."
    )


def main() -> None:
    refuse_unknown_keys(CollectConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
