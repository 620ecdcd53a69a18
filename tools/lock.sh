#!/usr/bin/env bash
# Pin versions and hashes. The resolver's own lock file names registries, so only this export is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/uv lock -q --upgrade
.venv/bin/uv export -q --all-packages --no-emit-workspace --no-header -o requirements.lock
rm -f uv.lock
