#!/usr/bin/env bash
# Builds the box of the Vagrantfile from Debian, for the provider libvirt; kernel and initrd are in it, since it is started directly.
# usage: vagrant/box/build.sh [DIRECTORY]     makes DIRECTORY/skiff-debian-12.box (default target/vm/box)
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-target/vm/box}

# Known to everybody: what Vagrant logs in with first.
SUITE=bookworm VAGRANT_KEY=$(dpkg -L vagrant | grep -m 1 '/keys/vagrant\.pub$') packaging/image.sh box "$out"
[ "$out/skiff-debian-12.box" -nt "$out/disk.raw" ] && [ "$out/skiff-debian-12.box" -nt vagrant/box/Vagrantfile ] && exit 0
work=$(mktemp -d "$out/box.XXXXXX")
trap 'rm -rf "$work"' EXIT
qemu-img convert -O qcow2 "$out/disk.raw" "$work/box.img"
cp "$out/vmlinuz" "$out/initrd" vagrant/box/Vagrantfile "$work/"
printf '{"provider":"libvirt","format":"qcow2","virtual_size":4}\n' >"$work/metadata.json"
tar -C "$work" -czf "$out/skiff-debian-12.box" .
