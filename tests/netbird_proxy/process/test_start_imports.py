"""A start imports what its settings need: most of its time is imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

UNUSED = (
    "cryptography.x509",  # certificates
    "jinja2",  # pages
    "nacl.signing",  # sessions
    "netbird_proxy.defaults.session.endpoint",  # logins
    "opentelemetry.exporter",
    "opentelemetry.sdk",  # traces
    "uvicorn",  # an operator's request on the admin socket
)
"""Modules of features that the settings below do not use."""

CODE = """
import json, sys
sys.argv = ["netbird-proxy", "check", "--config", sys.argv[1]]
from netbird_proxy.operator import attendants, cli  # what a running proxy consists of
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("modules:" + json.dumps(sorted(sys.modules)))
"""


def test_features_that_are_not_used_are_not_imported(tmp_path: Path) -> None:
    """A proxy of public services without TLS has no part of certificates, sessions, pages and traces in memory."""
    (tmp_path / "mappings.toml").write_text(
        '[[mapping]]\nid = "wiki"\ndomain = "wiki.example"\n'
        '[[mapping.path]]\npath = "/"\ntarget = "http://10.0.0.5:8080"\n'
        "[mapping.path.options]\ndirect_upstream = true\n"
    )
    settings = tmp_path / "proxy.toml"
    settings.write_text(
        'plugins = ["direct_upstream"]\n'
        f'state_directory = "{tmp_path}/state"\nmappings_file = "{tmp_path}/mappings.toml"\n'
        '[[listen]]\naddress = "127.0.0.1:0"\n'
    )
    ran = subprocess.run([sys.executable, "-c", CODE, str(settings)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    modules = json.loads(ran.stdout.rpartition("modules:")[2])

    assert "netbird_proxy.pipeline.forward" in modules
    assert [name for name in UNUSED if name in modules] == []
