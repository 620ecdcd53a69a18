"""The plugin that adds the command `netbird-proxy peer`."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from netbird_proxy import PluginInfo, hookimpl

if TYPE_CHECKING:
    import typer


class Peer:
    """Adds the command; it changes nothing in a running proxy."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-peer"),
            summary="`netbird-proxy peer`: an overlay peer in userspace, from a WireGuard file",
        )

    @hookimpl
    def commands(self) -> typer.Typer:
        # Imported here, because a running proxy does not need it.
        from netbird_peer.peer_command import app

        return app
