"""A service whose target is an agent: reached through a relay, and reported as what it is while the agent is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.demo.agents import AGENT, DOCS_NAME, join
from examples.demo.calls import DOCS, add_service, expect, outside
from examples.demo.stack import Stack, stack
from examples.demo.story import management_starts, people_and_peers, proxy_connects

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


async def setup_key(running: Stack) -> str:
    body = {"name": "agents", "type": "reusable", "expires_in": 86_400, "usage_limit": 0, "ephemeral": False}
    answer = await running.api.post("/setup-keys", {**body, "auto_groups": []})
    return str(answer["key"])


async def test_an_agent_that_goes_away_is_reported(tmp_path: Path) -> None:
    """The service is active while its agent can be reached, names the peer while it cannot, and is active again."""
    async with stack(tmp_path) as running:
        for step in (management_starts, proxy_connects, people_and_peers):
            await step(running)
        key = await setup_key(running)
        agent = await join(running, DOCS_NAME, key, "--relay-only")
        address = running.ids[f"address {DOCS_NAME}"]
        (peer,) = [peer for peer in await running.api.get("/peers") if peer["ip"] == address]
        port = await running.start_upstream("docs")
        serving = [AGENT, "serve", f"8080=127.0.0.1:{port}", "--state", str(running.directory / DOCS_NAME)]
        await (await running.processes.start("docs-serving", serving)).until_line("ready")
        await add_service(running, "docs", DOCS, {"target_id": peer["id"], "target_type": "peer", "port": 8080})
        await running.until_service("docs", "active")
        expect("served through the relay", (await outside(running, DOCS)).status_code, 200)

        expect("exit code", await agent.stop(), 0)
        state = await running.until_service("docs", "tunnel_not_created", timeout=60)
        assert state["error_message"].startswith("tunnel_not_ready: ")
        assert DOCS_NAME in state["error_message"]

        await join(running, DOCS_NAME, key, "--relay-only")
        await (await running.processes.start("docs-serving", serving)).until_line("ready")
        await running.until_service("docs", "active", timeout=60)
        expect("served again", (await outside(running, DOCS)).status_code, 200)
