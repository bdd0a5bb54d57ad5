"""Driving an arm with a trained policy: the run-time between inference and whatever moves joints.

``arm.py`` says what an arm is to the run-time, ``inference.py`` computes chunks in a process of its
own, ``gates.py`` says when the arm must not go on, ``runtime.py`` is the loop. Nothing here knows
ROS; `envs.ros` brings an arm that speaks it.

None of this is a safety function. It is software on a general-purpose computer; what protects
people is the arm's own controller, its emergency stop and its guarding.
"""
