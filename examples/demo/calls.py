"""Building blocks of the story's steps: requests over the overlay and from outside."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from examples.demo.stack import CLUSTER, Stack
from netbird_overlay.driver import Driver
from netbird_overlay.wgconf import parse_config
from netbird_peer.node import peer_node

ALICE, BOB = "alice@demo.example", "bob@demo.example"
WIKI, LOBBY, STATUS, INTRANET, DOCS = (f"{name}.{CLUSTER}" for name in ("wiki", "lobby", "status", "intranet", "docs"))
FORGED = (
    "X-NetBird-User: mallory",
    "x_netbird_user: mallory",
    "X.NetBird.User: mallory",
    "X-NetBird-User: mallory-again",
    "X-NetBird-Groups: admins",
    "X_NetBird_Groups: admins",
    "Connection: X-NetBird-User, X-NetBird-Groups",
)


class StoryFailed(Exception):
    """A step failed; the message has the actual result."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the story. `play` returns the result to print."""

    line: str
    play: Callable[[Stack], Awaitable[str]]


def expect(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise StoryFailed(f"{what}: expected {expected!r}, found {actual!r}")


def direct(host: str, port: int) -> dict[str, Any]:
    options = {"direct_upstream": True}
    return {"target_id": CLUSTER, "target_type": "cluster", "host": host, "port": port, "options": options}


async def add_service(
    stack: Stack, name: str, domain: str, target: dict[str, Any], *, groups: list[str] | None = None
) -> None:
    body = service_body(stack, name, domain, target, groups=groups)
    stack.ids[name] = (await stack.api.post("/reverse-proxies/services", body))["id"]


async def change_service(
    stack: Stack, name: str, domain: str, target: dict[str, Any], *, groups: list[str] | None = None
) -> None:
    body = service_body(stack, name, domain, target, groups=groups)
    await stack.api.put(f"/reverse-proxies/services/{stack.ids[name]}", body)


def service_body(
    stack: Stack, name: str, domain: str, target: dict[str, Any], *, groups: list[str] | None = None
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": name,
        "domain": domain,
        "enabled": True,
        "mode": "http",
        "auth": {},
        "targets": [{"protocol": "http", "path": "/", "enabled": True, **target}],
    }
    if groups is not None:
        body |= {"private": True, "access_groups": [stack.ids[group] for group in groups]}
    return body


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: httpx.Headers
    body: str

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as exc:
            raise StoryFailed(f"{self.status}, and no JSON: {self.body[:400]!r}") from exc

    @property
    def exchange(self) -> str:
        match = re.search(r"\b[0-9a-f]{32}\b", self.body)
        if not match:
            raise StoryFailed(f"no exchange id in {self.body!r}")
        return match[0]


async def overlay(stack: Stack, who: str, url: str, *options: str) -> Answer:
    code, output, errors = await stack.peer_get(who, url, *options)
    answer = parse_answer(output)
    if answer is None:
        raise StoryFailed(f"{who} got no answer from {url}: {errors.strip() or output!r} (exit code {code})")
    expect("exit code", code, 22 if answer.status >= 400 else 0)
    return answer


def parse_answer(output: str) -> Answer | None:
    """Parse the output of `peer get -i`; None if it has no head."""
    match = re.match(r"HTTP/1\.1 (\d{3})[^\n]*\n(.*?)\r?\n\r?\n(.*)", output.replace("\r\n", "\n"), re.DOTALL)
    if not match:
        return None
    lines = [tuple(line.split(": ", 1)) for line in match[2].split("\n") if ": " in line]
    return Answer(int(match[1]), httpx.Headers(lines), match[3])


def identity_seen(answer: Answer) -> list[list[str]]:
    """Return the identity headers that the upstream received, in any spelling, trailers included."""
    expect("status", answer.status, 200)
    seen = [*answer.json["headers"], *answer.json["trailers"]]
    reserved = [pair for pair in seen if re.sub(r"[_.]", "-", pair[0].lower()).startswith("x-netbird-")]
    return sorted([name.lower(), value] for name, value in reserved)


ALICE_SEEN = [["x-netbird-groups", "All,engineering"], ["x-netbird-user", ALICE]]


async def outside(stack: Stack, host: str, *, tls: bool = False, proxy: str = "proxy") -> httpx.Response:
    """Send a request through the host listener, with all kinds of forged headers."""
    running = stack.proxies[proxy]
    context = ssl.create_default_context(cafile=str(stack.certificates.authority))
    forged = [(name, value) for name, _, value in (line.partition(": ") for line in FORGED[:-1])]
    forged += [("Host", host), ("X-Forwarded-For", "100.64.0.9"), ("X-Real-IP", "100.64.0.9")]
    forged += [("Forwarded", "for=100.64.0.9"), ("X-Forwarded-Host", host)]
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=10) as client:
        url = f"https://127.0.0.1:{running.https}/" if tls else f"http://127.0.0.1:{running.http}/"
        return await client.get(url, headers=forged, extensions={"sni_hostname": host} if tls else {})


# Long-lived callers ---------------------------------------------------------------------------------------------------


class Stream:
    """An exchange whose answer has begun, or an established upgrade."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.WriteTransport) -> None:
        self.reader = reader
        self.transport = transport
        self.status = 0
        self.head = ""
        self.kept: object = None
        """A reference that keeps the transport open."""

    async def begin(self, host: str, target: str, *lines: str) -> Stream:
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
        self.transport.write(head.encode())
        self.head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.status = int(self.head.split(" ", 2)[1])
        return self

    async def echo(self, text: bytes) -> bytes:
        self.transport.write(text)
        return await self.reader.readexactly(len(text))

    async def until_cut(self) -> float:
        """Read until the stream ends in any way, and return the loop's time of the end."""
        with suppress(OSError, asyncio.IncompleteReadError):
            while await self.reader.read(65536):
                pass
        return asyncio.get_running_loop().time()

    def close(self) -> None:
        self.transport.close()


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


class Caller:
    """A user's peer that stays connected, with one WireGuard session for all its requests."""

    def __init__(self, node: Driver, proxy: str) -> None:
        self._node = node
        self._proxy = proxy

    async def connect(self, *, timeout: float = 10) -> Stream:
        reader = asyncio.StreamReader()
        transport, _ = await self._node.connect(
            lambda: asyncio.StreamReaderProtocol(reader), self._proxy, 80, timeout=timeout
        )
        return Stream(reader, transport)

    async def get(self, host: str, target: str = "/", *, timeout: float = 20) -> Answer:
        async with asyncio.timeout(timeout):
            stream = await self.connect()
            try:
                await stream.begin(host, target, "Connection: close")
                body = await stream.reader.read()
            finally:
                stream.close()
        lines = [tuple(line.split(": ", 1)) for line in stream.head.split("\r\n")[1:] if ": " in line]
        return Answer(stream.status, httpx.Headers(lines), body.decode())

    async def open(self, host: str, target: str, *lines: str) -> Stream:
        async with asyncio.timeout(20):
            return await (await self.connect()).begin(host, target, *lines)


@asynccontextmanager
async def caller(stack: Stack, who: str) -> AsyncIterator[Caller]:
    """Run a user's peer from management's file. No other process may use that file meanwhile."""
    config = parse_config(stack.configs[who].read_text())
    proxy = str(config.peers[0].allowed_ips[0].network_address)
    try:
        async with peer_node(config) as node:
            yield Caller(node, proxy)
    except BaseExceptionGroup as group:
        # The node's task group wraps exceptions; the story's own failure is raised unwrapped.
        cause: BaseException = group
        while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        raise cause from None


async def open_outside(stack: Stack, host: str, target: str, *lines: str, proxy: str = "proxy") -> Stream:
    """Start an exchange through the host listener."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.proxies[proxy].http)
        stream = Stream(reader, writer.transport)
        stream.kept = writer
        return await stream.begin(host, target, *lines)


async def until(what: str, probe: Callable[[], Awaitable[bool]], *, timeout: float) -> float:
    """Wait until the probe returns True, and return the seconds that it took. Raises StoryFailed on timeout."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        async with asyncio.timeout(timeout):
            while not await probe():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
    except TimeoutError as exc:
        raise StoryFailed(f"{what}: not within {timeout:g} s") from exc
    return loop.time() - start


def within(what: str, seconds: float, bound: float) -> None:
    if seconds > bound:
        raise StoryFailed(f"{what}: after {seconds:.2f} s, and the bound is {bound:g} s")
