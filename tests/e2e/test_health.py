"""What a load balancer is told of a proxy process, from its start to its end."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

from examples.demo.calls import until
from examples.demo.processes import Processes, ProcessFailed
from examples.demo.stack import free_port, stack
from tests.e2e.alone import mapped, started
from tests.e2e.test_stopping import GET, SIZE, open_to, slow

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]


async def asked(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.request(method, f"http://127.0.0.1:{port}{path}")
    assert answer.headers["cache-control"] == "no-store"
    return answer.status_code, answer.text


async def test_ready_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """A draining process lives, and wants no new clients; it says so until its last exchange has ended."""
    port = free_port()
    async with Processes(tmp_path / "logs") as processes, slow() as upstream:
        extra = f'[health]\nlisten = "127.0.0.1:{port}"\n'
        proxy = await started(processes, tmp_path, mapped(app=upstream.port), extra=extra)
        assert await asked(port, "/readyz") == (200, "ok\n")
        assert await asked(port, "/livez", "HEAD") == (200, "")
        assert (await asked(port, "/readyz", "POST"))[0] == 405
        for path in ("/healthz", "/healthz/ready", "/healthz/startup", "/healthz/live"):
            status, page = await asked(port, path)
            assert (status, json.loads(page)["status"]) == (200, "ok")
        for path in ("/metrics", "/state", "/", "/routes", "/healthz/"):
            assert await asked(port, path) == (404, "not found\n")
        async with open_to(proxy, GET) as (reader, _):
            proxy.process.send(signal.SIGTERM)
            await proxy.process.until_line(r"proxy\.stopping")
            assert await asked(port, "/readyz") == (503, "stopping\n")
            assert await asked(port, "/livez") == (200, "ok\n")
            assert await asked(port, "/healthz/live") == (200, '{"status":"ok"}\n')
            assert (await asked(port, "/healthz/ready"))[0] == 503
            upstream.go.set()
            await reader.readexactly(SIZE)
        assert await proxy.process.stop() == 0


async def test_not_ready_before_it_knows_what_to_serve(tmp_path: Path) -> None:
    """Without a snapshot no host is known; once there was one, a lost management changes nothing."""
    port = free_port()
    async with stack(tmp_path) as running:
        running.grpc, running.token = f"http://127.0.0.1:{free_port()}", "none yet"
        extra = f'[health]\nlisten = "127.0.0.1:{port}"\nmetrics = true\n'
        early = f"{extra}[limits]\nstartup_timeout = 0.1\n"
        first = await running.start_proxy("early", plugins=["direct_upstream"], private=False, extra=early, wait=False)
        await first.process.until_line(r"proxy\.incomplete")
        assert await asked(port, "/readyz") == (503, "no mappings yet\n")
        await first.process.stop()

        await running.start_management()
        await running.start_proxy("proxy", plugins=["direct_upstream"], private=False, extra=extra)

        async def ready() -> bool:
            return await asked(port, "/readyz") == (200, "ok\n")

        await until("it is ready", ready, timeout=15)
        status, numbers = await asked(port, "/metrics")
        assert status == 200
        assert "netbird_proxy_management_connected 1\n" in numbers
        await running.management.stop(sign=signal.SIGKILL)

        async def noticed() -> bool:
            return "netbird_proxy_management_connected 0\n" in (await asked(port, "/metrics"))[1]

        await until("the loss is told", noticed, timeout=15)
        assert await asked(port, "/readyz") == (200, "ok\n")
        # NetBird's readiness is the connection to management; ours is that services are served.
        ready = '{"status":"fail","checks":{"management_connected":false}}\n'
        assert await asked(port, "/healthz/ready") == (503, ready)
        numbers = (await asked(port, "/metrics"))[1]
        assert re.search(r"^# TYPE netbird_proxy_management_unreachable_total counter$", numbers, re.MULTILINE)
        assert all(re.fullmatch(r"# TYPE \w+ (counter|gauge)|\w+ [0-9]+", line) for line in numbers.splitlines())


async def test_no_service_has_it_for_an_upstream(tmp_path: Path) -> None:
    """It is one of our own ports, and may be meant for those inside alone."""
    port = free_port()
    async with Processes(tmp_path / "logs") as processes:
        with pytest.raises(ProcessFailed, match="is one of this proxy's own listeners"):
            await started(processes, tmp_path, mapped(probe=port), extra=f'[health]\nlisten = "127.0.0.1:{port}"\n')


async def test_address_that_cannot_be_had_stops_the_start(tmp_path: Path) -> None:
    """Nobody would be told anything, and would send clients elsewhere."""
    async with Processes(tmp_path / "logs") as processes:
        extra = '[health]\nlisten = "192.0.2.1:1"\n'
        with pytest.raises(ProcessFailed, match=r"health: listen.address 192\.0\.2\.1:1"):
            await started(processes, tmp_path, "", extra=extra)
