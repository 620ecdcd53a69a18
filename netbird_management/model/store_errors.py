"""Reasons why a store cannot be used. Each message states what the operator can do."""


class StoreError(Exception):
    """The store cannot be opened, backed up or restored."""


class VaultError(StoreError):
    """The key is missing, unreadable, readable by other users, or not the key that sealed the data."""


class InUseError(StoreError):
    """Another process serves from this store and would not notice changes by this one."""


class UnreachableError(StoreError):
    """The database does not answer, or refuses the connection."""


class NewerStoreError(StoreError):
    """A later version of this program has migrated this store."""


class ArchiveError(StoreError):
    """The file is not a backup, or the destination cannot take one."""
