"""URLs of relays, as management sends them and as peers name them to one another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_wire.relay_url import BadRelayUrl, RelayUrl, parse_relay_url


@pytest.mark.parametrize(
    ("text", "host", "port", "secure"),
    [
        ("rel://10.99.0.1:8081", "10.99.0.1", 8081, False),
        ("rels://relay.example", "relay.example", 443, True),
        ("rel://relay.example/", "relay.example", 80, False),
        ("rels://[fd00::1]:8443", "fd00::1", 8443, True),
    ],
)
def test_a_url_has_a_host_and_a_port(text: str, host: str, port: int, secure: bool) -> None:
    assert parse_relay_url(text) == RelayUrl(text, host, port, secure)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "relay.example:443",
        "http://relay.example",
        "rel://",
        "rel://:80",
        "rel://user@relay.example",
        "rel://relay.example/relay",
        "rel://relay.example?x=1",
        "rel://relay.example#x",
        "rel://relay.example:0",
        "rel://relay.example:65536",
        "rel://[relay]",
        "rel://[fe80::1%25eth0]",
        "rel://relay.example\r\nX: y",
        "rel://relay example",
        "rel://rel\\ay.example",
        "rel://räley.example",
        "rel://" + "a" * 600,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRelayUrl):
        parse_relay_url(text)


@given(st.text(max_size=60) | st.text(max_size=60).map(lambda text: "rels://" + text))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        url = parse_relay_url(text)
    except BadRelayUrl:
        return
    assert url.host
    assert 0 < url.port < 65_536
