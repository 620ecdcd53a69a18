"""Two proxies in one cluster: one dies, and a stock WireGuard client that has both in its file goes on by the other."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from examples.demo.calls import ALICE_SEEN, LOBBY, WIKI, Answer, expect, identity_seen
from examples.demo.stack import Stack, stack
from examples.demo.story import (
    management_starts,
    peers_files,
    people_and_peers,
    proxy_connects,
    services,
)
from netbird_overlay.wgconf import parse_config
from tests.e2e.namespace import Namespace, namespace
from tests.e2e.test_stock_client import answer_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


async def curl(there: Namespace, host: str, addresses: list[str]) -> Answer:
    """curl with every address of the cluster, as a resolver would give them."""
    argv = ["curl", "-sS", "--max-time", "20", "--connect-timeout", "8", "-i"]
    done = await asyncio.to_thread(there.run, *argv, "--resolve", f"{host}:80:{','.join(addresses)}", f"http://{host}/")
    return answer_of(done.stdout)


async def ready(running: Stack) -> list[str]:
    """Both proxies serve; their overlay addresses by alice's file."""
    for name in ("wiki", "lobby"):
        for proxy in ("proxy", "second"):
            await running.until_service(name, "active", proxy=proxy)
    config = parse_config(running.configs["alice-laptop"].read_text())
    return [str(peer.allowed_ips[0].network_address) for peer in config.peers]


async def test_the_other_proxy_goes_on(tmp_path: Path) -> None:
    """Each of the two dies hard while the other lives; wiki's own server, a peer with both in its file, goes on too."""
    with namespace(1) as there:
        async with stack(tmp_path, host=there.host_address) as running:
            await management_starts(running)
            await proxy_connects(running)
            await running.start_proxy("second")
            for step in (people_and_peers, services):
                await step(running)
            for name in ("lobby", "status"):
                await running.until_service(name, "active", proxy="second")
            await peers_files(running)
            addresses = await ready(running)
            expect("proxies in alice's file", len(set(addresses)), 2)
            with there.wireguard(running.configs["alice-laptop"]):
                for address in addresses:
                    expect(f"wiki by {address}", identity_seen(await curl(there, WIKI, [address])), ALICE_SEEN)
                for name, other in (("proxy", "second"), ("second", "proxy")):
                    await running.proxies[name].process.stop(sign=signal.SIGKILL)
                    for order in (addresses, addresses[::-1]):
                        seen = identity_seen(await curl(there, WIKI, order))
                        expect(f"wiki while {name} is dead", seen, ALICE_SEEN)
                        expect(f"lobby while {name} is dead", (await curl(there, LOBBY, order)).status, 200)
                    expect(f"{other} lives", running.proxies[other].process.running, True)
                    await running.start_proxy(name)
                    # Its status at management may be the last one's yet; its listeners are up when it says so itself.
                    await running.proxies[name].process.until_line(r"tunnel\.up")
