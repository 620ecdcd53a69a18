"""Single sign-on by a certified provider, in a real browser over TLS, on real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from examples.demo.processes import BIN
from examples.demo.stack import CLUSTER, Stack, stack
from tests.e2e.browser import chromium
from tests.e2e.test_logins import add, picture, secret, upstream_saw, url

pytestmark = [pytest.mark.live, pytest.mark.timeout(180), pytest.mark.asyncio(loop_scope="module")]

SESSION = "__Host-nb_session"
OIDC = Path(__file__).parent / "oidc"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A provider, management that knows it, two proxies of one cluster, and two services; alice is invited."""
    directory: Path = tmp_path_factory.mktemp("sign-on")
    node = shutil.which("node")
    assert node, "node is not installed"
    assert (OIDC / "node_modules").is_dir(), "run `make system`, which installs the provider"
    async with stack(directory) as made:
        await made.start_management()
        callback = f"{made.rest}/api/reverse-proxy/callback"
        provider = await made.processes.start("provider", [node, str(OIDC / "provider.mjs"), callback])
        issuer = (await provider.until_line(r"ready (http://\S+:\d+)"))[1]
        await made.management.stop()
        file = directory / "management.toml"
        # One address for both interfaces, so that an agent finds the provider by the address that it has.
        file.write_text(file.read_text().replace("[rest]\n", "[rest]\ngrpc = true\n"))
        with file.open("a") as settings:
            settings.write(
                f'[oidc]\nissuer = "{issuer}"\nclient_id = "management"\nclient_secret = "client-secret"\n'
                f'callback_url = "{callback}"\nagent_client_ids = ["agents"]\n'
            )
        await made.restart_management()
        for name in ("proxy", "second"):
            await made.start_proxy(name, plugins=("identity_headers", "direct_upstream"), private=False)
        await made.start_upstream("app")
        made.ids["crew group"] = (await made.api.post("/groups", {"name": "crew"}))["id"]
        made.ids["staff"] = (await made.api.post("/groups", {"name": "staff"}))["id"]
        user = {"email": "alice@people.example", "role": "user", "auto_groups": [made.ids["crew group"]]}
        made.ids["alice"] = (await made.api.post("/users", user))["id"]
        await add(made, "app", {"bearer_auth": {"enabled": True, "distribution_groups": []}})
        await add(
            made,
            "mixed",
            {"bearer_auth": {"enabled": True, "distribution_groups": []}, "password_auth": secret("password", "x")},
        )
        await add(made, "crew", {"bearer_auth": {"enabled": True, "distribution_groups": [made.ids["crew group"]]}})
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(running: Stack) -> AsyncIterator[Browser]:
    async with chromium(running.certificates.chain, CLUSTER) as opened:
        yield opened


async def log_in_as(page: Page, who: str) -> None:
    """At the provider: a name, any password, and consent."""
    await page.locator("input[name=login]").fill(who)
    await page.locator("input[name=password]").fill("any")
    await page.locator("button[type=submit]").click()
    await page.get_by_role("button", name="Continue").click()


async def test_login_ends_at_the_page_with_its_query(running: Stack, browser: Browser) -> None:
    """From a deep link through the provider and back to it; the upstream hears who came, and nobody hears a secret."""
    page = await browser.new_page()
    seen: list[str] = []
    page.on("request", lambda request: seen.append(request.url))
    await page.goto(url(running, "/reports/a%20b?year=2026&x=%3C%26"))
    await picture(page, "provider")
    await log_in_as(page, "alice")

    await page.wait_for_url(url(running, "/reports/a%20b?year=2026&x=%3C%26"))
    saw = await upstream_saw(page)
    headers = {name.lower(): value for name, value in saw["headers"]}
    assert saw["target"] == "/reports/a%20b?year=2026&x=%3C%26"
    assert (headers["x-netbird-user"], headers["x-netbird-groups"]) == ("alice@people.example", "crew")
    assert not {"cookie", "referer"} & headers.keys()
    assert "session_token" not in page.url
    cookies = await page.context.cookies(url(running, "/"))
    assert [cookie["name"] for cookie in cookies if cookie["name"].startswith("__Host-nb")] == ["__Host-nb_session"]
    (token,) = [cookie["value"] for cookie in cookies if cookie["name"] == "__Host-nb_session"]
    await page.context.close()
    for process in ("proxy", "second", "management"):
        assert token not in (running.directory / "logs" / f"{process}.log").read_text()


async def test_page_with_both_ways(running: Stack, browser: Browser) -> None:
    """A password or single sign-on, on one page; the link leads to the provider."""
    page = await browser.new_page()
    await page.goto(url(running, "/", "mixed"))
    await picture(page, "login-both")
    await page.get_by_role("link", name="single sign-on").click()
    await expect(page.locator("input[name=login]")).to_be_visible()
    await page.context.close()


async def test_stranger_waits_for_approval(running: Stack, browser: Browser) -> None:
    """An unknown person is told to wait, an administrator lets them in, and the next login opens the page."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(url(running, "/"))
    await log_in_as(page, "mallory-unverified")
    await expect(page.get_by_text("Your account is waiting for an administrator's approval.")).to_be_visible()
    await picture(page, "stranger")

    users = await running.api.get("/users")
    (stranger,) = [user for user in users if user["pending_approval"]]
    assert stranger["email"] == ""
    await running.api.post(f"/users/{stranger['id']}/approve", {})
    await page.goto(url(running, "/later?a=b"))
    await page.wait_for_url(url(running, "/later?a=b"))
    await context.close()


async def test_blocking_somebody_counts_at_once(running: Stack, browser: Browser) -> None:
    """A session that was open is over, on every proxy, within the bound of a revocation."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(url(running, "/"))
    await log_in_as(page, "alice")
    await page.wait_for_url(url(running, "/"))
    body = {"role": "user", "auto_groups": [running.ids["crew group"]], "is_blocked": True}
    await running.api.put(f"/users/{running.ids['alice']}", body)

    async with asyncio.timeout(5):
        while (status := await page.evaluate("fetch('/').then(answer => answer.status)")) == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the proxy hears of it by its stream, and tells nobody
    assert status in (401, 403)
    body["is_blocked"] = False
    await running.api.put(f"/users/{running.ids['alice']}", body)
    await context.close()


@asynccontextmanager
async def opened(running: Stack, target: str, cookie: str) -> AsyncIterator[asyncio.StreamReader]:
    """A stream of the crew's service that has begun, for as long as its caller may have it."""
    trusted = ssl.create_default_context(cafile=str(running.certificates.authority))
    host = f"crew.{CLUSTER}"
    port = running.proxies["proxy"].https
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusted, server_hostname=host)
    try:
        upgrade = "connection: Upgrade\r\nupgrade: websocket\r\n" if target == "/__echo__" else ""
        head = f"GET {target} HTTP/1.1\r\nhost: {host}:{port}\r\ncookie: {SESSION}={cookie}\r\n{upgrade}\r\n"
        writer.write(head.encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert answer.startswith(b"HTTP/1.1 101" if upgrade else b"HTTP/1.1 200"), answer
        if upgrade:
            writer.write(b"ping")
            assert await asyncio.wait_for(reader.readexactly(4), 20) == b"ping"
        yield reader
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


async def ended(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while await reader.read(65536):
            pass


@pytest.mark.parametrize("how", ["blocked", "out of the group", "logged out"])
async def test_what_is_open_ends_with_access(running: Stack, browser: Browser, how: str) -> None:
    """A page without end and an upgraded connection are cut when whoever opened them may not any more."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(url(running, "/", "crew"))
    await log_in_as(page, "alice")
    await page.wait_for_url(url(running, "/", "crew"))
    cookies = await context.cookies(url(running, "/", "crew"))
    (cookie,) = [one["value"] for one in cookies if one["name"] == SESSION]
    body = {"role": "user", "auto_groups": [running.ids["crew group"]], "is_blocked": False}
    async with (
        opened(running, "/__drip__", cookie) as page_without_end,
        opened(running, "/__echo__", cookie) as upgraded,
    ):
        if how == "logged out":
            await page.goto(url(running, "/__netbird__/session/logout", "crew"))
            await page.get_by_role("button", name="Log out").click()
        else:
            change = {"is_blocked": True} if how == "blocked" else {"auto_groups": []}
            await running.api.put(f"/users/{running.ids['alice']}", {**body, **change})
        await asyncio.wait_for(asyncio.gather(ended(page_without_end), ended(upgraded)), 5)
    await running.api.put(f"/users/{running.ids['alice']}", body)
    await context.close()


async def test_member_of_the_cluster_finishes_what_another_began(running: Stack, browser: Browser) -> None:
    """The proxy that sent the browser away dies meanwhile; the other one takes it in, at the page that was wanted."""
    context = await browser.new_context()
    page = await context.new_page()
    first, second = running.proxies["proxy"].https, running.proxies["second"].https
    await page.goto(url(running, "/deep?x=1"))
    await page.locator("input[name=login]").fill("alice")
    await page.locator("input[name=password]").fill("any")
    await page.locator("button[type=submit]").click()
    await expect(page.get_by_role("button", name="Continue")).to_be_visible()
    await running.proxies["proxy"].process.stop()

    async with page.expect_request(f"https://app.{CLUSTER}:{first}/__netbird__/session/return**") as back:
        await page.get_by_role("button", name="Continue").click(no_wait_after=True)
    place = (await back.value).url.replace(f":{first}/", f":{second}/")
    other = await context.new_page()  # the first one shows that nobody is there
    await other.goto(place)

    await other.wait_for_url(f"https://app.{CLUSTER}:{second}/deep?x=1")
    assert (await upstream_saw(other))["target"] == "/deep?x=1"
    await context.close()


async def test_an_agents_user_logs_in_by_a_code(running: Stack, browser: Browser) -> None:
    """`netbird-peer up --sso` shows an address and a code; whoever confirms it in a browser owns the new peer."""
    argv = [str(BIN / "netbird-peer"), "up", "--management-url", running.rest, "--hostname", "alices-laptop"]
    argv += ["--loopback", "--sso", "--state", str(running.directory / "agent")]
    agent = await running.processes.start("agent", argv)
    address = (await agent.until_line(r"With the code filled in: (http://127\.0\.0\.1:\S+)"))[1]
    page = await browser.new_page()
    await page.goto(address)
    await page.get_by_role("button", name="Continue").click()
    await log_in_as(page, "alice")

    await agent.until_line(r"^ready on ")
    peers = await running.api.get("/peers")
    assert [peer["user_id"] for peer in peers if peer["hostname"] == "alices-laptop"] == [running.ids["alice"]]
    assert await agent.stop() == 0
    await page.close()


async def test_the_providers_package_names_no_registry() -> None:
    """The lock file pins versions and hashes, and says nothing of where they came from."""
    lock = json.loads((OIDC / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
