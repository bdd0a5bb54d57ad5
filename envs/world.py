"""What every environment offers our tools: collecting, training, evaluating.

`World` is the whole of it. A task of our own arm is one (`envs.base.ArmEnv`), a task of somebody
else's benchmark becomes one in ``envs/suites``. What stands here is all that `scripts.collect`,
`scripts.evaluate` and the floors know of a world.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np


class Demonstrator(Protocol):
    """A scripted expert: ``reset()`` after the world's, then ``act()`` until ``done``."""

    def reset(self) -> None:
        """Look at the world as it is now, and begin."""

    def act(self) -> np.ndarray:
        """The next action, float32 ``[A]``."""

    @property
    def done(self) -> bool:
        """Whether it has done what it meant to; some time after the world counts as solved."""


class World(gym.Env):
    """An environment that demonstrations can be collected in and policies judged.

    Observation: ``{"pixels": {camera: uint8 [H, W, 3]}, "agent_pos": float32 [S]}``; without
    cameras there is no ``"pixels"``. ``agent_pos`` is what the robot's own sensors know, never
    where an object lies: that is for the cameras. Action: float32 ``[A]`` within a finite box.
    ``info`` at every step and reset holds `info_keys`: ``is_success`` (bool), ``mode`` (str: which
    way was taken, "" if undecided or if there is only one), ``distance`` (float, metres to go; a
    world in which that means nothing leaves it out). An episode terminates on the step that
    succeeds; the time limit belongs to the registration. All randomness comes from
    ``reset(seed=...)``: the same seed and the same actions give the same states and pictures.
    Unknown reset options are tolerated.

    A world says of itself, as class or instance attributes:

    - ``metadata["render_fps"]``: control steps per second;
    - ``task_description``: one sentence, the text a language-conditioned policy reads;
    - ``robot_type``; ``state_names``, ``action_names``: one per dimension;
    - ``camera_names``: what ``cameras`` may select from;
    - ``action_kind``: "absolute" (targets for the states of the same names) or "delta" (changes);
    - with "delta", ``moves``: action name -> the state that it changes, and ``action_scale``: by
      how much one unit of it does in one step, in the state's unit;
    - ``length_unit``: of the states that smoothness is measured on, "rad", "m" or "px".

    Args:
        image_size: of the cameras, pixels: one number, or ``(height, width)``.
        cameras: any of `camera_names`; ``()`` renders nothing, which is several times faster.
        render_mode: None or "rgb_array": then `render` returns a picture for people.
        render_size: ``(height, width)`` of that picture, independent of `image_size`.

    Raises:
        ValueError: an unknown camera or render mode, or a size that is no size.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium does)
    task_description: str
    robot_type: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    camera_names: tuple[str, ...]
    info_keys: ClassVar[tuple[str, ...]] = ("is_success", "mode", "distance")
    action_kind: ClassVar[str] = "absolute"
    moves: ClassVar[Mapping[str, str]] = {}
    action_scale: ClassVar[float] = 1.0
    length_unit: ClassVar[str] = "rad"

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 96,
        cameras: Sequence[str] = (),
        render_mode: str | None = None,
        render_size: int | Sequence[int] = 256,
    ):
        self.cameras = checked_cameras(cameras, self.camera_names)
        self.image_size = checked_size(image_size, "image_size")
        self.render_size = checked_size(render_size, "render_size")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode is {render_mode!r}; it can be None or one of "
                f"{self.metadata['render_modes']}"
            )
        self.render_mode = render_mode

    def observation_space_of(self, agent_pos: gym.spaces.Box) -> gym.spaces.Dict:
        """The space of observations, from that of ``agent_pos``."""
        spaces: dict[str, gym.Space] = {"agent_pos": agent_pos}
        if self.cameras:
            image = gym.spaces.Box(0, 255, (*self.image_size, 3), np.uint8)
            spaces["pixels"] = gym.spaces.Dict(dict.fromkeys(self.cameras, image))
        return gym.spaces.Dict(spaces)

    @property
    def agent_pos(self) -> np.ndarray:
        """What the robot's own sensors read now, float32 ``[S]``."""
        raise NotImplementedError

    def draw(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        """What a camera sees now, uint8 ``[H, W, 3]``; `size` is ``(height, width)``."""
        raise NotImplementedError

    def current_observation(self) -> dict[str, Any]:
        """What `step` or `reset` would show of the world as it is now."""
        observation: dict[str, Any] = {"agent_pos": self.agent_pos}
        if self.cameras:
            observation["pixels"] = {
                camera: self.draw(camera, self.image_size) for camera in self.cameras
            }
        return observation

    def hold_action(self, agent_pos: np.ndarray) -> np.ndarray:
        """The action that stays where the robot was measured at reset, float32 ``[A]``.

        Absolute targets are the measured states of the same names, changes are zero.

        Args:
            agent_pos: ``[S]``, as measured.
        """
        if self.action_kind == "delta":
            return np.zeros(len(self.action_names), np.float32)
        return np.array(
            [agent_pos[self.state_names.index(name)] for name in self.action_names], np.float32
        )

    def make_expert(self, seed: int | None = None) -> Demonstrator:
        """The scripted expert, acting in this environment.

        Raises:
            ValueError: this world has none.
        """
        name = self.spec.id if self.spec else type(self).__name__
        raise ValueError(
            f"{name} has no scripted expert: policies can be evaluated in it (expert=null), and "
            "demonstrations have to come from elsewhere, as any LeRobot dataset"
        )

    @property
    def has_expert(self) -> bool:
        """Whether `make_expert` gives one."""
        return type(self).make_expert is not World.make_expert

    @property
    def tip(self) -> np.ndarray | None:
        """Where the gripper is, ``[3]`` in metres: x away from the robot's base, y to its left.

        None where a path from above would say nothing.
        """
        return None

    def get_state(self) -> np.ndarray | None:
        """Everything the episode's future depends on, float64 ``[N]``; None if it cannot be had.

        A seed and the actions since give the same state in any case.
        """
        return None


def collected_options(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an environment that demonstrations were collected with.

    Args:
        facts: what `scripts.collect` wrote (``meta/source.json``, and ``environment`` of a
            checkpoint's stamp). Older ones name a target only.
    """
    target = facts.get("target")
    return dict(facts.get("options") or ({} if target is None else {"target": target}))


def checked_cameras(cameras: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The selection as a tuple.

    Raises:
        ValueError: a string, an unknown camera, or one twice.
    """
    if isinstance(cameras, str):
        raise ValueError(
            f"cameras is the string {cameras!r}; expected a list such as [{cameras!r}]"
        )
    unknown = [camera for camera in cameras if camera not in known]
    if unknown or len(set(cameras)) != len(cameras):
        raise ValueError(f"cameras is {list(cameras)}; expected a selection of {list(known)}")
    return tuple(cameras)


def checked_size(size: int | Sequence[int], name: str) -> tuple[int, int]:
    """``(height, width)`` from one number or a pair.

    Raises:
        ValueError: neither, or less than a pixel; calls it `name`.
    """
    try:
        pair = (size, size) if not isinstance(size, Sequence) else tuple(size)
        height, width = (operator.index(value) for value in pair)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {size!r}; expected one number or (height, width)") from None
    if height < 1 or width < 1:
        raise ValueError(f"{name} is {size!r}; expected at least one pixel")
    return height, width
