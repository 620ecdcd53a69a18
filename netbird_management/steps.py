"""What hooks take and return: decisions, gates, patches of the network, and what a plugin sees of the host."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, Protocol

from netbird_management.ids import AccountId, GroupId
from netbird_management.network.model import Group, Peer, Policy
from netbird_management.network.snapshot import AccountSnapshot
from netbird_management.services.model import Capabilities


class Allow(Enum):
    """The one value that opens a door; an enum with one member, so that `is not ALLOW` narrows to the denial."""

    ALLOW = "allow"


ALLOW: Final = Allow.ALLOW


@dataclass(frozen=True, slots=True)
class Deny:
    """Not let in. `reason` is stable, for machines (`not_in_group`); `required_groups` would have been enough."""

    reason: str
    required_groups: tuple[Group, ...] = ()


Decision = Literal[Allow.ALLOW] | Deny


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a service breaks. `message` is what the caller reads, `field` the dotted REST name it is about."""

    message: str
    field: str = ""


class PeerGate(Protocol):
    """Says whether a peer may use the service it was made for."""

    def __call__(self, *, peer: Peer, groups: tuple[Group, ...], account: AccountSnapshot) -> Decision:
        """`groups` are the *peer's* groups by name, `All` included. In memory, no I/O. Raising denies."""


WithholdPredicate = Callable[[Capabilities], Decision]
"""Whether a proxy with these capabilities may have a mapping. A denial's reason is shown to the operator; raising, or
returning anything but `ALLOW`, withholds."""


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """An address record that the members of some groups get to see.

    `zone` is the apex it is listed under and `name` the full name, both without trailing dot; `address` is IPv4 text.
    """

    groups: frozenset[GroupId]
    zone: str
    name: str
    address: str
    ttl: int = 5


@dataclass(frozen=True, slots=True)
class NetworkPatch:
    """What one service adds to its account's network. Never stored, never shown as a policy or a zone.

    Zones made of `records` are non-authoritative (other names under the apex resolve as ever) and no search domains.
    """

    policies: tuple[Policy, ...] = ()
    records: tuple[DnsRecord, ...] = ()


class Management(Protocol):
    """What a plugin sees of the running host."""

    def snapshot(self, account_id: AccountId) -> AccountSnapshot | None:
        """What is true of an account right now."""
