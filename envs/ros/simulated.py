"""Our arm in real time: physics under a controller, and a record of what the arm did.

`envs.base.ArmEnv.step` moves for 50 ms at once; here the controller is asked every 10 ms, as a
robot's is. The task is looked at every 50 ms, as in `step`, so success means the same.

Nothing here knows of ROS, nor waits: whoever calls `tick` keeps the time.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from ..arm import ARM_JOINTS, GRIPPER_MAX, JOINT_HIGH, JOINT_LOW, TIMESTEP
from ..base import CONTROL_HZ, ArmEnv
from .controller import Controller
from .urdf import GRIPPER

PERIOD_S = 0.01
"""Seconds between two ticks."""
JOINTS = (*ARM_JOINTS, GRIPPER)

_PHYSICS_STEPS = round(PERIOD_S / TIMESTEP)
_TASK_TICKS = round(1 / (CONTROL_HZ * PERIOD_S))
# Of a stop, rad/s^2 and m/s^2: from the fastest that the joints may go, a quarter of a second.
_DECELERATION = np.append(np.full(len(ARM_JOINTS), 10.0), 1.0)


class SimulatedArm:
    """A task of our arm under a `Controller`.

    Attributes:
        episode: number of resets, the first included.
        seed: of the episode.
        time: seconds since it was made, by ticks; resets do not set it back.
        succeeded_s: seconds from the episode's first command to success, None until then. It
            stays, as an episode of Gymnasium ends there.
        trace: what the arm did in this episode, the last `trace_s` seconds: rows of time,
            position ``[8]``, velocity ``[8]``, command ``[8]`` and state.
        events: ``(time, episode, kind, text)``, the last few hundred, resets included.

    Args:
        env: made by ``envs.make(...).unwrapped``, a task of our own arm.
        seed: of the first episode.
        watchdog_s: see `Controller`.
        trace_s: seconds that `trace` holds.
    """

    def __init__(self, env: ArmEnv, *, seed: int, watchdog_s: float, trace_s: float = 20.0):
        self.env = env
        self.controller = Controller(
            JOINTS,
            np.append(JOINT_LOW, 0.0),
            np.append(JOINT_HIGH, GRIPPER_MAX),
            required=len(ARM_JOINTS),
            watchdog_s=watchdog_s,
            deceleration=_DECELERATION,
        )
        self.trace: deque[tuple[float, np.ndarray, np.ndarray, np.ndarray, str]] = deque(
            maxlen=round(trace_s / PERIOD_S)
        )
        self.events: deque[tuple[float, int, str, str]] = deque(maxlen=500)
        self.episode = 0
        self._ticks = 0
        self.reset(seed)

    @property
    def time(self) -> float:
        return self._ticks * PERIOD_S

    def reset(self, seed: int) -> None:
        """Begin an episode: a new layout, the arm at its start, a stop forgotten."""
        _, self.info = self.env.reset(seed=seed)
        self.seed = seed
        self.episode += 1
        self.controller.reset(self.env.command)
        self.succeeded_s: float | None = None
        self.top_speed = np.zeros(len(JOINTS))
        self._first_command: float | None = None
        self._tip = np.array(self.env.tip)
        self._phase = 0
        self.trace.clear()
        self.note("reset", f"seed {seed}")

    def note(self, kind: str, text: str) -> None:
        """Keep an event."""
        self.events.append((self.time, self.episode, kind, text))

    def tick(self) -> None:
        """Move for `PERIOD_S`."""
        self._ticks += 1
        state = self.controller.state
        before = self.controller.command
        command = self.controller.tick(self.time)
        if self.controller.state != state:
            self.note(self.controller.state, self.controller.reason)
        if self._first_command is None and self.controller.accepted:
            self._first_command = self.time
        for step in range(1, _PHYSICS_STEPS + 1):
            between = before + step / _PHYSICS_STEPS * (command - before)
            self.env.advance(self.env.targets_of(between))
        self._phase = (self._phase + 1) % _TASK_TICKS
        if self._phase == 0:
            self.info = self.env.conclude(self._tip)
            self._tip = np.array(self.env.tip)
            if self.info["is_success"] and self.succeeded_s is None:
                self.succeeded_s = self.time - (self._first_command or self.time)
                self.note("success", f"after {self.succeeded_s:.2f} s")
        velocity = self.env.agent_vel
        self.top_speed = np.maximum(self.top_speed, np.abs(velocity))
        self.trace.append((self.time, self.env.agent_pos, velocity, command, self.controller.state))

    def status(self) -> dict[str, Any]:
        """What the bench says of itself, as JSON can hold it."""
        controller = self.controller
        return {
            "episode": self.episode,
            "seed": self.seed,
            "time": round(self.time, 3),
            "state": controller.state,
            "reason": controller.reason,
            "is_success": self.succeeded_s is not None,
            "succeeded_s": self.succeeded_s,
            "distance": round(float(self.info["distance"]), 6),
            "mode": self.info["mode"],
            "accepted": controller.accepted,
            "refused": controller.refused,
            "clipped": controller.clipped,
            "speed": round(float(np.abs(self.env.agent_vel[:7]).max()), 5),
            "top_speed": round(float(self.top_speed[:7].max()), 5),
        }

    def record(self) -> dict[str, Any]:
        """`trace` and `events`, as JSON can hold them; at most some hundred kilobytes."""
        rows = list(self.trace)
        return {
            "joints": list(JOINTS),
            "period_s": PERIOD_S,
            "episode": self.episode,
            "seed": self.seed,
            "time": [round(row[0], 3) for row in rows],
            "position": [np.round(row[1].astype(float), 5).tolist() for row in rows],
            "velocity": [np.round(row[2], 4).tolist() for row in rows],
            # Fine enough to be differentiated three times.
            "command": [np.round(row[3], 8).tolist() for row in rows],
            "state": [row[4] for row in rows],
            "events": [list(event) for event in self.events],
        }
