"""While the database is away: who is answered from memory, and what comes after."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import grpc
import grpc.aio
import pytest

from netbird_management.model.store_errors import UnreachableError
from netbird_wire.proxy_service_pb2 import ValidateTunnelPeerRequest
from tests.netbird_management.conftest import Api
from tests.netbird_management.grpc.conftest import Lab


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_connected_proxies_do_not_notice(lab: Lab, away: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """Their peers are validated; a change is refused and changes nothing, and the stream brings the next one."""
    phone = await lab.stock_peer("phone")
    service = await lab.service("app", await lab.group("members", phone))
    proxy = lab.proxy()
    await proxy.connect()
    request = ValidateTunnelPeerRequest(tunnel_ip=str(phone.ip), domain=service.domain)
    assert (await proxy.unary("ValidateTunnelPeer", request)).valid
    before = lab.home.snapshot
    async with away():
        assert (await proxy.unary("ValidateTunnelPeer", request)).valid
        with pytest.raises(UnreachableError):
            await lab.group("other")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await lab.proxy(proxy_id="proxy-2").connect()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert lab.home.snapshot.groups == before.groups
    changed = await lab.change(service, name="renamed", targets=service.targets, enabled=False)
    assert not changed.enabled
    await proxy.next()
    assert service.id not in proxy.mappings


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_the_api_says_that_it_is_away(api: Api, away: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """503 to whoever calls, and all is well afterwards."""
    async with away():
        assert (await api.call("GET", "/api/users/current")).status_code == 503
    await api.ok("GET", "/api/users/current")
