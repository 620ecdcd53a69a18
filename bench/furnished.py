"""Management as people run it, on a store that the bench filled: one account, its members, and many services."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from examples.demo.processes import BIN, Process
from examples.demo.stack import Stack, stack
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, GroupId, PeerId, ProxyId, ServiceId, new_id
from netbird_management.model.services import Capabilities, Service, ServiceMeta, Target, TargetOptions, TargetType
from netbird_management.operations.accounts import create_account
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration, register_proxy
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.users import create_token
from netbird_management.secrets.session_tokens import new_key_pair
from netbird_management.store import service_rows as rows
from netbird_management.store.directory import prepare_directory
from netbird_management.store.models import ServiceRow
from netbird_management.store.state import State

CLUSTER = "px.test"
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Store:
    """The parts of a furnished account that the bench uses.

    Attributes:
        personal: an access token of the account's owner.
        token: a proxy's.
        address: the overlay address of the member that private services admit.
        service_id: a public service, `s1`.
    """

    account_id: AccountId
    personal: str
    token: str
    address: str
    service_id: str


@dataclass(frozen=True)
class Running:
    """The process, and its ports as `host:port`."""

    process: Process
    rest: str
    grpc: str

    def cpu(self) -> float:
        """Seconds of CPU that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass
class House:
    """A store, management on it, and a place for real proxies."""

    store: Store
    host: Running
    stack: Stack


def _service(account_id: AccountId, i: int, group: GroupId) -> Service:
    target = Target(
        CLUSTER, TargetType.CLUSTER, "http", 9000, host="127.0.0.1", options=TargetOptions(direct_upstream=True)
    )
    return Service(
        id=ServiceId(new_id()),
        account_id=account_id,
        name=f"s{i}",
        domain=f"s{i}.{CLUSTER}",
        proxy_cluster=CLUSTER,
        meta=ServiceMeta(created_at=now()),
        targets=(target,),
        private=i % 2 == 0,
        access_groups=(group,) if i % 2 == 0 else (),
    )


async def furnish(directory: Path, services: int) -> Store:
    """A store with one account, a member and many services, every other one private."""
    vault = prepare_directory(directory)
    async with State.open(directory, vault) as state:
        account_id, owner = await create_account(state, email="bench@lab.test", name="Bench")
        peer, _ = await create_stock_peer(state, account_id, name="member", user_id=None)
        group = await create_group(state, account_id, name="members", peers=[PeerId(peer.id)])
        capabilities = Capabilities(True, False, False, True, True)
        await register_proxy(state, Registration(ProxyId("p"), "s", CLUSTER, "", None, None, capabilities))
        private_key, public_key = new_key_pair()
        sealed = vault.seal(private_key)
        made = [_service(account_id, i, group.id) for i in range(services)]
        async with state.change(account_id) as transaction:
            for service in made:
                transaction.session.add(
                    ServiceRow(
                        id=service.id,
                        account_id=account_id,
                        session_private_key=sealed,
                        session_public_key=public_key,
                        created_at=service.meta.created_at,
                        **rows.columns(service),
                    )
                )
            transaction.touch(services=[service.id for service in made])
        _, personal = await create_token(state, owner, name="bench", days=1, created_by=owner.id)
        _, token = await create_proxy_token(state, name="bench", account_id=None, created_by="bench")
        return Store(account_id, personal, token, str(peer.ip), made[1].id)


async def house(exits: AsyncExitStack, directory: Path, services: int, *, plugins: Sequence[str] = ()) -> House:
    """Management on a fresh store in a directory of its own; it ends with `exits`.

    Args:
        plugins: those that it loads; its own default without any.
    """
    home = directory / f"with-{services}"
    home.mkdir()
    store = await furnish(home / "management", services)
    config = home / "management.toml"
    named = f"plugins = [{', '.join(repr(plugin) for plugin in plugins)}]\n" if plugins else ""
    config.write_text(
        f'{named}state_directory = "{home / "management"}"\n'
        '[rest]\nlisten = "127.0.0.1:0"\n[grpc]\nlisten = "127.0.0.1:0"\n'
    )
    running = await exits.enter_async_context(stack(home))
    argv = [str(BIN / "netbird-management"), "run", "--config", str(config)]
    process = await running.processes.start("management", argv)
    ready = await process.until_line(r"^ready rest=(\S+) grpc=(\S+)", timeout=120)
    running.token, running.grpc = store.token, f"http://{ready[2]}"
    return House(store, Running(process, ready[1], ready[2]), running)
