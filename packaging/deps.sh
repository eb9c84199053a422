#!/usr/bin/env bash
# Installs what is missing from Debian: for running a cluster (up), and for building and testing skiff (test).
# usage: packaging/deps.sh up|test
set -euo pipefail

run=(containerd runc iptables conntrack iproute2 busybox-static ca-certificates)
build=(gcc libc6-dev make git)
test=(bind9-dnsutils dnsmasq-base dnsperf etcd-server etcd-client containernetworking-plugins nghttp2-client hyperfine shellcheck jq curl procps docker-registry)

case "${1:-}" in
up) wanted=("${run[@]}" "${build[@]}") ;;
test) wanted=("${run[@]}" "${build[@]}" "${test[@]}") ;;
*)
    echo "usage: packaging/deps.sh up|test" >&2
    exit 2
    ;;
esac
# kubernetes-client conflicts with a kubectl that came another way.
command -v kubectl >/dev/null || wanted+=(kubernetes-client)

missing=()
for package in "${wanted[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "packaging/deps.sh: run as root, or install: ${missing[*]}" >&2; exit 1; }
    echo "installing from Debian: ${missing[*]}" >&2
    apt-get update -qq
    # A daemon that a package would start is not wanted: each test starts its own.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

[ "$1" = test ] || exit 0
command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
# Built without optimisation: half the time to build, and still quick enough to run once.
command -v cargo-deny >/dev/null || CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug cargo-deny
