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
"""Others are `_OTHER`: names out of clients must not become span names without number."""
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
            client_span: the id that the upstream was told is its parent.
        """
        trace = int(exchange.id, 16)
        server = SpanContext(trace, new_span_id(), is_remote=False, trace_flags=_SAMPLED)
        method = exchange.method if exchange.method in METHODS else "_OTHER"
        name = _name(exchange, method)
        epoch_ns = int(exchange.started_at * 1e9) - exchange.started_ns  # adds up to wall-clock time
        for number, one in enumerate(exchange.tries):
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
                attributes=_client_attributes(one, number, method),
                events=_client_events(one, epoch_ns),
                status=_ERROR if one.error or one.status >= 400 else _UNSET,
                start_time=epoch_ns + one.started_ns,
                end_time=epoch_ns + (one.ended_ns or exchange.ended_ns),
            )
        error = exchange.error
        failed = exchange.status >= 500 or (
            error is not None and error.side != "downstream"
        )  # theirs is not our failure
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
    """`GET app.example/prefix`; the method alone where there is no route, because hosts out of clients are endless."""
    verb = "HTTP" if method == "_OTHER" else method
    route = exchange.route
    return f"{verb} {route.host}{route.prefix.decode('latin-1')}" if route is not None else verb


def _server_attributes(exchange: ExchangeView, method: str) -> Attributes:
    route, origin, who = exchange.route, exchange.origin, exchange.identity
    found: Attributes = {
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
        found["http.request.method_original"] = exchange.method
    if exchange.status:
        found["http.response.status_code"] = exchange.status
    if route is not None:
        found["http.route"] = route.prefix.decode("latin-1")
        found["netbird.service"] = route.service
        found["netbird.account"] = route.account
    if origin is not None:
        found["network.peer.address"] = origin.peer.host
        found["network.peer.port"] = origin.peer.port
        found["netbird.listener"] = origin.listener
    if who is not None:
        found["netbird.auth.method"] = who.method
        found["netbird.auth.by"] = who.by
    if exchange.denial is not None:
        found["netbird.denial"] = exchange.denial.code
    if exchange.error is not None:
        found["error.type"] = exchange.error.code
    elif exchange.status >= 500:
        found["error.type"] = str(exchange.status)
    if (agent := exchange.headers.get(b"user-agent")) is not None:
        found["user_agent.original"] = agent[:LONGEST_AGENT].decode("latin-1")
    return found


def _client_attributes(one: Try, number: int, method: str) -> Attributes:
    address = one.upstream.address
    found: Attributes = {
        "http.request.method": method,
        "url.scheme": one.upstream.scheme,
        "server.address": address.host,
        "server.port": address.port,
        "netbird.connection.reused": one.reused,
    }
    if number:
        found["http.request.resend_count"] = number
    if one.status:
        found["http.response.status_code"] = one.status
    if one.error or one.status >= 400:
        found["error.type"] = one.error or str(one.status)
    return found


def _client_events(one: Try, epoch_ns: int) -> list[Event]:
    points = (("connected", one.connected_ns), ("response head", one.head_ns))
    return [Event(name, timestamp=epoch_ns + at) for name, at in points if at]


def _trail(exchange: ExchangeView, at: int) -> list[Event]:
    """What was decided, in order. Its reasons stay in the log and with `explain`: a failed step's are not ours."""
    return [
        Event(
            f"{entry.stage} {entry.plugin}: {entry.verdict}",
            {"stage": entry.stage, "plugin": entry.plugin, "verdict": entry.verdict},
            timestamp=at,
        )
        for entry in exchange.trail
    ]
