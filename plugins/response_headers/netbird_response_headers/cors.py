"""Cross-origin resource sharing (CORS): the fields of an answer, and the answers to preflights."""

from __future__ import annotations

import re

from netbird_proxy import ALLOW, TOKEN_PATTERN, Challenge, ExchangeView, ResponseHead, Verdict
from netbird_response_headers.settings import ANY_ORIGIN, Cors

ALLOW_ORIGIN = b"access-control-allow-origin"
ALLOW_CREDENTIALS = b"access-control-allow-credentials"
ALLOW_METHODS = b"access-control-allow-methods"
ALLOW_HEADERS = b"access-control-allow-headers"
EXPOSE_HEADERS = b"access-control-expose-headers"
MAX_AGE = b"access-control-max-age"
VARY = b"vary"

ANSWER_NAMES = (ALLOW_ORIGIN, ALLOW_CREDENTIALS, ALLOW_METHODS, ALLOW_HEADERS, EXPOSE_HEADERS, MAX_AGE)
NAMES = (*ANSWER_NAMES, VARY)

_TOKENS = re.compile(rf"{TOKEN_PATTERN}(?:[ \t]*,[ \t]*{TOKEN_PATTERN})*".encode())
_PREFLIGHT_VARY = b"origin, access-control-request-method, access-control-request-headers"

Lines = tuple[tuple[bytes, bytes], ...]


class CrossOrigin:
    """The rules of one route."""

    def __init__(self, cors: Cors) -> None:
        self._any = ANY_ORIGIN in cors.origins
        self._origins = frozenset(origin.encode("ascii") for origin in cors.origins)
        self._credentials: Lines = ((ALLOW_CREDENTIALS, b"true"),) if cors.credentials else ()
        self._exposed: Lines = _listed(EXPOSE_HEADERS, cors.exposed_headers)
        self._preflight: Lines = (
            *_listed(ALLOW_METHODS, cors.methods),
            *_listed(ALLOW_HEADERS, cors.headers),
            (MAX_AGE, b"%d" % cors.max_age_seconds),
            (VARY, _PREFLIGHT_VARY),
            (b"content-type", b"text/plain"),
        )

    def apply(self, exchange: ExchangeView, head: ResponseHead) -> None:
        """Replace the answer's rules by those of this route, and mark it as dependent on the origin if it is."""
        allowed = self._allowed(exchange)
        head.replace(ANSWER_NAMES, () if allowed is None else (*allowed, *self._exposed))
        if not self._any and not {b"*", b"origin"} & _members(head.get_all(VARY)):
            head.add(VARY, b"origin")

    async def answer_preflight(self, exchange: ExchangeView) -> Verdict:
        """Answer the preflight of an allowed origin; let all other requests pass.

        Browsers send preflights without credentials, so the answer must not depend on any, and contains only rules.
        """
        if exchange.method != "OPTIONS":
            return ALLOW
        methods = exchange.headers.get_all(b"access-control-request-method")
        names = exchange.headers.get_all(b"access-control-request-headers")
        if len(methods) != 1 or len(names) > 1 or not all(map(_TOKENS.fullmatch, (*methods, *filter(None, names)))):
            return ALLOW
        if not exchange.headers.get_all(b"origin") or (allowed := self._allowed(exchange)) is None:
            return ALLOW
        return Challenge(
            200, "preflight", (*allowed, *self._preflight), body=b"\n", reason="a preflight of an allowed origin"
        )

    def _allowed(self, exchange: ExchangeView) -> Lines | None:
        """Return the lines by which the request's origin is allowed; None if it is not, or if there is none."""
        if self._any:
            return ((ALLOW_ORIGIN, b"*"),)
        origins = exchange.headers.get_all(b"origin")
        if len(origins) != 1 or origins[0] not in self._origins:
            return None
        return ((ALLOW_ORIGIN, origins[0]), *self._credentials)


def _listed(name: bytes, values: tuple[str, ...]) -> Lines:
    return ((name, ", ".join(values).encode("ascii")),) if values else ()


def _members(values: list[bytes]) -> set[bytes]:
    return {part.strip(b" \t").lower() for value in values for part in value.split(b",")}
