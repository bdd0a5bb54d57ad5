"""Actions in both forms, against the fake: control_msgs is in no wheel, nor is ROS 1."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from envs.ros.actions import Goal
from envs.ros.bridge import Bridge
from envs.ros.errors import CallError, NotConnectedError, StaleGenerationError

from .fake import FakeServer, wait_until

ACTION, TYPE = "/arm/follow_joint_trajectory", "control_msgs/FollowJointTrajectory"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as found:
        yield found


class Ros2:
    """An action server as rosbridge shows it in ROS 2."""

    ros = 2

    def __init__(self, server: FakeServer):
        self.server = server

    def goals(self) -> list[dict[str, Any]]:
        return self.server.of("send_action_goal")

    def ids(self) -> list[str]:
        return [g["id"] for g in self.goals()]

    def cancelled(self) -> list[str]:
        return [m["id"] for m in self.server.of("cancel_action_goal")]

    def feedback(self, id_: str, values: Any) -> None:
        self.server.send({"op": "action_feedback", "action": ACTION, "id": id_, "values": values})

    def end(self, id_: str, status: str, values: Any) -> None:
        number = {"succeeded": 4, "canceled": 5, "aborted": 6}[status]
        head = {"op": "action_result", "action": ACTION, "id": id_}
        self.server.send(head | {"values": values, "status": number, "result": True})


class Ros1:
    """The same in ROS 1: five topics."""

    ros = 1

    def __init__(self, server: FakeServer):
        self.server = server

        def answers(message: dict[str, Any]) -> list[Any]:
            status = {"op": "publish", "topic": f"{ACTION}/status", "msg": {"status_list": []}}
            return [status] if message["topic"] == f"{ACTION}/status" else []

        server.answers["subscribe"] = answers

    def published(self, part: str) -> list[dict[str, Any]]:
        topic = f"{ACTION}/{part}"
        return [m["msg"] for m in self.server.of("publish") if m["topic"] == topic]

    def goals(self) -> list[dict[str, Any]]:
        return self.published("goal")

    def ids(self) -> list[str]:
        return [g["goal_id"]["id"] for g in self.goals()]

    def cancelled(self) -> list[str]:
        return [m["id"] for m in self.published("cancel")]

    def feedback(self, id_: str, values: Any) -> None:
        status = {"goal_id": {"id": id_}, "status": 1}
        self.server.publish(f"{ACTION}/feedback", {"status": status, "feedback": values})

    def end(self, id_: str, status: str, values: Any) -> None:
        number = {"succeeded": 3, "canceled": 2, "aborted": 4}[status]
        told = {"goal_id": {"id": id_}, "status": number}
        self.server.publish(f"{ACTION}/result", {"status": told, "result": values})


@pytest.fixture(params=[Ros2, Ros1], ids=["ROS 2", "ROS 1"])
def robot(request: pytest.FixtureRequest, server: FakeServer) -> Any:
    return request.param(server)


@pytest.fixture
def client(robot: Any) -> Iterator[Bridge]:
    with Bridge(robot.server.url, ros=robot.ros, retry_s=(0.01, 0.05)) as found:
        yield found


def send(robot: Any, client: Bridge) -> Goal:
    goal = client.send_goal(ACTION, TYPE, {"trajectory": 1})
    wait_until(lambda: goal.id in robot.ids())
    return goal


@pytest.mark.parametrize("status", ["succeeded", "canceled", "aborted"])
def test_a_goal_gives_feedback_and_a_result(robot: Any, client: Bridge, status: str) -> None:
    goal, other = send(robot, client), send(robot, client)
    robot.feedback("somebody else's", {"error": 1})
    robot.feedback(goal.id, {"error": 2})
    assert goal.feedback.wait(0, 5).value == {"error": 2}
    with pytest.raises(TimeoutError):
        goal.result(0.01)
    assert not goal.done
    robot.end("somebody else's", "aborted", {"error_code": 1})
    robot.end(goal.id, status, {"error_code": 0})
    robot.end(goal.id, "aborted", {"error_code": 1})  # the first word counts
    result = goal.result(5)
    assert (result.status, result.values) == (status, {"error_code": 0})
    assert result.succeeded == (status == "succeeded")
    assert goal.done
    assert not other.done
    assert other.feedback.read() is None


def test_a_goal_is_cancelled_by_its_id(robot: Any, client: Bridge) -> None:
    goal = send(robot, client)
    send(robot, client)
    goal.cancel()
    wait_until(lambda: robot.cancelled() == [goal.id])
    robot.end(goal.id, "canceled", {})
    assert goal.result(5).status == "canceled"


def test_a_goal_is_lost_with_its_connection_and_never_sent_again(
    robot: Any, client: Bridge
) -> None:
    goal = send(robot, client)
    threading.Timer(0.02, robot.server.kill).start()
    with pytest.raises(NotConnectedError):
        goal.result(5)
    with pytest.raises((NotConnectedError, TimeoutError)):
        client.send_goal(ACTION, TYPE, {}, timeout=0.01)
    robot.server.start()
    wait_until(lambda: client.connected)
    with pytest.raises(NotConnectedError, match="connection was lost"):
        goal.cancel()
    with pytest.raises(StaleGenerationError):
        client.send_goal(ACTION, TYPE, {}, generation=1)
    again = send(robot, client)
    assert robot.ids() == [goal.id, again.id]
    assert not robot.cancelled()


def test_ros_2_asks_for_feedback_and_spells_the_type(server: FakeServer) -> None:
    with Bridge(server.url) as client:
        goal = client.send_goal(ACTION, TYPE, {"trajectory": 1})
        (sent,) = wait_until(lambda: server.of("send_action_goal"))
        assert sent == {
            "op": "send_action_goal",
            "id": goal.id,
            "action": ACTION,
            "action_type": "control_msgs/action/FollowJointTrajectory",
            "args": {"trajectory": 1},
            "feedback": True,
        }


@pytest.mark.parametrize("failure", ["result", "status"])
def test_ros_2_a_goal_that_the_server_refuses_says_so(server: FakeServer, failure: str) -> None:
    def answers(message: dict[str, Any]) -> list[Any]:
        if failure == "status":
            return [
                {"op": "status", "level": "error", "msg": "no such action", "id": message["id"]}
            ]
        head = {"op": "action_result", "action": ACTION, "id": message["id"]}
        return [head | {"values": "no such action", "result": False}]

    server.answers["send_action_goal"] = answers
    with Bridge(server.url) as client:
        goal = client.send_goal(ACTION, TYPE, {})
        with pytest.raises(CallError, match="no such action"):
            goal.result(5)


@pytest.mark.parametrize(
    "type_", [TYPE, f"{TYPE}Action", "control_msgs/action/FollowJointTrajectory"]
)
def test_ros_1_names_its_topics_and_types(server: FakeServer, type_: str) -> None:
    Ros1(server)
    with Bridge(server.url, ros=1) as client:
        client.send_goal(ACTION, type_, {})
        asked = {m["topic"]: m["type"] for m in server.got if "type" in m}
    assert asked == {
        f"{ACTION}/goal": f"{TYPE}ActionGoal",
        f"{ACTION}/cancel": "actionlib_msgs/GoalID",
        f"{ACTION}/feedback": f"{TYPE}ActionFeedback",
        f"{ACTION}/result": f"{TYPE}ActionResult",
        f"{ACTION}/status": "actionlib_msgs/GoalStatusArray",
    }


def test_ros_1_without_an_action_server_sends_nothing(server: FakeServer) -> None:
    with Bridge(server.url, ros=1) as client:
        with pytest.raises(TimeoutError, match="status"):
            client.send_goal(ACTION, TYPE, {}, timeout=0.05)
        assert not server.of("publish")
