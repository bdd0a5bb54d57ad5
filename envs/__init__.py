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

Other people's benchmarks have names too (``fetch_reach``, ``metaworld:drawer-open-v3``); their
packages are an extra, and they are known to Gymnasium from the first time that they are asked for.

**A new task is one file and one line**: a subclass of `envs.base.ArmEnv` with its expert, and an
entry in `TASKS`. **So is a new suite**: a file in ``envs/suites`` that makes its environments an
`envs.world.World`, and an entry in `SUITES`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs import registration

if TYPE_CHECKING:
    from .world import Demonstrator

NAMESPACE = "selfflow"


@dataclass(frozen=True)
class Task:
    """Where a task lives: Gymnasium name, ``module:class`` inside this package, time limit.

    ``options`` are handed to the class before the caller's own.
    """

    gym_name: str
    entry_point: str
    max_episode_steps: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gym_id(self) -> str:
        return f"{NAMESPACE}/{self.gym_name}"


TASKS = {
    "reach": Task("Reach-v0", "reach:Reach", max_episode_steps=100),
    "pick_place": Task("PickPlace-v0", "pick_place:PickPlace", max_episode_steps=160),
    "push": Task("Push-v0", "push:Push", max_episode_steps=140),
    "reach_around": Task("ReachAround-v0", "reach_around:ReachAround", max_episode_steps=120),
}


@dataclass(frozen=True)
class Suite:
    """Other people's worlds under one prefix.

    Attributes:
        prefix: what the short names begin with; what follows is the suite's own name of a task.
        module: in ``envs/suites``. Its ``TASKS`` maps those names to `Task`; it is imported when a
            name asks for it, for the packages that it needs are an extra.
        package: the one to look for.
    """

    prefix: str
    module: str
    package: str

    @property
    def gym_prefix(self) -> str:
        """What its Gymnasium ids begin with: a colon would mean something else there."""
        return f"{NAMESPACE}/{self.prefix.translate({ord(':'): '-', ord('_'): '-'})}"

    def load(self) -> dict[str, Task]:
        """Short name -> task.

        Raises:
            MissingExtraError: its package is not installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise MissingExtraError(
                f"{self.prefix}... needs the package {self.package}, which is not installed here. "
                "Other people's worlds are an environment of their own: `make setup-suites` makes "
                "it, then use .venv-suites/bin/python in the place of .venv/bin/python"
            )
        tasks = importlib.import_module(f"{__name__}.suites.{self.module}").TASKS
        return {self.prefix + name: task for name, task in tasks.items()}


class MissingExtraError(ValueError):
    """The package that a world comes from is not installed."""


SUITES = (
    Suite("fetch_", "fetch", package="gymnasium_robotics"),
    Suite("metaworld:", "metaworld", package="metaworld"),
    Suite("pusht", "pusht", package="gym_pusht"),
    Suite("aloha:", "aloha", package="gym_aloha"),
)


def names() -> list[str]:
    """The short names of our own tasks; `suite_names` are those of other people's."""
    return sorted(TASKS)


def suite_names() -> list[str]:
    """The short names of all tasks of the suites that are installed."""
    installed = [s for s in SUITES if importlib.util.find_spec(s.package) is not None]
    return [name for suite in installed for name in suite.load()]


def make(name: str, **options: Any) -> gym.Env:
    """An environment by its short name, with its time limit applied.

    Args:
        name: one of `names` or `suite_names`, or the Gymnasium id of one of them.
        **options: of the task (see `envs.world.World` and the task's class), or of
            `gymnasium.make` (such as ``max_episode_steps``).

    Raises:
        ValueError: an unknown name, of which the message suggests the nearest; or the extra that
            it needs is missing (`MissingExtraError`).
    """
    task = find(name)
    _register(task)
    return gym.make(task.gym_id, **options)


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


def make_expert(name: str, env: gym.Env, seed: int | None = None) -> Demonstrator:
    """The scripted expert of a task, acting in `env` (which may be wrapped).

    Raises:
        ValueError: an unknown name, an environment of another task, or a world without expert.
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
        MissingExtraError: it belongs to a suite that is not installed.
    """
    name = str(name)
    for suite in SUITES:
        if name.startswith((suite.prefix, suite.gym_prefix)):
            return _lookup(name, suite.load())
    # A suite that is meant but misspelt is suggested by its prefix.
    return _lookup(name, TASKS, *(suite.prefix for suite in SUITES))


def _lookup(name: str, tasks: Mapping[str, Task], *prefixes: str) -> Task:
    for short, task in tasks.items():
        if name in (short, task.gym_id):
            return task
    known = [*tasks, *prefixes, *(task.gym_id for task in tasks.values())]
    near = difflib.get_close_matches(name, known, n=1)
    if not near and ":" in name:
        near = difflib.get_close_matches(name.partition(":")[0] + ":", prefixes, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    begun = [prefix if prefix.isalnum() else f"{prefix}..." for prefix in prefixes]
    there = ", ".join([*sorted(tasks), *begun])
    raise ValueError(f"there is no environment {name!r}.{hint} There are: {there}")


def register() -> None:
    """Make our own tasks known to Gymnasium; what the ``gymnasium.envs`` entry point names."""
    for task in TASKS.values():
        _register(task)


def _register(task: Task) -> None:
    if task.gym_id not in registration.registry:  # called again, it changes nothing
        registration.register(
            id=task.gym_id,
            entry_point=f"{__name__}.{task.entry_point}",
            max_episode_steps=task.max_episode_steps,
            kwargs=dict(task.options),
        )


register()
