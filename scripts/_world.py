"""Worlds as scripts need them: made with the right options, and described as checkpoints are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym

import envs
from envs.world import World, collected_options
from policies.scores import Axes
from worldmodel.types import Spec, SpecMismatchError


def world_of(env: gym.Env) -> World:
    """The `World` inside an environment's wrappers."""
    world = env.unwrapped
    assert isinstance(world, World), world
    return world


def options_of(name: str, wanted: Mapping[str, Any] | None, model: Any) -> dict[str, Any]:
    """Options that make a world look as it did in training; `wanted` overrides them.

    Cameras are the model's. If its stamp says that the demonstrations come from this environment
    (``environment``: what `scripts.collect` wrote), pictures are rendered at their size (they are
    resized as in training; rendering smaller is not the same) with the options that they were
    collected with; else pictures are rendered at the size that the model sees.

    Args:
        name: short name or Gymnasium id.
        model: a policy or a checkpoint, with or without ``spec`` and ``stamp``.

    Raises:
        ValueError: an unknown name, or `wanted` is no mapping.
    """
    options: dict[str, Any] = {}
    spec: Spec | None = getattr(model, "spec", None)
    if spec is not None:
        options |= {"cameras": list(spec.cameras), "image_size": list(spec.image_size)}
    world = (getattr(model, "stamp", None) or {}).get("environment") or {}
    if world.get("env") == envs.find(name).gym_id:
        options |= collected_options(world)
        options |= {k: world[k] for k in ("image_size",) if world.get(k) is not None}
    return options | mapping_of(wanted)


def mapping_of(options: Any) -> dict[str, Any]:
    """Options from a configuration, None for none.

    Raises:
        ValueError: they are no mapping.
    """
    if options is None or isinstance(options, Mapping):
        return dict(options or {})
    raise ValueError(
        f"options is {options!r}; expected a mapping, in quotes where there are several: "
        "'options={NAME:VALUE,NAME:VALUE}'"
    )


def make_world(name: str, options: Mapping[str, Any]) -> gym.Env:
    """The environment.

    Raises:
        ValueError: an unknown name, or an option that it does not have.
    """
    try:
        return envs.make(name, **options)
    except TypeError as error:
        raise ValueError(f"environment {name} refuses options {dict(options)}: {error}") from error


def require_cameras(name: str, options: Mapping[str, Any], spec: Spec) -> None:
    """Refuse a world without the model's cameras, before a camera is made.

    Raises:
        SpecMismatchError: names the cameras of both.
    """
    plain = make_world(name, {**options, "cameras": []})
    has = list(world_of(plain).camera_names)
    plain.close()
    if missing := [c for c in options["cameras"] if c not in has]:
        robot = f" ({spec.robot_type})" if spec.robot_type else ""
        raise SpecMismatchError(
            f"environment {name} does not fit the checkpoint, which is for another robot{robot} "
            f"or other cameras: it has no camera {missing}, it has {has}; the checkpoint sees "
            f"{list(spec.cameras)} and its joints are {list(spec.action_names[:4])}, ..."
        )


def environment_spec(env: gym.Env) -> Spec:
    """The facts of a world, in the form that a checkpoint carries."""
    world = world_of(env)
    return Spec(
        cameras=tuple(world.cameras),
        image_size=world.image_size,
        state_names=tuple(world.state_names),
        action_names=tuple(world.action_names),
        fps=float(env.metadata["render_fps"]),
        tasks=(world.task_description,),
        robot_type=world.robot_type,
        action_kind=world.action_kind,
    )


def axes_of(world: World) -> Axes:
    """The dimensions that smoothness is measured on."""
    box: Any = world.action_space
    names = (world.action_names, world.state_names, box.low, box.high)
    if world.action_kind == "delta":
        axes = Axes.from_moves(world.moves, *names, scale=world.action_scale)
    else:
        axes = Axes.from_names(*names)
    return replace(axes, unit=world.length_unit)
