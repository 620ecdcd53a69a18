"""A signal server that plays a script in raw bytes, and the messages that NetBird's agents and server exchanged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

HERE = Path(__file__).parent
SECONDS = 10
"""Maximum time of any step of a test."""


@dataclass(frozen=True, slots=True)
class Captured:
    """One captured `EncryptedMessage`.

    Attributes:
        raw: its serialized bytes.
        plain: the serialized `Body` in its box.
    """

    kind: str
    sender: str
    receiver: str
    raw: bytes
    plain: bytes

    def __str__(self) -> str:
        return f"{self.kind} {self.sender} {self.receiver}"


@lru_cache
def captured() -> tuple[Captured, ...]:
    """The captured messages that hold a box."""
    lines = [json.loads(line) for line in (HERE / "golden.jsonl").read_text("utf-8").splitlines()]
    return tuple(
        Captured(
            line["inner"].get("type", "OFFER or ANSWER"),
            line["from"],
            line["to"],
            base64.b64decode(line["base64"]),
            base64.b64decode(line["inner_base64"]),
        )
        for line in lines
        if "inner" in line
    )


@lru_cache
def _keys() -> dict[str, dict[str, str]]:
    keys: dict[str, dict[str, str]] = json.loads((HERE / "golden_keys.json").read_text("utf-8"))
    return keys


def private_key(name: str) -> bytes:
    return base64.b64decode(_keys()[name]["priv"])


def public_text(name: str) -> str:
    return _keys()[name]["pub"]


def public_key(name: str) -> bytes:
    return base64.b64decode(public_text(name))


@dataclass(eq=False)
class Stream:
    """A registered stream. `deliver` sends raw bytes to the client; `end` ends the stream with a status."""

    metadata: dict[str, str]
    outgoing: asyncio.Queue[bytes | tuple[grpc.StatusCode, str] | None] = field(default_factory=asyncio.Queue)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def deliver(self, raw: bytes) -> None:
        self.outgoing.put_nowait(raw)

    def end(self, status: tuple[grpc.StatusCode, str] | None = None) -> None:
        self.outgoing.put_nowait(status)


@dataclass(eq=False)
class ScriptedSignal:
    """The server. It passes nothing on by itself: a test decides about each message.

    Attributes:
        registers: False to leave out the header that confirms a registration.
        replies: the outcomes of the next `Send` calls: a status, None to answer, or an event to wait for first; with
            an empty script, calls are answered.
    """

    port: int = 0
    registers: bool = True
    replies: list[tuple[grpc.StatusCode, str] | asyncio.Event | None] = field(default_factory=list)
    sent: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    streams: asyncio.Queue[Stream] = field(default_factory=asyncio.Queue)
    _server: grpc.aio.Server | None = None

    @property
    def host_port(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def stream(self) -> Stream:
        """The next stream that a client opens."""
        return await asyncio.wait_for(self.streams.get(), SECONDS)

    async def message(self) -> bytes:
        """The raw bytes of the next `Send`."""
        return await asyncio.wait_for(self.sent.get(), SECONDS)

    async def stop(self) -> None:
        """Cut every stream and close the port."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def _connect_stream(self, _requests: Any, context: Any) -> None:
        stream = Stream(dict(context.invocation_metadata()))
        if self.registers:
            await context.send_initial_metadata((("x-wiretrustee-peer-registered", "1"),))
        self.streams.put_nowait(stream)
        try:
            while isinstance(raw := await stream.outgoing.get(), bytes):
                await context.write(raw)
            if raw is not None:
                await context.abort(*raw)
        finally:
            stream.gone.set()

    async def _send(self, raw: bytes, context: Any) -> bytes:
        self.sent.put_nowait(raw)
        reply = self.replies.pop(0) if self.replies else None
        if isinstance(reply, asyncio.Event):
            await reply.wait()
        elif reply is not None:
            await context.abort(*reply)
        return b""  # byte for byte NetBird's reply


@asynccontextmanager
async def scripted_signal(
    *, port: int = 0, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[ScriptedSignal]:
    """Serve until the context is left; then every stream is cut."""
    script = ScriptedSignal()
    handlers = {
        "ConnectStream": grpc.stream_stream_rpc_method_handler(script._connect_stream),
        "Send": grpc.unary_unary_rpc_method_handler(script._send),
    }
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("signalexchange.SignalExchange", handlers),))
    address = f"127.0.0.1:{port}"
    script.port = (
        server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    )
    script._server = server
    await server.start()
    try:
        yield script
    finally:
        await script.stop()
