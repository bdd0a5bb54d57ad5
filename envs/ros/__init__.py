"""An arm behind ROS, spoken to over a rosbridge v2 websocket; and the bench that tests it.

::

    from envs.ros.bridge import Bridge
    from envs.ros.messages import joint_reading, joint_trajectory

    with Bridge("ws://127.0.0.1:9090") as bridge:
        joints = bridge.subscribe("/joint_states", "sensor_msgs/msg/JointState")
        commands = bridge.advertise(
            "/joint_trajectory_controller/joint_trajectory", "trajectory_msgs/msg/JointTrajectory"
        )
        armed_on = bridge.generation
        reading = joint_reading(joints.wait(after=0, timeout=1.0).value)
        commands.publish(joint_trajectory(...), generation=armed_on)

Two Python environments meet here and share nothing but a socket, so nothing is imported here. Ours
(``.venv``) never imports ROS: `envs.ros.graph` starts, in ``.venv-ros``, our MuJoCo arm as a ROS 2
node (`envs.ros.node`) and the rosbridge server.

A software link is no safety function: the watchdog that counts is the robot's own.
"""
