"""Fine-tuning: a checkpoint's weights as the beginning of a model for other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .checkpoint import CheckpointError, open_checkpoint
from .data import Normalizer
from .model import WorldModel


def start_from(model: WorldModel, path: str | Path) -> list[str]:
    """Load a checkpoint's weights into a new model of the same kind.

    States and actions are normalised by the new data's statistics: the checkpoint's would clamp
    what lies outside of what it saw. Tasks are matched by their text: those that the
    checkpoint does not know start afresh.

    Returns:
        What means something else now than when the weights were trained, a line each.

    Raises:
        SpecMismatchError: the checkpoint has other cameras, states or actions.
        CheckpointError: it is another model; names the first difference.
    """
    other = open_checkpoint(path)
    model.spec.require_same(
        other.spec, "this dataset", f"the checkpoint {path}", image_size=False, may_differ=NOTED
    )
    then, now = (asdict(m.config) | asdict(m.size) for m in (other.model, model))
    for name in now:
        if name not in ("size", "task_dropout") and then[name] != now[name]:
            raise CheckpointError(
                f"init={path} is another model: model.{name} is {then[name]!r} there and "
                f"{now[name]!r} here; its size is model={other.model.config.size}"
            )
    weights = other.model.state_dict()
    tasks = model.task.weight.detach().clone()
    for row, text in enumerate(model.spec.tasks):
        if text in other.spec.tasks:
            tasks[row] = weights["task.weight"][other.spec.tasks.index(text)]
    tasks[-1] = weights["task.weight"][-1]  # "no task"
    weights["task.weight"] = tasks
    if other.spec.has_success != model.spec.has_success:
        # One of the two knows when the world counts as solved: a head starts afresh, or goes.
        weights = {k: v for k, v in weights.items() if not k.startswith("success.")}
        weights |= {k: v for k, v in model.state_dict().items() if k.startswith("success.")}
    model.load_state_dict(weights)
    return differences(other.model, model)


NOTED = ("robot_type", "fps", "action_kind", "image_size", "has_success", "action_targets")
"""Fields of a spec that may differ between a checkpoint and what it is fine-tuned on."""


def differences(old: WorldModel, new: WorldModel) -> list[str]:
    """What the weights of `old` do not know yet about the data of `new`, a line each."""
    lines = []
    for kind, names in (("state", new.spec.state_names), ("action", new.spec.action_names)):
        if names and (line := renormalised(kind, names, old, new)):
            lines.append(line)
    then, now = (
        {name: getattr(m.spec, name) for name in NOTED}
        | {f"data.{k}": v for k, v in asdict(m.horizon).items()}
        for m in (old, new)
    )
    lines += [f"{k} was {then[k]!r}, is {now[k]!r}" for k in now if then[k] != now[k]]
    if unknown := [t for t in new.spec.tasks if t not in old.spec.tasks]:
        lines.append(f"tasks that start afresh: {', '.join(map(repr, unknown))}")
    return lines


def renormalised(kind: str, names: Sequence[str], old: WorldModel, new: WorldModel) -> str | None:
    """How far the statistics of states or actions moved, in their own units; None if nowhere."""
    mode = new.config.normalization
    then, now = (Normalizer(m.spec.stats[kind], mode) for m in (old, new))
    moved = (now.center - then.center).abs() / then.scale
    stretched = (now.scale / then.scale).log().abs()
    if not moved.any() and not stretched.any():
        return None
    c, s = int(moved.argmax()), int(stretched.argmax())
    return (
        f"{kind} is normalised anew, by this data's statistics: centre moved most in {names[c]}, "
        f"{then.center[c]:.3g} to {now.center[c]:.3g} ({moved[c]:.2g} of its old scale); scale "
        f"changed most in {names[s]}, {then.scale[s]:.3g} to {now.scale[s]:.3g}"
    )
