"""The proxy's half: sets and removes headers of answers, and answers preflights."""

from __future__ import annotations

from importlib.metadata import version

from netbird_proxy import (
    OWN_PATHS,
    Claim,
    ExchangeView,
    Guard,
    PluginInfo,
    Proxy,
    ResponseHead,
    ResponseTransform,
    RouteSpec,
    hookimpl,
)
from netbird_response_headers import cors
from netbird_response_headers.cors import CrossOrigin
from netbird_response_headers.settings import FIELD, Hsts, ResponseHeadersSettings

HSTS = b"strict-transport-security"

Line = tuple[bytes, bytes]


class ResponseHeadersOptions(ResponseHeadersSettings):
    """`[response_headers]` in the settings file: for all services, unless a service has a setting of the same name."""

    own_answers: bool = True
    """Add the headers also to refusals, logins and errors of the proxy itself, which keep all lines that they have."""


class ResponseHeaders:
    """Sets and removes response headers as the operator and the service's settings name them."""

    @hookimpl
    def describe(self) -> PluginInfo:
        return PluginInfo(
            version=version("netbird-response-headers"),
            summary="sets and removes headers of answers: HSTS, Server, CSP, CORS and others",
            claims=(Claim(FIELD),),
            options=ResponseHeadersOptions,
            settings=(ResponseHeadersSettings,),
        )

    @hookimpl(trylast=True)  # a preflight tells strangers the rules, so restrictions by address come first
    def restrict(self, route: RouteSpec, proxy: Proxy) -> Guard | None:
        settings = _settings(route, proxy)
        if settings.cors is None or _is_endpoint(route):
            return None
        return Guard(CrossOrigin(settings.cors).answer_preflight, depends_on=settings.cors, again=False)

    @hookimpl
    def transform_response(self, route: RouteSpec, proxy: Proxy) -> ResponseTransform | None:
        settings = _settings(route, proxy)
        # Scripts of other sites have no business with logins and other endpoints of plugins.
        rules = CrossOrigin(settings.cors) if settings.cors is not None and not _is_endpoint(route) else None
        lines, names = _fixed(settings)
        if not names and rules is None:
            return None
        secure = lines if settings.hsts is None else (*lines, (HSTS, _hsts(settings.hsts)))

        def apply(exchange: ExchangeView, head: ResponseHead) -> None:
            if names:
                head.replace(names, secure if exchange.scheme == "https" else lines)
            if rules is not None:
                rules.apply(exchange, head)

        owns = (*names, *(cors.NAMES if rules is not None else ()))
        own_answers = proxy.options(ResponseHeadersOptions).own_answers
        return ResponseTransform(apply, owns=owns, own_answers=own_answers, depends_on=(settings, own_answers))


def _settings(route: RouteSpec, proxy: Proxy) -> ResponseHeadersSettings:
    """Return the operator's settings, with those of the service in place of the ones that it sets."""
    options = proxy.options(ResponseHeadersOptions)
    service: ResponseHeadersSettings | None = route.values.get(ResponseHeadersSettings)
    if service is None or not service.model_fields_set:
        return options
    return options.model_copy(update={name: getattr(service, name) for name in service.model_fields_set})


def _is_endpoint(route: RouteSpec) -> bool:
    return route.prefix.startswith(OWN_PATHS.encode())


def _fixed(settings: ResponseHeadersSettings) -> tuple[tuple[Line, ...], tuple[bytes, ...]]:
    """Return the lines of every answer, and all names that are replaced or removed. A value wins over a removal."""
    named = {
        "server": settings.server,
        "content-security-policy": settings.content_security_policy,
        "content-security-policy-report-only": settings.content_security_policy_report_only,
    }
    values: dict[str, str] = {name: value for name, value in named.items() if value is not None} | settings.fixed
    lines = tuple((name.encode(), value.encode("ascii")) for name, value in values.items() if value)
    names = [*values, *settings.remove]
    return lines, (*(name.encode() for name in names), *((HSTS,) if settings.hsts is not None else ()))


def _hsts(hsts: Hsts) -> bytes:
    parts = [f"max-age={hsts.max_age_seconds}"]
    parts += ["includeSubDomains"] if hsts.include_subdomains else []
    parts += ["preload"] if hsts.preload else []
    return "; ".join(parts).encode("ascii")
