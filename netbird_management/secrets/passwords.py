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
# Hashes computed at the same time. Each takes a core and 19 MiB for about 20 ms.
HASHED_AT_ONCE: Final = 3
# Threads that one account may use at the same time; the rest stay free for other accounts.
SHARE: Final = 2
# A pool apart from the event loop's default executor: there, a cancelled caller frees its thread's slot while the hash
# still runs.
_THREADS: Final = ThreadPoolExecutor(HASHED_AT_ONCE, "argon2")
_SHARES: Final[WeakValueDictionary[str, asyncio.Semaphore]] = WeakValueDictionary()
T = TypeVar("T")


async def hash_secret(account_id: AccountId, secret: str) -> str:
    """The hash of a service's secret; takes about 20 ms in a thread of the account's share."""
    return await in_turn(account_id, _hash, secret)


async def verify_secret(account_id: AccountId, secret: str, stored: str) -> bool:
    """True if `stored` is the hash of this secret; text that is not an Argon2id hash matches no secret."""
    return await in_turn(account_id, _verify, secret, stored)


async def in_turn(account_id: AccountId, work: Callable[..., T], *arguments: object) -> T:
    """Runs `work` in a thread. When an account has used its whole share, its further calls wait; others do not.

    The thread is free again when the work ends, even if the caller was cancelled earlier.
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
