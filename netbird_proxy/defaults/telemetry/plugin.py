"""Telemetry's hooks: trace context for the upstream, spans for the collector."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Annotated, Self

import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
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
from netbird_proxy.defaults.telemetry.spans import SpanMaker, new_span_id

log = structlog.get_logger("netbird_proxy.telemetry")

NOTE = "telemetry.client_span"
TRACEPARENT, TRACESTATE = b"traceparent", b"tracestate"
CLOSE_TIMEOUT = 3.0
EXPORT_TIMEOUT = 10.0
QUEUE = 8192
"""Spans that wait for the collector, those it is being sent included; more are dropped and counted."""


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
        self._line: _Line | None = None

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
        # A tenth of a start is its import, which those without a collector need not wait for.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = _Counted(
            OTLPSpanExporter(
                endpoint=options.otlp_endpoint,
                insecure=options.otlp_endpoint.startswith("http://"),
                timeout=EXPORT_TIMEOUT,
            )
        )
        processor = BatchSpanProcessor(exporter, max_queue_size=QUEUE, schedule_delay_millis=options.interval * 1000)
        self._line = _Line(processor, exporter, lambda: proxy.count("telemetry_spans_lost"))
        try:
            yield
        finally:
            self._line = None
            if not await _shut(processor):
                exporter.shutdown()  # else its thread goes on trying
                log.warning("telemetry.spans_lost", reason="the collector did not take them when the process ended")

    @hookimpl
    def transform_request(self, proxy: Proxy) -> RequestTransform | None:
        options = proxy.options(TelemetryOptions)
        if not options.otlp_endpoint:
            return None
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
            line = self._line
            if line is None or not _sampled(exchange, bound):
                return
            span = exchange.notes.get(NOTE)
            for made in maker.spans(exchange, span if isinstance(span, int) else new_span_id()):
                line.put(made)

        return record


class _Counted(SpanExporter):
    """An exporter that says how much it was given. Called by the processor's one thread."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._over = False
        self.taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            return self._exporter.export(spans)
        finally:
            self.taken += len(spans)

    def shutdown(self) -> None:
        if not self._over:
            self._over = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Line:
    """Spans on their way to the collector. The processor drops what is too much without saying how much: we do."""

    def __init__(self, processor: BatchSpanProcessor, exporter: _Counted, lost: Callable[[], None]) -> None:
        self._processor = processor
        self._exporter = exporter
        self._lost = lost
        self._given = 0  # the loop's alone, as `taken` is the thread's

    def put(self, span: ReadableSpan) -> None:
        if self._given - self._exporter.taken >= QUEUE:
            self._lost()
            return
        self._given += 1
        self._processor.on_end(span)


def _bound(sample: float) -> int:
    """As OpenTelemetry's own ratio sampler has it, so that others who sample by the trace id choose the same traces."""
    return round(sample * 2**64)


def _sampled(exchange: ExchangeView, bound: int) -> bool:
    return int(exchange.id[16:], 16) < bound


async def _shut(processor: BatchSpanProcessor) -> bool:
    """Send what is left. A daemon does it: a collector that is away must not hold up the process's end."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def shut() -> None:
        processor.shutdown()  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):  # the loop has ended by now
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=shut, name="telemetry shutdown", daemon=True).start()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await done.wait()
    except TimeoutError:
        return False
    return True
