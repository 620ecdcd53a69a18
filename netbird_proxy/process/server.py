"""The life of the process: the order in which its parts start, and the reverse in which they stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from netbird_host.collector import calm_collector
from netbird_host.descriptors import raise_limit
from netbird_host.shutdown import Shutdown, on_signals
from netbird_host.systemd import Supervisor
from netbird_proxy.api.errors import ProxyError
from netbird_proxy.api.model import Address
from netbird_proxy.api.steps import Observer
from netbird_proxy.process.assembly import assemble
from netbird_proxy.process.listeners import WorkerSockets
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.state import default_socket
from netbird_proxy.sources.management.stream import MappingStream

log = structlog.get_logger("netbird_proxy.server")

TUNNEL_STOP = 10.0
"""Seconds for tunnels to close, once nothing uses them."""

Attendant = Callable[["ProxyServer"], AbstractAsyncContextManager[Sequence[Address]]]
"""A service beside the running proxy, such as the admin socket. It yields the addresses on which it accepts."""


class ProxyServer:
    """Starts and stops all parts of one proxy.

    Attributes:
        parts: all parts, as `assemble` built them.
        host: the proxy as plugins see it.
        ready: listeners are open and mappings are in force.
        listening: listeners are open.
        shutdown: the running process's shutdown, or None before the start.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        supervisor: Supervisor | None = None,
        observers: Sequence[tuple[str, Observer]] = (),
        attendants: Sequence[Attendant] = (),
        sockets: WorkerSockets | None = None,
    ) -> None:
        """Args:
        supervisor: notified when the proxy is ready and when it stops.
        observers: called for each exchange after those of plugins, with the name that reports their failures.
        attendants: entered in order after the plugins have started, left in reverse before they stop.
        sockets: the sockets of a worker; by default the server binds its addresses itself.
        """
        self.loaded = loaded
        self.parts = assemble(loaded, observers, sockets)
        self.host = self.parts.host
        self.ready = False
        self._supervisor = supervisor or Supervisor({})
        self._attendants = attendants
        self.listening = False
        self.shutdown: Shutdown | None = None
        self._stopping = False
        self._may_connect = asyncio.Event()

    @property
    def admin_socket(self) -> Path:
        return self.loaded.settings.admin.socket or default_socket(self.host.id)

    @property
    def unready(self) -> str:
        """Reason why load balancers should not send clients here now; empty if they should."""
        if not self.ready:
            return "stopping" if self._stopping else "no mappings yet" if self.listening else "starting"
        if not self.parts.watchdog.ready:
            return "stalled"
        if not self.parts.environment.hung_steps.ready:
            return "steps hang"
        return ""

    async def run(self) -> int:
        """Serve until a signal asks for a stop. Returns the exit code, 0 after such a stop."""
        calm_collector()
        self._take_descriptors()
        with self.host.reload.on_hangup(), on_signals(ends_process=True) as shutdown:
            await self.serve(shutdown)
        return 0

    def _take_descriptors(self) -> None:
        limits = self.loaded.settings.limits
        required = limits.connections * len(self.loaded.settings.listen) + limits.in_flight + 256
        if (granted := raise_limit()) < required:
            why = "not all of limits.connections can be open at once"
            log.warning("descriptors.few", granted=granted, wanted=required, reason=why)

    async def serve(self, shutdown: Shutdown) -> None:
        """Start, serve until `shutdown` is asked for, drain, and stop.

        Raises:
            SettingsError: an address or socket is not available.
            PluginFailed: a plugin could not start, or its background work failed.
        """
        self.shutdown = shutdown
        self._warn()
        try:
            # The stream ends last: management refuses calls, such as plugins' last log entries, of a proxy without one.
            async with (
                self._connected(),
                self.loaded.hooks.running(
                    self.host, on_failure=lambda failed: shutdown.ask(f"plugin {failed.plugin} failed")
                ),
                AsyncExitStack() as attended,
            ):
                for attend in self._attendants:
                    self.parts.listeners.beside += await attended.enter_async_context(attend(self))
                try:
                    with self.parts.watchdog.watching():
                        await self._serve(shutdown)
                finally:
                    self.parts.pools.close()
        except BaseExceptionGroup as group:
            # Task groups wrap exceptions; the caller gets the single error in them.
            if isinstance(cause := sole_cause(group), ProxyError):
                raise cause from cause.__cause__
            raise
        log.info("proxy.stopped", reason=shutdown.reason)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """Run the mapping stream from when `_serve` permits it until the context is left."""
        client, stream = self.parts.client, self.parts.stream
        if client is None or stream is None:
            yield
            return
        try:
            async with asyncio.TaskGroup() as group:
                receiving = group.create_task(self._receive(stream), name="mapping stream")
                yield
                receiving.cancel()
        finally:
            await client.close()

    async def _receive(self, stream: MappingStream) -> None:
        await self._may_connect.wait()
        await stream.run()

    async def _serve(self, shutdown: Shutdown) -> None:
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self.parts.app.exchanges.run(), name="open exchanges"),
                group.create_task(self._supervisor.keep_alive(), name="watchdog messages"),
                group.create_task(self.host.reload.serve(), name="reload"),
            ]
            starting: asyncio.Task[None] | None = None
            try:
                await self.parts.listeners.bind()
                if self.parts.client is not None:
                    self._may_connect.set()
                    background.append(group.create_task(self.parts.statuses.run(), name="status reports"))
                if self.parts.file is not None:
                    self.parts.file.start()
                    background.append(group.create_task(self.parts.file.run(), name="mappings file"))
                await self.parts.accounts.run(self.host, group)
                starting = group.create_task(self._begin(), name="start")
                reason = await shutdown.wait()
                log.info("proxy.stopping", reason=reason)
            finally:
                self.ready = self.listening = False
                self._stopping = True
                if starting is not None:  # listeners that are not open yet stay closed
                    starting.cancel()
                self._supervisor.stopping("open exchanges have their time to end")
                await self.parts.listeners.drain(shutdown)
                if self.parts.gate is not None:
                    await self.parts.gate.close()
                await shutdown.drain(self.parts.accounts.stop(), timeout=TUNNEL_STOP)
                for task in background:
                    task.cancel()

    async def _begin(self) -> None:
        """Open the host listeners once every source's first snapshot is in force, then report readiness.

        If a source is away for longer than `startup_timeout`, the listeners open without it, and unknown hosts get 503.
        The proxy is ready then if it has a mappings file, else once the first snapshot of management is in force.
        """
        try:
            async with asyncio.timeout(self.loaded.settings.limits.startup_timeout):
                await self.parts.routing.complete()
        except TimeoutError:
            log.warning("proxy.incomplete", awaited=self.parts.routing.awaited, reason="no mappings arrived in time")
        self.parts.listeners.open()
        self.listening = True
        if self.parts.file is None:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(self._supervisor.starting("waiting for the first mappings"))
                await self.parts.routing.complete()
                asking.cancel()
        self.ready = True
        log.info(
            "proxy.ready",
            id=self.host.id,
            version=self.host.version,
            listening=[str(listener.address) for listener in self.parts.listeners.host],
            admin=str(self.admin_socket),
            plugins=[plugin.id for plugin in self.loaded.hooks.plugins],
        )
        self._supervisor.ready(f"listening on {', '.join(map(str, self.parts.listeners.addresses))}")

    def _warn(self) -> None:
        for name in self.loaded.ignored:
            log.warning("settings.ignored", name=name, reason="this setting is not supported")
        for renamed in self.loaded.given.renamed:
            log.warning("settings.renamed", name=renamed.old, now=renamed.new)
        url = self.loaded.settings.management.url if self.loaded.settings.management is not None else ""
        if url.startswith("http://") and not _is_loopback(url):
            log.warning("management.insecure", url=url, reason="the proxy's token is sent unencrypted")


def sole_cause(error: BaseException) -> BaseException:
    """The exception inside of nested groups that have a single one, else the innermost group that has several."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _is_loopback(url: str) -> bool:
    host = url.split("://", 1)[1].rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")
