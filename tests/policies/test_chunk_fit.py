"""Fitting chunks: what a polynomial follows stays, what it does not goes, what is known goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.chunk_fit import fit_chunk, fit_matrix
from policies.smoothness import rms_jerk

FS = 20.0


def draw(batch: int, steps: int, dimensions: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, steps, dimensions))


def polynomials(rank: int, steps: int, seed: int = 0) -> np.ndarray:
    """Four paths ``[4, steps, 2]``, each a polynomial of `rank` coefficients."""
    coefficients = draw(4, rank, 2, seed)
    powers = np.linspace(-1, 1, steps)[:, None] ** np.arange(rank)
    return np.einsum("tr,bra->bta", powers, coefficients)


def ranks(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# --- the fit -------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rank=st.integers(1, 8),
    known=st.integers(0, 5),
    new=st.integers(1, 20),
    weight=st.sampled_from([0.01, 1.0, 100.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_a_polynomial_comes_back_whatever_its_weights(rank, known, new, weight, seed) -> None:
    path = polynomials(rank, known + new, seed)
    fitted = fit_chunk(path[:, known:], path[:, :known], ranks(rank, rank + 1), weight)
    np.testing.assert_allclose(fitted, path[:, known:], atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 4, 7])
@pytest.mark.parametrize("known", [0, 1, 3])
@pytest.mark.parametrize("weight", [0.5, 1.0, 100.0])
def test_the_fit_is_the_best_polynomial_of_that_many_coefficients(
    rank: int, known: int, weight: float
) -> None:
    path = draw(3, known + 16, 2)
    fitted = fit_chunk(path[:, known:], path[:, :known], ranks(rank, rank), weight)
    steps = np.arange(-known, 16) / 16
    root = np.sqrt(np.r_[np.full(known, weight), np.ones(16)])  # numpy weighs before squaring
    for row, found in zip(path, fitted, strict=True):
        best = np.polynomial.polynomial.polyfit(steps, row, rank - 1, w=root)
        expected = np.polynomial.polynomial.polyval(steps[known:], best).T
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(np.diff(fitted, n=rank, axis=1)).max() < 1e-9
    assert np.abs(np.diff(fitted, n=rank - 1, axis=1)).max() > 1e-5


@settings(max_examples=40)
@given(rank=st.integers(0, 20), known=st.integers(0, 4), weight=st.floats(0.1, 1e4))
def test_the_fit_is_linear(rank: int, known: int, weight: float) -> None:
    a, b = draw(2, known + 12, 3, seed=1), draw(2, known + 12, 3, seed=2)

    def fit(path: np.ndarray) -> np.ndarray:
        return fit_chunk(path[:, known:], path[:, :known], ranks(rank, 3, 5), weight)

    np.testing.assert_allclose(fit(2 * a - 3 * b), 2 * fit(a) - 3 * fit(b), atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3, 6, 12])
def test_a_fit_fits_itself(rank: int) -> None:
    new, nothing = draw(4, 12, 2), np.zeros((4, 0, 2))
    once = fit_chunk(new, nothing, ranks(rank, rank), 1.0)
    np.testing.assert_allclose(fit_chunk(once, nothing, ranks(rank, rank), 1.0), once, atol=1e-9)
    # Its own beginning, taken for known, changes nothing either.
    again = fit_chunk(once[:, 4:], once[:, :4], ranks(rank, rank), 100.0)
    np.testing.assert_allclose(again, once[:, 4:], atol=1e-8)


@pytest.mark.parametrize("known", [0, 3])
@pytest.mark.parametrize("weight", [1.0, 100.0])
def test_as_many_coefficients_as_commands_change_nothing(known: int, weight: float) -> None:
    new, before = draw(2, 16, 3), draw(2, known, 3, seed=1)
    fitted = fit_chunk(new, before, ranks(known + 16, known + 17, 1000), weight)
    np.testing.assert_allclose(fitted, new, atol=1e-8)
    fewer = fit_chunk(new, before, np.full(3, known + 15), weight)
    assert np.abs(fewer - new).max() > 1e-3


# --- what is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dimension_without_a_rank_stays_bit_for_bit(dtype: Any) -> None:
    new, known = draw(3, 16, 4).astype(dtype), draw(3, 3, 4, seed=1).astype(dtype)
    fitted = fit_chunk(new, known, ranks(0, 4, 0, 2), 100.0)
    assert fitted.dtype == dtype
    assert np.array_equal(fitted[..., [0, 2]], new[..., [0, 2]])
    assert (np.abs(fitted - new)[..., [1, 3]].max((0, 1)) > 0.1).all()
    assert np.array_equal(fit_chunk(new, known, ranks(0, 0, 0, 0), 100.0), new)


def test_dimensions_and_samples_are_fitted_apart() -> None:
    """Alone or together, in any order: the same bits."""
    new, known = (draw(9, n, 3).astype(np.float32) for n in (16, 3))
    rank = ranks(4, 6, 4)
    together = fit_chunk(new, known, rank, 100.0)
    for i in range(9):
        assert np.array_equal(fit_chunk(new[[i]], known[[i]], rank, 100.0), together[[i]])
    for d in range(3):
        alone = fit_chunk(new[..., [d]], known[..., [d]], rank[[d]], 100.0)
        assert np.array_equal(alone, together[..., [d]])
    order = np.random.default_rng(0).permutation(9)
    assert np.array_equal(fit_chunk(new[order], known[order], rank, 100.0), together[order])


def test_what_was_sampled_and_executed_is_not_written_to() -> None:
    new, known = draw(2, 8, 2), draw(2, 3, 2)
    kept = new.copy(), known.copy()
    fitted = fit_chunk(new, known, ranks(3, 0), 100.0)
    assert not np.shares_memory(fitted, new)
    assert np.array_equal(new, kept[0])
    assert np.array_equal(known, kept[1])
    with pytest.raises(ValueError, match="read-only"):  # the same matrix serves every chunk
        fit_matrix(3, 3, 8, 100.0)[:] = 0


# --- what is known goes on -----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [3, 4, 6])
def test_three_heavy_commands_pass_on_position_speed_and_acceleration(rank: int) -> None:
    new, known = draw(4, 16, 2), draw(4, 3, 2, seed=1)
    fitted = fit_chunk(new, known, ranks(rank, rank), 1e10)
    assert np.abs(np.diff(fitted, n=rank, axis=1)).max() < 1e-6
    # The one polynomial through the new commands also goes through all three known ones.
    steps = np.arange(16) / 16
    for row, before in zip(fitted, known, strict=True):
        found = np.polynomial.polynomial.polyfit(steps, row, rank - 1)
        back = np.polynomial.polynomial.polyval(np.arange(-3, 0) / 16, found).T
        np.testing.assert_allclose(back, before, atol=1e-4)


def test_the_heavier_the_known_commands_the_closer_the_fit_continues_them() -> None:
    new, known = draw(64, 16, 1), np.zeros((64, 3, 1))
    jumps = [
        float(np.abs(fit_chunk(new, known, ranks(5), weight)[:, 0]).mean())
        for weight in (0.01, 1.0, 100.0, 1e4)
    ]
    assert jumps == sorted(jumps, reverse=True)
    assert jumps[-1] < 0.1 * jumps[0]


def test_known_commands_are_read_oldest_first() -> None:
    """A ramp goes on as a ramp; read backwards it would turn round."""
    ramp = np.arange(-3.0, 0.0)[None, :, None]
    fitted = fit_chunk(np.zeros((1, 8, 1)), ramp, ranks(2), 1e10)
    np.testing.assert_allclose(fitted[0, :, 0], np.arange(8.0), atol=1e-4)


# --- what it is for ------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [0, 3])
def test_noise_goes_and_the_movement_stays(known: int) -> None:
    s = np.linspace(0, 1, known + 16)
    reach = 10 * s**3 - 15 * s**4 + 6 * s**5  # minimum jerk
    truth = np.repeat(reach[None, :, None], 64, axis=0)
    sampled = truth[:, known:] + 0.02 * draw(64, 16, 1)
    fitted = fit_chunk(sampled, truth[:, :known], ranks(6), 100.0)

    def jerk(chunks: np.ndarray) -> float:
        whole = np.concatenate([truth[:, :known], chunks], axis=1)
        return float(np.mean([rms_jerk(chunk, FS) for chunk in whole]))

    def error(chunks: np.ndarray) -> float:
        return float(np.sqrt(np.square(chunks - truth[:, known:]).mean()))

    assert jerk(fitted) < 0.25 * jerk(sampled)
    # 6 of 16 numbers are kept, and with them that share of the noise's variance, or less of it.
    assert error(fitted) < 1.05 * error(sampled) * np.sqrt(6 / 16)


def test_any_number_of_coefficients_from_the_user_is_safe() -> None:
    new, known = draw(2, 64, 3), draw(2, 3, 3, seed=1)
    assert np.array_equal(fit_chunk(new, known, ranks(1000, 67, 68), 100.0), new)
    nearly = fit_chunk(new, known, ranks(60, 60, 60), 1.0)
    assert np.abs(nearly).max() < 10 * np.abs(new).max()
