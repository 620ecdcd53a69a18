"""Two nodes without a direct way and without a relay in common meet at a TURN server that is not ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from netbird_overlay.paths.servers import PathServers, TurnServer
from netbird_overlay.signal.client import SignalTarget
from netbird_overlay.testing import Accepting, Recorder
from tests.e2e.coturn import Coturn, coturn, require_coturn
from tests.netbird_overlay.paths.house import PORT, Resident, Servers, acquaint, exchange, resident

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


def configure(group: Servers, home: Resident, turns: Sequence[TurnServer]) -> None:
    signal = SignalTarget(f"127.0.0.1:{group.signal_port}", tls=False)
    home.paths.configure(PathServers(signal=signal, relays=(), stuns=(), turns=tuple(turns)))


def types(home: Resident, other: Resident) -> tuple[str, str]:
    state = home.paths.state(other.key)
    return state.local_type, state.remote_type


@pytest.fixture(autouse=True)
def tools() -> None:
    require_coturn()


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("both", [True, False])
async def test_nodes_without_a_direct_way_meet_at_a_turn_server(tmp_path: Path, transport: str, both: bool) -> None:
    """Neither names an address of its own (`adapters` is empty), or only the one without a TURN server does."""
    group = Servers()
    await group.start_signal()
    try:
        async with (
            coturn(tmp_path) as server,
            resident("100.64.0.1", ice=True, adapters=list) as a,
            resident("100.64.0.2", ice=True, **({"adapters": list} if both else {})) as b,
        ):
            accepting = Accepting()
            b.node.listen(PORT, accepting)
            configure(group, a, [server.server(transport)])
            configure(group, b, [server.server(transport)] if both else [])
            acquaint(a, b)
            await exchange(a, b, accepting)
            await a.until(lambda: types(a, b)[0] == "relay")
            if both:
                await b.until(lambda: "relay" in types(b, a))
            download = b"0123456789abcdef" * 65_536
            client, received = await a.node.dial(Recorder, b.address, PORT, timeout=15)
            far = await accepting.next()
            client.write(b"go")
            await far.has(2)
            far.transport.write(download)
            assert isinstance(received, Recorder)
            assert await received.has(len(download)) == download
    finally:
        await group.close()


async def test_path_outlives_permissions_and_nonces_of_a_server_that_forgets_fast(tmp_path: Path) -> None:
    """The shortest lifetimes that the server allows: each refresh and each new nonce happens while bytes flow."""
    group = Servers()
    await group.start_signal()
    try:
        async with (
            coturn(tmp_path, "--stale-nonce=2", "--max-allocate-lifetime=40") as server,
            resident("100.64.0.1", ice=True, adapters=list) as a,
            resident("100.64.0.2", ice=True, adapters=list) as b,
        ):
            accepting = Accepting()
            b.node.listen(PORT, accepting)
            for home in (a, b):
                configure(group, home, [server.server()])
            acquaint(a, b)
            await exchange(a, b, accepting)
            await refreshed(server)
            await exchange(a, b, accepting)
            assert "relay" in types(a, b)
            assert a.paths.totals().get("turn_allocations_ended", 0) == 0
    finally:
        await group.close()


async def refreshed(server: Coturn) -> None:
    """Wait until the server wrote of a refreshed allocation."""
    async with asyncio.timeout(60):
        while b"refreshed" not in server.log.read_bytes():  # noqa: ASYNC110 (another process writes it)
            await asyncio.sleep(0.2)


async def test_wrong_credentials_are_reported_and_nothing_else_suffers(tmp_path: Path) -> None:
    group = Servers()
    await group.start_signal()
    try:
        async with (
            coturn(tmp_path) as server,
            resident("100.64.0.1", ice=True) as a,
            resident("100.64.0.2", ice=True) as b,
        ):
            accepting = Accepting()
            b.node.listen(PORT, accepting)
            for home in (a, b):
                configure(group, home, [server.server(secret="guess")])
            acquaint(a, b)
            await exchange(a, b, accepting)
            await a.until(lambda: a.paths.totals().get("turn_allocations_ended", 0) > 0)
            assert types(a, b) == ("host", "host") or "prflx" in types(a, b)
    finally:
        await group.close()
