"""Heads that the listener refuses: the operator finds them by id, though no step and no upstream sees them."""

from __future__ import annotations

import asyncio
import json

import pytest

from netbird_proxy.listening.connections import Connections
from netbird_proxy.listening.http1 import Http1Protocol
from netbird_proxy.listening.origins import Origins
from netbird_proxy.operator.decisions import Decisions
from netbird_proxy.testing.makers import exchange, route
from netbird_proxy.testing.transcript import Transcript
from netbird_proxy.testing.transports import MemoryTransport

HEADS = [
    (b"GET /a?token=secret HTTP/1.1\r\n\r\n", 400, "GET", b"/a", "host_missing"),
    (b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "GET", b"/a", "host_repeated"),
    (b"\x16\x03\x01\x02\x00\x01", 400, "", b"", "malformed_method"),
    # A method is reported once its blank has arrived, also where the head never ends.
    (b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\nX: " + b"b" * 70_000, 431, "GET", b"/" + b"a" * 2047, "head_bytes"),
]


@pytest.mark.parametrize(("data", "status", "method", "target", "reason"), HEADS)
async def test_promise_9_a_refused_head_is_explained_by_id(
    data: bytes, status: int, method: str, target: bytes, reason: str
) -> None:
    """Its id is in the answer; with it come what is known of the request and the reason, and no query."""
    play = Transcript(route())
    connections = Connections(
        play.app, origins=Origins(), listener="http 192.0.2.1:80", record_refusal=play.app.record_refusal
    )
    transport = MemoryTransport.open(Http1Protocol(connections), extra={"peername": ("192.0.2.9", 1234)})
    decisions = Decisions()

    transport.feed(data)

    (seen,) = play.observed
    decisions.record(seen)
    assert f"exchange: {seen.id}".encode() in bytes(transport.sent)
    assert (seen.status, seen.method, seen.raw_path, seen.client_address) == (status, method, target, "192.0.2.9")
    story = decisions.find(seen.id)
    assert story is not None
    assert story["answer"] == {"status": status, "code": "bad_request", "cause": reason}
    assert "secret" not in json.dumps(story)
    assert play.upstreams.dialed == 0
    transport.abort()
    await asyncio.sleep(0)


def test_promise_9_malformed_requests_push_out_no_refusal() -> None:
    """Strangers can send any number of them, so they have a bounded place of their own."""
    decisions = Decisions(malformed=2)
    refused = exchange("/a")
    refused.status = 403
    decisions.record(refused)
    for _ in range(5000):
        one = exchange("/")
        one.host = ""
        decisions.record(one)
    assert decisions.find(refused.id) is not None
    assert len(decisions) == 3
