"""Each limit of the settings reaches the part that keeps it, and is answered as documentation says: a whole proxy by
its file, on host sockets, before an upstream that the test speaks for.

What counts is that it ends at all: the other limits stay at their defaults, which are longer than a test may take.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from netbird_host.shutdown import Shutdown
from netbird_proxy.operator.attendants import operated
from netbird_proxy.process.loading import load
from netbird_proxy.process.server import ProxyServer
from netbird_proxy.process.settings import Limits, read_settings

WAIT = 8.0  # less than every default that a limit here could be mistaken for
GET = b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 500\r\n\r\n"
UPGRADE = b"GET /x HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class House:
    """The proxy and both ends of what goes through it."""

    proxy: ProxyServer
    shutdown: Shutdown
    upstreams: asyncio.Queue[Stream]
    """Connections that the upstream has accepted."""
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> Stream:
        (listener,) = self.proxy.parts.listeners.host
        handle = socket.socket()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handle.setblocking(False)
        await asyncio.get_running_loop().sock_connect(handle, (listener.address.host, listener.address.port))
        reader, writer = await asyncio.open_connection(sock=handle, limit=4096)
        self.writers.append(writer)
        return reader, writer

    async def ask(self, sent: bytes) -> Stream:
        client = await self.connect()
        client[1].write(sent)
        return client

    async def begun(self, sent: bytes = GET) -> tuple[Stream, Stream]:
        """A request that the upstream has, and has not answered."""
        client = await self.ask(sent)
        behind = await self.upstreams.get()
        await behind[0].readuntil(b"\r\n\r\n")
        return client, behind

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.proxy.host.counters)


async def head(client: Stream) -> bytes:
    return await client[0].readuntil(b"\r\n\r\n")


async def ended(one: Stream) -> bytes:
    """What still came before the connection ended, in order or not."""
    got = b""
    try:
        while piece := await one[0].read(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


async def until_cut(one: Stream, piece: bytes) -> None:
    """Send for as long as somebody takes it."""
    try:
        while True:
            one[1].write(piece)
            await one[1].drain()
            await asyncio.sleep(0)
    except ConnectionError:
        return


def unreachable() -> tuple[socket.socket, socket.socket]:
    """A port of this machine that answers nobody: its queue is full."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    waiting = socket.socket()
    waiting.connect(listening.getsockname())
    return listening, waiting


@asynccontextmanager
async def house(
    directory: Path, limits: str, *, target: int = 0, options: str = "", more: str = ""
) -> AsyncIterator[House]:
    """Args:
    limits: lines of `[limits]`.
    target: a port, instead of the upstream that the test speaks for.
    options: lines of the target's options.
    more: further mappings.
    """
    upstreams: asyncio.Queue[Stream] = asyncio.Queue()
    accepted: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        await upstreams.put((reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = target or server.sockets[0].getsockname()[1]
    (directory / "mappings.toml").write_text(
        f'[[mapping]]\nid = "a"\ndomain = "a.example"\n[[mapping.path]]\npath = "/"\n'
        f'target = "http://127.0.0.1:{port}"\n[mapping.path.options]\ndirect_upstream = true\n{options}\n{more}'
    )
    (directory / "proxy.toml").write_text(
        f'plugins = ["direct_upstream"]\nstate_directory = "{directory / "state"}"\n'
        f'mappings_file = "{directory / "mappings.toml"}"\n[admin]\nsocket = "{directory / "a.sock"}"\n'
        f'[[listen]]\naddress = "127.0.0.1:0"\n[access_log]\noutput = "off"\n'
        f'[[direct_upstream.allow]]\naccounts = ["*"]\nnetworks = ["127.0.0.1/32"]\n[limits]\n{limits}'
    )
    proxy = operated(load(read_settings(directory / "proxy.toml", environment={})))
    made = House(proxy, Shutdown(), upstreams)
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(proxy.serve(made.shutdown))
        async with asyncio.timeout(WAIT):
            while not proxy.ready:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
        try:
            yield made
        finally:
            made.shutdown.ask("over")
            made.shutdown.ask("now")
            await asyncio.wait((serving,), timeout=WAIT)
            for writer in (*made.writers, *accepted):
                writer.transport.abort()
            server.close()


Drive = Callable[[Path], Awaitable[None]]
DRIVES: dict[str, Drive] = {}


def drive(name: str) -> Callable[[Drive], Drive]:
    def add(one: Drive) -> Drive:
        assert name not in DRIVES
        DRIVES[name] = one
        return one

    return add


# Clients --------------------------------------------------------------------------------------------------------------


@drive("head_timeout")
async def head_timeout(directory: Path) -> None:
    async with house(directory, "head_timeout = 0.1") as made:
        assert (await ended(await made.ask(GET[:-2]))).startswith(b"HTTP/1.1 408 ")


@drive("head_bytes")
async def head_bytes(directory: Path) -> None:
    async with house(directory, "head_bytes = 1000") as made:
        sent = GET.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 1000 + b"\r\n\r\n")
        assert (await ended(await made.ask(sent))).startswith(b"HTTP/1.1 431 ")


@drive("head_lines")
async def head_lines(directory: Path) -> None:
    async with house(directory, "head_lines = 2") as made:
        sent = GET.replace(b"\r\n\r\n", b"\r\nX: y\r\nX: y\r\n\r\n")
        assert (await ended(await made.ask(sent))).startswith(b"HTTP/1.1 431 ")


@drive("keep_alive")
async def keep_alive(directory: Path) -> None:
    async with house(directory, "keep_alive = 0.1") as made:
        client, behind = await made.begun()
        behind[1].write(OK)
        assert (await ended(client)).endswith(b"\r\n\r\nok")


@drive("connections")
async def connections(directory: Path) -> None:
    async with house(directory, "connections = 1") as made:
        await made.begun()
        told = await ended(await made.connect())
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in told


@drive("connections_share")
async def connections_share(directory: Path) -> None:
    async with house(directory, "connections = 4\nconnections_share = 0.25") as made:
        await made.begun()
        assert (await ended(await made.connect())).startswith(b"HTTP/1.1 503 ")
        assert made.counters["connections_refused_of_client"] == 1


@drive("upgrade_idle")
async def upgrade_idle(directory: Path) -> None:
    async with house(directory, "upgrade_idle = 0.1") as made:
        client, behind = await made.begun(UPGRADE)
        behind[1].write(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        assert (await head(client)).startswith(b"HTTP/1.1 101 ")
        assert (await ended(client), await ended(behind)) == (b"", b"")


@drive("body_idle")
async def body_idle(directory: Path) -> None:
    async with house(directory, "body_idle = 0.1\nmin_rate = 0") as made:
        client, behind = await made.begun(POST + b"some")
        assert (await ended(client)).startswith(b"HTTP/1.1 408 ")
        assert await ended(behind) in (b"", b"some")


@drive("min_rate")
async def min_rate(directory: Path) -> None:
    """A byte now and then is enough for `body_idle`, not for this."""
    async with house(directory, "min_rate = 1000000\nmin_rate_grace = 0.2") as made:
        client, _ = await made.begun(POST)

        async def trickle() -> None:
            while True:
                client[1].write(b"x")
                await asyncio.sleep(0.02)

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(trickle())
            assert (await head(client)).startswith(b"HTTP/1.1 408 ")
            sending.cancel()
        assert made.counters["body_too_slow"] == 1


@drive("min_rate_grace")
async def min_rate_grace(directory: Path) -> None:
    """Also for a client that takes nothing from the beginning."""
    async with house(directory, "min_rate = 10000000\nmin_rate_grace = 0.2") as made:
        client, behind = await made.begun()
        client[1].transport.pause_reading()  # type: ignore[attr-defined]
        behind[1].write(b"HTTP/1.1 200 OK\r\n\r\n")
        await until_cut(behind, b"x" * (1 << 18))
        assert made.counters["write_too_slow"] == 1


@drive("write_timeout")
async def write_timeout(directory: Path) -> None:
    """For a client that has taken a good deal, and stops."""
    async with house(directory, "write_timeout = 0.2") as made:
        client, behind = await made.begun()
        behind[1].write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (1 << 20))
        await client[0].readexactly(1 << 20)
        client[1].transport.pause_reading()  # type: ignore[attr-defined]
        await until_cut(behind, b"x" * (1 << 18))
        assert made.counters["write_too_slow"] == 1


@drive("half_close")
async def half_close(directory: Path) -> None:
    async with house(directory, "half_close = 0.1") as made:
        client, behind = await made.begun()
        client[1].write_eof()
        assert (await ended(client), await ended(behind)) == (b"", b"")


@drive("linger")
async def linger(directory: Path) -> None:
    """A client that was refused and does not close is left after it."""
    async with house(directory, "linger = 0.1") as made:
        client = await made.ask(b"nonsense\r\n\r\n")
        assert (await ended(client)).startswith(b"HTTP/1.1 400 ")
        await until_cut(client, b"x")


# Upstreams ------------------------------------------------------------------------------------------------------------


@drive("dial_timeout")
async def dial_timeout(directory: Path) -> None:
    listening, waiting = unreachable()
    with listening, waiting:
        async with house(directory, "dial_timeout = 0.1", target=listening.getsockname()[1]) as made:
            told = await head(await made.ask(GET))
            assert told.startswith(b"HTTP/1.1 504 ")


@drive("max_dial_timeout")
async def max_dial_timeout(directory: Path) -> None:
    """It cuts what a mapping asks for, and the default too; what is less stays."""
    listening, waiting = unreachable()
    with listening, waiting:
        port = listening.getsockname()[1]
        for case, (limits, options) in enumerate((
            ("max_dial_timeout = 0.1", 'request_timeout = "1h"'),
            ("max_dial_timeout = 0.1", ""),
            ("max_dial_timeout = 60.0", 'request_timeout = "100ms"'),
        )):  # fmt: skip
            where = directory / str(case)
            where.mkdir()
            async with house(where, limits, target=port, options=options) as made:
                told = await head(await made.ask(GET))
                assert told.startswith(b"HTTP/1.1 504 ")


@drive("upstream_head")
async def upstream_head(directory: Path) -> None:
    async with house(directory, "upstream_head = 0.1") as made:
        client, behind = await made.begun()
        assert (await head(client)).startswith(b"HTTP/1.1 504 ")
        assert await ended(behind) == b""


@drive("in_flight")
async def in_flight(directory: Path) -> None:
    async with house(directory, "in_flight = 1") as made:
        await made.begun()
        assert (await head(await made.ask(GET))).startswith(b"HTTP/1.1 503 ")


@drive("in_flight_share")
async def in_flight_share(directory: Path) -> None:
    async with house(directory, "in_flight = 100\nin_flight_share = 0.02") as made:
        await made.begun()
        await made.begun()
        assert (await head(await made.ask(GET))).startswith(b"HTTP/1.1 503 ")


@drive("upstream_idle")
async def upstream_idle(directory: Path) -> None:
    async with house(directory, "upstream_idle = 0.1") as made:
        client, behind = await made.begun()
        behind[1].write(OK)
        await head(client)
        assert await ended(behind) == b""


@drive("upstream_idle_connections")
async def upstream_idle_connections(directory: Path) -> None:
    async with house(directory, "upstream_idle_connections = 1") as made:
        (one, behind_one), (other, behind_other) = await made.begun(), await made.begun()
        behind_one[1].write(OK)
        await head(one)
        behind_other[1].write(OK)
        await head(other)
        assert await ended(behind_other) == b""


# The rest -------------------------------------------------------------------------------------------------------------


@drive("services")
async def services(directory: Path) -> None:
    second = (
        '[[mapping]]\nid = "b"\ndomain = "b.example"\n[[mapping.path]]\npath = "/"\ntarget = "http://127.0.0.1:1"\n'
    )
    second += "[mapping.path.options]\ndirect_upstream = true\n"
    async with house(directory, "services = 1", more=second) as made:
        assert made.counters["services_refused"] == 1
        assert (await head(await made.ask(GET.replace(b"a.example", b"b.example")))).startswith(b"HTTP/1.1 404 ")


@drive("loop_stall")
async def loop_stall(directory: Path) -> None:
    async with house(directory, "loop_stall = 0.05") as made:
        time.sleep(0.5)  # noqa: ASYNC251 - what it is about
        async with asyncio.timeout(WAIT):
            while not made.counters.get("loop_stalled"):  # noqa: ASYNC110 - it comes from a thread
                await asyncio.sleep(0.01)


@drive("drain")
async def drain(directory: Path) -> None:
    async with house(directory, "drain = 0.1") as made:
        client, behind = await made.begun()
        made.shutdown.ask("over")
        await ended(client)
        assert await ended(behind) == b""


# The list -------------------------------------------------------------------------------------------------------------

ELSEWHERE = {
    "step_deadline": "pipeline/test_fail_closed.py",
    "step_grace": "pipeline/test_fail_closed.py",
    "rpc_timeout": "sources/management/test_stream.py",
    "batch_watchdog": "sources/management/test_stream.py",
    "revalidate": "pipeline/test_open_exchanges.py",
    "management_silence": "../e2e/test_management_away.py",
    "management_patience": "../e2e/test_management_away.py",
    "startup_timeout": "../e2e/test_starting.py",
}
"""Limits of guards, of the start, and of the connection to management."""


@pytest.mark.parametrize("name", DRIVES)
async def test_limit_is_kept(name: str, tmp_path: Path) -> None:
    """Past it: the answer, or the end, that the settings' page promises."""
    async with asyncio.timeout(50):
        await DRIVES[name](tmp_path)


def test_each_limit_is_driven() -> None:
    """A new limit needs a test that drives a proxy past it."""
    assert set(Limits.model_fields) == {*DRIVES, *ELSEWHERE}
    assert all((Path(__file__).parent / place).exists() for place in ELSEWHERE.values())
