"""Open demonstrations: find them, check them, cache their frames, split them, cut windows."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..types import Spec, SpecMismatchError
from .cache import open_cache
from .config import DataConfig
from .episodes import (
    Kinds,
    choose_episodes,
    kinds_of,
    list_action_free,
    number_through,
    split_kinds,
)
from .errors import RootsDisagreeError
from .keys import FLAGS, Keys, dimension_names, recorded_kind, resolve_roots
from .labels import solved_frames
from .source import Episode, Source, open_source
from .stats import action_kind, action_rank, action_targets, require_finite, statistics
from .video import require_whole_clips
from .windows import Rows, Windows

log = logging.getLogger(__name__)

RANK_WINDOWS = 2048  # windows that tell how smooth the demonstrated chunks are


@dataclass(frozen=True)
class Facts:
    """What demonstrations say about themselves: everything but their frames.

    Attributes:
        spec: facts of the data; its statistics are those of the training episodes.
        train_episodes, validation_episodes: ascending. With several roots, episodes are numbered
            through all of them in order.
        action_free_episodes: those of both splits that have no actions.
        exploratory_episodes: those of both splits whose actions are nothing to imitate.
        fingerprint: of the content of the roots and the chosen keys; equal for copies.
        keys: feature keys of each root, in order.
        roots: as the user gave them.
    """

    spec: Spec
    train_episodes: list[int]
    validation_episodes: list[int]
    action_free_episodes: list[int]
    exploratory_episodes: list[int]
    fingerprint: str
    keys: tuple[Keys, ...]
    roots: tuple[str, ...]


@dataclass(frozen=True)
class Data(Facts):
    """Demonstrations, ready to learn from.

    Attributes:
        train, validation: windows of the two splits; the latter may be empty.
    """

    train: Windows
    validation: Windows

    def __repr__(self) -> str:
        spec = self.spec
        height, width = spec.image_size
        lines = [
            f"Data {', '.join(self.roots)}",
            f"  cameras     {', '.join(spec.cameras) or 'none'} ({width}x{height})",
            f"  state       {spec.state_dim}: {_few(spec.state_names)}",
            f"  action      {spec.action_dim}: {_few(spec.action_names)}",
            f"  rate        {spec.fps:g} per second",
            f"  tasks       {len(spec.tasks)}: {_few(spec.tasks)}",
            f"  train       {len(self.train):,} windows of {len(self.train_episodes)} episodes",
            f"  validation  {len(self.validation):,} windows of "
            f"{len(self.validation_episodes)} episodes",
        ]
        for name, some in (
            ("exploratory", self.exploratory_episodes),
            ("action-free", self.action_free_episodes),
        ):
            if some:
                held = len({*some} & {*self.validation_episodes})
                lines.append(f"  {name} {len(some)} episodes, {held} of them for validation")
        lines.append(f"  fingerprint {self.fingerprint}")
        return "\n".join(lines)


def open_data(config: DataConfig, *, progress: bool = True) -> Data:
    """Open one or several LeRobot datasets as windows.

    The first time, frames are decoded and resized into a cache, with a progress bar; after that
    this takes a moment.

    Raises:
        DatasetError: one of its family: what is wrong with the dataset or the configuration, and
            how to mend it.
    """
    opened = _open(config)
    for source, key, episodes in zip(opened.sources, opened.keys, opened.chosen, strict=True):
        for camera in key.images.values():
            require_whole_clips(source, camera, episodes)

    directory = Path(config.cache_dir).expanduser() if config.cache_dir else None
    caches = [
        open_cache(source, key, config.size(), directory, progress=progress)
        for source, key in zip(opened.sources, opened.keys, strict=True)
    ]
    vectors = [(cache.state, _filled(cache.action, opened.specs[0])) for cache in caches]
    spans, task, solved, facts = _facts(config, opened, vectors)
    frames = {c: Rows([cache.frames[c] for cache in caches]) for c in facts.spec.cameras}
    state, action = (Rows(parts) for parts in zip(*vectors, strict=True))
    past = np.arange(1 - config.past, 1) * config.past_stride
    future = np.arange(1, config.future + 1) * config.future_stride

    without, explored = set(facts.action_free_episodes), set(facts.exploratory_episodes)

    def windows(numbers: list[int]) -> Windows:
        return Windows(
            frames,
            state,
            action,
            task,
            [(n, *spans[n]) for n in numbers],
            past,
            future,
            config.chunk,
            success=solved,
            has_action=[n not in without for n in numbers],
            demonstrated=[n not in explored for n in numbers],
        )

    return Data(
        **{f.name: getattr(facts, f.name) for f in fields(Facts)},
        train=windows(facts.train_episodes),
        validation=windows(facts.validation_episodes),
    )


def read_facts(config: DataConfig) -> Facts:
    """The same facts as `open_data` finds, without decoding or caching a single frame.

    Raises:
        DatasetError: as `open_data` does, but for what is wrong with frames.
    """
    opened = _open(config)
    vectors = []
    for source, key in zip(opened.sources, opened.keys, strict=True):
        none = np.empty((source.rows, 0), np.float32)
        actions = source.vectors(key.action) if key.action else none
        vectors.append((source.vectors(key.state), _filled(actions, opened.specs[0])))
    return _facts(config, opened, vectors)[-1]


class _Opened(NamedTuple):
    """Roots that were found, understood and agree.

    `chosen` are the episodes to use of every root, `action_free` those without actions, used or
    not.
    """

    sources: list[Source]
    keys: list[Keys]
    specs: list[Spec]
    chosen: list[list[Episode]]
    action_free: list[list[Episode]]


def _open(config: DataConfig) -> _Opened:
    config.check()
    sources = [open_source(root) for root in config.roots()]
    keys = resolve_roots([(s.features, s.name) for s in sources], config.keys)
    specs = follow_actions([_spec(s, k, config.size()) for s, k in zip(sources, keys, strict=True)])
    # A kind that the user states overrules what the roots say of themselves.
    stated = () if config.action_kind == "auto" else ("action_kind",)
    require_agreement(sources, specs, ("robot_type", *stated))
    for source, key in zip(sources, keys, strict=True):
        if not key.action:
            log.warning("%s has no action feature: its episodes are action-free", source.name)
    chosen = choose_episodes(sources, config.episodes)
    action_free = list_action_free(sources, keys, config.action_free)
    return _Opened(sources, keys, specs, chosen, action_free)


def _facts(
    config: DataConfig, opened: _Opened, vectors: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[int, tuple[int, int]], np.ndarray, np.ndarray, Facts]:
    """Split the episodes and measure those that are for training.

    Args:
        vectors: states and actions of each root, ``[rows, dimensions]``.

    Returns:
        First row and length of every episode, the task of every row, whether the world is solved
        there, and the facts.
    """
    sources, keys, specs, chosen, action_free = opened
    for source, key, episodes, without, (states, actions) in zip(
        sources, keys, chosen, action_free, vectors, strict=True
    ):
        acting = [e for e in episodes if e not in without]
        for values, some, name, names in (
            (states, episodes, key.state, specs[0].state_names),
            (actions, acting, key.action, specs[0].action_names),
        ):
            require_finite(values, some, names, name, source.name)

    spans = number_through(sources, chosen)
    kinds = kinds_of(sources, keys, list(spans), action_free)
    train, validation = split_kinds(kinds, config.validation, config.split_seed)
    tasks, task = merge_tasks(sources)
    solved = np.concatenate([solved_frames(s, k) for s, k in zip(sources, keys, strict=True)])
    robots = {s.robot_type for s in sources}
    measured = _measure(vectors, spans, train, kinds, specs, config)
    labels = np.unique(solved[_rows(spans, train)]).tolist()
    spec = replace(
        specs[0],
        tasks=tasks,
        robot_type=robots.pop() if len(robots) == 1 else "",
        has_success={0, 1} <= set(labels),
        **measured,
    )
    facts = Facts(
        spec=spec,
        train_episodes=train,
        validation_episodes=validation,
        action_free_episodes=kinds.action_free,
        exploratory_episodes=kinds.exploratory,
        fingerprint=_fingerprint(sources, keys, action_free),
        keys=tuple(keys),
        roots=tuple(s.name for s in sources),
    )
    return spans, task, solved, facts


def _measure(
    vectors: Sequence[tuple[np.ndarray, np.ndarray]],
    spans: dict[int, tuple[int, int]],
    train: list[int],
    kinds: Kinds,
    specs: Sequence[Spec],
    config: DataConfig,
) -> dict[str, Any]:
    """What a spec holds of the values of the training episodes.

    Statistics are of all that is there; what actions are for, and how smooth they are, is seen in
    the demonstrations alone.
    """
    every_state, every_action = (Rows(parts) for parts in zip(*vectors, strict=True))
    free, explored = set(kinds.action_free), set(kinds.exploratory)
    acting = [n for n in train if n not in free]
    shown = [n for n in acting if n not in explored]
    states = every_state.take(_rows(spans, train)).numpy()
    actions = every_action.take(_rows(spans, acting)).numpy()
    stats = {"state": statistics(states), "action": statistics(actions)}
    targets: tuple[int, ...] = ()
    rank: tuple[int, ...] = ()
    if shown:
        if shown != train:
            rows = _rows(spans, shown)
            states, actions = every_state.take(rows).numpy(), every_action.take(rows).numpy()
        targets = action_targets(states, actions, specs[0].state_names, specs[0].action_names)
        rank = action_rank(_whole_chunks(actions, [spans[n][1] for n in shown], config.chunk))
    kind = config.action_kind
    if kind == "auto":
        kind = next((s.action_kind for s in specs if s.action_kind != "unknown"), "auto")
    if kind == "auto":  # deltas are not guessed: too much looks like them
        kind = action_kind(targets, stats["action"]["std"]) if shown else "unknown"
    return {"stats": stats, "action_kind": kind, "action_targets": targets, "action_rank": rank}


def _rows(spans: dict[int, tuple[int, int]], episodes: Sequence[int]) -> np.ndarray:
    """The rows of some episodes, one after the other."""
    return np.concatenate(
        [np.arange(first, first + n) for first, n in map(spans.__getitem__, episodes)]
    )


def _fingerprint(
    sources: Sequence[Source], keys: Sequence[Keys], action_free: Sequence[Sequence[Episode]]
) -> str:
    content = repr([(s.fingerprint, k) for s, k in zip(sources, keys, strict=True)])
    # Only what differs from what is found without a word, so that fingerprints stay as they were.
    flags = [(role, getattr(k, role)) for k in keys for role in FLAGS]
    if any(name not in ("", FLAGS[role]) for role, name in flags):
        content += repr(flags)
    if any(action_free):
        content += repr([[e.number for e in listed] for listed in action_free])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _filled(actions: np.ndarray, spec: Spec) -> np.ndarray:
    """Zeros (of no memory) in place of the actions of a root that has none."""
    if actions.shape[1]:
        return actions
    return np.broadcast_to(np.float32(0), (len(actions), spec.action_dim))


def _whole_chunks(actions: np.ndarray, lengths: Sequence[int], chunk: int) -> np.ndarray:
    """Up to `RANK_WINDOWS` chunks ``[N, chunk, A]``, evenly spread, none past an episode's end.

    Args:
        actions: ``[frames, A]`` of episodes of these lengths, one after the other.
    """
    ends = np.repeat(np.cumsum(lengths), lengths)
    starts = np.flatnonzero(np.arange(len(actions)) + chunk <= ends)
    some = np.linspace(0, len(starts) - 1, min(len(starts), RANK_WINDOWS)).astype(np.int64)
    return actions[starts[some][:, None] + np.arange(chunk)]


def _spec(source: Source, keys: Keys, size: tuple[int, int]) -> Spec:
    """What a single root says about itself, but for tasks and statistics."""
    actions = source.features[keys.action] if keys.action else None
    return Spec(
        cameras=tuple(keys.images),
        image_size=size,
        state_names=dimension_names(source.features[keys.state], "state"),
        action_names=dimension_names(actions, "action") if actions else (),
        fps=source.fps,
        robot_type=source.robot_type,
        action_kind=recorded_kind(actions) if actions else "unknown",
    )


def follow_actions(specs: Sequence[Spec]) -> list[Spec]:
    """What actions are called and mean, where a root has none: as in the first one that has."""
    leader = next((spec for spec in specs if spec.action_names), specs[0])
    return [
        spec
        if spec.action_names
        else replace(spec, action_names=leader.action_names, action_kind=leader.action_kind)
        for spec in specs
    ]


def require_agreement(
    sources: Sequence[Source],
    specs: Sequence[Spec],
    may_differ: Sequence[str] = ("robot_type",),
) -> None:
    """Refuse roots that nothing can be learnt from together.

    Args:
        specs: of each source.
        may_differ: fields of a spec that are left out.

    Raises:
        RootsDisagreeError: the same dataset twice, or the first field that differs.
    """
    for (i, a), (j, b) in itertools.combinations(enumerate(sources), 2):
        if a.fingerprint == b.fingerprint:
            raise RootsDisagreeError(
                f"data.root holds the same dataset twice ({a.name} and {b.name}): episodes held "
                "out from one would be trained on in the other"
            )
        if i > 0:
            continue
        try:
            specs[0].require_same(specs[j], a.name, b.name, may_differ=may_differ)
        except SpecMismatchError as error:
            raise RootsDisagreeError(f"data.root: no common ground: {error}") from error
    if len({s.robot_type for s in sources}) > 1:
        types = ", ".join(f"{s.name}: {s.robot_type or 'none'}" for s in sources)
        log.warning("the roots name different robots (%s), though all else agrees", types)


def merge_tasks(sources: Sequence[Source]) -> tuple[tuple[str, ...], np.ndarray]:
    """Task texts of all roots without repetition, and the task of every row (-1: none)."""
    tasks: list[str] = []
    rows = []
    for source in sources:
        local = np.full(source.rows, -1, np.int64)
        if source.tasks:
            number = {-1: -1}
            for index, text in sorted(source.tasks.items()):
                if text and text not in tasks:
                    tasks.append(text)
                number[index] = tasks.index(text) if text else -1
            for where, columns in source.read(["task_index"]):
                indices = columns["task_index"].to_numpy(zero_copy_only=False)
                local[where] = [number[int(i)] for i in indices]
        rows.append(local)
    return tuple(tasks), np.concatenate(rows)


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
