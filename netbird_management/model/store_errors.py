"""Why a store cannot be used: each says, in a sentence, what its operator can do."""


class StoreError(Exception):
    """The store cannot be opened, written out or filled."""


class VaultError(StoreError):
    """The key is missing, unreadable, open to others, or not the one that sealed this."""


class InUseError(StoreError):
    """Another process answers from this store; it would not hear of what this one changes."""


class UnreachableError(StoreError):
    """The database does not answer, or not to us."""


class NewerStoreError(StoreError):
    """A later version of this program has migrated this store."""


class ArchiveError(StoreError):
    """A file that is no backup, or a place where none can go."""
