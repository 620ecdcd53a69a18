"""Accounts by a claim of the identity provider: the claim's value is the name of a user's account.

The id of such an account is derived from its name, so two first users who log in at the same time create one account,
and no lookup is needed. The settings map names to accounts that already existed.
"""

import hashlib

from netbird_management.login.identity_provider import Person
from netbird_management.login.settings import OidcSettings
from netbird_management.model.ids import AccountId, id_from


class ClaimedAccounts:
    """Accounts by the claim in the settings. Without `account_claim`, `asked` is False and no person has an account."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings

    @property
    def asked(self) -> bool:
        """True if the provider's claim determines a person's account."""
        return bool(self._settings.account_claim)

    def of(self, person: Person) -> AccountId | None:
        """The person's account, which may not exist yet; `None` if the provider names no account."""
        return self.named(person.account) if self.asked and person.account else None

    def named(self, name: str) -> AccountId:
        """The account for this value of the claim."""
        configured = self._settings.accounts.get(name)
        if configured is not None:
            return AccountId(configured)
        return AccountId(id_from(hashlib.sha256(f"{self._settings.issuer}\0{name}".encode()).digest()))
