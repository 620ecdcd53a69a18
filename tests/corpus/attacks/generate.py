"""Writes `attacks.toml`: `python tests/corpus/attacks/generate.py`. Each function is a family of rules."""
# Over 500 lines: one corpus, generated from one table of rules.

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).with_name("attacks.toml")

HOST = b"Host: app.example\r\n"
END = b"\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: app.example\r\nX-NetBird-User: mallory\r\n\r\n"
"""What an attacker wants to get past the proxy behind another request's back."""


@dataclass(frozen=True, slots=True)
class Case:
    rule: str
    sent: bytes
    answers: tuple[int, ...] = (400,)
    upstream: tuple[str, ...] = ()
    body: bytes = b""
    has: tuple[str, ...] = ()


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

    def refused(self, *requests: bytes, status: int = 400) -> None:
        """One answer, nothing upstream, and what follows on the connection goes unread."""
        for sent in requests:
            self.corpus.cases.append(Case(self.name, sent, (status,)))

    def passes(
        self,
        *requests: bytes,
        answers: tuple[int, ...] = (200,),
        upstream: tuple[str, ...] = ("GET /x",),
        body: bytes = b"",
        has: tuple[str, ...] = (),
    ) -> None:
        """What is harmless is forwarded, without what the attack wanted to add."""
        for sent in requests:
            self.corpus.cases.append(Case(self.name, sent, answers, upstream, body, has))


def get(*lines: bytes, target: bytes = b"/x") -> bytes:
    return b"GET %b HTTP/1.1\r\n" % target + HOST + b"".join(line + END for line in lines) + END


def post(*lines: bytes, body: bytes = b"", target: bytes = b"/x") -> bytes:
    return b"POST %b HTTP/1.1\r\n" % target + HOST + b"".join(line + END for line in lines) + END + body


def chunked(body: bytes, *lines: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *lines, body=body)


CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
POSTED: tuple[str, ...] = ("POST /x",)


def spellings(*parts: bytes) -> Iterator[bytes]:
    """A name under every alias: three separators in each place, three cases."""
    for marks in itertools.product((b"-", b"_", b"."), repeat=len(parts) - 1):
        name = parts[0] + b"".join(mark + part for mark, part in zip(marks, parts[1:], strict=True))
        yield from dict.fromkeys((name, name.lower(), name.upper()))


# Families -------------------------------------------------------------------------------------------------------------


def aliases(corpus: Corpus) -> None:
    user = corpus.rule("alias.user", "X-NetBird-User is ours under every spelling")
    user.passes(*(get(name + b": mallory") for name in spellings(b"X", b"NetBird", b"User")))
    groups = corpus.rule("alias.groups", "X-NetBird-Groups is ours under every spelling")
    groups.passes(*(get(name + b": mallory") for name in spellings(b"X", b"NetBird", b"Groups")))
    every = corpus.rule("alias.prefix", "everything below X-NetBird- is ours, whoever uses it")
    for last in (b"Role", b"Groups-Omitted", b"0", b"A_b.c"):
        every.passes(*(get(name + b": mallory") for name in list(spellings(b"x", b"netbird", last))[::4]))
    twice = corpus.rule("alias.twice", "one more line of a name of ours is not one more value")
    twice.passes(
        get(b"X-NetBird-User: mallory", b"X-NetBird-User: mallory"),
        get(b"X-NetBird-User: mallory", b"x_netbird_user: mallory"),
        get(b"X-NetBird-User:", b"X-NetBird-User: mallory"),
        get(b"X.NetBird.User: mallory", b"X-NetBird-Groups: mallory"),
    )
    listed = corpus.rule("alias.listed", "listing a name of ours in Connection neither keeps nor drops it")
    for name in (b"X-NetBird-User", b"x_netbird_groups", b"X.NetBird.User", b"x-netbird-role"):
        listed.passes(
            get(b"Connection: " + name, name + b": mallory"),
            get(b"Connection: close, " + name + b" , x-a"),
            get(b"Connection: x-a", b"Connection: " + name, name + b": mallory"),
        )
    trailers = corpus.rule("alias.trailer", "a name of ours does not pass as a trailer")
    for name in (b"X-NetBird-User", b"x_netbird_user", b"X.NetBird.Groups"):
        trailers.passes(
            chunked(b"5\r\nhello\r\n0\r\n" + name + b": mallory\r\n\r\n"),
            chunked(b"5\r\nhello\r\n0\r\nx-a: 1\r\n" + name + b": mallory\r\n\r\n", b"Trailer: " + name),
            upstream=POSTED,
            body=b"hello",
        )
    upgrade = corpus.rule("alias.upgrade", "a name of ours does not pass with an upgrade that is asked for")
    for name in (b"X-NetBird-User", b"x_netbird_user", b"X.NetBird.Groups"):
        upgrade.passes(get(b"Connection: Upgrade", b"Upgrade: websocket", name + b": mallory"))
    spaced = corpus.rule("alias.spaced", "a name of ours with a byte more is no name at all")
    for extra in (b" ", b"\t", b"\x0b", b"\x00", b"\xa0"):
        spaced.refused(get(b"X-NetBird-User" + extra + b": mallory"))
    spaced.refused(
        get(b" X-NetBird-User: mallory"), get(b"X-NetBird User: mallory"), get(b"X-NetBird\xadUser: mallory")
    )


def ours(corpus: Corpus) -> None:
    cookies = corpus.rule("ours.cookie", "our session cookies stay with us, the others keep their bytes")
    for name in (b"nb_session", b"NB_SESSION", b"__Host-nb_session", b"__host-NB_login_x", b" nb_session"):
        cookies.passes(
            get(b"Cookie: a=1;" + name + b"=mallory; b=2"),
            get(b"Cookie: a=1", b"cookie: " + name + b"=mallory"),
            get(b"Cookie:" + name + b"=mallory;a=1"),
        )
    query = corpus.rule("ours.query", "session_token leaves the query under every escape")
    for name in (b"session_token", b"session%5Ftoken", b"%73ession_token", b"session%5ftoke%6E"):
        query.passes(get(target=b"/x?a=1&%b=mallory" % name), upstream=("GET /x?a=1",))
        query.passes(get(target=b"/x?%b=mallory&a=%%20" % name), upstream=("GET /x?a=%20",))
        query.passes(get(target=b"/x?%b=mallory" % name))
    paths = corpus.rule("ours.paths", "what is below /__netbird__/ never reaches an upstream")
    for target in (b"/__netbird__/", b"/__netbird__/nobody/x", b"/__netbird__/../x/", b"/__netbird__/nobody"):
        if b".." in target:
            paths.refused(get(target=target))
        else:
            paths.refused(get(target=target), status=404)


def hop_by_hop(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("hop." + name, says)

    own = rule("own", "fields of the client's own connection stay there")
    for line in (
        b"Keep-Alive: mallory",
        b"Proxy-Connection: keep-alive, mallory",
        b"Proxy-Authorization: Basic mallory",
        b"proxy_authorization: Basic mallory",
        b"Proxy.Authenticate: mallory",
        b"TE: gzip;q=0.5, mallory",
        b"te: deflate, mallory",
        b"HTTP2-Settings: mallory",
        b"Trailer: mallory",
        b"Connection: mallory",
        b"Upgrade: mallory",
        b"keep_alive: mallory",
    ):
        own.passes(get(line))
    listed = rule("listed", "what Connection lists is the client's connection's too")
    for name in (b"X-A", b"x_a", b"Authorization", b"Cookie", b"Accept-Encoding"):
        listed.passes(
            get(b"Connection: " + name, name + b": mallory"),
            get(b"Connection: close,\t" + name.lower() + b"\t,", name.upper() + b": mallory"),
        )
    host = rule("listed-host", "Connection cannot take away where a request goes")
    host.passes(
        get(b"Connection: Host"), get(b"Connection: close, host, hosT"), get(b"Connection: Host, X-Forwarded-Host")
    )
    length = rule("listed-length", "Connection cannot take away where a body ends")
    length.passes(
        post(b"Connection: Content-Length", b"Content-Length: 5", body=b"hello"),
        post(b"Connection: content-length, transfer-encoding", b"Content-Length: 5", body=b"hello"),
        upstream=POSTED,
        body=b"hello",
    )
    length.passes(
        chunked(CHUNKS, b"Connection: Transfer-Encoding"),
        chunked(CHUNKS, b"Connection: transfer_encoding, content.length"),
        upstream=POSTED,
        body=b"hello",
    )
    family = rule("listed-forwarding", "Connection cannot take away where a request comes from")
    family.passes(
        get(b"Connection: X-Forwarded-For, X-Real-IP, X-Forwarded-Proto"),
        get(b"Connection: x_forwarded_for", b"X-Forwarded-For: mallory"),
        get(b"Connection: Via, Forwarded"),
    )
    own_names = rule("listed-ours", "nor what the proxy itself has to say, or has been told to")
    own_names.passes(
        get(b"Connection: Via, X-Forwarded-For, X-NetBird-User, X-NetBird-Groups"),
        get(b"Connection: via", b"Via: 1.1 mallory"),
        get(b"Connection: close, " + b", ".join(b"x-%d" % i for i in range(2_000))),
        get(b'Connection: "X-A"', b"X-B: 1"),
        get(b"Connection: ,, ,\t,"),
    )
    trailing = rule("te", "only trailers are accepted, whatever the client would take")
    trailing.passes(
        get(b"TE: trailers"),
        get(b"TE: trailers, mallory", b"Connection: TE"),
        get(b"te: trailers;q=0.5, deflate"),
        has=("te: trailers",),
    )
    offers = rule("h2c", "no protocol that carries further requests is offered upstream")
    for token in (b"h2c", b"H2C", b"h2c, websocket", b"HTTP/2.0", b"TLS/1.2, HTTP/1.1", b"h2", b"h3"):
        offers.passes(get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + token, b"HTTP2-Settings: AAMAAABkAAQ"))


def forwarding(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("forwarding." + name, says)

    address = rule("address", "a client's word about its address is dropped")
    for value in (b"mallory", b"127.0.0.1, mallory", b"::1", b"for=127.0.0.1", b""):
        for name in (b"X-Forwarded-For", b"x_forwarded_for", b"X.Forwarded.For", b"X-Real-IP", b"x_real.ip"):
            address.passes(get(name + b": " + value))
    many = rule("many", "however many lines it says it in")
    many.passes(
        get(*[b"X-Forwarded-For: mallory"] * 20),
        get(b"X-Forwarded-For: mallory", b"X-Forwarded_For: mallory", b"X-Real-IP: mallory", b"Forwarded: for=mallory"),
    )
    rest = rule("rest", "so is its word about host, scheme and port, and all that looks alike")
    for name in (
        *(b"X-Forwarded-Host", b"X-Forwarded-Proto", b"X-Forwarded-Port", b"X-Forwarded-Prefix", b"X-Forwarded-Scheme"),
        *(b"X-Forwarded-Server", b"X-Forwarded-Ssl", b"X-Forwarded-User", b"X_Forwarded_Groups", b"x.forwarded.proto"),
    ):
        rest.passes(get(name + b": mallory"))
    forwarded = rule("rfc7239", "Forwarded is dropped, whatever stands in it")
    for value in (b"for=mallory", b'for="[::1]:80";by=mallory;host=mallory;proto=https', b"for=1.1.1.1, for=mallory"):
        forwarded.passes(get(b"Forwarded: " + value), get(b"forwarded: " + value, b"Forwarded: " + value))
    trailer = rule("trailer", "no trailer says where a request comes from, either")
    for name in (b"X-Forwarded-For", b"x_real_ip", b"Forwarded", b"X-Forwarded-Host"):
        trailer.passes(chunked(b"5\r\nhello\r\n0\r\n" + name + b": mallory\r\n\r\n"), upstream=POSTED, body=b"hello")


def hosts(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("host." + name, says)

    def with_host(*lines: bytes, target: bytes = b"/x", version: bytes = b"1.1") -> bytes:
        return b"GET %b HTTP/%b\r\n" % (target, version) + b"".join(line + END for line in lines) + END

    rule("missing", "without a Host there is nothing to route by").refused(
        with_host(), with_host(version=b"1.0"), with_host(b"X-Host: app.example"), with_host(b"Host2: app.example")
    )
    rule("twice", "two Hosts are one too many").refused(
        with_host(b"Host: app.example", b"Host: app.example"),
        with_host(b"Host: app.example", b"Host: other.example"),
        with_host(b"Host: other.example", b"host: app.example"),
        with_host(b"Host: app.example", b"Host:"),
    )
    rule("invalid", "a Host that is no host").refused(
        *(
            with_host(b"Host: " + value)
            for value in (
                *(
                    b"",
                    b" ",
                    b"app.example, other.example",
                    b"app.example other.example",
                    b"app.example/",
                    b"user@app.example",
                ),
                *(b"app.example:", b"app.example:0", b"app.example:65536", b"app.example:-1", b"app.example:80:80"),
                *(
                    b"app.example:http",
                    b"app.example#x",
                    b"app.example?x",
                    b"app..example",
                    b".app.example",
                    b"[app.example]",
                ),
                *(
                    b"\x0bapp.example",
                    b"[::1",
                    b"::1",
                    b"app.example\\@evil",
                    b"http://app.example",
                    b"%61pp.example",
                    b"app.example\x7f",
                    b"\xe4pp.example",
                ),
            )
        )
    )
    rule("spaced", "blanks around a Host are none of it").passes(
        with_host(b"Host: app.example \t"), with_host(b"Host: app.example "), with_host(b"Host:\tapp.example")
    )
    rule("unknown", "a host that nobody has leads nowhere").refused(
        with_host(b"Host: other.example"),
        with_host(b"Host: app.example.other.example"),
        with_host(b"Host: xapp.example"),
        with_host(b"Host: [::1]"),
        with_host(b"Host: 127.0.0.1:8080"),
        with_host(b"Host: localhost"),
        status=404,
    )
    rule("folded", "one host has many spellings").passes(
        with_host(b"Host: APP.example"),
        with_host(b"host: app.example."),
        with_host(b"HOST: App.Example.:80"),
        with_host(b"Host:    app.example"),
        with_host(b"Host: app.example", version=b"1.0"),
    )
    rule("disagrees", "an absolute target that names another host").refused(
        *(
            with_host(b"Host: app.example", target=target)
            for target in (
                *(b"http://other.example/x", b"http://app.example:81/x", b"http://app.example.other.example/x"),
                *(b"http://user@app.example/x", b"http://app.example@other.example/x", b"http:///x", b"http://"),
                *(b"http://app.example\\.other.example/x", b"http://[::1]/x", b"http://app.example:x/"),
                *(b"http://app.example:80@other.example/x", b"http://a:mallory@app.example/x", b"http:/app.example/x"),
                *(
                    b"http://app%2eexample/x",
                    b"http://app.example%2f/x",
                    b"http://app.example:/x",
                    b"http:app.example/x",
                ),
                *(b"http://app.example\t/x", b"http://app.example;/x", b"http://app.example,other.example/x"),
            )
        ),
        with_host(b"Host: other.example", target=b"http://app.example/x"),
    )
    rule("absolute", "an absolute target that agrees is a path").passes(
        with_host(b"Host: app.example", target=b"http://app.example/x"),
        with_host(b"Host: app.example", target=b"HTTP://App.Example:80/x"),
        with_host(b"Host: app.example.", target=b"http://app.example/x"),
    )
    absolute = rule("absolute-path", "and what it says behind its authority is that path, to the byte")
    for target, path in (
        (b"http://app.example", b"/"),
        (b"http://app.example?x", b"/?x"),
        (b"http://app.example//other.example/x", b"//other.example/x"),
        (b"http://app.example/http://other.example/", b"/http://other.example/"),
        (b"https://app.example/x", b"/x"),
        (b"http://app.example/x?y=http://other.example/", b"/x?y=http://other.example/"),
    ):
        absolute.passes(with_host(b"Host: app.example", target=target), upstream=(f"GET {path.decode()}",))
    rule("absolute-odd", "judged like any other").refused(
        *(
            with_host(b"Host: app.example", target=b"http://app.example" + path)
            for path in (b"/../x", b"/a/%2e%2e/x", b"/a%2f..%2fb", b"/x#y", b"/a\\b", b"/%zz", b"/a%00")
        )
    )
    rule("schemes", "an absolute target of another scheme").refused(
        *(
            with_host(b"Host: app.example", target=scheme + b"://app.example/x")
            for scheme in (b"ftp", b"file", b"ws", b"gopher", b"javascript")
        )
    )


def paths(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("path." + name, says)

    def targets(*paths: bytes) -> list[bytes]:
        return [get(target=path) for path in paths]

    rule("dots", "dot segments lead elsewhere").refused(
        *targets(
            b"/../x",
            b"/a/../x",
            b"/..",
            b"/.",
            b"/./x",
            b"/a/.",
            b"/a/..",
            b"//../x",
            b"/api/../x",
            b"/..;/x",
            b"/a/..;p=1/x",
        )
    )
    rule("encoded-dots", "and so they do encoded").refused(
        *targets(b"/%2e%2e/x", b"/.%2e/x", b"/%2E./x", b"/a/%2e/x", b"/api/%2e%2E/x", b"/%2e%2e%3b/x", b"/%2e%2e;a/x")
    )
    rule("dots-between-encoded-slashes", "and between encoded separators").refused(
        *targets(b"/a%2f..%2fx", b"/..%2fx", b"/a%5c..%5cx", b"/a%2F%2e%2e%2Fx", b"/%2f..", b"/a/%5C..")
    )
    encoded = rule("encoded-slash", "an encoded separator is a byte of a name where all paths are guarded alike")
    for path in (b"/a%2fx", b"/a%2Fx", b"/a%5cx", b"/a%5Cx", b"/%2f", b"/api%2Fx", b"/%2Fapi/x"):
        encoded.passes(get(target=path), upstream=(f"GET {path.decode()}",))
    rule("nul", "a NUL ends a path to some").refused(*targets(b"/x%00", b"/x%00.html", b"/api%00/x", b"/a\x00b"))
    rule("overlong", "overlong UTF-8 is another spelling of ASCII").refused(
        *targets(b"/%c0%af..%c0%afx", b"/%C0%AE%C0%AE/x", b"/%c1%9cx", b"/a%c0%80")
    )
    rule("escape", "an escape that is none").refused(
        *targets(b"/%", b"/%2", b"/%zz", b"/%%32%65", b"/%u002e/x", b"/a%-1")
    )
    rule("bytes", "bytes that nobody may send raw").refused(
        *targets(
            b"/a\\x",
            b'/a"x',
            b"/a<x",
            b"/a>x",
            b"/a`x",
            b"/a\xffx\\",
            b"/a\xc0\xafx",
            b"/a\x7fx",
            b"/\\..\\x",
            b"/a\x01x",
        )
    )
    rule("fragment", "a fragment is never sent").refused(*targets(b"/x#y", b"/x?y#z", b"/#", b"#"))
    rule("form", "a target that is none").refused(
        *targets(b"x", b"app.example/x", b"?x", b"*", b"app.example:80", b"../x")
    )
    border = rule("border", "a prefix ends at a border, and bytes behind it stay")
    for path, sent in (
        (b"/apix", b"/apix"),
        (b"/api", b"/base/"),
        (b"/api/", b"/base/"),
        (b"/api/x", b"/base/x"),
        (b"/api//x", b"/base//x"),
        (b"/api/%7Ex;a=%20/", b"/base/%7Ex;a=%20/"),
        (b"/api?x", b"/base/?x"),
        (b"/api;x/y", b"/api;x/y"),
    ):
        border.passes(get(target=path), upstream=(f"GET {sent.decode()}",))
    same = rule("bytes-stay", "a path is sent byte for byte as it was judged")
    for path in (
        b"//x",
        b"/X",
        b"/%41",
        b"/a%20b",
        b"/a;b=c",
        b"/a|b^c{d}[e]",
        b"/a//b///",
        b"/~a",
        b"/%e4",
        b"/a?b=%2F..%2F",
        b"/a?",
        b"/a\xffx?\xe9",
        b"/a\xc3\xa4",
    ):
        same.passes(get(target=path), upstream=(f"GET {path.decode('latin-1')}",))
    connect = rule("connect", "nobody gets a tunnel to anywhere")
    for target in (b"app.example:443", b"127.0.0.1:22", b"/x", b"*", b"http://app.example/"):
        connect.refused(b"CONNECT %b HTTP/1.1\r\n" % target + HOST + END + b"\x16\x03\x01mallory")
    trace = rule("trace", "nobody is shown the head that an upstream gets")
    for target in (b"/x", b"*", b"http://app.example/x"):
        trace.refused(b"TRACE %b HTTP/1.1\r\n" % target + HOST + b"Max-Forwards: 0\r\n\r\n")
    star = rule("star", "OPTIONS * is answered by the core, and reaches no service")
    star.refused(b"OPTIONS * HTTP/1.1\r\n" + HOST + END, status=204)
    star.refused(b"GET * HTTP/1.1\r\n" + HOST + END, b"OPTIONS ** HTTP/1.1\r\n" + HOST + END)
    star.refused(b"OPTIONS *?x HTTP/1.1\r\n" + HOST + END, b"OPTIONS */x HTTP/1.1\r\n" + HOST + END)


def lengths(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("length." + name, says)

    def sized(*values: bytes) -> list[bytes]:
        return [post(b"Content-Length: " + value, body=b"hello" + SECOND) for value in values]

    rule("sign", "a length has no sign").refused(*sized(b"+5", b"-5", b"+0", b"-0", b"- 5", b"+ 5"))
    rule("radix", "a length is decimal").refused(*sized(b"0x5", b"0X5", b"05", b"005", b"0b101", b"0o5", b"00", b"5h"))
    rule("separators", "a length has nothing between its digits").refused(
        *sized(
            b"1_0", b"_5", b"5_", b"1,0", b"1 0", b"5 5", b"1.0", b"5.", b"5e0", b"'5'", b"5;", b"5\x0b", b"\xc2\xb2"
        )
    )
    rule("list", "a length is one").refused(*sized(b"5, 5", b"5,5", b"5, 6", b"5,", b",5", b"0, 5"))
    rule("empty", "a length is not nothing").refused(*sized(b"", b" ", b"\t"))
    rule("huge", "a length that no counter holds").refused(
        *sized(b"9" * 19, b"18446744073709551616", b"18446744073709551621", b"4294967301" * 3, b"9" * 400)
    )
    rule("twice", "two lengths are one too many").refused(
        *(
            post(b"Content-Length: " + one, b"content-length: " + other, body=b"hello" + SECOND)
            for one, other in ((b"5", b"5"), (b"5", b"6"), (b"0", b"5"), (b"5", b"0"), (b"5", b""))
        )
    )
    alias = rule("alias", "a name that some read as the length")
    for name in (b"Content_Length", b"content.length", b"CONTENT_LENGTH", b"Content_length"):
        alias.refused(
            post(name + b": 5", body=b"hello" + SECOND),
            post(b"Content-Length: 5", name + b": 0", body=b"hello" + SECOND),
        )
    rule("spaced", "a length whose name has a byte more").refused(
        *(
            post(b"Content-Length" + extra + b": 5", body=b"hello" + SECOND)
            for extra in (b" ", b"\t", b"\x00", b"\x0b", b"\x85")
        ),
        post(b" Content-Length: 5", body=b"hello" + SECOND),
        post(b"X: y", b"\tContent-Length: 5", body=b"hello" + SECOND),
    )
    zero = rule("zero", "CL.0: what follows a body of nothing is a request of its own, judged like any other")
    zero.passes(
        post(b"Content-Length: 0", body=SECOND),
        post(body=SECOND),
        answers=(200, 200),
        upstream=("POST /x", "GET /second"),
    )
    zero.passes(get(b"Content-Length: 0") + SECOND, answers=(200, 200), upstream=("GET /x", "GET /second"))
    body = rule("body", "a request hidden in a body stays in it")
    hidden = b"GET /hidden HTTP/1.1\r\nHost: app.example\r\n\r\n"
    for method in (b"POST", b"GET", b"DELETE", b"HEAD", b"OPTIONS", b"QUERY"):
        sent = method + b" /x HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden
        body.passes(sent, upstream=(f"{method.decode()} /x",), body=hidden)
    none = rule("none", "TE.0: nor does a method that has none leave a body's chunks behind")
    for method in (b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"POST"):
        start = method + b" /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        chunk = b"%x\r\n" % len(hidden) + hidden + b"\r\n0\r\n\r\n"
        none.passes(start + chunk, upstream=(f"{method.decode()} /x",), body=hidden)
        none.passes(
            start + CHUNKS + SECOND,
            answers=(200, 200),
            upstream=(f"{method.decode()} /x", "GET /second"),
            body=b"hello",
        )
    behind = rule("behind", "what follows a body is a request of its own, a blank line before it or not")
    behind.passes(
        post(b"Content-Length: 5", body=b"hello" + SECOND),
        post(b"Content-Length: 5", body=b"hello\r\n" + SECOND),
        post(b"Content-Length: 5", body=b"hello\r\n\r\n" + SECOND),
        post(b"Upgrade: mallory", b"Content-Length: 5", body=b"hello" + SECOND),
        answers=(200, 200),
        upstream=("POST /x", "GET /second"),
        body=b"hello",
    )
    behind.passes(
        post(b"Content-Length: 5", body=b"hello(GET /second HTTP/1.1\r\n" + HOST + END),
        post(b"Content-Length: 5", body=b"hello\x00" + SECOND),
        answers=(200, 400),
        upstream=POSTED,
        body=b"hello",
    )
    behind.passes(  # any token is a method
        post(b"Content-Length: 5", body=b"helloxGET /second HTTP/1.1\r\n" + HOST + END),
        answers=(200, 200),
        upstream=("POST /x", "xGET /second"),
        body=b"hello",
    )
    short = rule("short", "a body that is cut short never looks complete")
    short.refused(post(b"Content-Length: 500", body=b"hello"), post(b"Content-Length: 500", body=SECOND), status=0)


def codings(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("coding." + name, says)

    both = rule("both", "CL.TE and TE.CL: a length and a coding are two framings")
    for size in (b"5", b"0", b"4", b"100"):
        both.refused(
            post(b"Content-Length: " + size, b"Transfer-Encoding: chunked", body=CHUNKS + SECOND),
            post(b"Transfer-Encoding: chunked", b"Content-Length: " + size, body=CHUNKS + SECOND),
        )
    rule("twice", "TE.TE: two codings are one too many").refused(
        *(
            post(b"Transfer-Encoding: " + one, b"Transfer-encoding: " + other, body=CHUNKS + SECOND)
            for one, other in (
                *((b"chunked", b"chunked"), (b"chunked", b"identity"), (b"identity", b"chunked"), (b"chunked", b"x")),
                *((b"x", b"chunked"), (b"chunked", b""), (b"", b"chunked")),
            )
        )
    )
    rule("case", "codings have no case, and blanks behind one are none of it").passes(
        *(
            post(b"Transfer-Encoding: " + value, body=CHUNKS + SECOND)
            for value in (b"CHUNKED", b"Chunked", b"chunked\t")
        ),
        answers=(200, 200),
        upstream=("POST /x", "GET /second"),
        body=b"hello",
    )
    rule("value", "a coding that is not exactly chunked").refused(
        *(
            post(b"Transfer-Encoding: " + value, body=CHUNKS + SECOND)
            for value in (
                *(
                    b"xchunked",
                    b"chunkedx",
                    b"chunked, identity",
                    b"identity, chunked",
                    b"gzip, chunked",
                    b"chunked, chunked",
                ),
                *(
                    b"identity",
                    b"",
                    b'"chunked"',
                    b"chunked;q=1",
                    b"chunked ,",
                    b",chunked",
                    b"c hunked",
                ),
                *(b"chunked\x0b", b"\x0bchunked", b"chun\x00ked", b"chunked\xa0", b"cow", b"deflate", b"chunked\x7f"),
            )
        )
    )
    rule("spaced", "a coding whose name has a byte more").refused(
        *(
            post(b"Transfer-Encoding" + extra + b": chunked", body=CHUNKS + SECOND)
            for extra in (b" ", b"\t", b"\x00", b"\x0b", b"\xff", b"\r")
        ),
        post(b" Transfer-Encoding: chunked", body=CHUNKS + SECOND),
        post(b"X: y", b"\tTransfer-Encoding: chunked", body=CHUNKS + SECOND),
    )
    rule("folded-letters", "letters that some fold to ASCII are other letters").refused(
        post("Tran\u017ffer-Encoding: chunked".encode(), body=CHUNKS + SECOND),
        post("Transfer-Encoding: chun\u212aed".encode(), body=CHUNKS + SECOND),
        post("Content-Length: \u0665".encode(), body=b"hello" + SECOND),
        post("Con\uff54ent-Length: 5".encode(), body=b"hello" + SECOND),
    )
    alias = rule("alias", "a name that some read as the coding")
    for name in (b"Transfer_Encoding", b"transfer.encoding", b"TRANSFER_ENCODING", b"Transfer_encoding"):
        alias.refused(
            post(name + b": chunked", body=CHUNKS + SECOND),
            post(b"Content-Length: 5", name + b": chunked", body=b"hello" + SECOND),
        )
    rule("folded", "obs-fold: a line that goes on is no line").refused(
        post(b"Transfer-Encoding:", b" chunked", body=CHUNKS + SECOND),
        post(b"Transfer-Encoding:\r\n\tchunked", body=CHUNKS + SECOND),
        post(b"X: y\r\n Transfer-Encoding: chunked", body=CHUNKS + SECOND),
        get(b"X: y", b" z"),
        get(b"X: y", b"\tz", b"\tX-NetBird-User: mallory"),
        get(b"X: y", b" "),
    )
    rule("old", "1.0 knows no codings").refused(
        b"POST /x HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS + SECOND,
        b"POST /x HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: identity\r\n\r\n",
    )


def chunks(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("chunk." + name, says)

    def sizes(*values: bytes) -> list[bytes]:
        return [chunked(value + b"\r\nhello\r\n0\r\n\r\n" + SECOND) for value in values]

    good = rule("good", "well-formed chunks are sent in chunks")
    good.passes(
        chunked(CHUNKS),
        chunked(b"1\r\nh\r\n4\r\nello\r\n0\r\n\r\n"),
        chunked(b"00005\r\nhello\r\n000\r\n\r\n"),
        upstream=POSTED,
        body=b"hello",
        has=("transfer-encoding: chunked",),
    )
    size = rule("size", "a chunk's size that is none ends the request, and what follows is nobody's")
    size.refused(
        *sizes(b"+5", b"-5", b"0x5", b"5_", b"_5", b"5h", b" 5", b"", b"g", b"5,", b"5 5", b"\x005", b"5\x00"), status=0
    )
    size.refused(*sizes(b"fffffffffffffffff", b"ffffffffffffffff", b"7" * 40), status=0)
    size.refused(*sizes(b"5 ", b"5\t", b"5 ;a", b"5\r", b"5\x0b", b"5\xa0", b"\t5", b"\r5"), status=0)
    padded = rule("padded", "a size with zeros in front is that size")
    padded.passes(
        *sizes(b"0" * 20 + b"5", b"0" * 2_000 + b"5"),
        answers=(200, 200),
        upstream=("POST /x", "GET /second"),
        body=b"hello",
    )
    spill = rule("spill", "what stands behind a chunk's bytes is CR LF, not just any two")
    spill.refused(
        *(
            chunked(b"5\r\nhello" + behind + b"0\r\n\r\n" + SECOND)
            for behind in (b"XX", b"\n\n", b"\r", b"\r\r", b"\n\r", b"\r\r\n", b" \r\n", b"\x00\x00", b"\r\n\r\n")
        ),
        status=0,
    )
    last = rule("last", "nor does the last chunk's line end otherwise")
    last.refused(
        *(
            chunked(b"5\r\nhello\r\n0" + behind + SECOND)
            for behind in (
                b"\r\r\n\r\n",
                b"\n\n",
                b";\n\r\n",
                b";a\n\r\n",
                b"\r\n\r",
                b"\r\n\rX: y\r\n\r\n",
                b"\r\n \r\n",
            )
        ),
        status=0,
    )
    line = rule("line", "a chunk's lines end with CR LF and nothing else")
    line.refused(
        chunked(b"5\nhello\n0\n\n" + SECOND),
        chunked(b"5\r\nhello\n0\r\n\r\n" + SECOND),
        chunked(b"5\rhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5\r\nhelloo\r\n0\r\n\r\n" + SECOND),
        chunked(b"5\r\nhell\r\n0\r\n\r\n" + SECOND),
        chunked(b"5\r\nhello0\r\n\r\n" + SECOND),
        chunked(b"5\r\nhello\r\n0\n\r\n" + SECOND),
        chunked(b"5\r\nhello\r\n0\r\n\n" + SECOND),
        status=0,
    )
    extension = rule("extension", "what stands behind a chunk's size concerns the client's connection alone")
    for said in (b";a", b";a=mallory", b';a="mallory"', b";a=mallory;b", b";mallory=1;c=2"):
        extension.passes(chunked(b"5" + said + b"\r\nhello\r\n0\r\n\r\n"), upstream=POSTED, body=b"hello")
    broken = rule("broken-extension", "an extension cannot break a chunk's line")
    broken.refused(
        chunked(b"5;a\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5;a=\n\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5;\x00\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5; a = mallory\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5;;;\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b'5;a="\r\nhello\r\n0\r\n\r\n' + SECOND),
        chunked(b'5;a="\r\n"\r\nhello\r\n0\r\n\r\n' + SECOND),
        chunked(b"5;\rX\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5;a\r\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"2;\nxx\r\n5\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5;\r\r\nhello\r\n0\r\n\r\n" + SECOND),
        chunked(b"5;a=b\n\nhello\r\n0\r\n\r\n" + SECOND),
        status=0,
    )
    trailer = rule("trailer", "trailers neither frame, route nor authenticate")
    for name in (
        *(b"Host", b"Connection", b"Content_Length", b"Transfer.Encoding", b"Cookie", b"Authorization"),
        *(b"Content-Type", b"Content-Encoding", b"Via", b"Expect", b"TE", b"Trailer", b"Upgrade"),
    ):
        trailer.passes(chunked(b"5\r\nhello\r\n0\r\n" + name + b": mallory\r\n\r\n"), upstream=POSTED, body=b"hello")
    framing = rule("framing-trailer", "a trailer that frames ends the request")
    for name in (b"Content-Length", b"Transfer-Encoding", b"content-length", b"TRANSFER-ENCODING"):
        for value in (b"mallory", b"5", b"chunked"):
            framing.refused(chunked(b"5\r\nhello\r\n0\r\n" + name + b": " + value + b"\r\n\r\n" + SECOND), status=0)
    bad = rule("bad-trailer", "a trailer is a field, or the request is not complete")
    bad.refused(
        chunked(b"5\r\nhello\r\n0\r\nmallory\r\n\r\n" + SECOND),
        chunked(b"5\r\nhello\r\n0\r\nX : mallory\r\n\r\n" + SECOND),
        chunked(b"5\r\nhello\r\n0\r\nX: a\nY: mallory\r\n\r\n" + SECOND),
        chunked(b"5\r\nhello\r\n0\r\nX: a\r\n mallory\r\n\r\n" + SECOND),
        status=0,
    )
    end = rule("end", "a body without its last chunk never looks complete")
    end.refused(
        chunked(b"5\r\nhello\r\n"), chunked(b"5\r\nhel"), chunked(b""), chunked(b"5\r\nhello\r\n0\r\n"), status=0
    )


def lines(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("line." + name, says)

    rule("lf", "a bare LF ends no line").refused(
        b"GET /x HTTP/1.1\nHost: app.example\n\n",
        b"GET /x HTTP/1.1\nHost: app.example\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: app.example\nX-NetBird-User: mallory\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: app.example\r\nX: y\n\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: app.example\r\n\n",
        b"POST /x HTTP/1.1\r\nHost: app.example\r\nContent-Length: 5\n\r\nhello",
        b"POST /x HTTP/1.1\r\nHost: app.example\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    )
    rule("cr", "nor does a bare CR").refused(
        b"GET /x HTTP/1.1\rHost: app.example\r\r\n",
        b"GET /x HTTP/1.1\r\nHost: app.example\rX-NetBird-User: mallory\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: app.example\r\nX: y\rz\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: app.example\r\nX: y\r\r\n\r\n",
        b"GET /x\r HTTP/1.1\r\nHost: app.example\r\n\r\n",
    )
    rule("endless-cr", "and a line that never ends is no request").refused(
        b"GET /x HTTP/1.1\rHost: app.example\r\r", status=0
    )
    rule("colon", "a line without a name is no field").refused(
        get(b"mallory"),
        get(b": mallory"),
        get(b":"),
        get(b"X mallory"),
        get(b"=mallory"),
        get(b" : mallory"),
        get(b":path: /second"),
        get(b":authority: mallory"),
        get(b":method: POST"),
        get(b"::mallory"),
    )
    rule("name", "a name is a token").refused(
        *(
            get(b"X" + byte + b"Y: mallory")
            for byte in (
                b" ",
                b"\t",
                b"(",
                b")",
                b"/",
                b"[",
                b"\\",
                b"]",
                b"@",
                b'"',
                b"{",
                b"\x7f",
                b"\x80",
                b"\x00",
                b",",
            )
        )
    )
    rule("value", "a value has no control bytes").refused(
        *(
            get(b"X: a" + byte + b"b")
            for byte in (b"\x00", b"\x01", b"\x08", b"\x0b", b"\x0c", b"\x1b", b"\x1f", b"\x7f")
        )
    )
    rule("method", "a method is a token").refused(
        *(
            method + b" /x HTTP/1.1\r\n" + HOST + END
            for method in (b"G ET", b"G\tET", b"G(T", b"\x00GET", b"GET\x00", b"G:T", b'"GET"', b"")
        )
    )
    rule("request", "a request line is three words").refused(
        *(
            first + END + HOST + END
            for first in (
                *(b"GET", b"/x HTTP/1.1", b"GET /x HTTP/1.1 HTTP/1.1", b"GET /x /y HTTP/1.1", b"GET\t/x\tHTTP/1.1"),
                *(
                    b"GET /x http/1.1",
                    b"GET /x HTTP/1.1x",
                    b"GET /x HTTP/11",
                    b"GET /x HTTP/1,1",
                    b"GET /x HTTPS/1.1",
                    b"GET /x ICY/1.1",
                ),
                *(b" GET /x HTTP/1.1", b"GET /x HTTP/", b"GET /x HTTP/1.", b"GET /x  HTTP/1.1 ", b"GET /x\x0bHTTP/1.1"),
            )
        )
    )
    rule("version", "we speak 1.1 and 1.0").refused(
        *(b"GET /x HTTP/%b\r\n" % version + HOST + END for version in (b"2.0", b"0.9")),
        b"GET /x\r\n" + HOST + END,
        b"GET /x\r\n\r\n",
        status=505,
    )
    rule("no-version", "what no version is called").refused(
        *(
            b"GET /x HTTP/%b\r\n" % version + HOST + END
            for version in (b"3.0", b"1.2", b"9.9", b"1.9", b"1.10", b"01.1")
        ),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    rule("foreign", "what is no HTTP at all").refused(
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x05\x01\x00\r\n\r\n",
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + get(),
        b"\r\n\r\nmallory\r\n\r\n",
        b"\x00" * 64 + b"\r\n\r\n",
    )
    rule("many", "a head has so many lines").refused(
        get(*[b"X: y"] * 100), get(*[b"X-%d: y" % i for i in range(150)]), status=431
    )
    blank = rule("blank", "blank lines before a request are nobody's")
    blank.passes(b"\r\n" + get(), b"\r\n" * 4 + get(), b"\n" + get(), b"\r" + get())
    blank.passes(
        get() + b"\r\n" + SECOND, get() + b"\r\n" * 3 + SECOND, answers=(200, 200), upstream=("GET /x", "GET /second")
    )
    preface = rule("preface", "HTTP/2 is not begun without being asked for")
    preface.refused(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"PRI * HTTP/1.1\r\n" + HOST + END
    )
    preface.refused(b"PRI /x HTTP/1.1\r\n" + HOST + END)
    preface.passes(get() + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", answers=(200, 400))
    ends = rule("ends", "what a client wants to be the last request is the last")
    ends.passes(
        get(b"Connection: close, keep-alive") + SECOND,
        get(b"Connection: keep-alive", b"Connection: close") + SECOND,
        get(b"Connection: CLOSE") + SECOND,
        b"GET /x HTTP/1.0\r\n" + HOST + END + SECOND,
    )
    pipelined = rule("pipelined", "each request on a connection is judged by itself")
    pipelined.passes(get() + SECOND, answers=(200, 200), upstream=("GET /x", "GET /second"))
    pipelined.passes(get() * 3, answers=(200, 200, 200), upstream=("GET /x",) * 3)
    pipelined.passes(get() + get(b"Host: x"), answers=(200, 400))
    pipelined.passes(get() + post(b"Content-Length: +5", body=b"hello") + SECOND, answers=(200, 400))
    pipelined.passes(get(b"Connection: close") + SECOND)
    pipelined.passes(chunked(CHUNKS) + SECOND, answers=(200, 200), upstream=("POST /x", "GET /second"), body=b"hello")


def breaks(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("break." + name, says)

    injected = b"X-NetBird-User: mallory"
    encoded = rule("encoded", "an encoded line break stays encoded")
    for mark in (b"%0d%0a", b"%0D%0A", b"%0a", b"%0d", b"%E5%98%8A%E5%98%8D"):
        path = b"/x" + mark + injected.replace(b" ", b"%20").replace(b"mallory", b"m")
        encoded.passes(get(target=path), upstream=(f"GET {path.decode()}",))
        query = b"/x?a=" + mark + b"X-NetBird-User:%20m"
        encoded.passes(get(target=query), upstream=(f"GET {query.decode()}",))
    raw = rule("raw", "a raw one breaks the request")
    for mark in (b"\r", b"\n", b"\x00"):
        raw.refused(
            get(target=b"/x" + mark + injected),
            get(target=b"/x?a=" + mark + injected),
            status=505 if mark == b"\n" else 400,  # where the line ends there, it names no version
        )
        raw.refused(
            get(b"Cookie: a=" + mark + injected),
            get(b"X-Forwarded-For: 1" + mark + injected),
            get(b"Authorization: Basic " + mark + injected),
            b"GET" + mark + b" /x HTTP/1.1\r\n" + HOST + END,
            b"GET /x HTTP/1.1" + mark + injected + b"\r\n" + HOST + END,
        )
    unicode = rule("unicode", "characters that some fold to line breaks go on as the bytes that they are")
    for mark in (b"\xc4\x8d\xc4\x8a", b"\xe5\x98\x8a\xe5\x98\x8d", b"\xe2\x80\xa8", b"\xc2\x85"):
        unicode.passes(get(b"X: a" + mark + b"b"), has=("x: a" + mark.decode("latin-1") + "b",))


def expectations(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("expect." + name, says)

    rule("unknown", "an expectation that nobody meets").refused(
        *(get(b"Expect: " + value) for value in (b"mallory", b"100-continue, x", b"200-ok", b"100-continue;q=1", b"")),
        status=417,
    )
    rule("spaced", "one whose name has a byte more").refused(
        *(
            post(line, b"Content-Length: 5", body=b"hello" + SECOND)
            for line in (
                *(b"Expect : 100-continue", b"Expect\t: 100-continue", b" Expect: 100-continue"),
                *(b"Expect:\r\n 100-continue", b"Expect: 100-continue\x0b", b"Expect\x00: 100-continue"),
            )
        )
    )
    rule("odd", "one that is almost the known one, with a body behind that some would not read").refused(
        *(
            post(b"Expect: " + value, b"Content-Length: %d" % len(SECOND), body=SECOND)
            for value in (b"y 100-continue", b"100-continue,", b'"100-continue"', b"100-continu")
        ),
        post(b"Expect: 100-continue", b"Expect: y", b"Content-Length: 5", body=b"hello" + SECOND),
        post(b"Expect: 100-continue", b"expect: 100-continue", b"Content-Length: 5", body=b"hello" + SECOND),
        status=417,
    )
    bodiless = rule("bodiless", "one without a body waits for nobody")
    bodiless.passes(
        get(b"Expect: 100-continue") + SECOND,
        get(b"Expect: 100-continue", b"Content-Length: 0") + SECOND,
        answers=(200, 200),
        upstream=("GET /x", "GET /second"),
    )
    stays = rule("stays", "the body that it announces stays a body, though an answer may come early")
    hidden = b"GET /hidden HTTP/1.1\r\nHost: app.example\r\n\r\n"
    for method in (b"GET", b"HEAD", b"POST", b"OPTIONS"):
        head = method + b" /x HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n"
        stays.passes(
            head + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden,
            head.replace(b"continue", b"Continue \t") + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden,
            head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(hidden) + hidden + b"\r\n0\r\n\r\n",
            upstream=(f"{method.decode()} /x",),
            body=hidden,
        )
    known = rule("continue", "the client's own 100 is ours to say, and the expectation is not repeated")
    known.passes(
        post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"),
        post(b"expect: 100-Continue", b"Content-Length: 5", body=b"hello"),
        b"POST /x HTTP/1.0\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        chunked(CHUNKS, b"Expect: 100-continue"),
        upstream=POSTED,
        body=b"hello",
    )


def upgrades(corpus: Corpus) -> None:
    def rule(name: str, says: str) -> Rule:
        return corpus.rule("upgrade." + name, says)

    ask = (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        b"Sec-WebSocket-Version: 13",
    )
    followed = rule(
        "followed", "what follows an upgrade that is not granted goes nowhere: it could be either protocol's"
    )
    followed.passes(
        get(*ask) + SECOND,
        get(b"Connection: Upgrade", b"Upgrade: other/1") + SECOND,
        get(*ask) + post(b"Content-Length: +5", body=b"hello"),
        get(*ask) + b"\x81\x85\x00\x00\x00\x00hello" + SECOND,
        get(*ask) + SECOND * 3,
    )
    body = rule("body", "an upgrade with a body has two meanings")
    body.refused(
        post(*ask, b"Content-Length: 5", body=b"hello" + SECOND),
        get(*ask, b"Content-Length: 5") + b"hello" + SECOND,
        get(*ask, b"Transfer-Encoding: chunked") + CHUNKS + SECOND,
    )
    offered = rule("offered", "an offer that no upstream is asked for is ignored: what follows is the next request")
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQ")
    offered.passes(get(*offer) + SECOND, answers=(200, 200), upstream=("GET /x", "GET /second"))
    offered.passes(
        post(*offer, b"Content-Length: 5", body=b"hello" + SECOND),
        chunked(CHUNKS + SECOND, *offer),
        answers=(200, 200),
        upstream=("POST /x", "GET /second"),
        body=b"hello",
    )
    several = rule("several", "of several that are asked for, those go on that carry no requests")
    several.passes(
        get(b"Connection: Upgrade", b"Upgrade: h2c, websocket"),
        get(b"Connection: Upgrade", b"Upgrade: websocket", b"Upgrade: h2c"),
        get(b"Connection: Upgrade", b"Upgrade: TLS/1.2,websocket , HTTP/2.0"),
        has=("upgrade: websocket", "connection: Upgrade"),
    )
    old = rule("old", "1.0 asks for none")
    old.passes(
        b"GET /x HTTP/1.0\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + SECOND,
        b"GET /x HTTP/1.0\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: mallory\r\n\r\n",
    )
    tokens = rule("tokens", "what is offered upstream is what was asked for, once, and only if it is a token")
    tokens.passes(
        get(b"Connection: Upgrade", b"Upgrade: web socket"),
        get(b"Connection: Upgrade", b"Upgrade: websocket/13/mallory"),
        get(b"Connection: Upgrade", b"Upgrade: (mallory)"),
        get(b"Upgrade: mallory"),
        get(b"Connection: Upgrade"),
    )


def made() -> Corpus:
    corpus = Corpus()
    for family in (
        *(aliases, ours, hop_by_hop, forwarding, hosts, paths, lengths, codings, chunks, lines, breaks, expectations),
        upgrades,
    ):
        family(corpus)
    return corpus


def written(corpus: Corpus) -> str:
    parts = ["# Written by generate.py; see README.md.\n", "[rules]"]
    parts += [f"{name!r} = {says!r}" for name, says in corpus.rules.items()]
    for case in corpus.cases:
        parts += [
            "",
            "[[attack]]",
            f"rule = '{case.rule}'",
            f"bytes = '{_text(case.sent)}'",
            f"answers = {list(case.answers)}",
        ]
        if case.upstream:
            parts.append(f"upstream = [{', '.join(repr(one) for one in case.upstream)}]")
        if case.body:
            parts.append(f"body = '{_text(case.body)}'")
        if case.has:
            parts.append(f"has = [{', '.join(chr(39) + _text(one.encode('latin-1')) + chr(39) for one in case.has)}]")
    return "\n".join(parts) + "\n"


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").encode("unicode_escape").decode("ascii").replace("'", "\\x27")


if __name__ == "__main__":
    FILE.write_text(written(made()))
