"""What the mapping stream says beside mappings: who is asked about again, and what is believed of before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from netbird_proxy.accounts.accounts import Accounts
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.model import AccountId, PublicKey, ServiceId, UserId
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.sources.management.mappings import AT_ONCE, ManagementMappings
from netbird_proxy.sources.management.statuses import StatusReports
from netbird_proxy.sources.management.tokens import OneTimeTokens
from netbird_proxy.testing.fakes import FakeManagement
from netbird_proxy.testing.transcript import Transcript
from netbird_wire.proxy_service_pb2 import (
    PathMapping,
    ProxyMapping,
    Revalidation,
    Revocation,
    SyncMappingsResponse,
)

ACME = AccountId("acme")


class Exchanges:
    """Who was to be asked about again, each with the account's generation at that moment."""

    def __init__(self, generation: Callable[[AccountId], int]) -> None:
        self.asked: list[tuple[object, ...]] = []
        self._generation = generation

    def revalidate(
        self,
        *,
        account: AccountId | None = None,
        user: UserId | None = None,
        peer: PublicKey | None = None,
        service: ServiceId | None = None,
    ) -> int:
        self.asked.append((account, user, peer, service, self._generation(ACME)))
        return 1


class Line:
    """The stream's end in the proxy, on real parts but for the process."""

    def __init__(self, directory: Path) -> None:
        management = FakeManagement()
        hooks = load_hooks([], defaults=(), core_claims=())
        self.accounts = Accounts(
            hooks,
            management,  # type: ignore[arg-type]  # nothing registers here
            directory,
            listening=None,
            on_change=lambda _state: None,
            on_map=lambda _account: None,
            connections=100,
        )
        self.exchanges = Exchanges(self.accounts.generation)
        self.revocations = RevokedSessions()
        self.routing = Transcript().routing
        self.mappings = ManagementMappings(
            Codec(hooks),
            self.routing,
            self.accounts,
            OneTimeTokens(),
            StatusReports(management),
            self.exchanges,
            self.revocations,
            private=False,
            has_certificate=lambda _host: False,
        )
        self.mappings.stream_opened()


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


async def test_promise_8_what_was_answered_before_serves_nobody_after(line: Line) -> None:
    """The generation is up before anybody is asked about: else the answer would be the one that is over."""
    before = line.accounts.generation(ACME)
    await line.mappings.apply(
        SyncMappingsResponse(
            revalidations=[
                Revalidation(account_id=ACME, user_id="bob"),
                Revalidation(account_id=ACME, peer_key="key", service_id="wiki"),
            ]
        )
    )

    assert line.exchanges.asked == [
        (ACME, "bob", None, None, before + 2),
        (ACME, None, "key", "wiki", before + 2),
    ]
    assert line.accounts.generation(AccountId("other")) == 0


async def test_promise_8_after_a_gap_everybody_is_asked_about(line: Line) -> None:
    """Nothing told of what happened while no stream was up; the end of the snapshot is where that is made good."""
    others = AccountId("other")
    before = line.accounts.generation(others)
    await line.mappings.apply(SyncMappingsResponse())
    assert line.exchanges.asked == []
    await line.mappings.apply(SyncMappingsResponse(initial_sync_complete=True))

    assert [asked[:4] for asked in line.exchanges.asked] == [(None, None, None, None)]
    assert line.accounts.generation(others) == before + 1


async def test_an_event_about_no_account_is_about_all(line: Line) -> None:
    """What cannot be read narrowly is read widely."""
    await line.mappings.apply(SyncMappingsResponse(revalidations=[Revalidation()]))

    assert line.exchanges.asked == [(None, None, None, None, 1)]


async def test_promise_8_revoked_sessions_are_refused_and_their_streams_asked_about(line: Line) -> None:
    """By subject the subject's own; by hash everybody's of the account, as a hash says nothing of whose it is."""
    moment = Timestamp(seconds=500, nanos=500_000_000)
    await line.mappings.apply(
        SyncMappingsResponse(
            revocations=[
                Revocation(account_id=ACME, subject="bob", not_before=moment),
                Revocation(account_id=ACME, token_hash=b"h" * 32, not_before=moment),
            ]
        )
    )

    revoked = line.revocations.revoked
    assert revoked(ACME, subject="bob", token_hash=b"?", issued_at=500)
    assert not revoked(ACME, subject="bob", token_hash=b"?", issued_at=501)
    assert revoked(ACME, subject="alice", token_hash=b"h" * 32, issued_at=900)
    assert [asked[:2] for asked in line.exchanges.asked] == [(ACME, "bob"), (ACME, None)]


def page(service: str) -> ProxyMapping:
    return ProxyMapping(
        id=service,
        account_id=ACME,
        domain=f"{service}.example",
        path=[PathMapping(path="/", target="http://10.0.0.1:80")],
    )


async def test_promise_7_what_did_not_come_with_the_snapshot_is_gone(line: Line) -> None:
    """Deleted while no stream was up: it goes with the end of the first whole snapshot, and not before."""
    await line.mappings.apply(SyncMappingsResponse(mapping=[page("a"), page("b")], initial_sync_complete=True))
    line.mappings.stream_lost()
    line.mappings.stream_opened()
    await line.mappings.apply(SyncMappingsResponse(mapping=[page("b")]))
    assert {served.mapping.id for served in line.routing} == {"a", "b"}
    await line.mappings.apply(SyncMappingsResponse(mapping=[page("c")], initial_sync_complete=True))

    assert {served.mapping.id for served in line.routing} == {"b", "c"}


async def test_a_refused_version_leaves_no_tunnel(line: Line) -> None:
    """An account has one as long as a mapping that is served needs it; with a service that moves, it moves."""
    await line.mappings.apply(SyncMappingsResponse(mapping=[page("a")], initial_sync_complete=True))
    assert line.accounts.state(ACME) is not None
    refused = page("a")
    refused.private = True  # nobody here understands it
    await line.mappings.apply(SyncMappingsResponse(mapping=[refused]))
    assert [served.refused != "" for served in line.routing] == [True]
    assert line.accounts.state(ACME) is None

    moved = page("a")
    moved.account_id = "other"
    await line.mappings.apply(SyncMappingsResponse(mapping=[page("a"), moved]))
    assert line.accounts.state(ACME) is None
    assert line.accounts.state(AccountId("other")) is not None

    late = page("b")  # nothing is wrong with it but that its host is taken
    late.domain = "a.example"
    await line.mappings.apply(SyncMappingsResponse(mapping=[late]))
    assert line.accounts.state(ACME) is None


async def test_promise_7_half_a_snapshot_removes_nothing(line: Line) -> None:
    """The stream was lost before the snapshot's end: nothing may be concluded from what did not come."""
    await line.mappings.apply(SyncMappingsResponse(mapping=[page("a"), page("b")], initial_sync_complete=True))
    line.mappings.stream_opened()
    await line.mappings.apply(SyncMappingsResponse(mapping=[page("b")]))
    line.mappings.stream_lost()
    await line.mappings.apply(SyncMappingsResponse(initial_sync_complete=True))

    assert {served.mapping.id for served in line.routing} == {"a", "b"}


async def test_promise_7_many_mappings_let_requests_through(line: Line) -> None:
    """A large batch is put in force in slices, between which others get their turn."""
    turns = 0
    over = False

    async def others() -> None:
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(others())
        await line.mappings.apply(SyncMappingsResponse(mapping=[page(f"s{number}") for number in range(500)]))
        over = True

    assert len(line.routing) == 500
    assert turns > 500 / AT_ONCE


@pytest.mark.parametrize("size", [3, 3 * AT_ONCE])
async def test_promise_7_hosts_that_change_hands_do_so_in_one_step(line: Line, size: int) -> None:
    """Services that trade places in a batch of any size: at no moment is either of them without a route."""
    await line.mappings.apply(SyncMappingsResponse(mapping=[page(f"s{number}") for number in range(size)]))
    closed: list[set[str]] = []
    line.routing.on_change = lambda _: closed.append(
        {served.mapping.host for served in line.routing if "another service" in served.refused}
    )
    traded = [page(f"s{number}") for number in range(size)]
    for one, other in ((0, 1), (size - 1, 2)):
        traded[one].domain, traded[other].domain = traded[other].domain, traded[one].domain
    await line.mappings.apply(SyncMappingsResponse(mapping=traded))

    assert closed
    assert not set().union(*closed)
