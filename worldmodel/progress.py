"""How a training run goes, on one line: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

LINE_EVERY = 10.0  # seconds between two lines where there is no terminal


class TrainProgress:
    """Shows share done, step, loss, windows per second and time left; a context manager.

    Args:
        console: where to; None shows nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console or Console(quiet=True)
        self.loss = math.nan
        self._printed = time.monotonic()
        # Twice a second: drawing takes time from the training, which may have one core only.
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            expand=True,
            refresh_per_second=2,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=1.0, note="")

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, share: float, step: int, rate: float, left: float) -> None:
        """Show `share` in [0, 1] of the run, `rate` in windows per second, `left` in seconds."""
        loss = "" if math.isnan(self.loss) else f"  loss {self.loss:.3f}"
        note = f"step {step}{loss}  {rate:.0f} windows/s  {clock(left)} left"
        self._bar.update(self._task, completed=share, note=note)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self._printed >= LINE_EVERY or share >= 1):
            self._printed = now
            line = f"train {100 * share:3.0f}%  {note}"
            self.console.print(line, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Hours (where there are any), minutes and seconds: ``3:07``, ``2:03:07``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
