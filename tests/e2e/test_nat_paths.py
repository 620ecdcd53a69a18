"""Two nodes behind NATs, over our own signal server, relay and STUN server: direct where it can be, else relayed.

When datagrams stop in the middle of a download, the relay carries the rest; when they pass again, the path is direct
again. The time bounds of this are tests in virtual time.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from netbird_wire.envelope import public_key
from tests.e2e.nat_networks import SERVER, Internet, Site, internet
from tests.e2e.nat_node import MEGABYTE, digest
from tests.e2e.nat_programs import NodeProcess, program, reading, script
from tests.netbird_overlay.nat import Behavior

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

SECRET = "any-relay-secret"
SIGNAL, RELAY, STUN = f"{SERVER}:10000", f"{SERVER}:8080", f"{SERVER}:3478"


@pytest.fixture
def outside() -> Iterator[Internet]:
    with internet() as made:
        yield made


@asynccontextmanager
async def network(
    outside: Internet, a: Site, b: Site, directory: Path, *, stun: bool = True
) -> AsyncIterator[tuple[NodeProcess, NodeProcess]]:
    """Run the servers, and a node in each site."""
    secret = directory / "secret"
    secret.touch(mode=0o600)
    secret.write_text(SECRET)
    signal = [script("netbird-signal"), "run", "--listen", SIGNAL]
    relay = [script("netbird-relay"), "run", "--listen", RELAY, "--exposed-url", f"rel://{RELAY}"]
    relay += ["--secret-file", str(secret), "--stun", STUN]
    keys = [secrets.token_bytes(32) for _ in range(2)]
    addresses = ("100.64.0.1", "100.64.0.2")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(program(outside.command(*signal), "ready"))
        await stack.enter_async_context(program(outside.command(*relay), "ready"))
        nodes = []
        for index, site in enumerate((a, b)):
            settings = {
                "key": keys[index].hex(),
                "peer": public_key(keys[1 - index]).hex(),
                "address": addresses[index],
                "peer_address": addresses[1 - index],
                "signal": SIGNAL,
                "relay": f"rel://{RELAY}",
                "secret": SECRET,
                "stun": STUN if stun else "",
            }
            argv = site.command(sys.executable, "-m", "tests.e2e.nat_node", json.dumps(settings))
            nodes.append(NodeProcess(await stack.enter_async_context(program(argv, '{"ready"'))))
        await stack.enter_async_context(reading(*nodes))
        yield nodes[0], nodes[1]


PAIRS = [
    ("tun", Behavior.FULL_CONE, Behavior.SYMMETRIC, "ice"),
    ("tun", Behavior.ADDRESS_RESTRICTED, Behavior.SYMMETRIC, "ice"),
    ("tun", Behavior.PORT_RESTRICTED, Behavior.PORT_RESTRICTED, "ice"),
    ("tun", Behavior.PORT_RESTRICTED, Behavior.SYMMETRIC, "relay"),
    ("tun", Behavior.SYMMETRIC, Behavior.SYMMETRIC, "relay"),
    ("nftables", Behavior.PORT_RESTRICTED, Behavior.PORT_RESTRICTED, "ice"),
    ("nftables", Behavior.PORT_RESTRICTED, Behavior.SYMMETRIC, "relay"),
]


@pytest.mark.parametrize(("way", "a", "b", "kind"), PAIRS, ids=str)
async def test_nodes_reach_each_other_on_the_best_path(
    outside: Internet, tmp_path: Path, way: str, a: Behavior, b: Behavior, kind: str
) -> None:
    async with network(outside, outside.behind(way, a), outside.behind(way, b), tmp_path) as (one, other):
        for node in (one, other):
            await node.until_path(kind)
        one.get(3 * MEGABYTE)
        await one.until(lambda: bool(one.of("digest")))
        assert one.of("digest") == [digest(3 * MEGABYTE)]
        assert one.of("path")[-1] == kind


async def test_download_goes_on_by_relay_when_datagrams_stop(outside: Internet, tmp_path: Path) -> None:
    size = 40 * MEGABYTE
    a, b = outside.behind_tun(Behavior.PORT_RESTRICTED), outside.behind_tun(Behavior.ADDRESS_RESTRICTED)
    async with network(outside, a, b, tmp_path) as (one, other):
        for node in (one, other):
            await node.until_path("ice")
        one.get(size)
        await one.until(lambda: bool(one.of("progress")))
        a.cut_udp()
        for node in (one, other):
            await node.until_path("relay")
        a.restore_udp()
        for node in (one, other):
            await node.until_path("ice")
        await one.until(lambda: bool(one.of("digest")))
        assert one.of("digest") == [digest(size)]


async def test_loss_slows_a_download_and_harms_no_byte(outside: Internet, tmp_path: Path) -> None:
    a, b = outside.behind_tun(Behavior.PORT_RESTRICTED), outside.behind_tun(Behavior.FULL_CONE)
    a.lose(0.03)
    async with network(outside, a, b, tmp_path) as (one, other):
        for node in (one, other):
            await node.until_path("ice")
        one.get(2 * MEGABYTE)
        await one.until(lambda: bool(one.of("digest")))
        assert one.of("digest") == [digest(2 * MEGABYTE)]
