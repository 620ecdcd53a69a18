"""The box: what one peer seals only the other opens, and only unchanged."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey, PublicKey

from netbird_wire.envelope import (
    OVERHEAD_BYTES,
    BadBody,
    BadKey,
    BadMessage,
    Envelope,
    format_key,
    parse_key,
    public_key,
)
from netbird_wire.management_pb2 import Empty, LoginRequest, ServerKeyResponse
from netbird_wire.signalexchange_pb2 import Body

ALICE, BOB, EVE = (bytes([n]) * 32 for n in (1, 2, 3))
TO_BOB = Envelope(ALICE, public_key(BOB))
FROM_ALICE = Envelope(BOB, public_key(ALICE))
LOGIN = LoginRequest(setupKey="A-SECRET")

raw_keys = st.binary(min_size=32, max_size=32)


@given(text=st.text(), one=raw_keys, other=raw_keys)
def test_what_one_seals_the_other_opens(text: str, one: bytes, other: bytes) -> None:
    """For any two private keys and any message, opening gives back the message."""
    sealed = Envelope(one, public_key(other)).seal(LoginRequest(setupKey=text))
    assert Envelope(other, public_key(one)).open(sealed, LoginRequest).setupKey == text


@given(st.integers(min_value=0, max_value=len(TO_BOB.seal(LOGIN)) * 8 - 1))
def test_one_changed_bit_is_refused(position: int) -> None:
    """Whichever bit of nonce, tag or ciphertext is flipped, nothing is opened."""
    body = bytearray(TO_BOB.seal(LOGIN))
    body[position // 8] ^= 1 << position % 8
    with pytest.raises(BadBody):
        FROM_ALICE.open(bytes(body), LoginRequest)


@given(st.integers(min_value=0, max_value=len(TO_BOB.seal(LOGIN)) - 1))
def test_a_short_body_is_refused(length: int) -> None:
    """A body that ends early is refused, be it too short for a box or only for this one."""
    with pytest.raises(BadBody):
        FROM_ALICE.open(TO_BOB.seal(LOGIN)[:length], LoginRequest)


def test_a_foreign_key_opens_nothing() -> None:
    """Neither a third peer's private key nor a claim to be another sender opens a body."""
    body = TO_BOB.seal(LOGIN)
    with pytest.raises(BadBody):
        Envelope(EVE, public_key(ALICE)).open(body, LoginRequest)
    with pytest.raises(BadBody):
        Envelope(BOB, public_key(EVE)).open(body, LoginRequest)


def test_an_empty_message_travels() -> None:
    """Logout carries nothing: the body is exactly the overhead."""
    body = TO_BOB.seal(Empty())
    assert len(body) == OVERHEAD_BYTES
    assert FROM_ALICE.open(body, Empty) == Empty()


def test_a_nonce_is_never_used_twice() -> None:
    """The same message sealed again is another body."""
    assert TO_BOB.seal(LOGIN) != TO_BOB.seal(LOGIN)


def test_the_layout_is_the_common_one() -> None:
    """An independent NaCl opens what we seal, and we open what it seals."""
    bob, alice = PrivateKey(BOB), PrivateKey(ALICE)
    box = Box(bob, PublicKey(public_key(ALICE)))
    assert box.decrypt(TO_BOB.seal(LOGIN)) == LOGIN.SerializeToString()
    sealed = Box(alice, bob.public_key).encrypt(LOGIN.SerializeToString())
    assert FROM_ALICE.open(bytes(sealed), LoginRequest) == LOGIN


def test_a_known_body_opens() -> None:
    """A signal offer without ICE, boxed with a counting nonce between two published keys."""
    receiver = parse_key("WOm9+nwNQlXlcRY164T1AFDLTVm2v1mEG1Rls1vzP2k=")
    sender = parse_key("6jgbXqHxh1Jz7VpgYBq+5xPR8iBM8UWLmzaIKSqInDc=")
    body = bytes.fromhex(
        "000102030405060708090a0b0c0d0e0f1011121314151617058de746a8c1a3a1c58f13581603481eeea7c27f1f6aa235"
        "eebda6a321dc8e83a18c372b23741c3362a3f43870c2470caf95d663e165b95fdc6eb7957c"
    )
    offer = Envelope(receiver, sender).open(body, Body)
    assert (offer.type, offer.payload, offer.wgListenPort) == (Body.OFFER, ":", 51820)
    assert offer.relayServerIP == bytes([10, 99, 0, 1])


def test_the_right_box_around_nonsense_is_refused() -> None:
    """Plaintext that is not the message asked for is an error, not a half-filled message."""
    sealed = Box(PrivateKey(ALICE), PublicKey(public_key(BOB))).encrypt(b"\xff\xff\xff")
    with pytest.raises(BadMessage):
        FROM_ALICE.open(bytes(sealed), ServerKeyResponse)


@given(raw_keys)
def test_a_key_and_its_text_are_the_same(key: bytes) -> None:
    """Parsing what was formatted gives the key."""
    assert parse_key(format_key(key)) == key


def other_spellings() -> list[str]:
    text = format_key(ALICE)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    # The last character before the padding has two bits that do not count.
    set_bits = [text[:-2] + alphabet[alphabet.index(text[-2]) + n] + "=" for n in (1, 2, 3)]
    url_safe = base64.urlsafe_b64encode(b"\xff" * 32).decode()
    return [*set_bits, text.rstrip("="), text + "=", text + "\n", " " + text, text.replace("=", "%3D"), url_safe]


@pytest.mark.parametrize("text", [*other_spellings(), "", "=", "é", format_key(ALICE)[4:], "A" * 64, "ALICE" * 9])
def test_only_the_canonical_text_is_a_key(text: str) -> None:
    """Every other spelling of 32 bytes, and every other length, is refused."""
    with pytest.raises(BadKey):
        parse_key(text)


@pytest.mark.parametrize("key", [b"", b"1" * 31, b"1" * 33])
def test_a_key_has_32_bytes(key: bytes) -> None:
    """Wrong lengths are refused wherever a key goes in."""
    with pytest.raises(BadKey):
        format_key(key)
    with pytest.raises(BadKey):
        public_key(key)
    with pytest.raises(BadKey):
        Envelope(key, public_key(BOB))
    with pytest.raises(BadKey):
        Envelope(ALICE, key)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_key_that_shares_no_secret_is_refused(point: bytes) -> None:
    """With a low-order point everybody would know the box's key."""
    with pytest.raises(BadKey):
        Envelope(ALICE, point)


def test_neither_errors_nor_reprs_quote_secrets() -> None:
    """Keys and bodies stand in no message that could be logged."""
    key = format_key(b"secret" * 5 + b"!!")
    with pytest.raises(BadKey) as caught:
        parse_key(key + "=")
    assert key not in str(caught.value)
    assert caught.value.__cause__ is None
    assert repr(TO_BOB) == "Envelope(***)"
