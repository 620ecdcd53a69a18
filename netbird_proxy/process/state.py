"""What outlives the process: who we are, and each account's keys. A private directory, or no start."""

from __future__ import annotations

import os
import re
import stat
import uuid
from pathlib import Path

from netbird_proxy.api.errors import SettingsError

_ID = re.compile(r"[A-Za-z0-9._-]{1,255}")


def open_state(directory: Path) -> Path:
    """The state directory, made if it is not there.

    Raises:
        SettingsError: it cannot be used, is another user's, or others can look into it: our keys are in there.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except FileExistsError as exc:
        raise SettingsError(f"state_directory {directory} is not a directory") from exc
    except OSError as exc:
        raise SettingsError(f"state_directory {directory} cannot be made: {exc.strerror}") from exc
    if not stat.S_ISDIR(found.st_mode):
        raise SettingsError(f"state_directory {directory} is not a directory")
    if found.st_uid != os.geteuid():
        raise SettingsError(f"state_directory {directory} belongs to another user: chown it to this one")
    if found.st_mode & 0o077:
        raise SettingsError(f"state_directory {directory} is open to others: chmod 700 it")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise SettingsError(f"state_directory {directory} cannot be read and written")
    return directory


def proxy_id(directory: Path) -> str:
    """This proxy's id, made at its first start. SettingsError where it cannot be read back."""
    path = directory / "proxy_id"
    try:
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_text(f"netbird-proxy-{uuid.uuid4()}\n")
            fresh.replace(path)
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: cannot be read: {exc}") from exc
    if not _ID.fullmatch(found):
        raise SettingsError(f"{path}: is not a proxy id; remove the file to have a new one made")
    return found


def default_socket(proxy_id: str) -> Path:
    """Where the socket of a proxy is if nothing else is said."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 or not runtime:
        return Path("/run/netbird-proxy") / f"{proxy_id}.sock"
    return Path(runtime) / "netbird-proxy" / f"{proxy_id}.sock"
