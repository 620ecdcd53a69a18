#!/usr/bin/env bash
# Run the unit tests on each supported Python that this machine has, each in an environment of its own: `pythons.sh [ARGS…]`.
# The Python of .venv is left out, since `make unit` runs on it. Those that are not found are named.
set -euo pipefail
cd "$(dirname "$0")/.."
current="$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
find_python() {
  local candidate
  for candidate in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python /usr/local/bin/"python$1" "$(.venv/bin/uv python find --no-project "$1" 2>/dev/null)"; do
    if [ -n "$candidate" ] && "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      echo "$candidate" && return
    fi
  done
  return 1
}
missing=()
for version in 3.11 3.12 3.13; do
  [ "$version" = "$current" ] && continue
  if ! python="$(find_python "$version")"; then missing+=("$version"); continue; fi
  echo "== Python $version ($python)"
  export VENV=".venv-$version"
  PYTHON="$python" bash tools/setup.sh
  for folder in netbird_http netbird_overlay; do bash tools/build_native.sh "$folder"; done
  "$VENV/bin/python" -m pytest -n 2 -m "not live" -q "$@"
done
[ ${#missing[@]} -eq 0 ] || echo "Not found on this machine, so not tried: Python ${missing[*]}"
