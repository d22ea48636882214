#!/usr/bin/env bash
# Builds what the Kubernetes tests run against: a real etcd and a real kube-apiserver, from their Go modules.
# Prints the folder of the programs, for KUBEBUILDER_ASSETS. Builds nothing that is already there.
#
#   KUBEBUILDER_ASSETS=$(tests/rig/build.sh) cargo test -p mesh-tests
#
# Needs Go 1.26 or newer and some nine CPU minutes the first time. FINIAL_RIG_CACHE moves the cache
# (default: ~/.cache/finial-rig), FINIAL_RIG_KUBERNETES chooses another Kubernetes version.
set -euo pipefail

version=${FINIAL_RIG_KUBERNETES:-1.37.2}
cache=${FINIAL_RIG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/finial-rig}
bin=$cache/kubernetes-$version
say() { echo "rig: $*" >&2; }

[[ $version =~ ^1\.([0-9]+)\.[0-9]+$ ]] || { say "FINIAL_RIG_KUBERNETES must look like 1.37.2, not '$version'"; exit 2; }
minor=${BASH_REMATCH[1]}
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 # two test runs on one machine build once
if [[ -x $bin/etcd && -x $bin/kube-apiserver ]]; then
  echo "$bin"
  exit 0
fi
command -v go >/dev/null || { say "Go is missing; install Go 1.26 or newer"; exit 1; }

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
export GOFLAGS="-mod=mod -trimpath -buildvcs=false" GOWORK=off CGO_ENABLED=0
cd "$work"
go mod init rig.invalid/programs 2>/dev/null
go mod download "k8s.io/kubernetes@v$version"
# Kubernetes requires its own libraries at v0.0.0 and replaces them by folders that the published module does
# not carry, so `go install` cannot build it. A module of ours that names the published versions can.
go mod edit -require "k8s.io/kubernetes@v$version"
published=$(go env GOMODCACHE)/cache/download/k8s.io/kubernetes/@v/v$version.mod
while read -r library; do
  go mod edit -replace "$library=$library@v0.${version#1.}"
done < <(awk '$1 ~ /^k8s\.io\// && $2 == "v0.0.0" { print $1 }' "$published")
cat >programs.go <<'GO'
//go:build programs

package programs

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
GO
stamp="-s -w -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
stamp+=" -X k8s.io/component-base/version.gitVersion=v$version"
say "building etcd and kube-apiserver $version with $(go env GOVERSION)"
go build -ldflags "$stamp" -o "$work/out/etcd" go.etcd.io/etcd/server/v3
go build -ldflags "$stamp" -o "$work/out/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver
"$work/out/kube-apiserver" --version >&2
mkdir -p "$bin"
mv "$work"/out/* "$bin/"
echo "$bin"
