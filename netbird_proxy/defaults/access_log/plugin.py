"""The hooks of the access log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Annotated

import structlog
from pydantic import BaseModel, ConfigDict, Field

from netbird_proxy import ExchangeView, LineWriter, Observer, PluginInfo, Proxy, ReloadReport, RouteSpec, hookimpl
from netbird_proxy.defaults.access_log.entry import EntryFormat
from netbird_proxy.defaults.access_log.line import LineFormat
from netbird_proxy.defaults.access_log.sender import Sender

log = structlog.get_logger("netbird_proxy.access_log")

CLOSE_TIMEOUT = 2.0
# Exchanges are formatted together, after GATHER seconds or GATHERED exchanges. Formatting them one at a time, between
# the other work of an exchange, takes five times as long, because its data has left the processor's caches.
GATHER = 0.02
GATHERED = 64
LONG_PATH = 1024
"""Bytes of a path. An exchange with a longer path is formatted at once, so that waiting exchanges stay small."""


class AccessLogOptions(BaseModel):
    """`[access_log]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: Annotated[str, Field(min_length=1)] = "stdout"
    """Destination of the lines: `stdout`, `stderr`, `off`, or a file's path."""
    flush_interval: Annotated[float, Field(gt=0, le=10)] = 0.05
    """Maximum time, in seconds, that lines are gathered; then they are written together."""
    management: bool = True
    """Report each exchange to management."""
    queue: Annotated[int, Field(ge=1)] = 4096
    """Maximum number of entries that wait for a call to management; further ones are dropped and counted. One account
    gets at most three quarters of it. Divided by `process.workers`."""


class AccessLog:
    """Writes one line and one entry for management for each exchange."""

    def __init__(self) -> None:
        self._writer: LineWriter | None = None
        self._sender: Sender | None = None
        self._accounts: set[str] = set()  # accounts that had a route
        self._proxy: Proxy | None = None  # while it runs
        self._gathered: list[tuple[Observer, ExchangeView]] = []
        self._timer: asyncio.TimerHandle | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="one line for each exchange, in the log and at management", options=AccessLogOptions)

    @hookimpl
    def lifespan(self, proxy: Proxy) -> AbstractAsyncContextManager[None]:
        return self._running(proxy)

    @asynccontextmanager
    async def _running(self, proxy: Proxy) -> AsyncIterator[None]:
        options = proxy.options(AccessLogOptions)
        self._loop = loop = asyncio.get_running_loop()

        def lost(lines: int, why: str) -> None:
            proxy.count("access_log_lines_lost", lines)
            log.error("access_log.lines_lost", lines=lines, reason=why)

        writer = None
        if options.output != "off":
            writer = self._writer = LineWriter(
                options.output,
                interval=options.flush_interval,
                failed=lambda lines, why: _on_loop(loop, lost, lines, why),
            )
            if writer.path is not None:
                proxy.on_reload("access_log", self._reopen)
        self._proxy = proxy
        try:
            if not (options.management and proxy.management.exists):
                try:
                    yield
                finally:
                    self._format_gathered()
                return
            sender = Sender(proxy, self._accounts, queue=proxy.share.count(options.queue))
            async with sender.running():
                self._sender = sender
                try:
                    yield
                finally:
                    self._format_gathered()
                    self._sender = None
        finally:
            self._proxy = self._writer = None
            if writer is not None and not await asyncio.to_thread(writer.close, CLOSE_TIMEOUT):
                log.error("access_log.lines_lost", reason="the output accepted no more lines when the process ended")

    def _reopen(self, report: ReloadReport) -> None:
        if self._writer is not None and self._writer.path is not None:
            self._writer.reopen()
            report.done.append(f"access log {self._writer.path}, reopened")

    @hookimpl
    def observe(self, route: RouteSpec | None) -> Observer | None:
        disabled = [] if route is None else [upstream.disable_access_log for upstream in route.upstreams]
        if disabled and all(disabled):
            return None
        lines, entries = LineFormat(route), EntryFormat(route)
        from_file = route is not None and not route.account  # management does not know a mapping of the file
        if route is not None and route.account and len(self._accounts) < 2:
            self._accounts.add(route.account)  # the sender only asks whether there is exactly one

        def record(exchange: ExchangeView) -> None:
            raw = exchange.raw_path
            if self._proxy is None:
                return
            gathered = self._gathered
            gathered.append((format_and_send, exchange))
            if len(gathered) >= GATHERED or len(raw) > LONG_PATH:
                self._format_gathered()
            elif self._timer is None:
                self._timer = self._loop.call_later(GATHER, self._format_gathered)

        def format_and_send(exchange: ExchangeView) -> None:
            if (writer := self._writer) is not None:
                writer.write(lines.line(exchange))
            if (sender := self._sender) is not None and not from_file:
                groups = exchange.identity is not None and sender.batches
                entry = entries.entry(exchange, groups=groups)
                origin = exchange.origin
                account = route.account if route is not None else origin.account if origin is not None else None
                sender.put(account, entry)

        def record_unless_disabled(exchange: ExchangeView) -> None:
            if not (exchange.tries and exchange.tries[-1].upstream.disable_access_log):
                record(exchange)

        return record_unless_disabled if any(disabled) else record

    def _format_gathered(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        for format_and_send, exchange in gathered:
            try:
                format_and_send(exchange)
            except Exception as exc:  # a failure of one must not lose the others
                if self._proxy is not None:
                    self._proxy.count("observer_failed")
                log.warning("access_log.failed", exchange=exchange.id, error=f"{type(exc).__name__}: {exc}")


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[int, str], None], lines: int, why: str) -> None:
    """Call from the writer's thread into the loop, which owns the counters. Does nothing after the end of the loop."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, lines, why)
