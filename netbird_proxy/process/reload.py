"""The reload of settings and files while the process runs."""

from __future__ import annotations

from netbird_host.reload import Reload
from netbird_proxy.listening.tls import ServerTls
from netbird_proxy.process.loading import Loaded
from netbird_proxy.process.settings import ProxySettings


def host_reload(loaded: Loaded) -> Reload[ProxySettings]:
    """The reload of one proxy: its settings, and the level and format of its log."""
    reload = Reload(loaded.given, loaded.read_again, reloadable=("log", "tls.certificates"))
    reload.register_log(lambda settings: settings.log)
    return reload


def reload_certificates(reload: Reload[ProxySettings], tls: ServerTls) -> None:
    """Register the certificates with the reload; new pairs are read too."""
    reload.register("tls.certificates", lambda report: tls.reload(reload.settings.value.tls.certificates, report))
