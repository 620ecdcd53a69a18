"""The signal server on a port of its own, and agents that speak NetBird's bytes to it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from itertools import islice
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from netbird_signal.alone import SENDING_OF_SOURCE, SERVICE, Alone, Running, serve_alone
from netbird_signal.exchange import Limits
from netbird_signal.mailbox import MESSAGES
from netbird_signal.rates import Rate
from plugins.signal.tests.agents import METHODS, SECONDS, Agent, agent, key, message, read, status_of

STATUS = grpc.StatusCode
LOCAL = "127.0.0.1:0"
GOLDEN = [json.loads(line) for line in (Path(__file__).parent / "golden.jsonl").read_text("utf-8").splitlines()]
SENT = [line for line in GOLDEN if line["kind"] == "SignalExchange.Send.req"]


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[tuple[Running, Agent]]:
    """A server, and a connection to it."""
    async with serve_alone(Alone(LOCAL, **settings)) as server, agent(server.port) as ours:  # type: ignore[arg-type]
        yield server, ours


@pytest.mark.parametrize("line", SENT, ids=lambda line: f"{line['from']} to {line['to']}")
async def test_captured_messages_pass_byte_for_byte(line: dict[str, object]) -> None:
    """An agent's message arrives at the other agent's stream as it was sent; the reply is NetBird's, empty."""
    raw = base64.b64decode(str(line["base64"]))
    names = line["message"]
    assert isinstance(names, dict)
    async with serving() as (_, ours):
        await ours.register(names["key"])
        stream = await ours.register(names["remoteKey"])

        reply = await ours.send(raw)

        assert await read(stream) == raw
        assert reply == b""


async def test_the_registration_is_confirmed_before_any_message() -> None:
    """Agents wait for the header, and nothing else arrives on a quiet stream."""
    async with serving() as (server, ours):
        await ours.register(key())

        assert server.exchange.streams == 1


async def test_a_stream_without_a_key_is_refused() -> None:
    async with serving() as (_, ours):
        assert await status_of(ours.connect(None).read()) is STATUS.FAILED_PRECONDITION


@pytest.mark.parametrize("name", ["key", "A" * 44, "A" * 42 + "B="])
async def test_a_stream_with_no_canonical_key_is_refused(name: str) -> None:
    async with serving() as (_, ours):
        assert await status_of(ours.connect(name).read()) is STATUS.INVALID_ARGUMENT


async def test_a_message_for_a_peer_that_is_away_succeeds() -> None:
    async with serving() as (_, ours):
        assert await ours.send(message(key(), key())) == b""


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xff\xff", STATUS.INVALID_ARGUMENT),
        (b"", STATUS.INVALID_ARGUMENT),
        (message("no key", key()), STATUS.INVALID_ARGUMENT),
        (message(key(), "no key"), STATUS.INVALID_ARGUMENT),
        (message(key(), key(), bytes(33 << 10)), STATUS.INVALID_ARGUMENT),
        (message(key(), key(), bytes(5 << 20)), STATUS.RESOURCE_EXHAUSTED),
    ],
    ids=["no message", "empty", "sender", "receiver", "large", "huge"],
)
async def test_nonsense_is_refused_and_hurts_nobody(raw: bytes, code: grpc.StatusCode) -> None:
    """The caller learns a status, and a registered peer still gets messages."""
    bob = key()
    async with serving() as (server, ours), agent(server.port) as hostile:
        stream = await ours.register(bob)

        assert await status_of(hostile.send(raw)) is code

        await ours.send(message(key(), bob))
        assert await read(stream)


async def test_a_newer_stream_replaces_the_older() -> None:
    """The older ends with an error, and the newer gets what is sent from then on."""
    bob = key()
    async with serving() as (server, ours), agent(server.port) as again:
        older = await ours.register(bob)
        newer = await again.register(bob)

        assert await status_of(older.read()) is STATUS.ABORTED
        await ours.send(message(key(), bob))
        assert await read(newer)
        assert server.exchange.streams == 1


async def test_a_client_that_leaves_is_forgotten() -> None:
    """By cancelling, by closing its connection; a client that only closes its side of the stream stays registered."""
    bob = key()
    async with serving() as (server, ours):
        half_closed = await ours.register(bob)
        await half_closed.done_writing()
        await ours.send(message(key(), bob))
        assert await read(half_closed)
        half_closed.cancel()
        await _streams(server, 0)
        async with agent(server.port) as other:
            await other.register(bob)
        await _streams(server, 0)


async def test_what_a_client_writes_on_its_stream_is_not_read() -> None:
    """Agents write nothing. A client that does is held back by its own connection's flow control."""
    bob = key()
    async with serving() as (server, ours), agent(server.port) as hostile:
        stream = await hostile.register(bob)

        async def flood() -> None:
            while True:
                await stream.write(message(bob, bob, bytes(16 << 10)))

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 0.3)
        listener = await ours.register(carol := key())
        await ours.send(message(key(), carol))
        assert await read(listener)


async def test_promise_10_a_slow_reader_costs_others_nothing_and_is_cut() -> None:
    """A peer stops to read. Messages to it are accepted and dropped, messages of the same sender to others pass, and in
    the end its stream is cut, which frees its messages."""
    asleep, awake, sender = key(), key(), key()
    fast = Rate(1e6, 1e6)
    limits = Limits(messages=fast, messages_of_source=fast, all_messages=fast)
    body = bytes(30 << 10)
    async with (
        serve_alone(Alone(LOCAL, limits=limits, read=0.5)) as server,
        agent(server.port) as ours,
        agent(server.port) as other,
    ):
        await ours.register(sender)
        stream = await ours.register(awake)
        stuck = await other.register(asleep)
        while not server.exchange.counts["slow_readers"]:
            await ours.send(message(sender, asleep, body))
            await ours.send(message(sender, awake))
            assert await read(stream)
        await _streams(server, 2)

        assert server.exchange.counts["slow_readers"] == 1
        assert server.exchange.queued_bytes == 0
        assert server.exchange.counts["dropped"] > 0
        stuck.cancel()


async def test_promise_10_a_flood_of_calls_without_messages_is_bounded() -> None:
    """A stranger opens calls and sends nothing: beyond a number they end at once, and a call with a message passes."""
    async with serving(request=3600.0) as (server, ours), agent(server.port) as hostile:
        calls = [hostile.channel.stream_unary(METHODS + "Send")() for _ in range(SENDING_OF_SOURCE + 100)]
        refused = [await status for status in islice(asyncio.as_completed(map(status_of, calls)), 100)]
        assert refused == [STATUS.RESOURCE_EXHAUSTED] * 100
        for call in calls:
            call.cancel()
        while True:
            with suppress(grpc.aio.AioRpcError):
                await ours.send(message(key(), key()))
                break


async def test_a_call_without_a_message_ends() -> None:
    async with serving(request=0.05) as (_, ours):
        silent = ours.channel.stream_unary(METHODS + "Send")()
        assert await status_of(silent) is STATUS.DEADLINE_EXCEEDED
        empty = ours.channel.stream_unary(METHODS + "Send")()
        await empty.done_writing()
        assert await status_of(empty) is STATUS.INVALID_ARGUMENT


async def test_limits_answer_with_resource_exhausted() -> None:
    bob = key()
    limits = Limits(streams=1, messages_of_strangers=Rate(0, 1))
    async with serving(limits=limits) as (_, ours):
        await ours.register(bob)
        assert await status_of(ours.register(key())) is STATUS.RESOURCE_EXHAUSTED
        await ours.send(message(key(), bob))
        assert await status_of(ours.send(message(key(), bob))) is STATUS.RESOURCE_EXHAUSTED


async def test_clients_behind_a_trusted_proxy_have_limits_of_their_own() -> None:
    """Without trust, the header counts nothing."""
    limits = Limits(messages_of_strangers=Rate(0, 1))

    async def sends(ours: Agent, address: str) -> None:
        call = ours.channel.unary_unary(METHODS + "Send")
        await call(message(key(), key()), metadata=(("x-forwarded-for", address),), timeout=SECONDS)

    async with serving(limits=limits, trusted=[ip_network("127.0.0.0/8")]) as (_, ours):
        await sends(ours, "192.0.2.1")
        await sends(ours, "203.0.113.7, 192.0.2.2")
        assert await status_of(sends(ours, "203.0.113.9, 192.0.2.2")) is STATUS.RESOURCE_EXHAUSTED
    async with serving(limits=limits) as (_, ours):
        await sends(ours, "192.0.2.1")
        assert await status_of(sends(ours, "192.0.2.2")) is STATUS.RESOURCE_EXHAUSTED


async def test_a_stop_ends_streams_at_once_and_health_says_so_before() -> None:
    """Agents are told that the server is unavailable, and reconnect."""
    async with agent_and_server() as (server, ours, stop):
        stub = HealthStub(ours.channel)
        for service in ("", SERVICE):
            reply = await stub.Check(HealthCheckRequest(service=service), timeout=SECONDS)
            assert reply.status == HealthCheckResponse.SERVING
        assert await status_of(stub.Check(HealthCheckRequest(service="x"), timeout=SECONDS)) is STATUS.NOT_FOUND
        stream = await ours.register(key())
        stop.set()

        assert await status_of(stream.read()) is STATUS.UNAVAILABLE
        assert server.exchange.counts["registered"] == 1


@asynccontextmanager
async def agent_and_server() -> AsyncIterator[tuple[Running, Agent, asyncio.Event]]:
    """A server that stops when the event is set."""
    ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serve_alone(Alone(LOCAL)) as server:
            ready.set_result(server)
            await stop.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(serve())
        server = await ready
        async with agent(server.port) as ours:
            yield server, ours, stop


async def test_a_certificate_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pair that cannot be used leaves the last one in force."""
    certificate, private = tmp_path / "tls.crt", tmp_path / "tls.key"
    first, second = trustme.CA(), trustme.CA()

    def issue(authority: trustme.CA, at: int) -> None:
        issued = authority.issue_cert("127.0.0.1")
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        private.write_bytes(issued.private_key_pem.bytes())
        os.utime(certificate, ns=(at, at))

    async def reached(authority: trustme.CA) -> bool:
        async with agent(server.port, roots=authority.cert_pem.bytes()) as ours:
            try:
                await ours.send(message(key(), key()))
            except grpc.aio.AioRpcError:
                return False
            return True

    issue(first, 1)
    async with serve_alone(Alone(LOCAL, certificate, private)) as server:
        assert await reached(first)
        issue(second, 2)
        assert await reached(second)
        assert not await reached(first)
        private.write_text("no key")
        os.utime(certificate, ns=(3, 3))
        assert await reached(second)
    assert "signal.certificate_kept" in caplog.messages


async def test_a_wrong_certificate_or_address_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("no certificate")
    with pytest.raises(ValueError, match="not a certificate and its key"):
        async with serve_alone(Alone(LOCAL, file, file)):
            pass
    with pytest.raises(ValueError, match="No such file"):
        async with serve_alone(Alone(LOCAL, tmp_path / "y", tmp_path / "y")):
            pass
    async with serving() as (server, _):
        with pytest.raises(OSError, match="cannot listen"):
            async with serve_alone(Alone(f"127.0.0.1:{server.port}")):
                pass


async def test_two_thousand_peers_exchange_messages() -> None:
    """Each of the peers gets the message of the one before it; nobody's is lost or doubled."""
    names = [key() for _ in range(2_000)]
    async with serving(limits=Limits(registrations=Rate(1e6, 1e6))) as (server, ours):
        streams = [await ours.register(name) for name in names]
        for sender, receiver in zip(names, names[1:] + names[:1], strict=True):
            await ours.send(message(sender, receiver, sender.encode()))

        for sender, stream in zip(names, streams[1:] + streams[:1], strict=True):
            assert sender.encode() in await read(stream)
        assert server.exchange.streams == 2_000
        assert server.exchange.queued_bytes == 0


async def _streams(server: Running, count: int) -> None:
    """Wait until so many streams are registered."""
    async with asyncio.timeout(SECONDS):
        while server.exchange.streams != count:  # noqa: ASYNC110 - nothing tells a client of it
            await asyncio.sleep(0.01)


def test_a_mailbox_holds_an_offer_of_each_peer_of_a_large_network() -> None:
    assert MESSAGES >= 1000
