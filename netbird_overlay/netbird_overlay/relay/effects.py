"""The effects of the choice of relays, which a shell performs in order: connections, subscriptions and reports."""

from __future__ import annotations

from dataclasses import dataclass

from netbird_wire.relay_tokens import RelayToken
from netbird_wire.relay_url import RelayUrl


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect link `link` to `url`, at `address` first if that is not "". Report `authenticated` or `lost`.

    A foreign one must not be authenticated where it leads to the relay of another link: report `leads_to` instead.
    """

    link: int
    url: RelayUrl
    address: str
    token: RelayToken
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class HangUp:
    """End a link. Nothing about it is reported any more."""

    link: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Subscribe to these relay ids on a link, or unsubscribe."""

    link: int
    peers: tuple[bytes, ...]
    subscribe: bool


@dataclass(frozen=True, slots=True)
class Online:
    """A path to the peer is ready. `early` are datagrams that it has sent already."""

    key: bytes
    server: str
    early: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Offline:
    """There is no path to the peer at this server, and none will come: `open` it again."""

    key: bytes
    server: str


@dataclass(frozen=True, slots=True)
class HomeChanged:
    """The home relay was reached or lost."""


Effect = Dial | HangUp | Announce | Online | Offline | HomeChanged
