"""Clients of management in its benches: proxies that only listen, entries of the access log, and a stopwatch.

`python -m bench.wire HOST:PORT` is the stopwatch: a process of its own asks management for its key, over and over,
until its input ends; then it prints how long answers took, in seconds, as JSON. The answer needs nothing but the event
loop, so it tells for how long the loop was held up.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from bench.furnished import CLUSTER, Store
from netbird_management.model.ids import new_id
from netbird_wire.management_pb2 import Empty
from netbird_wire.management_pb2_grpc import ManagementServiceStub
from netbird_wire.proxy_service_pb2 import (
    AccessLog,
    ProxyCapabilities,
    SyncMappingsAck,
    SyncMappingsInit,
    SyncMappingsRequest,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceStub

PING_SECONDS = 0.01


class Proxy:
    """Takes a snapshot and what follows, and acknowledges it all."""

    def __init__(self, channel: grpc.aio.Channel, token: str, proxy_id: str) -> None:
        self.stub: Any = ProxyServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"), ("x-netbird-proxy-id", proxy_id))
        self._proxy_id = proxy_id

    async def connect(self) -> int:
        """Return the number of mappings, once all have arrived."""
        self.call = self.stub.SyncMappings(metadata=self.metadata)
        capabilities = ProxyCapabilities(supports_custom_ports=True, private=True, supports_private_service=True)
        init = SyncMappingsInit(proxy_id=self._proxy_id, address=CLUSTER, capabilities=capabilities)
        await self.call.write(SyncMappingsRequest(init=init))
        count, complete = 0, False
        while not complete:
            message = await self.next()
            count, complete = count + len(message.mapping), message.initial_sync_complete
        return count

    async def next(self) -> Any:
        message = await self.call.read()
        await self.call.write(SyncMappingsRequest(ack=SyncMappingsAck()))
        return message

    async def drain(self) -> None:
        """Takes whatever comes, until cancelled."""
        while True:
            await self.next()


def entry(store: Store) -> AccessLog:
    """One exchange with a public service, as a proxy tells of it."""
    log = AccessLog(
        log_id=new_id(),
        account_id=store.account_id,
        service_id=store.service_id,
        host=f"s1.{CLUSTER}",
        path="/some/path",
        duration_ms=3,
        method="GET",
        response_code=200,
        source_ip="192.0.2.1",
        auth_success=True,
        bytes_download=512,
        protocol="http",
    )
    log.timestamp.GetCurrentTime()
    return log


@asynccontextmanager
async def stopwatch(address: str) -> AsyncIterator[list[float]]:
    """Measures answers of the event loop meanwhile; the list is filled, in order of size, when this is left."""
    delays: list[float] = []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.wire", address), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    if process.stdout is None or process.stdin is None:
        raise LookupError("no input or output")
    await process.stdout.readline()
    try:
        yield delays
    finally:
        process.stdin.close()
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    delays += sorted(json.loads(output))


async def _measure(address: str) -> list[float]:
    delays = []
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = ManagementServiceStub(channel)
        await stub.GetServerKey(Empty(), timeout=60)
        print("ready", flush=True)
        while not ended.done():
            started = time.perf_counter()
            await stub.GetServerKey(Empty(), timeout=60)
            delays.append(time.perf_counter() - started)
            await asyncio.sleep(PING_SECONDS)
    return delays


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_measure(sys.argv[1]))))
