"""Everything that can be wrong with a dataset, as one family of exceptions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DatasetError(ValueError):
    """A dataset cannot be used as it is; the message says what was found and how to mend it."""


class RootError(DatasetError):
    """There is no LeRobot dataset at this root: no folder, an empty one, or something else."""


class HubError(DatasetError):
    """A dataset was asked for by its hub id and could not be fetched."""


class VersionError(DatasetError):
    """A LeRobot dataset in another version of the format than v3."""


class UnfinishedError(DatasetError):
    """A recording that was never finalised."""


class BrokenError(DatasetError):
    """A file is missing, truncated, or contradicts the metadata."""


class EmptyError(DatasetError):
    """No episode is left to learn from."""


class KeysError(DatasetError):
    """A feature (state, action, camera) is missing, ambiguous or of the wrong kind."""


class ValuesError(DatasetError):
    """State or action holds NaN or infinity."""


class RootsDisagreeError(DatasetError):
    """Two roots cannot be learnt from together."""


class CacheSpaceError(DatasetError):
    """The frame cache does not fit on its disk."""


def did_you_mean(name: str, existing: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` (with the leading space) for the nearest existing name, or ``""``."""
    nearest = difflib.get_close_matches(name, list(existing), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
