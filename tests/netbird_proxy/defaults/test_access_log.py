"""The access log: what is written, what management is told, and what becomes of what cannot be told."""
# Over 500 lines: one feature, from the step to the line and the entry.

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import grpc
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from netbird_host.line_writer import MAX_PENDING_BYTES, LineWriter
from netbird_proxy import (
    AccountId,
    Address,
    Deny,
    ExchangeId,
    Group,
    Headers,
    Identity,
    Observer,
    Origin,
    Proxy,
    RouteSpec,
    Try,
    Upstream,
    UserId,
)
from netbird_proxy.api.errors import ClientGone, UpstreamClosed
from netbird_proxy.api.exchange import OBSERVED
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.defaults.access_log import AccessLogOptions
from netbird_proxy.defaults.access_log.entry import EntryFormat, request_of, under
from netbird_proxy.defaults.access_log.line import LineFormat
from netbird_proxy.defaults.access_log.plugin import GATHERED, LONG_PATH
from netbird_proxy.defaults.access_log.sender import WORKERS
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_wire.proxy_service_pb2 import AccessLog, SendAccessLogRequest
from tests.reference import access_log_entry, access_log_line

TUNNEL = Identity(UserId("alice"), "alice@example.com", (Group("g1", "engineering"),), "tunnel", by="private_service")
WAIT = 20.0
LONGEST_PATH = 2048


def entry_of(exchange: Exchange, *, groups: bool = False) -> AccessLog:
    """The entry as management reads it."""
    return AccessLog.FromString(EntryFormat(exchange.route).entry(exchange, groups=groups))


@pytest.fixture(autouse=True)
def events() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def hooks() -> Hooks:
    return load_hooks(defaults={"access_log": DEFAULTS["access_log"]})


def observer(made: Hooks, route: RouteSpec | None, proxy: Proxy) -> Observer:
    ((plugin, observe),) = made.observe(route, proxy)
    assert plugin == "access_log"
    return observe


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def written(
    tmp_path: Path, host: Callable[..., Proxy], *exchanges: Any, route: RouteSpec | None = None
) -> list[dict[str, Any]]:
    file, made = tmp_path / "access.log", hooks()
    proxy = host(AccessLogOptions(output=str(file), management=False))
    async with made.running(proxy):
        for one in exchanges:
            for _, observe in made.observe(route if route is not None else one.route, proxy):
                observe(one)
    return lines(file)


async def test_an_exchange_is_one_line(tmp_path: Path, host: Any, exchange: Any) -> None:
    """Everything about it in one JSON object, nothing of its query."""
    (line,) = await written(tmp_path, host, exchange(query=b"password=1234", identity=TUNNEL))

    assert line == {
        "timestamp": "2023-11-14T22:13:20.500000Z",
        "level": "info",
        "event": "exchange.done",
        "exchange": "0af7651916cd43dd8448eb211c80319c",
        "method": "GET",
        "scheme": "https",
        "host": "app.example",
        "path": "/a/b",
        "status": 200,
        "duration_ms": 12.5,
        "bytes_received": 3,
        "bytes_sent": 1234,
        "client": "100.64.0.9",
        "listener": "tunnel acct-1",
        "account": "acct-1",
        "service": "svc-1",
        "upstream": "http://100.64.0.7:8080",
        "user": "alice",
        "groups": ["engineering"],
        "auth": "tunnel",
        "by": "private_service",
    }


async def test_what_would_have_been_refused_is_told(tmp_path: Path, host: Any, exchange: Any) -> None:
    """The verdicts of guards that only observe are in the line and in the entry, and are no refusal there."""
    one = exchange(status=200)
    one.notes[OBSERVED] = "geo:country_restricted other:failed"

    (line,) = await written(tmp_path, host, one)

    assert (line["observed"], "code" in line) == ("geo:country_restricted other:failed", False)
    entry = entry_of(one)
    assert dict(entry.metadata) == {"observed": "geo:country_restricted other:failed"}
    assert (entry.auth_success, entry.auth_mechanism) == (True, "")


async def test_a_hostile_path_stays_inside_its_line(tmp_path: Path, host: Any, exchange: Any) -> None:
    """No byte of a path can begin a line of its own or break the JSON."""
    (line,) = await written(tmp_path, host, exchange(b'/\r\n{"status":200}\xff\x00\x1b'))

    assert line["path"] == '/\r\n{"status":200}\xff\x00\x1b'


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"status": 403, "denial": Deny(403, "not_in_group", "no"), "tries": []}, 403, "not_in_group"),
        ({"status": 502, "error": UpstreamClosed("it closed")}, 502, "upstream_closed"),
        ({"status": 200, "error": UpstreamClosed("half-way")}, 200, "upstream_closed"),
        ({"status": 200, "error": ClientGone("left")}, 499, "client_gone"),
        ({"status": 0, "error": ClientGone("left")}, 499, "client_gone"),
        ({"status": 101, "error": ClientGone("left")}, 101, "client_gone"),
        ({"status": 0}, 499, None),
    ],
)
async def test_the_status_says_how_it_ended(
    tmp_path: Path, host: Any, exchange: Any, fields: dict[str, Any], status: int, code: str | None
) -> None:
    """What the client was answered; 499 when it left; an upgraded connection stays 101."""
    (line,) = await written(tmp_path, host, exchange(**fields))

    assert (line["status"], line.get("code")) == (status, code)


async def test_no_route_is_logged_too(tmp_path: Path, host: Any, exchange: Any) -> None:
    """A stranger's knocking is in the operator's log, under the account whose tunnel it came by."""
    (line,) = await written(tmp_path, host, exchange(routed=False, status=404))

    assert (line["status"], line["account"]) == (404, "acct-1")
    assert "service" not in line


async def test_one_that_cannot_be_put_into_words_costs_no_other(
    tmp_path: Path, host: Any, exchange: Any, events: list[Any]
) -> None:
    """They are put into words together; what is wrong with one is told and counted, and ends there."""
    file, made = tmp_path / "access.log", hooks()
    proxy = host(AccessLogOptions(output=str(file), management=False))
    async with made.running(proxy):
        observe = observer(made, None, proxy)
        for one in (exchange(), exchange(status="teapot"), exchange()):
            observe(one)
    assert len(lines(file)) == 2
    assert proxy.counters == {"observer_failed": 1}
    assert [event["event"] for event in events] == ["access_log.failed"]


async def test_what_is_cut_afterwards_was_put_into_words_before(tmp_path: Path, host: Any, exchange: Any) -> None:
    """A long path stands in its line whole, though it is not remembered whole."""
    file, made = tmp_path / "access.log", hooks()
    proxy = host(AccessLogOptions(output=str(file), management=False))
    long = b"/" + b"a" * LONG_PATH
    async with made.running(proxy):
        one = exchange(long)
        observer(made, None, proxy)(one)
        one.raw_path = b"/cut"
    (line,) = lines(file)
    assert line["path"] == long.decode()


async def test_endpoints_of_plugins_are_logged(tmp_path: Path, host: Any, exchange: Any) -> None:
    """Every path below `/__netbird__/` has its line."""
    paths = [b"/__netbird__/session/login", b"/__netbird__/shop/assets/x.css"]
    logged = await written(tmp_path, host, *map(exchange, paths))

    assert [line["path"].encode() for line in logged] == paths


async def test_a_target_may_be_left_out(tmp_path: Path, host: Any, exchange: Any) -> None:
    """`disable_access_log` holds for its target alone; where all have it, nothing is even asked."""
    quiet = Upstream("http", Address("100.64.0.8", 80), disable_access_log=True)
    route = exchange().route
    mixed, silent = replace(route, upstreams=(*route.upstreams, quiet)), replace(route, upstreams=(quiet,))
    heard, unheard = exchange(), exchange(tries=[Try(quiet, 1)])

    assert len(await written(tmp_path, host, heard, unheard, exchange(tries=[]), route=mixed)) == 2
    assert hooks().observe(silent, host()) == []


async def test_management_is_told(connect: Any, host: Any, exchange: Any) -> None:
    """One entry an exchange, under the service's account; `oidc` for a tunnel identity, and its user only then."""
    async with connect() as (management, client):
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            one = exchange(b"/a%20b/\xff%00", query=b"secret=1", identity=TUNNEL)
            observer(made, one.route, proxy)(one)
            (entry,) = await management.entries(1)

    assert entry.timestamp.ToNanoseconds() == 1_700_000_000_512_500_000
    assert (entry.log_id, entry.account_id, entry.service_id) == (one.id, "acct-1", "svc-1")
    assert (entry.host, entry.path, entry.method) == ("app.example", "/a b/\ufffd\ufffd", "GET")
    assert (entry.response_code, entry.duration_ms, entry.protocol) == (200, 12, "http")
    assert (entry.source_ip, entry.bytes_upload, entry.bytes_download) == ("100.64.0.9", 3, 1234)
    assert (entry.auth_mechanism, entry.user_id, entry.auth_success) == ("oidc", "alice", True)
    assert list(entry.user_groups) == []  # NetBird's management does not read them
    assert "secret" not in str(entry)


async def test_our_management_gets_batches_with_groups(connect: Any, host: Any, exchange: Any) -> None:
    """Where management says so, many entries travel together, each with the caller's groups."""
    async with connect("access_log_batch") as (management, client):
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            observe = observer(made, exchange().route, proxy)
            for _ in range(50):
                observe(exchange(identity=TUNNEL))
            async with asyncio.timeout(WAIT):
                entries = (await management.calls.get()).logs

    assert len(entries) == 50
    assert {tuple(entry.user_groups) for entry in entries} == {("engineering",)}


@pytest.mark.parametrize(
    ("fields", "mechanism", "user", "success"),
    [
        ({"identity": Identity(UserId("u"), method="password")}, "password", "", True),
        ({"identity": Identity(UserId("u"), method="oidc")}, "oidc", "u", True),
        ({"status": 403, "denial": Deny(403, "tunnel_required")}, "", "", False),
        ({"status": 403, "denial": Deny(403, "ip_restricted")}, "ip_restricted", "", False),
        ({"status": 403, "denial": Deny(403, "not_in_group"), "identity": TUNNEL}, "oidc", "alice", False),
        ({"status": 401}, "", "", False),
        ({"status": 500}, "", "", True),
    ],
)
def test_how_the_caller_was_known(
    exchange: Any, fields: dict[str, Any], mechanism: str, user: str, success: bool
) -> None:
    """The mechanism, the user only with `oidc`, and success unless 401 or 403."""
    entry = entry_of(exchange(**fields), groups=False)

    assert entry is not None
    assert (entry.auth_mechanism, entry.user_id, entry.auth_success) == (mechanism, user, success)


def test_what_belongs_to_no_account_names_none(exchange: Any) -> None:
    """On a tunnel the account is known without a route."""
    known = entry_of(exchange(routed=False), groups=False)

    assert (known.account_id, known.service_id) == ("acct-1", "")
    assert entry_of(exchange(routed=False, origin=None), groups=False).account_id == ""
    written = EntryFormat(None).entry(exchange(routed=False, origin=None), groups=False)
    assert AccessLog.FromString(under("acct-9", written)).account_id == "acct-9"


def test_an_entry_is_bounded(exchange: Any) -> None:
    """A path of 60 KiB does not fill the queue's memory."""
    entry = entry_of(exchange(b"/" + b"a" * 60_000), groups=False)

    assert entry is not None
    assert len(entry.path) == LONGEST_PATH


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=300)
COUNT = st.integers(0, 2**62)


@given(st.binary(max_size=5000), TEXT, TEXT, st.integers(100, 599), COUNT, COUNT, st.lists(TEXT, max_size=3))
def test_an_entry_is_what_the_message_would_be(
    raw: bytes, host: str, user: str, status: int, sent: int, lasted: int, groups: list[str]
) -> None:
    """Written by hand, the bytes say what the generated class reads: nothing of a client moves a field's border."""
    who = Identity(UserId(user), "e", tuple(Group("id", name) for name in groups), "tunnel")
    one = Exchange(
        id=ExchangeId("0af7651916cd43dd8448eb211c80319c"),
        origin=Origin("l", AccountId(host), Address("::1", 1), Address("::1", 2)),
        method="GET", scheme="http", host=host, authority=b"", raw_path=raw, query=b"", http_version="1.1",
        headers=Headers(), client_address="::1",
    )  # fmt: skip
    one.started_at, one.started_ns, one.ended_ns = 1_700_000_000.25, 0, lasted
    one.status, one.bytes_sent, one.identity = status, sent, who
    one.denial = Deny(403, "not_in_group") if status == 403 else None
    request = SendAccessLogRequest.FromString(request_of([in_bytes(one), in_bytes(one)], batch=True))
    assert len(request.logs) == 2
    assert (
        request.logs[0]
        == request.logs[1]
        == SendAccessLogRequest.FromString(request_of([in_bytes(one)], batch=False)).log
    )
    entry = request.logs[0]
    seconds, nanos = divmod(int(one.started_at * 1e9) + lasted, 10**9)
    assert (entry.timestamp.seconds, entry.timestamp.nanos, entry.duration_ms) == (seconds, nanos, lasted // 10**6)
    assert (entry.log_id, entry.account_id, entry.service_id, entry.host) == (one.id, host, "", host)
    assert (entry.method, entry.source_ip, entry.response_code, entry.protocol) == ("GET", "::1", status, "http")
    assert (entry.auth_mechanism, entry.user_id, entry.auth_success) == ("oidc", user, status not in (401, 403))
    assert (entry.bytes_upload, entry.bytes_download) == (0, sent)
    assert list(entry.user_groups) == [name or "id" for name in groups]
    assert dict(entry.metadata) == ({"code": "not_in_group"} if status == 403 else {})
    decoded = unquote_to_bytes(raw).decode("utf-8", "replace").replace("\0", "\ufffd")
    assert entry.path == decoded[:LONGEST_PATH]


def in_bytes(exchange: Exchange) -> bytes:
    found = EntryFormat(exchange.route).entry(exchange, groups=True)
    assert found is not None
    return found


IDENTITIES = st.none() | st.builds(
    Identity,
    TEXT.map(UserId),
    groups=st.lists(st.builds(Group, TEXT, TEXT), max_size=2).map(tuple),
    method=st.sampled_from(("tunnel", "oidc", "password")),
    by=TEXT,
)
DENIALS = st.none() | st.builds(Deny, st.just(403), st.sampled_from(("ip_restricted", "not_in_group", "é")))
PATHS = st.binary(max_size=300) | st.text("/%20é\0", max_size=4000).map(str.encode)


@given(
    raw=PATHS, method=TEXT, host=TEXT, client=TEXT, status=st.integers(0, 999), sent=COUNT, lasted=COUNT,
    started=st.floats(0, 4e9), who=IDENTITIES, denial=DENIALS, tries=st.integers(0, 2), observed=TEXT,
    tunnel=st.booleans(), groups=st.booleans(),
)  # fmt: skip
def test_lines_and_entries_are_byte_for_byte_those_before_the_engine(
    raw: bytes, method: str, host: str, client: str, status: int, sent: int, lasted: int, started: float,
    who: Identity | None, denial: Deny | None, tries: int, observed: str, tunnel: bool, groups: bool,
) -> None:  # fmt: skip
    """Operator and management get the same bytes from both writers for any request."""
    origin = Origin("tunnel ü", AccountId("acct-1") if tunnel else None, Address("::1", 1), Address("::1", 2))
    one = Exchange(
        id=ExchangeId("0af7651916cd43dd8448eb211c80319c"), origin=origin, method=method, scheme="https", host=host,
        authority=b"", raw_path=raw, query=b"secret", http_version="1.1", headers=Headers(), client_address=client,
    )  # fmt: skip
    one.started_at, one.started_ns, one.ended_ns = started, 0, lasted
    one.status, one.bytes_sent, one.identity, one.denial = status, sent, who, denial
    one.tries.extend(Try(Upstream("http", Address("10.0.0.1", 80)), 1) for _ in range(tries))
    one.allowed_notes = frozenset((OBSERVED,))
    one.note(OBSERVED, observed)

    assert LineFormat(None).line(one) == access_log_line.LineFormat(None).line(one)
    entries = EntryFormat(None), access_log_entry.EntryFormat(None)
    assert entries[0].entry(one, groups=groups) == entries[1].entry(one, groups=groups)


async def test_management_gets_entries_of_endpoints(connect: Any, host: Any, exchange: Any) -> None:
    """A login is an access of the service."""
    async with connect() as (management, client):
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            observe = observer(made, exchange().route, proxy)
            observe(exchange(b"/__netbird__/session/login"))
            (entry,) = await management.entries(1)

    assert (entry.path, entry.service_id) == ("/__netbird__/session/login", "svc-1")
    assert management.calls.empty()


async def test_client_that_left_is_told(connect: Any, host: Any, exchange: Any) -> None:
    """An exchange that was cut is an access as well, with the bytes that went by: 499."""
    async with connect() as (management, client):
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            one = exchange(error=ClientGone("left"), status=200)
            observer(made, one.route, proxy)(one)
            (entry,) = await management.entries(1)

    assert (entry.response_code, entry.bytes_download) == (499, 1234)


def stranger(exchange: Any) -> Exchange:
    """Somebody who asked for a host that nobody has, on a host listener."""
    made: Exchange = exchange(routed=False, origin=None, status=404)
    return made


@pytest.mark.parametrize("extensions", [(), ("access_log_batch",)])
async def test_strangers_are_told_with_a_token_for_everybody(
    connect: Any, host: Any, exchange: Any, extensions: tuple[str, ...]
) -> None:
    """Without an account, and never in one call with others: those must not be refused with them."""
    async with connect(*extensions) as (management, client):
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            observe, observe_strangers = observer(made, exchange().route, proxy), observer(made, None, proxy)
            for _ in range(3):
                observe(exchange())
                observe_strangers(stranger(exchange))
            calls = []
            while sum(len(call.logs) or 1 for call in calls) < 6:
                async with asyncio.timeout(WAIT):
                    calls.append(await management.calls.get())

    accounts = [{log.account_id for log in call.logs or [call.log]} for call in calls]
    assert all(len(found) == 1 for found in accounts)
    each = 1 if extensions else 3
    assert sorted(found.pop() for found in accounts) == [""] * each + ["acct-1"] * each
    assert proxy.counters == {}


@pytest.mark.parametrize("accounts", [0, 1, 2])
async def test_strangers_under_an_accounts_token(
    connect: Any, host: Any, exchange: Any, events: list[Any], accounts: int
) -> None:
    """Refused once, they go under the only account that has routes here; with several, or none, nobody may tell."""

    async def refuse_strangers(context: Any) -> None:
        if not management.seen[-1].account_id:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "account-scoped token cannot access account ")

    async with connect("access_log_batch") as (management, client):
        management.answer = refuse_strangers
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            for number in range(accounts):
                observer(made, replace(exchange().route, account=AccountId(f"acct-{number + 1}")), proxy)
            observe = observer(made, None, proxy)
            observe(stranger(exchange))
            assert [one.account_id for one in await management.entries(1)] == [""]
            if accounts == 1:
                assert [one.account_id for one in await management.entries(1)] == ["acct-1"]
                observe(stranger(exchange))
                (again,) = await management.entries(1)
                assert (again.account_id, again.response_code) == ("acct-1", 404)
        assert proxy.counters == ({} if accounts == 1 else {"access_log_lost": 1})


async def test_what_management_does_not_know_stays_here(tmp_path: Path, connect: Any, host: Any, exchange: Any) -> None:
    """An exchange with a mapping of the proxy's own file has its line, and no entry: it would be refused, with all that
    travel in its call."""
    async with connect("access_log_batch") as (management, client):
        file = tmp_path / "log"
        proxy, made = host(AccessLogOptions(output=str(file)), management=client), hooks()
        async with made.running(proxy):
            own = replace(exchange().route, account=AccountId(""))
            observe = observer(made, exchange().route, proxy)
            observer(made, own, proxy)(exchange(route=own))
            observe(exchange(status=201))
            (entry,) = await management.entries(1)

    assert (entry.account_id, entry.response_code) == ("acct-1", 201)
    assert [line["status"] for line in lines(file)] == [200, 201]
    assert proxy.counters == {}


async def test_strangers_are_told_before_the_end(connect: Any, host: Any, exchange: Any) -> None:
    """Those that are refused when the proxy has begun to stop still go under the only account."""

    async def refuse_strangers(context: Any) -> None:
        if not management.seen[-1].account_id:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "account-scoped token cannot access account ")

    async with connect("access_log_batch") as (management, client):
        management.answer = refuse_strangers
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            observer(made, exchange().route, proxy)
            observer(made, None, proxy)(stranger(exchange))
        told = await management.entries(2)

    assert [one.account_id for one in told] == ["", "acct-1"]
    assert proxy.counters == {}


async def test_entries_that_fail_are_counted_and_told_once(
    connect: Any, host: Any, exchange: Any, events: list[Any]
) -> None:
    """A refusing management costs entries, one line, and nothing else."""

    async def refuse(context: Any) -> None:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

    async with connect() as (management, client):
        management.answer = refuse
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            observe = observer(made, None, proxy)
            for _ in range(20):
                observe(exchange())
            await management.entries(20)

    assert proxy.counters == {"access_log_lost": 20}
    assert [event["log_level"] for event in events if event["event"] == "access_log.lost"] == ["error"]


async def test_a_hanging_management_costs_entries_and_not_memory_or_the_end(
    connect: Any, host: Any, exchange: Any
) -> None:
    """The queue is bounded, what does not fit is counted, and leaving does not wait for ever."""

    async def hang(_context: Any) -> None:
        await asyncio.Event().wait()

    async with connect() as (management, client):
        management.answer = hang
        proxy, made = host(AccessLogOptions(output="off", queue=2 * WORKERS), management=client), hooks()
        async with asyncio.timeout(WAIT):
            async with made.running(proxy):
                observe = observer(made, None, proxy)
                for _ in range(WORKERS):
                    observe(exchange())
                await management.entries(WORKERS)  # every worker hangs
                for _ in range(2 * GATHERED):  # so many are put into words at once, each time
                    observe(exchange())
                # A single account gets three quarters of the queue.
                assert proxy.counters == {"access_log_lost": 2 * GATHERED - 2 * WORKERS * 3 // 4}

    assert proxy.counters == {"access_log_lost": WORKERS + 2 * GATHERED}  # of those under way nobody knows


@pytest.mark.parametrize("why", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
@pytest.mark.parametrize("leaving", [False, True])
async def test_entries_wait_for_a_management_that_is_away_or_full(
    connect: Any, host: Any, exchange: Any, why: grpc.StatusCode, leaving: bool
) -> None:
    """The call is made again, also while the process ends, and nothing is lost."""
    tried = asyncio.Event()

    async def refuse(context: Any) -> None:
        if not tried.is_set():
            tried.set()
            await context.abort(why, "not now")

    async with connect("access_log_batch") as (management, client), asyncio.timeout(WAIT):
        management.answer = refuse
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            observer(made, None, proxy)(exchange())
            await tried.wait()
            if not leaving:
                assert len(await management.entries(2)) == 2
        if leaving:
            assert len(await management.entries(2)) == 2
    assert proxy.counters == {}


async def test_what_is_queued_is_sent_before_the_end(connect: Any, host: Any, exchange: Any) -> None:
    """Leaving sends what was observed up to then."""
    async with connect() as (management, client):
        proxy, made = host(AccessLogOptions(output="off"), management=client), hooks()
        async with made.running(proxy):
            observe = observer(made, None, proxy)
            for _ in range(30):
                observe(exchange())
        assert len(await management.entries(30)) == 30


async def test_an_exchange_after_the_end_is_no_failure(host: Any, exchange: Any) -> None:
    """An observer that outlives its plugin does nothing."""
    proxy, made = host(AccessLogOptions(output="off", management=False)), hooks()
    observe = observer(made, None, proxy)
    async with made.running(proxy):
        pass

    observe(exchange())


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """Log rotation by rename needs no signal."""
    file, failures = tmp_path / "access.log", list[tuple[int, str]]()
    writer = LineWriter(str(file), interval=0.001, failed=lambda *what: failures.append(what))
    file.rename(tmp_path / "old.log")
    writer.write(b"one\n")

    assert writer.close(WAIT)
    assert file.read_bytes() == b"one\n"
    assert (tmp_path / "old.log").read_bytes() == b""
    assert failures == []


def test_a_reader_that_stops_reading_costs_lines_and_not_the_process(tmp_path: Path) -> None:
    """Behind a stalled output lines are bounded and counted, and closing comes back."""
    fifo, failures = tmp_path / "fifo", list[tuple[int, str]]()
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = LineWriter(str(fifo), interval=0.001, failed=lambda *what: failures.append(what))
    line = b"x" * 99_999 + b"\n"
    for _ in range(MAX_PENDING_BYTES // len(line) + 20):
        writer.write(line)

    assert writer.close(0.1) is False
    os.close(reader)  # the write fails now, and the thread ends
    assert writer.close(WAIT) is True
    assert sum(count for count, _ in failures) > 20
    assert {why for _, why in failures} <= {"they came faster than they could be written", "Broken pipe"}


async def test_an_output_that_cannot_be_opened_stops_the_start(tmp_path: Path, host: Any) -> None:
    """Nobody runs for a week without noticing that there is no log."""
    made = hooks()
    with pytest.raises(Exception, match="plugin access_log: lifespan could not start: FileNotFoundError"):
        async with made.running(host(AccessLogOptions(output=str(tmp_path / "no" / "file")))):
            pass
