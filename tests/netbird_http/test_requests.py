"""Requests as the engine reads them: its Python faces, and the comparison with the parser and rules before it."""

from __future__ import annotations

import codecs
import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbird_http import End, Head, Reader, Refused, judge_scope
from tests.reference.arriving_requests import Event, old_events

CORPUS = Path(__file__).parents[1] / "corpus"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def raw(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


def reader(**limits: int) -> Reader:
    return Reader(**{"max_bytes": 65536, "max_lines": 100, **limits})


def new_events(pieces: list[bytes]) -> list[Event]:
    """Return what the engine reads in these pieces, as the oracle writes it."""
    requests = reader()
    events: list[Event] = []
    kind = "body"
    for piece in pieces:
        for event in requests.feed(piece):
            if isinstance(event, bytes):
                if events[-1][0] == kind:
                    event = events.pop()[1] + event
                events.append((kind, event))
            elif isinstance(event, Head):
                flags = (event.http11, event.keep_alive, event.has_body, event.expects, event.upgrade)
                events.append(("head", event.method, event.raw_path, event.query, event.headers, flags))
                kind = "raw" if event.upgrade else "body"
            elif isinstance(event, End):
                events.append(("end", event.trailers))
            else:
                events.append(("refused", event.status, event.reason))
                return events
    return events


# Faces ----------------------------------------------------------------------------------------------------------------


def test_head_shows_the_request_as_it_came() -> None:
    """Path and query are the client's bytes; fields keep their order and duplicates, without blanks around values."""
    [head] = reader().feed(b"GET /caf%C3%A9;%FFx?q=1 HTTP/1.1\r\nHost: A:80\r\nX-A: 1 \r\nx_a:2\r\nX-A: 3\r\n\r\n")

    assert isinstance(head, Head)
    assert (head.method, head.raw_path, head.query, head.path) == ("GET", b"/caf%C3%A9;%FFx", b"q=1", "/café;\ufffdx")
    assert head.headers == [(b"host", b"A:80"), (b"x-a", b"1"), (b"x_a", b"2"), (b"x-a", b"3")]
    assert (head.http11, head.keep_alive, head.has_body, head.expects, head.upgrade) == (
        True,
        True,
        False,
        False,
        False,
    )


@pytest.mark.parametrize(("target", "empty"), [(b"/a", False), (b"/a?", True), (b"/a?b", False), (b"/a??", False)])
def test_empty_query_differs_from_none(target: bytes, empty: bool) -> None:
    """A signed target is the client's to the byte."""
    [head] = reader().feed(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")

    assert isinstance(head, Head)
    assert head.empty_query is empty


def test_body_pieces_are_the_bytes_that_arrived() -> None:
    """A read that is all body is not copied, and pipelined requests are events of one call."""
    requests = reader()
    head, first = requests.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nab")
    piece = b"cd"

    assert isinstance(head, Head)
    assert first == b"ab"
    assert requests.feed(piece)[0] is piece
    last, end, following = requests.feed(b"ef" + GET)
    assert last == b"ef"
    assert isinstance(end, End)
    assert end.trailers == []
    assert isinstance(following, Head)


def test_trailers_come_with_the_end() -> None:
    """They are no fields of the head."""
    head, body, end = reader().feed(CHUNKED + b"3;x=y\r\nabc\r\n0\r\nX-T: 1 \r\n\r\n")

    assert isinstance(head, Head)
    assert body == b"abc"
    assert isinstance(end, End)
    assert end.trailers == [(b"x-t", b"1")]


def test_refusal_is_the_last_event() -> None:
    """It carries what was read of the request, and repeats itself for all bytes that follow."""
    requests = reader()
    head, refused = requests.feed(GET + b"GET /a?b HTTP/1.1\r\n\r\n" + GET)

    assert isinstance(head, Head)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.reason, refused.method, refused.target) == (400, "host_missing", "GET", b"/a?b")
    [again] = requests.feed(GET)
    assert isinstance(again, Refused)
    assert again.reason == "host_missing"


def test_incomplete_head_is_visible() -> None:
    """A listener that ends its wait names the request as far as it has arrived."""
    requests = reader()
    assert (requests.in_head, requests.request_line) == (False, ("", b""))
    assert requests.feed(b"GET /a") == []
    assert (requests.in_head, requests.request_line) == (True, ("GET", b"/a"))
    requests.feed(b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (requests.in_head, requests.request_line) == (False, ("", b""))


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GET /" + b"a" * 1000, 414, "target_bytes"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 1000, 431, "head_bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5, 431, "head_lines"),
        (b"\r\n" * 300, 431, "head_bytes"),
        (CHUNKED + b"1;" + b"a" * 1000, 431, "trailer_bytes"),
        (CHUNKED + b"0\r\nX: " + b"a" * 1000, 431, "trailer_bytes"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 5000])
def test_kept_bytes_are_bounded(data: bytes, status: int, reason: str, piece: int) -> None:
    """Target and fields have limits of their own, wherever the bytes are cut."""
    requests = reader(max_bytes=500, max_lines=4)
    events = [event for at in range(0, len(data), piece) for event in requests.feed(data[at : at + piece])]
    refused = next(event for event in events if isinstance(event, Refused))

    assert (refused.status, refused.reason) == (status, reason)


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"raw_path": "/", "http_version": "1.1", "headers": [(b"host", b"a")]},
        {"raw_path": b"/", "headers": [(b"host", b"a")]},
        {"raw_path": b"/", "http_version": "1.1"},
        {"raw_path": b"/", "http_version": "1.1", "headers": [("host", b"a")]},
        {"raw_path": b"/", "http_version": "1.1", "headers": [(b"host",)]},
        {"raw_path": b"/", "http_version": 2, "headers": [(b"host", b"a")]},
        {"raw_path": b"/", "http_version": "2", "headers": [(b"host", b"a")], "method": "\u20ac"},
        {"raw_path": b"/", "http_version": "2", "headers": [(b"host", b"a")], "query_string": "a"},
    ],
)
def test_scope_that_shows_too_little_is_refused(scope: dict[str, Any]) -> None:
    """Nothing is guessed, and nothing is raised."""
    assert judge_scope(scope) in ("raw_path_missing", "scope_malformed")


def test_scope_may_have_lists_for_pairs() -> None:
    """ASGI permits any iterable of pairs."""
    scope = {"raw_path": b"/", "http_version": "2", "headers": iter([[b"host", b"a"], [b"x", b"\xff"]])}
    assert judge_scope(scope) is None


# The comparison -------------------------------------------------------------------------------------------------------

SEEDS = [
    data
    for corpus, table in (("heads", "head"), ("attacks", "attack"))
    for case in tomllib.loads((CORPUS / corpus / f"{corpus}.toml").read_text())[table]
    if len(data := raw(case["bytes"])) < 1500
]
PIECES = (
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"0", b"5", b";", b",", b"\x0b", b"\xff", b"_", b"-", b"/"),
    *(b"?", b"#", b"%2f", b"..", b"=", b"chunked", b"0\r\n\r\n", b"HTTP/1.0", b"keep-alive", b"Content-Length: 5\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Proxy-Connection: close\r\n"),
    *(b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n"),
    *(b"Host: app.example\r\n", GET),
)
FRAMING_VALUE = re.compile(rb"\n(?:host|content-length|transfer-encoding|expect):[^\n]*[ \t]\r\n", re.IGNORECASE)
CODING = re.compile(rb"\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
MANY_LINES = 90
"""Lines of a stream from which on the engine's limit may come first."""


def decided(data: bytes, reason: str, head: Event) -> bool:
    """True if the engine reads a head on purpose that its predecessor refused."""
    _, method, path, query, _, (_, _, has_body, _, upgrade) = head
    plain = old_events([method.encode() + b" / HTTP/1.1\r\nHost: a\r\n\r\n"])
    return (
        plain[0][0] == "refused"  # any token is a method
        or not (path + query).isascii()  # passed as they came
        or FRAMING_VALUE.search(data) is not None  # blanks around a value are no part of it
        or (reason == "coding" and CODING.search(data) is not None)  # codings have no case
        or (reason == "upgrade_body" and has_body and not upgrade)  # an offer that nobody follows is ignored
    )


def compare(data: bytes) -> None:
    """Assert that no bytes are a request for both readers and two different ones."""
    for old, new in itertools.zip_longest(old_events([data]), new_events([data])):
        if old == new:
            continue
        if old is None:  # the engine refuses a line where it ends, the parser before it waits for more
            assert new[0] == "refused"
        elif old[0] == "refused":  # the engine waits for the end of the line, or refuses, too
            assert new is None or new[0] == "refused" or (new[0] == "head" and decided(data, old[2], new))
        elif new is not None and new[0] == "refused":
            # A chunk's extensions have a grammar, which the parser before it did not check to the end.
            assert new[2] in ("head_lines", "malformed_body")
            assert data.count(b"\n") > MANY_LINES if new[2] == "head_lines" else b";" in data
        elif old[0] == "raw":  # on HTTP/1.0 there is no upgrade, and nothing is read behind one
            assert new is None
        else:  # an upgrade that nobody follows, or one on HTTP/1.0
            assert old[:-1] == new[:-1]
            assert any(name == b"upgrade" for name, _ in old[4])
            assert not new[5][4]
        return


@pytest.mark.parametrize("data", SEEDS, ids=range(len(SEEDS)))
def test_engine_reads_the_corpora_as_the_parser_before_it(data: bytes) -> None:
    """Hostile and odd requests are the same requests for both, or refused by both, apart from what was decided."""
    compare(data)


@given(
    data=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(
            st.integers(0, 2000),
            st.integers(0, 3),
            st.one_of(
                st.sampled_from(PIECES), st.binary(max_size=2), st.sampled_from(SEEDS).map(lambda seed: seed[:40])
            ),
        ),
        max_size=4,
    ),
)
@settings(max_examples=1500, deadline=None)
def test_engine_reads_what_the_parser_before_it_read(data: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    """No bytes are a request for both and two different ones. Each request that only one reads was decided."""
    for place, removed, added in edits:
        at = place % (len(data) + 1)
        data = data[:at] + added + data[at + removed :]
    compare(data)


@given(data=st.lists(st.sampled_from(SEEDS), min_size=1, max_size=3).map(b"".join), cuts=st.lists(st.integers(0, 4000)))
@settings(max_examples=300, deadline=None)
def test_where_bytes_are_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    """How the network cuts a stream decides nothing: the same events, the same verdict."""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert new_events(pieces) == new_events([data])
