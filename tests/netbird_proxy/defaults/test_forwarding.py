"""What an upstream is told about its client, alone and behind other proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from netbird_proxy import Dialer, Origin, PluginInfo, hookimpl
from netbird_proxy.defaults.forwarding import Forwarding, ForwardingOptions
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.process.settings import netbird_environment
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.testing.fakes import FakeProxy, HostDialer
from netbird_proxy.testing.makers import HOST, host_origin, route, tunnel_origin
from netbird_proxy.testing.transcript import Transcript

ALICE, FRONT = "203.0.113.9", "10.0.0.1"
NAMES = [b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port"]
FORGED = [
    (b"x-forwarded-for", b"6.6.6.6"),
    (b"X_Forwarded_For", b"6.6.6.6"),
    (b"x.forwarded.for", b"6.6.6.6"),
    (b"x-real-ip", b"6.6.6.6"),
    (b"x-forwarded-host", b"6.6.6.6"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-port", b"666"),
    (b"x-forwarded-prefix", b"6.6.6.6"),
    (b"forwarded", b"for=6.6.6.6"),
]


class Dials:
    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> Dialer:
        return HostDialer()


@asynccontextmanager
async def playing(**options: Any) -> AsyncIterator[Transcript]:
    proxy = FakeProxy(options=[ForwardingOptions(**options)])
    hooks = load_hooks([("dials", Dials), ("forwarding", Forwarding)])
    async with hooks.running(proxy):
        play = Transcript(route(), hooks=hooks, proxy=proxy)
        play.app.trusted = proxy.trusted
        yield play
    assert proxy.trusted is None


async def told(play: Transcript, origin: Origin, *headers: tuple[bytes, bytes], **fields: Any) -> dict[bytes, bytes]:
    """The family as the upstream got it; each name at most once."""
    await play.request(origin=origin, headers=list(headers), **fields)
    found = [(name, value) for name, value in play.upstreams.last.fields if b"forwarded" in name or b"real" in name]
    assert len(dict(found)) == len(found)
    return dict(found)


def exchange_of(play: Transcript) -> Exchange:
    return play.exchange  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("options", "origin"),
    [
        ({}, host_origin(ALICE)),
        ({"trusted_proxies": ["10.0.0.0/8"]}, host_origin(ALICE)),
        ({"trusted_proxies": ["0.0.0.0/0", "::/0"]}, tunnel_origin(ALICE)),
        ({}, host_origin(FRONT)),
    ],
    ids=["nobody is trusted", "another is trusted", "a tunnel, everybody is trusted", "empty list"],
)
async def test_clients_own_word_never_passes(options: dict[str, Any], origin: Origin) -> None:
    """The connection says it all, under every alias; a tunnel's peer is never a proxy in front."""
    async with playing(**options) as play:
        said = await told(play, origin, *FORGED)

        assert said == {
            b"x-forwarded-for": origin.peer.host.encode(),
            b"x-real-ip": origin.peer.host.encode(),
            b"x-forwarded-host": HOST.encode(),
            b"x-forwarded-proto": b"http",
            b"x-forwarded-port": b"80",
        }
        assert exchange_of(play).client_address == origin.peer.host


async def test_trusted_proxy_is_repeated() -> None:
    """Its chain goes on with its own address behind; what it says of the request stays; the rest is dropped."""
    async with playing(trusted_proxies=["10.0.0.0/8"]) as play:
        said = await told(
            play,
            host_origin(FRONT),
            (b"x-forwarded-for", b"1.1.1.1"),
            (b"x-forwarded-for", ALICE.encode() + b", 10.0.0.2"),
            (b"x-real-ip", b"198.51.100.7"),
            (b"x-forwarded-host", b"public.example:8443"),
            (b"x-forwarded-proto", b"https"),
            (b"x-forwarded-port", b"8443"),
            (b"x-forwarded-user", b"root"),
            (b"forwarded", b"for=1.1.1.1"),
        )

        assert said == {
            b"x-forwarded-for": b"1.1.1.1, 203.0.113.9, 10.0.0.2, 10.0.0.1",
            b"x-real-ip": b"198.51.100.7",
            b"x-forwarded-host": b"public.example:8443",
            b"x-forwarded-proto": b"https",
            b"x-forwarded-port": b"8443",
        }
        assert exchange_of(play).client_address == ALICE
        assert exchange_of(play).scheme == "http"  # a header never decides that


async def test_trusted_proxy_that_says_little() -> None:
    """What it leaves out comes from the connection, the client from its chain; without a chain it is the proxy."""
    async with playing(trusted_proxies=[FRONT]) as play:
        said = await told(play, host_origin(FRONT), (b"x-forwarded-for", ALICE.encode()), scheme="https")
        assert [said[name] for name in NAMES] == [
            b"203.0.113.9, 10.0.0.1",
            ALICE.encode(),
            HOST.encode(),
            b"https",
            b"443",
        ]

        said = await told(play, host_origin(FRONT), (b"x-forwarded-proto", b"https"), host=HOST + ":8443")
        assert [said[name] for name in NAMES] == [
            FRONT.encode(),
            FRONT.encode(),
            HOST.encode() + b":8443",
            b"https",
            b"8443",
        ]

        said = await told(play, host_origin(FRONT), (b"x-forwarded-proto", b"https"))
        assert said[b"x-forwarded-port"] == b"443"


async def test_forwarded_is_said_where_it_is_wanted() -> None:
    """RFC 7239 beside the family; host and scheme stand in the last element alone, which is ours."""
    async with playing(trusted_proxies=[FRONT], forwarded=True) as play:
        said = await told(play, host_origin(FRONT), (b"x-forwarded-for", b"odd;host=x, 2001:db8::1"))
        assert said[b"forwarded"] == b'for=unknown, for="[2001:db8::1]", for=10.0.0.1;host="app.example.com";proto=http'

        said = await told(play, host_origin("2001:db8::2"), *FORGED)
        assert said[b"forwarded"] == b'for="[2001:db8::2]";host="app.example.com";proto=http'


async def test_a_fixed_scheme_is_what_upstreams_are_told() -> None:
    """Neither the connection nor a trusted proxy changes it, in no field; the port is the one that belongs to it."""
    async with playing(proto="https") as play:
        fields = await told(play, host_origin(ALICE), *FORGED)
        assert (fields[b"x-forwarded-proto"], fields[b"x-forwarded-port"]) == (b"https", b"443")
        assert fields[b"x-forwarded-for"] == ALICE.encode()
    async with playing(proto="http", forwarded=True, trusted_proxies=[FRONT]) as play:
        fields = await told(play, host_origin(FRONT), (b"x-forwarded-proto", b"https"))
        assert fields[b"x-forwarded-proto"] == b"http"
        assert fields[b"forwarded"].endswith(b";proto=http")


async def test_forwarded_can_be_what_is_read() -> None:
    """Then the family of the same request is a stranger's word."""
    async with playing(trusted_proxies=[FRONT], field="forwarded") as play:
        said = await told(
            play,
            host_origin(FRONT),
            (b"forwarded", b"for=203.0.113.9;proto=https"),
            (b"x-forwarded-for", b"6.6.6.6"),
            (b"x-real-ip", b"6.6.6.6"),
        )

        assert said[b"x-forwarded-for"] == b"203.0.113.9, 10.0.0.1"
        assert said[b"x-real-ip"] == ALICE.encode()
        assert said[b"x-forwarded-proto"] == b"https"


def test_netbirds_name_for_it() -> None:
    """A comma list of networks and addresses, blanks trimmed and empty items skipped."""
    given, ignored = netbird_environment({"NB_PROXY_TRUSTED_PROXIES": " 10.0.0.0/8, ,192.0.2.1 ,"})

    assert (given[0].path, given[0].value, ignored) == (
        ("forwarding", "trusted_proxies"),
        ["10.0.0.0/8", "192.0.2.1"],
        (),
    )
    assert [str(one) for one in ForwardingOptions(trusted_proxies=given[0].value).trusted_proxies] == [  # type: ignore[arg-type]
        "10.0.0.0/8",
        "192.0.2.1/32",
    ]


@pytest.mark.parametrize("own", [b'for="1.1.1.1', b'x="', b"for=1.1.1.1 for=2.2.2.2", b"," * 300])
async def test_client_that_spoils_what_the_proxy_appends_is_refused(own: bytes) -> None:
    """It would count as the trusted proxy, and pass wherever that may: 400, and nothing is dialed."""
    async with playing(trusted_proxies=[f"{FRONT}/32"], field="forwarded") as play:
        said = own + b", for=203.0.113.9;proto=https"
        answer = await play.request(origin=host_origin(FRONT), headers=[(b"forwarded", said)])

        assert (answer.status, play.upstreams.dialed) == (400, 0)
        assert play.exchange.client_address == FRONT
        fine = await play.request(origin=host_origin("203.0.113.7"), headers=[(b"forwarded", said)])
        assert fine.status == 200
