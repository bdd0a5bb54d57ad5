"""The world model: patches and times in, velocities (or data) and features out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .backbone import Backbone, Context, normalise
from .flow import data_from_velocity, velocity_from_data
from .tokens import Horizon, Modality, Pattern, modalities_of
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
    normalization: of states and actions, a mode of `worldmodel.data.Normalizer`.
    """

    size: str = "tiny"
    width: int = 0
    depth: int = 0
    heads: int = 0
    patch: int = 8
    prediction: str = "x"
    task_dropout: float = 0.1
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
    """

    velocity: dict[str, Tensor]
    data: dict[str, Tensor]
    features: dict[int, Tensor]
    slices: dict[str, slice]


@dataclass
class Given:
    """The encoded given tokens: what stays the same while sampling.

    Attributes:
        context: keys and values.
        condition: ``[B, D]``, of the task.
        anchors: modality name -> the last past patches ``[B, 1, n, E]``, of every modality on the
            frame axis whose past is given.
    """

    context: Context
    condition: Tensor
    anchors: dict[str, Tensor]

    def repeat(self, times: int) -> Given:
        """Each sample `times` times in a row."""
        if times == 1:
            return self
        return Given(
            self.context.repeat(times),
            self.condition.repeat_interleave(times, 0),
            {n: v.repeat_interleave(times, 0) for n, v in self.anchors.items()},
        )


class WorldModel(nn.Module):
    """One shared backbone; per modality only input and output linears and an embedding.

    Future frames and states are predicted as changes: their tokens see the last past patch of the
    same place (the *anchor*, through a linear of its own), and with x-prediction the network's
    output is added to it. A fresh model thus imagines the last frame again, and learns what moves.

    Args:
        spec: facts of the dataset or robot.
        horizon: when the steps of a window happen.
        config: size, patch, prediction.
        seed: of the initial weights.
    """

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
            head = {keys[n]: nn.Linear(size.width, m.width) for n, m in self.modalities.items()}
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
        # What follows from positions alone is computed here, once, for every step of the horizon.
        for name, m in self.modalities.items():
            ids = m.ids(horizon.times(m.axis))
            for kind, values in (("ids", ids), ("waves", sinusoids(ids))):
                values = values.unflatten(0, (-1, m.per_step))
                self.register_buffer(f"{kind}_{keys[name]}", values, persistent=False)

    def _positions(self, name: str, steps: slice) -> tuple[Tensor, Tensor]:
        """Positions ``[L, 3]`` of one modality's tokens, and their `sinusoids`."""
        key = self._keys[name]
        ids, waves = getattr(self, f"ids_{key}"), getattr(self, f"waves_{key}")
        return ids[steps].flatten(0, 1), waves[steps].flatten(0, 1)

    def _pack(
        self, patches: Patches, steps: Mapping[str, slice], anchors: Patches
    ) -> tuple[Tensor, Tensor]:
        """Embed patches and put all tokens in one row: ``[B, L, D]``, and positions ``[L, 3]``."""
        tokens, positions = [], []
        for name, values in patches.items():
            ids, waves = self._positions(name, steps[name])
            index = list(self.modalities).index(name)
            place = self.position(waves) + self.kind.weight[index]
            embedded = self.embed[self._keys[name]](values)
            if name in anchors:
                embedded = embedded + self.anchor[self._keys[name]](anchors[name])
            tokens.append(embedded.flatten(1, 2).float() + place.float())
            positions.append(ids)
        return torch.cat(tokens, dim=1), torch.cat(positions)

    def slices_of(self, pattern: Pattern) -> tuple[dict[str, slice], dict[str, slice]]:
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
        self, given: Patches, steps: Mapping[str, slice], task: Tensor, until: int | None = None
    ) -> Given:
        """Encode the given patches, once per chunk or window.

        Args:
            given: name -> ``[B, steps, n, E]`` clean, normalised patches.
            steps: name -> which steps of the modality's axis these are.
            task: int64 ``[B]``; -1 for no task.
            until: stop after this many blocks.
        """
        condition = self.task(torch.where(task < 0, self.task.num_embeddings - 1, task))
        if given:
            x, ids = self._pack(given, steps, {})
        else:
            x = condition.new_zeros(len(task), 0, self.size.width)
            ids = condition.new_zeros(0, 3)
        now = self.horizon.past
        anchors = {
            n: v[:, now - 1 : now]
            for n, v in given.items()
            if self.modalities[n].axis == "frame" and steps[n].start == 0
        }
        return Given(self.backbone.encode(x, ids, condition, until), condition, anchors)

    def forward(
        self,
        noisy: Patches,
        steps: Mapping[str, slice],
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
        x, ids = self._pack(noisy, steps, given.anchors)
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
        x, features = self.backbone(
            x, ids, given.condition, torch.cat(times, 1), index, given.context, layers, until
        )
        if until is not None and until < self.size.depth:
            return Prediction({}, {}, features, slices)
        velocity, data = {}, {}
        x = normalise(x.float())
        for name, values in noisy.items():
            out = self.head[self._keys[name]](x[:, slices[name]]).float().reshape(values.shape)
            time = token_times(clock, name, values)
            if self.config.prediction == "x":
                out = out + given.anchors[name] if name in given.anchors else out
                data[name], velocity[name] = out, velocity_from_data(values, out, time)
            else:
                data[name], velocity[name] = data_from_velocity(values, out, time), out
        return Prediction(velocity, data, features, slices)


POSITION_FREQUENCIES = 8


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
