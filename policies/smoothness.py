"""How smooth a path is: jerk, spectral arc length, chunk seams and friends, in plain numpy.

Every function takes one path ``x`` of shape ``[T, D]`` (a vector is read as ``[T, 1]``), sampled at
`fs` Hz: measured positions, or the commands sent. Joint angles in rad give rad/s^3, positions in m
give m/s^3. Leave the gripper's column out before calling. Too short a path, or one that does not
move, has no smoothness: the answer is NaN, which callers count and leave out of averages.

Never compare across sampling rates: noise enters jerk with the third power of `fs`. And never read
smoothness alone: standing still is perfectly smooth.

=========================  ==========================  =======  ==================
metric                     function                    unit     smoother is
=========================  ==========================  =======  ==================
RMS jerk                   `rms_jerk`                  x/s^3    smaller
log dimensionless jerk     `ldlj`                      1        closer to 0 (< 0)
spectral arc length        `sparc`                     1        closer to 0 (< 0)
total variation            `action_tv`                 1        smaller
high-frequency share       `high_frequency_share`      1        smaller
chunk-boundary ratio       `chunk_boundary_ratio`      1        1 is seamless
limit violations           `limit_violations`          1        0
command-to-motion lag      `command_lag`               s        smaller
=========================  ==========================  =======  ==================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

STILL_SPEED = 1e-3
"""Peak speed (rad/s, or m/s) below which a path counts as standing still."""


def rms_jerk(x: ArrayLike, fs: float) -> float:
    """Root mean square of the jerk's norm: ``sqrt(mean_t ||third difference of x||^2) * fs^3``.

    Unit: that of x per s^3. Needs four samples, else NaN. Standing still gives 0.
    """
    path = _path(x, fs)
    if len(path) < 4:
        return math.nan
    jerk = np.diff(path, n=3, axis=0) * fs**3
    return float(np.sqrt(np.mean(np.sum(jerk**2, axis=1))))


def ldlj(x: ArrayLike, fs: float, still_speed: float = STILL_SPEED) -> float:
    """Log dimensionless jerk: ``-ln(D^3 / v_peak^2 * integral ||jerk||^2 dt)``, D the duration.

    Dimensionless, so it changes with neither the scale nor the pace of a movement. A minimum-jerk
    reach has -ln(204.8) = -5.32; less smooth is more negative. NaN when still or < 4 samples.

    Source: Balasubramanian, Melendez-Calderon, Roby-Brami, Burdet, "On the analysis of movement
    smoothness", J. NeuroEngineering and Rehabilitation 12 (2015).
    """
    path = _path(x, fs)
    if len(path) < 4:
        return math.nan
    velocity = np.diff(path, axis=0) * fs
    peak = float(np.max(np.linalg.norm(velocity, axis=1)))
    if peak < still_speed:
        return math.nan
    jerk = np.diff(velocity, n=2, axis=0) * fs**2
    duration = (len(path) - 1) / fs
    return -math.log(max(duration**3 / peak**2 * np.sum(jerk**2) / fs, np.finfo(float).tiny))


def sparc(
    x: ArrayLike,
    fs: float,
    *,
    max_frequency: float = 10.0,
    amplitude: float = 0.05,
    padding: int = 4,
    still_speed: float = STILL_SPEED,
) -> float:
    """Spectral arc length: minus the length of the curve that the speed's spectrum draws.

    The magnitude of the Fourier transform of the speed profile, zero-padded to 2^padding times the
    next power of two, divided by its value at 0 Hz, over frequencies divided by the band's width.
    The band ends at ``min(max_frequency, fs/2)``, or before it, at the last frequency whose
    magnitude still reaches `amplitude`. A one-second minimum-jerk reach reads about -1.4 at any
    rate; tremor lengthens the curve, so **less smooth is more negative**. NaN when still or < 3
    samples.

    Source: Balasubramanian et al. 2012 (IEEE TBME 59) and 2015.
    """
    path = _path(x, fs)
    if len(path) < 3:
        return math.nan
    speed = np.linalg.norm(np.diff(path, axis=0), axis=1) * fs
    if np.max(speed) < still_speed:
        return math.nan
    size = 2 ** (math.ceil(math.log2(len(speed))) + padding)
    magnitude = np.abs(np.fft.rfft(speed, size))
    magnitude /= np.max(magnitude)
    frequency = np.fft.rfftfreq(size, 1 / fs)
    band = frequency <= min(max_frequency, fs / 2)
    magnitude, frequency = magnitude[band], frequency[band]
    last = int(np.flatnonzero(magnitude >= amplitude)[-1])
    if last == 0:
        return math.nan
    magnitude, frequency = magnitude[: last + 1], frequency[: last + 1]
    steps = np.hypot(np.diff(frequency) / frequency[-1], np.diff(magnitude))
    return -float(np.sum(steps))


def action_tv(x: ArrayLike, span: ArrayLike, order: int = 1) -> float:
    """Total variation per step: ``mean |order-th difference of x| / span`` over steps and entries.

    For absolute position commands the first difference is speed, which is no fault, so report the
    second one (`order` 2: change of speed) beside it.

    Args:
        span: ``[D]`` or a scalar, the range of each entry (say, joint limits); must be > 0.
        order: 1 or 2.
    """
    path = _path(x, 1.0)
    width = np.asarray(span, np.float64)
    if order not in (1, 2):
        raise ValueError(f"expected order 1 or 2, found {order}")
    if not (np.isfinite(width).all() and (width > 0).all()):
        raise ValueError(f"expected a finite range > 0 for every entry, found {width.tolist()}")
    if len(path) <= order:
        return math.nan
    return float(np.mean(np.abs(np.diff(path, n=order, axis=0)) / width))


def high_frequency_share(x: ArrayLike, fs: float, cutoff: float = 3.0) -> float:
    """Power of the first difference of x above `cutoff` Hz, over its total power; in [0, 1].

    Powers come from the (unpadded, unwindowed) Fourier transform and are summed over entries.
    NaN when nothing moves or there are fewer than three samples.
    """
    path = _path(x, fs)
    if len(path) < 3:
        return math.nan
    steps = np.diff(path, axis=0)
    power = np.sum(np.abs(np.fft.rfft(steps, axis=0)) ** 2, axis=1)
    # A real signal's spectrum has two halves; only 0 Hz and (if present) fs/2 occur once.
    power[1 : -1 if len(steps) % 2 == 0 else None] *= 2
    total = power.sum()
    if total <= (STILL_SPEED / fs) ** 2:
        return math.nan
    return float(power[np.fft.rfftfreq(len(steps), 1 / fs) > cutoff].sum() / total)


def chunk_boundary_ratio(x: ArrayLike, starts: Sequence[int] | np.ndarray) -> float:
    """Mean step across chunk seams over the mean step within chunks; 1 is seamless.

    Args:
        x: ``[T, D]``, row t being what step t commanded (or where step t led).
        starts: steps whose action was the first of a new chunk; step 0 is no seam.

    NaN without a seam, without a step inside a chunk, or when nothing moves within chunks.
    """
    path = _path(x, 1.0)
    first = np.asarray(starts, np.int64)
    if first.size and (first.min() < 0 or first.max() >= len(path)):
        raise ValueError(f"chunk starts must lie in 0 ... {len(path) - 1}, found {first.tolist()}")
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    seam = np.zeros(len(steps), bool)
    seam[first[first > 0] - 1] = True
    if not seam.any() or seam.all():
        return math.nan
    within = float(steps[~seam].mean())
    return float(steps[seam].mean()) / within if within > 0 else math.nan


@dataclass(frozen=True)
class MotionLimits:
    """What the joints may do at most, ``[D]`` each: speed, its rate, and the rate of that."""

    velocity: Sequence[float]
    acceleration: Sequence[float]
    jerk: Sequence[float]


def limit_violations(x: ArrayLike, fs: float, limits: MotionLimits) -> dict[str, float]:
    """Share of steps on which any entry exceeds its limit, by finite differences.

    Returns:
        ``{"velocity", "acceleration", "jerk"}`` -> share in [0, 1]; NaN where x is too short.
    """
    path = _path(x, fs)
    shares = {}
    for order, name in enumerate(("velocity", "acceleration", "jerk"), start=1):
        bound = np.asarray(getattr(limits, name), np.float64)
        if bound.shape != (path.shape[1],):
            raise ValueError(
                f"expected {path.shape[1]} {name} limits, one per column, found {bound.shape}"
            )
        rate = np.abs(np.diff(path, n=order, axis=0)) * fs**order
        shares[name] = float(np.mean((rate > bound).any(axis=1))) if len(rate) else math.nan
    return shares


def command_lag(
    commands: ArrayLike, positions: ArrayLike, fs: float, max_lag: float = 1.0
) -> float:
    """Seconds by which the measured motion trails the commands, by cross-correlation.

    The delay that maximises ``sum_t <command step t, position step t + delay>`` over whole samples
    up to `max_lag`, each delay normalised by the energy of its overlap, refined by a parabola
    through the best sample and its neighbours. Row t of both paths belongs to time t / fs: the
    position as measured when the command was sent. NaN when either stands still.
    """
    sent, seen = _path(commands, fs), _path(positions, fs)
    if sent.shape != seen.shape:
        raise ValueError(f"commands {sent.shape} and positions {seen.shape} differ in shape")
    if len(sent) < 4:
        return math.nan
    sent, seen = np.diff(sent, axis=0), np.diff(seen, axis=0)
    still = STILL_SPEED / fs
    if np.linalg.norm(sent, axis=1).max() < still or np.linalg.norm(seen, axis=1).max() < still:
        return math.nan
    # At least half of the path must overlap, or a few samples would decide.
    delays = range(min(round(max_lag * fs), len(sent) // 2) + 1)
    scores = np.array([_cosine(sent[: len(sent) - d], seen[d:]) for d in delays])
    best = int(np.argmax(scores))
    offset = 0.0
    if 0 < best < len(scores) - 1:
        before, peak, after = scores[best - 1 : best + 2]
        bend = before - 2 * peak + after
        offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return (best + offset) / fs


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    norm = math.sqrt(float(np.sum(a * a)) * float(np.sum(b * b)))
    return float(np.sum(a * b)) / norm if norm > 0 else 0.0


def _path(x: ArrayLike, fs: float) -> np.ndarray:
    """x as float64 ``[T, D]``, checked."""
    path = np.asarray(x, np.float64)
    if path.ndim == 1:
        path = path[:, None]
    if path.ndim != 2:
        raise ValueError(f"expected a path [T, D], found shape {path.shape}")
    if fs <= 0:
        raise ValueError(f"expected a sampling rate > 0 Hz, found {fs}")
    if not np.isfinite(path).all():
        t, d = np.argwhere(~np.isfinite(path))[0]
        raise ValueError(f"the path is {path[t, d]} at step {t}, column {d}; expected numbers")
    return path
