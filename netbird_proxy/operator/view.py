"""A running proxy as its operator sees it, on the admin socket and on the health listener."""

from __future__ import annotations

from typing import Any

from netbird_host import logs
from netbird_host.reload import Reload
from netbird_proxy.operator.decisions import Decisions
from netbird_proxy.operator.inspection import describe_plugins, describe_routes, dry_run
from netbird_proxy.process.server import ProxyServer


class OperatorView:
    """Implements `admin.Inspected` and `health.Watched`."""

    def __init__(self, server: ProxyServer, decisions: Decisions) -> None:
        self.decisions = decisions
        self._server = server
        self._parts = server.parts

    @property
    def reload(self) -> Reload[Any]:
        return self._server.host.reload

    @property
    def unready(self) -> str:
        return self._server.unready

    def checks(self) -> dict[str, bool]:
        client = self._parts.client
        return {
            "management_connected": client is None or client.connected,
            "initial_sync_complete": client is None or client.initial_sync_complete,
            "all_clients_healthy": self._parts.accounts.all_up,
        }

    def numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        client = self._parts.client
        now = {
            "ready": int(not self.unready),
            "services": len(self._parts.routing),
            "tunnels": len(self._parts.listeners.inside),
        }
        now["exchanges_open"] = len(self._parts.app.exchanges)
        if client is not None:
            now["management_connected"] = int(client.connected)
        return self._counted(), now

    def describe_state(self) -> dict[str, Any]:
        client = self._parts.client
        return {
            "id": self._server.host.id,
            "version": self._server.host.version,
            "ready": not self.unready,
            "unready": self.unready,
            "management": {
                "connected": client.connected,
                "state": client.state,
                "initial_sync_complete": client.initial_sync_complete,
                "extensions": sorted(client.extensions),
            }
            if client is not None
            else None,
            "mappings_file": self._parts.file.describe() if self._parts.file is not None else None,
            "listening": [str(listener.address) for listener in self._parts.listeners.host],
            "counters": dict(sorted(self._counted().items())),
        }

    def _counted(self) -> dict[str, int]:
        host = self._server.host
        if new := logs.lost_lines() - host.counters["log_lines_lost"]:
            host.count("log_lines_lost", new)
        return dict(host.counters)

    def describe_plugins(self) -> list[dict[str, Any]]:
        return describe_plugins(self._server.loaded.hooks.plugins)

    def describe_routes(self) -> list[dict[str, Any]]:
        return describe_routes(self._parts.routing)

    def dry_run(self, host: str, path: str, account: str | None) -> dict[str, Any]:
        return dry_run(self._parts.routing, host, path, account)
