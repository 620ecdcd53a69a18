"""Relays on the loop, against a scripted relay and against NetBird's captured messages."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from netbird_overlay.relay import Relays, RelayToken, peer_id, relay_token
from netbird_overlay.relay.client import QUEUE_BYTES, WRITE_BUFFER_BYTES
from netbird_wire.backoff import Backoff
from netbird_wire.envelope import parse_key
from netbird_wire.relay import (
    HEALTH_CHECK_MESSAGE,
    PEERS_ONLINE,
    Auth,
    Close,
    HealthCheck,
    Message,
    Subscribe,
    Transport,
    Unsubscribe,
    decode,
    encode,
)
from tests.netbird_overlay.relay.double import SECRET, Relay, scripted_relay

WIRE = Path(__file__).parents[2] / "contract" / "wire"
GOLDEN = [json.loads(line) for line in (WIRE / "relay.jsonl").read_text().splitlines()]
PEERS = {
    "alice": parse_key("4SDAA8HPpKiN60Xd8QXLuEbeagsW+XlDej8j+al2hTE="),
    "bob": parse_key("bvZ4Yhzmp3tOx5vUXyivaMWKLITvquYzZjIXNPehnVk="),
    "proxy": parse_key("qWtax9c3m2sJXMuGAq8gA0jo6k4ppAzgG3vTE49qIww="),
}
OWN, ALICE, BOB = (bytes([number]) * 32 for number in (1, 2, 3))
TOKEN = relay_token(SECRET, 4_000_000_000)


class Node:
    """Relays of one peer, whose callbacks are recorded in order."""

    def __init__(self, key: bytes = OWN, tls: ssl.SSLContext | None = None) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.changed = asyncio.Condition()
        self.relays = Relays(
            key,
            on_datagrams=lambda key, server, datagrams: self.note("datagrams", key, server, datagrams),
            on_online=lambda key, server: self.note("online", key, server),
            on_offline=lambda key, server: self.note("offline", key, server),
            on_home=lambda: self.note("home", self.relays.home),
            tls=tls,
            backoff=Backoff(0.01, 0.02),
        )
        self._event = asyncio.Event()

    def note(self, *call: object) -> None:
        self.calls.append(call)
        self._event.set()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for something that a callback makes true."""
        while not predicate():
            self._event.clear()
            await self._event.wait()

    async def called(self, *call: object) -> None:
        await self.until(lambda: call in self.calls)


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(node.relays.run()) for node in nodes]
        try:
            async with asyncio.timeout(10):
                yield
        finally:
            for run in runs:
                run.cancel()


@asynccontextmanager
async def at_home(relay: Relay, key: bytes = OWN) -> AsyncIterator[Node]:
    node = Node(key)
    node.relays.configure([relay.url], TOKEN)
    async with running(node):
        await node.called("home", relay.instance_url or relay.url)
        yield node


def by(peer: bytes, relay: Relay) -> list[Message]:
    """The messages that the relay received from a peer that is connected."""
    return relay.online[peer_id(peer)].messages


# NetBird's messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("connection", "owner"), [("005", "alice"), ("014", "proxy"), ("042", "proxy")])
async def test_a_captured_connection_is_repeated_byte_for_byte(connection: str, owner: str) -> None:
    lines = [line for line in GOLDEN if line["conn"] == connection]
    sent = [base64.b64decode(line["base64"]) for line in lines if line["direction"] == "c2s"]
    from_server = [base64.b64decode(line["base64"]) for line in lines if line["direction"] == "s2c"]
    auth = decode(sent[0])
    assert isinstance(auth, Auth)
    names = {peer_id(key): key for key in PEERS.values()}
    async with scripted_relay(judge=lambda auth: True, instance_url="rel://10.99.0.1:8081") as relay:
        node = Node(PEERS[owner])
        node.relays.configure([relay.url], auth.token)
        async with running(node):
            await node.called("home", "rel://10.99.0.1:8081")
            client = relay.online[peer_id(PEERS[owner])]
            for count, message in enumerate(map(decode, sent[1:]), 2):
                match message:
                    case Subscribe((peer,)):
                        node.relays.open(names[peer], node.relays.home)
                        await relay.until(lambda count=count: len(client.received) == count)
                        await client.connection.send(
                            next(data for data in from_server if data[1] == PEERS_ONLINE and peer in data)
                        )
                        await node.called("online", names[peer], node.relays.home)
                    case Transport(peer, payload):
                        node.relays.send(names[peer], node.relays.home, [payload])
                    case HealthCheck():
                        await client.connection.send(HEALTH_CHECK_MESSAGE)
                await relay.until(lambda count=count: len(client.received) == count)
            for data in from_server:
                if isinstance(message := decode(data), Transport):
                    await client.connection.send(data)
                    await node.called("datagrams", names[message.peer], node.relays.home, [message.payload])
        assert client.received[: len(sent)] == sent
        assert client.path == "/relay"
        assert "sec-websocket-extensions" not in {name.lower() for name in client.headers}
        assert "sec-websocket-protocol" not in {name.lower() for name in client.headers}


# Two nodes ------------------------------------------------------------------------------------------------------------


async def test_two_peers_exchange_datagrams_through_their_relay() -> None:
    async with scripted_relay() as relay, at_home(relay, ALICE) as alice, at_home(relay, BOB) as bob:
        alice.relays.open(BOB, relay.url)
        await alice.called("online", BOB, relay.url)
        bob.relays.open(ALICE, relay.url)
        await bob.called("online", ALICE, relay.url)
        alice.relays.send(BOB, relay.url, [b"one", b"two"])
        await bob.called("datagrams", ALICE, relay.url, [b"one", b"two"])
        bob.relays.send(ALICE, relay.url, [b"three"])
        await alice.called("datagrams", BOB, relay.url, [b"three"])
        assert alice.relays.home == relay.url
        assert alice.relays.home_ip == bytes([127, 0, 0, 1])
        assert not alice.relays.counters


async def test_a_quick_peers_first_datagram_comes_with_its_path() -> None:
    async with scripted_relay() as relay, at_home(relay, ALICE) as alice, at_home(relay, BOB) as bob:
        alice.relays.open(BOB, relay.url)
        await alice.called("online", BOB, relay.url)
        alice.relays.send(BOB, relay.url, [b"handshake", b"more"])
        await relay.until(lambda: len(by(ALICE, relay)) == 4)
        bob.relays.open(ALICE, relay.url)
        await bob.called("datagrams", ALICE, relay.url, [b"handshake"])
        assert bob.calls[-2:] == [("online", ALICE, relay.url), ("datagrams", ALICE, relay.url, [b"handshake"])]


async def test_messages_before_the_answer_to_auth_are_not_a_failure() -> None:
    early = [encode(Transport(peer_id(ALICE), b"handshake")), HEALTH_CHECK_MESSAGE]
    async with scripted_relay(early=early) as relay, at_home(relay) as node:
        await relay.until(lambda: HealthCheck() in by(OWN, relay))
        assert node.relays.home == relay.url


async def test_a_peer_that_leaves_is_offline_and_a_peer_that_returns_is_online_again() -> None:
    async with scripted_relay() as relay, at_home(relay, ALICE) as alice:
        async with at_home(relay, BOB):
            alice.relays.open(BOB, relay.url)
            await alice.called("online", BOB, relay.url)
        await alice.called("offline", BOB, relay.url)
        await relay.until(lambda: Unsubscribe((peer_id(BOB),)) in by(ALICE, relay))
        alice.calls.clear()
        alice.relays.open(BOB, relay.url)
        async with at_home(relay, BOB):
            await alice.called("online", BOB, relay.url)


async def test_a_closed_path_carries_nothing_and_what_is_sent_on_it_is_counted() -> None:
    async with scripted_relay() as relay, at_home(relay, ALICE) as alice, at_home(relay, BOB):
        alice.relays.open(BOB, relay.url)
        await alice.called("online", BOB, relay.url)
        alice.relays.close(BOB, relay.url)
        alice.relays.send(BOB, relay.url, [b"one", b"two"])
        alice.relays.send(BOB, "rel://nowhere", [b"three"])
        assert alice.relays.counters["no_path"] == 3
        await relay.until(lambda: Unsubscribe((peer_id(BOB),)) in by(ALICE, relay))


# Relays that come and go ----------------------------------------------------------------------------------------------


async def test_a_lost_home_is_reached_again_and_its_paths_are_gone() -> None:
    async with scripted_relay() as relay, at_home(relay) as node, at_home(relay, ALICE):
        node.relays.open(ALICE, relay.url)
        await node.called("online", ALICE, relay.url)
        node.calls.clear()
        await relay.drop_all()
        await node.called("home", relay.url)
        assert node.calls[:2] == [("offline", ALICE, relay.url), ("home", "")]


async def test_peers_meet_at_a_foreign_relay_with_the_address_that_was_named() -> None:
    async with (
        scripted_relay() as home,
        scripted_relay() as other,
        at_home(home, ALICE) as alice,
        at_home(other, BOB) as bob,
    ):
        foreign = f"rel://relay.invalid:{other.port}"
        alice.relays.open(BOB, foreign, bytes([127, 0, 0, 1]))
        await alice.called("online", BOB, foreign)
        bob.relays.open(ALICE, other.url)
        await bob.called("online", ALICE, other.url)
        alice.relays.send(BOB, foreign, [b"hello"])
        await bob.called("datagrams", ALICE, other.url, [b"hello"])
        assert alice.relays.home == home.url


async def test_a_foreign_relay_whose_named_address_is_wrong_is_reached_by_its_url() -> None:
    async with scripted_relay() as home, scripted_relay() as other, at_home(home, ALICE) as alice, at_home(other, BOB):
        alice.relays.open(BOB, other.url, bytes([127, 0, 0, 9]))
        await alice.called("online", BOB, other.url)


async def test_a_name_that_a_peer_made_up_leads_to_no_address_of_this_host() -> None:
    """A peer that controls a name could make us call services of this host, or of its cloud provider."""
    async with scripted_relay() as home, scripted_relay() as local, at_home(home, ALICE) as alice:
        name = f"rel://localhost:{local.port}"
        alice.relays.open(BOB, name)
        await alice.called("offline", BOB, name)
        assert not local.clients


async def test_a_relay_is_reached_at_whichever_of_its_addresses_answers() -> None:
    """The name has addresses of both families, of which one is served."""
    async with scripted_relay() as relay:
        node = Node()
        node.relays.configure([f"rel://localhost:{relay.port}"], TOKEN)
        async with running(node):
            await node.called("home", relay.url)


async def test_a_name_that_leads_to_the_home_relay_does_not_cut_its_link() -> None:
    """A peer may make up any number of names; the connection is recognized by its address before it says anything."""
    async with scripted_relay() as relay, at_home(relay) as node, at_home(relay, ALICE):
        node.calls.clear()
        name = f"rel://relay.invalid:{relay.port}"
        node.relays.open(ALICE, name, bytes([127, 0, 0, 1]))
        await node.called("offline", ALICE, name)
        node.relays.open(ALICE, name, bytes([127, 0, 0, 1]))
        await node.called("online", ALICE, name)
        assert ("home", "") not in node.calls
        assert len(relay.clients) == 2


@pytest.mark.parametrize("server", ["rel://127.0.0.1:1", "rel://relay.invalid", "rel://" + "a" * 70 + ".example", "?"])
async def test_a_server_that_cannot_be_reached_leaves_its_peer_offline(server: str) -> None:
    async with scripted_relay() as relay, at_home(relay) as node:
        node.relays.open(ALICE, server)
        await node.called("offline", ALICE, server)
        assert node.relays.home == relay.url


async def test_a_refused_token_is_tried_again_with_the_next_one() -> None:
    async with scripted_relay() as relay:
        node = Node()
        node.relays.configure([relay.url], relay_token("another secret", 4_000_000_000))
        refused = asyncio.Event()
        judge = relay.judge
        relay.judge = lambda auth: judge(auth) or bool(refused.set())
        async with running(node):
            await refused.wait()
            assert node.calls == []
            node.relays.configure([relay.url], TOKEN)
            await node.called("home", relay.url)


async def test_the_first_of_several_relays_that_accepts_is_home() -> None:
    async with scripted_relay(mute=True) as mute, scripted_relay() as good:
        node = Node()
        node.relays.configure(["rel://127.0.0.1:1", mute.url, "rel://relay.invalid", good.url], TOKEN)
        async with running(node):
            await node.called("home", good.url)
            await mute.until(lambda: not mute.clients)


async def test_no_urls_end_every_connection() -> None:
    async with scripted_relay() as relay, scripted_relay() as other, at_home(relay) as node, at_home(relay, ALICE):
        node.relays.open(ALICE, relay.url)
        node.relays.open(BOB, other.url)
        await node.called("online", ALICE, relay.url)
        await other.until(lambda: peer_id(OWN) in other.online)
        node.relays.configure([], None)
        await node.called("home", "")
        assert {("offline", ALICE, relay.url), ("offline", BOB, other.url)} <= {
            call for call in node.calls if call[0] == "offline"
        }
        await relay.until(lambda: peer_id(OWN) not in relay.online)
        await other.until(lambda: not other.clients)
        assert not node.relays.is_on


async def test_the_end_says_goodbye() -> None:
    async with scripted_relay() as relay:
        async with at_home(relay):
            (client,) = relay.clients
        await relay.until(lambda: not relay.clients)
        assert client.messages[-1] == Close()


async def test_a_newer_connection_of_the_same_peer_replaces_ours_and_we_return() -> None:
    async with scripted_relay() as relay, at_home(relay) as node:
        node.calls.clear()
        async with at_home(relay, OWN):
            await node.called("home", "")
        await node.called("home", relay.url)


# A relay or a caller that is wrong ------------------------------------------------------------------------------------


async def test_a_callback_that_raises_is_reported_and_loses_nothing_of_others() -> None:
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with scripted_relay() as relay, at_home(relay, ALICE) as alice, at_home(relay, BOB) as bob:

        def fail(*_: object) -> None:
            failed.release()
            raise RuntimeError("wrong")

        failed = asyncio.Semaphore(0)
        wrong = Node(OWN)
        wrong.relays = Relays(OWN, on_datagrams=fail, on_online=fail, on_offline=fail, on_home=fail)
        wrong.relays.configure([relay.url], TOKEN)
        async with running(wrong):
            await failed.acquire()
            for node, key in ((alice, ALICE), (bob, BOB)):
                node.relays.open(OWN, relay.url)
                await node.called("online", OWN, relay.url)
                wrong.relays.open(key, relay.url)
                await failed.acquire()
                node.relays.send(OWN, relay.url, [b"x"])
                await failed.acquire()
            wrong.relays.send(BOB, relay.url, [b"still here"])
            await bob.called("datagrams", OWN, relay.url, [b"still here"])
    assert {str(failure["exception"]) for failure in failures} == {"wrong"}


@pytest.mark.parametrize("nonsense", [b"", b"\x02\x03", b"\x01\x0c", b"\x01\x03short", encode(Subscribe((b"i" * 36,)))])
async def test_nonsense_of_a_relay_is_ignored(nonsense: bytes) -> None:
    async with scripted_relay() as relay, at_home(relay) as node:
        (client,) = relay.clients
        await client.connection.send(nonsense)
        await client.connection.send(HEALTH_CHECK_MESSAGE)
        await relay.until(lambda: HealthCheck() in client.messages)
        assert node.relays.home == relay.url


@pytest.mark.parametrize("nonsense", ["text", bytes(8821)])
async def test_a_relay_that_breaks_the_rules_of_messages_is_left(nonsense: str | bytes) -> None:
    async with scripted_relay() as relay, at_home(relay) as node:
        node.calls.clear()
        await relay.clients[0].connection.send(nonsense)
        await node.called("home", "")
        await node.called("home", relay.url)


async def test_a_relay_that_does_not_read_costs_bounded_memory_and_other_peers_their_share_only() -> None:
    async with scripted_relay() as relay, at_home(relay) as node, at_home(relay, ALICE), at_home(relay, BOB) as bob:
        for key in (ALICE, BOB):
            node.relays.open(key, relay.url)
            await node.called("online", key, relay.url)
        bob.relays.open(OWN, relay.url)
        await bob.called("online", OWN, relay.url)
        client = relay.online[peer_id(OWN)]
        client.connection.transport.pause_reading()
        connection = next(iter(node.relays._connections.values()))
        while not node.relays.counters["queue_full"]:
            node.relays.send(ALICE, relay.url, [bytes(1400)] * 100)
            await asyncio.sleep(0)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() <= 4 * WRITE_BUFFER_BYTES
        assert len(connection._queue) <= QUEUE_BYTES
        dropped = node.relays.counters["queue_full"]
        node.relays.send(BOB, relay.url, [b"through"] * 50)
        assert node.relays.counters["queue_full"] == dropped
        client.connection.transport.resume_reading()
        await bob.until(
            lambda: sum(len(call[3]) for call in bob.calls if call[0] == "datagrams") == 50  # type: ignore[arg-type]
        )


async def test_a_datagram_that_is_too_long_for_a_message_is_dropped_and_counted() -> None:
    async with scripted_relay() as relay, at_home(relay, ALICE) as alice, at_home(relay, BOB) as bob:
        alice.relays.open(BOB, relay.url)
        await alice.called("online", BOB, relay.url)
        bob.relays.open(ALICE, relay.url)
        await bob.called("online", ALICE, relay.url)
        alice.relays.send(BOB, relay.url, [bytes(9000), b"next"])
        await bob.called("datagrams", ALICE, relay.url, [b"next"])
        assert sum(alice.relays.counters.values()) == 1


# TLS ------------------------------------------------------------------------------------------------------------------


def contexts(name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for this name, and a client's that trusts its authority."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_a_relay_with_tls_is_verified_by_the_name_of_its_url_at_the_address_that_was_named() -> None:
    server, client = contexts("relay.invalid")
    async with scripted_relay(tls=server) as relay:
        relay.instance_url = f"rels://relay.invalid:{relay.port}"
        node = Node(tls=client)
        node.relays.configure(["rels://127.0.0.1:1"], TOKEN)
        async with running(node):
            node.relays.open(ALICE, relay.instance_url, bytes([127, 0, 0, 1]))
            await relay.until(lambda: peer_id(OWN) in relay.online)


async def test_a_relay_whose_certificate_is_for_another_name_gets_no_token() -> None:
    server, client = contexts("another.invalid")
    async with scripted_relay(tls=server) as relay:
        node = Node(tls=client)
        node.relays.configure(["rels://127.0.0.1:1"], TOKEN)
        async with running(node):
            server_url = f"rels://relay.invalid:{relay.port}"
            node.relays.open(ALICE, server_url, bytes([127, 0, 0, 1]))
            await node.called("offline", ALICE, server_url)
            assert relay.clients == []


def test_a_token_of_management_becomes_a_token_of_the_relay() -> None:
    token = RelayToken.from_config("1900000000", "PfEsaWTDywkjIgQ5U00QJy50+zRF8mllMnDeGq2eeoo=")
    assert token == relay_token(SECRET, 1_900_000_000)
