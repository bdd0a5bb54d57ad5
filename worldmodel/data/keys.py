"""Which feature is the state, which the action, which are cameras, and what they are called.

LeRobot's own names come first: ``action``, ``observation.state``, ``observation.images.*``. Real
datasets also say ``actions``, ``state``, ``image``; those are taken where only one fits. Two flags
may be there besides: ``demonstration`` and ``next.success``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import KeysConfig
from .errors import BrokenError, KeysError, did_you_mean
from .source import feature_width

log = logging.getLogger(__name__)

BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
NUMBERS = ("float", "int", "uint")
ACTION_NAMES = {"action", "actions"}
STATE_NAMES = {"state", "states", "proprio", "qpos", "agent_pos", "robot_state", "joint_state"}
FLAGS = {"demonstration": "demonstration", "success": "next.success"}  # where nobody says which
RECORDED_KINDS = ("absolute", "delta", "unknown")
CAMERA_PREFIXES = ("observation.images.", "observation.image.", "observation.", "images.", "image.")


@dataclass(frozen=True)
class Keys:
    """Feature keys of one dataset; `images` maps camera names to keys, in order.

    "" for an action or a flag that it does not have. The flags are small and never cached, so they
    stay out of the ``repr`` that cache files and fingerprints are named by.
    """

    action: str
    state: str
    images: dict[str, str]
    demonstration: str = field(default="", repr=False)
    success: str = field(default="", repr=False)


Root = tuple[dict[str, dict[str, Any]], str]  # features of ``info.json``, and a name for messages


def resolve_roots(roots: Sequence[Root], wanted: KeysConfig) -> list[Keys]:
    """`resolve_keys` of every root; one without actions is fine beside one that has some.

    Raises:
        KeysError: as `resolve_keys` does; or what the user named is in no root.
    """
    _require_flags(roots, wanted)
    free = _without_actions(roots, wanted)
    if all(free) and len(roots) > 1:
        names = ", ".join(where for _, where in roots)
        raise KeysError(
            f"no root has an action feature ({names}): episodes without actions are learnt from "
            "beside others that have some. Add a root with actions, or say which feature they "
            f"are with data.keys.action=NAME.{_listing(roots[0][0])}"
        )
    return [
        resolve_keys(features, wanted, where, actions=not without or len(roots) == 1)
        for (features, where), without in zip(roots, free, strict=True)
    ]


def resolve_keys(
    features: dict[str, dict[str, Any]], wanted: KeysConfig, where: str, *, actions: bool = True
) -> Keys:
    """Find what the user did not name, check what they did.

    Args:
        features: of ``info.json``.
        wanted: the user's names.
        where: the dataset, for messages.
        actions: False for a dataset that has none.

    Raises:
        KeysError: missing, ambiguous or of the wrong kind; lists what there is.
    """
    state = ("observation.state", STATE_NAMES)
    action = ("action", ACTION_NAMES)
    return Keys(
        action=_vector("action", wanted.action, action, features, where) if actions else "",
        state=_vector("state", wanted.state, state, features, where),
        images=_images(wanted.images, features, where),
        **_flags(wanted, features, where),
    )


def find_roots(roots: Sequence[Root], wanted: KeysConfig) -> tuple[list[Keys], dict[str, str]]:
    """Like `resolve_roots`, for datasets that need not be fit to learn from.

    Returns:
        The keys, "" for a vector that is missing or ambiguous though the user named none; and
        for every such one, ``action`` or ``state``, the error of `resolve_keys`. That a root has
        no actions is no error beside one that has some.

    Raises:
        KeysError: what the user named is missing or of the wrong kind.
    """
    _require_flags(roots, wanted)
    free = _without_actions(roots, wanted)
    keys: list[Keys] = []
    problems: dict[str, str] = {}
    for (features, where), without in zip(roots, free, strict=True):
        found, missing = _find_keys(features, wanted, where, actions=not without or all(free))
        keys.append(found)
        problems |= missing
    return keys, problems


def _find_keys(
    features: dict[str, dict[str, Any]], wanted: KeysConfig, where: str, actions: bool
) -> tuple[Keys, dict[str, str]]:
    problems: dict[str, str] = {}
    found = {}
    for role, name, known in (
        ("action", wanted.action, ("action", ACTION_NAMES)),
        ("state", wanted.state, ("observation.state", STATE_NAMES)),
    ):
        if role == "action" and not actions:
            found[role] = ""
            continue
        try:
            found[role] = _vector(role, name, known, features, where)
        except KeysError as error:
            if name is not None:
                raise
            found[role], problems[role] = "", str(error)
    images = _images(wanted.images, features, where)
    return Keys(**found, images=images, **_flags(wanted, features, where)), problems


def _without_actions(roots: Sequence[Root], wanted: KeysConfig) -> list[bool]:
    """Which roots have nothing that is, or could be taken for, an action."""
    return [
        wanted.action not in features and not _fitting(("action", ACTION_NAMES), features)
        for features, _ in roots
    ]


def _require_flags(roots: Sequence[Root], wanted: KeysConfig) -> None:
    """Refuse a flag that the user names and no root has."""
    for role in FLAGS:
        name = getattr(wanted, role)
        if name is not None and not any(name in features for features, _ in roots):
            _require(name, role, *roots[0])


def _flags(wanted: KeysConfig, features: dict[str, dict[str, Any]], where: str) -> dict[str, str]:
    """Keys of the flags, one bool a frame each; "" for one that is not there."""
    found = {}
    for role, standard in FLAGS.items():
        name = getattr(wanted, role)
        key = standard if name is None else name
        fits = key in features and (
            str(features[key]["dtype"]) == "bool" and feature_width(features[key]) == 1
        )
        if name is not None and name in features and not fits:
            feature = features[name]
            raise KeysError(
                f"data.keys.{role}={name}: that feature of {where} is {feature['dtype']} "
                f"{list(feature['shape'])}, not one bool a frame.{_listing(features)}"
            )
        found[role] = key if fits else ""
    return found


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
    standard = known[0]
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
    fitting = _fitting(known, features)
    if len(fitting) == 1:
        return fitting[0]
    found = f"several could be it ({', '.join(fitting)})" if fitting else f"it has no {standard!r}"
    raise KeysError(
        f"which feature of {where} is the {role}? {found[0].upper()}{found[1:]}; say which with "
        f"data.keys.{role}=NAME.{_listing(features)}"
    )


def _fitting(known: tuple[str, set[str]], features: dict[str, dict[str, Any]]) -> list[str]:
    """The vectors that bear the standard name, or else one of the other names."""
    standard, names = known
    vectors = [k for k, f in features.items() if _is_vector(k, f)]
    if standard in vectors:
        return [standard]
    return [k for k in vectors if k.split(".")[-1].lower() in names and not k.startswith("next.")]


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
