"""The oracle of `netbird_http`'s request heads: the same rules in Python, as the product once had them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from netbird_host.containment import describe_error
from netbird_host.http_fields import TOKEN
from netbird_host.tables import BoundedTable
from netbird_proxy.api.errors import BadRequest, RouteRefused, StepFailed
from netbird_proxy.api.headers import RESERVED_PREFIX, RawHeader, fold
from netbird_proxy.api.model import Address, RouteSpec, Upstream
from netbird_proxy.pipeline.bound import BoundTransform
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import (
    COOKIE,
    CORE,
    CORE_NAMES,
    DROP,
    FIELD_VALUE,
    FORWARDED,
    FORWARDED_PREFIX,
    KEEP,
    LOOK,
    QUIET_CONNECTION,
    HeadRules,
    upgrade_protocols,
    verdict_table,
    without_session_token,
)
from tests.reference.outgoing_head import OutgoingHead, OwnedNames

_REPORTED = frozenset(
    (b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-port")
)

_TARGET_PATH = re.compile(rb"/[!-~]*")

# Fields that `write` reads before it drops them.
_READ = frozenset((b"connection", b"content-length", b"te", b"transfer-encoding", b"upgrade"))


@dataclass(slots=True)
class WrittenHead:
    """A request head as it is sent, and the framing of its body.

    Attributes:
        upgrade: the protocols that the upstream is asked to switch to.
        dropped: folded names that may not come back as trailers.
    """

    head: bytes
    method: bytes
    has_body: bool
    chunked: bool
    upgrade: tuple[bytes, ...]
    dropped: frozenset[bytes]


def _judge(dropped: Collection[bytes], owned: Collection[bytes]) -> Callable[[bytes], int]:
    """Return a function that decides, by its name, whether a client's field is sent to an upstream."""

    def judge(name: bytes) -> int:
        folded = fold(name)
        if folded == b"cookie" and folded not in dropped:
            return COOKIE
        if folded in dropped:
            # Only the exact spelling frames a message. An alias is dropped, or an upstream might frame by it.
            return LOOK if name in _READ else DROP
        return DROP if folded.startswith(FORWARDED_PREFIX) and folded not in owned else KEEP

    return judge


class RequestHeads:
    """Writes the request heads for one upstream of one route."""

    def __init__(
        self, spec: RouteSpec, upstream: Upstream, rules: HeadRules, transforms: Sequence[BoundTransform] = ()
    ) -> None:
        """Raises RouteRefused for a target path or a custom header that cannot be sent."""
        path, _, self._query = upstream.path.partition(b"?")
        if not _TARGET_PATH.fullmatch(upstream.path) or b"#" in upstream.path:
            raise RouteRefused(f"the target path {upstream.path.decode('latin-1')!r} cannot be sent")
        self._path = path
        self._base = path[:-1] if path.endswith(b"/") else path
        self._cut = len(spec.prefix) if spec.strip_prefix and spec.prefix != b"/" else 0
        self._host = None if spec.pass_host_header else host_field(upstream)
        self.rules = rules
        self._transforms = tuple(transforms)
        core = CORE_NAMES | (FORWARDED.difference(rules.owners))
        self._reported = _REPORTED if _REPORTED.isdisjoint(rules.owners) else _REPORTED.difference(rules.owners)
        self._owners = {**dict.fromkeys(core, CORE), **rules.owners, b"via": CORE}
        self._custom = custom_headers(upstream, self._owners)
        self._dropped = core | {fold(name) for name, _ in self._custom}
        self._verdicts = verdict_table(
            ("outgoing", frozenset(self._dropped), frozenset(rules.owners)), _judge(self._dropped, rules.owners.keys())
        )
        self._via = (b"via", b"1.1 " + rules.pseudonym)
        self._owned_names: OwnedNames = {}

    def write(self, exchange: Exchange, carried_body: bool | None) -> WrittenHead:
        """The head for one exchange.

        Args:
            carried_body: true if the listener expects a body; None under another server, where only the head shows it.

        Raises:
            BadRequest: two lengths, a length that is not a number, or a field with a line break.
            StepFailed: a transform raised, set a field that it may not set, or is an `async` function.
        """
        verdicts = self._verdicts
        fields: list[RawHeader] = []
        length: bytes | None = None
        listed: set[bytes] = set()
        asked: list[bytes] = []
        encoded = trailers_wanted = False
        for pair in exchange.headers.raw:
            verdict = verdicts[pair[0]]
            if verdict == KEEP:
                fields.append(pair)
            elif verdict == LOOK:
                name, value = pair
                if name == b"connection":
                    if value not in QUIET_CONNECTION:
                        listed.update(fold(part.strip(b" \t")) for part in value.split(b","))
                elif name == b"content-length":
                    if length is not None or not value.isdigit():
                        raise BadRequest("the request has more than one Content-Length, or one that is not a number")
                    length = value
                elif name == b"transfer-encoding":
                    encoded = True
                elif name == b"upgrade":
                    asked.append(value)
                else:  # te
                    trailers_wanted = trailers_wanted or b"trailers" in value.lower()
            elif verdict == COOKIE and (value := self.rules.cookie(pair[1])):
                fields.append((pair[0], value))
        if listed:
            fields = [pair for pair in fields if fold(pair[0]) not in listed]
        upgrade: tuple[bytes, ...] = ()
        if exchange.kind == "websocket" or (asked and carried_body is None and b"upgrade" in listed):
            upgrade = upgrade_protocols(asked)
        if upgrade:
            fields.append((b"connection", b"Upgrade"))
            fields.append((b"upgrade", b", ".join(upgrade)))
        elif trailers_wanted:
            fields.append((b"te", b"trailers"))
            fields.append((b"connection", b"TE"))
        if reported := self._reported:
            forwarded = _forwarded(exchange)
            fields += forwarded if reported is _REPORTED else [pair for pair in forwarded if pair[0] in reported]
        fields.extend(self._custom)
        fields.append(self._via)

        method = exchange.method.encode("latin-1")
        target = self._target(exchange)
        if self._transforms:
            fields = self._transformed(exchange, method, target, fields)
        has_body, chunked = self._framing(exchange, carried_body, length, encoded)
        host = exchange.authority if self._host is None else self._host
        if chunked:
            fields.append((b"transfer-encoding", b"chunked"))
        elif length is not None:
            fields.append((b"content-length", length))
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n\r\n" % (
            method,
            target,
            host,
            b"\r\n".join(map(_FIELD, fields)),  # never empty: `via` is always there
        )
        if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * len(fields) + 6:
            # The listener and the transforms' heads refuse such fields; another ASGI server may not.
            raise BadRequest("a field of the request holds a line break or NUL")
        return WrittenHead(head, method, has_body, chunked, upgrade, self._dropped)

    def _target(self, exchange: Exchange) -> bytes:
        """Return the target: the upstream's path, then the bytes after the matched prefix, unchanged.

        A request for exactly the prefix gets exactly the upstream's path: `/hook` and `/hook/` may differ there.
        """
        rest = exchange.raw_path[self._cut :]
        target = self._base + rest if rest else self._path
        query = without_session_token(exchange.query) if exchange.query else b""
        if self._query:
            query = self._query + b"&" + query if query else self._query
        return target + b"?" + query if query or exchange.empty_query else target

    @staticmethod
    def _framing(
        exchange: Exchange, carried_body: bool | None, length: bytes | None, encoded: bool
    ) -> tuple[bool, bool]:
        if encoded:
            if length is not None:
                raise BadRequest("the request has both Content-Length and Transfer-Encoding")
            return True, True
        if length is not None:
            return int(length) > 0, False
        if carried_body is None:
            # HTTP/2 and later frame bodies outside the head, so any request but these may have one.
            framed_outside = not exchange.http_version.startswith("1.")
            may_carry = framed_outside and exchange.method not in ("GET", "HEAD", "OPTIONS", "TRACE")
            return may_carry, may_carry
        return carried_body, carried_body

    def _transformed(
        self, exchange: Exchange, method: bytes, target: bytes, fields: list[RawHeader]
    ) -> list[RawHeader]:
        for transform in self._transforms:
            outgoing = OutgoingHead(method, target, fields, self._owners, transform.plugin, self._owned_names)
            try:
                result = transform.apply(exchange, outgoing)
            except BaseException as exc:  # synchronous code: no cancellation can arrive here
                raise StepFailed(transform.plugin, "transform_request", describe_error(exc)) from exc
            if result is not None:
                close = getattr(result, "close", None)  # a coroutine would warn that it was never awaited
                if close is not None:
                    close()
                raise StepFailed(transform.plugin, "transform_request", f"returned {type(result).__name__}")
        return fields


_FIELD = b": ".join

# The fields are the same for all requests of a connection.
_FORWARDED: BoundedTable[tuple[str, str, bytes], list[RawHeader]] = BoundedTable(1024)


def _forwarded(exchange: Exchange) -> Sequence[RawHeader]:
    """Return the `X-Forwarded-*` fields of the connection, unless the `forwarding` plugin owns them."""
    origin, authority = exchange.origin, exchange.authority
    key = (origin.peer.host if origin is not None else exchange.client_address, exchange.scheme, authority)
    fields = _FORWARDED.get(key)
    if fields is None:
        address, scheme = key[0].encode("latin-1"), key[1].encode()
        _, colon, port = authority.rpartition(b":")
        if not colon or not port.isdigit():
            port = b"443" if scheme == b"https" else b"80"
        fields = [(b"x-forwarded-for", address), (b"x-real-ip", address)] if address else []
        fields += [(b"x-forwarded-host", authority), (b"x-forwarded-proto", scheme), (b"x-forwarded-port", port)]
        _FORWARDED.keep(key, fields)
    return fields


def host_field(upstream: Upstream) -> bytes:
    """Return the upstream's own `Host`, with its port unless it is the default of the scheme."""
    usual = {"http": 80, "https": 443}.get(upstream.scheme)
    host, port = upstream.address
    if port == usual:
        return (f"[{host}]" if ":" in host else host).encode("idna" if not host.isascii() else "ascii")
    return str(Address(host, port)).encode("ascii")


def custom_headers(upstream: Upstream, owners: dict[bytes, str]) -> list[RawHeader]:
    """Return the custom headers of an upstream, without reserved and owned names.

    Raises:
        RouteRefused: a name or a value cannot be sent in a field.
    """
    kept: list[RawHeader] = []
    for name, value in upstream.custom_headers:
        if not TOKEN.fullmatch(name) or not FIELD_VALUE.fullmatch(value):
            raise RouteRefused(f"the custom header {name.decode('latin-1')!r} cannot be sent")
        folded = fold(name)
        if folded not in owners and not folded.startswith(RESERVED_PREFIX):
            kept.append((name.lower(), value))
    return kept
