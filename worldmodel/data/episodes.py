"""Which episodes: those to use, of what kind they are, and which are held out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .errors import DatasetError, EmptyError
from .keys import Keys
from .labels import exploratory_episodes
from .source import Episode, Source


class Kinds(NamedTuple):
    """Numbers of episodes, ascending; with several roots they count through all of them.

    Attributes:
        demonstrated: their actions are to be imitated.
        exploratory: they have actions, which are nothing to imitate.
        action_free: they have none.
    """

    demonstrated: list[int]
    exploratory: list[int]
    action_free: list[int]


def choose_episodes(sources: Sequence[Source], wanted: object) -> list[list[Episode]]:
    """The episodes to use, of every root.

    Raises:
        DatasetError: malformed or unknown numbers.
        EmptyError: none is left.
    """
    listed = _listed(sources, wanted, "data.episodes", "all")
    chosen = [
        list(source.episodes) if some is None else some
        for source, some in zip(sources, listed, strict=True)
    ]
    if not any(chosen):
        raise EmptyError("data.episodes leaves no episode")
    return chosen


def list_action_free(
    sources: Sequence[Source], keys: Sequence[Keys], wanted: object
) -> list[list[Episode]]:
    """The episodes of every root that have no actions, or are to be taken as if they had none.

    Raises:
        DatasetError: malformed or unknown numbers.
    """
    listed = _listed(sources, wanted, "data.action_free", "none")
    return [
        (some or []) if key.action else list(source.episodes)
        for source, key, some in zip(sources, keys, listed, strict=True)
    ]


def _listed(
    sources: Sequence[Source], wanted: object, field: str, null: str
) -> list[list[Episode] | None]:
    """What a setting lists of every root; None where it says null, which means `null`."""
    per_root: list[object]
    if len(sources) == 1:
        per_root = [wanted]
    elif wanted is None:
        per_root = [None] * len(sources)
    else:
        per_root = list(wanted) if isinstance(wanted, (list, tuple)) else [wanted]
        if len(per_root) != len(sources) or any(isinstance(w, int) for w in per_root):
            raise DatasetError(
                f"{field} is {wanted!r}; with {len(sources)} roots it takes one list (or null for "
                f"{null}) a root, as [[0,1],null]"
            )
    listed: list[list[Episode] | None] = []
    for source, numbers in zip(sources, per_root, strict=True):
        if numbers is None:
            listed.append(None)
            continue
        if not isinstance(numbers, (list, tuple)) or not all(type(n) is int for n in numbers):
            raise DatasetError(f"{field} is {numbers!r}; it takes numbers, as [0,1,5]")
        existing = {e.number for e in source.episodes}
        if unknown := sorted(set(numbers) - existing):
            raise DatasetError(
                f"{field}: {source.name} has no episodes {unknown}; it has "
                f"{len(existing)}, {min(existing)} to {max(existing)}"
            )
        listed.append([e for e in source.episodes if e.number in set(numbers)])
    return listed


def number_through(
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


def kinds_of(
    sources: Sequence[Source],
    keys: Sequence[Keys],
    used: Sequence[int],
    action_free: Sequence[Sequence[Episode]],
) -> Kinds:
    """Sort the episodes that are used by what their actions are good for.

    Args:
        used: their numbers, counted through all roots.
        action_free: see `list_action_free`.

    Raises:
        EmptyError: none has actions.
    """
    every = [e for source in sources for e in source.episodes]
    without = set(itertools.chain(*action_free))
    free = [n for n in used if every[n] in without]
    if len(free) == len(used):
        raise EmptyError(
            f"none of the {len(used)} episodes has actions (data.action_free, data.episodes): "
            "episodes without actions are learnt from beside others that have some"
        )
    marked = set(itertools.chain(*map(exploratory_episodes, sources, keys)))
    acting = [n for n in used if every[n] not in without]
    return Kinds(
        demonstrated=[n for n in acting if every[n] not in marked],
        exploratory=[n for n in acting if every[n] in marked],
        action_free=free,
    )


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


def split_kinds(
    kinds: Sequence[Sequence[int]], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """`split_episodes` of every kind of episodes alone, so that both splits hold of each."""
    splits = [split_episodes(episodes, share, seed) for episodes in kinds if episodes]
    train, validation = (sorted(itertools.chain(*part)) for part in zip(*splits, strict=True))
    return train, validation
