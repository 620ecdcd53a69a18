"""The section `[oidc]` of management's settings."""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from netbird_host.setting_types import Secret, Section

CALLBACK_PATH = "/api/reverse-proxy/callback"


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be a URL, such as https://login.example.com")
    return text


def _callback(text: str) -> str:
    if urlsplit(_url(text)).path != CALLBACK_PATH:
        raise ValueError(f"must end in {CALLBACK_PATH}, the path to which browsers return after a login")
    return text


class OidcSettings(Section):
    """The identity provider for logins. `issuer` must equal the issuer that the provider reports."""

    issuer: Annotated[str, AfterValidator(_url)]
    client_id: str
    client_secret: Secret = Secret("")
    callback_url: Annotated[str, AfterValidator(_callback)]
    """URL to which browsers return after a login; it must be registered at the provider."""
    account_claim: str = ""
    """Claim with the name of a user's account. If empty, a new user joins the account of the service they log in to."""
    accounts: dict[str, str] = Field(default_factory=dict)
    """Ids of existing accounts by the value of the claim. Other values belong to accounts that logins create."""
    agent_client_ids: tuple[str, ...] = ()
    """Ids of further clients at the provider whose tokens log agents in; those of `client_id` do in any case. Agents
    that ask for a client get the first one."""
    scopes: tuple[str, ...] = ("openid", "profile", "email")

    @property
    def agent_login(self) -> "AgentLogin":
        return AgentLogin(self.issuer, (*self.agent_client_ids, self.client_id)[0])


@dataclass(frozen=True, slots=True)
class AgentLogin:
    """The place where users of agents log in: an issuer, and the client there. Neither is a secret."""

    issuer: str
    client_id: str
