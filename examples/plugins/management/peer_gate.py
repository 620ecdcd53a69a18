"""Denies peers without an owner access to private services."""

from __future__ import annotations

from netbird_management import (
    ALLOW,
    AccountSnapshot,
    Decision,
    Deny,
    Group,
    Peer,
    PeerGate,
    PluginInfo,
    Service,
    hookimpl,
)


class OwnedPeers:
    """One of several gates, all of which must allow the peer."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="peers without an owner are let into nothing private")

    @hookimpl
    def peer_gate(self, service: Service) -> PeerGate | None:
        return _owned if service.private else None


def _owned(*, peer: Peer, groups: tuple[Group, ...], account: AccountSnapshot) -> Decision:
    return ALLOW if peer.user_id is not None else Deny("peer_without_owner")
