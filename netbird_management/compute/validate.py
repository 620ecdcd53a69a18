"""The core's rules for a service; the first broken rule is reported. Plugins add rules by `validate_service`."""

import re
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Final

from netbird_host.http_fields import TOKEN_PATTERN
from netbird_management.model.errors import InvalidArgument
from netbird_management.model.ids import PeerId
from netbird_management.model.services import RESOURCES, AccessRestrictions, HeaderAuth, Service, Target, TargetType
from netbird_management.model.snapshot import AccountSnapshot

_TOKEN: Final = re.compile(TOKEN_PATTERN)
HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
RESERVED: Final = frozenset(
    {
        "content-length",
        "content-type",
        "cookie",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
    }
)
# Prefix of headers that send a user's identity to upstreams. Only the proxy may set such a header, in any spelling.
OURS: Final = "x-netbird-"
# Maximum number of header credentials of a service, enabled or not: each costs a slow hash when it is stored, and at
# each login by header.
HEADER_AUTHS: Final = 16
PROTOCOLS: Final = frozenset({"http", "https"})
STREAM_MODES: Final = frozenset({"tcp", "udp", "tls"})
# Maximum number of targets of a service.
TARGETS: Final = 100
_PORTS: Final = range(65536)


def validated(service: Service, account: AccountSnapshot) -> Service:
    """The service with an empty mode set to `http` and country codes in upper case. Raises `InvalidArgument`."""
    if not service.name:
        raise InvalidArgument("service name is required")
    if len(service.name.encode()) > 255 or not service.name.isprintable():
        raise InvalidArgument("service name must be at most 255 printable bytes")
    if not service.targets:
        raise InvalidArgument("at least one target is required")
    if len(service.targets) > TARGETS:
        raise InvalidArgument(f"at most {TARGETS} targets are allowed")
    service = replace(service, mode=service.mode or "http")
    if len(service.auth.header_auths) > HEADER_AUTHS:
        raise InvalidArgument(f"header_auths: at most {HEADER_AUTHS} entries are allowed")
    for i, header in enumerate(service.auth.header_auths):
        _check_header_auth(f"header_auths[{i}]", header)
    service = replace(service, access_restrictions=_checked_restrictions(service.access_restrictions))
    if service.mode in STREAM_MODES:
        return _validated_stream(service, account)
    if service.mode != "http":
        raise InvalidArgument(f'mode "{service.mode}" is not supported')
    if service.listen_port:
        raise InvalidArgument("listen_port is not allowed for http services")
    for i, target in enumerate(service.targets):
        _check_target(i, target, account)
    return service


def folded_name(name: str) -> str:
    """A header name as upstreams may see it: many applications do not distinguish case, `_`, `.` and `-`."""
    return name.lower().replace("_", "-").replace(".", "-")


def _check_header_auth(where: str, header: HeaderAuth) -> None:
    if not header.enabled:
        return
    name = folded_name(header.header)
    if not header.header:
        raise InvalidArgument(f"{where}: header name is required")
    if not _TOKEN.fullmatch(header.header):
        raise InvalidArgument(f'{where}: "{header.header}" is not a header name')
    if name in HOP_BY_HOP:
        raise InvalidArgument(f'{where}: header "{header.header}" is hop-by-hop and cannot be used for auth')
    if name in RESERVED or name == "host" or name.startswith(OURS):
        raise InvalidArgument(f'{where}: header "{header.header}" is managed by the proxy and cannot be used for auth')
    if len(header.value.encode()) > 4096:
        raise InvalidArgument(f"{where}: value must be at most 4096 bytes")


def _checked_restrictions(given: AccessRestrictions) -> AccessRestrictions:
    if given.crowdsec_mode not in ("", "off", "enforce", "observe"):
        raise InvalidArgument(f'crowdsec_mode "{given.crowdsec_mode}" is not one of off, enforce, observe')
    for name, cidrs in (("allowed_cidrs", given.allowed_cidrs), ("blocked_cidrs", given.blocked_cidrs)):
        if len(cidrs) > 200:
            raise InvalidArgument(f"{name}: at most 200 entries are allowed")
        for i, cidr in enumerate(cidrs):
            _check_cidr(f"{name}[{i}]", cidr)
    return replace(
        given,
        allowed_countries=_checked_countries("allowed_countries", given.allowed_countries),
        blocked_countries=_checked_countries("blocked_countries", given.blocked_countries),
    )


def _checked_countries(name: str, codes: tuple[str, ...]) -> tuple[str, ...]:
    if len(codes) > 50:
        raise InvalidArgument(f"{name}: at most 50 entries are allowed")
    for i, code in enumerate(codes):
        if len(code) != 2:
            raise InvalidArgument(f'{name}[{i}]: "{code}" is not a two-letter country code')
    return tuple(code.upper() for code in codes)


def _check_cidr(where: str, cidr: str) -> None:
    address, slash, length = cidr.rpartition("/")
    if not slash or not length.isdecimal():
        raise InvalidArgument(f'{where}: "{cidr}" is not a network: a prefix length is required')
    try:
        network = ip_network(cidr, strict=False)
    except ValueError as error:
        raise InvalidArgument(f'{where}: "{cidr}" is not a network') from error
    if network.network_address != ip_address(address):
        raise InvalidArgument(f'{where}: "{cidr}" has host bits set, use {network} instead')


def _validated_stream(service: Service, account: AccountSnapshot) -> Service:
    """Validates a service of bytes or datagrams: it has exactly one target, always enabled, and no login."""
    if service.auth.any_enabled:
        raise InvalidArgument(f"auth is not supported for {service.mode} services")
    if service.listen_port not in _PORTS:
        raise InvalidArgument("listen_port must be between 0 and 65535")
    if service.mode == "tls" and not service.listen_port:
        raise InvalidArgument("listen_port is required for tls services")
    if len(service.targets) != 1:
        raise InvalidArgument(f"{service.mode} services must have exactly one target")
    target = service.targets[0]
    if not target.enabled:
        raise InvalidArgument(f"target 0: enabled must be true for {service.mode} services: disable the service")
    options = target.options
    _check_reference(0, target, account)
    if target.protocol != ("udp" if service.mode == "udp" else "tcp"):
        raise InvalidArgument(f'target 0: protocol "{target.protocol}" is not supported for {service.mode} services')
    if not 0 < target.port < 65536:
        raise InvalidArgument(f"target 0: port is required for {service.mode} services")
    if target.path not in (None, "", "/"):
        raise InvalidArgument(f"target 0: path is not supported for {service.mode} services")
    if service.mode == "udp" and options.proxy_protocol:
        raise InvalidArgument("target 0: proxy_protocol is not supported for udp services")
    if options.request_timeout < 0 or options.session_idle_timeout < 0:
        raise InvalidArgument("target 0: timeouts must not be negative")
    if options.skip_tls_verify or options.path_rewrite or options.custom_headers:
        raise InvalidArgument(f"target 0: options of http targets are not supported for {service.mode} services")
    return service


def _check_reference(i: int, target: Target, account: AccountSnapshot) -> None:
    kind = target.target_type
    if not target.target_id:
        raise InvalidArgument(f"target {i}: target_id is required")
    if kind in RESOURCES:
        _check_resource(i, target, account)
    if kind is not TargetType.CLUSTER and target.options.direct_upstream and target.host.strip():
        _check_host(i, target.host)
    if kind is TargetType.CLUSTER:
        if not target.host.strip():
            raise InvalidArgument(f"target {i}: a cluster target needs a host")
        _check_host(i, target.host)
    if kind is TargetType.PEER:
        peer = account.peers.get(PeerId(target.target_id))
        if peer is None or peer.proxy is not None:
            raise InvalidArgument(f'peer target "{target.target_id}" not found in account')


def _check_resource(i: int, target: Target, account: AccountSnapshot) -> None:
    match = account.resource(target.target_id)
    if match is None:
        raise InvalidArgument(f'resource target "{target.target_id}" not found in account')
    resource = match[1]
    if resource.type != target.target_type.value:
        raise InvalidArgument(
            f"target {i}: resource {resource.id} is of type {resource.type}, not {target.target_type}"
        )
    if resource.address.startswith("*."):
        raise InvalidArgument(f"target {i}: {resource.address} is a wildcard: create a resource for the exact name")
    if target.target_type is not TargetType.SUBNET:
        return
    if not target.host.strip():
        raise InvalidArgument(f"target {i}: a subnet target needs a host")
    _check_host(i, target.host)
    try:
        address = ip_address(target.host.strip().strip("[]"))
    except ValueError:
        return  # a name, which is resolved only when the proxy dials it
    if address not in ip_network(resource.address):
        raise InvalidArgument(f"target {i}: {address} is not in {resource.address}")


def _check_target(i: int, target: Target, account: AccountSnapshot) -> None:
    options = target.options
    _check_reference(i, target, account)
    if target.protocol not in PROTOCOLS:
        raise InvalidArgument(f'target {i}: protocol "{target.protocol}" is not supported for http services')
    if target.port not in _PORTS:
        raise InvalidArgument(f"target {i}: port must be between 0 and 65535")
    if target.path is not None and not _is_path(target.path):
        raise InvalidArgument(f"target {i}: path must begin with / and have no query, fragment or space")
    if options.proxy_protocol:
        raise InvalidArgument(f"target {i}: proxy_protocol is not supported for http services")
    if options.path_rewrite not in ("", "preserve"):
        raise InvalidArgument(f'target {i}: path_rewrite "{options.path_rewrite}" is not supported')
    if options.request_timeout < 0 or options.session_idle_timeout < 0:
        raise InvalidArgument(f"target {i}: timeouts must not be negative")
    if options.session_idle_timeout:
        raise InvalidArgument(f"target {i}: session_idle_timeout is not supported for http services")
    _check_headers(i, options.custom_headers)


def _check_host(i: int, host: str) -> None:
    bare = host
    if any(char.isspace() or char in "/\\@?#" for char in bare) or not bare.isprintable():
        raise InvalidArgument(f"target {i}: host must be a name or an address, without scheme, port or path")
    if bare.count(":") == 1 or (bare.startswith("[") and not bare.endswith("]")):
        raise InvalidArgument(f"target {i}: host must not contain a port: set port instead")


def _is_path(path: str) -> bool:
    return path.startswith("/") and path.isascii() and path.isprintable() and not any(char in path for char in " ?#")


def _check_headers(i: int, headers: Iterable[tuple[str, str]]) -> None:
    seen: set[str] = set()
    pairs = list(headers)
    if len(pairs) > 16:
        raise InvalidArgument(f"target {i}: at most 16 custom headers are allowed")
    for name, value in pairs:
        folded = folded_name(name)
        if not _TOKEN.fullmatch(name) or len(name) > 128:
            raise InvalidArgument(f'target {i}: custom header "{name[:128]}" is not a header name')
        if len(value) > 4096 or any(char in value for char in "\r\n\0"):
            raise InvalidArgument(f'target {i}: custom header "{name}" has a value that cannot be sent')
        if folded in HOP_BY_HOP:
            raise InvalidArgument(f'target {i}: custom header "{name}" is hop-by-hop and cannot be set')
        if folded in RESERVED or folded.startswith(OURS):
            raise InvalidArgument(f'target {i}: custom header "{name}" is managed by the proxy and cannot be set')
        if folded == "host":
            raise InvalidArgument(f"target {i}: use pass_host_header instead of a custom host header")
        if folded in seen:
            raise InvalidArgument(f'target {i}: custom header "{name}" must not occur twice')
        seen.add(folded)
