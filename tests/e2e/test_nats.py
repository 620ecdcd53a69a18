"""The NATs of `nat_networks` are the four that paths differ by, and agents with real sockets meet through them."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations_with_replacement
from typing import Any

import pytest

from tests.e2e.nat_networks import NETFILTER, ROOT, SECOND_SERVER, SERVER, Internet, Site, internet
from tests.netbird_overlay.nat import Behavior
from tests.netbird_overlay.test_nat import can_be_direct

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

PROBE = (sys.executable, "-m", "tests.e2e.ice_probe")
PAIRS = [("tun", *pair) for pair in combinations_with_replacement(Behavior, 2)]
PAIRS += [("nftables", *pair) for pair in combinations_with_replacement(NETFILTER, 2)]


@pytest.fixture
def outside() -> Iterator[Internet]:
    with internet() as made:
        yield made


@asynccontextmanager
async def program(argv: list[str]) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*argv, stdin=PIPE, stdout=PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Session:
    """Two agents, whose candidates and credentials this process carries."""

    def __init__(self) -> None:
        self.messages: dict[str, list[dict[str, Any]]] = {"a": [], "b": []}

    def of(self, name: str, kind: str) -> list[Any]:
        return [message[kind] for message in self.messages[name] if kind in message]

    def decided(self, name: str) -> bool:
        return bool((self.of(name, "heard") and self.of(name, "selected")) or self.of(name, "failed"))

    async def carry(self, name: str, source: Process, target: Process) -> None:
        """Pass on what one agent sends, until it has heard the other's data or has failed."""
        assert source.stdout is not None
        assert target.stdin is not None
        while not self.decided(name):
            line = await source.stdout.readline()
            assert line, f"agent {name} ended"
            message = json.loads(line)
            self.messages[name].append(message)
            if "candidate" in message or "credentials" in message:
                target.stdin.write(line)


async def session(outside: Internet, a: Site, b: Site, *servers: str) -> Session:
    """Run a session of two agents to its decision."""
    result = Session()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(program(outside.command(*PROBE, "server", SERVER, SECOND_SERVER)))
        assert server.stdout is not None
        assert await server.stdout.readline() == b"ready\n"
        one = await stack.enter_async_context(program(a.command(*PROBE, "agent", "a", *servers)))
        other = await stack.enter_async_context(program(b.command(*PROBE, "agent", "b", *servers)))
        await asyncio.gather(result.carry("a", one, other), result.carry("b", other, one))
    return result


@pytest.mark.parametrize(("way", "a", "b"), PAIRS, ids=str)
async def test_agents_meet_where_they_can(outside: Internet, way: str, a: Behavior, b: Behavior) -> None:
    result = await session(outside, outside.behind(way, a), outside.behind(way, b), SERVER, SECOND_SERVER)
    if can_be_direct(a, b):
        assert set(result.of("a", "heard")) == {"data from b"}
        assert set(result.of("b", "heard")) == {"data from a"}
        assert [result.of(name, "selected")[0][0] for name in "ab"] == ["203.0.113.2", "203.0.113.1"]
    else:
        assert [result.of(name, "failed") for name in "ab"] == [[True], [True]]


async def test_agents_meet_through_loss(outside: Internet) -> None:
    a, b = outside.behind_tun(Behavior.PORT_RESTRICTED), outside.behind_tun(Behavior.ADDRESS_RESTRICTED)
    for site in (a, b):
        site.lose(0.1)
    result = await session(outside, a, b, SERVER)
    assert [result.of(name, "selected")[0][0] for name in "ab"] == [b.public, a.public]


@pytest.mark.parametrize(
    ("way", "behavior"), [*(("tun", each) for each in Behavior), *(("nftables", each) for each in NETFILTER)]
)
async def test_nat_shows_its_behavior_to_two_servers(outside: Internet, way: str, behavior: Behavior) -> None:
    site = outside.behind(way, behavior)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(program(outside.command(*PROBE, "server", SERVER, SECOND_SERVER)))
        assert server.stdout is not None
        await server.stdout.readline()
        agent = await stack.enter_async_context(program(site.command(*PROBE, "agent", "a", SERVER, SECOND_SERVER)))
        assert agent.stdin is not None
        assert agent.stdout is not None
        await agent.stdout.readline()
        agent.stdin.write(b'{"credentials": ["ufrag", "password"]}\n')
        ports = set()
        for _ in range(3):  # the machine's own address, and what each server sees
            words = json.loads(await agent.stdout.readline())["candidate"].split()
            if words[7] == "srflx":
                assert words[4] == site.public
                ports.add(words[5])
    assert len(ports) == (2 if behavior is Behavior.SYMMETRIC else 1)
