"""How a proxy gets its node in an account's overlay: once a token, and no further than it should."""

from datetime import timedelta

import grpc
import grpc.aio
import pytest

from netbird_management.model.clock import now
from netbird_management.model.services import Service
from netbird_management.operations.accounts import create_account
from netbird_management.operations.peers import PROXY_ABSENT_SECONDS, sweep_ephemeral_peers
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.store.models import PeerRow
from netbird_wire.proxy_service_pb2 import CreateProxyPeerRequest
from tests.netbird_management.grpc.conftest import FakePeer, FakeProxy, Lab, register

Code = grpc.StatusCode


@pytest.fixture
async def service(lab: Lab) -> Service:
    return await lab.service("app", await lab.group("g"))


@pytest.fixture
async def proxy(lab: Lab, service: Service) -> FakeProxy:
    connected = lab.proxy()
    await connected.connect()
    return connected


async def refused(proxy: FakeProxy, service: Service, peer: FakePeer, endpoint: str = "") -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await register(proxy, service, peer=peer, endpoint=endpoint)
    assert proxy.mappings[service.id].auth_token not in (caught.value.details() or "")
    return caught.value.code()


async def test_a_token_makes_one_peer(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """In no group, with an address, for the cluster; the same token does not make another."""
    node = lab.peer()
    assert (await register(proxy, service, peer=node)).success
    [made] = [peer for peer in lab.home.snapshot.peers.values() if peer.proxy is not None]
    assert made.proxy is not None
    assert (made.key, made.proxy.cluster, lab.home.snapshot.groups_of(made.id)) == (node.key, "px.test", ())
    assert await refused(proxy, service, lab.peer()) is Code.UNAUTHENTICATED
    assert len(lab.home.snapshot.proxy_peers("px.test")) == 1


async def test_a_known_key_keeps_its_address(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """With a fresh token, also with an endpoint that it did not have before: stock clients' files stay valid."""
    node = lab.peer()
    await register(proxy, service, peer=node, endpoint="vpn.example:51820")
    [before] = lab.home.snapshot.proxy_peers("px.test")
    await proxy.connect()
    await register(proxy, service, peer=node, endpoint="[2001:db8::1]:51821")
    [after] = lab.home.snapshot.proxy_peers("px.test")
    assert (after.id, after.ip) == (before.id, before.ip)
    assert (before.proxy, after.proxy) != (None, None)
    assert after.proxy is not None
    assert after.proxy.wireguard_endpoint == "[2001:db8::1]:51821"


async def test_a_token_is_for_one_proxy_token(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """Somebody else's access token cannot spend it, and trying does not spend it either."""
    _, plain = await create_proxy_token(lab.home.state, name="second", account_id=None, created_by="test")
    thief = lab.proxy(token=plain, proxy_id="thief")
    await thief.connect()
    own = thief.mappings[service.id].auth_token
    thief.mappings[service.id].auth_token = proxy.mappings[service.id].auth_token
    assert await refused(thief, service, lab.peer()) is Code.UNAUTHENTICATED
    thief.mappings[service.id].auth_token = own
    assert (await register(proxy, service, peer=lab.peer())).success


async def test_a_token_is_for_one_service_and_account(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """Neither another service of the account nor another account can be named with it."""
    other = await lab.service("other", await lab.group("h"))
    await proxy.next()
    proxy.mappings[other.id].auth_token = proxy.mappings[service.id].auth_token
    assert await refused(proxy, other, lab.peer()) is Code.UNAUTHENTICATED
    foreign, _ = await create_account(lab.home.state, email="other@lab.test", name="Other")
    request = CreateProxyPeerRequest(
        service_id=service.id,
        account_id=foreign,
        token=proxy.mappings[service.id].auth_token,
        wireguard_public_key=lab.peer().key,
        cluster="px.test",
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await proxy.unary("CreateProxyPeer", request)
    assert caught.value.code() is Code.UNAUTHENTICATED


async def test_a_proxy_cannot_pose_as_another_cluster(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """It would be named to that cluster's clients."""
    proxy.cluster = "elsewhere.test"
    assert await refused(proxy, service, lab.peer()) is Code.INVALID_ARGUMENT
    assert not lab.home.snapshot.proxy_peers("px.test")


async def test_a_key_of_anybody_else_is_not_taken(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """A person's peer stays a person's peer."""
    node = lab.peer()
    phone = await lab.stock_peer("phone", key=node.key)
    assert await refused(proxy, service, node) is Code.PERMISSION_DENIED
    assert lab.home.snapshot.peers[phone.id].proxy is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "vpn.example",
        "vpn.example:0",
        "vpn.example:70000",
        ":51820",
        "vpn.example:51820\nPostUp = id",
        "vpn example:51820",
        "2001:db8::1",
        "[x]:1",
    ],
)
async def test_an_endpoint_is_host_and_port(lab: Lab, proxy: FakeProxy, service: Service, endpoint: str) -> None:
    """It will stand in other people's configuration files, where a line break would be another setting."""
    assert await refused(proxy, service, lab.peer(), endpoint) is Code.INVALID_ARGUMENT


async def test_a_key_that_is_none_makes_nothing(lab: Lab, proxy: FakeProxy, service: Service) -> None:
    """And does not spend the token."""
    good = lab.peer()
    request = CreateProxyPeerRequest(
        service_id=service.id,
        account_id=service.account_id,
        token=proxy.mappings[service.id].auth_token,
        wireguard_public_key="not a key",
        cluster="px.test",
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await proxy.unary("CreateProxyPeer", request)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert (await register(proxy, service, peer=good)).success


@pytest.mark.parametrize("missing", ["service_id", "account_id", "token"])
async def test_what_is_missing_is_told(proxy: FakeProxy, service: Service, missing: str) -> None:
    """As an answer, not as an error."""
    request = CreateProxyPeerRequest(service_id=service.id, account_id=service.account_id, token="t")
    request.ClearField(missing)  # type: ignore[arg-type]
    answer = await proxy.unary("CreateProxyPeer", request)
    assert (answer.success, missing in answer.error_message) == (False, True)


async def test_absent_nodes_are_swept_but_for_those_with_an_endpoint(
    lab: Lab, proxy: FakeProxy, service: Service
) -> None:
    """Ten minutes; a node that stock clients' files name stays."""
    swept, kept = lab.peer(), lab.peer()
    await register(proxy, service, peer=swept)
    await proxy.connect()
    await register(proxy, service, peer=kept, endpoint="127.0.0.1:51820")
    await sweep_ephemeral_peers(lab.home.state)
    assert len(lab.home.snapshot.proxy_peers("px.test")) == 2
    async with lab.home.state.change(lab.home.account_id) as transaction:
        for peer in lab.home.snapshot.proxy_peers("px.test"):
            row = await transaction.session.get_one(PeerRow, peer.id)
            row.created_at = row.last_seen = now() - timedelta(seconds=PROXY_ABSENT_SECONDS + 1)
            transaction.touch(peers=[peer.id])
    await sweep_ephemeral_peers(lab.home.state)
    assert [peer.key for peer in lab.home.snapshot.proxy_peers("px.test")] == [kept.key]
