"""Which mappings which proxy gets, when: a snapshot first, then what changes, in the order of commits.

What a proxy should have is compared with what it was sent, so that a service that changed cluster, was disabled, or may
no longer be had by this proxy becomes a removal, and nothing that was public stays so by being left out.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from netbird_management.clock import now
from netbird_management.grpc.connections import Connection, Connections
from netbird_management.grpc.recorder import Recorder
from netbird_management.grpc.revalidations import revalidations, revocation, revocations
from netbird_management.ids import AccountId, PeerId, ServiceId
from netbird_management.network.revocations import KEPT
from netbird_management.network.snapshot import AccountSnapshot, Change
from netbird_management.plugins import Hooks
from netbird_management.services.mapping import BuiltMapping, build, resolve
from netbird_management.services.model import Service, TargetType
from netbird_management.services.one_time import mint
from netbird_management.state import State
from netbird_wire.proxy_service_pb2 import (
    UPDATE_TYPE_CREATED,
    UPDATE_TYPE_MODIFIED,
    UPDATE_TYPE_REMOVED,
    ProxyMapping,
    ProxyMappingUpdateType,
    Revocation,
    SyncMappingsResponse,
)

BATCH: Final = 500
"""Mappings in one message."""


class Mappings:
    """Builds mappings, once for each change of a service, and tells connections of them."""

    def __init__(self, state: State, hooks: Hooks, connections: Connections, recorder: Recorder) -> None:
        self._state = state
        self._hooks = hooks
        self._connections = connections
        self._recorder = recorder
        self._built: dict[ServiceId, tuple[tuple[object, ...], BuiltMapping]] = {}

    def snapshot(self, connection: Connection) -> list[ProxyMapping]:
        """Everything that the proxy should have now, without types and one-time tokens; from now on it is told changes.

        The mappings are shared: `outgoing` makes copies.
        """
        connection.held.clear()
        connection.withheld.clear()
        for account in self._state.snapshots.all():
            for service in account.services.values():
                if connection.serves(service):
                    built = self._of(service, account)
                    reason = built.withheld_from(connection.registration.capabilities)
                    connection.held[service.id] = None if reason else built.mapping
                    if reason:
                        connection.withheld[service.id] = reason
        connection.snapshotted = True
        self._recorder.withheld_at_snapshot(connection.proxy_id, connection.withheld)
        return [mapping for mapping in connection.held.values() if mapping is not None]

    def revocations(self, connection: Connection) -> list[Revocation]:
        """The last day's, of every account that the proxy may serve."""
        since = now() - KEPT
        return [
            revocation(account.account.id, one)
            for account in self._state.snapshots.all()
            if connection.may_see(account.account.id)
            for one in account.revocations
            if one.not_before >= since
        ]

    def outgoing(
        self, mapping: ProxyMapping, kind: "ProxyMappingUpdateType.ValueType", connection: Connection
    ) -> ProxyMapping:
        """A copy for one proxy, with a one-time token of its own. A removal says only what went."""
        if kind == UPDATE_TYPE_REMOVED:
            return ProxyMapping(
                type=kind,
                id=mapping.id,
                account_id=mapping.account_id,
                domain=mapping.domain,
                mode=mapping.mode,
                listen_port=mapping.listen_port,
            )
        copy = ProxyMapping()
        copy.CopyFrom(mapping)
        copy.type = kind
        account_id, service_id = AccountId(mapping.account_id), ServiceId(mapping.id)
        copy.auth_token = mint(self._state.vault, account_id, service_id, connection.token.id)
        return copy

    def tell(self, change: Change) -> None:
        """Tells every proxy what a commit changes for it."""
        candidates = list(self._candidates(change))
        asked, revoked = revalidations(change), revocations(change)
        after = change.after
        for service_id, _ in candidates:
            if after is None or service_id not in after.services:
                self._built.pop(service_id, None)
        for connection in self._connections:
            if not connection.snapshotted or not connection.may_see(change.account_id):
                continue
            updates = [
                update
                for service_id, touched in candidates
                if (update := self._update(connection, service_id, after, touched=touched)) is not None
            ]
            for start in range(0, len(updates), BATCH):
                connection.put(SyncMappingsResponse(mapping=updates[start : start + BATCH]))
            if (asked or revoked) and connection.is_concerned(change):
                # After the mappings, which must be in force when the proxy asks.
                connection.put(SyncMappingsResponse(revalidations=asked, revocations=revoked))

    def _candidates(self, change: Change) -> Iterator[tuple[ServiceId, bool]]:
        """The services whose mappings may differ, and whether they themselves were written."""
        touched = change.touched
        for service_id in sorted(touched.services):
            yield service_id, True
        known = {**(change.before.services if change.before else {}), **(change.after.services if change.after else {})}
        for service_id, service in sorted(known.items()):
            everything = change.after is None or change.before is None or touched.domains
            if service_id not in touched.services and (everything or _targets(service, touched.peers)):
                yield service_id, False

    def _update(
        self, connection: Connection, service_id: ServiceId, account: AccountSnapshot | None, *, touched: bool
    ) -> ProxyMapping | None:
        held = connection.held.get(service_id)
        service = account.services.get(service_id) if account is not None else None
        if account is None or service is None or not connection.serves(service):
            known = service_id in connection.held
            connection.held.pop(service_id, None)
            connection.withheld.pop(service_id, None)
            if known:
                self._recorder.withheld(connection.proxy_id, service_id, None)
            return None if held is None else self.outgoing(held, UPDATE_TYPE_REMOVED, connection)
        built = self._of(service, account)
        if reason := built.withheld_from(connection.registration.capabilities):
            told = service_id in connection.held and held is None
            connection.held[service_id] = None
            connection.withheld[service_id] = reason
            self._recorder.withheld(connection.proxy_id, service_id, reason)
            return None if told else self.outgoing(held or built.mapping, UPDATE_TYPE_REMOVED, connection)
        if held is not None and held == built.mapping and not touched:
            return None
        connection.held[service_id] = built.mapping
        if connection.withheld.pop(service_id, ""):
            self._recorder.withheld(connection.proxy_id, service_id, "")
        return self.outgoing(built.mapping, UPDATE_TYPE_CREATED if held is None else UPDATE_TYPE_MODIFIED, connection)

    def _of(self, service: Service, account: AccountSnapshot) -> BuiltMapping:
        key = (service, account.custom_domains, tuple(resolve(target, account) for target in service.targets))
        known = self._built.get(service.id)
        if known is None or known[0] != key:
            known = self._built[service.id] = (key, build(service, account, self._hooks))
        return known[1]


def _targets(service: Service, peers: Iterable[PeerId]) -> bool:
    return any(
        target.target_type is TargetType.PEER and PeerId(target.target_id) in peers for target in service.targets
    )
