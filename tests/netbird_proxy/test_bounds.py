"""Everything that a caller, a peer or management can make grow, driven past its limit: what the page says, happens."""
# Over 500 lines: one table of bounds, a driver for each row.

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from nacl.signing import SigningKey

from netbird_host import line_writer as writer_module
from netbird_host import login_throttle, logs
from netbird_host.line_writer import LineWriter
from netbird_overlay import peer_endpoints
from netbird_overlay.engine import Connected, Endpoint, LimitReached
from netbird_overlay.keys import TunnelState
from netbird_overlay.peer_endpoints import PeerEndpoints
from netbird_overlay.simulation import Simulation
from netbird_private_service import validation
from netbird_private_service.validation import Question, TooManyQuestions, Validations
from netbird_proxy import ALLOW, Guard
from netbird_proxy.accounts import accounts as accounts_module
from netbird_proxy.accounts.accounts import Accounts
from netbird_proxy.accounts.revocations import RevokedSessions
from netbird_proxy.api.errors import ProtocolViolation, UpstreamClosed, UpstreamOverloaded
from netbird_proxy.api.headers import FOLDED, Headers, fold
from netbird_proxy.api.model import AccountId, PublicKey, ServiceId
from netbird_proxy.asgi import CONNECTION_EXTENSION
from netbird_proxy.defaults.access_log.sender import Sender
from netbird_proxy.defaults.access_log.waiting import UNSENT_BYTES, Waiting
from netbird_proxy.defaults.session import authenticators, confirmations
from netbird_proxy.defaults.session import tokens as session_tokens
from netbird_proxy.defaults.telemetry import collector
from netbird_proxy.http import framing
from netbird_proxy.http.folding import _HOSTS, fold_authority
from netbird_proxy.listening.connections import Connections, ListenLimits
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.origins import Origins
from netbird_proxy.listening.peek import Peek
from netbird_proxy.operator.decisions import LONGEST_PATH, Decisions
from netbird_proxy.pipeline import deadline, head_rules
from netbird_proxy.routing.apply import Routing
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.sources.file import read as files
from netbird_proxy.sources.management import channel as client_module
from netbird_proxy.sources.management import statuses as status
from netbird_proxy.sources.management import tokens
from netbird_proxy.sources.management.channel import Connection, open_channel
from netbird_proxy.sources.management.statuses import Status, StatusReports
from netbird_proxy.sources.management.tokens import OneTimeTokens
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy
from netbird_proxy.testing.makers import exchange, host_origin, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.testing.transports import MemoryDialer, MemoryTransport
from netbird_proxy.upstreams import connection as upstream_module
from netbird_proxy.upstreams.connection import Http1Connection
from netbird_proxy.upstreams.pool import UpstreamPool
from netbird_proxy.upstreams.protocols import HeadLimits
from netbird_proxy.upstreams.tls import client_context
from netbird_wire.proxy_service_pb2 import (
    PROXY_STATUS_ACTIVE,
    ProxyMapping,
    SyncMappingsResponse,
    ValidateSessionResponse,
    ValidateTunnelPeerResponse,
)
from netbird_wire.proxy_service_pb2_grpc import (
    ProxyServiceServicer,
    ProxyServiceStub,
    add_ProxyServiceServicer_to_server,
)

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

Drive = Callable[[Path], Awaitable[None]]
DRIVES: dict[str, Drive] = {}


def drive(name: str) -> Callable[[Drive], Drive]:
    def register(test: Drive) -> Drive:
        DRIVES[name] = test
        return test

    return register


# Callers --------------------------------------------------------------------------------------------------------------


class Listener:
    """One listener in memory."""

    def __init__(self, app: Any = None, *, more: dict[str, Any] | None = None, **limits: Any) -> None:
        self.counters: Counter[str] = Counter()
        self.held = asyncio.Event()
        self.connections = Connections(
            app or self.hold,
            origins=Origins(),
            listener="test",
            limits=ListenLimits(**limits),
            count=lambda name: self.counters.update([name]),
            **(more or {}),
        )

    async def hold(self, _scope: Any, _receive: Any, _send: Any) -> None:
        await self.held.wait()

    def connect(self, peer: tuple[str, int] = ("192.0.2.7", 1)) -> MemoryTransport:
        return MemoryTransport.open(Http1Protocol(self.connections), extra={"peername": peer})

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[Listener]:
        try:
            yield self
        finally:
            self.connections.abort()
            await self.connections.drain(1)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@drive("connections")
async def connections(_directory: Path) -> None:
    async with Listener(connections=2).ending() as listener:
        kept = [listener.connect(), listener.connect()]
        told = listener.connect()
        assert told.sent.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in told.sent
        assert all(not one.sent for one in kept)
        peek = Peek(listener.connections, None)
        assert MemoryTransport.open(peek).aborted
        crowd = [listener.connect() for _ in range(40)]
        assert crowd[-1].aborted
        assert not crowd[-1].sent
        assert listener.counters["connections_refused"] == 42
        await settle()
        assert len(listener.connections.open) <= 2 + 16 + 1
        for one in (*kept, told, *crowd):
            one.abort()
        await settle()
        assert not listener.connect().sent


@drive("connections of one client")
async def connections_of_one_client(_directory: Path) -> None:
    one, other = ("2001:db8::1", 1), ("2001:db8:0:1::1", 1)
    async with Listener(connections=100, client_connections=2).ending() as listener:
        kept = [listener.connect(one), listener.connect(("2001:db8::ffff", 2))]
        told = listener.connect(("2001:db8::2", 3))
        assert told.sent.startswith(b"HTTP/1.1 503 ")
        assert listener.counters == {"connections_refused_of_client": 1}
        crowd = [listener.connect(one) for _ in range(40)]
        assert crowd[-1].aborted
        assert not crowd[-1].sent
        peek = Peek(listener.connections, None)
        assert MemoryTransport.open(peek, extra={"peername": one}).aborted
        others = [listener.connect(other), listener.connect(("192.0.2.1", 1))]
        assert not any(client.sent or client.aborted for client in (*kept, *others))
        for client in (*kept, told, *crowd, *others):
            client.abort()
        await settle()
        assert listener.connections._of_client == {}
        assert not listener.connect(one).sent
    # Many clients come from where the operator says that a proxy is; in a tunnel, where each has its own, nobody does.
    for fronted in ({"is_trusted_proxy": lambda peer: peer == one[0]}, {"behind_tls_proxy": True}):
        async with Listener(client_connections=1, more=fronted).ending() as listener:
            assert not any([listener.connect(one).sent, listener.connect(one).sent])
        async with Listener(client_connections=1, more={**fronted, "account": AccountId("a")}).ending() as listener:
            assert [bool(listener.connect(one).sent), bool(listener.connect(one).sent)] == [False, True]


@drive("request head")
async def request_head(_directory: Path) -> None:
    async with Listener(head_bytes=200, head_lines=3).ending() as listener:
        for said, status, reason in (
            (GET[:-2] + b"a: " + b"x" * 300 + b"\r\n\r\n", b"431", "head_bytes"),
            (b"GET /" + b"x" * 300, b"414", "target_bytes"),
            (GET[:-2] + b"a: b\r\n" * 4 + b"\r\n", b"431", "head_lines"),
        ):
            client = listener.connect()
            client.feed(said)
            assert client.sent.startswith(b"HTTP/1.1 " + status)
            assert listener.counters.pop(f"head_refused_{reason}") == 1


@drive("request trailers")
async def request_trailers(_directory: Path) -> None:
    async with Listener(head_bytes=200, head_lines=3).ending() as listener:
        client = listener.connect()
        client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        await settle()
        client.feed(b"0\r\n" + b"a: b\r\n" * 4 + b"\r\n")
        assert client.sent.startswith(b"HTTP/1.1 431 ")
        assert listener.counters["head_refused_trailer_bytes"] == 1


@drive("request body")
async def request_body(_directory: Path) -> None:
    async with Listener(body_buffer=100).ending() as listener:
        client = listener.connect()
        client.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"x" * 101)
        assert client.reading_paused


@drive("pipelined requests")
async def pipelined(_directory: Path) -> None:
    async with Listener(pipeline_depth=1).ending() as listener:
        client = listener.connect()
        client.feed(GET)
        assert not client.reading_paused
        client.feed(GET)
        assert client.reading_paused


@drive("upgraded bytes")
async def upgraded(_directory: Path) -> None:
    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        scope["extensions"][CONNECTION_EXTENSION].switch([(b"upgrade", b"x")])
        await asyncio.Event().wait()

    async with Listener(app, body_buffer=100).ending() as listener:
        client = listener.connect()
        client.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        await settle()
        client.feed(b"x" * 101)
        assert client.reading_paused


@drive("remembered names")
async def remembered(_directory: Path) -> None:
    tables: list[tuple[Any, Callable[[int], object]]] = [
        (FOLDED, lambda i: fold(b"name-%d" % i)),
        (_HOSTS, lambda i: fold_authority(b"host-%d.example" % i)),
        (framing._PREFIXES, lambda i: framing.field_lines(200, [(b"name-%d" % i, b"x")])),
    ]
    rules = head_rules.HeadRules({b"own-%d" % os.getpid(): "test"})
    tables.append((rules.verdicts, lambda i: rules.incoming([(b"name-%d" % i, b"x")])))
    tables.append((head_rules._SHARED, lambda i: head_rules.HeadRules({b"own-%d-%d" % (os.getpid(), i): "test"})))
    for table, learn in tables:
        before = dict(table)
        try:
            first, last = learn(0), None
            for i in range(5000):
                last = learn(i)
            assert len(table) <= 4096
            assert type(first) is type(last)  # what is not remembered is worked out each time
            full = set(table)
            learn(5000)
            assert set(table) - full  # a full table does not keep later entries out
            assert table._bytes <= table.max_bytes
        finally:
            table.clear()
            table.update(before)


@drive("decisions")
async def decisions(_directory: Path) -> None:
    kept = Decisions(refused=3, served=2)
    for number in range(9):
        one = exchange("/" + "x" * 60_000 + "?secret")
        one.headers = Headers([(b"large", b"x" * 60_000)])
        one.status = 403 if number % 2 else 200
        one.error = UpstreamClosed("gone") if number == 8 else None
        kept.record(one)
        story = kept.find(one.id)
        assert story is not None
        assert len(json.dumps(story)) < 2 * LONGEST_PATH
    assert len(kept) == 5


@drive("hanging guards")
async def hanging(_directory: Path) -> None:
    asked = []

    async def judge(_exchange: Any) -> Any:
        asked.append(True)
        return ALLOW

    play = Transcript(route(), hooks=StepHooks(restrict=[("gate", Guard(judge))]))
    play.environment.hung_steps.count = deadline.MAX_HUNG_STEPS
    answer = await play.request(origin=host_origin())
    assert (answer.status, asked, play.upstreams.dialed) == (503, [], 0)
    assert isinstance(play.proxy, FakeProxy)
    assert play.proxy.counters["guards_not_asked"] == 1
    play.environment.hung_steps.count -= 1
    assert (await play.request(origin=host_origin())).status == 200


# Upstreams ------------------------------------------------------------------------------------------------------------


@drive("exchanges with one upstream")
async def in_flight(_directory: Path) -> None:
    pool = UpstreamPool(upstream(), MemoryDialer(), max_in_flight=2)
    held = [await pool.acquire(), await pool.acquire()]
    with pytest.raises(UpstreamOverloaded):
        await pool.acquire()
    assert UpstreamOverloaded.status == 503
    for one in held:
        one.abort()
    (await pool.acquire()).abort()
    await pool.close()


@drive("exchanges of one client with one upstream")
async def in_flight_of_one(_directory: Path) -> None:
    pool = UpstreamPool(upstream(), MemoryDialer(), max_in_flight=8)
    held = [await pool.acquire(source="greedy") for _ in range(4)]
    with pytest.raises(UpstreamOverloaded):
        await pool.acquire(source="greedy")
    for _ in range(2):
        await pool.acquire(source="second")
    with pytest.raises(UpstreamOverloaded):
        await pool.acquire(source="second")
    await pool.acquire(source="late")
    for one in held:
        one.abort()
    await pool.acquire(source="greedy")
    await pool.close()


@drive("idle upstream connections")
async def idle(_directory: Path) -> None:
    dialer = MemoryDialer()
    pool = UpstreamPool(upstream(), dialer, max_idle=1)
    for one in [await pool.acquire(), await pool.acquire()]:
        one.send_head(b"GET / HTTP/1.1\r\n\r\n", method=b"GET", has_body=False)
        dialer.transports[len(dialer.transports) - 2 + pool.idle].feed(b"HTTP/1.1 204 No Content\r\n\r\n")
        await one.answer()
        pool.release(one)
    assert pool.idle == 1
    await pool.close()


@drive("answer head")
async def answer_head(_directory: Path) -> None:
    for said in (b"HTTP/1.1 200 OK\r\na: " + b"x" * 300, b"HTTP/1.1 103 Hints\r\na: " + b"x" * 150 + b"\r\n\r\n"):
        connection = Http1Connection(limits=HeadLimits(bytes=200, lines=5))
        wire = MemoryTransport.open(connection)
        connection.send_head(b"GET / HTTP/1.1\r\n\r\n", method=b"GET", has_body=False)
        wire.feed(said)
        wire.feed(said)
        with pytest.raises(ProtocolViolation):
            await connection.answer()


@drive("answer body")
async def answer_body(_directory: Path) -> None:
    connection = Http1Connection()
    wire = MemoryTransport.open(connection)
    connection.send_head(b"GET / HTTP/1.1\r\n\r\n", method=b"GET", has_body=False)
    wire.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n")
    wire.feed(b"x" * (upstream_module.HIGH_WATER + 1))
    assert wire.reading_paused
    answer = await connection.answer()
    await answer.read()
    assert not wire.reading_paused
    connection.abort()


@drive("upstream TLS contexts")
async def contexts(_directory: Path) -> None:
    assert client_context.cache_info().maxsize == 256


# Management -----------------------------------------------------------------------------------------------------------


@drive("services")
async def services(_directory: Path) -> None:
    counters: Counter[str] = Counter()
    play = Transcript()
    routing = Routing(play.compiler, limit=2, count=lambda name: counters.update([name]))
    made = [mapping(id=f"s{i}", host=f"h{i}.example") for i in range(3)]
    assert [report.refused for report in routing.apply("management", made)] == ["", "", "this proxy keeps 2 services"]
    assert (len(routing), sorted(routing.table.hosts)) == (2, ["h0.example", "h1.example"])
    assert counters == {"services_refused": 1}
    changed = mapping(
        route(service=ServiceId("s0"), host="new.example", domain="new.example"), id="s0", host="new.example"
    )
    assert routing.update("management", [changed])[0].ok
    assert [report.ok for report in routing.update("management", [made[2]], [ServiceId("s1")])] == [True]


@drive("management message")
async def message(_directory: Path) -> None:
    class Large(ProxyServiceServicer):
        async def SyncMappings(self, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
            yield SyncMappingsResponse(mapping=[ProxyMapping(id="x" * (client_module.MAX_MESSAGE_BYTES + 1))])

    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    add_ProxyServiceServicer_to_server(Large(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    made = Connection(
        url=f"http://127.0.0.1:{port}", token="t", proxy_id="p", version="1", domain="d", allow_insecure=True
    )
    async with open_channel(made) as channel:
        call: Any = ProxyServiceStub(channel).SyncMappings(timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.stop(None)


@drive("statuses")
async def status_words(_directory: Path) -> None:
    counters: Counter[str] = Counter()
    reports = StatusReports(FakeManagement(), lambda name: counters.update([name]))
    for number in range(status.LIMIT + 3):
        reports.report(Status(ServiceId(str(number)), AccountId("a"), PROXY_STATUS_ACTIVE))
    assert len(reports._waiting) == status.LIMIT
    assert next(iter(reports._waiting)) == "3"
    assert counters == {"statuses_dropped": 3}


@drive("one-time tokens")
async def one_time(_directory: Path) -> None:
    counters: Counter[str] = Counter()
    kept = OneTimeTokens(lambda name: counters.update([name]))
    for number in range(tokens.PER_ACCOUNT + 2):
        kept.put(AccountId("a"), ServiceId(str(number)), "t", 0)
    for number in range(tokens.ACCOUNTS):
        kept.put(AccountId(str(number)), ServiceId("s"), "t", 0)
    assert counters == {"one_time_tokens_dropped": 3}
    assert kept.spend(AccountId("a"), 0) is None
    assert kept.spend(AccountId("1"), 0) is not None


@drive("account generations")
async def generations(directory: Path) -> None:
    hooks = load_hooks([], defaults=(), core_claims=())
    counters: Counter[str] = Counter()
    kept: Any = Accounts(
        hooks,
        FakeManagement(),  # type: ignore[arg-type]  # nothing registers here
        directory,
        listening=None,
        on_change=lambda _state: None,
        on_map=lambda _account: None,
        connections=100,
        count=lambda name: counters.update([name]),
    )
    kept.raise_generation(AccountId("first"))
    kept.raise_generation(AccountId("first"))
    before = kept.generation(AccountId("first"))
    for number in range(accounts_module.GENERATIONS):
        kept.raise_generation(AccountId(str(number)))
    assert len(kept._generations) <= accounts_module.GENERATIONS
    assert counters == {"generations_forgotten": 1}
    assert kept.generation(AccountId("first")) > before
    assert kept.generation(AccountId("1")) > 1


@drive("revocations")
async def revocations(_directory: Path) -> None:
    counters: Counter[str] = Counter()
    kept = RevokedSessions(clock=lambda: 0.0, limit=2, count=lambda name: counters.update([name]))
    for number in range(5):
        kept.add(AccountId("a"), subject=f"u{number}", not_before=float(number + 1))
    assert counters == {"revocations_overflowed": 3}
    assert len(kept) <= 3

    def revoked(user: str, issued: float) -> bool:
        return kept.revoked(AccountId("a"), subject=user, token_hash=b"", issued_at=issued)

    assert revoked("u0", 0.5)
    assert revoked("somebody", 2.5)  # forgotten towards refusing
    assert not revoked("somebody", 9.0)


@drive("mappings file")
async def mappings_file(directory: Path) -> None:
    (directory / "large.toml").write_bytes(b"#" * (files.MAX_BYTES + 1))
    with pytest.raises(files.MappingsRefused, match="is larger than"):
        files.read_mappings(directory / "large.toml")


# Peers ----------------------------------------------------------------------------------------------------------------


def grant(_question: Question, _domain: str) -> Any:
    async def answer() -> ValidateTunnelPeerResponse:
        return ValidateTunnelPeerResponse(valid=True, session_token="t")

    return answer()


@asynccontextmanager
async def validating(*, burst: int = 10**6) -> AsyncIterator[Validations]:
    made = Validations(grant, lambda _account: 0, lambda: 0.0, lifetime=300, per_account=2, burst=burst, rate=1)
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.run(ready))
        await ready.wait()
        yield made
        task.cancel()


def question(account: str = "a", peer: str = "p", host: str = "h") -> Question:
    return Question(AccountId(account), PublicKey(peer), "100.64.0.7", host)


@drive("grants to peers")
async def grants(_directory: Path) -> None:
    async with validating() as made:
        for number in range(4):
            await made.validate(question(host=str(number)), "d")
        assert (len(made._grants[AccountId("a")]), made.dropped) == (2, 2)
        kept = made._grants[AccountId("a")]
        for number in range(validation.ACCOUNTS):
            made._grants.keep(AccountId(f"a{number}"), kept)
        await made.validate(question(account="late"), "d")
        assert len(made._grants) == validation.ACCOUNTS
        assert AccountId("a") not in made._grants
        assert AccountId("late") in made._grants


@drive("calls that peers cause")
async def questions(_directory: Path) -> None:
    async with validating(burst=2) as made:
        for number in range(2):
            await made.validate(question(host=str(number)), "d")
        with pytest.raises(TooManyQuestions):
            await made.validate(question(host="third"), "d")
        await made.validate(question(peer="another"), "d")
        for number in range(validation.BUCKETS):
            made._questions.take((AccountId("x"), PublicKey(str(number))))
        await made.validate(question(peer="late"), "d")
        assert len(made._questions) == validation.BUCKETS


@drive("tunnel connections")
async def tunnel_connections(_directory: Path) -> None:
    simulation = Simulation()
    here, there = (
        simulation.node(["100.64.0.1"]),
        simulation.node(["100.64.0.2"], max_connections=3, reserved_for_dials=1),
    )
    simulation.introduce(here, there)
    for _ in range(2):
        simulation.connection(here, there)
    late = here.connect(there.address, 80)
    simulation.run(10)
    assert here.end(late) is None
    assert there.engine.counters()["limit_reached"] >= 1
    there.connect(here.address, 80)
    with pytest.raises(LimitReached):
        there.connect(here.address, 80)


@drive("tunnel bytes")
async def tunnel_bytes(_directory: Path) -> None:
    simulation = Simulation()
    here, there = simulation.node(["100.64.0.1"], send_buffer=20_000), simulation.node(["100.64.0.2"])
    simulation.introduce(here, there)
    there.engine.listen(80)
    conn = here.connect(there.address, 80)
    assert simulation.run(5, lambda: bool(here.of(Connected)))
    assert 0 < sum(here.engine.write(conn, b"x" * 10_000) for _ in range(10)) <= 20_000


@drive("tunnel datagrams")
async def tunnel_datagrams(_directory: Path) -> None:
    simulation = Simulation()
    here, there = simulation.pair()
    here.engine.udp_listen(53)
    sent = [here.engine.udp_send(53, bytes(1000), (there.address, 53)) for _ in range(2000)]
    assert 0 < sent.count(True) <= 1024
    assert here.engine.counters()["udp_dropped"] == sent.count(False)
    for port in range(1000, 2023):
        here.engine.udp_listen(port)
    with pytest.raises(LimitReached):
        here.engine.udp_connect(there.address, 53)


@drive("tunnel reader that takes nothing")
async def tunnel_reader(_directory: Path) -> None:
    simulation = Simulation()
    here, there = simulation.pair()
    conn, accepted = simulation.connection(here, there)
    there.engine.pause_reading(accepted)
    here.send(conn, bytes(1 << 20))
    simulation.run(14 * 60)
    assert here.end(conn) is None
    simulation.run(2 * 60)
    assert here.end(conn) == "timeout"


@drive("endpoints of peers")
async def places(directory: Path) -> None:
    home = directory / "acct"
    home.mkdir(mode=0o700)
    state = TunnelState.load(home)
    state.save()
    kept = PeerEndpoints(state)
    for number in range(peer_endpoints.GONE_MOST + 5):
        kept.moved(number.to_bytes(32, "big"), Endpoint("192.0.2.7", 4711))
    kept.present(set(), 0)
    assert len(state.endpoints) == peer_endpoints.GONE_MOST
    for port in range(1, 3000):
        kept.moved(bytes(32), Endpoint("192.0.2.7", port))
    assert 0 < (home / peer_endpoints.JOURNAL_FILE).stat().st_size <= peer_endpoints.JOURNAL_MOST_BYTES
    kept.close()
    assert TunnelState.load(home).endpoints[bytes(32)] == Endpoint("192.0.2.7", 2999)


# What goes out about exchanges ----------------------------------------------------------------------------------------


@drive("log lines")
async def log_lines(_directory: Path) -> None:
    written: list[str] = []
    handler = logs._Handler(written.append, lambda: 0.0)
    for _ in range(logs.BURST + 50):
        handler.emit(logging.LogRecord("name", logging.INFO, "", 0, "request.refused", None, None))
    for number in range(logs.EVENTS + 5):
        handler.emit(logging.LogRecord("name", logging.INFO, "", 0, f"event.{number}", None, None))
    assert written.count("request.refused") == logs.BURST
    assert len(handler._lines) == logs.EVENTS
    assert len(handler._left_out) <= logs.EVENTS


@drive("access-log lines")
async def access_log_lines(directory: Path) -> None:
    lost: list[int] = []
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def failed(lines: int, _why: str) -> None:
        lost.append(lines)
        loop.call_soon_threadsafe(told.set)

    fifo = directory / "log"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = LineWriter(str(fifo), interval=0.001, failed=failed)
    line = b"x" * 65_535 + b"\n"
    for _ in range(writer_module.MAX_PENDING_BYTES // len(line) + 20):
        writer.write(line)
    assert writer._queued - writer._written <= writer_module.MAX_PENDING_BYTES + len(line)

    def drain() -> None:
        while not told.is_set():
            try:
                os.read(reader, 1 << 20)
            except BlockingIOError:
                continue

    async with asyncio.timeout(20):
        await asyncio.to_thread(drain)
    assert sum(lost) >= 10
    os.close(reader)
    await asyncio.to_thread(writer.close, 2)


@drive("access-log entries")
async def access_log_entries(_directory: Path) -> None:
    silent = asyncio.Event()

    async def hang(_request: Any) -> None:
        await silent.wait()

    proxy = FakeProxy(management=FakeManagement({"SendAccessLog": hang}))
    sender = Sender(proxy, {"a"}, queue=3)
    for account in ("a", "b", "c", "d", None):
        sender.put(account, b"")
    assert (sender._waiting.places, proxy.counters["access_log_lost"]) == (0, 2)
    if sender._timer is not None:
        sender._timer.cancel()
    waiting = Waiting(1 << 30)
    while not waiting.put("a", b"x" * 60_000):
        pass
    assert 0 < waiting.free_bytes < UNSENT_BYTES // 3  # and the calls under way count too, until they end
    calls = waiting.take(batches=True)
    for call in calls:
        waiting.begin(call)
    assert waiting.free_bytes < UNSENT_BYTES // 3
    for call in calls:
        waiting.end(call)
    assert waiting.free_bytes == UNSENT_BYTES


@drive("spans")
async def spans(_directory: Path) -> None:
    given: list[Any] = []

    class Processor:
        def on_end(self, span: Any) -> None:
            given.append(span)

    lost: list[bool] = []
    exporter: Any = collector.Counted(None)  # type: ignore[arg-type]  # nothing is exported here
    processor: Any = Processor()
    line = collector.SpanQueue(processor, exporter, lambda: lost.append(True))
    span: Any = object()
    for _ in range(collector.QUEUE + 2):
        line.put(span)
    assert (len(given), len(lost)) == (collector.QUEUE, 2)
    exporter.taken += 1
    line.put(span)
    assert len(given) == collector.QUEUE + 1


# Logins ---------------------------------------------------------------------------------------------------------------


@drive("session tokens")
async def verified(_directory: Path) -> None:
    key = SigningKey.generate()
    kept = session_tokens.Tokens(clock=lambda: 100.0, remembered=2)

    def signed(subject: str) -> bytes:
        def part(value: object) -> bytes:
            return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

        claims = {"iss": session_tokens.ISSUER, "sub": subject, "aud": ["h"], "method": "pin", "iat": 50, "exp": 200}
        said = part({"alg": "EdDSA"}) + b"." + part(claims)
        return said + b"." + base64.urlsafe_b64encode(key.sign(said).signature).rstrip(b"=")

    public = bytes(key.verify_key)
    for number in range(5):
        session = kept.verify(signed(f"u{number}"), public, "h")
        assert session is not None
        kept.remember(b"line %d" % number, public, "h", session)
        kept.remember(b"x" * 5000, public, "h", session)
    assert len(kept._verified) == 2
    assert len(kept._lines) == 2
    assert kept.verify(signed("u0"), public, "h") is not None
    assert kept.recall(b"line 0", public, "h") is None
    assert kept.recall(b"x" * 5000, public, "h") is None


@drive("session confirmations")
async def confirmed(_directory: Path) -> None:
    class Site:
        account, domain = AccountId("a"), "h"

    kept = confirmations.Confirmations(lambda: 0.0, fresh=60, stale=60)
    proxy = FakeProxy(management=FakeManagement({"ValidateSession": ValidateSessionResponse(valid=True)}))
    site: Any = Site()
    for number in range(confirmations.REMEMBERED + 2):
        session: Any = type("Session", (), {"hash": b"%d" % number})
        assert await kept.groups(site, proxy, b"t", session) == ()
    assert len(kept._confirmations) == confirmations.REMEMBERED


@drive("credentials")
async def credentials(_directory: Path) -> None:
    kept = authenticators.Credentials(lambda: 0.0, lambda: 0.0)
    session: Any = type("Session", (), {"expires_at": 100.0})
    for number in range(authenticators.CREDENTIALS + 2):
        kept.put(b"%d" % number, session)
    assert len(kept._sessions) == authenticators.CREDENTIALS
    assert kept.get(b"0") is None


@drive("login guesses")
async def login_guesses(_directory: Path) -> None:
    kept = login_throttle.LoginThrottle(lambda: 0.0, sources=3)
    for number in range(6):
        kept.reserve(f"s{number}", "192.0.2.1")
        kept.record_success(f"s{number}", f"192.0.2.{number}")
    assert len(kept._sources) <= 3
    assert len(kept._failures) <= 3
    for number in range(100):
        kept.reserve("one", f"198.51.100.{number}")
    assert len(kept._failures["one"]) == login_throttle.SERVICE_FAILURES


# The list -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DRIVES)
async def test_limit_holds(name: str, tmp_path: Path) -> None:
    """Past it, what the page says, and room again afterwards where that is said."""
    async with asyncio.timeout(50):
        await DRIVES[name](tmp_path)


def test_page_lists_them_all() -> None:
    """Each row of the table has its test, and each test its row."""
    section = PAGE.read_text().partition("## Bounds\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-z][^|]*?) \|", section, flags=re.MULTILINE)
    assert sorted(set(rows) - {"bounded"}) == sorted(DRIVES)
