"""Deciding with the true simulator, which no robot has: what a perfect model would be worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .flow_policy import FlowPolicy, Moment
from .search import Outlook, SearchConfig, SearchPolicy


class Simulator(Protocol):
    """What `SimulatorPlanner` needs of an environment, without wrappers.

    ``info`` of `step` holds ``is_success`` and, where it means something, ``distance`` (metres).
    """

    cameras: Sequence[str]

    def get_state(self) -> np.ndarray | None:
        """Everything the future depends on; None if it cannot be had."""

    def set_state(self, state: np.ndarray) -> None:
        """Return to it."""

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """One control step."""


class SimulatorPlanner(SearchPolicy):
    """Chooses the chunk that turns out best in the true simulator.

    It looks one chunk ahead and knows the distance that is left, where a `Planner` may look further
    and knows what its success head says. `policies.true_planner` differs from a `Planner` in one
    thing at a time.

    A candidate that succeeds is worth 1, the sooner the better; another one minus the distance that
    is left, in units of `scale` (0 in a world without distance). Every simulator is left in the
    state in which it was found.

    Args:
        policy: proposes.
        envs: the environments of the slots, in their order, as they are played in. Wrappers (a
            time limit) are left alone; no picture is drawn.
        plan: how to search.
        horizon_steps: actions of a candidate that are tried; None: all.
        scale: metres.

    Raises:
        TypeError: an environment cannot be saved and restored.
        ValueError: more steps than a chunk has, or a scale that is none.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        envs: Sequence[Any],
        plan: SearchConfig | None = None,
        horizon_steps: int | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(policy, plan or SearchConfig())
        chunk = self.horizon.chunk
        self.horizon_steps = chunk if horizon_steps is None else horizon_steps
        if not 1 <= self.horizon_steps <= chunk or scale <= 0:
            raise ValueError(
                f"horizon_steps is from 1 to {chunk} (a chunk) and scale above 0; found "
                f"horizon_steps={horizon_steps}, scale={scale}"
            )
        self.scale, self.worlds = scale, [getattr(env, "unwrapped", env) for env in envs]
        for world in self.worlds:
            missing = [n for n in ("get_state", "set_state", "step") if not hasattr(world, n)]
            if missing:
                raise TypeError(
                    f"{type(world).__name__} cannot be planned in: it has no {', '.join(missing)}"
                )
        self.name = f"{policy.name}, simulator {self.plan.method} {self.plan.candidates}"

    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        """Try candidates one by one; see `policies.search.SearchPolicy.outlook`.

        Raises:
            ValueError: a slot without environment, or one whose state cannot be had.
        """
        tried = []
        for slot, chunk in zip(moment.slots[rows], chunks, strict=True):
            if slot >= len(self.worlds):
                raise ValueError(
                    f"slot {slot} has no simulator; {len(self.worlds)} were given, one per slot "
                    "in order"
                )
            tried.append(self._try(self.worlds[slot], chunk[: self.horizon_steps]))
        value, tie, final = zip(*tried, strict=True)
        return Outlook(np.array(value, float), np.array(tie, float), np.stack(final))

    def _try(self, world: Simulator, actions: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Value, tie-break and final state of these actions; the world is put back."""
        state = world.get_state()
        if state is None:
            raise ValueError(
                f"{type(world).__name__} cannot be planned in: its state cannot be saved "
                "(get_state gave None)"
            )
        state, cameras = state.copy(), getattr(world, "cameras", ())
        if cameras:
            world.cameras = ()  # drawing takes most of a step
        try:
            for step, action in enumerate(actions):
                observation, _, terminated, truncated, info = world.step(action.copy())
                final = np.asarray(observation["agent_pos"], float)
                if info["is_success"]:
                    return 1.0, 1 - step / len(actions), final
                if terminated or truncated:
                    break
            return -float(info.get("distance", 0.0)) / self.scale, 0.0, final
        finally:
            world.set_state(state)
            if cameras:
                world.cameras = cameras
