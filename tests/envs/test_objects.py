"""PickPlace and Push: what counts as solved, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import envs
from envs.objects import angle_between


def make(name: str, **options: Any) -> Any:
    env = envs.make(name, cameras=(), **options).unwrapped
    env.reset(seed=0)
    return env


def wait(env: Any, steps: int = 8, pose: np.ndarray | None = None) -> dict[str, Any]:
    """Hold the arm still where it is, or at `pose`; the last step's info."""
    pose = env.agent_pos if pose is None else pose
    for _ in range(steps):
        *_, info = env.step(pose)
    return info


def height_of_chosen(env: Any) -> float:
    """How far the cube that was picked is above the table, in metres."""
    return env.cubes[0 if env.chosen > 0 else 1].position[2] - env.CUBE


@pytest.mark.parametrize("cube", [0, 1])
def test_either_cube_on_the_plate_is_success(cube: int) -> None:
    env = make("pick_place")
    env.cubes[cube].place(*env.plate[:2], env.CUBE, 0.0)
    assert not wait(env, env.HOLD_STEPS - 1)["is_success"]  # it has to stay there
    assert wait(env, 1)["is_success"]


def test_a_cube_that_is_held_or_beside_or_flying_is_not_placed() -> None:
    env = make("pick_place", target="hard")
    x, y = env.plate[:2]
    env.cubes[0].place(x, y + 1.2 * env.tolerance, env.CUBE, 0.0)
    assert not wait(env)["is_success"]

    # Stop the expert before it lets go: the cube is on the plate, between the fingers.
    env.reset(seed=1)
    expert = env.make_expert(1)
    expert.reset()
    info: dict[str, Any] = {}
    while not (info and info["mode"] and info["distance"] < 0.02 and height_of_chosen(env) < 0.009):
        grip = expert.act()
        *_, info = env.step(grip)
        assert not info["is_success"]
    assert not wait(env, 20, grip)["is_success"]
    grip[7] += 0.04  # and now it lets go
    assert wait(env, 20, grip)["is_success"]


def test_the_chosen_cube_is_named_by_its_side() -> None:
    env = make("pick_place")
    for index, mode in ((0, "left"), (1, "right")):
        env.reset(seed=index)
        assert env.cubes[0].position[1] > env.cubes[1].position[1]
        env.cubes[index].place(0.5, 0.3, 0.2, 0.0)
        assert wait(env, 1)["mode"] == mode


def test_layouts_keep_their_distances() -> None:
    env = make("pick_place")
    for seed in range(50):
        env.reset(seed=seed)
        left, right = (cube.position for cube in env.cubes)
        assert left[1] - right[1] > 0.12
        assert min(np.linalg.norm(c[:2] - env.plate[:2]) for c in (left, right)) > env.tolerance
    push = make("push")
    for seed in range(50):
        push.reset(seed=seed)
        assert push.distance > 2 * push.tolerance
        assert push.mark[0] > push.block.position[0]  # away from the arm
        assert abs(push.mark[1]) < 0.15  # in the picture


def test_a_block_must_fit_the_mark_in_place_and_angle() -> None:
    env = make("push")
    (x, y), height = env.mark[:2], env.BLOCK[2]

    def solved(dx: float, turn: float) -> bool:
        env.reset(seed=0)
        env.block.place(x + dx, y, height, env.mark_yaw + turn)
        return wait(env)["is_success"]

    assert solved(0.0, 0.0)
    assert solved(0.0, np.pi)  # half a turn looks the same
    assert solved(0.9 * env.tolerance, 0.9 * env.angle_tolerance)
    assert not solved(1.1 * env.tolerance, 0.0)
    assert not solved(0.0, 1.1 * env.angle_tolerance)


def test_a_block_at_speed_is_not_there_yet() -> None:
    env = make("push")
    env.model.opt.gravity[:] = 0  # so that no friction stops it
    for speed, solved in ((0.05, False), (0.0, True)):
        env.block.place(*env.mark[:2], env.BLOCK[2] + 0.01, env.mark_yaw)
        env.data.qvel[env.model.joint("block").dofadr[0]] = speed
        info = wait(env)
        assert info["distance"] < env.tolerance
        assert info["is_success"] is solved


def test_angles_wrap() -> None:
    assert angle_between(3.0, -3.0) == pytest.approx(6 - 2 * np.pi)
    assert angle_between(0.1, np.pi - 0.1, period=np.pi) == pytest.approx(0.2)
    assert angle_between(1.0, 1.0) == 0
