"""The driver and the tunnel on it: admission, `whois`, failed dials and the end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

import pytest

from netbird_overlay.driver import AlreadyListening, Driver, TunnelBroken
from netbird_overlay.engine import Endpoint, Engine
from netbird_overlay.members import Member
from netbird_overlay.testing import LOOPBACK, Accepting, Recorder, allow_everything_in, introduce
from netbird_proxy import Address, DialFailed, DialRefused, DialTimeout, DialUnreachable
from netbird_tunnel_netstack.testing import loopback_tunnel, tunnel_pair
from netbird_tunnel_netstack.tunnel import NetstackTunnel
from netbird_wire.envelope import format_key

pytestmark = pytest.mark.timeout(30)

Tunnels = tuple[NetstackTunnel, NetstackTunnel]
CLIENT, SERVER = "100.64.0.1", "100.64.0.2"


@pytest.fixture
async def tunnels() -> AsyncIterator[Tunnels]:
    async with tunnel_pair() as pair:
        yield pair


async def dial(tunnel: NetstackTunnel, host: str = SERVER, port: int = 80, *, timeout: float = 10) -> Recorder:
    _, protocol = await tunnel.dial(Recorder, Address(host, port), timeout=timeout)
    assert isinstance(protocol, Recorder)
    return protocol


# Admission ----------------------------------------------------------------------------------------------------------


async def test_nothing_comes_in_by_default() -> None:
    """A node with a listener and no rules answers a known peer with silence, and admits it once a rule says so."""
    async with loopback_tunnel(CLIENT) as client, loopback_tunnel(SERVER) as server:
        introduce(server.node, client.node, where=False)
        introduce(client.node, server.node)
        accepting = Accepting()
        await server.listen(80, accepting)
        with pytest.raises(DialTimeout):
            await dial(client, timeout=0.5)
        assert accepting.count == 0
        assert server.node.driver.engine.counters()["denied_inbound"] > 0
        assert server.whois(CLIENT) is not None

        server.node.driver.engine.set_inbound([(f"{CLIENT}/32", 6, 80, 80)])
        await dial(client)
        assert (await accepting.next()).calls == ["made"]


async def test_a_rule_taken_back_ends_what_it_let_in(tunnels: Tunnels) -> None:
    """Access that is revoked ends the open connection, not only the next one."""
    client, server = tunnels
    accepting = Accepting()
    await server.listen(80, accepting)
    await dial(client)
    accepted = await accepting.next()
    server.node.driver.engine.set_inbound([])
    server.node.driver.touch()
    assert isinstance(await accepted.lost, ConnectionAbortedError)


async def test_prohibitions_go_first(tunnels: Tunnels) -> None:
    """A DROP beats an ACCEPT of the same flow."""
    client, server = tunnels
    await server.listen(80, Recorder)
    server.node.driver.engine.set_inbound([("0.0.0.0/0", 6, 80, 80)], denied=[(f"{CLIENT}/32", 6, 0, 65535)])
    with pytest.raises(DialTimeout):
        await dial(client, timeout=0.5)


async def test_a_stranger_gets_no_answer() -> None:
    """A peer outside the roster gets no WireGuard answer at all."""
    async with loopback_tunnel(CLIENT) as client, loopback_tunnel(SERVER) as server:
        allow_everything_in(server.node)
        await server.listen(80, Recorder)
        introduce(client.node, server.node)
        with pytest.raises(DialUnreachable, match="does not answer"):
            await dial(client, timeout=0.5)
        counters = server.node.driver.engine.counters()
        assert counters["datagrams_out"] == 0
        assert counters["unknown_key"] > 0


# Roster -------------------------------------------------------------------------------------------------------------


async def test_whois_is_the_roster(tunnels: Tunnels) -> None:
    """`whois` returns the peer for every spelling of its address, and None for any other address."""
    _, server = tunnels
    key = format_key(tunnels[0].node.driver.engine.public_key)
    for spelling in (CLIENT, "::ffff:100.64.0.1", "fd00::1", "fd00:0:0:0:0:0:0:1", "FD00::1"):
        found = server.whois(spelling)
        assert found is not None
        assert (found.public_key, found.name, found.addresses) == (key, "client", (CLIENT, "fd00::1"))
    for spelling in ("100.64.0.9", SERVER, "", "client", "100.64.0.1/32", "fd00::1%eth0", "[fd00::1]", "0100.64.0.1"):
        assert server.whois(spelling) is None


async def test_routes_never_answer_whois() -> None:
    """A peer that routes a network does not own the addresses in it."""
    async with loopback_tunnel(SERVER) as server:
        key = secrets.token_bytes(32)
        server.node.set_members([Member(key, ("100.64.0.7",))], {})
        server.node.driver.engine.set_peer(key, ["100.64.0.7", "10.0.0.0/8"])
        assert server.whois("10.1.2.3") is None
        assert server.whois("100.64.0.7") is not None


async def test_leaving_the_roster_ends_connections(tunnels: Tunnels) -> None:
    """A removed peer leaves `whois` at once, and its connections end."""
    client, server = tunnels
    accepting = Accepting()
    await server.listen(80, accepting)
    await dial(client)
    accepted = await accepting.next()
    server.node.set_members([], {})
    assert server.whois(CLIENT) is None
    assert isinstance(await accepted.lost, ConnectionAbortedError)


async def test_an_address_can_change_hands(tunnels: Tunnels) -> None:
    """If a map moves an address to another peer, `whois` follows, and the old peer's connection ends."""
    client, server = tunnels
    accepting = Accepting()
    await server.listen(80, accepting)
    await dial(client)
    accepted = await accepting.next()
    old, new = client.node.driver.engine.public_key, secrets.token_bytes(32)
    server.node.set_members([Member(new, (CLIENT,), "new"), Member(old, ("100.64.0.8",), "old")], {})
    found = server.whois(CLIENT)
    assert found is not None
    assert found.name == "new"
    assert isinstance(await accepted.lost, ConnectionAbortedError)


async def test_an_unchanged_roster_changes_nothing(tunnels: Tunnels) -> None:
    """Applying an equal map, also with new names, keeps sessions and connections."""
    client, server = tunnels
    accepting = Accepting()
    await server.listen(80, accepting)
    recorder = await dial(client)
    introduce(server.node, client.node, name="renamed", where=False)
    recorder.transport.write(b"still here")
    accepted = await accepting.next()
    assert await accepted.has(10) == b"still here"
    found = server.whois(CLIENT)
    assert found is not None
    assert found.name == "renamed"


# Dialing ------------------------------------------------------------------------------------------------------------


async def test_dials_back_to_who_dialed_in(tunnels: Tunnels) -> None:
    """A peer is unreachable until its first packet, and is then dialed at the endpoint of that packet."""
    client, server = tunnels
    await client.listen(8080, Recorder)
    allow_everything_in(client.node)
    async with loopback_tunnel("100.64.0.3") as late:
        introduce(late.node, client.node, where=False)
        with pytest.raises(DialUnreachable, match="not connected yet"):
            await dial(late, CLIENT, 8080)
    await server.listen(80, Recorder)
    await dial(client)
    recorder = await dial(server, CLIENT, 8080)
    assert recorder.transport.get_extra_info("peername") == (CLIENT, 8080)


async def test_what_a_failed_dial_is_called(tunnels: Tunnels) -> None:
    """An unknown address, a closed port, a name and a closed tunnel raise different errors."""
    client, _ = tunnels
    with pytest.raises(DialUnreachable, match="no peer"):
        await dial(client, "100.64.0.9")
    with pytest.raises(DialRefused, match=r"100\.64\.0\.2:81"):
        await dial(client, SERVER, 81)
    with pytest.raises(DialUnreachable, match="name"):
        await dial(client, "wiki.example.com")
    client.close()
    with pytest.raises(DialFailed, match="closed"):
        await dial(client)


async def test_a_last_known_place_is_tried() -> None:
    """A peer that is not where it was last seen is unreachable within the dial's own deadline."""
    async with loopback_tunnel(CLIENT) as client, loopback_tunnel(SERVER) as server:
        key = server.node.driver.engine.public_key
        port = server.node.driver.local_port
        server.close()
        client.node.set_members([Member(key, (SERVER,))], {key: Endpoint(LOOPBACK, port)})
        with pytest.raises(DialUnreachable, match="last seen"):
            await dial(client, timeout=0.3)


async def test_dials_share_a_handshake() -> None:
    """Concurrent dials to a peer without a session share one handshake, and all succeed."""
    async with loopback_tunnel(CLIENT) as client, loopback_tunnel(SERVER) as server:
        introduce(server.node, client.node, where=False)
        introduce(client.node, server.node)
        allow_everything_in(server.node)
        await server.listen(80, Recorder)
        recorders = await asyncio.gather(*(dial(client) for _ in range(20)))
        assert len({recorder.transport.get_extra_info("sockname") for recorder in recorders}) == 20


async def test_a_canceled_dial_leaves_nothing() -> None:
    """A dial that is cancelled, before or after it connected, leaves no connection, and its protocol is notified."""
    async with loopback_tunnel(CLIENT) as client, loopback_tunnel(SERVER) as server:
        introduce(server.node, client.node, where=False)
        introduce(client.node, server.node)
        await server.listen(80, Recorder)  # and no rule: nothing answers
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(dial(client))
            while client.node.driver.engine.counters()["connections"] == 0:  # noqa: ASYNC110 - the engine has no event for it
                await asyncio.sleep(0.01)
            waiting.cancel()
        assert waiting.cancelled()
        client.node.driver.engine.advance(asyncio.get_running_loop().time())
        assert client.node.driver.engine.counters()["connections"] == 0

        allow_everything_in(server.node)
        made = Recorder()

        def late() -> Recorder:
            # In the turn that establishes it, before the dialer's own task runs again.
            asyncio.get_running_loop().call_soon(connecting.cancel)
            return made

        async with asyncio.TaskGroup() as group:
            connecting = group.create_task(client.dial(late, Address(SERVER, 80), timeout=10))
        if connecting.cancelled():
            assert await made.lost is None


async def test_a_factory_that_fails_fails_its_dial(tunnels: Tunnels) -> None:
    """A failing factory raises in its dial; a listener's is reported to the loop. The next connection works."""
    client, server = tunnels
    reports: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(str(context["exception"])))
    await server.listen(80, Recorder)

    def failing() -> Recorder:
        raise RuntimeError("no protocol today")

    with pytest.raises(RuntimeError, match="today"):
        await client.dial(failing, Address(SERVER, 80), timeout=10)
    await server.listen(81, failing)
    lost = await (await dial(client, SERVER, 81)).lost
    assert isinstance(lost, ConnectionResetError)
    assert reports == ["no protocol today"]
    await dial(client)


# Listening and the end ----------------------------------------------------------------------------------------------


async def test_closing_a_listener_keeps_what_it_accepted(tunnels: Tunnels) -> None:
    """New connections are refused, old ones live on, and the port can be listened on again."""
    client, server = tunnels
    accepting = Accepting(lambda: Recorder(echo=True))
    listener = await server.listen(80, accepting)
    with pytest.raises(AlreadyListening):
        await server.listen(80, Recorder)
    recorder = await dial(client)
    await accepting.next()  # the client is connected one packet before the server is
    listener.close()
    listener.close()
    with pytest.raises(DialRefused):
        await dial(client)
    recorder.transport.write(b"alive")
    assert await recorder.has(5) == b"alive"
    await server.listen(80, Recorder)
    listener.close()  # closing an old handle does not affect a new listener
    await dial(client)


async def test_closing_the_tunnel_ends_everything(tunnels: Tunnels) -> None:
    """Before `close` returns every protocol is notified; the other end gets a reset, and `changes()` ends."""
    client, server = tunnels
    accepting = Accepting()
    await server.listen(80, accepting)
    recorder = await dial(client)
    accepted = await accepting.next()
    changes = server.changes()
    server.close()
    server.close()
    assert accepted.calls == ["made", "lost"]
    assert isinstance(await recorder.lost, ConnectionResetError)
    assert [change async for change in changes] == []


async def test_a_socket_that_breaks_ends_everything() -> None:
    """A broken socket raises in `supervise` and ends every connection and every pending dial."""
    async with loopback_tunnel(CLIENT) as client:
        server = await _broken_server(client)
        with pytest.raises(TunnelBroken):
            await server.node.driver.supervise()
        with pytest.raises(DialFailed):
            await dial(server, CLIENT)
        server.close()


async def _broken_server(client: NetstackTunnel) -> NetstackTunnel:
    context = loopback_tunnel(SERVER)
    server = await context.__aenter__()
    introduce(server.node, client.node, where=False)
    introduce(client.node, server.node)
    allow_everything_in(server.node)
    accepting = Accepting()
    await server.listen(80, accepting)
    await dial(client)
    accepted = await accepting.next()
    waiting = asyncio.gather(dial(server, CLIENT), return_exceptions=True)
    with open(os.devnull) as nothing:  # noqa: ASYNC230
        os.dup2(nothing.fileno(), server.node.driver._socket.fileno())  # replaces the socket
    accepted.transport.write(b"x")
    assert isinstance(await accepted.lost, OSError)
    accepted.transport.write(b"x")
    accepted.transport.abort()
    (failure,) = await waiting
    assert isinstance(failure, DialFailed | DialRefused)
    with pytest.raises(TunnelBroken):
        await context.__aexit__(None, None, None)
    assert accepted.calls == ["made", "lost"]
    return server


async def test_changes_come_together_to_one(tunnels: Tunnels) -> None:
    """Changes between two calls of the consumer count as one, and a second consumer is refused."""
    tunnel = tunnels[0]
    changes = tunnel.changes()
    with pytest.raises(RuntimeError, match="consumer"):
        tunnel.changes()
    tunnel.changed()
    tunnel.changed()
    await anext(changes)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_next(changes))
        await asyncio.sleep(0)
        assert not waiting.done()
        tunnel.changed()


async def _next(changes: AsyncIterator[None]) -> None:
    await anext(changes)


async def test_many_connections_at_once(tunnels: Tunnels) -> None:
    """Two hundred dials at the same time, each with its own answer."""
    client, server = tunnels
    await server.listen(80, lambda: Recorder(echo=True))
    recorders = await asyncio.gather(*(dial(client) for _ in range(200)))
    for number, recorder in enumerate(recorders):
        recorder.transport.write(b"%d" % number)
    for number, recorder in enumerate(recorders):
        assert await recorder.has(len(b"%d" % number)) == b"%d" % number


class Choking:
    """A fake engine whose socket is full for a while."""

    def __init__(self) -> None:
        self.turns: list[int] = []
        self.full = True
        self.pending = True

    def aggregate(self, fd: int) -> bool:
        return False

    def advance(self, now: float) -> float:
        return math.inf

    def turn(self, fd: int, now: float, budget: int) -> SimpleNamespace:
        self.turns.append(budget)
        if not self.full:
            self.pending = False
        return SimpleNamespace(
            events=[],
            carried=[],
            strays=[],
            more=False,
            blocked=self.full,
            pending=self.pending,
            may_collect=False,
            deadline=math.inf,
        )


async def test_a_full_socket_is_waited_for() -> None:
    """The driver waits until a full socket is writable, without a busy loop, and then sends the queue."""
    engine = Choking()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    left.setblocking(False)
    with right:
        with contextlib.suppress(BlockingIOError):
            while True:
                left.send(bytes(60_000))
        driver = Driver(cast(Engine, engine), left)
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.turns == [0]
        engine.full = False
        right.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                right.recv(60_000)
        while engine.pending:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        assert engine.turns == [0, 0]
        driver.close()
