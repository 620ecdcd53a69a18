"""The messages between two peers are NetBird's, byte for byte, and nonsense is refused."""

from __future__ import annotations

import base64
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_overlay.members import IceCredentials
from netbird_overlay.signal.messages import (
    BODY_BYTES,
    DEFAULT_PORT,
    Answer,
    BadSignal,
    GoIdle,
    Heartbeat,
    Message,
    Negotiation,
    Offer,
    RemoteCandidate,
    from_body,
    open_message,
    seal,
    to_body,
)
from netbird_wire.envelope import Envelope, format_key
from netbird_wire.signalexchange_pb2 import Body, EncryptedMessage
from tests.netbird_overlay.signal.scripted import Captured, captured, private_key, public_key

A_PRIVATE = base64.b64decode("KHrJffyrrQfPyn/hIfaU8vlLJBUIhe4tD4Sgk3SHQVo=")
A_PUBLIC = base64.b64decode("6jgbXqHxh1Jz7VpgYBq+5xPR8iBM8UWLmzaIKSqInDc=")
B_PRIVATE = base64.b64decode("WOm9+nwNQlXlcRY164T1AFDLTVm2v1mEG1Rls1vzP2k=")
B_PUBLIC = base64.b64decode("zTXbY9Jn5ByFD/N0J7r1RCx1Akm/Sw2BYj+sLKLn0Sk=")
OFFER = Offer(Negotiation(None, 51820, "0.60.0", relay_address="rel://10.99.0.1:8080", relay_ip=bytes((10, 99, 0, 1))))
PLAIN = bytes.fromhex("12013a18ec94032206302e36302e303a00421472656c3a2f2f31302e39392e302e313a383038305a040a630001")
BOXED = bytes.fromhex(
    "000102030405060708090a0b0c0d0e0f1011121314151617058de746a8c1a3a1c58f13581603481eeea7c27f1f6aa235eebda6a321dc8e83a1"
    "8c372b23741c3362a3f43870c2470caf95d663e165b95fdc6eb7957c"
)

plain_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)
word = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=40)
credentials = st.builds(IceCredentials, word, word)


@st.composite
def negotiations(draw: st.DrawFn) -> Negotiation:
    ours = draw(st.none() | credentials)
    session = st.just(b"") | st.binary(min_size=5, max_size=5)
    return Negotiation(
        ours,
        draw(st.integers(1, 65535)),
        draw(plain_text),
        draw(plain_text),
        draw(st.just(b"") | st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)),
        draw(session) if ours is not None else b"",
    )


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Offer, negotiations()),
    st.builds(Answer, negotiations()),
    st.builds(RemoteCandidate, plain_text),
    st.just(GoIdle()),
    st.just(Heartbeat()),
)


@pytest.mark.parametrize("message", captured(), ids=str)
def test_captured_messages_open_and_are_written_byte_for_byte(message: Captured) -> None:
    """Each message of NetBird's agents opens with the receiver's key, and ours of the same content has their bytes."""
    sender, opened = open_message(EncryptedMessage.FromString(message.raw), private_key(message.receiver))

    assert sender == public_key(message.sender)
    assert opened is not None
    assert to_body(opened).SerializeToString() == message.plain


def test_a_sealed_message_has_the_layout_of_the_captured_ones() -> None:
    """Sender, receiver and body have NetBird's field numbers, and the body its size."""
    theirs = captured()[0]
    _, message = open_message(EncryptedMessage.FromString(theirs.raw), private_key(theirs.receiver))
    assert message is not None
    receiver = public_key(theirs.receiver)

    ours = seal(message, private_key(theirs.sender), public_key(theirs.sender), receiver).SerializeToString()

    body = len(EncryptedMessage.FromString(theirs.raw).body)
    assert ours[:-body] == theirs.raw[:-body]
    assert len(ours) == len(theirs.raw)


def test_the_vector_of_an_offer_without_ice_is_written_and_opened() -> None:
    """The computed vector: its plain bytes, and its box from A to B with a chosen nonce."""
    encrypted = EncryptedMessage(key=format_key(A_PUBLIC), remoteKey=format_key(B_PUBLIC), body=BOXED)

    assert to_body(OFFER).SerializeToString() == PLAIN
    assert open_message(encrypted, B_PRIVATE) == (A_PUBLIC, OFFER)


@given(message=messages)
def test_every_message_arrives_as_it_was_sealed(message: Message) -> None:
    """A message survives the box and the wire."""
    encrypted = EncryptedMessage.FromString(seal(message, A_PRIVATE, A_PUBLIC, B_PUBLIC).SerializeToString())

    assert open_message(encrypted, B_PRIVATE) == (A_PUBLIC, message)


@given(plain=st.binary(max_size=200) | st.builds(lambda body: body.SerializeToString(), st.builds(
    Body, type=st.integers(-5, 9), payload=st.text(max_size=80), wgListenPort=st.integers(0, 2**32 - 1),
    netBirdVersion=st.text(max_size=30), relayServerAddress=st.text(max_size=30), sessionId=st.binary(max_size=9),
    relayServerIP=st.binary(max_size=20),
)))  # fmt: skip
def test_a_peers_nonsense_raises_nothing_but_bad_signal(plain: bytes) -> None:
    """A peer with a valid key may seal any bytes; the result is a message, nothing, or BadSignal."""

    class Raw:
        def SerializeToString(self) -> bytes:
            return plain

    body = Envelope(A_PRIVATE, B_PUBLIC).seal(Raw())  # type: ignore[arg-type]
    with contextlib.suppress(BadSignal):
        open_message(EncryptedMessage(key=format_key(A_PUBLIC), body=body), B_PRIVATE)


@given(key=st.text(max_size=50) | st.binary(min_size=32, max_size=32).map(format_key), body=st.binary(max_size=200))
def test_a_strangers_nonsense_raises_bad_signal(key: str, body: bytes) -> None:
    """Bytes that no holder of the named key sealed for us never open."""
    with pytest.raises(BadSignal):
        open_message(EncryptedMessage(key=key, remoteKey=format_key(B_PUBLIC), body=body), B_PRIVATE)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_keys_that_share_no_secret_are_refused(key: bytes) -> None:
    """A low-order point would make a box that anybody can open."""
    with pytest.raises(BadSignal):
        seal(Heartbeat(), A_PRIVATE, A_PUBLIC, key)
    with pytest.raises(BadSignal):
        open_message(EncryptedMessage(key=format_key(key), body=bytes(100)), B_PRIVATE)


def test_a_message_under_another_sender_does_not_open() -> None:
    """Promise of the box: a message cannot be attributed to a peer that did not seal it."""
    encrypted = seal(OFFER, A_PRIVATE, A_PUBLIC, B_PUBLIC)
    encrypted.key = format_key(public_key("alice"))

    with pytest.raises(BadSignal):
        open_message(encrypted, B_PRIVATE)


def test_oversized_bodies_are_refused_unopened() -> None:
    body = Body(type=Body.CANDIDATE, payload="x" * BODY_BYTES)
    encrypted = EncryptedMessage(key=format_key(A_PUBLIC), body=Envelope(A_PRIVATE, B_PUBLIC).seal(body))

    with pytest.raises(BadSignal, match="at most"):
        open_message(encrypted, B_PRIVATE)


@pytest.mark.parametrize("payload", ["", "ufrag", "ufrag:pwd:more", "::", "u frag:pwd", "ufräg:pwd", "u:" + "p" * 257])
def test_a_payload_without_exactly_one_colon_or_with_odd_characters_is_refused(payload: str) -> None:
    with pytest.raises(BadSignal):
        from_body(Body(type=Body.OFFER, payload=payload))


@pytest.mark.parametrize("payload", [":", "ufrag:", ":pwd"])
def test_a_payload_with_an_empty_part_means_no_ice(payload: str) -> None:
    """A session without credentials names nothing, so it is absent too."""
    message = from_body(Body(type=Body.ANSWER, payload=payload, sessionId=b"12345"))

    assert message == Answer(Negotiation(None, DEFAULT_PORT, ""))


@pytest.mark.parametrize("session", [b"", b"1234", b"123456"])
def test_a_session_of_another_length_is_absent(session: bytes) -> None:
    message = from_body(Body(payload="ufrag:pwd", sessionId=session))

    assert isinstance(message, Offer)
    assert message.negotiation.session_id == b""


@pytest.mark.parametrize("address", [b"", b"abc", b"abcde", bytes(17)])
def test_a_relay_address_of_another_length_is_absent(address: bytes) -> None:
    message = from_body(Body(payload=":", relayServerIP=address))

    assert isinstance(message, Offer)
    assert message.negotiation.relay_ip == b""


@pytest.mark.parametrize("port", [0, 65536, 2**32 - 1])
def test_a_port_that_is_none_is_wireguards_own(port: int) -> None:
    message = from_body(Body(payload=":", wgListenPort=port))

    assert isinstance(message, Offer)
    assert message.negotiation.listen_port == DEFAULT_PORT


@pytest.mark.parametrize("kind", [Body.MODE, 3, 7, 99, -1])
def test_types_without_meaning_are_ignored(kind: int) -> None:
    assert from_body(Body(type=kind, payload="a:b:c")) is None  # type: ignore[arg-type]


def test_a_peer_with_rosenpass_is_recognised() -> None:
    body = Body(payload=":")
    body.rosenpassConfig.rosenpassPubKey = b"key"
    message = from_body(body)

    assert isinstance(message, Offer)
    assert message.negotiation.rosenpass


def test_the_password_of_a_session_is_in_no_repr() -> None:
    """A log line about an offer must not show it."""
    assert "hidden" not in repr(Offer(Negotiation(IceCredentials("user", "hidden"), 1, "v")))
