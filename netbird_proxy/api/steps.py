"""Steps, which hooks return and which run on each exchange, and the settings that they are built from.

Hooks build, steps run. Settings are validated when a step is built, so a step never meets wrong ones at a request.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from netbird_proxy.api.errors import ProxyError
from netbird_proxy.api.exchange import ExchangeView
from netbird_proxy.api.model import Challenge, Deny, ExchangeId, Identity, Kind, Offer, Upstream, Verdict
from netbird_proxy.api.outgoing_head import OutgoingHead
from netbird_proxy.api.response_head import ResponseHead
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

HTTP_KINDS: frozenset[Kind] = frozenset(("http", "websocket"))


class MappingSettings(Protocol):
    """A plugin's settings in a mapping. Frozen; made once, when the mapping is applied."""

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        """Read the settings. ValueError, with a sentence for management, for a value that cannot be used."""


class TargetSettings(Protocol):
    """A plugin's settings for one target (`path` entry) of a mapping."""

    @classmethod
    def from_wire(cls, mapping: ProxyMapping, path: PathMapping) -> Self: ...


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides whether an exchange may go on, in `restrict` or `authorize`; any verdict but ALLOW ends the exchange.

    Attributes:
        check: awaited in the exchange's task; may be cancelled at any await, and must not swallow the cancellation.
        kinds: kinds of exchange that it can judge; it does not run for others.
        body_bytes: maximum number of bytes of the request body to buffer before it runs; 0 buffers nothing.
        observe: record the verdict without enforcing it. A route is refused if the plugin claims to guard it.
        depends_on: everything besides the exchange that the verdict depends on, comparable by `==`. Two routes of a
            host are guarded alike if their steps depend on equal values, or have the same `check`. If routes of a host
            are guarded differently, a path that can be read in more than one way is refused (`ambiguous_path`).
        again: run it again for open exchanges, after a change and once in an interval (`exchange.revalidating` is then
            true), and cut the exchange unless it returns ALLOW. False for a guard that counts requests, or that
            judges only the beginning of a request.
        credentials: names of headers whose values this plugin checks, such as an API key. On this route the guards,
            authenticators and endpoints of this plugin see these headers; those of other plugins, transforms, observers
            and upstreams do not.
    """

    check: Callable[[ExchangeView], Awaitable[Verdict]]
    kinds: frozenset[Kind] = HTTP_KINDS
    body_bytes: int = 0
    observe: bool = False
    depends_on: object = None
    again: bool = True
    credentials: tuple[bytes, ...] = ()


Phase = Literal["exclusive", "credential", "ambient", "prompt"]

PHASES: tuple[Phase, ...] = ("exclusive", "credential", "ambient", "prompt")


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Identifies the caller. The first Identity, Deny or Challenge ends the stage; None leaves it to the next one.

    Attributes:
        phase: position in the order of PHASES; inside a phase the operator's order applies.
        identify: in phase `prompt` it may also return offers of logins. The offers of all plugins become one 401 page,
            unless a later authenticator decides.
        depends_on, credentials: see `Guard`.
    """

    phase: Phase
    identify: Callable[[ExchangeView], Awaitable[Identity | Deny | Challenge | Offer | tuple[Offer, ...] | None]]
    kinds: frozenset[Kind] = HTTP_KINDS
    body_bytes: int = 0
    depends_on: object = None
    credentials: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestTransform:
    """Changes the outgoing head.

    Attributes:
        apply: sync; an exception ends the exchange with 503 before anything is dialed.
        owns: header names that only this plugin may set on this route. They are removed from the client's head, its
            trailers and `Connection` before any step runs.
        depends_on: see `Guard`.
    """

    apply: Callable[[ExchangeView, OutgoingHead], None]
    owns: tuple[bytes, ...] = ()
    depends_on: object = None


@dataclass(frozen=True, slots=True)
class ResponseTransform:
    """Changes the response head that the client gets.

    It runs once for each final head of an upstream, 101, 304 and answers to HEAD included. It does not run for
    informational heads (100 to 199, but not 101) or for trailers; these lose the names that it owns.

    Attributes:
        apply: sync and short; if it fails or takes too long, the client gets 503 in place of the upstream's answer.
        owns: header names that only this plugin may set, add and delete on this route. A line of the upstream stays
            unless the transform sets or deletes its name.
        own_answers: run also for answers of the proxy itself (refusals, logins, errors) and of plugins' endpoints on
            this host. These keep their lines, see `ResponseHead`; if the transform fails, they are sent unchanged.
        depends_on: see `Guard`.
    """

    apply: Callable[[ExchangeView, ResponseHead], None]
    owns: tuple[bytes, ...] = ()
    own_answers: bool = False
    depends_on: object = None


@dataclass(frozen=True, slots=True)
class Selector:
    """Selects the upstream of each try, on a route with several upstreams. Its functions are sync and short.

    Attributes:
        pick: called with the exchange, the candidates and the upstreams that this exchange has tried before. Returns
            one of the candidates itself, not an equal object. Candidates are the route's upstreams in their order,
            without those tried; there is always one. The exchange shows the plugin's own cookies. If it fails, takes
            too long or returns anything else, the exchange ends with 503 and nothing more is dialed.
        outcome: called once for each upstream that was picked, when its try has ended, also for the last one. `error`
            is None after a complete answer, an UpstreamError if the upstream failed, and another error if the try
            ended without a fault of the upstream, for example because the client left. If it fails, that is logged,
            and the exchange is not affected.
    """

    pick: Callable[[ExchangeView, Sequence[Upstream], Sequence[Upstream]], Upstream]
    outcome: Callable[[Upstream, ProxyError | None], None] | None = None


Observer = Callable[[ExchangeView], None]
"""Called once for each exchange, last, whatever its outcome. Sync and short; a failure is logged."""


@dataclass(frozen=True, slots=True)
class Page:
    """The contents of an answer that the proxy itself gives.

    Attributes:
        sentence: fixed for each code; reveals nothing about plugins, addresses, causes or groups.
        own_path: the request's path without its query, for a "try again" link.
        offers: ways to log in, on a 401.
        retry: true if another try may succeed.
        by: the plugin that refused, so that its page maker can recognize its own refusals; never shown.
    """

    status: int
    code: str
    sentence: str
    exchange: ExchangeId
    host: str
    own_path: str
    offers: tuple[Offer, ...] = ()
    retry: bool = False
    by: str = ""

    def for_program(self, accept: bytes) -> Rendered:
        """The page for a client that wants no HTML: JSON if its `Accept` field names it, else plain text."""
        if b"json" in accept.lower():
            answer: dict[str, object] = {"code": self.code, "message": self.sentence, "exchange": self.exchange}
            if self.offers:
                answer["methods"] = {offer.method: offer.action for offer in self.offers}
            return Rendered(json.dumps(answer).encode() + b"\n", content_type=b"application/json")
        text = f"{self.sentence}\n\ncode: {self.code}\nexchange: {self.exchange}\n"
        return Rendered(text.encode(), content_type=b"text/plain; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page ready to send. `headers` are added to the core's own: type, length and `no-store`."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"text/html; charset=utf-8"


Pages = Callable[[Page], Rendered]
"""Makes the page for a browser. Sync and short; if it fails, the browser gets plain text."""


__all__ = [
    "Authenticator",
    "Guard",
    "MappingSettings",
    "Observer",
    "Page",
    "Pages",
    "Rendered",
    "RequestTransform",
    "ResponseTransform",
    "Selector",
    "TargetSettings",
]
