"""The data order is a pure function of the step and visits everything equally often."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmodel.data import Order


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
