"""A scripted NetBird agent: it speaks to signal, relay and peers in raw bytes, by the rules that were seen of agents.

It shares no code with the links. A test decides about each of its messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc.aio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.engine import Engine, Handshake
from netbird_overlay.stun.encoding import looks_like_stun
from netbird_overlay.stun.messages import Kind, Message, encode, parse
from netbird_wire.envelope import Envelope, format_key
from netbird_wire.relay import peer_id
from netbird_wire.relay_tokens import RelayToken
from netbird_wire.signalexchange_pb2 import Body, EncryptedMessage
from netbird_wire.signalexchange_pb2_grpc import SignalExchangeStub

SECONDS = 15
CARRIER = 1
UFRAG, PWD = "kIoDrqvhQlmIRjQY", "NQEvTeCIVUHGVfAoqjoTAIVVKwzdxcpq"
CID = "6uD7NtpW6UZ5t6QpD/JqN6AnxWd+QCJ5"


@dataclass(eq=False)
class Agent:
    """The agent and what it received.

    Attributes:
        bodies: the peer's signal messages, in order of arrival.
        relay_frames: the relay's frames but Transport, raw.
        checks: the peer's binding requests.
        answers: the peer's answers to our checks.
    """

    private_key: bytes
    peer: bytes
    engine: Engine
    stub: SignalExchangeStub
    bodies: asyncio.Queue[Body] = field(default_factory=asyncio.Queue)
    relay_frames: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    checks: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    answers: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    handshakes: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    first_types: list[int] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    relay: ClientConnection | None = None
    udp: asyncio.DatagramTransport | None = None
    answering: bool = True
    ufrag_of_peer: str = ""
    pwd_of_peer: str = ""

    # Signal

    async def send(self, body: Body) -> None:
        envelope = Envelope(self.private_key, self.peer)
        message = EncryptedMessage(
            key=format_key(self.engine.public_key), remoteKey=format_key(self.peer), body=envelope.seal(body)
        )
        await self.stub.Send(message, timeout=SECONDS)

    def negotiation(self, kind: Body.Type.ValueType, relay: str, *, session: bytes = b"") -> Body:
        """An offer or answer, with ICE if there is a session."""
        body = Body(
            type=kind,
            payload=f"{UFRAG}:{PWD}" if session else ":",
            wgListenPort=51820,
            netBirdVersion="0.77.1",
            relayServerAddress=relay,
        )
        body.rosenpassConfig.SetInParent()
        if session:
            body.sessionId = session
        return body

    async def body(self, kind: Body.Type.ValueType | None = None) -> Body:
        """The peer's next signal message, of this kind if one is given; others are passed over."""
        async with asyncio.timeout(SECONDS):
            while True:
                body = await self.bodies.get()
                if kind is None or body.type == kind:
                    if body.type in (Body.OFFER, Body.ANSWER):
                        self.ufrag_of_peer, _, self.pwd_of_peer = body.payload.partition(":")
                    return body

    async def _listen(self, call: Any) -> None:
        async for encrypted in call:
            if encrypted.key == format_key(self.peer):
                self.bodies.put_nowait(Envelope(self.private_key, self.peer).open(encrypted.body, Body))

    # Relay

    async def join_relay(self, url: str, token: RelayToken, tasks: asyncio.TaskGroup) -> None:
        self.relay = await connect(url.replace("rel://", "ws://") + "/relay", compression=None)
        own = peer_id(self.engine.public_key)
        await self.relay.send(b"\x01\x06" + bytes.fromhex("2112a442") + own + token.encode())
        tasks.create_task(self._read_relay(self.relay))
        await self.frame()

    async def subscribe(self) -> bytes:
        """Subscribe to the peer, and return the frame that reports it online."""
        assert self.relay is not None
        await self.relay.send(b"\x01\x08" + peer_id(self.peer))
        return await self.frame()

    async def frame(self) -> bytes:
        return await asyncio.wait_for(self.relay_frames.get(), SECONDS)

    async def _read_relay(self, relay: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):  # the end of the test
            async for frame in relay:
                assert isinstance(frame, bytes)
                if frame[:2] == b"\x01\x03":
                    self.first_types.append(frame[38])
                    self.arrived.set()
                    self.engine.receive(frame[38:], CARRIER, self._now())
                    await self.pump()
                else:
                    self.relay_frames.put_nowait(frame)

    # WireGuard

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def use_relay(self, *, starts: bool) -> None:
        """Send WireGuard's datagrams by the relay. `starts`: begin the handshake, as the controller does."""
        self.engine.pin(self.peer, CARRIER)
        if starts:
            self.engine.handshake(self.peer)
        await self.pump()

    async def use_direct(self, port: int) -> None:
        self.engine.pin(self.peer, Endpoint("127.0.0.1", port))
        await self.pump()

    async def pump(self) -> None:
        self.engine.advance(self._now())
        for event in self.engine.events():
            if isinstance(event, Handshake):
                self.handshakes.put_nowait(event.peer)
        for _, datagram in self.engine.carried():
            assert self.relay is not None
            await self.relay.send(b"\x01\x03" + peer_id(self.peer) + datagram)
        for datagram, to in self.engine.transmits():
            assert self.udp is not None
            self.udp.sendto(datagram, (to.host, to.port))

    async def first_of_type(self, kind: int) -> None:
        """Wait for a datagram of this type: 1 begins a handshake, 2 answers one."""
        while kind not in self.first_types:
            self.arrived.clear()
            await self.arrived.wait()

    async def handshaken(self) -> None:
        await asyncio.wait_for(self.handshakes.get(), SECONDS)

    # ICE

    @property
    def port(self) -> int:
        assert self.udp is not None
        return int(self.udp.get_extra_info("sockname")[1])

    def candidate(self) -> Body:
        line = f"3160871576 1 udp 2130706431 127.0.0.1 {self.port} typ host ufrag {UFRAG} cid {CID}"
        return Body(type=Body.CANDIDATE, payload=line)

    def check(self, port: int, *, nominate: bool, controlling: bool) -> None:
        """Send a binding request, with NetBird's own attribute behind FINGERPRINT."""
        request = Message(
            Kind.REQUEST,
            secrets.token_bytes(12),
            username=f"{self.ufrag_of_peer}:{UFRAG}",
            priority=1845501695,
            use_candidate=nominate,
            controlling=7 if controlling else None,
            controlled=None if controlling else 7,
            candidate_ids=(CID, "x" * 32),
        )
        assert self.udp is not None
        self.udp.sendto(encode(request, self.pwd_of_peer), ("127.0.0.1", port))

    def received(self, datagram: bytes, source: tuple[str, int]) -> None:
        if not looks_like_stun(datagram):
            self.first_types.append(datagram[0])
            self.engine.receive(datagram, Endpoint(*source), self._now())
            return
        message = parse(datagram)
        if message.kind is not Kind.REQUEST:
            if message.is_from(self.pwd_of_peer):
                self.answers.put_nowait(message)
            return
        if message.username == f"{UFRAG}:{self.ufrag_of_peer}" and message.is_from(PWD):
            self.checks.put_nowait(message)
            if self.answering:
                answer = Message(Kind.SUCCESS, message.transaction, mapped=Endpoint(*source))
                assert self.udp is not None
                self.udp.sendto(encode(answer, PWD), source)


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._received(data, (str(addr[0]), addr[1]))


@asynccontextmanager
async def scripted_agent(
    signal_port: int, private_key: bytes, peer: bytes, addresses: tuple[str, str]
) -> AsyncIterator[tuple[Agent, asyncio.TaskGroup]]:
    """An agent that is registered at the signal server, and at no relay yet. `addresses`: its own and the peer's."""
    engine = Engine(private_key)
    engine.set_addresses([addresses[0]])
    engine.set_inbound([("0.0.0.0/0", 6, 1, 65535)])
    engine.set_peer(peer, [addresses[1]], keepalive=25)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{signal_port}") as channel:
        agent = Agent(private_key, peer, engine, SignalExchangeStub(channel))
        call = agent.stub.ConnectStream(metadata=(("x-wiretrustee-peer-id", format_key(engine.public_key)),))
        await call.initial_metadata()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Socket(agent.received), local_addr=("127.0.0.1", 0))
        agent.udp = cast(asyncio.DatagramTransport, transport)
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(agent._listen(call))
                try:
                    yield agent, tasks
                finally:
                    listening.cancel()
                    if agent.relay is not None:
                        await agent.relay.close()
        finally:
            transport.close()
