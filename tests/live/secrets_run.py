"""A full run on real processes with a secret planted wherever one can be, and everything that could leak it kept."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc.aio
import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from examples.demo.api import ApiError
from examples.demo.calls import add_service, direct
from examples.demo.processes import BIN
from examples.demo.stack import CLUSTER, Stack, free_port, stack

VAULT, LOBBY, OPEN, BROKEN = (f"{name}.{CLUSTER}" for name in ("vault", "lobby", "open", "broken"))
LOGIN = "/__netbird__/session/login"
_ONE_TIME = re.compile(rb"L([A-Za-z0-9_-]{75}=)")
"""As the wire has it: 76 characters behind their length."""


class Collector(TraceServiceServicer):
    """Takes spans, as bytes."""

    def __init__(self) -> None:
        self.received = b""
        self.count = 0

    async def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        self.received += request.SerializeToString()
        self.count += sum(len(scope.spans) for one in request.resource_spans for scope in one.scope_spans)
        return ExportTraceServiceResponse()


class Recorder:
    """An upstream that keeps every byte it is sent, and a relay that keeps every byte that passes it."""

    def __init__(self) -> None:
        self.received = b""
        self._writers: list[asyncio.StreamWriter] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.received += head
                length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
                if length:
                    self.received += await reader.readexactly(int(length[1]))
                if b"upgrade: websocket" in head.lower():
                    writer.write(
                        b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
                    )
                    while piece := await reader.read(65536):
                        self.received += piece
                        writer.write(piece)
                    return
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def relay(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        self._writers += [writer, back]

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while piece := await source.read(65536):
                    self.received += piece
                    sink.write(piece)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(copy(reader, back))
            group.create_task(copy(there, writer))

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@dataclass
class Run:
    """What was planted, and what came out, by place."""

    secrets: dict[str, list[bytes]] = field(default_factory=dict)
    places: dict[str, bytes] = field(default_factory=dict)

    def plant(self, kind: str, *values: str | bytes) -> None:
        self.secrets.setdefault(kind, []).extend(one.encode() if isinstance(one, str) else one for one in values)

    def keep(self, place: str, what: bytes) -> None:
        self.places[place] = self.places.get(place, b"") + what

    def leaks(self) -> dict[str, dict[str, bytes]]:
        """By kind of secret and place: the text around its first occurrence."""
        found: dict[str, dict[str, bytes]] = {}
        for kind, values in self.secrets.items():
            for place, text in self.places.items():
                for value in values:
                    if (at := text.find(value)) >= 0:
                        found.setdefault(kind, {})[place] = text[max(0, at - 80) : at + len(value) + 20]
        return found


PASSWORD, PIN, HEADER, CUSTOM = "pw-hunter2-planted", "84213377", "hv-planted-header-value", "cu-planted-custom-value"
QUERY, FOREIGN = "qs-planted-query", "ck-planted-foreign-session"


async def _service(made: Stack, name: str, domain: str, upstream: int, *, auth: dict[str, Any]) -> None:
    target = direct("127.0.0.1", upstream)
    target["options"] = {**target["options"], "custom_headers": {"X-Custom": CUSTOM}}
    body = {
        "name": name,
        "domain": domain,
        "mode": "http",
        "enabled": True,
        "auth": auth,
        "targets": [{"protocol": "http", "path": "/", "enabled": True, **target}],
    }
    made.ids[name] = (await made.api.post("/reverse-proxies/services", body))["id"]
    await made.until_service(name, "active")


class Caller:
    """Asks through the host listener, and keeps what came back as a page."""

    def __init__(self, made: Stack, run: Run) -> None:
        self._proxy = made.proxies["proxy"]
        self._run = run
        self.ids: list[str] = []
        context = ssl.create_default_context(cafile=str(made.certificates.authority))
        self.client = httpx.AsyncClient(verify=context, trust_env=False, timeout=20)

    async def ask(
        self, host: str, target: str, *, method: str = "GET", tls: bool = True, **more: Any
    ) -> httpx.Response:
        headers = {"host": host, "accept": "text/html", **more.pop("headers", {})}
        port = self._proxy.https if tls else self._proxy.http
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}{target}"
        answer = await self.client.request(method, url, headers=headers, extensions={"sni_hostname": host}, **more)
        shown = b"".join(
            name + b": " + value + b"\n" for name, value in answer.headers.raw if name.lower() != b"set-cookie"
        )
        self._run.keep("pages", shown + answer.content)
        self.ids += re.findall(r"\b[0-9a-f]{32}\b", answer.text)
        self.client.cookies.clear()
        return answer


async def _calls(made: Stack, run: Run) -> list[str]:
    """Everything that a client can do with a secret, rightly and wrongly."""
    caller = Caller(made, run)
    query = f"?token={QUERY}&session_token={FOREIGN}"
    planted = {"cookie": f"a=1; __Host-nb_session={FOREIGN}; nb_session={FOREIGN}; b=2"}
    form = {"content-type": "application/x-www-form-urlencoded", "sec-fetch-site": "same-origin"}
    try:
        # Nobody yet, and wrong tries.
        await caller.ask(VAULT, f"/reports{query}", headers=planted)
        await caller.ask(VAULT, f"/api{query}", headers={"accept": "application/json"})
        await caller.ask(VAULT, LOGIN, method="POST", content=f"password={quote(PASSWORD)}x&to=/", headers=form)
        # The right ones.
        tokens = []
        for body in (f"password={quote(PASSWORD)}&to=/", f"pin={PIN}&to=/"):
            answer = await caller.ask(VAULT, LOGIN, method="POST", content=body, headers=form)
            assert answer.status_code == 303, answer.text
            tokens.append(re.match(r"__Host-nb_session=([^;]+)", answer.headers["set-cookie"])[1])  # type: ignore[index]
        run.plant("session cookie", *tokens)
        for token in tokens:
            cookie = {"cookie": f"a=1; __Host-nb_session={token}; nb_session={FOREIGN}"}
            answer = await caller.ask(VAULT, f"/reports{query}&session_token={token}", headers=cookie)
            assert answer.text == "ok", answer.text
            await caller.ask(VAULT, f"/missing/../{query}", headers=cookie)
        for value in (HEADER, HEADER + "x"):
            await caller.ask(VAULT, f"/h{query}", headers={"x-api-key": value, **planted})
        await caller.ask(VAULT, f"/reports{query}", headers={"cookie": f"__Host-nb_session={tokens[0]}"}, tls=False)
        # Where nobody logs in, and where nothing is.
        assert (await caller.ask(OPEN, f"/x{query}", headers=planted)).text == "ok"
        await caller.ask(OPEN, f"/x{query}", method="POST", content=b"body", headers=planted)
        await caller.ask(BROKEN, f"/x{query}", headers=planted)
        await caller.ask("nowhere.example.com", f"/x{query}", headers=planted, tls=False)
        await caller.ask(LOBBY, f"/x{query}", headers=planted)
        await _upgrade(made, OPEN, f"/ws{query}", planted["cookie"])
        await _malformed(made, run, query, planted["cookie"])
    finally:
        await caller.client.aclose()
    for target in (f"/{query}", f"/__netbird__/session/login{query}"):
        code, output, errors = await made.peer_get(
            "alice-laptop",
            f"http://{LOBBY}{target}",
            "-H",
            f"Cookie: __Host-nb_session={FOREIGN}; nb_session={FOREIGN}",
        )
        assert output, (code, errors)
        run.keep("pages", output.encode())
    return caller.ids


async def _upgrade(made: Stack, host: str, target: str, cookie: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", made.proxies["proxy"].http)
    writer.write(
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: {cookie}\r\n\r\n".encode()
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    writer.write(b"over")
    await reader.readexactly(4)
    writer.close()
    await writer.wait_closed()


async def _malformed(made: Stack, run: Run, query: str, cookie: str) -> None:
    """Heads that are refused before there is an exchange."""
    for target in (f"/../x{query}", f"/%zz{query}", f"x{query}", f"http://else.example.com/{query}"):
        reader, writer = await asyncio.open_connection("127.0.0.1", made.proxies["proxy"].http)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {OPEN}\r\nCookie: {cookie}\r\n\r\n".encode())
        run.keep("pages", await reader.read(65536))
        writer.close()
        await writer.wait_closed()


async def _administration(made: Stack, run: Run, ids: list[str]) -> None:
    """What the proxy's socket and management's interface tell."""
    transport = httpx.AsyncHTTPTransport(uds=str(made.proxies["proxy"].admin))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=20) as admin:
        known = [f"/exchanges/{one}" for one in ids]
        for path in (
            "/exchanges", "/routes", "/plugins", "/state", f"/explain?host={VAULT}&path=/x", "/exchanges/x", *known
        ):  # fmt: skip
            run.keep("admin socket", (await admin.get(path)).content)
    config = made.proxies["proxy"].config
    for argv in (["check", "--show", "--config", str(config)], ["routes", "--admin", str(made.proxies["proxy"].admin)]):
        _code, output, errors = await made.processes.run([str(BIN / "netbird-proxy"), *argv])
        run.keep("command line", (output + errors).encode())
    for path in (
        "/reverse-proxies/services", f"/reverse-proxies/services/{made.ids['vault']}", "/reverse-proxies/clusters",
        "/reverse-proxies/domains", "/peers", "/users", "/groups", "/policies", "/events/audit", "/events/proxy",
        "/accounts", f"/peers/{made.ids['peer alice-laptop']}", f"/peers/{made.ids['peer alice-laptop']}/wireguard",
        f"/reverse-proxies/services/{made.ids['vault']}/proxies", "/reverse-proxies/proxy-tokens", "/setup-keys",
    ):  # fmt: skip
        try:
            answer = await made.api.text(path)
        except ApiError as error:
            answer = str(error)
        run.keep("REST", answer.encode())


@asynccontextmanager
async def played(directory: Path) -> AsyncIterator[Run]:
    """The run, over: its processes have ended and written what they had to say."""
    run = Run()
    collector, upstream, wire = Collector(), Recorder(), Recorder()
    async with AsyncExitStack() as exits:
        sink = grpc.aio.server()
        add_TraceServiceServicer_to_server(collector, sink)  # type: ignore[no-untyped-call]
        collecting = sink.add_insecure_port("127.0.0.1:0")
        await sink.start()
        exits.push_async_callback(sink.stop, None)
        server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0)
        exits.callback(server.close)
        async with stack(directory) as made:
            await made.start_management()
            management = int(made.grpc.rpartition(":")[2])
            between = await asyncio.start_server(lambda r, w: wire.relay(management, r, w), "127.0.0.1", 0)
            exits.callback(wire.close)
            exits.callback(between.close)
            exits.callback(upstream.close)
            made.grpc = f"http://127.0.0.1:{between.sockets[0].getsockname()[1]}"
            log = directory / "access.log"
            await made.start_proxy(
                "proxy",
                extra=f'[log]\nlevel = "debug"\n[access_log]\noutput = "{log}"\n'
                f'[telemetry]\notlp_endpoint = "http://127.0.0.1:{collecting}"\ninterval = 0.1\n',
            )
            async with asyncio.timeout(15):
                while not await made.online_clusters():  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.05)
            made.ids["All"] = (await made.api.get("/groups?name=All"))[0]["id"]
            user = {"email": "alice@demo.example", "name": "alice", "role": "user", "is_service_user": False}
            made.ids["alice"] = (await made.api.post("/users", {**user, "auto_groups": []}))["id"]
            await made.add_peer("alice-laptop", user="alice")
            port = server.sockets[0].getsockname()[1]
            auth = {
                "password_auth": {"enabled": True, "password": PASSWORD},
                "pin_auth": {"enabled": True, "pin": PIN},
                "header_auths": [{"enabled": True, "header": "X-Api-Key", "value": HEADER}],
            }
            await _service(made, "vault", VAULT, port, auth=auth)
            await _service(made, "open", OPEN, port, auth={})
            await _service(made, "broken", BROKEN, free_port(), auth={})
            await add_service(made, "lobby", LOBBY, direct("127.0.0.1", port), groups=["All"])
            await made.until_service("lobby", "active")
            await made.write_peer_file("alice-laptop")

            ids = await _calls(made, run)
            await _administration(made, run, ids)
            run.plant("proxy token", made.token)
            run.plant("personal access token", made.owner)
            run.plant("WireGuard private key", made.ids["key alice-laptop"])
            keys = list((directory / "proxy" / "state").rglob("private.key"))
            run.plant("WireGuard private key", *(one.read_bytes().strip() for one in keys))
            async with asyncio.timeout(20):
                while collector.count < 20:  # noqa: ASYNC110 - spans come when they come
                    await asyncio.sleep(0.05)
        run.plant("one-time token", *_ONE_TIME.findall(wire.received))
        run.plant("password", PASSWORD)
        run.plant("PIN", PIN)
        run.plant("header value", HEADER)
        run.plant("custom header", CUSTOM)
        run.plant("query string", QUERY)
        run.plant("foreign session", FOREIGN)
        for one in sorted((directory / "logs").glob("*.log")):
            run.keep(f"log of {one.stem}", one.read_bytes())
        run.keep("access log", log.read_bytes())
        run.keep("spans", collector.received)
        run.keep("upstream", upstream.received)
        yield run
