"""Credentials for relays and TURN servers, against values that NetBird's own parts accept."""

from __future__ import annotations

import base64
import hashlib
import hmac

from netbird_wire.relay_tokens import relay_signature, relay_token, turn_credentials


def test_a_relays_token_is_the_one_that_netbirds_relays_accept() -> None:
    """Secret, expiry and signature of a token that a live relay admitted."""
    token = relay_token("any-relay-secret", 1_900_000_000)

    assert (token.payload, token.signature_text) == ("1900000000", "PfEsaWTDywkjIgQ5U00QJy50+zRF8mllMnDeGq2eeoo=")
    assert relay_signature("any-relay-secret", token.payload.encode()) == token.signature
    assert relay_token("another secret", 1_900_000_000).signature != token.signature


def test_a_turn_password_is_the_user_names_hmac() -> None:
    """The rule of coturn's REST API, computed once more by hand."""
    credentials = turn_credentials("turn secret", 1_900_000_000)

    expected = hmac.new(b"turn secret", b"1900000000", hashlib.sha1).digest()
    assert (credentials.user, base64.b64decode(credentials.password)) == ("1900000000", expected)


def test_secrets_of_credentials_are_not_shown() -> None:
    """A log line with one gives nobody access."""
    token, credentials = relay_token("s", 1), turn_credentials("s", 1)

    assert token.signature_text not in repr(token)
    assert repr(token.signature) not in repr(token)
    assert credentials.password not in repr(credentials)
