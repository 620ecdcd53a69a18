"""The relay's messages: byte for byte those of NetBird's agents and relay, and any message through bytes and back."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_wire.envelope import parse_key
from netbird_wire.relay import (
    CLOSE_MESSAGE,
    HEALTH_CHECK_MESSAGE,
    MAX_IDS,
    MAX_MESSAGE_BYTES,
    MAX_PAYLOAD_BYTES,
    Auth,
    AuthResponse,
    BadRelayMessage,
    Close,
    HealthCheck,
    Message,
    PeersOffline,
    PeersOnline,
    Subscribe,
    Transport,
    Unsubscribe,
    chunks,
    decode,
    encode,
    peer_id,
)
from netbird_wire.relay_tokens import BadToken, RelayToken, relay_signature, relay_token

GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "relay.jsonl").read_text().splitlines()]
KINDS = {
    "Auth": Auth,
    "AuthResponse": AuthResponse,
    "Close": Close,
    "HealthCheck": HealthCheck,
    "PeersOnline": PeersOnline,
    "SubscribePeerState": Subscribe,
    "Transport": Transport,
}
PEER_A = parse_key("6jgbXqHxh1Jz7VpgYBq+5xPR8iBM8UWLmzaIKSqInDc=")
PEER_B = parse_key("zTXbY9Jn5ByFD/N0J7r1RCx1Akm/Sw2BYj+sLKLn0Sk=")
ID_A = bytes.fromhex("7368612d27ac03f00677fce4e5dad4a18861e560ac6fa093600760aba65e8227554441dc")
SECRET = "any-relay-secret"

ids = st.binary(min_size=36, max_size=36)
lists = st.lists(ids, max_size=MAX_IDS).map(tuple)
tokens = st.builds(
    RelayToken,
    st.text(st.characters(max_codepoint=127), min_size=1, max_size=137),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 255),
)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Transport, ids, st.binary(max_size=2000)),
    st.just(Close()),
    st.just(HealthCheck()),
    st.builds(Auth, ids, tokens),
    st.builds(AuthResponse, st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=300)),
    *(st.builds(kind, lists) for kind in (Subscribe, Unsubscribe, PeersOnline, PeersOffline)),
)


@pytest.mark.parametrize("line", GOLDEN, ids=[line["file"] for line in GOLDEN])
def test_each_captured_message_is_read_and_written_back(line: dict[str, str]) -> None:
    data = base64.b64decode(line["base64"])

    message = decode(data)

    assert type(message) is KINDS[line["type"]]
    assert encode(message) == data


def test_the_ids_of_captured_messages_are_those_of_their_peers_keys() -> None:
    assert peer_id(PEER_A) == ID_A
    assert peer_id(PEER_B).hex() == "7368612d450e68681c7c984f94706f589928b0fabbdfb85743b1d7804715dc3c846fb253"


def test_a_token_and_an_auth_are_those_that_a_relay_of_netbird_accepts() -> None:
    token = relay_token(SECRET, 1900000000)

    assert base64.b64encode(token.signature) == b"PfEsaWTDywkjIgQ5U00QJy50+zRF8mllMnDeGq2eeoo="
    assert RelayToken.from_config("1900000000", "PfEsaWTDywkjIgQ5U00QJy50+zRF8mllMnDeGq2eeoo=") == token
    assert encode(Auth(ID_A, token)).hex() == (
        "01062112a4427368612d27ac03f00677fce4e5dad4a18861e560ac6fa093600760aba65e8227554441dc"
        "013df12c6964c3cb0923220439534d10272e74fb3445f269653270de1aad9e7a8a31393030303030303030"
    )


def test_a_token_is_valid_until_it_expires_under_its_own_secret_only() -> None:
    token = relay_token(SECRET, 1000)
    assert token.is_valid(SECRET, 999.9)
    assert not token.is_valid(SECRET, 1000.0)
    assert not token.is_valid("another", 0.0)
    assert not RelayToken("1001", token.signature).is_valid(SECRET, 0.0)
    assert not RelayToken(token.payload, token.signature, algorithm=2).is_valid(SECRET, 0.0)


@pytest.mark.parametrize("payload", ["soon", "-5", "1e9", "1" * 30, " 1000", "٣٣٣", "²"])
def test_a_token_whose_payload_is_no_time_is_never_valid(payload: str) -> None:
    assert not RelayToken(payload, relay_signature(SECRET, payload.encode())).is_valid(SECRET, 0.0)


def test_a_token_prints_no_signature() -> None:
    token = relay_token(SECRET, 1000)
    assert token.signature.hex() not in repr(token)
    assert repr(token.signature) not in repr(Auth(ID_A, token))


@pytest.mark.parametrize(
    ("payload", "signature"), [("1", "AAAA"), ("", "A" * 43 + "="), ("1", "?"), ("é", "A" * 43 + "=")]
)
def test_a_token_of_a_configuration_that_is_none_is_refused(payload: str, signature: str) -> None:
    with pytest.raises(BadToken):
        RelayToken.from_config(payload, signature)


@given(messages)
def test_any_message_is_read_as_it_was_written(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=9000) | st.binary(max_size=300).map(lambda tail: b"\x01" + tail))
def test_any_bytes_are_a_message_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        message = decode(data)
    except BadRelayMessage:
        return
    assert encode(message) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        b"\x02\x05",  # another version
        b"\x01\x01",  # the old hello
        b"\x01\x02",
        b"\x01\x0c",  # an unknown type
        HEALTH_CHECK_MESSAGE + b"\0",
        CLOSE_MESSAGE + b"\0",
        b"\x01\x03" + b"i" * 35,  # a Transport shorter than its id
        b"\x01\x08" + b"i" * 37,  # one id and a byte
        b"\x01\x08" + b"i" * 36 * (MAX_IDS + 1),
        b"\x01\x06" + b"\x21\x12\xa4\x43" + b"i" * 36 + b"\x01" + b"s" * 32 + b"1",  # another magic
        b"\x01\x06" + b"\x21\x12\xa4\x42" + b"i" * 36 + b"\x01" + b"s" * 32,  # no payload
        b"\x01\x06" + b"\x21\x12\xa4\x42" + b"i" * 36 + b"\x01" + b"s" * 32 + b"1" * 138,
        b"\x01\x07",
        b"\x01\x07rel://\xff",
        b"\x01\x07" + b"r" * 8191,
        b"\x01\x03" + b"i" * (MAX_MESSAGE_BYTES - 1),
    ],
)
def test_a_malformed_message_is_refused(data: bytes) -> None:
    with pytest.raises(BadRelayMessage):
        decode(data)


@pytest.mark.parametrize(
    "message",
    [
        Transport(b"short", b""),
        Transport(ID_A, bytes(MAX_PAYLOAD_BYTES + 1)),
        Subscribe((ID_A,) * (MAX_IDS + 1)),
        PeersOnline((b"",)),
        AuthResponse(""),
        AuthResponse("rel://ü"),
        Auth(ID_A, RelayToken("1", b"short")),
        Auth(ID_A, RelayToken("1" * 138, bytes(32))),
    ],
)
def test_a_message_beyond_a_bound_is_not_written(message: Message) -> None:
    with pytest.raises(BadRelayMessage):
        encode(message)


def test_the_largest_datagram_fills_a_message() -> None:
    assert len(encode(Transport(ID_A, bytes(MAX_PAYLOAD_BYTES)))) == MAX_MESSAGE_BYTES


def test_long_lists_are_cut_into_messages() -> None:
    peers = [number.to_bytes(36, "big") for number in range(500)]
    pieces = chunks(peers)
    assert [len(piece) for piece in pieces] == [244, 244, 12]
    assert [peer for piece in pieces for peer in piece] == peers
    assert all(len(encode(Subscribe(piece))) <= MAX_MESSAGE_BYTES for piece in pieces)
