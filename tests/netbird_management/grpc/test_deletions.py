"""Deleted services and accounts leave no rows in the tables that management keeps by their ids."""

import asyncio
from collections.abc import Sized
from typing import Any

from netbird_host.login_throttle import Source
from netbird_management.compute.network_map import NetworkMaps
from netbird_management.grpc.connections import Connections
from netbird_management.grpc.login_service import Logins
from netbird_management.grpc.mappings import Mappings
from netbird_management.grpc.recorder import Recorder
from netbird_management.grpc.server import _follow_changes
from netbird_management.login.gates import SessionGates
from netbird_management.login.guess_store import load_source, store_source
from netbird_management.model.ids import ServiceId
from netbird_management.model.snapshot import Change, Changes
from tests.netbird_management.conftest import Api
from tests.netbird_management.grpc.conftest import Lab, eventually

HERE = "203.0.113.7"


class Tables:
    """The parts of a gRPC server that keep tables by service and by account, following the account's changes."""

    def __init__(self, lab: Lab) -> None:
        state = lab.home.state
        self.maps = NetworkMaps(lab.hooks)
        self.mappings = Mappings(state, lab.hooks, Connections(), Recorder(state))
        self.logins = Logins(state, SessionGates(lab.hooks, lab.host))

    def fill(self, lab: Lab, service_id: ServiceId) -> None:
        """A failed login at the service, and its mapping; `lab` has no peers but those of its proxies."""
        account = lab.home.snapshot
        self.logins._throttle.reserve(service_id, HERE)
        self.mappings._of(account.services[service_id], account)

    @property
    def by_service(self) -> tuple[Sized, ...]:
        return self.mappings._built, self.logins._throttle._failures

    async def sizes(self) -> list[int]:
        return [*map(len, self.by_service), len(self.maps._accounts)]

    async def follow(self, changes: Changes) -> None:
        await _follow_changes(self.mappings, self.logins, self.maps, changes)


async def test_deleted_services_and_accounts_leave_no_rows(lab: Lab, api: Api) -> None:
    """Deleting a service removes its mapping and its failed logins from memory, and its failed logins from the store.
    Deleting the account does so for its other services, and removes its rules for network maps."""
    first, second, third = [(await lab.service(name)).id for name in ("one", "two", "three")]
    peer = await lab.stock_peer("phone")
    tables = Tables(lab)
    state = lab.home.state
    for service_id in (first, second, third):
        tables.fill(lab, service_id)
        await store_source(state, service_id, HERE, Source(failures=3))
    tables.maps.of(lab.home.snapshot, peer)
    assert await tables.sizes() == [3, 3, 1]
    with state.snapshots.subscribe() as changes:
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(tables.follow(changes))

            await api.ok("DELETE", f"/api/reverse-proxies/services/{first}")
            assert await eventually(tables.sizes, lambda sizes: sizes[0] == 2) == [2, 2, 1]
            assert await load_source(state, first, HERE) == Source()
            assert (await load_source(state, second, HERE)).failures == 3

            await api.ok("DELETE", f"/api/accounts/{lab.home.account_id}")
            assert await eventually(tables.sizes, lambda sizes: sizes[2] == 0) == [0, 0, 0]
            assert await load_source(state, second, HERE) == Source()
            following.cancel()


async def test_a_service_made_and_deleted_with_its_account_leaves_no_rows(lab: Lab) -> None:
    """A subscriber that was slow gets one notice of all; the services that it never saw are forgotten too."""
    tables, snapshots = Tables(lab), lab.home.state.snapshots
    with snapshots.subscribe() as changes:
        before = lab.home.snapshot
        service = await lab.service("short")
        tables.fill(lab, service.id)
        merged: Any = await anext(changes)
        changes.put(Change(merged.account_id, before, None, merged.touched))
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(tables.follow(changes))
            assert await eventually(tables.sizes, lambda sizes: not any(sizes)) == [0, 0, 0]
            following.cancel()
