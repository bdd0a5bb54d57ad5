"""Checkpoints: one folder, one format.

A checkpoint folder is what LeRobot's ``from_pretrained`` opens as it is, with the training state
and the stamp beside it::

    config.json                   type, features, and our model / objective / horizon / spec
    model.safetensors             EMA weights, the ones that act and are evaluated
    policy_preprocessor.json      LeRobot's processors; they pass physical units through, since
    policy_postprocessor.json     the model normalises by itself (floored, clamped)
    policy_*.safetensors          the statistics, for LeRobot's eyes
    stamp.json                    where it comes from (dataset, versions, seeds, revision)
    training_state/               raw weights, optimiser, step: what resuming needs

``lerobot-train`` writes the same files into ``pretrained_model``, with ``training.safetensors``
among them: the raw weights, the feature head and the step, beside its own ``training_state``.

A run's folder keeps checkpoints as ``checkpoints/<step>`` and two links, ``last`` and ``best``.
Links are swapped atomically, and only after everything that they point to is on disk: killed at
any moment, a run leaves its previous checkpoint whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .data.errors import did_you_mean
from .flow import TimeConfig
from .inputs import Inputs
from .model import History, ModelConfig, Patches, Prediction, WorldModel
from .sampler import PLAIN, Guidance, sample
from .selfflow import ObjectiveConfig
from .tokens import Horizon, Pattern
from .types import Spec

FORMAT = 1
# Models older than these settings.
BEFORE: dict[str, Any] = {"per_frame_actions": False, "copy_mask": False}
OPENINGS = 3  # times that a checkpoint is looked for when runs delete it while it is read
WEIGHTS = "model.safetensors"
LEROBOT = "pretrained_model"  # a folder that lerobot-train puts into its checkpoints
PREFIX = "model."  # LeRobot's policy holds the world model as its attribute `model`


class CheckpointError(ValueError):
    """A folder that is no checkpoint, or not a whole one, or one for something else."""


@dataclass
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: its folder, links resolved.
        model: EMA weights, in eval mode.
        inputs: physical units <-> patches.
        objective: what it was trained with.
        stamp: contents of ``stamp.json``.
    """

    path: Path
    model: WorldModel
    inputs: Inputs
    objective: ObjectiveConfig
    stamp: dict[str, Any]

    @property
    def spec(self) -> Spec:
        return self.model.spec

    def sample(
        self, asked: Pattern, given: Patches, task: Tensor, noise: Patches, steps: int
    ) -> dict[str, Tensor]:
        """Patches of what is wanted, the way this model was trained; tensors on its device."""
        return self.answer(asked, given, task, noise, steps).data

    def answer(
        self,
        asked: Pattern,
        given: Patches,
        task: Tensor,
        noise: Patches,
        steps: int,
        guidance: Guidance = PLAIN,
        history: History | None = None,
    ) -> Prediction:
        """`worldmodel.sampler.sample`, the way this model was trained."""
        return sample(
            self.model, asked, given, task, noise, steps, self.objective.time,
            self.objective.name == "regression", guidance=guidance, history=history,
        )  # fmt: skip


# --- finding -------------------------------------------------------------------------------------


def find(path: str | Path, prefer: str = "last") -> Path:
    """The checkpoint folder meant by a run's folder, its ``checkpoints``, or a checkpoint.

    Args:
        prefer: which link of a run's folder to follow, "last" or "best".

    Raises:
        CheckpointError: names what is there instead.
    """
    root = Path(path)
    tried = [root, root / prefer, root / "checkpoints" / prefer]
    tried += [folder / LEROBOT for folder in tried]  # as lerobot-train writes them
    for folder in tried:
        if (folder / "config.json").is_file():
            return folder.resolve()
    if not root.exists():
        near = sorted(p.name for p in root.parent.iterdir()) if root.parent.is_dir() else []
        raise CheckpointError(
            f"no such folder: {root}" + (f"; beside it: {near[:10]}" * bool(near))
        )
    content = sorted(p.name for p in root.iterdir())[:10] if root.is_dir() else "a file"
    raise CheckpointError(
        f"{root} is no checkpoint: there is no config.json in it, in {prefer}/ or in "
        f"checkpoints/{prefer}/; found {content}. Give a run's folder, or one of its checkpoints."
    )


# --- reading -------------------------------------------------------------------------------------


def open_checkpoint(path: str | Path, prefer: str = "last", device: str = "cpu") -> Checkpoint:
    """Open a checkpoint for acting and imagining.

    Raises:
        CheckpointError: not a checkpoint, of another format, truncated, or with other weights
            than its config says; or deleted again and again while it was read.
    """
    for _ in range(OPENINGS):
        folder = find(path, prefer)
        try:
            opened = _open(folder, device)
        except (CheckpointError, FileNotFoundError):
            # A run that goes on training points its link at a new checkpoint, then deletes the old
            # one, perhaps while it is read here; if the link still leads here, it is broken.
            if find(path, prefer) == folder:
                raise
            continue
        if opened.stamp or find(path, prefer) == folder:  # or else the stamp may be gone already
            return opened
    raise CheckpointError(
        f"{path}: {OPENINGS} times the run that writes it deleted the checkpoint that was being "
        "read; open it once more, or raise that run's fit.save_every"
    )


def _open(folder: Path, device: str) -> Checkpoint:
    """`open_checkpoint` of the folder itself."""
    config = _read_json(folder / "config.json")
    if config.get("type") != "selfflow":
        raise CheckpointError(f"{folder}: a policy of type {config.get('type')!r}, not 'selfflow'")
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder}: checkpoint format {config.get('format')!r}; this version reads {FORMAT}"
        )
    spec, horizon, model_config, objective = parse_config(config)
    model = WorldModel(spec, horizon, model_config)
    load_weights(model, folder / WEIGHTS)
    model.to(device).eval().requires_grad_(False)
    inputs = Inputs(spec, model.modalities, model_config.normalization).to(device)
    stamp = _read_json(folder / "stamp.json") if (folder / "stamp.json").exists() else {}
    return Checkpoint(folder, model, inputs, objective, stamp)


def parse_config(
    config: Mapping[str, Any],
) -> tuple[Spec, Horizon, ModelConfig, ObjectiveConfig]:
    """Our parts of a ``config.json``.

    Raises:
        CheckpointError: names a missing or unknown entry.
    """
    try:
        config["objective"]["time"]  # what sampling follows is never left to a default
        return (
            Spec.from_dict(config["spec"]),
            Horizon(**config["window"]),
            ModelConfig(**(BEFORE | dict(config["model"]))),
            parse_objective(config["objective"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json does not describe a model: {error!r}") from error


def parse_objective(values: Mapping[str, Any]) -> ObjectiveConfig:
    """An `ObjectiveConfig` from plain values; what is left out keeps its default.

    Raises:
        ValueError: names an unknown field, or what a field cannot be.
    """
    known = [f.name for f in dataclasses.fields(ObjectiveConfig)]
    for name in values:
        if name not in known:
            raise ValueError(
                f"an objective has no {name!r}.{did_you_mean(name, known)} It has {known}"
            )
    fields = dict(values)
    if "time" in fields:
        fields["time"] = {k: TimeConfig(**v) for k, v in fields["time"].items()}
    return ObjectiveConfig(**fields)


def load_weights(model: nn.Module, path: str | Path, prefix: str = PREFIX) -> None:
    """Load weights strictly.

    Raises:
        CheckpointError: missing file, truncated file, missing, unexpected or misshapen weights,
            by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"weights are missing: {path}")
    try:
        found = load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); it holds {path.stat().st_size:,} bytes and was "
            "probably cut off while being copied: copy it again"
        ) from error
    found = {k.removeprefix(prefix): v for k, v in found.items()}
    wanted = model.state_dict()
    problems = [f"missing {k}" for k in wanted if k not in found]
    problems += [f"unexpected {k}" for k in found if k not in wanted]
    problems += [
        f"{k} is {tuple(found[k].shape)}, expected {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


# --- writing -------------------------------------------------------------------------------------


def save_policy(
    folder: Path, model: WorldModel, objective: ObjectiveConfig, stamp: Mapping[str, Any]
) -> None:
    """Write everything but the training state into an existing folder."""
    spec, horizon = model.spec, model.horizon
    height, width = spec.image_size
    inputs: dict[str, Any] = {}
    if spec.state_dim:
        inputs["observation.state"] = {"type": "STATE", "shape": [spec.state_dim]}
    for camera in spec.cameras:
        inputs[f"observation.images.{camera}"] = {"type": "VISUAL", "shape": [3, height, width]}
    outputs = {"action": {"type": "ACTION", "shape": [spec.action_dim]}}
    identity = dict.fromkeys(("VISUAL", "STATE", "ACTION"), "IDENTITY")
    device = next(model.parameters()).device.type
    config = {
        "type": "selfflow",
        "n_obs_steps": horizon.past,
        "chunk_size": horizon.chunk,
        "n_action_steps": max(1, horizon.chunk // 2),
        "sampling_steps": 2,
        "input_features": inputs,
        "output_features": outputs,
        "normalization_mapping": identity,
        "device": device,
        "push_to_hub": False,
        "license": "apache-2.0",
        "tags": ["selfflow"],
        "format": FORMAT,
        "spec": spec.to_dict(),
        "model": dataclasses.asdict(model.config),
        "window": dataclasses.asdict(horizon),
        "objective": dataclasses.asdict(objective),
    }
    write_json(folder / "config.json", config)
    write_json(folder / "stamp.json", dict(stamp))
    write_tensors(folder / WEIGHTS, {PREFIX + k: v for k, v in model.state_dict().items()})
    _save_processors(folder, spec, inputs, outputs, identity, device)


def _save_processors(
    folder: Path, spec: Spec, inputs: dict, outputs: dict, identity: dict, device: str
) -> None:
    """LeRobot's pipelines, in the order and under the names that its commands override."""
    to_device = {"device": device, "float_dtype": None}
    before = [
        ("rename_observations_processor", {"rename_map": {}}),
        ("to_batch_processor", {}),
        ("device_processor", to_device),
        ("normalizer_processor", {"eps": 1e-8, "features": inputs | outputs, "norm_map": identity}),
    ]
    after = [
        ("unnormalizer_processor", {"eps": 1e-8, "features": outputs, "norm_map": identity}),
        ("device_processor", {"device": "cpu", "float_dtype": None}),
    ]
    statistics = {
        f"{'observation.state' if kind == 'state' else kind}.{name}": torch.tensor(values)
        for kind, table in spec.stats.items()
        for name, values in table.items()
    }
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        written = []
        for number, (step, config) in enumerate(steps):
            entry: dict[str, Any] = {"registry_name": step, "config": config}
            if step.endswith("normalizer_processor"):
                entry["state_file"] = f"{name}_step_{number}_{step}.safetensors"
                write_tensors(folder / entry["state_file"], statistics)
            written.append(entry)
        write_json(folder / f"{name}.json", {"name": name, "steps": written})


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Strict JSON: refuses NaN and infinities, which other readers cannot read."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, readable by whoever may read other new files (the library says 0600)."""
    path.touch()
    mode = path.stat().st_mode
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
    path.chmod(mode)


def save_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write the training state: tensors as safetensors, the rest as JSON."""
    folder.mkdir()
    write_tensors(folder / "tensors.safetensors", tensors)
    write_json(folder / "state.json", values)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `save_state`.

    Raises:
        CheckpointError: where it is absent or cannot be read.
    """
    path = folder / "tensors.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is missing: this checkpoint can act but not resume; use init= instead"
        )
    try:
        return load_file(path), _read_json(folder / "state.json")
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


class Keeper:
    """Writes checkpoints of a run: whole or not at all.

    Args:
        root: the run's ``checkpoints`` folder.
        keep_every: checkpoints whose step is a multiple of it stay; 0: only those with a link.
    """

    def __init__(self, root: Path, keep_every: int = 0) -> None:
        self.root, self.keep_every = root, keep_every
        root.mkdir(parents=True, exist_ok=True)

    def write(
        self, step: int, fill: Callable[[Path], None], links: tuple[str, ...] = ("last",)
    ) -> Path:
        """Write checkpoint `step` by ``fill(folder)`` and point `links` at it.

        Raises:
            CheckpointError: the disk is full; the previous checkpoint stays as it was.
        """
        final = self.root / f"{step:08d}"
        if not final.exists():
            temporary = self.root / f".writing-{step:08d}-{os.getpid()}"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                fill(temporary)
                for file in temporary.rglob("*"):
                    if file.is_file():
                        with file.open("rb") as handle:
                            os.fsync(handle.fileno())
            except (OSError, safetensors.SafetensorError) as error:
                shutil.rmtree(temporary, ignore_errors=True)
                free = shutil.disk_usage(self.root).free
                raise CheckpointError(
                    f"checkpoint {step} could not be written to {self.root} ({error}; "
                    f"{free / 1e6:.0f} MB free); the previous one is whole. Make room and resume."
                ) from error
            os.replace(temporary, final)
        for link in links:
            self._point(link, final.name)
        self._collect_garbage()
        return final

    def _point(self, link: str, target: str) -> None:
        temporary = self.root / f".{link}-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, self.root / link)

    def _collect_garbage(self) -> None:
        """Delete checkpoints that nothing keeps, and what killed runs left half-written."""
        kept = {p.readlink().name for p in self.root.iterdir() if p.is_symlink()}
        for entry in self.root.iterdir():
            stale = entry.name.startswith(".writing-") or (
                entry.name.isdigit() and entry.name not in kept and not self._stays(entry.name)
            )
            if stale and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)

    def _stays(self, name: str) -> bool:
        return bool(self.keep_every) and int(name) % self.keep_every == 0

    def last(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        link = self.root / "last"
        return link.resolve() if link.exists() else None
