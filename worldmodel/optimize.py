"""How to optimise: the settings, the dtype, the optimisers."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from .data.errors import did_you_mean
from .selfflow import SelfFlow

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "cooldown")
DTYPES = ("auto", "float32", "bfloat16")
WANDB = ("off", "online", "offline")


@dataclass
class FitConfig:
    """How to optimise.

    Attributes:
        batch_size: windows per micro-batch, of all processes together.
        accumulate: micro-batches per optimiser step, each with a pattern of its own.
        optimizer: "adamw", or "muon" (torch.optim.Muon for the matrices of the blocks, AdamW for
            the rest).
        lr, weight_decay, betas: of AdamW.
        muon_lr: of Muon.
        warmup: steps over which the learning rate rises linearly.
        schedule: "constant", "cosine" to zero, or "cooldown" (constant, then linear to zero).
        cooldown: share of the run that cools down.
        clip: largest gradient norm.
        dtype: of the token stream; "auto" takes bfloat16 where a short probe finds it faster.
        log_every, diagnose_every, validate_every, save_every: in steps; 0 is never.
        keep_every: checkpoints of these steps stay (each multiple of it that is saved); 0 keeps
            only the last and the best.
        validation_windows: windows that each validation looks at.
        wandb: "off", "online" or "offline".
        wandb_project: where wandb files the run.
    """

    batch_size: int = 32
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    muon_lr: float = 0.02
    warmup: int = 100
    schedule: str = "constant"
    cooldown: float = 0.3
    clip: float = 1.0
    dtype: str = "auto"
    log_every: int = 20
    diagnose_every: int = 250
    validate_every: int = 500
    save_every: int = 500
    keep_every: int = 0
    validation_windows: int = 64
    wandb: str = "off"
    wandb_project: str = "selfflow"

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("dtype", DTYPES),
            ("wandb", WANDB),
        ):
            if getattr(self, name) not in known:
                found = getattr(self, name)
                raise ValueError(
                    f"fit.{name} is {found!r}; there are {list(known)}.{did_you_mean(found, known)}"
                )
        least = {"batch_size": 1, "accumulate": 1, "validation_windows": 1, "warmup": 0}
        least |= dict.fromkeys(
            ("log_every", "diagnose_every", "validate_every", "save_every", "keep_every"), 0
        )
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"fit.{name} is {getattr(self, name)}; it must be at least {minimum}"
                )
        if len(self.betas) != 2:
            raise ValueError(f"fit.betas is {self.betas}; it takes two numbers, as [0.9,0.95]")
        if not self.clip > 0:
            raise ValueError(f"fit.clip is {self.clip}; it must be above 0 (inf for no clipping)")

    def lr_scale(self, step: int, progress: float) -> float:
        """Factor on the learning rates at optimiser step `step`, at share `progress` of the run."""
        scale = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "cosine":
            scale *= 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "cooldown" and self.cooldown > 0:
            scale *= min(1.0, (1 - progress) / self.cooldown)
        return max(scale, 1e-4)


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype of the token stream; "auto" is settled by a tenth of a second of matrix products.

    bfloat16 pays only where the hardware has it: on CPUs AMX or AVX512-BF16.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32

    def seconds(dtype: torch.dtype) -> float:
        a, w = torch.ones(2048, 256, dtype=dtype), torch.ones(1024, 256, dtype=dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            nn.functional.linear(a, w)
            times.append(time.perf_counter() - start)
        return min(times)

    faster = seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)
    return torch.bfloat16 if faster else torch.float32


def make_optimizers(objective: SelfFlow, config: FitConfig) -> list[torch.optim.Optimizer]:
    """The optimisers over everything trainable; each group remembers its base rate."""
    named = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
    betas = (config.betas[0], config.betas[1])
    hidden = [
        p
        for n, p in named
        if config.optimizer == "muon"
        and p.ndim == 2
        and ".blocks." in n
        and not n.endswith("offset")
    ]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=betas)
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=0.95
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers
