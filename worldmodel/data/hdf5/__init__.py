"""Other people's HDF5 demonstrations, in the layouts that are common: robomimic's and ALOHA's.

>>> demonstrations = open_demonstrations("low_dim.hdf5", Choice(cameras=[]))
>>> state, action = demonstrations.vectors(demonstrations.episodes[0])

``scripts.import_hdf5`` makes LeRobot datasets of them.
"""

from .demonstrations import (
    Choice,
    Demonstration,
    Demonstrations,
    find_files,
    fingerprint,
    open_demonstrations,
)
from .layout import Layout

__all__ = [
    "Choice",
    "Demonstration",
    "Demonstrations",
    "Layout",
    "find_files",
    "fingerprint",
    "open_demonstrations",
]
