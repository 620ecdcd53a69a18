"""However a proxy loses its mapping stream, it comes back by itself, and then serves what management has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from netbird_management.model.accounts import Peer
from netbird_management.operations.accounts import create_account
from netbird_management.operations.services import delete_service
from netbird_management.secrets.vault import Vault
from netbird_management.store.state import State
from netbird_proxy.sources.management.channel import Connection, ManagementClient
from netbird_proxy.sources.management.stream import MappingStream
from netbird_proxy.testing.faults import TcpRelay
from netbird_wire.proxy_service_pb2 import ProxyCapabilities
from tests.netbird_management.conftest import Home
from tests.netbird_management.grpc.conftest import CLUSTER, Lab, lab_for, peer_target
from tests.netbird_proxy.sources.management.test_mappings import Line as ProxySide

SECONDS = 30


@dataclass
class House:
    """Management on a real store, a relay, and a real proxy's end of the stream."""

    home: Home
    directory: Path
    relay: TcpRelay
    exits: AsyncExitStack
    lab: Lab
    peer: Peer
    proxy: ProxySide
    client: ManagementClient

    def has(self) -> dict[str, int]:
        """What management has: domain and port of each service."""
        return {service.domain: service.targets[0].port for service in self.home.snapshot.services.values()}

    def serves(self) -> dict[str, int]:
        """What the proxy has in force."""
        return {
            str(served.mapping.host): served.mapping.routes[0].upstreams[0].address.port
            for served in self.proxy.routing
            if not served.refused
        }

    async def same(self) -> None:
        async with asyncio.timeout(SECONDS):
            while self.serves() != self.has():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)

    async def streamless(self) -> None:
        async with asyncio.timeout(SECONDS):
            while self.client.connected:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    async with State.open(tmp_path, Vault.create(tmp_path)) as state:
        account_id, owner = await create_account(state, email="admin@lab.test", name="Admin")
        yield Home(state, account_id, owner)


@asynccontextmanager
async def house(home: Home, directory: Path) -> AsyncIterator[House]:
    """A proxy that is connected, with two services, and that soon loses patience with a silent line."""
    async with AsyncExitStack() as exits:
        lab = await exits.enter_async_context(lab_for(home, directory))
        async with TcpRelay("127.0.0.1", lab.port).running() as relay:
            connection = Connection(
                url=f"http://127.0.0.1:{relay.port}",
                token=lab.token,
                proxy_id="proxy",
                version="1",
                domain=CLUSTER,
                allow_insecure=True,
                silence=0.3,
                patience=1.0,
            )
            proxy = ProxySide(directory)
            client = ManagementClient(connection)
            mappings = MappingStream(client, ProxyCapabilities, proxy.mappings, pick=lambda _low, high: high / 10)
            peer = await lab.stock_peer("upstream")
            for number, name in enumerate(("stays", "goes", "moves")):
                await lab.service(name, targets=(peer_target(peer, 9000 + number),))
            try:
                async with asyncio.TaskGroup() as group:
                    stream = group.create_task(mappings.run())
                    yield House(home, directory, relay, exits, lab, peer, proxy, client)
                    stream.cancel()
            finally:
                await client.close()


async def reset(house: House) -> None:
    """The connection is reset, and for a while no other can be made."""
    house.relay.apply("break")
    await house.streamless()


async def silence(house: House) -> None:
    """Nothing comes through any more, and nothing says so."""
    house.relay.apply("freeze")
    await house.streamless()


async def nonsense(house: House) -> None:
    """Bytes arrive as others than were sent, until nothing can be read.

    A turned bit in a name can be read, and without TLS nobody knows of it: such a line ends before what it says counts.
    """
    house.relay.apply("garble")
    async with asyncio.timeout(SECONDS):
        while house.client.connected:
            await changed(house)
            await asyncio.sleep(0.05)
    house.relay.apply("break")
    await house.streamless()


async def eviction(house: House) -> None:
    """Somebody connects under the proxy's id, with its token."""
    other = house.lab.proxy(proxy_id="proxy")
    await other.connect()


async def another_process(house: House) -> None:
    """Management stops in good order, and is started anew on its store."""
    token = house.lab.token
    await house.exits.aclose()
    await house.streamless()
    house.lab = await house.exits.enter_async_context(lab_for(house.home, house.directory))
    house.lab.token = token
    house.relay.aim(house.lab.port)


async def changed(house: House) -> None:
    """One service moves on to another port."""
    moving = next(one for one in house.home.snapshot.services.values() if one.name == "moves")
    await house.lab.change(moving, targets=(peer_target(house.peer, moving.targets[0].port + 1),))


LOSSES: tuple[Callable[[House], Awaitable[None]], ...] = (reset, silence, nonsense, eviction, another_process)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: str(loss.__name__))
async def test_what_is_served_after_a_loss_is_what_management_has(
    home: Home, tmp_path: Path, loss: Callable[[House], Awaitable[None]]
) -> None:
    """What was made, changed and deleted meanwhile is there, is new and is gone; and changes arrive again."""
    async with house(home, tmp_path) as made:
        await made.same()
        before = made.serves()
        assert len(before) == 3
        await loss(made)
        gone = next(one for one in home.snapshot.services.values() if one.name == "goes")
        await delete_service(home.state, home.account_id, gone.id)
        await changed(made)
        await made.lab.service("comes", targets=(peer_target(made.peer, 9100),))
        made.relay.heal()
        await made.same()
        assert set(made.serves()) == {f"{name}.{CLUSTER}" for name in ("stays", "moves", "comes")}
        assert made.serves() != before
        await changed(made)
        await made.same()
