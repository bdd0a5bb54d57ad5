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
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import ALONE, World
from .flow import TimeConfig, interpolate, velocity_from_data
from .inputs import Inputs
from .model import Clock, History, Prediction, WorldModel, token_times
from .streams import generator, uniform
from .success import success_loss
from .tokens import ACTING, PATTERNS, SEEING, Pattern, Steps, pattern, unknown_kinds
from .types import Losses, Window

OBJECTIVES = ("flow", "dts", "selfflow", "regression")
MASKS = ("iid", "block")
TEACHER_TIMES = ("min", "clean")


@dataclass
class ObjectiveConfig:
    """How the model learns.

    Attributes:
        name: one of `OBJECTIVES`.
        patterns: share of each pattern in training; shares are normalised.
        draws: noise draws per observation for each pattern (the given part is encoded once).
        prefix: largest committed prefix of "act_prefix"; its length is drawn from 1 to this.
        any_frame: share of micro-batches that ask for other future frames than the horizon's grid:
            as many or fewer, drawn from all that can be asked for. Above 0, any frame can be.
        history_noise: largest time of the given frames and states where future frames are wanted
            (the causal variant of Self-Flow: the student sees a noised past, the teacher a clean
            one), so that errors of a model that goes on from its own frames do not compound.
        time: p(t) per modality kind.
        loss_weight: weight of each modality kind's velocity loss.
        padded_actions: learn to stay put after the episode's end (never with delta actions).
        mask_ratio: share of masked tokens per modality kind.
        mask_shape: "iid" tokens or "block" (contiguous runs of `mask_block` tokens).
        plain_share: share of samples with a single time, as they occur in sampling.
        teacher_time: when the teacher sees a sample's wanted tokens: "min" of its two times (the
            paper), or "clean" (time 0, the data itself).
        feature_weight: gamma of the feature loss; 0 skips the teacher.
        feature_warmup: steps over which gamma rises linearly from 0.
        student_depth, teacher_depth: where features are taken, as shares of the depth.
        feature_kinds: modality kinds whose tokens carry the feature loss.
        ema: largest EMA decay; it rises as (1 + step) / (10 + step) up to this.
    """

    name: str = "selfflow"
    patterns: dict[str, float] = field(
        default_factory=lambda: {
            "act": 0.35,
            "act_prefix": 0.1,
            "forward": 0.2,
            "inverse": 0.1,
            "video": 0.05,
            "joint": 0.15,
            "reach": 0.05,
        }
    )
    draws: dict[str, int] = field(default_factory=lambda: {"act": 4, "act_prefix": 4})
    prefix: int = 8
    any_frame: float = 0.0
    history_noise: float = 0.0
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
    teacher_time: str = "min"
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
        if self.teacher_time not in TEACHER_TIMES:
            raise ValueError(
                f"unknown teacher_time {self.teacher_time!r}; there are {list(TEACHER_TIMES)}"
            )
        if unknown := sorted((set(self.patterns) | set(self.draws)) - set(PATTERNS)):
            raise ValueError(f"unknown patterns {unknown}; there are {list(PATTERNS)}")
        if min(self.patterns.values()) < 0 or sum(self.patterns.values()) <= 0:
            raise ValueError(f"shares of patterns must be >= 0 and not all 0: {self.patterns}")
        for name in ("any_frame", "history_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is in [0, 1], found {getattr(self, name)}")
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


@dataclass
class Question:
    """A micro-batch under a pattern, as the student and the teacher are asked it.

    With R noise draws per observation, what is wanted has ``B * R`` rows, R in a row for each.

    Attributes:
        pattern: which steps are given and wanted.
        given, given_steps: modality name -> clean patches ``[B, steps, n, E]``, and which steps.
        history: noise on the given frames for the student; the teacher sees them clean.
        success: int8 ``[B * R, F]`` labels of the future frames; None where they are unknown.
        target, wanted_steps: the same, ``[B * R, steps, n, E]``, of what is wanted.
        valid: modality name -> bool ``[B * R, steps]``: which wanted steps carry a loss.
        counts: modality name -> int64 ``[]``: how many of them do, in the rows of all processes.
        task: int64 ``[B]``, after dropout.
        draws: R.
        draw: noise and times of the wanted patches.
    """

    pattern: Pattern
    given: dict[str, Tensor]
    given_steps: dict[str, Steps]
    wanted_steps: dict[str, Steps]
    history: History | None
    success: Tensor | None
    target: dict[str, Tensor]
    valid: dict[str, Tensor]
    counts: dict[str, Tensor]
    task: Tensor
    draws: int
    draw: Draw

    def noisy(self, clock: Clock) -> dict[str, Tensor]:
        """The wanted patches at the times of a clock."""
        return {
            n: interpolate(v, self.draw.noise[n], token_times(clock, n, v))
            for n, v in self.target.items()
        }


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
        if model.spec.action_kind == "delta":  # repeating the last change is not staying put
            self.config.padded_actions = False
        self.seed = seed
        self.model = model
        self.ema = Ema(model, config.ema)
        self.inputs = Inputs(model.spec, model.modalities, model.config.normalization)
        kinds = (*config.time, *config.loss_weight, *config.mask_ratio, *config.feature_kinds)
        if unknown := unknown_kinds(kinds):
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
            if share == 0 or (not horizon.future and name not in ACTING):
                continue
            _, wanted = self.model.slices_of(pattern(name, horizon))
            if wanted and (name not in SEEING or self.model.spec.cameras):
                shares[name] = share
        if not shares:
            raise ValueError(
                f"none of the patterns {sorted(self.config.patterns)} can be trained: the data has "
                f"modalities {list(self.model.modalities)} and {horizon.future} future frames"
            )
        total = sum(shares.values())
        return {name: share / total for name, share in shares.items()}

    @property
    def sources(self) -> set[str]:
        """Which windows its patterns are learnt from; see `Pattern.source`."""
        return {pattern(name, self.model.horizon).source for name in self.shares}

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
        offsets = None if chosen in ACTING else self._offsets(step, micro)
        return pattern(chosen, self.model.horizon, min(prefix, longest), offsets)

    def _offsets(self, step: int, micro: int) -> tuple[int, ...]:
        """The future frames that a micro-batch is about."""
        horizon = self.model.horizon
        if uniform(self.seed, "any_frame", step, micro) >= self.config.any_frame:
            return horizon.grid
        g = generator(self.seed, "offsets", step, micro)
        count = int(torch.randint(1, horizon.future + 1, (), generator=g))
        frames = 1 + torch.randperm(horizon.reach, generator=g)[:count]
        return tuple(frames.sort().values.tolist())

    def draw(
        self, wanted: dict[str, Tensor], step: int, micro: int = 0, world: World = ALONE
    ) -> Draw:
        """Times, masks and noise for wanted patches ``[B, steps, n, E]``.

        Each process draws for the whole batch, so that a row's numbers do not depend on how many
        processes share it.
        """
        config, device = self.config, self.device
        batch = next(iter(wanted.values())).shape[0]
        whole = batch * world.size
        mine = world.rows(whole)
        if config.name == "regression":
            ones = {n: torch.ones(batch, 1, device=device) for n in wanted}
            zeros = {n: torch.zeros_like(v) for n, v in wanted.items()}
            return Draw(zeros, Clock(ones), Clock(ones))

        def quantile(purpose: str) -> Tensor:
            g = generator(self.seed, purpose, step, micro)
            return torch.rand(whole, 1, generator=g)[mine].to(device)

        u_t, u_s, plain = quantile("t"), quantile("s"), quantile("plain")
        u_s = torch.where(plain < config.plain_share, u_t, u_s)
        student, teacher, noise = Clock({}), Clock({}), {}
        for name, values in wanted.items():
            kind = self.model.modalities[name].kind
            time = config.time.get(kind, TimeConfig())
            ratio = config.mask_ratio.get(kind, 0.0)
            t = time.from_quantile(u_t)
            source = generator(self.seed, f"noise/{name}", step, micro, device=device)
            shape = (whole, *values.shape[1:])
            noise[name] = torch.randn(shape, generator=source, device=device)[mine]
            s = time.from_quantile(u_s)
            cleaner = torch.minimum(t, s)
            clean = config.teacher_time == "clean"
            teacher.levels[name] = torch.zeros_like(cleaner) if clean else cleaner
            if ratio == 0:
                student.levels[name] = t
                continue
            tokens = values.shape[1] * values.shape[2]
            student.levels[name] = torch.cat([t, s], dim=1)
            mask_source = generator(self.seed, f"mask/{name}", step, micro)
            student.which[name] = self._mask(whole, tokens, ratio, mask_source)[mine].to(device)
        return Draw(noise, student, teacher)

    def _mask(self, batch: int, tokens: int, ratio: float, source: torch.Generator) -> Tensor:
        """int64 ``[B, tokens]``: 1 where a token is masked."""
        block = self.config.mask_block if self.config.mask_shape == "block" else 1
        runs = torch.rand(batch, -(-tokens // block), generator=source) < ratio
        return runs.repeat_interleave(block, dim=1)[:, :tokens].long()

    def ask(
        self, window: Window, chosen: Pattern, step: int, micro: int = 0, world: World = ALONE
    ) -> Question:
        """A micro-batch under a pattern: what is given, what is wanted, and all its random draws.

        Args:
            window: B windows; with future frames where the pattern needs them.
            step: number of the optimiser step, from 0.
            micro: number of the micro-batch in the step.
            world: the processes that share the micro-batch; `window` has this one's rows of it.
        """
        config, model = self.config, self.model
        if chosen.name == "forward":
            window = replace(window, action=until_last_frame(window.action, chosen))
        # A regression has no noise: further draws would be the same computation again.
        draws = 1 if config.name == "regression" else config.draws.get(chosen.name, 1)
        given_steps, wanted_steps = model.slices_of(chosen)
        target = self.inputs.patches(window, wanted_steps)
        target = {n: v.repeat_interleave(draws, 0) for n, v in target.items()}
        valid = {
            n: self.inputs.valid(window, n, part, config.padded_actions).repeat_interleave(draws, 0)
            for n, part in wanted_steps.items()
        }
        counts = world.add(torch.stack([v.sum() for v in valid.values()]))
        given = self.inputs.patches(window, given_steps)
        success = None
        if window.success is not None and chosen.has_future:
            success = window.success[:, model.horizon.past :].repeat_interleave(draws, 0)
        source = generator(self.seed, "task", step, micro)
        whole = len(window.task) * world.size
        drop = torch.rand(whole, generator=source)[world.rows(whole)].to(self.device)
        return Question(
            pattern=chosen,
            given=given,
            given_steps=given_steps,
            wanted_steps=wanted_steps,
            history=self._history(chosen, given, step, micro, world),
            success=success,
            target=target,
            valid=valid,
            counts=dict(zip(valid, counts, strict=True)),
            task=torch.where(drop < model.config.task_dropout, -1, window.task),
            draws=draws,
            draw=self.draw(target, step, micro, world),
        )

    def _history(
        self, chosen: Pattern, given: dict[str, Tensor], step: int, micro: int, world: World
    ) -> History | None:
        """Noise on the given frames, where future ones are wanted."""
        largest, device = self.config.history_noise, self.device
        if not largest or "video" not in chosen.wanted or self.config.name == "regression":
            return None
        whole = len(next(iter(given.values()))) * world.size
        mine = world.rows(whole)
        level = torch.rand(whole, generator=generator(self.seed, "history", step, micro))
        noise = {}
        for name, values in given.items():
            if self.model.modalities[name].axis == "frame":
                g = generator(self.seed, f"history/{name}", step, micro, device=device)
                shape = (whole, *values.shape[1:])
                noise[name] = torch.randn(shape, generator=g, device=device)[mine]
        return History(largest * level[mine].to(device), noise)

    def forward(self, window: Window, step: int, micro: int = 0) -> Losses:
        """Losses of one micro-batch under the pattern that is its turn."""
        return self.losses(window, self.choose(step, micro), step, micro)

    def losses(
        self,
        window: Window,
        chosen: Pattern,
        step: int,
        micro: int = 0,
        gradient_shares: bool = False,
        world: World = ALONE,
    ) -> Losses:
        """Losses of one micro-batch under a given pattern.

        With several processes each gets its part: the sum over them, of the loss, of its gradient
        and of every log, is that of the whole micro-batch in one process.

        Args:
            window, step, micro, world: see `ask`.
            gradient_shares: also log what share of the gradient norm of the last block each
                modality's weighted loss has, and how many of its tokens counted.
        """
        config, model = self.config, self.model
        asked = self.ask(window, chosen, step, micro, world)
        clock = asked.draw.clock
        noisy = asked.noisy(clock)
        use_teacher = config.feature_weight > 0
        layers = (self.student_layer,) if use_teacher else ()
        encoded = model.encode(
            asked.given, asked.given_steps, asked.task,
            offsets=chosen.offsets, history=asked.history,
        ).repeat(asked.draws)  # fmt: skip
        out = model(noisy, asked.wanted_steps, clock, encoded, layers)
        logs: dict[str, Tensor | float] = {}
        weighted: dict[str, Tensor] = {}
        for name, data in asked.target.items():
            aim = velocity_from_data(noisy[name], data, token_times(clock, name, data))
            error = (out.velocity[name] - aim).square().mean(dim=(2, 3))
            loss = masked_sum(error, asked.valid[name]) / asked.counts[name].clamp_min(1)
            weighted[name] = config.loss_weight.get(model.modalities[name].kind, 1.0) * loss
            logs[f"{chosen.name}/{name}/loss"] = loss.detach()
        total = torch.zeros((), device=self.device)
        for loss in weighted.values():
            total = total + loss
        if use_teacher:
            loss = self._feature_loss(out, self.teach(asked, asked.draw.teacher), asked, logs)
            gamma = config.feature_weight
            if config.feature_warmup:
                gamma *= min(1.0, (step + 1) / config.feature_warmup)
            total = total + gamma * loss
        if out.success is not None and asked.success is not None:
            wrong, known = success_loss(out.success, asked.success)
            # A head of its own, without a gradient into the rest: its weight is its learning rate.
            loss = wrong / world.add(known[None])[0].clamp_min(1)
            logs[f"{chosen.name}/success/loss"] = loss.detach()
            total = total + loss
        if gradient_shares:
            logs |= self._gradient_shares(weighted, asked, world)
        logs[f"{chosen.name}/loss"] = total.detach()
        return Losses(total, logs)

    @torch.no_grad()
    def teach(self, asked: Question, clock: Clock) -> Prediction:
        """The teacher's features with every wanted token at the times of `clock`, same noise."""
        teacher, stop = self.ema.model, self.teacher_layer
        encoded = teacher.encode(
            asked.given, asked.given_steps, asked.task, until=stop, offsets=asked.pattern.offsets
        )
        return teacher(
            asked.noisy(clock),
            asked.wanted_steps,
            clock,
            encoded.repeat(asked.draws),
            layers=(stop,),
            until=stop,
        )

    def _feature_loss(
        self, student: Prediction, teacher: Prediction, asked: Question, logs: dict
    ) -> Tensor:
        """Mean over modalities of the mean over tokens of 1 - cosine, in fp32."""
        assert self.head is not None, "no feature head at feature_weight 0"
        projected = self.head(student.features[self.student_layer]).float()
        aim = teacher.features[self.teacher_layer].float()
        distance = 1 - F.cosine_similarity(projected, aim, dim=-1)
        losses = []
        for name, part in student.slices.items():
            modality = self.model.modalities[name]
            if modality.kind not in self.config.feature_kinds:
                continue
            ok = asked.valid[name].repeat_interleave(modality.per_step, dim=1)
            count = asked.counts[name] * modality.per_step
            losses.append(masked_sum(distance[:, part], ok) / count.clamp_min(1))
            logs[f"{asked.pattern.name}/{name}/feature_loss"] = losses[-1].detach()
        if not losses:
            return torch.zeros((), device=self.device)
        return torch.stack(losses).mean()

    def _gradient_shares(
        self, weighted: dict[str, Tensor], asked: Question, world: World
    ) -> dict[str, float]:
        """See `losses`."""
        shared = list(self.model.backbone.blocks[-1].parameters())
        norms = {}
        for name, loss in weighted.items():
            grads = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
            norms[name] = math.sqrt(
                sum(float(g.square().sum()) for g in world.add_all(grads) if g is not None)
            )
        total = sum(norms.values()) or 1.0
        logs = {}
        for name, norm in norms.items():
            prefix, per_step = f"{asked.pattern.name}/{name}", self.model.modalities[name].per_step
            # Known whole to each process: an equal part of it from each.
            logs[f"{prefix}/gradient_share"] = norm / total / world.size
            logs[f"{prefix}/tokens"] = float(asked.counts[name]) * per_step / world.size
        return logs

    def after_step(self, step: int) -> None:
        """Update the EMA after optimiser step `step` (from 0)."""
        self.ema.update(step + 1)


def until_last_frame(action: Tensor, asked: Pattern) -> Tensor:
    """Given actions ``[B, K, A]``; those after the last frame asked for repeat the one before.

    They cannot change that frame, so a model must not expect to be told; the same in training and
    when imagining, where they are often not known yet.
    """
    last = min(asked.offsets[-1], action.shape[1])
    return torch.cat([action[:, :last], action[:, last - 1 : last].expand_as(action[:, last:])], 1)


def masked_sum(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of ``[B, L]`` over valid entries."""
    return (values * valid.to(values.dtype)).sum()


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``[B, L]`` over valid entries; 0 when there are none."""
    return masked_sum(values, valid) / valid.sum().clamp_min(1)
