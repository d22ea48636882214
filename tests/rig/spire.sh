#!/usr/bin/env bash
# Builds what the interoperability tests run against ca-server: SPIRE's own spire-server and spire-agent, from their
# Go module. Prints the folder of the programs. Builds nothing that is already there; nothing of it is kept here.
#
#   FINIAL_SPIRE=$(tests/rig/spire.sh) cargo test -p mesh-tests spire
#
# Needs Go 1.26 or newer, a C compiler and some eight CPU minutes the first time. FINIAL_SPIRE_CACHE moves the cache
# (default: ~/.cache/finial/spire), FINIAL_SPIRE_VERSION chooses another version.
set -euo pipefail

version=${FINIAL_SPIRE_VERSION:-1.15.3}
cache=${FINIAL_SPIRE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/finial/spire}
bin=$cache/$version
say() { echo "spire: $*" >&2; }

[[ $version =~ ^1\.[0-9]+\.[0-9]+$ ]] || { say "FINIAL_SPIRE_VERSION must look like 1.15.3, not '$version'"; exit 2; }
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # two test runs on one machine build once
if [[ -x $bin/spire-server && -x $bin/spire-agent ]]; then
  echo "$bin"
  exit 0
fi
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || { say "Go is missing; install Go 1.26 or newer"; exit 1; }
command -v cc >/dev/null || { say "a C compiler is missing; spire-server's database library needs one"; exit 1; }

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
export GOWORK=off GOFLAGS="-mod=mod -trimpath -buildvcs=false" CGO_ENABLED=1
# A published module with replacements cannot be installed by name, so a copy that may be edited is built.
published=$(cd "$work" && go mod download -json "github.com/spiffe/spire@v$version" | awk -F'"' '$2 == "Dir" { print $4 }')
[[ -d $published ]] || { say "the module of version $version was not served"; exit 1; }
cp -r --no-preserve=mode "$published" "$work/source"
cd "$work/source"
# The client library of the EJBCA plugin is not published as a module of its own name. No test uses that plugin.
sed -i '/ejbca/d' pkg/server/catalog/upstreamauthority.go
rm -rf pkg/server/plugin/upstreamauthority/ejbca
say "building spire-server and spire-agent $version with $(go env GOVERSION)"
go build -ldflags "-s -w -X github.com/spiffe/spire/pkg/common/version.gittag=$version" -o "$work/out/" \
  ./cmd/spire-server ./cmd/spire-agent >&2
"$work/out/spire-server" --version >&2
mkdir -p "$bin"
mv "$work"/out/* "$bin/"
echo "$bin"
