"""Open demonstrations: find them, check them, cache their frames, split them, cut windows."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..types import Spec, SpecMismatchError
from .cache import open_cache
from .config import DataConfig
from .errors import DatasetError, EmptyError, RootsDisagreeError
from .keys import Keys, dimension_names, recorded_kind, resolve_keys
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
        fingerprint: of the content of the roots and the chosen keys; equal for copies.
        keys: feature keys of each root, in order.
        roots: as the user gave them.
    """

    spec: Spec
    train_episodes: list[int]
    validation_episodes: list[int]
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
            f"  fingerprint {self.fingerprint}",
        ]
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
    vectors = [(cache.state, cache.action) for cache in caches]
    spans, task, facts = _facts(config, opened, vectors)
    frames = {c: Rows([cache.frames[c] for cache in caches]) for c in facts.spec.cameras}
    state, action = Rows([c.state for c in caches]), Rows([c.action for c in caches])
    past = np.arange(1 - config.past, 1) * config.past_stride
    future = np.arange(1, config.future + 1) * config.future_stride

    def windows(numbers: list[int]) -> Windows:
        where = [(n, *spans[n]) for n in numbers]
        return Windows(frames, state, action, task, where, past, future, config.chunk)

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
    vectors = [
        (source.vectors(key.state), source.vectors(key.action))
        for source, key in zip(opened.sources, opened.keys, strict=True)
    ]
    return _facts(config, opened, vectors)[2]


class _Opened(NamedTuple):
    """Roots that were found, understood and agree."""

    sources: list[Source]
    keys: list[Keys]
    specs: list[Spec]
    chosen: list[list[Episode]]


def _open(config: DataConfig) -> _Opened:
    config.check()
    sources = [open_source(root) for root in config.roots()]
    keys = [resolve_keys(s.features, config.keys, s.name) for s in sources]
    specs = [_spec(s, k, config.size()) for s, k in zip(sources, keys, strict=True)]
    # A kind that the user states overrules what the roots say of themselves.
    stated = () if config.action_kind == "auto" else ("action_kind",)
    require_agreement(sources, specs, ("robot_type", *stated))
    return _Opened(sources, keys, specs, choose_episodes(sources, config.episodes))


def _facts(
    config: DataConfig, opened: _Opened, vectors: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[dict[int, tuple[int, int]], np.ndarray, Facts]:
    """Split the episodes and measure those that are for training.

    Args:
        vectors: states and actions of each root, ``[rows, dimensions]``.

    Returns:
        First row and length of every episode, the task of every row, and the facts.
    """
    sources, keys, specs, chosen = opened
    for source, key, episodes, (states, actions) in zip(
        sources, keys, chosen, vectors, strict=True
    ):
        for values, name, names in (
            (states, key.state, specs[0].state_names),
            (actions, key.action, specs[0].action_names),
        ):
            require_finite(values, episodes, names, name, source.name)

    spans = _number_through(sources, chosen)
    train, validation = split_episodes(list(spans), config.validation, config.split_seed)
    tasks, task = merge_tasks(sources)
    rows = np.concatenate([np.arange(start, start + n) for start, n in (spans[e] for e in train)])
    states, actions = (Rows(parts).take(rows).numpy() for parts in zip(*vectors, strict=True))
    stats = {"state": statistics(states), "action": statistics(actions)}
    targets = action_targets(states, actions, specs[0].state_names, specs[0].action_names)
    kind = config.action_kind
    if kind == "auto":
        kind = next((s.action_kind for s in specs if s.action_kind != "unknown"), "auto")
    if kind == "auto":  # deltas are not guessed: too much looks like them
        kind = action_kind(targets, stats["action"]["std"])
    robots = {s.robot_type for s in sources}
    spec = replace(
        specs[0],
        tasks=tasks,
        stats=stats,
        robot_type=robots.pop() if len(robots) == 1 else "",
        action_kind=kind,
        action_targets=targets,
        action_rank=action_rank(_whole_chunks(actions, [spans[e][1] for e in train], config.chunk)),
    )
    content = repr([(s.fingerprint, k) for s, k in zip(sources, keys, strict=True)])
    facts = Facts(
        spec=spec,
        train_episodes=train,
        validation_episodes=validation,
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        keys=tuple(keys),
        roots=tuple(s.name for s in sources),
    )
    return spans, task, facts


def _whole_chunks(actions: np.ndarray, lengths: Sequence[int], chunk: int) -> np.ndarray:
    """Up to `RANK_WINDOWS` chunks ``[N, chunk, A]``, evenly spread, none past an episode's end.

    Args:
        actions: ``[frames, A]`` of episodes of these lengths, one after the other.
    """
    ends = np.repeat(np.cumsum(lengths), lengths)
    starts = np.flatnonzero(np.arange(len(actions)) + chunk <= ends)
    some = np.linspace(0, len(starts) - 1, min(len(starts), RANK_WINDOWS)).astype(np.int64)
    return actions[starts[some][:, None] + np.arange(chunk)]


def split_episodes(episodes: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold out a share of the episodes, at random by `seed`.

    At least one is held out of two or more (unless share is 0), and at least one is left.

    Returns:
        Training and validation episodes, ascending, disjoint, together all.
    """
    count = 0
    if share > 0 and len(episodes) > 1:
        count = min(max(1, round(share * len(episodes))), len(episodes) - 1)
    held = set(np.random.default_rng(seed).permutation(np.array(episodes))[:count].tolist())
    return [e for e in sorted(episodes) if e not in held], sorted(held)


def _spec(source: Source, keys: Keys, size: tuple[int, int]) -> Spec:
    """What a single root says about itself, but for tasks and statistics."""
    return Spec(
        cameras=tuple(keys.images),
        image_size=size,
        state_names=dimension_names(source.features[keys.state], "state"),
        action_names=dimension_names(source.features[keys.action], "action"),
        fps=source.fps,
        robot_type=source.robot_type,
        action_kind=recorded_kind(source.features[keys.action]),
    )


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


def choose_episodes(sources: Sequence[Source], wanted: object) -> list[list[Episode]]:
    """The episodes to use, of every root.

    Raises:
        DatasetError: malformed or unknown numbers.
        EmptyError: none is left.
    """
    per_root: list[object]
    if len(sources) == 1:
        per_root = [wanted]
    elif wanted is None:
        per_root = [None] * len(sources)
    else:
        per_root = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
        if len(per_root) != len(sources) or any(isinstance(w, int) for w in per_root):
            raise DatasetError(
                f"data.episodes is {wanted!r}; with {len(sources)} roots it takes one list (or "
                "null for all) a root, as [[0,1],null]"
            )
    chosen: list[list[Episode]] = []
    for source, numbers in zip(sources, per_root, strict=True):
        if numbers is None:
            chosen.append(list(source.episodes))
            continue
        if not isinstance(numbers, (list, tuple)) or not all(type(n) is int for n in numbers):
            raise DatasetError(f"data.episodes is {numbers!r}; it takes numbers, as [0,1,5]")
        existing = {e.number for e in source.episodes}
        if unknown := sorted(set(numbers) - existing):
            raise DatasetError(
                f"data.episodes: {source.name} has no episodes {unknown}; it has "
                f"{len(existing)}, {min(existing)} to {max(existing)}"
            )
        chosen.append([e for e in source.episodes if e.number in set(numbers)])
    if not any(chosen):
        raise EmptyError("data.episodes leaves no episode")
    return chosen


def _number_through(
    sources: Sequence[Source], chosen: Sequence[Sequence[Episode]]
) -> dict[int, tuple[int, int]]:
    """First row and length of the chosen episodes, episodes and rows counted through all roots."""
    spans: dict[int, tuple[int, int]] = {}
    number = row = 0
    for source, episodes in zip(sources, chosen, strict=True):
        wanted = set(episodes)
        for i, episode in enumerate(source.episodes, start=number):
            if episode in wanted:
                spans[i] = (row + episode.start, episode.length)
        number += len(source.episodes)
        row += source.rows
    return spans


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
