#!/usr/bin/env bash
# Unpacks containerd, runc and kubectl of another Debian suite, to test with. Nothing is installed, and nothing is fetched again while
# this script is the same.
# usage: packaging/runtime.sh SUITE DIRECTORY     makes DIRECTORY/usr/bin, to come first in a PATH, and DIRECTORY/versions
set -euo pipefail
suite=${1:?usage: packaging/runtime.sh SUITE DIRECTORY} out=$(realpath -m "${2:?usage: packaging/runtime.sh SUITE DIRECTORY}")
# A later runc asks for a later C library, which is unpacked with it.
packages=(containerd runc kubectl libc6 libseccomp2)

key=$(cat "$0" <(echo "$suite") | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/key" 2>/dev/null)" != "$key" ] || exit 0
[ ! -e "$out" ] || [ -e "$out/versions" ] || { echo "packaging/runtime.sh: $out holds something else" >&2; exit 1; }

# The mirror of Debian that this machine uses itself, as in packaging/image.sh: it has every suite.
# shellcheck disable=SC2016  # this is apt's variable
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || { echo "packaging/runtime.sh: apt has no Debian mirror on this machine" >&2; exit 1; }

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root" "$work"/{state/lists,cache/archives}/partial "$work/packages"
: >"$work/status" # what this machine has installed is no candidate
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
options=(
    -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
    -o Dir::State="$work/state" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache"
    -o Acquire::Languages=none -o APT::Sandbox::User=root
)
apt-get "${options[@]}" update -qq
(cd "$work/packages" && apt-get "${options[@]}" download -qq "${packages[@]}")
for package in "$work"/packages/*.deb; do
    dpkg-deb -x "$package" "$root"
    # shellcheck disable=SC2016  # these are dpkg's variables
    dpkg-deb --show --showformat '${Package} ${Version}\n' "$package" >>"$root/versions"
done
rm -rf "${root:?}"/{etc,usr/share}

# Its C library is named in runc itself: the environment does not reach its second self, which becomes the container.
loader=$(basename "$(patchelf --print-interpreter "$root/usr/sbin/runc")")
loader=$(find "$root/usr" -name "$loader" -type f) libraries=$(dirname "$(find "$root/usr" -name libc.so.6)")
patchelf --set-interpreter "$out${loader#"$root"}" --set-rpath "$out${libraries#"$root"}" "$root/usr/sbin/runc"

rm -rf "$out"
mv "$root" "$out"
for program in containerd runc; do
    "$out/usr/bin/$program" --version >/dev/null
done
echo "$key" >"$out/key"
