"""Passwords, PINs and header values: hashed with Argon2id, stored as PHC text."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

from netbird_management.model.ids import AccountId

_MEMORY_BYTES: Final = 19456 * 1024
_PASSES: Final = 2
HASHED_AT_ONCE: Final = 3
"""Each takes a core and 19 MiB for some 20 ms."""
SHARE: Final = 2
"""Threads that one account may take: the others stay free for the rest."""
_THREADS: Final = ThreadPoolExecutor(HASHED_AT_ONCE, "argon2")
# Not the loop's own threads, which others need: a caller that leaves frees its place there while its hash goes on.
_SHARES: Final[WeakValueDictionary[str, asyncio.Semaphore]] = WeakValueDictionary()
T = TypeVar("T")


async def hash_secret(account_id: AccountId, secret: str) -> str:
    """The hash of a service's secret; some 20 ms of work, in a thread of the account's share."""
    return await in_turn(account_id, _hash, secret)


async def verify_secret(account_id: AccountId, secret: str, stored: str) -> bool:
    """Whether this is the secret that was hashed; a text that is not such a hash matches nothing."""
    return await in_turn(account_id, _verify, secret, stored)


async def in_turn(account_id: AccountId, work: Callable[..., T], *arguments: object) -> T:
    """Runs `work` in a thread. An account that takes its whole share waits for itself, and nobody else does.

    The place is free again once the work is over, also where the caller has left before.
    """
    share = _SHARES.get(account_id)
    if share is None:
        share = _SHARES[account_id] = asyncio.Semaphore(SHARE)
    await share.acquire()
    running = asyncio.get_running_loop().run_in_executor(_THREADS, partial(work, *arguments))
    running.add_done_callback(lambda _: share.release())
    return await asyncio.shield(running)


def _hash(secret: str) -> str:
    return argon2id.str(secret.encode(), opslimit=_PASSES, memlimit=_MEMORY_BYTES).decode()


def _verify(secret: str, stored: str) -> bool:
    try:
        return argon2id.verify(stored.encode(), secret.encode())
    except (CryptoError, ValueError):
        return False
