"""Imagined worlds by name: ``env=imagined:FOLDER``, where FOLDER is a world model's.

Everything that happens in one is imagined (`worldmodel.imagined_env`). What a world model cannot
know comes from the simulator that its data was collected in: the first observation of each episode,
the box of actions, the time limit. So resets are those of an evaluation in that simulator. A model
of recordings from elsewhere starts from the first frames of recorded episodes, with
``options={starts:DATASET}``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from omegaconf import OmegaConf

import envs
from envs.world import World
from policies.evaluation import Episode
from policies.scores import Axes
from worldmodel.checkpoint import Checkpoint, open_checkpoint
from worldmodel.data import Data, DataConfig, KeysConfig, open_data
from worldmodel.imagined_env import ImaginedEnv, ImaginedVectorEnv, Starts, spaces_of
from worldmodel.types import Spec

from ._world import (
    axes_of,
    environment_spec,
    make_world,
    mapping_of,
    options_of,
    require_cameras,
    world_of,
)

PREFIX = "imagined:"
OWN_OPTIONS = ("starts", "max_steps", "sampling_steps", "threshold", "patience", "history")
"""Options of an imagined world; all others are the simulator's."""


@dataclass
class ImaginedWorld:
    """A world model with all that it takes to run policies in it.

    Attributes:
        checkpoint: the world model.
        name: short name of the simulator, or of the dataset, that episodes start from.
        title: what a reader calls that world.
        options: of that world, as `scripts.evaluate` reports them.
        starts: seed -> first observation.
        spec: facts of the robot.
        observation_space, action_space: of one world; frames have the size that the model sees.
        max_steps: control steps of an episode at most.
        axes: what smoothness is measured on.
        hold: the action that stays at a measured state; None where that is not known.
        note: what a reader should know of the starts, or "".
        settings: `steps`, `threshold`, `patience` and `history` of `worldmodel.imagined_env`.
        world: the simulator, None where there is none.
    """

    checkpoint: Checkpoint
    name: str
    title: str
    options: dict[str, Any]
    starts: Starts
    spec: Spec
    observation_space: gym.spaces.Dict
    action_space: gym.spaces.Box
    max_steps: int
    axes: Axes
    hold: Callable[[np.ndarray], np.ndarray] | None
    note: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    world: World | None = None

    def single(self) -> ImaginedEnv:
        """One imagined environment."""
        return ImaginedEnv(self.checkpoint, self.starts, **self._arguments)

    def vector(self, num_envs: int) -> ImaginedVectorEnv:
        """As many as are stepped in one batch."""
        return ImaginedVectorEnv(self.checkpoint, self.starts, num_envs, **self._arguments)

    def close(self) -> None:
        """Close the simulator."""
        if self.world is not None:
            self.world.close()

    @property
    def _arguments(self) -> dict[str, Any]:
        return self.settings | {
            "max_steps": self.max_steps,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "robot": self.spec,
        }


def is_imagined(name: str) -> bool:
    """Whether an environment's name is that of an imagined world.

    Raises:
        ValueError: it looks like one, but is misspelt or names no folder.
    """
    kind, colon, folder = str(name).partition(":")
    known = [PREFIX.rstrip(":"), *(suite.prefix.rstrip(":") for suite in envs.SUITES)]
    meant = difflib.get_close_matches(kind, known, n=1, cutoff=0.75) == [PREFIX.rstrip(":")]
    if not meant:
        return False
    if kind + ":" != PREFIX or not colon or not folder:
        raise ValueError(
            f"there is no environment {name!r}. Did you mean 'imagined:FOLDER', FOLDER being that "
            "of a world model?"
        )
    return True


UNCALIBRATED = (
    "threshold and patience of success are not calibrated (evaluate_worldmodel finds them)"
)
"""A plain threshold believes what is imagined too readily."""


def imagined_world(
    path: str | Path, options: Mapping[str, Any] | None = None, device: str = "cpu"
) -> ImaginedWorld:
    """Open a world model as a world.

    Args:
        path: a run's folder or a checkpoint; a name ``imagined:FOLDER`` is fine too.
        options: `OWN_OPTIONS` (``starts``, a LeRobot dataset or several; ``max_steps``;
            ``sampling_steps`` per frame, 1; ``threshold``, the probability from which an episode
            counts as solved, 0.5, after ``patience`` frames of it, 1; ``history``, see
            `worldmodel.imagine.imagine`), and options of the simulator, by default those of the
            data.
        device: of the world model.

    Raises:
        ValueError: no checkpoint; nothing to start from; or a world that is not the model's.
    """
    checkpoint = open_checkpoint(str(path).removeprefix(PREFIX), device=device)
    given = mapping_of(options)
    own = {name: given.pop(name) for name in OWN_OPTIONS if name in given}
    starts = own.pop("starts", None)
    source = checkpoint.stamp.get("environment") or {}
    if starts is not None:
        if given:
            raise ValueError(
                f"options {sorted(given)} are of a simulator; with starts={starts} there is none. "
                f"An imagined world has {list(OWN_OPTIONS)}"
            )
        world = _from_recordings(checkpoint, starts)
    elif "env" in source:
        world = _from_simulator(checkpoint, str(source["env"]), given)
    else:
        raise ValueError(
            f"{path} does not say which simulator its data comes from (its stamp has no "
            "environment), so there is nothing to start episodes from. Either start them from "
            "recordings, options={starts:DATASET} with a LeRobot dataset; or train on what "
            "scripts.collect wrote, which says where it was collected"
        )
    settings = {"steps": own.get("sampling_steps", 1), "threshold": own.get("threshold", 0.5)}
    if not {"threshold", "patience"} <= set(own):
        world.note = ", ".join(filter(None, [world.note, UNCALIBRATED]))
    settings |= {"patience": own.get("patience", 1), "history": own.get("history", 0.0)}
    world.settings = settings
    world.max_steps = int(own.get("max_steps", world.max_steps))
    try:
        world.vector(1)  # or what it cannot do, before anything is imagined
    except ValueError:
        world.close()
        raise
    return world


def _from_simulator(
    checkpoint: Checkpoint, gym_id: str, wanted: Mapping[str, Any]
) -> ImaginedWorld:
    """Episodes start where those of the simulator do, after a reset with the same seed."""
    options = options_of(gym_id, wanted, checkpoint)
    require_cameras(gym_id, options, checkpoint.spec)
    env = make_world(gym_id, options)
    world = world_of(env)
    limit = env.spec.max_episode_steps if env.spec is not None else None
    assert limit is not None, f"{gym_id} is registered without a time limit"

    def starts(seed: int) -> dict[str, Any]:
        observation, _ = env.reset(seed=seed)
        return observation | {"task": world.task_description}

    spec, box = checkpoint.spec, world.action_space
    assert isinstance(box, gym.spaces.Box)
    seen = dict(env.observation_space.spaces)  # type: ignore[attr-defined]
    if "pixels" in seen:
        seen["pixels"] = spaces_of(spec)[0]["pixels"]
    return ImaginedWorld(
        checkpoint,
        name=_short_name(gym_id),
        title=gym_id,
        options=options,
        starts=starts,
        spec=environment_spec(env),
        observation_space=gym.spaces.Dict(seen),
        action_space=box,
        max_steps=limit,
        axes=axes_of(world),
        hold=world.hold_action,
        world=world,
    )


def _short_name(gym_id: str) -> str:
    """What an environment is called on the command line."""
    suites = [s.load() for s in envs.SUITES if gym_id.startswith(s.gym_prefix)]
    tables = [envs.TASKS, *suites]
    return next(
        (short for table in tables for short, task in table.items() if task.gym_id == gym_id),
        gym_id,
    )


def _from_recordings(checkpoint: Checkpoint, starts: Any) -> ImaginedWorld:
    """Episodes start at first frames of recorded ones, held-out ones if it was trained on them."""
    spec = checkpoint.spec
    data = open_data(
        DataConfig(
            root=starts,
            keys=_stored_keys(checkpoint),
            image_size=list(spec.image_size),
            future=0,
            chunk=1,
            action_kind=spec.action_kind,
            validation=0.0,
        )
    )
    spec.require_same(data.spec, "the world model", f"the dataset {starts}")
    numbers = _held_out(checkpoint, data)
    first = np.flatnonzero((data.train.frame_of == 0) & np.isin(data.train.episode_of, numbers))
    lengths = np.unique(data.train.episode_of, return_counts=True)[1]

    def start(seed: int) -> dict[str, Any]:
        window = data.train.batch(first[[seed % len(first)]], future=False)
        task = int(window.task[0])
        return {
            "pixels": {c: v[0, 0].movedim(0, -1).numpy() for c, v in window.video.items()},
            "agent_pos": window.state[0, 0].numpy(),
            "task": data.spec.tasks[task] if task >= 0 else "",
        }

    roots = [Path(root).name for root in data.roots]
    observation_space, action_space = spaces_of(spec)
    return ImaginedWorld(
        checkpoint,
        name=" and ".join(roots),
        title=" and ".join(roots),
        options={"starts": roots},
        starts=start,
        spec=spec,
        observation_space=observation_space,
        action_space=action_space,
        max_steps=int(lengths.max()),
        axes=_recorded_axes(spec, action_space),
        hold=_recorded_hold(spec),
        note=f"starts of {len(first)} recorded episodes",
    )


def _held_out(checkpoint: Checkpoint, data: Data) -> list[int]:
    """Episodes that the world model was not trained on, all of them where it was on none."""
    trained = checkpoint.stamp.get("dataset", {})
    known = trained.get("validation_episodes") or []
    mine = trained.get("fingerprint") == data.fingerprint
    return list(known) if mine and known else data.train_episodes


def _stored_keys(checkpoint: Checkpoint) -> KeysConfig:
    """What the features were called in training; found anew where the run's folder is not there."""
    stored = checkpoint.path.parent.parent / "config.yaml"
    if not stored.is_file():
        return KeysConfig()
    keys = OmegaConf.select(OmegaConf.load(stored), "data.keys", default={})
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(KeysConfig), keys))
    return found


def _targets(spec: Spec) -> list[int]:
    """Per action the state that it is about: found in the data, else of the same name; or -1."""
    found = list(spec.action_targets) or [-1] * spec.action_dim
    named = [spec.state_names.index(n) if n in spec.state_names else -1 for n in spec.action_names]
    return [a if a >= 0 else b for a, b in zip(found, named, strict=True)]


def _recorded_axes(spec: Spec, box: gym.spaces.Box) -> Axes:
    """The dimensions that smoothness is measured on.

    Raises:
        ValueError: no action is about a state.
    """
    moves = {
        action: spec.state_names[state]
        for action, state in zip(spec.action_names, _targets(spec), strict=True)
        if state >= 0 and "gripper" not in action.lower()
    }
    axes = Axes.from_moves(moves, spec.action_names, spec.state_names, box.low, box.high)
    kind = "delta" if spec.action_kind == "delta" else "absolute"
    return dataclasses.replace(axes, kind=kind, unit="units")


def _recorded_hold(spec: Spec) -> Callable[[np.ndarray], np.ndarray] | None:
    """The action that stays: no change, or the measured state where each action is its target."""
    targets = _targets(spec)
    if spec.action_kind == "delta":
        return lambda _: np.zeros(spec.action_dim, np.float32)
    if spec.action_kind == "unknown" or min(targets) < 0:
        return None
    return lambda state: np.asarray(state, np.float32)[targets]


class Films:
    """Pictures of the first successes and the first failures, kept while they are imagined.

    Imagining them again would cost as much as the first time.

    Args:
        camera: whose pictures.
        most: episodes of each outcome.
    """

    def __init__(self, camera: str, most: int) -> None:
        self.camera, self.most = camera, most
        self.running: _Filmed | None = None
        self._kept: dict[bool, dict[int, tuple[Episode, np.ndarray]]] = {True: {}, False: {}}

    def over(self, envs: ImaginedVectorEnv) -> VectorEnv:
        """The same environments, filmed."""
        self.running = _Filmed(envs, self.camera)
        return self.running

    def keep(self, number: int, episode: Episode) -> None:
        """Of an episode that has just ended; `number` says which one it is."""
        kept = self._kept[episode.success]
        if len([n for n in kept if n < number]) >= self.most:
            return
        assert self.running is not None
        kept[number] = episode, self.running.film(episode)
        for late in sorted(kept)[self.most :]:
            del kept[late]

    @property
    def kept(self) -> list[tuple[int, Episode, np.ndarray]]:
        """Number, episode and frames uint8 ``[T + 1, H, W, 3]``; successes first."""
        return [
            (number, *kept[number])
            for kept in (self._kept[True], self._kept[False])
            for number in sorted(kept)
        ]


class _Filmed(VectorWrapper):
    """Remembers what a camera has shown since all episodes started."""

    def __init__(self, env: VectorEnv, camera: str) -> None:
        super().__init__(env)
        self.camera = camera
        self._seeds: list[int] = []
        self._frames: list[np.ndarray] = []

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, infos = self.env.reset(seed=seed, options=options)
        self._seeds, self._frames = list(seed), []
        self._look(observation)
        return observation, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(actions)
        self._look(result[0])
        return result

    def film(self, episode: Episode) -> np.ndarray:
        """uint8 ``[T + 1, H, W, 3]`` of one that has just ended."""
        row = self._seeds.index(episode.seed)
        return np.stack([frames[row] for frames in self._frames[: episode.steps + 1]])

    def _look(self, observation: dict[str, Any]) -> None:
        self._frames.append(observation["pixels"][self.camera].copy())
