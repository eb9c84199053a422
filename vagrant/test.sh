#!/usr/bin/env bash
# Runs `vagrant up` for real: libvirt with the driver qemu, in a network namespace without a way out, with a home of its own.
# usage: vagrant/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${SKIFF_IN_NAMESPACE:-}" ]; then
    packaging/deps.sh vagrant
    make --no-print-directory deb-package PROFILE="${PROFILE:-release}"
    vagrant/box/build.sh
    # Network and mounts are the test's own and end with it; so do the daemons' sockets and state, which go into tmpfs below.
    exec env SKIFF_IN_NAMESPACE=yes unshare --net --mount --pid --fork --kill-child --mount-proc -- "$0"
fi

for directory in /run /var/lib/libvirt /var/log/libvirt /etc/libvirt/qemu; do
    [ ! -d "$directory" ] || mount -t tmpfs tmpfs "$directory"
done
mkdir -p /run/lock /run/libvirt /etc/libvirt/qemu/networks /var/lib/libvirt/images
ip link set lo up
virtlogd -d
libvirtd -d
home=$(mktemp -d /run/vagrant.XXXXXX)
chmod 755 "$home" # libvirt's QEMU runs as a user of its own, and starts the box's kernel from there
export HOME=$home VAGRANT_HOME=$home/.vagrant.d VAGRANT_DOTFILE_PATH=$home/dot
export VAGRANT_DEFAULT_PROVIDER=libvirt SKIFF_LIBVIRT_DRIVER=qemu VAGRANT_CHECKPOINT_DISABLE=1
cd vagrant
vagrant box add --name skiff/debian-12 ../target/vm/box/skiff-debian-12.box
timeout 1700 vagrant up
vagrant ssh master -c 'kubectl wait node --all --for=condition=Ready --timeout=120s && kubectl get nodes --no-headers' | tee "$home/nodes"
[ "$(grep -cw Ready "$home/nodes")" = "$((${SKIFF_WORKERS:-2} + 1))" ]
KUBECONFIG=kubeconfig kubectl get nodes
vagrant destroy --force
rm -f join kubeconfig
