#!/usr/bin/env bash
# Measures skiff against the targets: one cluster of its own, the scripts of shared/bench, and a table at the end.
# usage: bench/run.sh [SHARED_BENCH_DIRECTORY]   (default ../shared/bench)
#   OCI_RUNTIME=crun   with another program in runc's place
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${FRESH:-}" ] || exec bench/fresh.sh bench/run.sh "$@"
scripts=${1:-../shared/bench}
skiff=$PWD/target/release/skiff
name=bench-$$
home=$(mktemp -d)
export SKIFF_HOME=$home
log() { echo "bench: $*" >&2; }
trap '"$skiff" down --name "$name" --purge >/dev/null 2>&1 || true; rm -rf "$home"' EXIT

# crun refuses cgroups of both versions at once; this mount is seen by the measured processes alone.
oci=${OCI_RUNTIME:-runc}
if [ "$oci" != runc ] && mountpoint -q /sys/fs/cgroup/unified; then
    mount -t tmpfs none /sys/fs/cgroup/unified
fi

[ -f "$scripts/podlat.py" ] || { log "no measurement scripts in $scripts"; exit 1; }

mkdir -p "$home/images"
tests/images/build.sh "$skiff" "$home/images"

log "starting a cluster"
begin=$(date +%s.%N)
"$skiff" up --name "$name" --nodes 1 --oci-runtime "$oci" --images "$home/images" >&2
ready=$(awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f s", b - a }')
kubeconfig=$("$skiff" kubeconfig --name "$name" --in-cluster-network)
netns=$("$skiff" node netns --name "$name" node-1)
address=$("$skiff" node address --name "$name" node-1)
inside() { nsenter --net="$netns" "$@"; }

sleep 5 # idle memory and CPU are those of a cluster that has settled
rss() { awk '/^VmRSS/ { printf "%.1f MB", $2 / 1024 }' "/proc/$1/status"; }
pid() { jq -r --arg role "$1" '.processes[] | select(.role == $role) | .pid' "$home/clusters/$name/cluster.json" | head -1; }
server=$(rss "$(pid server)")
kubelet=$(rss "$(pid kubelet)")
proxy=$(rss "$(pid proxy)")

log "pods"
inside python3 "$scripts/podlat.py" "$kubeconfig" --n 15 --burst 40 | tee "$home/pods.txt" >&2
log "API"
inside bash "$scripts/apibench.sh" "$(basename "$netns")" "$kubeconfig" "https://$address:6443" | tee "$home/api.txt" >&2
log "services"
inside python3 "$scripts/proxylat.py" "$kubeconfig" --nodeip "$address" --disc v1 --svc 10 1000 5000 | tee "$home/services.txt" >&2

echo
echo "| what | skiff, $oci | upstream 1.20.2 | target |"
echo "| --- | --- | --- | --- |"
echo "| \`skiff up\` → node Ready | $ready | 11 s | 2 s |"
echo "| memory, idle: server | $server | 539 MB | 40 MB |"
echo "| memory, idle: kubelet, proxy | $kubelet, $proxy | 141 MB | 25 MB |"
echo "| size of the binary | $(stat -c %s "$skiff" | awk '{ printf "%.1f MB", $1 / 1e6 }') | 397 MB | 30 MB |"
while IFS= read -r line; do echo "| $line | | | |"; done < <(cat "$home/pods.txt" "$home/api.txt" "$home/services.txt")
