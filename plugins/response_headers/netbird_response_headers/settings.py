"""Settings of response headers, shared by both halves of the plugin."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from netbird_wire.plugin_settings import read_settings, write_settings
from netbird_wire.proxy_service_pb2 import ProxyMapping

PLUGIN = "response_headers"
FIELD = f"plugin_settings.{PLUGIN}"
"""The claimed settings. On the proxy they guard nothing, because they change answers and refuse no request."""

YEAR = 31_536_000
"""Seconds."""
ANY_ORIGIN = "*"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_VALUE = re.compile(r"[\t -~]*")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_ORIGIN = re.compile(rf"https?://(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_FOLDED = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ_.", "abcdefghijklmnopqrstuvwxyz--")

_THE_CORES = "the proxy itself decides it"
_REFUSED = {
    **dict.fromkeys(
        (
            "connection",
            "content-encoding",
            "content-length",
            "content-range",
            "date",
            "expect",
            "host",
            "http2-settings",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ),
        _THE_CORES,
    ),
    "content-security-policy": "use content_security_policy",
    "content-security-policy-report-only": "use content_security_policy_report_only",
    "server": "use server",
    "set-cookie": "upstreams and plugins set cookies",
    "strict-transport-security": "use hsts",
    "vary": "it depends on the answer",
}
_REFUSED_PREFIXES = {
    "access-control-": "use cors",
    "proxy-": _THE_CORES,
    "sec-websocket-": _THE_CORES,
    "x-netbird-": _THE_CORES,
}


def folded(name: str) -> str:
    """Return the spelling that all aliases of a header name share, as the proxy folds it."""
    return name.translate(_FOLDED)


def _name(text: str) -> str:
    """Accept the name of a header that has no setting of its own, and that the proxy lets plugins change."""
    if not _TOKEN.fullmatch(text):
        raise ValueError("it is not the name of a header")
    name = folded(text)
    reason = _REFUSED.get(name) or next((why for start, why in _REFUSED_PREFIXES.items() if name.startswith(start)), "")
    if reason:
        raise ValueError(f"{text} cannot be set or removed here: {reason}")
    return text


def _value(text: str) -> str:
    if len(text) > 8192 or not _VALUE.fullmatch(text):
        raise ValueError("it is not a header value of at most 8192 printable ASCII characters")
    return text


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("it is not a name as HTTP defines it")
    return text


def _origin(text: str) -> str:
    if text != ANY_ORIGIN and (len(text) > 300 or not _ORIGIN.fullmatch(text)):
        raise ValueError("it is neither * nor an origin in lower case, such as https://app.example.com")
    return text


Value = Annotated[str, AfterValidator(_value)]
Tokens = Annotated[tuple[Annotated[str, AfterValidator(_token)], ...], Field(max_length=64)]
Flag = Annotated[bool, Field(strict=True)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hsts(_Settings):
    """`Strict-Transport-Security`, which the plugin sends over TLS only.

    Attributes:
        max_age_seconds: time for which browsers use HTTPS for the host; 0 makes them forget it.
        include_subdomains: the rule applies to all names below the host too.
        preload: consent to the browsers' built-in lists, which require `include_subdomains` and a year.
    """

    max_age_seconds: Annotated[int, Field(strict=True, ge=0, le=10 * YEAR)]
    include_subdomains: Flag = False
    preload: Flag = False

    @model_validator(mode="after")
    def _can_be_listed(self) -> Self:
        if self.preload and not (self.include_subdomains and self.max_age_seconds >= YEAR):
            raise ValueError(f"preload requires include_subdomains, and max_age_seconds of at least {YEAR}")
        return self


class Cors(_Settings):
    """Sites whose scripts may call the service and read its answers. The upstream's own rules are replaced.

    Attributes:
        origins: origins that are allowed, such as `https://app.example.com`, or only `*` for all.
        methods: methods that scripts may use.
        headers: request headers that scripts may set, beside those that need no permission.
        exposed_headers: response headers that scripts may read, beside those that need no permission.
        credentials: scripts may send cookies. Not with the origin `*`.
        max_age_seconds: time for which browsers may keep the answer to a preflight.
    """

    origins: Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], Field(min_length=1, max_length=64)]
    methods: Annotated[Tokens, Field(min_length=1)] = ("GET", "HEAD", "POST")
    headers: Tokens = ()
    exposed_headers: Tokens = ()
    credentials: Flag = False
    max_age_seconds: Annotated[int, Field(strict=True, ge=0, le=86_400)] = 600

    @model_validator(mode="after")
    def _names_its_origins(self) -> Self:
        if ANY_ORIGIN in self.origins and len(self.origins) > 1:
            raise ValueError("the origin * includes all others: list it alone")
        if ANY_ORIGIN in self.origins and self.credentials:
            raise ValueError("credentials cannot be combined with the origin *: list the origins")
        return self


class ResponseHeadersSettings(_Settings):
    """Response headers of one service. What is set here replaces the proxy's own setting of the same name.

    Attributes:
        hsts: `Strict-Transport-Security` over TLS; without it, the upstream's passes.
        server: value of `Server`; an empty text removes it; without it, the upstream's passes.
        content_security_policy: value of `Content-Security-Policy`; an empty text removes it.
        content_security_policy_report_only: value of `Content-Security-Policy-Report-Only`; an empty text removes it.
        fixed: values of further headers by name, in place of the upstream's.
        remove: names of headers of the upstream that clients do not receive.
        cors: rules for scripts of other sites; preflights are answered by the proxy, before any login.
    """

    hsts: Hsts | None = None
    server: Value | None = None
    content_security_policy: Value | None = None
    content_security_policy_report_only: Value | None = None
    fixed: Annotated[dict[Annotated[str, AfterValidator(_name)], Value], Field(max_length=64)] = {}
    remove: Annotated[tuple[Annotated[str, AfterValidator(_name)], ...], Field(max_length=64)] = ()
    cors: Cors | None = None

    @model_validator(mode="after")
    def _names_each_header_once(self) -> Self:
        if name := _repeated((*self.fixed, *self.remove)):
            raise ValueError(f"the header {name} is named more than once in fixed and remove")
        return self

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        return cls.model_validate(read_settings(mapping, PLUGIN))

    def to_wire(self, mapping: ProxyMapping) -> None:
        write_settings(mapping, PLUGIN, self.model_dump(exclude_unset=True, mode="json"))


def _repeated(names: Iterable[str]) -> str:
    """Return the first name that is an alias of an earlier one; empty if there is none."""
    seen: set[str] = set()
    for name in names:
        if folded(name) in seen:
            return name
        seen.add(folded(name))
    return ""
