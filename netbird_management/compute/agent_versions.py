"""Versions of agents, on which the form of their maps depends."""

from collections.abc import Iterable
from typing import Final

from netbird_management.model.accounts import Peer

FORWARDER_PORT: Final = 22054
"""Port on which routing peers answer DNS queries."""
OLD_FORWARDER_PORT: Final = 5353
"""The port of older agents. If an account has any, all of its peers use it."""
_FORWARDER_SINCE: Final = (0, 59, 0)
_DEVELOPMENT: Final = ("development", "ci-", "dev-")


def forwarder_port(peers: Iterable[Peer]) -> int:
    """The port on which an account's routing peers answer DNS queries. Peers without an agent have no say."""
    versions = {peer.meta.netbird_version for peer in peers if peer.meta.netbird_version}
    recent = all(text.startswith(_DEVELOPMENT) or is_since(text, _FORWARDER_SINCE, other=False) for text in versions)
    return FORWARDER_PORT if recent else OLD_FORWARDER_PORT


def is_since(version: str, first: tuple[int, ...], *, other: bool) -> bool:
    """True for a version that is at least `first`; `other` for a text that is no version, as of development builds."""
    parts = version.removeprefix("v").split("-")[0].split(".")
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        return other
    return tuple(map(int, parts)) >= first
