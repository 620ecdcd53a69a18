"""Conversion of services from and to JSON."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Final

from netbird_management.compute.mapping import resolve
from netbird_management.compute.validate import STREAM_MODES
from netbird_management.model.clock import now
from netbird_management.model.errors import InvalidArgument
from netbird_management.model.ids import AccountId, GroupId, ServiceId
from netbird_management.model.services import (
    AccessRestrictions,
    AuthConfig,
    BearerAuth,
    HeaderAuth,
    InboundListener,
    ProxyStatus,
    SecretAuth,
    Service,
    ServiceMeta,
    Status,
    Target,
    TargetOptions,
    TargetType,
)
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.rest import shapes
from netbird_management.rest.bodies import Body, Text
from netbird_management.rest.wire import moment
from netbird_wire.go_duration import format_duration, parse_duration

SECRET: Final = Text(1024)
"""Maximum length of a credential: a login refuses longer ones."""
EXTENSIONS: Final = Text(1 << 20, lines=True)
"""Maximum length of a string in a plugin's settings. Plugins have stricter limits, and management limits their total
for a service."""


class OptionsBody(Body):
    skip_tls_verify: bool = False
    request_timeout: str = ""
    session_idle_timeout: str = ""
    path_rewrite: str = ""
    custom_headers: Annotated[dict[str, str] | None, Text(4096)] = None
    proxy_protocol: bool = False
    direct_upstream: bool = False


class TargetBody(Body):
    answer = shapes.Target
    target_id: str = ""
    target_type: str = ""
    protocol: str = ""
    port: int = 0
    enabled: bool | None = None
    host: str | None = None
    path: Annotated[str | None, Text(4096)] = None
    options: OptionsBody | None = None
    extensions: Annotated[dict[str, dict[str, Any]] | None, EXTENSIONS] = None


class PasswordBody(Body):
    enabled: bool = False
    password: Annotated[str, SECRET] = ""


class PinBody(Body):
    enabled: bool = False
    pin: Annotated[str, SECRET] = ""


class BearerBody(Body):
    enabled: bool = False
    distribution_groups: list[str] | None = None


class HeaderBody(Body):
    enabled: bool = False
    header: str = ""
    value: Annotated[str, SECRET] = ""


class AuthBody(Body):
    password_auth: PasswordBody | None = None
    pin_auth: PinBody | None = None
    bearer_auth: BearerBody | None = None
    header_auths: list[HeaderBody] | None = None


class RestrictionsBody(Body):
    allowed_cidrs: list[str] | None = None
    blocked_cidrs: list[str] | None = None
    allowed_countries: list[str] | None = None
    blocked_countries: list[str] | None = None
    crowdsec_mode: str | None = None


class ServiceBody(Body):
    answer = shapes.Service
    name: str = ""
    domain: str = ""
    enabled: bool = False
    mode: str | None = None
    listen_port: int | None = None
    targets: list[TargetBody] | None = None
    pass_host_header: bool | None = None
    rewrite_redirects: bool | None = None
    auth: AuthBody | None = None
    access_restrictions: RestrictionsBody | None = None
    private: bool | None = None
    access_groups: list[str] | None = None
    extensions: Annotated[dict[str, dict[str, Any]] | None, EXTENSIONS] = None
    confirm_public: bool = False


def sent_names(raw: dict[str, Any]) -> frozenset[str]:
    """The dotted names of all fields in the request, list items by their index. A field of value `null` counts as
    absent."""

    def walk(value: object, at: str) -> Iterator[str]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, inside in items:
            if inside is not None:
                path = f"{at}.{name}" if at else str(name)
                yield path
                yield from walk(inside, path)

    return frozenset(walk(raw, ""))


def service_of(body: ServiceBody, account_id: AccountId, service_id: ServiceId, mode: str = "") -> Service:
    """The requested service, with zero values for absent fields; `mode` is the mode of the stored service.

    Raises `InvalidArgument`.
    """
    restrictions = body.access_restrictions or RestrictionsBody()
    if restrictions.crowdsec_mode is not None and restrictions.crowdsec_mode not in ("", "off", "enforce", "observe"):
        raise InvalidArgument(f'crowdsec_mode must be off, enforce or observe, not "{restrictions.crowdsec_mode}"')
    return Service(
        id=service_id,
        account_id=account_id,
        name=body.name,
        domain=body.domain,
        proxy_cluster="",
        meta=ServiceMeta(created_at=now()),
        targets=tuple(_target(i, target, body.mode or mode) for i, target in enumerate(body.targets or ())),
        enabled=body.enabled,
        mode=body.mode or "",
        listen_port=body.listen_port or 0,
        pass_host_header=bool(body.pass_host_header),
        rewrite_redirects=bool(body.rewrite_redirects),
        auth=_auth(body.auth or AuthBody()),
        access_restrictions=AccessRestrictions(
            allowed_cidrs=tuple(restrictions.allowed_cidrs or ()),
            blocked_cidrs=tuple(restrictions.blocked_cidrs or ()),
            allowed_countries=tuple(restrictions.allowed_countries or ()),
            blocked_countries=tuple(restrictions.blocked_countries or ()),
            crowdsec_mode=restrictions.crowdsec_mode or "",
        ),
        private=bool(body.private),
        access_groups=tuple(GroupId(id_) for id_ in body.access_groups or ()),
        extensions=body.extensions or {},
    )


def service_json(
    service: Service, account: AccountSnapshot, status: Status | None = None, issued: datetime | None = None
) -> dict[str, Any]:
    """The service as a response: hosts resolved, secrets empty.

    `status` is the worst status on the connected proxies, None without any; `issued` is the time its certificate was
    issued.
    """
    shown_enabled = service.enabled and not service.terminated
    meta = {"created_at": moment(service.meta.created_at), "status": (status or Status.PENDING).value}
    if issued is not None:
        meta["certificate_issued_at"] = moment(issued)
    answer: dict[str, Any] = {
        "auth": _auth_json(service.auth),
        "domain": service.domain,
        "enabled": shown_enabled,
        "id": service.id,
        "listen_port": service.listen_port,
        "meta": meta,
        "mode": service.mode,
        "name": service.name,
        "pass_host_header": service.pass_host_header,
        "port_auto_assigned": service.port_auto_assigned,
        "private": service.private,
        "rewrite_redirects": service.rewrite_redirects,
        "targets": [_target_json(target, account, not service.terminated) for target in service.targets],
        "terminated": service.terminated,
    }
    if service.proxy_cluster:
        answer["proxy_cluster"] = service.proxy_cluster
    if service.access_groups:
        answer["access_groups"] = list(service.access_groups)
    if service.extensions:
        answer["extensions"] = service.extensions
    if service.access_restrictions:
        answer["access_restrictions"] = {
            name: list(value) if isinstance(value, tuple) else value
            for name in AccessRestrictions.__dataclass_fields__
            if (value := getattr(service.access_restrictions, name))
        }
    return answer


def listener_json(listener: InboundListener) -> dict[str, Any]:
    ports = {"https_port": listener.https_port, "http_port": listener.http_port}
    return {"tunnel_ip": listener.tunnel_ip, **{name: port for name, port in ports.items() if port}}


def proxy_status_json(status: ProxyStatus) -> dict[str, Any]:
    shown = None if status.inbound_listener is None else listener_json(status.inbound_listener)
    return {
        "error_message": status.error_message,
        "inbound_listener": shown,
        "proxy_id": status.proxy_id,
        "status": status.status.value if status.connected else "disconnected",
        "updated_at": moment(status.updated_at),
        "withheld": status.withheld,
    }


def _target(i: int, body: TargetBody, mode: str) -> Target:
    try:
        kind = TargetType(body.target_type)
    except ValueError as error:
        raise InvalidArgument(
            f'target {i}: target_type must be one of {", ".join(TargetType)}, not "{body.target_type}"'
        ) from error
    sent = body.options or OptionsBody()
    options = TargetOptions(
        skip_tls_verify=sent.skip_tls_verify,
        request_timeout=_duration(i, "request_timeout", sent.request_timeout),
        session_idle_timeout=_duration(i, "session_idle_timeout", sent.session_idle_timeout),
        path_rewrite=sent.path_rewrite,
        custom_headers=tuple(sorted((sent.custom_headers or {}).items())),
        proxy_protocol=sent.proxy_protocol,
        direct_upstream=sent.direct_upstream,
    )
    return Target(
        target_id=body.target_id,
        target_type=kind,
        protocol=body.protocol,
        port=body.port,
        enabled=mode in STREAM_MODES if body.enabled is None else body.enabled,
        host=body.host or "",
        path=body.path,
        options=options,
        extensions=body.extensions or {},
    )


def _duration(i: int, name: str, text: str) -> float:
    try:
        return parse_duration(text) if text else 0.0
    except ValueError as error:
        raise InvalidArgument(f'target {i}: parse {name} "{text}": {error}') from error


def _auth(body: AuthBody) -> AuthConfig:
    password, pin, bearer = body.password_auth, body.pin_auth, body.bearer_auth
    return AuthConfig(
        password_auth=None if password is None else SecretAuth(password.enabled, password.password),
        pin_auth=None if pin is None else SecretAuth(pin.enabled, pin.pin),
        bearer_auth=None
        if bearer is None
        else BearerAuth(bearer.enabled, tuple(GroupId(id_) for id_ in bearer.distribution_groups or ())),
        header_auths=tuple(HeaderAuth(auth.header, auth.enabled, auth.value) for auth in body.header_auths or ()),
    )


def _auth_json(auth: AuthConfig) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if auth.password_auth is not None:
        answer["password_auth"] = {"enabled": auth.password_auth.enabled, "password": ""}
    if auth.pin_auth is not None:
        answer["pin_auth"] = {"enabled": auth.pin_auth.enabled, "pin": ""}
    if auth.bearer_auth is not None:
        answer["bearer_auth"] = {"enabled": auth.bearer_auth.enabled}
        if auth.bearer_auth.distribution_groups:
            answer["bearer_auth"]["distribution_groups"] = list(auth.bearer_auth.distribution_groups)
    if auth.header_auths:
        answer["header_auths"] = [
            {"enabled": header.enabled, "header": header.header, "value": ""} for header in auth.header_auths
        ]
    return answer


def _target_json(target: Target, account: AccountSnapshot, shown: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "enabled": target.enabled and shown,
        "host": resolve(target, account),
        "options": _options_json(target.options),
        "port": target.port,
        "protocol": target.protocol,
        "target_id": target.target_id,
        "target_type": target.target_type.value,
    }
    if target.extensions:
        answer["extensions"] = target.extensions
    return answer if target.path is None else {**answer, "path": target.path}


def _options_json(options: TargetOptions) -> dict[str, Any]:
    return {
        name: value
        for name, value in {
            "custom_headers": dict(options.custom_headers),
            "direct_upstream": options.direct_upstream,
            "path_rewrite": options.path_rewrite,
            "proxy_protocol": options.proxy_protocol,
            "request_timeout": format_duration(options.request_timeout) if options.request_timeout else "",
            "session_idle_timeout": format_duration(options.session_idle_timeout)
            if options.session_idle_timeout
            else "",
            "skip_tls_verify": options.skip_tls_verify,
        }.items()
        if value
    }
