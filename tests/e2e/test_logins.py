"""Logging in with a real browser over TLS, on real processes."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from examples.demo.stack import CLUSTER, Stack, stack
from examples.demo.story import direct
from tests.e2e.browser import chromium

pytestmark = [pytest.mark.live, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

PICTURES = os.environ.get("PICTURES", "")
"""A directory for pictures of the pages, for people to look at."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Management, a proxy, and a service with a password and a PIN."""
    directory: Path = tmp_path_factory.mktemp("logins")
    async with stack(directory) as made:
        await made.start_management()
        await made.start_proxy("proxy", plugins=("identity_headers", "direct_upstream"), private=False)
        await made.start_upstream("app")
        await add(made, "app", {"password_auth": secret("password", "right horse"), "pin_auth": secret("pin", "1234")})
        yield made


def secret(kind: str, value: str) -> dict[str, Any]:
    return {"enabled": True, kind: value}


async def add(stack: Stack, name: str, auth: dict[str, Any]) -> None:
    body = {
        "name": name,
        "domain": f"{name}.{CLUSTER}",
        "mode": "http",
        "enabled": True,
        "auth": auth,
        "targets": [{"protocol": "http", "path": "/", "enabled": True, **direct("127.0.0.1", stack.upstreams["app"])}],
    }
    made = await stack.api.post("/reverse-proxies/services", body)
    stack.ids[name] = made["id"]
    await stack.until_service(name, "active")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(running: Stack) -> AsyncIterator[Browser]:
    async with chromium(running.certificates.chain, CLUSTER) as opened:
        yield opened


def url(running: Stack, path: str, name: str = "app") -> str:
    return f"https://{name}.{CLUSTER}:{running.proxies['proxy'].https}{path}"


async def picture(page: Page, name: str) -> None:
    if PICTURES:
        await page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


async def upstream_saw(page: Page) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(await page.locator("pre").inner_text())
    return shown


async def test_password_login_in_a_browser_without_scripts(running: Stack, browser: Browser) -> None:
    """By the keyboard alone, and with JavaScript off: to the page that was wanted, query and all, and out again."""
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    answer = await page.goto(url(running, "/reports/a%20b?year=2026&x=%3C%26"))
    assert answer is not None
    assert answer.status == 401
    await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    await picture(page, "login")

    await page.keyboard.type("wrong")  # the field has the focus already
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("That was not right")
    await picture(page, "login-wrong")
    await page.get_by_label("Password", exact=True).fill("right horse")
    await page.keyboard.press("Enter")

    await page.wait_for_url(url(running, "/reports/a%20b?year=2026&x=%3C%26"))
    saw = await upstream_saw(page)
    assert saw["target"] == "/reports/a%20b?year=2026&x=%3C%26"
    assert not [name for name, _ in saw["headers"] if name.lower() == "cookie"]
    (cookie,) = await context.cookies()
    assert (cookie["name"], cookie["secure"], cookie["httpOnly"]) == ("__Host-nb_session", True, True)

    await page.goto(url(running, "/__netbird__/session/logout"))
    await picture(page, "logout")
    await page.get_by_role("button", name="Log out").click()
    await expect(page.get_by_role("status")).to_contain_text("logged out")
    await context.add_cookies([cookie])  # a copy that somebody kept
    again = await page.goto(url(running, "/"))
    assert again is not None
    assert again.status == 401
    await context.close()


async def test_pin_login(running: Stack, browser: Browser) -> None:
    """The same with the other form of the same page."""
    page = await browser.new_page()
    await page.goto(url(running, "/x?y=z"))

    await page.get_by_label("PIN", exact=True).fill("1234")
    await page.get_by_role("form", name="Log in with PIN").get_by_role("button").click()

    await page.wait_for_url(url(running, "/x?y=z"))
    assert (await upstream_saw(page))["target"] == "/x?y=z"
    await page.context.close()


CONTRAST = """() => {
  const light = text => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
      .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
  };
  return [...document.querySelectorAll('h1, p, label, button, a, code, strong, input')].map(element => {
    const pair = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    return [element.tagName, (pair[0] + 0.05) / (pair[1] + 0.05)];
  });
}"""
"""The contrast of each piece of text with what is behind it, as WCAG 2 counts it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_are_for_all_eyes_and_hands(running: Stack, browser: Browser, scheme: Any) -> None:
    """Text stands out from its ground, fields have names, and the keyboard goes through a page from top to bottom."""
    context = await browser.new_context(color_scheme=scheme)
    page = await context.new_page()
    for where in (url(running, "/"), url(running, "/__netbird__/session/logout"), url(running, "/", "nowhere")):
        await page.goto(where)
        poor = [(tag, ratio) for tag, ratio in await page.evaluate(CONTRAST) if ratio < 4.5]
        assert poor == []
        assert await page.evaluate("document.documentElement.lang") == "en"
        assert len(await page.get_by_role("heading", level=1).all()) == 1

    await page.goto(url(running, "/"))
    walked = []
    for _ in range(4):
        walked.append(await page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        await page.keyboard.press("Tab")
    assert walked == ["password-password", "Log in with password", "pin-pin", "Log in with PIN"]
    for name in ("Password", "PIN"):
        await expect(page.get_by_label(name, exact=True)).to_have_attribute("type", "password")
    await page.get_by_label("PIN", exact=True).fill("0000")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_contain_text("That was not right")
    await expect(page.get_by_label("PIN", exact=True)).to_be_focused()
    assert (
        await page.evaluate("document.getElementById(document.activeElement.getAttribute('aria-describedby')).role")
        == "alert"
    )
    await context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_in_light_and_dark(running: Stack, browser: Browser, scheme: Any) -> None:
    """Each fits a phone, loads nothing from elsewhere, and its style is let in by its own policy."""
    context: BrowserContext = await browser.new_context(
        color_scheme=scheme, viewport={"width": 360, "height": 640}, locale="en"
    )
    page = await context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    for name, where, status in (
        (f"login-{scheme}", url(running, "/"), 401),
        (f"missing-{scheme}", url(running, "/", "nowhere"), 404),
    ):
        answer = await page.goto(where)
        assert answer is not None
        assert answer.status == status
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(243, 244, 247)" if scheme == "light" else "rgb(18, 20, 26)")
        await picture(page, name)
    assert {one.split("/")[2].partition(":")[0] for one in asked} == {f"app.{CLUSTER}", f"nowhere.{CLUSTER}"}
    assert not [one for one in complaints if "Content Security Policy" in one]
    await context.close()
