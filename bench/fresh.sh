#!/usr/bin/env bash
# Runs a command with TMPDIR on a file system of its own, in namespaces of its own for mounts and processes, which all end with it.
# On the machine's file system it would also be measured what was deleted there minutes before (docs/decisions/0016).
# usage: bench/fresh.sh COMMAND [ARGUMENT...]
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: bench/fresh.sh COMMAND [ARGUMENT...]" >&2; exit 2; }
if [ -z "${FRESH:-}" ]; then
    dir=$(mktemp -d)
    trap 'rm -rf --one-file-system "$dir"' EXIT
    truncate -s 8G "$dir/disk"
    mkfs.ext4 -q -F "$dir/disk"
    mkdir "$dir/fs"
    FRESH=$dir unshare --mount --propagation slave --pid --fork --kill-child --mount-proc "$0" "$@"
else
    mount -o loop "$FRESH/disk" "$FRESH/fs"
    export TMPDIR=$FRESH/fs
    exec "$@"
fi
