"""Judge a checkpoint on the held-out episodes of a recording, where no simulator is at hand.

::

    python -m scripts.evaluate_data checkpoint=outputs/train out=outputs/evaluate_data

takes the dataset and the split from the run's own ``config.yaml`` and writes ``report.json`` and
``strip.png`` (what the camera saw, what the model imagined, copy-last-frame).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from policies.offline import held_out
from worldmodel.checkpoint import Checkpoint, CheckpointError, open_checkpoint, write_json
from worldmodel.data import Data, DataConfig, DatasetError, open_data
from worldmodel.imagine import imagine
from worldmodel.stamp import stamp
from worldmodel.types import SpecMismatchError

from ._cli import refuse_unknown_keys


@dataclass
class EvaluateDataConfig:
    """Attributes:
    checkpoint: a run's folder, or one of its checkpoints.
    root: another dataset than the one that the run was trained on, all its episodes; null takes the
        episodes that the run held out.
    every, steps, draws, seed: see `policies.offline.held_out`.
    out: folder.
    """

    checkpoint: str = MISSING
    root: Any = None
    every: int = 2
    steps: int = 5
    draws: int = 4
    seed: int = 0
    out: str = "outputs/evaluate_data"


ConfigStore.instance().store(name="evaluate_data_schema", node=EvaluateDataConfig)


def open_held_out(config: EvaluateDataConfig, checkpoint: Checkpoint) -> Data:
    """The data that the run did not train on.

    Raises:
        DatasetError: there is none: the run held no episode out.
        SpecMismatchError: the other dataset is of another robot.
    """
    # A run's folder, or one of its checkpoints: RUN/checkpoints/STEP.
    places = (Path(config.checkpoint), checkpoint.path.parent.parent)
    resolved = next((p / "config.yaml" for p in places if (p / "config.yaml").is_file()), None)
    if resolved is None:
        raise CheckpointError(
            f"{config.checkpoint} holds no config.yaml: give the run's folder, so that the same "
            "episodes are held out as in training"
        )
    stored = OmegaConf.load(resolved).data
    settings: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), stored))
    if config.root is not None:
        settings.root, settings.validation, settings.episodes = config.root, 0.0, None
    data = open_data(settings)
    checkpoint.spec.require_same(data.spec, "the checkpoint", "the dataset")
    if config.root is None and not len(data.validation):
        raise DatasetError("this run held no episode out (data.validation); give another root=")
    trained = checkpoint.stamp.get("dataset", {})
    found = {"fingerprint": data.fingerprint, "validation_episodes": data.validation_episodes}
    for name, value in found.items():
        if config.root is None and trained.get(name) != value:
            raise SpecMismatchError(
                f"the dataset has changed since training ({name}: {value}, trained with "
                f"{trained.get(name)}), so episodes held out now may have been trained on"
            )
    return data


def strip(checkpoint: Checkpoint, data: Data, path: Path, seconds: float = 2.0) -> None:
    """A picture: real frames, imagined ones (one long rollout), and the frame that was given."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    windows = data.validation if len(data.validation) else data.train
    horizon, camera = checkpoint.model.horizon, checkpoint.spec.cameras[0]
    stride = horizon.future_stride
    longest = int(np.argmax(windows.frame_of))  # the last frame of the longest episode
    left = int(windows.frame_of[longest])
    first = longest - left + left // 3
    count = round(seconds * checkpoint.spec.fps / stride)
    if horizon.past > 1 and horizon.past_stride != horizon.future_stride:
        count = min(count, horizon.future)  # such windows cannot be chained
    count = max(1, min(count, (longest - first) // stride))
    now = windows.batch(np.array([first]))
    later = windows.batch(np.arange(first, first + count * stride))
    result = imagine(
        checkpoint,
        {c: v[:, : horizon.past] for c, v in now.video.items()},
        now.state[:, : horizon.past],
        later.action[:, 0][None],
    )
    at = np.arange(1, count + 1) * stride
    real = windows.batch(first + at).video[camera][:, horizon.past - 1]
    rows = {
        "camera": real,
        "imagined": result.video[camera][0],
        "last frame": now.video[camera][:, horizon.past - 1].expand_as(real),
    }
    shown = np.linspace(0, count - 1, min(8, count)).astype(int)
    figure, axes = plt.subplots(3, len(shown), figsize=(1.6 * len(shown), 5), dpi=120)
    for row, (name, frames) in zip(np.atleast_2d(axes), rows.items(), strict=True):
        for axis, index in zip(row, shown, strict=True):
            axis.imshow(torch.as_tensor(frames[index]).permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            if name == "camera":
                axis.set_title(f"+{at[index] / checkpoint.spec.fps:.1f} s", fontsize=9)
        row[0].set_ylabel(name, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def print_report(report: dict[str, Any], console: Console) -> None:
    """The main numbers."""
    console.print(
        f"{report['windows']} windows of {report['episodes']} held-out episodes; actions: "
        f"{report['moving_dimensions']} of {report['dimensions']} dimensions move",
        highlight=False,
    )
    table = Table("action error (standard deviations)", "mean")
    for name in ("policy", "policy_mean_of_draws", "hold_last", "mean_action"):
        table.add_row(name.replace("_", " "), f"{report['action'][name]:.3f}")
    console.print(table)
    for floor in ("hold_last", "mean_action"):
        d = report["action"][f"policy_minus_{floor}"]
        console.print(
            f"policy minus {floor}: {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]",
            highlight=False,
        )
    for region in ("all", "moving"):
        if "video" not in report or report["video"][region] is None:
            continue
        video = report["video"]
        table = Table(f"PSNR, dB, {region} pixels", *[f"+{s:.2f} s" for s in video["seconds"]])
        for name in ("model", "copy_last", "mean_frame"):
            table.add_row(name.replace("_", " "), *[f"{v:.2f}" for v in video[region][name]])
        console.print(table)
        d = video[region]["gain_over_copy_last"]
        console.print(
            f"gain over copy-last-frame: {d['mean']:+.2f} dB [{d['low']:+.2f}, {d['high']:+.2f}]",
            highlight=False,
        )


@hydra.main(version_base="1.3", config_path="../configs", config_name="evaluate_data")
def run(values: Any) -> None:
    config: Any = OmegaConf.to_object(values)
    console = Console()
    out = Path(config.out)
    try:
        checkpoint = open_checkpoint(config.checkpoint)
        data = open_held_out(config, checkpoint)
        windows = data.train if config.root is not None else data.validation
        report = held_out(
            checkpoint,
            windows,
            tasks=data.spec.tasks,
            every=config.every,
            steps=config.steps,
            draws=config.draws,
            seed=config.seed,
        )
        out.mkdir(parents=True, exist_ok=True)
        report["stamp"] = stamp() | {"checkpoint": checkpoint.stamp}
        write_json(out / "report.json", report)
        if checkpoint.spec.cameras and checkpoint.model.horizon.future:
            strip(checkpoint, data, out / "strip.png")
    except (DatasetError, CheckpointError, SpecMismatchError, ValueError) as error:
        console.print(f"[bold red]{type(error).__name__}:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    print_report(report, console)
    console.print(f"report: {out / 'report.json'}", highlight=False)


def main() -> None:
    refuse_unknown_keys(EvaluateDataConfig, sys.argv[1:])
    run()


if __name__ == "__main__":
    main()
