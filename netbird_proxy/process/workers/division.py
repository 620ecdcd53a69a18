"""The division of one proxy's settings between its workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from netbird_proxy.api.share import Share
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.settings import Admin, Health, ProxySettings
from netbird_proxy.process.state import default_socket, open_state, proxy_id


def for_worker(loaded: Loaded, share: Share) -> Loaded:
    """Return a worker's settings: its part of the limits, its own directory and admin socket, and no health listener.

    The first worker has the directory of a proxy without workers, so that its keys and ports stay valid when the number
    of workers changes. SettingsError if the directory cannot be used.
    """
    settings = loaded.settings
    divided = settings.model_copy(
        update={
            "limits": settings.limits.of(share),
            "state_directory": worker_directory(settings.state_directory, share.number),
            "admin": Admin(socket=worker_socket(parent_socket(settings), share.number)),
            "health": Health(),
        }
    )
    return replace(loaded, settings=divided, share=share)


def worker_directory(directory: Path, number: int) -> Path:
    """The state directory of a worker inside that of the proxy."""
    return directory if number == 1 else directory / "workers" / str(number)


def parent_socket(settings: ProxySettings) -> Path:
    """The admin socket of the whole proxy. SettingsError if its default cannot be determined."""
    return settings.admin.socket or default_socket(proxy_id(open_state(settings.state_directory)))


def worker_socket(parent: Path, number: int) -> Path:
    """The admin socket of a worker. It does not end in `.sock`: commands look for the parent's by that ending."""
    return parent.with_name(f"{parent.name.removesuffix('.sock')}.worker-{number}")
