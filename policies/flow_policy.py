"""The policy: action tokens of the world model, sampled in chunks and executed in part.

Future video is left out, so acting costs a short sequence. The observation is encoded once per
chunk; every sampling step reuses its keys and values.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.checkpoint import Checkpoint, open_checkpoint
from worldmodel.data import resize_frames
from worldmodel.data.errors import did_you_mean
from worldmodel.imagine import imagine
from worldmodel.tokens import Horizon, pattern
from worldmodel.types import Spec

from .chunk_fit import fit_chunk
from .types import Decision, Observation


@dataclass
class PolicyConfig:
    """How chunks are sampled and executed.

    Attributes:
        steps: sampling steps; a regression model takes one, whatever this says.
        execute: actions of a chunk that are executed before the next is computed.
        prefix: real-time chunking by a clean prefix: the first `prefix` actions of a new chunk are
            the next, not yet executed ones of the running chunk, given to the model as clean
            tokens. 0 plans afresh.
        smooth: coefficients of the polynomial that each dimension of a chunk is fitted by (see
            `policies.chunk_fit`); None takes what the demonstrations needed, 0 fits nothing.
        history: executed commands that enter the fit of a later chunk; 3 carry over position, speed
            and acceleration.
        history_weight: of each of them and of each committed one; a sampled action has 1.
    """

    steps: int = 2
    execute: int = 8
    prefix: int = 0
    smooth: int | None = None
    history: int = 3
    history_weight: float = 100.0


FEW_ROWS = 2  # observations at once for which one thread is at least as fast as several


@contextlib.contextmanager
def one_thread(when: bool) -> Iterator[None]:
    """Compute in this thread alone.

    For a row or two there is nothing to share out: a second thread saves nothing, and whenever
    another process has its core, every operator waits for it, which is what the slowest chunks
    (p99) then consist of.
    """
    before = torch.get_num_threads()
    if when and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@dataclass
class Moment:
    """What the next chunks of G slots are decided on.

    Attributes:
        slots: int ``[G]``.
        seeds, numbers: int ``[G]``, of their episodes, and how many chunks these have had before.
        video: camera name -> uint8 ``[G, P, H, W, C]``.
        state: float32 ``[G, P, S]`` in physical units.
        task: one text per slot; None where the world has none.
        executed: the newest executed commands ``[G, h, A]``, as many as the fit of a chunk looks
            at; None for an episode's first chunk.
        committed: ``[G, d, A]``, with which the next chunk begins; None for d = 0.
    """

    slots: np.ndarray
    seeds: np.ndarray
    numbers: np.ndarray
    video: dict[str, np.ndarray]
    state: np.ndarray
    task: list[str] | None = None
    executed: np.ndarray | None = None
    committed: np.ndarray | None = None

    @property
    def known(self) -> np.ndarray | None:
        """The commands before the new ones ``[G, h + d, A]``; see `FlowPolicy.smooth`."""
        if self.executed is None or self.committed is None:
            return self.executed
        return np.concatenate([self.executed, self.committed], axis=1)

    def take(self, rows: np.ndarray) -> Moment:
        """The moment with these rows of G, any of them several times."""
        return Moment(
            self.slots[rows],
            self.seeds[rows],
            self.numbers[rows],
            {c: v[rows] for c, v in self.video.items()},
            self.state[rows],
            None if self.task is None else [self.task[r] for r in rows],
            None if self.executed is None else self.executed[rows],
            None if self.committed is None else self.committed[rows],
        )


class ChunkPolicy(ABC):
    """Slots that execute chunks of actions; how a chunk is chosen is for a subclass to say.

    It keeps what every slot has seen and done and notices when a chunk has run out. See
    `policies.types.Policy`, which every subclass is.

    Args:
        spec, horizon: of the model that acts.
        config: of which `execute`, `prefix` and `history` count here.
    """

    name: str

    def __init__(self, spec: Spec, horizon: Horizon, config: PolicyConfig) -> None:
        self._spec, self.horizon, self.config = spec, horizon, config
        self._span = span_of(horizon)
        self.reset([])

    @property
    def spec(self) -> Spec:
        return self._spec

    @abstractmethod
    def choose(self, moment: Moment) -> tuple[np.ndarray, dict[str, float]]:
        """The next chunks ``[G, K, A]`` in physical units, and milliseconds per stage.

        A chunk begins with ``moment.committed``.
        """

    def reset(self, seeds: Sequence[int]) -> None:
        """Forget everything; slot i starts the episode with seed ``seeds[i]``."""
        self._seed = np.asarray(seeds, np.int64)
        count, chunk = len(seeds), self.horizon.chunk
        self._number = np.zeros(count, np.int64)  # chunks computed in this episode
        self._steps = np.zeros(count, np.int64)  # actions executed in this episode
        self._at = np.full(count, chunk)  # next action of the running chunk
        self._chunk = np.zeros((count, chunk, self.spec.action_dim), np.float32)
        self._executed = np.zeros((count, self.config.history, self.spec.action_dim), np.float32)
        self._history: list[list[tuple[dict[str, np.ndarray], np.ndarray]]] = [
            [] for _ in range(count)
        ]

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """Start new episodes in these slots only."""
        for slot, seed in zip(slots, seeds, strict=True):
            self._seed[slot], self._number[slot], self._at[slot] = seed, 0, self.horizon.chunk
            self._steps[slot] = 0
            self._history[slot] = []

    def act(self, observation: Observation, active: np.ndarray) -> Decision:
        """The next action of every active slot, computing chunks where they have run out."""
        start = time.perf_counter()
        self._remember(observation, active)
        due = np.flatnonzero(active & ((self._at >= self.config.execute) | (self._number == 0)))
        latency = None
        if len(due):
            latency = self._compute(due, observation.task, start)
        decision = Decision(
            action=self._chunk[
                np.arange(len(active)), np.minimum(self._at, self.horizon.chunk - 1)
            ],
            new_chunk=np.isin(np.arange(len(active)), due),
            latency_ms=latency,
        )
        self._at[active] += 1
        self._steps[active] += 1
        if self.config.history:
            rolled = np.concatenate([self._executed[:, 1:], decision.action[:, None]], axis=1)
            self._executed[active] = rolled[active]
        return decision

    def _remember(self, observation: Observation, active: np.ndarray) -> None:
        """Keep as many frames as the past that is looked at spans."""
        for slot in np.flatnonzero(active):
            frames = {c: observation.images[c][slot] for c in self.spec.cameras}
            self._history[slot].append((frames, observation.state[slot]))
            del self._history[slot][: -self._span]

    def _compute(self, due: np.ndarray, tasks: list[str] | None, start: float) -> dict[str, float]:
        """Compute chunks for the slots in `due`; first chunks have no committed prefix."""
        stages: dict[str, float] = {}
        # Computed together: slots that have executed equally many of the commands that count.
        executed = np.minimum(self._steps[due], max(1, self.config.history))
        for group in (due[executed == n] for n in np.unique(executed)):
            moment = self._moment(group, tasks)
            stages["observe"] = stages.get("observe", 0.0) + 1e3 * (time.perf_counter() - start)
            self._chunk[group], times = self.choose(moment)
            for name, value in times.items():
                stages[name] = stages.get(name, 0.0) + value
            self._at[group] = 0
            self._number[group] += 1
            start = time.perf_counter()
        return stages

    def _moment(self, group: np.ndarray, tasks: list[str] | None) -> Moment:
        """What the chunks of these slots are decided on, either all first ones or all later."""
        past, stride = self.horizon.past, self.horizon.past_stride
        seen = [self._seen(group, k * stride) for k in reversed(range(past))]
        executed = committed = None
        if self._number[group[0]]:
            count = min(self.config.history, int(self._steps[group[0]]))
            executed = self._executed[group, self.config.history - count :]
            if self.config.prefix:
                steps = self._at[group][:, None] + np.arange(self.config.prefix)
                committed = self._chunk[group[:, None], steps]
        return Moment(
            group,
            self._seed[group],
            self._number[group],
            {c: np.stack([f[c] for f, _ in seen], axis=1) for c in self.spec.cameras},
            np.stack([state for _, state in seen], axis=1),
            [tasks[s] for s in group] if tasks else None,
            executed,
            committed,
        )

    def _seen(self, slots: np.ndarray, ago: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Frames ``[G, H, W, C]`` and states ``[G, S]`` so many steps ago; at first, the first."""
        kept = [self._history[slot] for slot in slots]
        rows = [past[max(0, len(past) - 1 - ago)] for past in kept]
        video = {c: np.stack([frames[c] for frames, _ in rows]) for c in self.spec.cameras}
        return video, np.stack([state for _, state in rows])


def span_of(horizon: Horizon) -> int:
    """How many steps the past frames of a window span."""
    return (horizon.past - 1) * horizon.past_stride + 1


class FlowPolicy(ChunkPolicy):
    """A trained model as a policy over environment slots (see `policies.types.Policy`).

    Args:
        checkpoint: an opened checkpoint.
        config: how to sample and execute.

    Attributes:
        trained_prefix: committed actions that the model was trained for, at most.

    Raises:
        ValueError: a chunk is too short for what is to be executed and committed.
    """

    def __init__(self, checkpoint: Checkpoint, config: PolicyConfig | None = None) -> None:
        c = config or PolicyConfig()
        chunk = checkpoint.model.horizon.chunk
        if c.steps < 1:
            raise ValueError(f"sampling needs at least one step, found {c.steps}")
        if c.execute < 1 or c.prefix < 0 or c.execute + c.prefix > chunk:
            raise ValueError(
                f"a chunk of {chunk} actions cannot give {c.execute} to execute and {c.prefix} "
                "committed ones; execute + prefix must be at most that, execute at least 1"
            )
        if (c.smooth or 0) < 0 or c.history < 0 or c.history_weight <= 0:
            raise ValueError(
                f"smooth and history must be at least 0 and history_weight above 0; found "
                f"smooth={c.smooth}, history={c.history}, history_weight={c.history_weight}"
            )
        objective = checkpoint.objective
        trained = objective.prefix if objective.patterns.get("act_prefix") else 0
        self.trained_prefix = min(trained, chunk - 1)
        if c.prefix > self.trained_prefix:
            raise ValueError(
                f"this model was trained with committed prefixes of up to {trained} actions "
                f"(objective.prefix, objective.patterns.act_prefix); found prefix={c.prefix}"
            )
        super().__init__(checkpoint.spec, checkpoint.model.horizon, c)
        self.checkpoint, self.name = checkpoint, objective.name
        self.model, self.inputs = checkpoint.model, checkpoint.inputs
        ranks = self.spec.action_rank if c.smooth is None else [c.smooth] * self.spec.action_dim
        self.rank = np.array(ranks, np.int64)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, config: PolicyConfig | None = None, device: str = "cpu"
    ) -> FlowPolicy:
        """Open a run's folder or one of its checkpoints."""
        return cls(open_checkpoint(path, device=device), config)

    @property
    def stamp(self) -> dict[str, Any]:
        return self.checkpoint.stamp

    def choose(self, moment: Moment) -> tuple[np.ndarray, dict[str, float]]:
        """The chunk that the episode's noise gives; see `ChunkPolicy`."""
        pairs = zip(moment.seeds.tolist(), moment.numbers.tolist(), strict=True)
        return self.propose(moment, np.stack([self.noise(*pair) for pair in pairs]))

    def propose(self, moment: Moment, noise: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """The chunks ``[G, K, A]`` that noise ``[G, K, A]`` becomes, fitted; as `choose`."""
        video, state, committed = moment.video, moment.state, moment.committed
        with one_thread(len(state) <= FEW_ROWS):
            chunk, stages = self._predict(video, state, moment.task, noise, committed)
        mark = time.perf_counter()
        depth = 0 if committed is None else committed.shape[1]
        chunk[:, depth:] = self.smooth(chunk[:, depth:], moment.known, state[:, -1])
        stages["postprocess"] += 1e3 * (time.perf_counter() - mark)
        return chunk, stages

    def smooth(self, new: np.ndarray, known: np.ndarray | None, state: np.ndarray) -> np.ndarray:
        """Fit sampled actions together with the commands that lead to them.

        Args:
            new: sampled actions ``[B, n, A]``.
            known: executed and committed commands before them ``[B, h, A]``, or None for an
                episode's first chunk: then the arm rests where its joints are measured, and what is
                not commanded by its own position has no past.
            state: ``[B, S]`` now, in physical units.

        Returns:
            ``[B, n, A]``; see `policies.chunk_fit`.
        """
        weight, rank = self.config.history_weight, self.rank
        if not rank.any():
            return new
        if known is not None:
            return fit_chunk(new, known, rank, weight)
        where = np.array(self.spec.action_targets or [-1] * self.spec.action_dim)
        own = where >= 0
        rest = np.where(own, state[:, where], 0) if own.any() else np.zeros_like(new[:, 0])
        rest = rest[:, None].repeat(self.config.history, axis=1)
        new = fit_chunk(new, rest, np.where(own, rank, 0), weight)
        return fit_chunk(new, rest[:, :0], np.where(own, 0, rank), weight)

    def noise(self, seed: int, number: int, candidate: int = 0) -> np.ndarray:
        """Start of chunk `number` of the episode with this seed: ``[K, A]``.

        Args:
            candidate: which of several chunks for the same moment; 0 is the one that is taken
                where nobody chooses among them.
        """
        rng = np.random.Generator(
            np.random.Philox(key=[seed, number], counter=[0, 0, 0, candidate])
        )
        return rng.standard_normal((self.horizon.chunk, self.spec.action_dim), np.float32)

    # --- chunks -----------------------------------------------------------------------------------

    def predict_action_chunk(
        self,
        video: Mapping[str, np.ndarray],
        state: np.ndarray,
        task: Sequence[str] | None = None,
        noise: np.ndarray | None = None,
        prefix: np.ndarray | None = None,
    ) -> np.ndarray:
        """Sample chunks for a batch of observations.

        Args:
            video: camera name -> uint8 ``[B, P, H, W, C]``, any size (resized to the model's).
            state: float32 ``[B, P, S]`` in physical units.
            task: one text per sample, "" for none.
            noise: ``[B, K, A]``; default: that of seeds 0, 1, ..., chunk 0.
            prefix: committed actions ``[B, d, A]`` in physical units.

        Returns:
            Actions ``[B, K, A]`` in physical units; the first d equal `prefix`.

        Raises:
            ValueError: a task that the model was not trained on.
        """
        if noise is None:
            noise = np.stack([self.noise(i, 0) for i in range(len(state))])
        with one_thread(len(state) <= FEW_ROWS):
            return self._predict(video, state, task, noise, prefix)[0]

    def imagine(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, commands: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the first camera would show under these commands; see `imagined_frames`."""
        return imagined_frames(self.checkpoint, images, state, commands)

    @torch.inference_mode()
    def _predict(self, video, state, task, noise, committed) -> tuple[np.ndarray, dict[str, float]]:
        begin = time.perf_counter()
        device = next(self.model.parameters()).device
        depth = 0 if committed is None else committed.shape[1]
        question = pattern("act_prefix", self.horizon, depth)
        given_steps, _ = self.model.slices_of(question)
        values: dict[str, Tensor] = {}
        for camera in self.spec.cameras:
            frames = torch.from_numpy(np.ascontiguousarray(video[camera])).movedim(-1, -3)
            values[f"video/{camera}"] = resize_frames(frames, self.spec.image_size).to(device)
        values["state"] = torch.from_numpy(np.asarray(state, np.float32)).to(device)
        if depth:
            values["action"] = torch.from_numpy(committed).to(device)
        given = {n: self.inputs.normalize(n, values[n]) for n in given_steps}
        index = [task_index(t, self.spec) for t in task] if task else [-1] * len(state)
        start = torch.from_numpy(noise[:, depth:, None]).to(device)
        mark = time.perf_counter()
        patches = self.checkpoint.sample(
            question,
            given,
            torch.tensor(index, device=device),
            {"action": start},
            self.config.steps,
        )["action"]
        if device.type == "cuda":
            torch.cuda.synchronize()
        middle = time.perf_counter()
        chunk = self.inputs.denormalize("action", patches).cpu().numpy()
        if depth:
            chunk = np.concatenate([committed, chunk], axis=1)
        end = time.perf_counter()
        return chunk, {
            "preprocess": 1e3 * (mark - begin),
            "network": 1e3 * (middle - mark),
            "postprocess": 1e3 * (end - middle),
        }


def imagined_frames(
    checkpoint: Checkpoint,
    images: Mapping[str, np.ndarray],
    state: np.ndarray,
    commands: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """What the first camera would show under these commands, as the world model imagines it.

    Args:
        images: camera name -> uint8 ``[T + 1, H, W, C]``; only frame 0 is looked at.
        state: ``[T + 1, S]``; only row 0 is looked at.
        commands: ``[T, A]``.

    Returns:
        Frames uint8 ``[N, H, W, C]`` at the camera's size, and their indices ``[N]`` in
        `images`, index 0 (the given frame, as the model sees it) first.

    Raises:
        ValueError: the model sees no camera.
    """
    spec, h = checkpoint.spec, checkpoint.model.horizon
    if not spec.cameras:
        raise ValueError("this policy was trained without cameras, so it imagines no frames")
    video = {}
    for camera in spec.cameras:
        first = torch.from_numpy(images[camera][:1]).movedim(-1, -3)
        video[camera] = resize_frames(first, spec.image_size)[None].repeat(1, h.past, 1, 1, 1)
    start = torch.from_numpy(np.asarray(state[:1], np.float32))[None].repeat(1, h.past, 1)
    actions = torch.from_numpy(np.asarray(commands, np.float32))[None]
    if h.past > 1 and h.past_stride != h.future_stride:
        actions = actions[:, : h.future * h.future_stride]  # such windows cannot be chained
    imagined = imagine(checkpoint, video, start if spec.state_dim else None, actions)
    camera = spec.cameras[0]
    frames = torch.cat([video[camera][:, -1:].to("cpu"), imagined.video[camera].cpu()], 1)[0]
    size = images[camera].shape[1:3]
    shown = resize_frames(frames, (size[0], size[1])).movedim(-3, -1).numpy()
    return shown, np.concatenate([[0], imagined.frames.numpy()])


def task_index(text: str, spec: Spec) -> int:
    """Which of the model's tasks this is; -1 for "", or where the model knows none.

    Raises:
        ValueError: it knows others.
    """
    known = spec.tasks
    if not known or not text:
        return -1
    if text not in known:
        hint = did_you_mean(text, known)
        raise ValueError(f"unknown task {text!r}.{hint} This policy knows {list(known)}")
    return known.index(text)
