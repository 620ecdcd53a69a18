"""Bytes both ways: bodies, early answers, retries, cuts, trailers, and what a vanished client leaves behind."""
# Over 500 lines: one module, tried with one scripted upstream.

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from netbird_proxy.api.errors import (
    AddressRefused,
    BodyTooLarge,
    DialFailed,
    DialRefused,
    DialTimeout,
    DialUnreachable,
    HeadTimeout,
    ProtocolViolation,
    TlsFailed,
    TunnelNotReady,
    UpstreamClosed,
    UpstreamError,
    UpstreamOverloaded,
    leaves,
)
from netbird_proxy.testing.asgi import Client
from netbird_proxy.testing.makers import host_origin, route, tunnel_origin, upstream
from netbird_proxy.testing.transcript import Transcript
from netbird_proxy.testing.upstreams import ScriptedAnswer, ScriptedConnection, ok
from netbird_proxy.upstreams.protocols import BodyLengthMismatch

ORIGIN = host_origin()
CHUNKED = [(b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("own", [True, False])
async def test_body_goes_up_and_answer_comes_down(own: bool) -> None:
    """Every piece in order, counted both ways, and the connection given back once."""
    play = Transcript(route(), upstream=[ScriptedAnswer(body=(b"one", b"two"))])

    answer = await play.request(
        "POST", headers=[(b"content-length", b"4")], body=[b"ab", b"cd"], origin=ORIGIN if own else None, own=own
    )

    sent = play.upstreams.last
    assert (bytes(sent.body), sent.complete, sent.chunked, sent.aborted) == (b"abcd", True, False, False)
    assert sent.released
    assert (answer.body, answer.complete) == (b"onetwo", True)
    assert (play.exchange.bytes_received, play.exchange.bytes_sent) == (4, 6)
    assert play.upstreams.pools[0].in_flight == 0


async def test_chunked_body_keeps_its_framing() -> None:
    """A body without a length goes on without one; an empty piece is none."""
    play = Transcript(route())
    await play.request("POST", headers=CHUNKED, body=[b"a", b"", b"b"], origin=ORIGIN)
    sent = play.upstreams.last
    assert (bytes(sent.body), sent.chunked, sent.complete) == (b"ab", True, True)


async def test_request_without_body_is_never_asked_for_one() -> None:
    """Under our own listener `receive` is not called when the head says that nothing follows."""
    play = Transcript(route())
    client = Client(origin=ORIGIN)
    await play.run(client)
    assert client.received == 0


async def test_early_answer_ends_the_upload() -> None:
    """An upstream that answers before the body's end is heard at once; its connection is not kept as clean."""
    play = Transcript(route(), upstream=[ScriptedAnswer(413, body=(b"too big",), waits=False)])
    client = Client("POST", headers=CHUNKED, body=[b"a"], leaves=True, origin=ORIGIN)
    client.receive = _never  # type: ignore[method-assign]  # the rest of the body never comes

    answer = await play.run(client)

    assert (answer.status, answer.body, answer.complete) == (413, b"too big", True)
    assert not play.upstreams.last.complete
    assert play.upstreams.last.released


async def _never() -> Any:
    await asyncio.Event().wait()


async def test_upstream_that_stops_reading_is_still_heard() -> None:
    """A body that can no longer be sent does not hide the answer that explains why."""

    tried = asyncio.Event()

    class Deaf(ScriptedConnection):
        async def send_body(self, data: bytes, *, chunked: bool) -> None:
            tried.set()
            raise UpstreamClosed("reset")

    play = Transcript(route(), upstream=[ScriptedAnswer(403, body=(b"no",), waits=False, hold=tried)])
    _use(play, Deaf)

    answer = await play.request("POST", headers=CHUNKED, body=[b"a", b"b"], origin=ORIGIN)

    assert (answer.status, answer.body) == (403, b"no")


def _use(play: Transcript, kind: type[ScriptedConnection]) -> None:
    """Let the one pool give connections of another kind."""
    pool = play.upstreams.pools[0]

    async def acquire(*, fresh: bool = False, source: str = "") -> ScriptedConnection:
        script = play.upstreams.next()
        connection = kind(pool, script, reused=False)
        play.upstreams.connections.append(connection)
        pool.in_flight += 1
        return connection

    pool.acquire = acquire  # type: ignore[method-assign]


@pytest.mark.parametrize("own", [True, False])
async def test_vanished_client_resets_its_upload(own: bool) -> None:
    """A body that ends because its client left never looks complete upstream."""
    play = Transcript(route(), upstream=[ScriptedAnswer(hold=asyncio.Event())])
    client = Client("POST", headers=CHUNKED, body=[b"half"], leaves=True, own=own, origin=ORIGIN if own else None)
    client.leave()

    answer = await play.run(client)

    sent = play.upstreams.last
    assert (sent.complete, sent.aborted, sent.released) == (False, True, True)
    assert answer.status == 0
    assert play.effects[-1] == "observe 499 client_gone"


async def test_client_that_leaves_a_foreign_server_resets_the_download() -> None:
    """Only a message tells of it there; it is listened for, and the upstream is reset."""
    hold = asyncio.Event()
    play = Transcript(route(), upstream=[ScriptedAnswer(hold=hold)])
    client = Client(own=False)
    client.leave()

    await play.run(client)

    assert play.upstreams.last.aborted
    assert play.effects[-1] == "observe 499 client_gone"


async def test_client_that_leaves_after_its_answer_is_no_failure() -> None:
    """A foreign server may tell of the end before the application returns."""
    play = Transcript(route())
    client = Client(own=False)
    send = client.send

    async def send_and_leave(message: Any) -> None:
        await send(message)
        if not message.get("more_body", True):
            client.leave()
            await asyncio.sleep(0)

    client.send = send_and_leave  # type: ignore[method-assign]

    answer = await play.run(client)

    assert (answer.status, answer.complete) == (200, True)
    assert play.exchange.error is None


async def test_cancelled_download_resets_the_upstream() -> None:
    """The task ends with its cancellation; the upstream connection is reset, and observed once."""
    waiting = asyncio.Event()

    class Silent(ScriptedConnection):
        async def answer(self, informational: Any = None) -> ScriptedAnswer:
            waiting.set()
            await asyncio.Event().wait()
            raise AssertionError

    play = Transcript(route())
    _use(play, Silent)
    client = Client(origin=ORIGIN)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(client.ask(play.app))
        await waiting.wait()
        task.cancel()

    assert task.cancelled()
    sent = play.upstreams.last
    assert (sent.aborted, sent.released) == (True, True)
    assert play.exchange.tries[0].error == "cut"
    assert play.effects[-1] == "observe 499 client_gone"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_idle_connection_that_was_closed_is_tried_anew(method: str) -> None:
    """One retry, on a fresh connection, where nothing can have happened upstream."""
    play = Transcript(route(), upstream=[UpstreamClosed("idle"), ok(b"x")], reused=True)

    answer = await play.request(method, origin=ORIGIN)

    assert answer.status == 200
    assert [one.reused for one in play.upstreams.connections] == [True, False]
    assert [one.error for one in play.exchange.tries] == ["upstream_closed", ""]
    assert all(one.released for one in play.upstreams.connections)


@pytest.mark.parametrize(
    ("method", "reused", "body", "failures"),
    [
        ("POST", True, None, 1),
        ("PATCH", True, None, 1),
        ("GET", False, None, 1),
        ("PUT", True, [b"x"], 1),
        ("GET", True, None, 2),
    ],
)
async def test_nothing_else_is_tried_anew(method: str, reused: bool, body: Any, failures: int) -> None:
    """Not what may act twice, not a body that is spent, not a fresh connection, and never a third time."""
    play = Transcript(route(), upstream=[UpstreamClosed("closed")] * failures, reused=reused)
    headers = CHUNKED if body else []

    answer = await play.request(method, headers=headers, body=body, origin=ORIGIN)

    assert answer.status == 502
    assert play.upstreams.dialed == failures
    assert play.effects[-1] == "observe 502 upstream_closed"


async def test_answer_that_began_is_not_tried_anew() -> None:
    """Once a byte has come, the request was seen."""

    class Half(ScriptedConnection):
        async def answer(self, informational: Any = None) -> ScriptedAnswer:
            self.reused = True
            self.nothing_received = False
            raise UpstreamClosed("half a head")

    play = Transcript(route(), upstream=[ok(), ok()])
    _use(play, Half)

    assert (await play.request(origin=ORIGIN)).status == 502
    assert play.upstreams.dialed == 1


FAILURES = leaves(UpstreamError)


@pytest.mark.parametrize("failure", FAILURES, ids=lambda one: one.__name__)
async def test_upstream_failure_is_answered_as_its_table_says(failure: type[UpstreamError]) -> None:
    """Status, code and sentence; no address, no cause, one observation."""
    play = Transcript(route(), upstream=[failure("dial 10.0.0.7:8080: a cause")])

    answer = await play.request(origin=ORIGIN)

    assert answer.status == failure.status
    assert failure.code.encode() in answer.body
    assert failure.sentence.encode() in answer.body
    assert b"10.0.0.7" not in answer.body
    assert b"cause" not in answer.body
    assert play.effects[-1] == f"observe {failure.status} {failure.code}"
    assert play.exchange.tries[0].error == failure.code


@pytest.mark.parametrize(
    "answer",
    [
        ScriptedAnswer(body=(b"half", UpstreamClosed("cut"))),
        ScriptedAnswer(headers=[(b"content-length", b"9")], body=(b"half",)),
        ScriptedAnswer(headers=[(b"content-length", b"9")], body=(b"half", ProtocolViolation("junk"))),
    ],
)
async def test_answer_that_breaks_off_breaks_off_downstream(answer: ScriptedAnswer) -> None:
    """After the head has gone out a failure closes the stream: half an answer never looks whole."""
    play = Transcript(route(), upstream=[answer])

    got = await play.request(origin=ORIGIN)

    assert (got.status, got.body, got.complete, got.aborted) == (200, b"half", False, True)
    assert play.upstreams.last.aborted
    assert play.exchange.error is not None
    assert sum(message["type"] == "http.response.start" for message in got.messages) == 1


async def test_answer_that_breaks_off_under_a_foreign_server() -> None:
    """There the application returns without completing, which makes the server close."""
    play = Transcript(route(), upstream=[ScriptedAnswer(body=(b"half", UpstreamClosed("cut")))])
    got = await play.request(own=False)
    assert (got.body, got.complete) == (b"half", False)


async def test_failure_behind_a_complete_answer_is_only_noted() -> None:
    """The client has everything; its connection is not punished for what the upstream did next."""
    script = ScriptedAnswer(headers=[(b"content-length", b"2")], body=(b"ok", UpstreamClosed("late")))
    play = Transcript(route(), upstream=[script])

    got = await play.request(origin=ORIGIN)

    assert (got.complete, got.aborted) == (True, False)
    assert play.upstreams.last.aborted
    assert play.exchange.error is not None


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answers_without_a_body(method: str, status: int) -> None:
    """HEAD, 204 and 304 end with their heads; a HEAD keeps the length that a GET would have."""
    play = Transcript(route(), upstream=[ScriptedAnswer(status, headers=[(b"content-length", b"7")])])

    got = await play.request(method, origin=ORIGIN)

    assert (got.status, got.body, got.complete) == (status, b"", True)
    assert got.get(b"content-length") == (None if status == 204 else b"7")


async def test_switching_protocols_unasked_is_a_violation() -> None:
    """A 101 to a request without an upgrade is refused."""
    play = Transcript(route(), upstream=[ScriptedAnswer(101)])
    assert (await play.request(origin=ORIGIN)).status == 502
    assert play.upstreams.last.aborted


async def test_informational_heads_pass() -> None:
    """103 goes on at once, without hop-by-hop fields; 100 is our listener's to say."""
    hints = [(b"link", b"</a.css>"), (b"connection", b"close")]
    script = ScriptedAnswer(before=[(100, []), (103, hints)])
    play = Transcript(route(), upstream=[script, script, script])

    got = await play.request(origin=ORIGIN)
    assert got.informational == [(103, [(b"link", b"</a.css>")])]

    assert (await play.request(origin=ORIGIN, http_version="1.0")).informational == []
    assert (await play.request(own=False)).informational == []


async def test_response_trailers_pass_under_our_listener() -> None:
    """Announced ones follow the body; under a foreign server they are left out."""
    script = [
        ScriptedAnswer(headers=[(b"trailer", b"x-sum")], body=(b"a",), trailers=[(b"x-sum", b"1"), (b"host", b"x")])
        for _ in range(2)
    ]
    play = Transcript(route(), upstream=script)

    got = await play.request(origin=ORIGIN)
    assert got.trailers == [(b"x-sum", b"1")]
    assert got.messages[0]["trailers"] is True

    assert (await play.request(own=False)).trailers is None


async def test_several_upstreams_take_turns() -> None:
    """Each exchange goes to the next one."""
    both = (upstream("http://10.0.0.1:80"), upstream("http://10.0.0.2:80"))
    play = Transcript(route(to=both))
    for _ in range(3):
        await play.request(origin=ORIGIN)
    dialed = [one.removeprefix("dial ") for one in play.effects if one.startswith("dial")]
    assert dialed == ["http://10.0.0.1:80", "http://10.0.0.2:80", "http://10.0.0.1:80"]


THREE = tuple(upstream(f"http://10.0.0.{n}:80") for n in (1, 2, 3))


@pytest.mark.parametrize(
    "failure", [DialRefused, DialUnreachable, DialTimeout, DialFailed, TlsFailed, UpstreamOverloaded]
)
async def test_an_upstream_that_cannot_be_dialed_gives_way_to_the_next(failure: type[UpstreamError]) -> None:
    """Nothing was sent and nothing of the body is taken, so the next upstream gets the whole request."""
    play = Transcript(route(to=THREE), upstream=[failure("x"), failure("x"), ok()])

    answer = await play.request("POST", headers=[(b"content-length", b"2")], body=[b"ab"], origin=ORIGIN)

    assert answer.status == 200
    assert bytes(play.upstreams.last.body) == b"ab"
    assert [str(one.upstream) for one in play.exchange.tries] == [str(one) for one in THREE]
    assert [one.error for one in play.exchange.tries] == [failure.code, failure.code, ""]


async def test_each_upstream_is_tried_once_and_three_at_the_most() -> None:
    """Where none can be dialed the last failure is the answer."""
    for to, dials in ((THREE[:1], 1), (THREE[:2], 2), ((*THREE, upstream("http://10.0.0.4:80")), 3)):
        play = Transcript(route(to=to), upstream=[DialRefused("x"), DialRefused("x"), DialTimeout("x"), ok()])
        answer = await play.request(origin=ORIGIN)
        assert (answer.status, len(play.exchange.tries)) == (504 if dials == 3 else 502, dials)


@pytest.mark.parametrize("failure", [UpstreamClosed, HeadTimeout, ProtocolViolation, AddressRefused, TunnelNotReady])
async def test_other_failures_are_not_tried_elsewhere(failure: type[UpstreamError]) -> None:
    """A request that may have arrived is not repeated; a refusal, and a tunnel that all of them need, are answers."""
    play = Transcript(route(to=THREE), upstream=[failure("x"), ok()])

    answer = await play.request(origin=ORIGIN)

    assert (answer.status, len(play.exchange.tries)) == (failure.status, 1)


async def test_body_that_differs_from_its_length_is_the_clients_fault() -> None:
    """A foreign server that passes on such a body must not let one request end inside another."""

    class Strict(ScriptedConnection):
        async def send_body(self, data: bytes, *, chunked: bool) -> None:
            self.abort()
            raise BodyLengthMismatch("over by 1 bytes")

    play = Transcript(route(), upstream=[ScriptedAnswer()])
    _use(play, Strict)

    got = await play.request("POST", headers=[(b"content-length", b"1")], body=[b"ab"], own=False)

    assert got.status == 400
    assert play.upstreams.last.released


async def test_failure_of_the_body_wins_over_what_it_causes() -> None:
    """Where the client's failure made us reset the upstream, the client's failure is the one that is told."""

    class Sensitive(ScriptedConnection):
        async def answer(self, informational: Any = None) -> ScriptedAnswer:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise HeadTimeout("cut") from None
            raise AssertionError

    play = Transcript(route(), upstream=[ScriptedAnswer()])
    _use(play, Sensitive)
    client = Client("POST", headers=CHUNKED, body=[], origin=ORIGIN)

    async def too_large() -> Any:
        await asyncio.sleep(0)
        raise BodyTooLarge("more than allowed")

    client.receive = too_large  # type: ignore[method-assign]

    assert (await play.run(client)).status == 413


async def test_slow_client_slows_its_upstream() -> None:
    """Nothing is read from the upstream while the client's side takes nothing: no queue stands between."""
    taken = asyncio.Event()
    wanted = asyncio.Event()
    script = ScriptedAnswer(body=(b"1", b"2", b"3"))
    play = Transcript(route(), upstream=[script])
    client = Client(origin=ORIGIN)
    send = client.send

    async def slow(message: Any) -> None:
        await send(message)
        if message.get("body") == b"1":
            wanted.set()
            await taken.wait()

    client.send = slow  # type: ignore[method-assign]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(client.ask(play.app))
        await wanted.wait()
        assert script._pieces is not None
        assert list(script._pieces) == [b"2", b"3"]
        taken.set()
    assert client.answer.body == b"123"


async def test_defect_of_the_core_is_no_open_door() -> None:
    """What nobody foresaw ends in 503 too, and resets what it held."""

    class Broken(ScriptedConnection):
        def send_head(self, head: bytes, *, method: bytes, has_body: bool, upgrade: bool = False) -> None:
            raise RuntimeError("a defect")

    play = Transcript(route(), upstream=[ok()])
    _use(play, Broken)

    assert (await play.request(origin=ORIGIN)).status == 503
    assert (play.upstreams.last.aborted, play.upstreams.last.released) == (True, True)
    assert play.effects[-1] == "observe 503 step_failed"


@pytest.mark.parametrize("own", [True, False])
async def test_client_that_breaks_while_it_is_answered(own: bool) -> None:
    """A `send` that fails is a client that left; it is observed once and raises nothing."""
    play = Transcript(route(), upstream=[DialRefused("no")])
    client = Client(origin=ORIGIN if own else None, own=own)

    async def broken(_message: Any) -> None:
        raise ConnectionResetError("gone")

    client.send = broken  # type: ignore[method-assign]

    await client.ask(play.app)

    assert len(play.observed) == 1
    assert play.upstreams.pools[0].in_flight == 0


async def test_foreign_send_that_fails_is_a_client_that_left() -> None:
    """Servers that raise OSError from `send` say that the client has gone."""
    play = Transcript(route())
    client = Client(own=False)

    async def broken(_message: Any) -> None:
        raise OSError("gone")

    client.send = broken  # type: ignore[method-assign]
    await client.ask(play.app)

    assert play.effects[-1] == "observe 200 client_gone"
    assert play.upstreams.last.aborted


async def test_client_that_leaves_while_a_failure_is_told() -> None:
    """Cancelled within the answer: the cancellation goes on, after one observation."""
    play = Transcript(route(), upstream=[DialRefused("no")])
    client = Client(origin=ORIGIN)
    telling = asyncio.Event()

    async def stuck(_message: Any) -> None:
        telling.set()
        await asyncio.Event().wait()

    client.send = stuck  # type: ignore[method-assign]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(client.ask(play.app))
        await telling.wait()
        task.cancel()

    assert task.cancelled()
    assert len(play.observed) == 1


async def test_places_are_shared_out_by_client() -> None:
    """An IPv6 client counts by its network, but a peer by its address; where others stand in front that say nothing, or
    the server is a foreign one, nobody is told apart."""
    play = Transcript(route())
    await play.request(origin=host_origin("2001:db8::1:2:3"))
    await play.request(origin=tunnel_origin("fd00::9"))
    await play.request(origin=host_origin(behind_tls_proxy=True))
    await play.request(origin=None, own=False)
    assert play.upstreams.pools[0].sources == ["2001:db8::/64", "fd00::9", "", ""]
