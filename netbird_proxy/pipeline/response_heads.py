"""Response heads: the fields of an upstream's answer that reach the client."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from netbird_proxy.api.headers import RawHeader, fold
from netbird_proxy.api.model import RouteSpec, Upstream
from netbird_proxy.http.folding import fold_authority
from netbird_proxy.pipeline.exchange import Exchange
from netbird_proxy.pipeline.head_rules import CORE_NAMES, HOP_BY_HOP, QUIET_CONNECTION, HeadRules, cookie_name
from netbird_proxy.pipeline.response_transforms import ResponseTransforms

_NEVER_TRAILERS = CORE_NAMES | {b"set-cookie", b"location", b"content-encoding", b"content-type"}
_NOTHING: frozenset[bytes] = frozenset()
_LOOKED_AT = HOP_BY_HOP | {b"content-length", b"location", b"set-cookie"}
_SAME_ENDPOINT = {b"http": 80, b"https": 443}
_AFTER_A_SEGMENT = (b"", b"/", b"?", b"#")
_LOCATION = re.compile(rb"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


class ResponseHeads:
    """Converts the response heads of one upstream into those that the client gets."""

    def __init__(
        self,
        spec: RouteSpec,
        upstream: Upstream,
        rules: HeadRules,
        transforms: ResponseTransforms | None = None,
    ) -> None:
        self.rules = rules
        self._transforms = transforms
        self._rewrites = spec.rewrite_redirects
        host, port = upstream.address
        self._authority = (f"[{host}]" if ":" in host else host, port)
        self._base = upstream.path.partition(b"?")[0].rstrip(b"/")
        self._prefix = spec.prefix if spec.strip_prefix and spec.prefix != b"/" else b""

    def read(
        self, exchange: Exchange, status: int, raw: Sequence[RawHeader]
    ) -> tuple[list[RawHeader], int | None, bool]:
        """Return the client's fields, the length of the body or None, and whether trailers follow.

        Raises:
            StepFailed: a plugin's transform failed. No part of the head may be sent.
        """
        fields: list[RawHeader] = []
        length: int | None = None
        announced: RawHeader | None = None
        listed: set[bytes] = set()
        for pair in raw:
            name, value = pair
            if name not in _LOOKED_AT:
                fields.append(pair)
            elif name == b"content-length":
                if status != 204:
                    length = int(value)
                    fields.append(pair)
            elif name == b"set-cookie":
                if not self.rules.ours[cookie_name(value)]:
                    fields.append(pair)
            elif name == b"location":
                fields.append((name, self._location(exchange, value)) if self._rewrites else pair)
            elif name == b"trailer":
                announced = pair
            elif name == b"connection" and value not in QUIET_CONNECTION:
                listed.update(fold(part.strip(b" \t")) for part in value.split(b","))
        if listed:
            listed -= {b"content-length", b"set-cookie"}
            fields = [pair for pair in fields if fold(pair[0]) not in listed]
        if announced is not None and length is None:
            fields.append(announced)
        if self._transforms is not None:
            self._transforms.change(exchange, status, fields)
        return fields, length, announced is not None and length is None

    def trailers(self, raw: Iterable[RawHeader]) -> list[RawHeader]:
        """Return the trailers of an answer that may go to the client, without the names that plugins own."""
        owned = self._transforms.names if self._transforms is not None else _NOTHING
        return [pair for pair in raw if (name := fold(pair[0])) not in _NEVER_TRAILERS and name not in owned]

    def _location(self, exchange: Exchange, value: bytes) -> bytes:
        """Return a `Location` that names the upstream's own address under the host and path that the client uses."""
        match = _LOCATION.fullmatch(value)
        if match is None:
            return value
        scheme, authority, rest = match[1].lower(), match[2].lower(), match[3]
        _, port = split_authority(authority, _SAME_ENDPOINT[scheme])
        try:
            if (fold_authority(authority), port) != self._authority:
                return value
        except ValueError:
            return value
        if base := self._base:
            if not rest.startswith(base) or rest[len(base) : len(base) + 1] not in _AFTER_A_SEGMENT:
                return value  # the client cannot reach that path through this route
            rest = rest[len(base) :]
        if self._prefix and not rest.startswith(b"/"):
            rest = b"/" + rest
        return b"%b://%b%b%b" % (exchange.scheme.encode(), exchange.authority, self._prefix, rest)


def split_authority(authority: bytes, default_port: int) -> tuple[bytes, int]:
    """Return the host without brackets, and the port; 0, which no upstream has, for a port that is not a number."""
    host, colon, port = authority.rpartition(b":")
    if not colon or b"]" in port:
        return authority.strip(b"[]"), default_port
    return host.strip(b"[]"), int(port) if port.isdigit() else (default_port if not port else 0)


# RFC 8297: informational heads are hints. A cookie in one would be set before the answer itself was checked.
_NEVER_INFORMATIONAL = CORE_NAMES | {b"set-cookie"}


def informational(raw: Iterable[RawHeader], transforms: ResponseTransforms | None = None) -> list[RawHeader]:
    """Return the fields of a 1xx head that may go to the client. No transform sees it, so it loses the owned names."""
    owned = transforms.names if transforms is not None else _NOTHING
    return [pair for pair in raw if (name := fold(pair[0])) not in _NEVER_INFORMATIONAL and name not in owned]
