"""What importing scripts share: a bar, interruptions that keep what is finished, resuming."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Mapping, Sequence

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from envs.dataset import DatasetWriter

Show = Callable[[str, int, int], None]
"""Called with what is being imported, and how many of how many episodes are done."""


def require_given(values: DictConfig, hints: Mapping[str, str]) -> None:
    """End with a hint where a value is missing that only the user can say."""
    for name, hint in hints.items():
        if OmegaConf.is_missing(values, name):
            raise SystemExit(f"{name} is missing: {hint}")


def run_import[R](work: Callable[[Show], R], out: str, lines: Callable[[R], list[str]]) -> None:
    """Import under a progress bar, and say what came of it.

    Ctrl-C and SIGTERM keep what is finished; an error ends with its message.

    Args:
        work: the import.
        out: where the dataset goes.
        lines: what is said of the result.
    """
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
        TextColumn("importing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task("")

    def show(what: str, done: int, total: int) -> None:
        bar.start()  # not before there is something to show: an error may come first
        bar.update(task, description=what, completed=done, total=total)

    try:
        result = work(show)
    except KeyboardInterrupt:
        bar.stop()
        console.print(f"Stopped. {out} holds what is finished; the same command goes on.")
        raise SystemExit(130) from None
    except ValueError as error:
        bar.stop()
        raise SystemExit(str(error)) from None
    except OSError as error:
        bar.stop()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = ". Make space, and the same command goes on; crf=18 needs several times less"
        hint = f"{hint} (with another out=)" if full else ""
        raise SystemExit(f"{error}{hint}") from None
    finally:
        bar.stop()
    for line in lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def require_same_beginning(writer: DatasetWriter, wanted: Sequence[str]) -> None:
    """Refuse to go on with other episodes than those that were begun with.

    So what selects episodes may change as long as what is there stays right: a damaged episode that
    is found in the middle can be skipped.

    Args:
        wanted: names of the episodes.
    """
    if not writer.total_episodes:
        return
    committed = [("episode_index", "<", writer.total_episodes)]
    columns = ["episode_index", "name"]
    table = pq.read_table(writer.root / "meta/episodes", columns=columns, filters=committed)
    there = table.sort_by("episode_index")["name"].to_pylist()
    if there != list(wanted[: len(there)]):
        first = next(i for i, name in enumerate(there) if list(wanted[i : i + 1]) != [name])
        instead = f"{wanted[first]} is" if first < len(wanted) else "nothing more is"
        raise ValueError(
            f"{writer.root} holds {len(there)} episodes, and number {first} is {there[first]}, "
            f"where {instead} wanted now; choose another out="
        )
