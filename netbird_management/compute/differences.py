"""Comparison of two snapshots of an account in the parts that network maps depend on.

Presence and logins of ordinary peers change rows often but no map. The presence of a proxy's peer does change maps, as
names resolve only to connected proxies.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from netbird_management.model.accounts import Peer, PeerMeta, User
from netbird_management.model.snapshot import AccountSnapshot, Change

_K = TypeVar("_K")
_V = TypeVar("_V", Peer, User)


def network_differs(before: AccountSnapshot | None, after: AccountSnapshot | None) -> bool:
    """True if anything except services differs in a way that a map or a plugin's patch could show."""
    if before is None or after is None:
        return before is not after
    if before is after:
        return False
    return (
        replace(before.account, serial=0) != replace(after.account, serial=0)
        or _other(before.groups, after.groups)
        or _other(before.policies, after.policies)
        or before.custom_domains != after.custom_domains
        or before.dns != after.dns
        or before.networks != after.networks
        or _differ(before.peers, after.peers)
        or _differ(before.users, after.users)
    )


def services_differ(change: Change) -> bool:
    before, after = change.before, change.after
    if before is None or after is None:
        return before is not after
    return any(before.services.get(id_) != after.services.get(id_) for id_ in change.touched.services)


def _other(before: object, after: object) -> bool:
    """True if the values differ. An unchanged part is the same object, and comparing objects first is cheap."""
    return before is not after and before != after


def _differ(before: Mapping[_K, _V], after: Mapping[_K, _V]) -> bool:
    if before is after:
        return False
    if before.keys() != after.keys():
        return True
    return any(old is not (new := after[key]) and lasting(old) != lasting(new) for key, old in before.items())


def lasting(value: Peer | User) -> Peer | User:
    """The value without presence and times, and without the facts about a peer that no map shows."""
    if isinstance(value, User):
        return replace(value, last_login=None)
    return replace(
        value,
        meta=PeerMeta(netbird_version=value.meta.netbird_version, capabilities=value.meta.capabilities),
        last_seen=None,
        last_login=None,
        connection_ip="",
        stream_started_ns=0,
        connected=value.connected and value.proxy is not None,
    )
