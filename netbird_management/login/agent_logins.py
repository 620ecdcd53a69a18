"""Logins of agents by a token of the identity provider, which their user brings."""

import logging
from typing import Final

from netbird_management.login.claimed_accounts import ClaimedAccounts
from netbird_management.login.identity_provider import IdentityProvider, LoginRefused, Person
from netbird_management.login.people import founder, known_user, user_of
from netbird_management.model.accounts import User
from netbird_management.model.admission import Refusal, refusal
from netbird_management.model.errors import InvalidArgument, PermissionDenied, PreconditionFailed
from netbird_management.model.ids import AccountId
from netbird_management.operations.accounts import DNS_DOMAIN
from netbird_management.store.state import State

_REFUSALS: Final = {
    Refusal.USER_NOT_FOUND: "the user does not exist",
    Refusal.PENDING_APPROVAL: "the user waits for approval by an administrator",
    Refusal.USER_BLOCKED: "the user is blocked",
}
LONGEST_TOKEN: Final = 16_384
_log = logging.getLogger(__name__)


class AgentLogins:
    """Finds the user of an agent's token. `dns_domain` is the DNS domain of peers in accounts that a login creates."""

    def __init__(self, state: State, provider: IdentityProvider, *, dns_domain: str = DNS_DOMAIN) -> None:
        self._state = state
        self._provider = provider
        self._accounts = ClaimedAccounts(provider.settings)
        self._dns_domain = dns_domain

    async def user(self, token: str) -> User:
        """The admitted user of a token. A new person becomes a user, who may have to wait for approval: of the account
        that the provider's claim names, or of the only account.

        Raises:
            InvalidArgument: the token is not valid.
            PermissionDenied: its person is not an admitted user.
            ProviderFailed: the provider cannot be asked.
        """
        if len(token) > LONGEST_TOKEN:
            raise InvalidArgument(f"invalid jwt token: it is longer than {LONGEST_TOKEN} characters")
        try:
            person = await self._provider.agent(token)
        except LoginRefused as error:
            raise InvalidArgument(f"invalid jwt token: {error}") from error
        try:
            user = await self._user_of(person)
        except PreconditionFailed as full:
            _log.warning("login.stranger.refused", extra={"account_id": None, "reason": full.message})
            raise PermissionDenied("too many users wait for approval") from full
        if (reason := refusal(user)) is not None or user is None:
            raise PermissionDenied(_REFUSALS[reason or Refusal.USER_NOT_FOUND])
        return user

    async def _user_of(self, person: Person) -> User | None:
        account_id = await self._account_id(person)
        if account_id is None:
            return None
        if self._state.snapshots.get(account_id) is None:
            return await founder(self._state, account_id, person, dns_domain=self._dns_domain)
        user = await user_of(self._state, account_id, person)
        return None if user is not None and self._accounts.asked and user.account_id != account_id else user

    async def _account_id(self, person: Person) -> AccountId | None:
        """The account that the person belongs to, or that a new person joins; `None` if there is none."""
        if self._accounts.asked:
            return self._accounts.of(person)
        accounts, user_id = self._state.snapshots.all(), await known_user(self._state, person)
        if user_id is not None:
            return next((account.account.id for account in accounts if user_id in account.users), None)
        return accounts[0].account.id if len(accounts) == 1 else None
