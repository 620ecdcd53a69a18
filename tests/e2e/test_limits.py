"""What one client may take of a proxy process, by its settings."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from examples.demo.processes import BIN, Processes
from tests.e2e.alone import Alone, started, written

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

GET = b"GET / HTTP/1.1\r\nhost: nobody.example.com\r\n\r\n"
SETTINGS = "[limits]\nconnections = 8\nconnections_share = 0.25\n"


async def statuses(proxy: Alone, address: str, count: int) -> list[bytes]:
    """So many connections at once from one address; each one's answer."""
    found = []
    async with AsyncExitStack() as stack:
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, local_addr=(address, 0))
            stack.callback(writer.close)
            writer.write(GET)
            found.append((await reader.readuntil(b"\r\n"))[9:12])
    return found


@pytest.mark.parametrize("trusted", ["", '[forwarding]\ntrusted_proxies = ["127.0.0.2/32"]\n'])
async def test_one_client_leaves_room_for_others(tmp_path: Path, trusted: str) -> None:
    """It has its share and no more, unless it is a proxy that the operator trusts."""
    async with Processes(tmp_path / "logs") as processes:
        proxy = await started(processes, tmp_path, "", extra=SETTINGS + trusted)
        third = b"404" if trusted else b"503"
        assert await statuses(proxy, "127.0.0.2", 3) == [b"404", b"404", third]
        assert await statuses(proxy, "127.0.0.3", 2) == [b"404", b"404"]
        assert await proxy.process.stop() == 0


@pytest.mark.parametrize(("hard", "told"), [("15000", False), ("300", True)])
async def test_descriptors_are_taken_and_missed(tmp_path: Path, hard: str, told: bool) -> None:
    """A shell's 256 are no limit where the system has more for us; where it has not, the log says so."""
    config, _, _ = written(tmp_path, "")
    limited = f'ulimit -Sn 256 && ulimit -Hn {hard} && exec "$@"'
    async with Processes(tmp_path / "logs") as processes:
        argv = ["sh", "-c", limited, "sh", str(BIN / "netbird-proxy"), "run", "--config", str(config)]
        process = await processes.start("proxy", argv)
        await process.until_line(r"proxy\.ready")
        limits = await asyncio.to_thread(Path(f"/proc/{process.pid}/limits").read_text)
        assert limits.split("Max open files")[1].split()[0] == hard
        assert any("descriptors.few" in line for line in process.lines) is told
        assert await process.stop() == 0
