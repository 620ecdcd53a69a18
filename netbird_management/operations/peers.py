"""Creation, presence, updates and deletion of peers."""

import base64
import binascii
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from nacl.public import PrivateKey
from sqlalchemy import delete, update

from netbird_management.model.accounts import Peer, PeerMeta, User
from netbird_management.model.activity import Activity
from netbird_management.model.admission import login_expires_at, refusal
from netbird_management.model.clock import now
from netbird_management.model.errors import Conflict, InvalidArgument, NotFound, PermissionDenied, PreconditionFailed
from netbird_management.model.ids import AccountId, GroupId, PeerId, UserId, new_id
from netbird_management.model.snapshot import AccountSnapshot
from netbird_management.operations.membership import move
from netbird_management.operations.nonces import spend
from netbird_management.secrets.one_time import OneTimeToken
from netbird_management.store.models import PeerRow
from netbird_management.store.state import State, Transaction, acting

# Precision of `last_seen` for a peer that is seen only through its requests.
SEEN_SECONDS: Final = 3600
EXTRA_LABELS: Final = 32
"""Maximum number of a peer's extra DNS labels."""
_LONGEST_LABELS: Final = 128
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
# Time without a connection after which a proxy's peer without a WireGuard endpoint is deleted.
PROXY_ABSENT_SECONDS: Final = 600


async def create_stock_peer(
    state: State,
    account_id: AccountId,
    *,
    name: str,
    user_id: UserId | None,
    group_ids: Sequence[GroupId] = (),
    public_key: str | None = None,
) -> tuple[Peer, str | None]:
    """Creates a peer that runs plain WireGuard, in `All`, in its user's auto groups and in the requested groups.

    Without a public key, management generates a key pair and returns its private half, which it never stores.
    Raises `InvalidArgument`, and `Conflict` for the key of an existing peer.
    """
    private_key: str | None = None
    if public_key is None:
        made = PrivateKey.generate()
        private_key = base64.b64encode(bytes(made)).decode()
        public_key = base64.b64encode(bytes(made.public_key)).decode()
    checked_name(name)
    checked_key(public_key)
    async with state.change(account_id) as transaction:
        account = transaction.account
        user = None if user_id is None else account.users.get(user_id)
        if user_id is not None and user is None:
            raise InvalidArgument(f"user {user_id} not found")
        account.require_groups(group_ids)
        groups = {account.group_all.id, *group_ids, *(user.auto_groups if user is not None else ())}
        peer_id = await insert_peer(
            state, transaction, key=public_key, name=name, hostname=name, user_id=user_id, stock=True
        )
        await move(transaction, [peer_id], join=groups)
        own = user_id is not None and acting.get() == user_id
        activity = Activity.PEER_ADD_BY_USER if own else Activity.PEER_ADD
        transaction.record(activity, peer_id, name=name, user_id=user_id)
    return get_peer(state, account_id, peer_id), private_key


async def create_proxy_peer(
    state: State,
    account_id: AccountId,
    *,
    key: str,
    cluster: str,
    token: OneTimeToken,
    wireguard_endpoint: str = "",
    serves_dns: bool = False,
) -> Peer:
    """Creates the overlay node of a proxy, in no group. Spends the one-time token in the same transaction.

    If the key already belongs to a proxy of this account, its peer and address stay, and cluster and endpoint are
    updated. Raises `PermissionDenied` for a spent token and for the key of any other peer.
    """
    checked_key(key)
    async with state.change(account_id) as transaction:
        if token.expires_at < now() or not await spend(transaction.session, token.nonce, token.expires_at):
            raise PermissionDenied("token validation: invalid token")
        match = state.snapshots.by_peer_key(key)
        if match is not None:
            account, peer = match
            if account.account.id != account_id or peer.proxy is None:
                raise PermissionDenied("this WireGuard key belongs to another peer")
            row = await transaction.session.get_one(PeerRow, peer.id)
            row.proxy_cluster, row.wireguard_endpoint, row.serves_dns = cluster, wireguard_endpoint, serves_dns
            peer_id = peer.id
            transaction.touch(peers=[peer_id])
        else:
            name = f"proxy-{new_id()}"
            peer_id = await insert_peer(
                state,
                transaction,
                key=key,
                name=name,
                hostname=name,
                meta=PeerMeta(hostname=name, go_os="proxy", os="proxy"),
                ephemeral=True,
                cluster=cluster,
                wireguard_endpoint=wireguard_endpoint,
                serves_dns=serves_dns,
            )
        await transaction.raise_serial()
    return get_peer(state, account_id, peer_id)


async def update_peer_meta(state: State, peer: Peer, meta: PeerMeta, *, ssh_key: str | None = None) -> Peer:
    """Stores a peer's report at Sync; an `ssh_key` of `None` keeps the key. Name, label and address stay."""
    if peer.meta == meta and ssh_key in (None, peer.ssh_key):
        return peer
    async with state.change(peer.account_id) as transaction:
        row = await _row(transaction, peer)
        row.meta = asdict(meta)
        if ssh_key is not None:
            row.ssh_key = ssh_key
        transaction.touch(peers=[peer.id])
    return get_peer(state, peer.account_id, peer.id)


async def note_login(state: State, peer: Peer, *, by_user: bool) -> Peer:
    """Records that a peer logged in now. A peer that its user's login added is renewed only by the user (`by_user`)."""
    if peer.by_login and not by_user:
        return peer
    async with state.change(peer.account_id) as transaction:
        row = await _row(transaction, peer)
        row.last_login, row.login_expired = now(), False
        transaction.touch(peers=[peer.id])
        if by_user:
            transaction.record(Activity.PEER_LOGIN_RENEW, peer.id, initiator=peer.user_id, name=peer.name)
    return get_peer(state, peer.account_id, peer.id)


async def enroll_by_user(state: State, user: User, *, key: str, hostname: str, meta: PeerMeta, ssh_key: str) -> Peer:
    """Creates a peer by its user's login, in `All` and in the user's auto groups. The login expires as the account's
    settings require. Raises `Conflict`, and `PreconditionFailed` at the limit of peers."""
    checked_key(key)
    async with state.change(user.account_id) as transaction:
        account, name = transaction.account, hostname or "peer"
        owner = account.users.get(user.id)
        if owner is None or refusal(owner) is not None:
            raise PermissionDenied("the user is blocked, or waits for approval")
        peer_id = await insert_peer(
            state,
            transaction,
            key=key,
            name=name,
            hostname=name,
            user_id=user.id,
            meta=meta,
            ssh_key=ssh_key,
            login_expiration_enabled=True,
        )
        await move(transaction, [peer_id], join={account.group_all.id, *owner.auto_groups})
        transaction.record(Activity.PEER_ADD_BY_USER, peer_id, initiator=user.id, name=name, user_id=user.id)
    return get_peer(state, user.account_id, peer_id)


async def set_login_expired(state: State, account_id: AccountId, moment: datetime) -> None:
    """Marks the peers whose login has expired at this moment, and no others. Peers and proxies learn it by the change
    of the account."""
    snapshot = state.snapshots.get(account_id)
    if snapshot is None or not any(_is_marked_wrongly(peer, snapshot, moment) for peer in snapshot.peers.values()):
        return
    async with state.change(account_id) as transaction:
        wrong = [peer for peer in transaction.account.peers.values() if _is_marked_wrongly(peer, snapshot, moment)]
        for peer in wrong:
            row = await _row(transaction, peer)
            row.login_expired = not peer.login_expired
            if row.login_expired:
                transaction.record(Activity.PEER_LOGIN_EXPIRE, peer.id, initiator=peer.user_id, name=peer.name)
        transaction.touch(peers=[peer.id for peer in wrong])


def _is_marked_wrongly(peer: Peer, account: AccountSnapshot, moment: datetime) -> bool:
    expires_at = login_expires_at(peer, account.account)
    return peer.login_expired != (expires_at is not None and expires_at <= moment)


async def set_connected(state: State, peer: Peer, *, started_ns: int, connection_ip: str = "") -> bool:
    """Records that the sync stream started at `started_ns` is open. Returns False, without a change, if a newer stream
    is recorded."""
    async with state.change(peer.account_id) as transaction:
        row = await _row(transaction, peer)
        if row.stream_started_ns >= started_ns:
            return False
        row.connected, row.stream_started_ns, row.last_seen = True, started_ns, now()
        row.connection_ip = connection_ip
        transaction.touch(peers=[peer.id])
    return True


async def set_disconnected(state: State, peer: Peer, *, started_ns: int) -> bool:
    """Records that the stream started at `started_ns` ended. Returns False if another stream is recorded or the peer
    was deleted, so the late end of an old stream never marks a reconnected peer offline."""
    async with state.change(peer.account_id) as transaction:
        row = await transaction.session.get(PeerRow, peer.id)
        if row is None or row.stream_started_ns != started_ns or not row.connected:
            return False
        row.connected, row.last_seen = False, now()
        transaction.touch(peers=[peer.id])
    return True


async def disconnect_all_peers(state: State) -> None:
    """Marks all peers as disconnected; called at start, when this process has no stream yet."""
    for snapshot in state.snapshots.all():
        ids = [peer.id for peer in snapshot.peers.values() if peer.connected]
        if ids:
            async with state.change(snapshot.account.id) as transaction:
                offline = update(PeerRow).where(PeerRow.id.in_(ids)).values(connected=False)
                await transaction.session.execute(offline)
                transaction.touch(peers=ids)


async def note_seen(state: State, peer: Peer) -> None:
    """Records that a proxy admitted a peer, at most once an hour. A stock peer gives no other sign of presence."""
    cutoff = now() - timedelta(seconds=SEEN_SECONDS)
    if peer.proxy is not None or (peer.last_seen is not None and peer.last_seen > cutoff):
        return
    async with state.change(peer.account_id) as transaction:
        row = await transaction.session.get(PeerRow, peer.id)
        if row is None or (row.last_seen is not None and row.last_seen > cutoff):
            return
        row.last_seen = now()
        transaction.touch(peers=[peer.id])


async def update_peer(
    state: State, account_id: AccountId, peer_id: PeerId, *, name: str, login_expiration_enabled: bool | None = None
) -> Peer:
    """Renames a peer, whose DNS label stays, and decides whether its login expires.

    Raises `NotFound`, `InvalidArgument`, and `PreconditionFailed` for the expiry of a peer that no login added.
    """
    peer = get_peer(state, account_id, peer_id)
    checked_name(name)
    if login_expiration_enabled and not peer.by_login:
        raise PreconditionFailed("the login of a peer that was added without its user's login cannot expire")
    expires = peer.login_expiration_enabled if login_expiration_enabled is None else login_expiration_enabled
    async with state.change(account_id) as transaction:
        row = await _row(transaction, peer)
        row.name, row.login_expiration_enabled = name, expires
        transaction.touch(peers=[peer_id])
        if name != peer.name or expires == peer.login_expiration_enabled:
            transaction.record(Activity.PEER_RENAME, peer_id, name=name, old_name=peer.name)
        if expires != peer.login_expiration_enabled:
            kind = Activity.PEER_EXPIRY_ENABLE if expires else Activity.PEER_EXPIRY_DISABLE
            transaction.record(kind, peer_id, name=name)
    return get_peer(state, account_id, peer_id)


async def delete_peer(state: State, account_id: AccountId, peer_id: PeerId) -> None:
    """Deletes a peer. Raises `NotFound`, and `PreconditionFailed` while a service targets the peer."""
    async with state.change(account_id) as transaction:
        peer = transaction.account.peers.get(peer_id)
        if peer is None:
            raise NotFound(f"peer: {peer_id} not found")
        transaction.record(Activity.PEER_DELETE, peer_id, name=peer.name)
        await remove_peers(transaction, [peer])


async def sweep_ephemeral_peers(state: State) -> None:
    """Deletes absent peers of ephemeral setup keys, and absent proxies' peers on which no stock client relies. A peer
    that a service targets stays as long as it is a target."""
    cutoff = now() - timedelta(seconds=PROXY_ABSENT_SECONDS)
    for snapshot in state.snapshots.all():
        if not _absent(snapshot, cutoff):
            continue
        async with state.change(snapshot.account.id) as transaction:
            await remove_peers(transaction, _absent(transaction.account, cutoff))


def get_peer(state: State, account_id: AccountId, peer_id: PeerId) -> Peer:
    """A peer by id. Raises `NotFound`, also for another account's peer."""
    snapshot = state.snapshots.get(account_id)
    if snapshot is None or peer_id not in snapshot.peers:
        raise NotFound(f"peer: {peer_id} not found")
    return snapshot.peers[peer_id]


def checked_name(name: str) -> str:
    """The name, if it is valid. Raises `InvalidArgument`. A proxy reports the name of a peer without a user in place of
    a user, so the name must not look like a user's address."""
    if not name.strip() or len(name) > 255 or not name.isprintable():
        raise InvalidArgument("peer name must be 1 to 255 printable characters")
    if "@" in name:
        raise InvalidArgument("peer name must not contain @, as it could be mistaken for a user's address")
    return name


def checked_key(key: str) -> str:
    """The key, if it is base64 of 32 bytes. Raises `InvalidArgument` otherwise."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument("public_key: a WireGuard key is base64 of 32 bytes") from error
    if len(raw) != 32 or base64.b64encode(raw).decode() != key:
        raise InvalidArgument("public_key: a WireGuard key is base64 of 32 bytes")
    return key


async def insert_peer(
    state: State,
    transaction: Transaction,
    *,
    key: str,
    name: str,
    hostname: str,
    user_id: UserId | None = None,
    meta: PeerMeta | None = None,
    ephemeral: bool = False,
    stock: bool = False,
    cluster: str | None = None,
    wireguard_endpoint: str = "",
    serves_dns: bool = False,
    ssh_key: str = "",
    login_expiration_enabled: bool = False,
    extra_dns_labels: Sequence[str] = (),
) -> PeerId:
    """Inserts a peer with a free address and label, in no group.

    Raises `Conflict` for the key of an existing peer, and `PreconditionFailed` for an extra DNS label that is the label
    of an existing peer.
    """
    if state.snapshots.by_peer_key(key) is not None:
        raise Conflict("a peer with this WireGuard key already exists")
    account, peer_id = transaction.account, PeerId(new_id())
    for label in extra_dns_labels:
        if any(peer.dns_label == label for peer in account.peers.values()):
            raise PreconditionFailed(f"the extra DNS label {label} is already the name of a peer")
    ip = _free_address(account)
    transaction.session.add(
        PeerRow(
            id=peer_id,
            account_id=transaction.account_id,
            key=key,
            ip=str(ip),
            ipv6=str(_free_ipv6(account)),
            name=name,
            dns_label=_free_label(account, hostname, ip, extra_dns_labels),
            user_id=user_id,
            meta=asdict(meta if meta is not None else PeerMeta(hostname=hostname)),
            ssh_key=ssh_key,
            created_at=now(),
            last_login=now() if login_expiration_enabled else None,
            login_expiration_enabled=login_expiration_enabled,
            extra_dns_labels=list(extra_dns_labels),
            ephemeral=ephemeral,
            stock=stock,
            proxy_cluster=cluster,
            wireguard_endpoint=wireguard_endpoint,
            serves_dns=serves_dns,
        )
    )
    transaction.touch(peers=[peer_id])
    await transaction.session.flush()
    return peer_id


def _free_address(account: AccountSnapshot) -> IPv4Address:
    network = account.account.network
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    for _ in range(100):
        address = IPv4Address(first + secrets.randbelow(last - first + 1))
        if account.peer_by_address(address) is None:
            return address
    for number in range(first, last + 1):
        if account.peer_by_address(IPv4Address(number)) is None:
            return IPv4Address(number)
    raise PreconditionFailed("the account's network has no free address left")


def _free_ipv6(account: AccountSnapshot) -> IPv6Address:
    while True:
        address = account.account.network_v6.network_address + secrets.randbits(64)
        if account.peer_by_address(address) is None:
            return address


def checked_dns_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Extra DNS labels in lower case, each once and in order: one label, or several with dots between them, each of
    letters, digits and inner dashes. Raises `InvalidArgument`."""
    checked = tuple(sorted({label.lower() for label in labels}))
    if len(checked) > EXTRA_LABELS:
        raise InvalidArgument(f"a peer can have at most {EXTRA_LABELS} extra DNS labels")
    for label in checked:
        if len(label) > _LONGEST_LABELS or not all(_LABEL.fullmatch(part) for part in label.split(".")):
            raise InvalidArgument("extra DNS labels must be letters, digits, dashes and dots, as in DNS names")
    return checked


def _free_label(account: AccountSnapshot, hostname: str, ip: IPv4Address, extra: Iterable[str]) -> str:
    """A DNS label from the host name; if that is taken, followed by the last two octets of the address."""
    label = "".join(char if char.isascii() and char.isalnum() else "-" for char in hostname.split(".")[0].lower())
    label = label.strip("-")[:59].strip("-") or "peer"
    taken = {name for peer in account.peers.values() for name in (peer.dns_label, *peer.extra_dns_labels)}
    taken.update(extra)
    if label not in taken:
        return label
    third, fourth = ip.packed[2:]
    label = f"{label[:51]}-{third}-{fourth}"
    return label if label not in taken else f"{label[:50]}-{secrets.token_hex(3)}"


async def _row(transaction: Transaction, peer: Peer) -> PeerRow:
    row = await transaction.session.get(PeerRow, peer.id)
    if row is None:
        raise NotFound(f"peer: {peer.id} not found")
    return row


async def remove_peers(transaction: Transaction, peers: Iterable[Peer]) -> None:
    """Deletes peers with their memberships. Raises `PreconditionFailed` while a service targets one of them."""
    ids = [peer.id for peer in peers]
    for id_ in ids:
        for service in transaction.account.index.targeting(id_).values():
            raise PreconditionFailed(f"peer {id_} is a target of service {service.id}")
    groups = {group.id for id_ in ids for group in transaction.account.groups_of(id_)}
    await transaction.session.execute(delete(PeerRow).where(PeerRow.id.in_(ids)))
    transaction.touch(peers=ids, groups=groups)
    await transaction.raise_serial()


def _absent(account: AccountSnapshot, cutoff: datetime) -> list[Peer]:
    return [
        peer
        for peer in account.peers.values()
        if (peer.ephemeral if peer.proxy is None else not peer.proxy.wireguard_endpoint)
        and not peer.connected
        and (peer.last_seen or peer.created_at) < cutoff
        and not account.index.targeting(peer.id)
    ]
