"""The plugin of management: the signal server on the gRPC port that peers use anyway, as NetBird's combined server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from netbird_host.sources import source_of
from netbird_management import Management, PluginInfo, RpcService, hookimpl
from netbird_signal.events import keep_reporting, report_contested
from netbird_signal.exchange import Exchange, Limits
from netbird_signal.rates import Rate
from netbird_signal.service import SignalService
from netbird_wire.signalexchange_pb2_grpc import add_SignalExchangeServicer_to_server

DEFAULTS = Limits()
SECONDS_OF_BURST = 10
"""A rate of the settings may be exceeded at once by this many seconds' worth."""


class Options(BaseModel):
    """The section `[signal_server]`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    streams: Annotated[int, Field(ge=1)] = DEFAULTS.streams
    """Maximum number of registered peers; beyond it RESOURCE_EXHAUSTED."""
    streams_of_address: Annotated[int, Field(ge=1)] = DEFAULTS.streams_of_source
    """Maximum number of registered peers of one address (IPv6: a /64); beyond it RESOURCE_EXHAUSTED."""
    messages_per_second: Annotated[int, Field(ge=1)] = int(DEFAULTS.all_messages.per_second)
    """Rate of messages of all peers, ten seconds' worth at once. Beyond it, peers that send much are refused with
    RESOURCE_EXHAUSTED, so that signal takes a bounded share of the process's time."""

    own_peers_only: bool = True
    """True to register only keys of this management's peers, and to pass messages only within an account. False for a
    server that also serves the peers of other managements."""

    def limits(self) -> Limits:
        rate = Rate(self.messages_per_second, SECONDS_OF_BURST * self.messages_per_second)
        return Limits(streams=self.streams, streams_of_source=self.streams_of_address, all_messages=rate)


class Signal:
    """Serves `SignalExchange` while management runs. Peers need no token: the boxes of messages authenticate them."""

    def __init__(self) -> None:
        self._exchange: Exchange | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-signal"),
            summary="the signal server: peers exchange sealed offers and answers, to reach each other",
            options=Options,
        )

    @hookimpl
    def lifespan(self, management: Management) -> AbstractAsyncContextManager[None]:
        self._exchange = _exchange(management)
        return self._reporting(self._exchange)

    @asynccontextmanager
    async def _reporting(self, exchange: Exchange) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            reporting = tasks.create_task(keep_reporting(exchange))
            try:
                yield
            finally:
                reporting.cancel()

    @hookimpl
    def rpc(self, management: Management) -> list[RpcService]:
        exchange = self._exchange or _exchange(management)

        def source(_context: Any) -> str:
            return source_of(management.caller_address())

        return [
            RpcService(
                SignalService(exchange, source), add_SignalExchangeServicer_to_server, open=True, stop=exchange.stop
            )
        ]


def _exchange(management: Management) -> Exchange:
    options = management.options(Options)
    return Exchange(
        options.limits(),
        asyncio.get_running_loop().time,
        account_of=management.account_of_peer if options.own_peers_only else None,
        on_contested=report_contested,
    )
