"""Client of the OpenID Connect identity provider: discovery, login requests, and validation of tokens."""

import asyncio
import time
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from authlib.common.errors import AuthlibBaseError
from authlib.deprecate import AuthlibDeprecationWarning
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from netbird_management.login.settings import OidcSettings

with warnings.catch_warnings():
    # Authlib warns that it prefers the successor of httpx, which this project does not use.
    warnings.simplefilter("ignore", AuthlibDeprecationWarning)
    from authlib.integrations.httpx_client import AsyncOAuth2Client

# Time for which the provider's metadata and keys are cached. An unknown key causes an earlier read.
KNOWN_SECONDS: Final = 3600.0
# Minimum time between reads of the keys that are caused by unverified bearer tokens, which any client can forge.
STRANGER_SECONDS: Final = 60.0
# Maximum time of a request to the provider; on expiry `ProviderFailed`.
ASK_SECONDS: Final = 10.0
# Time after a failure of the provider during which callers get the same failure without a new request.
FAILED_SECONDS: Final = 5.0
LEEWAY_SECONDS: Final = 30
# No symmetric algorithm: its key would be the client secret, which could then sign tokens for any user.
_ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class ProviderFailed(Exception):
    """The provider cannot be reached, or its answer is invalid. The message contains no secret."""


class LoginRefused(Exception):
    """The provider's answer does not identify a person."""


@dataclass(frozen=True, slots=True)
class Person:
    """A person as the provider identifies them. `email` is "" unless the provider reports it as verified.

    `account` is the value of the configured claim, "" if the claim is missing or not usable.
    """

    issuer: str
    subject: str
    email: str = ""
    name: str = ""
    account: str = ""


class IdentityProvider:
    """The OpenID Connect client of one issuer. Belongs to one event loop."""

    def __init__(
        self,
        settings: OidcSettings,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._transport = transport
        self._clock = clock
        self._described: tuple[dict[str, Any], float] | None = None
        self._keys: tuple[KeySet, float] | None = None
        # The last failure, and the time until which callers get it without a new request.
        self._failed: tuple[str, float] | None = None
        self._asking = asyncio.Lock()

    async def login_url(self, *, state: str, verifier: str, nonce: str) -> str:
        """The URL to which a browser is sent to log in. Raises `ProviderFailed`."""
        described = await self._description()
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                described["authorization_endpoint"], state=state, code_verifier=verifier, nonce=nonce
            )
        return str(url)

    async def person(self, *, code: str, verifier: str, nonce: str) -> Person:
        """The person who logged in, by the code that their browser brought back. Raises `ProviderFailed`,
        `LoginRefused`."""
        described = await self._description()
        try:
            async with self._client() as client:
                answer = await client.fetch_token(
                    described["token_endpoint"], grant_type="authorization_code", code=code, code_verifier=verifier
                )
        except AuthlibBaseError as error:
            raise ProviderFailed(f"the provider refused the code: {error.error}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise ProviderFailed(f"the token endpoint: {type(error).__name__}") from error
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise LoginRefused("the provider sent no ID token")
        return _person(await self._claims(token, nonce), self.settings)

    async def bearer(self, token: str) -> Person:
        """The person of a bearer token that the provider issued for us outside of a login. Raises like `person`.

        Any client can send a forged token, so a token that does not verify rarely causes a new read of the keys.
        """
        return _person(await self._claims(token, None), self.settings)

    async def agent(self, token: str) -> Person:
        """The person of a token that an agent got from the provider, as this client or as one of `agent_client_ids`.
        Raises like `person`."""
        clients = (self.settings.client_id, *self.settings.agent_client_ids)
        return _person(await self._claims(token, None, clients), self.settings)

    async def _claims(self, token: str, nonce: str | None, clients: Sequence[str] = ()) -> dict[str, Any]:
        """The claims of a token, after checks of its signature, issuer, audience and time. A `nonce` of `None` is not
        checked. `clients` are the clients for which the token may be issued, by default this one. Raises
        `ProviderFailed`, `LoginRefused`."""
        clients = clients or (self.settings.client_id,)
        claims: dict[str, Any] | None = None
        header: Mapping[str, Any] = {}
        for fresh in (False, True):
            if fresh and nonce is None and not self._keys_may_have_changed():
                raise LoginRefused("the token does not verify")
            keys = await self._key_set(fresh=fresh)
            try:
                decoded = jwt.decode(token, keys, algorithms=_ALGORITHMS)
                claims, header = decoded.claims, decoded.header
                break
            except (JoseError, ValueError) as error:
                if fresh:  # the keys were read again, so the key is not a new one
                    raise LoginRefused(f"the ID token: {type(error).__name__}") from error
        required: dict[str, Any] = {} if nonce is None else {"nonce": {"essential": True, "value": nonce}}
        registry = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self.settings.issuer},
            aud={"essential": True, "values": list(clients)},
            exp={"essential": True},
            iat={"essential": True},
            sub={"essential": True},
            **required,
        )
        try:
            registry.validate(claims or {})
        except JoseError as error:
            raise LoginRefused(f"the ID token: {error}") from error
        assert claims is not None  # noqa: S101 - decoded above, or raised
        several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
        if (several or "azp" in claims) and claims.get("azp") not in clients:
            raise LoginRefused("the ID token is for another client")
        if not _is_of_a_person(header, claims, login=nonce is not None):
            raise LoginRefused("the token is not an ID token")
        return claims

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        """Lets one caller at a time send a request to the provider; the others wait for it and share its failure."""
        async with self._asking:
            if self._failed is not None and self._clock() < self._failed[1]:
                raise ProviderFailed(self._failed[0])
            try:
                yield
            except ProviderFailed as error:
                self._failed = (str(error), self._clock() + FAILED_SECONDS)
                raise
            self._failed = None

    async def _description(self) -> dict[str, Any]:
        if self._described is not None and self._clock() < self._described[1]:
            return self._described[0]
        async with self._asked():
            if self._described is None or self._clock() >= self._described[1]:
                issuer = self.settings.issuer
                metadata = await self._json(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                if (reported := metadata.get("issuer")) != issuer:
                    raise ProviderFailed(f"{issuer} reports the issuer {str(reported)[:200]!r}")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    if not _is_url(metadata.get(name)):
                        raise ProviderFailed(f"{issuer} reports no {name}")
                self._described = (metadata, self._clock() + KNOWN_SECONDS)
            return self._described[0]

    async def _key_set(self, *, fresh: bool) -> KeySet:
        described = await self._description()
        before = self._keys
        if not fresh and before is not None and self._clock() < before[1]:
            return before[0]
        async with self._asked():
            if self._keys is None or self._keys is before:  # no other caller read them meanwhile
                try:
                    keys = KeySet.import_key_set(await self._json(described["jwks_uri"]))  # type: ignore[arg-type]
                except (JoseError, ValueError, KeyError, TypeError) as error:
                    raise ProviderFailed(f"its keys: {type(error).__name__}") from error
                self._keys = (keys, self._clock() + KNOWN_SECONDS)
            return self._keys[0]

    def _keys_may_have_changed(self) -> bool:
        """True if the last read of the keys is at least `STRANGER_SECONDS` ago, so an unverified token may cause
        another."""
        if self._keys is None:
            return True
        return self._clock() > self._keys[1] - KNOWN_SECONDS + STRANGER_SECONDS

    async def _json(self, url: str) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(transport=self._transport, timeout=ASK_SECONDS) as client:
                answer = await client.get(url)
                answer.raise_for_status()
                body = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ProviderFailed(f"{url}: {type(error).__name__}") from error
        if not isinstance(body, dict):
            raise ProviderFailed(f"{url}: the answer is not a JSON object")
        return body

    def _client(self) -> AsyncOAuth2Client:
        settings = self.settings
        return AsyncOAuth2Client(
            client_id=settings.client_id,
            client_secret=settings.client_secret.get_secret_value() or None,
            scope=" ".join(settings.scopes),
            redirect_uri=settings.callback_url,
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic" if settings.client_secret.get_secret_value() else "none",
            transport=self._transport,
            timeout=ASK_SECONDS,
        )


def _is_of_a_person(header: Mapping[str, Any], claims: Mapping[str, Any], *, login: bool) -> bool:
    """True if the token is of a kind that identifies its bearer. A provider signs other tokens with the same keys, such
    as logout tokens (`events`), which other parties may possess. An access token counts unless this is a login."""
    kind = str(header.get("typ", "JWT")).lower().removeprefix("application/")
    kinds, claimed = ({"jwt"}, {"id"}) if login else ({"jwt", "at+jwt"}, {"id", "bearer"})
    return kind in kinds and "events" not in claims and str(claims.get("typ", "id")).lower() in claimed


def _person(claims: dict[str, Any], settings: OidcSettings) -> Person:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not subject.isprintable():
        raise LoginRefused("the ID token has no valid subject")
    email, name = claims.get("email"), claims.get("name")
    verified = claims.get("email_verified") is True and isinstance(email, str)
    account = claims.get(settings.account_claim) if settings.account_claim else None
    named = isinstance(account, str) and len(account) <= 255 and account.isprintable()
    return Person(
        settings.issuer,
        subject,
        str(email) if verified else "",
        name[:255] if isinstance(name, str) else "",
        str(account) if named else "",
    )


def _is_url(value: object) -> bool:
    return isinstance(value, str) and urlsplit(value).scheme in ("http", "https")
