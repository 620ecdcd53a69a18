"""What is remembered for `explain`: everything that helps an operator, and nothing that is a secret."""

from __future__ import annotations

import json

from netbird_proxy import Headers
from netbird_proxy.api.errors import UpstreamClosed
from netbird_proxy.operator.decisions import Decisions, Remembered, described
from netbird_proxy.testing.makers import HOST, exchange, identity


def test_promise_5_no_query_and_no_header_value_is_told() -> None:
    """The path as it came, without its query; no header's value."""
    decisions = Decisions()
    one = exchange("/reports/a%20b?token=secret-query")
    one.headers = Headers([(b"cookie", b"__Host-nb_session=secret-cookie"), (b"authorization", b"Bearer secret-token")])
    one.identity = identity()
    assert "secret" not in json.dumps(described(Remembered(one)))  # also before anything of it is let go
    decisions.record(one)

    told = decisions.find(one.id)
    assert told is not None
    assert told["request"].endswith("/reports/a%20b")
    assert "secret" not in json.dumps([told, decisions.latest()])


def test_traffic_that_is_served_pushes_out_no_refusal() -> None:
    """Refusals are kept apart: they are what is asked about."""
    decisions = Decisions(refused=2, served=1)
    refused, served = exchange("/a"), [exchange("/b") for _ in range(3)]
    refused.status = 403
    decisions.record(refused)
    for one in served:
        one.status = 200
        decisions.record(one)
    assert [one["request"] for one in decisions.latest()] == [f"GET http://{HOST}/a"]
    assert len(decisions) == 2


def test_an_observer_that_defers_its_work_still_has_the_exchange() -> None:
    """What is remembered is a copy: nothing of the exchange is taken away, and nothing large is kept."""
    decisions = Decisions()
    made = exchange("/" + "a" * 5000 + "?token=1", headers=[(b"x-large", b"v" * 10_000)])
    made.error = UpstreamClosed("10.0.0.7 closed")

    decisions.record(made)

    assert (made.query, made.headers.get(b"x-large"), len(made.raw_path)) == (b"token=1", b"v" * 10_000, 5001)
    story = decisions.find(made.id)
    assert story is not None
    assert len(json.dumps(story)) < 4000
    assert story["answer"]["cause"] == "10.0.0.7 closed"
