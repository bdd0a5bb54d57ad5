"""A small server that speaks as much rosbridge as the tests need, and misbehaves as it is told.

It stands in for what the real server from wheels cannot do (actions, ROS 1) and for servers that
are broken. It runs on a thread of its own; `kill` cuts all its connections, as a crash would.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

PATIENCE = 5.0
"""Seconds within which what is to happen has to happen."""


def wait_until(what: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """What the function gives once that is true.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + timeout
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return found


class FakeServer:
    """Records what it gets, answers by `answers`, sends what it is told to.

    Attributes:
        got: all messages, over all connections, in order.
        answers: op -> function from a message to the messages (or raw frames) that answer it.
        deaf: accept connections, and read nothing: not even signs of life are answered.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, small_buffers: bool = False):
        self.tls = tls
        self.small_buffers = small_buffers
        self.got: list[dict[str, Any]] = []
        self.answers: dict[str, Callable[[dict[str, Any]], list[Any]]] = {}
        self.deaf = False
        self.connections: set[ServerConnection] = set()
        self.opened = 0
        self._server: Server | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, work: Any) -> Any:
        """Run a coroutine on its thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def start(self) -> None:
        self.do(self._start())

    async def _start(self) -> None:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.small_buffers:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", self.port))
        self._server = await serve(
            self._talk, sock=listening, ssl=self.tls, ping_interval=None, compression=None,
            close_timeout=0.1, max_size=2**25,
        )  # fmt: skip

    def kill(self) -> None:
        """Cut everything, with no word of goodbye."""
        self.do(self._kill())

    async def _kill(self) -> None:
        if self._server is None:
            return
        self._server.close(close_connections=False)
        for connection in list(self.connections):
            sock = connection.transport.get_extra_info("socket")
            if sock.fileno() >= 0:  # else the client has gone by itself, and it is closed
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.transport.abort()
        await self._server.wait_closed()
        self._server = None

    async def _talk(self, connection: ServerConnection) -> None:
        self.connections.add(connection)
        self.opened += 1
        if self.deaf:
            connection.transport.pause_reading()
        try:
            async for frame in connection:
                assert isinstance(frame, str), "a client must not send binary frames"
                message = json.loads(frame)
                self.got.append(message)
                for answer in self.answers.get(message["op"], lambda _: [])(message):
                    await connection.send(
                        answer if isinstance(answer, str | bytes) else json.dumps(answer)
                    )
        except ConnectionClosed:
            pass
        finally:
            self.connections.discard(connection)

    def hear(self, hears: bool) -> None:
        """Stop or go on reading from the present connections."""

        async def work() -> None:
            for connection in self.connections:
                transport = connection.transport
                (transport.resume_reading if hears else transport.pause_reading)()

        self.do(work())

    def send(self, *frames: Any) -> None:
        """To all connections; what is neither text nor bytes goes as JSON."""

        async def work() -> None:
            for connection in list(self.connections):
                for frame in frames:
                    await connection.send(
                        frame if isinstance(frame, str | bytes) else json.dumps(frame)
                    )

        self.do(work())

    def publish(self, topic: str, message: dict[str, Any]) -> None:
        self.send({"op": "publish", "topic": topic, "msg": message})

    def of(self, op: str) -> list[dict[str, Any]]:
        """What came with this op."""
        return [m for m in self.got if m["op"] == op]
