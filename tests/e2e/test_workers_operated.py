"""Several workers as their operator sees them: as one proxy, also while one of them hangs or is lost."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.demo.calls import ALICE_SEEN, LOBBY, add_service, direct, identity_seen, overlay, until
from examples.demo.processes import BIN, Process
from examples.demo.stack import CLUSTER, Stack, free_port, stack
from examples.demo.story import people_and_peers
from netbird_overlay.wgconf import parse_config
from tests.e2e.alone import Alone, mapped
from tests.e2e.test_starting import upstream
from tests.e2e.worker_processes import ask, pids, state, workers

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


async def fetch(port: int, path: str) -> tuple[int, str]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"http://127.0.0.1:{port}{path}")
    return answer.status_code, answer.text


async def numbers(port: int) -> dict[str, int]:
    _, text = await fetch(port, "/metrics")
    return {name: int(value) for name, value in re.findall(r"^netbird_proxy_(\w+) (\d+)$", text, re.MULTILINE)}


async def run(proxy: Alone, directory: Path, *arguments: str) -> tuple[int, str, str]:
    handle = await asyncio.create_subprocess_exec(
        *[str(BIN / "netbird-proxy"), *arguments, "--config", str(proxy.config)],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(handle.communicate(), 60)
    return handle.returncode or 0, output.decode(), errors.decode()


async def test_numbers_of_all_workers_are_merged_and_never_fall(tmp_path: Path) -> None:
    """Counters are sums, also over workers that ended; a scrape waits for no worker."""
    port = free_port()
    extra = f'[health]\nlisten = "127.0.0.1:{port}"\nmetrics = true\n[limits]\nhead_timeout = 0.2\n'
    async with workers(tmp_path, mapped(app=1), extra=extra) as proxy:
        first, second = await pids(tmp_path)
        opened = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(24)]
        await asyncio.gather(*(ask(proxy.port) for _ in range(10)))  # the upstream cannot be reached

        async def merged() -> bool:
            now = await numbers(port)
            return now["workers"] == now["workers_ready"] == 2 and now["services"] == 1 and now["ready"] == 1

        await until("all report", merged, timeout=20)
        os.kill(first, signal.SIGSTOP)
        async with asyncio.timeout(10):  # a scrape that waited for the worker would take the watchdog's 30 s
            assert (await numbers(port))["workers"] == 2

        async def noticed() -> bool:
            return (await numbers(port))["workers_ready"] == 1 and (await fetch(port, "/readyz")) == (200, "ok\n")

        await until("one of two is ready", noticed, timeout=20)
        os.kill(second, signal.SIGSTOP)

        async def none() -> bool:
            return await fetch(port, "/readyz") == (503, "stalled\n")

        await until("none is ready", none, timeout=20)
        assert await fetch(port, "/livez") == (200, "ok\n")
        before = await numbers(port)
        os.kill(first, signal.SIGCONT)
        os.kill(second, signal.SIGKILL)

        async def replaced() -> bool:
            return (await numbers(port))["workers_ready"] == 2

        await until("another one is ready", replaced, timeout=40)
        after = await numbers(port)
        assert {name for name in before if name.endswith("_total") and after.get(name, 0) < before[name]} == set()
        assert after["workers_restarted_total"] == 1
        for _, writer in opened:
            writer.close()


async def test_commands_ask_all_workers(tmp_path: Path) -> None:
    """`explain` finds an exchange of any worker; a worker that hangs is named, and the others answer."""
    async with upstream() as target, workers(tmp_path, mapped(app=target)) as proxy:
        for _ in range(24):
            assert await ask(proxy.port, "nobody.example.com") == 404
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "admin.sock"))
        async with httpx.AsyncClient(transport=transport) as client:
            refused: list[dict[str, Any]] = (await client.get("http://proxy/exchanges")).json()
        assert {story["worker"] for story in refused} == {1, 2}
        for number in (1, 2):
            wanted = next(story["id"] for story in refused if story["worker"] == number)
            code, output, _ = await run(proxy, tmp_path, "explain", wanted)
            assert (code, f"worker    {number}" in output, "404" in output) == (0, True, True)
        code, output, errors = await run(proxy, tmp_path, "routes", "--json")
        assert (code, errors) == (0, "")
        assert [(row["host"], "workers" in row) for row in json.loads(output)] == [("app.example.com", False)]
        code, output, _ = await run(proxy, tmp_path, "explain", "app.example.com", "/")
        assert (code, output.count("service app")) == (0, 1)
        _, second = await pids(tmp_path)
        os.kill(second, signal.SIGSTOP)
        try:
            code, output, errors = await run(proxy, tmp_path, "routes")
            assert (code, "app.example.com" in output, errors) == (0, True, "note: worker 2 did not answer\n")
            code, _, errors = await run(proxy, tmp_path, "explain", "0" * 32)
            assert (code, "worker 2 did not answer" in errors) == (1, True)
        finally:
            os.kill(second, signal.SIGCONT)


async def proxies_of(running: Stack, service: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = await running.api.get(f"/reverse-proxies/services/{running.ids[service]}/proxies")
    return answer


async def test_management_sees_each_worker_as_a_proxy(tmp_path: Path) -> None:
    """Each reports the service, and has an id that stays when the worker is replaced."""
    async with upstream() as target, stack(tmp_path) as running:
        await running.start_management()
        extra = "[process]\nworkers = 2\n"
        proxy = await running.start_proxy("proxy", plugins=["direct_upstream"], private=False, extra=extra)
        await proxy.process.until_line(r"workers\.ready", timeout=60)
        await add_service(running, "app", f"app.{CLUSTER}", direct("127.0.0.1", target))
        await running.until_service("app", "active")
        ids: set[str] = set()

        async def both() -> bool:
            nonlocal ids
            rows = await proxies_of(running, "app")
            ids = {row["proxy_id"] for row in rows if row["status"] == "active"}
            return len(ids) == 2

        await until("both report the service", both, timeout=20)
        before = ids
        for _ in range(16):
            assert await ask(proxy.http, f"app.{CLUSTER}") == 200
        await kill_second(proxy.process)
        await until("both report the service again", both, timeout=40)
        assert ids == before


async def test_each_worker_has_a_tunnel_of_its_own(tmp_path: Path) -> None:
    """A private service is served at both overlay addresses, on UDP ports of different parts of the range; a member's
    file names both, and stays valid when a worker is replaced."""
    async with stack(tmp_path) as running:
        await running.start_management()
        proxy = await running.start_proxy("proxy", extra="[process]\nworkers = 2\n")
        await proxy.process.until_line(r"workers\.ready", timeout=60)
        await people_and_peers(running)
        await running.start_upstream("lobby")
        lobby = direct("127.0.0.1", running.upstreams["lobby"])
        await add_service(running, "lobby", LOBBY, lobby, groups=["All"])

        async def both() -> bool:
            return [row["status"] for row in await proxies_of(running, "lobby")] == ["active", "active"]

        await until("both serve the service", both, timeout=60)
        file = await running.write_peer_file("alice-laptop")
        peers = parse_config(file.read_text()).peers
        ports = sorted(peer.endpoint[1] for peer in peers if peer.endpoint is not None)
        assert (len(ports), ports[1] - ports[0]) == (2, 10)

        async def served() -> None:
            for peer in peers:
                address = peer.allowed_ips[0].network_address
                answer = await overlay(running, "alice-laptop", f"http://{LOBBY}/", "--resolve", f"{LOBBY}={address}")
                assert identity_seen(answer) == ALICE_SEEN

        await served()
        seen = len(proxy.process.lines)
        await kill_second(proxy.process)
        await proxy.process.until_line(r"tunnel\.up", start=seen, timeout=40)
        await until("both serve the service again", both, timeout=60)
        await served()
        assert (await running.write_peer_file("alice-laptop")).read_text() == file.read_text()


async def kill_second(process: Process) -> None:
    """Kill the second worker, and wait for the next one."""
    ready = json.loads((await process.until_line(r"^.*workers\.ready.*$"))[0])
    seen = len(process.lines)
    os.kill(ready["pids"][1], signal.SIGKILL)
    await process.until_line(r"proxy\.ready", start=seen, timeout=40)


async def test_an_unreachable_state_shows_the_state_of_the_others(tmp_path: Path) -> None:
    """`/state` is bounded, and shows what is known of a worker that does not answer."""
    async with workers(tmp_path, mapped(app=1)):
        first, _ = await pids(tmp_path)
        os.kill(first, signal.SIGSTOP)
        try:

            async def stalled() -> bool:
                return [worker["unready"] for worker in (await state(tmp_path))["workers"]] == ["stalled", ""]

            await until("the one that hangs is shown", stalled, timeout=30)
            answer = await state(tmp_path)
            assert [worker["state"] is None for worker in answer["workers"]] == [True, False]
            assert answer["ready"] is True
        finally:
            os.kill(first, signal.SIGCONT)
