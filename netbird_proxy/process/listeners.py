"""The listeners of one proxy: on this machine's addresses, and in the tunnels of its accounts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import structlog

from netbird_host.shutdown import Shutdown
from netbird_host.systemd import inherited_sockets
from netbird_proxy.accounts.accounts import InboundListeners
from netbird_proxy.api.errors import SettingsError
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.api.tunnels import Tunnel
from netbird_proxy.app import ReverseProxy
from netbird_proxy.listening.connections import Connections, ListenLimits
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.sockets import HostListener, bind_host, inherited_for
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.listening.tunnels import HTTP_PORT, HTTPS_PORT, InsideListener, serve_inside
from netbird_proxy.process.settings import Listen, ProxySettings

log = structlog.get_logger("netbird_proxy.server")

DRAIN_MARGIN = 2.0
"""Seconds beyond `limits.drain` in which observers see the exchanges that were cut at its end."""


@dataclass(frozen=True, slots=True)
class WorkerSockets:
    """The sockets of the `[[listen]]` sections, in their order, which a worker inherits from its parent.

    Attributes:
        own: sockets on which this worker accepts, at least one for each section.
        others: worker → its sockets, on which this one accepts while that worker cannot.
    """

    own: Sequence[Sequence[socket.socket]]
    others: Mapping[int, Sequence[Sequence[socket.socket]]]

    def close_others(self) -> None:
        """Close this process's copies of the others' sockets. Idempotent."""
        for sections in self.others.values():
            for sock in chain.from_iterable(sections):
                sock.close()


def activated(listen: Sequence[Listen]) -> list[list[socket.socket]]:
    """Return the sockets that systemd passed to this process, for each section; a second call returns none.

    Raises:
        SettingsError: a socket is for no section.
    """
    try:
        handed_over = inherited_sockets()
    except ValueError as exc:
        raise SettingsError(f"socket activation: {exc}") from exc
    sections: list[list[socket.socket]] = []
    for section in listen:
        sections.append(inherited_for(section.address, handed_over))
        handed_over = [sock for sock in handed_over if sock not in sections[-1]]
    if handed_over:
        # The kernel would queue connections on it that this process never accepts.
        names = ", ".join(str(sock.getsockname()) for sock in handed_over)
        raise SettingsError(f"socket activation: no [[listen]] address matches the handed-over socket {names}")
    return sections


class Listeners:
    """Accepts connections for an application.

    Attributes:
        host: listeners on this machine's addresses, in the order of the settings.
        inside: listeners in tunnels, by account.
        beside: addresses of services for the operator, such as health.
    """

    def __init__(
        self,
        settings: ProxySettings,
        app: ReverseProxy,
        origins: Origins,
        tls: ServerTls | None,
        count: Callable[[str], object],
        sockets: WorkerSockets | None = None,
    ) -> None:
        """Args:
        sockets: the sockets of a worker; None in a process that binds its addresses itself.
        """
        self._settings = settings
        self._sockets = sockets
        self._app = app
        self._origins = origins
        self._tls = tls
        self._count = count
        self.host: list[HostListener] = []
        self.inside: dict[AccountId, InsideListener] = {}
        self.beside: list[Address] = []

    @property
    def addresses(self) -> Sequence[Address]:
        """Every address on which this process accepts."""
        host = [address for listener in self.host for address in listener.addresses]
        inside = [address for listener in self.inside.values() for address in listener.addresses]
        return [*host, *inside, *self.beside]

    async def bind(self) -> None:
        """Bind every `[[listen]]` address; no connection is accepted before `open`. SettingsError if one is in use."""
        own = self._sockets.own if self._sockets is not None else activated(self._settings.listen)
        for listen, inherited in zip(self._settings.listen, own, strict=True):
            scheme = "https" if listen.tls else "http"
            tls = self._tls if listen.tls else None
            connections = self._connections(f"{scheme} {listen.address}", behind_tls_proxy=listen.behind_tls_proxy)
            self.host.append(await bind_host(connections, listen.address, tls=tls, inherited=inherited))

    def open(self) -> None:
        """Accept on the addresses that `bind` has bound."""
        for listener in self.host:
            listener.open()

    def cover(self, workers: Iterable[int]) -> None:
        """Accept also on the sockets of these workers, instead of those of the last call. They cannot accept now."""
        if self._sockets is None:
            return
        workers = tuple(workers)
        for index, listener in enumerate(self.host):
            listener.cover(sock for worker in workers for sock in self._sockets.others[worker][index])

    async def drain(self, shutdown: Shutdown) -> None:
        """Close all listeners, give open exchanges `limits.drain` seconds to end, and cut the rest."""
        listeners: list[HostListener | InsideListener] = [*self.host, *self.inside.values()]
        bound = self._settings.limits.drain
        for listener in listeners:
            listener.close()
        if self._sockets is not None:
            self._sockets.close_others()
        await shutdown.drain(_all(listener.drain(bound) for listener in listeners), timeout=bound + DRAIN_MARGIN)
        self.host = []

    @asynccontextmanager
    async def listen_inside(self, account: AccountId, tunnel: Tunnel) -> AsyncIterator[InboundListeners]:
        """Listen in an account's tunnel until the context is left."""
        connections = self._connections(f"tunnel {account}", account=account, tunnel=tunnel)
        listener = await serve_inside(connections, tunnel, tls=self._tls)
        self.inside[account] = listener
        try:
            yield InboundListeners(listener.address, HTTP_PORT, HTTPS_PORT if listener.https else None)
        finally:
            del self.inside[account]
            listener.close()
            await listener.drain(0)  # a stopping process has drained them before

    def _connections(
        self,
        name: str,
        *,
        account: AccountId | None = None,
        tunnel: Tunnel | None = None,
        behind_tls_proxy: bool = False,
    ) -> Connections:
        return Connections(
            self._app,
            origins=self._origins,
            listener=name,
            limits=self._listen_limits(),
            account=account,
            tunnel=tunnel,
            behind_tls_proxy=behind_tls_proxy,
            is_trusted_proxy=lambda peer: self._app.trusted is not None and peer in self._app.trusted,
            count=self._count,
            log=log,
            record_refusal=self._app.record_refusal,
        )

    def _listen_limits(self) -> ListenLimits:
        limits = self._settings.limits
        return ListenLimits(
            connections=limits.connections,
            client_connections=max(1, round(limits.connections * limits.connections_share)),
            head_timeout=limits.head_timeout,
            head_bytes=limits.head_bytes,
            head_lines=limits.head_lines,
            idle_timeout=limits.keep_alive,
            body_idle=limits.body_idle,
            min_rate=limits.min_rate,
            min_rate_grace=limits.min_rate_grace,
            write_timeout=limits.write_timeout,
            half_close_timeout=limits.half_close,
            linger_timeout=limits.linger,
        )


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)
