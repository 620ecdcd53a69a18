#!/usr/bin/env bash
# Run the unit tests in random order while other work keeps every core busy: `stress.sh [ARGS…]`, five rounds or $ROUNDS.
# A test that fails here is a fault, of the product until proved otherwise. The seed printed by a failed round repeats its order.
set -uo pipefail
cd "$(dirname "$0")/.."
rounds="${ROUNDS:-5}"
busy=()
trap 'kill "${busy[@]}" 2>/dev/null' EXIT
for _ in $(seq "$(nproc)"); do
  .venv/bin/python -c 'while True: sum(range(100_000))' &
  busy+=($!)
done
green=0
for round in $(seq "$rounds"); do
  echo "== round $round of $rounds"
  # The plugin that shuffles is switched off in pyproject.toml's options, which are replaced here.
  if .venv/bin/python -m pytest -o addopts="--import-mode=importlib -p no:cacheprovider" -n 2 -m "not live" -q "$@"; then
    green=$((green + 1))
  fi
done
echo "$green of $rounds green"
[ "$green" = "$rounds" ]
