"""An exchange that is over, as spans. OpenTelemetry's names for HTTP; never a query, a header value but the user agent,
or a failure's own words."""

from __future__ import annotations

from collections.abc import Iterator
from random import getrandbits

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from netbird_proxy import ExchangeView, Try

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT"})
"""Other methods are `_OTHER`: clients must not create an unlimited number of span names."""
LONGEST_AGENT = 256
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_ERROR = Status(StatusCode.ERROR)
_UNSET = Status(StatusCode.UNSET)

Attributes = dict[str, str | bool | int | float]


def new_span_id() -> int:
    """64 random bits, not all of them zero."""
    return getrandbits(64) or 1


class SpanMaker:
    """Makes the spans of one route's exchanges."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        self._resource = resource
        self._scope = scope

    def spans(self, exchange: ExchangeView, client_span: int) -> Iterator[ReadableSpan]:
        """The CLIENT spans in order, then the SERVER span.

        Args:
            client_span: the id that was sent to the upstream as its parent.
        """
        trace = int(exchange.id, 16)
        server = SpanContext(trace, new_span_id(), is_remote=False, trace_flags=_SAMPLED)
        method = exchange.method if exchange.method in METHODS else "_OTHER"
        name = _name(exchange, method)
        epoch_ns = int(exchange.started_at * 1e9) - exchange.started_ns  # adds up to wall-clock time
        for number, attempt in enumerate(exchange.tries):
            last = number == len(exchange.tries) - 1
            yield ReadableSpan(
                name,
                context=SpanContext(
                    trace, client_span if last else new_span_id(), is_remote=False, trace_flags=_SAMPLED
                ),
                parent=server,
                resource=self._resource,
                instrumentation_scope=self._scope,
                kind=SpanKind.CLIENT,
                attributes=_client_attributes(attempt, number, method),
                events=_client_events(attempt, epoch_ns),
                status=_ERROR if attempt.error or attempt.status >= 400 else _UNSET,
                start_time=epoch_ns + attempt.started_ns,
                end_time=epoch_ns + (attempt.ended_ns or exchange.ended_ns),
            )
        error = exchange.error
        failed = exchange.status >= 500 or (
            error is not None and error.side != "downstream"
        )  # a client's failure is not the proxy's
        yield ReadableSpan(
            name,
            context=server,
            resource=self._resource,
            instrumentation_scope=self._scope,
            kind=SpanKind.SERVER,
            attributes=_server_attributes(exchange, method),
            events=_trail(exchange, epoch_ns + exchange.started_ns),
            status=_ERROR if failed else _UNSET,
            start_time=epoch_ns + exchange.started_ns,
            end_time=epoch_ns + exchange.ended_ns,
        )


def _name(exchange: ExchangeView, method: str) -> str:
    """`GET app.example/prefix`; the method alone without a route, because clients can send any host."""
    verb = "HTTP" if method == "_OTHER" else method
    route = exchange.route
    return f"{verb} {route.host}{route.prefix.decode('latin-1')}" if route is not None else verb


def _server_attributes(exchange: ExchangeView, method: str) -> Attributes:
    route, origin, who = exchange.route, exchange.origin, exchange.identity
    attributes: Attributes = {
        "http.request.method": method,
        "url.scheme": exchange.scheme,
        "url.path": exchange.raw_path.decode("latin-1"),
        "server.address": exchange.host,
        "network.protocol.version": exchange.http_version,
        "client.address": exchange.client_address,
        "http.request.body.size": exchange.bytes_received,
        "http.response.body.size": exchange.bytes_sent,
    }
    if method == "_OTHER":
        attributes["http.request.method_original"] = exchange.method
    if exchange.status:
        attributes["http.response.status_code"] = exchange.status
    if route is not None:
        attributes["http.route"] = route.prefix.decode("latin-1")
        attributes["netbird.service"] = route.service
        attributes["netbird.account"] = route.account
    if origin is not None:
        attributes["network.peer.address"] = origin.peer.host
        attributes["network.peer.port"] = origin.peer.port
        attributes["netbird.listener"] = origin.listener
    if who is not None:
        attributes["netbird.auth.method"] = who.method
        attributes["netbird.auth.by"] = who.by
    if exchange.denial is not None:
        attributes["netbird.denial"] = exchange.denial.code
    if exchange.error is not None:
        attributes["error.type"] = exchange.error.code
    elif exchange.status >= 500:
        attributes["error.type"] = str(exchange.status)
    if (agent := exchange.headers.get(b"user-agent")) is not None:
        attributes["user_agent.original"] = agent[:LONGEST_AGENT].decode("latin-1")
    return attributes


def _client_attributes(attempt: Try, number: int, method: str) -> Attributes:
    address = attempt.upstream.address
    attributes: Attributes = {
        "http.request.method": method,
        "url.scheme": attempt.upstream.scheme,
        "server.address": address.host,
        "server.port": address.port,
        "netbird.connection.reused": attempt.reused,
    }
    if number:
        attributes["http.request.resend_count"] = number
    if attempt.status:
        attributes["http.response.status_code"] = attempt.status
    if attempt.error or attempt.status >= 400:
        attributes["error.type"] = attempt.error or str(attempt.status)
    return attributes


def _client_events(attempt: Try, epoch_ns: int) -> list[Event]:
    points = (("connected", attempt.connected_ns), ("response head", attempt.head_ns))
    return [Event(name, timestamp=epoch_ns + at) for name, at in points if at]


def _trail(exchange: ExchangeView, at: int) -> list[Event]:
    """Return the decisions of the steps as events, without reasons, in which a failed step may put anything."""
    return [
        Event(
            f"{entry.stage} {entry.plugin}: {entry.verdict}",
            {"stage": entry.stage, "plugin": entry.plugin, "verdict": entry.verdict},
            timestamp=at,
        )
        for entry in exchange.trail
    ]
