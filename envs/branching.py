"""Counterfactual branches: several futures of one present, each with the actions that lead to it.

Only a simulator can say what would have happened. From a saved state it runs K different action
sequences; a world model that is given the same state and the same actions should tell their futures
apart: which of K real futures an imagined one resembles most is a score with a known chance, 1 / K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arm import ARM_JOINTS, GRIPPER_MAX
from .base import CONTROL_HZ, ArmEnv
from .expert import Plan, trace
from .exploration import WORKSPACE, bounded, smooth_noise, with_momentum
from .kinematics import UnreachableError

_SHIFT = (0.05, 0.08)
"""How far beside the expert "shifted" goes, in metres."""
_SPEED = (0.12, 0.22)
"""Mean speed of the tip in "play", in m/s: about the expert's."""
_PLAY = np.array([[0.38, 0.64], [-0.14, 0.14], [0.02, 0.16]])
"""Where its points are: low and high per axis, in metres. What cannot be seen cannot be judged."""
_NOISE = (0.05, 0.12)
"""How far joints drift in "noise", in radians."""
MAX_TIP_SPEED = 0.8
"""No branch moves the tip faster than that, in m/s; experts reach 0.2 to 0.4."""
_BACK_STEPS = 4
"""So long before it would, a branch stops."""
_EASE_STEPS = 12
"""Over which "shifted" leaves the expert's path."""


@dataclass(frozen=True)
class Branch:
    """One way to go on.

    Attributes:
        name: what it is, such as "mirrored"; unique among the branches of a state.
        actions: float32 ``[T, A]``.
    """

    name: str
    actions: np.ndarray


@dataclass(frozen=True)
class Futures:
    """What came of K branches of one state, T steps each; frame 0 is that state.

    Attributes:
        images: camera -> uint8 ``[K, T + 1, H, W, 3]``.
        agent_pos: float32 ``[K, T + 1, S]``.
        tip: float64 ``[K, T + 1, 3]`` in metres.
        success: bool ``[K, T + 1]``.
        distance: float64 ``[K, T + 1]``, metres to go.
    """

    images: dict[str, np.ndarray]
    agent_pos: np.ndarray
    tip: np.ndarray
    success: np.ndarray
    distance: np.ndarray


def branch_actions(
    env: ArmEnv, count: int, steps: int, seed: int, plan: np.ndarray | None = None
) -> list[Branch]:
    """Different action sequences from the world's present state, which stays as it is.

    In this order: "expert" (the plan itself), "mirrored" (left and right exchanged, about where the
    tip is), "hold", "retreat" (back and up), "shifted" (beside the expert), "play_1", "play_2" (to
    random points); then, in an order drawn from the seed, "noise_1", "faster", "slower", "opposite"
    (shifted to the other side), and more of play and noise. They begin at the present command, stay
    within the joints' limits, and are about as fast as the expert: an arm that is caught on the
    post and would snap past it stops before. Where the expert has little left to do, what is made
    from its plan differs little.

    Args:
        env: without wrappers.
        count: K, at least 2.
        steps: T, at least 1.
        seed: of all that is drawn.
        plan: float32 ``[M, A]``, what the expert would do from now on; None asks one now.

    Raises:
        ValueError: too few branches or steps, or a plan that is no sequence of actions.
    """
    if count < 2 or steps < 1:
        raise ValueError(
            f"expected at least 2 branches of at least 1 step, found count={count}, steps={steps}"
        )
    rng = np.random.default_rng(seed)
    path = _expert_path(env, 2 * steps, seed, plan)
    optional = ["noise_1", "faster", "slower", "opposite"]
    rng.shuffle(optional)
    names = ["expert", "mirrored", "hold", "retreat", "shifted", "play_1", "play_2", *optional]
    numbers = iter(range(2, count))
    while len(names) < count:
        number = next(numbers)
        names += [f"noise_{number}", f"play_{number + 1}"]

    maker = _Maker(env, path, steps, rng)
    branches = []
    for name in names[:count]:
        actions = maker.actions(name)
        if name != "expert":  # whose plan stays as it is, to the bit
            actions = _unsnapped(env, _all_bounded(env, actions))
        branches.append(Branch(name, actions.astype(np.float32)))
    return branches


def run_branches(
    env: ArmEnv,
    state: np.ndarray,
    branches: Sequence[Branch],
    cameras: Sequence[str] | None = None,
) -> Futures:
    """Carry out each branch from `state`; the world is left as it was found.

    Args:
        env: without wrappers.
        state: from `ArmEnv.get_state`.
        branches: K of them, of one length.
        cameras: which of the environment's pictures to keep; None keeps all.

    Raises:
        ValueError: no branches, or of different lengths; a camera that the environment does not
            draw; a state of another task.
    """
    lengths = {len(branch.actions) for branch in branches}
    if len(lengths) != 1:
        raise ValueError(f"expected branches of one length, found lengths {sorted(lengths)}")
    cameras = env.cameras if cameras is None else tuple(cameras)
    if unknown := [camera for camera in cameras if camera not in env.cameras]:
        raise ValueError(f"cameras {unknown} are not drawn: the environment has {env.cameras}")
    before = env.get_state()
    try:
        futures = [_run(env, state, branch.actions, cameras) for branch in branches]
    finally:
        env.set_state(before)
    return Futures(
        images={c: np.stack([future.images[c] for future in futures]) for c in cameras},
        agent_pos=np.stack([future.agent_pos for future in futures]),
        tip=np.stack([future.tip for future in futures]),
        success=np.stack([future.success for future in futures]),
        distance=np.stack([future.distance for future in futures]),
    )


def _run(env: ArmEnv, state: np.ndarray, actions: np.ndarray, cameras: Sequence[str]) -> Futures:
    """One future: the same fields without K."""
    env.set_state(state)
    observations, infos, tips = [env.current_observation()], [env.task_info()], [env.tip.copy()]
    for action in actions:
        observation, *_, info = env.step(action)
        observations.append(observation)
        infos.append(info)
        tips.append(env.tip.copy())
    return Futures(
        images={c: np.stack([seen["pixels"][c] for seen in observations]) for c in cameras},
        agent_pos=np.stack([seen["agent_pos"] for seen in observations]),
        tip=np.stack(tips),
        success=np.array([info["is_success"] for info in infos]),
        distance=np.array([info["distance"] for info in infos]),
    )


def _expert_path(env: ArmEnv, steps: int, seed: int, plan: np.ndarray | None) -> np.ndarray:
    """float64 ``[steps, A]``: the plan, standing still after its end."""
    width = len(env.action_names)
    if plan is None:
        expert = env.make_expert(seed)
        expert.reset()
        plan = np.array([expert.act() for _ in range(steps)])
    plan = np.asarray(plan, np.float64)
    if plan.ndim != 2 or plan.shape[1] != width:
        raise ValueError(f"a plan has shape [M, {width}], found {list(plan.shape)}")
    plan = plan[:steps]
    last = plan[-1:] if len(plan) else env.command[None]
    return np.concatenate([plan, np.repeat(last, steps - len(plan), axis=0)])


def _all_bounded(env: ArmEnv, actions: np.ndarray) -> np.ndarray:
    """Actions ``[T, A]`` within limits and speeds, from the present command on."""
    command, result = env.command, []
    for action in actions:
        command = bounded(env, action, command)
        result.append(command)
    return np.array(result)


def _unsnapped(env: ArmEnv, actions: np.ndarray) -> np.ndarray:
    """Actions ``[T, A]``, ended before the tip would move faster than `MAX_TIP_SPEED`."""
    state, cameras, command = env.get_state(), env.cameras, env.command
    env.cameras = ()  # nobody looks
    try:
        while True:
            tips = _run(env, state, actions, ()).tip
            speeds = np.linalg.norm(np.diff(tips, axis=0), axis=1) * CONTROL_HZ
            fast = np.flatnonzero(speeds > MAX_TIP_SPEED)
            moving = np.flatnonzero(np.any(np.diff(actions, axis=0) != 0, axis=1))
            if not len(fast) or not len(moving):
                return actions
            stop = max(min(fast[0], moving[-1] + 1) - _BACK_STEPS, 0)
            still = actions[stop] if stop else command
            actions = np.concatenate(
                [actions[:stop], np.repeat(still[None], len(actions) - stop, axis=0)]
            )
    finally:
        env.cameras = cameras
        env.set_state(state)


class _Maker:
    """Action sequences float64 ``[steps, A]`` by name, made from the expert's path."""

    def __init__(self, env: ArmEnv, path: np.ndarray, steps: int, rng: np.random.Generator):
        self.env = env
        self.path = path
        self.steps = steps
        self.rng = rng
        self.command = env.command
        dofs = [env.model.joint(name).dofadr[0] for name in ARM_JOINTS]
        # The motion that the present is part of runs out, rather than stops within a step.
        self.velocity = np.append(env.data.qvel[dofs] / CONTROL_HZ, 0.0)
        self.side = rng.choice([-1.0, 1.0])
        self.ease = np.minimum(np.arange(1, steps + 1) / _EASE_STEPS, 1.0)[:, None]
        self.ease = self.ease**2 * (3 - 2 * self.ease)

    def actions(self, name: str) -> np.ndarray:
        kind = name.partition("_")[0]
        if kind == "expert":
            return self.path[: self.steps]
        if kind == "hold":
            return self._led_into(np.repeat(self.command[None], self.steps, axis=0))
        if kind == "faster":
            return self._at_speed(self.rng.uniform(1.6, 2.0))
        if kind == "slower":
            return self._at_speed(self.rng.uniform(0.3, 0.5))
        if kind == "noise":
            noise = smooth_noise(self.rng, self.steps, self.rng.uniform(6, 10))
            return self.path[: self.steps] + self.rng.uniform(*_NOISE) * noise
        if kind == "play":
            return self._led_into(self._play())
        start, moves = self._moves()
        if kind == "mirrored":
            return self._with_tip(start + moves * [1, -1, 1])
        if kind in ("shifted", "opposite"):
            side = self.side if kind == "shifted" else -self.side
            shift = side * self.rng.uniform(*_SHIFT) * np.array([0.0, 1.0, 0.0])
            return self._with_tip(start + moves + self.ease * shift)
        assert kind == "retreat", name
        back = np.array([self.rng.uniform(-0.6, -0.2), self.rng.uniform(-0.3, 0.3), 0.8])
        end = np.clip(start + 0.12 * back, *WORKSPACE.T)
        return self._led_into(self._traced([end], [self.command[7]]))

    def _moves(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the tip is commanded to be ``[3]``, and the expert's moves from there."""
        start = self.env.kinematics.tip(self.command[:7])[0]
        tips = [self.env.kinematics.tip(action[:7])[0] for action in self.path[: self.steps]]
        return start, np.array(tips) - start

    def _led_into(self, actions: np.ndarray) -> np.ndarray:
        return with_momentum(actions, self.velocity)

    def _at_speed(self, factor: float) -> np.ndarray:
        """The expert's path, `factor` times as fast."""
        path = np.vstack([self.command, self.path])
        wanted = np.minimum(np.arange(1, self.steps + 1) * factor, len(path) - 1)
        columns = [np.interp(wanted, np.arange(len(path)), column) for column in path.T]
        return np.column_stack(columns)

    def _with_tip(self, tips: np.ndarray) -> np.ndarray:
        """The expert's posture and gripper, with the tip elsewhere, ``[T, 3]``."""
        joints, result = self.command[:7], []
        for tip, action in zip(np.clip(tips, *WORKSPACE.T), self.path, strict=False):
            _, rotation = self.env.kinematics.tip(action[:7])
            try:
                joints = self.env.kinematics.solve(tip, joints, rotation)
            except UnreachableError:
                break  # the tip stays at the last point within reach
            result.append(np.append(joints, action[7]))
        return self._filled(result)

    def _play(self) -> np.ndarray:
        points, openings, length = [], [], 0.0
        speed = self.rng.uniform(*_SPEED)
        here = self.env.kinematics.tip(self.command[:7])[0]
        while length < speed * self.steps / CONTROL_HZ:
            # Far enough from where it is: a branch is to differ from holding still.
            point = self.rng.uniform(*_PLAY.T)
            if np.linalg.norm(point - here) < 0.1:
                continue
            length += float(np.linalg.norm(point - here))
            points.append(point)
            openings.append(self.rng.uniform(0.0, GRIPPER_MAX))
            here = point
        return self._traced(points, openings, speed)

    def _traced(
        self, points: Sequence[np.ndarray], openings: Sequence[float], speed: float = 0.15
    ) -> np.ndarray:
        """Smoothly through points from where the tip is commanded to be; then it stays."""
        here = self.env.kinematics.tip(self.command[:7])[0]
        path = np.vstack([here, *points])
        seconds = np.maximum(np.linalg.norm(np.diff(path, axis=0), axis=1) / speed, 0.3)
        plan = Plan(
            path,
            np.append(0.0, np.cumsum(seconds)),
            np.array([self.command[7], *openings]),
        )
        result: list[np.ndarray] = []
        try:
            for action in trace(self.env, plan, self.command[:7]):
                if len(result) == self.steps:
                    break
                result.append(action)
        except UnreachableError:
            pass  # the tip stays at the last point within reach
        return self._filled(result)

    def _filled(self, actions: list[np.ndarray]) -> np.ndarray:
        last = actions[-1] if actions else self.command
        return np.array(actions + [last] * (self.steps - len(actions)))
