"""Passwords, PINs and header values: hashed with Argon2id, kept as PHC text."""

import asyncio
import base64
import hmac
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

_MEMORY_KIB: Final = 19456
_PASSES: Final = 2
_KEY_BYTES: Final = 32
HASHED_AT_ONCE: Final = 2
"""Each takes a core and 19 MiB for some 20 ms."""
_THREADS: Final = ThreadPoolExecutor(HASHED_AT_ONCE, "argon2")
# Not the loop's own threads, which others need: a caller that leaves frees its place there while its hash goes on.
_PHC: Final = re.compile(
    r"\$argon2id\$v=19\$m=(\d{1,8}),t=(\d{1,3}),p=1\$([A-Za-z0-9+/]{16,86})\$([A-Za-z0-9+/]{22,86})"
)


async def hash_secret(secret: str) -> str:
    """Some 20 ms of work, in a thread."""
    salt = os.urandom(argon2id.SALTBYTES)
    key = await _in_thread(secret, salt, _PASSES, _MEMORY_KIB, _KEY_BYTES)
    return f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p=1${_text(salt)}${_text(key)}"


async def verify_secret(secret: str, stored: str) -> bool:
    """Whether this is the secret that was hashed; what is not such a hash matches nothing."""
    found = _PHC.fullmatch(stored)
    if found is None:
        return False
    memory, passes, salt, key = int(found[1]), int(found[2]), _bytes(found[3]), _bytes(found[4])
    if len(salt) != argon2id.SALTBYTES or memory > 1 << 20:
        return False
    try:
        derived = await _in_thread(secret, salt, passes, memory, len(key))
    except (CryptoError, ValueError):
        return False
    return hmac.compare_digest(derived, key)


async def _in_thread(secret: str, salt: bytes, passes: int, memory_kib: int, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREADS, _derive, secret, salt, passes, memory_kib, size)


def _derive(secret: str, salt: bytes, passes: int, memory_kib: int, size: int) -> bytes:
    return argon2id.kdf(size, secret.encode(), salt, opslimit=passes, memlimit=memory_kib * 1024)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
