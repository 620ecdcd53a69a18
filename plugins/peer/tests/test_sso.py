"""A user's login at an identity provider by a code (RFC 8628), as `netbird-peer up --sso` does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from netbird_peer.errors import LoginFailed
from netbird_peer.sso import GRANT, LONGEST_ANSWER, MOST_INTERVAL, Client, Login, Prompt
from plugins.peer.tests.fake_provider import FakeProvider, serving_provider

pytestmark = pytest.mark.timeout(30)


@dataclass
class Lab:
    provider: FakeProvider
    prompts: list[Prompt] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def token(self, client: Client | None = None, *, management_url: str = "") -> str:
        url = management_url or self.provider.url
        return await Login(url, client, roots=None, show=self.prompts.append, pause=self._pause).token()

    async def refused(self, client: Client | None = None, *, management_url: str = "") -> str:
        with pytest.raises(LoginFailed) as refused:
            await self.token(client, management_url=management_url)
        return str(refused.value)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    provider = FakeProvider()
    async with serving_provider(provider):
        yield Lab(provider)


def pending(error: str = "authorization_pending") -> tuple[int, dict[str, Any]]:
    return 400, {"error": error}


GRANTED = (200, {"access_token": "a", "token_type": "Bearer", "id_token": "h.p.s"})


async def test_a_confirmed_code_is_worth_a_token(lab: Lab) -> None:
    """Management names the provider, the user gets an address and a code, the provider is asked until they agree."""
    lab.provider.granted = {"interval": 2, "verification_uri_complete": f"{lab.provider.url}/page?code=WDJB-MJHT"}
    lab.provider.answers = [pending(), pending(), GRANTED]
    assert await lab.token() == "h.p.s"
    page = f"{lab.provider.url}/page"
    assert lab.prompts == [Prompt(page, "WDJB-MJHT", f"{page}?code=WDJB-MJHT")]
    assert lab.pauses == [2, 2, 2]
    assert lab.provider.forms[0] == {"client_id": "agents", "scope": "openid profile email"}
    assert lab.provider.forms[1] == {"grant_type": GRANT, "device_code": "d-1", "client_id": "agents"}


async def test_the_operator_may_name_the_provider(lab: Lab) -> None:
    """With an issuer and a client, management is not asked, as NetBird's has no such question."""
    lab.provider.named = PlainTextResponse("not found", 404)
    lab.provider.answers = [GRANTED]
    assert await lab.token(Client(lab.provider.url, "mine")) == "h.p.s"
    assert lab.provider.forms[0]["client_id"] == "mine"


async def test_a_provider_that_is_asked_too_often_or_is_away_is_asked_less(lab: Lab) -> None:
    """`slow_down` adds five seconds, a failure doubles the pause, and neither ends the login."""
    lab.provider.answers = [pending("slow_down"), pending(), (502, None), GRANTED]
    assert await lab.token() == "h.p.s"
    assert lab.pauses == [5, 10, 10, 20]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (pending("access_denied"), "the login was refused at the identity provider"),
        (pending("expired_token"), "nobody confirmed the login in time: start it again"),
        ((400, {"error": "invalid_grant", "error_description": "x\x1b[2Jy\n"}), "invalid_grant: x[2Jy"),
        ((200, {"access_token": "a"}), "the identity provider sent no ID token"),
        ((200, {"id_token": 7}), "the identity provider sent no ID token"),
        ((418, {}), "status 418"),
    ],
)
async def test_a_login_that_fails_is_one_sentence(lab: Lab, answer: tuple[int, Any], sentence: str) -> None:
    """The sentence has the provider's words, without characters that change a terminal."""
    lab.provider.answers = [answer]
    assert (await lab.refused()).endswith(sentence)


async def test_a_code_that_nobody_confirms_expires(lab: Lab) -> None:
    """The provider's time ends the login though it still says `authorization_pending`."""
    lab.provider.granted = {"expires_in": 0.2}
    lab.provider.answers = [pending()] * 100_000
    assert await lab.refused() == "nobody confirmed the login in time: start it again"


@pytest.mark.parametrize(
    ("granted", "sentence"),
    [
        ({"device_code": None}, "answers without a code"),
        ({"user_code": 7}, "answers without a code"),
        ({"verification_uri": "javascript:alert(1)"}, "must be an https:// address, not 'javascript:alert(1)'"),
        (
            {"verification_uri_complete": "http://evil.example/"},
            "must be an https:// address, not 'http://evil.example/'",
        ),
    ],
)
async def test_a_code_that_cannot_be_confirmed_is_refused(lab: Lab, granted: dict[str, Any], sentence: str) -> None:
    """Missing parts, and pages that a stranger on the line could replace."""
    lab.provider.granted = granted
    assert (await lab.refused()).endswith(sentence)
    assert lab.prompts == []


@pytest.mark.parametrize("interval", [0, -1, "5", None, True, 1e300])
async def test_a_pause_that_is_none_is_the_default(lab: Lab, interval: object) -> None:
    """RFC 8628 §3.2: five seconds."""
    lab.provider.granted = {"interval": interval}
    lab.provider.answers = [GRANTED]
    assert await lab.token() == "h.p.s"
    assert lab.pauses == [5]


async def test_a_long_pause_is_bounded(lab: Lab) -> None:
    """A provider cannot make the user wait for an hour after their confirmation."""
    lab.provider.granted = {"interval": 3600}
    lab.provider.answers = [GRANTED]
    await lab.token()
    assert lab.pauses == [MOST_INTERVAL]


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        ({"issuer": "https://other.example"}, "reports the issuer 'https://other.example'"),
        ({"device_authorization_endpoint": None}, "has no device_authorization_endpoint: it cannot log in a device"),
        (
            {"device_authorization_endpoint": "http://evil.example/"},
            "must be an https:// address, not 'http://evil.example/'",
        ),
        ({"token_endpoint": "ftp://127.0.0.1/"}, "must be an https:// address, not 'ftp://127.0.0.1/'"),
    ],
)
async def test_a_provider_of_another_name_or_without_tls_is_refused(
    lab: Lab, described: dict[str, Any], sentence: str
) -> None:
    """The issuer must be the named one (OpenID Connect Discovery 1.0 §4.3), and all its addresses https."""
    lab.provider.described = described
    lab.provider.answers = [GRANTED]
    assert (await lab.refused()).endswith(sentence)


@pytest.mark.parametrize(
    "named",
    [
        PlainTextResponse("not found", 404),
        PlainTextResponse("<html>", 200),
        JSONResponse({"issuer": 7, "client_id": "agents"}),
        JSONResponse(["https://login.example"]),
        PlainTextResponse("", 302, {"location": "/elsewhere"}),
        PlainTextResponse("x" * (LONGEST_ANSWER + 1)),
    ],
)
async def test_a_management_that_names_no_provider_is_an_error_with_its_remedy(lab: Lab, named: Response) -> None:
    """NetBird's management, one without a provider, and nonsense."""
    lab.provider.named = named
    assert (await lab.refused()).endswith("name the provider by --issuer and --client-id")


async def test_a_management_without_tls_does_not_name_the_provider(lab: Lab) -> None:
    """A stranger on the line would name one of theirs, and get the user's password."""
    sentence = await lab.refused(management_url="http://management.example:8080")
    assert "must be an https:// address" in sentence
    assert (await lab.refused(Client("http://login.example", "agents"))).endswith("not 'http://login.example'")
