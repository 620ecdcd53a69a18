"""The mapping stream: who gets what, when, in which form, and how a connection ends."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from sqlalchemy import select

from netbird_management.grpc.connections import QUEUE_MESSAGES, Connection, Connections
from netbird_management.grpc.interceptors import AuthenticatedProxy
from netbird_management.grpc.mapping_stream import MappingStreams
from netbird_management.grpc.mappings import Mappings
from netbird_management.grpc.recorder import Recorder
from netbird_management.grpc.server import Timing
from netbird_management.model.accounts import Role
from netbird_management.model.ids import ProxyId, ServiceId
from netbird_management.model.services import Capabilities, ProxyStatus
from netbird_management.operations.accounts import create_account
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxies import Registration
from netbird_management.operations.proxy_tokens import (
    create_proxy_token,
    find_proxy_token,
    proxy_tokens_of,
    revoke_proxy_token,
)
from netbird_management.operations.services import delete_service
from netbird_management.operations.statuses import proxy_statuses
from netbird_management.operations.users import create_user, update_user
from netbird_management.store.models import ProxyRow, ServiceRow
from netbird_management.store.service_rows import columns
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    PROXY_STATUS_TUNNEL_NOT_CREATED,
    UPDATE_TYPE_CREATED,
    UPDATE_TYPE_MODIFIED,
    UPDATE_TYPE_REMOVED,
    ProxyCapabilities,
    SendStatusUpdateRequest,
    SyncMappingsAck,
    SyncMappingsInit,
    SyncMappingsRequest,
    SyncMappingsResponse,
)
from netbird_wire.tokens import stored_hash
from tests.netbird_management.conftest import Home, proved_domain
from tests.netbird_management.grpc.conftest import CLUSTER, FakeProxy, Lab, eventually, lab_for, peer_target, soon

OLD = ProxyCapabilities(supports_custom_ports=True)
"""A proxy that does not say that it fails closed on private services."""
Code = grpc.StatusCode


async def ended(proxy: FakeProxy) -> tuple[grpc.StatusCode, str]:
    async def read_on() -> None:
        while True:
            await proxy.next()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_on()
    return caught.value.code(), caught.value.details() or ""


async def stored(lab: Lab, service_id: ServiceId, wanted: int) -> list[ProxyStatus]:
    """What is stored of a service's fate on proxies, once it is of so many."""
    return await eventually(
        lambda: proxy_statuses(lab.home.state, service_id), lambda statuses: len(statuses) == wanted
    )


async def status_becomes(lab: Lab, wanted: str, proxy_id: str = "proxy-1") -> None:
    await eventually(lambda: _status(lab, proxy_id), lambda status: status == wanted)


async def test_the_snapshot_of_nothing(lab: Lab) -> None:
    """One empty message that says it is all, and what this management has."""
    [message] = await lab.proxy().connect()
    assert (list(message.mapping), message.initial_sync_complete) == ([], True)
    assert set(message.management_extensions) == {
        "access_log_batch",
        "client_address",
        "peer_key",
        "plugin_settings",
        "principal",
        "proxy_id",
        "required_groups",
        "revalidations",
        "revocations",
        "wireguard_endpoint",
    }


async def test_a_proxy_gets_what_is_its_to_serve(lab: Lab) -> None:
    """Its cluster's enabled services; created, each with a one-time token of its own."""
    group = await lab.group("g")
    kept = [await lab.service("app", group), await lab.service("site")]
    await lab.change(await lab.service("off"), enabled=False)
    proxy = lab.proxy()
    await proxy.connect()
    assert set(proxy.mappings) == {service.id for service in kept}
    assert {mapping.type for mapping in proxy.mappings.values()} == {UPDATE_TYPE_CREATED}
    assert len({mapping.auth_token for mapping in proxy.mappings.values()} - {""}) == 2
    elsewhere = lab.proxy(proxy_id="proxy-2", cluster="elsewhere.test")
    await elsewhere.connect()
    assert elsewhere.mappings == {}


async def test_a_private_service_goes_to_capable_proxies_alone(lab: Lab) -> None:
    """In the snapshot and afterwards; and the operator can read why it is withheld."""
    group = await lab.group("g")
    before = await lab.service("before", group)
    capable, old = lab.proxy(), lab.proxy(proxy_id="old", capabilities=OLD)
    await capable.connect()
    await old.connect()
    assert (set(capable.mappings), set(old.mappings)) == ({before.id}, set())
    after = await lab.service("after", group)
    await capable.next()
    assert set(capable.mappings) == {before.id, after.id}
    [told] = (await old.next()).mapping
    assert (told.type, told.id, told.auth_token) == (UPDATE_TYPE_REMOVED, after.id, "")
    for service in (before, after):
        [status] = await stored(lab, service.id, 1)
        assert (status.proxy_id, status.status) == ("old", "pending")
        assert "private" in status.withheld


async def test_what_becomes_private_is_taken_from_proxies_that_cannot(lab: Lab) -> None:
    """A withheld modification goes out as a removal; when it is public again, it is created anew."""
    group, service = await lab.group("g"), await lab.service("app")
    old = lab.proxy(capabilities=OLD)
    await old.connect()
    assert set(old.mappings) == {service.id}
    private = await lab.change(service, private=True, access_groups=(group.id,))
    [told] = (await old.next()).mapping
    assert (told.type, told.id, told.domain) == (UPDATE_TYPE_REMOVED, service.id, "app.px.test")
    [status] = await stored(lab, service.id, 1)
    assert status.withheld
    await lab.change(private, private=False, access_groups=())
    [told] = (await old.next()).mapping
    assert (told.type, told.private) == (UPDATE_TYPE_CREATED, False)
    assert await stored(lab, service.id, 0) == []


async def test_changes_come_in_order_and_whole(lab: Lab) -> None:
    """Created, modified with a fresh token and every field, removed; disabling removes, enabling creates."""
    proxy = lab.proxy()
    await proxy.connect()
    service = await lab.service("app")
    [created] = (await proxy.next()).mapping
    renamed = await lab.change(service, pass_host_header=True)
    [modified] = (await proxy.next()).mapping
    assert (created.type, modified.type) == (UPDATE_TYPE_CREATED, UPDATE_TYPE_MODIFIED)
    assert (modified.pass_host_header, list(modified.path)) == (True, list(created.path))
    assert modified.auth_token not in ("", created.auth_token)
    off = await lab.change(renamed, enabled=False)
    assert [mapping.type for mapping in (await proxy.next()).mapping] == [UPDATE_TYPE_REMOVED]
    await lab.change(off, enabled=True)
    assert [mapping.type for mapping in (await proxy.next()).mapping] == [UPDATE_TYPE_CREATED]
    await delete_service(lab.home.state, lab.home.account_id, service.id)
    message = await proxy.next()
    assert [(mapping.type, mapping.id, mapping.auth_token) for mapping in message.mapping] == [
        (UPDATE_TYPE_REMOVED, service.id, "")
    ]
    assert not message.initial_sync_complete
    assert not message.management_extensions


async def test_a_service_that_leaves_the_cluster_is_removed_there(lab: Lab) -> None:
    """And created where it goes."""
    service = await lab.service("app")
    here, there = lab.proxy(), lab.proxy(proxy_id="proxy-2", cluster="other.test")
    await here.connect()
    await there.connect()
    await lab.change(service, domain="app.other.test")
    [removed] = (await here.next()).mapping
    [created] = (await there.next()).mapping
    assert (removed.type, removed.domain) == (UPDATE_TYPE_REMOVED, "app.px.test")
    assert (created.type, created.domain) == (UPDATE_TYPE_CREATED, "app.other.test")


async def test_what_does_not_change_a_mapping_is_not_sent(lab: Lab) -> None:
    """Peers that come and go are no news to proxies, until a service is about one."""
    bob = await lab.stock_peer("bob")
    proxy = lab.proxy()
    await lab.service("app", targets=(peer_target(bob),))
    await proxy.connect()
    await lab.stock_peer("carol")
    service = await lab.service("next", targets=(peer_target(bob, 81),))
    [told] = (await proxy.next()).mapping
    assert told.id == service.id
    assert told.path[0].target == f"http://{bob.ip}:81/"


async def test_a_newer_connection_takes_the_place_of_an_older(lab: Lab) -> None:
    """The older one ends, and its end does not undo what the newer wrote."""
    first, second = lab.proxy(), lab.proxy()
    await first.connect()
    await second.connect()
    assert (await ended(first))[0] is Code.ABORTED
    service = await lab.service("app")
    await second.next()
    assert set(second.mappings) == {service.id}
    assert await _status(lab, "proxy-1") == "connected"
    second.call.cancel()
    await status_becomes(lab, "disconnected")


async def test_two_proxies_hear_alike(lab: Lab) -> None:
    """Each of a change with a token of its own; whoever comes back has the same set, once."""
    one, two = lab.proxy(), lab.proxy(proxy_id="proxy-2")
    await one.connect()
    await two.connect()
    services = {(await lab.service(name)).id for name in ("a", "b")}
    told = [[mapping for proxy in (one, two) for mapping in (await proxy.next()).mapping] for _ in services]
    tokens = [mapping.auth_token for mappings in told for mapping in mappings]
    assert len({*tokens}) == 4
    assert {*one.mappings} == {*two.mappings} == services
    one.call.cancel()
    messages = await one.connect()
    assert sorted(mapping.id for message in messages for mapping in message.mapping) == sorted(services)
    assert {mapping.type for message in messages for mapping in message.mapping} == {UPDATE_TYPE_CREATED}


async def test_leaving_politely_ends_well(lab: Lab) -> None:
    """A proxy that closes its side gets OK, and counts as gone."""
    proxy = lab.proxy()
    await proxy.connect()
    await proxy.call.done_writing()
    with pytest.raises(EOFError):
        await proxy.next()
    assert await soon(proxy.call.code()) is Code.OK
    await status_becomes(lab, "disconnected")


async def test_who_is_cut_off_while_leaving_is_gone(lab: Lab) -> None:
    """The end of a connection is written down, whatever else ends the call meanwhile."""
    state, connections, leaves = lab.home.state, Connections(), asyncio.Event()
    said = iter((SyncMappingsRequest(init=SyncMappingsInit(proxy_id="proxy-1", address=CLUSTER)), SyncMappingsAck()))

    class Line:
        async def read(self) -> object:
            match next(said, None):
                case SyncMappingsAck() as ack:
                    return SyncMappingsRequest(ack=ack)
                case None:
                    await leaves.wait()
                    return grpc.aio.EOF
                case init:
                    return init

        async def write(self, message: bytes) -> None: ...

    token, _ = await create_proxy_token(state, name="leaves", account_id=None, created_by="test")
    mappings = Mappings(state, lab.hooks, connections, Recorder(state))
    serving = MappingStreams(state, connections, mappings).serve(
        AuthenticatedProxy(token, "", "127.0.0.1", None), Line()
    )
    async with asyncio.timeout(20), asyncio.TaskGroup() as calls:
        call = calls.create_task(serving)
        await status_becomes(lab, "connected")
        async with state.write():  # nobody else writes meanwhile
            leaves.set()
            while len(connections):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait((call,), timeout=0.1)
        await status_becomes(lab, "disconnected")


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (SyncMappingsRequest(ack=SyncMappingsAck()), Code.INVALID_ARGUMENT),
        (SyncMappingsRequest(), Code.INVALID_ARGUMENT),
        (SyncMappingsRequest(init=SyncMappingsInit(address="px.test")), Code.INVALID_ARGUMENT),
        (SyncMappingsRequest(init=SyncMappingsInit(proxy_id="p")), Code.INVALID_ARGUMENT),
        (SyncMappingsRequest(init=SyncMappingsInit(proxy_id="p", address="not a host")), Code.INVALID_ARGUMENT),
        (SyncMappingsRequest(init=SyncMappingsInit(proxy_id="p\n", address="px.test")), Code.INVALID_ARGUMENT),
    ],
    ids=["ack", "nothing", "no id", "no address", "bad address", "bad id"],
)
async def test_a_bad_introduction_is_refused(lab: Lab, first: SyncMappingsRequest, code: grpc.StatusCode) -> None:
    """And leaves no trace in the registry."""
    proxy = lab.proxy()
    proxy.call = proxy.stub.SyncMappings(metadata=proxy.metadata)
    await proxy.call.write(first)
    assert (await ended(proxy))[0] is code
    assert await _status(lab, "p") is None


async def test_each_batch_of_a_snapshot_is_acknowledged(lab: Lab) -> None:
    """Large snapshots come in batches of 500; the second waits for the ack of the first, and anything else ends it."""
    await _many_services(lab, 501)
    proxy = lab.proxy()
    messages = await proxy.connect()
    assert [len(message.mapping) for message in messages] == [500, 1]
    assert [message.initial_sync_complete for message in messages] == [False, True]
    assert [bool(message.management_extensions) for message in messages] == [True, False]
    assert len(proxy.mappings) == 501
    rude = lab.proxy(proxy_id="rude")
    await rude.introduce()
    first: SyncMappingsResponse = await soon(rude.call.read())
    assert len(first.mapping) == 500
    await rude.call.write(SyncMappingsRequest(init=SyncMappingsInit(proxy_id="rude", address="px.test")))
    assert (await ended(rude))[0] is Code.INVALID_ARGUMENT


async def test_an_accounts_proxy_gets_that_accounts_services(lab: Lab) -> None:
    """Its own address, its own services; an address that others use is refused, and so is their proxy's name."""
    mine = await lab.service("app")
    state = lab.home.state
    other, _ = await create_account(state, email="other@lab.test", name="Other")
    _, token = await create_proxy_token(state, name="theirs", account_id=other, created_by="test")
    await proved_domain(state, other, "own.test")
    taken = lab.proxy(token=token, proxy_id="theirs")
    await taken.introduce()
    assert (await ended(taken))[0] is Code.ALREADY_EXISTS
    shared = lab.proxy()
    await shared.connect()
    posing = lab.proxy(token=token, cluster="own.test")
    await posing.introduce()
    assert (await ended(posing))[0] is Code.ALREADY_EXISTS
    own = lab.proxy(token=token, proxy_id="theirs", cluster="own.test")
    await own.connect()
    assert own.mappings == {}
    assert set(shared.mappings) == {mine.id}
    await lab.change(mine, pass_host_header=True)
    await shared.next()
    own.call.cancel()


async def test_a_revoked_token_ends_the_stream(home: Home, tmp_path: Path) -> None:
    """At the next look at it, at the latest."""
    async with lab_for(home, tmp_path, timing=Timing(heartbeat=0.02)) as lab:
        proxy = lab.proxy()
        await proxy.connect()
        [token] = await proxy_tokens_of(home.state, None)
        await revoke_proxy_token(home.state, None, token.id)
        assert (await ended(proxy))[0] is Code.UNAUTHENTICATED


async def test_a_row_that_is_gone_is_written_again(home: Home, tmp_path: Path) -> None:
    """A proxy that stays connected stays in the registry."""
    async with lab_for(home, tmp_path, timing=Timing(heartbeat=0.02)) as lab:
        proxy = lab.proxy()
        await proxy.connect()
        async with home.state.write() as session:
            await session.delete(await session.get_one(ProxyRow, "proxy-1"))
        await status_becomes(lab, "connected")


async def test_a_proxy_that_falls_behind_starts_over(lab: Lab) -> None:
    """The queue is bounded; what does not fit ends the connection instead of being lost."""
    token = await find_proxy_token(lab.home.state, stored_hash(lab.token))
    assert token is not None
    capabilities = Capabilities()
    registration = Registration(ProxyId("p"), "s", "px.test", "", None, token.id, capabilities)
    connection = Connection(registration, token, stored_hash(lab.token))
    for _ in range(QUEUE_MESSAGES):
        connection.put(b"")
    assert connection.refusal is None
    connection.put(b"")
    await soon(connection.ended())
    assert connection.refusal is not None
    assert connection.refusal.code is Code.ABORTED


async def test_a_late_status_does_not_hide_why_a_service_is_withheld(lab: Lab) -> None:
    """The proxy's last word on what was taken from it stands beside the reason, and a foreign service gets no row."""
    service = await lab.service("app", await lab.group("g"))
    old = lab.proxy(capabilities=OLD)
    await old.connect()
    await stored(lab, service.id, 1)
    last = SendStatusUpdateRequest(
        service_id=service.id, account_id=service.account_id, status=PROXY_STATUS_TUNNEL_NOT_CREATED
    )
    await old.unary("SendStatusUpdate", last)
    elsewhere = lab.proxy(proxy_id="proxy-2", cluster="elsewhere.test")
    await elsewhere.connect()
    await elsewhere.unary("SendStatusUpdate", last)
    [status] = await stored(lab, service.id, 1)
    assert (status.proxy_id, status.status) == ("proxy-1", "tunnel_not_created")
    assert status.withheld
    last.service_id = "unknown"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await old.unary("SendStatusUpdate", last)
    assert caught.value.code() is Code.NOT_FOUND


async def test_without_a_name_a_status_counts_for_the_only_proxy(lab: Lab) -> None:
    """NetBird's proxies do not say which they are; with one connection it is clear, whatever its stream said."""
    service = await lab.service("app")
    metadata = (("authorization", f"Bearer {lab.token}"),)
    await lab.proxy().connect()
    status = SendStatusUpdateRequest(
        service_id=service.id, account_id=service.account_id, status=PROXY_STATUS_ACTIVE, certificate_issued=True
    )
    await lab.proxy().unary("SendStatusUpdate", status, metadata=metadata)
    [only] = await proxy_statuses(lab.home.state, service.id)
    assert (only.proxy_id, only.status) == ("proxy-1", "active")


async def _status(lab: Lab, proxy_id: str) -> str | None:
    async with lab.home.state.read() as session:
        row = (await session.scalars(select(ProxyRow).where(ProxyRow.id == proxy_id))).one_or_none()
    return None if row is None else row.status


async def _many_services(lab: Lab, count: int) -> None:
    """Written at once, as making them one by one is slow and not what is tested."""
    template = await lab.service("template")
    async with lab.home.state.change(lab.home.account_id) as transaction:
        ids = [ServiceId(f"many-{number}") for number in range(count - 1)]
        for id_ in ids:
            service = replace(template, id=id_, domain=f"{id_}.px.test")
            transaction.session.add(
                ServiceRow(
                    id=id_,
                    account_id=service.account_id,
                    session_private_key=b"",
                    session_public_key="",
                    created_at=service.meta.created_at,
                    **columns(service),
                )
            )
        transaction.touch(services=ids)


async def test_a_service_leaves_proxies_with_the_person_whose_peer_it_targets(lab: Lab) -> None:
    """Blocking the owner of a service's only target takes the service from proxies at once; unblocking brings it."""
    state, account_id = lab.home.state, lab.home.account_id
    alice = await create_user(state, account_id, role=Role.USER, email="alice@lab.test")
    laptop, _ = await create_stock_peer(state, account_id, name="laptop", user_id=alice.id)
    service = await lab.change(await lab.service("app"), targets=(peer_target(laptop),))
    proxy = lab.proxy()
    await proxy.connect()

    await update_user(state, account_id, alice.id, role=Role.USER, auto_groups=[], blocked=True)
    assert await _until(proxy, service.id, UPDATE_TYPE_REMOVED)
    [status] = await stored(lab, service.id, 1)
    assert "laptop" in status.withheld

    await update_user(state, account_id, alice.id, role=Role.USER, auto_groups=[], blocked=False)
    assert await _until(proxy, service.id, UPDATE_TYPE_CREATED)


async def _until(proxy: FakeProxy, service_id: ServiceId, kind: int) -> bool:
    while True:  # revalidations come in between
        for mapping in (await proxy.next()).mapping:
            if (mapping.id, mapping.type) == (service_id, kind):
                return True
