"""Checks of addresses: literals when the mapping is applied, names at every dial, and only checked ones are dialed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from netbird_direct_upstream.proxy import DirectUpstream, DirectUpstreamOptions
from netbird_direct_upstream.settings import DirectUpstreamSettings
from netbird_proxy import Address, AddressRefused, AllowedNetworks, Dialer, DialFailed, DialRefused, RouteRefused
from netbird_proxy.testing.fakes import FakeProxy
from netbird_proxy.testing.makers import route, upstream

OPEN = DirectUpstreamOptions(allow=(AllowedNetworks(accounts=("*",), networks=(ip_network("127.0.0.1/32"),)),))
CLOSED = DirectUpstreamOptions()
WAIT = 10.0


def dialer(proxy: FakeProxy, url: str, *, direct: bool = True) -> Dialer | None:
    target = replace(upstream(url), values={DirectUpstreamSettings: DirectUpstreamSettings(direct)})
    return DirectUpstream().dialer(route(to=target), target, proxy)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a silent server on 127.0.0.1."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_promise_6_closed_literal_refuses_the_route() -> None:
    """A mapping with a closed literal is refused when it is applied."""
    with pytest.raises(RouteRefused, match="loopback"):
        dialer(FakeProxy(options=[CLOSED]), "http://127.0.0.1:8080")
    with pytest.raises(RouteRefused, match="own listeners"):
        dialer(FakeProxy(options=[OPEN], listening=[Address("0.0.0.0", 8080)]), "http://127.0.0.1:8080")
    assert dialer(FakeProxy(options=[OPEN]), "http://127.0.0.1:8080") is not None


def test_other_targets_are_left_to_others() -> None:
    """Only flagged targets are dialed from here."""
    assert dialer(FakeProxy(options=[OPEN]), "http://127.0.0.1:8080", direct=False) is None


async def test_promise_6_name_is_judged_by_what_it_resolves_to(port: int) -> None:
    """A name for a closed address passes apply, and is refused at the dial, before any packet is sent."""
    proxy = FakeProxy(options=[CLOSED])
    found = dialer(proxy, f"http://localhost:{port}")
    assert found is not None

    with pytest.raises(AddressRefused, match="loopback"):
        await found.dial(asyncio.Protocol, Address("localhost", port), timeout=WAIT)


async def test_an_open_name_is_dialed(port: int) -> None:
    """A name for an open address is dialed."""
    found = dialer(FakeProxy(options=[OPEN]), f"http://localhost:{port}")
    assert found is not None

    transport, _ = await found.dial(asyncio.Protocol, Address("localhost", port), timeout=WAIT)

    assert transport.get_extra_info("peername") == ("127.0.0.1", port)
    transport.close()


def test_dialers_of_one_account_are_equal() -> None:
    """A service that is applied again, and a second one to the same target, share a pool."""
    proxy = FakeProxy(options=[OPEN])
    first, second = (dialer(proxy, "http://127.0.0.1:8080") for _ in range(2))
    other = dialer(FakeProxy(options=[OPEN]), "http://127.0.0.1:8080")

    assert first == second
    assert hash(first) == hash(second)
    assert first != other


async def test_promise_6_a_listener_opened_later_is_closed_too(port: int) -> None:
    """The proxy's own listeners are checked at every dial, not only when the mapping is applied."""
    listening: list[Address] = []

    class Later(FakeProxy):
        def listening_addresses(self) -> list[Address]:
            return listening

    proxy = Later(options=[OPEN])
    found = dialer(proxy, f"http://127.0.0.1:{port}")
    assert found is not None
    listening.append(Address("127.0.0.1", port))

    with pytest.raises(AddressRefused, match="own listeners"):
        await found.dial(asyncio.Protocol, Address("127.0.0.1", port), timeout=WAIT)


async def test_a_dial_that_fails_says_how(port: int) -> None:
    """Errors of the host's dialer pass through, and a name that does not resolve is reported as such."""
    found = dialer(FakeProxy(options=[OPEN]), "http://127.0.0.1:1")
    assert found is not None

    with pytest.raises(DialRefused):
        await found.dial(asyncio.Protocol, Address("127.0.0.1", 1), timeout=WAIT)
    with pytest.raises(DialFailed, match="resolve"):
        await found.dial(asyncio.Protocol, Address("no..name", 1), timeout=WAIT)
