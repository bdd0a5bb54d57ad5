"""What a run writes down beside its checkpoints: ``metrics.jsonl``, ``timing.jsonl``, wandb."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .optimize import FitConfig


def keep_lines(path: Path, step: int) -> None:
    """Drop lines of a JSONL file that a killed run wrote after its last checkpoint, at `step`."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # a line cut off by the kill
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
    temporary = path.with_name(path.name + ".new")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


class Record:
    """What a run writes into its folder while it trains, resumable to the byte.

    Args:
        out: the run's folder.
        config: says whether wandb gets the lines too.
        step: of the checkpoint that the run goes on from; later lines are dropped. 0: none.
        pending: name -> sum and count since the last line, as a checkpoint stored them; it is
            kept up to date for the next one.
    """

    def __init__(
        self, out: Path, config: FitConfig, step: int, pending: dict[str, list[float]]
    ) -> None:
        self.metrics, self.timing = out / "metrics.jsonl", out / "timing.jsonl"
        self.pending = pending
        for path in (self.metrics, self.timing):
            keep_lines(path, step)
        self._wandb = start_wandb(config, out, resumed=step > 0)

    def add(self, logs: Mapping[str, Tensor | float]) -> None:
        """Take values into the means of the next line."""
        for key, value in logs.items():
            entry = self.pending.setdefault(key, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += 1

    def flush(self, step: int, timing: Mapping[str, float], **more: float) -> dict[str, float]:
        """Write the line of means, with `more`, and start afresh.

        Args:
            timing: what depends on the clock, for ``timing.jsonl``.
        """
        means = {k: s / n for k, (s, n) in sorted(self.pending.items())}
        line = {"step": step} | means | more
        append_line(self.metrics, line)
        append_line(self.timing, {"step": step, **timing})
        self.pending.clear()
        if self._wandb:
            self._wandb.log({**line, **timing}, step=step)
        return line

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line of its own."""
        append_line(self.metrics, {"step": step, **values})
        if self._wandb:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Tell wandb that the run has ended."""
        if self._wandb:
            self._wandb.finish()


def start_wandb(config: FitConfig, out: Path, *, resumed: bool) -> Any:
    """A wandb run, or None when it is off.

    Its id is kept in ``out/wandb_id``, so that a run that goes on from a checkpoint goes on there
    too; one that begins anew in the same folder gets another id. What a killed run had logged
    after its last checkpoint wandb keeps as it is: the same steps, logged again, are the same
    numbers. Offline, each part is a folder of its own under that id; ``wandb sync --append`` joins
    them.

    Raises:
        ValueError: wandb refuses, as it does online without a login.
    """
    if config.wandb == "off":
        return None
    import wandb  # slow to import, and most runs do without

    path = out / "wandb_id"
    kept = path.read_text().strip() if resumed and path.exists() else ""
    number = kept or secrets.token_hex(4)
    path.write_text(number + "\n")
    mode: Any = config.wandb
    try:
        return wandb.init(
            project=config.wandb_project,
            group=str(out),
            id=number,
            resume="allow",
            dir=str(out),
            mode=mode,
            config=asdict(config),
        )
    except wandb.Error as error:
        raise ValueError(
            f"fit.wandb={config.wandb}: {error}. Log in with `wandb login`, or use "
            "fit.wandb=offline or off; metrics.jsonl is written in any case"
        ) from error
