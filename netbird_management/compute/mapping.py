"""Conversion of a service to its `ProxyMapping`: the core's fields, the plugins' fields, and reasons to withhold it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import AddressValueError, IPv6Address
from typing import Final

from netbird_host.sources import address_text
from netbird_management.compute import extensions
from netbird_management.model.admission import admitted, peer_refusal
from netbird_management.model.errors import InvalidArgument
from netbird_management.model.ids import AccountId, PeerId, ServiceId
from netbird_management.model.services import RESOURCES, Capabilities, Service, Target, TargetType
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.plugins.hooks import HookError, Hooks
from netbird_management.plugins.steps import ALLOW, Decision, Deny, WithholdPredicate
from netbird_wire.proxy_service_pb2 import (
    PATH_REWRITE_PRESERVE,
    PathMapping,
    PathTargetOptions,
    ProxyMapping,
)

SESSION_SECONDS: Final = 86400
# Host of a target that was deleted, or whose owner is not admitted; the name resolves nowhere.
UNKNOWN_HOST: Final = "unknown"

# Claim of a proxy whose tunnel follows routes to network resources.
ROUTES: Final = "routes"

# Maximum size of a mapping, as proxies of all accounts share the messages that carry mappings. A larger mapping is
# refused when the service is saved, and withheld if the service is already stored.
MAPPING_BYTES: Final = 256 << 10
TOO_LARGE: Final = f"its mapping is larger than {MAPPING_BYTES >> 10} KiB: use fewer targets, headers or settings"

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# Fields that the core leaves to plugins: a test that a service sets the field, and a test that the mapping carries it.
CLAIMABLE: Final[dict[str, tuple[Callable[[Service], bool], Callable[[Service, ProxyMapping], bool]]]] = {
    "private": (lambda service: service.private, lambda service, mapping: mapping.private),
    "path.options.direct_upstream": (
        lambda service: any(_direct(service)),
        lambda service, mapping: _direct(service) == tuple(path.options.direct_upstream for path in mapping.path),
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class BuiltMapping:
    """A mapping without its one-time token and type, and the reasons not to send it.

    `withheld` holds for every proxy. `mapping` is shared: copy it before writing.
    """

    mapping: ProxyMapping
    withheld: str = ""
    needed: frozenset[str] = frozenset()
    """Plugin settings that a proxy must enforce, by dotted name."""
    predicates: tuple[tuple[str, WithholdPredicate], ...] = ()
    wire: bytes = b""
    """`mapping`, serialized; empty if it is withheld from every proxy."""
    _answers: dict[Capabilities, str] = field(default_factory=dict, repr=False)

    @property
    def account_id(self) -> AccountId:
        return AccountId(self.mapping.account_id)

    @property
    def service_id(self) -> ServiceId:
        return ServiceId(self.mapping.id)

    def withheld_from(self, capabilities: Capabilities) -> str:
        """The reason why a proxy with these capabilities must not get the mapping, "" if it may. The answer is computed
        once per distinct set of capabilities."""
        if self.withheld:
            return self.withheld
        if capabilities not in self._answers:
            self._answers[capabilities] = self._ask(capabilities)
        return self._answers[capabilities]

    def _ask(self, capabilities: Capabilities) -> str:
        custom_port = self.mapping.listen_port != 0 and self.mapping.mode != "tls"
        if custom_port and capabilities.supports_custom_ports is None:
            return "the proxy does not support custom ports"
        if missing := self.needed - (capabilities.claims or frozenset()):
            return f"the proxy does not enforce {', '.join(sorted(missing))}"
        for plugin, predicate in self.predicates:
            try:
                decision = predicate(capabilities)
            except Exception as error:
                return f"plugin {plugin} failed: {type(error).__name__}"
            if isinstance(decision, Deny):
                return decision.reason or f"plugin {plugin} withholds it"
            if decision is not ALLOW:
                return f"plugin {plugin} returned neither ALLOW nor a denial"
        return ""


def _direct(service: Service) -> tuple[bool, ...]:
    return tuple(target.options.direct_upstream for target in service.targets if target.enabled)


def unclaimed(service: Service, hooks: Hooks) -> tuple[str, ...]:
    """The claimable fields that the service sets and no loaded plugin claims."""
    return tuple(name for name, (is_set, _) in CLAIMABLE.items() if is_set(service) and name not in hooks.claims)


def resolve(target: Target, account: AccountSnapshot) -> str:
    """The host of a target: a peer's overlay address, a resource's address, else the operator's text."""
    if target.target_type in (TargetType.HOST, TargetType.DOMAIN):
        match = account.resource(target.target_id)
        return match[1].address.partition("/")[0] if match is not None else UNKNOWN_HOST
    if target.target_type is TargetType.PEER:
        peer = account.peers.get(PeerId(target.target_id))
        return str(peer.ip) if peer is not None and admitted(peer, account) else UNKNOWN_HOST
    return target.host


def check_mapping(service: Service, account: AccountSnapshot, hooks: Hooks) -> None:
    """Validates the service's extensions and the size of its mapping; disabled targets count like enabled ones.

    Raises `InvalidArgument`, and `HookError` if a plugin's model fails.
    """
    whole = replace(service, targets=tuple(replace(target, enabled=True) for target in service.targets))
    mapping = _core(whole, account)
    extensions.check(service, mapping, hooks)
    with suppress(HookError):  # a plugin that fails here is the reason to withhold the mapping that `build` makes
        hooks.build_mapping(whole, mapping)
    if mapping.ByteSize() > MAPPING_BYTES:
        raise InvalidArgument(TOO_LARGE)


def build(service: Service, account: AccountSnapshot, hooks: Hooks) -> BuiltMapping:
    """The mapping of a service, with the reason to withhold it if any. A failure withholds it and never raises."""
    mapping = _core(service, account)
    if not account.is_proved(service):
        return BuiltMapping(mapping, withheld="its custom domain is not validated yet")
    if reason := _unreachable_reason(service, account):
        return BuiltMapping(mapping, withheld=reason)
    if missing := (*unclaimed(service, hooks), *extensions.unclaimed(service, hooks)):
        return BuiltMapping(mapping, withheld=f"no plugin of management claims {', '.join(missing)}")
    try:
        extensions.write(service, mapping)
        hooks.build_mapping(service, mapping)
        predicates = hooks.withhold_mapping(service)
    except (HookError, InvalidArgument) as error:
        return BuiltMapping(mapping, withheld=str(error))
    routed = (target for target in service.targets if target.enabled and target.target_type in RESOURCES)
    if not all(target.options.direct_upstream for target in routed):
        predicates = (*predicates, ("core", _follows_routes))
    for name, (is_set, arrived) in CLAIMABLE.items():
        if is_set(service) and not arrived(service, mapping):
            # If a plugin claims a protecting field and does not write it, the service would become public.
            return BuiltMapping(mapping, withheld=f"{name} is set but its plugin did not write it to the mapping")
    if mapping.ByteSize() > MAPPING_BYTES:
        return BuiltMapping(mapping, withheld=TOO_LARGE)
    wire = mapping.SerializeToString(deterministic=True)
    return BuiltMapping(mapping, needed=extensions.guarding(mapping, hooks), predicates=predicates, wire=wire)


def _unreachable_reason(service: Service, account: AccountSnapshot) -> str:
    """The reason why no enabled target can be reached; "" while one can, and for a service without enabled targets."""
    enabled = [target for target in service.targets if target.enabled]
    if not enabled or any(resolve(target, account) != UNKNOWN_HOST for target in enabled):
        return ""
    target = enabled[0]
    peer = account.peers.get(PeerId(target.target_id)) if target.target_type is TargetType.PEER else None
    reason = None if peer is None else peer_refusal(peer, account)
    if peer is None or reason is None:
        return f"its target {target.target_id} is gone"
    return f"its target {peer.name} belongs to user {peer.user_id}: {reason}"


def _follows_routes(capabilities: Capabilities) -> Decision:
    """NetBird's proxies follow routes. A proxy of ours claims it if its tunnel plugin does.

    Any other proxy would answer every request with an error.
    """
    if capabilities.claims is None or ROUTES in capabilities.claims:
        return ALLOW
    return Deny("the proxy's tunnel reaches peers only: set direct_upstream on targets behind a network")


def host_port(host: str, port: int | None) -> str:
    """`host[:port]`, with an IPv6 literal in exactly one pair of brackets."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    with suppress(AddressValueError):
        bare = f"[{address_text(IPv6Address(bare))}]" if ":" in bare else bare
    return bare if port is None else f"{bare}:{port}"


def _core(service: Service, account: AccountSnapshot) -> ProxyMapping:
    mapping = ProxyMapping(
        id=service.id,
        account_id=service.account_id,
        domain=service.domain,
        mode=service.mode,
        listen_port=service.listen_port,
        pass_host_header=service.pass_host_header,
        rewrite_redirects=service.rewrite_redirects,
    )
    auth = service.auth
    mapping.auth.session_key = service.session_public_key
    mapping.auth.max_session_age_seconds = SESSION_SECONDS
    mapping.auth.password = auth.password_auth is not None and auth.password_auth.enabled
    mapping.auth.pin = auth.pin_auth is not None and auth.pin_auth.enabled
    mapping.auth.oidc = auth.bearer_auth is not None and auth.bearer_auth.enabled
    for header in auth.header_auths:
        if header.enabled:
            mapping.auth.header_auths.add(header=header.header, hashed_value=header.value)
    if restrictions := service.access_restrictions:
        wire = mapping.access_restrictions
        wire.allowed_cidrs.extend(restrictions.allowed_cidrs)
        wire.blocked_cidrs.extend(restrictions.blocked_cidrs)
        wire.allowed_countries.extend(restrictions.allowed_countries)
        wire.blocked_countries.extend(restrictions.blocked_countries)
        wire.crowdsec_mode = restrictions.crowdsec_mode
    enabled = [target for target in service.targets if target.enabled]
    path = _http_path if service.mode == "http" else _stream_path
    mapping.path.extend(path(target, resolve(target, account)) for target in enabled)
    return mapping


def _http_path(target: Target, host: str) -> PathMapping:
    port = None if target.port in (0, _DEFAULT_PORTS.get(target.protocol)) else target.port
    path = PathMapping(
        path=target.path if target.path is not None else "/", target=f"{target.protocol}://{host_port(host, port)}/"
    )
    given = target.options
    options = PathTargetOptions(skip_tls_verify=given.skip_tls_verify, custom_headers=dict(given.custom_headers))
    if given.request_timeout:
        options.request_timeout.FromNanoseconds(round(given.request_timeout * 1e9))
    if given.path_rewrite == "preserve":
        options.path_rewrite = PATH_REWRITE_PRESERVE
    if options != PathTargetOptions():
        path.options.CopyFrom(options)
    return path


def _stream_path(target: Target, host: str) -> PathMapping:
    path = PathMapping(target=host_port(host, target.port))
    options = PathTargetOptions(proxy_protocol=target.options.proxy_protocol)
    if target.options.request_timeout:
        options.request_timeout.FromNanoseconds(round(target.options.request_timeout * 1e9))
    if target.options.session_idle_timeout:
        options.session_idle_timeout.FromNanoseconds(round(target.options.session_idle_timeout * 1e9))
    if options != PathTargetOptions():
        path.options.CopyFrom(options)
    return path
