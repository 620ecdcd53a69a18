"""The entries that management does not have yet, bounded in number and bytes, and shared among accounts."""

from __future__ import annotations

from typing import NamedTuple

CALL_ENTRIES = 1024
"""Maximum number of entries in a call: a call costs as much as a thousand entries, whatever their number."""
CALL_BYTES = 1 << 20
"""Size in bytes at which entries leave together. gRPC servers refuse messages over 4 MiB by default."""
ENTRY_BYTES = 64 << 10
"""Maximum size of an entry; a larger one would make its call, and all entries in it, fail."""
UNSENT_BYTES = 16 << 20
"""Maximum size of all entries that wait or whose call is under way."""
OVERHEAD = 64
"""Bytes that an entry occupies beside its content."""
SHARE = 3
"""An account may hold this many times what is free: one account alone gets three quarters, and each other account still
finds room."""


class Call(NamedTuple):
    """Entries of one call, by account: either all with an account or all without, so that management's refusal affects
    only one kind."""

    parts: tuple[tuple[str | None, list[bytes]], ...]

    @property
    def entries(self) -> list[bytes]:
        return [entry for _, entries in self.parts for entry in entries]

    @property
    def without_account(self) -> bool:
        return self.parts[0][0] is None

    def __len__(self) -> int:
        return sum(len(entries) for _, entries in self.parts)


class _Held:
    """An account's part of the queue: entries that wait for a call, and bytes of all that are not sent."""

    __slots__ = ("entries", "size")

    def __init__(self) -> None:
        self.entries = 0
        self.size = 0


class Waiting:
    """Gathers entries for calls. An entry occupies a place until its call begins, and its bytes until the call ends."""

    def __init__(self, places: int, unsent_bytes: int = UNSENT_BYTES) -> None:
        """Args:
        places: maximum number of entries that wait for a call.
        unsent_bytes: maximum size of entries that wait or whose call is under way, with OVERHEAD for each.
        """
        self.places = places
        self.free_bytes = unsent_bytes
        self._held: dict[str | None, _Held] = {}  # without accounts that hold nothing
        self._gathered: dict[str | None, list[bytes]] = {}
        self._count = 0
        self._size = 0

    def __len__(self) -> int:
        """Number of entries that were put since the last `take`."""
        return self._count

    def put(self, account: str | None, entry: bytes) -> str:
        """Keep an entry for the next call. Returns the reason if it is not kept, else an empty string.

        Args:
            account: the account that the entry counts for; None for an exchange that belongs to none.
        """
        size = len(entry) + OVERHEAD
        if size > ENTRY_BYTES:
            return "an entry is too large"
        held = self._held.get(account)
        if held is None:
            held = _Held()
        if held.entries >= SHARE * self.places or held.size >= SHARE * (self.free_bytes - size):
            return "the queue is full"
        if not held.size:
            self._held[account] = held
        held.entries += 1
        held.size += size
        self.places -= 1
        self.free_bytes -= size
        entries = self._gathered.get(account)
        if entries is None:
            entries = self._gathered[account] = []
        entries.append(entry)
        self._count += 1
        self._size += size
        return ""

    @property
    def fill_a_call(self) -> bool:
        """True if the gathered entries should leave now."""
        return self._count >= CALL_ENTRIES or self._size >= CALL_BYTES

    def take(self, *, batches: bool) -> list[Call]:
        """The gathered entries as calls.

        Args:
            batches: management accepts many entries per call; else each entry is a call of its own.
        """
        gathered, self._gathered = self._gathered, {}
        self._count = self._size = 0
        if not batches:
            return [Call(((account, [entry]),)) for account, entries in gathered.items() for entry in entries]
        strangers = gathered.pop(None, None)
        calls = [Call(tuple(gathered.items()))] if gathered else []
        return [*calls, Call(((None, strangers),))] if strangers else calls

    def begin(self, call: Call) -> None:
        """A call begins: its entries' places are free."""
        for account, entries in call.parts:
            self._held[account].entries -= len(entries)
            self.places += len(entries)

    def end(self, call: Call) -> None:
        """A call has ended, whatever its outcome: its entries' bytes are free."""
        for account, entries in call.parts:
            size = sum(map(len, entries)) + OVERHEAD * len(entries)
            held = self._held[account]
            held.size -= size
            self.free_bytes += size
            if not held.size:
                del self._held[account]
