"""The whole product in one process, on real sockets, with a relay in each line: management, proxy, peers, upstreams."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
import trustme
from sqlalchemy import event

from examples.demo.stack import free_port
from netbird_host.shutdown import Shutdown
from netbird_management.compute.wireguard import wireguard_config
from netbird_management.model.accounts import Group, Peer, Role, User
from netbird_management.model.clock import now
from netbird_management.model.ids import AccountId, GroupId, PeerId
from netbird_management.model.services import Service, ServiceMeta, Target, TargetOptions, TargetType
from netbird_management.operations.accounts import create_account
from netbird_management.operations.groups import create_group, update_group
from netbird_management.operations.peers import create_stock_peer
from netbird_management.operations.proxy_tokens import create_proxy_token
from netbird_management.operations.services import create_service, delete_service, update_service
from netbird_management.operations.users import create_user
from netbird_management.plugins.hooks import load_hooks
from netbird_management.server import ManagementServer, serve
from netbird_management.settings import Listener, ManagementSettings, RestListener
from netbird_management.store.engine import DATABASE_FILE
from netbird_overlay.driver import Driver
from netbird_overlay.wgconf import parse_config
from netbird_peer.node import peer_node
from netbird_proxy.operator.attendants import operated
from netbird_proxy.operator.decisions import Decisions
from netbird_proxy.process.loading import load
from netbird_proxy.process.server import ProxyServer
from netbird_proxy.process.settings import read_settings
from netbird_proxy.testing.faults import Kind, Line, TcpRelay, UdpRelay

CLUSTER = "px.test"
ALICE, BOB = "alice@lab.test", "bob@lab.test"
CACHE, RPC, REVALIDATE = 0.5, 0.5, 1.0
"""Seconds: what the proxy believes of a caller, what a call to management may take, and its timer."""
ACCESS_LOG = "access.log"
QUERY, COOKIE = "query-that-nobody-logs", "cookie-that-stays-here"
PROXY_NETWORK = "127.0.0.0/29"
"""What the operator allows; 127.0.0.9 is outside of it."""

AUTHORITY = trustme.CA()
ISSUED = AUTHORITY.issue_cert("127.0.0.1")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as an upstream had it."""

    at: float
    upstream: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def values(self, folded: str) -> list[str]:
        return [value for name, value in self.headers if name.lower().replace("_", "-").replace(".", "-") == folded]


class Upstream:
    """Remembers every request. `/drip` never ends; everything else shows the name."""

    def __init__(self, name: str, log: list[Seen]) -> None:
        self.name = name
        self._log = log
        self.dripping: dict[str, float | None] = {}
        """Target of an endless page → when the proxy let go of it."""
        self._serving: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def running(self, host: str = "127.0.0.1") -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, host, 0, limit=1 << 20)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            while self._serving:
                for writer in self._writers:
                    writer.transport.abort()
                await asyncio.wait(self._serving, timeout=0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self._writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, ValueError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1")
                    start, *lines = head.split("\r\n")
                    target = start.split(" ")[1]
                    pairs = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
                    seen = Seen(asyncio.get_running_loop().time(), self.name, target, pairs)
                    self._log.append(seen)
                    if target.startswith("/drip/"):
                        await self._drip(target, reader, writer)
                        return
                    body = json.dumps({"upstream": self.name, "version": seen.values("x-version")}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                    await writer.drain()
        finally:
            self._serving.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _drip(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        self.dripping[target] = None
        ended = asyncio.Task(reader.read())
        try:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
            while not ended.done():
                writer.write(b"drip")
                await writer.drain()
                await asyncio.wait((ended,), timeout=0.05)
        finally:
            self.dripping[target] = loop.time()
            ended.cancel()
            await asyncio.wait((ended,))


class StoreLine(Line):
    """Management's database: it fails to write, or somebody else holds its lock."""

    def __init__(self, server: ManagementServer, directory: Path) -> None:
        self._database = directory / DATABASE_FILE
        self._holder: sqlite3.Connection | None = None
        self.failing = False
        event.listen(server.state._engine.sync_engine, "before_cursor_execute", self._before)

    def _before(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if self.failing and statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            raise OSError("the disk is full")

    def apply(self, kind: Kind) -> None:
        if kind == "fail":
            self.failing = True
        elif self._holder is None:
            holder = sqlite3.connect(self._database, isolation_level=None, timeout=0)
            try:
                holder.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                holder.close()
            else:
                self._holder = holder

    def heal(self) -> None:
        self.failing = False
        if self._holder is not None:
            self._holder.rollback()
            self._holder.close()
            self._holder = None


@dataclass(slots=True)
class Answer:
    status: int
    body: bytes


class Node:
    """A person's peer in the overlay."""

    def __init__(self, node: Driver, proxy: str) -> None:
        self.node = node
        self.proxy = proxy

    async def open(self) -> tuple[asyncio.StreamReader, Any]:
        reader = asyncio.StreamReader()
        transport, _ = await self.node.connect(
            lambda: asyncio.StreamReaderProtocol(reader), self.proxy, 80, timeout=2.0
        )
        return reader, transport


@dataclass(slots=True)
class House:
    """What runs, and how to change it. Made by `house`."""

    directory: Path
    management: ManagementServer
    proxy: ProxyServer
    decisions: Decisions
    account: AccountId
    bob: User
    laptops: dict[str, Peer]
    engineering: Group
    http: int
    lines: dict[str, Line]
    seen: list[Seen]
    upstreams: dict[str, Upstream]
    ports: dict[str, int]
    people: dict[str, Node] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    log_read: int = 0
    """How far the access log was looked at."""

    @property
    def snapshot(self) -> Any:
        return self.management.state.snapshots.get(self.account)

    def in_map(self, name: str) -> bool:
        """Whether the proxy's overlay answers this person's laptop."""
        tunnel = self.proxy.host.tunnel(self.account)  # type: ignore[arg-type]
        return tunnel is not None and tunnel.whois(self.laptops[name].ip) is not None

    async def set_members(self, *names: str) -> None:
        ids = [PeerId(self.laptops[name].id) for name in names]
        await update_group(
            self.management.state, self.account, self.engineering.id, name=self.engineering.name, peers=ids
        )

    async def add(self, name: str, target: Target, *, private: bool = False) -> None:
        given = Service(
            id="",  # type: ignore[arg-type]
            account_id=self.account,
            name=name,
            domain=f"{name}.{CLUSTER}",
            proxy_cluster="",
            meta=ServiceMeta(created_at=now()),
            targets=(target,),
            private=private,
            access_groups=(GroupId(self.engineering.id),) if private else (),
        )
        sent = frozenset({"private", "access_groups"})
        self.services[name] = await create_service(self.management.state, self.management.hooks, given, sent)

    async def change(self, name: str, **fields: Any) -> None:
        current = self.snapshot.services[self.services[name].id]
        sent = frozenset({"private", "access_groups", *fields})
        self.services[name] = await update_service(
            self.management.state, self.management.hooks, replace(current, **fields), sent, confirm_public=True
        )

    async def delete(self, name: str) -> None:
        await delete_service(self.management.state, self.account, self.services[name].id)
        del self.services[name]

    def target(self, upstream: str, *, host: str = "127.0.0.1", version: int | None = None) -> Target:
        headers = (("X-Version", str(version)),) if version is not None else ()
        options = TargetOptions(direct_upstream=True, custom_headers=headers)
        return Target(
            target_id=CLUSTER,
            target_type=TargetType.CLUSTER,
            protocol="http",
            port=self.ports[upstream],
            host=host,
            options=options,
        )

    async def outside(self) -> tuple[asyncio.StreamReader, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http)
        return reader, writer


class LogWatch:
    """Looks at each log event for what must not be in one, and keeps none."""

    def __init__(self) -> None:
        self.forbidden: set[str] = {QUERY, COOKIE}
        self.found: list[str] = []
        self.show = False

    def __call__(self, _logger: Any, _method: str, event_dict: Any) -> Any:
        text = str(event_dict)
        if self.show:
            print(text[:300], flush=True)
        self.found += [f"{secret[:12]}… in {text[:200]}" for secret in self.forbidden if secret in text]
        raise structlog.DropEvent


LOGS = LogWatch()


def watch_logs() -> None:
    structlog.configure(processors=[LOGS], cache_logger_on_first_use=False)


@asynccontextmanager
async def house(directory: Path, one_at_a_time: asyncio.Lock, *, seed: int = 0) -> AsyncIterator[House]:
    """Everything up, three services served: `wiki` (private, engineering), `board` and `site` (public), and `closed`,
    whose upstream the operator has not allowed.

    `one_at_a_time` is shared by the houses of a process: Alembic migrates one database at a time.
    """
    roots, chain, key = directory / "roots.pem", directory / "grpc.pem", directory / "grpc.key"
    AUTHORITY.cert_pem.write_to_path(roots)
    chain.write_bytes(b"".join(blob.bytes() for blob in ISSUED.cert_chain_pems))
    ISSUED.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    async with AsyncExitStack() as stack:
        settings = ManagementSettings(
            state_directory=directory / "management",
            rest=RestListener(listen="127.0.0.1:0"),
            grpc=Listener(listen="127.0.0.1:0", certificate=chain, key=key),
            grace=0.5,
        )
        async with one_at_a_time:
            management = await stack.enter_async_context(serve(settings, load_hooks(settings.plugins)))
        state = management.state
        account, _ = await create_account(state, email="owner@lab.test", name="Owner")
        _, token = await create_proxy_token(state, name="proxy", account_id=None, created_by="test")
        LOGS.forbidden.add(token)
        alice = await create_user(state, account, role=Role.USER, email=ALICE)
        bob = await create_user(state, account, role=Role.USER, email=BOB)
        laptops, keys = {}, {}
        for name, user in (("alice", alice), ("bob", bob)):
            laptops[name], keys[name] = await create_stock_peer(state, account, name=f"{name}-laptop", user_id=user.id)
        engineering = await create_group(state, account, name="engineering", peers=[laptops["alice"].id])
        everyone = await create_group(state, account, name="everyone", peers=[peer.id for peer in laptops.values()])
        line = await stack.enter_async_context(TcpRelay("127.0.0.1", management.grpc_port, seed=seed).running())
        seen: list[Seen] = []
        upstreams = {name: Upstream(name, seen) for name in ("wiki", "board", "site-0", "site-1", "closed")}
        ports: dict[str, int] = {}
        lines: dict[str, Line] = {"management": line, "store": StoreLine(management, settings.state_directory)}
        for number, (name, upstream) in enumerate(upstreams.items()):
            host = "127.0.0.9" if name == "closed" else "127.0.0.1"
            ports[name] = await stack.enter_async_context(upstream.running(host))
            if name.startswith("site"):
                relay = TcpRelay("127.0.0.1", ports[name], seed=seed + number)
                lines[name] = await stack.enter_async_context(relay.running())
                ports[name] = relay.port
        http, udp = free_port(), free_port()
        loaded = load(read_settings(_proxy_file(directory, line.port, token, http, udp), environment={}))
        decisions = Decisions()
        proxy = operated(loaded, decisions=decisions)
        shutdown = Shutdown()
        group = await stack.enter_async_context(asyncio.TaskGroup())
        serving = group.create_task(proxy.serve(shutdown))
        stack.callback(shutdown.ask, "over")
        made = House(
            directory=directory,
            management=management,
            proxy=proxy,
            decisions=decisions,
            account=account,
            bob=bob,
            laptops=laptops,
            engineering=engineering,
            http=http,
            lines=lines,
            seen=seen,
            upstreams=upstreams,
            ports=ports,
            secrets=(token, COOKIE),
        )
        await _until(lambda: proxy.ready and proxy.parts.client.initial_sync_complete)
        await made.add("wiki", made.target("wiki"), private=True)
        await made.add("board", made.target("board"))
        await made.add("site", made.target("site-0", version=0))
        await made.add("closed", made.target("closed", host="127.0.0.9"))
        # Keeps both in the proxy's map, whoever may use wiki: bob is refused by an answer, unless he is blocked.
        await made.add("lobby", made.target("board"), private=True)
        await made.change("lobby", access_groups=(GroupId(everyone.id),))
        await _until(lambda: proxy.host.tunnel(account) is not None)  # type: ignore[arg-type]
        people = await stack.enter_async_context(UdpRelay("127.0.0.1", udp, seed=seed).running())
        lines["people"] = people
        for name, peer in laptops.items():
            text = wireguard_config(peer, made.snapshot)
            config = parse_config(text.replace("# PrivateKey =", f"PrivateKey = {keys[name]}"))
            section = replace(config.peers[0], endpoint=("127.0.0.1", people.port))
            node = await stack.enter_async_context(peer_node(replace(config, peers=(section,))))
            made.people[name] = Node(node, str(section.allowed_ips[0].network_address))
        try:
            yield made
        finally:
            for one in lines.values():
                one.heal()
            shutdown.ask("over")
            shutdown.ask("now")
            await asyncio.wait((serving,), timeout=20)


async def _until(probe: Any, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not probe():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


def _proxy_file(directory: Path, grpc: int, token: str, http: int, udp: int) -> Path:
    home = directory / "proxy"
    home.mkdir(mode=0o700)
    (home / "token").write_text(token)
    (home / "token").chmod(0o600)
    file = home / "proxy.toml"
    file.write_text(
        'plugins = ["private_service", "identity_headers", "direct_upstream", "tunnel_netstack"]\n'
        f'state_directory = "{home / "state"}"\nprivate = true\n'
        # With TLS, so that what is garbled on the way is noticed at once, as it is where this matters.
        f'[management]\nurl = "https://127.0.0.1:{grpc}"\ntoken_file = "{home / "token"}"\n'
        f'domain = "{CLUSTER}"\nroots = "{directory / "roots.pem"}"\n'
        f'[[listen]]\naddress = "127.0.0.1:{http}"\n[admin]\nsocket = "{home / "a.sock"}"\n'
        f'[tunnel]\nports = "{udp}-{udp}"\nendpoint_host = "127.0.0.1"\n'
        f'[[direct_upstream.allow]]\naccounts = ["*"]\nnetworks = ["{PROXY_NETWORK}"]\n'
        f"[private_service]\ncache_seconds = {CACHE}\n"
        f'[access_log]\noutput = "{directory / ACCESS_LOG}"\n'
        f"[limits]\nrpc_timeout = {RPC}\nrevalidate = {REVALIDATE}\ndrain = 0.5\ndial_timeout = 2.0\n"
    )
    return file
