"""One websocket connection: who may be spoken to, writing at once or not at all, and cutting it."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import broadcast
from websockets.protocol import State

from . import protocol
from .errors import NotConnectedError


@dataclass
class Link:
    """One connection, while it lasts. Used on the bridge's thread only."""

    connection: ClientConnection
    generation: int
    fragments: protocol.Fragments
    asked: float | None = None  # when the sign of life was asked for that has not come yet
    latency: float = math.nan

    @property
    def open(self) -> bool:
        return self.connection.state is State.OPEN

    def write(self, text: str) -> None:
        """Into the socket, at once.

        Raises:
            NotConnectedError: the socket is gone.
        """
        try:
            broadcast([self.connection], text, raise_exceptions=True)
        except ExceptionGroup as errors:
            raise NotConnectedError(f"not sent: {errors.exceptions[0]}") from errors

    def stalled(self, after: float) -> bool:
        """Whether the other end owes a sign of life for longer than that, seconds."""
        asked = self.asked
        return asked is not None and time.monotonic() - asked > after

    def drop(self) -> None:
        """Cut the connection, and throw away what the system has not sent yet."""
        sock = self.connection.transport.get_extra_info("socket")
        if sock is not None and self.open:
            with contextlib.suppress(OSError):  # already gone
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.transport.abort()


def checked_url(url: str, tls: ssl.SSLContext | None, allow_remote: bool) -> str:
    """``host:port`` of an url that may be spoken to.

    Raises:
        ValueError: see `Bridge`.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("ws", "wss") or not host:
        raise ValueError(f"{url!r} is no ws://HOST:PORT or wss://HOST:PORT")
    if parts.scheme == "ws" and tls is not None:
        raise ValueError("a TLS context is for wss:// urls")
    if parts.scheme == "ws" and not allow_remote and not _is_loopback(host):
        raise ValueError(
            f"{host} is another machine, and ws:// is not encrypted: anyone on the way could move "
            "the robot. Use wss://, or a tunnel to 127.0.0.1; allow_remote=True if the network is "
            "yours alone"
        )
    return f"{host}:{parts.port or (443 if parts.scheme == 'wss' else 80)}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
