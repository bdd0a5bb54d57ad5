"""``python -m tests.worldmodel.shared_batches OUT DATA``: one process's part of some work.

`CASES` are computed in one process by `gradients` with the default world, and here in several; each
rank leaves in ``OUT/RANK.pt`` what it got, and how two runs of `fit` ended for it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.worldmodel.models import HORIZON, SPECS, make_model, make_window, randomised
from worldmodel import train as module
from worldmodel.data import Data, DataConfig, open_data
from worldmodel.distributed import ALONE, World, join
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.selfflow import ObjectiveConfig, SelfFlow
from worldmodel.tokens import PATTERNS, Horizon, pattern
from worldmodel.train import FitConfig, NotFiniteError, fit
from worldmodel.types import Window

BATCH = 4


def whole(window: Window) -> None:
    """Every token counts."""


def uneven(window: Window) -> None:
    """Most of what does not count lies in the first half of the batch."""
    window.frame_valid[0, 3:] = window.frame_valid[1, 2:] = False
    window.action_valid[0, 1:] = window.action_valid[1, 3:] = window.action_valid[2, 5:] = False


def one_sided(window: Window) -> None:
    """Nothing in the first half of the batch counts, of frames and of actions."""
    window.frame_valid[:2, 2:] = False
    window.action_valid[:2] = False


MASKS: tuple[Callable[[Window], None], ...] = (whole, uneven, one_sided)
CASES = {
    f"{name}-{mask.__name__}": (name, mask, "selfflow") for name in PATTERNS for mask in MASKS
} | {f"act-{objective}": ("act", uneven, objective) for objective in ("flow", "dts", "regression")}


def gradients(case: str, world: World = ALONE) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Summed gradients by parameter, and summed logs, of a case's batch."""
    name, mask, objective = CASES[case]
    config = ObjectiveConfig(name=objective, padded_actions=False, draws={"act": 2})
    learner = SelfFlow(make_model(), config, seed=3)
    randomised(learner.ema.model, seed=7, scale=0.05)  # a teacher unlike the student
    window = make_window(SPECS["one camera"], batch=BATCH)
    mask(window)
    window = rows(window, world.rows(BATCH))
    losses = learner.losses(window, pattern(name, HORIZON, 2), 5, 1, True, world)
    losses.total.backward()
    world.add_all([p.grad for p in learner.parameters()])
    found = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    logs = world.add(torch.tensor([float(v) for v in losses.logs.values()], dtype=torch.float64))
    return found, dict(zip(losses.logs, logs.tolist(), strict=True))


def rows(window: Window, part: slice) -> Window:
    """Some rows of a window."""
    names = ("state", "action", "frame_valid", "action_valid", "task", "index")
    cut = {n: getattr(window, n)[part] for n in names}
    return replace(window, video={c: v[part] for c, v in window.video.items()}, **cut)


def poisoned(data: Data, out: Path, world: World) -> str:
    """What a run says in which the loss of the last process alone is no number."""
    learner = small(data)
    plain = learner.losses

    def losses(window, chosen, step, *more):
        found = plain(window, chosen, step, *more)
        if step == 1 and world.rank == world.size - 1:
            found.total = found.total * math.nan
        return found

    learner.losses = losses  # type: ignore[method-assign]
    try:
        fit(learner, data.train, None, SETTINGS, out, {}, steps=3, world=world)
    except NotFiniteError as error:
        return str(error)
    return "it ended well"


def timed(data: Data, out: Path, world: World) -> int:
    """Steps of a run of so many minutes, where clocks of some processes go much faster."""
    now = iter(range(0, 1_000_000, 1 + 1000 * world.rank))
    module.time = SimpleNamespace(perf_counter=lambda: float(next(now)))  # type: ignore[assignment]
    length = {"minutes": 1.0}
    return fit(small(data), data.train, None, SETTINGS, out, {}, **length, world=world).steps  # type: ignore[arg-type]


SETTINGS = FitConfig(batch_size=4, warmup=0, dtype="float32", diagnose_every=0)


def small(data: Data) -> SelfFlow:
    horizon = Horizon(past=1, past_stride=1, future=1, future_stride=4, chunk=4)
    model = WorldModel(data.spec, horizon, ModelConfig(size="debug", width=32))
    return SelfFlow(model, ObjectiveConfig(draws={}))


def main() -> None:
    out, world = Path(sys.argv[1]), join()
    found: dict[str, Any] = {case: gradients(case, world) for case in CASES}
    config = DataConfig(root=sys.argv[2], image_size=16, past=1, future=1, chunk=4)
    with world.machine_by_machine():
        data = open_data(config, progress=False)
    found["poisoned"] = poisoned(data, out / "poisoned", world)
    found["timed"] = timed(data, out / "timed", world)
    torch.save(found, out / f"{world.rank}.pt")
    world.leave()


if __name__ == "__main__":
    main()
