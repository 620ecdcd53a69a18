"""The costs of management: first snapshots, validations, access logs, and changes meanwhile.

`python -m bench.management` fills stores, runs `netbird-management` on them, speaks to it as proxies do, and writes its
table into `docs/management.md`. CPU seconds are the process's own, which neighbors on the machine disturb least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx

from bench.furnished import CLUSTER, House, Running, Store, house
from bench.measure import cpu_seconds
from bench.wire import Proxy, entry, stopwatch
from examples.demo.processes import BIN
from netbird_wire.proxy_service_pb2 import SendAccessLogRequest, ValidateTunnelPeerRequest

PAGE = Path(__file__).parent.parent / "docs" / "management.md"
MARKS = ("<!-- bench.management -->", "<!-- bench.management ends -->")
SIZES = (1_000, 10_000)
ENTRIES = 256
"""Entries in one call: as many as this proxy puts in one."""


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement. `goal` is "" where there is none; `netbird` is what NetBird's management took for the same."""

    what: str
    value: float
    unit: str
    goal: str = ""
    netbird: str = ""

    def __str__(self) -> str:
        digits = 0 if self.value >= 100 else 2 if self.value >= 1 else 3
        return f"| {self.what} | {self.value:,.{digits}f} {self.unit} | {self.goal} | {self.netbird} |"


async def first_snapshot(directory: Path, services: int, reference: Path | None = None) -> list[Row]:
    """From management's being let go on until a proxy has all, which was connected before and is ready otherwise.

    Args:
        reference: the folder of another version's commands, whose proxy is measured in place of this one's.
    """
    goal, netbird = {1_000: ("1 s", "12 s"), 10_000: ("8 s", "103 s")}.get(services, ("", ""))
    async with AsyncExitStack() as exits:
        made = await house(exits, directory, services)
        async with grpc.aio.insecure_channel(made.host.grpc) as channel:
            before = made.host.cpu()
            count = await Proxy(channel, made.store.token, "first").connect()
            cpu = made.host.cpu() - before
            if count != services:
                raise RuntimeError(f"{count} mappings of {services}")
        made.host.process.send(signal.SIGSTOP)  # until the proxy is ready but for its mappings
        program = (reference or BIN) / "netbird-proxy"
        extra = "[limits]\nstartup_timeout = 2.0\n"
        started_proxy = made.stack.start_proxy("proxy", domain=CLUSTER, program=program, extra=extra, wait=False)
        proxy = (await started_proxy).process
        await proxy.until_line(r"proxy\.(incomplete|ready)")  # it is up, and waits for its mappings
        first_line, proxy_before, started = len(proxy.lines), cpu_seconds(proxy.pid), time.perf_counter()
        made.host.process.send(signal.SIGCONT)
        applied = await proxy.until_line(rf'"mappings\.applied".*"total":{services}\b', start=first_line, timeout=120)
        took, proxy_cpu = time.perf_counter() - started, cpu_seconds(proxy.pid) - proxy_before
        if '"refused":0' not in applied.string:
            raise RuntimeError(applied.string)
    return [
        Row(f"{services:,} services: first snapshot in force at a proxy", took, "s", goal, netbird),
        Row("… CPU of that proxy until then", proxy_cpu, "s"),
        Row("… CPU of management, without the statuses that it receives", cpu, "s"),
    ]


async def validations(made: House, proxy: Proxy, calls: int = 4000, width: int = 32) -> list[Row]:
    request = ValidateTunnelPeerRequest(tunnel_ip=made.store.address, domain=f"s0.{CLUSTER}")
    answer = await proxy.stub.ValidateTunnelPeer(request, metadata=proxy.metadata)
    if not answer.valid:
        raise RuntimeError(answer.denied_reason)

    async def some(count: int) -> None:
        for _ in range(count):
            await proxy.stub.ValidateTunnelPeer(request, metadata=proxy.metadata)

    before = made.host.cpu()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(width):
            tasks.create_task(some(calls // width))
    return [Row("`ValidateTunnelPeer` a second of one core", calls / (made.host.cpu() - before), "", "1,000")]


async def access_logs(host: Running, store: Store, proxy: Proxy, size: int, calls: int) -> float:
    """CPU seconds per 1,000 entries that come `size` at a time; the time after the last call is part of it."""
    before = host.cpu()
    for _ in range(calls):
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
    return (host.cpu() - before) / (calls * size) * 1000


async def changes(made: House, proxy: Proxy, count: int) -> list[float]:
    """From the REST request's being sent to the mapping on the proxy's stream, in seconds; in order of size."""
    target = {
        "target_id": CLUSTER,
        "target_type": "cluster",
        "protocol": "http",
        "host": "127.0.0.1",
        "enabled": True,
        "options": {"direct_upstream": True},
    }
    took = []
    headers = {"authorization": f"Token {made.store.personal}"}
    async with httpx.AsyncClient(base_url=f"http://{made.host.rest}", headers=headers) as client:
        for i in range(count):
            body = {"name": "s1", "domain": f"s1.{CLUSTER}", "enabled": True, "targets": [{**target, "port": 9000 + i}]}
            started = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                url = f"/api/reverse-proxies/services/{made.store.service_id}"
                answer = tasks.create_task(client.put(url, json=body))
                while not (message := await proxy.next()).mapping:
                    continue
                took.append(time.perf_counter() - started)
            if answer.result().status_code != 200 or not message.mapping[0].path[0].target.endswith(f":{9000 + i}/"):
                raise RuntimeError(answer.result().text)
    return sorted(took)


async def changes_under_logs(made: House, proxy: Proxy, count: int) -> list[float]:
    """The same while 1,000 entries a second arrive."""

    async def logs() -> None:
        due = time.perf_counter()
        while True:
            due += ENTRIES / 1000
            request = SendAccessLogRequest(logs=[entry(made.store) for _ in range(ENTRIES)])
            await proxy.stub.SendAccessLog(request, metadata=proxy.metadata)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))

    async with asyncio.TaskGroup() as tasks:
        load = tasks.create_task(logs())
        await asyncio.sleep(1)
        took = await changes(made, proxy, count)
        load.cancel()
    return took


async def many_proxies(made: House, channel: grpc.aio.Channel, count: int = 100, times: int = 20) -> list[Row]:
    """Return the cost of a change that a hundred proxies get, and of the same change without them."""
    proxies = [Proxy(channel, made.store.token, f"many-{i}") for i in range(count)]
    await proxies[0].connect()
    before = made.host.cpu()
    await changes(made, proxies[0], times)
    alone = (made.host.cpu() - before) / times
    for proxy in proxies[1:]:
        await proxy.connect()
    async with asyncio.TaskGroup() as tasks:
        drains = [tasks.create_task(proxy.drain()) for proxy in proxies[1:]]
        before = made.host.cpu()
        await changes(made, proxies[0], times)
        cost = (made.host.cpu() - before) / times
        for drain in drains:
            drain.cancel()
    for proxy in proxies:
        proxy.call.cancel()
    return [
        Row("a change that one proxy receives, CPU", alone * 1e3, "ms"),
        Row(f"a change that {count} proxies receive, CPU", cost * 1e3, "ms"),
    ]


async def under_load(directory: Path, services: int, count: int) -> list[Row]:
    async with AsyncExitStack() as exits:
        made = await house(exits, directory, services)
        channel = await exits.enter_async_context(grpc.aio.insecure_channel(made.host.grpc))
        proxy = Proxy(channel, made.store.token, "bench")
        await proxy.connect()
        rows = await validations(made, proxy)
        batched = await access_logs(made.host, made.store, proxy, ENTRIES, 60)
        rows.append(Row("1,000 access-log entries in batches, CPU", batched, "s", "0.02 s", "0.08 s"))
        single = await access_logs(made.host, made.store, proxy, 1, 2_000)
        rows.append(Row("1,000 access-log entries one a call, CPU", single, "s"))
        async with stopwatch(made.host.grpc) as lag:
            idle = await changes(made, proxy, count)
        rows += [
            Row(f"a change to one of {services:,} services, median", statistics.median(idle) * 1e3, "ms"),
            Row("… 99 %", _late(idle) * 1e3, "ms"),
            Row("… other calls' answers meanwhile, 99 %", _late(lag) * 1e3, "ms"),
        ]
        async with stopwatch(made.host.grpc) as lag:
            loaded = await changes_under_logs(made, proxy, count)
        rows += [
            Row("a change while 1,000 entries a second arrive, median", statistics.median(loaded) * 1e3, "ms"),
            Row("… 99 %", _late(loaded) * 1e3, "ms", "100 ms", "8–20 s"),
            Row("… as a multiple of 99 % without entries", _late(loaded) / _late(idle), "×"),
            Row("… other calls' answers meanwhile, 99 %", _late(lag) * 1e3, "ms"),
        ]
        proxy.call.cancel()
        return [*rows, *await many_proxies(made, channel)]


def _late(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


async def measure(directory: Path, count: int) -> list[Row]:
    rows: list[Row] = []
    for services in SIZES:
        rows += _printed(await first_snapshot(directory, services))
    return rows + _printed(await under_load(directory / "load", SIZES[0], count))


def _printed(rows: list[Row]) -> list[Row]:
    for row in rows:
        print(row, file=sys.stderr, flush=True)
    return rows


def write(page: Path, text: str) -> None:
    """Put the table where the page has a place for it."""
    begin, end = MARKS
    page.write_text(re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page.read_text(), flags=re.DOTALL))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--count", type=int, default=300, help="changes in each series")
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True, help="write the page")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="netbird-bench-"))
    (directory / "load").mkdir()
    try:
        rows = asyncio.run(measure(directory, given.count))
    except BaseException:
        print(f"logs: {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)
    busy = f"Meanwhile {os.getloadavg()[1]:.1f} of {os.cpu_count()} cores were asked for, these processes included."
    text = "\n".join(("| | | goal | NetBird |", "|---|---|---|---|", *map(str, rows), "", busy))
    print(json.dumps({row.what: row.value for row in rows}) if given.json else text)
    if given.write:
        write(PAGE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
