"""Decodes mappings of management or of a file from the wire into routes of the model.

Decoding raises no error about a mapping's content: a mapping that cannot be served is returned as refused, with one
sentence that names the reason, so that its host can be closed. No field is *left out*: a field that no plugin claims
refuses the whole mapping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, get_args

from pydantic import ValidationError

from netbird_host.info import PluginId
from netbird_proxy.api.errors import RouteRefused
from netbird_proxy.api.model import AccountId, Kind, Mode, RouteSpec, ServiceId, ServiceMapping, Upstream
from netbird_proxy.http.folding import fold_host
from netbird_proxy.routing.hooks import Hooks
from netbird_proxy.sources.decode.claims import Claims, unknown_in
from netbird_proxy.sources.decode.targets import custom_headers, http_target, raw_prefix, seconds, stream_target
from netbird_wire.core_settings import ASK_FOR_BOTH, CoreSettings, CoreTargetSettings
from netbird_wire.direct_upstream import is_direct
from netbird_wire.plugin_settings import CORE, read_settings
from netbird_wire.proxy_service_pb2 import PATH_REWRITE_PRESERVE, PathMapping, ProxyCapabilities, ProxyMapping

C = TypeVar("C", CoreSettings, CoreTargetSettings)
_KINDS: Final[dict[Mode, Kind]] = {"http": "http", "tcp": "stream", "tls": "stream", "udp": "datagram"}


@dataclass(frozen=True, slots=True)
class Decoded:
    """A mapping, and the names, without values, of fields that were ignored because they are harmless."""

    mapping: ServiceMapping
    ignored: tuple[str, ...] = ()


class Codec:
    """Decodes mappings for the loaded plugins."""

    def __init__(self, hooks: Hooks, *, tolerate: Collection[int] = ()) -> None:
        """Args:
            tolerate: field numbers of ProxyMapping that are ignored instead of refusing the mapping: the operator
                declares that these fields of a newer management guard nothing.

        Raises:
            PluginFailed: a plugin claims a field that does not exist, or that it may not claim.
        """
        self._claims = Claims(hooks.claims)
        self._capabilities = frozenset(hooks.capabilities)
        self._settings = hooks.settings
        self._target_settings = hooks.target_settings
        self._tolerate = frozenset(tolerate)

    def decode(self, wire: ProxyMapping, *, source: str) -> Decoded:
        """Decode a mapping. `wire` is neither kept nor changed.

        A removal needs no decoding, because its id is enough.
        """
        # The one-time token is for the tunnel alone: neither plugins nor the digest see it.
        shown = ProxyMapping()
        shown.CopyFrom(wire)
        shown.ClearField("auth_token")
        ignored: list[str] = []
        mapping = ServiceMapping(
            id=ServiceId(wire.id),
            account=AccountId(wire.account_id),
            source=source,
            mode=wire.mode if wire.mode in _KINDS else "http",
            host="",
            domain=wire.domain,
            routes=(),
            digest=_digest(shown),
            auth_token=wire.auth_token,
            listen_port=wire.listen_port,
            credential_fields=tuple(each.header for each in wire.auth.header_auths),
        )
        try:
            # The host comes first: a mapping that is refused for another reason has its host closed.
            mapping = replace(mapping, host=_host(shown, mapping.mode))
            self._judge_envelope(shown, ignored)
            routes = self._routes(shown, mapping, ignored)
        except RouteRefused as refusal:
            return Decoded(replace(mapping, refused=str(refusal)), tuple(ignored))
        tunneled = wire.private or any(not is_direct(path.options) for path in wire.path)
        return Decoded(replace(mapping, routes=routes, tunneled=tunneled), tuple(ignored))

    def capabilities(self, *, private: bool, require_subdomain: bool = False) -> ProxyCapabilities:
        """Capabilities to report to management: NetBird's five, set even if false, and the claims of the plugins.

        Args:
            private: whether this proxy listens inside its accounts' tunnels.
            require_subdomain: whether the operator wants no service on the cluster's bare address.
        """
        declared = self._capabilities
        return ProxyCapabilities(
            supports_custom_ports="supports_custom_ports" in declared,
            require_subdomain=require_subdomain or "require_subdomain" in declared,
            supports_crowdsec="supports_crowdsec" in declared,
            private=private,
            supports_private_service="supports_private_service" in declared,
            claims=sorted(
                {ASK_FOR_BOTH, *self._claims.names, *declared.difference(ProxyCapabilities.DESCRIPTOR.fields_by_name)}
            ),
        )

    def _judge_envelope(self, wire: ProxyMapping, ignored: list[str]) -> None:
        refusing, harmless = unknown_in(wire, tolerate=self._tolerate)
        ignored += harmless
        if refusing:
            raise RouteRefused(f"{', '.join(refusing)} is not supported by this proxy")
        if wire.mode and wire.mode not in _KINDS:
            raise RouteRefused(f"mode must be one of {', '.join(get_args(Mode))}, not {wire.mode!r}")
        if not wire.id:
            raise RouteRefused("the mapping has no id")
        if wire.private and not wire.account_id:
            raise RouteRefused("a private mapping needs an account")
        if wire.mode in ("tcp", "udp") and not 0 < wire.listen_port < 65536:
            raise RouteRefused(f"listen_port {wire.listen_port} is not a port")
        if wire.mode == "tls" and not 0 <= wire.listen_port < 65536:
            raise RouteRefused(f"listen_port {wire.listen_port} is not a port")

    def _routes(self, wire: ProxyMapping, mapping: ServiceMapping, ignored: list[str]) -> tuple[RouteSpec, ...]:
        judged = self._claims.judge(wire)
        judged_paths = [self._claims.judge_path(path) for path in wire.path]
        if unclaimed := dict.fromkeys(name for fields in (judged, *judged_paths) for name in fields.unclaimed):
            raise RouteRefused(f"no plugin of this proxy supports {', '.join(unclaimed)}")
        if mapping.mode != "http" and not wire.path:
            raise RouteRefused("the mapping has no target")
        values = self._values(wire)
        core = _core(CoreSettings, wire)
        if core.ask_for_both and (wire.private or not _has_schemes(wire)):
            raise RouteRefused(f"settings of {CORE}: ask_for_both is for public services with a way to log in")
        routes: dict[bytes, RouteSpec] = {}
        for path, judged_path in zip(wire.path, judged_paths, strict=True):
            route = RouteSpec(
                service=mapping.id,
                account=mapping.account,
                host=mapping.host,
                domain=mapping.domain,
                prefix=raw_prefix(path.path) if mapping.mode == "http" else b"",
                upstreams=(self._upstream(wire, path, mapping.mode, ignored),),
                kind=_KINDS[mapping.mode],
                strip_prefix=path.options.path_rewrite != PATH_REWRITE_PRESERVE,
                pass_host_header=wire.pass_host_header,
                rewrite_redirects=wire.rewrite_redirects,
                pass_ambiguous=core.ambiguous_path == "pass",
                same_origin=core.same_origin,
                preflight_origins=core.preflight_origins,
                ask_for_both=core.ask_for_both,
                guarding=_together(judged.guarding, judged_path.guarding),
                values=values,
            )
            present = routes.get(route.prefix)
            routes[route.prefix] = _merged(present, route) if present else route
        return tuple(routes.values())

    def _values(self, wire: ProxyMapping) -> dict[type, Any]:
        return {model: _read(plugin, model, wire) for plugin, model in self._settings}

    def _upstream(self, wire: ProxyMapping, path: PathMapping, mode: Mode, ignored: list[str]) -> Upstream:
        options = path.options
        if options.proxy_protocol:
            if mode != "http":
                raise RouteRefused("PROXY protocol towards a target is not supported by this proxy")
            ignored.append("path.options.proxy_protocol")
        if mode == "http":
            scheme, address, raw_path = http_target(path.target)
        else:
            scheme, address, raw_path = mode, stream_target(path.target), b"/"
        core = _core(CoreTargetSettings, path)
        if scheme != "https" and (core.ca or core.server_name):
            raise RouteRefused(f"the target of path {path.path!r} has settings for TLS, so it must be https")
        if core.ca and options.skip_tls_verify:
            raise RouteRefused(f"the target of path {path.path!r} must not have both a ca and skip_tls_verify")
        return Upstream(
            scheme=scheme,  # type: ignore[arg-type]  # one of the five by now
            address=address,
            path=raw_path,
            skip_tls_verify=options.skip_tls_verify,
            dial_timeout=seconds(options.request_timeout),
            custom_headers=custom_headers(options.custom_headers, ignored),
            disable_access_log=options.disable_access_log,
            ca=core.ca,
            server_name=core.server_name,
            values={model: _read(plugin, model, wire, path) for plugin, model in self._target_settings},
        )


def _digest(wire: ProxyMapping) -> bytes:
    """Hash a mapping without its type, so that a creation and an identical modification have one digest."""
    digested = ProxyMapping()
    digested.CopyFrom(wire)
    digested.ClearField("type")
    return hashlib.sha256(digested.SerializeToString(deterministic=True)).digest()


def _host(wire: ProxyMapping, mode: Mode) -> str:
    if mode in ("tcp", "udp") and not wire.domain:
        return ""
    try:
        return fold_host(wire.domain)
    except ValueError:
        raise RouteRefused(f"domain {wire.domain!r} is not a host") from None


def _has_schemes(wire: ProxyMapping) -> bool:
    auth = wire.auth
    return bool(auth.password or auth.pin or auth.oidc or auth.header_auths)


def _core(model: type[C], message: ProxyMapping | PathMapping) -> C:
    """The core's own settings."""
    try:
        return model.model_validate(read_settings(message, CORE))
    except ValidationError as error:
        raise RouteRefused(f"this proxy cannot use the settings of {CORE}: {_wrong(error)}") from None


def _wrong(error: ValidationError) -> str:
    """Format the fields and problems of an error, without values, because some are secrets."""
    problems = error.errors(include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)


def _read(plugin: PluginId, model: type[Any], *arguments: ProxyMapping | PathMapping) -> Any:
    """Read a plugin's settings from a mapping. Raises RouteRefused if the plugin cannot."""
    try:
        value = model.from_wire(*arguments)
    except ValidationError as error:
        raise RouteRefused(f"plugin {plugin} cannot use its settings: {_wrong(error)}") from None
    except ValueError as error:
        raise RouteRefused(f"plugin {plugin} cannot use its settings: {error}") from error
    except Exception as error:
        # A plugin's code may raise any exception; then its route stays closed.
        raise RouteRefused(f"plugin {plugin} failed to read its settings: {type(error).__name__}") from error
    if not isinstance(value, model):
        raise RouteRefused(f"plugin {plugin} read its settings as {type(value).__name__}, not {model.__name__}")
    return value


def _together(
    first: Mapping[PluginId, tuple[str, ...]], second: Mapping[PluginId, tuple[str, ...]]
) -> dict[PluginId, tuple[str, ...]]:
    union = dict(first)
    for plugin, fields in second.items():
        union[plugin] = tuple(dict.fromkeys((*union.get(plugin, ()), *fields)))
    return union


def _merged(route: RouteSpec, added: RouteSpec) -> RouteSpec:
    """Merge two targets on one prefix into one route with two upstreams."""
    if route.strip_prefix != added.strip_prefix:
        raise RouteRefused(f"the targets of path {route.prefix.decode()!r} differ in path_rewrite")
    guarding = _together(route.guarding, added.guarding)
    return replace(route, upstreams=route.upstreams + added.upstreams, guarding=guarding)
