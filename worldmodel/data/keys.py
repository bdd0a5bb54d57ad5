"""Which feature is the state, which the action, which are cameras, and what they are called.

LeRobot's own names come first: ``action``, ``observation.state``, ``observation.images.*``. Real
datasets also say ``actions``, ``state``, ``image``; those are taken where only one fits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from .config import KeysConfig
from .errors import BrokenError, KeysError, did_you_mean
from .source import feature_width

log = logging.getLogger(__name__)

BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
NUMBERS = ("float", "int", "uint")
ACTION_NAMES = {"action", "actions"}
STATE_NAMES = {"state", "states", "proprio", "qpos", "agent_pos", "robot_state", "joint_state"}
RECORDED_KINDS = ("absolute", "delta", "unknown")
CAMERA_PREFIXES = ("observation.images.", "observation.image.", "observation.", "images.", "image.")


@dataclass(frozen=True)
class Keys:
    """Feature keys of one dataset; `images` maps camera names to keys, in order."""

    action: str
    state: str
    images: dict[str, str]


def resolve_keys(features: dict[str, dict[str, Any]], wanted: KeysConfig, where: str) -> Keys:
    """Find what the user did not name, check what they did.

    Args:
        features: of ``info.json``.
        wanted: the user's names.
        where: the dataset, for messages.

    Raises:
        KeysError: missing, ambiguous or of the wrong kind; lists what there is.
    """
    state = ("observation.state", STATE_NAMES)
    return Keys(
        action=_vector("action", wanted.action, ("action", ACTION_NAMES), features, where),
        state=_vector("state", wanted.state, state, features, where),
        images=_images(wanted.images, features, where),
    )


def find_keys(
    features: dict[str, dict[str, Any]], wanted: KeysConfig, where: str
) -> tuple[Keys, dict[str, str]]:
    """Like `resolve_keys`, for a dataset that need not be fit to learn from.

    Returns:
        The keys, "" for a vector that is missing or ambiguous though the user named none; and
        for every such one, ``action`` or ``state``, the error of `resolve_keys`.

    Raises:
        KeysError: what the user named is missing or of the wrong kind.
    """
    problems: dict[str, str] = {}
    found = {}
    for role, name, known in (
        ("action", wanted.action, ("action", ACTION_NAMES)),
        ("state", wanted.state, ("observation.state", STATE_NAMES)),
    ):
        try:
            found[role] = _vector(role, name, known, features, where)
        except KeysError as error:
            if name is not None:
                raise
            found[role], problems[role] = "", str(error)
    return Keys(**found, images=_images(wanted.images, features, where)), problems


def dimension_names(feature: dict[str, Any], prefix: str) -> tuple[str, ...]:
    """One distinct name per dimension, from any of the forms that datasets use.

    Lists, lists of lists, ``{"motors": [...]}``, ``{"left": [...], "right": [...]}`` (where equal
    names are told apart by their group), ``{"x": 0, "y": 1}``. Where the names do not fit the
    size, or there are none: ``prefix_0``, ``prefix_1``, ...
    """
    width = feature_width(feature)
    found = _flatten(feature.get("names"), "")
    for names in ([name for _, name in found], [f"{g}.{n}" if g else n for g, n in found]):
        if len(names) == width and len(set(names)) == width:
            return tuple(names)
    return tuple(f"{prefix}_{i}" for i in range(width))


def recorded_kind(feature: dict[str, Any]) -> str:
    """What an action feature says of itself: "absolute" or "delta", else "unknown".

    It stands in the feature's ``info``, where our own tools write it.

    Raises:
        BrokenError: it says something else.
    """
    kind = (feature.get("info") or {}).get("action_kind", "unknown")
    if kind not in RECORDED_KINDS:
        raise BrokenError(
            f"the action feature says action_kind={kind!r} (meta/info.json); it can be "
            f"{', '.join(RECORDED_KINDS)}"
        )
    return kind


def camera_name(key: str) -> str:
    """A feature's key without LeRobot's prefixes: ``observation.images.front`` -> ``front``."""
    for prefix in CAMERA_PREFIXES:
        if key.startswith(prefix) and len(key) > len(prefix):
            return key[len(prefix) :]
    return key


def _flatten(names: Any, group: str) -> list[tuple[str, str]]:
    """(group, name) pairs of a nested description, in order."""
    if isinstance(names, dict):
        if names and all(isinstance(v, int) for v in names.values()):
            return [(group, str(n)) for n in sorted(names, key=names.__getitem__)]
        inner = lambda key: f"{group}.{key}" if group else str(key)  # noqa: E731
        return [pair for key, value in names.items() for pair in _flatten(value, inner(key))]
    if isinstance(names, (list, tuple)):
        return [pair for value in names for pair in _flatten(value, group)]
    return [] if names is None else [(group, str(names))]


def _is_vector(key: str, feature: dict[str, Any]) -> bool:
    return key not in BOOKKEEPING and str(feature["dtype"]).startswith(NUMBERS)


def _is_depth(feature: dict[str, Any]) -> bool:
    infos = [feature.get("info") or {}, feature.get("video_info") or {}]
    return any(i.get("is_depth_map") or i.get("video.is_depth_map") for i in infos)


def _vector(
    role: str,
    wanted: str | None,
    known: tuple[str, set[str]],
    features: dict[str, dict[str, Any]],
    where: str,
) -> str:
    """The key of a vector; `known` is its standard name, and other last parts of names."""
    standard, names = known
    vectors = [k for k, f in features.items() if _is_vector(k, f)]
    if wanted is not None:
        _require(wanted, role, features, where)
        if wanted not in vectors:
            kind = features[wanted]["dtype"]
            raise KeysError(
                f"data.keys.{role}={wanted}: that feature of {where} is {kind}, not a vector of "
                f"numbers.{_listing(features)}"
            )
        return wanted
    if standard in vectors:
        return standard
    fitting = [
        k for k in vectors if k.split(".")[-1].lower() in names and not k.startswith("next.")
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = f"several could be it ({', '.join(fitting)})" if fitting else f"it has no {standard!r}"
    raise KeysError(
        f"which feature of {where} is the {role}? {found[0].upper()}{found[1:]}; say which with "
        f"data.keys.{role}=NAME.{_listing(features)}"
    )


def _images(wanted: Any, features: dict[str, dict[str, Any]], where: str) -> dict[str, str]:
    pictures = [k for k, f in features.items() if f["dtype"] in ("image", "video")]
    if wanted is not None:
        keys = [wanted] if isinstance(wanted, str) else list(wanted)
        for key in keys:
            _require(key, "images", features, where)
            if key not in pictures or _is_depth(features[key]):
                kind = "a depth map" if key in pictures else features[key]["dtype"]
                raise KeysError(
                    f"data.keys.images: feature {key!r} of {where} is {kind}, not a colour "
                    f"image.{_listing(features)}"
                )
        if len(set(keys)) < len(keys):
            raise KeysError(f"data.keys.images names a camera twice: {keys}")
    else:
        colour = [k for k in pictures if not _is_depth(features[k])]
        if depth := sorted(set(pictures) - set(colour)):
            log.info("%s: depth maps are not used: %s", where, ", ".join(depth))
        standard = [k for k in colour if k.startswith("observation.image")]
        keys = standard or [k for k in colour if not k.startswith("next.")]
    names = [camera_name(k) for k in keys]
    if len(set(names)) < len(names):
        names = keys
    return dict(zip(names, keys, strict=True))


def _require(key: str, role: str, features: dict[str, dict[str, Any]], where: str) -> None:
    if key not in features:
        raise KeysError(
            f"data.keys.{role}: {where} has no feature {key!r}."
            f"{did_you_mean(key, features)}{_listing(features)}"
        )


def _listing(features: dict[str, dict[str, Any]]) -> str:
    shown = {k: f for k, f in features.items() if k not in BOOKKEEPING}
    width = max((len(k) for k in shown), default=0)
    lines = []
    for key, feature in shown.items():
        kind = "depth map" if _is_depth(feature) else feature["dtype"]
        lines.append(f"  {key:<{width}}  {kind} {list(feature['shape'])}")
    return "\nIts features:\n" + "\n".join(lines)
