"""The state directory of `netbird-peer up`: key, endpoints, the network that it belongs to, a lock, the control socket.

<directory>/private.key, tunnel.json   see `netbird_overlay.keys`
<directory>/network.json               {"management_url": "https://…", "hostname": "…"}
<directory>/lock                       held while `up` runs
<directory>/control.sock               see `control`
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from netbird_overlay.keys import StateUnusable

NETWORK_FILE, LOCK_FILE = "network.json", "lock"


@dataclass(frozen=True, slots=True)
class Network:
    """The network that a state directory belongs to.

    Attributes:
        management_url: `https://host[:port]`, or `http://…` for plaintext HTTP/2.
        hostname: our name in the network.
    """

    management_url: str
    hostname: str


def default_directory() -> Path:
    """Return `netbird-peer` in the user's directory for state (XDG)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "netbird-peer"


def prepare(directory: Path) -> None:
    """Make the directory for its first use, with its parents. Raises StateUnusable."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateUnusable(f"state directory {directory}: {error.strerror}") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: two processes with one key would replace each other everywhere. Raises
    StateUnusable."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StateUnusable(f"{directory / LOCK_FILE}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateUnusable(f"another `netbird-peer up` uses {directory}") from None
        yield
    finally:
        os.close(descriptor)


def network_of(directory: Path, *, management_url: str = "", hostname: str = "") -> Network:
    """Return the directory's network, with what is given instead of what is stored, and store it.

    Raises:
        StateUnusable: the directory belongs to no network yet, or cannot be read or written.
        ValueError: the address of management is no URL.
    """
    file = directory / NETWORK_FILE
    stored = _read(file)
    url = management_url or (stored.management_url if stored is not None else "")
    if not url:
        raise StateUnusable(f"{directory} belongs to no network yet: name one by --management-url")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// address")
    name = hostname or (stored.hostname if stored is not None else socket.gethostname())
    network = Network(url, name)
    if network != stored:
        _write(file, json.dumps(asdict(network)) + "\n")
    return network


def _read(file: Path) -> Network | None:
    try:
        return Network(**json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StateUnusable(f"{file} cannot be read ({error}): restore it, or remove it") from error


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.new")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(file)
    except OSError as error:
        raise StateUnusable(f"{file} cannot be written: {error.strerror}") from error
