#!/usr/bin/env bash
# Build a native library if its sources changed, and install its distribution into .venv (or $VENV), editable:
# `build_native.sh FOLDER`, where FOLDER is a cargo workspace with a distribution's pyproject.toml.
#
# Cargo is started through build_backend.py, which gives the reason. `build_native.sh FOLDER lint` runs rustfmt and clippy,
# `build_native.sh FOLDER test` the tests of the crates that need no Python, if their sources changed. These are built as
# the library is, so they share its dependencies.
set -euo pipefail
cd "$(dirname "$0")/../$1"
package="$(basename "$PWD")"
venv="$(cd .. && pwd)/${VENV:-.venv}"
library="$package/engine.abi3.so"
sources=()
for source in crates vendor Cargo.toml Cargo.lock; do [ ! -e "$source" ] || sources+=("$source"); done
bindings="$(basename crates/*-python)"
installed() { compgen -G "$venv/lib/python3*/site-packages/$package-*.dist-info" >/dev/null; }
fresh() { [ -e "$library" ] && [ -z "$(find "${sources[@]}" pyproject.toml -newer "$library" -print -quit)" ]; }
locked() { "$venv/bin/python" build_backend.py "$@"; }

mkdir -p target
exec 9>target/.building && flock 9
if [ "${2:-}" = lint ]; then
  cargo fmt --check
  locked cargo clippy -q --release --locked --workspace --features "$bindings/extension-module" --all-targets -- -D warnings
  exit
fi
if [ "${2:-}" = test ]; then
  passed=target/.tests-passed
  if [ -e "$passed" ] && [ -z "$(find "${sources[@]}" -newer "$passed" -print -quit)" ]; then exit 0; fi
  locked cargo test -q --release --locked --lib --tests --workspace --exclude "$bindings"
  touch "$passed"
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
