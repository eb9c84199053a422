#!/usr/bin/env bash
# Measures what a node costs that has nothing to do: CPU time and memory of its processes, with more and more pods that sleep.
# usage: bench/idle.sh [SECONDS [PODS...]]   (default: 30 seconds each, with 0, 30 and 110 pods)
#   PROBE=exec|http   gives each container a readiness probe every 10 s
#   SKIFF=PATH        another binary than target/release/skiff
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-30}
counts=("${@:2}")
[ ${#counts[@]} -gt 0 ] || counts=(0 30 110)
probe=${PROBE:-none}
skiff=$(realpath "${SKIFF:-target/release/skiff}")
name=idle-$$
home=$(mktemp -d)
export SKIFF_HOME=$home
log() { echo "bench: $*" >&2; }
trap '"$skiff" down --name "$name" --purge >/dev/null 2>&1 || true; rm -rf "$home"' EXIT

mkdir -p "$home/images"
tests/images/build.sh "$skiff" "$home/images" >/dev/null
"$skiff" up --name "$name" --nodes 1 --images "$home/images" >/dev/null
kubectl=(kubectl --kubeconfig "$("$skiff" kubeconfig --name "$name")" --cache-dir "$home/cache")

case $probe in
none) extra="" ;;
exec) extra=", readinessProbe: {exec: {command: ['true']}, periodSeconds: 10}" ;;
http) extra=", readinessProbe: {httpGet: {port: 8080}, periodSeconds: 10}" ;;
*)
    echo "bench/idle.sh: PROBE is exec, http or nothing" >&2
    exit 2
    ;;
esac

pods() { # from to
    local index
    for ((index = $1; index < $2; index++)); do
        cat <<POD
---
apiVersion: v1
kind: Pod
metadata: {name: idle-$index, labels: {app: idle}}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers: [{name: c, image: skiff.local/hello:1, imagePullPolicy: Never$extra}]
POD
    done
}

roles=(kubelet containerd server proxy)
pid() { jq -r --arg role "$1" '.processes[] | select(.role == $role) | .pid' "$home/clusters/$name/cluster.json" | head -1; }
# Hundredths of a second of CPU time: utime and stime, after the command's name, which may have spaces.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
memory() { awk -v what="$2" '$1 == what ":" { printf "%.1f", $2 / 1024 }' "/proc/$1/status"; }

echo "| pods (probe: $probe) | process | CPU, ms for each second | RSS | private |"
echo "| --- | --- | --- | --- | --- |"
have=0
for count in "${counts[@]}"; do
    if [ "$count" -gt "$have" ]; then
        log "starting $((count - have)) pods"
        pods "$have" "$count" | "${kubectl[@]}" apply -f - >/dev/null
        "${kubectl[@]}" wait pods -l app=idle --for=condition=Ready --timeout=600s >/dev/null
        have=$count
    fi
    sleep 5 # what the starts had to do afterwards is done
    declare -A before
    for role in "${roles[@]}"; do before[$role]=$(ticks "$(pid "$role")"); done
    sleep "$seconds"
    for role in "${roles[@]}"; do
        process=$(pid "$role")
        spent=$(awk -v a="${before[$role]}" -v b="$(ticks "$process")" -v s="$seconds" 'BEGIN { printf "%.1f", (b - a) * 10 / s }')
        echo "| $count | $role | $spent | $(memory "$process" VmRSS) MB | $(memory "$process" RssAnon) MB |"
    done
done
