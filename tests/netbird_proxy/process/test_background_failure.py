"""Promise 11, in a process of its own: background work of a plugin that fails ends the proxy in order."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from examples.demo.stack import free_port

PLUGIN = """
import asyncio
from contextlib import asynccontextmanager

from netbird_proxy import Endpoint, PluginInfo, hookimpl


class Breaks:
    def __init__(self):
        self.asked = asyncio.Event()

    @hookimpl
    def describe(self):
        return PluginInfo(version="1", summary="fails in the background when its endpoint is asked to")

    @hookimpl
    def lifespan(self, proxy):
        return self.running()

    @asynccontextmanager
    async def running(self):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.work())
            yield

    async def work(self):
        await self.asked.wait()
        raise ValueError("the disk is full")

    @hookimpl
    def endpoint(self, host):
        async def answer(scope, receive, send):
            self.asked.set()
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

        return Endpoint(answer)
"""


def written(directory: Path, upstream: int, health: int) -> Path:
    """A settings file whose proxy serves one upstream, with the plugin beside it as if it were installed."""
    (directory / "breaks.py").write_text(PLUGIN)
    installed = directory / "breaks-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: breaks\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[netbird_proxy]\nbreaks = breaks:Breaks\n")
    (directory / "mappings.toml").write_text(
        '[[mapping]]\nid = "app"\ndomain = "app.example.com"\n'
        f'path = [{{ path = "/", target = "http://127.0.0.1:{upstream}", options = {{ direct_upstream = true }} }}]\n'
    )
    config = directory / "proxy.toml"
    config.write_text(
        f'plugins = ["direct_upstream", "breaks"]\nstate_directory = "{directory}/state"\n'
        f'mappings_file = "{directory}/mappings.toml"\n[[listen]]\naddress = "127.0.0.1:0"\n'
        f'[admin]\nsocket = "{directory}/admin.sock"\n[health]\nlisten = "127.0.0.1:{health}"\n'
        "[[direct_upstream.allow]]\naccounts = ['*']\nnetworks = ['127.0.0.1/32']\n[log]\nformat = 'json'\n"
    )
    return config


@asynccontextmanager
async def running(config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    path = os.pathsep.join(filter(None, (str(config.parent), os.environ.get("PYTHONPATH"))))
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("netbird-proxy")),
        "run",
        "--config",
        str(config),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def event(process: asyncio.subprocess.Process, name: str) -> dict[str, Any]:
    """The next event of that name; fails with all output so far where the process ends before."""
    assert process.stderr is not None
    lines = []
    while line := (await process.stderr.readline()).decode():
        lines.append(line)
        if f'"event":"{name}"' in line:
            fields: dict[str, Any] = json.loads(line)
            return fields
    raise AssertionError("".join(lines))


async def test_promise_11_background_work_that_fails_ends_the_process_in_order(tmp_path: Path) -> None:
    """The log has the traceback, load balancers are warned, the open exchange ends whole, then the process exits."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfirst")
        asked.set()
        await go.wait()
        writer.write(b" last")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    health_port = free_port()
    config = written(tmp_path, server.sockets[0].getsockname()[1], health_port)
    async with server, running(config) as process, httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(50):
        ready = await event(process, "proxy.ready")
        proxy, health = f"http://{ready['listening'][0]}", f"http://127.0.0.1:{health_port}"
        host = {"host": "app.example.com"}
        async with asyncio.TaskGroup() as tasks:
            download = tasks.create_task(client.get(proxy, headers=host))
            await asked.wait()
            assert (await client.get(f"{health}/readyz")).status_code == 200
            assert (await client.get(f"{proxy}/__netbird__/breaks/now", headers=host)).status_code == 204

            failed = await event(process, "plugin.failed")
            assert (failed["plugin"], failed["error"]) == ("breaks", "ValueError: the disk is full")
            assert "breaks.py" in json.dumps(failed), "the log names the line of the plugin that failed"
            assert "plugin breaks failed" in (await event(process, "proxy.stopping"))["reason"]
            assert (await client.get(f"{health}/readyz")).status_code == 503
            go.set()
        assert download.result().text == "first last"
        assert process.stderr is not None
        rest = (await process.stderr.read()).decode()
        assert await process.wait() != 0
    assert "breaks" in rest, "the last line names the plugin"
