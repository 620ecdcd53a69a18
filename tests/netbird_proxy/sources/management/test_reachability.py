"""A service whose target cannot be reached is not reported as active, and is again when it can be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from netbird_proxy.accounts.accounts import Accounts
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.model import AccountId, Address
from netbird_proxy.api.tunnels import Dialer
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.management.mappings import ManagementMappings
from netbird_proxy.sources.management.statuses import Status, StatusReports
from netbird_proxy.sources.management.tokens import OneTimeTokens
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy, FakeTunnel, HostDialer
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    PROXY_STATUS_TUNNEL_NOT_CREATED,
    PathMapping,
    ProxyMapping,
    SyncMappingsResponse,
)

pytestmark = pytest.mark.timeout(30)

ACME = AccountId("acme")
ALICE, BOB = "100.64.0.5", "100.64.0.6"


class Overlay(FakeTunnel):
    """A tunnel that knows what it can reach. `away` has the reason by host; an exception there is raised."""

    def __init__(self) -> None:
        super().__init__()
        self.away: dict[str, Any] = {}
        self._moved = asyncio.Event()
        self.asked = 0

    def unreachable(self, address: Address) -> str:
        self.asked += 1
        reason = self.away.get(address.host, "")
        if isinstance(reason, BaseException):
            raise reason
        return reason  # type: ignore[no-any-return]

    async def reachability(self) -> AsyncIterator[None]:
        while True:
            await self._moved.wait()
            self._moved.clear()
            yield

    def move(self, host: str, reason: Any) -> None:
        self.away[host] = reason
        self._moved.set()


class Reports(StatusReports):
    """Statuses as they are reported, in order, each as `(service, is active, error)`."""

    def __init__(self) -> None:
        super().__init__(FakeManagement())
        self.reported: list[tuple[str, bool, str]] = []
        self.some = asyncio.Event()

    def report(self, status: Status) -> None:
        assert status.status in (PROXY_STATUS_ACTIVE, PROXY_STATUS_TUNNEL_NOT_CREATED)
        self.reported.append((status.service, status.status == PROXY_STATUS_ACTIVE, status.error))
        self.some.set()

    async def next(self) -> list[tuple[str, bool, str]]:
        """Wait for the reports of a turn, and take them."""
        await self.some.wait()
        await asyncio.sleep(0)
        self.some.clear()
        taken, self.reported = self.reported, []
        return taken


class Opener:
    def __init__(self, tunnel: FakeTunnel) -> None:
        self.tunnel = tunnel

    def open_tunnel(self, account: Any, proxy: Any) -> tuple[str, AbstractAsyncContextManager[FakeTunnel]]:
        return "fake", self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[FakeTunnel]:
        yield self.tunnel


class Proxy:
    """The parts of a proxy between the mapping stream and the statuses."""

    def __init__(self, directory: Path, tunnel: FakeTunnel, dialer: Dialer | None) -> None:
        self.tunnel = tunnel
        self.statuses = Reports()
        self.accounts = Accounts(
            Opener(tunnel),  # type: ignore[arg-type]  # only tunnels are opened here
            FakeManagement(),  # type: ignore[arg-type]  # nothing registers
            directory,
            listening=None,
            on_change=lambda state: self.mappings.on_account(state),
            on_map=lambda _account: None,
            on_reachability=lambda account: self.mappings.on_reachability(account),
            connections=100,
        )
        hooks = StepHooks(dialer=("fake", dialer or self.accounts.dialer(ACME)))
        self.transcript = Transcript(hooks=hooks)
        self.mappings = ManagementMappings(
            Codec(load_hooks([], defaults=(), core_claims=())),
            self.transcript.routing,
            self.accounts,
            OneTimeTokens(),
            self.statuses,
            self.transcript.app.exchanges,
            RevokedSessions(),
            private=False,
            has_certificate=lambda _host: False,
        )
        self.mappings.stream_opened()

    async def apply(self, *mappings: ProxyMapping) -> None:
        await self.mappings.apply(SyncMappingsResponse(mapping=mappings))


@asynccontextmanager
async def proxy(directory: Path, tunnel: FakeTunnel, dialer: Dialer | None = None) -> AsyncIterator[Proxy]:
    made = Proxy(directory, tunnel, dialer)
    async with asyncio.TaskGroup() as group:
        await made.accounts.run(FakeProxy(), group)
        yield made
        await made.accounts.stop()


def service(name: str, *targets: str) -> ProxyMapping:
    paths = [PathMapping(path=f"/{number or ''}", target=f"http://{host}:80") for number, host in enumerate(targets)]
    return ProxyMapping(id=name, account_id=ACME, domain=f"{name}.example", path=paths)


async def test_a_target_that_is_away_is_reported_until_it_is_back(tmp_path: Path) -> None:
    """The status names the reason, and each change is reported once, for the services that it concerns."""
    tunnel = Overlay()
    tunnel.away[ALICE] = "peer alice is offline"
    async with proxy(tmp_path, tunnel) as made:
        await made.apply(service("a", ALICE), service("b", BOB), service("both", BOB, ALICE))
        away = "tunnel_not_ready: peer alice is offline"
        reported = await made.statuses.next()
        assert reported == [("a", False, away), ("b", True, ""), ("both", False, away)]
        tunnel.move(ALICE, "")
        assert await made.statuses.next() == [("a", True, ""), ("both", True, "")]
        tunnel.move(BOB, "peer bob is offline")
        reported = await made.statuses.next()
        assert [name for name, active, _ in reported if not active] == ["b", "both"]


async def test_services_without_targets_behind_the_tunnel_depend_on_no_peer(tmp_path: Path) -> None:
    """A target that is not reached through the tunnel is active, whatever the tunnel thinks of its address."""
    tunnel = Overlay()
    tunnel.away[ALICE] = "peer alice is offline"
    async with proxy(tmp_path, tunnel, dialer=HostDialer()) as made:
        await made.apply(service("a", ALICE))
        assert await made.statuses.next() == [("a", True, "")]
        assert tunnel.asked == 0


async def test_a_removed_service_is_not_reported_again(tmp_path: Path) -> None:
    """After the removal a change of its target reports nothing, and nothing of it is kept."""
    tunnel = Overlay()
    async with proxy(tmp_path, tunnel) as made:
        await made.apply(service("a", ALICE), service("b", ALICE))
        await made.statuses.next()
        removed = service("a", ALICE)
        removed.type = 2
        await made.apply(removed)
        await made.statuses.next()
        tunnel.move(ALICE, "peer alice is offline")
        assert [name for name, _, _ in await made.statuses.next()] == ["b"]
        assert set(made.mappings._reasons[ACME]) == {"b"}


async def test_an_older_plugin_s_tunnel_reaches_everything(tmp_path: Path) -> None:
    """A tunnel without `unreachable` and `reachability` is active as soon as it is up."""
    async with proxy(tmp_path, FakeTunnel()) as made:
        await made.apply(service("a", ALICE))
        assert await made.statuses.next() == [("a", True, "")]


@pytest.mark.parametrize("answer", [RuntimeError("wrong"), asyncio.CancelledError(), None, 7, b"bytes"])
async def test_a_plugin_that_answers_nonsense_closes_nothing(tmp_path: Path, answer: Any) -> None:
    """A failure or a wrong type counts as reachable, is counted, and ends neither the tunnel nor other reports."""
    counted: list[str] = []
    tunnel = Overlay()
    tunnel.away[ALICE] = answer
    async with proxy(tmp_path, tunnel) as made:
        made.accounts.count = counted.append
        await made.apply(service("a", ALICE), service("b", BOB))
        assert await made.statuses.next() == [("a", True, ""), ("b", True, "")]
        assert counted[0] == "reachability_failed"
        tunnel.move(BOB, "x" * 5000)
        ((name, active, error),) = await made.statuses.next()
        assert (name, active) == ("b", False)
        assert len(error) < 400


async def test_a_plugin_whose_changes_fail_keeps_its_tunnel(tmp_path: Path) -> None:
    """An iterator of changes that raises is logged; the tunnel and its services stay."""

    class Failing(Overlay):
        async def reachability(self) -> AsyncIterator[None]:
            yield
            raise RuntimeError("no more changes")

    with structlog.testing.capture_logs() as logs:
        async with proxy(tmp_path, Failing()) as made:
            await made.apply(service("a", ALICE))
            await made.statuses.next()
            async with asyncio.timeout(10):
                while not any(entry["event"] == "tunnel.reachability_failed" for entry in logs):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert made.accounts.tunnel(ACME) is made.tunnel


async def test_promise_10_peers_that_come_and_go_all_the_time_cost_a_bounded_number_of_reports(tmp_path: Path) -> None:
    """A flood of changes is reported once in the interval, with the state at that time."""
    tunnel = Overlay()
    async with proxy(tmp_path, tunnel) as made:
        await made.apply(service("a", ALICE))
        await made.statuses.next()
        for change in range(500):
            tunnel.move(ALICE, f"reason {change}")
            await asyncio.sleep(0)
        assert len(made.statuses.reported) <= 1
        await made.statuses.next()
        assert (await made.statuses.next())[-1][2].endswith("reason 499")
