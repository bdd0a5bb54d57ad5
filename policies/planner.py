"""Deciding with the world model: several chunks are thought through, the best one is executed.

The policy proposes candidates, from as many draws of noise; `Planner` imagines what comes of each
and judges it, `SimulatorPlanner` tries each in the true simulator, which no robot has: a ceiling.
Candidate 0 is the chunk that the policy alone would execute, so planning with one candidate is the
policy, bit for bit.

A planner believes what it finds, and looks for what it likes: the more candidates, the more its
choice is one that the world model is wrong about. Every decision is logged with what was expected,
so that this can be measured (`Record`).
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worldmodel.checkpoint import Checkpoint
from worldmodel.data import resize_frames
from worldmodel.data.errors import did_you_mean
from worldmodel.imagine import Imagined, ask, window_length
from worldmodel.selfflow import until_last_frame
from worldmodel.tokens import pattern

from .flow_policy import ChunkPolicy, FlowPolicy, Moment, imagined_frames, span_of, task_index
from .offline import MOVING
from .types import Observation

METHODS = ("best_of", "cem")
SCORES = ("success", "goal")
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
        _require_known("method", self.method, METHODS)
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
class PlannerConfig(SearchConfig):
    """How candidates are imagined and judged.

    Attributes:
        score: "success" (what the model's success head says) or "goal" (how close the last imagined
            frame is to a picture, see `Planner.set_goal`).
        lookahead: chunks that are imagined: after the executed part of a candidate the policy goes
            on in imagination, so that success further off than a chunk comes into sight. 1 is the
            candidate alone, with the actions that would not be executed.
        steps: sampling steps of a window.
        every: distance of the imagined frames; None is the model's own grid.

    Raises:
        ValueError: an unknown score, or a number that means nothing.
    """

    score: str = "success"
    lookahead: int = 1
    steps: int = 1
    every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_known("score", self.score, SCORES)
        for name in ("lookahead", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


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


COEFFICIENTS = 3
"""Of the offset of an action, at most: with 8 joints, 24 numbers for a chunk."""


class Planner(SearchPolicy):
    """Chooses the chunk whose imagined future is best; see `policies.types.Policy`.

    Args:
        policy: proposes.
        world: the checkpoint that imagines; default: the policy's own.
        plan: how to search, imagine and judge.

    Raises:
        worldmodel.types.SpecMismatchError: the two checkpoints are for different robots or cameras.
        ValueError: the world model cannot imagine or judge what it would have to.
    """

    plan: PlannerConfig

    def __init__(
        self,
        policy: FlowPolicy,
        world: Checkpoint | None = None,
        plan: PlannerConfig | None = None,
    ) -> None:
        super().__init__(policy, plan or PlannerConfig())
        self.world = world or policy.checkpoint
        self.spec.require_same(self.world.spec, "the policy", "the world model", image_size=False)
        if self.plan.score == "success" and self.world.model.success is None:
            raise ValueError(
                "this world model cannot tell success: it was trained on data without "
                "next.success, or without failures (scripts.collect exploration=0.4). "
                "Train one that can, or use score=goal"
            )
        if self.plan.score == "goal" and not self.world.spec.cameras:
            raise ValueError("score=goal compares pictures; this world model has no camera")
        self._goals: dict[int | None, dict[str, Tensor]] = {}
        self._windows = self._questions()
        self._span = max(self._span, span_of(self.world.model.horizon))

    def imagine(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, commands: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `policies.flow_policy.imagined_frames`."""
        return imagined_frames(self.world, images, state, commands)

    def set_goal(self, images: Mapping[str, np.ndarray], slot: int | None = None) -> None:
        """What the cameras are to show, for ``score="goal"``.

        Args:
            images: camera name -> uint8 ``[H, W, C]``, any size.
            slot: whose goal it is; None: of every slot without one of its own.

        Raises:
            ValueError: other cameras than the model's, or no such picture.
        """
        spec = self.world.spec
        if set(images) != set(spec.cameras):
            raise ValueError(
                f"a goal is seen by the model's cameras {list(spec.cameras)}, found "
                f"{sorted(images)}"
            )
        for camera, image in images.items():
            if image.dtype != np.uint8 or image.ndim != 3:
                raise ValueError(
                    f"a goal is uint8 [H, W, C]; camera {camera} has {image.dtype} "
                    f"{list(image.shape)}"
                )
        device = next(self.world.model.parameters()).device
        self._goals[slot] = {
            c: _resized(image[None], spec.image_size)[0].to(device) for c, image in images.items()
        }

    def _questions(self) -> list[list[tuple[int, ...]]]:
        """Which frames are asked for in each imagined chunk, counted from its beginning.

        A question holds as many as the model was trained on; a chunk may take several.
        """
        h, plan, execute = self.world.model.horizon, self.plan, self.config.execute
        any_frame = self.world.objective.any_frame > 0
        window_length(h, any_frame=True)  # refuses a model that knows too little future
        reach = h.chunk if any_frame else h.grid[-1]
        every = h.future_stride if plan.every is None else plan.every
        if not 1 <= every <= reach:
            raise ValueError(f"every={every}: the distance of frames is from 1 to {reach}")
        # What the policy and the model look back at when a chunk is over.
        back = {n * past.past_stride for past in (h, self.horizon) for n in range(past.past)}
        starts = [n * execute for n in range(plan.lookahead)]
        looked_at = {start - ago for start in starts[1:] for ago in back}
        if plan.lookahead > 1 and execute > reach:
            raise ValueError(
                f"lookahead={plan.lookahead}: {execute} actions are executed of a chunk, and the "
                f"world model sees {reach} frames ahead; lower execute"
            )
        windows = []
        for start in starts:
            last = start == starts[-1]
            length = min(self.horizon.chunk, reach) if last else execute
            asked = {f for f in range(1, length + 1) if f % every == 0}
            asked |= {t - start for t in looked_at if 0 < t - start <= length}
            if not any_frame and not asked <= set(h.grid):
                raise ValueError(
                    f"this world model knows the frames {list(h.grid)} of a window only, and "
                    f"{sorted(asked)} are needed (every={every}, lookahead={plan.lookahead}, "
                    f"execute={execute}): train with objective.any_frame above 0 for others"
                )
            if not asked:
                raise ValueError(
                    f"every={every}: no frame is imagined of the {length} actions of a chunk"
                )
            # A model that knows its grid only is asked for the beginning of it.
            frames = sorted(asked) if any_frame else [f for f in h.grid if f <= max(asked)]
            windows.append(
                [tuple(frames[i : i + h.future]) for i in range(0, len(frames), h.future)]
            )
        return windows

    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        """Imagine and judge candidates; see `SearchPolicy.outlook`."""
        dream = _Dream(self, moment, rows)
        found: list[Imagined] = []
        for number, questions in enumerate(self._windows):
            if number:
                chunks = self._continued(dream, moment.take(rows), number, chunks)
            begin = number * self.config.execute
            found += [dream.imagine(begin, chunks, offsets) for offsets in questions]
        state = found[-1].state
        final = np.zeros((len(rows), 0)) if state is None else state[:, -1].cpu().numpy()
        if self.plan.score == "success":
            success = torch.cat([f.success for f in found if f.success is not None], dim=1).cpu()
            return Outlook(success.amax(1).numpy(), success.mean(1).numpy(), final)
        end = {c: v[:, -1] for c, v in found[-1].video.items()}
        value = -self._distance(moment.slots[rows], dream.seen(0)[0], end).cpu().numpy()
        return Outlook(value, np.zeros(len(rows)), final)

    def _continued(
        self, dream: _Dream, moment: Moment, number: int, chunks: np.ndarray
    ) -> np.ndarray:
        """What the policy does next, `number` chunks later, from what is imagined.

        With the noise that it will have then: all candidates go on with the same luck.
        """
        config, past, stride = self.config, self.horizon.past, self.horizon.past_stride
        now = number * config.execute
        seen = [dream.seen(now - k * stride) for k in reversed(range(past))]
        dream.executed = np.concatenate([dream.executed, chunks[:, : config.execute]], axis=1)
        kept = min(config.history, dream.executed.shape[1])
        committed = chunks[:, config.execute : config.execute + config.prefix]
        video = {c: torch.stack([frames[c] for frames, _ in seen], 1) for c in self.spec.cameras}
        later = replace(
            moment,
            numbers=moment.numbers + number,
            video={c: v.movedim(-3, -1).cpu().numpy() for c, v in video.items()},
            state=torch.stack([state for _, state in seen], 1).cpu().numpy(),
            executed=dream.executed[:, dream.executed.shape[1] - kept :],
            committed=committed if config.prefix else None,
        )
        return self.policy.choose(later)[0]

    def _distance(
        self, slots: np.ndarray, now: Mapping[str, Tensor], end: Mapping[str, Tensor]
    ) -> Tensor:
        """How far imagined frames are from the goal ``[R]``, in shares of the grey levels.

        Pixels count that differ from now, in the goal or in the imagination: a background that
        stays is most of a picture and says nothing. What is moved without need counts too.
        """
        total = torch.zeros(len(slots), device=next(iter(end.values())).device)
        goals = [self._goal_of(int(slot)) for slot in slots]
        for camera, frames in end.items():
            goal = torch.stack([g[camera] for g in goals]).float()
            start, frames = now[camera].float(), frames.float()
            moves = _moved(goal, start)
            counts = moves | _moved(frames, start)
            error = ((frames - goal).abs().mean(1) * counts).sum((1, 2)) / 255
            total += error / moves.sum((1, 2)).clamp_min(1) / len(end)
        return total

    def _goal_of(self, slot: int) -> dict[str, Tensor]:
        goal = self._goals.get(slot, self._goals.get(None))
        if goal is None:
            raise RuntimeError(f"score=goal: slot {slot} has no goal; call set_goal first")
        return goal


class _Dream:
    """What R candidates see and have seen, by the time counted from the decision.

    Attributes:
        executed: the newest commands ``[R, h, A]``.
    """

    def __init__(self, planner: Planner, moment: Moment, rows: np.ndarray) -> None:
        self.planner, self.world = planner, planner.world
        self.moment, self.rows = moment, rows
        self.device = next(self.world.model.parameters()).device
        self.known: dict[int, tuple[dict[str, Tensor], Tensor]] = {}
        count = planner.spec.action_dim
        executed = moment.executed
        self.executed = (
            np.zeros((len(rows), 0, count), np.float32) if executed is None else executed[rows]
        )
        texts = moment.task or [""] * len(moment.slots)
        index = [task_index(text, self.world.spec) for text in texts]
        self.task = torch.tensor(index)[rows]

    def seen(self, at: int) -> tuple[dict[str, Tensor], Tensor]:
        """Frames uint8 ``[R, C, H, W]`` by camera and states ``[R, S]``; real ones up to 0."""
        if at > 0 or at in self.known:
            return self.known[at]
        images, state = self.planner._seen(self.moment.slots, -at)
        size = self.world.spec.image_size
        frames = {c: _resized(v, size).to(self.device)[self.rows] for c, v in images.items()}
        states = torch.from_numpy(np.asarray(state, np.float32)).to(self.device)[self.rows]
        self.known[at] = frames, states
        return self.known[at]

    def imagine(self, begin: int, chunks: np.ndarray, offsets: tuple[int, ...]) -> Imagined:
        """The frames at these offsets from `begin`, where the chunks ``[R, K, A]`` begin."""
        h, spec = self.world.model.horizon, self.world.spec
        past = [self.seen(begin - k * h.past_stride) for k in reversed(range(h.past))]
        video = {c: torch.stack([frames[c] for frames, _ in past], 1) for c in spec.cameras}
        state = torch.stack([s for _, s in past], 1) if spec.state_dim else None
        at = np.arange(h.chunk).clip(max=chunks.shape[1] - 1)
        question = pattern("forward", h, offsets=offsets)
        actions = until_last_frame(torch.from_numpy(chunks[:, at]), question)
        # The same noise for all candidates of a slot: what differs is what they do.
        numbers = zip(self.moment.seeds.tolist(), self.moment.numbers.tolist(), strict=True)
        draws = [(seed, "plan", number, begin, offsets[0]) for seed, number in numbers]
        found = ask(
            self.world, question, video, state, {"action": actions}, self.task,
            self.planner.plan.steps, [draws[r] for r in self.rows],
        )  # fmt: skip
        for i, offset in enumerate(offsets):
            states = self.seen(0)[1] if found.state is None else found.state[:, i]
            self.known[begin + offset] = {c: v[:, i] for c, v in found.video.items()}, states
        return found


def _resized(images: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 ``[B, H, W, C]`` -> ``[B, C, h, w]`` as the model sees them."""
    return resize_frames(torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, -3), size)


def _moved(frames: Tensor, start: Tensor) -> Tensor:
    """Which pixels ``[B, H, W]`` of ``[B, C, H, W]`` grey levels have changed."""
    return ((frames - start).abs() > MOVING).any(1)


# --- the ceiling ---------------------------------------------------------------------------------


class Simulator(Protocol):
    """What `SimulatorPlanner` needs of an environment, without wrappers.

    ``info`` of `step` holds ``is_success`` and, where it means something, ``distance`` (metres).
    """

    cameras: Sequence[str]

    def get_state(self) -> np.ndarray | None:
        """Everything the future depends on; None if it cannot be had."""

    def set_state(self, state: np.ndarray) -> None:
        """Return to it."""

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """One control step."""


class SimulatorPlanner(SearchPolicy):
    """Chooses the chunk that turns out best in the true simulator: no world model can do better.

    A candidate that succeeds is worth 1, the sooner the better; another one minus the distance that
    is left, in units of `scale` (0 in a world without distance). Every simulator is left in the
    state in which it was found.

    Args:
        policy: proposes.
        envs: the environments of the slots, in their order, as they are played in. Wrappers (a
            time limit) are left alone; no picture is drawn.
        plan: how to search.
        horizon_steps: actions of a candidate that are tried; None: all.
        scale: metres.

    Raises:
        TypeError: an environment cannot be saved and restored.
        ValueError: more steps than a chunk has, or a scale that is none.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        envs: Sequence[Any],
        plan: SearchConfig | None = None,
        horizon_steps: int | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(policy, plan or SearchConfig())
        chunk = self.horizon.chunk
        self.horizon_steps = chunk if horizon_steps is None else horizon_steps
        if not 1 <= self.horizon_steps <= chunk or scale <= 0:
            raise ValueError(
                f"horizon_steps is from 1 to {chunk} (a chunk) and scale above 0; found "
                f"horizon_steps={horizon_steps}, scale={scale}"
            )
        self.scale, self.worlds = scale, [getattr(env, "unwrapped", env) for env in envs]
        for world in self.worlds:
            missing = [n for n in ("get_state", "set_state", "step") if not hasattr(world, n)]
            if missing:
                raise TypeError(
                    f"{type(world).__name__} cannot be planned in: it has no {', '.join(missing)}"
                )
        self.name = f"{policy.name}, simulator {self.plan.method} {self.plan.candidates}"

    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        """Try candidates one by one; see `SearchPolicy.outlook`.

        Raises:
            ValueError: a slot without environment, or one whose state cannot be had.
        """
        tried = []
        for slot, chunk in zip(moment.slots[rows], chunks, strict=True):
            if slot >= len(self.worlds):
                raise ValueError(
                    f"slot {slot} has no simulator; {len(self.worlds)} were given, one per slot "
                    "in order"
                )
            tried.append(self._try(self.worlds[slot], chunk[: self.horizon_steps]))
        value, tie, final = zip(*tried, strict=True)
        return Outlook(np.array(value, float), np.array(tie, float), np.stack(final))

    def _try(self, world: Simulator, actions: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Value, tie-break and final state of these actions; the world is put back."""
        state = world.get_state()
        if state is None:
            raise ValueError(
                f"{type(world).__name__} cannot be planned in: its state cannot be saved "
                "(get_state gave None)"
            )
        state, cameras = state.copy(), getattr(world, "cameras", ())
        if cameras:
            world.cameras = ()  # drawing takes most of a step
        try:
            for step, action in enumerate(actions):
                observation, _, terminated, truncated, info = world.step(action.copy())
                final = np.asarray(observation["agent_pos"], float)
                if info["is_success"]:
                    return 1.0, 1 - step / len(actions), final
                if terminated or truncated:
                    break
            return -float(info.get("distance", 0.0)) / self.scale, 0.0, final
        finally:
            world.set_state(state)
            if cameras:
                world.cameras = cameras


# --- the same time, spent otherwise --------------------------------------------------------------


@dataclass(frozen=True)
class EqualCost:
    """What a planner costs, in sampling steps of its policy.

    Attributes:
        planner_ms: mean of a decision.
        policy_ms, step_ms: of the policy alone with one sampling step, and of each further one.
        steps: sampling steps with which the policy takes as long as the planner.
    """

    planner_ms: float
    policy_ms: float
    step_ms: float
    steps: int


def equal_cost_steps(
    planner: SearchPolicy, observation: Observation, repeats: int = 5, probe: int = 9
) -> EqualCost:
    """How many sampling steps give the policy alone the planner's wall-clock.

    A planner also wins by thinking longer; the policy should have that time too
    (`PolicyConfig.steps`). All are timed in turn, so that what else runs slows all alike. The
    planner and its slots begin anew, its log stays as it was.

    Args:
        observation: to decide on, with as many slots as are to run side by side.
        repeats: decisions that are timed, after one that is not.
        probe: sampling steps of the second measurement of the policy; the first has 1.

    Raises:
        ValueError: a regression model, which has no use for more steps; or a probe below 2.
        RuntimeError: more steps did not take longer, so the timings say nothing.
    """
    policy = planner.policy
    if policy.checkpoint.objective.name == "regression":
        raise ValueError("a regression model answers in one step, whatever time it is given")
    if probe < 2 or repeats < 1:
        raise ValueError(
            f"probe is at least 2 and repeats at least 1, found probe={probe}, repeats={repeats}"
        )
    one, many = (FlowPolicy(policy.checkpoint, replace(policy.config, steps=n)) for n in (1, probe))
    active, logged = np.ones(len(observation), bool), len(planner.log)
    rows: list[list[float]] = []
    for repeat in range(repeats + 1):
        rows.append([])
        for timed in (planner, one, many):
            timed.reset(range(repeat * len(active), (repeat + 1) * len(active)))
            begin = time.perf_counter()
            timed.act(observation, active)
            rows[-1].append(1e3 * (time.perf_counter() - begin))
    del planner.log[logged:]
    planner.reset([])
    planned, first, probed = np.mean(rows[1:], axis=0)
    step = (probed - first) / (probe - 1)
    if step <= 0:
        raise RuntimeError(
            f"{probe} sampling steps took {probed:.2f} ms and one {first:.2f} ms: too little to "
            "measure. Give more repeats, a larger probe, or a quieter machine"
        )
    steps = max(1, round(1 + (planned - first) / step))
    return EqualCost(float(planned), float(first), float(step), steps)


def _require_known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        hint = did_you_mean(value, known)
        raise ValueError(f"unknown {name} {value!r}.{hint} There are {list(known)}")
