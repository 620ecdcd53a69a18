#!/usr/bin/env bash
# Build the engine where its sources changed, and see that .venv (or $VENV) has this distribution, editable.
#
# The committed Cargo.lock has no `source` lines, since they name a registry host. For the time of a build the line is
# put back in front of every checksum, with the text that cargo itself writes on this machine, so that every version and
# checksum is held to what is committed (--locked). For the same reason call cargo through here: `build.sh lint`.
set -euo pipefail
cd "$(dirname "$0")"
here="$PWD"
venv="$(cd .. && pwd)/${VENV:-.venv}"
library=netbird_overlay/engine.abi3.so
installed() { compgen -G "$venv/lib/python3*/site-packages/netbird_overlay-*.dist-info" >/dev/null; }
fresh() { [ -e "$library" ] && [ -z "$(find src Cargo.toml Cargo.lock pyproject.toml -newer "$library" -print -quit)" ]; }

mkdir -p target
exec 9>target/.building && flock 9
lint=""
if [ "${1:-}" = lint ]; then lint=1; elif fresh && installed; then exit 0; fi

line=""
if grep -q '^checksum = ' Cargo.lock && ! grep -q '^source = ' Cargo.lock; then
  if [ ! -s target/.source-line ]; then
    scratch="$(mktemp -d)"
    mkdir "$scratch/src" && : >"$scratch/src/lib.rs"
    printf '[package]\nname = "scratch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nlibc = "0.2"\n' >"$scratch/Cargo.toml"
    (cd "$scratch" && cargo generate-lockfile -q)
    grep -m1 '^source = ' "$scratch/Cargo.lock" >target/.source-line
    rm -rf "$scratch"
  fi
  line="$(cat target/.source-line)"
fi

cp -p Cargo.lock target/.committed-lock
trap 'cp -p "$here/target/.committed-lock" "$here/Cargo.lock"' EXIT
if [ -n "$line" ]; then
  awk -v line="$line" '/^checksum = / { print line } { print }' target/.committed-lock >Cargo.lock
fi

if [ -n "$lint" ]; then
  cargo fmt --check
  cargo clippy -q --release --locked --features pyo3/extension-module -- -D warnings
  exit
fi

export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv" MATURIN_PEP517_ARGS="--locked"
installed || uv pip install -q -p "$venv" --no-deps --no-build-isolation -e .
# An installation may come from uv's cache and bring no library along.
if ! fresh; then
  maturin develop -q --release --locked --skip-install >target/.build-output 2>&1 || { cat target/.build-output >&2; exit 1; }
  touch "$library"
fi
