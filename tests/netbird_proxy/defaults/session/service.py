"""A service with schemes, management by script, and tokens as management signs them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable
from typing import Any

from nacl.signing import SigningKey

from netbird_proxy import Authenticator, Deny, ExchangeView, Guard, Identity, PluginInfo, hookimpl
from netbird_proxy.defaults import DEFAULTS
from netbird_proxy.defaults.access_log import AccessLogOptions
from netbird_proxy.defaults.session.plugin import SessionOptions
from netbird_proxy.routing.hooks import Hooks, load_hooks
from netbird_proxy.sources.decode.codec import Codec
from netbird_proxy.testing.asgi import Answer
from netbird_proxy.testing.fakes import FakeManagement, FakeProxy, HostDialer
from netbird_proxy.testing.makers import HOST, identity
from netbird_proxy.testing.transcript import Transcript
from netbird_wire.plugin_settings import write_settings
from netbird_wire.proxy_service_pb2 import AuthenticateRequest, AuthenticateResponse, PathMapping, ProxyMapping

BROWSER = [(b"accept", b"text/html,*/*"), (b"sec-fetch-mode", b"navigate"), (b"sec-fetch-site", b"none")]
FORM = (b"content-type", b"application/x-www-form-urlencoded")


class Dials:
    """Dials everything from this machine."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def dialer(self) -> HostDialer:
        return HostDialer()


class Vouching:
    """A plugin that knows everybody."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def authenticate(self) -> Authenticator:
        async def identify(_exchange: ExchangeView) -> Identity:
            return identity()

        return Authenticator("ambient", identify)


class Vouched:
    """A plugin that takes a header's word, as the tunnel's is taken."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def authenticate(self) -> Authenticator:
        async def identify(exchange: ExchangeView) -> Identity | None:
            name = exchange.headers.get(b"x-vouched")
            return identity(user=name.decode()) if name else None

        return Authenticator("ambient", identify)


class Refusing:
    """A plugin that lets nobody in."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo()

    @hookimpl
    def authorize(self) -> Guard:
        async def refuse(_exchange: ExchangeView) -> Deny:
            return Deny(403, "not_in_group", "by nature")

        return Guard(refuse)


def url64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


class Service:
    """One service of management's, and a browser that keeps no cookies by itself."""

    def __init__(
        self,
        *plugins: object,
        private: bool = False,
        headers: Iterable[str] = (),
        accept: tuple[str, ...] = (),
        accept_netbird_sessions: bool = False,
        ask_for_both: bool = False,
        core: dict[str, Any] | None = None,
        **schemes: bool,
    ) -> None:
        self.key = SigningKey.generate()
        self.management = FakeManagement()
        options = AccessLogOptions(output="off", management=False)
        trusting = SessionOptions(accept=accept, accept_netbird_sessions=accept_netbird_sessions)
        self.proxy = FakeProxy(management=self.management, options=[options, trusting])
        # A plugin of this repository comes by its name.
        named = [one if isinstance(one, str) else (f"extra{i}", one) for i, one in enumerate(plugins)]
        self.hooks: Hooks = load_hooks([*named, ("dials", Dials)], defaults=DEFAULTS)
        self.wire = ProxyMapping(id="svc-1", account_id="acct-1", domain=HOST, mode="http")
        self.wire.path.append(PathMapping(path="/", target="http://10.0.0.7:8080/"))
        self.wire.auth.session_key = base64.b64encode(bytes(self.key.verify_key)).decode()
        for name, there in schemes.items():
            setattr(self.wire.auth, name, there)
        for header in headers:
            self.wire.auth.header_auths.add(header=header, hashed_value="$argon2id$")
        self.wire.private = private
        if ask_for_both or core:
            write_settings(self.wire, "core", {**(core or {}), **({"ask_for_both": True} if ask_for_both else {})})
        self.play = Transcript(
            Codec(self.hooks).decode(self.wire, source="management").mapping,
            hooks=self.hooks,
            proxy=self.proxy,
            cookies=self.hooks.cookies,
            notes=self.hooks.notes,
        )

    def token(self, subject: str = "password-user", method: str = "password", **changes: Any) -> bytes:
        """Signed as management does; `changes` replace claims, and `head` the header."""
        now = int(time.time())
        head = changes.pop("head", {"alg": "EdDSA", "typ": "JWT"})
        key = changes.pop("key", self.key)
        claims = {"iss": "netbird-management", "sub": subject, "aud": [HOST], "iat": now, "nbf": now, "exp": now + 600}
        claims |= {"method": method, **changes}
        claims = {name: value for name, value in claims.items() if value is not None}
        signed = url64(json.dumps(head).encode()) + b"." + url64(json.dumps(claims).encode())
        return signed + b"." + url64(key.sign(signed).signature)

    def accepts(self, right: str, *, method: str = "password", subject: str = "password-user") -> None:
        """Let management accept this one credential."""

        def judged(request: AuthenticateRequest) -> AuthenticateResponse:
            given = {request.password.password, request.pin.pin, request.header_auth.header_value}
            if right not in given:
                return AuthenticateResponse(success=False)
            return AuthenticateResponse(success=True, session_token=self.token(subject, method).decode())

        self.management.answers["Authenticate"] = judged

    async def get(self, target: str = "/", *, cookie: bytes | None = None, **fields: Any) -> Answer:
        headers = [*fields.pop("headers", BROWSER)]
        if cookie is not None:
            headers.append((b"cookie", cookie))
        return await self.play.request(fields.pop("method", "GET"), target, headers=headers, scheme="https", **fields)

    async def post(self, body: bytes, target: str = "/__netbird__/session/login", **fields: Any) -> Answer:
        headers = [*fields.pop("headers", [FORM, (b"sec-fetch-site", b"same-origin"), *BROWSER[:2]])]
        return await self.play.request("POST", target, headers=headers, body=[body], **{"scheme": "https", **fields})

    @property
    def asked(self) -> list[str]:
        return [method for method, _ in self.management.calls]


def cookies_of(answer: Answer) -> dict[bytes, bytes]:
    """Cookies that an answer sets, with their attributes."""
    lines = [value for name, value in answer.headers if name == b"set-cookie"]
    return {name: rest for name, _, rest in (line.partition(b"=") for line in lines)}
