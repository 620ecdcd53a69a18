"""Everything that callers, peers, proxies and browsers can make grow, driven past its limit."""
# Over 500 lines: one table of bounds, a driver for each row.

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import uvicorn
from sqlalchemy import func, select, update

from netbird_host.buckets import Places
from netbird_host.login_throttle import SERVICE_FAILURES, LoginThrottle
from netbird_management.compute import mapping, validate
from netbird_management.grpc import access_log, interceptors, management_service, mapping_stream, mappings, wire
from netbird_management.grpc import server as grpc_server
from netbird_management.grpc.access_log import AccessLogs
from netbird_management.grpc.connections import QUEUE_BYTES, QUEUE_MESSAGES, Connection
from netbird_management.grpc.errors import Refused
from netbird_management.grpc.interceptors import FailureLimiter
from netbird_management.grpc.login_service import HASHES_WAITING, Logins
from netbird_management.login.agent_logins import AgentLogins
from netbird_management.login.gates import SessionGates
from netbird_management.login.identity_provider import IdentityProvider, Person, ProviderFailed
from netbird_management.login.people import WAITING, user_of
from netbird_management.login.settings import CALLBACK_PATH, OidcSettings
from netbird_management.login.sign_on import SignOn, _State
from netbird_management.model.clock import now
from netbird_management.model.errors import InvalidArgument, PreconditionFailed
from netbird_management.model.ids import AccountId, ProxyId, ServiceId
from netbird_management.model.services import AccessLogEntry, Capabilities
from netbird_management.model.snapshot import Change, Changes, Touched
from netbird_management.model.store_errors import UnreachableError
from netbird_management.operations import proxies, revocations
from netbird_management.operations.access_log import forget_old_entries
from netbird_management.operations.events import events_of, forget_old_events
from netbird_management.operations.groups import create_group
from netbird_management.operations.peers import checked_dns_labels
from netbird_management.operations.proxies import Registration, forget_stale_proxies, room_for_proxy
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.revocations import revoke, revoked_tokens
from netbird_management.operations.sessions import mint_session_token
from netbird_management.operations.setup_keys import create_setup_key
from netbird_management.operations.users import create_token, forget_waiting
from netbird_management.plugins.hooks import load_hooks
from netbird_management.rest import context as rest_context
from netbird_management.rest.app import create_app
from netbird_management.rest.bounds import RestLimits, protocol
from netbird_management.rest.context import Context
from netbird_management.rest.setup import HEADER
from netbird_management.store import limits, session_keys
from netbird_management.store.models import (
    AccessLogRow,
    AccountRow,
    PersonalTokenRow,
    ProxyRow,
    ProxyTokenRow,
    RevocationRow,
    SetupKeyRow,
    SpentNonceRow,
)
from netbird_wire.management_pb2 import EncryptedMessage
from netbird_wire.proxy_service_pb2 import AccessLog, SendAccessLogRequest
from tests.netbird_management.conftest import Home, context_for
from tests.netbird_management.grpc.conftest import lab_for, soon
from tests.netbird_management.reports import add_access_log_entries
from tests.netbird_management.test_front import (
    test_a_slow_reader_holds_back_its_own_sender,
    test_a_stranger_who_says_nothing_is_cut,
    test_connections_to_grpc_are_bounded_and_forgotten,
    test_one_address_cannot_take_every_place,
    test_strangers_who_say_nothing_make_room,
)

PAGE = Path(__file__).parents[2] / "docs" / "management.md"


@dataclass
class Scene:
    """What a drive has to work with."""

    home: Home
    directory: Path

    @property
    def counters(self) -> Counter[str]:
        return self.home.state.counters

    def lab(self, **options: Any) -> Any:
        return lab_for(self.home, self.directory, **options)


Drive = Callable[[Scene], Awaitable[None]]
DRIVES: dict[str, Drive] = {}


def drive(name: str) -> Callable[[Drive], Drive]:
    def register(test: Drive) -> Drive:
        DRIVES[name] = test
        return test

    return register


# REST -----------------------------------------------------------------------------------------------------------------


class Quiet(uvicorn.Server):
    def install_signal_handlers(self) -> None: ...


@asynccontextmanager
async def api(scene: Scene, **limits: Any) -> AsyncIterator[int]:
    """The API on a port, with small limits."""
    state, made = scene.home.state, RestLimits(**limits)
    app = create_app(Context(state, None, None), limits=made)  # type: ignore[arg-type]  # no hook is asked here
    http = protocol(made, state.count)
    server = Quiet(
        uvicorn.Config(app, http=http, h11_max_incomplete_event_size=made.head_bytes, log_config=None, port=0)
    )
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def said(port: int, request: bytes) -> bytes:
    """All that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


GET = b"GET /api/users HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
KEPT = b"GET /api/users HTTP/1.1\r\nhost: a\r\n\r\n"


async def posting(scene: Scene) -> bytes:
    """The beginning of a request whose body is read, as its caller is known."""
    _, token = await create_token(scene.home.state, scene.home.owner, name="t", days=1, created_by=scene.home.owner.id)
    head = "POST /api/groups HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n"
    return f"{head}authorization: Token {token}\r\n".encode()


@drive("REST connections")
async def rest_connections(scene: Scene) -> None:
    async with api(scene, connections=2) as port:
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        while True:
            assert await said(port, GET + b"\r\n") == b""
            if scene.counters["rest_connections_refused"]:
                break
        for _, writer in kept:
            writer.close()
            await writer.wait_closed()
        while not (await said(port, GET + b"\r\n")).startswith(b"HTTP/1.1 401 "):
            pass


@drive("REST head")
async def rest_head(scene: Scene) -> None:
    async with api(scene, head_bytes=1000) as port:
        assert (await said(port, GET + b"x: " + b"x" * 2000)).startswith(b"HTTP/1.1 400 ")


@drive("REST body")
async def rest_body(scene: Scene) -> None:
    async with api(scene, body_bytes=1000) as port:
        post = await posting(scene)
        declared = post + b"content-length: 1001\r\n\r\n" + b"x" * 1001
        chunked = post + b"transfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"
        for request in (declared, chunked):
            assert (await said(port, request)).startswith(b"HTTP/1.1 400 ")
        assert scene.counters["rest_bodies_refused"] == 2


@drive("REST time")
async def rest_time(scene: Scene) -> None:
    async with api(scene, request_seconds=0.1) as port:
        for begun in (b"", GET, await posting(scene) + b"content-length: 10\r\n\r\n{", KEPT + b"GET /"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(begun)
            with suppress(ConnectionResetError):
                await reader.read()
            writer.close()
        assert scene.counters["rest_requests_late"] == 4


@drive("setup guesses")
async def setup_guesses(scene: Scene) -> None:
    context = context_for(Home(scene.home.state, None, None), setup_secret="right")  # type: ignore[arg-type]
    async with scene.home.state.change(scene.home.account_id) as transaction:
        await transaction.session.delete(await transaction.session.get_one(AccountRow, scene.home.account_id))
        transaction.touch(account=True)
    statuses = []
    for number in range(rest_context.LOGIN_BURST + 2):
        transport = httpx.ASGITransport(create_app(context), client=("192.0.2.1", number))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            statuses.append((await client.post("/api/setup", headers={HEADER: "wrong"})).status_code)
    assert statuses == [403] * rest_context.LOGIN_BURST + [429] * 2
    assert scene.counters["setup_guesses_refused"] == 2
    for number in range(rest_context.LOGIN_SOURCES + 5):
        context.setup_tries.take(str(number))
    assert len(context.setup_tries) == rest_context.LOGIN_SOURCES


# gRPC -----------------------------------------------------------------------------------------------------------------


@drive("connections that have not sent a byte, where gRPC shares the REST port")
async def waiting_connections(scene: Scene) -> None:
    await test_strangers_who_say_nothing_make_room(scene.directory)
    await test_a_stranger_who_says_nothing_is_cut(scene.directory)


@drive("connections to gRPC by the REST port")
async def joined_connections(scene: Scene) -> None:
    (one := scene.directory / "one").mkdir()
    await test_connections_to_grpc_are_bounded_and_forgotten(one)
    (two := scene.directory / "two").mkdir()
    await test_one_address_cannot_take_every_place(two)
    await test_a_slow_reader_holds_back_its_own_sender(scene.directory)


@drive("gRPC calls")
async def grpc_calls(scene: Scene) -> None:
    assert grpc_server.CALLS == 50_000
    async with scene.lab(calls=2) as lab:
        for number in range(2):
            await lab.proxy(proxy_id=f"p{number}").connect()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lab.peer().login()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@drive("gRPC message")
async def grpc_message(scene: Scene) -> None:
    async with scene.lab() as lab:
        proxy = lab.proxy()
        await proxy.connect()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lab.peer().stub.Login(EncryptedMessage(body=b"x" * interceptors.OPEN_MESSAGE_BYTES), timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        large = AccessLog(path="x" * interceptors.PROXY_MESSAGE_BYTES)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await proxy.unary("SendAccessLog", SendAccessLogRequest(log=large))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@drive("token guesses")
async def token_guesses(_scene: Scene) -> None:
    counters: Counter[str] = Counter()
    kept = FailureLimiter(lambda: 0.0, lambda name: counters.update([name]))
    for number in range(interceptors.FAILURES):
        kept.failed(f"2001:db8::{number}")
    with pytest.raises(Refused):
        kept.failed("2001:db8::ffff")
    kept.failed("2001:db8:0:1::1")
    assert counters == {"token_guesses_refused": 1}
    for number in range(interceptors.GUESSERS + 5):
        kept.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(kept._buckets) == interceptors.GUESSERS


@drive("a service's mapping")
async def a_services_mapping(_scene: Scene) -> None:
    # That larger ones are refused and withheld is `test_message_sizes`'s.
    assert (validate.TARGETS, mapping.MAPPING_BYTES) == (100, 256 << 10)


@drive("messages to a proxy")
async def messages_to_a_proxy(_scene: Scene) -> None:
    assert (wire.MESSAGE_BYTES, mappings.BATCH, mappings.REVOCATIONS) == (2 << 20, 500, 20_000)
    parts = [b"x" * (wire.MESSAGE_BYTES // 2)] * 3 + [b"x"] * 3 + [b"x" * (wire.MESSAGE_BYTES + 1)]
    batches = list(wire.batches(parts, len, most=4))
    assert [len(batch) for batch in batches] == [2, 4, 1]
    assert [part for batch in batches for part in batch] == parts


@drive("calls without a request")
async def calls_without_a_request(_scene: Scene) -> None:
    # That a call waits for its request for so long and no longer is `test_edge`'s.
    assert (interceptors.UNREAD_OF_A_SOURCE, interceptors.REQUEST_SECONDS) == (1_000, 10)
    _places(2)


@drive("calls of an account")
async def calls_of_an_account(_scene: Scene) -> None:
    assert interceptors.CALLS_OF_AN_ACCOUNT == 10_000 < grpc_server.CALLS / 2
    _places(2)


@drive("streams of a token")
async def streams_of_a_token(_scene: Scene) -> None:
    assert mapping_stream.STREAMS_OF_A_TOKEN == 2_000
    _places(2)


def _places(limit: int) -> None:
    """So many at once for each key, and room again afterwards."""
    places = Places(limit)

    def full() -> Exception:
        return Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    with ExitStack() as stack:
        for _ in range(limit):
            stack.enter_context(places.place("a", refusal=full))
        with pytest.raises(Refused):
            stack.enter_context(places.place("a", refusal=full))
        stack.enter_context(places.place("b", refusal=full))
    with places.place("a", refusal=full):
        assert len(places) == 1


@drive("proxies of a token")
async def proxies_of_a_token(scene: Scene) -> None:
    async with scene.lab() as lab:
        first = lab.proxy(proxy_id="first")
        await first.connect()
        row = select(ProxyRow).where(ProxyRow.id == "first")
        async with scene.home.state.write() as session:
            known = (await session.scalars(row)).one()
            names = [column.name for column in ProxyRow.__table__.columns if column.name != "id"]
            same = {name: getattr(known, name) for name in names}
            for number in range(proxies.PROXIES_OF_A_TOKEN - 1):
                session.add(ProxyRow(id=f"p{number}", **same))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lab.proxy(proxy_id="one more").connect()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert scene.counters["proxies_refused"] == 1
        assert await room_for_proxy(scene.home.state, ProxyId("first"), known.token_id)
        await lab.proxy(proxy_id="first").connect()
        async with scene.home.state.write() as session:
            old = update(ProxyRow).values(last_seen=now() - timedelta(hours=2))
            await session.execute(old.where(ProxyRow.id != "first"))
        await proxies.forget_stale_proxies(scene.home.state)
        await lab.proxy(proxy_id="one more").connect()


@drive("changes for a proxy")
async def changes_for_a_proxy(scene: Scene) -> None:
    capabilities = Capabilities(True, False, False, True, True)
    registration = Registration(ProxyId("p"), "s", "px.test", "", None, None, capabilities)
    token, _ = await create_proxy_token(scene.home.state, name="t", account_id=None, created_by="test")
    connection = Connection(registration, token, "", scene.home.state.count)
    for _ in range(QUEUE_MESSAGES):
        connection.put(b"")
    assert connection.refusal is None
    connection.put(b"")
    await _cut_off(connection)
    large = Connection(registration, token, "", scene.home.state.count)
    piece = b"x" * (QUEUE_BYTES // 4)
    for _ in range(4):
        large.put(piece)
    assert await large.next() == piece
    large.put(piece)
    assert large.refusal is None
    large.put(b"x")
    await _cut_off(large)
    assert scene.counters["proxies_too_far_behind"] == 2


async def _cut_off(connection: Connection) -> None:
    async with asyncio.timeout(10):
        await connection.ended()
    assert connection.refusal is not None
    assert connection.refusal.code is grpc.StatusCode.ABORTED


@drive("changes within management")
async def changes_for_ourselves(scene: Scene) -> None:
    kept = Changes()
    for _ in range(5):
        kept.put(Change(scene.home.account_id, None, scene.home.snapshot, Touched()))
    assert len(kept._waiting) == 1


@drive("streams of a peer")
async def streams_of_a_peer(scene: Scene) -> None:
    async with scene.lab() as lab:
        peer = lab.peer()
        await lab.stock_peer("laptop", key=peer.key)
        await peer.sync()
        earlier = peer.call
        await peer.sync()
        assert await earlier.code() is grpc.StatusCode.ABORTED


class Waiting(AgentLogins):
    """A provider that does not answer."""

    def __init__(self) -> None:
        self.waiting = asyncio.Semaphore(0)

    async def user(self, token: str) -> Any:
        self.waiting.release()
        await asyncio.Event().wait()


@drive("logins by a user's token")
async def token_logins(scene: Scene) -> None:
    agents = Waiting()
    async with scene.lab(agents=agents) as lab, asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(lab.peer().login(jwtToken="x"))
            for _ in range(management_service.TOKEN_LOGINS_OF_A_SOURCE)
        ]
        for _ in waiting:
            await soon(agents.waiting.acquire())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await lab.peer().login(jwtToken="x")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert scene.counters["token_logins_refused"] == 1
        key = lab.peer()
        await lab.stock_peer("laptop", key=key.key)
        await key.login()  # a login without a token waits for nobody
        for login in waiting:
            login.cancel()


@drive("a peer's map")
async def large_map(scene: Scene) -> None:
    assert management_service.MAP_BYTES < 16 << 20
    async with scene.lab(map_bytes=800) as lab:
        peer = lab.peer()
        await lab.stock_peer("laptop", key=peer.key)
        await peer.sync()
        for number in range(5):
            await lab.stock_peer(f"other{number}")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await peer.until(lambda _: False)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert scene.counters["peer_maps_refused"] == 1


@drive("extra DNS labels")
async def extra_labels(scene: Scene) -> None:
    for labels in ([f"l{number}" for number in range(33)], ["a." * 64 + "a"]):
        with pytest.raises(InvalidArgument):
            checked_dns_labels(labels)
    assert len(checked_dns_labels(f"l{number}" for number in range(32))) == 32


@drive("logins of a peer")
async def logins_of_a_peer(scene: Scene) -> None:
    async with scene.lab() as lab:
        peer, other = lab.peer(), lab.peer()
        for number, each in enumerate((peer, other)):
            await lab.stock_peer(f"laptop{number}", key=each.key)
        for _ in range(management_service.LOGINS):
            await peer.login()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.gather(*(peer.login() for _ in range(10)))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert scene.counters["peer_logins_refused"] > 0
        await other.login()


@drive("access-log entries")
async def access_log_entries(scene: Scene) -> None:
    kept = AccessLogs(scene.home.state, capacity=1)
    one = AccessLog(log_id="a", account_id=scene.home.account_id)
    kept.take([one])
    with pytest.raises(Refused):
        kept.take([one])
    assert scene.counters["access_log_refused"] == 1
    await kept.flush()
    kept.take([one])


@drive("an access-log entry")
async def an_access_log_entry(_scene: Scene) -> None:
    # That entries are cut to it is `test_access_log`'s.
    assert (access_log.METADATA_BYTES, access_log.GROUPS, access_log.CLOCKS_DIFFER.days) == (4096, 100, 1)
    assert (access_log.QUEUE_ENTRIES, access_log.QUEUE_BYTES, access_log.QUOTA_ENTRIES) == (10_000, 64 << 20, 1_000_000)


@drive("access log")
async def stored_access_log(scene: Scene) -> None:
    old = AccessLogEntry(
        "a", scene.home.account_id, "s", now() - timedelta(days=8), "192.0.2.1", "GET", "h", "/", 1, 200, 1, 1
    )
    await add_access_log_entries(scene.home.state, [old])
    await forget_old_entries(scene.home.state, 7)
    async with scene.home.state.read_log() as session:
        assert await session.scalar(select(func.count()).select_from(AccessLogRow)) == 0


@drive("events")
async def events(scene: Scene) -> None:
    state, account = scene.home.state, scene.home.account_id
    for name in "abc":
        await create_group(state, account, name=name)
    before = await events_of(state, account)
    await forget_old_events(state)
    assert await events_of(state, account) == before
    await forget_old_events(state, kept=2)
    assert [event.details["name"] for event in await events_of(state, account)] == ["c", "b"]


# Logins ---------------------------------------------------------------------------------------------------------------


@drive("logins at once")
async def logins_at_once(scene: Scene) -> None:
    logins = Logins(scene.home.state, None)  # type: ignore[arg-type]  # no gate is asked here
    account = scene.home.account_id
    logins._waiting[account] = HASHES_WAITING
    with pytest.raises(Refused), logins._place(account):
        pass
    with logins._place(AccountId("another")):
        pass
    assert scene.counters["logins_refused"] == 1


@drive("login guesses")
async def login_guesses(_scene: Scene) -> None:
    kept, service = LoginThrottle(lambda: 1000.0, sources=3), ServiceId("s")
    for number in range(SERVICE_FAILURES):
        assert kept.reserve(service, f"192.0.2.{number}") == 0
    assert kept.reserve(service, "198.51.100.1") > 0
    for number in range(6):
        kept.record_success(ServiceId(str(number)), f"192.0.2.{number}")
    assert len(kept._sources) == 3


@drive("writes")
async def writes(scene: Scene) -> None:
    state = scene.home.state
    state.patience = 0.01
    async with state.write():  # as a commit does whose outcome is unknown
        for attempt in (create_group(state, scene.home.account_id, name="late"), forget_stale_proxies(state)):
            with pytest.raises(UnreachableError):
                await attempt
    assert scene.counters["writes_refused"] == 2
    await create_group(state, scene.home.account_id, name="in time")


@drive("people who wait for approval")
async def people_who_wait(scene: Scene) -> None:
    state, account = scene.home.state, scene.home.account_id
    for number in range(WAITING):
        await user_of(state, account, Person("issuer", str(number)))
    with pytest.raises(PreconditionFailed):
        await user_of(state, account, Person("issuer", "next"))
    assert scene.counters["strangers_refused"] == 1
    await forget_waiting(state, kept=timedelta(0))
    assert await user_of(state, account, Person("issuer", "next")) is not None


@drive("logouts")
async def logouts(scene: Scene) -> None:
    state, account = scene.home.state, scene.home.account_id
    for _ in range(3):
        async with state.change(account) as transaction:
            await revoke(transaction, subject="alice")
    async with state.change(account) as transaction:
        await revoke(transaction, token_hash=b"x" * 32)
        assert await revoked_tokens(transaction) == 1
    async with state.read() as session:
        assert await session.scalar(select(func.count()).select_from(RevocationRow)) == 2
    assert revocations.TOKENS_REVOKED == 10_000


@drive("session keys")
async def opened_session_keys(scene: Scene) -> None:
    assert session_keys.KEYS == 16_384
    async with scene.lab() as lab:
        service = await lab.service("app")
        state = scene.home.state
        state.session_keys._keys.update({(ServiceId(str(number)), ""): b"" for number in range(session_keys.KEYS)})
        await mint_session_token(state, service, "alice", "pin")
        assert len(state.session_keys) == session_keys.KEYS


@drive("an identity provider that fails")
async def an_identity_provider_that_fails(_scene: Scene) -> None:
    asked: list[str] = []

    async def away(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        await asyncio.sleep(0)
        return httpx.Response(503)

    settings = OidcSettings(
        issuer="https://login.test", client_id="c", callback_url=f"https://management.test{CALLBACK_PATH}"
    )
    provider = IdentityProvider(settings, transport=httpx.MockTransport(away))
    answers = await asyncio.gather(*(provider.bearer("a.b.c") for _ in range(50)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {ProviderFailed}
    assert len(asked) == 1


@drive("single sign-on")
async def single_sign_on(scene: Scene) -> None:
    # That a state is spent once, and that nothing else is kept, is `test_sign_on`'s; here, that it is forgotten.
    state = scene.home.state
    settings = OidcSettings(
        issuer="https://login.test", client_id="c", callback_url=f"https://management.test{CALLBACK_PATH}"
    )
    sign_on = SignOn(state, IdentityProvider(settings), SessionGates(load_hooks(()), None))  # type: ignore[arg-type]
    for number, age in enumerate((601, 601, 0)):
        await sign_on._spend(_State("", str(number), now() + timedelta(seconds=600 - age)))
    async with state.read() as session:
        assert [row.nonce for row in await session.scalars(select(SpentNonceRow))] == ["2"]


# Accounts -------------------------------------------------------------------------------------------------------------


@drive("an account")
async def an_account(scene: Scene) -> None:
    state, account = scene.home.state, scene.home.account_id
    assert set(limits._objects(scene.home.snapshot)) == set(limits.IN_SNAPSHOT)
    state.object_limits = {"groups": len(scene.home.snapshot.groups) + 1}
    kept = await create_group(state, account, name="one")
    with pytest.raises(PreconditionFailed, match="account is full"):
        await create_group(state, account, name="two")
    assert scene.counters["account_full"] == 1
    assert kept.id in scene.home.snapshot.groups
    state.object_limits = {"groups": 0}  # too much already is no reason to refuse what adds nothing
    async with state.change(account) as transaction:
        transaction.touch(account=True)


@drive("keys and tokens")
async def keys_and_tokens(scene: Scene) -> None:
    state, account, owner = scene.home.state, scene.home.account_id, scene.home.owner

    await create_setup_key(state, account, name="k", kind="reusable", expires_in=0, auto_groups=())
    await create_token(state, owner, name="t", days=1, created_by=owner.id)
    await create_proxy_token(state, name="t", account_id=account, created_by="test")
    await _filled(scene, SetupKeyRow, limits.SETUP_KEYS)
    await _filled(scene, PersonalTokenRow, limits.TOKENS_OF_A_USER)
    await _filled(scene, ProxyTokenRow, limits.PROXY_TOKENS)
    with pytest.raises(PreconditionFailed, match="1000 setup keys"):
        await create_setup_key(state, account, name="k", kind="reusable", expires_in=0, auto_groups=())
    with pytest.raises(PreconditionFailed, match="100 tokens"):
        await create_token(state, owner, name="t", days=1, created_by=owner.id)
    with pytest.raises(PreconditionFailed, match="1000 proxy tokens"):
        await create_proxy_token(state, name="t", account_id=account, created_by="test")
    await create_proxy_token(state, name="t", account_id=None, created_by="test")
    async with state.write() as session:
        await session.execute(update(ProxyTokenRow).values(revoked=True))
    await create_proxy_token(state, name="t", account_id=account, created_by="test")


async def _filled(scene: Scene, model: Any, limit: int) -> None:
    """As many rows as there may be, all like the one that is there."""
    async with scene.home.state.write() as session:
        known = (await session.scalars(select(model))).first()
        columns = {column.key: getattr(known, column.key) for column in model.__table__.columns}
        for number in range(limit - 1):
            unique = {name: f"{number}" for name in columns if name == "id" or "hash" in name}
            if "hashed_token" in unique:
                unique["hashed_token"] = f"{number}"
            session.add(model(**columns | unique))


# The list -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRIVES)
async def test_limit_holds(name: str, home: Home, tmp_path: Path) -> None:
    """Past it, what the page says, and room again afterwards where that is said."""
    async with asyncio.timeout(50):
        await DRIVES[name](Scene(home, tmp_path))


def test_page_lists_them_all() -> None:
    """Each row of the table has its test, and each test its row."""
    section = PAGE.read_text().partition("## Bounds\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-Za-z][^|]*?) \|", section, flags=re.MULTILINE)
    assert sorted(set(rows) - {"bounded"}) == sorted(DRIVES)
