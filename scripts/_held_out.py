"""What a simulator can show of a world that a model has not seen: episodes, branches, long films.

Everything follows from reset seeds; which seeds belong to which part stands in `Seeds`, so that
what a probe or an inverse model is fitted on is never what it is judged on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from envs.base import ArmEnv
from envs.branching import branch_actions, run_branches
from envs.exploration import Explorer, free_positions
from envs.kinematics import UnreachableError
from envs.world import Demonstrator, World
from policies.evaluation import SEEDS_PER_RUN, episode_seeds
from policies.judge.branching import Start
from policies.judge.recorded import Recorded

Advance = Callable[[], None]
MOMENTS = 5
"""How often a start is drawn anew whose branches look too much alike."""


class Seeds:
    """Disjoint reset seeds for each part of the report, of one block of resets.

    Args:
        seed, purpose: see `policies.evaluation.episode_seeds`.
    """

    PARTS = ("episodes", "fit", "branches", "long", "faults", "calibration")

    def __init__(self, seed: int, purpose: str) -> None:
        self._all = episode_seeds(SEEDS_PER_RUN, seed, purpose)

    def first(self, count: int) -> list[int]:
        """The resets that `scripts.evaluate` takes: those that policies are run on.

        Raises:
            ValueError: so many would be those of the parts too.
        """
        return self._some(0, SEEDS_PER_RUN // 2, count)

    def of(self, part: str, count: int) -> list[int]:
        """Resets of one of `PARTS`.

        Raises:
            ValueError: so many would be those of another part too.
        """
        room = SEEDS_PER_RUN // 2 // len(self.PARTS)
        return self._some(SEEDS_PER_RUN // 2 + room * self.PARTS.index(part), room, count)

    def _some(self, begin: int, room: int, count: int) -> list[int]:
        if not 0 < count <= room:
            raise ValueError(f"expected 1 to {room} resets, {count} were asked for")
        return self._all[begin : begin + count]


def facts_of(world: World) -> dict[str, np.ndarray]:
    """What the simulator knows of a moment: where the tip is and where free things lie, ``[3]``."""
    found = {}
    if world.tip is not None:
        found["tip"] = np.array(world.tip, np.float64)
    if isinstance(world, ArmEnv):
        for i, position in enumerate(free_positions(world)):
            found["object" if i == 0 else f"object {i + 1}"] = position
    return found


def record(world: World, seed: int, actor: Demonstrator, kind: str, steps: int = 0) -> Recorded:
    """One episode with all that is needed to judge what was imagined of it.

    Args:
        actor: begun in the world as it is after its reset.
        steps: how many; 0 goes on until the actor is done.
    """
    observation, info = world.reset(seed=seed)
    actor.reset()
    return _recorded(world, observation, info, actor, kind, steps)


def _recorded(
    world: World, observation: Any, info: Any, actor: Demonstrator, kind: str, steps: int
) -> Recorded:
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in world.cameras}
    states: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    successes: list[bool] = []
    facts: dict[str, list[np.ndarray]] = {}
    while len(actions) < steps if steps else not actor.done:
        for camera, frames in images.items():
            frames.append(observation["pixels"][camera])
        states.append(observation["agent_pos"])
        successes.append(bool(info["is_success"]))
        for name, value in facts_of(world).items():
            facts.setdefault(name, []).append(value)
        actions.append(actor.act())
        observation, _, _, _, info = world.step(actions[-1])
    return Recorded(
        images={c: np.stack(v) for c, v in images.items()},
        state=np.stack(states),
        action=np.stack(actions),
        success=np.array(successes),
        facts={n: np.stack(v) for n, v in facts.items()},
        kind=kind,
    )


def episodes(
    world: World, seeds: Sequence[int], explored: Sequence[int], advance: Advance
) -> list[Recorded]:
    """Episodes of the expert, and of exploration where the world allows it.

    Args:
        seeds: of the expert's episodes.
        explored: of exploratory ones; left out where the world is not our arm's.
    """
    found = []
    for seed in seeds:
        found.append(record(world, seed, world.make_expert(seed), "expert"))
        advance()
    for seed in explored:
        if isinstance(world, ArmEnv):
            actor = Explorer(world, seed)
            found.append(record(world, seed, actor, actor.kind))
        advance()
    return found


class _Chain:
    """Explorers one after another, for films longer than an episode."""

    def __init__(self, world: ArmEnv, seed: int) -> None:
        self.world, self.seed, self.number = world, seed, 0
        self.actor: Explorer | None = None

    def reset(self) -> None:
        self.actor, self.number = None, 0

    def act(self) -> np.ndarray:
        if self.actor is None or self.actor.done:
            self.actor = self._another()
        return self.actor.act()

    def _another(self) -> Explorer:
        """The next explorer whose way, drawn from its seed, the arm can go from where it is."""
        for _ in range(100):
            self.number += 1
            actor = Explorer(self.world, self.seed + 1_000_003 * self.number, kind="play")
            try:
                actor.reset()
            except UnreachableError:
                continue
            return actor
        raise UnreachableError(f"no play is possible from where reset {self.seed} led the arm")

    @property
    def done(self) -> bool:
        return False


def long_films(world: ArmEnv, seeds: Sequence[int], steps: int, advance: Advance) -> list[Recorded]:
    """Films of `steps` frames of play, one after another without a reset between.

    Play that leads the arm to where it can play no more is left out.
    """
    found = []
    for seed in seeds:
        with contextlib.suppress(UnreachableError):
            found.append(record(world, seed, _Chain(world, seed), "play", steps))
        advance()
    return found


def branch_starts(
    world: ArmEnv,
    seeds: Sequence[int],
    *,
    count: int,
    steps: int,
    past: int,
    past_stride: int,
    apart: float,
    advance: Advance,
) -> list[Start]:
    """A start for each seed, somewhere in the first two thirds of the expert's way, not yet solved.

    Branches that look the same cannot be told apart by pictures, so of twice as many the first
    `count` are taken that all differ; a start that has not so many, or is solved, is drawn anew, a
    few times, then left out.

    Args:
        count: K.
        steps: of each branch.
        past, past_stride: frames before the start that the model sees; the first one repeats.
        apart: least root mean square difference of two branches' frames, in grey levels; 0 takes
            the first K, whatever they look like.
    """
    starts = []
    for seed in seeds:
        for attempt in range(MOMENTS):
            found = _branch_start(world, seed, attempt, count, steps, past, past_stride, apart)
            if found is not None:
                starts.append(found)
                break
        advance()
    return starts


def _branch_start(
    world: ArmEnv,
    seed: int,
    attempt: int,
    count: int,
    steps: int,
    past: int,
    past_stride: int,
    apart: float,
) -> Start | None:
    """One start and its branches; None where it is solved or too few of them differ."""
    observation, info = world.reset(seed=seed)
    expert = world.make_expert(seed)
    expert.reset()
    plan = []
    while not expert.done:
        plan.append(expert.act())
    at = int(np.random.default_rng([seed, 7, attempt]).uniform(0.05, 0.66) * len(plan))
    seen = [observation]
    for action in plan[:at]:
        if info["is_success"]:
            return None
        observation, *_, info = world.step(action)
        seen.append(observation)
    if info["is_success"]:
        return None
    kept = [seen[max(0, at - j * past_stride)] for j in reversed(range(past))]
    branches = branch_actions(
        world, 2 * count if apart else count, steps, seed % 2**32, np.array(plan[at:])
    )
    futures = run_branches(world, world.get_state(), branches)
    chosen = distinct(futures.images, count, apart)
    if chosen is None:
        return None
    return Start(
        images={c: np.stack([o["pixels"][c] for o in kept]) for c in world.cameras},
        state=np.stack([o["agent_pos"] for o in kept]),
        names=[branches[i].name for i in chosen],
        actions=np.stack([branches[i].actions for i in chosen]),
        futures={c: v[chosen] for c, v in futures.images.items()},
        joints=futures.agent_pos[chosen],
        tip=futures.tip[chosen],
    )


def distinct(images: Mapping[str, np.ndarray], count: int, apart: float) -> list[int] | None:
    """The first `count` films ``[K', T, H, W, 3]`` of which each two differ; None: so many do not.

    Args:
        apart: least root mean square difference, in grey levels.
    """
    films = np.concatenate([v.reshape(len(v), -1) for v in images.values()], 1).astype(np.float32)
    chosen: list[int] = []
    for i, film in enumerate(films):
        if all(np.sqrt(np.mean((film - films[j]) ** 2)) >= apart for j in chosen):
            chosen.append(i)
        if len(chosen) == count:
            return chosen
    return None
