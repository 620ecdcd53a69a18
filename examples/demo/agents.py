"""The story's agents: peers that join by setup key, and meet through management's own signal server and relay."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from examples.demo.calls import DOCS, Step, StoryFailed, add_service, expect, parse_answer
from examples.demo.processes import BIN, Process
from examples.demo.stack import Stack

DOCS_NAME, CAROL_NAME = "docs-server", "carol-laptop"
AGENT = str(BIN / "netbird-peer")
# Parts of an agent's messages about a name that its map does not have; the zone or a name server reports it.
NOT_YET_A_NAME = ("has no address of", "cannot be resolved", "does not exist")


async def join(stack: Stack, name: str, setup_key: str, *options: str) -> Process:
    """Start an agent, and wait until it is a member of the network."""
    argv = [AGENT, "up", "--management-url", stack.grpc, "--hostname", name, "--state", str(stack.directory / name)]
    process = await stack.processes.start(name, [*argv, "--setup-key", setup_key, *options])
    stack.ids[f"address {name}"] = (await process.until_line(r"^ready on ([0-9.]+)"))[1]
    return process


async def paths_of(stack: Stack, name: str) -> dict[str, Any]:
    """Return the peers of an agent by name, as its `status` shows them."""
    code, output, errors = await stack.processes.run(
        [AGENT, "status", "--json", "--state", str(stack.directory / name)]
    )
    if code:
        raise StoryFailed(f"{name} has no status: {errors.strip()}")
    return {peer["name"].partition(".")[0]: peer for peer in json.loads(output)["peers"]}


async def until_known(stack: Stack, name: str, other: str) -> None:
    """Wait until an agent's map has another peer: management gathers joins for a moment before it sends maps."""
    async with asyncio.timeout(20):
        while other not in await paths_of(stack, name):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def fetch(stack: Stack, name: str, url: str) -> Any:
    """Fetch a page as an agent, and return the upstream's report of the request."""
    code, output, errors = await stack.processes.run(
        [AGENT, "get", "-i", url, "--state", str(stack.directory / name), "--timeout", "20"]
    )
    answer = parse_answer(output)
    if answer is None:
        raise StoryFailed(f"{name} got no answer from {url}: {errors.strip() or output!r} (exit code {code})")
    return answer


async def fetch_by_new_name(stack: Stack, name: str, url: str) -> Any:
    """Fetch a page of a service that was just added: agents' maps, which have its name, leave a second later."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await fetch(stack, name, url)
            except StoryFailed as exc:
                if not any(words in str(exc) for words in NOT_YET_A_NAME):
                    raise
                await asyncio.sleep(0.2)


async def agents_join(stack: Stack) -> str:
    ids = stack.ids
    body = {"name": "engineering", "type": "reusable", "expires_in": 86_400, "usage_limit": 0, "ephemeral": False}
    key = (await stack.api.post("/setup-keys", {**body, "auto_groups": [ids["engineering"]]}))["key"]
    # The first one's NAT lets nothing in, so all of its datagrams take the relay.
    await asyncio.gather(join(stack, DOCS_NAME, key, "--relay-only"), join(stack, CAROL_NAME, key, "--loopback"))
    await asyncio.gather(until_known(stack, DOCS_NAME, CAROL_NAME), until_known(stack, CAROL_NAME, DOCS_NAME))
    for peer in await stack.api.get("/peers"):
        if peer["ip"] in (ids[f"address {DOCS_NAME}"], ids[f"address {CAROL_NAME}"]):
            ids[f"peer {peer['name']}"] = peer["id"]
    return f"{DOCS_NAME} {ids[f'address {DOCS_NAME}']}, {CAROL_NAME} {ids[f'address {CAROL_NAME}']}"


async def agents_meet(stack: Stack) -> str:
    port = await stack.start_upstream("docs")
    state = str(stack.directory / DOCS_NAME)
    serving = [AGENT, "serve", f"8080=127.0.0.1:{port}", "--state", state]
    await (await stack.processes.start("docs-serving", serving)).until_line("ready")
    answer = await fetch(stack, CAROL_NAME, f"http://{DOCS_NAME}.netbird.selfhosted:8080/by-name")
    expect("target", answer.json["target"], "/by-name")
    peer = (await paths_of(stack, CAROL_NAME))[DOCS_NAME]
    expect("path", peer["path"], "relay")
    return f"through {peer['relay']}"


async def agents_use_services(stack: Stack) -> str:
    target = {"target_id": stack.ids[f"peer {DOCS_NAME}"], "target_type": "peer", "port": 8080}
    await add_service(stack, "docs", DOCS, target, groups=["engineering"])
    await stack.until_service("docs", "active")
    answer = await fetch_by_new_name(stack, CAROL_NAME, f"http://{DOCS}/handbook")
    expect("target", answer.json["target"], "/handbook")
    identity = dict(pair for pair in answer.json["headers"] if pair[0].lower().startswith("x-netbird-"))
    return "; ".join(f"{name}: {value}" for name, value in identity.items())


AGENTS = (
    Step("two agents join by setup key, one of them behind a NAT that lets nothing in", agents_join),
    Step("they meet through our own signal server and relay: carol opens a page of the other by name", agents_meet),
    Step("docs (private, engineering) lies behind that NAT: carol opens it through the proxy", agents_use_services),
)
