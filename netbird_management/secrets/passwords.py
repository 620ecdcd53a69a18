"""Passwords, PINs and header values: hashed with Argon2id, stored as PHC text."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

_MEMORY_BYTES: Final = 19456 * 1024
_PASSES: Final = 2
HASHED_AT_ONCE: Final = 2
"""Each takes a core and 19 MiB for some 20 ms."""
_THREADS: Final = ThreadPoolExecutor(HASHED_AT_ONCE, "argon2")
# Not the loop's own threads, which others need: a caller that leaves frees its place there while its hash goes on.


async def hash_secret(secret: str) -> str:
    """Some 20 ms of work, in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _hash, secret)


async def verify_secret(secret: str, stored: str) -> bool:
    """Whether this is the secret that was hashed; what is not such a hash matches nothing."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, _verify, secret, stored)


def _hash(secret: str) -> str:
    return argon2id.str(secret.encode(), opslimit=_PASSES, memlimit=_MEMORY_BYTES).decode()


def _verify(secret: str, stored: str) -> bool:
    try:
        return argon2id.verify(stored.encode(), secret.encode())
    except (CryptoError, ValueError):
        return False
