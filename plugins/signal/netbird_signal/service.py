"""NetBird's `SignalExchange` over the rules of `exchange`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc

from netbird_signal.exchange import Ending, Exchange, Malformed, Refused, Registration, Stopping, Unknown
from netbird_wire.signalexchange_pb2 import EncryptedMessage
from netbird_wire.signalexchange_pb2_grpc import SignalExchangeServicer

ID_METADATA: Final = "x-wiretrustee-peer-id"
REGISTERED: Final = (("x-wiretrustee-peer-registered", "1"),)
READ_SECONDS: Final = 60.0
"""Maximum time until the client's connection takes a message; on expiry the stream ends, which frees its messages."""

_END_CODES: Final = {
    Ending.REPLACED: grpc.StatusCode.ABORTED,
    Ending.STOPPING: grpc.StatusCode.UNAVAILABLE,
    Ending.SLOW: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class SignalService(SignalExchangeServicer):
    """The servicer.

    Args:
        source_of: returns the source of the current call, see `exchange.Limits`.
        patience: see `READ_SECONDS`.
    """

    def __init__(self, exchange: Exchange, source_of: Callable[[Any], str], *, patience: float = READ_SECONDS) -> None:
        self._exchange = exchange
        self._source_of = source_of
        self._patience = patience

    async def Send(self, request: EncryptedMessage, context: Any) -> EncryptedMessage:  # noqa: N802
        """Accept a message, which may be lost like a datagram. The reply is empty, also if the receiver is away."""
        try:
            self._exchange.send(request, self._source_of(context))
        except Refused as refusal:
            await context.abort(_code(refusal), str(refusal))
        return EncryptedMessage()

    # Writes by itself, where gRPC's generated type expects an iterator: the time of a write shows a slow reader.
    async def ConnectStream(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[EncryptedMessage], context: Any
    ) -> None:
        """Register the caller and deliver its messages until it leaves, registers again, or stops reading.

        Nothing that the caller sends on the stream is read; its connection's flow control bounds it.
        """
        del request_iterator
        key = dict(context.invocation_metadata() or ()).get(ID_METADATA)
        if not key:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the metadata {ID_METADATA} is missing")
        arrived = asyncio.Event()
        try:
            registration = self._exchange.register(str(key), self._source_of(context), arrived.set)
        except Refused as refusal:
            await context.abort(_code(refusal), str(refusal))
        try:
            await context.send_initial_metadata(REGISTERED)
            end = await self._deliver(registration, arrived, context)
        finally:
            self._exchange.unregister(registration)
        await context.abort(_END_CODES[end], end.value)

    async def _deliver(self, registration: Registration, arrived: asyncio.Event, context: Any) -> Ending:
        """Deliver until the stream must end; return the reason."""
        while True:
            arrived.clear()
            while (message := self._exchange.take(registration)) is not None:
                try:
                    async with asyncio.timeout(self._patience):
                        await context.write(message)
                except TimeoutError:
                    self._exchange.counts["slow_readers"] += 1
                    registration.end = Ending.SLOW
            if registration.end is not None:
                return registration.end
            await arrived.wait()


def _code(refusal: Refused) -> grpc.StatusCode:
    match refusal:
        case Malformed():
            return grpc.StatusCode.INVALID_ARGUMENT
        case Unknown():
            return grpc.StatusCode.PERMISSION_DENIED
        case Stopping():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.RESOURCE_EXHAUSTED
