"""A proxy around one plugin: real options, real calls to a real gRPC server; and exchanges that are over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from pydantic import BaseModel

from netbird_proxy import (
    AccountId,
    Address,
    ExchangeId,
    Headers,
    Origin,
    RouteSpec,
    ServiceId,
    Try,
    Upstream,
)
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.sources.management.channel import Connection, ManagementClient
from netbird_proxy.sources.management.stream import MappingStream
from netbird_proxy.testing.fakes import FakeProxy
from netbird_wire.proxy_service_pb2 import (
    AccessLog,
    ProxyCapabilities,
    SendAccessLogRequest,
    SendAccessLogResponse,
    SyncMappingsResponse,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceServicer, add_ProxyServiceServicer_to_server

UPSTREAM = Upstream("http", Address("100.64.0.7", 8080))


class Management(ProxyServiceServicer):
    """Takes access logs. `answer` may be made to fail or to hang."""

    def __init__(self, extensions: tuple[str, ...]) -> None:
        self.extensions = extensions
        self.calls: asyncio.Queue[SendAccessLogRequest] = asyncio.Queue()
        self.seen: list[AccessLog] = []
        self.last: list[AccessLog] = []  # of the present call
        self.answer: Callable[[grpc.aio.ServicerContext[Any, Any]], Any] | None = None

    async def SyncMappings(self, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        yield SyncMappingsResponse(initial_sync_complete=True, management_extensions=self.extensions)
        await asyncio.Event().wait()

    async def SendAccessLog(self, request: SendAccessLogRequest, context: Any) -> SendAccessLogResponse:
        self.calls.put_nowait(request)
        self.last = list(request.logs or [request.log])
        self.seen += self.last
        if self.answer is not None:
            await self.answer(context)
        return SendAccessLogResponse()

    async def entries(self, number: int) -> list[AccessLog]:
        """The next entries, however they were sent."""
        found: list[AccessLog] = []
        async with asyncio.timeout(20):
            while len(found) < number:
                call = await self.calls.get()
                found += call.logs or [call.log]
        return found


class Sink:
    """Whoever applies mappings, when there are none."""

    def __init__(self) -> None:
        self.applied = asyncio.Event()

    def stream_opened(self) -> None: ...
    def stream_lost(self) -> None: ...
    async def apply(self, update: object) -> None:
        self.applied.set()


Connected = AbstractAsyncContextManager[tuple[Management, ManagementClient]]
Connect = Callable[..., Connected]
MakeHost = Callable[..., FakeProxy]
MakeExchange = Callable[..., Exchange]


@pytest.fixture
def connect() -> Connect:
    """Start a management, and a client that has had its first message."""

    @asynccontextmanager
    async def connected(*extensions: str) -> AsyncIterator[tuple[Management, ManagementClient]]:
        server, management, sink = grpc.aio.server(), Management(extensions), Sink()
        add_ProxyServiceServicer_to_server(management, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        connection = Connection(
            url=f"http://127.0.0.1:{port}",
            token="t",
            proxy_id="proxy-1",
            version="1",
            domain="p.example",
            allow_insecure=True,
        )
        client = ManagementClient(connection)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(MappingStream(client, ProxyCapabilities, sink).run())
                async with asyncio.timeout(20):
                    await sink.applied.wait()
                try:
                    yield management, client
                finally:
                    running.cancel()
        finally:
            await client.close()
            await server.stop(None)

    return connected


@pytest.fixture
def host() -> MakeHost:
    """Make a proxy out of a management channel and the options of the plugin under test."""

    def make(*options: BaseModel, management: object = None) -> FakeProxy:
        return FakeProxy(options=options, management=cast(Any, management))

    return make


@pytest.fixture
def exchange() -> MakeExchange:
    """Make an exchange that is over: 200 after 12 ms, one try, unless told otherwise."""

    def make(raw_path: bytes = b"/a/b", *, routed: bool = True, query: bytes = b"", **fields: Any) -> Exchange:
        made = Exchange(
            id=ExchangeId("0af7651916cd43dd8448eb211c80319c"),
            origin=Origin("tunnel acct-1", AccountId("acct-1"), Address("100.64.0.9", 1), Address("100.64.0.1", 443)),
            method=fields.pop("method", "GET"),
            scheme="https",
            host="app.example",
            authority=b"app.example",
            raw_path=raw_path,
            query=query,
            http_version="1.1",
            headers=fields.pop("headers", Headers()),
            client_address="100.64.0.9",
            allowed_notes=fields.pop("allowed_notes", frozenset()),
        )
        made.started_at, made.started_ns, made.ended_ns = 1_700_000_000.5, 1_000_000, 13_500_000
        if routed:
            made.route = RouteSpec(
                ServiceId("svc-1"), AccountId("acct-1"), "app.example", "app.example", b"/a", (UPSTREAM,)
            )
            made.tries.append(Try(UPSTREAM, 2_000_000, 3_000_000, 12_000_000, 13_000_000, status=200))
        made.status, made.bytes_received, made.bytes_sent = 200, 3, 1234
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    return make
