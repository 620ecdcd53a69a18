"""From the wire to the model: a mapping as management or a file says it, judged, and made into routes.

Nothing here raises over what a mapping says: a mapping that cannot be served as it is comes back refused, with one
sentence that says why, so that whoever applies it can close its host. What matters is that nothing is *left out*: a
field without a plugin that understands it refuses the whole mapping.
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
    """A mapping, and what was left out of it without harm: names for a log line, no values."""

    mapping: ServiceMapping
    ignored: tuple[str, ...] = ()


class Codec:
    """Knows the loaded plugins, and reads mappings for them."""

    def __init__(self, hooks: Hooks, *, tolerate: Collection[int] = ()) -> None:
        """Args:
            tolerate: field numbers of ProxyMapping that are ignored instead of refusing the mapping: the operator's
                word that a newer management's field guards nothing.

        Raises:
            PluginFailed: a plugin claims what is not there, or not its to claim.
        """
        self._claims = Claims(hooks.claims)
        self._capabilities = frozenset(hooks.capabilities)
        self._settings = hooks.settings
        self._target_settings = hooks.target_settings
        self._tolerate = frozenset(tolerate)

    def decode(self, wire: ProxyMapping, *, source: str) -> Decoded:
        """The mapping in the model. `wire` is neither kept nor changed.

        A removal needs no decoding: its id says everything.
        """
        # The one-time token is for the tunnel alone: neither plugins nor the digest see it.
        said = ProxyMapping()
        said.CopyFrom(wire)
        said.ClearField("auth_token")
        ignored: list[str] = []
        mapping = ServiceMapping(
            id=ServiceId(wire.id),
            account=AccountId(wire.account_id),
            source=source,
            mode=wire.mode if wire.mode in _KINDS else "http",
            host="",
            domain=wire.domain,
            routes=(),
            digest=_digest(said),
            auth_token=wire.auth_token,
            listen_port=wire.listen_port,
        )
        try:
            # First of all the host: whatever else is wrong, this is what has to be closed.
            mapping = replace(mapping, host=_host(said, mapping.mode))
            self._judge_envelope(said, ignored)
            routes = self._routes(said, mapping, ignored)
        except RouteRefused as refusal:
            return Decoded(replace(mapping, refused=str(refusal)), tuple(ignored))
        tunneled = wire.private or any(not is_direct(path.options) for path in wire.path)
        return Decoded(replace(mapping, routes=routes, tunneled=tunneled), tuple(ignored))

    def capabilities(self, *, private: bool) -> ProxyCapabilities:
        """What to tell management: NetBird's five, each set, also when false, and the claims of the plugins.

        Args:
            private: whether this proxy listens inside its accounts' tunnels.
        """
        told = self._capabilities
        return ProxyCapabilities(
            supports_custom_ports="supports_custom_ports" in told,
            require_subdomain="require_subdomain" in told,
            supports_crowdsec="supports_crowdsec" in told,
            private=private,
            supports_private_service="supports_private_service" in told,
            claims=sorted(
                {ASK_FOR_BOTH, *self._claims.names, *told.difference(ProxyCapabilities.DESCRIPTOR.fields_by_name)}
            ),
        )

    def _judge_envelope(self, said: ProxyMapping, ignored: list[str]) -> None:
        refusing, harmless = unknown_in(said, tolerate=self._tolerate)
        ignored += harmless
        if refusing:
            raise RouteRefused(f"this proxy does not know {', '.join(refusing)}")
        if said.mode and said.mode not in _KINDS:
            raise RouteRefused(f"mode {said.mode!r} is none of {', '.join(get_args(Mode))}")
        if not said.id:
            raise RouteRefused("the mapping has no id")
        if said.private and not said.account_id:
            raise RouteRefused("a private mapping needs an account")
        if said.mode in ("tcp", "udp") and not 0 < said.listen_port < 65536:
            raise RouteRefused(f"listen_port {said.listen_port} is not a port")
        if said.mode == "tls" and not 0 <= said.listen_port < 65536:
            raise RouteRefused(f"listen_port {said.listen_port} is not a port")

    def _routes(self, said: ProxyMapping, mapping: ServiceMapping, ignored: list[str]) -> tuple[RouteSpec, ...]:
        judged = self._claims.judge(said)
        judged_paths = [self._claims.judge_path(path) for path in said.path]
        if unclaimed := dict.fromkeys(name for one in (judged, *judged_paths) for name in one.unclaimed):
            raise RouteRefused(f"no plugin of this proxy understands {', '.join(unclaimed)}")
        if mapping.mode != "http" and not said.path:
            raise RouteRefused("the mapping has no target")
        values = self._values(said)
        core = _core(CoreSettings, said)
        if core.ask_for_both and (said.private or not _has_schemes(said)):
            raise RouteRefused(f"settings of {CORE}: ask_for_both is for public services with a way to log in")
        routes: dict[bytes, RouteSpec] = {}
        for path, judged_path in zip(said.path, judged_paths, strict=True):
            route = RouteSpec(
                service=mapping.id,
                account=mapping.account,
                host=mapping.host,
                domain=mapping.domain,
                prefix=raw_prefix(path.path) if mapping.mode == "http" else b"",
                upstreams=(self._upstream(said, path, mapping.mode, ignored),),
                kind=_KINDS[mapping.mode],
                strip_prefix=path.options.path_rewrite != PATH_REWRITE_PRESERVE,
                pass_host_header=said.pass_host_header,
                rewrite_redirects=said.rewrite_redirects,
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

    def _values(self, said: ProxyMapping) -> dict[type, Any]:
        return {model: _read(plugin, model, said) for plugin, model in self._settings}

    def _upstream(self, said: ProxyMapping, path: PathMapping, mode: Mode, ignored: list[str]) -> Upstream:
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
            raise RouteRefused(f"the target of path {path.path!r} has settings for TLS and is not https")
        if core.ca and options.skip_tls_verify:
            raise RouteRefused(f"the target of path {path.path!r} has a ca and skips verification: choose one")
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
            values={model: _read(plugin, model, said, path) for plugin, model in self._target_settings},
        )


def _digest(said: ProxyMapping) -> bytes:
    """Of everything a mapping says but its token, and but whether it is created or modified."""
    kept = ProxyMapping()
    kept.CopyFrom(said)
    kept.ClearField("type")
    return hashlib.sha256(kept.SerializeToString(deterministic=True)).digest()


def _host(said: ProxyMapping, mode: Mode) -> str:
    if mode in ("tcp", "udp") and not said.domain:
        return ""
    try:
        return fold_host(said.domain)
    except ValueError:
        raise RouteRefused(f"domain {said.domain!r} is not a host") from None


def _has_schemes(said: ProxyMapping) -> bool:
    auth = said.auth
    return bool(auth.password or auth.pin or auth.oidc or auth.header_auths)


def _core(model: type[C], message: ProxyMapping | PathMapping) -> C:
    """The core's own settings."""
    try:
        return model.model_validate(read_settings(message, CORE))
    except ValidationError as error:
        raise RouteRefused(f"this proxy cannot use the settings of {CORE}: {_wrong(error)}") from None


def _wrong(error: ValidationError) -> str:
    """Where and what; never the values, some of which are secrets."""
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False))


def _read(plugin: PluginId, model: type[Any], *arguments: ProxyMapping | PathMapping) -> Any:
    """What a plugin's model makes of a mapping."""
    try:
        value = model.from_wire(*arguments)
    except ValidationError as error:
        raise RouteRefused(f"plugin {plugin} cannot use its settings: {_wrong(error)}") from None
    except ValueError as error:
        raise RouteRefused(f"plugin {plugin} cannot use its settings: {error}") from error
    except Exception as error:
        # A plugin's code: whatever else it raises is its failure, and its route stays closed.
        raise RouteRefused(f"plugin {plugin} failed to read its settings: {type(error).__name__}") from error
    if not isinstance(value, model):
        raise RouteRefused(f"plugin {plugin} read its settings as {type(value).__name__}, not {model.__name__}")
    return value


def _together(
    one: Mapping[PluginId, tuple[str, ...]], other: Mapping[PluginId, tuple[str, ...]]
) -> dict[PluginId, tuple[str, ...]]:
    found = dict(one)
    for plugin, fields in other.items():
        found[plugin] = tuple(dict.fromkeys((*found.get(plugin, ()), *fields)))
    return found


def _merged(one: RouteSpec, other: RouteSpec) -> RouteSpec:
    """Two targets on one prefix are two upstreams of one route."""
    if one.strip_prefix != other.strip_prefix:
        raise RouteRefused(f"the targets of path {one.prefix.decode()!r} differ in path_rewrite")
    return replace(one, upstreams=one.upstreams + other.upstreams, guarding=_together(one.guarding, other.guarding))
