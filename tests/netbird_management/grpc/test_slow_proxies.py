"""A proxy that is slow, or whose machine is gone, is nobody else's trouble."""

from dataclasses import replace

import grpc.aio
import httpx
import pytest

from netbird_management.grpc.connections import QUEUE_MESSAGES
from netbird_management.model.services import Target, TargetOptions
from netbird_management.operations.users import create_token
from netbird_management.rest.app import create_app
from netbird_management.store.models import ProxyRow
from netbird_proxy.testing.faults import TcpRelay
from netbird_wire.proxy_service_pb2 import ProxyMapping
from tests.netbird_management.conftest import context_for
from tests.netbird_management.grpc.conftest import FakeProxy, Lab, direct_target, eventually, soon

TEXT = "x" * 4000
FIRST = 9000
LAST = FIRST + QUEUE_MESSAGES + 20


def bulky(port: int) -> tuple[Target, ...]:
    """Targets of nearly the largest mapping: a few fill the 4 MB that gRPC takes for a proxy that reads nothing."""
    headers = tuple((f"x-bulk-{number}", TEXT) for number in range(16))
    options = TargetOptions(direct_upstream=True, custom_headers=headers)
    return tuple(replace(direct_target(port=port), path=f"/{number}", options=options) for number in range(4))


def port_of(mapping: ProxyMapping) -> int:
    return int(mapping.path[0].target.rstrip("/").rpartition(":")[2])


@pytest.mark.parametrize("line", ["open", "frozen"])
async def test_a_proxy_that_takes_nothing_delays_nobody(lab: Lab, line: str) -> None:
    """One stops reading, or its line goes dead: the API answers, and others are told each change, in order. The one
    loses its connection once too much waits for it, and has all when it comes back."""
    home = lab.home
    _, token = await create_token(home.state, home.owner, name="test", days=1, created_by=home.owner.id)
    async with (
        TcpRelay("127.0.0.1", lab.port).running() as relay,
        grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as channel,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(context_for(home))),
            base_url="http://localhost/api",
            headers={"authorization": f"Token {token}"},
        ) as api,
    ):
        slow = FakeProxy(channel, lab.token, proxy_id="slow")
        await slow.connect()
        quick = lab.proxy(proxy_id="quick")
        await quick.connect()
        if line == "frozen":
            relay.apply("freeze")
        service = await lab.service("bulky", targets=bulky(FIRST))
        assert port_of((await quick.next()).mapping[0]) == FIRST
        for port in range(FIRST + 1, LAST + 1):
            service = await soon(lab.change(service, targets=bulky(port)))
            assert port_of((await quick.next()).mapping[0]) == port
            assert (await soon(api.get(f"/reverse-proxies/services/{service.id}"))).status_code == 200

        async def status() -> str:
            async with home.state.read() as session:
                return (await session.get_one(ProxyRow, "slow")).status

        await eventually(status, lambda found: found == "disconnected")
        again = lab.proxy(proxy_id="slow")
        await again.connect()
        assert {port_of(mapping) for mapping in again.mappings.values()} == {LAST}
