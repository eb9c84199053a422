#!/usr/bin/env bash
# Installs what is missing from Debian: for running a cluster (up), for building and testing skiff (test), for making the package
# (deb), for the VM suite (vm) and for Vagrant on this machine (vagrant).
# usage: packaging/deps.sh up|test|deb|vm|vagrant
set -euo pipefail

run=(containerd runc iptables conntrack iproute2 busybox-static ca-certificates)
build=(gcc libc6-dev make git)
test=(bind9-dnsutils dbus-daemon dnsmasq-base dnsperf etcd-server etcd-client faketime containernetworking-plugins nghttp2-client hyperfine shellcheck jq curl procps docker-registry systemd patchelf)
deb=(binutils dpkg-dev lintian xz-utils)
vm=(debootstrap qemu-system-x86 qemu-utils e2fsprogs)
vagrant=(vagrant vagrant-libvirt libvirt-daemon-system dnsmasq-base openssh-client)

case "${1:-}" in
up) wanted=("${run[@]}" "${build[@]}") ;;
test) wanted=("${run[@]}" "${build[@]}" "${test[@]}") ;;
deb) wanted=("${build[@]}" "${deb[@]}") ;;
vm) wanted=("${build[@]}" "${deb[@]}" "${vm[@]}" busybox-static) ;;
vagrant) wanted=("${build[@]}" "${deb[@]}" "${vm[@]}" "${vagrant[@]}" busybox-static) ;;
*)
    echo "usage: packaging/deps.sh up|test|deb|vm|vagrant" >&2
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

case "$1" in
test) ;;
deb | vm | vagrant)
    # Built without optimisation: it packs one file a run.
    command -v cargo-deb >/dev/null || CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug cargo-deb
    exit
    ;;
*) exit ;;
esac
# The container runtimes of later Debians, which tests run beside this machine's.
for suite in trixie forky; do
    "$(dirname "$0")/runtime.sh" "$suite" "${CARGO_TARGET_DIR:-target}/runtimes/$suite"
done
command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest
# Built without optimisation: half the time to build, and still quick enough to run once.
command -v cargo-deny >/dev/null || CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug cargo-deny
