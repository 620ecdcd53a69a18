"""Access tokens: what we mint NetBird accepts, and what is mistyped is no token."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_wire.tokens import ALPHABET, TokenKind, mint, stored_hash, well_formed

from .golden import lines

KINDS = list(TokenKind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_minted_token_is_well_formed(kind: TokenKind) -> None:
    """40 characters with its own prefix, and good for no other kind."""
    token = mint(kind)
    assert len(token) == 40
    assert [other for other in KINDS if well_formed(token, other)] == [kind]


def test_tokens_differ() -> None:
    """No two are the same, and every character of the alphabet turns up."""
    tokens = {mint(TokenKind.PROXY) for _ in range(200)}
    assert len(tokens) == 200
    assert set("".join(token[4:34] for token in tokens)) == set(ALPHABET)


def test_a_token_that_netbird_minted_is_well_formed() -> None:
    """The checksum's alphabet, order and padding are NetBird's."""
    (token,) = {
        value.removeprefix("Bearer ")
        for line in lines()
        for block in line.get("headers", [])
        for name, value in block
        if name == "authorization" and value.startswith("Bearer nbx_")
    }
    assert well_formed(token, TokenKind.PROXY)


def test_short_checksums_are_padded() -> None:
    """A small CRC has zeros on its left; without them, or with them on the right, it is none."""
    secret = next(text for text in map("{:030d}".format, range(10_000)) if zlib.crc32(text.encode()) < 62**5)
    number, digits = zlib.crc32(secret.encode()), ""
    while number:
        digits = ALPHABET[number % 62] + digits
        number //= 62
    assert well_formed("nbx_" + secret + digits.rjust(6, "0"), TokenKind.PROXY)
    assert not well_formed("nbx_" + secret + digits.ljust(6, "0"), TokenKind.PROXY)
    assert not well_formed("nbx_" + secret + digits, TokenKind.PROXY)


@given(position=st.integers(0, 35), character=st.sampled_from(ALPHABET))
def test_a_mistyped_token_is_none(position: int, character: str) -> None:
    """One wrong character anywhere after the prefix breaks it."""
    token = mint(TokenKind.PROXY)
    changed = token[: 4 + position] + character + token[5 + position :]
    assert well_formed(changed, TokenKind.PROXY) is (changed == token)


@pytest.mark.parametrize(
    "text", ["", "nbx_", "nbx_" + "0" * 35, "nbx_" + "0" * 37, "nbx_" + "é" * 36, "nbx_" + "-" * 36, "NBX_" + "0" * 36]
)
def test_what_is_no_token(text: str) -> None:
    """Wrong lengths, characters and prefixes are refused without an error."""
    assert not well_formed(text, TokenKind.PROXY)


def test_the_stored_hash() -> None:
    """Standard base64 of the SHA-256 of the whole text; so the token cannot be read back."""
    token = mint(TokenKind.PERSONAL)
    assert base64.b64decode(stored_hash(token)) == hashlib.sha256(token.encode()).digest()
    assert stored_hash(token) != stored_hash(token[4:])
