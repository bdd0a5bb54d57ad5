"""Faults to inject, for whoever is to notice that the world does not behave as it should.

::

    env = inject(envs.make("push"), "camera_frozen", at_step=30, seed=0)

The first `at_step` calls of ``step`` are those of the plain world, to the bit; from the next one on
the fault is there. A monitor's alarms before and after give its ROC.
"""

from __future__ import annotations

import difflib
import zlib
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

from .base import ArmEnv
from .world import World


class Fault(gym.Wrapper):
    """A world in which something goes wrong, in every episode at the same step in the same way.

    Args:
        env: a `envs.world.World`, wrapped or not.
        at_step: number of steps before it.
        seed: of what is random about it.

    Attributes:
        active: whether the last step was faulty.

    Raises:
        ValueError: the world cannot have this fault; or `at_step` is below 0.
    """

    name: str

    def __init__(self, env: gym.Env, at_step: int, seed: int):
        super().__init__(env)
        if not isinstance(env.unwrapped, World):
            raise ValueError(f"{env.unwrapped} is no World: make it with envs.make")
        if at_step < 0:
            raise ValueError(f"at_step is {at_step}; expected at least 0")
        self.world: World = env.unwrapped
        self.at_step = at_step
        self.rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        self.active = False
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self._steps, self.active = 0, False
        observation, info = self.env.reset(seed=seed, options=options)
        self.begin(observation)
        return observation, info

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        self.active = self._steps >= self.at_step
        self._steps += 1
        action = self.changed_action(action)
        if self.active:
            self.disturb(self._steps - 1 - self.at_step)
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self.changed_observation(observation), reward, terminated, truncated, info

    def begin(self, observation: dict[str, Any]) -> None:
        """An episode begins."""

    def changed_action(self, action: np.ndarray) -> np.ndarray:
        """What is carried out in the place of `action`."""
        return action

    def disturb(self, step: int) -> None:
        """Change the world before a faulty step, `step` of them after the first."""

    def changed_observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """What is seen in the place of `observation`."""
        return observation

    def cannot(self, why: str) -> ValueError:
        """The error that this world cannot have this fault."""
        name = self.world.spec.id if self.world.spec else type(self.world).__name__
        return ValueError(f"{name} cannot have the fault {self.name!r}: {why}")

    def require_arm(self) -> ArmEnv:
        """The world, as a task of our own arm."""
        if not isinstance(self.world, ArmEnv):
            raise self.cannot("only tasks of our own arm (envs.names()) can")
        return self.world


class CameraFault(Fault):
    """Something is wrong with all cameras."""

    def __init__(self, env: gym.Env, at_step: int, seed: int):
        super().__init__(env, at_step, seed)
        if not self.world.cameras:
            raise self.cannot("it was made without cameras; make it with cameras=(...)")

    def changed_observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        pictures = observation["pixels"]
        changed = {camera: self.changed_picture(camera, pictures[camera]) for camera in pictures}
        return observation | {"pixels": changed}

    def changed_picture(self, camera: str, picture: np.ndarray) -> np.ndarray:
        """What is seen in the place of `picture`, uint8 ``[H, W, 3]``."""
        raise NotImplementedError


class CameraFrozen(CameraFault):
    """The pictures stay what they were."""

    name = "camera_frozen"

    def begin(self, observation: dict[str, Any]) -> None:
        self._last = dict(observation["pixels"])

    def changed_picture(self, camera: str, picture: np.ndarray) -> np.ndarray:
        if not self.active:
            self._last[camera] = picture
        return self._last[camera].copy()


class CameraShifted(CameraFault):
    """The cameras were knocked: all is seen about a tenth of the picture further to one side."""

    name = "camera_shifted"
    SHARE = (0.08, 0.12)
    """Of the picture's width by which it is shifted."""

    def __init__(self, env: gym.Env, at_step: int, seed: int):
        super().__init__(env, at_step, seed)
        angle = self.rng.uniform(-np.pi, np.pi)
        share = self.rng.uniform(*self.SHARE)
        self._share = share * np.array([np.sin(angle), np.cos(angle)])

    def changed_picture(self, camera: str, picture: np.ndarray) -> np.ndarray:
        if not self.active:
            return picture
        height, width = picture.shape[:2]
        down, right = np.round(self._share * width).astype(int)
        if not (down or right):
            right = 1  # a picture of a few pixels
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        return picture[rows][:, columns]


class ArmPushed(Fault):
    """Someone pushes the hand sideways, for a third of a second."""

    name = "arm_pushed"
    FORCE = (70.0, 85.0)
    """In newtons: 1 to 4 cm. More would overpower the wrist, which then folds over."""
    STEPS = 6

    def __init__(self, env: gym.Env, at_step: int, seed: int):
        super().__init__(env, at_step, seed)
        self._arm = self.require_arm()
        angle = self.rng.uniform(-np.pi, np.pi)
        self._force = self.rng.uniform(*self.FORCE) * np.array([np.cos(angle), np.sin(angle), 0.0])
        self._hand = self._arm.model.body("hand").id

    def disturb(self, step: int) -> None:
        force = self._force if step < self.STEPS else np.zeros(3)
        self._arm.data.xfrc_applied[self._hand, :3] = force


class ActionDelayed(Fault):
    """Actions are carried out some steps late: at first the arm waits where it was sent last."""

    name = "action_delayed"
    STEPS = 5

    def begin(self, observation: dict[str, Any]) -> None:
        still = self.world.hold_action(observation["agent_pos"])
        self._actions = deque([still] * (self.STEPS + 1), maxlen=self.STEPS + 1)

    def changed_action(self, action: np.ndarray) -> np.ndarray:
        if not self.active:
            self._actions.extend([np.array(action)] * (self.STEPS + 1))
        self._actions.append(np.array(action))
        return self._actions[0]


class ObjectRemoved(Fault):
    """What the task is about is no longer there."""

    name = "object_removed"
    BODIES = ("block", "cube_left", "cube_right", "marker")
    """The bodies that can go; of two of them, one."""
    AWAY = (0.0, 0.0, -0.5)
    """Under the table, in metres."""

    def __init__(self, env: gym.Env, at_step: int, seed: int):
        super().__init__(env, at_step, seed)
        self._arm = self.require_arm()
        model = self._arm.model
        there = {model.body(number).name for number in range(model.nbody)}
        bodies = [name for name in self.BODIES if name in there]
        if not bodies:
            raise self.cannot(f"it has none of the bodies {', '.join(self.BODIES)}")
        self._body = model.body(str(self.rng.choice(bodies)))

    def disturb(self, step: int) -> None:
        data = self._arm.data
        mocap = self._body.mocapid[0]
        if mocap >= 0:
            data.mocap_pos[mocap] = self.AWAY
            return
        # In every step anew, for it falls.
        joint = self._arm.model.joint(self._body.jntadr[0])
        data.qpos[joint.qposadr[0] : joint.qposadr[0] + 3] = self.AWAY
        data.qvel[joint.dofadr[0] : joint.dofadr[0] + 6] = 0.0


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (CameraFrozen, CameraShifted, ArmPushed, ActionDelayed, ObjectRemoved)
}
"""All faults by their names."""


def inject(env: gym.Env, name: str, at_step: int, seed: int) -> Fault:
    """`env` with a fault.

    Args:
        env: a `envs.world.World`, wrapped or not.
        name: one of `FAULTS`.
        at_step: number of steps before it, at least 0.
        seed: of what is random about it; the same seed makes the same fault.

    Raises:
        ValueError: an unknown name, or a fault that this world cannot have.
    """
    if name not in FAULTS:
        near = difflib.get_close_matches(name, FAULTS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no fault {name!r}.{hint} There are: {', '.join(FAULTS)}")
    return FAULTS[name](env, at_step, seed)
