"""The story: who may open what, who is told what, and what is refused. Each step is one promise kept, or it raises."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from examples.demo.stack import CLUSTER, PLUGINS, Stack
from netbird_tunnel_netstack.node import peer_node
from netbird_tunnel_netstack.wgconf import parse_config

ALICE, BOB = "alice@demo.example", "bob@demo.example"
WIKI, LOBBY, STATUS, INTRANET = (f"{name}.{CLUSTER}" for name in ("wiki", "lobby", "status", "intranet"))
FORGED = (
    "X-NetBird-User: mallory",
    "x_netbird_user: mallory",
    "X.NetBird.User: mallory",
    "X-NetBird-User: mallory-again",
    "X-NetBird-Groups: admins",
    "X_NetBird_Groups: admins",
    "Connection: X-NetBird-User, X-NetBird-Groups",
)


class StoryFailed(Exception):
    """A step did not go as it must; the message says what came instead."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the story, and what it takes. `play` returns what is worth showing."""

    line: str
    play: Callable[[Stack], Awaitable[str]]


def expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise StoryFailed(f"{what}: expected {wanted!r}, found {found!r}")


# The house is built ---------------------------------------------------------------------------------------------------


async def management_starts(stack: Stack) -> str:
    await stack.start_management()
    return f"REST {stack.rest}, gRPC {stack.grpc}"


async def proxy_connects(stack: Stack) -> str:
    proxy = await stack.start_proxy("proxy")
    async with asyncio.timeout(15):
        found = await stack.online_clusters()
        while not found:
            await asyncio.sleep(0.05)
            found = await stack.online_clusters()
    expect("cluster", found[0]["address"], CLUSTER)
    expect("cluster serves private services", found[0]["private"], True)
    return f"http 127.0.0.1:{proxy.http}, https 127.0.0.1:{proxy.https}"


async def people_and_peers(stack: Stack) -> str:
    api, ids = stack.api, stack.ids
    ids["All"] = (await api.get("/groups?name=All"))[0]["id"]
    ids["engineering"] = (await api.post("/groups", {"name": "engineering"}))["id"]
    for name, email, groups in (("alice", ALICE, ["engineering"]), ("bob", BOB, [])):
        body = {
            "email": email,
            "name": name,
            "role": "user",
            "is_service_user": False,
            "auto_groups": [ids[group] for group in groups],
        }
        ids[name] = (await api.post("/users", body))["id"]
    addresses = [
        await stack.add_peer("alice-laptop", user="alice"),
        await stack.add_peer("bob-laptop", user="bob"),
        await stack.add_peer("wiki-server"),
    ]
    return ", ".join(addresses)


async def services(stack: Stack) -> str:
    for name in ("wiki", "lobby", "status"):
        await stack.start_upstream(name)
    wiki_target = {"target_id": stack.ids["peer wiki-server"], "target_type": "peer", "port": 8080}
    await add_service(stack, "wiki", WIKI, wiki_target, groups=["engineering"])
    await add_service(stack, "lobby", LOBBY, direct("127.0.0.1", stack.upstreams["lobby"]), groups=["All"])
    await add_service(stack, "status", STATUS, direct("127.0.0.1", stack.upstreams["status"]))
    for name in ("wiki", "lobby", "status"):
        state = await stack.until_service(name, "active")
    return f"listening in the tunnel on {state['inbound_listener']['tunnel_ip']}"


async def peers_files(stack: Stack) -> str:
    for name in ("alice-laptop", "bob-laptop", "wiki-server"):
        await stack.write_peer_file(name)
    argv = [str(stack.configs["wiki-server"]), f"8080=127.0.0.1:{stack.upstreams['wiki']}"]
    await stack.start_wiki_server(*argv)
    return f"{stack.configs['alice-laptop']}"


def direct(host: str, port: int) -> dict[str, Any]:
    options = {"direct_upstream": True}
    return {"target_id": CLUSTER, "target_type": "cluster", "host": host, "port": port, "options": options}


async def add_service(
    stack: Stack, name: str, domain: str, target: dict[str, Any], *, groups: list[str] | None = None
) -> None:
    body: dict[str, Any] = {
        "name": name,
        "domain": domain,
        "enabled": True,
        "mode": "http",
        "auth": {},
        "targets": [{"protocol": "http", "path": "/", "enabled": True, **target}],
    }
    if groups is not None:
        body |= {"private": True, "access_groups": [stack.ids[group] for group in groups]}
    stack.ids[name] = (await stack.api.post("/reverse-proxies/services", body))["id"]


# Calls over the overlay -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: httpx.Headers
    body: str

    @property
    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as exc:
            raise StoryFailed(f"{self.status}, and no JSON: {self.body[:400]!r}") from exc

    @property
    def exchange(self) -> str:
        found = re.search(r"\b[0-9a-f]{32}\b", self.body)
        if not found:
            raise StoryFailed(f"no exchange id in {self.body!r}")
        return found[0]


async def overlay(stack: Stack, who: str, url: str, *options: str) -> Answer:
    code, output, errors = await stack.peer_get(who, url, *options)
    match = re.match(r"HTTP/1\.1 (\d{3})[^\n]*\n(.*?)\r?\n\r?\n(.*)", output.replace("\r\n", "\n"), re.DOTALL)
    if not match:
        raise StoryFailed(f"{who} got no answer from {url}: {errors.strip() or output!r} (exit code {code})")
    lines = [tuple(line.split(": ", 1)) for line in match[2].split("\n") if ": " in line]
    expect("exit code", code, 22 if int(match[1]) >= 400 else 0)
    return Answer(int(match[1]), httpx.Headers(lines), match[3])


def identity_seen(answer: Answer) -> list[list[str]]:
    """What the upstream saw of names that anybody might take for ours, under any spelling, trailers included."""
    expect("status", answer.status, 200)
    seen = [*answer.json["headers"], *answer.json["trailers"]]
    reserved = [pair for pair in seen if re.sub(r"[_.]", "-", pair[0].lower()).startswith("x-netbird-")]
    return sorted([name.lower(), value] for name, value in reserved)


ALICE_SEEN = [["x-netbird-groups", "All,engineering"], ["x-netbird-user", ALICE]]


async def alice_opens_wiki(stack: Stack) -> str:
    answer = await overlay(stack, "alice-laptop", f"http://{WIKI}/handbook?page=1")
    expect("identity", identity_seen(answer), ALICE_SEEN)
    expect("target", answer.json["target"], "/handbook?page=1")
    expect("upstream", answer.json["upstream"], "wiki")
    return "; ".join(": ".join(pair) for pair in ALICE_SEEN)


async def alice_opens_wiki_by_https(stack: Stack) -> str:
    ca = str(stack.certificates.authority)
    answer = await overlay(stack, "alice-laptop", f"https://{WIKI}/", "--cacert", ca)
    expect("identity", identity_seen(answer), ALICE_SEEN)
    return "certificate verified"


async def alice_forges_headers(stack: Stack) -> str:
    forged = [part for line in FORGED for part in ("-H", line)]
    answer = await overlay(stack, "alice-laptop", f"http://{WIKI}/", *forged)
    expect("identity", identity_seen(answer), ALICE_SEEN)
    return f"{len(FORGED)} spellings"


async def alice_forges_trailers(stack: Stack) -> str:
    config = parse_config(stack.configs["alice-laptop"].read_text())
    proxy = str(next(iter(config.peers)).allowed_ips[0].network_address)
    head = (
        f"POST / HTTP/1.1\r\nHost: {WIKI}\r\nTransfer-Encoding: chunked\r\nTrailer: X-NetBird-User\r\n"
        "Connection: close\r\n\r\n4\r\nbody\r\n"
    )
    trailers = "0\r\nX-NetBird-User: mallory\r\nx_netbird_groups: admins\r\nX-Checksum: kept\r\n\r\n"
    async with asyncio.timeout(20), peer_node(config) as node:
        reader = asyncio.StreamReader()
        transport, _ = await node.connect(lambda: asyncio.StreamReaderProtocol(reader), proxy, 80, timeout=10)
        transport.write(head.encode())
        # The upstream has the head and the body before the trailers are on their way: they are a segment of their own.
        seen = await stack.seen_by("wiki")
        while await stack.seen_by("wiki") == seen and not reader.at_eof():
            transport.write(trailers.encode())
            trailers = ""
            await asyncio.sleep(0.02)
        raw = (await reader.read()).decode()
        transport.close()
    answer = Answer(int(raw.split(" ", 2)[1]), httpx.Headers(), raw.split("\r\n\r\n", 1)[1])
    expect("identity", identity_seen(answer), ALICE_SEEN)
    return "reserved trailers dropped"


async def bob_opens_lobby(stack: Stack) -> str:
    answer = await overlay(stack, "bob-laptop", f"http://{LOBBY}/")
    expect("identity", identity_seen(answer), [["x-netbird-groups", "All"], ["x-netbird-user", BOB]])
    return f"x-netbird-user: {BOB}"


async def bob_is_refused(stack: Stack) -> str:
    before = await stack.seen_by("wiki")
    answer = await overlay(stack, "bob-laptop", f"http://{WIKI}/")
    expect("status", answer.status, 403)
    expect("requests at the upstream", await stack.seen_by("wiki"), before)
    told = answer.body.lower()
    for secret in ("engineering", "private_service", "100.", BOB):
        if secret in told:
            raise StoryFailed(f"bob was told {secret!r}: {answer.body!r}")
    stack.ids["refused exchange"] = answer.exchange
    return answer.body.strip().replace("\n", " ")


async def operator_explains(stack: Stack) -> str:
    story = await stack.explain("proxy", stack.ids["refused exchange"])
    for wanted in ("private_service", "not_in_group", "engineering", "All", BOB, "not dialed"):
        if wanted not in story:
            raise StoryFailed(f"explain does not say {wanted!r}:\n{story}")
    return "\n" + story.rstrip()


async def stranger_gets_no_answer(stack: Stack) -> str:
    """A key that the account's map does not name: the WireGuard handshake itself is not answered."""
    key = base64.b64encode(os.urandom(32)).decode()
    text = re.sub(r"(?m)^PrivateKey = .*$", f"PrivateKey = {key}", stack.configs["alice-laptop"].read_text())
    path = stack.directory / "stranger.conf"
    path.touch(mode=0o600)
    path.write_text(text)
    stack.configs["stranger"] = path
    code, output, errors = await stack.peer_get("stranger", f"http://{LOBBY}/", "--timeout", "2")
    if code in (0, 22) or output:
        raise StoryFailed(f"a stranger got an answer: {output}")
    return errors.strip().splitlines()[-1]


# Calls from outside ---------------------------------------------------------------------------------------------------


async def outside(stack: Stack, host: str, *, tls: bool = False, proxy: str = "proxy") -> httpx.Response:
    """A request through the host listener, with every forged header there is."""
    import ssl

    known = stack.proxies[proxy]
    context = ssl.create_default_context(cafile=str(stack.certificates.authority))
    forged = [(name, value) for name, _, value in (line.partition(": ") for line in FORGED[:-1])]
    forged += [("Host", host), ("X-Forwarded-For", "100.64.0.9"), ("X-Real-IP", "100.64.0.9")]
    forged += [("Forwarded", "for=100.64.0.9"), ("X-Forwarded-Host", host)]
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=10) as client:
        url = f"https://127.0.0.1:{known.https}/" if tls else f"http://127.0.0.1:{known.http}/"
        return await client.get(url, headers=forged, extensions={"sni_hostname": host} if tls else {})


async def outsiders_are_refused(stack: Stack) -> str:
    for host in (WIKI, LOBBY):
        for tls in (False, True):
            answer = await outside(stack, host, tls=tls)
            expect(f"{host} from outside", (answer.status_code, "tunnel_required" in answer.text), (403, True))
    return "403 tunnel_required, by HTTP and HTTPS"


async def public_is_public(stack: Stack) -> str:
    answer = await outside(stack, STATUS)
    found = Answer(answer.status_code, answer.headers, answer.text)
    expect("identity", identity_seen(found), [])
    return "200; nothing of the forged headers arrived"


async def direct_needs_the_operator(stack: Stack) -> str:
    port = await stack.start_upstream("intranet", "127.0.0.9")
    await add_service(stack, "intranet", INTRANET, direct("127.0.0.9", port))
    state = await stack.until_service("intranet", "error")
    expect("refused", (await outside(stack, INTRANET)).status_code, 503)
    return str(state["error_message"])


async def operator_allows_it(stack: Stack) -> str:
    expect("exit code", await stack.proxies["proxy"].process.stop(), 0)
    await stack.start_proxy("proxy", allow=["127.0.0.1/32", "127.0.0.9/32"])
    await stack.until_service("intranet", "active")
    expect("served", (await outside(stack, INTRANET)).status_code, 200)
    return "200 after a restart with the network allowed"


async def files_outlive_restarts(stack: Stack) -> str:
    await stack.until_service("wiki", "active")
    answer = await overlay(stack, "alice-laptop", f"http://{WIKI}/")
    expect("identity", identity_seen(answer), ALICE_SEEN)
    return "same key, same port"


# Proxies that cannot serve it -----------------------------------------------------------------------------------------


async def without_the_plugin(stack: Stack) -> str:
    proxy = await stack.start_proxy("bare", plugins=PLUGINS[1:])
    state = await stack.until_service("wiki", "withheld", proxy="bare")
    await stack.until_service("status", "active", proxy="bare")
    expect("wiki from outside", (await outside(stack, WIKI, proxy="bare")).status_code, 404)
    await proxy.process.stop()
    return str(state["withheld"])


async def without_private(stack: Stack) -> str:
    proxy = await stack.start_proxy("public", private=False)
    state = await stack.until_service("wiki", "error", proxy="public")
    expect("wiki from outside", (await outside(stack, WIKI, proxy="public")).status_code, 503)
    await proxy.process.stop()
    return str(state["error_message"])


STORY = (
    Step("management starts: first account, owner, tokens", management_starts),
    Step("a proxy connects with its token", proxy_connects),
    Step("alice (engineering), bob, and their peers", people_and_peers),
    Step("wiki (private, engineering), lobby (private, All), status (public) become active", services),
    Step("the peers' WireGuard files; wiki's server joins as a peer", peers_files),
    Step("alice opens wiki over the overlay: 200, and the upstream knows who she is", alice_opens_wiki),
    Step("alice opens wiki by HTTPS", alice_opens_wiki_by_https),
    Step("alice forges identity headers: the upstream sees only ours", alice_forges_headers),
    Step("alice forges them as trailers in a later segment", alice_forges_trailers),
    Step("bob opens lobby: 200", bob_opens_lobby),
    Step("bob opens wiki: 403, upstream not dialed, and he learns nothing", bob_is_refused),
    Step("the operator asks why", operator_explains),
    Step("a peer that nobody named gets no handshake answer", stranger_gets_no_answer),
    Step("from outside, with every forged header: wiki and lobby are refused", outsiders_are_refused),
    Step("status is public: 200", public_is_public),
    Step("a direct upstream that the proxy's operator has not allowed is refused", direct_needs_the_operator),
    Step("once allowed, it is served", operator_allows_it),
    Step("alice's file is still good after the restart", files_outlive_restarts),
    Step("a proxy without the plugin does not get wiki", without_the_plugin),
    Step("a proxy without `private` refuses wiki", without_private),
)
