"""The world model: patches and times in, velocities (or data) and features out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .backbone import Backbone, Context, normalise
from .data.normalize import Normalizer
from .flow import data_from_velocity, interpolate, velocity_from_data
from .success import SuccessHead
from .tokens import Horizon, Modality, Pattern, Steps, Video, modalities_of
from .types import Spec

PREDICTIONS = ("x", "velocity")


@dataclass(frozen=True)
class Size:
    """Width, depth and heads of a model."""

    width: int
    depth: int
    heads: int


SIZES = {
    "debug": Size(64, 3, 1),
    "tiny": Size(128, 6, 2),
    "small": Size(384, 12, 6),
    "base": Size(768, 18, 12),
}


@dataclass
class ModelConfig:
    """Attributes:
    size: one of `SIZES`; `width`, `depth` and `heads` override it where positive.
    patch: side of a video patch in pixels.
    prediction: what the network puts out, "x" (data) or "velocity".
    task_dropout: share of samples trained without their task, for guidance.
    per_frame_actions: tell each wanted frame the action that leads to it (also as sines and
        cosines: pictures are sharp functions of joint angles) and the mean of those since now,
        where actions are given; it attends to all of them in any case. States with an
        absolute target are predicted as changes from it instead of from the last state.
    copy_mask: future frames blend the last past one with new pixels, by a mask that the network
        puts out too (x-prediction only); without, it puts out what to add to the last frame.
    normalization: of states and actions, a mode of `worldmodel.data.Normalizer`.
    """

    size: str = "tiny"
    width: int = 0
    depth: int = 0
    heads: int = 0
    patch: int = 8
    prediction: str = "x"
    task_dropout: float = 0.1
    per_frame_actions: bool = True
    copy_mask: bool = True
    normalization: str = "quantile"

    def resolve(self) -> Size:
        """The size in numbers.

        Raises:
            ValueError: for an unknown size or prediction.
        """
        if self.size not in SIZES:
            raise ValueError(f"unknown model size {self.size!r}; there are {list(SIZES)}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {self.prediction!r}; there are {PREDICTIONS}")
        size = SIZES[self.size]
        return Size(self.width or size.width, self.depth or size.depth, self.heads or size.heads)


Patches = Mapping[str, Tensor]
"""Modality name -> ``[B, steps, n, E]``, normalised."""


@dataclass
class Clock:
    """The times of the wanted tokens.

    Attributes:
        levels: modality name -> ``[B, J]`` distinct times of this modality's tokens.
        which: modality name -> int64 ``[B, steps * n]``, the level of each token; a modality
            without an entry has one level (J = 1).
    """

    levels: dict[str, Tensor]
    which: dict[str, Tensor] = field(default_factory=dict)

    def per_token(self, name: str) -> Tensor:
        """Time of each token ``[B, steps * n or 1]``."""
        levels = self.levels[name]
        return levels.gather(1, self.which[name]) if name in self.which else levels


def token_times(clock: Clock, name: str, patches: Tensor) -> Tensor:
    """Times of ``[B, steps, n, E]`` patches, shaped to broadcast with them."""
    time = clock.per_token(name)
    if time.shape[1] == 1:
        return time[:, :, None, None]
    return time.reshape(*patches.shape[:3], 1)


@dataclass
class Prediction:
    """Attributes:
    velocity: modality name -> ``[B, steps, n, E]``; empty when stopped early.
    data: the same as an estimate of the data end of the path.
    features: block number -> ``[B, L, D]`` of the wanted tokens, in the order of `slices`.
    slices: modality name -> where its tokens lie in L.
    success: ``[B, F]`` logits that the world counts as solved at each wanted frame; None where
        the model has no success head, no frame is wanted, or it was stopped early.
    """

    velocity: dict[str, Tensor]
    data: dict[str, Tensor]
    features: dict[int, Tensor]
    slices: dict[str, slice]
    success: Tensor | None = None


@dataclass
class History:
    """Noise on the given frames: what makes a model robust to its own imagined past.

    Attributes:
        level: ``[B]``, the time of the given frames and states, a little above 0.
        noise: modality name -> ``[B, steps, n, E]`` from N(0, I), of each of them.
    """

    level: Tensor
    noise: dict[str, Tensor]


@dataclass
class Given:
    """The encoded given tokens: what stays the same while sampling.

    Attributes:
        context: keys and values.
        condition: ``[B, D]``, of the task.
        anchors: modality name -> the last past patches ``[B, 1, n, E]``, of every modality on the
            frame axis whose past is given: what the network's output is added to.
        shown: the same as the network sees them, with the noise of `History`.
        offsets: the future frames of the question, in frames after now.
        lead: ``[B, F, D]``, of the actions that lead to each of them; None where none are given.
    """

    context: Context
    condition: Tensor
    anchors: dict[str, Tensor]
    shown: dict[str, Tensor]
    offsets: tuple[int, ...]
    lead: Tensor | None = None

    def repeat(self, times: int) -> Given:
        """Each sample `times` times in a row."""
        if times == 1:
            return self
        return Given(
            self.context.repeat(times),
            self.condition.repeat_interleave(times, 0),
            {n: v.repeat_interleave(times, 0) for n, v in self.anchors.items()},
            {n: v.repeat_interleave(times, 0) for n, v in self.shown.items()},
            self.offsets,
            None if self.lead is None else self.lead.repeat_interleave(times, 0),
        )


class WorldModel(nn.Module):
    """One shared backbone; per modality only input and output linears and an embedding.

    Future frames and states are predicted as changes: their tokens see the last past patch of the
    same place (the *anchor*, through a linear of its own). With x-prediction the network's output
    is added to it; for frames it is blended in by a mask for each pixel, as in Finn et al. (arXiv
    1605.07157): adding would have to undo, number by number, what has moved away. A fresh model
    thus imagines the last frame again, nearly, and learns what moves.

    Where the data says when the world counts as solved (``spec.has_success``), a small head reads
    that off the middle features of the imagined frames. It has no say in what they become.

    Args:
        spec: facts of the dataset or robot.
        horizon: when the steps of a window happen.
        config: size, patch, prediction.
        seed: of the initial weights.
    """

    target_from_state: Tensor
    target_from_action: Tensor
    target_factor: Tensor
    target_offset: Tensor

    def __init__(self, spec: Spec, horizon: Horizon, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        size = config.resolve()
        self.spec, self.horizon, self.config, self.size = spec, horizon, config, size
        self.modalities: dict[str, Modality] = {
            m.name: m for m in modalities_of(spec, config.patch)
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            keys = {name: name.replace(".", "_").replace("/", "_") for name in self.modalities}
            self._keys = keys
            embed = {keys[n]: nn.Linear(m.width, size.width) for n, m in self.modalities.items()}
            self.masked = {
                n: m.size**2
                for n, m in self.modalities.items()
                if isinstance(m, Video) and config.copy_mask and config.prediction == "x"
            }
            head = {
                keys[n]: nn.Linear(size.width, m.width + self.masked.get(n, 0))
                for n, m in self.modalities.items()
            }
            anchor = {
                keys[n]: nn.Linear(m.width, size.width, bias=False)
                for n, m in self.modalities.items()
                if m.axis == "frame"
            }
            self.embed, self.head = nn.ModuleDict(embed), nn.ModuleDict(head)
            self.anchor = nn.ModuleDict(anchor)
            # Rotary positions reach only queries and keys; reading *where* something is out of
            # the values (a target's place in the image) needs positions in the tokens too.
            self.position = nn.Linear(2 * 3 * POSITION_FREQUENCIES, size.width, bias=False)
            self.kind = nn.Embedding(len(keys), size.width)
            self.task = nn.Embedding(len(spec.tasks) + 1, size.width)  # the last one: no task
            self.backbone = Backbone(size.width, size.depth, size.heads)
            self.backbone.initialise()
            for layer in (*embed.values(), *anchor.values(), self.position):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
            for layer in embed.values():
                nn.init.zeros_(layer.bias)
            for layer in head.values():
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.normal_(self.kind.weight, std=0.5)
            nn.init.normal_(self.task.weight, std=0.02)
            self.lead = None
            if config.per_frame_actions:
                told = (2 + 2 * ACTION_FREQUENCIES) * spec.action_dim
                self.lead = nn.Linear(told, size.width, bias=False)
                nn.init.trunc_normal_(self.lead.weight, std=self.lead.in_features**-0.5)
                self._prepare_targets()
            self.success_layer = max(1, round(SUCCESS_DEPTH * size.depth))
            self.success = SuccessHead(size.width) if spec.has_success else None
        # What follows from positions alone is computed here, once, for every frame that can be
        # asked for and every step of the chunk.
        for name, m in self.modalities.items():
            ids = m.ids(horizon.times(m.axis, range(1, horizon.reach + 1)))
            for kind, values in (("ids", ids), ("waves", sinusoids(ids))):
                values = values.unflatten(0, (-1, m.per_step))
                self.register_buffer(f"{kind}_{keys[name]}", values, persistent=False)

    def _prepare_targets(self) -> None:
        """How a normalised action reads as the normalised state that it is a target for."""
        spec = self.spec
        where = [(s, a) for a, s in enumerate(spec.action_targets) if s >= 0]
        self.targets = where if spec.action_kind == "absolute" and spec.state_dim else []
        if not self.targets:
            return
        action, state = (
            Normalizer(spec.stats[kind], self.config.normalization) for kind in ("action", "state")
        )
        s, a = (torch.tensor(column) for column in zip(*self.targets, strict=True))
        factor = action.scale[a] / state.scale[s]
        offset = (action.center[a] - state.center[s]) / state.scale[s]
        for name, values in (("from_state", s), ("from_action", a)):
            self.register_buffer(f"target_{name}", values, persistent=False)
        self.register_buffer("target_factor", factor, persistent=False)
        self.register_buffer("target_offset", offset, persistent=False)

    def _positions(
        self, name: str, steps: Steps, offsets: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Positions ``[L, 3]`` of one modality's tokens, and their `sinusoids`."""
        key, past = self._keys[name], self.horizon.past
        ids, waves = getattr(self, f"ids_{key}"), getattr(self, f"waves_{key}")
        if self.modalities[name].axis == "frame":
            rows = [*range(past), *(past - 1 + offset for offset in offsets)]
            steps = rows[steps] if isinstance(steps, slice) else [rows[s] for s in steps]
        return ids[steps].flatten(0, 1), waves[steps].flatten(0, 1)

    def _pack(
        self,
        patches: Patches,
        steps: Mapping[str, Steps],
        anchors: Patches,
        offsets: tuple[int, ...],
        lead: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed patches and put all tokens in one row: ``[B, L, D]``, and positions ``[L, 3]``."""
        tokens, positions = [], []
        for name, values in patches.items():
            ids, waves = self._positions(name, steps[name], offsets)
            index = list(self.modalities).index(name)
            place = self.position(waves) + self.kind.weight[index]
            embedded = self.embed[self._keys[name]](values)
            if name in anchors:
                embedded = embedded + self.anchor[self._keys[name]](anchors[name])
            if lead is not None and self.modalities[name].axis == "frame":
                embedded = embedded + lead[:, :, None]
            tokens.append(embedded.flatten(1, 2).float() + place.float())
            positions.append(ids)
        return torch.cat(tokens, dim=1), torch.cat(positions)

    def slices_of(self, pattern: Pattern) -> tuple[dict[str, Steps], dict[str, Steps]]:
        """A pattern's kinds as this model's modalities: given and wanted steps by name."""
        given = {
            n: pattern.given[m.kind] for n, m in self.modalities.items() if m.kind in pattern.given
        }
        wanted = {
            n: pattern.wanted[m.kind]
            for n, m in self.modalities.items()
            if m.kind in pattern.wanted
        }
        return given, wanted

    def encode(
        self,
        given: Patches,
        steps: Mapping[str, Steps],
        task: Tensor,
        until: int | None = None,
        offsets: tuple[int, ...] | None = None,
        history: History | None = None,
    ) -> Given:
        """Encode the given patches, once per chunk or window.

        Args:
            given: name -> ``[B, steps, n, E]`` clean, normalised patches.
            steps: name -> which steps of the modality's axis these are.
            task: int64 ``[B]``; -1 for no task.
            until: stop after this many blocks.
            offsets: future frames of the question (`Pattern.offsets`); default: the horizon's grid.
            history: noise on the given frames, wherever the network sees them. What its output is
                added to stays as it is: a patch of pixels has more numbers than a token, so noise
                on it could not be undone.
        """
        offsets = self.horizon.grid if offsets is None else offsets
        condition = self.task(torch.where(task < 0, self.task.num_embeddings - 1, task))
        times = which = None
        seen = dict(given)
        if history is not None:
            times = torch.stack([torch.zeros_like(history.level), history.level], dim=1)
            noisy = [self.modalities[n].axis == "frame" for n in given]
            counts = [v.shape[1] * v.shape[2] for v in given.values()]
            which = torch.tensor(noisy, device=task.device).long()
            which = which.repeat_interleave(torch.tensor(counts, device=task.device))[None]
            level = history.level[:, None, None, None]
            for name, noise in history.noise.items():
                seen[name] = interpolate(given[name], noise, level)
        if given:
            x, ids = self._pack(seen, steps, {}, offsets)
        else:
            x = condition.new_zeros(len(task), 0, self.size.width)
            ids = condition.new_zeros(0, 3)
        now = self.horizon.past
        anchors, shown = (
            {n: v[:, now - 1 : now] for n, v in p.items() if self.modalities[n].axis == "frame"}
            for p in (given, seen)
        )
        context = self.backbone.encode(x, ids, condition, until, times, which)
        # A committed prefix of a chunk leads to no frame that is asked for.
        if self.lead is None or not offsets or steps.get("action") != slice(0, None):
            return Given(context, condition, anchors, shown, offsets)
        actions = given["action"][:, :, 0]
        last = [min(o, actions.shape[1]) for o in offsets]
        means = torch.stack([actions[:, :o].mean(1) for o in last], 1)
        ends = actions[:, [o - 1 for o in last]]
        if self.targets and "state" in anchors:
            told = ends[..., self.target_from_action] * self.target_factor + self.target_offset
            for at in (anchors, shown):
                aim = at["state"].repeat(1, len(offsets), 1, 1)
                aim[..., 0, self.target_from_state] = told.to(aim.dtype)
                at["state"] = aim
        octaves = torch.pi * 2.0 ** torch.arange(ACTION_FREQUENCIES, device=ends.device)
        angles = (ends[..., None] * octaves).flatten(-2)
        lead = self.lead(torch.cat([ends, means, angles.sin(), angles.cos()], dim=-1))
        return Given(context, condition, anchors, shown, offsets, lead)

    def forward(
        self,
        noisy: Patches,
        steps: Mapping[str, Steps],
        clock: Clock,
        given: Given,
        layers: tuple[int, ...] = (),
        until: int | None = None,
    ) -> Prediction:
        """Predict the wanted patches.

        Args:
            noisy: name -> ``[B, steps, n, E]`` at the times of `clock`.
            steps: name -> which steps of the modality's axis these are.
            given: from `encode`.
            layers, until: features to return, block after which to stop (no velocities then).
        """
        x, ids = self._pack(noisy, steps, given.shown, given.offsets, given.lead)
        times, which, slices, start, base = [], [], {}, 0, 0
        for name, values in noisy.items():
            count = values.shape[1] * values.shape[2]
            levels = clock.levels[name]
            index = clock.which.get(name)
            if index is None:
                index = torch.zeros(1, count, dtype=torch.long, device=x.device)
            times.append(levels)
            which.append(index + base)
            slices[name] = slice(start, start + count)
            start, base = start + count, base + levels.shape[1]
        index = None
        if base > 1:
            rows = max(w.shape[0] for w in which)
            index = torch.cat([w.expand(rows, -1) for w in which], dim=1)
        frames = [n for n in noisy if self.modalities[n].axis == "frame"]
        judge = self.success if frames else None
        judged = () if judge is None else (self.success_layer,)
        x, features = self.backbone(
            x, ids, given.condition, torch.cat(times, 1), index, given.context,
            (*layers, *judged), until,
        )  # fmt: skip
        if until is not None and until < self.size.depth:
            return Prediction({}, {}, features, slices)
        success = None
        if judge is not None:
            seen = features[self.success_layer].detach()
            tokens = [seen[:, slices[n]].unflatten(1, noisy[n].shape[1:3]) for n in frames]
            success = judge(torch.cat(tokens, dim=2))
        velocity, data = {}, {}
        x = normalise(x.float())
        for name, values in noisy.items():
            out = self.head[self._keys[name]](x[:, slices[name]]).float()
            out, mask = out.split([values.shape[-1], self.masked.get(name, 0)], dim=-1)
            out = out.reshape(values.shape)
            time = token_times(clock, name, values)
            if self.config.prediction == "x":
                if name in self.masked:
                    share = torch.sigmoid(mask + MASK_BIAS).reshape(*values.shape[:-1], -1)
                    share = share.repeat(1, 1, 1, values.shape[-1] // self.masked[name])
                    out = torch.lerp(given.anchors[name].expand_as(out), out, share)
                elif name in given.anchors:
                    out = out + given.anchors[name]
                data[name], velocity[name] = out, velocity_from_data(values, out, time)
            else:
                data[name], velocity[name] = data_from_velocity(values, out, time), out
        return Prediction(velocity, data, features, slices, success)


MASK_BIAS = -3.0
"""Of the mask of new pixels: a fresh model imagines the last frame again, nearly."""
SUCCESS_DEPTH = 0.6
"""Where success is read off, as a share of the depth: linear probes read best at 0.4 to 0.7."""
POSITION_FREQUENCIES = 8
ACTION_FREQUENCIES = 4


def sinusoids(ids: Tensor) -> Tensor:
    """Absolute positions ``[L, 3]`` -> ``[L, 6 * POSITION_FREQUENCIES]`` features.

    Time in frames at wavelengths of 4 to 512 frames, rows and columns (in [-1, 1]) from one period
    over the image to one per 16th of it.
    """
    steps = torch.linspace(0, 1, POSITION_FREQUENCIES, device=ids.device)
    time = torch.pi / 2 * 128.0**-steps
    space = torch.pi * 16.0**steps
    angles = ids[:, :, None] * torch.stack([time, space, space])
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
