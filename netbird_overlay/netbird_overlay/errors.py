"""The library's errors. A user of the library turns them into its own where they leave it."""

from __future__ import annotations


class OverlayError(Exception):
    """Root of what this library raises on purpose."""


class ConnectError(OverlayError):
    """No connection was made. Always one of the four below; the message names the address."""


class Refused(ConnectError):
    """The peer is there, and nothing listens on the port."""


class Unreachable(ConnectError):
    """No way leads to the address: no peer has it, or its peer is away."""


class TimedOut(ConnectError):
    """The dial's own deadline passed first."""


class Failed(ConnectError):
    """The node itself could not dial: it is closed, broken or full."""
