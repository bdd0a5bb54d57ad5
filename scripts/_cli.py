"""What the command lines of all scripts share: keys that do not exist, before Hydra sees them."""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Sequence

# Nothing of worldmodel: that would bring PyTorch into the workers of scripts.collect.


def refuse_unknown_keys(schema: type, arguments: Sequence[str], groups: Sequence[str] = ()) -> None:
    """End with exit code 1 where an argument ``KEY=VALUE`` names no field of `schema`.

    Hydra refuses such a key too; this says what exists and which key is nearest.

    Args:
        schema: the dataclass that describes the configuration.
        arguments: of the command line, without the program.
        groups: Hydra's config groups, which look like keys: ``model=tiny``. Where a script takes
            them with a package only, Hydra says so: ``model@train.model=tiny``.
    """
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        # Hydra's own switches, groups and operators (+key, ~key, key@package) are its business.
        if not equals or key.startswith(("-", "+", "~", "hydra")) or "@" in key or key in groups:
            continue
        if problem := unknown_key(schema, key):
            sys.exit(problem)


def unknown_key(schema: type, key: str) -> str | None:
    """What is wrong with a dotted `key`, None where it names a field of `schema`."""
    node: object = schema
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if typing.get_origin(node) is dict:  # whose keys are free, but not those of its values
            node = typing.get_args(node)[1]
            continue
        if not (isinstance(node, type) and dataclasses.is_dataclass(node)):
            return None  # inside something that takes anything
        fields = typing.get_type_hints(node)
        if part not in fields:
            prefix = "".join(f"{p}." for p in parts[:depth])
            known = [prefix + name for name in fields]
            near = difflib.get_close_matches(prefix + part, known, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            return f"There is no setting {prefix + part!r}.{meant} There are: {', '.join(known)}"
        node = fields[part]
        if typing.get_origin(node) in (typing.Union, types.UnionType):  # SETTINGS | None
            node = typing.get_args(node)[0]
    return None
