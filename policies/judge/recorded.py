"""Held-out episodes as a world model is asked about them: windows of what was, and what was done.

Episodes come from whoever calls: a simulator's held-out resets or a recording. They are resized to
what the model sees, and cut into windows whose whole future is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from worldmodel.data import resize_frames
from worldmodel.types import Spec


@dataclass
class Recorded:
    """One held-out episode of T frames and the T actions that leave them.

    Attributes:
        images: camera -> uint8 ``[T, H, W, 3]``.
        state: float32 ``[T, S]``.
        action: float32 ``[T, A]``.
        success: bool ``[T]``, whether the world counts as solved *at* the frame.
        facts: name -> ``[T, D]``, what the simulator knows and no sensor shows (where the tip is,
            where the block is), in metres.
        kind: who acted, such as "expert" or "play".
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    action: np.ndarray
    success: np.ndarray
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    kind: str = "expert"

    def __len__(self) -> int:
        return len(self.action)


@dataclass
class Windows:
    """N windows of held-out episodes, with M actions and the M frames that followed.

    Attributes:
        video: camera -> uint8 ``[N, P + M, C, H, W]`` at the model's size.
        state: ``[N, P + M, S]``.
        action: ``[N, M, A]``, the first one leaves frame P - 1 ("now").
        success: bool ``[N, P + M]``.
        facts: name -> float32 ``[N, P + M, D]``.
        episode: int64 ``[N]``, which episode each is from.
        kind: who acted, of each.
        past: P.
    """

    video: dict[str, Tensor]
    state: Tensor
    action: Tensor
    success: Tensor
    facts: dict[str, Tensor]
    episode: np.ndarray
    kind: list[str]
    past: int

    def __len__(self) -> int:
        return len(self.action)

    @property
    def seen(self) -> dict[str, Tensor]:
        """The past frames, ``[N, P, C, H, W]``."""
        return {c: v[:, : self.past] for c, v in self.video.items()}

    @property
    def seen_state(self) -> Tensor:
        """The past states, ``[N, P, S]``."""
        return self.state[:, : self.past]

    def at(self, frames: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """The true frames so many steps after now, ``[N, T, C, H, W]``."""
        index = torch.as_tensor(frames) + self.past - 1
        return {c: v[:, index] for c, v in self.video.items()}

    def part(self, index: np.ndarray) -> Windows:
        """Some of the windows."""
        at = torch.from_numpy(index)
        return Windows(
            {c: v[at] for c, v in self.video.items()},
            self.state[at], self.action[at], self.success[at],
            {n: v[at] for n, v in self.facts.items()},
            self.episode[index], [self.kind[i] for i in index], self.past,
        )  # fmt: skip


def cut(
    episodes: Sequence[Recorded],
    spec: Spec,
    *,
    past: int,
    past_stride: int,
    ahead: int,
    each: int,
    seed: int = 0,
    unsolved: bool = False,
) -> Windows:
    """Up to `each` windows of every episode, none of which reaches past its end.

    Args:
        spec: of the model: its cameras and the size of its frames.
        past, past_stride: of the model's horizon; before an episode's first frame it repeats.
        ahead: M, actions and frames after now.
        each: windows of an episode, at different moments drawn from the seed.
        seed: of the moments.
        unsolved: leave out moments at which the world is solved already. An expert then stands
            still, which any copy of the last frame predicts.

    Raises:
        ValueError: no episode is long enough (or none unsolved); or a camera is missing.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, int]] = []
    for number, episode in enumerate(episodes):
        moments = np.arange(max(0, len(episode) - ahead))
        if unsolved:
            moments = moments[~episode.success[: len(moments)]]
        chosen = rng.choice(moments, min(each, len(moments)), replace=False)
        rows += [(number, int(t)) for t in np.sort(chosen)]
    if not rows:
        longest = max((len(e) for e in episodes), default=0)
        raise ValueError(
            f"no held-out episode has a window of {ahead} future frames"
            f"{' that begins unsolved' * unsolved}: the longest of {len(episodes)} has {longest} "
            "frames"
        )
    if missing := [c for c in spec.cameras if c not in episodes[0].images]:
        raise ValueError(
            f"the model sees cameras {missing}, the episodes show {sorted(episodes[0].images)}"
        )
    small = [
        {
            c: resize_frames(torch.from_numpy(e.images[c]).movedim(-1, -3), spec.image_size)
            for c in spec.cameras
        }
        for e in episodes
    ]

    def frames_of(t: int) -> np.ndarray:
        before = np.arange(1 - past, 1) * past_stride
        return np.maximum(0, t + np.concatenate([before, np.arange(1, ahead + 1)]))

    def stack(values: Sequence[np.ndarray]) -> Tensor:
        taken = [values[n][frames_of(t)] for n, t in rows]
        return torch.from_numpy(np.stack(taken).astype(np.float32))

    return Windows(
        video={c: torch.stack([small[n][c][frames_of(t)] for n, t in rows]) for c in spec.cameras},
        state=stack([e.state for e in episodes]),
        action=torch.from_numpy(
            np.stack([episodes[n].action[t : t + ahead] for n, t in rows]).astype(np.float32)
        ),
        success=stack([e.success for e in episodes]).bool(),
        facts={name: stack([e.facts[name] for e in episodes]) for name in episodes[0].facts},
        episode=np.array([n for n, _ in rows]),
        kind=[episodes[n].kind for n, _ in rows],
        past=past,
    )


def hold(spec: Spec, state: Tensor, action: Tensor) -> Tensor:
    """Actions of the shape of `action` ``[N, M, A]`` that do nothing ("zero actions").

    Changes are zero; absolute targets are where the joints are now (``state`` ``[N, S]``); what is
    no joint's target keeps its first value.
    """
    if spec.action_kind == "delta":
        return torch.zeros_like(action)
    still = action[:, :1].clone()
    for i, where in enumerate(_targets(spec)):
        if where >= 0:
            still[:, 0, i] = state[:, where]
    return still.expand_as(action).clone()


def _targets(spec: Spec) -> list[int]:
    """Per action the state that it is a target for: found in the data, else of the same name."""
    found = list(spec.action_targets) or [-1] * spec.action_dim
    if spec.action_kind != "absolute":
        return found
    named = [spec.state_names.index(n) if n in spec.state_names else -1 for n in spec.action_names]
    return [a if a >= 0 else b for a, b in zip(found, named, strict=True)]


def mean_frame(episodes: Sequence[Recorded], spec: Spec) -> Mapping[str, Tensor]:
    """Camera -> the mean picture ``[C, H, W]`` of these episodes, a floor that knows the scene."""
    means = {}
    for camera in spec.cameras:
        pictures = torch.stack(
            [
                resize_frames(
                    torch.from_numpy(e.images[camera]).movedim(-1, -3), spec.image_size
                ).float().mean(0)
                for e in episodes
            ]
        )  # fmt: skip
        means[camera] = pictures.mean(0)
    return means
