"""The relay on loopback, with clients of the WebSocket library."""

from __future__ import annotations

import asyncio
import socket
import ssl
from ipaddress import ip_network

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from netbird_host.sources import nearest_client
from netbird_relay.conversation import Identity
from netbird_relay.limits import Limits
from netbird_relay.server import RelayServer
from netbird_wire.relay import (
    MAX_IDS,
    Auth,
    Close,
    HealthCheck,
    PeersOffline,
    PeersOnline,
    Subscribe,
    Transport,
    encode,
)
from netbird_wire.relay_tokens import relay_token
from plugins.relay.tests.peers import REFUSED, SECRET, TOKEN, URL, Agent, key_id, listener, relay


async def test_two_peers_exchange_datagrams() -> None:
    async with relay() as served, served.agent(1) as alice, served.agent(2) as bob:
        await alice.meet(bob)
        await bob.meet(alice)
        await alice.send(Transport(bob.id, b"hello"), Transport(bob.id, b"again"))
        assert [await bob.datagram(), await bob.datagram()] == [(alice.id, b"hello"), (alice.id, b"again")]
        await bob.send(Transport(alice.id, b"answer"))
        assert await alice.datagram() == (bob.id, b"answer")


async def test_presence_is_told() -> None:
    async with relay() as served, served.agent(1) as alice:
        await alice.send(Subscribe((key_id(2),)))
        async with served.agent(2):
            assert await alice.receive() == PeersOnline((key_id(2),))
        assert await alice.receive() == PeersOffline((key_id(2),))


async def test_presence_of_many_is_told_in_lists_that_fit_and_in_order() -> None:
    """More than one message holds, with one that leaves and returns in the same turn."""
    async with relay() as served, served.agent(1) as alice:
        hub = served.server.hub
        ids = [key_id(100 + number) for number in range(MAX_IDS + 10)]
        await alice.send(Subscribe(tuple(ids[:MAX_IDS])), Subscribe((*ids[MAX_IDS:], alice.id)))
        assert await alice.receive() == PeersOnline((alice.id,))
        sink = hub.peers[alice.id].sink
        peers = [hub.enter(id_, sink, "", 0.0) for id_ in ids]
        assert peers[0] is not None
        hub.leave(peers[0])
        assert await alice.receive() == PeersOnline(tuple(ids[:MAX_IDS]))
        assert await alice.receive() == PeersOnline(tuple(ids[MAX_IDS:]))
        assert await alice.receive() == PeersOffline((ids[0],))


async def test_the_newest_connection_of_an_id_wins() -> None:
    async with relay() as served, served.agent(1) as alice, served.agent(2) as bob, served.agent(1) as newer:
        assert await alice.receive() == Close()
        await alice.closed()
        await bob.send(Transport(newer.id, b"x"))
        assert await newer.datagram() == (bob.id, b"x")


async def test_only_the_relays_path_is_served() -> None:
    async with relay() as served:
        for path in ("/", "/relay/", "/relayed", "/api/peers"):
            with pytest.raises(InvalidStatus, match="404"):
                async with served.dial(path):
                    pass
        assert served.counters["bad_handshake"] == 4
        assert served.server.admission.open == 0


async def test_a_query_and_an_origin_are_no_obstacle() -> None:
    """Agents in browsers send an Origin; the token authenticates them as it does others."""
    async with relay() as served, served.dial("/relay?x=1", origin="https://dashboard.example") as connection:
        agent = Agent(connection, 1)
        await agent.send(Auth(agent.id, TOKEN))
        await agent.receive()


@pytest.mark.parametrize(
    "first", [encode(Auth(key_id(1), relay_token("another", 4_000_000_000))), encode(HealthCheck()), b"", "text"]
)
async def test_a_client_that_does_not_authenticate_is_closed(first: bytes | str) -> None:
    async with relay() as served, served.dial() as connection:
        await connection.send(first)
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert not served.server.hub.peers


async def test_oversized_messages_end_the_connection() -> None:
    async with relay() as served, served.agent(1) as alice, served.agent(2) as bob:
        await alice.connection.send(bytes(8821))
        await alice.closed()
        await bob.meet(bob)
        assert served.counters["malformed"] == 1


async def test_a_stop_says_goodbye_to_every_peer() -> None:
    async with relay() as served, served.agent(1) as alice, served.agent(2) as bob:
        served.server.stop()
        for agent in (alice, bob):
            assert await agent.receive() == Close()
            await agent.closed()


async def test_a_relay_with_tls() -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    sock = listener()
    with sock:
        server = RelayServer(Identity(SECRET, URL))
        port = sock.getsockname()[1]
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(20):
            tasks.create_task(server.run([sock], tls=lambda: tls))
            try:
                with socket.create_connection(("127.0.0.1", port)) as plain:
                    plain.sendall(b"GET /relay HTTP/1.1\r\n\r\n")
                    async with connect(f"wss://127.0.0.1:{port}/relay", ssl=trusting, proxy=None) as connection:
                        agent = Agent(connection, 1)
                        await agent.send(Auth(agent.id, TOKEN))
                        await agent.receive()
                        assert server.hub.counters["tls_failed"] == 1
                        assert server.admission.open == 1
            finally:
                server.stop()


async def test_an_adopted_connection_continues_where_the_other_server_stopped() -> None:
    """The head has been read by that server, with the first message behind it."""
    async with relay() as served:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        head = (
            b"GET /relay HTTP/1.1\r\nHost: relay.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        with ours:
            served.server.adopt(theirs, "192.0.2.1", head=head)
            answer = await loop.sock_recv(ours, 1000)
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert served.server.admission.open == 1


async def test_connections_are_bounded_by_address_and_in_total() -> None:
    limits = Limits(connections=3, connections_per_address=2)
    async with relay(limits) as served, served.agent(1), served.agent(2):
        with pytest.raises(REFUSED):
            async with served.agent(3):
                pass
        assert served.counters["connections_per_address"] == 1
        for address in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            served.server.adopt(theirs, address)
            ours.close()
        assert served.counters["connections"] == 2


async def test_clients_without_a_token_are_bounded_and_peers_are_not_of_them() -> None:
    limits = Limits(unauthenticated_per_address=2)
    async with relay(limits) as served, served.agent(1), served.agent(2), served.dial(), served.dial():
        with pytest.raises(REFUSED):
            async with served.dial():
                pass
        assert served.counters["unauthenticated_per_address"] == 1
    assert served.server.admission.waiting == 0
    assert served.server.admission.open == 0
    assert not served.server.admission._open
    assert not served.server.admission._waiting


async def test_new_connections_of_one_source_are_limited_by_rate() -> None:
    async with relay(Limits(connections_per_address=2)) as served:
        for _ in range(4):
            async with served.agent(1):
                pass
        with pytest.raises(REFUSED):
            async with served.agent(1):
                pass
        assert served.counters["connection_rate"] == 1
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        served.server.adopt(theirs, "192.0.2.1")
        assert served.server.admission.open == 1
        ours.close()


LOOPBACK = (ip_network("127.0.0.0/8"),)


@pytest.mark.parametrize(
    ("address", "forwarded", "client"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("::ffff:127.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("127.0.0.1", ["198.51.100.1, 192.0.2.1", "127.0.0.2"], "192.0.2.1"),
        ("127.0.0.1", ["192.0.2.1, nonsense"], "127.0.0.1"),
        ("198.51.100.1", ["192.0.2.1"], "198.51.100.1"),
        ("", ["192.0.2.1"], ""),
    ],
)
def test_the_client_behind_trusted_proxies_is_the_nearest_that_is_none(
    address: str, forwarded: list[str], client: str
) -> None:
    assert nearest_client(address, forwarded, LOOPBACK) == client


async def test_connections_of_a_trusted_proxy_count_for_its_clients() -> None:
    limits = Limits(connections_per_address=1)
    async with relay(limits, LOOPBACK) as served:
        one, other = ({"X-Forwarded-For": f"192.0.2.{number}"} for number in (1, 2))
        async with served.dial(additional_headers=one), served.dial(additional_headers=other) as connection:
            with pytest.raises(InvalidStatus, match="503"):
                async with served.dial(additional_headers=one):
                    pass
            assert served.counters["connections_per_address"] == 1
            agent = Agent(connection, 1)
            await agent.send(Auth(agent.id, TOKEN))
            await agent.receive()
            assert served.server.hub.peers[agent.id].source == "192.0.2.2"
        await served.counters.reach("ended", 3)
    assert served.server.admission.open == served.server.admission.waiting == 0
    assert not served.server.admission._open


async def test_a_client_that_is_no_trusted_proxy_cannot_name_another_address() -> None:
    one, other = ({"X-Forwarded-For": f"192.0.2.{number}"} for number in (1, 2))
    async with relay(Limits(unauthenticated_per_address=1)) as served, served.dial(additional_headers=one):
        with pytest.raises(REFUSED):
            async with served.dial(additional_headers=other):
                pass
