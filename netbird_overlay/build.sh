#!/usr/bin/env bash
# Build the engine if its sources changed, and install this distribution into .venv (or $VENV), editable.
#
# Cargo is started through build_backend.py, which gives the reason. `build.sh lint` runs rustfmt and clippy.
set -euo pipefail
cd "$(dirname "$0")"
venv="$(cd .. && pwd)/${VENV:-.venv}"
library=netbird_overlay/engine.abi3.so
installed() { compgen -G "$venv/lib/python3*/site-packages/netbird_overlay-*.dist-info" >/dev/null; }
fresh() { [ -e "$library" ] && [ -z "$(find src Cargo.toml Cargo.lock pyproject.toml -newer "$library" -print -quit)" ]; }
locked() { "$venv/bin/python" build_backend.py "$@"; }

mkdir -p target
exec 9>target/.building && flock 9
if [ "${1:-}" = lint ]; then
  cargo fmt --check
  locked cargo clippy -q --release --locked --features pyo3/extension-module -- -D warnings
  exit
fi
if fresh && installed; then exit 0; fi

export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
installed || uv pip install -q -p "$venv" --no-deps --no-build-isolation -e .
# uv may install from its cache, without the library.
if ! fresh; then
  locked maturin develop -q --release --locked --skip-install >target/.build-output 2>&1 || { cat target/.build-output >&2; exit 1; }
  touch "$library"
fi
