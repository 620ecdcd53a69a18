#!/usr/bin/env bash
# Install the Debian packages that live tests and benchmarks drive. Nothing is installed that is there already.
set -euo pipefail
wanted=(postgresql wireguard-go wireguard-tools iproute2 nftables nginx-light caddy haproxy valgrind wrk curl procps slowhttptest chromium coturn)
command -v npm >/dev/null || wanted+=(npm)
missing=()
for package in "${wanted[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Without recommendations: wireguard-tools would pull in a kernel.
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "Not installed, and no root or apt-get to install them: ${missing[*]}. Tests that need them say so." >&2
  fi
fi
# The identity provider that logins are tried with: a package of npm.
if command -v npm >/dev/null && [ ! -d tests/e2e/oidc/node_modules ]; then
  npm ci --silent --no-audit --no-fund --prefix tests/e2e/oidc
fi
