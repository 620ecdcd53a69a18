"""The conversation with a relay: what is sent, what is answered, and when it ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.relay.session import MAX_EARLY, Authenticated, Datagrams, Ended, Session
from netbird_wire.relay import (
    CLOSE_MESSAGE,
    HEALTH_CHECK_MESSAGE,
    MAX_IDS,
    Auth,
    AuthResponse,
    PeersOffline,
    PeersOnline,
    Subscribe,
    Transport,
    Unsubscribe,
    decode,
    encode,
    peer_id,
)
from netbird_wire.relay_tokens import relay_token

OWN, ALICE, BOB = (peer_id(bytes([number]) * 32) for number in (1, 2, 3))
TOKEN = relay_token("secret", 1_900_000_000)
WELCOME = encode(AuthResponse("rel://relay.example:8081"))


def authenticated() -> Session:
    session = Session(OWN, TOKEN, 100.0)
    session.take()
    assert session.receive([WELCOME], 100.0) == [Authenticated("rel://relay.example:8081")]
    return session


def test_auth_is_the_first_message() -> None:
    session = Session(OWN, TOKEN, 0.0)
    session.subscribe([ALICE])
    assert [decode(message) for message in session.take()] == [Auth(OWN, TOKEN), Subscribe((ALICE,))]
    assert session.take() == []


def test_a_health_check_is_returned_at_once() -> None:
    session = authenticated()
    assert session.receive([HEALTH_CHECK_MESSAGE], 120.0) == []
    assert session.take() == [HEALTH_CHECK_MESSAGE]


def test_a_relay_that_is_silent_for_35_seconds_is_dead() -> None:
    session = authenticated()
    session.receive([HEALTH_CHECK_MESSAGE], 125.0)
    session.receive([encode(Transport(ALICE, b"datagrams are no health"))], 150.0)
    assert session.deadline == 160.0
    assert session.advance(159.9) == []
    assert session.advance(160.0) == [Ended("no health check in time")]
    assert session.advance(161.0) == []


def test_a_relay_that_does_not_answer_auth_for_8_seconds_is_left() -> None:
    session = Session(OWN, TOKEN, 100.0)
    session.receive([HEALTH_CHECK_MESSAGE], 107.0)
    assert session.deadline == 108.0
    assert session.advance(108.0) == [Ended("no answer to Auth in time")]


def test_messages_before_the_answer_to_auth_wait_for_it() -> None:
    session = Session(OWN, TOKEN, 0.0)
    assert session.receive([encode(Transport(ALICE, b"first")), HEALTH_CHECK_MESSAGE], 1.0) == []
    assert session.receive([WELCOME, encode(Transport(ALICE, b"second"))], 2.0) == [
        Authenticated("rel://relay.example:8081"),
        Datagrams(ALICE, [b"first", b"second"]),
    ]


def test_messages_that_wait_are_bounded() -> None:
    session = Session(OWN, TOKEN, 0.0)
    session.receive([encode(Transport(ALICE, b"x"))] * (MAX_EARLY + 10), 1.0)
    _, datagrams = session.receive([WELCOME], 2.0)
    assert isinstance(datagrams, Datagrams)
    assert len(datagrams.payloads) == MAX_EARLY


def test_datagrams_of_one_read_are_grouped_by_sender_in_order() -> None:
    session = authenticated()
    stream = [(ALICE, b"1"), (ALICE, b"2"), (BOB, b"3"), (ALICE, b"4")]
    assert session.receive([encode(Transport(peer, payload)) for peer, payload in stream], 101.0) == [
        Datagrams(ALICE, [b"1", b"2"]),
        Datagrams(BOB, [b"3"]),
        Datagrams(ALICE, [b"4"]),
    ]


def test_presence_is_reported() -> None:
    session = authenticated()
    messages = [PeersOnline((ALICE, BOB)), PeersOffline((BOB,))]
    assert session.receive([encode(message) for message in messages], 101.0) == messages


def test_long_subscriptions_are_cut() -> None:
    session = authenticated()
    peers = [peer_id(number.to_bytes(32, "big")) for number in range(MAX_IDS + 1)]
    session.subscribe(peers)
    session.unsubscribe(peers[:1])
    assert [decode(message) for message in session.take()] == [
        Subscribe(tuple(peers[:MAX_IDS])),
        Subscribe((peers[MAX_IDS],)),
        Unsubscribe((peers[0],)),
    ]


def test_a_close_ends_the_conversation() -> None:
    session = authenticated()
    assert session.receive([CLOSE_MESSAGE, encode(Transport(ALICE, b"late"))], 101.0) == [
        Ended("the relay closed the connection")
    ]
    assert session.receive([encode(Transport(ALICE, b"later"))], 102.0) == []


def test_what_is_no_message_for_a_client_is_ignored_and_counted() -> None:
    session = authenticated()
    nonsense = [
        b"",
        b"\x02\x03",
        b"\x01\x0c",
        b"\x01\x03short",
        encode(Auth(OWN, TOKEN)),
        encode(Subscribe((OWN,))),
        WELCOME,
    ]
    assert session.receive(nonsense, 101.0) == []
    assert session.malformed == len(nonsense)
    assert session.take() == []


@given(st.lists(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\x01" + tail), max_size=20))
def test_any_messages_are_taken(messages: list[bytes]) -> None:
    for session in (Session(OWN, TOKEN, 0.0), authenticated()):
        session.receive(messages, 101.0)
