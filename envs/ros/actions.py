"""Actions: a goal that takes its time, with feedback on the way, a result, and a way to cancel it.

rosbridge has ops for the actions of ROS 2. Those of ROS 1 are five topics, spelt out here.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import protocol
from .errors import CallError
from .messages import header, time_message, type_name
from .slots import Slot

# Numbers of action_msgs/GoalStatus, and of ROS 1's actionlib_msgs/GoalStatus.
ROS2_STATUS = {4: "succeeded", 5: "canceled", 6: "aborted"}
ROS1_STATUS = {
    2: "canceled", 3: "succeeded", 4: "aborted", 5: "rejected", 8: "canceled", 9: "lost",
}  # fmt: skip


@dataclass(frozen=True)
class GoalResult:
    """How a goal ended.

    Attributes:
        status: "succeeded", "canceled", "aborted", "rejected", "lost" or "unknown".
        values: the action's result.
    """

    status: str
    values: dict[str, Any]

    @property
    def succeeded(self) -> bool:
        return self.status == "succeeded"


@dataclass
class Goal:
    """A goal that was sent. It belongs to the connection that it was sent by.

    Attributes:
        id: unique among all clients.
        action: its name.
        feedback: the latest.
    """

    id: str
    action: str
    feedback: Slot
    _cancel: Callable[[], None] = field(repr=False)
    _outcome: concurrent.futures.Future[GoalResult] = field(
        default_factory=concurrent.futures.Future, repr=False
    )

    @property
    def done(self) -> bool:
        """Whether it ended, or the connection did."""
        return self._outcome.done()

    def result(self, timeout: float) -> GoalResult:
        """Wait for the end.

        Raises:
            TimeoutError: it goes on; it is not cancelled for that.
            CallError: the server could not carry it out at all.
            NotConnectedError: the connection was lost: how it ends is not known.
        """
        try:
            return self._outcome.result(timeout)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"{self.action}: no result within {timeout:g} s") from None

    def cancel(self) -> None:
        """Ask for it to be cancelled; `result` says whether it was.

        Raises:
            NotConnectedError: there is no connection, or another one than it was sent by: nothing
                is asked.
        """
        self._cancel()


def ros2_result(message: Mapping[str, Any]) -> GoalResult:
    """From an action_result op.

    Raises:
        CallError: the server says that it failed.
    """
    values = message.get("values")
    if not message.get("result", True) or not isinstance(values, dict):
        raise CallError(f"the action failed: {values!r:.500}")
    number = message.get("status")
    return GoalResult("succeeded" if number is None else ROS2_STATUS.get(number, "unknown"), values)


# --- ROS 1 ---------------------------------------------------------------------------------------


def ros1_topics(action: str, type_: str) -> dict[str, tuple[str, str]]:
    """Part -> (topic, type), of an action of type ``pkg/Name`` or ``pkg/NameAction``."""
    base = type_name(type_, 1).removesuffix("Action")
    return {
        "goal": (f"{action}/goal", f"{base}ActionGoal"),
        "cancel": (f"{action}/cancel", "actionlib_msgs/GoalID"),
        "feedback": (f"{action}/feedback", f"{base}ActionFeedback"),
        "result": (f"{action}/result", f"{base}ActionResult"),
        "status": (f"{action}/status", "actionlib_msgs/GoalStatusArray"),
    }


def ros1_goal(id_: str, goal: Mapping[str, Any]) -> protocol.Message:
    return {"header": header(1), "goal_id": ros1_goal_id(id_), "goal": goal}


def ros1_goal_id(id_: str) -> protocol.Message:
    """Names a goal; as a message on the cancel topic, with its stamp of 0, it cancels only that."""
    return {"stamp": time_message(0.0, 1), "id": id_}


def ros1_which(message: Mapping[str, Any]) -> str | None:
    """Id of the goal that a feedback or result is about; None if it does not say."""
    status = message.get("status")
    goal_id = status.get("goal_id") if isinstance(status, dict) else None
    id_ = goal_id.get("id") if isinstance(goal_id, dict) else None
    return id_ if isinstance(id_, str) else None


def ros1_result(message: Mapping[str, Any]) -> GoalResult:
    """From a message on the result topic."""
    values = message.get("result")
    number = message["status"].get("status")
    status = ROS1_STATUS.get(number, "unknown") if isinstance(number, int) else "unknown"
    return GoalResult(status, values if isinstance(values, dict) else {})
