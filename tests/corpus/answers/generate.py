"""Writes `answers.toml`: `python tests/corpus/answers/generate.py`. Each function is a family of rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).with_name("answers.toml")

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nX-Mallory: mallory\r\n\r\nmallory"
"""An answer that nobody asked for: on a connection that is used again, it would be the next client's."""


@dataclass(frozen=True, slots=True)
class Case:
    rule: str
    sent: bytes
    status: int = 200
    body: bytes = b""
    method: str = "GET"
    closes: bool = False
    cut: bool = False
    keeps: bool = False
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    many: tuple[bytes, int] = (b"", 1)


@dataclass(slots=True)
class Corpus:
    rules: dict[str, str] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    def rule(self, name: str, says: str) -> Rule:
        assert name not in self.rules
        self.rules[name] = says
        return Rule(self, name)


@dataclass(frozen=True, slots=True)
class Rule:
    corpus: Corpus
    name: str

    def refused(self, *answers: bytes, closes: bool = False, many: tuple[bytes, int] = (b"", 1)) -> None:
        """The client is told that the upstream said nothing that can be repeated."""
        for sent in answers:
            self.corpus.cases.append(Case(self.name, sent, 502, closes=closes, many=many))

    def passes(
        self,
        *answers: bytes,
        status: int = 200,
        body: bytes = b"",
        method: str = "GET",
        closes: bool = False,
        cut: bool = False,
        keeps: bool = False,
        has: tuple[str, ...] = (),
        lacks: tuple[str, ...] = (),
    ) -> None:
        for sent in answers:
            self.corpus.cases.append(Case(self.name, sent, status, body, method, closes, cut, keeps, has, lacks))


def sized(body: bytes, *lines: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 " + status + b"\r\n" + b"".join(line + b"\r\n" for line in lines)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def excess(corpus: Corpus) -> None:
    more = corpus.rule("excess", "what follows an answer is nobody's, and its connection nobody's any more")
    for behind in (POISON, b"mallory", b"\r\n" + POISON, b"\0mallory"):
        more.passes(sized(b"ok") + behind, body=b"ok")
        more.passes(CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + behind, body=b"ok")
        more.passes(sized(b"") + behind)
    bodiless = corpus.rule("bodiless", "an answer that has no body has none, whatever follows its head")
    for head in (
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        bodiless.passes(head + b"mallory", head + POISON, status=204, lacks=("content-length", "transfer-encoding"))
    for head in (
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        bodiless.passes(head + b"mallory", head + POISON, status=304, lacks=("transfer-encoding",))
    for head in (OK + b"Content-Length: 7\r\n\r\n", CHUNKED, OK + b"\r\n"):
        bodiless.passes(head + b"mallory", head + POISON, method="HEAD", lacks=("transfer-encoding",))
    quiet = corpus.rule("plain", "an answer that ends where it says leaves its connection to the next one")
    quiet.passes(sized(b"ok"), CHUNKED + b"2\r\nok\r\n0\r\n\r\n", body=b"ok", keeps=True)
    quiet.passes(OK + b"Content-Length: 7\r\n\r\n", method="HEAD", keeps=True, has=("content-length: 7",))
    quiet.passes(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", status=304, keeps=True)


def framing(corpus: Corpus) -> None:
    two = corpus.rule("framing", "an answer whose body can be read in two ways is not repeated")
    for lines in (
        (b"Content-Length: 7", b"Content-Length: 6"),
        (b"Content-Length: +7",),
        (b"Content-Length: -7",),
        (b"Content-Length: 0x7",),
        (b"Content-Length: 7 7",),
        (b"Content-Length:",),
        (b"Content-Length: 99999999999999999999",),
        (b"Content-Length: 7", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 7"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: gzip",),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: identity",),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding:",),
        (b"Transfer-Encoding : chunked",),
        (b" Content-Length: 7",),
        (b"Content-Length: 7\x00",),
        (b"Content-Length: 7\x0b",),
    ):
        two.refused(OK + b"".join(line + b"\r\n" for line in lines) + b"\r\nmallory")
    chunks = corpus.rule("chunks", "a chunk that is none makes it no answer")
    for wrong in (
        b"+2\r\nok\r\n0\r\n\r\n",
        b"0x2\r\nok\r\n0\r\n\r\n",
        b"2\nok\r\n0\r\n\r\n",
        b"g\r\nok\r\n0\r\n\r\n",
        b"\r\nok\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\nok\r\n0\r\n\r\n",
        b"2;a\nmallory\r\nok\r\n0\r\n\r\n",
    ):
        chunks.refused(CHUNKED + wrong)
    cut = corpus.rule("cut", "an answer that breaks off breaks off for the client, too")
    cut.passes(OK + b"Content-Length: 500\r\n\r\nhello", closes=True, cut=True)
    cut.passes(CHUNKED + b"5\r\nhello\r\n", CHUNKED + b"5\r\nhel", closes=True, cut=True)
    cut.refused(OK, OK + b"Content-Le", b"HTTP/1.1 100 Continue\r\n\r\n", closes=True)
    old = corpus.rule("old", "what ends with its connection goes on with an end of its own")
    old.passes(OK + b"\r\nhello", b"HTTP/1.0 200 OK\r\n\r\nhello", body=b"hello", closes=True)
    old.passes(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", body=b"hello", closes=True)
    old.passes(
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", body=b"hello", closes=True, lacks=("connection",)
    )


def heads(corpus: Corpus) -> None:
    line = corpus.rule("line", "a head's lines end alike, and are fields")
    for wrong in (
        b"X: a\nY: mallory\r\n",
        b"X: a\rY: mallory\r\n",
        b"X: a\r\n mallory\r\n",
        b"X: a\r\n\tmallory\r\n",
        b"X: a\0mallory\r\n",
        b"X: a\x0bmallory\r\n",
        b"mallory\r\n",
        b": mallory\r\n",
        b"X\xe9: mallory\r\n",
        b"X Y: mallory\r\n",
        b"X(Y): mallory\r\n",
    ):
        line.refused(OK + wrong + b"Content-Length: 0\r\n\r\n")
    line.refused(b"HTTP/1.1 200 OK\nContent-Length: 7\r\n\nmallory", OK + b"Content-Length: 7\r\n\nmallory")
    start = corpus.rule("start", "what is no answer of HTTP/1 is none")
    start.refused(
        *(first + b"\r\nContent-Length: 7\r\n\r\nmallory" for first in (
            b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1.2 200 OK", b"HTTP/11 200 OK", b"http/1.1 200 OK",
            b"RTSP/1.0 200 OK", b"ICY 200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK",
            b"HTTP/1.1 099 OK", b"HTTP/1.1 000 OK", b"HTTP/1.1 abc OK", b"HTTP/1.1  200 OK", b"HTTP/1.1 -200 OK",
            b"HTTP/1.1 200 O\rK", b"GET /mallory HTTP/1.1",
        )),
        b"SSH-2.0-mallory\r\n",
        b"mallory",
        b"\r\n" + POISON,
        closes=True,
    )  # fmt: skip
    reason = corpus.rule("reason", "a reason that could be something else is not repeated")
    for said in (b"O\0K mallory", b"\x1b[2Jmallory", b"mallory\x7f", b"mallory\xff\xfe\x85"):
        reason.passes(sized(b"ok", status=b"200 " + said), body=b"ok", keeps=True)
    large = corpus.rule("large", "a head that has no end is given up")
    large.refused(OK + b"X: @\r\nContent-Length: 0\r\n\r\n", many=(b"y", 70_000))
    large.refused(OK + b"@Content-Length: 0\r\n\r\n", many=(b"X: y\r\n", 300))
    ours = corpus.rule("ours", "an upstream sets no cookie of ours, and ends no connection of the client's")
    ours.passes(
        *(
            sized(b"ok", b"Set-Cookie: " + name + b"=mallory; Path=/", b"Set-Cookie: a=1")
            for name in (b"nb_session", b"__Host-nb_session", b"__host-NB_login_x", b" nb_session", b"__Host-nb_x")
        ),
        body=b"ok",
        keeps=True,
        has=("set-cookie: a=1",),
    )
    ours.passes(
        sized(b"ok", b"Connection: X-Mallory, keep-alive", b"X-Mallory: mallory", b"Keep-Alive: mallory"),
        sized(b"ok", b"Proxy-Connection: mallory", b"Upgrade: mallory", b"TE: mallory", b"Proxy-Authenticate: mallory"),
        body=b"ok",
        keeps=True,
        lacks=("connection", "keep-alive", "upgrade"),
    )
    kept = corpus.rule("kept", "Connection cannot take away an answer's length or its cookies")
    kept.passes(
        sized(b"ok", b"Connection: Content-Length, Set-Cookie", b"Set-Cookie: a=1"),
        body=b"ok",
        keeps=True,
        has=("content-length: 2", "set-cookie: a=1"),
    )


def trailers(corpus: Corpus) -> None:
    forged = corpus.rule("trailers", "a trailer neither frames nor sets what only a head may")
    for line in (
        *(b"Set-Cookie: nb_session=mallory", b"Content-Encoding: mallory", b"Content-Type: mallory"),
        *(b"Location: mallory", b"Connection: mallory", b"Content_Length: mallory", b"Host: mallory"),
        *(b"Transfer.Encoding: mallory", b"Upgrade: mallory"),
    ):
        forged.passes(
            OK + b"Trailer: X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + line + b"\r\n\r\n",
            body=b"ok",
            keeps=True,
        )
    framing = corpus.rule("framing-trailers", "one that tries ends the connection, at the least")
    framing.refused(CHUNKED + b"2\r\nok\r\n0\r\nContent-Length: 7\r\n\r\n" + POISON)
    framing.passes(CHUNKED + b"2\r\nok\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n" + POISON, body=b"ok")


def interim(corpus: Corpus) -> None:
    flood = corpus.rule("flood", "an upstream that always says 1xx and never answers is given up")
    for head in (b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n"):
        flood.refused(b"@", many=(head, 3_000))
    some = corpus.rule("interim", "a few of them go on, without what concerns the upstream's connection")
    some.passes(
        b"HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n" * 20 + sized(b"ok"),
        b"HTTP/1.1 103 Hints\r\nKeep-Alive: mallory\r\nUpgrade: mallory\r\n\r\n" + sized(b"ok"),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + sized(b"ok"),
        body=b"ok",
        keeps=True,
    )
    body = corpus.rule("interim-body", "one that says it has a body is no answer, and neither is what follows")
    body.refused(
        b"HTTP/1.1 100 Continue\r\nContent-Length: 7\r\n\r\nmallory" + sized(b"ok"),
        b"HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nmallory\r\n0\r\n\r\n" + sized(b"ok"),
        b"HTTP/1.1 102 Processing\r\n\r\nmallory",
    )
    switch = corpus.rule("switch", "nobody is switched to a protocol that was not asked for")
    switch.refused(
        b"HTTP/1.1 101 Switching Protocols\r\n\r\nmallory",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nmallory",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nmallory",
    )


def old_servers(corpus: Corpus) -> None:
    """Answers of old servers that are read (RFC 9110 §5.5, RFC 9112 §5.1, §2.2)."""
    blanks = corpus.rule("blanks", "white space around a value is no part of it")
    for length in (b"2 ", b"2  ", b"2\t", b" \t2"):
        blanks.passes(OK + b"Content-Length:" + length + b"\r\n\r\nok", body=b"ok", keeps=True)
    mended = corpus.rule("mended", "what an old server writes askew is read, and its connection is not used again")
    mended.passes(OK + b"Content-Length : 2\r\n\r\nok", body=b"ok")
    mended.passes(CHUNKED + b"2   \r\nok\r\n0\r\n\r\n", CHUNKED + b"0002\r\nok\r\n0 \r\n\r\n", body=b"ok")
    mended.passes(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", body=b"ok")
    mended.passes(OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", body=b"ok")
    mended.passes(OK + b"Content-Length: 2, 2\r\n\r\nok", body=b"ok")


def made() -> Corpus:
    corpus = Corpus()
    for family in (excess, framing, heads, trailers, interim, old_servers):
        family(corpus)
    return corpus


def written(corpus: Corpus) -> str:
    parts = ["# Written by generate.py; see README.md.\n", "[rules]"]
    parts += [
        f"{name!r} = {says!r}" if "'" not in says else f'{name!r} = "{says}"' for name, says in corpus.rules.items()
    ]
    for case in corpus.cases:
        parts += ["", "[[answer]]", f"rule = '{case.rule}'", f"bytes = '{_text(case.sent)}'", f"status = {case.status}"]
        if case.many[0]:
            parts += [f"many = '{_text(case.many[0])}'", f"times = {case.many[1]}"]
        if case.body:
            parts.append(f"body = '{_text(case.body)}'")
        if case.method != "GET":
            parts.append(f"method = '{case.method}'")
        parts += [f"{name} = true" for name in ("closes", "cut", "keeps") if getattr(case, name)]
        for name in ("has", "lacks"):
            if said := getattr(case, name):
                parts.append(f"{name} = [{', '.join(repr(one) for one in said)}]")
    return "\n".join(parts) + "\n"


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").encode("unicode_escape").decode("ascii").replace("'", "\\x27")


if __name__ == "__main__":
    FILE.write_text(written(made()))
