"""The client of a signal server: one stream that receives, and one call for each message that is sent.

The client registers by its public key, and sends nothing until the server confirms that. It reconnects for ever, with
the back-off of NetBird's agents. A stream that delivers nothing is probed by a heartbeat to oneself, because the
connection may be alive while the server, or a proxy in front of it, has forgotten the stream.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from netbird_overlay.signal.messages import BadSignal, Heartbeat, Message, open_with, seal_with, sender_of
from netbird_overlay.signal.outbox import Entry, Outbox
from netbird_overlay.signal.watchdog import PATIENCE, SILENCE, Verdict, Watchdog
from netbird_wire.backoff import Backoff
from netbird_wire.envelope import BadKey, Envelope, format_key, public_key
from netbird_wire.signalexchange_pb2 import EncryptedMessage
from netbird_wire.signalexchange_pb2_grpc import SignalExchangeStub

ID_METADATA: Final = "x-wiretrustee-peer-id"
REGISTERED_METADATA: Final = "x-wiretrustee-peer-registered"
MESSAGE_BYTES: Final = 16 << 20
"""Maximum size of a received message. A larger one would end the stream, so this is above every server's own limit;
`open_with` refuses bodies that are much smaller."""
SENDING: Final = 16
"""Maximum number of messages that are being sent at once, at most one of them to the same peer."""
ENVELOPES: Final = 4096
"""Maximum number of peers whose shared secret is kept."""
RETRIED: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)


@dataclass(frozen=True, slots=True)
class SignalTarget:
    """The address of a signal server.

    Attributes:
        host_port: `host:port`, an IPv6 literal in brackets.
        tls: True to encrypt, and to verify the server's certificate.
        roots: PEM text of the certificate authorities to trust; None for the system's.
    """

    host_port: str
    tls: bool
    roots: bytes | None = None


@dataclass(frozen=True, slots=True)
class SignalTiming:
    """The intervals of the client, in seconds.

    Attributes:
        silence: time without a message until a heartbeat.
        patience: time until the heartbeat's arrival.
        registration: maximum time until the server confirms the registration.
        attempts: maximum time of each attempt to send a message; there are as many attempts as values.
        pause: time between two attempts.
        stable: time after which a stream counts as up, and the back-off starts anew. Two clients with the same key
            replace each other's stream; without this time they would do so without pause.
    """

    silence: float = SILENCE
    patience: float = PATIENCE
    registration: float = 30.0
    attempts: tuple[float, ...] = (10.0, 10.0, 10.0, 15.0)
    pause: float = 0.5
    stable: float = 10.0


class _Lost(Exception):
    """The session ended, by the server or by us; the text is for people. `code` is the server's status, if any."""

    def __init__(self, reason: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(slots=True)
class _Session:
    """One registered stream and the calls beside it."""

    stub: SignalExchangeStub
    watchdog: Watchdog
    slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SENDING))


class SignalClient:
    """Keeps us registered at a signal server.

    Args:
        on_message: gets the sender's key and its message, if the message was sealed by that key for us.
        on_state: gets True when the server confirms the registration, and False when the stream is lost.
        accepts: True if messages of this key are wanted. Others are dropped before their box is opened, which costs
            more than to send them.
        backoff: the waits between sessions.

    Attributes:
        counts: `sent`, `given_up`, `refused` (the server will not take it), `received`, `malformed`, `strangers`,
            `ignored` (of a type without meaning), `sessions`, `lost`.
        failure: reason that the last session ended or could not start; "" while one is up, and before the first.
    """

    def __init__(
        self,
        *,
        target: SignalTarget,
        private_key: bytes,
        on_message: Callable[[bytes, Message], None],
        on_state: Callable[[bool], None],
        accepts: Callable[[bytes], bool] = lambda _key: True,
        backoff: Backoff | None = None,
        timing: SignalTiming | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.failure = ""
        self._target = target
        self._private_key = private_key
        self._public_key = public_key(private_key)
        self._on_message = on_message
        self._on_state = on_state
        self._accepts = accepts
        self._backoff = backoff or Backoff(0.8, 10.0, factor=1.7, spread=(0.0, 2.0))
        self._timing = timing or SignalTiming()
        self._outbox = Outbox()
        self._envelopes: dict[bytes, Envelope] = {}
        self._wake = asyncio.Event()
        self._retargeted = asyncio.Event()
        self._connected = False

    @property
    def connected(self) -> bool:
        """True while the server has confirmed our registration and the stream is open."""
        return self._connected

    @property
    def dropped(self) -> int:
        """Number of messages that were dropped because too many waited, or for too long."""
        return self._outbox.counts.total()

    def send(self, key: bytes, message: Message) -> None:
        """Send a message soon, or once the server is reachable. Never waits and never raises.

        Messages for one peer keep their order. Over the bounds of the outbox the peer's oldest is dropped.
        """
        self._outbox.put(key, message, _now())
        self._wake.set()

    def retarget(self, target: SignalTarget) -> None:
        """Move to another server. Messages that wait are sent there; without a change, nothing happens."""
        if target != self._target:
            self._target = target
            self._retargeted.set()

    async def run(self) -> None:
        """Connect, and connect again after every loss. Never returns; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._retargeted.clear()
                # A task of its own: a task group inside ours could take its cancellation for the session's.
                session = group.create_task(self._session(self._target))
                try:
                    await asyncio.wait([session])
                    self.failure = session.result()
                    self.counts["lost"] += 1
                finally:
                    self._set_connected(False)
                if self._retargeted.is_set():
                    self._backoff.reset()
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._backoff.next_wait()):
                        await self._retargeted.wait()

    async def _session(self, target: SignalTarget) -> str:
        """Run one stream until it ends. Returns the reason."""
        channel = _channel(target)
        reason = ""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._until_retargeted())
                await self._registered(channel, group)
        except* _Lost as losses:
            reason = str(losses.exceptions[0])
        finally:
            await channel.close()
        return reason

    async def _registered(self, channel: grpc.aio.Channel, group: asyncio.TaskGroup) -> None:
        stub: SignalExchangeStub = SignalExchangeStub(channel)
        # Our side of the stream stays open and silent.
        call = stub.ConnectStream(metadata=((ID_METADATA, format_key(self._public_key)),))
        with _as_loss():
            try:
                async with asyncio.timeout(self._timing.registration):
                    metadata = await call.initial_metadata()
            except TimeoutError:
                raise _Lost("the server did not confirm the registration in time") from None
        if not any(name == REGISTERED_METADATA for name, _ in metadata):
            with _as_loss():
                await call.read()  # raises the status of a server that refuses us
            raise _Lost("the server did not confirm the registration")
        session = _Session(stub, self._watchdog())
        self.counts["sessions"] += 1
        self._set_connected(True)
        group.create_task(self._receive(call, session))
        group.create_task(self._watch(session))
        group.create_task(self._send_all(session, group))
        await asyncio.sleep(self._timing.stable)
        self._backoff.reset()

    async def _receive(
        self, call: grpc.aio.StreamStreamCall[EncryptedMessage, EncryptedMessage], session: _Session
    ) -> None:
        while True:
            with _as_loss():
                encrypted = await call.read()
            if not isinstance(encrypted, EncryptedMessage):  # the end of the stream
                raise _Lost("the server ended the stream")
            session.watchdog.heard(_now())
            self.counts["received"] += 1
            try:
                self._deliver(encrypted)
            except BadSignal:
                self.counts["malformed"] += 1

    def _deliver(self, encrypted: EncryptedMessage) -> None:
        """Pass a message on. Raises BadSignal."""
        sender = sender_of(encrypted)
        if sender == self._public_key:  # a heartbeat, or its forgery: it was heard, and nothing more
            return
        if not self._accepts(sender):
            self.counts["strangers"] += 1
            return
        message = open_with(self._envelope(sender), encrypted)
        if message is None or isinstance(message, Heartbeat):
            self.counts["ignored"] += 1
            return
        self._guarded(self._on_message, sender, message)

    async def _watch(self, session: _Session) -> None:
        watchdog = session.watchdog
        while True:
            # A message may also bring the deadline forward, if patience is longer than silence.
            await asyncio.sleep(min(max(watchdog.deadline - _now(), 0), self._timing.silence))
            match watchdog.check(_now()):
                case Verdict.PROBE:
                    await self._probe(session)
                case Verdict.DEAD:
                    raise _Lost("the server does not deliver")
                case Verdict.ALIVE:
                    pass

    async def _probe(self, session: _Session) -> None:
        """Send a heartbeat to ourselves, past the outbox. A failure changes nothing: the watchdog's time runs."""
        probe = seal_with(self._envelope(self._public_key), Heartbeat(), self._public_key, self._public_key)
        with suppress(_Lost), _as_loss():
            await session.stub.Send(probe, timeout=self._timing.patience)

    async def _send_all(self, session: _Session, group: asyncio.TaskGroup) -> None:
        while True:
            await session.slots.acquire()
            while (entry := self._outbox.take(_now())) is None:
                self._wake.clear()
                await self._wake.wait()
            group.create_task(self._send(entry, session))

    async def _send(self, entry: Entry, session: _Session) -> None:
        """Send one message, in as many attempts as the timing allows; an unfinished one waits for the next session."""
        done = False
        try:
            while not done:
                done = await self._attempt(entry, session)
        finally:
            if done:
                self._outbox.finish(entry)
            else:
                self._outbox.put_back(entry)
            session.slots.release()
            self._wake.set()

    async def _attempt(self, entry: Entry, session: _Session) -> bool:
        """True if the message was sent or given up."""
        try:
            if entry.sealed is None:
                entry.sealed = seal_with(self._envelope(entry.key), entry.message, self._public_key, entry.key)
            with _as_loss():
                await session.stub.Send(entry.sealed, timeout=self._timing.attempts[entry.attempts])
        except BadSignal:
            self.counts["refused"] += 1
            return True
        except _Lost as loss:
            entry.attempts += 1
            if loss.code not in RETRIED:
                self.counts["refused"] += 1
                return True
            if entry.attempts >= len(self._timing.attempts):
                self.counts["given_up"] += 1
                return True
            await asyncio.sleep(self._timing.pause)
            return False
        self.counts["sent"] += 1
        return True

    async def _until_retargeted(self) -> None:
        await self._retargeted.wait()
        raise _Lost("moving to another server")

    def _envelope(self, key: bytes) -> Envelope:
        """Raises BadSignal for a key that shares no secret."""
        envelope = self._envelopes.get(key)
        if envelope is None:
            try:
                envelope = Envelope(self._private_key, key)
            except BadKey as error:
                raise BadSignal(str(error)) from error
            if len(self._envelopes) >= ENVELOPES:
                del self._envelopes[next(iter(self._envelopes))]
            self._envelopes[key] = envelope
        return envelope

    def _set_connected(self, connected: bool) -> None:
        if connected != self._connected:
            self._connected = connected
            if connected:
                self.failure = ""
            self._guarded(self._on_state, connected)

    def _guarded(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call the owner; its exception is reported through the loop and loses no later message."""
        try:
            callback(*arguments)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a callback of the signal client raised", "exception": error}
            )

    def _watchdog(self) -> Watchdog:
        return Watchdog(_now(), silence=self._timing.silence, patience=self._timing.patience)


def _now() -> float:
    return asyncio.get_running_loop().time()


@contextmanager
def _as_loss() -> Iterator[None]:
    """Raise every failure of a call as `_Lost`."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _Lost(f"{error.code().name}: {error.details()}", error.code()) from error


def _channel(target: SignalTarget) -> grpc.aio.Channel:
    options = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.enable_retries", 0),  # attempts are counted here
        # Each session has a connection of its own; a shared one would carry an earlier session's back-off into it.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not target.tls:
        return grpc.aio.insecure_channel(target.host_port, options)
    return grpc.aio.secure_channel(target.host_port, grpc.ssl_channel_credentials(_roots(target)), options)


def _roots(target: SignalTarget) -> bytes | None:
    """The certificate authorities to trust; gRPC by itself does not use the system's."""
    file = ssl.get_default_verify_paths().cafile
    if target.roots is not None or file is None:
        return target.roots
    try:
        return Path(file).read_bytes()
    except OSError:
        return None
