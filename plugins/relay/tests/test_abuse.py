"""Floods, nonsense and peers that do not read: bounded, counted, and others are not hurt."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import AsyncExitStack, suppress
from itertools import pairwise

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from netbird_relay.connection import WRITE_BUFFER_BYTES
from netbird_relay.limits import CONTROL_IDS_AT_ONCE, Limits
from netbird_wire.relay import MAX_IDS, PeersOnline, Subscribe, Transport, encode
from plugins.relay.tests.peers import REFUSED, Agent, Served, key_id, relay

PAYLOAD = bytes(1400)


async def exchange(alice: Agent, bob: Agent, count: int = 20) -> None:
    """Two peers meet and exchange datagrams, all of which arrive."""
    await alice.meet(bob)
    await bob.meet(alice)
    for number in range(count):
        await alice.send(Transport(bob.id, b"%d" % number))
        assert await bob.datagram() == (alice.id, b"%d" % number)
        await bob.send(Transport(alice.id, b"%d" % number))
        assert await alice.datagram() == (bob.id, b"%d" % number)


def stop_reading(agent: Agent) -> None:
    agent.connection.transport.pause_reading()


async def flood(served: Served, sender: Agent, receiver: Agent) -> None:
    """Send until the relay drops."""
    message = encode(Transport(receiver.id, PAYLOAD))
    while not served.counters["queue_full"]:
        await sender.connection.send(message)


async def test_a_receiver_that_does_not_read_costs_bounded_memory_and_blocks_no_sender() -> None:
    limits = Limits(queue_bytes=256 * 1024)
    async with relay(limits) as served, served.agent(1) as slow, served.agent(2) as sender, served.agent(3) as other:
        stop_reading(slow)
        await flood(served, sender, slow)
        hub = served.server.hub
        sink = hub.peers[slow.id].sink
        assert len(sink._queue) <= limits.queue_bytes  # type: ignore[attr-defined]
        assert sink._transport.get_write_buffer_size() <= 3 * WRITE_BUFFER_BYTES  # type: ignore[attr-defined]
        assert hub.queued_bytes == len(sink._queue)  # type: ignore[attr-defined]
        await exchange(sender, other)
    assert hub.queued_bytes == 0


async def test_senders_to_a_slow_receiver_share_its_queue_and_the_newest_is_dropped() -> None:
    async with relay() as served, served.agent(1) as slow, served.agent(2) as flooding, served.agent(3) as modest:
        stop_reading(slow)
        await flood(served, flooding, slow)
        for number in range(50):
            await modest.send(Transport(slow.id, b"%d" % number))
        await exchange(modest, flooding)
        slow.connection.transport.resume_reading()
        received: Counter[bytes] = Counter()
        numbers = []
        while received[modest.id] < 50:
            source, payload = await slow.datagram()
            received[source] += 1
            if source == modest.id:
                numbers.append(int(payload))
        assert numbers == list(range(50))


async def test_all_queues_together_are_bounded() -> None:
    limits = Limits(all_queues_bytes=100_000)
    async with relay(limits) as served, served.agent(1) as first, served.agent(2) as second, served.agent(3) as sender:
        for slow in (first, second):
            stop_reading(slow)
            served.counters["queue_full"] = 0
            await flood(served, sender, slow)
            assert served.server.hub.queued_bytes <= limits.all_queues_bytes
        await exchange(sender, sender, 0)


async def test_a_flood_to_nobody_hurts_nobody() -> None:
    async with relay() as served, served.agent(1) as alice, served.agent(2) as bob, served.agent(3) as flooding:
        message = encode(Transport(key_id(99), PAYLOAD))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(exchange(alice, bob))
            for _ in range(5000):
                await flooding.connection.send(message)
        await served.counters.reach("unknown_destination", 5000)
        await exchange(flooding, bob)


async def test_two_thousand_peers_share_a_relay_with_a_flood() -> None:
    """Each gets the datagram of the one before it, while one of them floods another that does not read."""
    limits = Limits(connections_per_address=2000)
    async with relay(limits, seconds=55) as served, AsyncExitStack() as peers:
        slow, flooding, *others = [await peers.enter_async_context(served.agent(number)) for number in range(2000)]
        hub = served.server.hub
        assert len(hub.peers) == 2000
        stop_reading(slow)
        await flood(served, flooding, slow)

        for sender, receiver in pairwise([*others, others[0]]):
            await sender.send(Transport(receiver.id, sender.id))
        for sender, receiver in pairwise([*others, others[0]]):
            assert await receiver.datagram() == (sender.id, sender.id)
        assert hub.queued_bytes <= limits.queue_bytes
    assert hub.queued_bytes == 0


async def test_a_peer_that_asks_and_does_not_read_is_disconnected() -> None:
    """Each subscription to a peer that is online has an answer."""
    async with relay() as served, served.agent(1) as deaf, served.agent(2) as alice, served.agent(3) as bob:
        stop_reading(deaf)
        message = encode(Subscribe((alice.id,) * MAX_IDS))
        with suppress(ConnectionClosed):
            while True:
                await deaf.connection.send(message)
        assert served.counters["unread"] == 1
        assert deaf.id not in served.server.hub.peers
        await exchange(alice, bob)


async def test_pings_whose_answers_are_not_read_end_the_connection() -> None:
    async with relay() as served, served.agent(1) as deaf, served.agent(2) as alice, served.agent(3) as bob:
        stop_reading(deaf)
        ping = Frame(Opcode.PING, bytes(125)).serialize(mask=True) * 100
        while not served.counters["unread"]:
            deaf.connection.transport.write(ping)
            await asyncio.sleep(0)
        await exchange(alice, bob)


async def test_many_subscriptions_slow_their_peer_only() -> None:
    async with relay() as served, served.agent(1) as eager, served.agent(2) as alice, served.agent(3) as bob:
        lists = [tuple(key_id(100 + at + number) for number in range(MAX_IDS)) for at in range(0, 30_000, MAX_IDS)]
        for ids in lists[: int(CONTROL_IDS_AT_ONCE) // MAX_IDS + 20]:
            await eager.send(Subscribe(ids))
        await served.counters.reach("paced")
        await exchange(alice, bob)
        assert served.server.hub.subscriptions <= served.server.hub.limits.subscriptions_per_peer + 4


async def test_a_rate_slows_a_sender_and_drops_nothing() -> None:
    async with relay(Limits(bytes_per_second=200_000)) as served, served.agent(1) as fast, served.agent(2) as receiver:
        message = encode(Transport(receiver.id, PAYLOAD))
        for _ in range(220):
            await fast.connection.send(message)
        for _ in range(220):
            assert await receiver.datagram() == (fast.id, PAYLOAD)
        assert served.counters["paced"] > 0
        assert served.counters["queue_full"] == 0


async def test_clients_that_do_not_authenticate_leave_room_for_those_that_do() -> None:
    limits = Limits(unauthenticated_per_address=20)
    async with relay(limits) as served, served.agent(1) as alice, served.agent(2) as bob:
        idle = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
        try:
            await served.counters.reach("unauthenticated_per_address", 80)
            assert served.server.admission.waiting == 20
            await exchange(alice, bob)
            with pytest.raises(REFUSED):  # from this address; others may still come
                async with served.dial():
                    pass
        finally:
            for sock in idle:
                sock.close()
        await served.counters.reach("ended", 20)
        async with served.agent(3) as carol:
            await exchange(carol, bob)


@pytest.mark.parametrize(
    "nonsense",
    [
        bytes(100_000),
        b"GET /relay HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
        b"\x16\x03\x01" + bytes(600),
        b"GET / HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /relay HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_nonsense_instead_of_a_handshake_ends_that_connection_only(nonsense: bytes) -> None:
    async with relay() as served, served.agent(1) as alice, served.agent(2) as bob:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(nonsense)
        writer.write_eof()
        with suppress(ConnectionError):
            while await reader.read(1000):
                pass
        writer.close()
        await exchange(alice, bob)
        assert served.server.admission.open == 2


async def test_frames_that_break_the_websockets_rules_end_that_connection_only() -> None:
    frames = {
        "unmasked": b"\x82\x02ab",
        "reserved bits": b"\xc2\x82abcd12",
        "a length of 2^63": b"\x82\xff" + bytes([0x80]) + bytes(7) + b"abcd",
        "an endless message": Frame(Opcode.BINARY, bytes(1000), False).serialize(mask=True)
        + Frame(Opcode.CONT, bytes(1000), False).serialize(mask=True) * 20,
        "a long ping": b"\x89\xfe\x00\x80abcd" + bytes(128),
    }
    async with relay() as served, served.agent(1) as alice, served.agent(2) as bob:
        for number, (name, data) in enumerate(frames.items()):
            async with served.agent(10 + number) as wrong:
                wrong.connection.transport.write(data)
                await wrong.closed()
            assert served.counters["malformed"] == number + 1, name
        await exchange(alice, bob)


async def test_a_peer_that_takes_anothers_id_gets_its_datagrams_and_can_read_none() -> None:
    """A token names no peer. What the thief gains is the denial of the relay to that peer, until it reconnects."""
    async with relay() as served, served.agent(1) as victim, served.agent(2) as friend:
        await victim.meet(friend)
        await friend.meet(victim)
        async with served.agent(1) as thief:
            await victim.closed()
            await friend.send(Transport(victim.id, b"sealed by WireGuard"))
            assert await thief.datagram() == (friend.id, b"sealed by WireGuard")
            async with served.agent(1) as again:
                await thief.closed()
                await again.meet(friend)
                await friend.send(Transport(victim.id, b"sealed by WireGuard"))
                assert await again.datagram() == (friend.id, b"sealed by WireGuard")
        assert served.counters["replaced"] == 2


async def test_peers_that_flap_cost_their_watchers_bounded_memory() -> None:
    async with relay() as served, served.agent(1) as watcher:
        for _ in range(20):
            await watcher.send(Subscribe((key_id(2),)))
            async with served.agent(2):
                assert await watcher.receive() == PeersOnline((key_id(2),))
            await watcher.receive()
        assert served.server.hub.subscriptions == 1
