"""Our environments under LeRobot's commands: ``--env.type=selfflow --env.task=reach_around``."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature, parser
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import FreezeAfterEpisodeEnd

import envs
from envs.world import World, collected_options
from policies.evaluation import SEED_BLOCKS
from worldmodel.types import Spec

log = logging.getLogger(__name__)


@EnvConfig.register_subclass("selfflow")
@dataclass
class SelfflowEnv(EnvConfig):
    """An environment of `envs`, by the name that `envs.make` knows.

    Unless `options` say otherwise, the world looks as it did in the demonstrations: cameras,
    picture size and target are those that the stamp of ``--policy.path`` names (or, where a new
    policy is trained, ``meta/source.json`` of ``--dataset.root``).

    Seed i of LeRobot is reset i of those that ``scripts.evaluate`` reports, so that no command
    evaluates on resets that demonstrations were collected from, and ``--seed=0`` here and
    ``seed=0`` there are the same resets.

    Attributes:
        task: the name.
        options: of the environment, as ``{image_size: 96, cameras: [front], target: hard}``.
        episode_length: control steps of an episode at most; None: the environment's own limit.
        fps, features, features_map: read from the environment, whatever is set here.
    """

    task: str | None = "reach_around"
    options: dict[str, Any] = field(default_factory=dict)
    episode_length: int | None = None

    def __post_init__(self) -> None:
        name = str(self.task)
        plain = envs.make(name)
        gym_id = plain.spec.id if plain.spec is not None else name
        plain.close()
        spec, world, where = demonstrations()
        options = _demonstrated_options(spec, world, gym_id)
        self._say(options, world if world.get("env") == gym_id else {}, where)
        if world and world.get("env") != gym_id:
            log.warning("%s is of demonstrations in %s, not in %s", where, world["env"], gym_id)
        self.options = options | self.options
        try:
            probe = envs.make(name, **self.gym_kwargs)
        except TypeError as error:
            raise ValueError(
                f"environment {name} refuses --env.options={self.options}: {error}"
            ) from error
        found = _spec_of(probe)
        probe.close()
        if spec is not None:
            spec.require_same(found, "the checkpoint", f"environment {name}", image_size=False)
        self.fps = round(found.fps)
        state, action = (found.state_dim,), (found.action_dim,)
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, action),
            "agent_pos": PolicyFeature(FeatureType.STATE, state),
        }
        self.features_map = {"action": "action", "agent_pos": "observation.state"}
        for camera in found.cameras:
            key = f"observation.images.{camera}"
            self.features[key] = PolicyFeature(FeatureType.VISUAL, (*found.image_size, 3))
            self.features_map[key] = key

    def _say(self, demonstrated: dict[str, Any], world: dict[str, Any], where: str) -> None:
        """Log which options are the demonstrations', and warn of those that are set otherwise."""
        for name, value in self.options.items():
            there = demonstrated.get(name)
            known = name in demonstrated or bool(world)
            if known and _plain(value) != _plain(there):
                log.warning(
                    "--env.options: %s is %s, in the demonstrations of %s it is %s",
                    *(name, value, where, "the environment's default" if there is None else there),
                )
        if demonstrated:
            log.info("environment %s as in %s: %s", self.task, where, demonstrated)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        kwargs = {"render_mode": "rgb_array"} | self.options
        return kwargs | ({"max_episode_steps": self.episode_length} if self.episode_length else {})

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, VectorEnv]]:
        makers = [partial(_Slot.make, str(self.task), self.gym_kwargs)] * n_envs
        vector: VectorEnv
        if use_async_envs and n_envs > 1:
            # forkserver: a plain fork after OpenGL was used hangs
            vector = AsyncVectorEnv(
                makers, context="forkserver", autoreset_mode=AutoresetMode.NEXT_STEP
            )
        else:
            vector = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
        return {self.type: {0: vector}}


class _Slot(FreezeAfterEpisodeEnd):
    """One world: held-out resets, and nothing simulated after the episode's end.

    Attributes:
        task: its name, which LeRobot asks for beside ``task_description``.
    """

    def __init__(self, env: gym.Env, task: str) -> None:
        super().__init__(env)
        self.task = task

    @classmethod
    def make(cls, task: str, options: dict[str, Any]) -> _Slot:
        return cls(envs.make(task, **options), task)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is not None:
            seed += SEED_BLOCKS["reported"]
        return super().reset(seed=seed, options=options)


def demonstrations() -> tuple[Spec | None, dict[str, Any], str]:
    """What the command's policy, or else its dataset, says about the world it was collected in.

    LeRobot parses an environment before the policy and shows it none of the rest of the command, so
    this reads the command line, as LeRobot itself does for ``--policy.path``.

    Returns:
        The checkpoint's spec or None, ``environment`` of its stamp or ``{}``, and their folder.
    """
    path = parser.get_path_arg("policy")
    if path and (Path(path) / "config.json").is_file():
        values = json.loads((Path(path) / "config.json").read_text()).get("spec")
        stamp = Path(path) / "stamp.json"
        world = json.loads(stamp.read_text()).get("environment") if stamp.is_file() else None
        return Spec.from_dict(values) if values else None, world or {}, path
    root = parser.parse_arg("dataset.root")
    source = Path(root or "") / "meta" / "source.json"
    if root and source.is_file():
        return None, json.loads(source.read_text()), root
    return None, {}, ""


def _demonstrated_options(spec: Spec | None, world: dict[str, Any], gym_id: str) -> dict[str, Any]:
    """Options of the demonstrations; of a checkpoint for another world, what its model sees."""
    options: dict[str, Any] = {}
    if spec is not None:
        options |= {"cameras": list(spec.cameras), "image_size": list(spec.image_size)}
    if world.get("env") == gym_id:
        options |= collected_options(world)
        options |= {k: world[k] for k in ("cameras", "image_size") if world.get(k) is not None}
    if spec is not None:
        options["cameras"] = list(spec.cameras)  # those of them that the policy uses
    return options


def _spec_of(env: gym.Env) -> Spec:
    """The facts of a world, in the form that a checkpoint carries."""
    world = env.unwrapped
    assert isinstance(world, World), world
    return Spec(
        cameras=tuple(world.cameras),
        image_size=world.image_size,
        state_names=tuple(world.state_names),
        action_names=tuple(world.action_names),
        fps=float(env.metadata["render_fps"]),
        robot_type=world.robot_type,
        action_kind=world.action_kind,
    )


def _plain(value: Any) -> Any:
    """An option's value in the form that comparing needs: a picture size as ``[H, W]``."""
    return [value, value] if isinstance(value, int) else value
