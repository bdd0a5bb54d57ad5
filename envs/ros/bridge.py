"""A connection to a rosbridge server, kept up on a thread of its own.

What a robot must be able to rely on:

- **Nothing is sent later than it was asked for.** `Publisher.publish` writes now or raises; there
  is no queue. The other end is asked for a sign of life all the time (`beat_s`), and while it owes
  one for longer than `stall_s`, nothing more is written. So what can still lie in buffers on the
  way when a stalled server wakes is at most `beat_s + stall_s` old. A connection that owes a sign
  for `lost_s` is cut, and what the system had not yet sent of it is thrown away.
- **Nothing is sent again.** A new connection subscribes and advertises anew, no more. It has
  another `generation`, by which a commander that was armed on the old one is refused.
- **Being connected says nothing about the robot.** A server can accept connections when the ROS
  behind it is dead, and many errors are not reported: watch the age of what comes.

Only loopback is spoken to without encryption, unless told otherwise.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import math
import random
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from . import actions, protocol
from .actions import Goal
from .errors import (
    BridgeError,
    CallError,
    NotConnectedError,
    ProtocolError,
    StaleGenerationError,
    StalledError,
)
from .link import Link, checked_url
from .messages import type_name
from .slots import Slot
from .statuses import STATUS_TEXT, Status, Statuses

T = TypeVar("T")
Sink = Callable[[dict[str, Any], float, int], None]

OPEN_REQUESTS = 64
"""Services and goals that wait for an answer at a time."""
HOP_S = 0.25
"""How long the thread may take to get to what it is asked; then the question is withdrawn."""
CLOSE_S = 0.5
"""How long a closing handshake may take."""


@dataclass(frozen=True)
class Publisher:
    """What `Bridge.advertise` gives."""

    topic: str
    type: str
    _bridge: Bridge = field(repr=False)

    def publish(self, message: Mapping[str, Any], generation: int | None = None) -> None:
        """Write a message into the socket before this returns, or raise and never send it.

        The server says nothing about what it does with it; see `Bridge.statuses` for complaints.

        Args:
            message: as its type has it; NumPy arrays may stand for lists.
            generation: of the connection that the sender was armed on; None takes any.

        Raises:
            NotConnectedError: there is no connection; `StalledError`: nor one that keeps up.
            StaleGenerationError: it is another connection.
            NonFiniteError: NaN or infinity in the message; says where.
            ProtocolError: the message is nothing that JSON can hold, or too long.
        """
        self._bridge._send(protocol.publish(self.topic, message), generation)


class Bridge:
    """A client of a rosbridge server; all its methods may be called from any thread.

    Args:
        url: ``ws://HOST:PORT`` or ``wss://HOST:PORT``.
        ros: 1 or 2: how types are spelt and actions spoken to.
        tls: for wss; None takes the system's authorities.
        allow_remote: speak to another machine without encryption.
        connect_s: how long connecting may take, seconds.
        retry_s: shortest and longest pause before connecting again, seconds; it doubles.
        beat_s, stall_s, lost_s: seconds, see above.
        max_bytes: of a message that arrives.

    Raises:
        ValueError: an url that is none, unencrypted to another machine, or times that fit nothing.
    """

    def __init__(
        self,
        url: str = "ws://127.0.0.1:9090",
        *,
        ros: int = 2,
        tls: ssl.SSLContext | None = None,
        allow_remote: bool = False,
        connect_s: float = 2.0,
        retry_s: tuple[float, float] = (0.05, 2.0),
        beat_s: float = 0.1,
        stall_s: float = 0.3,
        lost_s: float = 2.0,
        max_bytes: int = protocol.MAX_BYTES,
    ):
        if ros not in (1, 2):
            raise ValueError(f"ros is {ros!r}; there are 1 and 2")
        if not 0 < retry_s[0] <= retry_s[1] or not 0 < stall_s < lost_s or beat_s <= 0:
            raise ValueError(
                f"0 < retry_s[0] <= retry_s[1], 0 < stall_s < lost_s and 0 < beat_s; found "
                f"{retry_s}, {stall_s}, {lost_s} and {beat_s}"
            )
        self.where = checked_url(url, tls, allow_remote)
        self.url, self.ros, self.tls = url, ros, tls
        self.connect_s, self.retry_s = connect_s, retry_s
        self.beat_s, self.stall_s, self.lost_s = beat_s, stall_s, lost_s
        self.max_bytes = max_bytes
        self._life = threading.Lock()
        self._thread: threading.Thread | None = None
        self._settled = threading.Event()  # connected once, or ended
        self._generation = 0
        self._link: Link | None = None
        self._why = "it was not started"
        self._ids = itertools.count()
        self._prefix = uuid.uuid4().hex[:12]
        # What follows is changed on the thread only, or while there is none.
        self._declared: dict[tuple[str, str], protocol.Message] = {}
        self._slots: dict[str, Slot] = {}
        self._sinks: dict[str, Sink] = {}
        self._calls: dict[str, concurrent.futures.Future[dict[str, Any]]] = {}
        self._goals: dict[str, Goal] = {}
        self._said = Statuses()

    # --- life ------------------------------------------------------------------------------------

    def start(self, timeout: float = 5.0) -> None:
        """Connect, and stay connected until `close`. May be called again after it.

        Raises:
            NotConnectedError: no connection within `timeout` seconds; then nothing runs.
            RuntimeError: it runs already.
        """
        with self._life:
            if self._thread is not None:
                raise RuntimeError("the bridge runs already")
            self._settled.clear()
            self._loop = asyncio.new_event_loop()
            self._stop = asyncio.Event()
            self._thread = threading.Thread(target=self._run, name="rosbridge", daemon=True)
            self._thread.start()
        self._settled.wait(timeout)
        if not self.connected:
            why = self._why
            self.close()
            raise NotConnectedError(f"no rosbridge server at {self.where}: {why}")

    def close(self) -> None:
        """Disconnect and end the thread. Whoever waits for an answer gets `NotConnectedError`."""
        with self._life:
            if self._thread is None:
                return
            # Closed already if the thread ended on an error of its own.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Bridge:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, which says nothing about the robot behind it."""
        link = self._link
        return link is not None and link.open

    @property
    def generation(self) -> int:
        """Number of the present or last connection: 0 before the first, one more for each."""
        return self._generation

    @property
    def latency(self) -> float:
        """Seconds that the last sign of life took to come; NaN before the first."""
        link = self._link
        return link.latency if link else math.nan

    @property
    def unanswered(self) -> float:
        """Seconds for which the server has owed a sign of life; infinite without a connection."""
        link = self._link
        if link is None:
            return math.inf
        asked = link.asked
        return 0.0 if asked is None else time.monotonic() - asked

    # --- topics ----------------------------------------------------------------------------------

    def subscribe(self, topic: str, type: str, throttle_s: float = 0.0, cbor: bool = False) -> Slot:  # noqa: A002
        """Ask for a topic, on this connection and on all later ones.

        A wrong type or a topic that nobody publishes is no error here, and often none at the
        server: what shows it is that nothing comes.

        Args:
            topic: its name.
            type: of its messages, in either form.
            throttle_s: shortest time between two messages.
            cbor: for cameras: bytes instead of base64.

        Raises:
            ValueError: no name of a type, or subscribed already in another way.
        """
        message = protocol.subscribe(topic, type_name(type, self.ros), throttle_s, cbor)

        def work() -> Slot:
            if known := self._declared.get(("subscribe", topic)):
                if known != message or topic not in self._slots:
                    raise ValueError(f"{topic} is subscribed to already, as {known}")
                return self._slots[topic]
            slot = self._slots[topic] = Slot(topic)
            self._sinks[topic] = slot.put
            self._declare(message)
            return slot

        return self._ask(work)

    def advertise(self, topic: str, type: str, latch: bool = False) -> Publisher:  # noqa: A002
        """Announce what is to be published, on this connection and on all later ones.

        Subscribers need a moment to find a new publisher: the first message may miss them.

        Args:
            topic: its name.
            type: of its messages, in either form.
            latch: whether the server keeps the last message for who comes late.

        Raises:
            ValueError: no name of a type, or advertised already in another way.
        """
        name = type_name(type, self.ros)
        message = protocol.advertise(topic, name, latch)

        def work() -> None:
            if (known := self._declared.get(("advertise", topic))) not in (None, message):
                raise ValueError(f"{topic} is advertised already, as {known}")
            if known is None:
                self._declare(message)

        self._ask(work)
        return Publisher(topic, name, self)

    def _declare(self, message: protocol.Message) -> None:
        self._declared[message["op"], message["topic"]] = message
        if self._link is not None and self._link.open:
            self._link.write(protocol.encode(message))

    def _send(self, message: protocol.Message, generation: int | None) -> None:
        text = protocol.encode(message)
        self._ask(lambda: self._write(text, generation))

    def _write(self, text: str, generation: int | None) -> Link:
        link = self._link
        if link is None or not link.open:
            raise NotConnectedError(
                f"not sent, there is no connection to {self.where}: {self._why}"
            )
        if generation is not None and generation != link.generation:
            raise StaleGenerationError(
                f"not sent: armed on connection {generation}, this is connection {link.generation}"
            )
        if link.stalled(self.stall_s):
            raise StalledError(
                f"not sent: {self.where} has given no sign of life for {self.unanswered:.2f} s"
            )
        if held := link.connection.transport.get_write_buffer_size():
            raise StalledError(f"not sent: {self.where} has not taken {held} bytes yet")
        link.write(text)
        return link

    # --- services and actions --------------------------------------------------------------------

    def call(
        self,
        service: str,
        type: str,  # noqa: A002
        args: Mapping[str, Any] | None = None,
        timeout: float = 5.0,
    ) -> dict[str, Any]:
        """Call a service and wait for its values.

        Raises:
            TimeoutError: no answer; the official server gives none to an unknown type. Whether the
                service was carried out is not known.
            CallError: the service or the server says that it failed.
            NotConnectedError: there is no connection, or it was lost before the answer.
            ProtocolError: arguments that cannot be sent (`NonFiniteError`: not finite).
        """
        id_ = self._new_id()
        message = protocol.call_service(id_, service, type_name(type, self.ros, "srv"), args or {})
        text = protocol.encode(message)
        answer: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()

        def work() -> None:
            self._require_room()
            self._write(text, None)
            self._calls[id_] = answer

        self._ask(work)
        try:
            response = answer.result(timeout)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"{service}: no answer within {timeout:g} s") from None
        finally:
            with contextlib.suppress(NotConnectedError):  # then it is forgotten with the connection
                self._ask(lambda: self._calls.pop(id_, None))
        values = response.get("values", {})
        if not response.get("result", True) or not isinstance(values, dict):
            raise CallError(f"{service} failed: {values!r:.{STATUS_TEXT}}")
        return values

    def send_goal(
        self,
        action: str,
        type: str,  # noqa: A002
        goal: Mapping[str, Any],
        generation: int | None = None,
        timeout: float = 2.0,
    ) -> Goal:
        """Send a goal to an action.

        Args:
            action: its name.
            type: in either form; in ROS 1 with or without "Action" at its end.
            goal: as the action has it.
            generation: see `Publisher.publish`.
            timeout: ROS 1: how long to wait for the action's server to show itself.

        Raises:
            As `Publisher.publish`; TimeoutError: ROS 1, and there is no such server.
        """
        id_ = self._new_id()
        if self.ros == 1:
            sent, cancel = self._ros1_action(id_, action, type, goal, timeout)
        else:
            name = type_name(type, 2, "action")
            sent = protocol.send_action_goal(id_, action, name, goal)
            cancel = protocol.cancel_action_goal(id_, action)
        text = protocol.encode(sent)

        def work() -> Goal:
            self._require_room()
            at = self._write(text, generation).generation
            cancelling = lambda: self._cancel(cancel, at)  # noqa: E731
            found = self._goals[id_] = Goal(id_, action, Slot(f"{action} feedback"), cancelling)
            return found

        return self._ask(work)

    def _cancel(self, message: protocol.Message, generation: int) -> None:
        try:
            self._send(message, generation)
        except StaleGenerationError as error:
            raise NotConnectedError(f"its connection was lost; {error}") from None

    def _ros1_action(
        self, id_: str, action: str, type_: str, goal: Mapping[str, Any], timeout: float
    ) -> tuple[protocol.Message, protocol.Message]:
        """The messages that send and cancel a goal, once the server knows its five topics."""
        topics = actions.ros1_topics(action, type_)
        for part in ("goal", "cancel"):
            self.advertise(*topics[part])

        def work() -> None:
            for part, sink in (("feedback", self._ros1_feedback), ("result", self._ros1_result)):
                topic, name = topics[part]
                if topic not in self._sinks:
                    self._sinks[topic] = sink
                    self._declare(protocol.subscribe(topic, name))

        self._ask(work)
        status = self.subscribe(*topics["status"])
        end, seen = time.monotonic() + timeout, 0
        while (sample := status.wait(seen, end - time.monotonic())).generation != self.generation:
            seen = sample.sequence
        return (
            protocol.publish(topics["goal"][0], actions.ros1_goal(id_, goal)),
            protocol.publish(topics["cancel"][0], actions.ros1_goal_id(id_)),
        )

    def _ros1_feedback(self, message: dict[str, Any], arrival: float, generation: int) -> None:
        goal = self._goals.get(actions.ros1_which(message) or "")
        values = message.get("feedback")
        if goal and isinstance(values, dict):
            goal.feedback.put(values, arrival, generation)

    def _ros1_result(self, message: dict[str, Any], arrival: float, generation: int) -> None:
        if goal := self._goals.pop(actions.ros1_which(message) or "", None):
            goal._outcome.set_result(actions.ros1_result(message))

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._ids)}"

    def _require_room(self) -> None:
        if len(self._calls) + len(self._goals) >= OPEN_REQUESTS:
            raise BridgeError(f"{OPEN_REQUESTS} services and goals wait for an answer already")

    # --- status ----------------------------------------------------------------------------------

    @property
    def statuses(self) -> tuple[Status, ...]:
        """The last that were reported, of any level."""
        return self._said.latest

    @property
    def errors(self) -> tuple[Status, ...]:
        """The first errors since the start or `clear_errors`; no flood pushes them out."""
        return self._said.errors

    @property
    def error_count(self) -> int:
        """How many errors there were since then."""
        return self._said.error_count

    def clear_errors(self) -> None:
        """Forget the errors: whoever was to see them has."""

        self._ask(self._said.clear_errors)

    # --- the thread ------------------------------------------------------------------------------

    def _ask(self, work: Callable[[], T]) -> T:
        """Have the thread do something, and hand over what it gives or raises.

        If it does not get to it in `HOP_S`, it is not done at all.
        """
        if self._thread is None:
            with self._life:
                if self._thread is None:
                    return work()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 (the caller's, on its own thread)
                future.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError:
            raise NotConnectedError(f"the bridge has ended: {self._why}") from None
        try:
            return future.result(HOP_S)
        except concurrent.futures.TimeoutError:
            if future.cancel():
                if self._loop.is_closed():  # it was ending while it was asked
                    raise NotConnectedError(f"the bridge has ended: {self._why}") from None
                raise StalledError(f"the bridge's thread was busy for {HOP_S} s") from None
            return future.result()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._stay_connected())
        except Exception as error:
            self._lose(f"an error of its own: {error!r}")
            raise
        finally:
            self._settled.set()

    async def _stay_connected(self) -> None:
        pause = self.retry_s[0]
        while not self._stop.is_set():
            try:
                connection = await self._unless_stopped(self._connect())
            except (OSError, WebSocketException, TimeoutError) as error:
                self._why = _reason(error)
            else:
                # Only a connection that showed a sign of life is a reason to be quick again.
                if connection is not None and await self._serve(connection):
                    pause = self.retry_s[0]
            await self._unless_stopped(asyncio.sleep(pause * random.uniform(0.8, 1.2)))
            pause = min(2 * pause, self.retry_s[1])

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` gives, or None if the bridge is to stop first."""
        doing, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            await _end(doing, stopping)

    async def _connect(self) -> ClientConnection:
        secure: dict[str, Any] = {}
        if self.url.lower().startswith("wss:"):
            secure["ssl"] = self.tls or ssl.create_default_context()
        return await connect(
            self.url,
            open_timeout=self.connect_s,
            close_timeout=CLOSE_S,
            ping_interval=None,  # ours is quicker
            max_size=self.max_bytes,
            write_limit=2 * protocol.MAX_SENT,
            compression=None,  # gains nothing on pictures, and costs time
            proxy=None,
            **secure,
        )

    async def _serve(self, connection: ClientConnection) -> bool:
        """Use a connection until it ends; whether it ever showed a sign of life."""
        self._generation += 1
        link = Link(connection, self._generation, protocol.Fragments(self.max_bytes))
        reading = asyncio.create_task(self._read(link))
        beating = asyncio.create_task(self._beat(link))
        stopping = asyncio.create_task(self._stop.wait())
        why = "the server closed the connection"
        try:
            for message in self._declared.values():
                link.write(protocol.encode(message))
            self._link = link
            self._settled.set()
            await asyncio.wait((reading, beating, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, beating):
                if task.done():
                    task.result()
        except (OSError, WebSocketException, TimeoutError, NotConnectedError) as error:
            why = _reason(error)
        except Exception as error:
            why = f"an error of its own: {error!r}"
            raise
        finally:
            self._why, self._link = why, None
            closing, polite = self._stop.is_set(), not link.stalled(self.stall_s)
            await _end(reading, beating, stopping)
            why = "the bridge was closed" if closing else why
            self._said.add(
                self._generation,
                "info" if closing else "warning",
                f"connection {link.generation} ended: {why}",
            )
            self._lose(why)
            if closing and polite:
                await connection.close()
            else:
                link.drop()
                await connection.wait_closed()
        return not math.isnan(link.latency)

    async def _beat(self, link: Link) -> None:
        """Ask for a sign of life again and again.

        Raises:
            TimeoutError: none came for `lost_s`.
        """
        while True:
            link.asked = time.monotonic()
            try:
                async with asyncio.timeout(self.lost_s):
                    await (await link.connection.ping())
            except TimeoutError:
                raise TimeoutError(f"no sign of life for {self.lost_s:g} s") from None
            link.latency, link.asked = time.monotonic() - link.asked, None
            await asyncio.sleep(self.beat_s)

    async def _read(self, link: Link) -> None:
        async for frame in link.connection:
            self._receive(link, frame)
            # Frames that are there already would keep commands waiting until the last is read.
            await asyncio.sleep(0)

    def _receive(self, link: Link, frame: str | bytes) -> None:
        arrival = time.monotonic()
        try:
            message: protocol.Message | None = protocol.decode(frame, self.max_bytes)
            if message is not None and message["op"] == "fragment":
                message = link.fragments.add(message, arrival)
            if message is not None:
                self._deliver(message, arrival, link.generation)
        except ProtocolError as error:
            self._said.add(self._generation, "error", f"a message was refused: {error}")

    def _deliver(self, message: protocol.Message, arrival: float, generation: int) -> None:
        """Put a checked message where it belongs; what nobody waits for (any more) is dropped."""
        op, id_ = message["op"], message.get("id")
        if op == "publish":
            if sink := self._sinks.get(message["topic"]):
                sink(message["msg"], arrival, generation)
        elif op == "service_response":
            if call := self._calls.pop(id_ or "", None):
                call.set_result(message)
        elif op == "action_feedback":
            if goal := self._goals.get(message["id"]):
                goal.feedback.put(message["values"], arrival, generation)
        elif op == "action_result":
            if goal := self._goals.pop(message["id"], None):
                try:
                    goal._outcome.set_result(actions.ros2_result(message))
                except CallError as error:
                    goal._outcome.set_exception(error)
        elif op == "status":
            level, text = message.get("level", "error"), message["msg"]
            self._said.add(self._generation, level, text)
            if level == "error" and id_:
                self._fail(id_, CallError(f"the server says: {text[:STATUS_TEXT]}"))

    def _fail(self, id_: str, error: BridgeError) -> None:
        if call := self._calls.pop(id_, None):
            call.set_exception(error)
        if goal := self._goals.pop(id_, None):
            goal._outcome.set_exception(error)

    def _lose(self, why: str) -> None:
        """The connection is gone, and with it every answer."""
        self._why = why
        for id_ in [*self._calls, *self._goals]:
            self._fail(id_, NotConnectedError(f"the connection was lost before the answer: {why}"))


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
