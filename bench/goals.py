"""The goals: what each kind of work may cost, and whether a run met it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench import inmemory
from bench.openloop import Latency
from bench.results import Results
from bench.rows import CADDIES, HAPROXY, NGINX, PRODUCT, TRACED, UVICORN

Value = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit, and how to find the figure that it holds.

    Attributes:
        run: the run that measures it.
        bound: the limit in words, with its companion; `limit` is the number in them.
        at_least: the figure may not be smaller; otherwise it may not be larger.
    """

    run: str
    work: str
    bound: str
    limit: float
    value: Value
    at_least: bool = False
    digits: int = 2

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def ratio(row: str, *others: str, subject: str = PRODUCT, base: str = "") -> Value:
    """The subject's CPU a request as a multiple of the cheapest of the others', under the same load in the same run."""

    def value(results: Results) -> float | None:
        cost = results.cost(row, subject)
        costs = [each for other in others if (each := results.cost(base or row, other)) is not None]
        return cost / min(costs) if cost is not None and costs else None

    return value


def figure(name: str, scale: float = 1.0) -> Value:
    def value(results: Results) -> float | None:
        number = results.figures.get(name)
        return None if number is None else number * scale

    return value


def quotient(name: str, other: str) -> Value:
    """A figure as a multiple of another."""

    def value(results: Results) -> float | None:
        number, base = results.figures.get(name), results.figures.get(other)
        return number / base if number is not None and base else None

    return value


def added(rounds: Mapping[str, Sequence[Latency]], subject: str, part: str) -> float | None:
    """Seconds that a proxy adds to the upstream's own latency, each in its best round; never below a microsecond."""
    if not rounds.get(subject) or not rounds.get("upstream"):
        return None
    through, direct = (min(getattr(each, part) for each in rounds[name]) for name in (subject, "upstream"))
    return max(1e-6, float(through - direct))


def latency(part: str) -> Value:
    """The latency that this proxy adds, as a multiple of that of HAProxy."""

    def value(results: Results) -> float | None:
        ours, theirs = (added(results.latencies, name, part) for name in (PRODUCT, HAPROXY))
        return None if ours is None or theirs is None else ours / theirs

    return value


def scheme(name: str) -> Value:
    """Instructions an exchange over those of a public route under the same listener."""
    (base,) = (each.base for each in inmemory.SCHEMES if each.name == name)

    def value(results: Results) -> float | None:
        counted, public = (results.figures.get(f"instructions: {key}") for key in (name, base))
        return None if counted is None or public is None else counted - public

    return value


def over_public(name: str) -> Value:
    def value(results: Results) -> float | None:
        counted = results.figures.get(f"instructions: {name}")
        public = results.figures.get(f"instructions: {inmemory.PUBLIC}")
        return None if counted is None or public is None else counted - public

    return value


def _scheme(name: str, limit: int) -> Goal:
    work = f"{name}, over the public route of its listener"
    return Goal("http", work, f"≤ +{limit:,} instructions", limit, scheme(name), digits=0)


PLAIN = "public route, 64 B, 32 connections"
GOALS = (
    Goal("http", PLAIN, "≤ 0.45 × Caddy", 0.45, ratio("plain", *CADDIES)),
    Goal("http", PLAIN, "≤ 2 × nginx", 2, ratio("plain", NGINX)),
    Goal("http", "the same, tracing on, unsampled", "≤ 0.50 × Caddy", 0.5, ratio("plain", *CADDIES, subject=TRACED)),
    Goal("http", "the same, a browser's head of 15 fields", "≤ 0.35 × Caddy", 0.35, ratio("browser", *CADDIES)),
    Goal("http", "HTTPS, kept connections", "≤ 0.5 × Caddy", 0.5, ratio("tls", *CADDIES)),
    Goal("http", "new TLS connections, one request each", "≤ 0.9 × Caddy", 0.9, ratio("handshakes", *CADDIES)),
    Goal("http", "256 connections, 64 B", "≤ 0.4 × Caddy", 0.4, ratio("wide", *CADDIES)),
    Goal("http", "256 connections, 16 KB", "≤ 0.4 × Caddy", 0.4, ratio("wide-16k", *CADDIES)),
    Goal("http", "10 MB down, plain", "≤ 0.9 × Caddy", 0.9, ratio("down", *CADDIES)),
    Goal("http", "10 MB down, TLS", "≤ 0.9 × Caddy", 0.9, ratio("down-tls", *CADDIES)),
    Goal("http", "10 MB up, plain", "≤ 0.9 × Caddy", 0.9, ratio("up", *CADDIES)),
    Goal("http", "10 MB up, TLS", "≤ 0.9 × Caddy", 0.9, ratio("up-tls", *CADDIES)),
    _scheme(inmemory.COOKIE, 20_000),
    _scheme(inmemory.SIGN_ON, 25_000),
    _scheme(inmemory.CREDENTIAL_SCHEME, 30_000),
    _scheme(inmemory.PEER, 20_000),
    _scheme(inmemory.PRIVATE_ROUTE, 20_000),
    Goal("http", "a trivial bound guard", "≤ +10,000 instructions", 10_000, over_public("guarded"), digits=0),
    Goal(
        "http", "sixteen loaded, unbound plugins", "≤ +1,000 instructions", 1_000,
        over_public("sixteen plugins"), digits=0,
    ),
    Goal(
        "http", "websocket messages of 64 B a CPU second", "≥ 0.8 × uvicorn's echo", 0.8,
        ratio("messages", PRODUCT, subject=UVICORN), at_least=True,
    ),
    Goal(
        "http", "websocket messages of 16 KB a CPU second", "≥ 0.8 × uvicorn's echo", 0.8,
        ratio("messages-16k", PRODUCT, subject=UVICORN), at_least=True,
    ),
    Goal("http", "idle connections, each", "≤ 12 kB", 12, figure("idle: connections", 1e-3), digits=1),
    Goal("http", "idle websockets, each", "≤ 40 kB", 40, figure("idle: websockets", 1e-3), digits=1),
    Goal("http", "added latency at 500 requests/s, median", "≤ 2.5 × HAProxy's", 2.5, latency("p50")),
    Goal("http", "added latency at 500 requests/s, 99 %", "≤ 3 × HAProxy's", 3, latency("p99")),
    Goal(
        "http", "cold start to the first answer, 10 services", "≤ 1.6 × `python -c 'import grpc, pydantic, uvloop'`",
        1.6,
        quotient("cold: proxy", "cold: imports"),
    ),
    Goal("http", "`--workers 2`, a request", "≤ 1.1 × one worker's", 1.1, quotient("workers: two", "workers: one")),
    Goal(
        "http", "`--workers 2`, smaller share of connections", "≥ 0.35", 0.35, figure("workers: share"), at_least=True
    ),
    Goal(
        "overlay", "private route through the tunnel", "≤ 1.8 × the public route on a host socket", 1.8,
        ratio("private", PRODUCT, base="plain"),
    ),
    Goal(
        "overlay", "10 MB through the tunnel, share of ChaCha20-Poly1305's rate", "≥ 0.25", 0.25,
        quotient("bulk: bytes a CPU second", "bulk: openssl bytes a second"), at_least=True,
    ),
    Goal(
        "overlay", "10 MB over the overlay, down", "≤ 3.5 × Caddy without it", 3.5,
        ratio("down-private", *CADDIES, base="down"),
    ),
    Goal(
        "management", "10,000 services in force at a proxy", "≤ 0.6 × the reference", 0.6,
        quotient("force: now", "force: reference"),
    ),
)  # fmt: skip
