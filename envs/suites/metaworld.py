"""The 50 tasks of Meta-World (v3) with their scripted policies, from pixels.

What is changed: observations are pictures and the hand's own position and opening (theirs name
where objects and goal are), the marker of the goal is drawn where it belongs in every picture,
success ends an episode, and what is random is drawn anew at every reset, from its seed.

The experts are Meta-World's own. They are proportional controllers, and most of their actions are
larger than an arm can carry out; here they are clipped to the action space, which changes nothing
about what happens, but it shows: they are poor teachers of smoothness.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from .. import Task
from .._mujoco import mujoco
from ..world import World
from .pictures import Pictures, View

# isort: split
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP

TIME_LIMIT = 500  # Meta-World's own
TASKS = {
    name: Task(
        f"metaworld-{name}", "suites.metaworld:MetaWorld", TIME_LIMIT, options={"task": name}
    )
    for name in ALL_V3_ENVIRONMENTS
}

LOOK_AT = (0.0, 0.68, 0.12)
"""In the middle of what all tasks use of the table; metres."""
MARKER_RADIUS = 0.03
"""Of goals that have a marker, metres; theirs is 0.02, two pixels of 64."""
STRIDE = 0.01
"""Metres by which full action moves the point that pulls the hand, per control step."""


class MetaWorld(World):
    """A Sawyer arm that is moved by changes of its hand's position.

    State: the hand's position (metres, in the world's frame: x to the right, y forwards) and its
    opening (0 to 1). Action: ``[4]`` in [-1, 1]: change of position (1 is `STRIDE` metres in
    12.5 ms), and the fingers' effort, 1 closes and -1 opens. The cameras ``corner`` (over the
    robot's right shoulder, as their corner2, but nearer) and ``side`` are ours, ``wrist`` is theirs
    (gripperPOV).

    Args:
        task: Meta-World's name, such as "drawer-open-v3".
        cameras: any of corner, side, wrist.
        **options: see `World`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012
    robot_type = "metaworld_sawyer"
    state_names = ("ee.x", "ee.y", "ee.z", "gripper.pos")
    action_names = ("delta_x", "delta_y", "delta_z", "gripper.effort")
    camera_names = ("corner", "side", "wrist")
    action_kind: ClassVar[str] = "delta"
    moves = dict(zip(action_names[:3], state_names[:3], strict=True))  # noqa: RUF012
    action_scale: ClassVar[float] = STRIDE
    length_unit: ClassVar[str] = "m"

    def __init__(self, task: str, *, cameras: Sequence[str] = ("corner",), **options: Any):
        super().__init__(cameras=cameras, **options)
        self.task = task
        self.task_description = f"{task.removesuffix('-v3').replace('-', ' ').capitalize()}."
        self.inner = ALL_V3_ENVIRONMENTS[task]()
        # Draw what is random from our generator at every reset, instead of one fixed layout; let
        # the scripted policy know the goal.
        self.inner._set_task_called = True
        self.inner._freeze_rand_vec = False
        self.inner.seeded_rand_vec = True
        self.inner._partially_observable = False
        del self.inner.sawyer_observation_space  # cached, of the other observability
        self.full_observation: np.ndarray = np.zeros(0)
        """Meta-World's own observation, which the expert acts on."""
        self._evaluation: dict[str, Any] = {}
        for name in ("goal", "goal_reach", "goal_push", "goal_pick_place"):
            site = mujoco.mj_name2id(self.inner.model, mujoco.mjtObj.mjOBJ_SITE, name)
            if site >= 0:
                self.inner.model.site_size[site] = MARKER_RADIUS
        views: dict[str, View | str] = {
            "corner": View(LOOK_AT, 2.2, azimuth=145, elevation=-38, fovy=18),
            "side": View(LOOK_AT, 2.2, azimuth=180, elevation=-25, fovy=18),
            "wrist": "gripperPOV",
        }
        self._pictures = Pictures(self.inner.model, self.inner.data, views)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        hand = self.inner._HAND_SPACE
        self.observation_space = self.observation_space_of(
            gym.spaces.Box(
                np.append(hand.low - 0.2, -0.1).astype(np.float32),
                np.append(hand.high + 0.2, 1.1).astype(np.float32),
            )
        )

    # Gymnasium.

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. All randomness comes from `seed`; `options` are accepted, unused."""
        super().reset(seed=seed)
        self.inner.np_random = self.np_random
        self.full_observation, _ = self.inner.reset()
        mujoco.mj_forward(self.inner.model, self.inner.data)
        _, self._evaluation = self.inner.evaluate_state(
            self.full_observation, np.zeros(4, np.float32)
        )
        return self.current_observation(), self.task_info()

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One control step of 12.5 ms.

        Raises:
            ValueError: an action of another shape, or with an entry that is not finite.
        """
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"expected 4 finite numbers {self.action_names}, found {action}")
        self.full_observation, _, _, _, self._evaluation = self.inner.step(np.clip(action, -1, 1))
        info = self.task_info()
        success = info["is_success"]
        return self.current_observation(), float(success), success, False, info

    def render(self) -> np.ndarray | None:
        """The corner camera's picture, uint8 ``[H, W, 3]``; None without a render mode."""
        return None if self.render_mode is None else self.draw("corner", self.render_size)

    def close(self) -> None:
        """Free the OpenGL contexts."""
        self._pictures.close()

    # Reading the world.

    def task_info(self) -> dict[str, Any]:
        """The values of `info_keys` now."""
        return {
            "is_success": bool(self._evaluation["success"]),
            "mode": "",
            "distance": float(self._evaluation["obj_to_target"]),
        }

    def hold_action(self, agent_pos: np.ndarray) -> np.ndarray:
        """No change; fingers that are open stay open, others stay closed."""
        return np.array([0, 0, 0, -1 if agent_pos[3] > 0.5 else 1], np.float32)

    @property
    def agent_pos(self) -> np.ndarray:
        """float32 ``[4]``, see `MetaWorld`."""
        return self.full_observation[:4].astype(np.float32)

    @property
    def tip(self) -> np.ndarray:
        x, y, z = self.inner.get_endeff_pos()
        return np.array([y, -x, z])

    def make_expert(self, seed: int | None = None) -> ScriptedPolicy:
        """Meta-World's scripted policy; it makes no choices, so `seed` changes nothing."""
        return ScriptedPolicy(self)

    def draw(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        for site, where in self.inner._target_site_config:
            self.inner._set_pos_site(site, where)
        return self._pictures.draw(camera, size)


class ScriptedPolicy:
    """Meta-World's policy for the task, clipped to the action space; done on success.

    Not some steps later: in several tasks what was solved springs back (a handle that is let go).
    """

    def __init__(self, env: MetaWorld):
        self.env = env
        policy: Any = ENV_POLICY_MAP[env.task]
        self._policy = policy()
        self.reset()

    def reset(self) -> None:
        self._steps = 0

    def act(self) -> np.ndarray:
        """The next action, float32 ``[4]``."""
        self._steps += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": so we clip
            action = self._policy.get_action(self.env.full_observation)
        return np.clip(action, -1, 1).astype(np.float32)

    @property
    def done(self) -> bool:
        """Whether an action of its has solved the task, or the time is up."""
        return self._steps >= TIME_LIMIT or (self._steps > 0 and self.env.task_info()["is_success"])
