"""A management process that stands still, is gone, or refuses: the proxy says which, and is there again after each."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.demo.calls import until
from examples.demo.stack import Stack, stack

pytestmark = [pytest.mark.live, pytest.mark.timeout(60)]

IMPATIENT = "[limits]\nmanagement_silence = 0.5\nmanagement_patience = 0.5\n"


async def state(running: Stack, proxy: str = "proxy") -> dict[str, Any]:
    """What a proxy says of its management, with the counters about it."""
    transport = httpx.AsyncHTTPTransport(uds=str(running.proxies[proxy].admin))
    async with httpx.AsyncClient(transport=transport) as client:
        found = (await client.get("http://proxy/state")).json()
    return {"state": found["management"]["state"], "connected": found["management"]["connected"]} | found["counters"]


async def until_state(running: Stack, wanted: str, proxy: str = "proxy") -> dict[str, Any]:
    async def so() -> bool:
        return bool((await state(running, proxy))["state"] == wanted)

    await until(f"management is {wanted}", so, timeout=20)
    return await state(running, proxy)


def losses(running: Stack) -> list[str]:
    """Why each stream was lost, as the log has it."""
    lines = running.proxies["proxy"].process.lines
    return [json.loads(line)["why"] for line in lines if "management.stream.lost" in line]


async def test_frozen_is_no_refusal_and_no_absence(tmp_path: Path) -> None:
    """A stopped process holds its connections and its port, and says nothing: found out within the settings' bounds."""
    async with stack(tmp_path) as running:
        await running.start_management()
        await running.start_proxy("proxy", plugins=["direct_upstream"], private=False, extra=IMPATIENT)
        told = await until_state(running, "connected")
        assert told["connected"] is True

        running.management.send(signal.SIGSTOP)
        try:
            told = await until_state(running, "silent")
            assert (told["connected"], told["management_silent"] >= 1) == (False, True)
            assert set(losses(running)) == {"silent"}
        finally:
            running.management.send(signal.SIGCONT)
        await until_state(running, "connected")

        before = len(losses(running))
        await running.management.stop(sign=signal.SIGKILL)
        told = await until_state(running, "unreachable")
        assert told["management_unreachable"] >= 1
        await running.restart_management()
        await until_state(running, "connected")
        assert set(losses(running)[before:]) == {"unreachable"}

        running.token = "nobody's"
        # Never ready: the proxy has no mappings file, and management gives it nothing to serve.
        await running.start_proxy("stranger", plugins=["direct_upstream"], private=False, extra=IMPATIENT, wait=False)
        await running.proxies["stranger"].process.until_line(r"management\.stream\.lost")
        told = await until_state(running, "refused", "stranger")
        assert (told["connected"], told["management_refused"] >= 1) == (False, True)
        for name in ("proxy", "stranger"):
            assert await running.proxies[name].process.stop() == 0
