"""What an upstream's bytes mean, wherever they are cut."""
# Over 500 lines: one parser's cases, its properties, and the comparison with the parser before it.

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netbird_http import Answer, Violation
from tests.reference.answers import AnswerParser, HeadLimits, ProtocolViolation

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def parse(
    data: bytes,
    *,
    method: bytes = b"GET",
    upgrade: bool = False,
    limits: HeadLimits | None = None,
    cuts: tuple[int, ...] = (),
    eof: bool = False,
) -> Answer:
    limits = limits or HeadLimits()
    answer = Answer(method, max_bytes=limits.bytes, max_lines=limits.lines, upgrade=upgrade)
    start = 0
    for cut in (*sorted(cuts), len(data)):
        if cut > start:
            answer.feed(data[start:cut])
            start = cut
    if eof:
        answer.feed_eof()
    return answer


def body_of(answer: Answer) -> bytes:
    """Take the whole body that has arrived."""
    return b"".join(iter(answer.take, None))


def interim_of(answer: Answer) -> list[tuple[int, list[tuple[bytes, bytes]]]]:
    """Take the informational heads."""
    return list(iter(answer.take_interim, None))


def everything(answer: Answer) -> tuple[object, ...]:
    """Return everything that was read. Takes body and informational heads."""
    buffered = answer.buffered
    return (
        answer.status,
        answer.reason,
        answer.headers,
        interim_of(answer),
        body_of(answer),
        buffered,
        answer.trailers,
        answer.head_complete,
        answer.complete,
        answer.keep_alive,
        answer.switched,
        answer.kept_for,
        answer.excess,
    )


@dataclass(frozen=True)
class Case:
    data: bytes
    body: bytes = b""
    method: bytes = b"GET"
    upgrade: bool = False
    eof: bool = False
    complete: bool = True
    keep_alive: bool = True
    excess: bool = False


CASES = {
    "length": Case(OK + b"Content-Length: 5\r\nX-A: 1\r\nX-A: 2\r\n\r\nhello", b"hello"),
    "length zero": Case(OK + b"Content-Length: 0\r\n\r\n"),
    "length with leading zeros and a space": Case(OK + b"Content-Length: 003 \r\n\r\nabc", b"abc"),
    "length, truncated": Case(OK + b"Content-Length: 50\r\n\r\nhello", b"hello", complete=False, eof=True),
    "length, more follows": Case(OK + b"Content-Length: 5\r\n\r\nhelloHTTP/1.1 2", b"hello", excess=True),
    "chunked": Case(CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
    "chunked, with extensions": Case(CHUNKED + b'3;a="b"\r\nabc\r\n0;x\r\n\r\n', b"abc"),
    "chunked, with trailers": Case(CHUNKED + b"A\r\n0123456789\r\n0\r\nX-T: v\r\nX-U: w\r\n\r\n", b"0123456789"),
    "chunked, truncated": Case(CHUNKED + b"3\r\nab", b"ab", complete=False, eof=True),
    "chunked, closed before the last chunk": Case(CHUNKED + b"1\r\na\r\n", b"a", complete=False, eof=True),
    "chunked, more follows": Case(CHUNKED + b"1\r\na\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"a", excess=True),
    "until close": Case(OK + b"\r\nhello", b"hello", eof=True, keep_alive=False),
    "until close, still open": Case(OK + b"\r\nhello", b"hello", complete=False, keep_alive=False),
    "close": Case(OK + b"Connection: X, Close\r\nContent-Length: 2\r\n\r\nhi", b"hi", keep_alive=False),
    "close, more follows": Case(
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi!", b"hi", keep_alive=False, excess=True
    ),
    "1.0": Case(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi", keep_alive=False),
    "1.0 kept": Case(b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "1.0 chunked is never kept": Case(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", keep_alive=False
    ),
    "HEAD with length": Case(OK + b"Content-Length: 5\r\n\r\n", method=b"HEAD"),
    "HEAD without length": Case(OK + b"\r\n", method=b"HEAD"),
    "HEAD chunked": Case(CHUNKED, method=b"HEAD"),
    "HEAD with a body all the same": Case(OK + b"Content-Length: 5\r\n\r\nhello", method=b"HEAD", excess=True),
    "304 with length": Case(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    "204": Case(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "204 with a body all the same": Case(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1", excess=True),
    "no reason": Case(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
    "odd status": Case(b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"),
    "informational first": Case(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX: y\r\n\r\n"
        + OK
        + b"Content-Length: 2\r\n\r\nhi",
        b"hi",
    ),
    "Upgrade offered with 200": Case(OK + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    "101": Case(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nHTTP/1.1 raw\r\n\r\n",
        b"HTTP/1.1 raw\r\n\r\n",
        upgrade=True,
        complete=False,
        keep_alive=False,
    ),
    "two equal lengths": Case(
        OK + b"Content-Length: 2\r\nX: y\r\nContent-Length: 02\r\n\r\nhi", b"hi", keep_alive=False
    ),
    "a list of equal lengths": Case(OK + b"Content-Length: 2, 2\r\n\r\nhi", b"hi", keep_alive=False),
    "chunk size with blanks": Case(CHUNKED + b"1 \t\r\na\r\n0\r\n\r\n", b"a", keep_alive=False),
    "last chunk with a blank": Case(CHUNKED + b"1\r\na\r\n0 \r\n\r\n", b"a", keep_alive=False),
    "blank before the colon": Case(OK + b"Content-Length \t: 2\r\n\r\nhi", b"hi", keep_alive=False),
    "blank before the colon of a trailer": Case(CHUNKED + b"1\r\na\r\n0\r\nX : y\r\n\r\n", b"a", keep_alive=False),
    "transfer coding as a trailer": Case(
        CHUNKED + b"1\r\na\r\n0\r\nTransfer-Encoding: x\r\n\r\n", b"a", keep_alive=False
    ),
    "every line ends in LF": Case(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", b"hi", keep_alive=False),
    "blanks around a length": Case(OK + b"Content-Length: \t2 \t\r\n\r\nhi", b"hi"),
    "coding in capitals": Case(OK + b"Transfer-Encoding: CHUNKED \r\n\r\n1\r\na\r\n0\r\n\r\n", b"a"),
    "bytes above ASCII in a value": Case(OK + b"X: caf\xe9\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_framing(case: Case) -> None:
    """Each way of framing an answer gives its body, its end, and whether the connection lives on."""
    parser = parse(case.data, method=case.method, upgrade=case.upgrade, eof=case.eof)

    assert body_of(parser) == case.body
    assert (parser.complete, parser.keep_alive, parser.excess) == (case.complete, case.keep_alive, case.excess)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_same_answer(case: Case, data: st.DataObject) -> None:
    """Where the network cuts an answer changes nothing about it."""
    cuts = data.draw(st.lists(st.integers(1, len(case.data)), max_size=8))
    whole = parse(case.data, method=case.method, upgrade=case.upgrade, eof=case.eof)
    split = parse(case.data, method=case.method, upgrade=case.upgrade, eof=case.eof, cuts=tuple(cuts))

    assert everything(split) == everything(whole)


LINES = st.sampled_from(
    (
        b"Content-Length: 5", b"content-length:5", b"Content-Length: 05", b"Content-Length: 5 ", b"Content-Length: 5,5",
        b"Content-Length: -5", b"Content-Length: +5", b"Content-Length: 0", b"Content-Length: 99999999999999999999",
        b"Content-Length : 5", b" folded: 1", b"\tfolded", b"X: a\x00b", b"X: a\nb", b"X: a\rb", b"X:", b"X: ", b":x",
        b"X", b"X:  spaced  out\t", b"Connection: keep-alive", b"Connection: close", b"connection:Keep-Alive",
        b"Upgrade: h2c", b"Connection: keep-alive, upgrade", b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip", b"Trailer: x",
        b"Proxy-Connection: close", b"X-\xe4: 1", b"X: \xe4", b"X_y.z: 1", b"Keep-Alive: timeout=5", b"Date: now",
    )
)  # fmt: skip
STARTS = st.sampled_from(
    (
        b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.1  200 OK", b"HTTP/1.0 200 OK",
        b"http/1.1 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 404 Not\tFound",
        b"HTTP/1.1 500 caf\xe9", b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 Switching", b"HTTP/1.1 099 Odd",
        b"HTTP/1.1 700 Odd", b"HTTP/1.1 20 OK",
        b"RTSP/1.0 200 OK", b"HTTP/2.0 200 OK", b"HTTP/1.1 200 OK\x01", b"HTTP/1.1 200 a  b",
    )
)  # fmt: skip


@given(
    STARTS,
    st.lists(LINES, max_size=4),
    st.sampled_from((b"", b"hello", b"hell", b"hello!", b"helloHTTP/1.1 200 OK\r\n\r\n")),
    st.sampled_from((b"GET", b"HEAD")),
    st.booleans(),
    st.integers(0, 400),
    st.one_of(st.none(), st.integers(0, 255)),
)
@settings(max_examples=500, deadline=None)
def test_odd_heads_are_read_alike_whole_and_cut(
    start: bytes, lines: list[bytes], body: bytes, method: bytes, upgrade: bool, place: int, mangled: int | None
) -> None:
    """What is refused in one piece is refused in two, and what is read says the same."""
    data = bytearray(b"\r\n".join((start, *lines, b"", b"")) + body)
    if mangled is not None:
        data[place % len(data)] = mangled

    def read(cuts: tuple[int, ...]) -> tuple[object, ...]:
        try:
            return everything(parse(bytes(data), method=method, upgrade=upgrade, limits=HeadLimits(lines=3), cuts=cuts))
        except Violation as violation:
            return (str(violation),)

    assert read(()) == read(tuple(range(1, len(data))))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_byte_by_byte(case: Case) -> None:
    """The finest split of all."""
    options = {"method": case.method, "upgrade": case.upgrade, "eof": case.eof}
    cuts = tuple(range(1, len(case.data)))

    assert everything(parse(case.data, cuts=cuts, **options)) == everything(parse(case.data, **options))  # type: ignore[arg-type]


VIOLATIONS = {
    "not HTTP": b"SSH-2.0-OpenSSH_9\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "ICE": b"ICE/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    "leading blank line": b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "status 20": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 2000": b"HTTP/1.1 2000 OK\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "signed length": OK + b"Content-Length: +2\r\n\r\nhi",
    "empty length": OK + b"Content-Length:\r\n\r\nhi",
    "hexadecimal length": OK + b"Content-Length: 0x2\r\n\r\nhi",
    "length overflow": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
    "length and chunked": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "gzip as transfer coding": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\n",
    "chunk size with 0x": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "chunk size with a sign": CHUNKED + b"-1\r\na\r\n0\r\n\r\n",
    "chunk size overflow": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\na\r\n0\r\n\r\n",
    "chunk size line ends in LF": CHUNKED + b"1\na\r\n0\r\n\r\n",
    "chunk longer than its size": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "empty chunk size": CHUNKED + b"\r\na\r\n0\r\n\r\n",
    "obs-fold": OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare LF": OK + b"X: a\nContent-Length: 0\r\n\r\n",
    "CR LF among lines that end in LF": b"HTTP/1.1 200 OK\nX: a\r\nContent-Length: 0\n\n",
    "empty line of another kind": OK + b"Content-Length: 0\r\n\n",
    "two lengths in a list": OK + b"Content-Length: 2, 3\r\n\r\nhi",
    "empty member of a list of lengths": OK + b"Content-Length: 2,\r\n\r\nhi",
    "length over eighteen digits": OK + b"Content-Length: 1000000000000000000\r\n\r\n",
    "length as a trailer": CHUNKED + b"1\r\na\r\n0\r\nContent-Length: 1\r\n\r\n",
    "trailer that ends in LF": CHUNKED + b"1\r\na\r\n0\r\nX: y\n\r\n",
    "chunk extension that ends in LF": CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n",
    "bare CR": OK + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "name above ASCII": OK + b"X\xe9: a\r\nContent-Length: 0\r\n\r\n",
    "no colon": OK + b"nocolon\r\nContent-Length: 0\r\n\r\n",
    "empty name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "unasked 101": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "100 with a length": b"HTTP/1.1 100 Continue\r\nContent-Length: 3\r\n\r\nabc" + OK + b"Content-Length: 0\r\n\r\n",
    "103 chunked": b"HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS)
def test_violations_are_refused(data: bytes) -> None:
    """What can be read in two ways, or is no HTTP/1.x answer at all, is no answer."""
    with pytest.raises(Violation):
        parse(data)


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS)
def test_violations_are_refused_byte_by_byte(data: bytes) -> None:
    """A cut does not hide a violation."""
    with pytest.raises(Violation):
        parse(data, cuts=tuple(range(1, len(data))))


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\n",
    ],
)
def test_a_101_must_say_what_it_switches_to(head: bytes) -> None:
    """An upgrade that was asked for is still refused when its answer is malformed."""
    with pytest.raises(Violation):
        parse(head, upgrade=True)


def test_heads_and_trailers_are_everything() -> None:
    """Names in lower case, order and duplicates kept, informational heads apart, trailers apart."""
    parser = parse(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n"
    )

    assert interim_of(parser) == [(103, [(b"link", b"</a>")])]
    assert (parser.status, parser.reason) == (200, b"Fine")
    assert parser.headers == [(b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"transfer-encoding", b"chunked")]
    assert parser.trailers == [(b"x-sum", b"1")]


def test_what_follows_changes_nothing_about_the_answer() -> None:
    """A second answer glued to the first cannot put its status or fields in place of the first one's."""
    second = b"HTTP/1.1 500 Evil\r\nX-Evil: 1\r\nContent-Length: 1\r\n\r\n!"
    for first in (OK + b"Content-Length: 2\r\n\r\nhi", CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"):
        alone, glued = parse(first), parse(first + second)

        assert everything(glued)[:-1] == everything(alone)[:-1]
        assert glued.excess


def test_204_loses_its_length() -> None:
    """A 204 may not have a length, and one that has would make a client wait for a body."""
    assert parse(b"HTTP/1.1 204 No\r\nContent-Length: 3\r\nX: y\r\n\r\n").headers == [(b"x", b"y")]


def test_a_reason_that_could_forge_a_line_is_dropped() -> None:
    """Control bytes in the reason phrase go nowhere."""
    assert parse(b"HTTP/1.1 200 O\x01K\0\r\nContent-Length: 0\r\n\r\n").reason == b""


SMALL = HeadLimits(bytes=200, lines=5)


@pytest.mark.parametrize(
    "data",
    [
        OK + b"X: " + b"a" * 300 + b"\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: " + b"a" * 300,
        OK + b"X" * 300,
        b"HTTP/1.1 200 " + b"a" * 300,
        OK + b"X: a\r\n" * 6 + b"\r\n",
        b"HTTP/1.1 103 Hints\r\nLink: abcdefgh\r\n\r\n" * 10,
        CHUNKED + b"1\r\na\r\n0\r\n" + b"X: a\r\n" * 6 + b"\r\n",
    ],
    ids=[
        "long value",
        "unfinished value",
        "unfinished name",
        "unfinished reason",
        "lines",
        "interims",
        "trailer lines",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_heads_have_limits(data: bytes, step: int) -> None:
    """Heads over the limits are refused, in whatever pieces they come and whether they end or not."""
    with pytest.raises(Violation, match=r"over 200 bytes|more than 5"):
        parse(data, limits=SMALL, cuts=tuple(range(step, len(data), step)))


@pytest.mark.parametrize("rest", [b"1;" + b"x" * 300, b"1\r\na\r\n0\r\nX: " + b"a" * 300], ids=["extension", "trailer"])
def test_chunk_extensions_and_trailers_have_limits(rest: bytes) -> None:
    """Bytes that are no body cannot go on for ever either."""
    with pytest.raises(Violation, match="over 200 bytes"):
        parse(CHUNKED + rest, limits=SMALL, cuts=tuple(range(1, len(CHUNKED + rest))))


def test_a_big_body_in_the_head_s_segment_is_not_weighed_as_head() -> None:
    """Limits are about heads: what follows in the same segment does not count."""
    assert parse(OK + b"Content-Length: 1000\r\n\r\n" + b"a" * 1000, limits=SMALL).complete


@given(st.binary(max_size=400), st.lists(st.integers(1, 400), max_size=6))
@settings(max_examples=300, deadline=None)
def test_nonsense_raises_nothing_but_violations(noise: bytes, cuts: list[int]) -> None:
    """Any bytes are an answer, an unfinished answer, or a Violation."""
    for prefix in (b"", OK, CHUNKED):
        data = prefix + noise
        with contextlib.suppress(Violation):
            parse(data, cuts=tuple(cut for cut in cuts if cut < len(data)), limits=SMALL, eof=True)


def test_lengths_are_one_field_in_its_shortest_form() -> None:
    """Client and proxy compute the same length, however the upstream writes it."""
    for lines in (b"Content-Length: 02", b"Content-Length: 2 , 2", b"Content-Length: 2\r\nX: y\r\nContent-Length: 002"):
        lengths = [pair for pair in parse(OK + lines + b"\r\n\r\nhi").headers if pair[0] == b"content-length"]
        assert lengths == [(b"content-length", b"2")]


def test_a_read_that_is_all_body_passes_as_it_is() -> None:
    """No byte of a long body is copied."""
    answer = parse(OK + b"Content-Length: 10000\r\n\r\n")
    piece = b"x" * 5000
    answer.feed(piece)
    assert answer.take() is piece
    assert answer.take() is None


def test_small_pieces_are_joined() -> None:
    """Chunks of a byte each cost their reader one piece."""
    answer = parse(CHUNKED + b"1\r\na\r\n" * 100)
    assert answer.take() == b"a" * 100
    assert (answer.take(), answer.buffered) == (None, 0)


def test_a_violation_is_final() -> None:
    """Bytes behind a violation change nothing; the body before it can still be taken."""
    answer = parse(CHUNKED)
    for data in (b"2\r\nhi!", b"\r\n0\r\n\r\n"):
        with pytest.raises(Violation, match="longer than its size"):
            answer.feed(data)
    assert (body_of(answer), answer.complete, answer.keep_alive) == (b"hi", False, True)


def old_reading(data: bytes, method: bytes, upgrade: bool) -> tuple[object, ...] | None:
    """Read with the oracle; None for a violation."""
    parser = AnswerParser(method, limits=HeadLimits(), upgrade=upgrade)
    try:
        parser.feed(data)
    except ProtocolViolation:
        return None
    parser.feed_eof()
    if not (parser.head_complete or parser.interim):
        return None
    if method == b"HEAD" or parser.status in (204, 304):
        parser.trailers.clear()  # it reads the fields of what follows such an answer, though it has ended
    # It leaves blanks behind a value, and lengths as they came.
    heads = [[(name, value.strip(b" \t")) for name, value in head] for head in (parser.headers, parser.trailers)]
    return (
        parser.status,
        parser.reason,
        *heads,
        parser.interim,
        b"".join(parser.pieces),
        parser.complete,
        parser.excess,
    )


def new_reading(data: bytes, method: bytes, upgrade: bool) -> tuple[tuple[object, ...] | None, bool, Answer]:
    answer = Answer(method, max_bytes=65536, max_lines=256, upgrade=upgrade)
    try:
        answer.feed(data)
    except Violation:
        return None, False, answer
    answer.feed_eof()
    kept = answer.keep_alive
    interim = interim_of(answer)
    body = body_of(answer)
    read = (
        answer.status, answer.reason, answer.headers, answer.trailers, interim, body, answer.complete, answer.excess
    )  # fmt: skip
    return read, kept, answer


BODIES = st.sampled_from(
    (
        b"", b"hello", b"hell", b"hello!", b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b"05\r\nhello\r\n0;\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n", b"4\r\nhello\r\n0\r\n\r\n",
    )
)  # fmt: skip


@given(
    STARTS,
    st.lists(LINES, max_size=4),
    BODIES,
    st.sampled_from((b"GET", b"HEAD")),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2),
)
@example(b"HTTP/1.1 101 Switching", [b"Connection: upgrade", b"Upgrade: websocket"], b"", b"GET", True, [])
@settings(max_examples=1000, deadline=None)
def test_engine_reads_what_the_parser_before_it_read(
    start: bytes, lines: list[bytes], body: bytes, method: bytes, upgrade: bool, mangled: list[tuple[int, int]]
) -> None:
    """No bytes are an answer for both and two different ones. What only the engine accepts ends the connection."""
    data = bytearray(b"\r\n".join((start, *lines, b"", b"")) + body)
    for place, byte in mangled:
        data[place % len(data)] = byte
    old = old_reading(bytes(data), method, upgrade)
    new, kept, answer = new_reading(bytes(data), method, upgrade)

    if old is not None and new is not None and answer.head_complete:
        lengths = [value for name, value in answer.headers if name == b"content-length"]
        canonical = [(n, lengths[0] if n == b"content-length" and lengths else v) for n, v in old[2]]  # type: ignore[attr-defined]
        assert new == (*old[:2], canonical, *old[3:])
    elif old is None and new is not None and answer.complete:
        assert not kept
