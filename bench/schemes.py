"""The cost of identifying a caller: each scheme beside a public route under the same listener, in turns."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from bench import inmemory
from bench.inmemory import COOKIE, CREDENTIAL_SCHEME, PEER, PRIVATE_ROUTE, PUBLIC, PUBLIC_INSIDE
from bench.measure import Sample, sample
from bench.product import Product
from bench.results import Results
from examples.demo.calls import direct, service_body
from examples.demo.stack import CLUSTER, Stack

PASSWORD = "a password that opens a session"
MARKS = ("<!-- bench.schemes -->", "<!-- bench.schemes ends -->")
SECONDS = 2.0
"""Seconds of a turn: the two that are compared lie so close together that a neighbor disturbs both."""


@dataclass(slots=True)
class Call:
    """One kind of caller in the running product.

    Attributes:
        name: as in `inmemory`, where the same is counted by instructions.
        prefix: what the load generator runs under.
        costs: CPU seconds per 1,000 requests, a turn each; `ratios` to its base's turns before and after.
    """

    name: str
    url: str
    host: str
    headers: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    costs: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


async def prepare(product: Product) -> list[list[Call]]:
    """Make the services and log in. In each list the first is what the others are compared with."""
    stack, ahead = product.stack, f"http://127.0.0.1:{product.ahead}"
    members, machines = f"members.{CLUSTER}", f"machines.{CLUSTER}"
    await _add(stack, "members", members, product.upstream, {"password_auth": {"enabled": True, "password": PASSWORD}})
    credential = {"enabled": True, "header": "Authorization", "value": inmemory.CREDENTIAL}
    await _add(stack, "machines", machines, product.upstream, {"header_auths": [credential]})
    cookie = await _log_in(ahead, members)
    await _use(
        ahead, machines, {"authorization": inmemory.CREDENTIAL}
    )  # else all connections' first tries are one burst
    groups = [
        [
            Call(PUBLIC, ahead, product.subject.hosts["plain"]),
            Call(COOKIE, ahead, members, (f"Cookie: {cookie}",)),
            Call(CREDENTIAL_SCHEME, ahead, machines, (f"Authorization: {inmemory.CREDENTIAL}",)),
        ]
    ]
    if inside := product.subject.urls.get("private"):
        prefix = tuple(product.subject.prefix["private"])
        hosts = (product.subject.hosts["plain"], members, product.subject.hosts["private"])
        names = (PUBLIC_INSIDE, PEER, PRIVATE_ROUTE)
        groups.append([Call(name, inside, host, prefix=prefix) for name, host in zip(names, hosts, strict=True)])
    return groups


async def _add(stack: Stack, name: str, domain: str, upstream: int, auth: dict[str, object]) -> None:
    body = service_body(stack, name, domain, direct("127.0.0.1", upstream)) | {"auth": auth}
    stack.ids[name] = (await stack.api.post("/reverse-proxies/services", body))["id"]
    await stack.until_service(name, "active")


async def _log_in(url: str, host: str) -> str:
    """The cookie that a browser would have after its login."""
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.post(
            f"{url}/__netbird__/session/login",
            data={"password": PASSWORD, "to": "/"},
            headers={"host": host, "sec-fetch-site": "same-origin"},
        )
    cookie = answer.headers.get("set-cookie", "").partition(";")[0]
    if answer.status_code != 303 or not cookie:
        raise RuntimeError(f"the login was answered {answer.status_code}: {answer.text}")
    return str(cookie)


async def _use(url: str, host: str, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        answer = await client.get(f"{url}/", headers={"host": host, **headers})
    if answer.status_code != 200:
        raise RuntimeError(f"{host} answered {answer.status_code}: {answer.text}")


async def compare(product: Product, groups: Sequence[list[Call]], *, rounds: int, connections: int) -> None:
    """Take turns: base, one, base, another, … and the base once more at a round's end."""

    async def turn(call: Call, seconds: float = SECONDS) -> float:
        sampled: Sample = await sample(
            product.subject.process.pid, call.url + "/", host=call.host, headers=call.headers, seconds=seconds,
            connections=connections, prefix=call.prefix,
        )  # fmt: skip
        return sampled.cpu_per_thousand

    for group in groups:
        base, *others = group
        for call in group:
            await turn(call, 1)
        for number in range(rounds):
            before = await turn(base)
            for call in others:
                cost = await turn(call)
                after = await turn(base)
                call.costs.append(cost)
                call.ratios.append(2 * cost / (before + after))
                base.costs.append(before)
                base.ratios.append(1.0)
                print(f"{number + 1} {call.name:34} {cost:8.4f} s/1000  × {call.ratios[-1]:.2f}", flush=True)
                before = after


def note(groups: Sequence[list[Call]], results: Results) -> None:
    """Put the medians into the results: CPU seconds per 1,000, and the ratio to the public route beside it."""
    for call in (call for group in groups for call in group):
        results.figures[f"scheme: {call.name}"] = statistics.median(call.costs)
        results.figures[f"scheme ratio: {call.name}"] = statistics.median(call.ratios)


def method() -> str:
    text = f"""The table compares the cost of identifying a caller by each scheme with a public route of the same proxy
    under the same listener, in turns of {SECONDS:g} s (`make bench-overlay`); ratios are medians. Rows over the overlay
    are compared with a public route over the overlay, which includes the tunnel's cost. A session is one cookie for
    every way to log in (here a password). Everything is cached, as it is from the second request on. The listener has
    `behind_tls_proxy`, so that the cost of TLS does not hide that of identification. callgrind counts instructions
    (`make bench`), with the same plugins on wires in memory: other processes do not change that number, and without
    kernel and tunnel the ratio is stricter."""
    return textwrap.fill(" ".join(text.split()), 118)


def table(overlay: Mapping[str, float], http: Mapping[str, float]) -> str:
    """Both figures of every scheme, of the runs' figures."""
    lines = [
        "| scheme | CPU s per 1,000 | × public | in memory: instructions | over public | × public |",
        "|---|---|---|---|---|---|",
    ]
    for scheme in inmemory.SCHEMES:
        cost, ratio = overlay.get(f"scheme: {scheme.name}"), overlay.get(f"scheme ratio: {scheme.name}")
        count, base = (http.get(f"instructions: {name}") for name in (scheme.name, scheme.base))
        time = f"{cost:.4f} | {ratio:.2f}" if cost and ratio else "– | –"
        number = f"{count:,.0f} | {count - base:+,.0f} | {count / base:.2f}" if count and base else "– | – | –"
        lines.append(f"| {scheme.name} | {time} | {number} |")
    return "\n".join(lines)
