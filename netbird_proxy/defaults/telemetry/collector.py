"""The way of spans to the collector. Only a proxy with a collector imports this: OpenTelemetry's SDK is a tenth of a
start."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

log = structlog.get_logger("netbird_proxy.telemetry")

CLOSE_TIMEOUT = 3.0
EXPORT_TIMEOUT = 10.0
QUEUE = 8192
"""Spans that wait for the collector, those it is being sent included; more are dropped and counted."""


@asynccontextmanager
async def collecting(endpoint: str, interval: float, lost: Callable[[], None]) -> AsyncIterator[SpanQueue]:
    """Send spans while the context is open; at its end, send the rest for at most CLOSE_TIMEOUT seconds.

    Args:
        endpoint: the collector, `http://host:port` or `https://host:port`.
        interval: seconds for which spans are gathered.
        lost: called for each span that is dropped.
    """
    exporter = Counted(
        OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_TIMEOUT)
    )
    processor = BatchSpanProcessor(exporter, max_queue_size=QUEUE, schedule_delay_millis=interval * 1000)
    try:
        yield SpanQueue(processor, exporter, lost)
    finally:
        if not await _shut(processor):
            exporter.shutdown()  # else its thread goes on trying
            log.warning("telemetry.spans_lost", reason="the collector did not take them when the process ended")


class Counted(SpanExporter):
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


class SpanQueue:
    """Spans on their way to the collector. The processor drops what is too much without saying how much: we do."""

    def __init__(self, processor: BatchSpanProcessor, exporter: Counted, lost: Callable[[], None]) -> None:
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
