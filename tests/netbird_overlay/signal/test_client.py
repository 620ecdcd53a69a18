"""The signal client against a server that plays scripts in NetBird's bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
import trustme

from netbird_overlay.signal.client import SignalClient, SignalTarget, SignalTiming
from netbird_overlay.signal.messages import GoIdle, Message, Offer, RemoteCandidate, open_message, seal
from netbird_overlay.signal.outbox import MESSAGES_OF_A_PEER
from netbird_wire.backoff import Backoff
from netbird_wire.envelope import Envelope, format_key
from netbird_wire.signalexchange_pb2 import Body, EncryptedMessage
from tests.netbird_overlay.signal.scripted import (
    SECONDS,
    Captured,
    ScriptedSignal,
    Stream,
    captured,
    private_key,
    public_key,
    public_text,
    scripted_signal,
)

ALICE, BOB = public_key("alice"), public_key("bob")
QUICK = SignalTiming(pause=0.0, stable=0.0)
FOR_ALICE = [each for each in captured() if (each.sender, each.receiver) == ("bob", "alice")]
STATUS = grpc.StatusCode


@dataclass
class Owner:
    """The client's owner, which keeps what it is told."""

    messages: asyncio.Queue[tuple[bytes, Message]] = field(default_factory=asyncio.Queue)
    states: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)

    async def state(self) -> bool:
        return await asyncio.wait_for(self.states.get(), SECONDS)

    async def message(self) -> tuple[bytes, Message]:
        return await asyncio.wait_for(self.messages.get(), SECONDS)


@asynccontextmanager
async def running(client: SignalClient) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(client.run())
        yield
        task.cancel()


def client_of(
    target: SignalTarget,
    owner: Owner,
    *,
    timing: SignalTiming = QUICK,
    accepts: Callable[[bytes], bool] = lambda _key: True,
    backoff: Backoff | None = None,
) -> SignalClient:
    return SignalClient(
        target=target,
        private_key=private_key("alice"),
        on_message=lambda key, message: owner.messages.put_nowait((key, message)),
        on_state=owner.states.put_nowait,
        accepts=accepts,
        backoff=backoff or Backoff(0.01, 0.01, spread=(1.0, 1.0)),
        timing=timing,
    )


@asynccontextmanager
async def registered(
    *, timing: SignalTiming = QUICK, accepts: Callable[[bytes], bool] = lambda _key: True
) -> AsyncIterator[tuple[ScriptedSignal, SignalClient, Owner, Stream]]:
    """A server, and alice's client registered at it."""
    owner = Owner()
    async with scripted_signal() as server:
        client = client_of(SignalTarget(server.host_port, tls=False), owner, timing=timing, accepts=accepts)
        async with running(client):
            stream = await server.stream()
            assert await owner.state()
            yield server, client, owner, stream


def opened_by_bob(raw: bytes) -> Message:
    sender, message = open_message(EncryptedMessage.FromString(raw), private_key("bob"))
    assert sender == ALICE
    assert message is not None
    return message


def from_bob(message: Message) -> bytes:
    return seal(message, private_key("bob"), BOB, ALICE).SerializeToString()


async def test_the_client_registers_by_its_key() -> None:
    async with registered() as (_, client, _, stream):
        assert stream.metadata["x-wiretrustee-peer-id"] == public_text("alice")
        assert client.connected


@pytest.mark.parametrize("message", FOR_ALICE, ids=str)
async def test_captured_messages_reach_the_owner(message: Captured) -> None:
    """NetBird's bytes, from its agent through its server, arrive as messages of their sender."""
    async with registered() as (_, _, owner, stream):
        stream.deliver(message.raw)

        sender, received = await owner.message()

        assert sender == BOB
        assert isinstance(received, Offer)
        assert received.negotiation.relay_address in ("", "rel://10.99.0.1:8081")


async def test_messages_are_sent_sealed_and_in_order() -> None:
    """The receiver opens each message, and the messages for one peer keep their order."""
    async with registered() as (server, client, _, _):
        for number in range(5):
            client.send(BOB, RemoteCandidate(f"candidate {number}"))

        received = [opened_by_bob(await server.message()) for _ in range(5)]

        assert received == [RemoteCandidate(f"candidate {number}") for number in range(5)]


async def test_nothing_is_sent_before_the_server_confirms_the_registration() -> None:
    """Without the header there is no session: the client reports none, sends nothing and tries again."""
    owner = Owner()
    async with scripted_signal() as server:
        server.registers = False
        client = client_of(SignalTarget(server.host_port, tls=False), owner)
        client.send(BOB, GoIdle())
        async with running(client):
            (await server.stream()).end()
            first_failure = await server.stream()  # it tries again
            assert client.failure == "the server did not confirm the registration"
            assert server.sent.empty()
            assert owner.states.empty()
            server.registers = True
            first_failure.end()

            assert await owner.state()
            assert opened_by_bob(await server.message()) == GoIdle()


async def test_a_refusal_names_the_servers_reason() -> None:
    owner = Owner()
    async with scripted_signal() as server:
        server.registers = False
        client = client_of(SignalTarget(server.host_port, tls=False), owner)
        async with running(client):
            (await server.stream()).end((STATUS.FAILED_PRECONDITION, "peer id is missing"))
            await server.stream()

            assert client.failure == "FAILED_PRECONDITION: peer id is missing"


@pytest.mark.parametrize(
    "end",
    [
        None,
        (STATUS.UNAVAILABLE, "restarting"),
        (STATUS.CANCELLED, "gone"),
        (STATUS.FAILED_PRECONDITION, "peer is already registered"),
    ],
    ids=str,
)
async def test_a_lost_stream_is_opened_again(end: tuple[grpc.StatusCode, str] | None) -> None:
    """However the server ends the stream, the owner learns it and the client registers again."""
    async with registered() as (server, client, owner, stream):
        stream.end(end)

        assert not await owner.state()
        again = await server.stream()
        assert await owner.state()
        again.deliver(from_bob(GoIdle()))
        assert await owner.message() == (BOB, GoIdle())
        assert client.counts["sessions"] == 2


async def test_a_server_that_restarts_is_found_again() -> None:
    """A message that is sent meanwhile waits."""
    owner = Owner()
    async with scripted_signal() as first:
        client = client_of(SignalTarget(first.host_port, tls=False), owner)
        async with running(client):
            await first.stream()
            assert await owner.state()
            await first.stop()
            assert not await owner.state()
            client.send(BOB, GoIdle())
            async with scripted_signal(port=first.port) as second:
                assert await owner.state()
                assert opened_by_bob(await second.message()) == GoIdle()


async def test_a_cancellation_together_with_a_loss_ends_the_client() -> None:
    """The stream breaks in the moment in which the owner stops the client."""
    owner = Owner()
    async with scripted_signal() as server:
        client = client_of(SignalTarget(server.host_port, tls=False), owner)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(client.run())
            stream = await server.stream()
            assert await owner.state()
            stream.end()
            while client.connected:  # noqa: ASYNC110 - no step may pass between the loss and the cancellation
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait_for(asyncio.wait([task]), SECONDS)

        assert task.cancelled()


async def test_silence_is_probed_by_a_heartbeat_to_oneself() -> None:
    """The heartbeat is sealed for ourselves, under our own key, as NetBird's agents send it; the server's delivery of
    it keeps the stream, and the owner never sees it."""
    async with registered(timing=SignalTiming(silence=0.05, patience=SECONDS)) as (server, client, owner, stream):
        for _ in range(2):
            heartbeat = await server.message()
            sender, message = open_message(EncryptedMessage.FromString(heartbeat), private_key("alice"))
            assert (sender, type(message).__name__) == (ALICE, "Heartbeat")
            stream.deliver(heartbeat)

        assert client.connected
        assert owner.messages.empty()


async def test_a_server_that_does_not_deliver_is_left() -> None:
    """Send succeeds and nothing arrives: the stream is given up and opened again."""
    async with registered(timing=SignalTiming(silence=0.05, patience=0.05)) as (_, client, owner, stream):
        await asyncio.wait_for(stream.gone.wait(), SECONDS)

        assert not await owner.state()
        assert await owner.state()
        assert client.counts["lost"] >= 1


async def test_a_failed_send_is_repeated_and_order_is_kept() -> None:
    """Three attempts fail, the fourth arrives; the next message of the same peer waits for it."""
    async with registered() as (server, client, _, _):
        server.replies += [(STATUS.UNAVAILABLE, ""), (STATUS.CANCELLED, ""), (STATUS.INTERNAL, ""), None]
        client.send(BOB, RemoteCandidate("first"))
        client.send(BOB, RemoteCandidate("second"))

        received = [opened_by_bob(await server.message()) for _ in range(5)]

        assert received == [RemoteCandidate("first")] * 4 + [RemoteCandidate("second")]


async def test_a_message_is_given_up_after_four_attempts() -> None:
    async with registered() as (server, client, _, _):
        server.replies += [(STATUS.UNAVAILABLE, "")] * 4
        client.send(BOB, RemoteCandidate("first"))
        client.send(BOB, RemoteCandidate("second"))

        received = [opened_by_bob(await server.message()) for _ in range(5)]

        assert received[4] == RemoteCandidate("second")
        assert client.counts["given_up"] == 1


async def test_a_refused_message_is_not_repeated() -> None:
    """The server says that it will never take it."""
    async with registered() as (server, client, _, _):
        server.replies += [(STATUS.INVALID_ARGUMENT, "no")]
        client.send(BOB, RemoteCandidate("first"))
        client.send(BOB, RemoteCandidate("second"))

        received = [opened_by_bob(await server.message()) for _ in range(2)]

        assert received == [RemoteCandidate("first"), RemoteCandidate("second")]
        assert client.counts["refused"] == 1


async def test_a_message_that_hangs_holds_up_no_other_peer() -> None:
    """The server does not answer for bob's message; another peer's passes."""
    never = asyncio.Event()
    other = public_key("proxy")
    async with registered() as (server, client, _, _):
        server.replies += [never]
        client.send(BOB, GoIdle())
        await server.message()
        client.send(BOB, GoIdle())
        client.send(other, GoIdle())

        encrypted = EncryptedMessage.FromString(await server.message())

        assert encrypted.remoteKey == format_key(other)
        never.set()


async def test_a_session_that_ends_loses_no_message_on_its_way() -> None:
    """The message that was being sent when the stream broke is sent in the next session."""
    never = asyncio.Event()
    async with registered() as (server, client, _, stream):
        server.replies += [never]
        client.send(BOB, RemoteCandidate("first"))
        await server.message()
        stream.end()
        await server.stream()

        assert opened_by_bob(await server.message()) == RemoteCandidate("first")
        never.set()


async def test_the_oldest_messages_of_a_peer_are_dropped_over_the_bound() -> None:
    """A server that is away for long costs bounded memory; the newest messages remain, and drops are counted."""
    owner = Owner()
    async with scripted_signal() as server:
        client = client_of(SignalTarget(server.host_port, tls=False), owner)
        for number in range(MESSAGES_OF_A_PEER + 3):
            client.send(BOB, RemoteCandidate(str(number)))
        async with running(client):
            first = opened_by_bob(await server.message())

    assert first == RemoteCandidate("3")
    assert client.dropped == 3


async def test_a_key_that_shares_no_secret_costs_only_its_own_message() -> None:
    async with registered() as (server, client, _, _):
        client.send(bytes(32), GoIdle())
        client.send(BOB, GoIdle())

        assert opened_by_bob(await server.message()) == GoIdle()
        assert client.counts["refused"] == 1


async def test_nonsense_on_the_stream_is_counted_and_ends_nothing() -> None:
    """Malformed keys, bodies of strangers, types without meaning and forged senders: later messages still arrive."""
    mode = EncryptedMessage(key=public_text("bob"), body=_sealed(Body(type=Body.MODE)))
    async with registered() as (_, client, owner, stream):
        stream.deliver(b"")
        stream.deliver(EncryptedMessage(key="no key").SerializeToString())
        stream.deliver(EncryptedMessage(key=format_key(bytes(32)), body=bytes(100)).SerializeToString())
        stream.deliver(EncryptedMessage(key=public_text("bob"), body=bytes(100)).SerializeToString())
        stream.deliver(EncryptedMessage(key=public_text("alice"), body=bytes(100)).SerializeToString())
        stream.deliver(mode.SerializeToString())
        stream.deliver(from_bob(GoIdle()))

        assert await owner.message() == (BOB, GoIdle())
        assert client.counts["malformed"] == 4
        assert client.counts["ignored"] == 1
        assert client.counts["sessions"] == 1


async def test_bytes_that_are_no_message_cost_one_session_at_most() -> None:
    """gRPC ends the call; the client registers again."""
    async with registered() as (server, _, owner, stream):
        stream.deliver(b"\xff\xff\xff")
        (await server.stream()).deliver(from_bob(GoIdle()))

        assert await owner.message() == (BOB, GoIdle())


async def test_messages_of_strangers_are_dropped_unopened() -> None:
    """The owner accepts only peers of its map."""
    async with registered(accepts=lambda key: key == public_key("proxy")) as (_, client, owner, stream):
        stream.deliver(from_bob(GoIdle()))
        message = seal(GoIdle(), private_key("proxy"), public_key("proxy"), ALICE)
        stream.deliver(message.SerializeToString())

        assert await owner.message() == (public_key("proxy"), GoIdle())
        assert client.counts["strangers"] == 1


async def test_an_owner_that_raises_loses_no_later_message() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
    owner = Owner()
    failure = RuntimeError("wrong")

    def on_message(key: bytes, message: Message) -> None:
        if isinstance(message, RemoteCandidate):
            raise failure
        owner.messages.put_nowait((key, message))

    async with scripted_signal() as server:
        client = SignalClient(
            target=SignalTarget(server.host_port, tls=False),
            private_key=private_key("alice"),
            on_message=on_message,
            on_state=lambda _state: None,
        )
        async with running(client):
            stream = await server.stream()
            stream.deliver(from_bob(RemoteCandidate("x")))
            stream.deliver(from_bob(GoIdle()))

            assert await owner.message() == (BOB, GoIdle())
    assert reported == [failure]


async def test_the_client_moves_to_another_server() -> None:
    """Also while the present server is away, and without waiting for the back-off."""
    owner = Owner()
    long = Backoff(3600, 3600, spread=(1.0, 1.0))
    async with scripted_signal() as first, scripted_signal() as second:
        client = client_of(SignalTarget(first.host_port, tls=False), owner, backoff=long)
        async with running(client):
            stream = await first.stream()
            assert await owner.state()
            client.retarget(SignalTarget(second.host_port, tls=False))
            await asyncio.wait_for(stream.gone.wait(), SECONDS)
            assert not await owner.state()
            stream = await second.stream()
            assert await owner.state()
            client.retarget(SignalTarget(second.host_port, tls=False))  # no change
            stream.end()
            assert not await owner.state()  # and now it waits an hour
            client.retarget(SignalTarget(first.host_port, tls=False))
            await first.stream()
            assert await owner.state()


async def test_two_clients_with_one_key_do_not_replace_each_other_without_pause() -> None:
    """The back-off grows until a stream has been stable."""
    waits: list[float] = []

    def pick(low: float, high: float) -> float:
        waits.append(high)
        return 0.0

    owner = Owner()
    async with scripted_signal() as server:
        client = client_of(
            SignalTarget(server.host_port, tls=False),
            owner,
            timing=SignalTiming(stable=3600),
            backoff=Backoff(1.0, 10.0, factor=2.0, spread=(0.0, 1.0), pick=pick),
        )
        async with running(client):
            for _ in range(4):
                stream = await server.stream()
                assert await owner.state()
                stream.end((STATUS.FAILED_PRECONDITION, "peer is already registered"))
                assert not await owner.state()

    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]


async def test_tls_is_used_if_asked_for_and_its_certificate_verified() -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    credentials = grpc.ssl_server_credentials(
        [(issued.private_key_pem.bytes(), b"".join(pem.bytes() for pem in issued.cert_chain_pems))]
    )
    waiting = asyncio.Event()

    def pick(_low: float, high: float) -> float:
        waiting.set()
        return high

    owner = Owner()
    async with scripted_signal(credentials=credentials) as server:
        wrong = SignalTarget(server.host_port, tls=True, roots=stranger.cert_pem.bytes())
        client = client_of(wrong, owner, backoff=Backoff(3600, 3600, pick=pick))
        async with running(client):
            await asyncio.wait_for(waiting.wait(), SECONDS)
            assert "UNAVAILABLE" in client.failure
            client.retarget(SignalTarget(server.host_port, tls=True, roots=authority.cert_pem.bytes()))
            await server.stream()
            assert await owner.state()


def _sealed(body: Body) -> bytes:
    return Envelope(private_key("bob"), ALICE).seal(body)
