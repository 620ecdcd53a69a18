"""What a call may cost before its caller is known, and where it comes from."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from netbird_management.compute.differences import network_differs
from netbird_management.grpc.server import Timing
from netbird_management.store.models import ProxyRow
from netbird_wire.proxy_service_pb2 import ValidateTunnelPeerRequest
from netbird_wire.tokens import TokenKind, mint
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import Lab, lab_for, soon

Code = grpc.StatusCode
PROXY = "/management.ProxyService/"
PEER = "/management.ManagementService/"


@asynccontextmanager
async def silent(lab: Lab, method: str, token: str = "") -> AsyncIterator[Any]:
    """A call whose head is sent, and nothing else."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    call: Any = lab.channel.stream_stream(method)(metadata=metadata)
    try:
        yield call
    finally:
        call.cancel()


@pytest.mark.parametrize("method", ["SendAccessLog", "ValidateTunnelPeer", "GetMappingUpdate", "SyncMappings"])
@pytest.mark.parametrize("token", ["", mint(TokenKind.PROXY)], ids=["none", "wrong"])
async def test_promise_10_a_token_is_judged_before_anything_of_the_message_comes(
    lab: Lab, method: str, token: str
) -> None:
    """The head alone is answered: a caller without a token has no message received, nor read, nor kept waiting."""
    async with silent(lab, PROXY + method, token) as call:
        assert await soon(call.code()) is Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    "method",
    [PROXY + "SendAccessLog", PROXY + "GetMappingUpdate", PROXY + "SyncMappings", PEER + "Login", PEER + "Sync"],
)
async def test_promise_10_a_call_without_its_message_ends(home: Home, tmp_path: Path, method: str) -> None:
    """Of peers, and of proxies whose token is right: its place is free again after `REQUEST_SECONDS`."""
    async with (
        lab_for(home, tmp_path, timing=Timing(quiet=0.05, request=0.05)) as lab,
        silent(lab, method, lab.token) as call,
    ):
        assert await soon(call.code()) is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        ([], "192.0.2.7", "127.0.0.1"),
        (["127.0.0.0/8"], "192.0.2.7", "192.0.2.7"),
        (["127.0.0.0/8"], "203.0.113.9, 192.0.2.7", "192.0.2.7"),
        (["127.0.0.0/8", "192.0.2.0/24"], "203.0.113.9, 192.0.2.7", "203.0.113.9"),
        (["127.0.0.0/8"], "nonsense", "127.0.0.1"),
        (["10.0.0.0/8"], "192.0.2.7", "127.0.0.1"),
    ],
)
async def test_the_address_of_a_caller(
    home: Home, tmp_path: Path, trusted: list[str], forwarded: str, address: str
) -> None:
    """Metadata names it where a trusted proxy wrote it, and nowhere else."""
    networks = [ip_network(network) for network in trusted]
    async with lab_for(home, tmp_path, trusted_proxies=networks) as lab:
        proxy = lab.proxy()
        call = proxy.stub.SyncMappings(metadata=(*proxy.metadata, ("x-forwarded-for", forwarded)))
        proxy.call = call
        await call.write(proxy.introduction())
        await proxy.next()
        async with home.state.read() as session:
            assert (await session.get_one(ProxyRow, proxy.proxy_id)).ip_address == address


async def test_wrong_tokens_are_counted_by_the_address_that_a_trusted_proxy_names(home: Home, tmp_path: Path) -> None:
    """A guesser behind the load balancer uses up its own failures, not those of others there."""
    async with lab_for(home, tmp_path, trusted_proxies=[ip_network("127.0.0.0/8")]) as lab:

        async def guess(address: str) -> Code:
            metadata = (("x-forwarded-for", address),)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await lab.proxy().unary("ValidateTunnelPeer", ValidateTunnelPeerRequest(), metadata=metadata)
            return caught.value.code()

        assert {await guess("192.0.2.7") for _ in range(6)} == {Code.UNAUTHENTICATED, Code.RESOURCE_EXHAUSTED}
        assert await guess("192.0.2.8") is Code.UNAUTHENTICATED


async def test_promise_10_a_peers_report_of_itself_makes_nobodys_map_anew(lab: Lab) -> None:
    """A kernel or a serial number is stored and concerns no map; a version and the capabilities concern all."""
    node = lab.peer()
    await lab.stock_peer("node", key=node.key)
    await node.login()
    before = lab.home.snapshot
    node.meta.OSVersion, node.meta.kernel, node.meta.sysSerialNumber = "2", "other", "3"
    await node.login()
    (peer,) = lab.home.snapshot.peers.values()
    assert (peer.meta.os_version, peer.meta.kernel, peer.meta.serial_number) == ("2", "other", "3")
    assert not network_differs(before, lab.home.snapshot)
    node.meta.netbirdVersion = "0.99.0"
    await node.login()
    assert network_differs(before, lab.home.snapshot)
