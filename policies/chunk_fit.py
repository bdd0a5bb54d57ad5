"""Chunks as smooth as the demonstrations: a polynomial per joint instead of K free numbers.

A chunk is sampled token by token, and each token is off by a little of its own. Half a second of a
demonstrated joint is, to a fraction of a percent, a polynomial of a few coefficients, so that what
a least-squares fit of that many coefficients leaves out is error and not intent. Commands that the
arm has executed already, or that are committed, enter the same fit with a larger weight: the new
chunk goes on where the old one is, at its speed, instead of jumping.

How many coefficients each dimension needs is measured on the demonstrations (``Spec.action_rank``);
a dimension that no polynomial follows, such as a switching gripper, is left as it was sampled.
"""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def fit_matrix(rank: int, known: int, new: int, weight: float) -> np.ndarray:
    """The linear map from commands to their weighted polynomial fit.

    Args:
        rank: coefficients of the polynomial; more than there are commands means exactly through
            all of them.
        known: commands before the new ones, at unit distance.
        new: commands to be fitted.
        weight: of a known command; a new one has weight 1.

    Returns:
        ``[new, known + new]``, float64.
    """
    steps = np.linspace(-1, 1, known + new)
    if rank >= known + new:
        return np.eye(known + new)[known:]
    basis = np.linalg.qr(np.polynomial.legendre.legvander(steps, rank - 1))[0]
    root = np.sqrt(np.r_[np.full(known, weight), np.ones(new)])[:, None]
    solution = basis @ np.linalg.pinv(root * basis) * root.T
    solution.setflags(write=False)
    return solution[known:]


def fit_chunk(new: np.ndarray, known: np.ndarray, rank: np.ndarray, weight: float) -> np.ndarray:
    """Replace sampled actions by their fit.

    Args:
        new: sampled actions ``[B, n, A]``.
        known: the commands before them ``[B, h, A]``, the newest last; h may be 0.
        rank: int ``[A]``, coefficients per dimension; 0 leaves a dimension as it is.
        weight: of a known command.

    Returns:
        ``[B, n, A]``, the same dtype.
    """
    out = new.copy()
    together = np.concatenate([known, new], axis=1)
    for r in np.unique(rank[rank > 0]):
        matrix = fit_matrix(int(r), known.shape[1], new.shape[1], weight)
        out[..., rank == r] = np.einsum("nk,bka->bna", matrix, together[..., rank == r])
    return out
