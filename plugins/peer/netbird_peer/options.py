"""The choices of an operator for `up`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Credentials:
    """The proof that the peer may join, where its key alone does not suffice. At most one is set.

    Attributes:
        setup_key: a setup key of the account.
        token: a token of a user, from the account's identity provider.
        login: logs a user in at the provider, which may take minutes, and returns their token. Raises JoinFailed.
    """

    setup_key: str = ""
    token: str = ""
    login: Callable[[], Awaitable[str]] | None = None


@dataclass(frozen=True, slots=True)
class UpOptions:
    """An operator's choices.

    Attributes:
        roots: a PEM file of the certificate authorities to trust for all servers; None for the system's.
        bind: the address of the UDP socket; "" for all.
        dns_labels: extra names of this peer.
        relay_only: True for no direct paths.
        loopback: True to use loopback addresses for direct paths, in a network on one machine.
    """

    roots: Path | None = None
    bind: str = ""
    dns_labels: tuple[str, ...] = ()
    relay_only: bool = False
    loopback: bool = False
