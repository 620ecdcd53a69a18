"""The time of a change: from REST to traffic, idle and under a load of access-log entries; from reconnect to served.

Run as `python -m bench.changes`; writes its table into `docs/reliability.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import re
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo.calls import Stream, add_service, caller, change_service, direct
from examples.demo.stack import CLUSTER, Stack, stack
from examples.demo.story import people_and_peers

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
MARKS = ("<!-- bench.changes -->", "<!-- bench.changes ends -->")
HOST, PRIVATE = f"changes.{CLUSTER}", f"members.{CLUSTER}"


@dataclass(frozen=True, slots=True)
class Row:
    """A measured time, in seconds."""

    what: str
    seconds: list[float]

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        median, late = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        return f"| {self.what} | {len(ordered)} | {median * 1e3:.0f} | {late * 1e3:.0f} | {ordered[-1] * 1e3:.0f} |"


class Client:
    """Asks one thing after another on one connection."""

    def __init__(self, running: Stack, host: str = HOST) -> None:
        self._stack = running
        self._host = host
        self._stream: Stream | None = None
        self.answers = 0

    async def ask(self) -> str:
        """The body, head in front of it."""
        if self._stream is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._stack.proxies["proxy"].http)
            self._stream = Stream(reader, writer.transport)
            self._stream.kept = writer
        try:
            await self._stream.begin(self._host, "/")
            length = int(self._stream.head.lower().split("content-length:", 1)[1].split("\r\n", 1)[0])
            body = await self._stream.reader.readexactly(length)
        except (OSError, EOFError):
            self.close()
            return ""
        self.answers += 1
        return self._stream.head + body.decode()

    async def until_version(self, version: int) -> None:
        async with asyncio.timeout(20):
            while f'"{version}"' not in await self.ask():
                pass

    async def forever(self) -> None:
        while True:
            await self.ask()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def target(running: Stack, version: int) -> dict[str, Any]:
    direct_target = direct("127.0.0.1", running.upstreams["changes"])
    return direct_target | {"options": direct_target["options"] | {"custom_headers": {"X-Version": str(version)}}}


async def rest_to_traffic(running: Stack, first: int, count: int) -> list[float]:
    """From the moment the REST call is sent until an answer of the new version is there."""
    client, times = Client(running), []
    loop = asyncio.get_running_loop()
    for version in range(first, first + count):
        start = loop.time()
        await change_service(running, "changes", HOST, target(running, version))
        await client.until_version(version)
        times.append(loop.time() - start)
    client.close()
    return times


async def under_load(running: Stack, first: int, count: int) -> tuple[list[float], float]:
    """The same, while others ask as fast as they are answered; and their rate."""
    others = [Client(running) for _ in range(8)]
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.forever()) for client in others]
        start = loop.time()
        times = await rest_to_traffic(running, first, count)
        rate = sum(client.answers for client in others) / (loop.time() - start)
        for task in tasks:
            task.cancel()
    for client in others:
        client.close()
    return times, rate


async def reconnect_to_served(running: Stack, first: int, count: int) -> tuple[list[float], list[float]]:
    """Times of changes while management was away: since the stream's first message, and since management was ready."""
    by_stream, by_ready = [], []
    loop = asyncio.get_running_loop()
    proxy = running.proxies["proxy"].process
    for version in range(first, first + count):
        await running.management.stop(sign=signal.SIGKILL)
        # Held, so that it cannot connect before the change is made.
        proxy.send(signal.SIGSTOP)
        await running.restart_management()
        first_line = len(proxy.lines)
        await change_service(running, "changes", HOST, target(running, version))
        ready = loop.time()
        proxy.send(signal.SIGCONT)
        client = Client(running)
        connected = asyncio.Task(proxy.until_line(r"management\.stream\.connected", start=first_line))
        await client.until_version(version)
        served = loop.time()
        await connected
        client.close()
        by_ready.append(served - ready)
        by_stream.append(_since_connected(proxy.lines[first_line:], served, loop))
    return by_stream, by_ready


def _since_connected(lines: list[str], served: float, loop: asyncio.AbstractEventLoop) -> float:
    """By the proxy's own clock, which stands in its events."""
    for line in lines:
        if "management.stream.connected" in line:
            connected_at = datetime.datetime.fromisoformat(json.loads(line)["timestamp"]).timestamp()
            return max(0.0, served - (loop.time() - (datetime.datetime.now(datetime.UTC).timestamp() - connected_at)))
    raise AssertionError("it was waited for")


async def revoked_to_cut(running: Stack, count: int) -> list[float]:
    """From the answer of the REST call that removes a member until the page is cut that the member reads."""
    loop = asyncio.get_running_loop()
    times = []
    group, peer = running.ids["engineering"], running.ids["peer alice-laptop"]
    async with caller(running, "alice-laptop") as alice:
        for _ in range(count):
            await running.api.put(f"/groups/{group}", {"name": "engineering", "peers": [peer]})
            async with asyncio.timeout(20):
                while (page := await alice.open(PRIVATE, "/__drip__")).status != 200:
                    page.close()
                await page.reader.readuntil(b"drip")
                cut = asyncio.Task(page.until_cut())
                await running.api.put(f"/groups/{group}", {"name": "engineering", "peers": []})
                done = loop.time()
                times.append(max(0.0, await cut - done))
            page.close()
    return times


async def measured(directory: Path, count: int) -> str:
    async with stack(directory) as running:
        await running.start_management()
        await running.start_proxy("proxy")
        async with asyncio.timeout(15):
            while not await running.online_clusters():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)
        await running.start_upstream("changes")
        await add_service(running, "changes", HOST, target(running, 0))
        await running.until_service("changes", "active")
        idle = await rest_to_traffic(running, 1, count)
        loaded, rate = await under_load(running, 1000, count)
        await people_and_peers(running)
        drip = direct("127.0.0.1", running.upstreams["changes"])
        await add_service(running, "members", PRIVATE, drip, groups=["engineering"])
        # So that she stays in the proxy's map: what is measured is the cut, and not her next handshake.
        await add_service(running, "everybody", f"everybody.{CLUSTER}", drip, groups=["All"])
        for name in ("members", "everybody"):
            await running.until_service(name, "active")
        await running.write_peer_file("alice-laptop")
        cut = await revoked_to_cut(running, count)
        by_stream, by_ready = await reconnect_to_served(running, 2000, max(3, count // 10))
    rows = (
        Row("REST change to traffic, idle", idle),
        Row(f"REST change to traffic, {rate:,.0f} requests a second and their log entries", loaded),
        Row("a member is removed: REST answer to open page cut", cut),
        Row("management back: its first message to the change served", by_stream),
        Row("management back: its port to the change served", by_ready),
    )
    return "\n".join(("| | times | median, ms | 95 %, ms | worst, ms |", "|---|---|---|---|---|", *map(str, rows)))


def write(page: Path, text: str) -> None:
    """Put the table where the page has a place for it."""
    before = page.read_text()
    begin, end = MARKS
    page.write_text(re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", before, flags=re.DOTALL))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--write", action=argparse.BooleanOptionalAction, default=True, help="write the page")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="netbird-bench-"))
    text = asyncio.run(measured(directory, given.count))
    shutil.rmtree(directory)
    print(text)
    if given.write:
        write(PAGE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
