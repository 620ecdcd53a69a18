"""The ways in which `up` ends."""

from __future__ import annotations


class JoinFailed(Exception):
    """The network cannot be joined. The message states the fault and the remedy."""


class LoginFailed(JoinFailed):
    """The user could not be logged in at the identity provider."""


class ControlStop(Exception):
    """Another command asked `up` to end."""
