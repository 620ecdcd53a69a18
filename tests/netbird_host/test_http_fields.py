"""Fields and tokens that several modules write and judge in one way."""

from __future__ import annotations

import pytest

from netbird_host.http_fields import TOKEN, retry_after


@pytest.mark.parametrize(
    ("seconds", "value"),
    [(-3.0, b"1"), (0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (1.5, b"2"), (2.5, b"3"), (60, b"60")],
)
def test_a_client_is_never_sent_back_before_its_time(seconds: float, value: bytes) -> None:
    """`Retry-After` is whole seconds, rounded up, and at least one."""
    assert retry_after(seconds) == (b"retry-after", value)


def test_a_token_is_what_rfc_9110_lists() -> None:
    """Exactly the 77 octets of RFC 9110 §5.6.2 may stand in a token."""
    symbols = b"!#$%&'*+-.^_`|~"
    assert {octet for octet in range(256) if TOKEN.fullmatch(bytes((octet,)))} == {
        octet for octet in range(128) if chr(octet).isalnum() or octet in symbols
    }
