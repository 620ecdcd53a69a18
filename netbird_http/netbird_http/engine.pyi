"""The engine: HTTP/1.1 without I/O. All calls are synchronous; no input ends the process or raises PanicException.

Names and values are bytes. A name's folded form is the spelling that all its aliases share, see `fold`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

def fold(name: bytes) -> bytes:
    """Return the spelling that all aliases of a name share: lower case, with `_` and `.` replaced by `-`."""

class NotTheOwner(Exception):
    """A transform changed a name that belongs to the core or to another plugin on this route."""

class Unsendable(Exception):
    """A head that cannot be sent. The message is for the log and has no value of a field."""

@final
class OutgoingRules:
    """The rules for the request heads to one upstream of one route. Immutable.

    Args:
        path: the upstream's path; begins with `/`, without a query.
        query: the query that every target gets, or empty.
        cut: number of bytes of the matched prefix that are cut from the request's path.
        host: the `Host` field; None for the client's own.
        owners: folded name → the only plugin that may set it.
        cookies: name of a cookie, or its start and `*` → the plugin that sets it. They stay with the proxy.
        custom: fields that every head gets, without those that the core or a plugin owns. They were checked before.
        pseudonym: the proxy's name in `Via`.
    """

    def __new__(
        cls,
        *,
        path: bytes,
        query: bytes,
        cut: int,
        host: bytes | None,
        owners: Mapping[bytes, str],
        cookies: Sequence[tuple[bytes, str]],
        custom: Sequence[tuple[bytes, bytes]],
        pseudonym: bytes,
    ) -> OutgoingRules: ...
    def begin(
        self,
        raw: list[tuple[bytes, bytes]],
        method: str,
        raw_path: bytes,
        query: bytes,
        empty_query: bool,
        authority: bytes,
        scheme: str,
        address: str,
        upgrades: bool,
        framed_in_head: bool,
        carried_body: bool | None,
        /,
    ) -> Draft:
        """Read a client's fields, and add those of the core.

        Args:
            raw: the fields in order, names in lower case.
            method: in Latin-1.
            empty_query: the client's target ends with a `?`, with nothing behind it; so does the upstream's then.
            scheme: `http` or `https`.
            address: of the connection's peer; empty if it is unknown.
            upgrades: the client asks for an upgrade, and the listener can carry one.
            framed_in_head: a server for HTTP/1 received the request.
            carried_body: whether the listener expects a body; None where only the head shows it.

        Raises:
            Unsendable: two lengths, or a length that is not a number.
            TypeError: a field is not a tuple of bytes.
            ValueError: the method is not in Latin-1.
        """

@final
class Draft:
    """The head of one request while plugins may change it."""

    def hand(self, owner: str) -> OutgoingHead:
        """Return the head as the plugin `owner` may change it."""

    def written(self) -> WrittenHead:
        """Write the head. From then on nobody can change it.

        Raises:
            Unsendable: two framings, or a line break or NUL in a field.
        """

@final
class WrittenHead:
    """A request head as it is sent, and the framing of its body.

    Attributes:
        upgrade: the protocols that the upstream is asked to switch to.
    """

    @property
    def head(self) -> bytes: ...
    @property
    def method(self) -> bytes: ...
    @property
    def has_body(self) -> bool: ...
    @property
    def chunked(self) -> bool: ...
    @property
    def upgrade(self) -> tuple[bytes, ...]: ...

@final
class OutgoingHead:
    """The request head for the upstream, as a single transform may change it.

    Names that another plugin owns, and `x-netbird-*` names that nobody owns, raise NotTheOwner. Names may be given in
    any case and are sent in lower case. Method, target and owner cannot be changed: the authorized target is sent. A
    change that raises has changed nothing. Once the head was written, each change raises RuntimeError.

    Args:
        owners: folded name → plugin id.
        owner: id of the plugin whose transform gets this object.
    """

    def __new__(
        cls,
        method: bytes,
        target: bytes,
        fields: Sequence[tuple[bytes, bytes]],
        owners: Mapping[bytes, str],
        owner: str = "",
    ) -> OutgoingHead: ...
    @property
    def method(self) -> bytes: ...
    @property
    def target(self) -> bytes:
        """Path and query, as they stand on the request line."""

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """A copy of the present fields, in order."""

    def get(self, name: bytes) -> bytes | None:
        """Return the first value of this name, in any case but not under an alias."""

    def set(self, name: bytes, value: bytes) -> None:
        """Replace all lines of this name by this one. ValueError for bytes that a field cannot carry."""

    def add(self, name: bytes, value: bytes) -> None:
        """Append a line. ValueError for bytes that a field cannot carry."""

    def delete(self, *names: bytes) -> None:
        """Remove every line whose name folds to one of these names."""

    def replace(self, names: Iterable[bytes], lines: Iterable[tuple[bytes, bytes]]) -> None:
        """Remove every line of these names, then append `lines`: `set` and `delete` for several names at once.

        ValueError for a line whose name is not among `names`, and as in `set`.
        """

    def set_or_delete(self, name: bytes, value: bytes | None) -> None:
        """Set the field, or delete it where `value` is None, so that the client's value never remains."""

class Violation(Exception):
    """The bytes that an upstream sent are no answer, or could be read in two ways. The message names the defect."""

class Answer:
    """An upstream's answer to one request (RFC 9112). `feed` takes bytes as they arrive; attributes hold the result.

    Where the bytes are cut changes nothing. Blanks around a value are no part of it. Of equal lengths one remains, in
    its shortest form. An answer that an old server wrote askew is read, and `keep_alive` is false then: a blank before
    a colon, blanks behind a chunk's size, a head whose lines all end in a bare LF, a length stated more than once.
    """

    def __new__(cls, method: bytes, *, max_bytes: int, max_lines: int, upgrade: bool = False) -> Answer:
        """Args:
        method: the request's; an answer to HEAD has no body.
        max_bytes: maximum size of all heads of the answer together, of its trailers, and of a chunk's line. Beyond it,
            `feed` raises Violation.
        max_lines: maximum number of fields in a head or in the trailers; beyond it, `feed` raises Violation.
        upgrade: the request asks for an upgrade; without it a 101 is a violation.
        """

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Bytes of the body that precede a violation can still be taken.

        Raises:
            Violation: as soon as the bytes so far are no beginning of an answer. Each later call raises it again.
        """

    def feed_eof(self) -> bool:
        """The upstream has ended its side. Returns true if the answer is complete."""

    def take(self) -> bytes | None:
        """Remove and return the next piece of the body; None while none has arrived.

        A read that was all body is returned as the same object. Pieces below 2,048 bytes on the average are joined.
        """

    def take_interim(self) -> tuple[int, list[tuple[bytes, bytes]]] | None:
        """Remove and return the oldest informational head, as status and fields; None if none waits."""

    @property
    def status(self) -> int:
        """0 until the final head is complete."""

    @property
    def reason(self) -> bytes:
        """The reason phrase; empty if it has characters that are not printable."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Fields of the final head in order, names in lower case; the same list each time. Empty before."""

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """Fields behind the body, as `headers` has them; a new list each time. Empty until `complete`."""

    @property
    def buffered(self) -> int:
        """Bytes of the body that were not taken yet."""

    @property
    def head_complete(self) -> bool:
        """True once the final head has arrived."""

    @property
    def complete(self) -> bool:
        """True once the whole answer has arrived."""

    @property
    def switched(self) -> bool:
        """The answer is a requested 101: its body is the raw stream behind it, until the close."""

    @property
    def keep_alive(self) -> bool:
        """The connection may carry another request after this answer. Final once `complete` is true."""

    @property
    def excess(self) -> bool:
        """Bytes arrived behind the end, so the connection must not carry another exchange."""

    @property
    def fed(self) -> int:
        """Bytes that were fed, heads included."""

    @property
    def kept_for(self) -> int | None:
        """Seconds for which the upstream keeps an idle connection, from its `Keep-Alive` field; None without one."""

@final
class Reader:
    """The requests that arrive on one connection (RFC 9112). `feed` takes bytes as they arrive and returns events.

    Where the bytes are cut changes nothing. Nothing is mended: a head with two readings is refused.

    Args:
        max_bytes: maximum size of a head (its target and its field lines), of trailers, and of a chunk's line.
        max_lines: maximum number of fields in a head, and in trailers.
    """

    def __new__(cls, *, max_bytes: int, max_lines: int) -> Reader: ...
    def feed(self, data: bytes) -> list[Head | bytes | End | Refused]:
        """Take the next bytes, and return what they complete, in order.

        A `Head` begins a request. One with `has_body` is followed by its body in pieces of `bytes`, of which none is
        empty, and by an `End`; one with `upgrade` by the bytes of the other protocol; any other one is complete.
        Piece and argument are the same object if all of it is body. Bytes behind a request without `keep_alive` are
        ignored. `Refused` is the last event, and the only one of each later call.
        """

    @property
    def in_head(self) -> bool:
        """Bytes of an incomplete head have arrived, or CR and LF before a request."""

    @property
    def request_line(self) -> tuple[str, bytes]:
        """Method and target of an incomplete head, as far as they have arrived."""

@final
class Head:
    """A request head that was judged. Immutable; its parts are made anew each time."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str:
        """The path, percent-decoded, with U+FFFD for what is not UTF-8."""

    @property
    def raw_path(self) -> bytes:
        """The path as it arrived; `/` where an absolute target has none, and `*` with OPTIONS."""

    @property
    def query(self) -> bytes:
        """The query as it arrived, without its `?`."""

    @property
    def empty_query(self) -> bool:
        """The target has a `?` with nothing behind it."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields in order, names in lower case, values without blanks around them."""

    @property
    def http11(self) -> bool:
        """The version is HTTP/1.1; else it is HTTP/1.0."""

    @property
    def has_body(self) -> bool:
        """A body follows, and then an `End`."""

    @property
    def keep_alive(self) -> bool:
        """The client may send another request on the connection."""

    @property
    def expects(self) -> bool:
        """The client waits for `100 Continue`."""

    @property
    def upgrade(self) -> bool:
        """The client asks for an upgrade that an upstream may grant, on HTTP/1.1, without a body."""

@final
class End:
    """The end of a request that has a body."""

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """Fields behind a chunked body, in order, names in lower case."""

@final
class Refused:
    """A request that is not served.

    Attributes:
        status: of the answer.
        reason: stable, from a bounded set, for the counter and the log line: `host_missing`.
        method, target: as far as they were read; else empty.
    """

    @property
    def status(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def target(self) -> bytes: ...

def judge_scope(scope: Mapping[str, Any]) -> str | None:
    """Judge the head in an HTTP or websocket scope of another server by the rules of `Reader`.

    The server has already dropped the authority of an absolute target and a fragment, and may have added trailers to
    the fields, which cannot be detected here. Without `raw_path` there are no bytes to authorize: refused.

    Returns:
        The reason for a refusal with 400, or None. A scope with missing or wrongly typed parts is `scope_malformed`.
    """

def log_line(
    exchange_id: str,
    started_at: float,
    duration_ns: int,
    method: str,
    host: str,
    path: bytes,
    status: int,
    received: int,
    sent: int,
    client: str,
    code: str,
    observed: str,
    scheme: str,
    end: bytes,
    tries: int,
    caller: bytes,
    /,
) -> bytes:
    """Return an exchange as a line of JSON, line end included. Every text is encoded, so a client cannot end it.

    Args:
        started_at: seconds since the epoch; years after 9999 are written as the end of 9999.
        path: the raw path without its query; each byte is one character (Latin-1).
        code, observed: empty if there is none; the member is then left out.
        end, caller: members in JSON, each with a comma before it, behind `client` and behind `tries`.
        tries: left out up to 1.

    Raises:
        OverflowError: a number is negative, or has more than 64 bits.
    """

def log_entry(
    exchange_id: str,
    started_at: float,
    duration_ns: int,
    method: str,
    host: str,
    path: bytes,
    status: int,
    received: int,
    sent: int,
    client: str,
    code: str,
    observed: str,
    account: str,
    service: str,
    mechanism: str,
    user: str,
    groups: bytes,
    /,
) -> bytes:
    """Return an exchange as the message `AccessLog` that management stores, in bytes of the wire.

    Args:
        path: as in `log_line`; the entry has it percent-decoded, with U+FFFD for what is not UTF-8 and for NUL, and cut
            to 2,048 characters.
        code, observed: empty if there is none; they are the message's metadata.
        groups: the field `user_groups`, in bytes of the wire; empty for none.

    Raises:
        OverflowError: a number is negative, or has more than 64 bits.
    """
