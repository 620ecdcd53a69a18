#!/usr/bin/env bash
# Build a source distribution of every package of this repository into dist/, and from each of these its wheel.
# A wheel comes from the source distribution and not from here, so that what is missing in one is seen.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-dist}"
venv="${VENV:-.venv}"
export CARGO_TARGET_DIR="$PWD/netbird_overlay/target/wheel" # of all of them, whose common crates are built once
rm -rf "$out"
for project in . netbird_host netbird_http proto netbird_overlay netbird_management plugins/*/; do
  [ -f "$project/pyproject.toml" ] || continue
  "$venv/bin/uv" build -q --python "$venv/bin/python" --out-dir "$out" "$project"
done
ls "$out"
