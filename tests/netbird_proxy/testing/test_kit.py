"""The shipped kit keeps the promises that tests rely on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from netbird_proxy.api.errors import DialRefused, ManagementTimeout, ManagementUnavailable, TunnelNotReady
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy, FakeTunnel
from netbird_proxy.testing.makers import exchange, host_origin, identity, peer, route
from netbird_proxy.testing.transcript import Transcript
from netbird_proxy.testing.upstreams import ScriptedServer


async def test_management_answers_as_told(fake_management: FakeManagement) -> None:
    """A message, an exception, a function of either color; what is not scripted fails as a lost management does."""

    async def slow(request: str) -> str:
        return request.upper()

    fake_management.answers = {
        "A": "message",
        "B": ManagementTimeout("late"),
        "C": lambda request: request * 2,
        "D": slow,
    }
    assert await fake_management.call("A", "x", timeout=1.0) == "message"
    with pytest.raises(ManagementTimeout):
        await fake_management.call("B", "x")
    assert await fake_management.call("C", "x") == "xx"
    assert await fake_management.call("D", "x") == "X"
    with pytest.raises(ManagementUnavailable):
        await fake_management.call("E", "x")
    with pytest.raises(ManagementUnavailable):
        _ = fake_management.channel
    assert [name for name, _ in fake_management.calls] == ["A", "B", "C", "D", "E"]
    assert fake_management.timeouts[0] == 1.0
    assert dict(fake_management.metadata())["x-netbird-proxy-id"] == "proxy-1"


async def test_tunnel_has_a_roster_and_tells_of_changes() -> None:
    """Whois answers from the roster only; a change wakes the one consumer; dials go where the test says."""
    tunnel = FakeTunnel({"100.64.0.9": peer()})
    assert tunnel.whois("100.64.0.9") == peer()
    assert tunnel.whois("100.64.0.8") is None

    listener = await tunnel.listen(80, asyncio.Protocol)
    assert list(tunnel.listening) == [80]
    listener.close()
    listener.close()
    assert tunnel.listening == {}

    tunnel.change({})
    async with asyncio.timeout(5):
        async for _ in tunnel.changes():
            break
    assert tunnel.whois("100.64.0.9") is None

    with pytest.raises(DialRefused):
        await tunnel.dial(asyncio.Protocol, Address("100.64.0.9", 80), timeout=1.0)
    async with ScriptedServer.serving(lambda _head: b"") as server:
        tunnel.upstreams[Address("100.64.0.9", 80)] = Address("127.0.0.1", server.port)
        transport, _ = await tunnel.dial(asyncio.Protocol, Address("100.64.0.9", 80), timeout=5.0)
        transport.abort()
    assert len(tunnel.dials) == 2


class Options(BaseModel):
    burst: int = 3


async def test_proxy_is_what_a_plugin_sees(fake_proxy: FakeProxy, tmp_path: Path) -> None:
    """Options by model, tunnels by account, counters, a state directory that the test gave."""
    assert fake_proxy.options(Options).burst == 3
    assert FakeProxy(options=[Options(burst=1)]).options(Options).burst == 1
    assert fake_proxy.state_directory == tmp_path
    with pytest.raises(RuntimeError):
        _ = FakeProxy().state_directory
    tunnel = FakeTunnel()
    account = AccountId("acct-1")
    with_tunnel = FakeProxy(tunnels={"acct-1": tunnel}, listening=[Address("127.0.0.1", 80)])
    assert with_tunnel.tunnel(account) is tunnel
    assert with_tunnel.account_dialer(account) is tunnel
    assert fake_proxy.tunnel(account) is None
    with pytest.raises(TunnelNotReady):
        await fake_proxy.account_dialer(account).dial(asyncio.Protocol, Address("a", 1), timeout=1.0)
    with pytest.raises(DialRefused):
        await fake_proxy.host_dialer().dial(asyncio.Protocol, Address("127.0.0.1", 1), timeout=5.0)
    fake_proxy.count("x")
    fake_proxy.count("x", 2)
    assert fake_proxy.counters["x"] == 3
    fake_proxy.generations[account] += 1
    assert fake_proxy.generation(account) == 1
    assert with_tunnel.listening_addresses() == (Address("127.0.0.1", 80),)
    assert fake_proxy.exchanges.revalidate(account=account) == 0
    assert fake_proxy.exchanges.asked[0]["account"] == account


async def test_unstated_effect_fails() -> None:
    """A transcript is the whole list: more, less, or another order is a failure that shows the difference."""
    play = Transcript(route())
    await play.request(origin=host_origin())
    with pytest.raises(AssertionError, match="dial"):
        play.saw("respond 200", "observe 200")
    await play.request(origin=host_origin())
    with pytest.raises(AssertionError, match="did not state"):
        play.finish()


def test_makers_make_what_a_step_needs() -> None:
    """An exchange on a route with a caller, ready for a step."""
    made: Any = exchange("/a?b=c", spec=route(), identity=identity(groups={"g1": "engineering"}), notes=["k"])
    assert (made.raw_path, made.query, made.route.service) == (b"/a", b"b=c", "svc-1")
    assert made.identity.groups[0].label == "engineering"
    made.note("k", 1)
    with pytest.raises(KeyError):
        made.note("other", 1)
