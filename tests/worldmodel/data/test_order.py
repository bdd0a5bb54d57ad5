"""The data order is a pure function of the step and visits everything equally often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data import Order, Orders, members
from worldmodel.data.errors import EmptyError
from worldmodel.data.order import SOURCES
from worldmodel.data.windows import Rows, Windows


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 50), batch_size=st.integers(1, 60), seed=st.integers(0, 9))
def test_any_step_asked_alone_equals_the_run(n: int, batch_size: int, seed: int) -> None:
    run = Order(n, batch_size, seed)
    batches = [run.batch(step) for step in range(12)]
    for step in (7, 0, 11, 3):
        assert np.array_equal(Order(n, batch_size, seed).batch(step), batches[step])
        assert np.array_equal(run.batch(step), batches[step])
    assert all(b.dtype == np.int64 and b.shape == (batch_size,) for b in batches)
    assert all(0 <= b.min() <= b.max() < n for b in batches)


def test_an_epoch_repeats_nothing_and_the_next_is_ordered_anew() -> None:
    order = Order(100, 32, seed=3)
    assert order.batches_per_epoch == 3
    first = np.concatenate([order.batch(s) for s in range(3)])
    second = np.concatenate([order.batch(s) for s in range(3, 6)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 96
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.concatenate([Order(100, 32, 4).batch(s) for s in range(3)]))


def test_data_smaller_than_a_batch_is_seen_evenly() -> None:
    order = Order(5, 8, seed=0)
    counts = np.bincount(np.concatenate([order.batch(s) for s in range(5)]), minlength=5)
    assert counts.tolist() == [8] * 5


def test_changing_a_batch_does_not_change_the_order() -> None:
    order = Order(10, 4, seed=0)
    before = order.batch(0).copy()
    order.batch(0)[:] = 0
    assert np.array_equal(order.batch(0), before)


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0)])
def test_nothing_to_order(n: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least one window"):
        Order(n, batch_size, 0)


# --- populations ---------------------------------------------------------------------------------

LENGTHS = (4, 7, 5, 6)


def windows(has_action: list[bool] | None, demonstrated: list[bool] | None) -> Windows:
    """Four episodes of which some have actions, and some are demonstrations."""
    rows = Rows([np.zeros((sum(LENGTHS), 1), np.float32)])
    starts = np.cumsum(LENGTHS) - LENGTHS
    return Windows(
        frames={},
        state=rows,
        action=rows,
        task=np.zeros(sum(LENGTHS), np.int64),
        episodes=[(i, int(starts[i]), n) for i, n in enumerate(LENGTHS)],
        past_offsets=np.array([0]),
        future_offsets=np.array([1]),
        chunk=2,
        has_action=has_action,
        demonstrated=demonstrated,
    )


@pytest.mark.parametrize("batch_size", [3, 8, 40])
def test_a_population_of_all_windows_has_the_very_order_of_them(batch_size: int) -> None:
    """So that a run on demonstrations alone is the run that it was."""
    every, plain = windows(None, None), Order(sum(LENGTHS), batch_size, 5)
    orders = Orders(every, batch_size, 5, SOURCES)
    for step in range(10):
        for source in SOURCES:
            assert np.array_equal(orders.batch(source, step), plain.batch(step))


def test_each_population_is_seen_evenly_and_nothing_else() -> None:
    mixed = windows([True, False, True, True], [True, True, False, True])
    wanted = {"any": {0, 1, 2, 3}, "has_action": {0, 2, 3}, "demonstrated": {0, 3}}
    orders = Orders(mixed, 5, 2, SOURCES)
    for source, episodes in wanted.items():
        there = members(mixed, source)
        assert set(mixed.episode_of[there]) == episodes
        assert np.array_equal(there, np.flatnonzero(np.isin(mixed.episode_of, list(episodes))))
        epoch = len(there) // 5
        seen = np.concatenate([orders.batch(source, step) for step in range(epoch)])
        assert len(set(seen.tolist())) == len(seen) == 5 * epoch
        assert set(seen.tolist()) <= set(there.tolist())
        assert seen.dtype == np.int64


def test_the_order_of_a_population_does_not_depend_on_what_else_is_asked_for() -> None:
    mixed = windows([True, False, True, True], [True, True, False, True])
    alone, beside = Orders(mixed, 4, 0, ["demonstrated"]), Orders(mixed, 4, 0, SOURCES)
    for step in range(6):
        beside.batch("any", step)
        assert np.array_equal(alone.batch("demonstrated", step), beside.batch("demonstrated", step))


def test_a_population_of_nothing_is_named_where_it_is_needed() -> None:
    explored = windows(None, [False] * 4)
    Orders(explored, 4, 0, ["any", "has_action"])
    with pytest.raises(EmptyError, match="no training window is of a demonstration.*patterns"):
        Orders(explored, 4, 0, SOURCES)
    watched = windows([False] * 4, None)
    Orders(watched, 4, 0, ["any"])
    with pytest.raises(EmptyError, match="no training window is of an episode with actions"):
        Orders(watched, 4, 0, ["any", "has_action"])
