"""One episode, as arrays; and simulator states in a form that datasets can hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .world import Demonstrator, World


@dataclass
class Episode:
    """What somebody did, and what was seen before it was done. T frames, one per action.

    Attributes:
        images: camera -> uint8 ``[T, H, W, 3]``.
        state: float32 ``[T, S]``.
        action: float32 ``[T, A]``, the action that leaves the frame.
        success: bool ``[T]``, whether the world after that action counts as solved.
        simulator_state: float64 ``[T, N]``, the world at the frame (`World.get_state`); None for a
            world that cannot be restored to it.
        mode: which way was taken (``info["mode"]``).
        seed: what the episode can be reproduced from, with the same options.
        kind: who acted, in a collection with exploration: "expert", or one of
            `envs.exploration.KINDS`; None in one that holds demonstrations only.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    success: np.ndarray
    simulator_state: np.ndarray | None
    mode: str
    seed: int
    kind: str | None = None

    def __len__(self) -> int:
        return len(self.action)


def record(env: World, seed: int, actor: Demonstrator | None = None) -> Episode:
    """Reset `env`, carry out its expert's plan and record it, whether it succeeds or not.

    The plan goes on to its end, past the step where the environment terminates: it then still
    moves to the target's centre and settles, which a policy is to learn too.

    Args:
        env: without wrappers (a time limit would cut the plan).
        seed: of the reset and of the expert.
        actor: who acts in the place of the expert.
    """
    observation, info = env.reset(seed=seed)
    if actor is None:
        actor = env.make_expert(seed)
    actor.reset()
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in env.cameras}
    states, actions, successes, simulator_states = [], [], [], []
    while not actor.done:
        for camera, frames in images.items():
            frames.append(observation["pixels"][camera])
        states.append(observation["agent_pos"])
        if (simulator_state := env.get_state()) is not None:
            simulator_states.append(simulator_state)
        actions.append(actor.act())
        observation, _, _, _, info = env.step(actions[-1])
        successes.append(info["is_success"])
    return Episode(
        images={camera: np.stack(frames) for camera, frames in images.items()},
        state=np.stack(states),
        action=np.stack(actions),
        success=np.array(successes),
        simulator_state=np.stack(simulator_states) if simulator_states else None,
        mode=info["mode"],
        seed=seed,
    )


def encode_state(state: np.ndarray) -> np.ndarray:
    """float64 ``[..., N]`` -> int32 ``[..., 2 N]``, losing nothing.

    LeRobot refuses float64, and float32 would not restore a simulation bit for bit. So each number
    is kept as the two 32-bit halves of its bits, little-endian.
    """
    return np.ascontiguousarray(state, dtype="<f8").view("<i4")


def decode_state(halves: np.ndarray) -> np.ndarray:
    """The inverse of `encode_state`: int32 ``[..., 2 N]`` -> float64 ``[..., N]``."""
    return np.ascontiguousarray(halves, dtype="<i4").view("<f8")
