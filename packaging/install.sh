#!/usr/bin/env bash
# Puts what skiff is made of into its places below DESTDIR; the package is made of the same tree.
# usage: packaging/install.sh BUILT [DESTDIR]     BUILT: where cargo has put the binaries
set -euo pipefail
built=${1:?usage: packaging/install.sh BUILT [DESTDIR]} to=${2:-}
cd "$(dirname "$0")/.."

install -D -m 755 "$built/skiff" "$to/usr/bin/skiff"
# `skiff` finds it there; `skiff init` links it to where the container runtime looks for plugins.
install -D -m 755 "$built/skiff-cni" "$to/usr/lib/skiff/skiff-cni"
# Symbols are for those who debug: they take most of the space of a build that keeps them.
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$to/usr/bin/skiff" "$to/usr/lib/skiff/skiff-cni"

install -d "$to/usr/lib/systemd/system" "$to/usr/lib/sysctl.d" "$to/usr/lib/modules-load.d" "$to/etc/default"
install -m 644 systemd/skiff-*.service "$to/usr/lib/systemd/system/"
install -m 644 systemd/sysctl.conf "$to/usr/lib/sysctl.d/60-skiff.conf"
install -m 644 systemd/modules.conf "$to/usr/lib/modules-load.d/skiff.conf"
for file in systemd/default/*; do
    # What an administrator has changed stays.
    [ -e "$to/etc/default/${file##*/}" ] || install -m 644 "$file" "$to/etc/default/"
done

install -D -m 644 examples/hello.yaml "$to/usr/share/skiff/examples/hello.yaml"
install -D -m 755 tests/images/build.sh "$to/usr/share/skiff/examples/images.sh"

# Man pages, completions, images: the binary itself makes them.
"$built/skiff" package "$to/usr"
