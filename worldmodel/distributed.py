"""Training in several processes that compute what one would, each on its rows of every batch.

A launcher (``accelerate launch``, ``torchrun``) starts the same program several times and tells
each copy its rank; `join` makes them a `World`. Each process holds the whole model and learns from
its rows of the batch; gradients are summed before each optimiser step, so that all models stay the
same. Rank 0 leads: it alone decides what depends on the clock, writes, and speaks to the user.

One process that ends takes the others with it: their next exchange fails, since its connections
close, and that is a `PeerError`. Of several processes that fail, one tells the user why.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=7)  # for the leader: decoding a dataset, validating, saving
BUCKET = 1 << 23  # numbers that are summed at once (32 MB in float32)


class PeerError(RuntimeError):
    """Another process of this run ended."""


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them; by default there is only this one.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    _small: Any = field(default=None, repr=False)  # group for a few numbers, on the CPU
    _large: Any = field(default=None, repr=False)  # group for gradients, on the model's device

    @property
    def leads(self) -> bool:
        """Whether this is the process that decides, writes and speaks."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which of the rows of a batch are this process's."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def require_divides(self, count: int, what: str) -> None:
        """Refuse a batch that does not go evenly into the processes.

        Raises:
            ValueError: names numbers that do.
        """
        if count % self.size:
            below, above = count - count % self.size, count + self.size - count % self.size
            known = " or ".join(str(n) for n in (below, above) if n)
            raise ValueError(
                f"{what} is {count}, the batch of all processes together, and does not divide into "
                f"{self.size} of them: use {known}, or another number of processes"
            )

    # --- exchanges: every process must come to the same ones in the same order -------------------

    def leader[T](self, make: Callable[[], T]) -> T:
        """What `make` returns for the leader, which alone calls it."""
        if self.size == 1:
            return make()
        box = [make() if self.leads else None]
        with _exchange():
            dist.broadcast_object_list(box, src=0, group=self._small)
        return box[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Go on when all have come here."""
        self.add(torch.zeros(1))

    def add(self, values: Tensor) -> Tensor:
        """The sum over the processes of a tensor of a few numbers, in float64 on the way."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def greatest(self, values: Tensor) -> Tensor:
        """The greatest over the processes of each of a few numbers."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def _reduce(self, values: Tensor, how: Any) -> Tensor:
        if self.size == 1:
            return values
        table = values.detach().to("cpu", torch.float64, copy=True)
        with _exchange():
            dist.all_reduce(table, how, group=self._small)
        return table.to(values.device, values.dtype)

    def add_all(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The sums of tensors over the processes, in place.

        None is skipped, as gradients are None for what a pattern leaves out: processes that ask
        the same question of the same model leave the same ones out.
        """
        if self.size > 1:
            for bucket in _buckets([t for t in tensors if t is not None]):
                flat = torch.cat([t.flatten() for t in bucket])
                with _exchange():
                    dist.all_reduce(flat, group=self._large)
                parts = flat.split([t.numel() for t in bucket])
                for tensor, total in zip(bucket, parts, strict=True):
                    tensor.copy_(total.view_as(tensor))
        return tensors

    def require_same(self, facts: dict[str, Any]) -> None:
        """Refuse processes that are not at the same work.

        Raises:
            ValueError: names the first fact that differs between them.
        """
        names = sorted(facts)
        own = torch.tensor([_digest(facts[name]) for name in names], dtype=torch.float64)
        same = self.greatest(own) == -self.greatest(-own)
        for name, agreed in zip(names, same.tolist(), strict=True):
            if not agreed:
                raise ValueError(
                    f"{name} differs between the {self.size} processes (here, in process "
                    f"{self.rank}: {facts[name]}): start all of them with the same command line, "
                    "and let them read the same files"
                )

    @contextlib.contextmanager
    def machine_by_machine(self) -> Iterator[None]:
        """Let the first process of each machine through the block, then all others.

        For work that the first one leaves a result of on disk.
        """
        if self.local_rank > 0:
            self.wait()
        yield
        if self.local_rank == 0:
            self.wait()

    # --- the end ---------------------------------------------------------------------------------

    def first_to_fail(self) -> bool:
        """Whether no other process has failed before this one, which then tells the user why."""
        if self.size == 1:
            return True
        try:
            return dist.distributed_c10d._get_default_store().add("selfflow/failed", 1) == 1
        except RuntimeError:  # the store lived in the process that ended
            return True

    def leave(self) -> None:
        """End together: a launcher stops all the others as soon as one has ended with an error."""
        if self.size > 1:
            self.wait()
            dist.destroy_process_group()


ALONE = World()


def launched() -> int:
    """How many processes a launcher started; 1 without one.

    Raises:
        ValueError: ``accelerate launch`` was asked for several and started one.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if "WORLD_SIZE" not in os.environ and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= {
        *os.environ
    }:
        raise ValueError(
            "accelerate launch was asked for several processes and started one, as it does without "
            "several GPUs: add --multi_gpu (which takes CPUs too), or use torchrun "
            "--nproc_per_node N"
        )
    return size


def rank() -> int:
    """This process's rank as the launcher gave it, before `join`; 0 without one."""
    return int(os.environ.get("RANK", 0))


def join() -> World:
    """Meet the other processes of this run; `ALONE` where there are none.

    Raises:
        ValueError: see `launched`.
        PeerError: they did not come.
    """
    size = launched()
    if size == 1:
        return ALONE
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size) and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on one machine: stay in it
    with _exchange():
        dist.init_process_group("gloo")
        # In a group of its own, as it may wait for longer than gradients should.
        small = dist.new_group(backend="gloo", timeout=PATIENCE)
    local = int(os.environ.get("LOCAL_RANK", 0))
    return World(dist.get_rank(), size, local, small, dist.group.WORLD)


def on_device(world: World, device: torch.device) -> World:
    """The same world, exchanging gradients between devices of this kind."""
    if world.size == 1 or device.type != "cuda":
        return world
    torch.cuda.set_device(device)
    with _exchange():
        large = dist.new_group(backend="nccl")
    return World(world.rank, world.size, world.local_rank, world._small, large)


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch.distributed raises for all that can go wrong
        reason = str(error).strip().splitlines()[0]
        raise PeerError(
            f"another process of this run has ended, killed or out of memory unless it says why "
            f"itself ({reason}). The last checkpoint is whole: go on from it with resume=true"
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and together no larger than a bucket, unless it is a single one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(t.numel() for t in bucket) + tensor.numel()
        if bucket and (size > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _digest(value: Any) -> float:
    """A number that differs for different values, exact in float64."""
    text = repr(value).encode()
    return float(int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "little"))
