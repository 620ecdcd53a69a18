"""The corpus of hostile and odd request heads, against our protocol and against the scope check."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Any

import pytest

from netbird_http import judge_scope
from netbird_proxy.asgi import CONNECTION_EXTENSION, Message, Receive, Scope, Send

CORPUS = Path(__file__).parents[2] / "corpus" / "heads" / "heads.toml"
HEADS: list[dict[str, Any]] = tomllib.loads(CORPUS.read_text())["head"]


def raw(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


def sent(head: dict[str, Any]) -> bytes:
    return raw(head["bytes"]).replace(b"@", raw(head["many"]) * head["times"]) if "many" in head else raw(head["bytes"])


class Recorder:
    """An application that reads its request to the end and answers 200."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = b""
        more = True
        while more:
            message: Message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("piece", [None, 1, 7], ids=["whole", "bytewise", "sevens"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head["name"])
async def test_the_verdict_on_a_head(connect: Any, head: dict[str, Any], piece: int | None) -> None:
    """A head is refused before the application sees it, or reaches it byte for byte, however it is split."""
    app = Recorder()
    client = connect(app)
    data = sent(head)
    for at in range(0, len(data), piece or len(data)):
        client.feed(data[at : at + (piece or len(data))])
    await client.settle()

    if "status" in head:
        assert app.scopes == []
        assert client.sent.startswith(b"HTTP/1.1 %d " % head["status"])
        assert b"\r\nconnection: close\r\n" in client.sent
        assert client.counters == {f"head_refused_{head['reason']}": 1}
        assert client.log.events() == ["request.refused"]
        assert client.transport.eof_written
    else:
        assert client.sent.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").startswith(b"HTTP/1.1 200 OK\r\n")
        (scope,) = app.scopes
        assert (scope["raw_path"], scope["query_string"]) == (raw(head["path"]), raw(head.get("query", "")))
        assert scope["http_version"] == head.get("version", scope["http_version"])
        assert app.bodies == [raw(head.get("body", ""))]
        assert scope["extensions"][CONNECTION_EXTENSION].empty_query is raw(head["bytes"]).split()[1].endswith(b"?")
        assert client.counters == {}


def test_each_case_has_a_name_of_its_own() -> None:
    """None hides another."""
    assert len({head["name"] for head in HEADS}) == len(HEADS)


class TestForeignServer:
    """The same heads, as a server that is not ours would show them."""

    @pytest.mark.parametrize("head", HEADS, ids=lambda head: head["name"])
    def test_the_verdict_on_a_scope(self, head: dict[str, Any]) -> None:
        """What a scope still shows of a head is judged by the same rules."""
        if head.get("scope") == "hidden":
            # The parser underneath refuses it, or the server drops it: nothing of it is in a scope.
            return
        verdict = judge_scope(scope_of(raw(head["bytes"])))

        assert verdict == head.get("reason")


def scope_of(data: bytes) -> Scope:
    """A scope as uvicorn builds it: authority and fragment of the target dropped, fields as they came."""
    head = data.lstrip(b"\r\n").split(b"\r\n\r\n", 1)[0]
    line, *fields = head.split(b"\r\n")
    method, target, version = line.split()
    if target.startswith((b"http", b"HTTP")):
        _, _, rest = target.partition(b"://")
        target = b"/" + rest.partition(b"/")[2] if b"/" in rest else b"/" + rest.partition(b"?")[1]
    path, _, query = target.partition(b"?")
    return {
        "type": "http",
        "method": method.decode(),
        "http_version": version.decode()[5:],
        "raw_path": path,
        "query_string": query,
        "headers": [
            (name.lower(), value.lstrip(b" ")) for name, _, value in (field.partition(b":") for field in fields)
        ],
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"raw_path": None}, "raw_path_missing"),
        ({"headers": None}, "scope_malformed"),
        ({"raw_path": "/"}, "scope_malformed"),
        ({"http_version": "2", "headers": [(b"host", b"a"), (b"host", b"b")]}, "host_repeated"),
        ({"http_version": "2", "headers": [(b"host", b"a"), (b"x-a", b"1\r\nx-b: 2")]}, "field_value"),
        ({"headers": [(b"host", b"a"), (b"x-a", b"1\n")]}, "field_value"),
        ({"headers": [(b"host", b"a"), (b"x-a", b"1\0")]}, "field_value"),
        ({"headers": [(b"host", b"a\r\nx-b: 2")]}, "field_value"),
        ({"headers": [(b"host", b"a"), (b"x-a: 1\r\nx-b", b"2")]}, "field_name"),
        ({"headers": [(b"host", b"a"), (b"x a", b"2")]}, "field_name"),
        ({"headers": [(b"host", b"a"), (b"", b"2")]}, "field_name"),
        ({"headers": [(b"host", b"a"), (b":path", b"/")]}, "field_name"),
        ({"method": "GET / HTTP/1.1\r\nx-a: 1"}, "method_invalid"),
        ({"method": ""}, "method_invalid"),
        ({"method": "GE T"}, "method_invalid"),
    ],
)
def test_a_scope_that_shows_too_little(change: dict[str, Any], reason: str) -> None:
    """A scope without the bytes that are to be authorized is refused, never guessed at."""
    scope = {
        "type": "http",
        "method": "GET",
        "http_version": "1.1",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"a")],
    }
    assert judge_scope(scope) is None
    assert judge_scope({**scope, **change}) == reason
