"""Going on with a run: is there one, is it the same, and what it carried from step to step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from . import checkpoint
from .optimize import FitConfig
from .selfflow import SelfFlow
from .types import Spec


def resumable(out: Path, resume: bool) -> Path | None:
    """The checkpoint that a run in `out` goes on from; None where it starts from the beginning.

    Raises:
        ValueError: there is a run, and it is not to be resumed.
        checkpoint.CheckpointError: the run was copied in a way that lost its links.
    """
    link = out / "checkpoints" / "last"
    if not link.exists():
        return None
    last = link.resolve()
    if not last.name.isdigit():
        raise checkpoint.CheckpointError(
            f"{link} is a folder instead of a link to one, as if {out} was copied with its links "
            f"followed. It can act, but not resume: use init={out} and another out="
        )
    if not resume:
        raise ValueError(
            f"{out} holds a run already ({int(last.name)} steps done): go on with resume=true, or "
            "choose another out="
        )
    return last


def require_same_run(
    last: Path, objective: SelfFlow, config: FitConfig, stamp: Mapping[str, Any]
) -> None:
    """Refuse to go on from checkpoint `last` with other data, another model or another objective.

    How to optimise (rates, schedule, batch size, how often to save) may change, but for the
    optimiser, whose state is of its kind, and the dtype.

    Raises:
        checkpoint.CheckpointError: names the first difference, and both values.
    """
    if not (last / "training_state" / "state.json").is_file():
        raise checkpoint.CheckpointError(
            f"{last} holds no training state: it can act, but not resume; use init={last} and "
            "another out="
        )
    model = objective.model
    before = checkpoint._read_json(last / "config.json")
    # As this version would write it: fields that it added have the values of a run without them.
    before["spec"] = Spec.from_dict(before["spec"]).to_dict()
    before["model"] = checkpoint.BEFORE | before["model"]
    before["objective"] = asdict(checkpoint.parse_objective(before["objective"]))
    stamped = checkpoint._read_json(last / "stamp.json")
    state = checkpoint._read_json(last / "training_state" / "state.json")
    pairs: list[tuple[str, Any, Any]] = [("seed", stamped.get("seed"), stamp.get("seed"))]
    if stamp.get("init") is not None:  # leaving it out when resuming is fine
        pairs.append(("init", stamped.get("init"), stamp["init"]))
    data_then, data_now = (_flat("dataset", x.get("dataset", {})) for x in (stamped, stamp))
    # Not the roots, as the same data may have moved; the hash of the statistics says least: last.
    names = ["fingerprint", "train_episodes", "validation_episodes"]
    pairs += [(k, data_then.get(k), data_now.get(k)) for k in (f"dataset.{n}" for n in names)]
    # What was measured on the data follows from the data, which is compared, and the window.
    measured: dict[str, Any] = {"stats": None, "action_rank": None}
    for prefix, key, values in (
        ("the data's ", "spec", model.spec.to_dict() | measured),
        ("data.", "window", asdict(model.horizon)),
        ("model.", "model", asdict(model.config)),
        ("objective.", "objective", asdict(objective.source)),
    ):
        # Both as reading them back would give them: tuples are lists.
        now, then = (
            _flat(prefix, json.loads(json.dumps(v)))
            for v in (values, before[key] | (measured if key == "spec" else {}))
        )
        pairs += [(k, then.get(k), now.get(k)) for k in sorted({*then, *now})]
    key = "dataset.statistics"
    pairs.append((key, data_then.get(key), data_now.get(key)))
    pairs.append(("fit.optimizer", state["optimizer"], config.optimizer))
    if config.dtype != "auto":
        pairs.append(("fit.dtype", state["dtype"], config.dtype))
    for name, then, now in pairs:
        if then != now:
            run = last.parent.parent
            raise checkpoint.CheckpointError(
                f"{run} cannot be resumed: {name} was {then!r} in this run and is {now!r} now. "
                f"Resume with the run's own settings ({run / 'config.yaml'}), or start a new run "
                f"with another out= (init={run} starts it from these weights)"
            )


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with dotted names that begin with `prefix`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}" if prefix.endswith((".", " ")) else f"{prefix}.{key}"
        flat |= _flat(name, value) if isinstance(value, Mapping) else {name: value}
    return flat


def clear_ahead(checkpoints: Path, step: int) -> None:
    """Remove what a killed run left after its last checkpoint, at `step` (-1: it has none).

    A checkpoint that was finished but not yet linked would otherwise pass for the one that the
    run, possibly with other settings by now, writes when it reaches that step.
    """
    for entry in checkpoints.iterdir():
        if entry.is_symlink():
            if entry.name.startswith("."):
                entry.unlink()
        elif entry.name.startswith(".writing-") or (
            entry.name.isdigit() and int(entry.name) > step
        ):
            shutil.rmtree(entry)


def never_written(folder: Path) -> None:
    raise checkpoint.CheckpointError(
        f"{folder.parent} lacks a checkpoint that its last one calls the best so far; a run's "
        "checkpoints can only be resumed together. Start a new run, with init= this one"
    )


# --- the state of a run ---------------------------------------------------------------------------


@dataclass
class RunState:
    """What a run carries from step to step beside tensors; saved with every checkpoint.

    Attributes:
        step: optimiser steps done.
        seconds: of training so far.
        best: lowest validation score, None before the first.
        best_step: of the checkpoint that the link ``best`` means.
        pending: see `worldmodel.record.Record`.
        dtype: of the token stream; None before it is settled.
    """

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    pending: dict[str, list[float]] = field(default_factory=dict)
    dtype: str | None = None


def state_of(
    objective: SelfFlow, optimizers: list[Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raw weights, feature head and optimiser state: tensors, and what is no tensor."""
    tensors = {f"objective.{k}": v for k, v in objective.state_dict().items()}
    scalars: dict[str, Any] = {}
    for number, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                name = f"optimizer.{number}.{index}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    scalars[name] = value
    return tensors, scalars


def restore(folder: Path, objective: SelfFlow, optimizers: list[Optimizer]) -> RunState:
    """Load a training state: the inverse of `state_of` and of what `fit` saves beside it.

    Raises:
        checkpoint.CheckpointError: the state is missing, broken, or of another model.
    """
    tensors, values = checkpoint.load_state(folder / "training_state")
    own = {
        k.removeprefix("objective."): v for k, v in tensors.items() if k.startswith("objective.")
    }
    try:
        objective.load_state_dict(own)
    except RuntimeError as error:
        raise checkpoint.CheckpointError(
            f"{folder} was trained with another model or objective, so it cannot be resumed with "
            f"this configuration: {error}"
        ) from error
    checkpoint.load_weights(objective.ema.model, folder / checkpoint.WEIGHTS)
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        found: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **values["scalars"]}.items():
            head = f"optimizer.{number}."
            if name.startswith(head):
                index, key = name.removeprefix(head).split(".", 1)
                found.setdefault(int(index), {})[key] = value
        state["state"] = found
        optimizer.load_state_dict(state)
    return RunState(**{f.name: values[f.name] for f in fields(RunState)})
