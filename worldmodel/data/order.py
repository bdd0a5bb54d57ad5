"""The order in which training sees its windows, as a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .errors import EmptyError
from .windows import Windows


class Order:
    """A fresh permutation of the windows each epoch; resuming needs the step and nothing else.

    Epoch e is permuted by a generator seeded with (seed, e). A last, incomplete batch is left
    out; where one batch is larger than the whole data, batches run on through the permutations
    of the following epochs instead, so that every window is still seen equally often.
    """

    def __init__(self, n: int, batch_size: int, seed: int):
        if n < 1 or batch_size < 1:
            raise ValueError(
                f"an order needs at least one window and one a batch; got n={n}, "
                f"batch_size={batch_size}"
            )
        self.n = n
        self.batch_size = batch_size
        self.seed = seed
        self._latest: tuple[int, np.ndarray] | None = None  # spares a permutation a step

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every window was seen once, but for the incomplete last batch; >= 1."""
        return max(1, self.n // self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """Window numbers of batch `step` (from 0): int64 ``[batch_size]``."""
        if self.n < self.batch_size:
            first = step * self.batch_size
            place = np.arange(first, first + self.batch_size)
            epochs, within = np.divmod(place, self.n)
            return np.concatenate(
                [self._permutation(e)[within[epochs == e]] for e in np.unique(epochs).tolist()]
            )
        epoch, number = divmod(step, self.batches_per_epoch)
        first = number * self.batch_size
        return self._permutation(epoch)[first : first + self.batch_size].copy()

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._latest is None or self._latest[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            self._latest = (epoch, order.astype(np.int64, copy=False))
        return self._latest[1]


SOURCES = ("any", "has_action", "demonstrated")


class Orders:
    """An `Order` for each of the populations of windows that patterns are learnt from.

    Args:
        windows: of the training split.
        batch_size, seed: see `Order`. A population that holds all windows has their very order.
        sources: those of `SOURCES` that are needed.

    Raises:
        EmptyError: a population that is needed has no window.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, sources: Iterable[str]):
        self._members = {}
        self._orders = {}
        for source in sources:
            self._members[source] = members(windows, source)
            if not len(self._members[source]):
                raise EmptyError(
                    f"no training window is {SAID[source]}, which some patterns of "
                    "objective.patterns learn from; add demonstrations, or leave those patterns out"
                )
            self._orders[source] = Order(len(self._members[source]), batch_size, seed)

    def batch(self, source: str, step: int) -> np.ndarray:
        """Window numbers of batch `step` of a population: int64 ``[batch_size]``."""
        return self._members[source][self._orders[source].batch(step)]


SAID = {
    "any": "there",
    "has_action": "of an episode with actions",
    "demonstrated": "of a demonstration (an episode whose actions are to be imitated)",
}


def members(windows: Windows, source: str) -> np.ndarray:
    """The window numbers of one of `SOURCES`, int64, ascending."""
    if source == "any":
        return np.arange(len(windows))
    return np.flatnonzero(getattr(windows, source))
