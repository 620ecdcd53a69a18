"""The server with its operator's interfaces: the memory behind `explain`, the admin socket and the health listener."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from netbird_host.systemd import Supervisor
from netbird_proxy.api.model import Address
from netbird_proxy.operator.admin import serve_admin
from netbird_proxy.operator.decisions import Decisions
from netbird_proxy.operator.health import serve_health
from netbird_proxy.operator.view import OperatorView
from netbird_proxy.process.listeners import WorkerSockets
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.server import ProxyServer


def operated(
    loaded: Loaded,
    *,
    supervisor: Supervisor | None = None,
    decisions: Decisions | None = None,
    sockets: WorkerSockets | None = None,
    beside: Sequence[Address] = (),
) -> ProxyServer:
    """A server that records its decisions and serves its admin socket and health listener.

    Args:
        decisions: records the exchanges; by default a new one, which only the admin socket reads.
        sockets: the sockets of a worker.
        beside: addresses on which a worker's parent accepts, which no service may have for an upstream.
    """
    recorded = Decisions() if decisions is None else decisions

    @asynccontextmanager
    async def attend(server: ProxyServer) -> AsyncIterator[Sequence[Address]]:
        view, health = OperatorView(server, recorded), loaded.settings.health
        async with (
            serve_admin(view, server.admin_socket),
            serve_health(view, health.listen, metrics=health.metrics) as addresses,
        ):
            yield [*addresses, *beside]

    return ProxyServer(
        loaded,
        supervisor=supervisor,
        observers=[("core", recorded.record)],
        attendants=[attend],
        sockets=sockets,
    )
