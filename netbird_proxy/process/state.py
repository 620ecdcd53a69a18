"""The state directory: the proxy's id and the accounts' keys. The proxy does not start unless it is private."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import uuid
from pathlib import Path

from netbird_proxy.api.errors import ProxyError, SettingsError

_ID = re.compile(r"[A-Za-z0-9._-]{1,255}")


def open_state(directory: Path) -> Path:
    """Open the state directory; create it if it does not exist.

    Raises:
        SettingsError: the directory cannot be used, belongs to another user, or is open to others, who could read
            the keys.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except FileExistsError as exc:
        raise SettingsError(f"state_directory {directory} is not a directory") from exc
    except OSError as exc:
        raise SettingsError(f"state_directory {directory} cannot be created: {exc.strerror}") from exc
    if not stat.S_ISDIR(status.st_mode):
        raise SettingsError(f"state_directory {directory} is not a directory")
    if status.st_uid != os.geteuid():
        raise SettingsError(f"state_directory {directory} belongs to another user: chown it to this one")
    if status.st_mode & 0o077:
        raise SettingsError(f"state_directory {directory} is open to others: chmod 700 it")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise SettingsError(f"state_directory {directory} cannot be read and written")
    return directory


class StateInUse(ProxyError):
    """Another running process uses the state directory."""


def lock_state(directory: Path) -> int:
    """Lock the state directory for this process and those that inherit the descriptor, which is returned.

    Two processes with the same id and keys would take the accounts' tunnels from each other. The end of the last of the
    processes unlocks it.

    Raises:
        StateInUse: another process has locked it.
        SettingsError: the directory cannot be used.
    """
    path = open_state(directory) / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be opened: {exc.strerror}") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(descriptor)
        raise StateInUse(f"state_directory {directory} is used by another running proxy") from exc
    except OSError:
        pass  # a file system without locks
    return descriptor


def proxy_id(directory: Path) -> str:
    """Read the proxy's id, which the first start creates. SettingsError if it cannot be read or written."""
    path = directory / "proxy_id"
    try:
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(f"netbird-proxy-{uuid.uuid4()}\n")
            fresh.replace(path)
        content = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: cannot be read: {exc}") from exc
    if not _ID.fullmatch(content):
        raise SettingsError(f"{path}: is not a proxy id; remove the file to get a new one")
    return content


def default_socket(proxy_id: str) -> Path:
    """The path of a proxy's admin socket where no setting names another."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 or not runtime:
        return Path("/run/netbird-proxy") / f"{proxy_id}.sock"
    return Path(runtime) / "netbird-proxy" / f"{proxy_id}.sock"
