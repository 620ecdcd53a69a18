"""The corpus of attacks, played over sockets against a whole proxy with every plugin of ours, on both listeners."""

from __future__ import annotations

import asyncio
import codecs
import importlib.util
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from netbird_proxy.api.headers import fold
from netbird_proxy.defaults.forwarding import ForwardingOptions

from .stage import WAIT, Seen, Stage, staged, statuses

CORPUS = Path(__file__).parents[2] / "corpus" / "attacks"
DATA = tomllib.loads((CORPUS / "attacks.toml").read_text())
RULES: dict[str, str] = DATA["rules"]
CUT = [0]
"""In `answers`: the request is given up. No whole one reaches the upstream, and no answer but a 4xx the client."""


def raw(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


ONCE = {
    *(b"host", b"content-length", b"transfer-encoding", b"x-forwarded-for", b"x-real-ip", b"x-forwarded-host"),
    *(b"x-forwarded-proto", b"x-forwarded-port", b"forwarded", b"via", b"cookie", b"x-netbird-user"),
    *(b"x-netbird-groups", b"connection", b"upgrade", b"te"),
}


def check(one: Seen, client: str, identity: list[tuple[bytes, bytes]], port: int) -> None:
    """What holds of each request, whatever the case."""
    names = Counter(fold(name) for name, _ in one.fields)
    assert {name: times for name, times in names.items() if name in ONCE and times > 1} == {}
    assert one.get(b"host") == [b"127.0.0.1:%d" % port]
    assert (b"content-length" in names) + (b"transfer-encoding" in names) <= 1
    assert one.get(b"x-forwarded-for") == one.get(b"x-real-ip") == [client.encode()]
    assert one.get(b"x-forwarded-proto") == [b"http"]
    assert len(one.get(b"via")) == 1
    assert [pair for pair in one.fields if fold(pair[0]).startswith((b"x-netbird-", b"trailer x-netbird-"))] == identity
    forwarding = [name for name in names if b"forwarded" in name or b"real-ip" in name]
    assert sorted(forwarding) == sorted(
        [*(b"x-forwarded-" + one for one in (b"for", b"host", b"proto", b"port")), b"x-real-ip"]
    )
    assert all(name == name.lower() and name.strip() == name for name, _ in one.fields)


# The tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["host", "tunnel"])
@pytest.mark.parametrize("rule", RULES)
async def test_attack_comes_to_nothing(rule: str, listener: str) -> None:
    """Refused before anything is dialed, or forwarded as what it is and nothing else; see the corpus's README."""
    cases = [case for case in DATA["attack"] if case["rule"] == rule]
    assert cases
    async with staged(listener) as stage:
        for case in cases:
            sent = raw(case["bytes"])
            stage.upstream.seen.clear()
            stage.upstream.bytes.clear()
            async with asyncio.timeout(WAIT):
                received = await stage.ask(sent)
            judge(case, sent, received, stage)


def judge(case: dict[str, Any], sent: bytes, received: bytes, stage: Stage) -> None:
    upstream, expected = stage.upstream, case["answers"]
    told = f"{RULES[case['rule']]}: {sent[:300]!r}"
    assert upstream.broken == [], told
    assert b"mallory" not in upstream.bytes, told
    assert b"mallory" not in received, told
    if expected == CUT:
        assert [status for status in statuses(received) if not 400 <= status < 500] == [], told
        assert [one.line for one in upstream.seen] == [], told
        assert b"/second" not in upstream.bytes, told
        return
    assert statuses(received) == expected, told
    assert [one.line for one in upstream.seen] == case.get("upstream", []), told
    if not upstream.seen:
        assert not upstream.bytes, told
    for one in upstream.seen:
        check(one, stage.client, stage.identity, stage.port)
    if upstream.seen:
        first = upstream.seen[0]
        assert first.body == raw(case.get("body", "")), told
        for wanted in case.get("has", []):
            name, _, value = raw(wanted).partition(b": ")
            assert first.get(name) == [value], told


@pytest.mark.parametrize("listener", ["host", "tunnel"])
async def test_trust_never_reaches_into_a_tunnel(listener: str) -> None:
    """Whoever is trusted: a tunnel's peer is who WireGuard says, and a host's peer may speak for others."""
    trusting = ForwardingOptions(trusted_proxies=("127.0.0.0/8", "100.64.0.0/10"))
    sent = b"GET /x HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\r\n"
    async with staged(listener, trusting) as stage, asyncio.timeout(WAIT):
        assert statuses(await stage.ask(sent)) == [200]

    (one,) = stage.upstream.seen
    if listener == "host":
        assert one.get(b"x-forwarded-for") == [b"203.0.113.9, 127.0.0.1"]
        assert (one.get(b"x-real-ip"), one.get(b"x-forwarded-proto")) == ([b"203.0.113.9"], [b"https"])
    else:
        assert one.get(b"x-forwarded-for") == one.get(b"x-real-ip") == [stage.client.encode()]
        assert one.get(b"x-forwarded-proto") == [b"http"]
        assert one.get(b"x-netbird-user") == [b"alice@example.com"]


def test_corpus_is_large_and_whole() -> None:
    """Distinct bytes over many rules, each of which says what it is about and has a case."""
    assert len({case["bytes"] for case in DATA["attack"]}) >= 300
    assert len(RULES) >= 60
    assert {case["rule"] for case in DATA["attack"]} == set(RULES)
    assert len(set(RULES.values())) == len(RULES)


def test_corpus_is_what_its_generator_writes() -> None:
    """The data is what is played; the generator is how it is changed."""
    spec = importlib.util.spec_from_file_location("attacks_generator", CORPUS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = generator
    try:
        spec.loader.exec_module(generator)
        assert generator.written(generator.made()) == (CORPUS / "attacks.toml").read_text()
    finally:
        del sys.modules[spec.name]
