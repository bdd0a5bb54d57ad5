"""The thin adapter that makes a Self-Flow checkpoint a LeRobot policy of type "selfflow".

LeRobot imports ``lerobot_policy_selfflow`` by its distribution name and finds the rest by file
name: `configuration_selfflow`, `modeling_selfflow`, `processor_selfflow`. This folder is importable
under that one name only: under two, every class in it would exist twice, and LeRobot would refuse
the second registration of "selfflow".
"""

if __name__ != "lerobot_policy_selfflow":
    raise ImportError(
        f"this package was imported as {__name__!r}; its only name is lerobot_policy_selfflow: "
        "`import lerobot_policy_selfflow` (after `make setup` or `pip install -e .`)"
    )

from .configuration_selfflow import SelfflowConfig
from .modeling_selfflow import SelfflowPolicy
from .processor_selfflow import make_selfflow_pre_post_processors

__all__ = ["SelfflowConfig", "SelfflowPolicy", "make_selfflow_pre_post_processors"]
