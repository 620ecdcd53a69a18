"""Login of a user at the identity provider, from a program without a browser: OAuth 2.0's device grant (RFC 8628).

The user opens an address on any device, confirms the code that the program shows, and logs in there. The program asks
the provider meanwhile, and gets an ID token (OpenID Connect Core 1.0), which management verifies. No secret is stored.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from netbird_peer.errors import LoginFailed

AGENT_LOGIN_PATH: Final = "/api/agent-login"
SCOPE: Final = "openid profile email"
GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
# Maximum time of one request, in seconds.
ASK_SECONDS: Final = 15.0
# The longest time for which a code is waited for, whatever the provider permits, in seconds.
LONGEST_WAIT: Final = 1800.0
# Bounds of the time between two questions, in seconds; RFC 8628 §3.2 has 5 as its default, §3.5 adds 5 on `slow_down`.
LEAST_INTERVAL, DEFAULT_INTERVAL, MOST_INTERVAL, SLOWER_BY = 1.0, 5.0, 60.0, 5.0
# An answer above this size, in bytes, is none of an identity provider.
LONGEST_ANSWER: Final = 262_144
# The longest text of a provider that is shown.
LONGEST_TEXT: Final = 500


@dataclass(frozen=True, slots=True)
class Client:
    """A public client at a provider.

    Attributes:
        issuer: the provider's URL, https, or http on loopback.
        client_id: the client that the provider knows, and that management accepts.
    """

    issuer: str
    client_id: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The words for the user.

    Attributes:
        address: the page to open.
        code: the code to confirm there.
        whole_address: the page with the code filled in; "" if the provider has none.
    """

    address: str
    code: str
    whole_address: str = ""


@dataclass(frozen=True, slots=True)
class _Grant:
    device_code: str
    prompt: Prompt
    interval: float
    expires_in: float


class Login:
    """Logs a user in. `client` is asked of management where the operator named none.

    Args:
        management_url: `https://host[:port]` of management, whose REST API names the provider.
        roots: PEM text of the certificate authorities to trust, or `None` for the system's.
        show: called once with the words for the user.
        pause: waits between two questions to the provider; takes seconds.
    """

    def __init__(
        self,
        management_url: str,
        client: Client | None,
        *,
        roots: bytes | None,
        show: Callable[[Prompt], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._management_url = management_url
        self._client = client
        self._roots = roots
        self._show = show
        self._pause = pause

    async def token(self) -> str:
        """Return an ID token of the user, after they confirmed. Raises LoginFailed."""
        trusted = ssl.create_default_context(cadata=self._roots.decode("ascii") if self._roots is not None else None)
        # Redirects are not followed: an answer from elsewhere would be none of the issuer's.
        async with httpx.AsyncClient(verify=trusted, timeout=ASK_SECONDS, follow_redirects=False) as http:
            client = self._client or await self._named_by_management(http)
            issuer = _checked(client.issuer, "the identity provider's issuer")
            described = await _get(http, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if described.get("issuer") != issuer:
                raise LoginFailed(f"{issuer} reports the issuer {_shown(described.get('issuer'))}")
            grant = await _begun(http, _endpoint(described, "device_authorization_endpoint"), client)
            self._show(grant.prompt)
            try:
                async with asyncio.timeout(grant.expires_in):
                    return await self._confirmed(http, _endpoint(described, "token_endpoint"), client, grant)
            except TimeoutError as error:
                raise LoginFailed("nobody confirmed the login in time: start it again") from error

    async def _named_by_management(self, http: httpx.AsyncClient) -> Client:
        remedy = "name the provider by --issuer and --client-id"
        try:
            # A provider that a stranger on the line names would get the user's password.
            url = _checked(self._management_url, "management's address").rstrip("/") + AGENT_LOGIN_PATH
            status, answer = await _ask(http, "GET", url)
        except LoginFailed as error:
            raise LoginFailed(f"management does not tell its identity provider ({error}): {remedy}") from error
        issuer, client_id = answer.get("issuer"), answer.get("client_id")
        if status != 200 or not isinstance(issuer, str) or not isinstance(client_id, str):
            raise LoginFailed(f"management tells of no identity provider ({url}: {status}): {remedy}")
        return Client(issuer, client_id)

    async def _confirmed(self, http: httpx.AsyncClient, endpoint: str, client: Client, grant: _Grant) -> str:
        """Ask for the token until the user has decided (RFC 8628 §3.4, §3.5)."""
        interval = grant.interval
        form = {"grant_type": GRANT, "device_code": grant.device_code, "client_id": client.client_id}
        while True:
            await self._pause(interval)
            try:
                status, answer = await _ask(http, "POST", endpoint, form)
            except LoginFailed:
                status, answer = 502, {}
            if status >= 500:
                # The provider may be back before the code expires (§3.5 asks for a slower rate).
                interval = min(interval * 2, MOST_INTERVAL)
                continue
            if status == 200:
                if not isinstance(token := answer.get("id_token"), str):
                    raise LoginFailed("the identity provider sent no ID token")
                return token
            match answer.get("error"):
                case "authorization_pending":
                    pass
                case "slow_down":
                    interval = min(interval + SLOWER_BY, MOST_INTERVAL)
                case "access_denied":
                    raise LoginFailed("the login was refused at the identity provider")
                case "expired_token":
                    raise LoginFailed("nobody confirmed the login in time: start it again")
                case _:
                    raise LoginFailed(f"the identity provider refused the login: {_error(status, answer)}")


async def _begun(http: httpx.AsyncClient, endpoint: str, client: Client) -> _Grant:
    """Ask for a code (RFC 8628 §3.1, §3.2)."""
    status, answer = await _ask(http, "POST", endpoint, {"client_id": client.client_id, "scope": SCOPE})
    if status != 200:
        raise LoginFailed(f"the identity provider refused to begin a login: {_error(status, answer)}")
    code, user_code, address = (answer.get(name) for name in ("device_code", "user_code", "verification_uri"))
    if not (isinstance(code, str) and isinstance(user_code, str) and isinstance(address, str)):
        raise LoginFailed(f"{endpoint} answers without a code")
    whole = answer.get("verification_uri_complete")
    prompt = Prompt(
        _checked(_printable(address), "the identity provider's page"),
        _printable(user_code),
        _checked(_printable(whole), "the identity provider's page") if isinstance(whole, str) else "",
    )
    interval = _seconds(answer.get("interval"), DEFAULT_INTERVAL)
    expires_in = min(_seconds(answer.get("expires_in"), LONGEST_WAIT), LONGEST_WAIT)
    return _Grant(code, prompt, min(max(interval, LEAST_INTERVAL), MOST_INTERVAL), expires_in)


async def _get(http: httpx.AsyncClient, url: str) -> Mapping[str, Any]:
    status, answer = await _ask(http, "GET", url)
    if status != 200:
        raise LoginFailed(f"{url} answers {status}")
    return answer


async def _ask(
    http: httpx.AsyncClient, method: str, url: str, form: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, Any]]:
    """Return the status and the JSON object of an answer, which is empty for other bodies. Raises LoginFailed if there
    is no answer."""
    try:
        async with http.stream(method, url, data=form, headers={"accept": "application/json"}) as answer:
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > LONGEST_ANSWER:
                    raise LoginFailed(f"{url}: the answer is too large")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LoginFailed(f"{url}: {error or type(error).__name__}") from error
    try:
        parsed = httpx.Response(answer.status_code, content=body).json()
    except ValueError:
        parsed = None
    return answer.status_code, parsed if isinstance(parsed, dict) else {}


def _endpoint(described: Mapping[str, Any], name: str) -> str:
    if not isinstance(url := described.get(name), str):
        raise LoginFailed(f"the identity provider has no {name}: it cannot log in a device")
    return _checked(url, f"its {name}")


def _checked(url: str, name: str) -> str:
    """Return the URL. Raises LoginFailed if it is neither https nor on loopback: others could answer."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise LoginFailed(f"{name} is no URL: {_shown(url)}") from None
    if host and (parts.scheme == "https" or (parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1"))):
        return url
    raise LoginFailed(f"{name} must be an https:// address, not {_shown(url)}")


def _seconds(value: object, default: float) -> float:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9 else default
    )


def _error(status: int, answer: Mapping[str, Any]) -> str:
    parts = [answer.get(name) for name in ("error", "error_description")]
    return ": ".join(_printable(part) for part in parts if isinstance(part, str)) or f"status {status}"


def _shown(value: object) -> str:
    return repr(str(value)[:LONGEST_TEXT])


def _printable(text: str) -> str:
    """Return the text without characters that could change the terminal, at most `LONGEST_TEXT` of it."""
    return "".join(character for character in text[:LONGEST_TEXT] if character.isprintable())
