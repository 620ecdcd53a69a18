"""The judgement of addresses holds for every dialer: a stream to a refused peer is closed before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from netbird_proxy.api.addresses import AddressJudge, AddressRules, AllowedNetworks, NetworkOptions
from netbird_proxy.api.errors import AddressRefused
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.api.tunnels import Dialer, ProtocolFactory
from netbird_proxy.testing.makers import upstream
from netbird_proxy.upstreams.host_dialer import HostDialer
from netbird_proxy.upstreams.judged import JudgedDialer, exempt
from netbird_proxy.upstreams.pool import UpstreamPool

WAIT = 10.0
CLOSED = NetworkOptions()
OPEN = NetworkOptions(allow=(AllowedNetworks(accounts=("acct",), networks=(ip_network("127.0.0.1/32"),)),))


def judge(options: NetworkOptions, account: str = "acct") -> AddressJudge:
    return AddressJudge(AddressRules([options], lambda: ()), AccountId(account))


@dataclass
class Server:
    """An upstream that answers whatever it gets, and remembers it."""

    port: int = 0
    received: list[bytes] = field(default_factory=list)
    ended: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received.append(data)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except ConnectionResetError:
            pass
        writer.close()
        self.ended.release()


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    seen = Server()
    listening = await asyncio.start_server(seen.serve, "127.0.0.1", 0)
    async with listening:
        seen.port = listening.sockets[0].getsockname()[1]
        yield seen


class OwnSocket:
    """A plugin's dialer that knows of no rules."""

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        return await asyncio.get_running_loop().create_connection(protocol_factory, *address)


class ThroughItsOwnProtocol:
    """A plugin's dialer that talks to a proxy of its own first, and puts the protocol on that stream."""

    async def dial(
        self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address)
        protocol = protocol_factory()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        return transport, protocol


DIALERS: Sequence[Dialer] = (OwnSocket(), ThroughItsOwnProtocol(), HostDialer())


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("dialer", DIALERS, ids=lambda dialer: type(dialer).__name__)
async def test_promise_6_no_dialer_leads_around_the_rules(server: Server, dialer: Dialer, scheme: str) -> None:
    """A closed peer is refused whoever opened the stream, and not even a TLS handshake reaches it."""
    target = upstream(f"{scheme}://127.0.0.1:{server.port}")
    pool = UpstreamPool(target, JudgedDialer(dialer, judge(CLOSED)))

    with pytest.raises(AddressRefused, match="loopback"):
        await pool.acquire()

    await server.ended.acquire()
    assert server.received == []


@pytest.mark.parametrize("dialer", DIALERS, ids=lambda dialer: type(dialer).__name__)
async def test_what_the_operator_opened_is_reached(server: Server, dialer: Dialer) -> None:
    """An entry for the account opens the peer for every dialer of it, and for no other account."""
    target = upstream(f"http://127.0.0.1:{server.port}")
    connection = await UpstreamPool(target, JudgedDialer(dialer, judge(OPEN))).acquire()
    connection.send_head(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", method=b"GET", has_body=False)
    async with asyncio.timeout(WAIT):
        assert (await connection.answer()).status == 200
    connection.abort()
    await server.ended.acquire()

    with pytest.raises(AddressRefused):
        await UpstreamPool(target, JudgedDialer(dialer, judge(OPEN, "other"))).acquire()
    await server.ended.acquire()


async def test_a_stream_without_an_address_is_left_to_its_plugin(tmp_path: Path) -> None:
    """A Unix socket has no address to judge: the operator decides by loading the plugin."""

    class UnixDialer:
        async def dial(self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float) -> Any:
            return await asyncio.get_running_loop().create_unix_connection(protocol_factory, str(tmp_path / "s"))

    behind = Server()
    async with await asyncio.start_unix_server(behind.serve, str(tmp_path / "s")):
        dialer = JudgedDialer(UnixDialer(), judge(CLOSED))
        transport, _ = await dialer.dial(asyncio.Protocol, Address("a", 1), timeout=WAIT)
        transport.abort()
        await behind.ended.acquire()


async def test_the_tunnel_of_the_account_is_exempt(server: Server) -> None:
    """Addresses inside an account's tunnel are the account's affair; the tunnel of another one is refused."""

    @dataclass
    class TunnelDialer:
        account: AccountId

        async def dial(self, protocol_factory: ProtocolFactory, address: Address, *, timeout: float) -> Any:
            factory = exempt(protocol_factory, self.account)
            return await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", server.port)

    own = JudgedDialer(TunnelDialer(AccountId("acct")), judge(CLOSED))
    transport, _ = await own.dial(asyncio.Protocol, Address("100.64.0.7", 80), timeout=WAIT)
    transport.abort()
    await server.ended.acquire()

    foreign = JudgedDialer(TunnelDialer(AccountId("other")), judge(CLOSED))
    with pytest.raises(AddressRefused, match="tunnel"):
        await foreign.dial(asyncio.Protocol, Address("100.64.0.7", 80), timeout=WAIT)


def test_equal_dialers_stay_equal() -> None:
    """What a judgement is laid around shares a pool where its dialers and rules do."""
    rules = AddressRules([], lambda: ())
    dialer = OwnSocket()

    def judged(account: str) -> JudgedDialer:
        return JudgedDialer(dialer, AddressJudge(rules, AccountId(account)))

    assert judged("a") == judged("a")
    assert hash(judged("a")) == hash(judged("a"))
    assert judged("a") != judged("b")
