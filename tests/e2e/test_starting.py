"""A proxy that starts: nothing is called absent before everything that exists is in force."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from examples.demo.processes import BIN, Processes
from examples.demo.stack import free_port
from netbird_wire.proxy_service_pb2 import (
    UPDATE_TYPE_CREATED,
    PathMapping,
    PathTargetOptions,
    ProxyMapping,
    SyncMappingsResponse,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceServicer, add_ProxyServiceServicer_to_server

ACTIVATED = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[1], sys.argv[1:])"
KNOWN, UNKNOWN = "app-0.example.com", "nobody.example.com"


class Management(ProxyServiceServicer):
    """Sends its services batch by batch; the end of the snapshot waits for `whole`."""

    def __init__(self, upstream: int, services: int = 1) -> None:
        self.whole = asyncio.Event()
        self.port = 0
        self._mappings = [
            ProxyMapping(
                type=UPDATE_TYPE_CREATED,
                id=f"service-{number}",
                account_id="account",
                domain=f"app-{number}.example.com",
                mode="http",
                path=[
                    PathMapping(
                        path="/",
                        target=f"http://127.0.0.1:{upstream}",
                        options=PathTargetOptions(direct_upstream=True),
                    )
                ],
            )
            for number in range(services)
        ]

    async def SyncMappings(self, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        await anext(aiter(requests))
        # The last service comes first, and the first one last: a client of it meets every moment of the snapshot.
        for start in range(len(self._mappings), 0, -100):
            yield SyncMappingsResponse(mapping=self._mappings[max(0, start - 100) : start])
        await self.whole.wait()
        yield SyncMappingsResponse(initial_sync_complete=True)
        await asyncio.Event().wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Management]:
        server = grpc.aio.server()
        add_ProxyServiceServicer_to_server(self, server)
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


@asynccontextmanager
async def upstream() -> AsyncIterator[int]:
    """The port of a server that answers 200, one request a connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def written(directory: Path, management: Management, port: int, *, timeout: float, extra: str = "") -> list[str]:
    """The command that starts a proxy of this management."""
    config = directory / "proxy.toml"
    config.write_text(
        f'plugins = ["direct_upstream"]\nstate_directory = "{directory / "state"}"\n'
        f'[management]\nurl = "http://127.0.0.1:{management.port}"\ntoken = "token"\ndomain = "proxy.example.com"\n'
        f'allow_insecure = true\n[[listen]]\naddress = "127.0.0.1:{port}"\n'
        f'[admin]\nsocket = "{directory / "admin.sock"}"\n[limits]\nstartup_timeout = {timeout}\n'
        "[[direct_upstream.allow]]\naccounts = ['*']\nnetworks = ['127.0.0.1/32']\n" + extra
    )
    return [str(BIN / "netbird-proxy"), "run", "--config", str(config)]


async def asked(port: int, host: str) -> tuple[int, str]:
    """The status, and `Retry-After`."""
    async with httpx.AsyncClient(timeout=20) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/", headers={"host": host})
        return answer.status_code, answer.headers.get("retry-after", "")


async def test_promise_7_nothing_listens_before_the_first_snapshot_is_in_force(tmp_path: Path) -> None:
    """Connections are refused, and no supervisor hears that this is ready, until all that exists is served."""
    port, health = free_port(), free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        async with upstream() as target, Management(target).running() as management:
            extra = f'[health]\nlisten = "127.0.0.1:{health}"\n'
            command = written(tmp_path, management, port, timeout=60, extra=extra)
            async with Processes(tmp_path / "logs") as processes:
                proxy = await processes.start("proxy", command, env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
                await proxy.until_line(r"mappings\.applied")  # the service itself is in force
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection("127.0.0.1", port)
                async with httpx.AsyncClient() as client:
                    assert (await client.get(f"http://127.0.0.1:{health}/readyz")).text == "starting\n"
                with pytest.raises(BlockingIOError):
                    ear.recv(1000)
                management.whole.set()
                await proxy.until_line(r"proxy\.ready")
                async with asyncio.timeout(20):  # the supervisor hears of it right after the log does
                    assert (await asyncio.get_running_loop().sock_recv(ear, 1000)).startswith(b"READY=1\n")
                assert (await asked(port, KNOWN))[0] == 200
                assert (await asked(port, UNKNOWN))[0] == 404


async def test_hosts_that_may_exist_are_answered_503_once_the_time_for_a_start_is_over(tmp_path: Path) -> None:
    """What came so far is served; what did not come may still come, so a client is asked to try again."""
    port = free_port()
    async with (
        upstream() as target,
        Management(target).running() as management,
        Processes(tmp_path / "logs") as processes,
    ):
        proxy = await processes.start("proxy", written(tmp_path, management, port, timeout=0.1))
        await proxy.until_line(r"mappings\.applied")
        await proxy.until_line(r"proxy\.incomplete.*management")
        assert await asked(port, UNKNOWN) == (503, "2")
        assert (await asked(port, KNOWN))[0] == 200
        assert not any("proxy.ready" in line for line in proxy.lines)
        management.whole.set()
        await proxy.until_line(r"proxy\.ready")
        assert await asked(port, UNKNOWN) == (404, "")


@pytest.mark.live
@pytest.mark.timeout(400)
async def test_fifty_restarts_under_load_answer_no_404(tmp_path: Path) -> None:
    """Behind a socket that stays open, of clients that never pause: every answer is the service's, or there is none."""
    answers: Counter[str] = Counter()
    restarts, stop = 50, asyncio.Event()

    async def load(port: int) -> None:
        request = f"GET / HTTP/1.1\r\nhost: {KNOWN}\r\nconnection: close\r\n\r\n".encode()
        while not stop.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                answers[(await reader.read(12))[9:].decode() or "none"] += 1
                writer.close()
            except ConnectionError:
                answers["none"] += 1
            await asyncio.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        port = listening.getsockname()[1]
        async with upstream() as target, Management(target, services=300).running() as management:
            management.whole.set()
            command = written(tmp_path, management, port, timeout=60)
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(load(port))
                for _ in range(restarts):
                    before = answers["200"]
                    handle = await asyncio.create_subprocess_exec(
                        *[sys.executable, "-c", ACTIVATED, *command],
                        env={**os.environ, "LISTEN_FDS": "1"},
                        preexec_fn=lambda: os.dup2(listening.fileno(), 3),
                        close_fds=False,
                        stdout=asyncio.subprocess.DEVNULL,
                        stderr=asyncio.subprocess.DEVNULL,
                    )
                    async with asyncio.timeout(60):
                        while answers["200"] < before + 4:  # noqa: ASYNC110 - the answers of other tasks
                            await asyncio.sleep(0.01)
                        handle.send_signal(signal.SIGKILL)
                        await handle.wait()
                stop.set()
                listening.close()
    assert set(answers) <= {"200", "none"}, answers
    assert answers["200"] >= 4 * restarts
