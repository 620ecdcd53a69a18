"""What a service says to plugins and the core, the whole way: saved by REST, sent to proxies, heeded there."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import pytest_asyncio
import trustme

from examples.demo.api import ApiError
from examples.demo.calls import Answer, direct, identity_seen, overlay
from examples.demo.stack import CLUSTER, Stack, stack

pytestmark = [pytest.mark.live, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

SERVICES = "/reverse-proxies/services"
WAIT = 20.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Management, a proxy with every plugin and one with hardly any, and a member's peer."""
    async with stack(tmp_path_factory.mktemp("extensions")) as made:
        await made.start_management(("private_service", "direct_upstream", "identity_headers"))
        await made.start_proxy("proxy")
        await made.start_proxy("plain", plugins=("direct_upstream",), private=False)
        await made.start_upstream("app")
        made.ids["All"] = (await made.api.get("/groups?name=All"))[0]["id"]
        made.ids["engineering"] = (await made.api.post("/groups", {"name": "engineering"}))["id"]
        alice = {"email": "alice@demo.example", "name": "alice", "role": "user", "is_service_user": False}
        made.ids["alice"] = (await made.api.post("/users", {**alice, "auto_groups": [made.ids["engineering"]]}))["id"]
        await made.add_peer("laptop", user="alice")
        yield made


def body(running: Stack, name: str, extensions: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    target = {"protocol": "http", "path": "/", "enabled": True, **direct("127.0.0.1", running.upstreams["app"])}
    made = {"name": name, "domain": f"{name}.{CLUSTER}", "mode": "http", "enabled": True, "auth": {}}
    made |= {"targets": [target], **fields}
    return made if extensions is None else {**made, "extensions": extensions}


async def save(running: Stack, name: str, extensions: dict[str, Any] | None = None, **fields: Any) -> None:
    """Create the service or change it."""
    said = body(running, name, extensions, **fields)
    if name in running.ids:
        await running.api.put(f"{SERVICES}/{running.ids[name]}", said)
    else:
        running.ids[name] = (await running.api.post(SERVICES, said))["id"]


async def ask(
    running: Stack, name: str, target: str = "/", method: str = "GET", *, proxy: str = "proxy", **headers: str
) -> httpx.Response:
    """Over TLS, from outside; the target goes out as it is written."""
    context = ssl.create_default_context(cafile=str(running.certificates.authority))
    host = f"{name}.{CLUSTER}"
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=WAIT) as client:
        return await client.request(
            method,
            f"https://127.0.0.1:{running.proxies[proxy].https}{target}",
            headers={"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}},
            extensions={"sni_hostname": host},
        )


async def until(probe: Callable[[], Awaitable[Any]], wanted: Callable[[Any], bool]) -> Any:
    """Ask until the change is in force; each answer before it is that of the version before."""
    async with asyncio.timeout(WAIT):
        while not wanted(found := await probe()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)
        return found


def status(code: int) -> Callable[[Any], bool]:
    return lambda answer: bool((answer.status_code if isinstance(answer, httpx.Response) else answer.status) == code)


async def test_ambiguous_paths(running: Stack) -> None:
    """They go on byte for byte where all paths are guarded alike, and only there, whatever the service says."""
    await save(running, "paths", {"core": {"ambiguous_path": "pass"}})
    passed = await until(lambda: ask(running, "paths", "/a%2Fb?c=%2F"), status(200))
    assert passed.json()["target"] == "/a%2Fb?c=%2F"
    assert (await ask(running, "paths", "/a/%2e%2e/b")).status_code == 400

    # One target is dialed directly, the other through the tunnel: the routes differ in their guards.
    (target,) = body(running, "paths")["targets"]
    tunneled = {**target, "path": "/tunneled", "target_type": "peer", "target_id": running.ids["peer laptop"]}
    targets = [target, {**tunneled, "host": "", "options": {}}]
    await save(running, "paths", targets=targets)
    refused = await until(lambda: ask(running, "paths"), status(503))
    assert "route_refused" in refused.text

    await save(running, "paths", {}, targets=targets)
    await until(lambda: ask(running, "paths"), status(200))
    refused = await ask(running, "paths", "/a%2Fb")
    assert (refused.status_code, "ambiguous_path" in refused.text) == (400, True)

    await save(running, "paths", {})
    await until(lambda: ask(running, "paths", "/a%2Fb"), status(200))


@dataclass(slots=True)
class Secure:
    """An upstream whose certificate nobody knows but who is told."""

    authority: trustme.CA = field(default_factory=trustme.CA)
    asked_for: list[str | None] = field(default_factory=list)

    async def serve(self) -> asyncio.Server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("db.internal").configure_cert(context)

        def called(_socket: object, name: str | None, _context: object) -> None:
            self.asked_for.append(name)

        context.sni_callback = called

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            writer.close()

        return await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)


async def test_own_authority_and_name(running: Stack) -> None:
    """An upstream that no system root vouches for is reached by the target's own, under the name that it says."""
    upstream = Secure()
    pem = upstream.authority.cert_pem.bytes().decode()
    async with await upstream.serve() as server:
        port = server.sockets[0].getsockname()[1]

        def target(**core: str) -> list[dict[str, Any]]:
            said = {"protocol": "https", "path": "/", "enabled": True, **direct("127.0.0.1", port)}
            return [{**said, "extensions": {"core": core}} if core else said]

        await save(running, "secure", targets=target())
        untrusted = await until(lambda: ask(running, "secure"), status(502))
        assert "tls_failed" in untrusted.text

        await save(running, "secure", targets=target(ca=pem, server_name="other.internal"))
        await until(lambda: _asked(running, upstream), lambda name: bool(name == "other.internal"))
        assert (await ask(running, "secure")).status_code == 502

        await save(running, "secure", targets=target(ca=pem, server_name="db.internal"))
        await until(lambda: ask(running, "secure"), status(200))
        assert upstream.asked_for[-1] == "db.internal"


async def _asked(running: Stack, upstream: Secure) -> str | None:
    await ask(running, "secure")
    return upstream.asked_for[-1]


async def test_same_origin(running: Stack) -> None:
    """A form of another site, with the caller's own cookie, is refused until the service allows it."""
    auth = {"password_auth": {"enabled": True, "password": "right horse"}}
    await save(running, "forms", auth=auth)
    await until(lambda: ask(running, "forms", accept="text/html"), status(401))
    context = ssl.create_default_context(cafile=str(running.certificates.authority))
    host = f"forms.{CLUSTER}"
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=WAIT) as client:
        answer = await client.post(
            f"https://127.0.0.1:{running.proxies['proxy'].https}/__netbird__/session/login",
            headers={"Host": host, "Origin": f"https://{host}", "Sec-Fetch-Site": "same-origin"},
            data={"password": "right horse", "next": "/"},
            extensions={"sni_hostname": host},
        )
    cookie = answer.headers["set-cookie"].partition(";")[0]

    async def forged() -> httpx.Response:
        return await ask(running, "forms", "/transfer", "POST", cookie=cookie, sec_fetch_site="cross-site")

    assert (await ask(running, "forms", "/transfer", "POST", cookie=cookie)).status_code == 200
    refused = await forged()
    assert (refused.status_code, "cross_site" in refused.text) == (403, True)

    kept = {"password_auth": {"enabled": True}}
    await save(running, "forms", {"core": {"same_origin": False}}, auth=kept)

    assert (await until(forged, status(200))).json()["method"] == "POST"
    await save(running, "forms", {}, auth=kept)
    await until(forged, status(403))


async def test_group_budget(running: Stack) -> None:
    """All, none, none with a note, or nobody: as the service says, of what the member is in."""

    async def seen() -> Answer:
        return await overlay(running, "laptop", f"http://members.{CLUSTER}/")

    async def told(**settings: Any) -> None:
        await save(
            running,
            "members",
            {"identity_headers": settings},
            private=True,
            access_groups=[running.ids["engineering"]],
        )

    def names(answer: Answer) -> dict[str, str]:
        return {name: value for name, value in identity_seen(answer) if name != "x-netbird-user"}

    await told()
    await running.until_service("members", "active", proxy="proxy")
    await running.write_peer_file("laptop")
    assert names(await until(seen, status(200))) == {"x-netbird-groups": "All,engineering"}

    await told(groups="none")
    await until(seen, lambda answer: names(answer) == {})
    await told(groups_max_bytes=14, groups_overflow="leave_out")
    await until(seen, lambda answer: names(answer) == {"x-netbird-groups-omitted": "2"})
    await told(groups_max_bytes=15, groups_overflow="leave_out")
    await until(seen, lambda answer: names(answer) == {"x-netbird-groups": "All,engineering"})
    await told(groups_max_bytes=14, groups_overflow="deny")
    assert "too_many_groups" in (await until(seen, status(403))).body


async def test_a_proxy_without_the_plugin_serves_nothing(running: Stack) -> None:
    """Settings that limit what is told do not even get to one that would not heed them, and what it had goes."""
    await save(running, "other")
    await until(lambda: ask(running, "other", proxy="plain"), status(200))

    await save(running, "other", {"identity_headers": {"groups": "none"}})

    state = await running.until_service("other", "withheld", proxy="plain")
    assert "plugin_settings.identity_headers" in state["withheld"]
    await until(lambda: ask(running, "other", proxy="plain"), status(404))
    assert (await ask(running, "other")).status_code == 200

    await save(running, "other", {})
    await until(lambda: ask(running, "other", proxy="plain"), status(200))


@pytest.mark.parametrize(
    "extensions",
    [
        {"nobody": {}},
        {"core": {"ambiguous_path": "maybe"}},
        {"core": {"same_origin": "no"}},
        {"core": {"unknown": 1}},
        {"identity_headers": {"groups_max_bytes": 9}},
        {"identity_headers": {"groups": "some"}},
    ],
)
async def test_what_nobody_can_use_is_not_saved(running: Stack, extensions: dict[str, Any]) -> None:
    """422, and the service is what it was."""
    with pytest.raises(ApiError, match=": 422 "):
        await save(running, f"no-{len(json.dumps(extensions))}", extensions)
