"""`netbird-proxy peer`: the command beside the proxy's own."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from netbird_proxy import PluginInfo, hookimpl

if TYPE_CHECKING:
    import typer


class Peer:
    """Adds a command, and nothing to a running proxy."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-peer"),
            summary="`netbird-proxy peer`: an overlay peer in userspace, from a WireGuard file",
        )

    @hookimpl
    def commands(self) -> typer.Typer:
        # Imported here: a running proxy has no use for it.
        from netbird_peer.peer_command import app

        return app
