"""The library's errors. Callers convert them into their own errors at their borders."""

from __future__ import annotations


class OverlayError(Exception):
    """Base of the errors that this library raises."""


class ConnectError(OverlayError):
    """A dial failed. Always one of the four subclasses below; the message names the address."""


class Refused(ConnectError):
    """The peer answered that nothing listens on the port."""


class Unreachable(ConnectError):
    """No peer has the address, or its peer is away."""


class TimedOut(ConnectError):
    """No answer came before the dial's deadline."""


class Failed(ConnectError):
    """The node itself cannot dial: it is closed, broken or full."""


class AlreadyListening(OverlayError):
    """The port has a listener already."""
