#!/usr/bin/env bash
# Builds what the VM suite needs, as far as it is missing, and runs it.
# usage: packaging/vm-test.sh alone|short|full PROFILE
#   SUITE=trixie   on machines with Debian 13; with Debian 12, bookworm, when absent
#   CRUN=1         with crun in runc's place
set -euo pipefail
form=${1:?usage: packaging/vm-test.sh alone|short|full PROFILE} profile=${2:?usage: packaging/vm-test.sh alone|short|full PROFILE}
image=target/vm/image
[ "${SUITE:-bookworm}" = bookworm ] || image+=-$SUITE
cd "$(dirname "$0")/.."

packaging/deps.sh vm
packaging/image.sh vm "$image"
make --no-print-directory deb-package PROFILE="$profile"
# Of the tests' profile the package's build has just made it.
[ "$profile" = dev ] || cargo build --locked --package skiff-vm
package=$(echo target/debian/skiff_*.deb)
# Disks of a run that was killed.
rm -rf target/vm/run-*
exec timeout --kill-after=10 2400 "${CARGO_TARGET_DIR:-target}/debug/skiff-vm" "$form" --image "$image" --package "$package" ${CRUN:+--crun}
