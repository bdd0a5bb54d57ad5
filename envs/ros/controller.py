"""What stands between ROS and the motors: a trajectory controller, a watchdog and a latched stop.

It does what a ``joint_trajectory_controller`` and a ``forward_command_controller`` do on a real
arm: a trajectory replaces the one that runs, starting from the position and velocity commanded now;
cubic between points that carry velocities, straight between points that do not. Accelerations in a
message are ignored. What a real controller refuses is refused here too, with the reason.

Nothing here knows of ROS, nor of a clock: whoever calls says what time it is, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

READY, RUNNING, HOLDING, STOPPED = "ready", "running", "holding", "stopped"

# A last velocity above it is refused, as `joint_trajectory_controller` does unless told otherwise.
_STILL = float(np.finfo(np.float32).eps)


class RefusedError(ValueError):
    """The controller does not carry out this command; the message says why."""


@dataclass(frozen=True)
class Trajectory:
    """Points to pass through.

    Attributes:
        times: ``[K]`` seconds, rising; the first is when and where the arm was when it was taken.
        positions: ``[K, J]``, rad or m.
        velocities: ``[K, J]`` per second, or None: straight lines between the points.
    """

    times: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray | None

    @property
    def end(self) -> float:
        """Seconds: when the last point is reached."""
        return float(self.times[-1])

    def at(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity ``[J]`` at a time; after the end, the last position at rest."""
        if now >= self.end:
            return self.positions[-1].copy(), np.zeros_like(self.positions[-1])
        i = max(int(np.searchsorted(self.times, now, side="right")) - 1, 0)
        span = self.times[i + 1] - self.times[i]
        s = max(now - self.times[i], 0.0) / span
        a, b = self.positions[i], self.positions[i + 1]
        if self.velocities is None:
            return a + s * (b - a), (b - a) / span
        va, vb = self.velocities[i] * span, self.velocities[i + 1] * span
        c2, c3 = 3 * (b - a) - 2 * va - vb, 2 * (a - b) + va + vb
        return a + s * (va + s * (c2 + s * c3)), (va + s * (2 * c2 + s * 3 * c3)) / span


class Controller:
    """Commands in, one command a tick out.

    States: ``ready`` (reset, nothing commanded yet), ``running``, ``holding`` (the watchdog saw no
    command for its time after the last one had ended; the next command ends it) and ``stopped``
    (braked to a halt, refuses everything until `reset`).

    Args:
        names: of the joints, ``J`` of them; the first ``required`` must be in every command.
        low, high: ``[J]``, limits of the positions; a command beyond them is cut off there, and
            counted in `clipped`.
        required: how many of the joints every command must name; the others keep their last
            position when they are left out.
        watchdog_s: seconds without a command after which it holds.
        deceleration: ``[J]`` per second squared, of a stop.
    """

    def __init__(
        self,
        names: Sequence[str],
        low: np.ndarray,
        high: np.ndarray,
        *,
        required: int,
        watchdog_s: float,
        deceleration: np.ndarray,
    ):
        self.names = tuple(names)
        self.low, self.high = low, high
        self.required = required
        self.watchdog_s = watchdog_s
        self.deceleration = deceleration
        self.reset(np.clip(np.zeros(len(names)), low, high))

    def reset(self, position: np.ndarray) -> None:
        """At rest at `position` ``[J]``, as if nothing had been commanded."""
        self.state, self.reason = READY, ""
        self.command = np.array(position, float)
        self.velocity = np.zeros_like(self.command)
        self.accepted = self.refused = self.clipped = 0
        self._trajectory: Trajectory | None = None
        self._until = 0.0
        self._time = 0.0

    def follow(
        self,
        names: Sequence[str],
        positions: np.ndarray,
        velocities: np.ndarray | None,
        times: np.ndarray,
        *,
        now: float,
        start: float | None = None,
    ) -> Trajectory:
        """Replace what runs by a trajectory.

        Args:
            names: of its joints, in the order of its columns.
            positions: ``[K, N]``.
            velocities: ``[K, N]``, or None.
            times: ``[K]`` seconds after `start`, rising.
            now: the time, in seconds.
            start: when it begins; None is now. Points that are past by then are left out.

        Raises:
            RefusedError: the controller is stopped, or the trajectory cannot be followed.
        """
        self._refuse_if_stopped()
        columns = self._columns(names)
        shape = (len(times), len(names))
        for what, values in (("positions", positions), ("velocities", velocities)):
            if values is not None and values.shape != shape:
                raise self._refusal(f"{what} have the shape {values.shape}, expected {shape}")
            if values is not None and not np.isfinite(values).all():
                raise self._refusal(f"{what} are not finite")
        if not len(times):
            raise self._refusal("a trajectory without points")
        if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
            raise self._refusal("time_from_start does not rise from 0 or more")
        if velocities is not None and (np.abs(velocities[-1]) > _STILL).any():
            raise self._refusal("the last velocity is not zero")
        times = times + (now if start is None else start)
        ahead = times > now
        if not ahead.any():
            raise self._refusal(f"it ended {now - times[-1]:.3f} s ago")

        def whole(values: np.ndarray, others: np.ndarray, first: np.ndarray) -> np.ndarray:
            filled = np.tile(others, (int(ahead.sum()), 1))
            filled[:, columns] = values[ahead]
            return np.concatenate([first[None], filled])

        self._trajectory = Trajectory(
            np.append(now, times[ahead]),
            self._within(whole(positions, self.command, self.command)),
            None
            if velocities is None
            else whole(velocities, np.zeros_like(self.velocity), self.velocity),
        )
        self._take(self._trajectory.end)
        return self._trajectory

    def jump(self, values: np.ndarray, *, now: float) -> None:
        """Command positions as they are, in the order of `names`, from the next tick on.

        Raises:
            RefusedError: the controller is stopped, or the values are no such positions.
        """
        self._refuse_if_stopped()
        if not self.required <= len(values) <= len(self.names):
            raise self._refusal(f"{len(values)} values for the joints {', '.join(self.names)}")
        if not np.isfinite(values).all():
            raise self._refusal("values are not finite")
        target = self._within(np.append(values, self.command[len(values) :])[None])
        self._trajectory = Trajectory(np.array([now]), target, None)
        self._take(now)

    def stop(self, reason: str) -> None:
        """Brake to a halt and refuse everything until `reset`; a second stop changes nothing."""
        if self.state == STOPPED:
            return
        self.state, self.reason = STOPPED, reason
        self._trajectory = None

    def tick(self, now: float) -> np.ndarray:
        """The command ``[J]`` for this time; times must rise."""
        elapsed, self._time = now - self._time, now
        before = self.command
        if self.state == STOPPED:
            self._brake(elapsed)
        elif self._trajectory is not None:
            self.command, self.velocity = self._trajectory.at(now)
            if self.state == RUNNING and now > self._until + self.watchdog_s:
                self.state = HOLDING
                self.reason = f"no command for {self.watchdog_s:g} s after the last one had ended"
            elif len(self._trajectory.times) == 1 and elapsed > 0:
                # A jump: what a stop in the next moment has to brake.
                self.velocity = (self.command - before) / elapsed
        return self.command

    # Internals.

    def _brake(self, elapsed: float) -> None:
        change = self.deceleration * max(elapsed, 0.0)
        after = np.sign(self.velocity) * np.maximum(np.abs(self.velocity) - change, 0.0)
        self.command = np.clip(
            self.command + (self.velocity + after) / 2 * elapsed, self.low, self.high
        )
        self.velocity = after

    def _take(self, until: float) -> None:
        self.state, self.reason = RUNNING, ""
        self.accepted += 1
        self._until = until

    def _within(self, positions: np.ndarray) -> np.ndarray:
        inside = np.clip(positions, self.low, self.high)
        # A millionth is rounding: positions travel as text.
        self.clipped += int((np.abs(inside - positions) > 1e-6).any())
        return inside

    def _columns(self, names: Sequence[str]) -> list[int]:
        unknown = [name for name in names if name not in self.names]
        if unknown or len(set(names)) != len(names):
            raise self._refusal(f"joints {list(names)}; expected a choice of {list(self.names)}")
        missing = [name for name in self.names[: self.required] if name not in names]
        if missing:
            raise self._refusal(f"it leaves out the joints {missing}")
        return [self.names.index(name) for name in names]

    def _refuse_if_stopped(self) -> None:
        if self.state == STOPPED:
            raise self._refusal(f"stopped ({self.reason}); it has to be reset first")

    def _refusal(self, why: str) -> RefusedError:
        self.refused += 1
        return RefusedError(why)
