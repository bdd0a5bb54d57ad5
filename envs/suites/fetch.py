"""The Fetch tasks of Gymnasium-Robotics: reach, push, pick and place, from pixels.

What is changed: observations are pictures and the gripper's own position (theirs name where object
and goal are), success ends an episode, and the marker of the goal is drawn a little larger. Where
things start and what counts as success is theirs; so is the time limit of the registered benchmark,
50 steps, with ``max_episode_steps=50``: here it is 100, so that there is time to move smoothly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from .. import Task
from .._mujoco import mujoco  # before gymnasium_robotics, which imports it too
from ..kinematics import minimum_jerk
from ..world import World
from .pictures import Pictures, View

# isort: split
import farama_notifications

farama_notifications.notifications.pop("gymnasium_robotics", None)  # printed; of a task not used
# isort: split
from gymnasium_robotics.envs.fetch.fetch_env import MujocoFetchEnv  # noqa: E402
from gymnasium_robotics.envs.fetch.pick_and_place import MujocoFetchPickAndPlaceEnv  # noqa: E402
from gymnasium_robotics.envs.fetch.push import MujocoFetchPushEnv  # noqa: E402
from gymnasium_robotics.envs.fetch.reach import MujocoFetchReachEnv  # noqa: E402

TASKS = {
    "reach": Task("fetch-reach-v4", "suites.fetch:FetchReach", 100),
    "push": Task("fetch-push-v4", "suites.fetch:FetchPush", 100),
    "pick_and_place": Task("fetch-pick-and-place-v4", "suites.fetch:FetchPickAndPlace", 100),
}

MARKER_RADIUS = 0.03
"""Of the goal, metres; theirs is 0.02, four pixels of 96."""
STRIDE = 0.032
"""Metres that the gripper moves in one control step at full action, as measured: the weld that
pulls it leaves a third of the commanded 0.05 to the next step, which takes it back."""
_FINGERS = ("robot0:l_gripper_finger_joint", "robot0:r_gripper_finger_joint")


class FetchWorld(World):
    """A Fetch arm that is moved by changes of its gripper's position.

    State: the gripper's position (metres, in the world's frame) and its opening (metres). Action:
    ``[4]`` in [-1, 1]: change of position (1 is `STRIDE` metres in 40 ms), change of opening. The
    cameras ``front`` and ``side`` are ours (the robot's own one at its wrist sees the inside of its
    hand): together they tell how far up the goal is.

    Args:
        cameras: any of front, side.
        **options: see `World`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    robot_type = "fetch"
    state_names = ("ee.x", "ee.y", "ee.z", "gripper.pos")
    action_names = ("delta_x", "delta_y", "delta_z", "delta_gripper")
    camera_names = ("front", "side")
    action_kind: ClassVar[str] = "delta"
    moves = dict(zip(action_names[:3], state_names[:3], strict=True))  # noqa: RUF012
    action_scale: ClassVar[float] = STRIDE
    length_unit: ClassVar[str] = "m"

    # What a task says.
    simulation: ClassVar[type[MujocoFetchEnv]]
    look_at: ClassVar[tuple[float, float, float]]
    fovy: ClassVar[float]

    def __init__(self, *, cameras: Sequence[str] = camera_names, **options: Any):
        super().__init__(cameras=cameras, **options)
        self.inner = self.simulation()
        model = self.inner.model
        self._goal_site = model.site("target0").id
        model.site_size[self._goal_site] = MARKER_RADIUS
        # Crossed green bars that follow the hand, to be dragged by mouse.
        model.geom_rgba[model.geom_bodyid == model.body("robot0:mocap").id] = 0
        views = {
            "front": View(self.look_at, 2.0, azimuth=180, elevation=-40, fovy=self.fovy),
            "side": View(self.look_at, 2.0, azimuth=90, elevation=-15, fovy=self.fovy),
        }
        self._pictures = Pictures(model, self.inner.data, views)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = self.observation_space_of(
            gym.spaces.Box(
                np.array([0, 0, 0, -0.02], np.float32), np.array([2.5, 2, 2, 0.2], np.float32)
            )
        )

    # Gymnasium.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. All randomness comes from `seed`; `options` are accepted, unused."""
        super().reset(seed=seed)
        self.inner.np_random = self.np_random
        self.inner.reset()
        model, data = self.inner.model, self.inner.data
        where = data.xpos[model.site_bodyid[self._goal_site]]
        model.site_pos[self._goal_site] = self.inner.goal - where
        mujoco.mj_kinematics(model, data)  # so that the marker is there in the first picture too
        return self.current_observation(), self.task_info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step of 40 ms.

        Raises:
            ValueError: an action of another shape, or with an entry that is not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"expected 4 finite numbers {self.action_names}, found {action}")
        self.inner.step(action)
        info = self.task_info()
        success = info["is_success"]
        return self.current_observation(), float(success), success, False, info

    def render(self) -> np.ndarray | None:
        """The front camera's picture, uint8 ``[H, W, 3]``; None without a render mode."""
        return None if self.render_mode is None else self._pictures.draw("front", self.render_size)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self._pictures.close()

    # Reading the world.

    def task_info(self) -> dict[str, Any]:
        """The values of `info_keys` now."""
        distance = float(np.linalg.norm(self.achieved - self.goal))
        return {
            "is_success": distance < self.inner.distance_threshold,
            "mode": "",
            "distance": distance,
        }

    @property
    def gripper(self) -> np.ndarray:
        """Where the point between the fingers is, ``[3]``."""
        return self.inner.data.site("robot0:grip").xpos

    @property
    def goal(self) -> np.ndarray:
        """Where the gripper (or the object) is to be, ``[3]``."""
        return self.inner.goal

    @property
    def achieved(self) -> np.ndarray:
        """Where that is now, ``[3]``."""
        return self.object if self.inner.has_object else self.gripper

    @property
    def object(self) -> np.ndarray:
        """Centre of the block, ``[3]``."""
        return self.inner.data.site("object0").xpos

    def draw(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        return self._pictures.draw(camera, size)

    @property
    def agent_pos(self) -> np.ndarray:
        """float32 ``[4]``, see `FetchWorld`."""
        opening = sum(self.inner.data.joint(name).qpos[0] for name in _FINGERS)
        return np.append(self.gripper, opening).astype(np.float32)

    @property
    def tip(self) -> np.ndarray:
        return self.gripper


class FetchReach(FetchWorld):
    """Bring the gripper to a point in the air; the fingers stay closed."""

    task_description = "Move the gripper to the red marker."
    simulation = MujocoFetchReachEnv
    look_at = (1.34, 0.75, 0.53)
    fovy = 15.0

    def make_expert(self, seed: int | None = None) -> ReachExpert:
        return ReachExpert(self, seed)


class FetchPush(FetchWorld):
    """Push the block to a place on the table; the fingers stay closed."""

    task_description = "Push the block to the red marker."
    simulation = MujocoFetchPushEnv
    look_at = (1.34, 0.75, 0.44)
    fovy = 13.5

    def make_expert(self, seed: int | None = None) -> PushExpert:
        return PushExpert(self, seed)


class FetchPickAndPlace(FetchWorld):
    """Bring the block to a place on the table or above it."""

    task_description = "Pick up the block and bring it to the red marker."
    simulation = MujocoFetchPickAndPlaceEnv
    look_at = (1.34, 0.75, 0.60)
    fovy = 19.0

    def make_expert(self, seed: int | None = None) -> PickAndPlaceExpert:
        return PickAndPlaceExpert(self, seed)


@dataclass
class Leg:
    """A piece of a plan, from rest to rest.

    Attributes:
        points: to pass through, ``[3]`` each; the last is where it ends.
        fingers: command on the way: below 0 closes, above opens.
        seconds: it takes; None: as long as its length needs.
    """

    points: list[np.ndarray]
    fingers: float = 0.0
    seconds: float | None = None


class FetchExpert:
    """Follows minimum-jerk paths of the gripper by changes of its position.

    Args:
        env: without wrappers.
        seed: of the expert's own choices (how fast it moves); None draws one.
    """

    SPEED = (0.26, 0.32)
    """Metres per second, mean of a leg; drawn between the two."""
    LEAST_SECONDS = 0.32
    CORRECTION = 0.35
    """Share of the distance to the path that is made up for in the next step."""
    SETTLE_STEPS = 6

    def __init__(self, env: FetchWorld, seed: int | None = None):
        self.env = env
        self.rng = np.random.default_rng(seed)
        self._path: np.ndarray = np.empty((0, 3))
        self._fingers: np.ndarray = np.empty(0)
        self._step = 0

    def plan(self) -> list[Leg]:
        """The legs, from where the gripper is."""
        raise NotImplementedError

    def reset(self) -> None:
        """Make a plan for the world as it is now."""
        fps = self.env.metadata["render_fps"]
        speed = self.rng.uniform(*self.SPEED)
        path: list[np.ndarray] = [self.env.gripper.copy()[None]]
        fingers: list[float] = []
        for leg in self.plan():
            points = np.array([path[-1][-1], *leg.points])
            lengths = np.linalg.norm(np.diff(points, axis=0), axis=1) + 1e-6
            seconds = leg.seconds or max(self.LEAST_SECONDS, lengths.sum() / speed)
            steps = max(2, round(seconds * fps))
            times = np.concatenate([[0.0], np.cumsum(lengths) / lengths.sum() * steps])
            path.append(minimum_jerk(points, times, np.arange(1, steps + 1)))
            fingers += [leg.fingers] * steps
        path.append(np.repeat(path[-1][-1:], self.SETTLE_STEPS, axis=0))
        self._path = np.concatenate(path)
        self._fingers = np.array(fingers + fingers[-1:] * self.SETTLE_STEPS)
        self._step = 0

    def act(self) -> np.ndarray:
        """The next action, float32 ``[4]``; after the plan's end, it stays there."""
        now = min(self._step, len(self._fingers) - 1)
        there, following = self._path[now], self._path[now + 1]
        move = following - there + self.CORRECTION * (there - self.env.gripper)
        self._step += 1
        return np.clip(np.append(move / STRIDE, self._fingers[now]), -1, 1).astype(np.float32)

    @property
    def done(self) -> bool:
        """Whether the plan has been carried out, settling included."""
        return self._step >= len(self._fingers)


class ReachExpert(FetchExpert):
    """Straight to the goal."""

    def plan(self) -> list[Leg]:
        return [Leg([self.env.goal])]


class PushExpert(FetchExpert):
    """Up, over the block to its far side, down, and straight on to the goal."""

    HEIGHT = 0.43
    CLEAR = 0.08
    CONTACT = 0.042

    def plan(self) -> list[Leg]:
        block, goal = self.env.object.copy(), self.env.goal
        way = (goal - block)[:2]
        way = np.append(way / max(np.linalg.norm(way), 1e-6), 0.0)
        behind = np.append(block[:2], self.HEIGHT) - way * (self.CONTACT + 0.035)
        above = behind + np.array([0.0, 0.0, self.CLEAR])
        end = np.append(goal[:2], self.HEIGHT) - way * self.CONTACT
        up = self.env.gripper + np.array([0.0, 0.0, self.CLEAR])  # it starts beside the block
        return [Leg([up]), Leg([above]), Leg([behind]), Leg([end])]


class PickAndPlaceExpert(FetchExpert):
    """Above the block, down, close, and to the goal."""

    ABOVE = 0.08
    OPEN, CLOSE = 1.0, -1.0

    def plan(self) -> list[Leg]:
        block, goal = self.env.object.copy(), self.env.goal
        above = block + np.array([0.0, 0.0, self.ABOVE])
        return [
            Leg([above], self.OPEN),
            Leg([block], self.OPEN),
            Leg([block], self.CLOSE, seconds=0.24),
            Leg([goal], self.CLOSE),
        ]
