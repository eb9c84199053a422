#!/usr/bin/env bash
# Measures ADD of the bridge plugin with host-local addresses, ours as `skiff up` installs it (links to skiff-cni) and Debian's in
# turns, in network namespaces of its own.
# usage: bench/cni.sh [DIRECTORY_OF_OUR_PLUGINS [ROUNDS]]   (default: links to target/release/skiff-cni, made here; 40)
set -euo pipefail
cd "$(dirname "$0")/.."
# The node of the measurement is a namespace that ends with this script.
[ "${CNI_BENCH:-}" = inside ] || exec env CNI_BENCH=inside unshare --net --mount --propagation private "$0" "$@"
home=$(mktemp -d)
trap 'umount "$home/netns/"* 2>/dev/null || true; rm -rf "$home"' EXIT
ours=${1:-$home/bin}
rounds=${2:-40}
theirs=/usr/lib/cni
mkdir -p "$home/bin" "$home/netns"
for plugin in bridge host-local loopback portmap; do ln -s "$PWD/target/release/skiff-cni" "$home/bin/$plugin"; done
[ -x "$ours/bridge" ] || { echo "bench: build first: make build" >&2; exit 1; }
[ -x "$theirs/bridge" ] || { echo "bench: install containernetworking-plugins" >&2; exit 1; }
ip link set lo up

# call VERB NAME DIRECTORY ROUND
call() {
    CNI_COMMAND=$1 CNI_CONTAINERID=$2-$4 CNI_NETNS=$home/netns/$2-$4 CNI_IFNAME=eth0 CNI_PATH=$3 \
        "$3/bridge" <"$home/$2.json" >/dev/null
}
for name in ours theirs; do
    jq -n --arg name "$name" --arg data "$home/data" --argjson net "$([ $name = ours ] && echo 1 || echo 2)" '{
        cniVersion: "1.0.0", name: $name, type: "bridge", bridge: $name, isGateway: true, hairpinMode: true, mtu: 1450,
        ipam: {type: "host-local", dataDir: $data, ranges: [[{subnet: "10.244.\($net).0/24"}]],
               routes: [{dst: "0.0.0.0/0"}]}}' >"$home/$name.json"
    : >"$home/$name.ms"
done
for round in $(seq 0 "$rounds"); do
    for name in ours theirs; do
        touch "$home/netns/$name-$round"
        unshare --net="$home/netns/$name-$round" true
        begin=$EPOCHREALTIME
        call ADD "$name" "${!name}" "$round"
        end=$EPOCHREALTIME
        # The first makes the bridge.
        [ "$round" = 0 ] || awk -v a="$begin" -v b="$end" 'BEGIN { printf "%.2f\n", (b - a) * 1000 }' >>"$home/$name.ms"
    done
done
for round in $(seq 0 "$rounds"); do
    for name in ours theirs; do call DEL "$name" "${!name}" "$round"; done
done
at() { sort -n "$home/$1.ms" | awk -v share="$2" '{ value[NR] = $1 } END { print value[int((NR - 1) * share) + 1] }'; }
printf '%-8s %10s %10s %10s\n' ADD p10 p50 p90
for name in ours theirs; do
    printf '%-8s %7s ms %7s ms %7s ms\n' $name "$(at $name 0.1)" "$(at $name 0.5)" "$(at $name 0.9)"
done
awk -v a="$(at ours 0.5)" -v b="$(at theirs 0.5)" 'BEGIN { printf "ratio of the medians: %.2f\n", a / b }'
