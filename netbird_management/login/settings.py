"""`[oidc]` in management's settings."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from netbird_host.setting_types import Secret, Section

CALLBACK_PATH = "/api/reverse-proxy/callback"


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected an address, such as https://login.example.com")
    return text


def _callback(text: str) -> str:
    if urlsplit(_url(text)).path != CALLBACK_PATH:
        raise ValueError(f"it ends in {CALLBACK_PATH}, which is where this management takes logins back")
    return text


class OidcSettings(Section):
    """The identity provider that people log in with. `issuer` is exactly what it calls itself."""

    issuer: Annotated[str, AfterValidator(_url)]
    client_id: str
    client_secret: Secret = Secret("")
    callback_url: Annotated[str, AfterValidator(_callback)]
    """How browsers reach our callback; the provider must know it."""
    account_claim: str = ""
    """The claim that names a person's account. Without it people are of the account that they come to."""
    accounts: dict[str, str] = Field(default_factory=dict)
    """Accounts that were there before the claim named them: its value, and the account's id."""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
