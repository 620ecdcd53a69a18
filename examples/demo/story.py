"""The story: the access of each user, the identity headers, and the denials. A step raises if a promise is broken."""

from __future__ import annotations

import asyncio
import base64
import os
import re

import httpx

from examples.demo.agents import AGENTS
from examples.demo.calls import (
    ALICE,
    ALICE_SEEN,
    BOB,
    FORGED,
    INTRANET,
    LOBBY,
    STATUS,
    WIKI,
    Answer,
    Step,
    StoryFailed,
    add_service,
    direct,
    expect,
    identity_seen,
    outside,
    overlay,
)
from examples.demo.changes import CHANGES
from examples.demo.stack import CLUSTER, PLUGINS, Stack
from netbird_overlay.wgconf import parse_config
from netbird_peer.node import peer_node

# Setup ----------------------------------------------------------------------------------------------------------------


async def management_starts(stack: Stack) -> str:
    await stack.start_management()
    return f"REST {stack.rest}, gRPC {stack.grpc}"


async def proxy_connects(stack: Stack) -> str:
    proxy = await stack.start_proxy("proxy")
    async with asyncio.timeout(15):
        clusters = await stack.online_clusters()
        while not clusters:
            await asyncio.sleep(0.05)
            clusters = await stack.online_clusters()
    expect("cluster", clusters[0]["address"], CLUSTER)
    expect("cluster serves private services", clusters[0]["private"], True)
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
    for name in ("lobby", "status"):
        state = await stack.until_service(name, "active")
    waiting = await stack.until_service("wiki", "tunnel_not_created")
    return f"listening in the tunnel on {state['inbound_listener']['tunnel_ip']}; wiki: {waiting['error_message']}"


async def peers_files(stack: Stack) -> str:
    for name in ("alice-laptop", "bob-laptop", "wiki-server"):
        await stack.write_peer_file(name)
    argv = [str(stack.configs["wiki-server"]), f"8080=127.0.0.1:{stack.upstreams['wiki']}"]
    await stack.start_wiki_server(*argv)
    await stack.until_service("wiki", "active")
    return f"{stack.configs['alice-laptop']}"


# Calls over the overlay -----------------------------------------------------------------------------------------------


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
        # The trailers are sent in a segment of their own, after the upstream has the head and the body.
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
    page = answer.body.lower()
    for secret in ("engineering", "private_service", "100.", BOB):
        if secret in page:
            raise StoryFailed(f"bob was told {secret!r}: {answer.body!r}")
    stack.ids["refused exchange"] = answer.exchange
    return answer.body.strip().replace("\n", " ")


async def operator_explains(stack: Stack) -> str:
    story = await stack.explain("proxy", stack.ids["refused exchange"])
    for words in ("private_service", "not_in_group", "engineering", "All", BOB, "not dialed"):
        if words not in story:
            raise StoryFailed(f"explain does not say {words!r}:\n{story}")
    return "\n" + story.rstrip()


async def stranger_gets_no_answer(stack: Stack) -> str:
    """The WireGuard handshake of a key that is not in the account's map is not answered."""
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


async def outsiders_are_refused(stack: Stack) -> str:
    for host in (WIKI, LOBBY):
        for tls in (False, True):
            answer = await outside(stack, host, tls=tls)
            expect(f"{host} from outside", (answer.status_code, "tunnel_required" in answer.text), (403, True))
    return "403 tunnel_required, by HTTP and HTTPS"


async def public_is_public(stack: Stack) -> str:
    answer = await outside(stack, STATUS)
    result = Answer(answer.status_code, answer.headers, answer.text)
    expect("identity", identity_seen(result), [])
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


# Proxies without the plugin -------------------------------------------------------------------------------------------


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
    Step("lobby (private, All), status (public) are active; wiki (private, engineering) waits for its peer", services),
    Step("the peers' WireGuard files; wiki's server joins as a peer, and wiki becomes active", peers_files),
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
    *AGENTS,
    *CHANGES,
)
