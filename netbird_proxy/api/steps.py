"""Steps, which hooks return and which run on each exchange, and the settings they are built from.

Hooks build, steps run. A step knows its settings from the moment it is built; a request never meets a wrong one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from netbird_proxy.api.exchange import ExchangeView
from netbird_proxy.api.model import Challenge, Deny, ExchangeId, Identity, Kind, Offer, Verdict
from netbird_proxy.api.outgoing_head import OutgoingHead
from netbird_wire.proxy_service_pb2 import PathMapping, ProxyMapping

HTTP_KINDS: frozenset[Kind] = frozenset(("http", "websocket"))


class MappingSettings(Protocol):
    """A model of what a mapping says to one plugin. Frozen; made once, when the mapping is applied."""

    @classmethod
    def from_wire(cls, mapping: ProxyMapping) -> Self:
        """Read it. Raises ValueError with a sentence for management where a value cannot be used."""


class TargetSettings(Protocol):
    """The same for one target (`path` entry) of a mapping."""

    @classmethod
    def from_wire(cls, mapping: ProxyMapping, path: PathMapping) -> Self: ...


@dataclass(frozen=True, slots=True)
class Guard:
    """May this exchange go on? Runs in `restrict` or `authorize`; whatever is not ALLOW ends the exchange.

    Attributes:
        check: awaited in the exchange's task; may be cancelled at any await and must let that through.
        kinds: what it can judge; it is left out on routes of other kinds.
        body_bytes: buffer up to so many bytes of the request body before it runs; 0 buffers nothing.
        observe: record the verdict, enforce nothing. Refused behind a guarding claim.
        depends_on: everything besides the exchange that the verdict depends on, comparable by `==`. Routes of one host
            whose steps depend on equal values are guarded alike; without it only the same `check` is. Where routes
            differ, a path that can be read in more than one way is refused (`ambiguous_path`).
        again: whether the proxy asks it again about an exchange that is open, after a change and once in an interval
            (`exchange.revalidating` is true then), and cuts the exchange unless it says ALLOW. A guard that counts
            requests, or judges only how one begins, declares False.
    """

    check: Callable[[ExchangeView], Awaitable[Verdict]]
    kinds: frozenset[Kind] = HTTP_KINDS
    body_bytes: int = 0
    observe: bool = False
    depends_on: object = None
    again: bool = True


Phase = Literal["exclusive", "credential", "ambient", "prompt"]

PHASES: tuple[Phase, ...] = ("exclusive", "credential", "ambient", "prompt")


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Who is calling? None passes the question on; anything else answers it, but for offers.

    Attributes:
        phase: when it is asked, see PHASES; inside a phase the operator's order holds.
        identify: in phase `prompt` it may also offer ways to log in. Those of all plugins become one 401 page, unless a
            later one answers.
        depends_on: see `Guard`.
    """

    phase: Phase
    identify: Callable[[ExchangeView], Awaitable[Identity | Deny | Challenge | Offer | tuple[Offer, ...] | None]]
    kinds: frozenset[Kind] = HTTP_KINDS
    body_bytes: int = 0
    depends_on: object = None


@dataclass(frozen=True, slots=True)
class RequestTransform:
    """Changes the outgoing head.

    Attributes:
        apply: sync; what it raises ends the exchange with 503 before anything is dialed.
        owns: header names that on this route nobody else may set. They leave the client's head, its trailers and
            `Connection` before any step runs.
        depends_on: see `Guard`.
    """

    apply: Callable[[ExchangeView, OutgoingHead], None]
    owns: tuple[bytes, ...] = ()
    depends_on: object = None


Observer = Callable[[ExchangeView], None]
"""Called once for each exchange, last, whatever became of it. Sync and short; a failure is logged."""


@dataclass(frozen=True, slots=True)
class Page:
    """What an answer of the proxy's own has to say.

    Attributes:
        sentence: fixed by the code, and harmless: nothing about plugins, addresses, causes or groups.
        own_path: of the request, so that a page may say "try again"; without its query.
        offers: ways to log in, on a 401.
        retry: whether asking again may help.
        by: the plugin whose refusal it is, so that a page may know its own; for no reader's eyes.
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


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page as it is sent. `headers` come on top of the core's own, which say its type, length and `no-store`."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"text/html; charset=utf-8"


Pages = Callable[[Page], Rendered]
"""Makes the page that a browser gets. Sync and short; where it fails, the browser gets plain text."""


__all__ = [
    "Authenticator",
    "Guard",
    "MappingSettings",
    "Observer",
    "Page",
    "Pages",
    "Rendered",
    "RequestTransform",
    "TargetSettings",
]
