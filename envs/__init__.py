"""Worlds to act in: MuJoCo tasks with scripted experts, behind Gymnasium's interface.

::

    import envs

    env = envs.make("reach_around", image_size=48, cameras=("front",))
    observation, info = env.reset(seed=0)
    expert = envs.make_expert("reach_around", env, seed=0)
    expert.reset()
    while not expert.done:
        observation, reward, terminated, truncated, info = env.step(expert.act())

The tasks are registered with Gymnasium too: ``gymnasium.make("selfflow/ReachAround-v0")`` works
once this package is imported, ``gymnasium.make("envs:selfflow/ReachAround-v0")`` imports it itself.

**A new task is one file and one line**: a subclass of `envs.base.ArmEnv` with its expert, and an
entry in `TASKS`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs import registration

if TYPE_CHECKING:
    from .expert import Expert

NAMESPACE = "selfflow"


@dataclass(frozen=True)
class Task:
    """Where a task lives: Gymnasium name, ``module:class`` inside this package, time limit."""

    gym_name: str
    entry_point: str
    max_episode_steps: int

    @property
    def gym_id(self) -> str:
        return f"{NAMESPACE}/{self.gym_name}"


TASKS = {
    "reach": Task("Reach-v0", "reach:Reach", max_episode_steps=100),
    "pick_place": Task("PickPlace-v0", "pick_place:PickPlace", max_episode_steps=160),
    "push": Task("Push-v0", "push:Push", max_episode_steps=140),
    "reach_around": Task("ReachAround-v0", "reach_around:ReachAround", max_episode_steps=120),
}


def names() -> list[str]:
    """The short names that `make` knows."""
    return sorted(TASKS)


def make(name: str, **options: Any) -> gym.Env:
    """An environment by its short name, with its time limit applied.

    Args:
        name: one of `names`, or the Gymnasium id of one of them.
        **options: of the task (see `envs.base.ArmEnv` and the task's class), or of
            `gymnasium.make` (such as ``max_episode_steps``).

    Raises:
        ValueError: an unknown name; the message suggests the nearest.
    """
    return gym.make(find(name).gym_id, **options)


def make_vec(
    name: str, num_envs: int, *, vectorization: str = "sync", **options: Any
) -> gym.vector.VectorEnv:
    """`num_envs` copies of an environment, stepped together.

    Args:
        vectorization: "sync" (one process) or "async" (one worker process each, started by
            forkserver: a plain fork after OpenGL was used hangs).
        **options: as for `make`.

    Raises:
        ValueError: an unknown name or vectorization.
    """
    find(name)
    makers = [partial(make, name, **options)] * num_envs
    if vectorization == "sync":
        return gym.vector.SyncVectorEnv(makers)
    if vectorization == "async":
        return gym.vector.AsyncVectorEnv(makers, context="forkserver")
    raise ValueError(f"vectorization is {vectorization!r}; expected 'sync' or 'async'")


def make_expert(name: str, env: gym.Env, seed: int | None = None) -> Expert:
    """The scripted expert of a task, acting in `env` (which may be wrapped).

    Raises:
        ValueError: an unknown name, or an environment of another task.
    """
    task = find(name)
    spec = env.unwrapped.spec
    if spec is None or spec.id != task.gym_id:
        raise ValueError(
            f"the expert of {task.gym_id} cannot act in {spec.id if spec else env.unwrapped}"
        )
    return env.unwrapped.make_expert(seed)  # type: ignore[attr-defined]


def find(name: str) -> Task:
    """The `Task` of a short name or Gymnasium id.

    Raises:
        ValueError: there is none; the message lists what there is and suggests the nearest.
    """
    for short, task in TASKS.items():
        if name in (short, task.gym_id):
            return task
    known = [*TASKS, *(task.gym_id for task in TASKS.values())]
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"there is no environment {name!r}.{hint} There are: {', '.join(names())}")


def register() -> None:
    """Make the tasks known to Gymnasium; what the ``gymnasium.envs`` entry point names."""
    for task in TASKS.values():
        if task.gym_id not in registration.registry:  # called again, it changes nothing
            registration.register(
                id=task.gym_id,
                entry_point=f"{__name__}.{task.entry_point}",
                max_episode_steps=task.max_episode_steps,
            )


register()
