"""A proxy whose mappings come from a file, as a process: without management, through edits good and bad."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from examples.demo.processes import BIN, Processes
from tests.e2e.alone import mapped, started, written

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]


@asynccontextmanager
async def upstream(word: bytes) -> AsyncIterator[int]:
    """Says one word to everybody; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(word), word))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_proxy_without_management(tmp_path: Path) -> None:
    """It serves what the file says; an edit is served within seconds, a bad one is told and changes nothing."""
    async with Processes(tmp_path / "logs") as processes, upstream(b"one") as one, upstream(b"two") as two:
        proxy = await started(processes, tmp_path, mapped(app=one))
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:

            async def get(host: str) -> tuple[int, str]:
                answer = await client.get(f"http://127.0.0.1:{proxy.port}/", headers={"host": f"{host}.example.com"})
                return answer.status_code, answer.text

            assert await get("app") == (200, "one")
            assert (await get("other"))[0] == 404

            proxy.mappings.write_text(mapped(app=two, other=one))
            await proxy.process.until_line(r'mappings_file\.applied.*"total": ?2')
            assert await get("app") == (200, "two")
            assert await get("other") == (200, "one")

            proxy.mappings.write_text(mapped(app=one) + "private = true\n")
            told = await proxy.process.until_line(r"mappings_file\.refused.*")
            assert f"{proxy.mappings}:5: mapping[0].private: " in told[0]
            assert await get("app") == (200, "two")
            assert await get("other") == (200, "one")

            argv = [str(BIN / "netbird-proxy"), "routes", "--admin", str(tmp_path / "admin.sock"), "--json"]
            code, shown, _ = await processes.run(argv)
            assert code == 0
            assert '"source": "file"' in shown
        assert await proxy.process.stop() == 0


@pytest.mark.parametrize("command", ["run", "check"])
async def test_bad_file_stops_the_start(tmp_path: Path, command: str) -> None:
    """Each problem is a line of standard error, and `check` finds what `run` would."""
    async with Processes(tmp_path / "logs") as processes:
        config, file, _ = written(tmp_path, mapped(app=1) + "privat = true\npass_host_header = 1\n")
        code, out, err = await processes.run([str(BIN / "netbird-proxy"), command, "--config", str(config)])
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"netbird-proxy: mappings_file: {file}:5: mapping[0].privat: "
        "this field is not supported; did you mean private?",
        f"netbird-proxy: mappings_file: {file}:6: mapping[0].pass_host_header: expected true or false, not a number",
    ]


@pytest.mark.parametrize("extra", ["", "private = true\n"])
async def test_nothing_to_serve_stops_the_start(tmp_path: Path, extra: str) -> None:
    """Neither management nor a file; and a tunnel needs management."""
    async with Processes(tmp_path / "logs") as processes:
        config, file, _ = written(tmp_path, "")
        kept = extra + config.read_text()
        config.write_text(kept if extra else kept.replace(f'mappings_file = "{file}"\n', ""))
        code, _, err = await processes.run([str(BIN / "netbird-proxy"), "run", "--config", str(config)])
    assert code == 2
    assert ("tunnels need a [management] section" if extra else "a source of mappings is required") in err


async def test_good_file_is_good(tmp_path: Path) -> None:
    """`check` says so."""
    async with Processes(tmp_path / "logs") as processes:
        config, _, _ = written(tmp_path, mapped(app=8080))
        code, out, err = await processes.run([str(BIN / "netbird-proxy"), "check", "--config", str(config)])
    assert (code, err) == (0, "")
    assert out.startswith("ok: ")
