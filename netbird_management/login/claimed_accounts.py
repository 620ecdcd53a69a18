"""Which account a person belongs to, where the provider says it: by the value of a claim.

An account that is named for the first time gets an id that follows from its name, so that two who come first at once
found one account, and nothing has to be looked up. An account that was there before is named in the settings.
"""

import hashlib

from netbird_management.login.identity_provider import Person
from netbird_management.login.settings import OidcSettings
from netbird_management.model.ids import AccountId, id_from


class ClaimedAccounts:
    """The claim that the settings name. Without one nobody belongs anywhere by it, and `asked` is False."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings

    @property
    def asked(self) -> bool:
        """Whether people are of the account that the provider says, and of no other."""
        return bool(self._settings.account_claim)

    def of(self, person: Person) -> AccountId | None:
        """The account, which may not be there yet; `None` where the provider names none."""
        return self.named(person.account) if self.asked and person.account else None

    def named(self, name: str) -> AccountId:
        """The account that this value of the claim names."""
        known = self._settings.accounts.get(name)
        if known is not None:
            return AccountId(known)
        return AccountId(id_from(hashlib.sha256(f"{self._settings.issuer}\0{name}".encode()).digest()))
