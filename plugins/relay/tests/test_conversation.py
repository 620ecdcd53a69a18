"""The relay's rules, sans-IO: authentication, presence, health, and whom a datagram reaches."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_host.buckets import Bucket
from netbird_relay.conversation import Conversation, Identity
from netbird_relay.hub import Hub
from netbird_relay.limits import TAKEOVERS_AT_ONCE, Limits
from netbird_wire.relay import (
    CLOSE_MESSAGE,
    HEALTH_CHECK_MESSAGE,
    PEERS_ONLINE,
    Auth,
    AuthResponse,
    HealthCheck,
    Message,
    PeersOffline,
    PeersOnline,
    Subscribe,
    Transport,
    Unsubscribe,
    decode,
    encode,
    peer_id,
)
from netbird_wire.relay_tokens import RelayToken, relay_token

SECRET, URL = "a secret of sixteen characters", "rels://relay.example"
NOW = 1_800_000_000.0
TOKEN = relay_token(SECRET, 1_900_000_000)
ALICE, BOB, CAROL = (peer_id(bytes([number]) * 32) for number in (1, 2, 3))
GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parents[3] / "tests/contract/wire/relay.jsonl").read_text().splitlines()
]


class Recorded:
    """A sink that keeps what the peer would get."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended = ""

    @property
    def messages(self) -> list[Message]:
        sent, self.sent = self.sent, []
        return [decode(data) for data in sent]

    def forward(self, source: bytes, prefix: bytes, payload: bytes) -> None:
        self.sent.append(prefix + payload)

    def control(self, message: bytes) -> None:
        self.sent.append(message)

    def notify(self, kind: int, ids: Sequence[bytes]) -> None:
        self.sent.append(encode((PeersOnline if kind == PEERS_ONLINE else PeersOffline)(tuple(ids))))

    def end(self, reason: str) -> None:
        self.ended = reason


class End:
    """One connection: its conversation and its sink."""

    def __init__(self, hub: Hub, id_: bytes = b"", now: float = 0.0, source: str = "") -> None:
        self.sink = Recorded()
        self.conversation = Conversation(hub, Identity(SECRET, URL), self.sink, now, source)
        if id_:
            self.takes(Auth(id_, TOKEN), now=now)
            assert self.sink.messages == [AuthResponse(URL)]

    def takes(self, *messages: Message | bytes, now: float = 0.0) -> None:
        raw = [message if isinstance(message, bytes) else encode(message) for message in messages]
        self.conversation.receive(raw, now, NOW)


@pytest.fixture
def hub() -> Hub:
    return Hub(Limits())


# Authentication -------------------------------------------------------------------------------------------------------


def test_a_valid_token_admits_a_peer(hub: Hub) -> None:
    end = End(hub, ALICE)
    assert end.conversation.ended == ""
    assert hub.peers[ALICE].sink is end.sink


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (relay_token("another secret", 1_900_000_000), "bad_token"),
        (relay_token(SECRET, int(NOW)), "bad_token"),
        (RelayToken("1900000001", TOKEN.signature), "bad_token"),
        (RelayToken(TOKEN.payload, TOKEN.signature, algorithm=2), "bad_token"),
    ],
)
def test_an_invalid_token_ends_the_connection_without_an_answer(hub: Hub, token: RelayToken, reason: str) -> None:
    end = End(hub)
    end.takes(Auth(ALICE, token))
    assert end.conversation.ended == reason
    assert end.sink.sent == []
    assert not hub.peers


@pytest.mark.parametrize(
    "message",
    [
        encode(Transport(ALICE, b"x")),
        HEALTH_CHECK_MESSAGE,
        CLOSE_MESSAGE,
        encode(Subscribe((ALICE,))),
        b"",
        b"\x01\x01hello",
        encode(Auth(ALICE, TOKEN)) + bytes(200),
        b"\x02" + encode(Auth(ALICE, TOKEN))[1:],
    ],
)
def test_any_other_first_message_ends_the_connection(hub: Hub, message: bytes) -> None:
    End(hub, ALICE)
    end = End(hub)
    end.takes(message, Auth(BOB, TOKEN))
    assert end.conversation.ended == "unauthenticated_message"
    assert set(hub.peers) == {ALICE}


def test_a_client_has_10_seconds_to_authenticate(hub: Hub) -> None:
    end = End(hub, now=100.0)
    assert end.conversation.deadline == 110.0
    end.conversation.advance(109.9)
    assert end.conversation.ended == ""
    end.conversation.advance(110.0)
    assert end.conversation.ended == "auth_late"


def test_a_peer_is_registered_before_its_answer(hub: Hub) -> None:
    """So that no datagram is lost between the answer and the registration."""
    bob = End(hub, BOB)
    order: list[bytes] = []

    class Sending(Recorded):
        def control(self, message: bytes) -> None:
            bob.takes(Transport(ALICE, b"quick"))
            order.append(message)

        def forward(self, source: bytes, prefix: bytes, payload: bytes) -> None:
            order.append(payload)

    alice = Conversation(hub, Identity(SECRET, URL), Sending(), 0.0)
    alice.receive([encode(Auth(ALICE, TOKEN))], 0.0, NOW)
    assert order == [b"quick", encode(AuthResponse(URL))]


def test_captured_auths_of_netbirds_agents_are_read(hub: Hub) -> None:
    """Their secret is not ours, so that the token is the only thing wrong with them."""
    for line in GOLDEN:
        if line["type"] == "Auth":
            end = End(hub)
            end.takes(base64.b64decode(line["base64"]))
            assert end.conversation.ended == "bad_token"


# One id, one connection -----------------------------------------------------------------------------------------------


def test_a_newer_connection_of_an_id_replaces_the_older_and_nobody_is_told(hub: Hub) -> None:
    bob = End(hub, BOB)
    older = End(hub, ALICE)
    bob.takes(Subscribe((ALICE,)))
    assert bob.sink.messages == [PeersOnline((ALICE,))]

    newer = End(hub, ALICE)

    assert older.sink.ended
    older.conversation.leave()
    assert bob.sink.messages == []
    bob.takes(Transport(ALICE, b"x"))
    assert newer.sink.messages == [Transport(BOB, b"x")]
    assert older.sink.messages == []


def test_the_subscriptions_of_a_replaced_connection_end_with_it(hub: Hub) -> None:
    older = End(hub, ALICE)
    older.takes(Subscribe((BOB,)))
    End(hub, ALICE)
    assert hub.subscriptions == 0
    End(hub, BOB)
    assert older.sink.messages == []


def test_a_source_replaces_few_connections_of_other_sources(hub: Hub) -> None:
    """A bearer of a token may state any id, and so deny the relay to its peer: a few peers, and for a short time."""
    ids = [peer_id(number.to_bytes(32, "big")) for number in range(80)]
    victims = [End(hub, id_, source="192.0.2.1") for id_ in ids]
    thieves = [End(hub, source="192.0.2.9") for _ in ids]
    for thief, id_ in zip(thieves, ids, strict=True):
        thief.takes(Auth(id_, TOKEN))
    assert sum(bool(victim.sink.ended) for victim in victims) == TAKEOVERS_AT_ONCE
    assert [thief.conversation.ended for thief in thieves].count("takeovers_refused") == 80 - TAKEOVERS_AT_ONCE
    again = [End(hub, id_, source="192.0.2.1") for id_ in ids]
    assert not any(end.conversation.ended for end in again)
    late = End(hub, source="192.0.2.9")
    late.takes(Auth(ids[0], TOKEN), now=1.0)
    assert late.conversation.ended == ""


def test_a_peer_replaces_its_own_connection_as_often_as_it_wants(hub: Hub) -> None:
    for _ in range(200):
        End(hub, ALICE, source="192.0.2.1")
    assert hub.counters["taken_over"] == 0


# Datagrams ------------------------------------------------------------------------------------------------------------


def test_a_datagram_reaches_its_receiver_under_its_senders_id(hub: Hub) -> None:
    alice, bob = End(hub, ALICE), End(hub, BOB)
    alice.takes(Transport(BOB, b"one"), Transport(BOB, b""), Transport(BOB, b"three"))
    assert bob.sink.messages == [Transport(ALICE, b"one"), Transport(ALICE, b""), Transport(ALICE, b"three")]
    assert alice.sink.sent == []


def test_a_datagram_to_nobody_is_dropped_silently_and_counted(hub: Hub) -> None:
    alice = End(hub, ALICE)
    alice.takes(Transport(BOB, b"x"))
    assert alice.sink.sent == []
    assert alice.conversation.ended == ""
    assert hub.counters["unknown_destination"] == 1


def test_captured_datagrams_are_relayed_byte_for_byte(hub: Hub) -> None:
    """The sender's own message of the capture becomes the one that its receiver got."""
    end_of = cache(lambda id_: End(hub, id_))
    for connection in ("005", "014"):
        lines = [line for line in GOLDEN if line["conn"] == connection]
        auth = decode(base64.b64decode(lines[0]["base64"]))
        assert isinstance(auth, Auth)
        sender = end_of(auth.peer)
        for line in lines:
            message = decode(data := base64.b64decode(line["base64"]))
            if isinstance(message, Transport) and line["direction"] == "c2s":
                receiver = end_of(message.peer)
                sender.takes(data)
                assert receiver.sink.sent.pop() == data[:2] + auth.peer + message.payload


@pytest.mark.parametrize(("connection", "owner"), [("005", "alice"), ("014", "proxy"), ("042", "proxy")])
def test_a_captured_connection_gets_the_captured_answers_byte_for_byte(hub: Hub, connection: str, owner: str) -> None:
    """Only the token is ours. The other peers are connected, and send what the capture says that they sent."""
    lines = [line for line in GOLDEN if line["conn"] == connection]
    sent, answers = (
        [base64.b64decode(line["base64"]) for line in lines if line["direction"] == direction]
        for direction in ("c2s", "s2c")
    )
    ids = [auth.peer for auth in map(decode, sent) if isinstance(auth, Auth)]
    others = {peer for data in sent if isinstance(message := decode(data), Subscribe) for peer in message.peers}
    ends = {peer: End(hub, peer) for peer in others}
    sink = Recorded()
    client = Conversation(hub, Identity(SECRET, "rel://10.99.0.1:8081"), sink, 0.0)
    client.receive([encode(Auth(ids[0], TOKEN)), *sent[1:]], 1.0, NOW)
    for data in answers:
        match decode(data):
            case Transport(peer, payload):
                ends[peer].takes(Transport(ids[0], payload))
            case HealthCheck():
                client.receive([HEALTH_CHECK_MESSAGE], client.deadline, NOW)
                client.advance(client.deadline)
    assert client.ended == ""
    assert sorted(sink.sent) == sorted(answers)


# Presence -------------------------------------------------------------------------------------------------------------


def test_presence_is_told_at_once_or_once_later(hub: Hub) -> None:
    alice, bob = End(hub, ALICE), End(hub, BOB)
    alice.takes(Subscribe((BOB, CAROL)))
    assert alice.sink.messages == [PeersOnline((BOB,))]
    carol = End(hub, CAROL)
    assert alice.sink.messages == [PeersOnline((CAROL,))]
    carol.conversation.leave()
    bob.conversation.leave()
    assert alice.sink.messages == [PeersOffline((CAROL,)), PeersOffline((BOB,))]
    End(hub, CAROL)
    assert alice.sink.messages == []
    alice.takes(Subscribe((CAROL,)))
    assert alice.sink.messages == [PeersOnline((CAROL,))]


def test_an_unsubscribed_peer_is_not_told(hub: Hub) -> None:
    alice = End(hub, ALICE)
    alice.takes(Subscribe((BOB, CAROL)), Unsubscribe((BOB, BOB)), Unsubscribe((ALICE,)))
    End(hub, BOB).conversation.leave()
    assert alice.sink.messages == []
    assert hub.subscriptions == 1


def test_thousands_of_peers_that_know_each_other_are_told_once_of_each() -> None:
    """As after a restart of the relay."""
    hub, count = Hub(Limits()), 300
    ids = [peer_id(number.to_bytes(32, "big")) for number in range(count)]
    ends = [End(hub, id_) for id_ in ids]
    online = [Counter[bytes]() for _ in ends]
    for end in ends[: count // 2]:
        end.conversation.leave()
    for number, end in enumerate(ends[count // 2 :], count // 2):
        end.takes(Subscribe(tuple(ids[:150])), Subscribe(tuple(ids[150:])))
        online[number].update(peer for message in end.sink.messages for peer in message.peers)  # type: ignore[union-attr]
    for id_ in ids[: count // 2]:
        End(hub, id_)
    for number, end in enumerate(ends[count // 2 :], count // 2):
        online[number].update(peer for message in end.sink.messages for peer in message.peers)  # type: ignore[union-attr]
        assert online[number] == Counter(ids)


def test_subscriptions_of_one_peer_are_bounded() -> None:
    hub = Hub(Limits(subscriptions_per_peer=2))
    alice = End(hub, ALICE)
    alice.takes(Subscribe((ALICE, BOB, CAROL)), Subscribe((BOB,)))
    assert hub.subscriptions == 2
    assert hub.counters["subscriptions_refused"] == 1
    assert alice.conversation.ended == ""


def test_a_peer_that_subscribes_to_everything_leaves_room_for_others() -> None:
    hub = Hub(Limits(subscriptions=1000))
    flood = End(hub, ALICE)
    for start in range(0, 2000, 200):
        flood.takes(Subscribe(tuple(peer_id(number.to_bytes(32, "big")) for number in range(start, start + 200))))
    assert hub.subscriptions == 500
    bob = End(hub, BOB)
    bob.takes(Subscribe((ALICE,)))
    assert bob.sink.messages == [PeersOnline((ALICE,))]


def test_a_peer_that_left_costs_nothing(hub: Hub) -> None:
    alice = End(hub, ALICE)
    alice.takes(Subscribe((BOB, CAROL)))
    alice.conversation.leave()
    alice.conversation.leave()
    assert (hub.peers, hub.subscriptions, hub._watchers) == ({}, 0, {})


# Health ---------------------------------------------------------------------------------------------------------------


def test_health_is_asked_every_25_seconds_and_a_peer_that_does_not_answer_for_45_is_cut(hub: Hub) -> None:
    end = End(hub, ALICE)
    conversation = end.conversation
    asked = []
    now = 0.0
    while not conversation.ended:
        now = conversation.deadline
        conversation.advance(now)
        if end.sink.sent:
            assert end.sink.sent == [HEALTH_CHECK_MESSAGE]
            end.sink.sent.clear()
            asked.append(now)
        if now == 25.0:
            end.takes(HEALTH_CHECK_MESSAGE, now=25.5)
    assert asked == [25.0, 50.0]
    assert (now, conversation.ended) == (70.5, "health_late")


def test_datagrams_are_no_health(hub: Hub) -> None:
    end = End(hub, ALICE)
    end.takes(Transport(BOB, b"x"), now=44.0)
    end.conversation.advance(45.0)
    assert end.conversation.ended == "health_late"


# Peers that are wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01",
        b"\x02\x05",
        b"\x01\x02",
        b"\x01\x0c",
        b"\x01\x03short",
        b"\x01\x08" + bytes(37),
        encode(Auth(ALICE, TOKEN)),
        encode(AuthResponse(URL)),
        encode(PeersOnline((ALICE,))),
        encode(PeersOffline((ALICE,))),
    ],
)
def test_a_message_that_no_client_sends_ends_its_connection_only(hub: Hub, message: bytes) -> None:
    alice, bob = End(hub, ALICE), End(hub, BOB)
    alice.takes(Transport(BOB, b"before"), message, Transport(BOB, b"after"))
    assert alice.conversation.ended == "malformed"
    assert bob.conversation.ended == ""
    assert bob.sink.messages == [Transport(ALICE, b"before")]


def test_a_close_ends_the_connection(hub: Hub) -> None:
    alice = End(hub, ALICE)
    alice.takes(CLOSE_MESSAGE)
    assert alice.conversation.ended == "closed"


ids = st.sampled_from([ALICE, BOB, CAROL])
raw = st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"\x01" + tail)
steps = st.tuples(
    st.integers(0, 3),
    st.one_of(
        raw,
        st.builds(Auth, ids, st.just(TOKEN)).map(encode),
        st.builds(Subscribe, st.lists(ids, max_size=3).map(tuple)).map(encode),
        st.builds(Unsubscribe, st.lists(ids, max_size=3).map(tuple)).map(encode),
        st.builds(Transport, ids, st.binary(max_size=5)).map(encode),
        st.just("leave"),
    ),
)


@given(st.lists(steps, max_size=60))
def test_any_messages_of_any_clients_leave_the_hub_consistent(sequence: list[tuple[int, bytes | str]]) -> None:
    hub = Hub(Limits(subscriptions_per_peer=2, subscriptions=4))
    ends = [End(hub) for _ in range(4)]
    for index, step in sequence:
        end = ends[index]
        if isinstance(step, bytes) and not end.sink.ended:
            end.takes(step)
        if step == "leave" or end.conversation.ended:
            end.conversation.leave()
            ends[index] = End(hub)
        for other_index, other in enumerate(ends):
            if other.sink.ended:
                other.conversation.leave()
                ends[other_index] = End(hub)
    alive = [end.conversation.peer for end in ends if end.conversation.peer is not None]
    assert set(hub.peers.values()) == set(alive)
    assert hub.subscriptions == sum(len(peer.subscriptions) for peer in alive)
    assert {id_ for peer in alive for id_ in peer.subscriptions} == set(hub._watchers)
    for end in ends:
        end.conversation.leave()
    assert (hub.peers, hub.subscriptions, hub._watchers) == ({}, 0, {})


# Allowances -----------------------------------------------------------------------------------------------------------


def test_an_allowance_permits_a_burst_and_then_its_rate() -> None:
    bucket = Bucket(10.0, 100.0, 0.0)
    assert bucket.overdraw(100.0, 0.0) == 0.0
    assert bucket.overdraw(5.0, 0.0) == 0.5
    assert bucket.overdraw(5.0, 0.5) == 0.5
    assert bucket.overdraw(0.0, 1000.0) == 0.0
    assert not bucket.spend(100.1, 1000.0)
    assert bucket.spend(100.0, 1000.0)
    assert not bucket.spend(1.0, 1000.05)
    assert bucket.spend(1.0, 1000.1)
