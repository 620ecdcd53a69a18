"""Agents that speak to a signal server in raw bytes, as captured from NetBird's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from nacl.utils import random

from netbird_wire.envelope import format_key
from netbird_wire.signalexchange_pb2 import EncryptedMessage

SECONDS = 10
"""Maximum time of any step of a test."""
METHODS = "/signalexchange.SignalExchange/"
Stream = Any


def key() -> str:
    return format_key(random(32))


def message(sender: str, receiver: str, body: bytes = b"box") -> bytes:
    return EncryptedMessage(key=sender, remoteKey=receiver, body=body).SerializeToString()


class Agent:
    """One connection. Bytes go out and come in as they are."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._send = channel.unary_unary(METHODS + "Send")
        self._connect = channel.stream_stream(METHODS + "ConnectStream")

    async def register(self, name: str) -> Stream:
        """Open a stream and wait for the header that confirms it. Raises AioRpcError."""
        stream = self.connect(name)
        headers = await asyncio.wait_for(stream.initial_metadata(), SECONDS)
        if ("x-wiretrustee-peer-registered", "1") not in tuple(headers):
            await asyncio.wait_for(stream.read(), SECONDS)
            raise AssertionError("the server neither confirmed nor refused")
        return stream

    def connect(self, name: str | None) -> Stream:
        metadata = () if name is None else (("x-wiretrustee-peer-id", name),)
        return self._connect(metadata=metadata)

    async def send(self, raw: bytes) -> bytes:
        reply: bytes = await self._send(raw, timeout=SECONDS)
        return reply


async def read(stream: Stream) -> bytes:
    """The raw bytes of the next message. Raises AioRpcError when the server ends the stream."""
    raw = await asyncio.wait_for(stream.read(), SECONDS)
    assert isinstance(raw, bytes), raw
    return raw


async def status_of(call: Any) -> grpc.StatusCode:
    """The status with which a call fails."""
    try:
        await asyncio.wait_for(call, SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code()
    raise AssertionError("the call succeeded")


@asynccontextmanager
async def agent(port: int, *, roots: bytes | None = None, window: int = 0) -> AsyncIterator[Agent]:
    """A connection of its own. `window` limits the bytes that it takes before it reads."""
    options: list[tuple[str, int]] = [("grpc.use_local_subchannel_pool", 1)]
    if window:
        options += [("grpc.http2.lookahead_bytes", window), ("grpc.http2.bdp_probe", 0)]
    target = f"127.0.0.1:{port}"
    if roots is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
    async with channel:
        yield Agent(channel)
