"""Announces a STUN server, which another program on this machine runs."""

from __future__ import annotations

from urllib.parse import urlsplit

from netbird_management import Management, PeerServers, PluginInfo, hookimpl


class Stun:
    """Peers reach it at the same host as the gRPC port, on STUN's own port."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="announces the STUN server of this machine")

    @hookimpl
    def peer_servers(self, management: Management) -> PeerServers:
        return PeerServers(stuns=(f"stun:{urlsplit(management.grpc_url).hostname}:3478",))
