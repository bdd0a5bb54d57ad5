"""The base class of all tasks: an arm on a table, 20 actions a second.

It carries physics, control, cameras, observations, saving and restoring. A task adds what is on
the table and what counts as success; see `ArmEnv` for the hooks, `envs/reach.py` for an example.

Actions are absolute joint positions in radians plus the gripper's opening in metres, as position
controllers on real arms take them. Within a control step the command is interpolated linearly from
the previous one, as such controllers do too: a smooth sequence of actions gives a smooth motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from ._mujoco import mujoco
from .arm import (
    ARM_JOINTS,
    FINGER_JOINTS,
    GRIPPER_MAX,
    JOINT_HIGH,
    JOINT_LOW,
    TIMESTEP,
    TIP_SITE,
    arm_mjcf,
)
from .expert import Expert
from .kinematics import InverseKinematics
from .world import World

CAMERAS = ("front", "wrist")
CONTROL_HZ = 20

# What the future of the simulation depends on, and nothing that can be derived from it. Mocap
# poses carry the task's layout; the warm start makes a restored contact solver take the same path.
_PHYSICS_STATE = int(
    mujoco.mjtState.mjSTATE_FULLPHYSICS
    | mujoco.mjtState.mjSTATE_CTRL
    | mujoco.mjtState.mjSTATE_MOCAP_POS
    | mujoco.mjtState.mjSTATE_MOCAP_QUAT
    | mujoco.mjtState.mjSTATE_WARMSTART
)


class ArmEnv(World):
    """A Panda-like arm in front of a table.

    Observation: ``{"pixels": {camera: uint8 [H, W, 3]}, "agent_pos": float32 [8]}``, the state
    being 7 joint angles (rad) and the gripper's opening (m). Without cameras there is no
    ``"pixels"``. Action: float32 ``[8]``, absolute targets in the same units and order; values
    beyond the limits act as the limits. Reward: 1.0 on the step that succeeds, else 0.0. An episode
    terminates by success; the time limit belongs to the registration.

    ``info`` at every step and reset holds `info_keys`: ``is_success`` (bool), ``mode`` (str: which
    way was taken, "" if undecided or if there is only one), ``distance`` (float, metres to go).

    A task subclasses this and provides:

    - ``task_description``: one sentence, the text a language-conditioned policy reads;
    - ``task_variables``: names of its float attributes that change during an episode or from reset
      to reset (what the simulator holds already, poses of mocap bodies included, is not repeated);
    - `scene`: MJCF of what is on the table, and the ``front`` camera;
    - `reset_task`, `update_task`, `task_info`; optionally `observe_contacts`;
    - an `envs.expert.Expert` that `make_expert` returns.

    Args:
        image_size: of the cameras, pixels: one number, or ``(height, width)``.
        cameras: any of `CAMERAS`; ``()`` renders nothing, which is several times faster.
        render_mode: None or "rgb_array": then `render` returns the front camera's picture.
        render_size: ``(height, width)`` of that picture, independent of `image_size`.

    Raises:
        ValueError: an unknown camera or render mode, or a size that is no size.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": ["rgb_array"],
        "render_fps": CONTROL_HZ,
    }
    task_variables: ClassVar[tuple[str, ...]] = ()
    state_names = (*(f"{j}.pos" for j in ARM_JOINTS), "gripper.pos")
    action_names = state_names
    camera_names = CAMERAS
    robot_type = "selfflow_panda"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 96,
        cameras: Sequence[str] = CAMERAS,
        render_mode: str | None = None,
        render_size: int | Sequence[int] = 256,
    ):
        super().__init__(
            image_size=image_size, cameras=cameras, render_mode=render_mode, render_size=render_size
        )
        self.model = mujoco.MjModel.from_xml_string(arm_mjcf(self.scene()))
        self.data = mujoco.MjData(self.model)
        self.kinematics = InverseKinematics(self.model)
        joints = [self.model.joint(name) for name in ARM_JOINTS + FINGER_JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._qvel = np.array([joint.dofadr[0] for joint in joints])
        self._tip = self.model.site(TIP_SITE).id
        substeps = round(1 / (CONTROL_HZ * TIMESTEP))
        self._ramp = np.arange(1, substeps + 1) / substeps
        self._physics_size = mujoco.mj_stateSize(self.model, _PHYSICS_STATE)
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        for name in self.task_variables:
            setattr(self, name, 0.0)

        low = np.append(JOINT_LOW, 0.0).astype(np.float32)
        high = np.append(JOINT_HIGH, GRIPPER_MAX).astype(np.float32)
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        # Measured positions overshoot a limit a little: joints are springs to the solver.
        margin = np.append(np.full(len(ARM_JOINTS), 0.1), 0.02).astype(np.float32)
        self.observation_space = self.observation_space_of(
            gym.spaces.Box(low - margin, high + margin, dtype=np.float32)
        )

    # What a task provides.

    def scene(self) -> str:
        """MJCF elements of the task: its objects and the camera named ``front``."""
        raise NotImplementedError

    def reset_task(self) -> np.ndarray:
        """Draw a new layout from ``self.np_random``; return the joint angles ``[7]`` to start at.

        Called with the simulator reset; mocap poses and task variables are to be set here.
        """
        raise NotImplementedError

    def update_task(self, tip_before: np.ndarray) -> None:
        """Update the task variables after a control step.

        Args:
            tip_before: ``[3]``, where the tip was before the step; `tip` is where it is now.
        """
        raise NotImplementedError

    def task_info(self) -> dict[str, Any]:
        """The values of `info_keys` now."""
        raise NotImplementedError

    def observe_contacts(self) -> None:
        """Look at ``self.data.contact``; called after every physics step that has contacts."""

    def make_expert(self, seed: int | None = None) -> Expert:
        """The task's scripted expert, acting in this environment."""
        raise NotImplementedError

    # Gymnasium.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. All randomness comes from `seed`; `options` are accepted, unused."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        for name in self.task_variables:
            setattr(self, name, 0.0)
        joints = self.reset_task()
        self.data.qpos[self._qpos[:7]] = joints
        self.data.ctrl[:] = self.data.qpos[self._qpos]
        self._update_poses()
        return self.current_observation(), self.task_info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move for one control period (50 ms) towards `action` ``[8]``.

        Raises:
            ValueError: an action of another shape, or with an entry that is not finite.
        """
        goal = self.targets_of(action)
        start = self.data.ctrl.copy()
        tip_before = self.tip.copy()
        for fraction in self._ramp:
            self.advance(start + fraction * (goal - start))
        info = self.conclude(tip_before)
        success = info["is_success"]
        return self.current_observation(), float(success), success, False, info

    def render(self) -> np.ndarray | None:
        """The front camera's picture, uint8 ``[H, W, 3]``; None without a render mode."""
        if self.render_mode is None:
            return None
        return self.draw("front", self.render_size)

    def close(self) -> None:
        """Free the OpenGL contexts. Rendering again afterwards makes new ones."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    # The parts of a control step, for those that need finer ones than `step`.

    def targets_of(self, action: np.ndarray) -> np.ndarray:
        """An action ``[8]`` -> actuator targets ``[9]``, within the limits.

        Raises:
            ValueError: an action of another shape, or with an entry that is not finite.
        """
        action = np.asarray(action, dtype=np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"an action has shape {self.action_space.shape} {self.action_names}, "
                f"found {action.shape}"
            )
        finite = np.isfinite(action)
        if not finite.all():
            bad = {self.action_names[i]: float(action[i]) for i in np.flatnonzero(~finite)}
            raise ValueError(f"action entries that are not finite: {bad}")
        joints = np.clip(action[:7], JOINT_LOW, JOINT_HIGH)
        finger = np.clip(action[7], 0.0, GRIPPER_MAX) / 2
        return np.concatenate([joints, [finger, finger]])

    def advance(self, targets: np.ndarray) -> None:
        """One physics step, `envs.arm.TIMESTEP` seconds, with these actuator targets ``[9]``."""
        self.data.ctrl[:] = targets
        mujoco.mj_step(self.model, self.data)
        if self.data.ncon:
            self.observe_contacts()

    def conclude(self, tip_before: np.ndarray) -> dict[str, Any]:
        """End a control step that began with the tip at `tip_before` ``[3]``; its ``info``."""
        self._update_poses()
        self.update_task(tip_before)
        return self.task_info()

    # Reading and restoring the world.

    @property
    def tip(self) -> np.ndarray:
        """Position ``[3]`` of the point between the fingertips, in metres; a view, not a copy."""
        return self.data.site_xpos[self._tip]

    @property
    def agent_pos(self) -> np.ndarray:
        """float32 ``[8]``: joint angles in radians, then the gripper's opening in metres."""
        positions = self.data.qpos[self._qpos]
        return np.append(positions[:7], positions[7:].sum()).astype(np.float32)

    @property
    def agent_vel(self) -> np.ndarray:
        """float64 ``[8]``: velocities of `agent_pos`, per second."""
        velocities = self.data.qvel[self._qvel]
        return np.append(velocities[:7], velocities[7:].sum())

    @property
    def command(self) -> np.ndarray:
        """float64 ``[8]``: the action in force, where the next one starts from."""
        targets = self.data.ctrl
        return np.append(targets[:7], targets[7:].sum())

    def get_state(self) -> np.ndarray:
        """Everything the episode's future depends on, as float64 ``[N]``.

        Physics, layout and task variables; not the random generator, which only `reset` uses, and
        not a wrapper's count of steps. `set_state` restores it: equal actions then give bit-equal
        observations.
        """
        state = np.empty(self._physics_size + len(self.task_variables))
        mujoco.mj_getState(self.model, self.data, state[: self._physics_size], _PHYSICS_STATE)
        state[self._physics_size :] = [getattr(self, name) for name in self.task_variables]
        return state

    def set_state(self, state: np.ndarray) -> None:
        """Return to a state from `get_state` of the same task (any instance, any process).

        Raises:
            ValueError: the array is no such state.
        """
        state = np.ascontiguousarray(state, dtype=np.float64)
        size = self._physics_size + len(self.task_variables)
        if state.shape != (size,):
            raise ValueError(
                f"a state of {type(self).__name__} has shape ({size},), found {state.shape}: "
                "it comes from another task or another version"
            )
        if not np.isfinite(state).all():
            raise ValueError(f"state entry {int(np.argmin(np.isfinite(state)))} is not finite")
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, state[: self._physics_size], _PHYSICS_STATE)
        for name, value in zip(self.task_variables, state[self._physics_size :], strict=True):
            setattr(self, name, float(value))
        self._update_poses()

    # Internals.

    def _update_poses(self) -> None:
        """Bring poses up to date with joint positions: `mj_step` leaves those of one step ago.

        Not `mj_forward`, which would overwrite the contact solver's warm start and make a saved
        and restored state continue differently.
        """
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def draw(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        """One picture, uint8 ``[H, W, 3]``. Renderers are made late, in the process that draws."""
        renderer = self._renderers.get(size)
        if renderer is None:
            # The off-screen buffer is cleared as a whole: keep it as small as the picture.
            self.model.vis.global_.offheight, self.model.vis.global_.offwidth = size
            renderer = mujoco.Renderer(self.model, *size, max_geom=200)
            for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG"):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = False
            self._renderers[size] = renderer
        renderer.update_scene(self.data, camera)
        return renderer.render()
