"""The corpus of bad answers, played over sockets through a whole proxy with every plugin of ours, on both listeners."""

from __future__ import annotations

import asyncio
import codecs
import importlib.util
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from .stage import WAIT, Stage, staged

CORPUS = Path(__file__).parents[2] / "corpus" / "answers"
DATA = tomllib.loads((CORPUS / "answers.toml").read_text())
RULES: dict[str, str] = DATA["rules"]
CASES: list[dict[str, Any]] = DATA["answer"]
NEXT = b"GET /next HTTP/1.1\r\nHost: app.example\r\n\r\n"


def raw(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


def heads_and_rest(received: bytes) -> tuple[int, bytes, bytes]:
    """The status of the final answer, its head in lower case, and what follows it."""
    while True:
        head, end, received = received.partition(b"\r\n\r\n")
        assert end, f"half a head: {head!r}"
        status = int(head[9:12])
        if status >= 200:
            return status, head.lower(), received


def body_of(head: bytes, rest: bytes) -> tuple[bytes, bytes, bool]:
    """The body as the client reads it, what follows, and whether it is whole."""
    if b"\r\ntransfer-encoding: chunked" in head:
        body = b""
        while True:
            size, mark, rest = rest.partition(b"\r\n")
            if not mark:
                return body, b"", False
            if not int(size, 16):
                _, end, rest = rest.partition(b"\r\n")
                return body, rest, bool(end)
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
    length = next((int(one[16:]) for one in head.split(b"\r\n") if one.startswith(b"content-length: ")), None)
    if length is None:
        return rest, b"", True
    return rest[:length], rest[length:], len(rest) >= length


def test_every_rule_has_cases() -> None:
    """A rule without a case promises nothing."""
    assert {case["rule"] for case in CASES} == set(RULES)


@pytest.mark.parametrize("listener", ["host", "tunnel"])
@pytest.mark.parametrize("rule", dict.fromkeys(case["rule"] for case in CASES))
async def test_bad_answer_harms_nobody(rule: str, listener: str) -> None:
    """The one who asked gets a plain answer, or sees that it broke off; the next one gets only what is theirs."""
    cases = [case for case in CASES if case["rule"] == rule]
    async with staged(listener) as stage:
        for case in cases:
            await play(case, stage)


async def play(case: dict[str, Any], stage: Stage) -> None:
    upstream = stage.upstream
    many = raw(case.get("many", "")) * case.get("times", 1)
    upstream.answers, upstream.closes = [raw(case["bytes"]).replace(b"@", many)], case.get("closes", False)
    method = case.get("method", "GET").encode()
    told = f"{RULES[case['rule']]}: {raw(case['bytes'])[:200]!r}"
    async with asyncio.timeout(WAIT):
        received = await stage.ask(method + b" /x HTTP/1.1\r\nHost: app.example\r\nTE: trailers\r\n\r\n")
        before = upstream.connections
        following = await stage.ask(NEXT)
    assert not upstream.answers, told

    assert b"mallory" not in received + following, told
    assert heads_and_rest(following)[::2] == (200, b"ok"), told
    assert (upstream.connections == before) is case.get("keeps", False), told
    if case.get("cut") and not received:
        return
    status, head, rest = heads_and_rest(received)
    assert status == case["status"], told
    if method != b"HEAD" and status not in (204, 304):
        body, rest, whole = body_of(head, rest)
        assert whole is not case.get("cut", False), told
        if status == 200 and whole:
            assert body == raw(case.get("body", "")), told
    assert rest == b"", told
    lines = head.split(b"\r\n")
    for wanted in case.get("has", []):
        assert wanted.encode() in lines, told
    for name in case.get("lacks", []):
        assert not [line for line in lines if line.startswith(name.encode() + b":")], told


@pytest.mark.parametrize("listener", ["host", "tunnel"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_upstream_that_overlooks_a_body_poisons_nobody(listener: str, method: bytes) -> None:
    """It takes the body for a request and answers that, later; the next client is on another connection by then."""
    sent = method + b" /x HTTP/1.1\r\nHost: app.example\r\nContent-Length: %d\r\n\r\n" % len(NEXT) + NEXT
    async with staged(listener) as stage, asyncio.timeout(WAIT):
        await stage.ask(sent)
        assert stage.upstream.seen[0].body == NEXT
        before = stage.upstream.connections
        assert heads_and_rest(await stage.ask(NEXT))[::2] == (200, b"ok")
        assert stage.upstream.connections == before + 1


def test_corpus_is_what_its_generator_writes() -> None:
    """The data is what is played; the generator is how it is changed."""
    spec = importlib.util.spec_from_file_location("answers_generator", CORPUS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = generator
    try:
        spec.loader.exec_module(generator)
        assert generator.written(generator.made()) == (CORPUS / "answers.toml").read_text()
    finally:
        del sys.modules[spec.name]
    assert {case["rule"] for case in DATA["answer"]} == set(RULES)
    assert len({(case["bytes"], case.get("many"), case.get("method")) for case in DATA["answer"]}) >= 130
