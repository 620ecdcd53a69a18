"""A proxy process that is told to stop: what is open ends in its time, nothing new begins, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from examples.demo.calls import add_service, direct, until
from examples.demo.processes import BIN, Processes
from examples.demo.stack import CLUSTER, Stack, stack
from tests.e2e.alone import Alone, mapped, started, written

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

GET = b"GET /download HTTP/1.1\r\nhost: app.example.com\r\n\r\n"
ASK = b"GET /ws HTTP/1.1\r\nhost: app.example.com\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n"
SIZE = 3 << 20


class Slow:
    """An upstream whose downloads end, and whose upgraded connections answer, when the test says so."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked.set()
                if head.startswith(b"GET /ws "):
                    writer.write(b"HTTP/1.1 101 Switching\r\nupgrade: raw\r\nconnection: upgrade\r\n\r\nhello")
                    writer.write(await reader.read(1000))
                    break
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE + b"x" * (SIZE // 2))
                await self.go.wait()
                writer.write(b"y" * (SIZE - SIZE // 2))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def slow() -> AsyncIterator[Slow]:
    upstream = Slow()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        upstream.go.set()
        server.close()


@asynccontextmanager
async def open_to(proxy: Alone, request: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A request on its way, its answer's head read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(request)
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.close()


async def state(directory: Path) -> dict[str, Any]:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(directory / "admin.sock"))) as client:
        answer: dict[str, Any] = (await client.get("http://proxy/state")).json()
        return answer


def lines(proxy: Alone) -> list[dict[str, Any]]:
    """The access log."""
    return [json.loads(line) for line in proxy.process.lines if '"event":"exchange.done"' in line]


async def refused(port: int) -> None:
    """Wait until nobody accepts connections there."""
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # it was knocking when the door was closed
            writer.close()


async def test_download_finishes_and_nothing_begins(tmp_path: Path) -> None:
    """Readiness off, connections refused, an idle client closed, the download whole, its line logged, exit code 0."""
    async with Processes(tmp_path / "logs") as processes, slow() as upstream:
        proxy = await started(processes, tmp_path, mapped(app=upstream.port))
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        async with open_to(proxy, GET) as (reader, _):
            assert (await state(tmp_path))["ready"] is True
            proxy.process.handle.send_signal(signal.SIGTERM)
            await proxy.process.until_line(r"proxy\.stopping")
            await refused(proxy.port)
            assert await idle.read() == b""
            assert (await state(tmp_path))["ready"] is False
            upstream.go.set()
            body = await reader.readexactly(SIZE)
            assert body == b"x" * (SIZE // 2) + b"y" * (SIZE - SIZE // 2)
            assert await reader.read() == b""
        idle_writer.close()
        assert await proxy.process.stop() == 0
    assert [(line["status"], line["bytes_sent"]) for line in lines(proxy)] == [(200, SIZE)]
    assert any("proxy.stopped" in line for line in proxy.process.lines)


async def test_upgraded_connection_has_the_same_time(tmp_path: Path) -> None:
    """It goes on, and the process ends as soon as it has ended."""
    async with Processes(tmp_path / "logs") as processes, slow() as upstream:
        proxy = await started(processes, tmp_path, mapped(app=upstream.port))
        async with open_to(proxy, ASK) as (reader, writer):
            assert await reader.readexactly(5) == b"hello"
            proxy.process.handle.send_signal(signal.SIGTERM)
            await refused(proxy.port)
            writer.write(b"still here")
            assert await reader.read() == b"still here"
        assert await proxy.process.stop() == 0
    assert [line["status"] for line in lines(proxy)] == [101]


@pytest.mark.parametrize("how", ["bound", "second signal"])
async def test_what_does_not_end_is_cut(tmp_path: Path, how: str) -> None:
    """After the bound, or at once when asked twice; the cut is logged, and the exit code is still 0."""
    drain = "0.3" if how == "bound" else "3600"
    async with Processes(tmp_path / "logs") as processes, slow() as upstream:
        proxy = await started(processes, tmp_path, mapped(app=upstream.port), extra=f"[limits]\ndrain = {drain}\n")
        async with open_to(proxy, GET) as (reader, _), open_to(proxy, ASK) as (raw, _):
            proxy.process.handle.send_signal(signal.SIGINT)
            await proxy.process.until_line(r"proxy\.stopping")
            if how != "bound":
                proxy.process.handle.send_signal(signal.SIGTERM)
            with pytest.raises(asyncio.IncompleteReadError):
                await reader.readexactly(SIZE)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await raw.readexactly(100)
            async with asyncio.timeout(15):
                assert await proxy.process.handle.wait() == 0
        assert await proxy.process.stop() == 0
    assert sorted(line["status"] for line in lines(proxy)) == [101, 499]


async def test_last_spans_are_delivered(tmp_path: Path) -> None:
    """What a collector has after the end is all there was."""
    seen: list[str] = []

    class Collector(TraceServiceServicer):
        async def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    seen.extend(span.name for span in scope.spans)
            return ExportTraceServiceResponse()

    collector = grpc.aio.server()
    add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    await collector.start()
    async with Processes(tmp_path / "logs") as processes, slow() as upstream:
        extra = f'[telemetry]\notlp_endpoint = "http://127.0.0.1:{port}"\n'
        proxy = await started(processes, tmp_path, mapped(app=upstream.port), extra=extra)
        async with open_to(proxy, GET) as (reader, _):
            proxy.process.handle.send_signal(signal.SIGTERM)
            upstream.go.set()
            await reader.readexactly(SIZE)
        assert await proxy.process.stop() == 0
    await collector.stop(None)
    assert "GET app.example.com/" in seen


@pytest.fixture
def ear(tmp_path: Path) -> Any:
    """A supervisor's ear."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(20)
        yield made


async def test_supervisor_is_told(tmp_path: Path, ear: socket.socket) -> None:
    """Ready when it listens, signs of life from then on, stopping before it drains."""
    async with Processes(tmp_path / "logs") as processes, slow() as upstream:
        env = {"NOTIFY_SOCKET": ear.getsockname(), "WATCHDOG_USEC": "200000"}
        proxy = await started(processes, tmp_path, mapped(app=upstream.port), env=env)
        told: list[bytes] = []

        async def hear(word: bytes, times: int = 1) -> None:
            while sum(one.startswith(word) for one in told) < times:
                told.append(await asyncio.to_thread(ear.recv, 1000))

        await hear(b"READY=1\nSTATUS=listening on 127.0.0.1:%d" % proxy.port)
        await hear(b"WATCHDOG=1", 3)
        assert not any(one.startswith(b"STOPPING") for one in told)
        proxy.process.handle.send_signal(signal.SIGTERM)
        await hear(b"STOPPING=1\n")
        assert await proxy.process.stop() == 0


ACTIVATED = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"


async def activated(config: Path, listening: socket.socket) -> asyncio.subprocess.Process:
    """A proxy that was started with a socket as its third descriptor, as systemd does."""
    return await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", ACTIVATED, str(BIN / "netbird-proxy"), "run", "--config", str(config)],
        env={**os.environ, "LISTEN_FDS": "1"},
        preexec_fn=lambda: os.dup2(listening.fileno(), 3),
        close_fds=False,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.mark.parametrize("listen", ["127.0.0.1", ""])
async def test_socket_that_was_handed_over_is_served(tmp_path: Path, listen: str) -> None:
    """Also those who came before the start; after the stop it goes on listening, for the next one."""
    host = listen or "0.0.0.0"
    with socket.create_server((host, 0)) as listening:
        port = listening.getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: nobody\r\nconnection: close\r\n\r\n")
        config, _, _ = written(tmp_path, "", port=port)
        config.write_text(config.read_text().replace(f'"127.0.0.1:{port}"', f'"{listen}:{port}"'))
        handle = await activated(config, listening)
        try:
            async with asyncio.timeout(30):
                assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
            writer.close()
            handle.send_signal(signal.SIGTERM)
            async with asyncio.timeout(20):
                await handle.communicate()
            assert handle.returncode == 0
        finally:
            if handle.returncode is None:
                handle.kill()
        _, late = await asyncio.open_connection("127.0.0.1", port)
        late.close()


async def test_socket_that_nobody_listens_on_stops_the_start(tmp_path: Path) -> None:
    """It would take connections and never answer them."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config, _, _ = written(tmp_path, "")
        handle = await activated(config, listening)
        async with asyncio.timeout(30):
            _, told = await handle.communicate()
    assert handle.returncode == 2
    assert "no [[listen]] address matches the handed-over socket ('127.0.0.1', " in told.decode()


async def connected(running: Stack, upstream: Slow) -> None:
    """Management and a proxy as processes, and a public service that is served."""
    await running.start_management()
    await running.start_proxy("proxy", plugins=["direct_upstream"], private=False)

    async def online() -> bool:
        return bool(await running.online_clusters())

    await until("the proxy is connected", online, timeout=15)
    await add_service(running, "app", f"app.{CLUSTER}", direct("127.0.0.1", upstream.port))
    await running.until_service("app", "active")


async def downloads(running: Stack, upstream: Slow, *paths: str) -> None:
    """Each is answered whole, one connection each; none of their entries is with management yet."""
    upstream.go.set()
    for path in paths:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.proxies["proxy"].http)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: app.{CLUSTER}\r\nconnection: close\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def entries(running: Stack) -> list[str]:
    """The paths in management's access log, in their order."""
    found = await running.api.get("/events/proxy?sort_by=timestamp&sort_order=asc")
    return [one["path"] for one in found["data"]]


async def test_last_entries_are_with_management(tmp_path: Path) -> None:
    """What was served right before the proxy was told to stop stands in management's access log."""
    paths = [f"/last-{number}" for number in range(5)]
    async with slow() as upstream, stack(tmp_path) as running:
        await connected(running, upstream)
        await downloads(running, upstream, *paths)
        proxy = running.proxies["proxy"].process
        assert await proxy.stop() == 0
        assert [line for line in proxy.lines if "access_log.lost" in line] == []
        # Taken is not stored yet, and management's own stop stores it.
        assert await running.management.stop() == 0
        await running.restart_management()
        assert await entries(running) == paths


async def test_entries_wait_while_management_starts_again(tmp_path: Path) -> None:
    """What is served while it is stopped, and is away, is in its log once it is back."""
    async with slow() as upstream, stack(tmp_path) as running:
        await connected(running, upstream)
        await downloads(running, upstream, "/before")
        assert await running.management.stop() == 0
        await downloads(running, upstream, "/while")
        await running.restart_management()
        await downloads(running, upstream, "/after")

        async def complete() -> bool:
            return sorted(await entries(running)) == ["/after", "/before", "/while"]

        await until("all entries are there", complete, timeout=20)
        assert await running.proxies["proxy"].process.stop() == 0
