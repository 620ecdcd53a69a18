"""Distribution of mappings to proxies: a snapshot first, then the changes in the order of commits.

Management compares the mappings that a proxy should have with those it was sent. A service that changed its cluster,
was disabled or is withheld thus becomes an explicit removal, and no service stays public because a message omits it.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from netbird_management.compute.mapping import BuiltMapping, build, resolve
from netbird_management.grpc.connections import Connection, Connections
from netbird_management.grpc.recorder import Recorder
from netbird_management.grpc.revalidations import revalidations, revocation, revocations
from netbird_management.grpc.wire import batches, mapping_entry, message
from netbird_management.model.admission import refusal
from netbird_management.model.clock import now
from netbird_management.model.ids import PeerId, ServiceId, UserId
from netbird_management.model.services import Service
from netbird_management.model.snapshot import AccountSnapshot, Change
from netbird_management.operations.revocations import KEPT
from netbird_management.plugins.hooks import Hooks
from netbird_management.secrets.one_time import mint
from netbird_management.store.state import State
from netbird_wire.proxy_service_pb2 import (
    UPDATE_TYPE_CREATED,
    UPDATE_TYPE_MODIFIED,
    UPDATE_TYPE_REMOVED,
    ProxyMapping,
    ProxyMappingUpdateType,
    Revocation,
)

BATCH: Final = 500
"""Maximum number of mappings in a message."""
REVOCATIONS: Final = 20_000
"""Maximum number of revocations in a message."""
_TOKEN_BYTES: Final = 1024  # upper bound of the parts that differ by proxy: type, one-time token, lengths


class Mappings:
    """Builds and serializes each mapping once for each change of its service, and queues it for the connections."""

    def __init__(self, state: State, hooks: Hooks, connections: Connections, recorder: Recorder) -> None:
        self._state = state
        self._hooks = hooks
        self._connections = connections
        self._recorder = recorder
        self._built: dict[ServiceId, tuple[tuple[object, ...], BuiltMapping]] = {}

    def snapshot(self, connection: Connection) -> list[BuiltMapping]:
        """All mappings that the proxy should have now, without types and one-time tokens. From now on, changes enter
        the connection's queue.

        Ordered by account, then by service, oldest first.
        """
        connection.sent.clear()
        connection.withheld.clear()
        for account in self._state.snapshots.all():
            served = account.index.of_cluster(connection.registration.cluster).values()
            for service in sorted(filter(connection.serves, served), key=lambda service: service.id):
                built = self._of(service, account)
                reason = built.withheld_from(connection.registration.capabilities)
                connection.sent[service.id] = None if reason else built
                if reason:
                    connection.withheld[service.id] = reason
        connection.snapshotted = True
        self._recorder.withheld_at_snapshot(connection.proxy_id, connection.withheld)
        return [built for built in connection.sent.values() if built is not None]

    def revocations(self, connection: Connection) -> list[Revocation]:
        """The last day's revocations of every account with a service in the proxy's cluster; none for a proxy that does
        not support them.

        They need not be sent for services that move to the cluster later: these get a new session key.
        """
        if connection.registration.capabilities.claims is None:
            return []
        since = now() - KEPT
        return [
            revocation(account.account.id, revoked)
            for account in self._state.snapshots.all()
            if connection.may_see(account.account.id) and account.index.of_cluster(connection.registration.cluster)
            for revoked in account.revocations
            if revoked.not_before >= since
        ]

    def snapshot_messages(self, connection: Connection, extensions: Iterable[str]) -> Iterator[bytes]:
        """The snapshot as messages, revocations first, so that they are in force before any mapping.

        The first message lists the extensions; the last one completes the snapshot. One-time tokens are created when
        the iterator reaches their message, so that they are still valid for a slow proxy.
        """
        mappings = self.snapshot(connection)
        parts: list[tuple[list[Revocation], list[BuiltMapping]]] = []
        parts += [(batch, []) for batch in _revocation_batches(self.revocations(connection))]
        parts += [([], batch) for batch in batches(mappings, lambda built: len(built.wire) + _TOKEN_BYTES, most=BATCH)]
        parts = parts or [([], [])]
        for number, (revoked, built) in enumerate(parts):
            yield message(
                (self.outgoing(mapping, UPDATE_TYPE_CREATED, connection) for mapping in built),
                initial_sync_complete=number == len(parts) - 1,
                management_extensions=tuple(extensions) if number == 0 else (),
                revocations=revoked,
            )

    def outgoing(self, built: BuiltMapping, kind: "ProxyMappingUpdateType.ValueType", connection: Connection) -> bytes:
        """A serialized entry for one proxy, with its own one-time token. A removal only identifies the service."""
        mapping = built.mapping
        if kind == UPDATE_TYPE_REMOVED:
            removed = ProxyMapping(
                id=mapping.id,
                account_id=mapping.account_id,
                domain=mapping.domain,
                mode=mapping.mode,
                listen_port=mapping.listen_port,
            )
            return mapping_entry(removed.SerializeToString(), kind)
        token = mint(self._state.vault, built.account_id, built.service_id, connection.token.id)
        return mapping_entry(built.wire, kind, token)

    def send(self, change: Change) -> None:
        """Queues the messages about a commit for every proxy that it concerns."""
        candidates = list(self._candidates(change))
        # These follow the mappings, which must be in force when the proxy revalidates.
        notices = [message((), revocations=batch) for batch in _revocation_batches(revocations(change))]
        if revalidated := revalidations(change):
            notices.append(message((), revalidations=revalidated))
        after = change.after
        built: dict[ServiceId, tuple[Service, BuiltMapping]] = {}
        for service_id, _ in candidates:
            if after is None or service_id not in after.services:
                self._built.pop(service_id, None)
            elif len(self._connections):
                service = after.services[service_id]
                built[service_id] = service, self._of(service, after)
        for connection in self._connections:
            if not connection.snapshotted or not connection.may_see(change.account_id):
                continue
            updates = [
                update
                for service_id, touched in candidates
                if (update := self._update(connection, service_id, built.get(service_id), touched=touched))
            ]
            for batch in batches(updates, len, most=BATCH):
                connection.put(message(batch))
            if notices and connection.is_concerned(change):
                for notice in notices:
                    connection.put(notice)

    def _candidates(self, change: Change) -> Iterator[tuple[ServiceId, bool]]:
        """The services whose mappings may differ, each with True if the commit wrote the service itself."""
        touched = change.touched
        for service_id in sorted(touched.services):
            yield service_id, True
        others: set[ServiceId] = set()
        users = _users_with_other_admission(change)
        for account in (change.before, change.after):
            if account is None:
                continue
            if change.after is None or change.before is None or touched.domains:
                others.update(account.services)
            for peer_id in touched.peers | _peers_of(users, account):
                others.update(account.index.targeting(peer_id))
            for network in account.networks if touched.networks else ():
                for resource in network.resources:
                    others.update(account.index.targeting_resource(resource.id))
        for service_id in sorted(others - touched.services):
            yield service_id, False

    def _update(
        self,
        connection: Connection,
        service_id: ServiceId,
        now_built: tuple[Service, BuiltMapping] | None,
        *,
        touched: bool,
    ) -> bytes:
        """The serialized entry for a proxy whose mapping of the service differs; empty if it does not."""
        previous = connection.sent.get(service_id)
        if now_built is None or not connection.serves(now_built[0]):
            was_recorded = service_id in connection.sent
            connection.sent.pop(service_id, None)
            connection.withheld.pop(service_id, None)
            if was_recorded:
                self._recorder.withheld(connection.proxy_id, service_id, None)
            return b"" if previous is None else self.outgoing(previous, UPDATE_TYPE_REMOVED, connection)
        built = now_built[1]
        if reason := built.withheld_from(connection.registration.capabilities):
            is_removed = service_id in connection.sent and previous is None
            connection.sent[service_id] = None
            connection.withheld[service_id] = reason
            self._recorder.withheld(connection.proxy_id, service_id, reason)
            return b"" if is_removed else self.outgoing(previous or built, UPDATE_TYPE_REMOVED, connection)
        if previous is not None and previous.wire == built.wire and not touched:
            return b""
        connection.sent[service_id] = built
        if connection.withheld.pop(service_id, ""):
            self._recorder.withheld(connection.proxy_id, service_id, "")
        return self.outgoing(built, UPDATE_TYPE_CREATED if previous is None else UPDATE_TYPE_MODIFIED, connection)

    def _of(self, service: Service, account: AccountSnapshot) -> BuiltMapping:
        key = (service, account.custom_domains, tuple(resolve(target, account) for target in service.targets))
        cached = self._built.get(service.id)
        if cached is None or cached[0] != key:
            cached = self._built[service.id] = (key, build(service, account, self._hooks))
        return cached[1]


def _users_with_other_admission(change: Change) -> frozenset[UserId]:
    """The users whose peers enter or leave network maps with this commit."""
    before, after = change.before, change.after
    if before is None or after is None:
        return frozenset()
    return frozenset(
        id_ for id_ in change.touched.users if refusal(before.users.get(id_)) != refusal(after.users.get(id_))
    )


def _peers_of(users: frozenset[UserId], account: AccountSnapshot) -> frozenset[PeerId]:
    return frozenset(peer.id for peer in account.peers.values() if peer.user_id in users) if users else frozenset()


def _revocation_batches(revoked: Iterable[Revocation]) -> Iterator[list[Revocation]]:
    return batches(revoked, Revocation.ByteSize, most=REVOCATIONS)
