"""Demonstrations in LeRobot format, as batches of windows.

>>> data = open_data(DataConfig(root="outputs/demonstrations", image_size=64))
>>> order = Order(len(data.train), batch_size=32, seed=0)
>>> window = data.train.batch(order.batch(step=0))
"""

from .config import DataConfig, KeysConfig
from .dataset import Data, Facts, open_data, read_facts
from .episodes import split_episodes
from .errors import DatasetError
from .normalize import Normalizer, frames_to_float, frames_to_uint8
from .order import Order, Orders, members
from .resize import resize_frames
from .windows import Windows

__all__ = [
    "Data",
    "DataConfig",
    "DatasetError",
    "Facts",
    "KeysConfig",
    "Normalizer",
    "Order",
    "Orders",
    "Windows",
    "frames_to_float",
    "frames_to_uint8",
    "members",
    "open_data",
    "read_facts",
    "resize_frames",
    "split_episodes",
]
