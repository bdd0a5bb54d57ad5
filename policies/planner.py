"""Deciding with the world model: several chunks are thought through, the best one is executed.

A planner believes what it finds, and looks for what it likes: the more candidates, the more its
choice is one that the world model is wrong about. Every decision is logged with what was expected,
so that this can be measured (`policies.search.Record`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldmodel.checkpoint import Checkpoint
from worldmodel.data import resize_frames
from worldmodel.imagine import Imagined, ask, window_length
from worldmodel.selfflow import until_last_frame
from worldmodel.tokens import pattern

from .flow_policy import FlowPolicy, Moment, imagined_frames, span_of, task_index
from .offline import MOVING
from .search import Outlook, SearchConfig, SearchPolicy, require_known

SCORES = ("success", "goal")


@dataclass
class PlannerConfig(SearchConfig):
    """How candidates are imagined and judged.

    Attributes:
        score: "success" (what the model's success head says) or "goal" (how close the last imagined
            frame is to a picture, see `Planner.set_goal`).
        lookahead: chunks that are imagined: after the executed part of a candidate the policy goes
            on in imagination, so that success further off than a chunk comes into sight. 1 is the
            candidate alone, with the actions that would not be executed.
        steps: sampling steps of a window.
        every: distance of the imagined frames; None is the model's own grid.

    Raises:
        ValueError: an unknown score, or a number that means nothing.
    """

    score: str = "success"
    lookahead: int = 1
    steps: int = 1
    every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("score", self.score, SCORES)
        for name in ("lookahead", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


class Planner(SearchPolicy):
    """Chooses the chunk whose imagined future is best; see `policies.types.Policy`.

    Args:
        policy: proposes.
        world: the checkpoint that imagines; default: the policy's own.
        plan: how to search, imagine and judge.

    Raises:
        worldmodel.types.SpecMismatchError: the two checkpoints are for different robots or cameras.
        ValueError: the world model cannot imagine or judge what it would have to.
    """

    plan: PlannerConfig

    def __init__(
        self,
        policy: FlowPolicy,
        world: Checkpoint | None = None,
        plan: PlannerConfig | None = None,
    ) -> None:
        self._goals: dict[int | None, dict[str, Tensor]] = {}
        super().__init__(policy, plan or PlannerConfig())
        self.world = world or policy.checkpoint
        self.spec.require_same(self.world.spec, "the policy", "the world model", image_size=False)
        if self.plan.score == "success" and self.world.model.success is None:
            raise ValueError(
                "this world model cannot tell success: it was trained on data without "
                "next.success, or without failures (scripts.collect exploration=0.4). "
                "Train one that can, or use score=goal"
            )
        if self.plan.score == "goal" and not self.world.spec.cameras:
            raise ValueError("score=goal compares pictures; this world model has no camera")
        self._windows = self._questions()
        self._span = max(self._span, span_of(self.world.model.horizon))

    def imagine(
        self, images: Mapping[str, np.ndarray], state: np.ndarray, commands: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `policies.flow_policy.imagined_frames`."""
        return imagined_frames(self.world, images, state, commands)

    def reset_slots(self, slots: Sequence[int], seeds: Sequence[int]) -> None:
        """See `ChunkPolicy`; goals of these slots were their last episode's and are forgotten."""
        for slot in slots:
            self._goals.pop(int(slot), None)
        super().reset_slots(slots, seeds)

    def set_goal(self, images: Mapping[str, np.ndarray], slot: int | None = None) -> None:
        """What the cameras are to show, for ``score="goal"``.

        Args:
            images: camera name -> uint8 ``[H, W, C]``, any size.
            slot: whose goal it is, until another episode starts in it; None: of every slot without
                one of its own.

        Raises:
            ValueError: other cameras than the model's, or no such picture.
        """
        spec = self.world.spec
        if set(images) != set(spec.cameras):
            raise ValueError(
                f"a goal is seen by the model's cameras {list(spec.cameras)}, found "
                f"{sorted(images)}"
            )
        for camera, image in images.items():
            if image.dtype != np.uint8 or image.ndim != 3:
                raise ValueError(
                    f"a goal is uint8 [H, W, C]; camera {camera} has {image.dtype} "
                    f"{list(image.shape)}"
                )
        device = next(self.world.model.parameters()).device
        self._goals[slot] = {
            c: resized(image[None], spec.image_size)[0].to(device) for c, image in images.items()
        }

    def _questions(self) -> list[list[tuple[int, ...]]]:
        """Which frames are asked for in each imagined chunk, counted from its beginning.

        A question holds as many as the model was trained on; a chunk may take several.
        """
        h, plan, execute = self.world.model.horizon, self.plan, self.config.execute
        any_frame = self.world.objective.any_frame > 0
        window_length(h, any_frame=True)  # refuses a model that knows too little future
        reach = h.chunk if any_frame else h.grid[-1]
        every = h.future_stride if plan.every is None else plan.every
        if not 1 <= every <= reach:
            raise ValueError(f"every={every}: the distance of frames is from 1 to {reach}")
        # What the policy and the model look back at when a chunk is over.
        back = {n * past.past_stride for past in (h, self.horizon) for n in range(past.past)}
        starts = [n * execute for n in range(plan.lookahead)]
        looked_at = {start - ago for start in starts[1:] for ago in back}
        if plan.lookahead > 1 and execute > reach:
            raise ValueError(
                f"lookahead={plan.lookahead}: {execute} actions are executed of a chunk, and the "
                f"world model sees {reach} frames ahead; lower execute"
            )
        windows = []
        for start in starts:
            last = start == starts[-1]
            length = min(self.horizon.chunk, reach) if last else execute
            asked = {f for f in range(1, length + 1) if f % every == 0}
            asked |= {t - start for t in looked_at if 0 < t - start <= length}
            if not any_frame and not asked <= set(h.grid):
                raise ValueError(
                    f"this world model knows the frames {list(h.grid)} of a window only, and "
                    f"{sorted(asked)} are needed (every={every}, lookahead={plan.lookahead}, "
                    f"execute={execute}): train with objective.any_frame above 0 for others"
                )
            if not asked:
                raise ValueError(
                    f"every={every}: no frame is imagined of the {length} actions of a chunk"
                )
            # A model that knows its grid only is asked for the beginning of it.
            frames = sorted(asked) if any_frame else [f for f in h.grid if f <= max(asked)]
            windows.append(
                [tuple(frames[i : i + h.future]) for i in range(0, len(frames), h.future)]
            )
        return windows

    def outlook(self, moment: Moment, rows: np.ndarray, chunks: np.ndarray) -> Outlook:
        """Imagine and judge candidates; see `policies.search.SearchPolicy.outlook`."""
        dream = self.dream(moment, rows)
        found: list[Imagined] = []
        for number, questions in enumerate(self._windows):
            if number:
                chunks = self._continued(dream, moment.take(rows), number, chunks)
            begin = number * self.config.execute
            found += [dream.imagine(begin, chunks, offsets) for offsets in questions]
        state = found[-1].state
        final = np.zeros((len(rows), 0)) if state is None else state[:, -1].cpu().numpy()
        if self.plan.score == "success":
            success = torch.cat([f.success for f in found if f.success is not None], dim=1).cpu()
            return Outlook(self.worth(success).numpy(), success.mean(1).numpy(), final)
        end = {c: v[:, -1] for c, v in found[-1].video.items()}
        value = -self._distance(moment.slots[rows], dream.seen(0)[0], end).cpu().numpy()
        return Outlook(value, np.zeros(len(rows)), final)

    def worth(self, success: Tensor) -> Tensor:
        """What futures are worth ``[R]``, by the probabilities of success in them ``[R, T]``."""
        return success.amax(1)

    def dream(self, moment: Moment, rows: np.ndarray) -> Dream:
        """What is to become of candidates for these rows of the moment."""
        return Dream(self, moment, rows)

    def _continued(
        self, dream: Dream, moment: Moment, number: int, chunks: np.ndarray
    ) -> np.ndarray:
        """What the policy does next, `number` chunks later, from what is imagined.

        With the noise that it will have then: all candidates go on with the same luck.
        """
        config, past, stride = self.config, self.horizon.past, self.horizon.past_stride
        now = number * config.execute
        seen = [dream.seen(now - k * stride) for k in reversed(range(past))]
        dream.executed = np.concatenate([dream.executed, chunks[:, : config.execute]], axis=1)
        kept = min(config.history, dream.executed.shape[1])
        committed = chunks[:, config.execute : config.execute + config.prefix]
        video = {c: torch.stack([frames[c] for frames, _ in seen], 1) for c in self.spec.cameras}
        later = replace(
            moment,
            numbers=moment.numbers + number,
            video={c: v.movedim(-3, -1).cpu().numpy() for c, v in video.items()},
            state=torch.stack([state for _, state in seen], 1).cpu().numpy(),
            executed=dream.executed[:, dream.executed.shape[1] - kept :],
            committed=committed if config.prefix else None,
        )
        return self.policy.choose(later)[0]

    def _distance(
        self, slots: np.ndarray, now: Mapping[str, Tensor], end: Mapping[str, Tensor]
    ) -> Tensor:
        """How far imagined frames are from the goal ``[R]``, in shares of the grey levels.

        Pixels count that differ from now, in the goal or in the imagination: a background that
        stays is most of a picture and says nothing. What is moved without need counts too.
        """
        total = torch.zeros(len(slots), device=next(iter(end.values())).device)
        goals = [self._goal_of(int(slot)) for slot in slots]
        for camera, frames in end.items():
            goal = torch.stack([g[camera] for g in goals]).float()
            start, frames = now[camera].float(), frames.float()
            moves = _moved(goal, start)
            counts = moves | _moved(frames, start)
            error = ((frames - goal).abs().mean(1) * counts).sum((1, 2)) / 255
            total += error / moves.sum((1, 2)).clamp_min(1) / len(end)
        return total

    def _goal_of(self, slot: int) -> dict[str, Tensor]:
        goal = self._goals.get(slot, self._goals.get(None))
        if goal is None:
            raise RuntimeError(f"score=goal: slot {slot} has no goal; call set_goal first")
        return goal


class Dream:
    """What R candidates see and have seen, by the time counted from the decision.

    Attributes:
        executed: the newest commands ``[R, h, A]``.
    """

    def __init__(self, planner: Planner, moment: Moment, rows: np.ndarray) -> None:
        self.planner, self.world = planner, planner.world
        self.moment, self.rows = moment, rows
        self.device = next(self.world.model.parameters()).device
        self.known: dict[int, tuple[dict[str, Tensor], Tensor]] = {}
        count = planner.spec.action_dim
        executed = moment.executed
        self.executed = (
            np.zeros((len(rows), 0, count), np.float32) if executed is None else executed[rows]
        )
        texts = moment.task or [""] * len(moment.slots)
        index = [task_index(text, self.world.spec) for text in texts]
        self.task = torch.tensor(index)[rows]

    def seen(self, at: int) -> tuple[dict[str, Tensor], Tensor]:
        """Frames uint8 ``[R, C, H, W]`` by camera and states ``[R, S]``; real ones up to 0."""
        if at > 0 or at in self.known:
            return self.known[at]
        images, state = self.planner._seen(self.moment.slots, -at)
        size = self.world.spec.image_size
        frames = {c: resized(v, size).to(self.device)[self.rows] for c, v in images.items()}
        states = torch.from_numpy(np.asarray(state, np.float32)).to(self.device)[self.rows]
        self.known[at] = frames, states
        return self.known[at]

    def imagine(self, begin: int, chunks: np.ndarray, offsets: tuple[int, ...]) -> Imagined:
        """The frames at these offsets from `begin`, where the chunks ``[R, K, A]`` begin."""
        h, spec = self.world.model.horizon, self.world.spec
        past = [self.seen(begin - k * h.past_stride) for k in reversed(range(h.past))]
        video = {c: torch.stack([frames[c] for frames, _ in past], 1) for c in spec.cameras}
        state = torch.stack([s for _, s in past], 1) if spec.state_dim else None
        at = np.arange(h.chunk).clip(max=chunks.shape[1] - 1)
        question = pattern("forward", h, offsets=offsets)
        actions = until_last_frame(torch.from_numpy(chunks[:, at]), question)
        # The same noise for all candidates of a slot: what differs is what they do.
        numbers = zip(self.moment.seeds.tolist(), self.moment.numbers.tolist(), strict=True)
        draws = [(seed, "plan", number, begin, offsets[0]) for seed, number in numbers]
        found = ask(
            self.world, question, video, state, {"action": actions}, self.task,
            self.planner.plan.steps, [draws[r] for r in self.rows],
        )  # fmt: skip
        for i, offset in enumerate(offsets):
            states = self.seen(0)[1] if found.state is None else found.state[:, i]
            self.known[begin + offset] = {c: v[:, i] for c, v in found.video.items()}, states
        return found


def resized(images: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 ``[B, H, W, C]`` -> ``[B, C, h, w]`` as the model sees them."""
    return resize_frames(torch.from_numpy(np.ascontiguousarray(images)).movedim(-1, -3), size)


def _moved(frames: Tensor, start: Tensor) -> Tensor:
    """Which pixels ``[B, H, W]`` of ``[B, C, H, W]`` grey levels have changed."""
    return ((frames - start).abs() > MOVING).any(1)
