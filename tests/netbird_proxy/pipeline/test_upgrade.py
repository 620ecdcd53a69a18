"""Upgrades: guarded like requests, granted only as asked, spliced both ways, and ended by whoever ends them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from netbird_proxy import ALLOW, Authenticator, Deny, Guard, Identity, RequestTransform, UserId
from netbird_proxy.api.errors import ProtocolViolation, UpstreamClosed
from netbird_proxy.api.model import Kind
from netbird_proxy.pipeline import upgrade
from netbird_proxy.pipeline.head_rules import upgrade_protocols
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.makers import host_origin, mapping, route, upstream
from netbird_proxy.testing.transcript import StepHooks, Transcript
from netbird_proxy.testing.upstreams import ScriptedAnswer, ok

ORIGIN = host_origin()
ASK = [
    (b"connection", b"keep-alive, Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-protocol", b"chat"),
    (b"sec-websocket-extensions", b"permessage-deflate"),
]
SWITCH = [
    (b"upgrade", b"WebSocket"),
    (b"connection", b"Upgrade"),
    (b"sec-websocket-accept", b"s3pPLMBiTxaQ"),
]


def websocket(*body: bytes, headers: Any = ASK, **fields: Any) -> Client:
    """A client of our listener that asks for an upgrade and says this behind it."""
    return Client(headers=headers, body=body, upgrade=True, origin=ORIGIN, **fields)


def switched(*body: Any, headers: Any = SWITCH) -> ScriptedAnswer:
    return ScriptedAnswer(101, headers=list(headers), body=body)


async def test_upgrade_is_asked_for_granted_and_spliced() -> None:
    """The handshake's own fields pass both ways, what is hop by hop is said anew, and bytes are bytes."""
    play = Transcript(route(), upstream=[switched(b"\x81\x01a", b"\x81\x01b")])
    client = websocket(b"\x81\x81", b"\0\0\0\0c")

    answer = await play.run(client)

    sent = play.upstreams.last
    assert sent.upgrade
    assert sent.get(b"connection") == [b"Upgrade"]
    assert sent.get(b"upgrade") == [b"websocket"]
    assert sent.get(b"sec-websocket-key") == [b"dGhlIHNhbXBsZSBub25jZQ=="]
    assert sent.get(b"sec-websocket-protocol") == [b"chat"]
    assert sent.get(b"sec-websocket-extensions") == [b"permessage-deflate"]
    assert (bytes(sent.body), sent.chunked, sent.complete, sent.released) == (b"\x81\x81\0\0\0\0c", False, True, True)
    assert not sent.aborted
    assert answer.status == 101
    assert answer.headers == [(b"sec-websocket-accept", b"s3pPLMBiTxaQ"), (b"upgrade", b"WebSocket")]
    assert (answer.body, answer.complete, answer.aborted) == (b"\x81\x01a\x81\x01b", True, False)
    assert (play.exchange.bytes_received, play.exchange.bytes_sent) == (7, 6)
    assert play.effects == ["dial http://10.0.0.7:8080", "respond 101", "observe 101"]
    assert play.exchange.kind == "websocket"


async def test_promise_2_holds_for_upgrades() -> None:
    """Reserved names leave under every alias, the owner's value goes, and no plugin touches the handshake."""
    said: list[str] = []

    def stamp(_exchange: Any, head: Any) -> None:
        head.set(b"x-netbird-user", b"alice")
        for name in (b"upgrade", b"Connection"):
            try:
                head.set(name, b"h2c")
            except Exception as exc:
                said.append(type(exc).__name__)

    hooks = StepHooks(transform_request=[("id", RequestTransform(stamp, owns=(b"x-netbird-user",)))])
    play = Transcript(route(), hooks=hooks, upstream=[switched()])
    client = websocket(
        headers=[
            *ASK[1:],
            (b"connection", b"Upgrade, X-NetBird-User"),
            (b"x-netbird-user", b"mallory"),
            (b"X_NetBird_User", b"mallory"),
            (b"cookie", b"nb_session=secret; a=1"),
        ]
    )

    await play.run(client)

    sent = play.upstreams.last
    assert sent.get(b"x-netbird-user") == [b"alice"]
    assert b"mallory" not in sent.head
    assert sent.get(b"cookie") == [b"a=1"]
    assert said == ["NotTheOwner", "NotTheOwner"]


@pytest.mark.parametrize("says", [Deny(403, "no"), None, ValueError("defect")])
async def test_guards_run_before_anything_is_dialed(says: Any) -> None:
    """An upgrade is admitted like a request or not at all."""

    async def judge(exchange: Any) -> Any:
        assert exchange.kind == "websocket"
        if isinstance(says, BaseException):
            raise says
        return says

    play = Transcript(route(), hooks=StepHooks(authorize=[("gate", Guard(judge))]), upstream=[switched()])
    answer = await play.run(websocket())
    assert answer.status == (403 if isinstance(says, Deny) else 503)
    assert play.upstreams.dialed == 0


def steps(kinds: Any, *, observe: bool = False, stage: str = "restrict", asked: list[str] | None = None) -> StepHooks:
    async def judge(exchange: Any) -> Any:
        if asked is not None:
            asked.append(exchange.kind)
        return ALLOW

    async def identify(exchange: Any) -> Any:
        if asked is not None:
            asked.append(exchange.kind)
        return Identity(UserId("alice"))

    if stage in ("exclusive", "prompt"):
        phase: Any = stage
        return StepHooks(authenticate=[("who", Authenticator(phase, identify, kinds=frozenset(kinds)))])
    return StepHooks(**{stage: [("gate", Guard(judge, kinds=frozenset(kinds), observe=observe))]})  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["restrict", "authorize", "exclusive"])
async def test_upgrade_passes_no_guard_that_cannot_judge_it(stage: str) -> None:
    """Left out, such a guard would be walked around: the route grants no upgrades."""
    asked: list[str] = []
    play = Transcript(route(), hooks=steps(("http",), stage=stage, asked=asked), upstream=[ok()])
    answer = await play.run(websocket())
    assert (answer.status, play.upstreams.dialed) == (501, 0)
    assert asked == ["websocket"]
    assert (await play.request(origin=ORIGIN)).status == 200


@pytest.mark.parametrize(
    ("hooks", "asked"),
    [
        (("http",), {"observe": True}),
        (("http",), {"stage": "prompt"}),
    ],
)
async def test_step_that_refuses_nothing_may_be_left_out(hooks: tuple[Kind, ...], asked: dict[str, Any]) -> None:
    """One that only observes, and one that only asks who it is, where the upgrade is nobody's."""
    seen: list[str] = []
    play = Transcript(route(), hooks=steps(hooks, asked=seen, **asked), upstream=[switched()])
    assert (await play.run(websocket())).status == 101
    assert seen == []


async def test_guard_of_upgrades_alone_runs_for_them_alone() -> None:
    """A step may judge the one kind and leave the other."""
    asked: list[str] = []
    play = Transcript(route(), hooks=steps(("websocket",), asked=asked), upstream=[ok(), switched()])
    await play.request(origin=ORIGIN)
    assert asked == []
    await play.run(websocket())
    assert asked == ["websocket"]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([b"websocket"], [b"websocket"]),
        ([b"a/1, b", b"c"], [b"a/1", b"b", b"c"]),
        ([b"websocket, h2c"], [b"websocket"]),
        ([b"H2C"], []),
        ([b"HTTP/2.0, TLS/1.0, h2, h3"], []),
        ([b"", b" ,,"], []),
        ([b"a b, c\x00, d/, /e, f/1/2"], []),
    ],
)
def test_nothing_that_carries_requests_is_offered(values: list[bytes], found: list[bytes]) -> None:
    """Behind an upgrade to HTTP every further request would pass the guards unseen; what is no protocol is dropped."""
    assert list(upgrade_protocols(values)) == found


async def test_h2c_is_an_ordinary_request() -> None:
    """The offer is dropped, and nothing of it goes upstream."""
    play = Transcript(route(), upstream=[ok()])
    client = websocket(headers=[(b"connection", b"Upgrade"), (b"upgrade", b"h2c")])
    answer = await play.run(client)
    assert (answer.status, answer.body) == (200, b"hello")
    sent = play.upstreams.last
    assert (sent.upgrade, sent.get(b"upgrade"), sent.get(b"connection")) == (False, [], [])
    assert play.exchange.kind == "http"


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS"])
async def test_only_a_get_is_upgraded(method: str) -> None:
    """Anything else that asks for it is told so, and nothing is dialed."""
    play = Transcript(route())
    answer = await play.run(websocket(method=method))
    assert answer.status == 501
    assert play.upstreams.dialed == 0


async def test_upgrade_that_is_not_asked_for_in_full_is_ignored() -> None:
    """`Upgrade` alone, without its `Connection` option, concerns nobody behind us."""
    play = Transcript(route(), upstream=[ok()])
    answer = await play.request(headers=[(b"upgrade", b"websocket")], origin=ORIGIN)
    assert answer.status == 200
    assert play.upstreams.last.get(b"upgrade") == []


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_foreign_server_cannot_carry_it(kind: str) -> None:
    """501 before anything is dialed, in whatever form it offers the upgrade."""
    play = Transcript(route())
    client = Client(headers=ASK, own=False, extra={"type": kind, "extensions": {"websocket.http.response": {}}})
    await play.run(client)
    assert play.upstreams.dialed == 0
    assert play.exchange.status == 501
    assert play.exchange.kind == kind


@pytest.mark.parametrize(
    "headers",
    [
        [(b"upgrade", b"other")],
        [(b"upgrade", b"websocket, other")],
        [(b"upgrade", b"websocket"), (b"upgrade", b"websocket")],
        [(b"upgrade", b"")],
        [],
    ],
)
async def test_upstream_must_switch_to_what_was_asked_for(headers: Any) -> None:
    """A 101 that names another protocol, several, or none is no answer."""
    play = Transcript(route(), upstream=[switched(b"bytes", headers=headers)])
    answer = await play.run(websocket())
    assert (answer.status, answer.body == b"bytes") == (502, False)
    assert play.upstreams.last.aborted
    with pytest.raises(ProtocolViolation):
        upgrade.granted(headers, [b"websocket"])


@pytest.mark.parametrize("status", [200, 401, 426])
async def test_upstream_that_answers_otherwise_is_relayed(status: int) -> None:
    """Any other answer is an ordinary one."""
    play = Transcript(route(), upstream=[ScriptedAnswer(status, headers=[(b"content-length", b"2")], body=(b"no",))])
    answer = await play.run(websocket(b"ignored"))
    assert (answer.status, answer.body, answer.complete) == (status, b"no", True)
    assert play.upstreams.last.body == b""
    assert play.exchange.bytes_received == 0


async def test_client_that_left_before_the_101() -> None:
    """Nobody is there to be told: the upstream is reset."""
    hold = asyncio.Event()
    script = switched()
    script.hold = hold
    play = Transcript(route(), upstream=[script])
    client = websocket()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(play.run(client))
        await play.upstreams.in_use.wait()
        client.gone = True
        hold.set()
    assert play.upstreams.last.aborted
    assert play.effects[-1] == "observe 499 client_gone"


class Chat(ScriptedAnswer):
    """A 101 whose upstream speaks when it is told to."""

    __slots__ = ("said",)

    def __init__(self) -> None:
        super().__init__(101, headers=list(SWITCH))
        self.said: asyncio.Queue[Any] = asyncio.Queue()

    async def read(self) -> bytes:
        said: Any = await self.said.get()
        if isinstance(said, BaseException):
            raise said
        return bytes(said)


class Under:
    """One upgraded connection under way."""

    def __init__(self, *body: bytes) -> None:
        self.chat = Chat()
        self.play = Transcript(route(), upstream=[self.chat])
        self.client = websocket(*body)
        self.switched = asyncio.Event()
        switch = self.client.switch

        def tell(headers: Any) -> Any:
            raw = switch(headers)
            raw.hold.clear()
            self.switched.set()
            return raw

        self.client.switch = tell  # type: ignore[method-assign]

    @property
    def raw(self) -> Any:
        return self.client.raw

    async def run(self) -> None:
        await self.play.run(self.client)


async def under_way(under: Under, group: asyncio.TaskGroup) -> asyncio.Task[None]:
    task = group.create_task(under.run())
    await under.switched.wait()
    await under.raw.all_sent.wait()
    return task


async def test_half_close_of_the_client_leaves_the_answer_open() -> None:
    """Its end is passed on; the upstream may go on talking for as long as it likes."""
    under = Under(b"question")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        await under_way(under, group)
        under.raw.hold.set()
        await asyncio.sleep(0)
        under.chat.said.put_nowait(b"a long ")
        under.chat.said.put_nowait(b"answer")
        under.chat.said.put_nowait(b"")
    sent = under.play.upstreams.last
    assert (bytes(sent.body), sent.complete, sent.aborted) == (b"question", True, False)
    assert under.client.answer.body == b"a long answer"
    assert under.client.answer.complete


async def test_half_close_of_the_upstream_leaves_the_client_open() -> None:
    """The same the other way round."""
    under = Under(b"one")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = await under_way(under, group)
        under.chat.said.put_nowait(b"")
        for _ in range(5):
            await asyncio.sleep(0)
        assert under.raw.finished
        assert not task.done()
        under.client._pieces.append(b" two")
        under.raw.hold.set()
    assert bytes(under.play.upstreams.last.body) == b"one"
    assert under.client.answer.complete


@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_upstreams_end_that_cannot_be_told_ends_both(side: str) -> None:
    """TLS has no half-close: a client that cannot be told in that way is told by the close."""
    under = Under()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        await under_way(under, group)
        if side == "client":
            under.raw.half_closes = False
        else:
            under.play.upstreams.last.half_closes = False
        under.chat.said.put_nowait(b"bye")
        under.chat.said.put_nowait(b"")
    assert under.client.answer.body == b"bye"
    assert under.client.answer.complete


async def test_client_that_left_in_order_is_waited_for_upstream() -> None:
    """What the upstream still says has no reader; its own end is the end."""
    under = Under(b"last words")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        await under_way(under, group)
        under.raw.gone = True
        under.raw.hold.set()
        under.chat.said.put_nowait(b"unheard")
        under.chat.said.put_nowait(b"")
    sent = under.play.upstreams.last
    assert (bytes(sent.body), sent.complete, sent.aborted) == (b"last words", True, False)
    assert under.play.exchange.bytes_sent == 0
    assert under.play.effects[-1] == "observe 101"


async def test_upstream_that_takes_no_more_after_its_end_is_no_failure() -> None:
    """A late frame of the client meets a closed upstream."""

    async def closed(_data: bytes, *, chunked: bool) -> None:
        raise UpstreamClosed("closed")

    under = Under()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        await under_way(under, group)
        under.play.upstreams.last.send_body = closed  # type: ignore[method-assign]
        under.chat.said.put_nowait(b"")
        for _ in range(5):
            await asyncio.sleep(0)
        under.raw._pieces.append(b"late")
        under.raw.hold.set()
    assert under.play.effects[-1] == "observe 101"


@pytest.mark.parametrize("way", ["read", "write"])
async def test_upstream_that_breaks_off_cuts_the_client(way: str) -> None:
    """A stream that broke must not look as if it had ended."""
    under = Under()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        await under_way(under, group)
        if way == "read":
            under.chat.said.put_nowait(UpstreamClosed("reset"))
        else:
            under.play.upstreams.last.aborted = True
            under.client.raw._pieces.append(b"more")  # type: ignore[union-attr]
            under.raw.hold.set()
            under.chat.said.put_nowait(UpstreamClosed("reset"))
    assert under.client.answer.aborted
    assert not under.client.answer.complete
    assert under.play.effects[-1] == "observe 101 upstream_closed"


async def test_idle_connection_is_closed() -> None:
    """Both ways silent for as long as the setting says; bytes either way start it anew."""
    chat = Chat()
    client = websocket()
    raws: list[Any] = []
    switch = client.switch

    def hold(headers: Any) -> Any:
        raw = switch(headers)
        raw.hold.clear()
        raws.append(raw)
        return raw

    client.switch = hold  # type: ignore[method-assign]
    play = Transcript(route(), upstream=[chat])
    play.compiler._upgrade_idle = 0.02
    play.routing.apply("management", [mapping(route(to=upstream("http://10.0.0.9:80")))])
    async with asyncio.timeout(10):
        await play.run(client)
    assert client.answer.aborted
    assert play.upstreams.last.aborted
    assert play.effects[-1] == "observe 101 stream_idle"


async def test_cut_closes_both_sides() -> None:
    """Whatever takes its ground away: the upstream is reset, the client's connection too, and it is observed once."""
    under = Under(b"a")
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        asking = group.create_task(under.play.app.exchanges.run())
        task = await under_way(under, group)
        under.play.routing.apply("management", [])
        await task
        asking.cancel()
    assert under.client.answer.aborted
    assert under.play.upstreams.last.aborted
    assert under.play.effects[-1] == "observe 101 route_gone"
    assert len(under.play.observed) == 1


@pytest.mark.parametrize(("kinds", "code"), [(("http", "websocket"), ""), (("http",), "upgrade_unsupported")])
async def test_open_upgrade_is_asked_about_as_one(kinds: Any, code: str) -> None:
    """By the guards that judge upgrades; where the new ones cannot, it may not go on."""
    under = Under()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        asking = group.create_task(under.play.app.exchanges.run())
        task = await under_way(under, group)
        asked = asyncio.Event()

        async def judge(exchange: Any) -> Any:
            assert exchange.kind == "websocket"
            asked.set()
            return ALLOW

        hooks: Any = under.play.compiler._hooks
        hooks._hooks.steps["restrict"] = [("gate", Guard(judge, kinds=frozenset(kinds)))]
        under.play.routing.apply("management", [mapping(route(to=upstream("http://10.0.0.9:80")))])
        if code:
            await task
        else:
            await asked.wait()
            await asyncio.sleep(0)
            assert not task.done()
            under.chat.said.put_nowait(b"")
            under.raw.hold.set()
            await task
        asking.cancel()
    assert under.play.effects[-1] == f"observe 101 {code}".rstrip()


async def test_defect_in_the_splice_closes_both() -> None:
    """What nobody foresaw is a failure of ours, after the head a cut."""
    under = Under()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        await under_way(under, group)
        under.chat.said.put_nowait(ValueError("a defect"))
    assert under.client.answer.aborted
    assert under.play.effects[-1] == "observe 101 step_failed"
