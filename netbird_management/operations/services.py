"""Creation, changes and deletion of services; the rules come from `compute.validate` and the plugins."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from netbird_management.compute import extensions
from netbird_management.compute.mapping import check_mapping, unclaimed
from netbird_management.compute.validate import folded_name, validated
from netbird_management.model.activity import Activity
from netbird_management.model.clock import now
from netbird_management.model.domains import folded, is_under
from netbird_management.model.errors import Conflict, InvalidArgument, NotFound, PermissionDenied, PreconditionFailed
from netbird_management.model.ids import AccountId, ServiceId, new_id
from netbird_management.model.services import AuthConfig, HeaderAuth, SecretAuth, Service
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.ports import with_port
from netbird_management.operations.proxies import Cluster, cluster_of_domain, clusters_of
from netbird_management.plugins.hooks import Hooks
from netbird_management.secrets.passwords import hash_secret
from netbird_management.secrets.session_tokens import new_key_pair
from netbird_management.store import service_rows as rows
from netbird_management.store.models import ServiceRow
from netbird_management.store.state import State
from netbird_wire.go_duration import format_duration


async def create_service(
    state: State, hooks: Hooks, given: Service, sent: frozenset[str], *, refused_domains: Sequence[str] = ()
) -> Service:
    """Creates a service. `given` contains the client's fields, its secrets in plain text, and its account.

    Id, cluster, keys and meta are assigned here. Raises `InvalidArgument`, `PreconditionFailed` if no cluster serves
    the domain, `Conflict` for a domain that is taken, `HookError`.
    """
    account = _account(state, given.account_id)
    validated(given, account)  # before hashing, which is slow by design
    domain, cluster = await _place(state, account, given.domain, refused_domains)
    private_key, public_key = new_key_pair()
    service = replace(
        given,
        id=ServiceId(new_id()),
        domain=domain,
        proxy_cluster=cluster.address,
        own_cluster=cluster.type == "account",
        session_public_key=public_key,
        auth=await _hashed(given.account_id, given.auth),
        meta=replace(given.meta, created_at=now()),
    )
    async with state.change(given.account_id) as transaction:
        service = _checked(service, None, sent, transaction.account, hooks)
        _check_secrets(service.auth)
        _check_domain(state, service)
        service = with_port(state, service, None, custom_ports=cluster.supports_custom_ports)
        row = ServiceRow(
            id=service.id,
            account_id=service.account_id,
            session_private_key=state.vault.seal(private_key),
            session_public_key=public_key,
            created_at=service.meta.created_at,
            **rows.columns(service),
        )
        transaction.session.add(row)
        transaction.touch(services=[service.id])
        transaction.record(Activity.SERVICE_CREATE, service.id, **_described(service))
    return get_service(state, given.account_id, service.id)


async def update_service(
    state: State,
    hooks: Hooks,
    given: Service,
    sent: frozenset[str],
    *,
    confirm_public: bool = False,
    refused_domains: Sequence[str] = (),
) -> Service:
    """Replaces a service by what the caller asked for, under the same id.

    An empty secret keeps the stored one; leaving out `private` *and* `access_groups` keeps both, and leaving out
    `extensions` keeps those. Raises as
    `create_service`; `NotFound`; `PermissionDenied` for a terminated service; and `PreconditionFailed`, changing
    nothing, for an update after which nothing authenticates where something did, unless `confirm_public`.
    """
    account = _account(state, given.account_id)
    previous = get_service(state, given.account_id, given.id)
    given = replace(given, mode=given.mode or previous.mode)
    validated(given, account)
    domain, cluster, own_cluster = previous.domain, previous.proxy_cluster, previous.own_cluster
    if folded(given.domain) != domain:
        domain, placed_on = await _place(state, account, given.domain, refused_domains)
        cluster, own_cluster = placed_on.address, placed_on.type == "account"
    hashed = await _hashed(given.account_id, given.auth)
    clusters = await clusters_of(state, given.account_id)
    reported = {cluster.address: cluster.supports_custom_ports for cluster in clusters}
    async with state.change(given.account_id) as transaction:
        old = transaction.account.services.get(given.id)
        if old is None:
            raise NotFound(f"service {given.id} not found")
        if old.terminated:
            raise PermissionDenied("service is terminated and cannot be updated")
        if given.mode != old.mode:
            raise InvalidArgument(f"the mode of a service cannot be changed: it is {old.mode}")
        service = replace(
            given,
            domain=domain,
            proxy_cluster=cluster,
            own_cluster=own_cluster,
            auth=_with_kept_secrets(hashed, old.auth),
            session_public_key=old.session_public_key,
            meta=old.meta,
        )
        if not sent & {"private", "access_groups"}:
            service = replace(service, private=old.private, access_groups=old.access_groups)
        service = extensions.keep_unsent(service, old, sent)
        service = _checked(service, old, sent, transaction.account, hooks)
        _check_secrets(service.auth)
        _check_domain(state, service)
        service = with_port(state, service, old, custom_ports=reported.get(service.proxy_cluster))
        if _protected(old) and not _protected(service) and not confirm_public:
            raise PreconditionFailed(
                "after this update the service would be public, without any login: "
                'send "confirm_public": true to confirm'
            )
        row = await transaction.session.get_one(ServiceRow, service.id)
        if lost_credentials(old.auth, service.auth):
            # Sessions that began with a removed credential must end: a new key pair makes all tokens invalid.
            private_key, row.session_public_key = new_key_pair()
            row.session_private_key = state.vault.seal(private_key)
        for column, value in rows.columns(service).items():
            setattr(row, column, value)
        transaction.touch(services=[service.id])
        transaction.record(Activity.SERVICE_UPDATE, service.id, **_described(service))
    return get_service(state, given.account_id, given.id)


async def delete_service(state: State, account_id: AccountId, service_id: ServiceId) -> None:
    """Raises `NotFound`."""
    async with state.change(account_id) as transaction:
        row = await transaction.session.get(ServiceRow, service_id)
        if row is None or row.account_id != account_id:
            raise NotFound(f"service {service_id} not found")
        service = transaction.account.services[service_id]
        await transaction.session.delete(row)
        transaction.touch(services=[service_id])
        transaction.record(Activity.SERVICE_DELETE, service_id, **_described(service))


def get_service(state: State, account_id: AccountId, service_id: ServiceId) -> Service:
    """A service by id. Raises `NotFound`, also for another account's service."""
    service = _account(state, account_id).services.get(service_id)
    if service is None:
        raise NotFound(f"failed to get service: service {service_id} not found")
    return service


def _described(service: Service) -> dict[str, Any]:
    """Details of a service for events."""
    options = service.targets[0].options
    return {
        "name": service.name,
        "domain": service.domain,
        "proxy_cluster": service.proxy_cluster,
        "source": service.source,
        "auth": service.auth.any_enabled,
        "mode": service.mode,
        "listen_port": service.listen_port or None,
        "proxy_protocol": options.proxy_protocol or None,
        "request_timeout": format_duration(options.request_timeout) if options.request_timeout else None,
        "session_idle_timeout": format_duration(options.session_idle_timeout) if options.session_idle_timeout else None,
    }


def _account(state: State, account_id: AccountId) -> AccountSnapshot:
    snapshot = state.snapshots.get(account_id)
    if snapshot is None:
        raise NotFound(f"account {account_id} not found")
    return snapshot


def _checked(
    service: Service, previous: Service | None, sent: frozenset[str], account: AccountSnapshot, hooks: Hooks
) -> Service:
    service = validated(service, account)
    if violations := hooks.validate_service(service, previous, sent, account):
        raise InvalidArgument("; ".join(violation.message for violation in violations))
    if missing := unclaimed(service, hooks):
        raise InvalidArgument(f"no plugin of this management supports {', '.join(missing)}: add it to plugins")
    check_mapping(service, account, hooks)
    return service


def _protected(service: Service) -> bool:
    return service.private or service.auth.any_enabled


async def _place(
    state: State, account: AccountSnapshot, domain: str, refused_domains: Sequence[str]
) -> tuple[str, Cluster]:
    """The folded domain and the cluster that serves it. Raises `InvalidArgument`, `PreconditionFailed`."""
    if not domain.strip():
        raise InvalidArgument("service domain is required")
    name = folded(domain)
    cluster = await cluster_of_domain(state, account, name)
    for refused in refused_domains:
        # A subdomain of a refused domain could set its cookies, unless the operator placed a cluster there.
        placed = cluster.type == "shared" and is_under(cluster.address, refused)
        if is_under(refused, name) or (is_under(name, refused) and not placed):
            raise InvalidArgument(f"domain {name} is not available for services")
    if name == cluster.address:
        raise InvalidArgument(f"domain {name} is the address of a cluster: use a subdomain of it")
    return name, cluster


def _check_domain(state: State, service: Service) -> None:
    taken = state.snapshots.by_domain(service.domain)
    account = state.snapshots.get(service.account_id)
    own = account.service_by_domain(service.domain) if account is not None else None
    if any(other is not None and other.id != service.id for other in (taken and taken[1], own)):
        raise Conflict("domain already taken")
    if state.snapshots.names.others_hold(service.domain, service.account_id):
        # A name above another account's could receive its cookies, one below could set them.
        raise InvalidArgument(f"domain {service.domain} is above or below a domain of another account")


async def _hashed(account_id: AccountId, auth: AuthConfig) -> AuthConfig:
    """The credentials with every sent secret hashed, enabled or not, so that no secret is stored in plain text."""

    async def hashed(secret: str) -> str:
        return await hash_secret(account_id, secret) if secret else ""

    async def scheme(given: SecretAuth | None) -> SecretAuth | None:
        return None if given is None else replace(given, secret=await hashed(given.secret))

    headers = [replace(header, value=await hashed(header.value)) for header in auth.header_auths]
    return replace(
        auth,
        password_auth=await scheme(auth.password_auth),
        pin_auth=await scheme(auth.pin_auth),
        header_auths=tuple(headers),
    )


def _with_kept_secrets(auth: AuthConfig, old: AuthConfig) -> AuthConfig:
    """Fills empty secrets with the stored ones. Several entries for the same header take the stored ones in order."""

    def scheme(new: SecretAuth | None, stored: SecretAuth | None) -> SecretAuth | None:
        return new if new is None or new.secret or stored is None else replace(new, secret=stored.secret)

    left: dict[str, list[str]] = {}
    for header in old.header_auths:
        left.setdefault(folded_name(header.header), []).append(header.value)

    def kept(header: HeaderAuth) -> HeaderAuth:
        stored = left.get(folded_name(header.header), [])
        return replace(header, value=stored.pop(0)) if not header.value and stored else header

    return replace(
        auth,
        password_auth=scheme(auth.password_auth, old.password_auth),
        pin_auth=scheme(auth.pin_auth, old.pin_auth),
        header_auths=tuple(kept(header) for header in auth.header_auths),
    )


def lost_credentials(old: AuthConfig, new: AuthConfig) -> bool:
    """True if a credential no longer works: a scheme was removed or disabled, or a secret was changed."""

    def secret(scheme: SecretAuth | None) -> str:
        return scheme.secret if scheme is not None and scheme.enabled else ""

    def headers(auth: AuthConfig) -> set[tuple[str, str]]:
        return {(folded_name(entry.header), entry.value) for entry in auth.header_auths if entry.enabled}

    bearer_before = old.bearer_auth is not None and old.bearer_auth.enabled
    bearer_after = new.bearer_auth is not None and new.bearer_auth.enabled
    return (
        any(
            secret(before) not in ("", secret(after))
            for before, after in ((old.password_auth, new.password_auth), (old.pin_auth, new.pin_auth))
        )
        or (bearer_before and not bearer_after)
        or not headers(old) <= headers(new)
    )


def _check_secrets(auth: AuthConfig) -> None:
    for name, scheme in (("password", auth.password_auth), ("pin", auth.pin_auth)):
        if scheme is not None and scheme.enabled and not scheme.secret:
            raise InvalidArgument(f"{name}_auth: {name} is required")
    for i, header in enumerate(auth.header_auths):
        if header.enabled and not header.value:
            raise InvalidArgument(f"header_auths[{i}]: value is required")
