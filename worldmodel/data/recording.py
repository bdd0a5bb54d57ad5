"""The numbers of whole datasets in memory, no pictures: what looking at data begins with.

Unlike `worldmodel.data.open_data` this takes datasets that nothing could be learnt from yet:
without a state, with NaN, at different rates. What is missing is said, not refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..types import Spec
from .config import DataConfig
from .dataset import follow_actions, merge_tasks, require_agreement
from .episodes import choose_episodes, list_action_free
from .errors import BrokenError
from .keys import NUMBERS, Keys, dimension_names, find_roots
from .labels import exploratory_episodes
from .source import Episode, Source, feature_width, open_source

SUCCESS_NAMES = {"success", "is_success", "successes"}


@dataclass(frozen=True)
class Span:
    """One episode: rows ``first, ..., first + length - 1`` of a recording.

    Attributes:
        root: number of its source.
        episode: in that source; has its own number there.
        fps: of that source.
        kind: "demonstration", "exploratory" (actions that are nothing to imitate) or
            "action-free".
    """

    root: int
    episode: Episode
    first: int
    length: int
    fps: float
    kind: str

    @property
    def rows(self) -> slice:
        return slice(self.first, self.first + self.length)

    @property
    def seconds(self) -> float:
        return self.length / self.fps


@dataclass(frozen=True)
class Recording:
    """Every frame's numbers of some episodes, one episode after the other.

    Attributes:
        sources, keys: of each root; a key is "" where there is no such feature.
        problems: "action" or "state" -> why it was not found.
        spans: the episodes, in order.
        state, action: float32 ``[N, S]`` and ``[N, A]``; no columns where there is none. Actions
            of action-free episodes are zeros beside those of others.
        state_names, action_names: one per column.
        timestamp: float64 ``[N]`` in seconds as recorded, or None.
        frame_index: int64 ``[N]`` as recorded, or None.
        success: bool ``[N]``, or None where it is not recorded.
        success_key: the feature that says so, or "".
        tasks, task: texts, and int64 ``[N]`` with their numbers (-1: none).
    """

    sources: tuple[Source, ...]
    keys: tuple[Keys, ...]
    problems: dict[str, str]
    spans: tuple[Span, ...]
    state: np.ndarray
    action: np.ndarray
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    timestamp: np.ndarray | None
    frame_index: np.ndarray | None
    success: np.ndarray | None
    success_key: str
    tasks: tuple[str, ...]
    task: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.task)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.keys[0].images)

    def label(self, span: Span) -> str:
        """``episode 3``, and of which root where there are several."""
        where = f" of {self.sources[span.root].name}" if len(self.sources) > 1 else ""
        return f"episode {span.episode.number}{where}"

    @property
    def acting(self) -> tuple[Span, ...]:
        """The episodes that have actions."""
        return tuple(s for s in self.spans if s.kind != "action-free")

    @property
    def shown(self) -> tuple[Span, ...]:
        """The demonstrations; without any, all episodes that have actions."""
        return tuple(s for s in self.spans if s.kind == "demonstration") or self.acting

    def spread(self, most_frames: int) -> Iterator[Span]:
        """Whole `shown` episodes, evenly spread, of about `most_frames` frames; at least one."""
        spans = self.shown
        frames = sum(span.length for span in spans)
        count = max(1, round(len(spans) * min(1.0, most_frames / frames)))
        for place in np.unique(np.linspace(0, len(spans) - 1, count).round().astype(int)):
            yield spans[place]


def read_recording(config: DataConfig) -> Recording:
    """Read state, action, times, tasks and success of all chosen episodes.

    Args:
        config: its root, keys, episodes and action_free.

    Raises:
        DatasetError: a dataset is missing, broken or in another format, or the roots have
            different cameras, states or actions. Rates and robots may differ.
    """
    sources = tuple(open_source(root) for root in config.roots())
    found, problems = find_roots([(s.features, s.name) for s in sources], config.keys)
    keys = tuple(found)
    specs = follow_actions([_spec(s, k) for s, k in zip(sources, keys, strict=True)])
    require_agreement(sources, specs, may_differ=("robot_type", "fps"))
    chosen = choose_episodes(sources, config.episodes)
    action_free = list_action_free(sources, keys, config.action_free)
    tasks, task = merge_tasks(sources)
    spans: list[Span] = []
    rows: list[np.ndarray] = []
    first = start = 0
    for root, (source, episodes) in enumerate(zip(sources, chosen, strict=True)):
        kinds = dict.fromkeys(exploratory_episodes(source, keys[root]), "exploratory")
        kinds |= dict.fromkeys(action_free[root], "action-free")
        for episode in episodes:
            kind = kinds.get(episode, "demonstration")
            spans.append(Span(root, episode, first, episode.length, source.fps, kind))
            rows.append(np.arange(episode.length) + start + episode.start)
            first += episode.length
        start += source.rows
    taken = np.concatenate(rows)
    success_keys = [
        k.success or _success_key(s.features) for s, k in zip(sources, keys, strict=True)
    ]
    acts = np.concatenate([np.full(s.length, s.kind != "action-free") for s in spans])
    if not acts.any():
        problems.setdefault("action", "none of the episodes has actions (data.action_free)")

    def vectors(role: str) -> np.ndarray:
        width = len(getattr(specs[0], f"{role}_names"))
        if role in problems:
            return np.empty((len(taken), 0), np.float32)
        parts = [
            source.vectors(name) if name else np.zeros((source.rows, width), np.float32)
            for source, name in zip(sources, (getattr(k, role) for k in keys), strict=True)
        ]
        return np.concatenate(parts)[taken]

    def scalars(names: list[str]) -> np.ndarray | None:
        if not all(n in s.features for s, n in zip(sources, names, strict=True)):
            return None
        parts = [_scalars(s, name) for s, name in zip(sources, names, strict=True)]
        return np.concatenate(parts)[taken]

    action = vectors("action")
    action[~acts] = 0  # whatever was recorded there, it may be NaN
    frame_index = scalars(["frame_index"] * len(sources))
    success = scalars(success_keys)
    return Recording(
        sources=sources,
        keys=keys,
        problems=problems,
        spans=tuple(spans),
        state=vectors("state"),
        action=action,
        state_names=() if "state" in problems else specs[0].state_names,
        action_names=() if "action" in problems else specs[0].action_names,
        timestamp=scalars(["timestamp"] * len(sources)),
        frame_index=None if frame_index is None else frame_index.astype(np.int64),
        success=None if success is None else success > 0,
        success_key=success_keys[0] if success is not None else "",
        tasks=tasks,
        task=task[taken],
    )


def _spec(source: Source, keys: Keys) -> Spec:
    return Spec(
        cameras=tuple(keys.images),
        image_size=(1, 1),
        state_names=_names(source, keys.state, "state"),
        action_names=_names(source, keys.action, "action"),
        fps=source.fps,
        robot_type=source.robot_type,
    )


def _names(source: Source, key: str, prefix: str) -> tuple[str, ...]:
    return dimension_names(source.features[key], prefix) if key else ()


def _success_key(features: dict[str, dict[str, Any]]) -> str:
    """The feature with one number a frame that says whether the task is done, or ""."""
    for key, feature in features.items():
        number = str(feature["dtype"]).startswith(("bool", *NUMBERS))
        named = key.split(".")[-1].lower() in SUCCESS_NAMES
        if named and number and feature_width(feature) == 1:
            return key
    return ""


def _scalars(source: Source, key: str) -> np.ndarray:
    """One number a frame, in full: float64 ``[rows]``."""
    out = np.empty(source.rows, np.float64)
    for rows, columns in source.read([key]):
        values: Any = columns[key]
        while pa.types.is_nested(values.type) and not values.null_count:
            values = values.flatten()
        if values.null_count or len(values) != len(rows):
            raise BrokenError(
                f"feature {key!r} of {source.name} should have one number a frame; "
                f"{len(values)} were found in {len(rows)} frames, {values.null_count} missing"
            )
        out[rows] = values.to_numpy(zero_copy_only=False)
    return out
