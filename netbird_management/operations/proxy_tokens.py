"""Access tokens of proxies: for one account, or for the whole installation."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update

from netbird_management.model.clock import now
from netbird_management.model.errors import BadRequest, NotFound
from netbird_management.model.ids import AccountId, TokenId, new_id
from netbird_management.store.limits import PROXY_TOKENS, check_rows
from netbird_management.store.models import ProxyTokenRow
from netbird_management.store.state import State
from netbird_wire.tokens import TokenKind, mint, stored_hash

LAST_USED_SECONDS = 60


@dataclass(frozen=True, slots=True)
class ProxyToken:
    """An access token of proxies. `account_id` is `None` for a management-wide token, valid for every account."""

    id: TokenId
    name: str
    account_id: AccountId | None
    expires_at: datetime | None
    created_by: str
    created_at: datetime
    last_used: datetime | None
    revoked: bool

    @property
    def valid(self) -> bool:
        return not self.revoked and (self.expires_at is None or now() <= self.expires_at)


async def create_proxy_token(
    state: State, *, name: str, account_id: AccountId | None, created_by: str, expires_in: float = 0
) -> tuple[ProxyToken, str]:
    """Creates a token and returns it with its text, which is not stored. `expires_in` is in seconds, 0 means never.
    Raises `BadRequest`, and `PreconditionFailed` at the limit of tokens."""
    if not 1 <= len(name) <= 255:
        raise BadRequest("name is required and must be at most 255 characters")
    if expires_in < 0:
        raise BadRequest("expires_in must be non-negative")
    plain = mint(TokenKind.PROXY)
    created = now()
    try:
        expires_at = created + timedelta(seconds=expires_in) if expires_in else None
    except OverflowError as error:
        raise BadRequest("expires_in is too far away") from error
    row = ProxyTokenRow(
        id=new_id(),
        name=name,
        hashed_token=stored_hash(plain),
        account_id=account_id,
        expires_at=expires_at,
        created_by=created_by,
        created_at=created,
        revoked=False,
    )
    async with state.write() as session:
        of_account = ProxyTokenRow.account_id == account_id, ProxyTokenRow.revoked.is_(False)
        await check_rows(session, ProxyTokenRow, *of_account, limit=PROXY_TOKENS, name="proxy tokens")
        session.add(row)
    return _token(row), plain


async def find_proxy_token(state: State, hashed: str) -> ProxyToken | None:
    """The token with this hash, valid or not."""
    async with state.read() as session:
        row = (await session.scalars(select(ProxyTokenRow).where(ProxyTokenRow.hashed_token == hashed))).one_or_none()
    return None if row is None else _token(row)


async def get_proxy_token(state: State, token_id: TokenId) -> ProxyToken | None:
    """The token as stored now; each heartbeat of a connection reads it again."""
    async with state.read() as session:
        row = await session.get(ProxyTokenRow, token_id)
    return None if row is None else _token(row)


async def note_token_used(state: State, token: ProxyToken) -> None:
    """Records that the token was used, at most once a minute."""
    if token.last_used is not None and (now() - token.last_used).total_seconds() < LAST_USED_SECONDS:
        return
    async with state.write() as session:
        await session.execute(update(ProxyTokenRow).where(ProxyTokenRow.id == token.id).values(last_used=now()))


async def proxy_tokens_of(state: State, account_id: AccountId | None) -> list[ProxyToken]:
    """Tokens of an account, or with `None` the management-wide tokens, revoked and expired ones included."""
    same = ProxyTokenRow.account_id == account_id if account_id is not None else ProxyTokenRow.account_id.is_(None)
    async with state.read() as session:
        rows = (await session.scalars(select(ProxyTokenRow).where(same).order_by(ProxyTokenRow.id))).all()
    return [_token(row) for row in rows]


async def revoke_proxy_token(state: State, account_id: AccountId | None, token_id: TokenId) -> None:
    """Revokes a token; its connections end at their next heartbeat. Raises `NotFound`, also for another account's."""
    async with state.write() as session:
        row = await session.get(ProxyTokenRow, token_id)
        if row is None or row.account_id != account_id:
            raise NotFound("token not found")
        row.revoked = True


def _token(row: ProxyTokenRow) -> ProxyToken:
    return ProxyToken(
        id=TokenId(row.id),
        name=row.name,
        account_id=None if row.account_id is None else AccountId(row.account_id),
        expires_at=row.expires_at,
        created_by=row.created_by,
        created_at=row.created_at,
        last_used=row.last_used,
        revoked=row.revoked,
    )
