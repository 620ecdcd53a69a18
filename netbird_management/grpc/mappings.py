"""Which mappings which proxy gets, when: a snapshot first, then what changes, in the order of commits.

What a proxy should have is compared with what it was sent, so that a service that changed cluster, was disabled, or may
no longer be had by this proxy becomes a removal, and nothing that was public stays so by being left out.
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
"""Mappings in one message, at most."""
REVOCATIONS: Final = 20_000
"""Revocations in one message, at most."""
# Bytes reserved for the parts of an outgoing mapping that are not shared: type, one-time token, lengths.
_TOKEN_BYTES: Final = 1024


class Mappings:
    """Builds and serializes mappings, once for each change of a service, and tells connections of them."""

    def __init__(self, state: State, hooks: Hooks, connections: Connections, recorder: Recorder) -> None:
        self._state = state
        self._hooks = hooks
        self._connections = connections
        self._recorder = recorder
        self._built: dict[ServiceId, tuple[tuple[object, ...], BuiltMapping]] = {}

    def snapshot(self, connection: Connection) -> list[BuiltMapping]:
        """Everything that the proxy should have now, without types and one-time tokens; later changes are put into the
        connection's queue.

        Ordered by account, then by service: the oldest first.
        """
        connection.held.clear()
        connection.withheld.clear()
        for account in self._state.snapshots.all():
            served = account.index.of_cluster(connection.registration.cluster).values()
            for service in sorted(filter(connection.serves, served), key=lambda service: service.id):
                built = self._of(service, account)
                reason = built.withheld_from(connection.registration.capabilities)
                connection.held[service.id] = None if reason else built
                if reason:
                    connection.withheld[service.id] = reason
        connection.snapshotted = True
        self._recorder.withheld_at_snapshot(connection.proxy_id, connection.withheld)
        return [built for built in connection.held.values() if built is not None]

    def revocations(self, connection: Connection) -> list[Revocation]:
        """Those of the last day, of every account with a service in the proxy's cluster; none for a proxy that reads
        none.

        A service that comes to the cluster later has a session key that no earlier session fits.
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
        """The whole snapshot as messages, revocations first: no mapping is in force before them.

        The first message names the extensions, the last one completes the snapshot. One-time tokens are made when
        their message is asked for, so that a slow proxy still gets live ones.
        """
        mappings = self.snapshot(connection)
        parts: list[tuple[list[Revocation], list[BuiltMapping]]] = []
        parts += [(batch, []) for batch in _revocation_batches(self.revocations(connection))]
        parts += [([], batch) for batch in batches(mappings, lambda built: len(built.wire) + _TOKEN_BYTES, most=BATCH)]
        parts = parts or [([], [])]
        for number, (revoked, built) in enumerate(parts):
            yield message(
                (self.outgoing(one_built, UPDATE_TYPE_CREATED, connection) for one_built in built),
                initial_sync_complete=number == len(parts) - 1,
                management_extensions=tuple(extensions) if number == 0 else (),
                revocations=revoked,
            )

    def outgoing(self, built: BuiltMapping, kind: "ProxyMappingUpdateType.ValueType", connection: Connection) -> bytes:
        """An entry of a message for one proxy, with a one-time token of its own. A removal says only what went."""
        mapping = built.mapping
        if kind == UPDATE_TYPE_REMOVED:
            gone = ProxyMapping(
                id=mapping.id,
                account_id=mapping.account_id,
                domain=mapping.domain,
                mode=mapping.mode,
                listen_port=mapping.listen_port,
            )
            return mapping_entry(gone.SerializeToString(), kind)
        token = mint(self._state.vault, built.account_id, built.service_id, connection.token.id)
        return mapping_entry(built.wire, kind, token)

    def tell(self, change: Change) -> None:
        """Tells every proxy what a commit changes for it."""
        candidates = list(self._candidates(change))
        asked, revoked = revalidations(change), revocations(change)
        # After the mappings, which must be in force when the proxy asks.
        questions = [message((), revocations=batch) for batch in _revocation_batches(revoked)]
        if asked:
            questions.append(message((), revalidations=asked))
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
            if questions and connection.is_concerned(change):
                for question in questions:
                    connection.put(question)

    def _candidates(self, change: Change) -> Iterator[tuple[ServiceId, bool]]:
        """The services whose mappings may differ, and whether they themselves were written."""
        touched = change.touched
        for service_id in sorted(touched.services):
            yield service_id, True
        others: set[ServiceId] = set()
        judged = _judged_anew(change)
        for account in (change.before, change.after):
            if account is None:
                continue
            if change.after is None or change.before is None or touched.domains:
                others.update(account.services)
            for peer_id in touched.peers | _peers_of(judged, account):
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
        """An entry that tells the proxy what is different for it; nothing if nothing is."""
        held = connection.held.get(service_id)
        if now_built is None or not connection.serves(now_built[0]):
            known = service_id in connection.held
            connection.held.pop(service_id, None)
            connection.withheld.pop(service_id, None)
            if known:
                self._recorder.withheld(connection.proxy_id, service_id, None)
            return b"" if held is None else self.outgoing(held, UPDATE_TYPE_REMOVED, connection)
        built = now_built[1]
        if reason := built.withheld_from(connection.registration.capabilities):
            told = service_id in connection.held and held is None
            connection.held[service_id] = None
            connection.withheld[service_id] = reason
            self._recorder.withheld(connection.proxy_id, service_id, reason)
            return b"" if told else self.outgoing(held or built, UPDATE_TYPE_REMOVED, connection)
        if held is not None and held.wire == built.wire and not touched:
            return b""
        connection.held[service_id] = built
        if connection.withheld.pop(service_id, ""):
            self._recorder.withheld(connection.proxy_id, service_id, "")
        return self.outgoing(built, UPDATE_TYPE_CREATED if held is None else UPDATE_TYPE_MODIFIED, connection)

    def _of(self, service: Service, account: AccountSnapshot) -> BuiltMapping:
        key = (service, account.custom_domains, tuple(resolve(target, account) for target in service.targets))
        known = self._built.get(service.id)
        if known is None or known[0] != key:
            known = self._built[service.id] = (key, build(service, account, self._hooks))
        return known[1]


def _judged_anew(change: Change) -> frozenset[UserId]:
    """The users whose peers came into maps, or left them, with this commit."""
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
