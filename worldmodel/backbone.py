"""The transformer: every token has its own time.

Choices, in the order in which they appear:

- one stream per role: *given* tokens (time 0) attend to given tokens only, *wanted* tokens attend
  to everything present. The keys and values of the given part therefore depend on nothing that
  changes while sampling: `Backbone.encode` computes them once, `Backbone.forward` reuses them, and
  training runs through the same two calls;
- modulation (adaLN-single, PixArt-alpha, arXiv 2310.00426): one small network turns each
  *distinct* time into scales and gates, every block adds a learned offset, and tokens gather
  theirs; a token costs no modulation network of its own. Instead of per-block shifts, the embedded
  time is added to the token once, at the input;
- rotary positions on three axes: time in frames, row, column (RoPE, arXiv 2104.09864);
- normalised queries and keys (QK-norm, ViT-22B, arXiv 2302.05442), squared ReLU (Primer, arXiv
  2109.08668; a third of the cost of GELU on a CPU), no biases inside blocks.

Most of a training step on a CPU is memory traffic, not arithmetic, so operators are chosen to pass
over tokens as few times as possible; what that means is said where it shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNKS = 4  # scale and gate for attention, scale and gate for the feed-forward


@dataclass
class Context:
    """What the given tokens leave behind: keys and values per block, each ``[B, h, G, D / h]``."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def repeat(self, times: int) -> Context:
        """Each sample `times` times in a row, for several draws per observation."""
        if times == 1:
            return self
        return Context(
            [k.repeat_interleave(times, 0) for k in self.keys],
            [v.repeat_interleave(times, 0) for v in self.values],
        )


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over ``[B, h, L, d]``.

    On CPUs two batched products beat PyTorch's fused kernel about fourfold in bfloat16 at the
    lengths of this project (50 to 300 tokens), forward and backward; on GPUs the fused one wins.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.softmax(weights, dim=-1) @ v


def normalise(x: Tensor) -> Tensor:
    """Layer normalisation over the last axis, without learned parameters (one fused pass)."""
    return F.layer_norm(x, (x.shape[-1],), eps=1e-6)


class Rotary(nn.Module):
    """Rotary embedding on three axes: half of a head turns with time, a quarter each with y and x.

    Times are in frames (wavelengths of about 6 to 400 frames); rows and columns are in [-1, 1].
    """

    frequencies: Tensor

    def __init__(self, head: int) -> None:
        super().__init__()
        if head % 8:
            raise ValueError(f"width / heads must be a multiple of 8, found {head}")
        pairs = (head // 4, head // 8, head // 8)
        time = 64.0 ** -torch.linspace(0, 1, pairs[0])
        space = math.pi * 2.0 ** torch.linspace(-1, 3, pairs[1])
        table = torch.zeros(3, sum(pairs))
        table[0, : pairs[0]] = time
        table[1, pairs[0] : pairs[0] + pairs[1]] = space
        table[2, pairs[0] + pairs[1] :] = space
        self.register_buffer("frequencies", table, persistent=False)

    def forward(self, ids: Tensor, heads: int) -> Tensor:
        """Unit complex numbers ``[L, heads * d / 2]`` for positions ``[L, 3]``."""
        # Not a matrix product: autocast would round the angles of training to bfloat16.
        angles = (ids[:, :, None] * self.frequencies).sum(1)
        turn = torch.polar(torch.ones_like(angles), angles)
        return turn[:, None].expand(-1, heads, -1).flatten(1)


def turn_pairs(x: Tensor, by: Tensor) -> Tensor:
    """Turn neighbouring pairs of ``[B, L, 2 h, d]`` by ``[L, h * d]`` complex numbers, in fp32."""
    pairs = x.float().view(x.shape[0], x.shape[1], -1, 2)
    return torch.view_as_real(torch.view_as_complex(pairs) * by).view(x.shape)


def turn_and_split(x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """What `rotate` does, without a gradient."""
    batch, length, heads, size = x.shape
    turned = turn_pairs(x, by).view(batch, length, 2, heads // 2, size)
    out = x.new_empty(2, batch, heads // 2, length, size)
    out.copy_(turned.permute(2, 0, 3, 1, 4))
    return out[0], out[1]


class _Rotate(torch.autograd.Function):
    """`turn_and_split`, and back by the conjugate."""

    @staticmethod
    def forward(ctx, x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(by)
        return turn_and_split(x, by)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (by,) = ctx.saved_tensors
        batch, heads, length, size = grads[0].shape
        joined = grads[0].new_empty(batch, length, 2, heads, size, dtype=torch.float32)
        for number, grad in enumerate(grads):
            joined[:, :, number].copy_(grad.transpose(1, 2))
        joined = joined.view(batch, length, 2 * heads, size)
        return turn_pairs(joined, by.conj().resolve_conj()).to(grads[0].dtype), None


def rotate(x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Turn neighbouring pairs of each head, moving heads before tokens.

    ``[B, L, 2 h, d]`` -> queries and keys ``[B, h, L, d]``, contiguous. One complex product over
    whole rows, in fp32: the textbook form cuts heads into halves and concatenates them again, which
    costs several times the memory traffic.
    """
    return _Rotate.apply(x, by) if x.requires_grad else turn_and_split(x, by)


@dataclass
class Times:
    """Embedded distinct times and which token has which.

    Attributes:
        embedded: ``[B, J, D]``, added to the tokens at the input.
        parts: scales and gates of the distinct times, ``[B, J, CHUNKS, D]``.
        select: one-hot ``[B or 1, L, J]``, or None when all tokens share one time (J = 1).
    """

    embedded: Tensor
    parts: Tensor
    select: Tensor | None

    def gather(self, values: Tensor) -> Tensor:
        """``[B, J, D]`` per distinct time -> per token: ``[B, L, D]``, or ``[B, 1, D]``.

        A product with a one-hot matrix: exact, and its backward is a product too, where that of
        an indexed gather is a slow scatter.
        """
        return values if self.select is None else self.select @ values


class Modulation(nn.Module):
    """Distinct times (and a task) -> scales and gates, shared by all blocks.

    Times enter as sinusoids of ``1000 t``, so that 0..1 spans the usual range of frequencies.
    """

    rates: Tensor

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.out = nn.Linear(width, CHUNKS * width)
        rates = 10_000.0 ** -(torch.arange(frequencies) / frequencies)
        self.register_buffer("rates", 1000.0 * rates, persistent=False)

    def forward(self, times: Tensor, condition: Tensor, which: Tensor | None) -> Times:
        """Args:
        times: distinct times ``[B, J]``.
        condition: ``[B, D]``.
        which: int64 ``[B or 1, L]``, or None when J = 1.
        """
        angles = times.float()[..., None] * self.rates
        embedded = self.embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        embedded = embedded + condition[:, None].to(embedded.dtype)
        out = self.out(F.silu(embedded))
        select = None
        if which is not None:
            select = F.one_hot(which, times.shape[1]).to(out.dtype).expand(len(times), -1, -1)
        return Times(embedded, out.unflatten(-1, (CHUNKS, -1)), select)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each scaled and gated by the token's own time."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(width, 2 * width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.qk_scale = nn.Parameter(torch.ones(width // heads))
        self.attention_out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.offset = nn.Parameter(torch.zeros(CHUNKS, width))

    def forward(
        self,
        x: Tensor,
        turn: Tensor,
        times: Times,
        given: tuple[Tensor, Tensor] | None = None,
        keys_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One block over ``[B, L, D]``.

        Args:
            given: keys and values of the given tokens to attend to besides one's own.
            keys_only: skip everything that only later blocks would need.

        Returns:
            The new tokens, and the keys and values ``[B, h, L, d]`` of these tokens.
        """
        parts = times.parts + self.offset.to(times.parts.dtype)
        scale_a, gate_a, scale_f, gate_f = (
            times.gather(part).to(x.dtype) for part in parts.unbind(2)
        )
        h = normalise(x)
        h = torch.addcmul(h, h, scale_a)
        size = x.shape[-1] // self.heads
        qk = self.qk(h).unflatten(-1, (2 * self.heads, size))
        q, k = rotate(F.layer_norm(qk, (size,), self.qk_scale.to(qk.dtype), eps=1e-6), turn)
        v = self.value(h).unflatten(-1, (self.heads, size)).transpose(1, 2)
        if keys_only:
            return x, k, v
        all_k, all_v = k, v
        if given is not None:
            all_k, all_v = torch.cat([given[0], k], dim=2), torch.cat([given[1], v], dim=2)
        mixed = attention(q, all_k, all_v).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate_a, self.attention_out(mixed).to(x.dtype))
        h = normalise(x)
        h = torch.addcmul(h, h, scale_f)
        h = self.down(F.relu(self.up(h), inplace=True).square())
        return torch.addcmul(x, gate_f, h.to(x.dtype)), k, v


class Backbone(nn.Module):
    """Blocks over packed tokens ``[B, L, D]``; knows nothing of modalities."""

    def __init__(self, width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.rotary = Rotary(width // heads)
        self.modulation = Modulation(width)
        hidden = round(width * mlp_ratio)
        self.blocks = nn.ModuleList([Block(width, heads, hidden) for _ in range(depth)])

    def initialise(self) -> None:
        """Truncated-normal weights, gates open at a small constant.

        ======================  ==================================================
        linear weights          std 1 / sqrt(fan_in)
        modulation output       zero, so that all times start out alike
        gates                   offset 1 / sqrt(2 depth): a short run has no time
                                to open gates that start at zero
        ======================  ==================================================
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, Block):
                with torch.no_grad():
                    module.offset[1::2] = (2 * len(self.blocks)) ** -0.5
        nn.init.zeros_(self.modulation.out.weight)

    def encode(
        self,
        x: Tensor,
        ids: Tensor,
        condition: Tensor,
        until: int | None = None,
        times: Tensor | None = None,
        which: Tensor | None = None,
    ) -> Context:
        """Run the given tokens and keep their keys and values.

        Args:
            x: ``[B, G, D]``; G may be 0.
            ids: positions ``[G, 3]``.
            condition: ``[B, D]``.
            until: stop after this many blocks (default: all).
            times, which: of the given tokens, as in `forward`; default: all at time 0.
        """
        depth = len(self.blocks) if until is None else until
        turn = self.rotary(ids, 2 * self.heads)
        levels = x.new_zeros(x.shape[0], 1) if times is None else times
        clocks = self.modulation(levels, condition, which)
        x = (x + clocks.gather(clocks.embedded)).to(stream_dtype(x))
        context = Context()
        for number, block in enumerate(self.blocks[:depth], start=1):
            x, k, v = block(x, turn, clocks, keys_only=number == depth)
            context.keys.append(k)
            context.values.append(v)
        return context

    def forward(
        self,
        x: Tensor,
        ids: Tensor,
        condition: Tensor,
        times: Tensor,
        which: Tensor | None,
        context: Context,
        layers: tuple[int, ...] = (),
        until: int | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the wanted tokens.

        Args:
            x: ``[B, L, D]``.
            ids: positions ``[L, 3]``.
            condition: ``[B, D]``.
            times: distinct times ``[B, J]``.
            which: int64 ``[B or 1, L]``, index into the J times for each token; None when J = 1.
            context: of the given tokens.
            layers: numbers of blocks after which features are wanted (1 is the first block).
            until: stop after this many blocks.

        Returns:
            Tokens ``[B, L, D]`` after the last block run, and the features asked for.
        """
        turn = self.rotary(ids, 2 * self.heads)
        clocks = self.modulation(times, condition, which)
        x = (x + clocks.gather(clocks.embedded)).to(stream_dtype(x))
        features = {}
        for number, block in enumerate(self.blocks[:until], start=1):
            given = context.keys[number - 1], context.values[number - 1]
            x, _, _ = block(x, turn, clocks, given)
            if number in layers:
                features[number] = x
        return x, features


def stream_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the token stream: autocast's, where it is on, else that of `x`.

    Half the memory traffic in bfloat16; weights, inputs, heads and losses stay in float32.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
