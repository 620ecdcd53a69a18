"""Whose word counts about a client's address: read from the right, over all lines, as far as trust reaches."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbird_proxy.api.forwarded import Forwarded, TrustedProxies, parsed

NETWORKS = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
PROXIES = TrustedProxies(NETWORKS)
RFC7239 = TrustedProxies(NETWORKS, field="forwarded")
ALICE = "203.0.113.9"


def lines(*values: str, name: bytes = b"x-forwarded-for") -> list[tuple[bytes, bytes]]:
    return [(name, value.encode("latin-1")) for value in values]


@pytest.mark.parametrize(
    ("values", "client"),
    [
        ([], "10.0.0.1"),
        ([""], "10.0.0.1"),
        ([ALICE], ALICE),
        (["1.1.1.1, " + ALICE], ALICE),
        (["1.1.1.1", ALICE], ALICE),
        (["1.1.1.1, 10.9.9.9", ALICE], ALICE),
        ([ALICE + ", 10.0.0.2, 10.0.0.3"], ALICE),
        ([ALICE, "10.0.0.2", "fd00::1"], ALICE),
        ([ALICE + ",10.0.0.2,,  ,"], ALICE),
        (["10.0.0.4, 10.0.0.2"], "10.0.0.4"),
        (["unknown, 10.0.0.2"], "10.0.0.2"),
        (["1.1.1.1, unknown"], "10.0.0.1"),
        (["1.1.1.1, _hidden, 10.0.0.2"], "10.0.0.2"),
        ([ALICE + ":4711"], ALICE),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["2001:DB8::1"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], ALICE),
        (["1.1.1.1, ::ffff:10.0.0.2"], "1.1.1.1"),
        (["fe80::1%eth0"], "10.0.0.1"),
        (["203.0.113.9\t"], ALICE),
        (["203.0.113.009"], "10.0.0.1"),
    ],
)
def test_client_is_the_nearest_address_that_is_no_proxys(values: list[str], client: str) -> None:
    """What stands left of it is its own word; an entry that is no address ends the search."""
    said = PROXIES.read("10.0.0.1", lines(*values))

    assert said is not None
    assert said.client == client


@pytest.mark.parametrize("peer", [ALICE, "", "somebody", "11.0.0.1", "fe80::1"])
def test_nobody_else_is_believed(peer: str) -> None:
    """A peer that is no trusted proxy says nothing about anybody."""
    assert PROXIES.read(peer, lines("1.1.1.1")) is None
    assert TrustedProxies([]).read("10.0.0.1", lines("1.1.1.1")) is None


@given(st.lists(st.lists(st.text('0123456789.:abcdf,[] "', max_size=12), max_size=4).map(",".join), max_size=4))
def test_a_client_cannot_choose_its_address(own: list[str]) -> None:
    """Whatever it sends itself: the proxy that it came through appends where it came from."""
    said = PROXIES.read("10.0.0.1", lines(*own, ALICE))

    assert said is not None
    assert said.client == ALICE


def test_what_a_proxy_says_besides() -> None:
    """One plain line of each; the chain keeps its words."""
    raw = [
        *lines("1.1.1.1, odd", ALICE),
        (b"x-forwarded-host", b"App.Example.com:8443"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-port", b"8443"),
        (b"x-real-ip", b"::ffff:203.0.113.9"),
    ]

    said = PROXIES.read("10.0.0.1", raw)

    assert said == Forwarded(ALICE, ("1.1.1.1", "odd", ALICE), "App.Example.com:8443", "https", "8443", ALICE)


@pytest.mark.parametrize(
    "pair",
    [
        (b"x-forwarded-host", b"a, b"),
        (b"x-forwarded-host", b'a"; x="'),
        (b"x-forwarded-host", b"a/b"),
        (b"x-forwarded-host", b""),
        (b"x-forwarded-proto", b"https, http"),
        (b"x-forwarded-proto", b"HTTPS"),
        (b"x-forwarded-proto", b"javascript"),
        (b"x-forwarded-port", b"0"),
        (b"x-forwarded-port", b"-1"),
        (b"x-forwarded-port", b"443, 80"),
        (b"x-real-ip", b"1.1.1.1, 2.2.2.2"),
        (b"x-real-ip", b"unknown"),
    ],
)
def test_what_is_not_plain_is_not_said(pair: tuple[bytes, bytes]) -> None:
    """A list, another type or anything odd is as good as nothing; so are two lines."""
    assert PROXIES.read("10.0.0.1", [pair]) == Forwarded("10.0.0.1")
    plain = {b"host": b"a", b"proto": b"http", b"port": b"80", b"real-ip": b"1.1.1.1"}
    value = plain[pair[0].removeprefix(b"x-").removeprefix(b"forwarded-")]
    assert PROXIES.read("10.0.0.1", [(pair[0], value)] * 2) == Forwarded("10.0.0.1")


@pytest.mark.parametrize(
    ("values", "client", "host", "proto"),
    [
        (["for=203.0.113.9;host=a.example;proto=HTTPS"], ALICE, "a.example", "https"),
        (['for="203.0.113.9:4711"; proto=https'], ALICE, "", "https"),
        (['for="[2001:db8::1]:80"'], "2001:db8::1", "", ""),
        (["for=1.1.1.1;host=evil", "for=203.0.113.9;host=a, For=10.0.0.2;host=b"], ALICE, "a", ""),
        (["for=unknown, for=10.0.0.2"], "10.0.0.2", "", ""),
        (["for=1.1.1.1, proto=https"], "10.0.0.1", "", ""),
        (['for=1.1.1.1, for="203.0.113.9'], "", "", ""),
        (['for="1.1.1.1, for=203.0.113.9'], "", "", ""),
        (['for=1.1.1.1;x=", for=203.0.113.9;host="a"'], "", "", ""),
        (['for="', "for=203.0.113.9"], "", "", ""),
        (["for=1.1.1.1; for=203.0.113.9"], "", "", ""),
        (["for=203.0.113.9 for=1.1.1.1"], "", "", ""),
        (["," * 300 + "for=203.0.113.9"], "", "", ""),
        (['for=203.0.113.9;host="a, for=1.1.1.1"'], ALICE, "", ""),
        (["", "for=203.0.113.9,"], ALICE, "", ""),
    ],
)
def test_forwarded_is_read_the_same_way(values: list[str], client: str, host: str, proto: str) -> None:
    """RFC 7239: the element of the client's own connection counts; where something cannot be read there is no client,
    and never the trusted proxy in its place."""
    said = RFC7239.read("10.0.0.1", [*lines(*values, name=b"forwarded"), *lines("8.8.8.8")])

    assert said is not None
    assert (said.client, said.host, said.proto) == (client, host, proto)


def test_the_other_field_is_anybodys() -> None:
    """A proxy that writes one field passes the other on as its client sent it."""
    raw = [*lines("for=1.1.1.1", name=b"forwarded"), *lines(ALICE)]

    assert PROXIES.read("10.0.0.1", raw) == Forwarded(ALICE, (ALICE,))


@given(st.text(max_size=20))
def test_parsing_never_raises(text: str) -> None:
    """Anything may stand there."""
    found = parsed(text)
    assert found is None or parsed(str(found)) == found
