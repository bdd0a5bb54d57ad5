"""What the facts of a recording mean for training: settings that follow from them, and warnings."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .config import DataConfig
from .inspect import SATURATED

HORIZON = 0.8  # seconds that a chunk of actions covers, and the future frames with it
FUTURE = 4  # frames into which the horizon is cut
LONG_SIDE = 64  # pixels
PATCH = 8  # of every model in configs/model

FEW_EPISODES = 50
JITTER = 0.1  # frames, 99th percentile
RATE = 0.02  # by which timestamps may run faster or slower than the declared rate
OUTLIER = 3.0  # times the 1-99 % range beyond it
IDLE = 0.15  # share of the frames at starts and ends
LONG_IDLE = 1.0  # seconds of both that are a warning
REPEATED = 0.05  # share of the frames

LEVELS = ("stop", "warn", "note")


@dataclass(frozen=True)
class Notice:
    """One thing to know.

    Attributes:
        level: "stop" (training refuses this data), "warn" (it trains, perhaps badly) or "note".
        topic: a word to find it by.
        text: what was found and what to do.
    """

    level: str
    topic: str
    text: str


def training_settings(
    facts: dict[str, Any], cameras: Sequence[dict[str, Any]], config: DataConfig
) -> dict[str, Any]:
    """Settings of ``scripts.train`` that this data asks for, where they are not the defaults.

    The chunk covers `HORIZON` seconds at the data's rate, but no more than half of the median
    episode; the future frames cover the same time. Frames keep their aspect ratio, at most
    `LONG_SIDE` pixels long, in whole patches.

    Returns:
        ``data.KEY`` -> value, in the order of a command line.
    """
    settings: dict[str, Any] = {"data.root": _root(config.roots())}
    for role in ("action", "state", "images", "demonstration", "success"):
        if (name := getattr(config.keys, role)) is not None:
            settings[f"data.keys.{role}"] = name
    whole = _episodes_without_nan(facts)
    if whole is not None or config.episodes is not None:
        settings["data.episodes"] = config.episodes if whole is None else whole
    if config.action_free is not None:
        settings["data.action_free"] = config.action_free
    if cameras:
        settings["data.image_size"] = _image_size(cameras[0]["height"], cameras[0]["width"])
    fps = facts["fps"] or min(d["fps"] for d in facts["datasets"])
    most = max(2, int(facts["lengths"]["frames"]["median"]) // 2)
    stride = max(1, min(round(HORIZON / FUTURE * fps), most // FUTURE))
    settings["data.chunk"] = min(max(4, FUTURE * stride), most)
    if cameras:
        settings["data.future_stride"] = stride
    semantics = facts["semantics"]
    if semantics["stated"] == "unknown" and semantics["guess"] != semantics["auto"]:
        settings["data.action_kind"] = semantics["guess"]
    defaults = DataConfig()
    return {
        key: value
        for key, value in settings.items()
        if value != getattr(defaults, key.removeprefix("data."), None)
    }


def training_commands(facts: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """Command lines of ``scripts.train``: ``trial`` (of seconds, does it fit?) and ``train``."""
    size = "small" if facts["frames"] >= 20_000 else "tiny"
    sure = {"data.root", "data.action_kind", "data.episodes", "data.action_free"}
    trial = {k: v for k, v in settings.items() if k in sure or k.startswith("data.keys")}
    return {
        "trial": _command([*_words(trial), "experiment=debug", "out=outputs/trial"]),
        "train": _command([*_words(settings), f"model={size}", "steps=20000", "out=outputs/train"]),
    }


def mend_first(found: Sequence[Notice], settings: dict[str, Any]) -> bool:
    """Whether training would refuse the data even with these settings."""
    left_out = {"nan"} if "data.episodes" in settings else set()
    return any(n.level == "stop" and n.topic not in left_out for n in found)


def notices(facts: dict[str, Any], cameras: Sequence[dict[str, Any]]) -> list[Notice]:
    """Everything worth knowing before training, the worst first."""
    found = [
        *_stopping(facts, cameras),
        *_of_size(facts),
        *_of_time(facts),
        *_of_values(facts),
        *_of_actions(facts),
        *_of_pictures(cameras),
        *_of_content(facts),
    ]
    return sorted(found, key=lambda notice: LEVELS.index(notice.level))


def _stopping(facts: dict[str, Any], cameras: Sequence[dict[str, Any]]) -> list[Notice]:
    found = []
    for role, text in facts["problems"].items():
        found.append(Notice("stop", f"{role}_missing", text[0].upper() + text[1:]))
    rates = {d["fps"] for d in facts["datasets"]}
    if len(rates) > 1:
        listed = ", ".join(f"{d['name']}: {d['fps']:g}" for d in facts["datasets"])
        found.append(
            Notice("stop", "mixed_fps", f"The datasets run at different rates ({listed} fps), so "
                   "they cannot be trained on together: resample one, or train one after the "
                   "other with init=CHECKPOINT.")
        )  # fmt: skip
    for role in ("state", "action"):
        vector = facts[role]
        if vector and vector["not_finite"]:
            found.append(
                Notice("stop", "nan",
                       f"{_count(vector['not_finite'], 'value')} of {vector['key']}: NaN or "
                       f"infinite, in {_few(vector['bad_episodes'])}. Record these again, or "
                       "leave them out with data.episodes=[...], as the command below does "
                       "for a single dataset.")
            )  # fmt: skip
    for camera in cameras:
        if camera["short"]:
            found.append(Notice("stop", "short_video", f"{camera['name']}: {camera['short']}."))
    return found


def _of_size(facts: dict[str, Any]) -> list[Notice]:
    found = []
    if facts["episodes"] < FEW_EPISODES:
        found.append(
            Notice("warn", "few_episodes", f"{facts['episodes']} episodes are few: enough to see "
                   f"that training runs; policies usually need {FEW_EPISODES} and more of a task.")
        )  # fmt: skip
    lengths = facts["lengths"]["seconds"]
    if lengths["max"] > 4 * lengths["median"]:
        found.append(
            Notice("note", "lengths", f"The longest episode takes {lengths['max']:.1f} s, the "
                   f"median {lengths['median']:.1f} s: was one not stopped in time?")
        )  # fmt: skip
    robots = {d["robot_type"] for d in facts["datasets"]}
    if len(robots) > 1:
        names = ", ".join(sorted(str(r) for r in robots))
        found.append(Notice("note", "robots", f"The datasets name different robots ({names})."))
    return found


def _of_time(facts: dict[str, Any]) -> list[Notice]:
    timing = facts["timing"]
    if timing is None:
        return [Notice("note", "no_timestamps", "No timestamps are recorded.")]
    found = []
    if timing["p99_frames"] > JITTER:
        found.append(
            Notice("warn", "jitter", f"Timestamps stray from frame number / fps by up to "
                   f"{1000 * timing['max']:.0f} ms (99 %: {1000 * timing['p99']:.0f} ms), most in "
                   f"{timing['where']}. Training takes the frame number and never looks at them, "
                   "so motion will seem that uneven to the model.")
        )  # fmt: skip
    if timing["rate"] is not None and abs(timing["rate"] - 1) > RATE:
        fps = facts["fps"] or facts["datasets"][0]["fps"]
        found.append(
            Notice("warn", "rate", f"By the timestamps the recording runs at "
                   f"{fps * timing['rate']:.3g} frames a second; {fps:g} is declared.")
        )  # fmt: skip
    if timing["gaps"]["count"]:
        largest = timing["gaps"]["largest"][0]
        found.append(
            Notice("warn", "gaps",
                   f"{_count(timing['gaps']['count'], 'gap')} between timestamps: frames were "
                   f"lost there. The largest is {largest['seconds']:.2f} s, in "
                   f"{largest['episode']} after frame {largest['frame']}.")
        )  # fmt: skip
    if timing["backwards"]:
        found.append(
            Notice("warn", "backwards", f"{_count(timing['backwards'], 'timestamp')} not later "
                   "than the one before.")
        )  # fmt: skip
    if timing["misnumbered"]:
        found.append(
            Notice("warn", "frame_index", "frame_index does not count 0, 1, 2, ... in "
                   f"{_few(timing['misnumbered'])}: frames may be missing.")
        )  # fmt: skip
    return found


def _of_values(facts: dict[str, Any]) -> list[Notice]:
    found = []
    still = {
        role: tuple(d["name"] for d in facts[role]["dimensions"] if d["constant"])
        for role in ("state", "action")
        if facts[role]
    }
    for names in dict.fromkeys(still.values()):
        roles = " and ".join(role for role, mine in still.items() if mine == names)
        if names:
            one = len(names) == 1
            found.append(
                Notice("note", "constant", f"{_count(names, 'dimension')} of {roles} never "
                       f"{'changes' if one else 'change'}: {_few(names)}. Harmless, but the model "
                       f"learns nothing about {'it' if one else 'them'}.")
            )  # fmt: skip
    for role in still:
        dimensions = facts[role]["dimensions"]
        far = [d["name"] for d in dimensions if d["outlier"] is not None and d["outlier"] > OUTLIER]
        if far:
            found.append(
                Notice("warn", "outliers", f"The {role} has values far outside of its 1-99 % "
                       f"range in {_few(far)}: spikes of a sensor, or rare but real?")
            )  # fmt: skip
    full = []
    for d in facts["action"]["dimensions"] if facts["action"] else []:
        if not d["saturated"]:
            continue
        for share, end, word in ((d["at_min"], d["min"], "least"), (d["at_max"], d["max"], "most")):
            if share is not None and share >= SATURATED:
                full.append(f"{d['name']} ({100 * share:.0f} % at its {word}, {end:.3g})")
    if full:
        found.append(
            Notice("warn", "saturated", f"Actions stay at an extreme value: {_few(full, 4)}. "
                   "Either a limit clips them (then the demonstration wanted more than it could "
                   "say), or the joint is parked there.")
        )  # fmt: skip
    return found


def _of_actions(facts: dict[str, Any]) -> list[Notice]:
    semantics = facts["semantics"]
    if not facts["action"] or not facts["state"]:
        return []
    if (stated := semantics["stated"]) != "unknown":
        if semantics["guess"] in ("unknown", stated):
            return []
        return [
            Notice("warn", "action_kind", f"The dataset says that its actions are {stated}, but "
                   f"{semantics['reason']}. If it is wrong, data.action_kind overrules it.")
        ]  # fmt: skip
    if semantics["guess"] == "delta":
        return [
            Notice("warn", "delta", f"Actions look like changes, not targets: "
                   f"{semantics['reason']}. This is a guess; data.action_kind=auto does not "
                   "recognise them, so say data.action_kind=delta if it is right.")
        ]  # fmt: skip
    if semantics["guess"] != semantics["auto"]:
        return [
            Notice("warn", "action_kind", f"Actions look like targets ({semantics['reason']}), "
                   "which data.action_kind=auto does not recognise. This is a guess; if it is "
                   "right, say data.action_kind=absolute.")
        ]  # fmt: skip
    if semantics["guess"] == "unknown":
        return [
            Notice("note", "action_kind", f"What actions mean could not be told: "
                   f"{semantics['reason']}. data.action_kind=delta or absolute says so.")
        ]  # fmt: skip
    return []


def _of_pictures(cameras: Sequence[dict[str, Any]]) -> list[Notice]:
    if not cameras:
        return [Notice("note", "no_cameras", "There is no camera: the model will see states only.")]
    found = []
    for camera in cameras:
        for kind, what in (
            ("black", "is black"),
            ("frozen", "shows the same picture at start, middle and end"),
        ):
            if camera[kind]:
                found.append(
                    Notice("warn", kind, f"Camera {camera['name']} {what} in {len(camera[kind])} "
                           f"of {camera['sampled']} episodes looked at: {_few(camera[kind])}.")
                )  # fmt: skip
        if len(camera["sizes"]) > 1:
            sizes = ", ".join(f"{w}x{h}" for h, w in camera["sizes"])
            found.append(Notice("note", "sizes", f"Camera {camera['name']}: sizes vary, {sizes}."))
    shapes = {(c["height"], c["width"]) for c in cameras}
    if len({round(h / w, 2) for h, w in shapes}) > 1:
        found.append(
            Notice("note", "aspect", "Cameras have different aspect ratios; all are stretched to "
                   f"one data.image_size (suggested for {cameras[0]['name']}).")
        )  # fmt: skip
    return found


def _of_content(facts: dict[str, Any]) -> list[Notice]:
    found = []
    still, same = facts["still"], facts["duplicates"]
    shown = [row for row in facts["rows"] if row["kind"] == "demonstration"]
    failed = [row["label"] for row in shown if row["success"] is False]
    if same["episodes"]:
        pairs = [f"{b} = {a}" for a, b in same["episodes"]]
        found.append(
            Notice("warn", "duplicates", f"{_count(pairs, 'episode')} repeated, number for number "
                   f"({_few(pairs, 4)}): one may be held out while its copy is trained on.")
        )  # fmt: skip
    if same["repeated_frames"] is not None and same["repeated_frames"] > REPEATED:
        found.append(
            Notice("warn", "repeated", f"{100 * same['repeated_frames']:.0f} % of the frames "
                   "repeat state and action of the frame before: sensors may be slower than the "
                   "recording, or nothing moved.")
        )  # fmt: skip
    if still and still["motionless"]:
        found.append(Notice("warn", "motionless", f"Nothing moves in {_few(still['motionless'])}."))
    if still and still["share_at_ends"] > IDLE:
        long = still["start"]["median"] + still["end"]["median"] >= LONG_IDLE
        found.append(
            Notice("warn" if long else "note", "idle",
                   f"{100 * still['share_at_ends']:.0f} % of the frames stand "
                   f"still at the start (median {still['start']['median']:.1f} s) or the end "
                   f"({still['end']['median']:.1f} s) of an episode. A policy learns to wait "
                   "from them; trim long ones.")
        )  # fmt: skip
    if failed:
        found.append(
            Notice("note", "failures", f"{len(failed)} of {len(shown)} episodes "
                   f"are not marked as a success ({_few(failed)}): everything is "
                   "imitated alike, failures too, unless data.episodes leaves them out.")
        )  # fmt: skip
    without = [t for t in facts["tasks"] if not t["text"]]
    if without:
        found.append(Notice("note", "no_task", f"{without[0]['episodes']} episodes have no task."))
    return found


def _image_size(height: int, width: int) -> Any:
    """Long side at most `LONG_SIDE` and no larger than the camera's, both whole patches."""
    scale = min(1.0, LONG_SIDE / max(height, width))
    size = [max(PATCH, round(side * scale / PATCH) * PATCH) for side in (height, width)]
    return size[0] if size[0] == size[1] else size


def _episodes_without_nan(facts: dict[str, Any]) -> list[int] | None:
    """Numbers of the episodes to keep, for a single root in which some have NaN; else None."""
    bad = {label for role in ("state", "action") if facts[role]
           for label in facts[role]["bad_episodes"]}  # fmt: skip
    kept = [row["episode"] for row in facts["rows"] if row["label"] not in bad]
    if not bad or not kept or len(facts["datasets"]) > 1:
        return None
    return kept


def _root(roots: Sequence[str]) -> Any:
    return roots[0] if len(roots) == 1 else list(roots)


def _words(settings: dict[str, Any]) -> list[str]:
    """``KEY=VALUE`` as Hydra reads it."""
    return [f"{key}={_value(value)}" for key, value in settings.items()]


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_value(v) for v in value)}]"
    if value is None:
        return "null"
    text = str(value)
    # Hydra's grammar wants quotes around what is not a plain word.
    plain = all(c.isalnum() or c in "_-./:~%@" for c in text)
    return text if plain else "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _command(words: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "scripts.train", *words])


def _count(things: Sequence[Any] | int, noun: str) -> str:
    number = things if isinstance(things, int) else len(things)
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _few(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
