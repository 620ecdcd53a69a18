"""Keeps a node a member of its network: follows management's stream and applies each network map to the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing

import structlog

from netbird_overlay.endpoints import Endpoint
from netbird_overlay.membership.applied_map import AppliedMap
from netbird_overlay.membership.client import ManagementClient
from netbird_overlay.membership.configuration import read_login, read_refresh
from netbird_overlay.membership.enrollment import Register, login_backoff, pause
from netbird_overlay.membership.errors import AddressesChanged, ManagementFailure, NotRegistered
from netbird_overlay.membership.paths_like import PathsLike
from netbird_overlay.membership.zones import Zones
from netbird_overlay.network_map import MapError, OwnNode, read_own
from netbird_overlay.node import Node
from netbird_wire.management_pb2 import LoginResponse, NetworkMap, SyncResponse

log = structlog.get_logger("netbird_overlay.membership")

WATCH_INTERVAL = 5.0
"""Seconds between checks whether connected peers still are: an expired session has no event."""
META_RETRIES = 3


class Membership:
    """The membership of one node, from its login to the end of `run`.

    Args:
        node: the node, with the addresses of the login.
        client: the calls to management.
        login: management's answer to the login.
        paths: makes paths to peers through signal, relays and ICE; None: peers are reached by their UDP endpoints.
        roots: PEM text of the authorities that sign the signal server's certificate; None for the system's.
        inbound: False admits no connections of peers, whatever the map allows.
        own_ports: see `AppliedMap`.
        endpoints: last endpoints of peers, for peers that are new to the engine.
        applied: called after each map.
        changed: called after each change of what `unreachable` returns.
        register: registers our key again when management no longer knows it; None ends `run` then.
        connected: False while management is known to be away.

    Attributes:
        first: set after the first map.
        last_error: why the last stream ended, for people.
        session_expires_at: UNIX time at which the peer's login expires; None if it does not, or management did not
            report it.
    """

    def __init__(
        self,
        node: Node,
        client: ManagementClient,
        login: LoginResponse,
        *,
        paths: PathsLike | None = None,
        roots: bytes | None = None,
        inbound: bool = True,
        own_ports: Sequence[tuple[int, int]] = (),
        endpoints: Mapping[bytes, Endpoint] | None = None,
        applied: Callable[[], None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
        register: Register | None = None,
        connected: Callable[[], bool] = lambda: True,
    ) -> None:
        self.node = node
        self._client = client
        self._own = read_own(login.peerConfig)
        self._paths = paths
        self._roots = roots
        self._applied = applied
        self._changed = changed
        self._register = register
        self._management_connected = connected
        self._serial = 0
        self._registered = True
        self._meta_due = asyncio.Event()
        self._connected: set[bytes] = set()
        self.map = AppliedMap(
            node,
            paths,
            inbound=inbound,
            own_ports=own_ports if inbound else (),
            endpoints={} if endpoints is None else endpoints,
            connected=self._connected,
            rerouted=changed,
        )
        self.first = asyncio.Event()
        self.last_error = ""
        self.session_expires_at: float | None = None
        self._note_session(login)
        node.resolve = self.map.resolve
        node.explain = self.map.explain
        if paths is not None:
            node.wake = paths.wake
            paths.configure(read_login(login.netbirdConfig, roots=roots))

    async def run(self) -> None:
        """Follow management until cancelled.

        While management is away the last map stays in force: private services still validate peers for each request.

        Raises:
            AddressesChanged: the node must be made anew; in an exception group, like the others.
            NotRegistered, LoginExpired: without `register`; all other failures of management are retried.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_described(), name="description for management")
            group.create_task(self._keep_watched(), name="watch over sessions")
            try:
                await self._keep_synced()
            finally:
                self.map.close()

    async def _keep_synced(self) -> None:
        backoff = login_backoff()
        while True:
            try:
                if not self._registered and self._register is not None:
                    await self._register()
                    self._registered = True
                    await self._log_in()
                self._serial = 0  # the first message of a stream is a complete map
                async with aclosing(self._client.sync()) as responses:  # type: ignore[type-var]
                    async for response in responses:
                        await self._take(response)
                        backoff.reset()
                self.last_error = "management ended the stream"
            except NotRegistered as exc:
                if self._register is None:
                    raise
                self._registered = False
                self.last_error = str(exc)
            except ManagementFailure as exc:
                if exc.code == "PERMISSION_DENIED" and self._register is None:
                    raise
                self.last_error = str(exc)
            except MapError as exc:
                self.last_error = str(exc)
            log.warning("tunnel.sync_lost", error=self.last_error)
            await pause(backoff.next_wait(), self._management_connected)

    async def _log_in(self) -> None:
        login = await self._client.login()
        self._check_own(read_own(login.peerConfig))
        self._note_session(login)
        if self._paths is not None:
            self._paths.configure(read_login(login.netbirdConfig, roots=self._roots))

    # Messages, in the order in which NetBird's agents process their parts --------------------------------------------

    async def _take(self, response: SyncResponse) -> None:
        if response.Version or response.HasField("NetworkMapEnvelope"):
            raise MapError(f"management sent version {response.Version} of the map, which is not supported")
        self._note_session(response)
        if response.HasField("netbirdConfig") and self._paths is not None:
            self._paths.configure(read_refresh(response.netbirdConfig))
        if not response.HasField("NetworkMap"):
            return
        if self._client.note_checks(response.Checks):
            self._meta_due.set()
        network_map = response.NetworkMap
        own = read_own(network_map.peerConfig if network_map.HasField("peerConfig") else response.peerConfig)
        self._check_own(own)
        if network_map.Serial < self._serial:
            log.info("tunnel.map_stale", serial=network_map.Serial, applied=self._serial)
            return
        await self._apply(network_map, own)

    def _note_session(self, message: LoginResponse | SyncResponse) -> None:
        if message.HasField("sessionExpiresAt"):
            seconds = message.sessionExpiresAt.seconds
            self.session_expires_at = float(seconds) if seconds > 0 else None

    async def _apply(self, network_map: NetworkMap, own: OwnNode) -> None:
        try:
            counts = await self.map.apply(network_map, own)
        except Exception as exc:  # a map that nobody foresaw ends no connection of the peers
            log.warning("tunnel.map_failed", serial=network_map.Serial, exc_info=exc)
            raise MapError(f"the map cannot be applied: {exc!r}") from exc
        self._serial = network_map.Serial
        log.info("tunnel.map_applied", serial=network_map.Serial, **counts)
        self._connected.intersection_update(self.node.members)
        self._applied()
        self.first.set()
        self._changed()

    def _check_own(self, own: OwnNode) -> None:
        if (own.addresses, own.mtu) != (self._own.addresses, self._own.mtu):
            raise AddressesChanged(
                f"our node changed from {', '.join(self._own.addresses)} with an MTU of {self._own.mtu} to "
                f"{', '.join(own.addresses)} with {own.mtu}"
            )

    async def _keep_described(self) -> None:
        """Send our description when management's posture checks changed."""
        while True:
            await self._meta_due.wait()
            self._meta_due.clear()
            backoff = login_backoff()
            for _ in range(META_RETRIES):
                try:
                    await self._client.sync_meta()
                    break
                except ManagementFailure as exc:
                    log.info("tunnel.meta_not_sent", error=str(exc))
                    await asyncio.sleep(backoff.next_wait())

    # Peers that come and go -------------------------------------------------------------------------------------------

    def on_handshake(self, key: bytes) -> None:
        """Take note of a handshake. To be called by the driver's callback, after the node's own."""
        if key not in self._connected:
            self.on_path(key)

    def on_path(self, key: bytes) -> None:
        """Take note of a change of a peer's path or session."""
        self.node.on_path(key)
        connected = self.node.connected(self.node.driver.engine.peer(key))
        if connected and key in self.node.members:
            self._connected.add(key)
        else:
            self._connected.discard(key)
        self.map.peer_changed(key)
        self._changed()

    @property
    def zones(self) -> Zones:
        """The account's zones in force, for a name service of this node."""
        return self.map.zones

    async def _keep_watched(self) -> None:
        """Notice sessions that expired."""
        engine = self.node.driver.engine
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            for key in [key for key in self._connected if not self.node.connected(engine.peer(key))]:
                try:
                    self.on_path(key)
                except Exception as exc:
                    asyncio.get_running_loop().call_exception_handler(
                        {"message": "membership: a peer's change could not be applied", "exception": exc}
                    )

    def unreachable(self, host: str) -> str:
        """Return why a dial to an address or name would fail now; "" if it would be tried."""
        return self.map.unreachable(host)
