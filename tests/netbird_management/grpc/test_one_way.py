"""Proxies that know only the stream of one direction."""

from typing import Any

import grpc.aio
import pytest

from netbird_management.operations.proxies import clusters_of
from netbird_wire.proxy_service_pb2 import UPDATE_TYPE_MODIFIED, UPDATE_TYPE_REMOVED, GetMappingUpdateRequest
from tests.netbird_management.grpc.conftest import CLUSTER, FakeProxy, Lab, direct_target, eventually, soon


def _listen(proxy: FakeProxy, **fields: Any) -> Any:
    request = GetMappingUpdateRequest(
        **{"proxy_id": "old", "address": CLUSTER, "capabilities": proxy.capabilities, **fields}
    )
    return proxy.stub.GetMappingUpdate(request, metadata=(("authorization", f"Bearer {proxy.token}"),))


async def test_the_snapshot_then_changes(lab: Lab) -> None:
    """No acknowledgement is asked for; a change and a removal follow the snapshot."""
    service = await lab.service("one")
    call = _listen(lab.proxy())
    first = await soon(call.read())
    assert [mapping.id for mapping in first.mapping] == [service.id]
    assert first.mapping[0].auth_token
    assert first.initial_sync_complete
    await lab.change(service, targets=(direct_target(port=9001),))
    assert [(one.type, one.path[0].target) for one in (await soon(call.read())).mapping] == [
        (UPDATE_TYPE_MODIFIED, "http://127.0.0.1:9001/")
    ]
    await lab.change(service, enabled=False)
    assert [one.type for one in (await soon(call.read())).mapping] == [UPDATE_TYPE_REMOVED]


async def test_leaving_frees_the_place(lab: Lab) -> None:
    """A listener that goes away no longer counts as connected; one that comes anew ends its earlier stream."""
    first = _listen(lab.proxy())
    await soon(first.read())
    second = _listen(lab.proxy())
    await soon(second.read())
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await soon(first.read())
    assert ended.value.code() is grpc.StatusCode.ABORTED
    second.cancel()

    async def connected() -> int:
        clusters = await clusters_of(lab.home.state, lab.home.account_id)
        return sum(cluster.connected_proxies for cluster in clusters)

    await eventually(connected, lambda count: count == 1)  # the fixture's own


@pytest.mark.parametrize("fields", [{"proxy_id": ""}, {"address": "not a domain"}, {"address": ""}])
async def test_an_introduction_is_checked(lab: Lab, fields: dict[str, str]) -> None:
    """Without an id or with an address that is none there is no stream."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await soon(_listen(lab.proxy(), **fields).read())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
