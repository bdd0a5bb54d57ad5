"""Roll a policy out over seeded episodes, and keep what is needed to judge it.

The world is passed in (this package imports none): a list of plain Gymnasium environments, a
function that makes one, or a vector environment. Each environment is a *slot* that runs the next
episode seed as soon as its episode ends; those of a vector environment step together, and so they
run in rounds: the next seeds start when the last episode of a round has ended. The outcome is a
pure function of the seeds: an episode's world is reset with its own seed, the policy draws its
noise from that seed, and slots share nothing. So one slot and sixteen give the same episodes (up to
the rounding of a batched matrix product).

Observations are as LeRobot's evaluation expects them: ``{"pixels": image or {camera: image},
"agent_pos": vector}``, with ``info["is_success"]`` at every step and reset.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from .statistics import Proportion, proportion
from .types import Decision, Observation, Policy

SEED_BLOCKS = {"reported": 10**10, "sweep": 2 * 10**10}
"""First episode seed of each purpose. Demonstrations are collected from seeds below 2^32, so the
resets that results are reported on were neither trained on nor used to choose anything."""
SEEDS_PER_RUN = 10_000

Trace = Callable[[gym.Env], np.ndarray]
"""Reads a vector worth keeping from a world (say, where the fingertip is), ``[P]``."""


class ReplayError(RuntimeError):
    """A recorded episode's commands, sent again, did not lead to the recorded outcome."""


@dataclass
class Episode:
    """One episode as it happened. T: control steps.

    Attributes:
        seed: what the world and the policy's noise were seeded with.
        success: ``info["is_success"]`` was true after some step, or at reset.
        solved_at_reset: it was true before the first step.
        success_step: control steps until it was true for the first time; None without success.
        mode: the last ``info["mode"]`` (which way was taken, such as "left"), or "".
        commands: float32 ``[T, A]``, actions as sent.
        positions: float32 ``[T + 1, S]``, measured states; row t is what step t was decided on.
        chunk_starts: int64, steps whose action was the first of a new chunk.
        trace: float64 ``[T + 1, P]``, or None if no `Trace` was asked for.
        distance: the last ``info["distance"]`` (m), NaN if the world has none.
    """

    seed: int
    success: bool
    solved_at_reset: bool
    success_step: int | None
    mode: str
    commands: np.ndarray
    positions: np.ndarray
    chunk_starts: np.ndarray
    trace: np.ndarray | None
    distance: float

    @property
    def steps(self) -> int:
        return len(self.commands)


@dataclass
class ChunkCall:
    """One call of `Policy.act` that computed chunks.

    Attributes:
        chunks: how many slots got a new chunk.
        total_ms: wall-clock of the call, observation in, action out.
        stages_ms: the policy's own account of it, per stage; empty if it gave none.
    """

    chunks: int
    total_ms: float
    stages_ms: dict[str, float] = field(default_factory=dict)


@dataclass
class Evaluation:
    """The episodes of one policy, in the order of their seeds.

    Attributes:
        fps: control steps per second.
        calls: every call that computed chunks, in order (the first ones are warm-up).
        num_envs: slots that ran side by side.
        seconds: wall-clock of the whole evaluation.
    """

    policy: str
    fps: float
    episodes: list[Episode]
    calls: list[ChunkCall]
    num_envs: int
    seconds: float

    @property
    def seeds(self) -> list[int]:
        return [episode.seed for episode in self.episodes]

    @property
    def outcomes(self) -> np.ndarray:
        """bool ``[n]``: which episodes succeeded, in the order of the seeds."""
        return np.array([episode.success for episode in self.episodes], bool)

    @property
    def success(self) -> Proportion:
        return proportion(self.outcomes)


def episode_seeds(episodes: int, seed: int = 0, purpose: str = "reported") -> list[int]:
    """The episode seeds of run `seed`: the same for every policy, so that results are paired.

    Args:
        purpose: "reported" for results, evaluated once; "sweep" for everything that chooses
            (hyperparameters, checkpoints, early stopping).

    Raises:
        ValueError: for an unknown purpose, or more episodes than a run's block holds.
    """
    if purpose not in SEED_BLOCKS:
        raise ValueError(f"unknown purpose {purpose!r}; expected one of {sorted(SEED_BLOCKS)}")
    if not 1 <= episodes <= SEEDS_PER_RUN or not 0 <= seed < 100_000:
        raise ValueError(
            f"expected 1 to {SEEDS_PER_RUN} episodes and a seed from 0 to 99999, found "
            f"episodes = {episodes}, seed = {seed}"
        )
    first = SEED_BLOCKS[purpose] + seed * SEEDS_PER_RUN
    return list(range(first, first + episodes))


def evaluate(
    policy: Policy,
    envs: Sequence[gym.Env] | VectorEnv | Callable[[], gym.Env],
    seeds: Sequence[int],
    *,
    num_envs: int = 1,
    max_steps: int | None = None,
    trace: Trace | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """Run one episode per seed.

    Args:
        policy: batched over slots; reset by this function.
        envs: plain environments, one per slot, left open; or a function that makes one, called
            for min(`num_envs`, number of seeds) slots that are closed at the end; or a vector
            environment, left open, whose autoreset is disabled. What becomes of a slot of it after
            its episode's end is ignored: it is reset so that it may be stepped on, as Gymnasium
            asks for, unless ``metadata["rests_when_over"]`` says that this is not needed.
        seeds: one per episode, all different.
        num_envs: slots, if `envs` is a function.
        max_steps: stop an episode here if the world has not; needed only for worlds without
            `max_episode_steps`, and vector environments that do not tell it.
        trace: if given, read after every reset and step; not from vector environments.
        on_episode: called with each episode when it ends (not in the order of the seeds).

    Raises:
        ValueError: for no or repeated seeds, no environment, no time limit, a vector environment
            that resets by itself, or an action that is misshapen or not finite.
    """
    if not len(seeds) or len(set(seeds)) != len(seeds):
        raise ValueError(f"expected different seeds, at least one; found {list(seeds)[:20]}")
    if isinstance(envs, VectorEnv):
        if trace is not None:
            raise ValueError("a trace is read from single environments, found a vector environment")
        return _run(policy, _Together(envs, max_steps), list(seeds), on_episode)
    with _opened(envs, min(num_envs, len(seeds))) as slots:
        worlds = _Separate(slots[: len(seeds)], max_steps, trace)
        return _run(policy, worlds, list(seeds), on_episode)


def replay(env: gym.Env, episode: Episode) -> np.ndarray:
    """Pictures of a finished episode: its commands sent again to a world with the same seed.

    Simulators are deterministic, so no picture needs to be kept while evaluating, and a replay may
    use another resolution or camera than the policy saw.

    Args:
        env: a world like the episode's, with ``render_mode="rgb_array"``.

    Returns:
        uint8 ``[T + 1, H, W, 3]``.

    Raises:
        ReplayError: if the outcome differs from the recorded one.
    """
    _, info = env.reset(seed=episode.seed)
    success = bool(info.get("is_success", False))
    frames = [_render(env)]
    for command in episode.commands:
        _, _, _, _, info = env.step(command)
        success |= bool(info.get("is_success", False))
        frames.append(_render(env))
    if success != episode.success:
        raise ReplayError(
            f"episode {episode.seed} was recorded with success = {episode.success}, but replaying "
            f"its {episode.steps} commands gave {success}: this world is not a function of its "
            f"seed and commands, or was made with other options"
        )
    return np.stack(frames)


class _Record:
    """What happens in one slot: the running episode, and what is seen now."""

    def start(
        self,
        seed: int,
        observation: dict[str, Any],
        info: Mapping[str, Any],
        trace: np.ndarray | None = None,
    ) -> None:
        self.seed = seed
        self.commands: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.traces: list[np.ndarray] = []
        self.chunk_starts: list[int] = []
        self.success_step: int | None = None
        self._see(observation, info, trace)
        self.solved_at_reset = self.success_step == 0

    def step(
        self,
        action: np.ndarray,
        new_chunk: bool,
        observation: dict[str, Any],
        info: Mapping[str, Any],
        trace: np.ndarray | None = None,
    ) -> None:
        """What was done, and what came of it."""
        if new_chunk:
            self.chunk_starts.append(len(self.commands))
        self.commands.append(np.array(action, np.float32))
        self._see(observation, info, trace)

    def episode(self) -> Episode:
        return Episode(
            seed=self.seed,
            success=self.success_step is not None,
            solved_at_reset=self.solved_at_reset,
            success_step=self.success_step,
            mode=str(self.info.get("mode", "")),
            commands=np.stack(self.commands),
            positions=np.stack(self.positions),
            chunk_starts=np.array(self.chunk_starts, np.int64),
            trace=np.stack(self.traces) if self.traces else None,
            distance=float(self.info.get("distance", math.nan)),
        )

    def _see(
        self, observation: dict[str, Any], info: Mapping[str, Any], trace: np.ndarray | None
    ) -> None:
        if not isinstance(observation, dict) or "agent_pos" not in observation:
            found = sorted(observation) if isinstance(observation, dict) else type(observation)
            raise ValueError(f"expected an observation with 'agent_pos', found {found}")
        if "is_success" not in info:
            raise ValueError(f"expected info['is_success'], found only {sorted(info)}")
        pixels = observation.get("pixels", {})
        self.images = pixels if isinstance(pixels, dict) else {"image": pixels}
        self.state = np.asarray(observation["agent_pos"], np.float32)
        self.info = info
        self.positions.append(self.state.copy())
        if trace is not None:
            self.traces.append(np.array(trace, np.float64))
        if info["is_success"] and self.success_step is None:
            self.success_step = len(self.commands)


class _Separate:
    """Plain environments, one a slot: each starts its next episode as soon as one is over."""

    together = False

    def __init__(self, envs: Sequence[gym.Env], max_steps: int | None, trace: Trace | None) -> None:
        self.envs, self.trace = envs, trace
        for env in envs:
            limit = env.spec.max_episode_steps if env.spec is not None else None
            if limit is None and max_steps is None:
                raise ValueError(
                    f"{env} has no time limit, so an episode might never end: register it with "
                    f"max_episode_steps or pass max_steps"
                )
        self.max_steps = math.inf if max_steps is None else max_steps
        self.records = [_Record() for _ in envs]
        self.action_shape = envs[0].action_space.shape or ()
        self.fps = _control_rate(envs[0])

    def start(self, seeds: Mapping[int, int]) -> None:
        """Start these episodes (slot -> seed); every slot has one before any step."""
        for slot, seed in seeds.items():
            observation, info = self.envs[slot].reset(seed=seed)
            self.records[slot].start(seed, observation, info, self._traced(slot))

    def step(self, actions: np.ndarray, new_chunk: np.ndarray, active: np.ndarray) -> np.ndarray:
        """One control step of the active slots; bool ``[B]``, where an episode is over."""
        over = np.zeros(len(self.envs), bool)
        for i in np.flatnonzero(active):
            action = np.array(actions[i], np.float32)
            observation, _, terminated, truncated, info = self.envs[i].step(action.copy())
            record = self.records[i]
            record.step(action, bool(new_chunk[i]), observation, info, self._traced(i))
            over[i] = terminated or truncated or len(record.commands) >= self.max_steps
        return over

    def tasks(self) -> list[str | None]:
        """The task of every slot, None where there is none."""
        return [getattr(env.unwrapped, "task_description", None) for env in self.envs]

    def _traced(self, slot: int) -> np.ndarray | None:
        return None if self.trace is None else self.trace(self.envs[slot])


class _Together:
    """A vector environment: all slots start at the same moment. See `_Separate`."""

    together = True

    def __init__(self, envs: VectorEnv, max_steps: int | None) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if mode != AutoresetMode.DISABLED:
            raise ValueError(
                f"{envs} starts new episodes by itself (autoreset mode {mode}), with seeds of its "
                f"own: make it with autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED"
            )
        limits = [getattr(s, "max_episode_steps", None) for s in _each(envs, "spec")]
        if max_steps is None and None in limits:
            raise ValueError(
                f"{envs} does not tell a time limit, so an episode might never end: pass max_steps"
            )
        self.envs = envs
        self.max_steps = math.inf if max_steps is None else max_steps
        self.records = [_Record() for _ in range(envs.num_envs)]
        self.action_shape = envs.single_action_space.shape or ()
        self.fps = _control_rate(envs)
        self._rests = bool(envs.metadata.get("rests_when_over"))
        box: Any = envs.single_action_space
        self._idle = np.clip(np.zeros(self.action_shape, np.float32), box.low, box.high)

    def start(self, seeds: Mapping[int, int]) -> None:
        """Start a round; a slot without an episode runs beside the others, and is not looked at."""
        spare = list(seeds.values())[-1]
        self._seeds = [seeds.get(slot, spare) for slot in range(len(self.records))]
        observations, infos = self._reset(None)
        self._tasks = _each(self.envs, "task_description")
        self._ended = np.zeros(len(self.records), bool)
        for i, (record, seed) in enumerate(zip(self.records, self._seeds, strict=True)):
            record.start(seed, _row(observations, i), _info(infos, i))

    def step(self, actions: np.ndarray, new_chunk: np.ndarray, active: np.ndarray) -> np.ndarray:
        """One control step of all slots; bool ``[B]``, where an active slot's episode is over."""
        if self._ended.any() and not self._rests:
            self._reset({"reset_mask": self._ended})
        sent = np.where(active[:, None], actions, self._idle).astype(np.float32)
        observations, _, terminated, truncated, infos = self.envs.step(sent.copy())
        over = np.asarray(terminated) | np.asarray(truncated)
        self._ended = over.copy()
        for i in np.flatnonzero(active):
            record = self.records[i]
            record.step(sent[i], bool(new_chunk[i]), _row(observations, i), _info(infos, i))
            over[i] |= len(record.commands) >= self.max_steps
        return over & active

    def tasks(self) -> list[str | None]:
        """The task of every slot, None where there is none."""
        return self._tasks

    def _reset(self, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        seeds: Any = self._seeds  # Gymnasium's annotation of the base class knows no list
        return self.envs.reset(seed=seeds, options=options)


def _each(envs: VectorEnv, name: str) -> list[Any]:
    """An attribute of every environment of a vector, None where there is none."""
    try:
        return list(envs.unwrapped.get_attr(name))  # type: ignore[attr-defined]
    except AttributeError:
        return [None] * envs.num_envs


def _row(values: Any, i: int) -> Any:
    """Row `i` of nested dictionaries of arrays ``[B, ...]``."""
    return {k: _row(v, i) for k, v in values.items()} if isinstance(values, dict) else values[i]


def _info(infos: Mapping[str, Any], i: int) -> dict[str, Any]:
    """What a vector environment says of slot `i`; ``_name`` says which slots have a ``name``."""
    return {
        name: _info(values, i) if isinstance(values, dict) else values[i]
        for name, values in infos.items()
        if not name.startswith("_") and (f"_{name}" not in infos or infos[f"_{name}"][i])
    }


def _run(
    policy: Policy,
    worlds: _Separate | _Together,
    seeds: list[int],
    on_episode: Callable[[Episode], None] | None,
) -> Evaluation:
    begin = time.perf_counter()
    records, waiting = worlds.records, deque(seeds)
    active = np.zeros(len(records), bool)
    batch: _Batch | None = None
    finished: dict[int, Episode] = {}
    calls: list[ChunkCall] = []
    while True:
        free = np.flatnonzero(~active).tolist()
        if waiting and free and not (worlds.together and active.any()):
            started = {slot: waiting.popleft() for slot in free[: len(waiting)]}
            worlds.start(started)
            active[list(started)] = True
            if batch is None:
                policy.reset([record.seed for record in records])
                batch = _Batch(records)
            else:
                policy.reset_slots(list(started), list(started.values()))
        if not active.any():
            break
        assert batch is not None
        observation = batch.observe(active, worlds.tasks())
        clock = time.perf_counter()
        decision = policy.act(observation, active.copy())
        elapsed_ms = 1000 * (time.perf_counter() - clock)
        action = _checked_action(policy, decision, worlds.action_shape, active)
        if chunks := int((decision.new_chunk & active).sum()):
            calls.append(ChunkCall(chunks, elapsed_ms, dict(decision.latency_ms or {})))
        over = worlds.step(action, decision.new_chunk, active)
        for i in np.flatnonzero(over):
            episode = records[i].episode()
            finished[episode.seed] = episode
            if on_episode is not None:
                on_episode(episode)
        active &= ~over
    return Evaluation(
        policy=policy.name,
        fps=worlds.fps,
        episodes=[finished[seed] for seed in seeds],
        calls=calls,
        num_envs=len(records),
        seconds=time.perf_counter() - begin,
    )


class _Batch:
    """The slots' observations side by side, copied into arrays that are made once."""

    def __init__(self, records: Sequence[_Record]) -> None:
        self.records = records
        first = records[0]
        self.images = {name: np.stack([r.images[name] for r in records]) for name in first.images}
        self.state = np.stack([r.state for r in records])

    def observe(self, active: np.ndarray, tasks: Sequence[str | None]) -> Observation:
        """Fresh copies, so that a policy may keep (or overwrite) what it was given."""
        for i in np.flatnonzero(active):
            for name, image in self.records[i].images.items():
                self.images[name][i] = image
            self.state[i] = self.records[i].state
        return Observation(
            images={name: image.copy() for name, image in self.images.items()},
            state=self.state.copy(),
            task=None if None in tasks else [str(task) for task in tasks],
        )


def _checked_action(
    policy: Policy, decision: Decision, shape: tuple[int, ...], active: np.ndarray
) -> np.ndarray:
    action = np.asarray(decision.action, np.float32)
    expected = (len(active), *shape)
    if action.shape != expected:
        raise ValueError(
            f"policy {policy.name!r} decided actions of shape {action.shape}; this world takes "
            f"{expected} (slots, entries)"
        )
    if not np.isfinite(action[active]).all():
        slot = int(np.flatnonzero(active & ~np.isfinite(action).all(axis=1))[0])
        raise ValueError(
            f"policy {policy.name!r} decided an action that is not finite in slot {slot}: "
            f"{action[slot].tolist()}"
        )
    return action


def _control_rate(env: gym.Env | VectorEnv) -> float:
    rate = env.metadata.get("render_fps")
    if not rate:
        raise ValueError(
            f"{env} does not say its control rate: set metadata['render_fps'] (control steps per "
            f"second), which smoothness and times are computed with"
        )
    return float(rate)


def _render(env: gym.Env) -> np.ndarray:
    frame = env.render()
    if not isinstance(frame, np.ndarray):
        raise ValueError(
            f"expected render() to give an image, found {type(frame).__name__}: make the world "
            f'with render_mode="rgb_array" (it has {env.render_mode!r})'
        )
    return frame.copy()


@contextmanager
def _opened(
    envs: Sequence[gym.Env] | Callable[[], gym.Env], count: int
) -> Iterator[Sequence[gym.Env]]:
    if not callable(envs):
        if not len(envs):
            raise ValueError("expected at least one environment, found none")
        yield envs
        return
    if count < 1:
        raise ValueError(f"expected num_envs >= 1, found {count}")
    made: list[gym.Env] = []
    try:
        for _ in range(count):
            made.append(envs())
        yield made
    finally:
        for env in made:
            env.close()
