"""The core's own features on the real line: mappings, compiled routes, the application, an upstream by script."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from netbird_proxy import Dialer, PluginInfo, RouteSpec, Upstream, hookimpl
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.defaults.access_log import AccessLogOptions
from netbird_proxy.defaults.telemetry import TelemetryOptions
from netbird_proxy.routing.hooks import load_hooks
from netbird_proxy.testing.fakes import FakeProxy, HostDialer
from netbird_proxy.testing.makers import route
from netbird_proxy.testing.transcript import Transcript


class Dials:
    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self, route: RouteSpec, upstream: Upstream) -> Dialer:
        return HostDialer()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_one_id_is_on_the_line_and_in_the_upstreams_trace(tmp_path: Path) -> None:
    """Log, trace and exchange meet in one id; a client's trace context, however spelt, reaches nobody."""
    file = tmp_path / "access.log"
    options = [
        AccessLogOptions(output=str(file), management=False),
        TelemetryOptions(otlp_endpoint="http://127.0.0.1:1", sample=0),
    ]
    proxy, hooks = FakeProxy(options=options), load_hooks([("dials", Dials)], defaults=DEFAULTS)
    play = Transcript(route(), hooks=hooks, proxy=proxy, notes=hooks.notes)
    spoofed = [
        (b"traceparent", b"00-" + b"f" * 32 + b"-" + b"e" * 16 + b"-01"),
        (b"Trace_Parent", b"x"),
        (b"TraceParent", b"y"),
        (b"tracestate", b"their=s"),
    ]

    async with hooks.running(proxy):
        await play.request("GET", "/a?password=1234", headers=spoofed)
        await play.request("GET", "/nowhere", host="unknown.example")

    id_ = play.observed[0].id
    sent = [(name, value) for name, value in play.upstreams.last.fields if b"trace" in name.lower()]
    assert [name for name, _ in sent] == [b"trace_parent", b"traceparent"]  # the former is another name to everybody
    assert sent[1][1].startswith(b"00-%s-" % id_.encode())
    first, second = lines(file)
    assert (first["exchange"], first["path"], first["status"]) == (id_, "/a", 200)
    assert second["status"] == 404
    assert "1234" not in file.read_text()
