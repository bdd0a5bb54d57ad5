"""Self-Flow (arXiv 2603.06507), whole, for any mix of modalities and any given / wanted pattern.

Per sample two quantiles ``u_t`` and ``u_s`` are drawn independently and mapped to times by each
modality's own distribution. Each wanted token is masked with its modality's ratio; masked tokens
live at time s, the others at t (Dual-Timestep Scheduling). The student learns the velocity of all
wanted tokens, and its early features learn to match the deeper features that the EMA teacher sees
with every wanted token at ``min(t, s)`` and the same noise.

``flow`` is the same code with mask ratio 0 and feature weight 0; ``dts`` has feature weight 0;
``regression`` replaces noise by zeros at time 1, which leaves a plain squared error.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .flow import TimeConfig, interpolate, velocity_from_data
from .inputs import Inputs
from .model import Clock, Given, Prediction, WorldModel, token_times
from .streams import generator, uniform
from .tokens import PATTERNS, Pattern, pattern, unused_kinds
from .types import Losses, Window

OBJECTIVES = ("flow", "dts", "selfflow", "regression")
MASKS = ("iid", "block")


@dataclass
class ObjectiveConfig:
    """How the model learns.

    Attributes:
        name: one of `OBJECTIVES`.
        patterns: share of each pattern in training; shares are normalised.
        draws: noise draws per observation for each pattern (the given part is encoded once).
        prefix: largest committed prefix of "act_prefix"; its length is drawn from 1 to this.
        time: p(t) per modality kind.
        loss_weight: weight of each modality kind's velocity loss.
        padded_actions: learn to stay put after the episode's end (for absolute actions).
        mask_ratio: share of masked tokens per modality kind.
        mask_shape: "iid" tokens or "block" (contiguous runs of `mask_block` tokens).
        plain_share: share of samples with a single time, as they occur in sampling.
        feature_weight: gamma of the feature loss; 0 skips the teacher.
        feature_warmup: steps over which gamma rises linearly from 0.
        student_depth, teacher_depth: where features are taken, as shares of the depth.
        feature_kinds: modality kinds whose tokens carry the feature loss.
        ema: largest EMA decay; it rises as (1 + step) / (10 + step) up to this.
    """

    name: str = "selfflow"
    patterns: dict[str, float] = field(
        default_factory=lambda: {
            "act": 0.4,
            "act_prefix": 0.1,
            "forward": 0.2,
            "inverse": 0.1,
            "video": 0.05,
            "joint": 0.15,
        }
    )
    draws: dict[str, int] = field(default_factory=lambda: {"act": 4, "act_prefix": 4})
    prefix: int = 8
    time: dict[str, TimeConfig] = field(
        default_factory=lambda: {
            # Mostly noise: with few sampling steps, what is decided near time 1 decides the rest.
            "video": TimeConfig(shift=3.0),
            "state": TimeConfig(shift=3.0),
            "action": TimeConfig(shift=3.0),
        }
    )
    loss_weight: dict[str, float] = field(
        default_factory=lambda: {"video": 1.0, "state": 0.2, "action": 1.0}
    )
    padded_actions: bool = True
    mask_ratio: dict[str, float] = field(
        default_factory=lambda: {"video": 0.3, "state": 0.3, "action": 0.4}
    )
    mask_shape: str = "iid"
    mask_block: int = 4
    plain_share: float = 0.25
    feature_weight: float = 0.8
    feature_warmup: int = 0
    student_depth: float = 0.3
    teacher_depth: float = 0.7
    feature_kinds: list[str] = field(default_factory=lambda: ["video", "state", "action"])
    ema: float = 0.999

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f"unknown objective {self.name!r}; there are {list(OBJECTIVES)}")
        if self.mask_shape not in MASKS:
            raise ValueError(f"unknown mask_shape {self.mask_shape!r}; there are {list(MASKS)}")
        if unknown := sorted((set(self.patterns) | set(self.draws)) - set(PATTERNS)):
            raise ValueError(f"unknown patterns {unknown}; there are {list(PATTERNS)}")
        if min(self.patterns.values()) < 0 or sum(self.patterns.values()) <= 0:
            raise ValueError(f"shares of patterns must be >= 0 and not all 0: {self.patterns}")
        if not 0 < self.student_depth < self.teacher_depth <= 1:
            raise ValueError("need 0 < student_depth < teacher_depth <= 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay in [0, 1), found {self.ema}")
        for kind, ratio in self.mask_ratio.items():
            if not 0 <= ratio <= 0.5:
                raise ValueError(f"mask_ratio.{kind} is in [0, 0.5], found {ratio}")

    def effective(self) -> ObjectiveConfig:
        """This config with what its `name` switches off set to zero."""
        config = copy.deepcopy(self)
        if self.name in ("flow", "regression"):
            config.mask_ratio = dict.fromkeys(config.mask_ratio, 0.0)
        if self.name != "selfflow":
            config.feature_weight = 0.0
        return config


class FeatureHead(nn.Module):
    """Projects student features onto teacher features: Linear, SiLU, Linear (paper, section 4)."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Ema:
    """One exponential moving average: the teacher, and the weights that are evaluated and shipped.

    Args:
        model: the student; `self.model` is its averaged copy, without gradients.
        decay: largest decay.
    """

    def __init__(self, model: WorldModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self._pairs: tuple[list[Tensor], list[Tensor]] = (
            list(self.model.parameters()),
            list(model.parameters()),
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the student after optimiser step number `step` (the first is 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, student = self._pairs
        torch._foreach_lerp_(own, student, weight=1 - decay)


@dataclass
class Draw:
    """Random numbers of one micro-batch: noise, the student's clock, the teacher's clock."""

    noise: dict[str, Tensor]
    clock: Clock
    teacher: Clock


class SelfFlow(nn.Module):
    """The objective: windows in, losses out.

    All randomness is a function of (seed, purpose, step), each purpose with its own generator, so
    that switching one thing off changes nothing else and a resumed run needs no generator state.

    Args:
        model: the student.
        config: see `ObjectiveConfig`.
        seed: of every draw and of the feature head.
    """

    def __init__(self, model: WorldModel, config: ObjectiveConfig, seed: int = 0) -> None:
        super().__init__()
        self.source = config  # as configured: what checkpoints store
        self.config = config.effective()
        self.seed = seed
        self.model = model
        self.ema = Ema(model, config.ema)
        self.inputs = Inputs(model.spec, model.modalities, model.config.normalization)
        kinds = (*config.time, *config.loss_weight, *config.mask_ratio, *config.feature_kinds)
        if unknown := unused_kinds(list(model.modalities.values()), kinds):
            raise ValueError(f"unknown modality kinds {unknown} in the objective's settings")
        depth = model.size.depth
        self.student_layer = max(1, round(depth * config.student_depth))
        self.teacher_layer = max(self.student_layer + 1, round(depth * config.teacher_depth))
        self.head = FeatureHead(model.size.width, seed + 1) if self.config.feature_weight else None
        self.shares = self._usable_shares()

    def _usable_shares(self) -> dict[str, float]:
        """Pattern shares, summing to 1, of the patterns that this model's modalities allow."""
        horizon, shares = self.model.horizon, {}
        for name, share in self.config.patterns.items():
            if share == 0 or (not horizon.future and name not in ("act", "act_prefix")):
                continue
            _, wanted = self.model.slices_of(pattern(name, horizon))
            if wanted and (name not in ("inverse", "video") or self.model.spec.cameras):
                shares[name] = share
        if not shares:
            raise ValueError(
                f"none of the patterns {sorted(self.config.patterns)} can be trained: the data has "
                f"modalities {list(self.model.modalities)} and {horizon.future} future frames"
            )
        total = sum(shares.values())
        return {name: share / total for name, share in shares.items()}

    def to(self, *args, **kwargs):  # the averaged copy is no submodule: it must follow by hand
        super().to(*args, **kwargs)
        self.ema.model.to(*args, **kwargs)
        self.inputs.to(self.device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def choose(self, step: int, micro: int = 0) -> Pattern:
        """The pattern of a micro-batch: a function of (seed, step, micro)."""
        u = uniform(self.seed, "pattern", step, micro)
        names, shares = list(self.shares), list(self.shares.values())
        chosen = names[min(bisect(list(accumulate(shares)), u), len(names) - 1)]
        longest = min(self.config.prefix, self.model.horizon.chunk - 1)
        prefix = 1 + int(uniform(self.seed, "prefix", step, micro) * longest)
        return pattern(chosen, self.model.horizon, min(prefix, longest))

    def needs_future(self, chosen: Pattern) -> bool:
        """Whether windows for this pattern must hold future frames."""
        return chosen.name not in ("act", "act_prefix")

    def draw(self, wanted: dict[str, Tensor], step: int, micro: int = 0) -> Draw:
        """Times, masks and noise for wanted patches ``[B, steps, n, E]``."""
        config, device = self.config, self.device
        batch = next(iter(wanted.values())).shape[0]
        if config.name == "regression":
            ones = {n: torch.ones(batch, 1, device=device) for n in wanted}
            zeros = {n: torch.zeros_like(v) for n, v in wanted.items()}
            return Draw(zeros, Clock(ones), Clock(ones))

        def quantile(purpose: str) -> Tensor:
            g = generator(self.seed, purpose, step, micro)
            return torch.rand(batch, 1, generator=g).to(device)

        u_t, u_s, plain = quantile("t"), quantile("s"), quantile("plain")
        u_s = torch.where(plain < config.plain_share, u_t, u_s)
        student, teacher, noise = Clock({}), Clock({}), {}
        for name, values in wanted.items():
            kind = self.model.modalities[name].kind
            time = config.time.get(kind, TimeConfig())
            ratio = config.mask_ratio.get(kind, 0.0)
            t = time.from_quantile(u_t)
            source = generator(self.seed, f"noise/{name}", step, micro, device=device)
            noise[name] = torch.randn(values.shape, generator=source, device=device)
            s = time.from_quantile(u_s)
            teacher.levels[name] = torch.minimum(t, s)
            if ratio == 0:
                student.levels[name] = t
                continue
            tokens = values.shape[1] * values.shape[2]
            student.levels[name] = torch.cat([t, s], dim=1)
            mask_source = generator(self.seed, f"mask/{name}", step, micro)
            student.which[name] = self._mask(batch, tokens, ratio, mask_source).to(device)
        return Draw(noise, student, teacher)

    def _mask(self, batch: int, tokens: int, ratio: float, source: torch.Generator) -> Tensor:
        """int64 ``[B, tokens]``: 1 where a token is masked."""
        block = self.config.mask_block if self.config.mask_shape == "block" else 1
        runs = torch.rand(batch, -(-tokens // block), generator=source) < ratio
        return runs.repeat_interleave(block, dim=1)[:, :tokens].long()

    def forward(self, window: Window, step: int, micro: int = 0, diagnose: bool = False) -> Losses:
        """Losses of one micro-batch.

        Args:
            window: B windows; with future frames where the pattern needs them.
            step: number of the optimiser step, from 0.
            micro: number of the micro-batch in the step.
            diagnose: also compute what `_diagnose` says; costs two teacher passes.
        """
        chosen = self.choose(step, micro)
        return self.losses(window, chosen, step, micro, diagnose)

    def losses(
        self, window: Window, chosen: Pattern, step: int, micro: int = 0, diagnose: bool = False
    ) -> Losses:
        """Losses of one micro-batch under a given pattern."""
        config, model = self.config, self.model
        # A regression has no noise: further draws would be the same computation again.
        draws = 1 if config.name == "regression" else config.draws.get(chosen.name, 1)
        given_steps, wanted_steps = model.slices_of(chosen)
        given = self.inputs.patches(window, given_steps)
        target = self.inputs.patches(window, wanted_steps)
        target = {n: v.repeat_interleave(draws, 0) for n, v in target.items()}
        valid = {
            n: self.inputs.valid(window, n, part, config.padded_actions).repeat_interleave(draws, 0)
            for n, part in wanted_steps.items()
        }
        drop = torch.rand(len(window.task), generator=generator(self.seed, "task", step, micro)).to(
            self.device
        )
        task = torch.where(drop < model.config.task_dropout, -1, window.task)
        draw = self.draw(target, step, micro)
        noisy, aim = {}, {}
        for name, data in target.items():
            time = token_times(draw.clock, name, data)
            noisy[name] = interpolate(data, draw.noise[name], time)
            aim[name] = velocity_from_data(noisy[name], data, time)

        use_teacher = config.feature_weight > 0
        layers = (self.student_layer,) if use_teacher else ()
        encoded = model.encode(given, given_steps, task).repeat(draws)
        out = model(noisy, wanted_steps, draw.clock, encoded, layers)
        logs: dict[str, Tensor | float] = {}
        total = torch.zeros((), device=self.device)
        for name, velocity in out.velocity.items():
            error = (velocity - aim[name]).square().mean(dim=(2, 3))
            loss = masked_mean(error, valid[name])
            weight = config.loss_weight.get(model.modalities[name].kind, 1.0)
            total = total + weight * loss
            logs[f"{chosen.name}/{name}/loss"] = loss.detach()
        if use_teacher:
            features = self._teach(target, draw, given, given_steps, wanted_steps, task, draws)
            loss = self._feature_loss(out, features, valid, logs, chosen.name)
            gamma = config.feature_weight
            if config.feature_warmup:
                gamma *= min(1.0, (step + 1) / config.feature_warmup)
            total = total + gamma * loss
        if diagnose:
            logs |= self._diagnose(
                chosen, target, draw, given, given_steps, wanted_steps, task, draws, out, aim, valid
            )
        logs[f"{chosen.name}/loss"] = total.detach()
        return Losses(total, logs)

    @torch.no_grad()
    def _teach(
        self, target, draw: Draw, given, given_steps, wanted_steps, task, draws, clock=None
    ) -> Prediction:
        """Teacher features at `clock` (default: every token at min(t, s)), same noise."""
        teacher, clock = self.ema.model, clock or draw.teacher
        noisy = {
            n: interpolate(v, draw.noise[n], token_times(clock, n, v)) for n, v in target.items()
        }
        stop = self.teacher_layer
        encoded: Given = teacher.encode(given, given_steps, task, until=stop).repeat(draws)
        return teacher(noisy, wanted_steps, clock, encoded, layers=(stop,), until=stop)

    def _feature_loss(
        self, student: Prediction, teacher: Prediction, valid, logs, name: str
    ) -> Tensor:
        """Mean over modalities of the mean over tokens of 1 - cosine, in fp32."""
        assert self.head is not None, "no feature head at feature_weight 0"
        projected = self.head(student.features[self.student_layer]).float()
        aim = teacher.features[self.teacher_layer].float()
        distance = 1 - F.cosine_similarity(projected, aim, dim=-1)
        losses = []
        for modality, part in student.slices.items():
            if self.model.modalities[modality].kind not in self.config.feature_kinds:
                continue
            ok = valid[modality].repeat_interleave(self.model.modalities[modality].per_step, dim=1)
            losses.append(masked_mean(distance[:, part], ok))
            logs[f"{name}/{modality}/feature_loss"] = losses[-1].detach()
        if not losses:
            return torch.zeros((), device=self.device)
        return torch.stack(losses).mean()

    def _diagnose(
        self, chosen, target, draw, given, given_steps, wanted_steps, task, draws, out, aim, valid
    ) -> dict[str, Tensor | float]:
        """Per modality: is there anything to learn from the teacher, and who moves the trunk?

        - ``asymmetry``: median cosine between teacher features at tau and at min(t, s), over
          tokens whose time differs; above 0.97 there is no signal;
        - ``centred``: the same after subtracting the mean feature, since a few large shared
          channels inflate the raw value;
        - ``gap_slope``: slope of 1 - cosine against the time gap ``tau - min(t, s)``;
        - ``gradient_share``: share of each modality's weighted loss in the gradient norm of the
          last block.
        """
        logs: dict[str, Tensor | float] = {}
        prefix = chosen.name
        if draw.clock.which:
            arguments = (target, draw, given, given_steps, wanted_steps, task, draws)
            cleaner = self._teach(*arguments).features[self.teacher_layer].float()
            own = self._teach(*arguments, clock=draw.clock)
            noisier = own.features[self.teacher_layer].float()
            for name, part in own.slices.items():
                if name not in draw.clock.which:
                    continue
                a, b = cleaner[:, part], noisier[:, part]
                gap = draw.clock.per_token(name) - draw.teacher.levels[name]
                differs = gap > 1e-3
                if not differs.any():
                    continue
                cosine = F.cosine_similarity(a, b, dim=-1)
                mean = a.flatten(0, 1).mean(0)
                centred = F.cosine_similarity(a - mean, b - mean, dim=-1)
                g, d = gap[differs], 1 - cosine[differs]
                spread = (g - g.mean()).square().mean().clamp_min(1e-8)
                logs[f"{prefix}/{name}/asymmetry"] = cosine[differs].median()
                logs[f"{prefix}/{name}/centred"] = centred[differs].median()
                logs[f"{prefix}/{name}/gap_slope"] = ((g - g.mean()) * d).mean() / spread
        shared = list(self.model.backbone.blocks[-1].parameters())
        norms = {}
        for name, velocity in out.velocity.items():
            weight = self.config.loss_weight.get(self.model.modalities[name].kind, 1.0)
            loss = weight * masked_mean(
                (velocity - aim[name]).square().mean(dim=(2, 3)), valid[name]
            )
            grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
            norms[name] = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
        total = sum(norms.values()) or 1.0
        for name, norm in norms.items():
            logs[f"{prefix}/{name}/gradient_share"] = norm / total
            logs[f"{prefix}/{name}/tokens"] = float(valid[name].sum()) * (
                self.model.modalities[name].per_step
            )
        return logs

    def after_step(self, step: int) -> None:
        """Update the EMA after optimiser step `step` (from 0)."""
        self.ema.update(step + 1)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``[B, L]`` over valid entries; 0 when there are none."""
    weight = valid.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1)
