"""Searching among chunks: a policy proposes several, each is judged, the best one is executed.

How a chunk is judged, subclasses say: `policies.planner.Planner` imagines what comes of it,
`policies.simulator_planner.SimulatorPlanner` tries it in the true simulator. Candidate 0 is the
chunk that the policy alone would execute, so searching among one candidate is the policy, bit for
bit.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.data.errors import did_you_mean

from .flow_policy import ChunkPolicy, FlowPolicy, Moment

METHODS = ("best_of", "cem")
COEFFICIENTS = 3
"""Of the offset of an action, at most: with 8 joints, 24 numbers for a chunk."""
TIE = 0.01
"""How much the tie-break counts beside the value. Of two chunks that both lead to success, values
differ by less than that, and the one that leads there sooner is better."""


@dataclass
class SearchConfig:
    """How many candidates there are and how they are found.

    Attributes:
        candidates: chunks per decision, the policy's own included.
        method: "best_of" judges samples of the policy; "cem" (cross-entropy method) begins so and
            refines: later candidates are drawn around the best ones so far.
        rounds: of "cem", among which the candidates are shared out; fewer where there would be less
            than two candidates a round.
        elites: of "cem", share of the candidates so far that the next ones are drawn around.
        spread: of "cem", smallest standard deviation of refined chunks, as a share of each action's
            range. 0 varies chunks only as far as samples of the policy do.
        budget_ms: time for a decision. Looked at between batches, whose size is fitted to what is
            left by how long earlier ones took; what is best by then is executed. None: no limit,
            and decisions do not depend on timing.
        max_rows: largest batch, over all slots that decide together; bounds memory.

    Raises:
        ValueError: an unknown method, or a number that means nothing.
    """

    candidates: int = 16
    method: str = "best_of"
    rounds: int = 4
    elites: float = 0.15
    spread: float = 0.0
    budget_ms: float | None = None
    max_rows: int = 64

    def __post_init__(self) -> None:
        require_known("method", self.method, METHODS)
        for name in ("candidates", "rounds", "max_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 < self.elites <= 1 or self.spread < 0:
            raise ValueError(
                f"elites is in (0, 1] and spread at least 0; found elites={self.elites}, "
                f"spread={self.spread}"
            )
        if self.budget_ms is not None and self.budget_ms <= 0:
            raise ValueError(f"budget_ms must be above 0, or None; found {self.budget_ms}")


@dataclass
class Outlook:
    """What R candidates are expected to lead to.

    Attributes:
        value: ``[R]``, higher is better.
        tie: ``[R]`` in [0, 1], what decides between equal values; higher is better.
        final: ``[R, S]``, the state at the end; ``[R, 0]`` where it is not known.
    """

    value: np.ndarray
    tie: np.ndarray
    final: np.ndarray


@dataclass(frozen=True)
class Record:
    """One decision of one slot. N: candidates.

    Attributes:
        slot: where it was made.
        seed, number: of the episode, and how many chunks it had had before.
        values: float64 ``[N]``, what was expected of each candidate; NaN where time ran out.
        chosen: which one was executed.
        evaluated: how many were judged.
        ms: of the whole decision, together with the slots that decided at the same moment.
        final: float64 ``[N, S]``, expected states at the end, NaN like `values`.
    """

    slot: int
    seed: int
    number: int
    values: np.ndarray
    chosen: int
    evaluated: int
    ms: float
    final: np.ndarray

    @property
    def predicted(self) -> float:
        """What was expected of the chosen candidate; NaN if there was no time to judge it."""
        return float(self.values[self.chosen])

    @property
    def diversity(self) -> np.ndarray:
        """``[S]``, standard deviation of the expected final states over the judged candidates."""
        judged = self.final[np.isfinite(self.values)]
        return judged.std(axis=0) if len(judged) else np.full(self.final.shape[1], np.nan)


@dataclass
class _Search:
    """The candidates of G slots; those that are not judged yet rank last."""

    chunks: np.ndarray
    values: np.ndarray
    ranks: np.ndarray
    final: np.ndarray

    @classmethod
    def start(cls, first: np.ndarray, candidates: int) -> _Search:
        """Candidate 0 is `first`, ``[G, K, A]``."""
        size = (len(first), candidates)
        chunks = np.zeros((*size, *first.shape[1:]), np.float32)
        chunks[:, 0] = first
        return cls(chunks, np.full(size, np.nan), np.full(size, -np.inf), np.zeros((*size, 0)))


class SearchPolicy(ChunkPolicy):
    """A policy that chooses among chunks of another one; how it judges them, a subclass says.

    Args:
        policy: proposes. Its settings (executed and committed actions, fit) hold for every
            candidate.
        plan: how to search.

    Attributes:
        log: a `Record` for every decision since it was made; whoever reads it may clear it.
    """

    def __init__(self, policy: FlowPolicy, plan: SearchConfig) -> None:
        super().__init__(policy.spec, policy.horizon, policy.config)
        self.policy, self.plan = policy, plan
        self.name = f"{policy.name}, {plan.method} {plan.candidates}"
        self.log: list[Record] = []
        self._pace: dict[int, float] = {}  # rows of a batch -> the least ms that one took

    @property
    def stamp(self) -> dict[str, Any]:
        return self.policy.stamp

    def imagine(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, commands: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `policies.flow_policy.imagined_frames`."""
        return self.policy.imagine(images, state, commands)

    @abstractmethod
    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        """Judge candidates.

        Args:
            moment: of the G slots that decide together.
            rows: int ``[R]``, which of the G each candidate is for.
            chunks: ``[R, K, A]`` in physical units.
        """

    def choose(self, moment: Moment) -> tuple[np.ndarray, dict[str, float]]:
        """The best chunks that are found; see `ChunkPolicy`. "plan" is what planning adds."""
        begin = time.perf_counter()
        first, stages = self.policy.choose(moment)
        mark = time.perf_counter()
        found = _Search.start(first, self.plan.candidates)
        self._search(moment, found, begin)
        chosen = found.ranks.argmax(axis=1)  # among equals, and where none is judged: the first
        end = time.perf_counter()
        for g, slot in enumerate(moment.slots):
            self.log.append(
                Record(
                    int(slot),
                    int(moment.seeds[g]),
                    int(moment.numbers[g]),
                    found.values[g],
                    int(chosen[g]),
                    int(np.isfinite(found.values[g]).sum()),
                    1e3 * (end - begin),
                    found.final[g],
                )
            )
        return found.chunks[np.arange(len(chosen)), chosen], {**stages, "plan": 1e3 * (end - mark)}

    def _search(self, moment: Moment, found: _Search, begin: float) -> None:
        """Fill in candidates round by round, until there is no more time."""
        count, slots = self.plan.candidates, len(moment.slots)
        rounds = max(1, min(self.plan.rounds, count // 2)) if self.plan.method == "cem" else 1
        judged = 0
        for number, part in enumerate(np.array_split(np.arange(count), rounds)):
            around = self._refit(found, judged) if number else None
            # The first candidate of every slot comes before the second of any.
            todo, rows = np.repeat(part, slots), np.tile(np.arange(slots), len(part))
            while len(todo):
                size = self._affordable(slots, begin, np.isfinite(found.values).any())
                if not size:
                    return
                mark = time.perf_counter()
                self._judge(moment, found, rows[:size], todo[:size], around)
                done, ms = len(todo[:size]), 1e3 * (time.perf_counter() - mark)
                self._pace[done] = min(ms, self._pace.get(done, ms))
                todo, rows = todo[size:], rows[size:]
            judged = int(part[-1]) + 1

    def _judge(
        self,
        moment: Moment,
        found: _Search,
        rows: np.ndarray,
        which: np.ndarray,
        around: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    ) -> None:
        """Make and judge candidate ``which[r]`` of slot ``rows[r]``, in one batch."""
        new = which > 0  # candidate 0 is there already
        if new.any():
            here = moment.take(rows[new])
            noise = self._noise(here, which[new])
            if around is None:
                made, _ = self.policy.propose(here, noise)
            else:
                made = self._refined(here, noise, *(a[rows[new]] for a in around))
            found.chunks[rows[new], which[new]] = made
        outlook = self.outlook(moment, rows, found.chunks[rows, which])
        if not np.isfinite(outlook.value + outlook.tie).all():
            raise ValueError(
                f"{self.name}: a candidate was judged with a value that is not finite: "
                f"{outlook.value.tolist()}"
            )
        found.values[rows, which] = outlook.value
        found.ranks[rows, which] = outlook.value + TIE * outlook.tie
        if not found.final.shape[2]:
            found.final = np.full((*found.values.shape, outlook.final.shape[1]), np.nan)
        found.final[rows, which] = outlook.final

    def _noise(self, moment: Moment, which: np.ndarray) -> np.ndarray:
        """Noise ``[R, K, A]`` of these candidates, from seed, chunk and candidate alone."""
        triples = zip(moment.seeds.tolist(), moment.numbers.tolist(), which.tolist(), strict=True)
        return np.stack([self.policy.noise(*triple) for triple in triples])

    # --- cem --------------------------------------------------------------------------------------
    #
    # Refined is neither the noise of a chunk (K * A numbers, of which a handful of elites says
    # little, and whose mean is noise that no chunk of the policy comes from) nor its actions one by
    # one (white noise on commands is jerk). It is a polynomial offset of few coefficients: smooth
    # by itself, and it begins with value and slope 0, so that a refined chunk goes on from the
    # executed commands like the one that it came from. It then passes the same fit as all chunks.

    def _offsets(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Orthonormal basis ``[length, C]``, and which coefficients ``[C, A]`` an action has.

        An action that no polynomial follows, such as a switching gripper, has none.
        """
        steps = np.arange(1, length + 1)[:, None] / length
        basis = np.linalg.qr(steps ** np.arange(2, 2 + min(COEFFICIENTS, length)))[0]
        count = basis.shape[1]
        # Of a polynomial of r coefficients, two are what it begins with.
        free = [max(1, min(r - 2, count)) if r else 0 for r in self.spec.action_rank]
        numbers = np.array(free or [count] * self.spec.action_dim)
        return basis, (np.arange(count)[:, None] < numbers).astype(float)

    def _refit(self, found: _Search, judged: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where to draw next, from the first `judged` candidates.

        The elites' deviation is taken from the mean of all candidates, not from their own: in the
        direction in which they are better it stays wide (as in CMA-ES, Hansen, arXiv 1604.00772,
        section 3.1). A handful of elites around their own mean shrinks before it has moved: with 48
        candidates on a squared distance, that was worse than as many samples of the policy.

        Returns:
            The best chunks ``[G, K, A]``, and of the offsets from them mean and standard deviation
            ``[G, C, A]``.
        """
        depth = self.config.prefix
        basis, free = self._offsets(self.horizon.chunk - depth)
        size = min(judged, max(2, math.ceil(self.plan.elites * judged)))
        order = np.argsort(-found.ranks[:, :judged], axis=1, kind="stable")
        ranked = np.take_along_axis(found.chunks, order[:, :, None, None], axis=1)
        best = ranked[:, :1]
        offsets = np.einsum("kc,gjka->gjca", basis, (ranked - best)[:, :, depth:]) * free
        elites, middle = offsets[:, :size], offsets.mean(axis=1, keepdims=True)
        stats = self.spec.stats["action"]
        span = np.array(stats["q99"]) - np.array(stats["q01"])
        # With this deviation of its coefficients an offset is, in the mean square, `spread`.
        least = self.plan.spread * span * np.sqrt(len(basis) / np.maximum(free.sum(0), 1))
        deviation = np.maximum(np.sqrt(((elites - middle) ** 2).mean(axis=1)), least) * free
        return best[:, 0], elites.mean(axis=1), deviation

    def _refined(
        self,
        moment: Moment,
        noise: np.ndarray,
        best: np.ndarray,
        mean: np.ndarray,
        deviation: np.ndarray,
    ) -> np.ndarray:
        """Chunks ``[R, K, A]`` drawn around the elites."""
        depth = 0 if moment.committed is None else moment.committed.shape[1]
        basis, _ = self._offsets(self.horizon.chunk - self.config.prefix)
        offset = np.einsum("kc,rca->rka", basis, mean + deviation * noise[:, : basis.shape[1]])
        chunks = best.copy()
        chunks[:, len(chunks[0]) - len(basis) :] += offset.astype(np.float32)
        chunks[:, depth:] = self.policy.smooth(chunks[:, depth:], moment.known, moment.state[:, -1])
        return chunks

    # --- time -------------------------------------------------------------------------------------

    def _affordable(self, slots: int, begin: float, begun: bool) -> int:
        """Rows of the next batch; 0 if there is no time for another one.

        The first batch of a decision judges one candidate of each slot, whatever earlier ones took:
        pace that was once slow is measured anew.
        """
        budget, most = self.plan.budget_ms, self.plan.max_rows
        if budget is None:
            return most
        left = budget - 1e3 * (time.perf_counter() - begin)
        size = min(slots, most)
        if not begun:
            return size if left > 0 else 0
        if self._expected(size) > left:
            return 0
        while 2 * size <= most and self._expected(2 * size) <= left:
            size *= 2
        return size

    def _expected(self, rows: int) -> float:
        """Milliseconds of a batch, in proportion to the nearest smaller one that was timed."""
        smaller = [r for r in self._pace if r <= rows]
        nearest = max(smaller) if smaller else min(self._pace)
        return self._pace[nearest] * max(1.0, rows / nearest)


def require_known(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is none of those known.

    Raises:
        ValueError: names them.
    """
    if value not in known:
        hint = did_you_mean(value, known)
        raise ValueError(f"unknown {name} {value!r}.{hint} There are {list(known)}")
