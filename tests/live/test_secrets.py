"""Promise 5: planted secrets are looked for in everything that a full run on real processes lets out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.live.secrets_run import Run, played

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

ALLOWED = {
    # What it is for: the operator's own header goes to the upstream, and management shows a service's settings.
    "custom header": {"upstream", "REST"},
    # The client's own: its query goes where its path goes, and comes back on the page that logs it in.
    "query string": {"upstream", "pages"},
    # `session_token` and cookies of those names never pass; a page that logs in keeps the query as it was.
    "foreign session": {"pages"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run for all questions."""

    async def play(directory: Path) -> Run:
        async with played(directory) as made:
            return made

    return asyncio.run(play(tmp_path_factory.mktemp("secrets")))


KINDS = (
    "session cookie", "proxy token", "personal access token", "one-time token", "password", "PIN", "header value",
    "WireGuard private key", "custom header", "query string", "foreign session",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_promise_5_a_planted_secret_stays_where_it_belongs(run: Run, kind: str) -> None:
    """It was planted, and stands in no log, span, page, error, admin answer or upstream byte where it may not."""
    assert run.secrets[kind], "nothing was planted"
    leaks = {place: text for place, text in run.leaks().get(kind, {}).items() if place not in ALLOWED.get(kind, ())}
    assert not leaks


@pytest.mark.parametrize(
    ("place", "mark"),
    [
        ("pages", b"exchange"),
        ("log of proxy", b"proxy.ready"),
        ("log of management", b"ready rest="),
        ("access log", b"/reports"),
        ("spans", b"url.path"),
        ("upstream", b"X-Custom"),
        ("admin socket", b"vault.proxy.demo.example"),
        ("command line", b"management"),
        ("REST", b"header_auths"),
    ],
)
def test_the_places_were_looked_at(run: Run, place: str, mark: bytes) -> None:
    """Each has what a full run leaves there, or the search would prove nothing."""
    assert mark.lower() in run.places[place].lower()
