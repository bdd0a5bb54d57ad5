"""The adapter: LeRobot's commands know our policy and our environments as type "selfflow", arms
behind ROS as robots of type "selfflow_ros".

LeRobot imports ``lerobot_policy_selfflow`` by its distribution name and finds the policy by file
name: `configuration_selfflow`, `modeling_selfflow`, `processor_selfflow`. `training_selfflow` is
the policy's training half, `env_selfflow` registers the environments, `robot_selfflow` the robot
(``robots/`` is ``configs/robot``, linked so that wheels hold it). This folder is importable
under that one name only: under two, every class in it would exist twice, and LeRobot would refuse
the second registration of "selfflow".
"""

if __name__ != "lerobot_policy_selfflow":
    raise ImportError(
        f"this package was imported as {__name__!r}; its only name is lerobot_policy_selfflow: "
        "`import lerobot_policy_selfflow` (after `make setup` or `pip install -e .`)"
    )

from .configuration_selfflow import SelfflowConfig
from .env_selfflow import SelfflowEnv
from .modeling_selfflow import SelfflowPolicy
from .processor_selfflow import make_selfflow_pre_post_processors
from .robot_selfflow import ArmHeldError, SelfflowRos, SelfflowRosConfig

__all__ = [
    "ArmHeldError",
    "SelfflowConfig",
    "SelfflowEnv",
    "SelfflowPolicy",
    "SelfflowRos",
    "SelfflowRosConfig",
    "make_selfflow_pre_post_processors",
]
