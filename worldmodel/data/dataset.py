"""Open demonstrations: find them, check them, cache their frames, split them, cut windows."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..types import Spec, SpecMismatchError
from .cache import open_cache
from .config import DataConfig
from .errors import DatasetError, EmptyError, RootsDisagreeError
from .keys import Keys, dimension_names, resolve_keys
from .source import Episode, Source, open_source
from .stats import action_kind, action_rank, action_targets, require_finite, statistics
from .video import require_whole_clips
from .windows import Rows, Windows

log = logging.getLogger(__name__)

RANK_WINDOWS = 2048  # windows that tell how smooth the demonstrated chunks are


@dataclass(frozen=True)
class Data:
    """Demonstrations, ready to learn from.

    Attributes:
        spec: facts of the data; its statistics are those of the training episodes.
        train, validation: windows of the two splits; the latter may be empty.
        train_episodes, validation_episodes: their episodes, ascending. With several roots,
            episodes are numbered through all of them in order.
        fingerprint: of the content of the roots and the chosen keys; equal for copies.
        keys: feature keys of each root, in order.
        roots: as the user gave them.
    """

    spec: Spec
    train: Windows
    validation: Windows
    train_episodes: list[int]
    validation_episodes: list[int]
    fingerprint: str
    keys: tuple[Keys, ...]
    roots: tuple[str, ...]

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
    config.check()
    size = config.size()
    sources = [open_source(root) for root in config.roots()]
    keys = [resolve_keys(s.features, config.keys, s.name) for s in sources]
    specs = [_spec(s, k, size) for s, k in zip(sources, keys, strict=True)]
    require_agreement(sources, specs)

    chosen = choose_episodes(sources, config.episodes)
    for source, key, episodes in zip(sources, keys, chosen, strict=True):
        for camera in key.images.values():
            require_whole_clips(source, camera, episodes)

    directory = Path(config.cache_dir).expanduser() if config.cache_dir else None
    caches = [
        open_cache(source, key, size, directory, progress=progress)
        for source, key in zip(sources, keys, strict=True)
    ]
    for source, key, cache, episodes in zip(sources, keys, caches, chosen, strict=True):
        for values, name, names in (
            (cache.state, key.state, specs[0].state_names),
            (cache.action, key.action, specs[0].action_names),
        ):
            require_finite(values, episodes, names, name, source.name)

    spans = _number_through(sources, chosen)
    train, validation = split_episodes(list(spans), config.validation, config.split_seed)
    tasks, task = merge_tasks(sources)
    frames = {c: Rows([cache.frames[c] for cache in caches]) for c in specs[0].cameras}
    state, action = Rows([c.state for c in caches]), Rows([c.action for c in caches])
    past = np.arange(1 - config.past, 1) * config.past_stride
    future = np.arange(1, config.future + 1) * config.future_stride

    def windows(numbers: list[int]) -> Windows:
        where = [(n, *spans[n]) for n in numbers]
        return Windows(frames, state, action, task, where, past, future, config.chunk)

    rows = np.concatenate([np.arange(start, start + n) for start, n in (spans[e] for e in train)])
    states, actions = state.take(rows).numpy(), action.take(rows).numpy()
    stats = {"state": statistics(states), "action": statistics(actions)}
    targets = action_targets(states, actions, specs[0].state_names, specs[0].action_names)
    kind = config.action_kind
    if kind == "auto":  # deltas are not guessed: too much looks like them
        kind = action_kind(targets, stats["action"]["std"])
    training = windows(train)
    robots = {s.robot_type for s in sources}
    spec = Spec(
        cameras=specs[0].cameras,
        image_size=size,
        state_names=specs[0].state_names,
        action_names=specs[0].action_names,
        fps=specs[0].fps,
        tasks=tasks,
        stats=stats,
        robot_type=robots.pop() if len(robots) == 1 else "",
        action_kind=kind,
        action_targets=targets,
        action_rank=action_rank(_whole_chunks(actions, [spans[e][1] for e in train], config.chunk)),
    )
    content = repr([(s.fingerprint, k) for s, k in zip(sources, keys, strict=True)])
    return Data(
        spec=spec,
        train=training,
        validation=windows(validation),
        train_episodes=train,
        validation_episodes=validation,
        fingerprint=hashlib.sha256(content.encode()).hexdigest()[:16],
        keys=tuple(keys),
        roots=tuple(s.name for s in sources),
    )


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
