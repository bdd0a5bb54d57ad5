"""What a planner lacks: the same search as `policies.planner.Planner`, with more of the truth.

A planner that does not help may lack candidates that are better (diversity), see wrongly what comes
of them (prediction), or misjudge what it sees (scoring). `TruePlanner` looks as far ahead, from the
same candidates, with the policy going on in the same way; but its frames are those of the true
simulator. Judged by the same success head, what it gains over a `Planner` is what prediction costs;
judged by the true outcome, what it gains beyond is what scoring costs, and what is still missing
no judgement of these candidates could have found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from worldmodel.checkpoint import Checkpoint
from worldmodel.imagine import Imagined, ask
from worldmodel.selfflow import until_last_frame
from worldmodel.tokens import pattern

from .flow_policy import FlowPolicy, Moment
from .planner import Dream, Planner, PlannerConfig, resized
from .simulator_planner import Simulator

JUDGES = ("head", "outcome")


class TruePlanner(Planner):
    """A planner whose imagination is the simulator; for finding out what a planner lacks.

    Args:
        policy, world, plan: see `Planner`.
        envs: the environments of the slots, in their order, as they are played in. Each is left in
            the state in which it was found.
        judge: "head" (the world model's success head, asked for the next frame from true ones) or
            "outcome" (1 if the task is solved by then; else minus the distance that is left at the
            end, metres, where the world says).

    Raises:
        TypeError: an environment cannot be saved and restored.
        ValueError: an unknown judge; or as `Planner`.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        envs: Sequence[Any],
        world: Checkpoint | None = None,
        plan: PlannerConfig | None = None,
        judge: str = "outcome",
    ) -> None:
        super().__init__(policy, world, plan)
        if judge not in JUDGES:
            raise ValueError(f"judge is one of {list(JUDGES)}, found {judge!r}")
        self.judge, self.worlds = judge, [getattr(env, "unwrapped", env) for env in envs]
        for simulator in self.worlds:
            if not all(hasattr(simulator, n) for n in ("get_state", "set_state", "step")):
                raise TypeError(f"{type(simulator).__name__} cannot be saved and restored")
        h = self.world.model.horizon
        self.lead = 1 if self.world.objective.any_frame > 0 else h.grid[0]
        # Times, from the decision on, at which pictures are taken: what is asked about, and what
        # the judge looks back at.
        self.pictures: set[int] = set()
        for number, questions in enumerate(self._windows):
            for at in (number * self.config.execute + o for offsets in questions for o in offsets):
                back = (at - self.lead - k * h.past_stride for k in range(h.past))
                self.pictures |= {at, *(t for t in back if judge == "head" and t > 0)}
        self.name = (
            f"{policy.name}, true frames, {judge}, {self.plan.method} {self.plan.candidates}"
        )

    def worth(self, success: torch.Tensor) -> torch.Tensor:
        """See `Planner`; of outcomes, 1 if any is, else the last."""
        best = super().worth(success)
        return best if self.judge == "head" else torch.where(best >= 1, best, success[:, -1])

    def dream(self, moment: Moment, rows: np.ndarray) -> Dream:
        """What becomes of candidates, in truth."""
        return _Truth(self, moment, rows)


class _Truth(Dream):
    """A dream that is simulated."""

    planner: TruePlanner

    def __init__(self, planner: TruePlanner, moment: Moment, rows: np.ndarray) -> None:
        super().__init__(planner, moment, rows)
        self.sims: list[Simulator] = [planner.worlds[slot] for slot in moment.slots[rows]]
        self.states = {0: [_saved(sim) for sim in self.sims]}
        self.outcome: dict[int, torch.Tensor] = {0: torch.zeros(len(rows))}

    def imagine(self, begin: int, chunks: np.ndarray, offsets: tuple[int, ...]) -> Imagined:
        """The frames at these offsets from `begin`, where the chunks ``[R, K, A]`` begin."""
        asked = [begin + o for o in offsets]
        start = max(t for t in self.states if begin <= t < asked[-1])
        self._run(start, asked[-1], chunks[:, start - begin :], set(asked))
        judged = self._head if self.planner.judge == "head" else self._outcome
        success = torch.stack([judged(at, begin, chunks) for at in asked], 1)
        frames, states = zip(*(self.known[at] for at in asked), strict=True)
        return Imagined(
            {c: torch.stack([f[c] for f in frames], 1) for c in frames[0]},
            torch.stack(states, 1),
            torch.tensor(offsets),
            success,
        )

    def _run(self, start: int, end: int, actions: np.ndarray, asked: set[int]) -> None:
        """Simulate all rows from `start` to `end`, keep pictures and states."""
        size, cameras = self.world.spec.image_size, self.planner.spec.cameras
        shot: dict[int, list[tuple[dict[str, np.ndarray], np.ndarray]]] = {}
        kept: dict[int, list[np.ndarray]] = {at: [] for at in asked}
        reached: dict[int, list[float]] = {at: [] for at in asked}
        for row, sim in enumerate(self.sims):
            now, seen = _saved(sim), sim.cameras
            solved, left = float(self.outcome[start][row]) >= 1, 0.0
            try:
                sim.set_state(self.states[start][row])
                for step in range(end - start):
                    at = start + step + 1
                    taken = at in self.planner.pictures
                    sim.cameras = seen if taken else ()  # drawing takes most of a step
                    found, _, _, _, info = sim.step(actions[row, step].copy())
                    solved |= bool(info["is_success"])
                    left = -float(info.get("distance", 0.0))
                    if taken:
                        pixels = {c: found["pixels"][c] for c in cameras}
                        shot.setdefault(at, []).append((pixels, found["agent_pos"]))
                    if at in asked:
                        kept[at].append(_saved(sim))
                        reached[at].append(1.0 if solved else left)
            finally:
                sim.set_state(now)
                sim.cameras = seen
        for at, views in shot.items():
            frames = {
                c: resized(np.stack([v[c] for v, _ in views]), size).to(self.device)
                for c in cameras
            }
            states = np.stack([s for _, s in views]).astype(np.float32)
            self.known[at] = frames, torch.from_numpy(states).to(self.device)
        self.states |= kept
        self.outcome |= {at: torch.tensor(values) for at, values in reached.items()}

    def _outcome(self, at: int, begin: int, chunks: np.ndarray) -> torch.Tensor:
        return self.outcome[at]

    def _head(self, at: int, begin: int, chunks: np.ndarray) -> torch.Tensor:
        """What the success head says of the frame at this time, asked from the true ones before."""
        h, lead, spec = self.world.model.horizon, self.planner.lead, self.world.spec
        past = [self.seen(at - lead - k * h.past_stride) for k in reversed(range(h.past))]
        video = {c: torch.stack([frames[c] for frames, _ in past], 1) for c in spec.cameras}
        state = torch.stack([s for _, s in past], 1) if spec.state_dim else None
        question = pattern("forward", h, offsets=(lead,))
        which = (at - lead - begin + np.arange(h.chunk)).clip(max=chunks.shape[1] - 1)
        actions = until_last_frame(torch.from_numpy(chunks[:, which]), question)
        draw = (int(self.moment.seeds[0]), "judge", at)
        found = ask(
            self.world, question, video, state, {"action": actions}, self.task,
            self.planner.plan.steps, draw,
        )  # fmt: skip
        assert found.success is not None  # `Planner` refuses models without a head
        return found.success[:, 0].cpu()


def _saved(sim: Simulator) -> np.ndarray:
    state = sim.get_state()
    if state is None:
        raise ValueError(f"{type(sim).__name__} cannot be saved (get_state gave None)")
    return state.copy()
