"""What can go wrong with a bridge, each under a name of its own."""

from __future__ import annotations


class BridgeError(Exception):
    """Whatever goes wrong with a bridge."""


class ProtocolError(BridgeError, ValueError):
    """A message that is none, or that breaks a bound."""


class NonFiniteError(ProtocolError):
    """NaN or infinity in a message; says where."""


class NotConnectedError(BridgeError, ConnectionError):
    """There is no connection, or it was lost before an answer came. Nothing is sent later."""


class StalledError(NotConnectedError):
    """There is a connection, but the other end does not keep up: what is sent now would wait."""


class StaleGenerationError(BridgeError):
    """The connection is another one than the sender was armed on."""


class CallError(BridgeError):
    """A service or an action says that it failed, or the server says so of the request."""
