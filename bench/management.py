"""What management costs: first snapshots, validations, access logs, and changes meanwhile.

`python -m bench.management [--json]` starts `netbird-management run` on a store that it fills itself, and speaks to it
as proxies do. Rates are by the process's own CPU seconds, which neighbors on the machine disturb least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx

from netbird_management.clock import now
from netbird_management.ids import AccountId, GroupId, PeerId, ProxyId, ServiceId, new_id
from netbird_management.login.sessions import new_key_pair
from netbird_management.network.accounts import create_account
from netbird_management.network.groups import create_group
from netbird_management.network.peers import create_stock_peer
from netbird_management.network.users import create_token
from netbird_management.services import rows
from netbird_management.services.model import Capabilities, Service, ServiceMeta, Target, TargetOptions, TargetType
from netbird_management.services.proxies import Registration, register_proxy
from netbird_management.services.tokens import create_proxy_token
from netbird_management.state import State
from netbird_management.store.directory import prepare_directory
from netbird_management.store.models import ServiceRow
from netbird_wire.proxy_service_pb2 import (
    AccessLog,
    ProxyCapabilities,
    SendAccessLogRequest,
    SyncMappingsAck,
    SyncMappingsInit,
    SyncMappingsRequest,
    ValidateTunnelPeerRequest,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceStub

CLUSTER = "px.test"
TICKS = os.sysconf("SC_CLK_TCK")
GOALS = {
    "first snapshot of 1,000 services, s": 1.0,
    "first snapshot of 10,000 services, s": 8.0,
    "CPU s per 1,000 access-log entries, batched": 0.02,
    "ValidateTunnelPeer per CPU second": 1000.0,
    "change under 1,000 entries/s, p99, s": 0.1,
}


@dataclass(frozen=True)
class Store:
    account_id: AccountId
    personal: str
    token: str
    address: str
    service_id: str


@dataclass(frozen=True)
class Running:
    pid: int
    rest: str
    grpc: str

    def cpu(self) -> float:
        """Seconds of CPU that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def _service(account_id: AccountId, i: int, group: GroupId) -> Service:
    target = Target(
        CLUSTER, TargetType.CLUSTER, "http", 9000, host="127.0.0.1", options=TargetOptions(direct_upstream=True)
    )
    return Service(
        id=ServiceId(new_id()),
        account_id=account_id,
        name=f"s{i}",
        domain=f"s{i}.{CLUSTER}",
        proxy_cluster=CLUSTER,
        meta=ServiceMeta(created_at=now()),
        targets=(target,),
        private=i % 2 == 0,
        access_groups=(group,) if i % 2 == 0 else (),
    )


async def furnish(directory: Path, services: int) -> Store:
    """A store with one account, a member and many services."""
    vault = prepare_directory(directory)
    async with State.open(directory, vault) as state:
        account_id, owner = await create_account(state, email="bench@lab.test", name="Bench")
        peer, _ = await create_stock_peer(state, account_id, name="member", user_id=None)
        group = await create_group(state, account_id, name="members", peers=[PeerId(peer.id)])
        capabilities = Capabilities(True, False, False, True, True)
        await register_proxy(state, Registration(ProxyId("p"), "s", CLUSTER, "", None, None, capabilities))
        private_key, public_key = new_key_pair()
        sealed = vault.seal(private_key)
        made = [_service(account_id, i, group.id) for i in range(services)]
        async with state.change(account_id) as transaction:
            for service in made:
                transaction.session.add(
                    ServiceRow(
                        id=service.id,
                        account_id=account_id,
                        session_private_key=sealed,
                        session_public_key=public_key,
                        created_at=service.meta.created_at,
                        **rows.columns(service),
                    )
                )
            transaction.touch(services=[service.id for service in made])
        _, personal = await create_token(state, owner, name="bench", days=1, created_by=owner.id)
        _, token = await create_proxy_token(state, name="bench", account_id=None, created_by="bench")
        return Store(account_id, personal, token, str(peer.ip), made[1].id)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Running]:
    config = directory / "management.toml"
    config.write_text(
        f'state_directory = "{directory / "state"}"\n[rest]\nlisten = "127.0.0.1:0"\n[grpc]\nlisten = "127.0.0.1:0"\n'
    )
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "netbird-management",
        "run",
        "--config",
        config,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        if process.stdout is None:
            raise LookupError("no output")
        async with asyncio.timeout(120):
            while not (line := (await process.stdout.readline()).decode()).startswith("ready "):
                if not line:
                    raise RuntimeError("management ended before it was ready")
        told = dict(part.split("=", 1) for part in line.split()[1:])
        yield Running(process.pid, told["rest"], told["grpc"])
    finally:
        process.terminate()
        await process.wait()


class Proxy:
    """Takes a snapshot and what follows, and acknowledges it all."""

    def __init__(self, channel: grpc.aio.Channel, token: str, proxy_id: str) -> None:
        self.stub: Any = ProxyServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"), ("x-netbird-proxy-id", proxy_id))
        self._proxy_id = proxy_id

    async def connect(self) -> int:
        """How many mappings there are, once all are here."""
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


async def first_snapshot(services: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        store = await furnish(directory / "state", services)
        async with running(directory) as host, grpc.aio.insecure_channel(host.grpc) as channel:
            before, started = host.cpu(), time.perf_counter()
            count = await Proxy(channel, store.token, "first").connect()
            took, cpu = time.perf_counter() - started, host.cpu() - before
            if count != services:
                raise RuntimeError(f"{count} mappings of {services}")
    return {
        f"first snapshot of {services:,} services, s": took,
        f"first snapshot of {services:,} services, CPU s": cpu,
    }


async def validations(
    host: Running, store: Store, proxy: Proxy, calls: int = 4000, width: int = 32
) -> dict[str, float]:
    request = ValidateTunnelPeerRequest(tunnel_ip=store.address, domain=f"s0.{CLUSTER}")
    answer = await proxy.stub.ValidateTunnelPeer(request, metadata=proxy.metadata)
    if not answer.valid:
        raise RuntimeError(answer.denied_reason)

    async def some(count: int) -> None:
        for _ in range(count):
            await proxy.stub.ValidateTunnelPeer(request, metadata=proxy.metadata)

    before, started = host.cpu(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(width):
            tasks.create_task(some(calls // width))
    took, cpu = time.perf_counter() - started, host.cpu() - before
    return {"ValidateTunnelPeer per CPU second": calls / cpu, "ValidateTunnelPeer per second here": calls / took}


def entry(store: Store) -> AccessLog:
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


async def access_logs(host: Running, store: Store, proxy: Proxy, size: int, entries: int = 10_000) -> float:
    """CPU seconds per 1,000 entries that come `size` at a time; the time after the last call is part of it."""
    before = host.cpu()
    for _ in range(entries // size):
        batch = [entry(store) for _ in range(size)]
        request = SendAccessLogRequest(logs=batch) if size > 1 else SendAccessLogRequest(log=batch[0])
        while True:
            try:
                await proxy.stub.SendAccessLog(request, metadata=proxy.metadata)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(0.05)
    quiet = host.cpu()
    while True:
        await asyncio.sleep(1)
        if host.cpu() - quiet < 0.03:
            break
        quiet = host.cpu()
    return (host.cpu() - before) / entries * 1000


async def changes(host: Running, store: Store, proxy: Proxy, count: int) -> list[float]:
    """From the request to the mapping on the proxy's stream, in seconds."""
    target = {
        "target_id": CLUSTER,
        "target_type": "cluster",
        "protocol": "http",
        "host": "127.0.0.1",
        "enabled": True,
        "options": {"direct_upstream": True},
    }
    took = []
    headers = {"authorization": f"Token {store.personal}"}
    async with httpx.AsyncClient(base_url=f"http://{host.rest}", headers=headers) as client:
        for i in range(count):
            body = {"name": "s1", "domain": f"s1.{CLUSTER}", "enabled": True, "targets": [{**target, "port": 9000 + i}]}
            started = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                answer = tasks.create_task(client.put(f"/api/reverse-proxies/services/{store.service_id}", json=body))
                while not (message := await proxy.next()).mapping:
                    continue
                took.append(time.perf_counter() - started)
            if answer.result().status_code != 200 or not message.mapping[0].path[0].target.endswith(f":{9000 + i}/"):
                raise RuntimeError(answer.result().text)
    return took


async def changes_under_logs(host: Running, store: Store, proxy: Proxy, count: int) -> list[float]:
    async def logs() -> None:
        while True:
            started = time.perf_counter()
            request = SendAccessLogRequest(logs=[entry(store) for _ in range(100)])
            await proxy.stub.SendAccessLog(request, metadata=proxy.metadata)
            await asyncio.sleep(max(0.0, 0.1 - (time.perf_counter() - started)))

    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(logs())
        await asyncio.sleep(1)
        took = await changes(host, store, proxy, count)
        load.cancel()
    return took


async def many_proxies(host: Running, store: Store, channel: grpc.aio.Channel, count: int = 100) -> float:
    """CPU seconds of one change that a hundred proxies are told."""
    proxies = [Proxy(channel, store.token, f"many-{i}") for i in range(count)]
    for proxy in proxies:
        await proxy.connect()

    async def drain(proxy: Proxy) -> None:
        while True:
            await proxy.next()

    async with asyncio.TaskGroup() as tasks:
        drains = [tasks.create_task(drain(proxy)) for proxy in proxies[1:]]
        before = host.cpu()
        took = await changes(host, store, proxies[0], 20)
        cost = (host.cpu() - before) / len(took)
        for one in drains:
            one.cancel()
    for proxy in proxies:
        proxy.call.cancel()
    return cost


async def measure() -> dict[str, float]:
    found: dict[str, float] = {}
    for services in (1_000, 10_000):
        found |= await first_snapshot(services)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        store = await furnish(directory / "state", 1_000)
        async with running(directory) as host, grpc.aio.insecure_channel(host.grpc) as channel:
            proxy = Proxy(channel, store.token, "bench")
            await proxy.connect()
            found |= await validations(host, store, proxy)
            found["CPU s per 1,000 access-log entries, batched"] = await access_logs(host, store, proxy, 100)
            found["CPU s per 1,000 access-log entries, one by one"] = await access_logs(host, store, proxy, 1, 3_000)
            idle = await changes(host, store, proxy, 50)
            found["change idle, median, s"] = statistics.median(idle)
            loaded = sorted(await changes_under_logs(host, store, proxy, 100))
            found["change under 1,000 entries/s, median, s"] = statistics.median(loaded)
            found["change under 1,000 entries/s, p99, s"] = loaded[98]
            proxy.call.cancel()
            found["CPU s of a change with 100 proxies"] = await many_proxies(host, store, channel)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    found = asyncio.run(measure())
    if parser.parse_args().json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        goal = f"goal {GOALS[name]:g}" if name in GOALS else ""
        print(f"{name:55} {value:10.4f}  {goal}")


if __name__ == "__main__":
    main()
