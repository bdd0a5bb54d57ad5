"""What there is to know about a recording before a model learns from it, as numbers.

`inspect_recording` reads no pictures; `sample_frames` decodes a few, and `inspect_cameras` judges
them. Everything that is returned is JSON-ready; what does not exist is None.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BrokenError
from .recording import Recording, Span
from .semantics import action_semantics
from .stats import statistics
from .video import decode_at, require_whole_clips, stream_of

STILL_WINDOW = 0.25  # seconds
STILL_SHARE = 0.01  # of a dimension's 1-99 % range
EXTREME = 1e-4  # of the range: how near to the smallest or largest value counts as at it
SWITCH = 0.95  # share of samples at the two extremes that makes a dimension a switch
SATURATED = 0.05  # share of samples at one extreme
GAP = 1.5  # frames between two timestamps
BLACK = 12  # grey level of 255: a picture whose brightest block is darker is black
FROZEN = 2.0  # grey levels that some block of a picture changes by at least


def inspect_recording(recording: Recording) -> dict[str, Any]:
    """All facts of a recording but those of its pictures.

    Returns:
        ``datasets`` (one entry a root), ``episodes``, ``frames``, ``seconds``, ``fps`` (None
        where the roots differ), ``lengths``, ``timing``, ``state`` and ``action`` (see
        `_vector`), ``semantics`` (see `action_semantics`), ``still``, ``duplicates``, ``tasks``,
        ``success``, ``kinds`` (see `_kinds`), and ``rows``, one entry an episode.
    """
    lengths = np.array([span.length for span in recording.spans])
    seconds = np.array([span.seconds for span in recording.spans])
    rates = sorted({span.fps for span in recording.spans})
    still, still_rows = _still(recording)
    success = _success(recording)
    state = _vector(recording.state, recording.state_names, recording, "state")
    action = _vector(recording.action, recording.action_names, recording, "action")
    facts: dict[str, Any] = {
        "datasets": [_dataset(recording, root) for root in range(len(recording.sources))],
        "problems": recording.problems,
        "episodes": len(lengths),
        "frames": int(lengths.sum()),
        "seconds": float(seconds.sum()),
        "fps": rates[0] if len(rates) == 1 else None,
        "lengths": {
            "frames": _spread(lengths),
            "seconds": _spread(seconds),
            "histogram": _histogram(seconds),
        },
        "timing": _timing(recording),
        "state": state,
        "action": action,
        "semantics": action_semantics(recording),
        "still": still,
        "duplicates": _duplicates(recording),
        "tasks": _tasks(recording),
        "success": success,
        "kinds": _kinds(recording),
    }
    facts["rows"] = [
        {
            "dataset": recording.sources[span.root].name,
            "episode": span.episode.number,
            "label": recording.label(span),
            "frames": span.length,
            "seconds": span.seconds,
            "kind": span.kind,
            "task": _task_of(recording, span),
            "success": None
            if recording.success is None
            else bool(recording.success[span.rows].any()),
            **row,
        }
        for span, row in zip(recording.spans, still_rows, strict=True)
    ]
    return facts


def _dataset(recording: Recording, root: int) -> dict[str, Any]:
    source, keys = recording.sources[root], recording.keys[root]
    spans = [span for span in recording.spans if span.root == root]
    return {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "robot_type": source.robot_type or None,
        "fps": source.fps,
        "episodes": len(spans),
        "frames": sum(span.length for span in spans),
        "seconds": sum(span.seconds for span in spans),
        "keys": {"state": keys.state or None, "action": keys.action or None, "images": keys.images},
        "features": {
            key: {"dtype": str(feature["dtype"]), "shape": list(feature["shape"])}
            for key, feature in source.features.items()
        },
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "min": float(values.min()), "median": float(np.median(values)),
        "mean": float(values.mean()), "max": float(values.max()),
    }  # fmt: skip


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    """Counts between edges; about the square root of the number of episodes, 5 to 30 bars."""
    bars = int(np.clip(round(2 * np.sqrt(len(values))), 5, 30))
    counts, edges = np.histogram(values, bars)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


# --- time ----------------------------------------------------------------------------------------


def _timing(recording: Recording) -> dict[str, Any] | None:
    """Timestamps against frame number / fps, each episode from its own first timestamp."""
    if recording.timestamp is None:
        return None
    deviation = np.empty(recording.frames)
    starts = np.empty(len(recording.spans))
    rates, gaps, backwards, misnumbered = [], [], 0, []
    for e, span in enumerate(recording.spans):
        stamps = recording.timestamp[span.rows]
        starts[e] = stamps[0]
        deviation[span.rows] = stamps - stamps[0] - np.arange(span.length) / span.fps
        steps = np.diff(stamps)
        backwards += int(np.sum(steps <= 0))
        for frame in np.flatnonzero(steps > GAP / span.fps):
            gaps.append((float(steps[frame]), recording.label(span), int(frame)))
        if span.length > 1 and stamps[-1] > stamps[0]:
            rates.append((span.length - 1) / (stamps[-1] - stamps[0]) / span.fps)
        if recording.frame_index is not None and not np.array_equal(
            recording.frame_index[span.rows], np.arange(span.length)
        ):
            misnumbered.append(recording.label(span))
    size = np.abs(deviation)
    worst = int(np.argmax(size)) if np.isfinite(size).all() else 0
    where = next(s for s in recording.spans if s.first <= worst < s.first + s.length)
    gaps.sort(reverse=True)
    slowest = min(span.fps for span in recording.spans)
    return {
        "max": float(size.max()),
        "p99": float(np.quantile(size, 0.99)),
        "p99_frames": float(np.quantile(size, 0.99) * slowest),
        "where": f"{recording.label(where)}, frame {worst - where.first}",
        "rate": float(np.median(rates)) if rates else None,  # of time, over that of info.json
        "start": float(np.abs(starts).max()),
        "gaps": {
            "count": len(gaps),
            "largest": [
                {"seconds": seconds, "episode": label, "frame": frame}
                for seconds, label, frame in gaps[:5]
            ],
        },
        "backwards": backwards,
        "misnumbered": misnumbered,
    }


# --- values --------------------------------------------------------------------------------------


def _vector(
    values: np.ndarray, names: Sequence[str], recording: Recording, role: str
) -> dict[str, Any] | None:
    """One vector, where it is recorded: ``key``, ``unit``, ``not_finite`` and ``dimensions``.

    A dimension has the statistics of `statistics`, ``constant``, ``switch`` (almost always at one
    of its two extremes), ``at_min`` and ``at_max`` (share of the samples there), ``saturated``
    (one of these is `SATURATED` or more, and it is neither of the above), ``not_finite``, and
    ``outlier``: how far the farthest value lies beyond the percentiles, in their distance.
    """
    if not values.shape[1]:
        return None
    spans = recording.acting if role == "action" else recording.spans
    root = spans[0].root
    key = getattr(recording.keys[root], role)
    if len(spans) < len(recording.spans):
        values = np.concatenate([values[span.rows] for span in spans])
    fine = np.isfinite(values)
    dimensions = []
    for d, name in enumerate(names):
        column = values[fine[:, d], d]
        if not len(column):
            dimensions.append(
                {"name": name, "not_finite": len(values), "constant": False, "switch": False,
                 "saturated": False,
                 "at_min": None, "at_max": None, "outlier": None}
                | dict.fromkeys(("mean", "std", "min", "max", "q01", "q99"))
            )  # fmt: skip
            continue
        numbers = {k: v[0] for k, v in statistics(column[:, None]).items()}
        low, high = numbers["min"], numbers["max"]
        near = EXTREME * (high - low)
        # As the normaliser sees it: see worldmodel.data.normalize.
        constant = bool((high - low) / 2 <= 1e-4 * max(1.0, abs(low + high) / 2))
        at_min = float(np.mean(column <= low + near))
        at_max = float(np.mean(column >= high - near))
        switch = not constant and at_min + at_max >= SWITCH
        inner = numbers["q99"] - numbers["q01"]
        beyond = max(high - numbers["q99"], numbers["q01"] - low)
        dimensions.append(
            {
                "name": name,
                **numbers,
                "constant": constant,
                "switch": switch,
                "saturated": not (constant or switch) and max(at_min, at_max) >= SATURATED,
                "at_min": None if constant else at_min,
                "at_max": None if constant else at_max,
                "outlier": float(beyond / inner) if inner > 0 and not constant else None,
                "not_finite": int(np.sum(~fine[:, d])),
            }
        )
    edges = np.cumsum([0, *(span.length for span in spans)])
    bad = [s for s, first in zip(spans, edges, strict=False) if not fine[first:][: s.length].all()]
    return {
        "key": key,
        "unit": _unit(recording.sources[root].features[key]),
        "unit_guess": _unit_guess([d for d in dimensions if d["min"] is not None]),
        "not_finite": int(np.sum(~fine)),
        "bad_episodes": [recording.label(s) for s in bad],
        "dimensions": dimensions,
    }


def _unit(feature: dict[str, Any]) -> str | list[str] | None:
    """What the feature says of itself, which LeRobot does not ask for."""
    return feature.get("unit") or feature.get("units") or None


def _unit_guess(dimensions: Sequence[dict[str, Any]]) -> str:
    """What the ranges look like; no more than that."""
    size = max((max(abs(d["min"]), abs(d["max"])) for d in dimensions), default=0.0)
    if size <= 1.0001:
        return "normalised, metres or small changes"
    if size <= 2 * np.pi + 0.1:
        return "radians or metres"
    if size <= 100.001:
        return "percent or degrees"
    if size <= 400:
        return "degrees"
    return "raw ticks of a servo, or millimetres"


def _still(recording: Recording) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Frames within whose next quarter of a second nothing moves by 1 % of its range.

    Taken from the states, or from the actions where there are none.

    Returns:
        Facts of all episodes, and ``still``, ``still_start`` and ``still_end`` (share, seconds,
        seconds) of each.
    """
    values = recording.state if recording.state.shape[1] else recording.action
    nothing: list[dict[str, Any]] = [
        {"still": None, "still_start": None, "still_end": None} for _ in recording.spans
    ]
    values = values[:, np.isfinite(values).all(0)]
    if not values.shape[1]:
        return None, nothing
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    low, high = np.where(high > low, (low, high), (values.min(0), values.max(0)))
    moving = high - low > 2e-4 * np.maximum(1, np.abs(low + high) / 2)
    values = values[:, moving] / (high - low)[moving]
    rows = []
    frames = 0
    for span in recording.spans:
        window = min(max(1, round(STILL_WINDOW * span.fps)), span.length - 1)
        path = values[span.rows].astype(np.float64)
        still = np.ones(span.length, bool)
        for ahead in range(1, window + 1):
            moved = np.abs(path[ahead:] - path[:-ahead]) > STILL_SHARE
            still[: len(moved)] &= ~moved.any(1)
        if window:  # the last frames have less ahead: they are as still as the one before them
            still[-window:] = still[-1 - window]
        busy = np.flatnonzero(~still)
        start = int(busy[0]) if len(busy) else span.length
        end = span.length - 1 - int(busy[-1]) if len(busy) else span.length
        frames += int(still.sum())
        rows.append(
            {
                "still": float(still.mean()),
                "still_start": start / span.fps,
                "still_end": end / span.fps,
            }
        )
    starts, ends = (np.array([r[k] for r in rows]) for k in ("still_start", "still_end"))
    return {
        "of": "state" if recording.state.shape[1] else "action",
        "share": frames / recording.frames,
        "start": _spread(starts),
        "end": _spread(ends),
        "share_at_ends": float(
            sum(
                min(1.0, (r["still_start"] + r["still_end"]) / s.seconds) * s.length
                for r, s in zip(rows, recording.spans, strict=True)
            )
            / recording.frames
        ),
        "motionless": [
            recording.label(s) for s, r in zip(recording.spans, rows, strict=True)
            if r["still"] == 1
        ],
    }, rows  # fmt: skip


def _duplicates(recording: Recording) -> dict[str, Any]:
    """Episodes with equal numbers, and the share of frames that repeat the one before."""
    seen: dict[bytes, str] = {}
    pairs = []
    repeated = steps = 0
    values = np.concatenate([recording.state, recording.action], axis=1)
    if not values.shape[1]:
        return {"episodes": [], "repeated_frames": None}
    for span in recording.spans:
        part = values[span.rows]
        digest = hashlib.sha256(part.tobytes()).digest()
        if digest in seen:
            pairs.append([seen[digest], recording.label(span)])
        else:
            seen[digest] = recording.label(span)
        repeated += int(np.sum((part[1:] == part[:-1]).all(1)))
        steps += span.length - 1
    return {"episodes": pairs, "repeated_frames": repeated / steps if steps else None}


def _tasks(recording: Recording) -> list[dict[str, Any]]:
    out = []
    for number in np.unique(recording.task).tolist():
        mine = recording.task == number
        out.append(
            {
                "text": recording.tasks[number] if number >= 0 else None,
                "episodes": sum(bool(mine[s.rows].any()) for s in recording.spans),
                "frames": int(mine.sum()),
            }
        )
    return sorted(out, key=lambda t: -t["episodes"])


def _task_of(recording: Recording, span: Span) -> str | None:
    number = int(recording.task[span.first])
    return recording.tasks[number] if number >= 0 else None


def _success(recording: Recording) -> dict[str, Any] | None:
    """Episodes in which some frame is marked as a success."""
    if recording.success is None:
        return None
    won = [bool(recording.success[s.rows].any()) for s in recording.spans]
    failed = [recording.label(s) for s, w in zip(recording.spans, won, strict=True) if not w]
    return {"key": recording.success_key, "k": sum(won), "n": len(won), "failed": failed}


def _kinds(recording: Recording) -> dict[str, Any]:
    """How many episodes are what, and how many frames carry a mark of success (None: no marks)."""
    kinds = [span.kind for span in recording.spans]
    return {
        "demonstrations": kinds.count("demonstration"),
        "exploratory": kinds.count("exploratory"),
        "action_free": kinds.count("action-free"),
        "success_frames": None if recording.success is None else int(recording.success.sum()),
    }


# --- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """A few frames of every camera.

    Attributes:
        spans: the episodes that they are from.
        frames: camera -> a list an episode -> uint8 ``[h, w, 3]`` at start, middle and end.
        numbers: per episode, the frames' numbers.
    """

    spans: tuple[Span, ...]
    frames: dict[str, list[list[np.ndarray]]]
    numbers: list[list[int]]


def sample_frames(recording: Recording, episodes: int = 4, moments: int = 3) -> Samples:
    """Decode a few frames of every camera: some episodes, evenly spread from start to end.

    Raises:
        BrokenError: a video cannot be decoded, or ends too early.
    """
    places = np.linspace(0, len(recording.spans) - 1, min(episodes, len(recording.spans)))
    spans = tuple(recording.spans[i] for i in np.unique(places.round().astype(int)))
    numbers = [np.linspace(0, s.length - 1, moments).round().astype(int).tolist() for s in spans]
    frames: dict[str, list[list[np.ndarray]]] = {}
    for camera in recording.cameras:
        frames[camera] = [
            decode_at(
                recording.sources[span.root],
                recording.keys[span.root].images[camera],
                [(span.episode, i) for i in wanted],
            )
            for span, wanted in zip(spans, numbers, strict=True)
        ]
    return Samples(spans, frames, numbers)


def inspect_cameras(recording: Recording, samples: Samples) -> list[dict[str, Any]]:
    """Facts of every camera: ``name``, ``keys``, ``stored`` ("video" or "image"), ``codec``, ...

    ``black`` and ``frozen`` list the sampled episodes in which the picture was dark throughout,
    or the same at the start, in the middle and at the end. ``short`` is the error of
    `require_whole_clips`, which training would raise, or None.

    Raises:
        BrokenError: a video file cannot be opened.
    """
    out = []
    for camera, shown in samples.frames.items():
        keys = [k.images[camera] for k in recording.keys]
        source, key = recording.sources[0], keys[0]
        feature = source.features[key]
        height, width = shown[0][0].shape[:2]
        facts: dict[str, Any] = {
            "name": camera, "keys": keys, "stored": str(feature["dtype"]), "codec": None,
            "pixel_format": None, "fps": None, "megabytes": None, "files": None,
            "height": height, "width": width, "short": None,
            "sizes": sorted({f.shape[:2] for episode in shown for f in episode}),
        }  # fmt: skip
        if feature["dtype"] == "video":
            paths = sorted(
                {s.episode.clips[keys[s.root]].path for s in recording.spans}
            )  # fmt: skip
            stream = stream_of(paths[0])
            facts |= {
                "codec": stream.codec, "pixel_format": stream.pixel_format, "fps": stream.fps,
                "files": len(paths), "megabytes": sum(p.stat().st_size for p in paths) / 1e6,
            }  # fmt: skip
            for root, (each, name) in enumerate(zip(recording.sources, keys, strict=True)):
                mine = [s.episode for s in recording.spans if s.root == root]
                try:
                    require_whole_clips(each, name, mine)
                except BrokenError as error:
                    facts["short"] = str(error)
        small = [[_blocks(frame) for frame in episode] for episode in shown]
        labels = [recording.label(span) for span in samples.spans]
        facts |= {
            "sampled": len(labels),
            "brightness": float(np.mean([b.mean() for episode in small for b in episode])),
            "black": [
                label for label, e in zip(labels, small, strict=True)
                if max(b.max() for b in e) < BLACK
            ],
            "frozen": [
                label for label, e, span in zip(labels, small, samples.spans, strict=True)
                if span.length > 1 and max(b.max() for b in e) >= BLACK and _same(e)
            ],
        }  # fmt: skip
        out.append(facts)
    return out


def _blocks(frame: np.ndarray, count: int = 24) -> np.ndarray:
    """Mean grey of blocks, at most about count x count, so that noise averages out; float64."""
    side = min(max(4, min(frame.shape[:2]) // count), *frame.shape[:2])
    height, width = (n - n % side for n in frame.shape[:2])
    grey = frame[:height, :width].astype(np.float64).mean(2)
    return grey.reshape(height // side, side, width // side, side).mean((1, 3))


def _same(blocks: Sequence[np.ndarray]) -> bool:
    first, *others = blocks
    return all(o.shape == first.shape and float(np.abs(o - first).max()) < FROZEN for o in others)
