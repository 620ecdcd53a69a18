"""State of an account's tunnel that outlives the process: its key pair, its UDP port, and its peers' last endpoints.

Stock WireGuard clients keep our key and port in a file, so both must stay. A file that cannot be read is never replaced
but reported as an error that names it: a new key would silently cut off every client.

    <directory>/private.key   44 characters of base64, mode 0600
    <directory>/tunnel.json   {"udp_port": 51820, "endpoints": {"<public key>": ["192.0.2.1", 51820]}}
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import threading
from itertools import islice
from pathlib import Path

from netbird_overlay.engine import Endpoint
from netbird_overlay.errors import OverlayError
from netbird_overlay.members import plain_address
from netbird_wire.envelope import BadKey, format_key, parse_key, public_key

KEY_FILE, STATE_FILE = "private.key", "tunnel.json"
MOST_BYTES = 16 << 20
"""Maximum size of a state file that is read."""
MOST_ENDPOINTS = 100_000
"""Maximum number of endpoints that are written, the newest ones: they fit into MOST_BYTES, whatever their spelling."""


class StateUnusable(OverlayError):
    """An account's state directory cannot be used. The message states the fault and the remedy."""


class TunnelState:
    """One account's state, read at the start and written when it changes.

    Attributes:
        udp_port: the UDP port that peers use; None before the first start.
        endpoints: the last endpoint of each peer, by public key.
    """

    def __init__(self, directory: Path, private_key: bytes, udp_port: int | None, endpoints: dict[bytes, Endpoint]):
        self.directory = directory
        self.private_key = private_key
        self.udp_port = udp_port
        self.endpoints = endpoints
        self._writing = threading.Lock()

    def __repr__(self) -> str:
        return f"TunnelState({str(self.directory)!r}, private_key=***, udp_port={self.udp_port})"

    @property
    def public_key(self) -> bytes:
        return public_key(self.private_key)

    @classmethod
    def load(cls, directory: Path) -> TunnelState:
        """Read an account's directory; on its first use, generate a key pair. Raises StateUnusable."""
        _check_directory(directory)
        key_text = _read(directory / KEY_FILE, secret=True)
        state_text = _read(directory / STATE_FILE)
        if key_text is None:
            if state_text is not None:
                raise StateUnusable(
                    f"{directory / KEY_FILE} is missing beside {STATE_FILE}: restore it, or remove {STATE_FILE} too "
                    "and hand out new WireGuard configurations"
                )
            private_key = secrets.token_bytes(32)
            _write(directory / KEY_FILE, format_key(private_key) + "\n")
            return cls(directory, private_key, None, {})
        try:
            private_key = parse_key(key_text.strip())
        except BadKey as exc:
            raise StateUnusable(f"{directory / KEY_FILE} does not hold a WireGuard key: {exc}") from None
        udp_port, endpoints = (None, {}) if state_text is None else _parse_state(directory / STATE_FILE, state_text)
        return cls(directory, private_key, udp_port, endpoints)

    def render(self) -> str:
        """Return the text of the state file for the current state."""
        newest = islice(self.endpoints.items(), max(0, len(self.endpoints) - MOST_ENDPOINTS), None)
        endpoints = {format_key(key): [endpoint.host, endpoint.port] for key, endpoint in newest}
        return json.dumps({"udp_port": self.udp_port, "endpoints": endpoints}, indent=0) + "\n"

    def save(self, text: str | None = None) -> None:
        """Write the state file atomically. Blocks; `text` lets a thread write the text that the loop rendered.

        Raises StateUnusable.
        """
        with self._writing:
            _write(self.directory / STATE_FILE, self.render() if text is None else text)


def _check_directory(directory: Path) -> None:
    try:
        facts = directory.lstat()
    except OSError as exc:
        raise StateUnusable(f"state directory {directory}: {exc.strerror}") from exc
    if not stat.S_ISDIR(facts.st_mode):
        raise StateUnusable(f"state directory {directory} is not a directory")
    if facts.st_uid != os.geteuid():
        raise StateUnusable(f"state directory {directory} belongs to another user (uid {facts.st_uid})")
    if facts.st_mode & 0o077:
        raise StateUnusable(
            f"state directory {directory} is open to others (mode {stat.S_IMODE(facts.st_mode):04o}): chmod 0700"
        )


def _read(path: Path, *, secret: bool = False) -> str | None:
    """Return the file's text, or None if the file does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8") as file:
            mode = os.fstat(descriptor).st_mode
            if secret and mode & 0o077:
                raise StateUnusable(f"{path} is open to others (mode {stat.S_IMODE(mode):04o}): chmod 0600")
            text = file.read(MOST_BYTES + 1)
            if len(text) > MOST_BYTES:
                raise StateUnusable(f"{path} is larger than {MOST_BYTES >> 20} MiB: it is not a file of this program")
            return text
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as exc:
        raise StateUnusable(f"{path} cannot be read: {exc}") from exc


def _parse_state(path: Path, text: str) -> tuple[int | None, dict[bytes, Endpoint]]:
    try:
        state = json.loads(text)
        port = state["udp_port"]
        endpoints = {
            parse_key(key): Endpoint(_host(host), _port(number)) for key, (host, number) in state["endpoints"].items()
        }
        return (None if port is None else _port(port)), endpoints
    except (BadKey, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StateUnusable(
            f"{path} is damaged ({exc}): restore it, or remove it (peers then have to find us)"
        ) from exc


def _host(value: object) -> str:
    host = plain_address(value) if isinstance(value, str) else None
    if host is None:
        raise ValueError(f"{value!r} is not an address")
    return host


def _port(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise ValueError(f"{value!r} is not a port")
    return value


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        # Without this, a power failure may lose the new name, and with a first key everything handed out for it.
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        raise StateUnusable(f"{path} cannot be written: {exc.strerror}") from exc
