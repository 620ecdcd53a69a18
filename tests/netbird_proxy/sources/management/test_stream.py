"""The mapping stream against a real gRPC server on loopback."""
# Over 500 lines: one stream, tried with one scripted management.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from netbird_proxy.api.errors import (
    ManagementError,
    ManagementRefused,
    ManagementTimeout,
    ManagementUnavailable,
    SettingsError,
)
from netbird_proxy.api.model import AccountId, PublicKey, ServiceId
from netbird_proxy.sources.management.channel import Connection, Loss, ManagementClient, open_channel
from netbird_proxy.sources.management.stream import BACK_SPREAD, MappingStream, Update, reconnected
from netbird_proxy.testing.faults import Kind, TcpRelay
from netbird_wire.extensions import NO_STREAM
from netbird_wire.proxy_service_pb2 import (
    CreateProxyPeerRequest,
    CreateProxyPeerResponse,
    GetMappingUpdateResponse,
    ProxyCapabilities,
    ProxyMapping,
    SendStatusUpdateRequest,
    SendStatusUpdateResponse,
    SyncMappingsResponse,
    ValidateTunnelPeerRequest,
    ValidateTunnelPeerResponse,
)
from netbird_wire.proxy_service_pb2_grpc import ProxyServiceServicer, add_ProxyServiceServicer_to_server

WAIT = 10.0
Script = Callable[["Management", Any, Any], AsyncIterator[SyncMappingsResponse]]


class Management(ProxyServiceServicer):
    """Plays one script a stream, in order, and writes down what it hears."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.heard: list[str] = []
        self.inits: list[Any] = []
        self.metadata: list[dict[str, str]] = []
        self.peers: list[CreateProxyPeerRequest] = []
        self.acks: asyncio.Queue[None] = asyncio.Queue()
        self.legacy: list[GetMappingUpdateResponse] = []
        self.silent = asyncio.Event()
        self.status = grpc.StatusCode.NOT_FOUND

    async def SyncMappings(self, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        self.metadata.append(dict(context.invocation_metadata()))
        self.inits.append((await anext(aiter(requests))).init)
        script = self.scripts.pop(0) if self.scripts else hold
        async for response in script(self, requests, context):
            yield response

    async def GetMappingUpdate(self, request: Any, context: Any) -> AsyncIterator[GetMappingUpdateResponse]:
        self.inits.append(request)
        for response in self.legacy:
            yield response
        await asyncio.Event().wait()

    async def CreateProxyPeer(self, request: CreateProxyPeerRequest, context: Any) -> CreateProxyPeerResponse:
        self.peers.append(request)
        return CreateProxyPeerResponse(success=request.token == "good", error_message="no such token")

    async def ValidateTunnelPeer(self, request: Any, context: Any) -> ValidateTunnelPeerResponse:
        await self.silent.wait()
        return ValidateTunnelPeerResponse()

    async def SendStatusUpdate(self, request: Any, context: Any) -> SendStatusUpdateResponse:
        await context.abort(self.status, "service not found")
        raise AssertionError("abort raises")


async def hold(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
    """An empty snapshot, then silence."""
    yield SyncMappingsResponse(initial_sync_complete=True, management_extensions=["wireguard_endpoint"])
    await asyncio.Event().wait()


class Sink:
    """Writes down what it is given."""

    def __init__(self, on_apply: Callable[[Update], Awaitable[None]] | None = None) -> None:
        self.seen: asyncio.Queue[str] = asyncio.Queue()
        self.on_apply = on_apply

    def stream_opened(self) -> None:
        self.seen.put_nowait("opened")

    async def apply(self, update: Update) -> None:
        if self.on_apply is not None:
            await self.on_apply(update)
        self.seen.put_nowait(f"apply {[m.id for m in update.mapping]} {update.initial_sync_complete}")

    def stream_lost(self) -> None:
        self.seen.put_nowait("lost")

    async def saw(self, *lines: str) -> None:
        async with asyncio.timeout(WAIT):
            assert [await self.seen.get() for _ in lines] == list(lines)


@asynccontextmanager
async def running(
    management: Management, sink: Sink, **options: Any
) -> AsyncIterator[tuple[ManagementClient, list[float]]]:
    server = grpc.aio.server()
    add_ProxyServiceServicer_to_server(management, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    waits: list[float] = []

    def at_once(_low: float, high: float) -> float:
        waits.append(high)
        return 0.0

    connection = Connection(
        url=f"http://127.0.0.1:{port}",
        token="nbx_secret",
        proxy_id="proxy-1",
        version="1.0",
        domain="proxy.example",
        allow_insecure=True,
        **options,
    )
    client = ManagementClient(connection)
    mappings = MappingStream(client, lambda: ProxyCapabilities(private=True), sink, pick=at_once)
    try:
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(mappings.run())
            yield client, waits
            stream.cancel()
    finally:
        await client.close()
        await server.stop(None)


async def test_snapshot_is_applied_batch_by_batch_and_each_batch_is_acknowledged() -> None:
    """Management waits for an ack after each batch of the snapshot, the last one included."""

    async def batches(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        yield SyncMappingsResponse(mapping=[ProxyMapping(id="a"), ProxyMapping(id="b")])
        management.heard.append((await anext(aiter(requests))).WhichOneof("msg"))
        yield SyncMappingsResponse(mapping=[ProxyMapping(id="c")], initial_sync_complete=True)
        management.heard.append((await anext(aiter(requests))).WhichOneof("msg"))
        management.acks.put_nowait(None)
        await asyncio.Event().wait()

    management, sink = Management(batches), Sink()
    async with running(management, sink) as (client, _):
        await sink.saw("opened", "apply ['a', 'b'] False", "apply ['c'] True")
        await asyncio.wait_for(management.acks.get(), WAIT)

        assert management.heard == ["ack", "ack"]
        assert client.initial_sync_complete
        assert client.connected


async def test_introduction_says_who_we_are_and_every_call_is_signed() -> None:
    """Token and proxy id travel with the stream; the address and capabilities with its first message."""
    management, sink = Management(hold), Sink()
    async with running(management, sink) as (client, _):
        await sink.saw("opened", "apply [] True")

        init = management.inits[0]
        assert (init.proxy_id, init.address, init.version) == ("proxy-1", "proxy.example", "1.0")
        assert init.capabilities.private
        assert init.HasField("started_at")
        assert management.metadata[0]["authorization"] == "Bearer nbx_secret"
        assert management.metadata[0]["x-netbird-proxy-id"] == "proxy-1"
        assert client.extensions == {"wireguard_endpoint"}


async def test_stream_that_ends_is_opened_again_at_the_first_delay() -> None:
    """An end after a message resets the back-off: the connection was good."""

    async def short(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        yield SyncMappingsResponse(initial_sync_complete=True)

    management, sink = Management(short, short), Sink()
    async with running(management, sink) as (_, waits):
        once = ("opened", "apply [] True", "lost")
        await sink.saw(*once, *once, "opened", "apply [] True")

        assert waits == pytest.approx([0.4, 0.4])


async def test_management_that_is_back_is_not_waited_for() -> None:
    """However long the pause would have been: once it can be reached again, the stream is opened."""

    def patient(_low: float, high: float) -> float:
        return 0.0 if high == BACK_SPREAD else 3600.0

    sink = Sink()
    first, again = grpc.aio.server(), grpc.aio.server()
    add_ProxyServiceServicer_to_server(Management(hold), first)
    add_ProxyServiceServicer_to_server(Management(hold), again)
    port = first.add_insecure_port("127.0.0.1:0")
    await first.start()
    connection = Connection(
        url=f"http://127.0.0.1:{port}",
        token="nbx_secret",
        proxy_id="proxy-1",
        version="1.0",
        domain="proxy.example",
        allow_insecure=True,
    )
    client = ManagementClient(connection)
    mappings = MappingStream(client, lambda: ProxyCapabilities(private=True), sink, pick=patient)
    try:
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(mappings.run())
            await sink.saw("opened", "apply [] True")
            await first.stop(None)
            await sink.saw("lost")
            again.add_insecure_port(f"127.0.0.1:{port}")
            await again.start()
            await sink.saw("opened", "apply [] True")
            stream.cancel()
    finally:
        await client.close()
        await again.stop(None)


class Scripted:
    """A channel whose states follow each other as they are waited for."""

    def __init__(self, *states: grpc.ChannelConnectivity) -> None:
        self.states = list(states)

    def get_state(self, *, try_to_connect: bool) -> grpc.ChannelConnectivity:
        assert try_to_connect
        return self.states[0]

    async def wait_for_state_change(self, last: grpc.ChannelConnectivity) -> None:
        assert last is self.states.pop(0)
        if not self.states:
            await asyncio.Event().wait()


@pytest.mark.parametrize("before", [["IDLE"], ["READY", "IDLE"], ["READY", "TRANSIENT_FAILURE", "CONNECTING"]])
async def test_a_lost_call_may_be_known_before_its_lost_connection(before: list[str]) -> None:
    """A channel that still seems ready is not taken for one that is ready again, nor waited for in vain."""
    states = [grpc.ChannelConnectivity[name] for name in (*before, "READY")]
    channel: Any = Scripted(*states)

    async with asyncio.timeout(WAIT):
        await reconnected(channel)

    assert channel.states == states[-1:]


async def test_a_connection_that_lasts_is_no_new_one() -> None:
    """Management that refuses the stream and keeps the connection is asked again after the whole pause only."""
    channel: Any = Scripted(grpc.ChannelConnectivity.READY)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(reconnected(channel))
        while channel.states:  # noqa: ASYNC110 - until it waits for a change that never comes
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()


async def test_refused_token_backs_off_further_each_time() -> None:
    """A server that refuses us before any message must not be hammered, however well the send went."""

    async def refuse(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "token revoked")
        yield SyncMappingsResponse()

    management, sink = Management(refuse, refuse, refuse), Sink()
    async with running(management, sink) as (_, waits):
        await sink.saw(*("opened", "lost") * 3, "opened", "apply [] True")

        assert waits == pytest.approx([1.6, 1.6 * 1.7, 1.6 * 1.7**2])


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.value[0]], ids=lambda code: code.name)
async def test_only_a_refusal_is_waited_out_for_long(code: grpc.StatusCode) -> None:
    """Whatever a broken connection looks like is connected to again quickly; a call that fails with it may be repeated
    exactly where the code is no refusal."""

    async def fail(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        yield SyncMappingsResponse(initial_sync_complete=True)
        await context.abort(code, "no")

    broken = {"UNAVAILABLE", "CANCELLED", "ABORTED", "INTERNAL", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED"}
    management, sink = Management(fail), Sink()
    async with running(management, sink) as (client, waits):
        await sink.saw("opened", "apply [] True", "lost", "opened", "apply [] True")
        if code.name in broken:
            assert waits[0] == pytest.approx(0.4)
        else:
            assert waits == pytest.approx([1.6])
        management.status = code
        with pytest.raises(ManagementError) as caught:
            await client.call("SendStatusUpdate", SendStatusUpdateRequest(service_id="svc"))
        busy = code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert isinstance(caught.value, ManagementRefused) is not (code.name in broken or busy)


async def test_management_without_sync_mappings_is_spoken_to_in_the_old_way() -> None:
    """UNIMPLEMENTED leads to GetMappingUpdate in the same attempt, without a wait."""

    async def unknown(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        yield SyncMappingsResponse()

    management, sink = Management(unknown), Sink()
    management.legacy = [GetMappingUpdateResponse(mapping=[ProxyMapping(id="a")], initial_sync_complete=True)]
    async with running(management, sink) as (_, waits):
        await sink.saw("opened", "apply ['a'] True")

        assert waits == []
        assert management.inits[-1].proxy_id == "proxy-1"


async def test_stalled_batch_is_cancelled_and_never_acknowledged() -> None:
    """The watchdog ends the batch itself, so that it cannot interleave with the snapshot of the next stream."""
    cancelled = asyncio.Event()
    stalls = [True]

    async def stall(_update: Update) -> None:
        if stalls.pop() if stalls else False:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    management, sink = Management(hold, hold), Sink(stall)
    async with running(management, sink, batch_watchdog=0.05):
        await sink.saw("opened", "lost", "opened", "apply [] True")

        assert cancelled.is_set()


async def test_proxy_peer_spends_the_freshest_token_and_tells_its_endpoint() -> None:
    """Each token is for one registration; the endpoint goes only to a management that knows the extension."""
    management, sink = Management(hold), Sink()
    async with running(management, sink) as (client, _):
        await sink.saw("opened", "apply [] True")
        client.tokens.put(AccountId("acct"), ServiceId("svc"), "good", now=0.0)

        await client.create_proxy_peer(
            AccountId("acct"), PublicKey("key"), "127.0.0.1:51820", clock=lambda: 1.0, serves_dns=True
        )

        sent = management.peers[0]
        assert (sent.service_id, sent.token, sent.cluster) == ("svc", "good", "proxy.example")
        assert (sent.wireguard_endpoint, sent.serves_dns) == ("127.0.0.1:51820", True)
        assert client.tokens.spend(AccountId("acct"), 1.0) is None


async def test_without_a_token_a_fresh_snapshot_is_asked_for() -> None:
    """All spent: the stream is opened anew, and the token that its snapshot brings is used."""
    management, sink = Management(hold, hold), Sink()
    async with running(management, sink) as (client, waits):
        await sink.saw("opened", "apply [] True")
        async with asyncio.TaskGroup() as group:
            peer = group.create_task(client.create_proxy_peer(AccountId("acct"), PublicKey("key"), ""))
            await sink.saw("lost", "opened", "apply [] True")
            client.tokens.put(AccountId("acct"), ServiceId("svc"), "good", asyncio.get_running_loop().time())
            await asyncio.wait_for(peer, WAIT)

        assert waits == []
        assert len(management.peers) == 1


async def test_refused_proxy_peer_says_why() -> None:
    """`success=false` is an answer, and no peer."""
    management, sink = Management(hold), Sink()
    async with running(management, sink) as (client, _):
        client.tokens.put(AccountId("acct"), ServiceId("svc"), "bad", now=0.0)

        with pytest.raises(ManagementRefused, match="no such token"):
            await client.create_proxy_peer(AccountId("acct"), PublicKey("key"), "", clock=lambda: 1.0)


async def test_call_to_silent_management_ends_at_its_deadline() -> None:
    """gRPC has no default deadline, so every call brings one."""
    management, sink = Management(hold), Sink()
    async with running(management, sink, rpc_timeout=0.05) as (client, _):
        with pytest.raises(ManagementTimeout):
            await client.call("ValidateTunnelPeer", ValidateTunnelPeerRequest())


async def test_call_that_management_refuses_is_told_apart_from_one_that_failed() -> None:
    """NOT_FOUND is management's word; a connection that is not there is not."""
    management, sink = Management(hold), Sink()
    async with running(management, sink) as (client, _):
        with pytest.raises(ManagementRefused, match="service not found"):
            await client.call("SendStatusUpdate", SendStatusUpdateRequest())

    nobody = Connection(url="http://127.0.0.1:1", token="t", proxy_id="p", version="", domain="d", allow_insecure=True)
    alone = ManagementClient(nobody)
    with pytest.raises(ManagementUnavailable):
        await alone.call("SendStatusUpdate", SendStatusUpdateRequest())
    await alone.close()


@pytest.mark.parametrize(
    ("url", "insecure", "message"),
    [
        ("http://10.0.0.1:80", False, "allow_insecure"),
        ("10.0.0.1:80", True, "not an http"),
        ("ftp://10.0.0.1", True, "not an http"),
    ],
)
def test_unusable_url_says_what_to_change(url: str, insecure: bool, message: str) -> None:
    """A token is never sent in the clear unless the operator said so."""
    with pytest.raises(SettingsError, match=message):
        open_channel(Connection(url=url, token="t", proxy_id="p", version="", domain="d", allow_insecure=insecure))


def test_token_never_shows_in_a_repr() -> None:
    """A connection ends up in logs and tracebacks."""
    assert "secret" not in repr(Connection(url="u", token="secret", proxy_id="p", version="", domain="d"))


async def test_a_call_between_two_streams_waits_for_the_next() -> None:
    """Management has no stream of ours for a moment: who is asked about then waits that moment, and is not refused."""
    ended = asyncio.Event()

    class Strict(Management):
        streams = 0

        async def ValidateTunnelPeer(self, request: Any, context: Any) -> ValidateTunnelPeerResponse:
            if self.streams < 2:
                ended.set()
                await context.abort(grpc.StatusCode.UNAVAILABLE, f"{NO_STREAM}: connect it first")
            return ValidateTunnelPeerResponse(valid=True)

    async def first(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        yield SyncMappingsResponse(initial_sync_complete=True)
        await ended.wait()

    async def second(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        assert isinstance(management, Strict)
        management.streams = 2
        async for response in hold(management, requests, context):
            yield response

    management = Strict(first, second)
    async with running(management, Sink(), rpc_timeout=WAIT) as (client, _):
        answer = await client.call("ValidateTunnelPeer", ValidateTunnelPeerRequest())
        assert (answer.valid, len(management.inits)) == (True, 2)


async def test_a_call_without_a_stream_ends_with_its_deadline() -> None:
    """Nobody is held up for longer than management would have had for the answer."""

    class Strict(Management):
        async def ValidateTunnelPeer(self, request: Any, context: Any) -> ValidateTunnelPeerResponse:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{NO_STREAM}: connect it first")
            raise AssertionError("abort raises")

    async with running(Strict(), Sink(), rpc_timeout=0.3) as (client, _):
        with pytest.raises(ManagementUnavailable):
            await client.call("ValidateTunnelPeer", ValidateTunnelPeerRequest())


class Losses:
    """How a client's streams ended, as the counters tell it."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[str] = asyncio.Queue()

    async def next(self) -> str:
        async with asyncio.timeout(WAIT):
            return await self.seen.get()


@asynccontextmanager
async def behind_a_relay(
    management: Management, *, silence: float = 0.2, patience: float = 1.0
) -> AsyncIterator[tuple[ManagementClient, TcpRelay, Losses]]:
    """A client that soon loses patience with a silent management, unless the test needs one that does not."""
    # Its own options of a server, as an ordinary one hangs up on clients that ask for signs of life so often.
    server = grpc.aio.server(options=[("grpc.http2.max_ping_strikes", 0)])
    add_ProxyServiceServicer_to_server(management, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    losses = Losses()
    async with TcpRelay("127.0.0.1", port).running() as relay:
        connection = Connection(
            url=f"http://127.0.0.1:{relay.port}",
            token="t",
            proxy_id="p",
            version="1",
            domain="d",
            allow_insecure=True,
            silence=silence,
            patience=patience,
        )
        client = ManagementClient(connection)
        mappings = MappingStream(
            client, ProxyCapabilities, Sink(), pick=lambda _low, high: high / 10, count=losses.seen.put_nowait
        )
        try:
            async with asyncio.TaskGroup() as group:
                stream = group.create_task(mappings.run())
                yield client, relay, losses
                stream.cancel()
        finally:
            await client.close()
            await server.stop(None)


async def connected(client: ManagementClient) -> None:
    async with asyncio.timeout(WAIT):
        while not client.connected:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("kind", "why"), [("freeze", Loss.SILENT), ("break", Loss.UNREACHABLE)])
async def test_a_silent_management_is_told_apart_from_one_that_is_gone(kind: Kind, why: Loss) -> None:
    """While it is connected, and as long as it can be connected to and does not answer; and it is there again after."""
    async with behind_a_relay(Management()) as (client, relay, losses):
        await connected(client)
        assert client.state == "connected"
        relay.apply(kind)
        for _ in range(3):  # the stream that there was, then attempts at another
            assert await losses.next() == f"management_{why}"
        assert (client.state, client.connected) == (why, False)
        relay.heal()
        await connected(client)
        assert client.loss is None


async def test_a_management_that_refuses_is_told_apart() -> None:
    """It answers, and says no; one that ends the stream in peace has closed it."""

    async def refuse(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the proxy's token is no longer valid")
        yield SyncMappingsResponse()

    async def goodbye(management: Management, requests: Any, context: Any) -> AsyncIterator[SyncMappingsResponse]:
        yield SyncMappingsResponse(initial_sync_complete=True)

    # Patient, as the server shares this loop: one that is busy elsewhere would count as silent in between.
    async with behind_a_relay(Management(refuse, refuse, goodbye), silence=60.0, patience=60.0) as (client, _, losses):
        assert client.state == "connecting"
        assert await losses.next() == "management_refused"
        assert client.state == "refused"
        assert [await losses.next() for _ in range(2)] == ["management_refused", "management_closed"]
        await connected(client)
