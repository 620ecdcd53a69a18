"""Traces: what a collector gets over OTLP, and what an upstream is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import ValidationError

from netbird_proxy import Deny, Headers, Identity, OutgoingHead, TrailEntry, Try, UserId
from netbird_proxy.api.errors import ClientGone, DialRefused, UpstreamClosed
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.defaults.telemetry import TelemetryOptions
from netbird_proxy.routing.hooks import Hooks, load_hooks

WAIT = 20.0
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(TraceServiceServicer):
    """Takes spans."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[ExportTraceServiceRequest] = asyncio.Queue()
        self.endpoint = ""

    async def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        self.requests.put_nowait(request)
        return ExportTraceServiceResponse()

    async def spans(self, number: int) -> list[Span]:
        found: list[Span] = []
        async with asyncio.timeout(WAIT):
            while len(found) < number:
                for resource in (await self.requests.get()).resource_spans:
                    found += [span for scope in resource.scope_spans for span in scope.spans]
        return found


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    server, sink = grpc.aio.server(), Collector()
    add_TraceServiceServicer_to_server(sink, server)  # type: ignore[no-untyped-call]
    sink.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield sink
    await server.stop(None)


def hooks() -> Hooks:
    return load_hooks(defaults={"telemetry": DEFAULTS["telemetry"]})


def attributes(span: Span) -> dict[str, Any]:
    def value(of: Any) -> Any:
        return getattr(of, of.WhichOneof("value"))

    return {one.key: value(one.value) for one in span.attributes}


@asynccontextmanager
async def tracing(
    host: Callable[..., Any], endpoint: str, **options: Any
) -> AsyncIterator[tuple[Callable[[Any], None], Callable[[Any, OutgoingHead], None]]]:
    """Observe and transform of a running plugin; spans are sent at the latest when it is left."""
    made, proxy = hooks(), host(TelemetryOptions(otlp_endpoint=endpoint, interval=0.01, **options))
    async with made.running(proxy):
        ((_, observe),) = made.observe(None, proxy)
        ((_, transform),) = made.transform_request(None, proxy)  # type: ignore[arg-type]  # not about the route
        assert transform.owns == (b"traceparent", b"tracestate")

        yield observe, transform.apply


def outgoing(*headers: tuple[bytes, bytes]) -> OutgoingHead:
    owners = {b"traceparent": "telemetry", b"tracestate": "telemetry"}
    return OutgoingHead(b"GET", b"/", [*headers], owners, "telemetry")


def allowed(exchange: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    return exchange(*args, allowed_notes=hooks().notes, **fields)


async def test_an_exchange_is_a_server_span_and_a_client_span(collector: Collector, host: Any, exchange: Any) -> None:
    """The exchange's id is the trace, names and attributes are OpenTelemetry's, times are the exchange's own."""
    one = allowed(
        exchange,
        b"/a/b",
        query=b"password=1234",
        headers=Headers([(b"user-agent", b"curl/8"), (b"authorization", b"Bearer nbx_1")]),
        identity=Identity(UserId("alice"), "alice@example.com", method="tunnel", by="private_service"),
        trail=[TrailEntry("authorize", "private_service", "allow", "not for the collector", {"group": "g"})],
    )
    async with tracing(host, collector.endpoint) as (observe, _):
        observe(one)
        client, server = await collector.spans(2)

    assert (server.trace_id.hex(), server.parent_span_id, client.trace_id.hex()) == (TRACE, b"", TRACE)
    assert client.parent_span_id == server.span_id
    assert (server.kind, client.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
    assert server.name == client.name == "GET app.example/a"
    assert attributes(server) == {
        "http.request.method": "GET",
        "url.scheme": "https",
        "url.path": "/a/b",
        "server.address": "app.example",
        "network.protocol.version": "1.1",
        "client.address": "100.64.0.9",
        "network.peer.address": "100.64.0.9",
        "network.peer.port": 1,
        "http.request.body.size": 3,
        "http.response.body.size": 1234,
        "http.response.status_code": 200,
        "http.route": "/a",
        "user_agent.original": "curl/8",
        "netbird.service": "svc-1",
        "netbird.account": "acct-1",
        "netbird.listener": "tunnel acct-1",
        "netbird.auth.method": "tunnel",
        "netbird.auth.by": "private_service",
    }
    assert attributes(client) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "server.address": "100.64.0.7",
        "server.port": 8080,
        "http.response.status_code": 200,
        "netbird.connection.reused": False,
    }
    start = 1_700_000_000_500_000_000
    assert (server.start_time_unix_nano - start, server.end_time_unix_nano - start) == (0, 12_500_000)
    assert (client.start_time_unix_nano - start, client.end_time_unix_nano - start) == (1_000_000, 12_000_000)
    assert [(event.name, event.time_unix_nano - start) for event in client.events] == [
        ("connected", 2_000_000),
        ("response head", 11_000_000),
    ]
    (decided,) = server.events
    assert decided.name == "authorize private_service: allow"
    for told in (str(server), str(client)):
        for secret in ('1234"', "password", "nbx_1", "not for the collector", "alice@example.com"):
            assert secret not in told


async def test_the_upstream_is_told_the_client_span_and_no_one_elses(
    collector: Collector, host: Any, exchange: Any
) -> None:
    """What a client says about its trace is replaced, and the upstream's spans hang under our last try."""
    one = allowed(exchange, tries=[Try(exchange().tries[0].upstream, 2, ended_ns=3, error="dial_refused")] * 2)
    head = outgoing((b"traceparent", b"00-" + b"f" * 32 + b"-" + b"e" * 16 + b"-00"), (b"tracestate", b"their=s"))
    async with tracing(host, collector.endpoint) as (observe, apply):
        apply(one, head)
        observe(one)
        first, last, _ = await collector.spans(3)

    assert head.headers == ((b"traceparent", f"00-{TRACE}-{last.span_id.hex()}-01".encode()),)
    assert first.span_id != last.span_id
    assert attributes(last)["http.request.resend_count"] == 1
    assert "http.request.resend_count" not in attributes(first)


async def test_what_is_not_sampled_costs_no_span_and_says_so(collector: Collector, host: Any, exchange: Any) -> None:
    """The decision falls with the id: the upstream is told not to record, and nothing is sent."""
    one, head = allowed(exchange), outgoing()
    async with tracing(host, collector.endpoint, sample=0) as (observe, apply):
        apply(one, head)
        observe(one)

    assert re.fullmatch(rb"00-%s-[0-9a-f]{16}-00" % TRACE.encode(), head.get(b"traceparent") or b"")
    assert one.notes == {}
    assert collector.requests.empty()


@pytest.mark.parametrize(("sample", "spans"), [(0.5, 0), (0.6, 2)])
async def test_sampling_is_by_the_trace_id(
    collector: Collector, host: Any, exchange: Any, sample: float, spans: int
) -> None:
    """As OpenTelemetry's ratio sampler decides: this id's lower half lies at 0.517 of its range."""
    async with tracing(host, collector.endpoint, sample=sample) as (observe, _):
        observe(allowed(exchange))

    assert len(await collector.spans(spans)) == spans
    assert collector.requests.empty()


@pytest.mark.parametrize(
    ("fields", "kind", "failed"),
    [
        ({"status": 403, "denial": Deny(403, "not_in_group"), "tries": []}, None, False),
        ({"status": 502, "error": DialRefused("no")}, "dial_refused", True),
        ({"status": 200, "error": UpstreamClosed("half-way")}, "upstream_closed", True),
        ({"status": 200, "error": ClientGone("left")}, "client_gone", False),
        ({"status": 500}, "500", True),
    ],
)
async def test_what_failed_says_so(
    collector: Collector, host: Any, exchange: Any, fields: dict[str, Any], kind: str | None, failed: bool
) -> None:
    """A refusal and a client that left are no errors of ours; an upstream's failure is one, even after a 200."""
    async with tracing(host, collector.endpoint) as (observe, _):
        observe(allowed(exchange, **fields))
    server = (await collector.spans(1 + len(fields.get("tries", [0]))))[-1]

    assert attributes(server).get("error.type") == kind
    assert (server.status.code == Status.STATUS_CODE_ERROR) is failed
    if "denial" in fields:
        assert attributes(server)["netbird.denial"] == "not_in_group"


async def test_a_failed_try_is_an_error(collector: Collector, host: Any, exchange: Any) -> None:
    """The CLIENT span says which failure it was; one that never ended ends with its exchange."""
    async with tracing(host, collector.endpoint) as (observe, _):
        observe(allowed(exchange, tries=[Try(exchange().tries[0].upstream, 2_000_000, error="dial_timeout")]))
    client, server = await collector.spans(2)

    assert client.status.code == Status.STATUS_CODE_ERROR
    assert attributes(client)["error.type"] == "dial_timeout"
    assert client.end_time_unix_nano == server.end_time_unix_nano


async def test_clients_cannot_invent_span_names(collector: Collector, host: Any, exchange: Any) -> None:
    """Without a route the name has no host, and odd methods are one name."""
    async with tracing(host, collector.endpoint) as (observe, _):
        observe(allowed(exchange, routed=False, method="BREW", status=404))
    (server,) = await collector.spans(1)

    assert server.name == "HTTP"
    assert attributes(server)["http.request.method"] == "_OTHER"
    assert attributes(server)["http.request.method_original"] == "BREW"


async def test_spans_name_the_process(collector: Collector, host: Any, exchange: Any) -> None:
    """The resource says which service, version and instance."""
    async with tracing(host, collector.endpoint, service_name="edge") as (observe, _):
        observe(allowed(exchange))
    async with asyncio.timeout(WAIT):
        resource = (await collector.requests.get()).resource_spans[0].resource

    found = {one.key: one.value.string_value for one in resource.attributes}
    assert (found["service.name"], found["service.version"], found["service.instance.id"]) == (
        "edge",
        "0",
        "proxy-1",
    )


def test_without_a_collector_nothing_is_traced(host: Any) -> None:
    """No step, no lifespan, and a client's trace context passes as it is."""
    made, proxy = hooks(), host()

    assert made.observe(None, proxy) == []
    assert made.transform_request(None, proxy) == []  # type: ignore[arg-type]
    assert made.lifespans(proxy) == []


async def test_a_collector_that_is_away_does_not_hold_up_the_end(host: Any, exchange: Any) -> None:
    """Spans are lost, which is logged; the process ends in bounded time."""
    async with asyncio.timeout(WAIT), tracing(host, "http://127.0.0.1:1") as (observe, _):
        observe(allowed(exchange))


async def test_an_exchange_after_the_end_is_no_failure(collector: Collector, host: Any, exchange: Any) -> None:
    """An observer that outlives its plugin does nothing."""
    async with tracing(host, collector.endpoint) as (observe, _):
        pass

    observe(allowed(exchange))

    assert collector.requests.empty()


@pytest.mark.parametrize("options", [{"otlp_endpoint": "collector:4317"}, {"sample": 1.1}, {"interval": 0}, {"x": 1}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    """A misspelt endpoint stops the start instead of tracing nothing."""
    with pytest.raises(ValidationError):
        TelemetryOptions(**options)
