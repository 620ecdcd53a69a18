"""Telemetry's hooks: trace context for the upstream, spans for the collector."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netbird_proxy import (
    ExchangeView,
    Observer,
    OutgoingHead,
    PluginInfo,
    Proxy,
    RequestTransform,
    RouteSpec,
    hookimpl,
)

if TYPE_CHECKING:
    from netbird_proxy.defaults.telemetry.collector import SpanQueue

NOTE = "telemetry.client_span"
TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"


class TelemetryOptions(BaseModel):
    """`[telemetry]` in the settings file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    otlp_endpoint: str = ""
    """The collector: `http://host:4317` or `https://host:4317` (OTLP over gRPC). If empty, no traces are made,
    and trace headers pass unchanged."""
    sample: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Fraction of the exchanges that are traced, from 0 to 1."""
    service_name: Annotated[str, Field(min_length=1)] = "netbird-proxy"
    """The attribute `service.name` of every span."""
    interval: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Maximum time, in seconds, that spans are gathered; then they are sent together."""

    @model_validator(mode="after")
    def _known_scheme(self) -> Self:
        if self.otlp_endpoint and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise ValueError("otlp_endpoint: expected http://host:port or https://host:port")
        return self


class Telemetry:
    """Spans for the operator's collector."""

    def __init__(self) -> None:
        self._queue: SpanQueue | None = None

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            summary="OpenTelemetry traces, where a collector is set", options=TelemetryOptions, notes=(NOTE,)
        )

    @hookimpl
    def lifespan(self, proxy: Proxy) -> AbstractAsyncContextManager[None] | None:
        options = proxy.options(TelemetryOptions)
        return self._running(options, proxy) if options.otlp_endpoint else None

    @asynccontextmanager
    async def _running(self, options: TelemetryOptions, proxy: Proxy) -> AsyncIterator[None]:
        # Most of OpenTelemetry is imported here and below, because a proxy without a collector needs none of it.
        from netbird_proxy.defaults.telemetry.collector import collecting

        def lost() -> None:
            proxy.count("telemetry_spans_lost")

        async with collecting(options.otlp_endpoint, options.interval, lost) as self._queue:
            try:
                yield
            finally:
                self._queue = None

    @hookimpl
    def transform_request(self, proxy: Proxy) -> RequestTransform | None:
        options = proxy.options(TelemetryOptions)
        if not options.otlp_endpoint:
            return None
        from netbird_proxy.defaults.telemetry.spans import new_span_id

        bound = _bound(options.sample)

        def inject(exchange: ExchangeView, outgoing: OutgoingHead) -> None:
            span, sampled = new_span_id(), _sampled(exchange, bound)
            if sampled:
                exchange.note(NOTE, span)
            outgoing.set(TRACEPARENT, b"00-%s-%016x-%02x" % (exchange.id.encode(), span, sampled))
            outgoing.delete(TRACESTATE)  # it belongs to the trace that the client said it was in

        return RequestTransform(inject, owns=(TRACEPARENT, TRACESTATE), depends_on=bound)

    @hookimpl
    def observe(self, route: RouteSpec | None, proxy: Proxy) -> Observer | None:
        options = proxy.options(TelemetryOptions)
        if not options.otlp_endpoint:
            return None
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        from netbird_proxy.defaults.telemetry.spans import SpanMaker, new_span_id

        bound = _bound(options.sample)
        resource = Resource.create(
            {
                "service.name": options.service_name,
                "service.version": proxy.version,
                "service.instance.id": proxy.id,
            }
        )
        maker = SpanMaker(resource, InstrumentationScope("netbird_proxy", proxy.version))

        def record(exchange: ExchangeView) -> None:
            queue = self._queue
            if queue is None or not _sampled(exchange, bound):
                return
            span = exchange.notes.get(NOTE)
            for made in maker.spans(exchange, span if isinstance(span, int) else new_span_id()):
                queue.put(made)

        return record


def _bound(sample: float) -> int:
    """As OpenTelemetry's own ratio sampler has it, so that others who sample by the trace id choose the same traces."""
    return round(sample * 2**64)


def _sampled(exchange: ExchangeView, bound: int) -> bool:
    return int(exchange.id[16:], 16) < bound
