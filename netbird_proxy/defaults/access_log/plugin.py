"""The access log's hooks."""

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
GATHER = 0.02
GATHERED = 64
"""Exchanges are put into words together, after so many seconds or so many of them. One at a time, between all the other
work of an exchange, the same code finds its own data gone from the processor's caches and takes five times as long."""
LONG_PATH = 1024
"""Bytes. An exchange with a longer one is put into words at once: what is remembered of it is cut."""


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
    """Maximum number of entries that wait for management; further ones are dropped and counted."""


class AccessLog:
    """One line an exchange, and one entry for management."""

    def __init__(self) -> None:
        self._writer: LineWriter | None = None
        self._sender: Sender | None = None
        self._accounts: set[str] = set()  # those that had a route
        self._proxy: Proxy | None = None  # while it runs
        self._gathered: list[tuple[Observer, ExchangeView]] = []
        self._timer: asyncio.TimerHandle | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(summary="one line an exchange, here and at management", options=AccessLogOptions)

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
            sender = Sender(proxy, self._accounts, queue=options.queue)
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
                log.error("access_log.lines_lost", reason="the output took no more when the process ended")

    def _reopen(self, report: ReloadReport) -> None:
        if self._writer is not None and self._writer.path is not None:
            self._writer.reopen()
            report.done.append(f"access log {self._writer.path}, opened anew")

    @hookimpl
    def observe(self, route: RouteSpec | None) -> Observer | None:
        unwanted = [] if route is None else [upstream.disable_access_log for upstream in route.upstreams]
        if unwanted and all(unwanted):
            return None
        lines, entries = LineFormat(route), EntryFormat(route)
        ours_alone = route is not None and not route.account  # a mapping of the file's: management does not know it
        if route is not None and route.account and len(self._accounts) < 2:
            self._accounts.add(route.account)  # all that is asked is whether there is one, and which

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
            if (sender := self._sender) is not None and not ours_alone:
                groups = exchange.identity is not None and sender.batches
                entry = entries.entry(exchange, groups=groups)
                if route is None and (exchange.origin is None or exchange.origin.account is None):
                    sender.put_stranger(entry)
                else:
                    sender.put(entry)

        def record_unless_disabled(exchange: ExchangeView) -> None:
            if not (exchange.tries and exchange.tries[-1].upstream.disable_access_log):
                record(exchange)

        return record_unless_disabled if any(unwanted) else record

    def _format_gathered(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        for format_and_send, exchange in gathered:
            try:
                format_and_send(exchange)
            except Exception as exc:  # it must not take the others with it
                if self._proxy is not None:
                    self._proxy.count("observer_failed")
                log.warning("access_log.failed", exchange=exchange.id, error=f"{type(exc).__name__}: {exc}")


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[int, str], None], lines: int, why: str) -> None:
    """From the writer's thread: counters belong to the loop. After its end nobody is left to be told."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, lines, why)
