"""Roll a policy out over seeded episodes, and keep what is needed to judge it.

The world is passed in (this package imports none): a list of plain Gymnasium environments, or a
function that makes one. Each environment is a *slot* that runs the next episode seed as soon as
its episode ends. The outcome is a pure function of the seeds: an episode's world is reset with its
own seed, the policy draws its noise from that seed, and slots share nothing. So one slot and
sixteen give the same episodes (up to the rounding of a batched matrix product).

Observations are as LeRobot's evaluation expects them: ``{"pixels": image or {camera: image},
"agent_pos": vector}``, with ``info["is_success"]`` at every step and reset.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

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
    envs: Sequence[gym.Env] | Callable[[], gym.Env],
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
            for min(`num_envs`, number of seeds) slots that are closed at the end.
        seeds: one per episode, all different.
        num_envs: slots, if `envs` is a function.
        max_steps: stop an episode here if the world has not; needed only for worlds without
            `max_episode_steps`.
        trace: if given, read after every reset and step.
        on_episode: called with each episode when it ends (not in the order of the seeds).

    Raises:
        ValueError: for no or repeated seeds, no environment, no time limit, or an action that is
            misshapen or not finite.
    """
    if not len(seeds) or len(set(seeds)) != len(seeds):
        raise ValueError(f"expected different seeds, at least one; found {list(seeds)[:20]}")
    with _opened(envs, min(num_envs, len(seeds))) as slots:
        return _run(policy, slots[: len(seeds)], list(seeds), max_steps, trace, on_episode)


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


class _Slot:
    """One environment and the record of the episode that it runs."""

    def __init__(self, env: gym.Env, max_steps: int | None, trace: Trace | None) -> None:
        self.env, self.trace = env, trace
        limit = env.spec.max_episode_steps if env.spec is not None else None
        if limit is None and max_steps is None:
            raise ValueError(
                f"{env} has no time limit, so an episode might never end: register it with "
                f"max_episode_steps or pass max_steps"
            )
        self.max_steps = math.inf if max_steps is None else max_steps

    def start(self, seed: int) -> None:
        observation, info = self.env.reset(seed=seed)
        self.seed = seed
        self.commands: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.traces: list[np.ndarray] = []
        self.chunk_starts: list[int] = []
        self.success_step: int | None = None
        self._see(observation, info)
        self.solved_at_reset = self.success_step == 0

    def step(self, action: np.ndarray, new_chunk: bool) -> bool:
        """One control step; True if the episode is over."""
        if new_chunk:
            self.chunk_starts.append(len(self.commands))
        self.commands.append(np.array(action, np.float32))
        observation, _, terminated, truncated, info = self.env.step(self.commands[-1].copy())
        self._see(observation, info)
        return bool(terminated or truncated or len(self.commands) >= self.max_steps)

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

    @property
    def task(self) -> str | None:
        return getattr(self.env.unwrapped, "task_description", None)

    def _see(self, observation: dict[str, Any], info: dict[str, Any]) -> None:
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
        if self.trace is not None:
            self.traces.append(np.array(self.trace(self.env), np.float64))
        if info["is_success"] and self.success_step is None:
            self.success_step = len(self.commands)


def _run(
    policy: Policy,
    envs: Sequence[gym.Env],
    seeds: list[int],
    max_steps: int | None,
    trace: Trace | None,
    on_episode: Callable[[Episode], None] | None,
) -> Evaluation:
    begin = time.perf_counter()
    slots = [_Slot(env, max_steps, trace) for env in envs]
    waiting = iter(seeds[len(slots) :])
    for slot, seed in zip(slots, seeds, strict=False):
        slot.start(seed)
    policy.reset(seeds[: len(slots)])
    active = np.ones(len(slots), bool)
    batch = _Batch(slots)
    finished: dict[int, Episode] = {}
    calls: list[ChunkCall] = []
    while active.any():
        observation = batch.observe(active)
        clock = time.perf_counter()
        decision = policy.act(observation, active.copy())
        elapsed_ms = 1000 * (time.perf_counter() - clock)
        action = _checked_action(policy, decision, slots[0].env, active)
        if chunks := int((decision.new_chunk & active).sum()):
            calls.append(ChunkCall(chunks, elapsed_ms, dict(decision.latency_ms or {})))
        restarted: list[int] = []
        for i in np.flatnonzero(active):
            slot = slots[i]
            if not slot.step(action[i], bool(decision.new_chunk[i])):
                continue
            finished[slot.seed] = episode = slot.episode()
            if on_episode is not None:
                on_episode(episode)
            following = next(waiting, None)
            if following is None:
                active[i] = False
            else:
                slot.start(following)
                restarted.append(int(i))
        if restarted:
            policy.reset_slots(restarted, [slots[i].seed for i in restarted])
    return Evaluation(
        policy=policy.name,
        fps=_control_rate(envs[0]),
        episodes=[finished[seed] for seed in seeds],
        calls=calls,
        num_envs=len(slots),
        seconds=time.perf_counter() - begin,
    )


class _Batch:
    """The slots' observations side by side, copied into arrays that are made once."""

    def __init__(self, slots: Sequence[_Slot]) -> None:
        self.slots = slots
        first = slots[0]
        self.images = {
            name: np.stack([slot.images[name] for slot in slots]) for name in first.images
        }
        self.state = np.stack([slot.state for slot in slots])

    def observe(self, active: np.ndarray) -> Observation:
        """Fresh copies, so that a policy may keep (or overwrite) what it was given."""
        for i in np.flatnonzero(active):
            for name, image in self.slots[i].images.items():
                self.images[name][i] = image
            self.state[i] = self.slots[i].state
        tasks = [slot.task for slot in self.slots]
        return Observation(
            images={name: image.copy() for name, image in self.images.items()},
            state=self.state.copy(),
            task=None if None in tasks else [str(task) for task in tasks],
        )


def _checked_action(
    policy: Policy, decision: Decision, env: gym.Env, active: np.ndarray
) -> np.ndarray:
    action = np.asarray(decision.action, np.float32)
    expected = (len(active), *(env.action_space.shape or ()))
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


def _control_rate(env: gym.Env) -> float:
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
