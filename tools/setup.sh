#!/usr/bin/env bash
# Make .venv (or $VENV) from the pinned requirements, then put every package of this repository into it, editable.
# The native libraries have their own step (tools/build_native.sh), so that Python work never waits for Rust.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
venv="${VENV:-.venv}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=…" >&2; exit 1; }
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
[ -x "$venv/bin/uv" ] || "$venv/bin/python" -m pip install -q "$(grep -oE '^uv==[^ ]+' requirements.lock || echo uv)"
"$venv/bin/uv" pip install -q -p "$venv" --compile-bytecode --require-hashes -r requirements.lock
"$venv/bin/uv" pip install -q -p "$venv" --no-deps -e . -e netbird_host -e proto -e netbird_management \
  -e plugins/private_service -e plugins/identity_headers -e plugins/response_headers -e plugins/load_balancing -e plugins/direct_upstream -e plugins/tunnel_netstack -e plugins/peer -e plugins/signal -e plugins/relay
