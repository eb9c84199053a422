#!/usr/bin/env bash
# Builds a Debian root file system that boots directly (kernel and initrd beside it): for the VM suite, and for the Vagrant box.
# Nothing is built again while this script is the same.
# usage: packaging/image.sh vm|box DIRECTORY     makes DIRECTORY/{disk.raw,vmlinuz,initrd}
#   SUITE=trixie       Debian 13; Debian 12, bookworm, when absent
#   VAGRANT_KEY=FILE   of a box: the public key of who may log in
set -euo pipefail
kind=${1:?usage: packaging/image.sh vm|box DIRECTORY} out=${2:?usage: packaging/image.sh vm|box DIRECTORY}
suite=${SUITE:-bookworm}
size=4G

# What a person's machine has before skiff comes to it.
packages=(
    systemd systemd-sysv udev dbus kmod mount e2fsprogs procps iproute2 iputils-ping ca-certificates curl sudo
    linux-image-cloud-amd64 zstd
    containerd runc crun iptables conntrack kubernetes-client busybox-static
)
[ "$kind" = vm ] || : "${VAGRANT_KEY:?a box needs a public key}"
[ "$kind" = vm ] || packages+=(openssh-server systemd-resolved)

key=$(cat "$0" <(echo "$kind $suite") | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/key" 2>/dev/null)" != "$key" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "packaging/image.sh: run as root: it makes a file system with everybody's files in it" >&2; exit 1; }

mkdir -p "$out"
rm -f "$out"/{key,disk.raw,vmlinuz,initrd}
root=$(mktemp -d "$out/root.XXXXXX")
trap 'rm -rf --one-file-system "$root"' EXIT
# The mirror of Debian that this machine uses itself: it has every suite.
# shellcheck disable=SC2016  # this is apt's variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)

# A suite that is newer than this machine's debootstrap is made as unstable is.
script=/usr/share/debootstrap/scripts/$suite
[ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid

# The initrd is made once, below, with its configuration in place.
INITRD=No debootstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "$suite" "$root" "${mirror:-}" "$script" >"$out/debootstrap.log" ||
    { tail -n 20 "$out/debootstrap.log" >&2; exit 1; }

# What the first of a disk needs; the network card, too: Debian 13's initrd waits for who has an address on the kernel's command line.
drivers=(virtio_pci virtio_blk virtio_net ext4)
# By the tool that the suite's kernel comes with.
if [ -d "$root/etc/initramfs-tools" ]; then
    sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
    printf '%s\n' "${drivers[@]}" >>"$root/etc/initramfs-tools/modules"
    chroot "$root" update-initramfs -c -k all >>"$out/debootstrap.log" 2>&1
else
    chroot "$root" dracut --no-hostonly --drivers "${drivers[*]}" --force --regenerate-all >>"$out/debootstrap.log" 2>&1
fi

echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/machine-id" # every machine makes its own at its first start
rm -f "$root/var/lib/dbus/machine-id" # else all take this one, and with it one address of DHCP
echo '/dev/vda / ext4 defaults,errors=remount-ro 0 1' >"$root/etc/fstab"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
units=$root/etc/systemd/system
mkdir -p "$units/timers.target.wants" "$units/sysinit.target.wants"
rm -f "$units"/timers.target.wants/*
chroot "$root" systemctl enable systemd-networkd >>"$out/debootstrap.log" 2>&1

case $kind in
vm)
    # Not that of the machine that builds it.
    echo '# none' >"$root/etc/resolv.conf"
    # The address comes with the kernel's command line.
    ln -sf /lib/systemd/system/systemd-network-generator.service "$units/sysinit.target.wants/"
    # How the suite types: a socket that runs what it is sent, answers, and closes. It is reached from a namespace without a way
    # out, by nobody else.
    cat >"$units/test-shell.socket" <<'UNIT'
[Unit]
DefaultDependencies=no
After=sysinit.target
Before=sockets.target
[Socket]
ListenStream=2222
Accept=yes
MaxConnections=64
TriggerLimitIntervalSec=0
[Install]
WantedBy=sockets.target
UNIT
    cat >"$units/test-shell@.service" <<'UNIT'
[Unit]
CollectMode=inactive-or-failed
[Service]
ExecStart=-/usr/local/sbin/test-shell
Environment=HOME=/root USER=root LOGNAME=root SHELL=/bin/bash
WorkingDirectory=/root
StandardInput=socket
StandardOutput=socket
StandardError=journal
UNIT
    cat >"$root/usr/local/sbin/test-shell" <<'SHELL'
#!/bin/bash
# A line with the script's length, the script, and its input come in; output, exit code and errors go out.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
read -r length
work=$(mktemp -d /run/test-shell.XXXXXX)
trap 'rm -rf "$work"' EXIT
head -c "$length" >"$work/script"
bash "$work/script" 2>"$work/errors"
code=$?
printf '\036%s\036' "$code"
cat "$work/errors"
SHELL
    chmod 755 "$root/usr/local/sbin/test-shell"
    mkdir -p "$units/sockets.target.wants"
    ln -s ../test-shell.socket "$units/sockets.target.wants/"
    ;;
box)
    printf '[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n' >"$root/etc/systemd/network/80-eth0.network"
    chroot "$root" useradd --create-home --shell /bin/bash vagrant
    echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
    chmod 440 "$root/etc/sudoers.d/vagrant"
    # Vagrant replaces this well-known key by one of its own at the first start.
    install -d -m 700 "$root/home/vagrant/.ssh"
    install -m 600 "$VAGRANT_KEY" "$root/home/vagrant/.ssh/authorized_keys"
    chroot "$root" chown -R vagrant: /home/vagrant/.ssh
    # Host keys are made at the first start, not shared by all machines of this box.
    rm -f "$root"/etc/ssh/ssh_host_*
    mkdir -p "$units/ssh.service.d"
    printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' >"$units/ssh.service.d/keys.conf"
    ;;
*)
    echo "packaging/image.sh: $kind is neither vm nor box" >&2
    exit 2
    ;;
esac

cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
cp "$root"/boot/initrd.img-* "$out/initrd"
mke2fs -q -t ext4 -L root -d "$root" "$out/disk.raw" "$size"
echo "$key" >"$out/key"
