#!/usr/bin/env bash
# Measures how long the death of a container goes unseen: a cluster of its own, pods whose container is killed, a watch.
# usage: bench/killed.sh [COUNT]   (default 15)
#   SKIFF=PATH   another binary than target/release/skiff
set -euo pipefail
cd "$(dirname "$0")/.."
skiff=$(realpath "${SKIFF:-target/release/skiff}")
name=killed-$$
home=$(mktemp -d)
export SKIFF_HOME=$home
trap '"$skiff" down --name "$name" --purge >/dev/null 2>&1 || true; rm -rf "$home"' EXIT

mkdir -p "$home/images"
tests/images/build.sh "$skiff" "$home/images" >/dev/null
"$skiff" up --name "$name" --nodes 1 --images "$home/images" >/dev/null
python3 bench/killed.py "$("$skiff" kubeconfig --name "$name")" "${1:-15}"
