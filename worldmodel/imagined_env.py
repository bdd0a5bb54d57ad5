"""Worlds whose physics is the model: Gymnasium environments that are imagined.

An episode starts from a real observation (of a simulator, a recording, a robot); from then on each
step is a question to the model: what do the cameras and joints show one step later, and is the
world solved there? A policy cannot tell the difference from the interface, and the scripts that run
it in simulation run it here.

The frame at step k of a window is imagined from the window's beginning and the k actions since. The
window's last frame is the next one's beginning, so an error is handed on once a window, not once a
step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .checkpoint import Checkpoint
from .data import resize_frames
from .data.errors import did_you_mean
from .imagine import ask, window_length
from .selfflow import until_last_frame
from .tokens import pattern
from .types import Spec, SpecMismatchError

Observation = dict[str, Any]
"""``{"pixels": {camera: uint8 [H, W, 3]}, "agent_pos": float32 [S]}``."""

Starts = Callable[[int], Observation]
"""From the seed of an episode to its first observation. It may hold the episode's ``"task"`` too,
one of the texts that the model knows."""


class Dream:
    """B imagined worlds that step together: the physics of `ImaginedEnv` and its vector form.

    A row's future depends on its start, its seed and its actions alone, not on what runs beside it
    (but for the rounding of batched products).

    Args:
        checkpoint: the world model.
        steps: sampling steps per frame.
        history: see `worldmodel.imagine.imagine`.

    Attributes:
        tasks: text of every row, "" for none.

    Raises:
        ValueError: the model knows no frame but every few, its windows cannot be chained, or it
            was trained with less noise on its past.
    """

    def __init__(self, checkpoint: Checkpoint, steps: int = 1, history: float = 0.0) -> None:
        horizon, objective = checkpoint.model.horizon, checkpoint.objective
        any_frame = objective.any_frame > 0
        self.span = window_length(horizon, any_frame)
        if not any_frame and horizon.future_stride > 1:
            raise ValueError(
                f"this world model imagines one frame in {horizon.future_stride} only; an "
                "environment needs each of them: train with objective.any_frame=0.5"
            )
        if steps < 1:
            raise ValueError(f"sampling needs at least one step, found {steps}")
        if not 0 <= history <= objective.history_noise:
            raise ValueError(
                f"history={history}: this world model was trained with noise on its past up to "
                f"{objective.history_noise} (objective.history_noise)"
            )
        self.checkpoint, self.steps, self.history = checkpoint, steps, history
        self.horizon = horizon
        self.has_state = bool(checkpoint.spec.state_dim)
        self.tasks: list[str] = []

    def begin(self, observations: Sequence[Observation], seeds: Sequence[int]) -> None:
        """Start B worlds.

        Raises:
            ValueError: a camera, a frame, a state or a task is not what the model was trained on.
        """
        spec = self.checkpoint.spec
        for observation in observations:
            require_observation(spec, observation)
        # With a single task there is nothing to tell apart.
        usual = spec.tasks[0] if len(spec.tasks) == 1 else ""
        self.tasks = [str(o.get("task") or usual) for o in observations]
        self.task = torch.tensor([_task_index(spec, text) for text in self.tasks])
        self.seeds = [int(s) for s in seeds]
        self.at = 0  # steps since the beginning
        frames = {c: np.stack([o["pixels"][c] for o in observations]) for c in spec.cameras}
        state = np.stack([np.asarray(o["agent_pos"], np.float32) for o in observations])
        # Frames and states by the step at which they were; those that no window needs are dropped.
        self.known = {
            0: {
                c: resize_frames(torch.from_numpy(v).movedim(-1, -3), spec.image_size)
                for c, v in frames.items()
            }
        }
        self.states = {0: torch.from_numpy(state)}
        self.actions = torch.zeros(len(seeds), self.horizon.chunk, spec.action_dim)

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only (bool ``[B]``)."""
        chosen = torch.from_numpy(rows)
        some = np.flatnonzero(rows)
        self.tasks, self.seeds = [self.tasks[i] for i in some], [self.seeds[i] for i in some]
        self.task, self.actions = self.task[chosen], self.actions[chosen]
        self.known = {t: {c: v[chosen] for c, v in f.items()} for t, f in self.known.items()}
        self.states = {t: v[chosen] for t, v in self.states.items()}

    def step(self, actions: np.ndarray) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """One control step under ``[B, A]`` actions.

        Returns:
            Frames by camera uint8 ``[B, C, H, W]``, states ``[B, S]``, and the probability that
            the world is solved ``[B]`` (None for a model that cannot tell).
        """
        k = self.at % self.span
        self.actions[:, k] = torch.from_numpy(np.array(actions, np.float32))
        question = pattern("forward", self.horizon, offsets=(k + 1,))
        begin = self.at - k
        # Before the first frame there is only the first frame.
        past = [max(0, begin - j * self.horizon.past_stride) for j in range(self.horizon.past)]
        past.reverse()
        cameras = self.checkpoint.spec.cameras
        video = {c: torch.stack([self.known[t][c] for t in past], 1) for c in cameras}
        state = torch.stack([self.states[t] for t in past], 1) if self.has_state else None
        found = ask(
            self.checkpoint, question, video, state,
            {"action": until_last_frame(self.actions, question)}, self.task, self.steps,
            [(seed, "imagined_env", self.at) for seed in self.seeds],
            history=self.history if begin else 0.0,
        )  # fmt: skip
        frames = {c: v[:, 0].cpu() for c, v in found.video.items()}
        state = self.states[self.at] if found.state is None else found.state[:, 0].cpu()
        self.at += 1
        self.known[self.at], self.states[self.at] = frames, state
        oldest = self.at - self.span - self.horizon.past * self.horizon.past_stride
        for times in (self.known, self.states):
            for t in [t for t in times if t < oldest]:
                del times[t]
        success = None if found.success is None else found.success[:, 0].cpu()
        return frames, state, success


def _task_index(spec: Spec, text: str) -> int:
    """Which of the model's tasks this is; -1 for "", or where the model knows none.

    Raises:
        ValueError: a task that the model was not trained on.
    """
    if not text or not spec.tasks:
        return -1
    if text not in spec.tasks:
        raise ValueError(
            f"unknown task {text!r}.{did_you_mean(text, spec.tasks)} The world model knows "
            f"{list(spec.tasks)}"
        )
    return spec.tasks.index(text)


def require_observation(spec: Spec, observation: Observation) -> None:
    """Refuse an observation that the model was not trained on. Frames may have any size.

    Raises:
        ValueError: names the camera or the state, what was found and what is expected.
    """
    pixels = observation.get("pixels", {})
    if not isinstance(pixels, Mapping):
        raise ValueError(
            f"a start shows its frames by camera: {{'pixels': {{camera: frame}}}}; found "
            f"{type(pixels).__name__}, the world model sees cameras {list(spec.cameras)}"
        )
    if set(pixels) != set(spec.cameras):
        raise ValueError(
            f"the world model sees cameras {list(spec.cameras)}, the start shows {sorted(pixels)}"
        )
    for camera, frame in pixels.items():
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
            raise ValueError(
                f"camera {camera}: a frame is uint8 [H, W, 3], found {frame.dtype} "
                f"{list(frame.shape)}"
            )
    state = np.asarray(observation.get("agent_pos", np.zeros(0)))
    if state.shape != (spec.state_dim,):
        raise ValueError(
            f"agent_pos has shape {list(state.shape)}; the world model knows {spec.state_dim} "
            f"joints: {list(spec.state_names)}"
        )
    if not np.isfinite(state).all():
        raise ValueError(f"agent_pos is not finite: {state.tolist()}")


def spaces_of(spec: Spec, margin: float = 0.25) -> tuple[gym.spaces.Dict, gym.spaces.Box]:
    """Spaces of observations and actions from what the data held, for a world that says nothing.

    Args:
        margin: how far beyond smallest and largest value they reach, as a share of the range.
    """

    def box(kind: str) -> gym.spaces.Box:
        low, high = (np.array(spec.stats[kind][name]) for name in ("min", "max"))
        more = margin * (high - low) + 1e-3
        return gym.spaces.Box((low - more).astype(np.float32), (high + more).astype(np.float32))

    image = gym.spaces.Box(0, 255, (*spec.image_size, 3), np.uint8)
    spaces: dict[str, gym.Space] = {"agent_pos": box("state")}
    if spec.cameras:
        spaces["pixels"] = gym.spaces.Dict(dict.fromkeys(spec.cameras, image))
    return gym.spaces.Dict(spaces), box("action")


class _Imagined:
    """What the environment and its vector form share.

    Args:
        checkpoint: the world model.
        starts: seed -> first observation.
        max_steps: control steps after which an episode is truncated.
        observation_space, action_space: of the world that is imagined; default: from the data,
            with frames as the model sees them. Frames are resized to what the space says.
        robot: facts of that world: refused where they differ from the model's.
        steps: sampling steps per frame.
        threshold, patience: an episode counts as solved, and ends, when the probability of success
            has reached the threshold for so many frames in a row. Of a hundred judgements the
            highest is often wrong; `policies.judge.returns.calibrate_success` finds both.
        history: see `worldmodel.imagine.imagine`.

    Raises:
        worldmodel.types.SpecMismatchError: the world is not what the model was trained on.
        ValueError: the model cannot imagine each frame, or cannot tell success.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium does)

    def __init__(
        self,
        checkpoint: Checkpoint,
        starts: Starts,
        *,
        max_steps: int,
        observation_space: gym.spaces.Dict | None = None,
        action_space: gym.spaces.Box | None = None,
        robot: Spec | None = None,
        steps: int = 1,
        threshold: float = 0.5,
        patience: int = 1,
        history: float = 0.0,
    ) -> None:
        spec = checkpoint.spec
        if robot is not None:
            spec.require_same(robot, "the world model", "this world", image_size=False)
        if checkpoint.model.success is None:
            raise ValueError(
                "this world model cannot tell success, so that no episode would ever be solved: "
                "its data had no next.success, no failures, or true marks on the last rows of "
                "episodes only, which no frame follows. Collect some that has "
                "(scripts.collect exploration=0.4) and train again"
            )
        if max_steps < 1 or patience < 1 or not 0 < threshold <= 1:
            raise ValueError(
                "max_steps and patience are at least 1 and threshold above 0, up to 1; found "
                f"max_steps={max_steps}, patience={patience}, threshold={threshold}"
            )
        self.dream = Dream(checkpoint, steps, history)
        self.starts, self.max_steps = starts, max_steps
        self.threshold, self.patience = threshold, patience
        seen, acts = spaces_of(spec)
        self.one_observation = observation_space or seen
        self.one_action = action_space or acts
        self.sizes = _fitting_sizes(spec, self.one_observation, self.one_action)
        self.metadata = self.metadata | {"render_fps": spec.fps}
        self.render_mode = "rgb_array" if spec.cameras else None

    def start(self, seeds: Sequence[int]) -> Observation:
        self.dream.begin([self.starts(seed) for seed in seeds], seeds)
        return self.shown(self.dream.known[0], self.dream.states[0])

    def shown(self, video: Mapping[str, Tensor], state: Tensor) -> Observation:
        """Observations ``[B, ...]`` as the world that is imagined would give them."""
        box: Any = self.one_observation["agent_pos"]
        found: Observation = {
            "agent_pos": np.clip(state.numpy(), box.low, box.high).astype(box.dtype)
        }
        if video:
            found["pixels"] = {
                # A copy: who overwrites what they were shown changes no past.
                c: np.array(resize_frames(v, self.sizes[c]).movedim(-3, -1).numpy(), order="C")
                for c, v in video.items()
            }
        return found

    def checked(self, actions: np.ndarray) -> np.ndarray:
        """Actions ``[..., A]`` within the box.

        Raises:
            ValueError: an entry that is not finite.
        """
        if not np.isfinite(actions).all():
            raise ValueError(f"an action is not finite: {actions.tolist()}")
        return np.clip(actions, self.one_action.low, self.one_action.high)


def _fitting_sizes(
    spec: Spec, seen: gym.spaces.Dict, acts: gym.spaces.Box
) -> dict[str, tuple[int, int]]:
    """``(height, width)`` in which each camera's frames are shown.

    Raises:
        SpecMismatchError: the spaces are not those of this robot.
    """
    pixels: Any = seen.spaces.get("pixels", gym.spaces.Dict())
    if set(pixels) != set(spec.cameras):
        raise SpecMismatchError(
            f"the world model sees cameras {list(spec.cameras)}, this world shows {sorted(pixels)}"
        )
    for name, space, size in (
        ("agent_pos", seen.spaces.get("agent_pos"), spec.state_dim),
        ("the action", acts, spec.action_dim),
    ):
        if space is None or space.shape != (size,):
            raise SpecMismatchError(
                f"{name} of this world is {space}; the world model knows {size} entries"
            )
    return {c: (box.shape[0], box.shape[1]) for c, box in pixels.items()}


class ImaginedEnv(_Imagined, gym.Env):
    """One imagined world. Observation, action and ``info["is_success"]`` are those of the real one.

    ``info["success"]`` is the probability that the model gives it. An episode terminates when it
    has reached the threshold. See `_Imagined` for the arguments.
    """

    def __init__(self, checkpoint: Checkpoint, starts: Starts, **options: Any) -> None:
        super().__init__(checkpoint, starts, **options)
        self.observation_space, self.action_space = self.one_observation, self.one_action
        self._frame: np.ndarray | None = None
        self._step: int | None = None

    @property
    def task_description(self) -> str | None:
        """The text of the running episode's task, None where there is none."""
        return (self.dream.tasks or [""])[0] or None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode from ``starts(seed)``; without a seed, from one drawn."""
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        observation = self._see(self.start([chosen]))
        self._step = self._streak = 0
        return observation, {"is_success": False, "mode": "", "success": 0.0}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Imagine one control step.

        Raises:
            RuntimeError: before `reset`.
            ValueError: an action of another shape, or not finite.
        """
        if self._step is None:
            raise RuntimeError("step was called before reset")
        actions = np.asarray(action, np.float32)
        if actions.shape != self.one_action.shape:
            raise ValueError(
                f"an action has shape {list(self.one_action.shape)}, found {list(actions.shape)}"
            )
        video, state, success = self.dream.step(self.checked(actions)[None])
        assert success is not None
        self._step += 1
        probability = float(success[0])
        self._streak = self._streak + 1 if probability >= self.threshold else 0
        done = self._streak >= self.patience
        info = {"is_success": done, "mode": "", "success": probability}
        observation = self._see(self.shown(video, state))
        return observation, float(done), done, self._step >= self.max_steps, info

    def render(self) -> np.ndarray | None:
        """The first camera's imagined picture, uint8 ``[H, W, 3]``; None without a camera."""
        return None if self._frame is None else self._frame.copy()

    def _see(self, observations: Observation) -> Observation:
        """The only row of observations ``[1, ...]``."""
        found: Observation = {"agent_pos": observations["agent_pos"][0]}
        if "pixels" in observations:
            found["pixels"] = {c: v[0] for c, v in observations["pixels"].items()}
            self._frame = found["pixels"][self.dream.checkpoint.spec.cameras[0]].copy()
        return found


class ImaginedVectorEnv(_Imagined, VectorEnv):
    """`num_envs` imagined worlds, stepped in one batch.

    They start together and are never reset singly (`AutoresetMode.DISABLED`). An episode that is
    over rests: it shows its last observation, whatever action it is sent, and costs nothing.

    ``infos`` holds ``is_success`` (bool ``[B]``), ``mode`` and ``success`` (probability ``[B]``).
    See `_Imagined` for the arguments.
    """

    def __init__(
        self, checkpoint: Checkpoint, starts: Starts, num_envs: int, **options: Any
    ) -> None:
        super().__init__(checkpoint, starts, **options)
        if num_envs < 1:
            raise ValueError(f"expected num_envs >= 1, found {num_envs}")
        self.num_envs = num_envs
        self.single_observation_space = self.one_observation
        self.single_action_space = self.one_action
        self.observation_space = batch_space(self.one_observation, num_envs)
        self.action_space = batch_space(self.one_action, num_envs)
        self.metadata = self.metadata | {
            "autoreset_mode": AutoresetMode.DISABLED,
            "rests_when_over": True,
        }
        self._step: int | None = None
        self._tasks: list[str] = []

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """``task_description`` of every row, None where there is none; or what all rows share."""
        if name == "task_description":
            return tuple(text or None for text in self._tasks)
        return (getattr(self, name),) * self.num_envs

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Start all episodes; a single seed s means s, s + 1, ... as Gymnasium has it.

        Raises:
            ValueError: not as many seeds as worlds, or only some are to start.
        """
        if "reset_mask" in (options or {}):
            raise ValueError(
                "imagined worlds step through their windows together, so they start together: "
                "reset all of them, without reset_mask"
            )
        first = seed if isinstance(seed, int) else None
        super().reset(seed=first)
        if isinstance(seed, int) or seed is None:
            first = int(self.np_random.integers(2**31)) if first is None else first
            seeds = list(range(first, first + self.num_envs))
        else:
            seeds = [int(self.np_random.integers(2**31)) if s is None else int(s) for s in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.num_envs} worlds take as many seeds, found {len(seeds)}")
        self._shown = self.start(seeds)
        self._tasks = list(self.dream.tasks)
        self._step = 0
        self._live = np.ones(self.num_envs, bool)
        self._success = np.zeros(self.num_envs)
        self._streak = np.zeros(self.num_envs, np.int64)
        self._done, self._over = np.zeros((2, self.num_envs), bool)
        return _copied(self._shown), self._infos()

    def step(
        self, actions: Any
    ) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Imagine one control step of all worlds whose episode is not over.

        Raises:
            RuntimeError: before `reset`.
            ValueError: actions of another shape, or not finite in an episode that is not over.
        """
        if self._step is None:
            raise RuntimeError("step was called before reset")
        values = np.asarray(actions, np.float32)
        expected = (self.num_envs, *self.one_action.shape)
        if values.shape != expected:
            raise ValueError(f"actions have shape {list(expected)}, found {list(values.shape)}")
        reward = np.zeros(self.num_envs)
        if self._live.any():
            self._imagine(self.checked(values[self._live]))
            reward[self._live & self._done] = 1.0
            going = ~(self._done | self._over)
            if (going != self._live).any():
                self.dream.keep(going[self._live])
            self._live = going
        return (
            _copied(self._shown), reward, self._done.copy(), self._over.copy(), self._infos(),
        )  # fmt: skip

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Each world's picture of the first camera, uint8 ``[H, W, 3]``; None without a camera."""
        if self._step is None or self.render_mode is None:
            return None
        return tuple(self._shown["pixels"][self.dream.checkpoint.spec.cameras[0]].copy())

    def _imagine(self, actions: np.ndarray) -> None:
        """One step of the rows that live."""
        video, state, success = self.dream.step(actions)
        assert success is not None
        assert self._step is not None
        self._step += 1
        found = self.shown(video, state)
        self._shown["agent_pos"][self._live] = found["agent_pos"]
        for camera, frames in found.get("pixels", {}).items():
            self._shown["pixels"][camera][self._live] = frames
        self._success[self._live] = success.numpy()
        good = self._success >= self.threshold
        self._streak[self._live] = np.where(good, self._streak + 1, 0)[self._live]
        self._done[self._live] = self._streak[self._live] >= self.patience
        self._over[self._live] = self._step >= self.max_steps

    def _infos(self) -> dict[str, Any]:
        return {
            "is_success": self._done.copy(),
            "mode": np.full(self.num_envs, "", object),
            "success": self._success.copy(),
        }


def _copied(observation: Observation) -> Observation:
    return {k: _copied(v) if isinstance(v, dict) else v.copy() for k, v in observation.items()}
