"""Settings of the servers that peers use beside management: signal, relays, STUN and TURN."""

from typing import Annotated

from pydantic import AfterValidator, model_validator

from netbird_host.setting_types import Secret, Section
from netbird_management.model.server_urls import host_and_port, server_url, stun_server, turn_server


def _public(text: str) -> str:
    return server_url(text, "http", "https") if text else ""


def _signal(text: str) -> str:
    """A URL, or `host:port` as earlier versions took it."""
    return _public(text) if "://" in text or not text else host_and_port(text)


def _relay(text: str) -> str:
    return server_url(text, "rel", "rels")


PublicUrl = Annotated[str, AfterValidator(_public)]
SignalUrl = Annotated[str, AfterValidator(_signal)]
RelayUrl = Annotated[str, AfterValidator(_relay)]
StunUrl = Annotated[str, AfterValidator(stun_server)]


class TurnServer(Section):
    """A TURN server, with a fixed user, or with the secret by which management makes passwords that expire."""

    url: Annotated[str, AfterValidator(turn_server)]
    """`turn:host:port`, with `?transport=tcp` for TCP, or `turns:host:port` for TLS."""
    user: str = ""
    """The name of a fixed user."""
    password: Secret = Secret("")
    """The password of the fixed user."""
    secret: Secret = Secret("")
    """The secret that the server shares with management (coturn: `static-auth-secret`)."""

    @model_validator(mode="after")
    def one_kind(self) -> "TurnServer":
        user, password, secret = map(
            bool, (self.user, self.password.get_secret_value(), self.secret.get_secret_value())
        )
        if (user, password, secret) not in ((True, True, False), (False, False, True)):
            raise ValueError("set either secret, or user and password")
        return self
