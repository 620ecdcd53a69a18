"""What one change costs, in steps of the interpreter and in memory: as much with many services as with few."""

import gc
import shutil
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from netbird_management.compute.network_map import NetworkMaps
from netbird_management.model.accounts import Group, Peer
from netbird_management.model.clock import now
from netbird_management.model.ids import ServiceId, new_id
from netbird_management.model.services import Service, ServiceMeta, Target, TargetType
from netbird_management.operations.accounts import create_account
from netbird_management.operations.peers import set_connected
from netbird_management.operations.users import create_token
from netbird_management.rest.app import create_app
from netbird_management.secrets.session_tokens import new_key_pair
from netbird_management.secrets.vault import Vault
from netbird_management.store import service_rows as rows
from netbird_management.store.models import ServiceRow
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import UPDATE_TYPE_REMOVED
from tests.netbird_management.conftest import Home, context_for
from tests.netbird_management.grpc.conftest import (
    CLUSTER,
    FakeProxy,
    Lab,
    direct_target,
    lab_for,
    peer_target,
    register,
)

FEW, MANY = 100, 10_000


@dataclass
class Work:
    """Bytecodes that ran, and bytes that were held at once beyond those before."""

    steps: int = 0
    bytes: int = 0


@contextmanager
def counted() -> Iterator[Work]:
    """What this thread does meanwhile, whoever asked for it; what is done in C shows as the memory that it takes."""
    work = Work()

    def local(_frame: FrameType, event: str, _argument: Any) -> Any:
        work.steps += event == "opcode"
        return local

    def called(frame: FrameType, _event: str, _argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    gc.collect()
    gc.disable()
    before = sys.gettrace()
    tracemalloc.start()
    held = tracemalloc.get_traced_memory()[0]
    sys.settrace(called)
    try:
        yield work
    finally:
        sys.settrace(before)
        work.bytes = tracemalloc.get_traced_memory()[1] - held
        tracemalloc.stop()
        gc.enable()


@dataclass
class House:
    """A lab with many services, a proxy that is connected, and its API."""

    lab: Lab
    proxy: FakeProxy
    api: httpx.AsyncClient
    peer: Peer
    groups: tuple[Group, Group]
    ids: dict[str, str]
    round: int = 0

    def body(self, name: str, **fields: Any) -> dict[str, Any]:
        self.round += 1
        target = {
            "target_id": CLUSTER,
            "target_type": "cluster",
            "protocol": "http",
            "host": "127.0.0.1",
            "port": 9000 + self.round,
            "enabled": True,
            "options": {"direct_upstream": True},
        }
        return {"name": name, "domain": f"{name}.{CLUSTER}", "enabled": True, "targets": [target], **fields}

    async def told(self, answer: httpx.Response) -> dict[str, Any]:
        """The API's answer, once the proxy was told, too."""
        assert answer.status_code == 200, answer.text
        assert (await self.proxy.next()).mapping
        found: dict[str, Any] = answer.json()
        return found


@asynccontextmanager
async def house_of(home: Home, directory: Path, services: int) -> AsyncIterator[House]:
    async with lab_for(home, directory) as lab:
        peer = await lab.stock_peer("member")
        groups = await lab.group("one", peer), await lab.group("two", peer)
        await filled(home, groups[0], services)
        kept = {
            "public": await lab.service("public"),
            "private": await lab.service("private", groups[0]),
            "peers": await lab.service("peers", targets=(peer_target(peer),)),
        }
        _, token = await create_token(home.state, home.owner, name="test", days=1, created_by=home.owner.id)
        proxy = lab.proxy()
        await proxy.connect()
        assert len(proxy.mappings) == services + len(kept)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(context_for(home))),
            base_url="http://localhost/api/reverse-proxies",
            headers={"authorization": f"Token {token}"},
        ) as api:
            yield House(lab, proxy, api, peer, groups, {name: service.id for name, service in kept.items()})


async def filled(home: Home, group: Group, services: int) -> None:
    """Half of them private; a tenth of the others listen on a port of their own."""
    private_key, public_key = new_key_pair()
    sealed, moment = home.state.vault.seal(private_key), now()
    made = []
    for i in range(services):
        service = Service(
            id=ServiceId(new_id()),
            account_id=home.account_id,
            name=f"s{i}",
            domain=f"s{i}.{CLUSTER}",
            proxy_cluster=CLUSTER,
            meta=ServiceMeta(created_at=moment),
            targets=(direct_target(),),
            private=i % 2 == 0,
            access_groups=(group.id,) if i % 2 == 0 else (),
        )
        if i % 20 == 1:
            target = Target("elsewhere", TargetType.CLUSTER, "tcp", 9000, host="127.0.0.1")
            service = replace(service, mode="tcp", listen_port=20_000 + i, targets=(target,))
        made.append(service)
    columns = [
        {
            "id": service.id,
            "account_id": home.account_id,
            "session_private_key": sealed,
            "session_public_key": public_key,
            "created_at": moment,
            **rows.columns(service),
        }
        for service in made
    ]
    async with home.state.change(home.account_id) as transaction:
        await transaction.session.execute(insert(ServiceRow), columns)
        transaction.touch(services=[service.id for service in made])


async def another_target(house: House) -> None:
    await house.told(await house.api.put(f"/services/{house.ids['public']}", json=house.body("public")))


async def other_members(house: House) -> None:
    body = house.body("private", private=True, access_groups=[house.groups[house.round % 2].id])
    await house.told(await house.api.put(f"/services/{house.ids['private']}", json=body))


async def come_and_gone(house: House) -> None:
    made = await house.told(await house.api.post("/services", json=house.body("new")))
    assert (await house.api.delete(f"/services/{made['id']}")).status_code == 200
    assert (await house.proxy.next()).mapping[0].type == UPDATE_TYPE_REMOVED


async def own_port(house: House) -> None:
    target = {"target_id": house.peer.id, "target_type": "peer", "protocol": "tcp", "port": 22, "enabled": True}
    body = house.body("stream", mode="tcp", targets=[target])
    made = await house.told(await house.api.post("/services", json=body))
    assert made["listen_port"]
    assert (await house.api.delete(f"/services/{made['id']}")).status_code == 200
    assert (await house.proxy.next()).mapping[0].type == UPDATE_TYPE_REMOVED


async def presence(house: House) -> None:
    house.round += 1
    assert await set_connected(
        house.lab.home.state, house.peer, started_ns=house.peer.stream_started_ns + house.round, connection_ip=""
    )


CHANGES: tuple[Callable[[House], Awaitable[None]], ...] = (
    another_target,
    other_members,
    come_and_gone,
    own_port,
    presence,
)


async def work_of(directory: Path, migrated: Path, services: int) -> dict[str, Work]:
    shutil.copytree(migrated, directory)
    found = {}
    async with State.open(directory, Vault.create(directory)) as state:
        account_id, owner = await create_account(state, email="admin@lab.test", name="Admin")
        async with house_of(Home(state, account_id, owner), directory, services) as house:
            for change in CHANGES:
                await change(house)  # statements are compiled, once
                await change(house)
                # The least of three: on a busy machine, timers of streams and transactions run in between.
                works = []
                for _ in range(3):
                    with counted() as work:
                        await change(house)
                    works.append(work)
                found[change.__name__] = min(works, key=lambda work: work.steps)
            found["map"] = await work_of_a_map(house)
    return found


async def work_of_a_map(house: House) -> Work:
    """The map of a proxy's node once other members may use one private service."""
    home, service = house.lab.home, house.lab.home.snapshot.services[ServiceId(house.ids["private"])]
    node = house.lab.peer()
    assert (await register(house.proxy, service, peer=node)).success
    maps, cost = NetworkMaps(house.lab.hooks), Work()
    for _ in range(3):
        peer = home.snapshot.peer_by_key(node.key)
        assert peer is not None
        with counted() as work:
            found = maps.of(home.snapshot, peer)
        assert found.remotePeers
        cost = work
        await other_members(house)
    return cost


@pytest.mark.timeout(180)
async def test_the_cost_of_a_change_is_that_of_what_changed(tmp_path: Path, migrated: Path) -> None:
    """Domains, ports, the snapshot, its indexes, what proxies are told: nothing looks at each service that stayed."""
    few = await work_of(tmp_path / "few", migrated, FEW)
    many = await work_of(tmp_path / "many", migrated, MANY)
    for name, work in few.items():
        assert many[name].steps < work.steps * 1.1, (name, work, many[name])
        assert many[name].bytes < work.bytes * 1.1 + 16_384, (name, work, many[name])
