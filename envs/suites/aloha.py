"""The two simulated ALOHA tasks (gym-aloha): two arms hand over a cube, or insert a peg.

There is no scripted expert; demonstrations by people and scripts are the LeRobot datasets
``lerobot/aloha_sim_transfer_cube_human`` and the like, whose names of cameras and dimensions are
used here, so that a model that learned from them can act.

What is changed: gym-aloha renders three pictures of 480 x 640 at every step and cannot be seeded
above 2^32; here only what is asked for is drawn, and the layout comes from the reset's generator.
Its action box says -1 to 1, though actions are joint angles; here it is the joints' range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from .. import Task
from .._mujoco import mujoco  # noqa: F401  (chooses how to draw before dm_control does)
from ..world import World
from .pictures import Pictures

# isort: split
from dm_control.mujoco import Physics
from dm_control.rl import control
from gym_aloha.constants import ASSETS_DIR, DT, JOINTS
from gym_aloha.tasks import sim
from gym_aloha.utils import sample_box_pose, sample_insertion_pose

TASKS = {
    "transfer-cube": Task("aloha-transfer-cube-v0", "suites.aloha:TransferCube", 300),
    "insertion": Task("aloha-insertion-v0", "suites.aloha:Insertion", 300),
}


class Aloha(World):
    """Two ViperX arms that follow joint positions.

    State and action: ``[14]``, for the left arm, then the right one, six joint angles (rad) and the
    gripper's opening (0 closed, 1 open). Success is gym-aloha's highest reward, 4. Commands that
    break the simulation (random ones do) end an episode unsolved; ``info["diverged"]`` says so.

    Args:
        cameras: any of top, angle, vis, as its datasets call them.
        **options: see `World`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012
    robot_type = ""  # its datasets do not agree on one
    state_names = tuple(name.replace("_arm_", "_") for name in JOINTS)
    action_names = state_names
    camera_names = ("top", "angle", "vis")
    info_keys: ClassVar[tuple[str, ...]] = ("is_success", "mode", "reward", "diverged")

    # What a task says.
    model_file: ClassVar[str]
    simulation: ClassVar[type[sim.BimanualViperXTask]]

    def __init__(self, *, cameras: Sequence[str] = ("top",), **options: Any):
        super().__init__(cameras=cameras, **options)
        self.physics = Physics.from_xml_path(str(ASSETS_DIR / self.model_file))
        self._task = _without_pictures(self.simulation)()
        self.inner = control.Environment(
            self.physics, self._task, math.inf, control_timestep=DT, flat_observation=False
        )
        self._pictures = Pictures(
            self.physics.model.ptr,
            self.physics.data.ptr,
            {"top": "top", "angle": "angle", "vis": "front_close"},
        )
        limits = [self.physics.model.jnt_range[joint] for joint in (*range(6), *range(8, 14))]
        low, high = (np.insert([row[end] for row in limits], [6, 12], end) for end in (0, 1))
        self.action_space = gym.spaces.Box(low.astype(np.float32), high.astype(np.float32))
        margin = 2.0  # springs: a measured joint overshoots its limit, a gripper more so
        self.observation_space = self.observation_space_of(
            gym.spaces.Box((low - margin).astype(np.float32), (high + margin).astype(np.float32))
        )

    def layout(self, seed: int) -> np.ndarray:
        """Poses of the objects, from a seed below 2^32."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. All randomness comes from `seed`; `options` are accepted, unused."""
        super().reset(seed=seed)
        # Theirs to read in the reset that follows: a global of the module.
        sim.BOX_POSE[0] = self.layout(int(self.np_random.integers(2**32)))
        self.inner.reset()
        self._reward, self._diverged = 0, False
        return self.current_observation(), self.task_info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step of 20 ms.

        Raises:
            ValueError: an action of another shape, or with an entry that is not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (14,) or not np.isfinite(action).all():
            raise ValueError(f"expected 14 finite numbers {self.action_names}, found {action}")
        box: Any = self.action_space
        try:
            self._reward = int(self.inner.step(np.clip(action, box.low, box.high)).reward)
        except control.PhysicsError:
            self._reward, self._diverged = 0, True
        info = self.task_info()
        success = info["is_success"]
        return self.current_observation(), float(success), success, self._diverged, info

    def render(self) -> np.ndarray | None:
        """The top camera's picture, uint8 ``[H, W, 3]``; None without a render mode."""
        return None if self.render_mode is None else self._pictures.draw("top", self.render_size)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self._pictures.close()

    def task_info(self) -> dict[str, Any]:
        """The values of `info_keys` now."""
        return {
            "is_success": self._reward == self._task.max_reward,
            "mode": "",
            "reward": self._reward,
            "diverged": self._diverged,
        }

    def draw(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        return self._pictures.draw(camera, size)

    @property
    def agent_pos(self) -> np.ndarray:
        """float32 ``[14]``, see `Aloha`."""
        return self._task.get_qpos(self.physics).astype(np.float32)


class TransferCube(Aloha):
    """The right arm picks up a cube and hands it to the left."""

    task_description = "Pick up the cube with the right arm and transfer it to the left arm."
    model_file = "bimanual_viperx_transfer_cube.xml"
    simulation = sim.TransferCubeTask

    def layout(self, seed: int) -> np.ndarray:
        return sample_box_pose(seed)


class Insertion(Aloha):
    """The right arm picks up a peg, the left one a socket; peg into socket, in the air."""

    task_description = "Insert the peg into the socket."
    model_file = "bimanual_viperx_insertion.xml"
    simulation = sim.InsertionTask

    def layout(self, seed: int) -> np.ndarray:
        return np.concatenate(sample_insertion_pose(seed))


def _without_pictures(task: type[sim.BimanualViperXTask]) -> type[sim.BimanualViperXTask]:
    """The task with observations that cost nothing: three renderings a step, unused, else."""
    return type(task.__name__, (task,), {"get_observation": lambda self, physics: {}})
