"""The pages: made once of templates, without scripts and without anything from elsewhere.

An operator's directory stands in front: a file of the same name there replaces ours.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from netbird_proxy import ExchangeView, Page, Rendered
from netbird_proxy.defaults.session.return_paths import ROOT

Headers = list[tuple[bytes, bytes]]
TITLES = {
    400: "Something is wrong with the request",
    401: "Log in",
    403: "Access denied",
    404: "Not found",
    429: "Too many attempts",
    502: "The service cannot be reached",
    503: "Not available right now",
    504: "The service took too long",
}

PLUGIN = "session"
LOGOUT = f"{ROOT}/logout"
CALM = frozenset(("logged_out", "login_required"))
"""Codes whose notice is information, and no error."""
PERSONAL = frozenset(
    ("user_unknown", "pending_approval", "user_blocked", "not_in_group", "not_allowed", "other_person")
)
"""Refusals of the person who is logged in: the page offers a login as somebody else."""


class Renderer:
    """Implements `netbird_proxy.Pages` by `page`."""

    def __init__(self, directory: Path | None = None) -> None:
        loaders: list[jinja2.BaseLoader] = [] if directory is None else [jinja2.FileSystemLoader(directory)]
        loaders.append(jinja2.FileSystemLoader(Path(__file__).parent))
        self._environment = jinja2.Environment(
            loader=jinja2.ChoiceLoader(loaders),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        loader = self._environment.loader
        assert loader is not None  # noqa: S101 - given above
        style = loader.get_source(self._environment, "style.css")[0].strip()
        if "</" in style:
            raise ValueError("style.css may not close its own element")
        self._environment.globals["style"] = Markup(style)  # noqa: S704 - the operator's file, judged above
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        # `https:` among the form's targets, as browsers also judge where the answer to a form redirects to: a service
        # may send its people on to its own sign-on.
        policy = (
            f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self' https:; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        self._headers: Headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-frame-options", b"DENY"),
            # Not `no-referrer`: the form would then come from the origin `null`.
            (b"referrer-policy", b"same-origin"),
            (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"vary", b"accept"),
        ]
        for name in ("login.html", "error.html", "logout.html"):
            self._environment.get_template(name)

    def page(self, page: Page, *, notice: str = "", tried: str = "") -> Rendered:
        """Raises what a broken template raises.

        Args:
            tried: the method that was tried last, whose field a person wants to go on with.
        """
        name = "login.html" if page.offers else "error.html"
        methods = [offer.method for offer in page.offers if offer.fields]
        body = self._render(
            name,
            page=page,
            title=self._title(page),
            notice=notice,
            calm=page.code in CALM,
            focus=tried if tried in methods else next(iter(methods), ""),
            other=LOGOUT if page.by == PLUGIN and page.code in PERSONAL else "",
        )
        return Rendered(body, headers=tuple(self._headers))

    def answer(self, page: Page, exchange: ExchangeView, *, notice: str = "", tried: str = "") -> tuple[Headers, bytes]:
        """The page for this exchange, or what a program gets in its place; with all headers."""
        accept = (exchange.headers.get(b"accept") or b"").lower()
        if b"text/html" in accept:
            made = self.page(page, notice=notice, tried=tried)
            return _sized(made.body, b"text/html; charset=utf-8", self._headers)
        plain = page.for_program(accept)
        return _sized(plain.body, plain.content_type, [])

    def logout(self, exchange: ExchangeView, action: str) -> tuple[Headers, bytes]:
        body = self._render("logout.html", title="Log out", action=action, host=exchange.host, exchange=exchange.id)
        return _sized(body, b"text/html; charset=utf-8", self._headers)

    def _render(self, name: str, **values: object) -> bytes:
        return self._environment.get_template(name).render(**values).encode()

    @staticmethod
    def _title(page: Page) -> str:
        if page.code == "credentials_required":
            return "A credential is required"
        if page.offers:
            return TITLES[401]
        return TITLES.get(page.status, "That did not work")


def _sized(body: bytes, kind: bytes, headers: Headers) -> tuple[Headers, bytes]:
    return [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *headers,
    ], body
