#!/usr/bin/env bash
# skiff's kubelet on an upstream control plane, Kubernetes 1.20.2: one node; what pods ask for is asked through upstream's
# API server, scheduler and controllers. `bench` measures pod starts instead, in turns with upstream's own kubelet.
# usage: tests/peers/kubelet.sh test|bench SKIFF [PEERS]
#   PEERS     the directory of build.sh, cluster.sh and images.py (default ../shared/peers)
#   UPSTREAM  upstream's binaries (default /tmp/peers/bin), built by the first run in about 8 minutes
set -euo pipefail

# Everything that upstream keeps at fixed places goes to namespaces and a file system of its own, and ends with them.
[ -n "${FRESH:-}" ] || exec "$(dirname "$0")/../../bench/fresh.sh" "$0" "$@"

what=${1:?usage: kubelet.sh test|bench SKIFF [PEERS]}
skiff=$(realpath "${2:?usage: kubelet.sh test|bench SKIFF [PEERS]}")
cd "$(dirname "$0")/../.."
peers=$(realpath "${3:-../shared/peers}")
upstream=${UPSTREAM:-/tmp/peers/bin}
work=$(mktemp -d)
export D=$work/up NS=peer-${work##*.} BIN=$work/bin
readonly SYSCTLS=(vm.overcommit_memory kernel.panic kernel.panic_on_oops)
sysctls=$(sysctl "${SYSCTLS[@]}")

log() { echo "peers: $*" >&2; }
kubectl() { nsenter --net="/run/netns/$NS" kubectl --kubeconfig "$D/admin.conf" "$@"; }

cgroups() { find /sys/fs/cgroup -depth -type d -path "/sys/fs/cgroup/*/$NS*"; }

down() {
    local status=$?
    [ "$status" = 0 ] || tail -n 30 "$D"/kubelet*.log | cut -c1-300 >&2 || true
    kubectl delete pods --all --all-namespaces --timeout=60s >/dev/null 2>&1 || true
    bash "$peers/cluster.sh" down || true
    # Upstream's kubelet leaves sandboxes of pods that the API no longer has. Here are no processes but this test's.
    [ $$ != 1 ] || kill -9 -1
    cgroups | xargs -r rmdir 2>/dev/null || true
    sysctl -q -p - <<<"$sysctls" || true
    exit "$status"
}

prepare() {
    [ -x "$upstream/kube-apiserver" ] || bash "$peers/build.sh" "$upstream"
    mkdir -p "$BIN" "$work/images" "$work/lib/upper" "$work/lib/work" "$work/drop-in"
    python3 "$peers/images.py" "$work/images"
    mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log
    mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$work/lib/upper,workdir=$work/lib/work" /var/lib
    mkdir -p /run/netns
    for controller in /sys/fs/cgroup/*/; do mkdir "$controller$NS" 2>/dev/null || true; done
    cat "/sys/fs/cgroup/cpuset/cpuset.cpus" >"/sys/fs/cgroup/cpuset/$NS/cpuset.cpus"
    cat "/sys/fs/cgroup/cpuset/cpuset.mems" >"/sys/fs/cgroup/cpuset/$NS/cpuset.mems"
    ln -s "$upstream"/kube-* "$BIN/"
    printf 'apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\npodLogsDir: %s\n' "$D/pods" >"$work/drop-in/10-logs.conf"
}

# The kubelet that the cluster's script starts: ours or theirs, as the file says.
write_kubelet() {
    cat >"$BIN/kubelet" <<K
#!/bin/sh
if [ "\$(cat "$work/whose")" = theirs ]; then
    exec "$upstream/kubelet" "\$@" --cgroup-root "/$NS"
fi
exec "$skiff" kubelet --config "$D/kubelet.yaml" --config-dir "$work/drop-in" --kubeconfig "$D/kubelet.conf" \
    --hostname-override node1 --node-ip 172.31.0.1 --root-dir "$D/kubelet" --cgroup-root "/$NS" \
    --container-runtime-endpoint unix:///run/up/containerd.sock
K
    chmod +x "$BIN/kubelet"
}

start() {
    echo "$1" >"$work/whose"
    write_kubelet
    BIN=$BIN bash "$peers/cluster.sh" up >&2
    local archive
    for archive in "$work"/images/*.tar; do
        ctr -a /run/up/containerd.sock -n k8s.io images import "$archive" >/dev/null
    done
    kubectl wait node/node1 --for=condition=Ready --timeout=60s >/dev/null
    until kubectl get serviceaccount default >/dev/null 2>&1; do sleep 0.1; done
}

# Ends the kubelet at once and starts the other one, or the same.
switch_kubelet() {
    local old
    old=$(cat "$D/kubelet.pid")
    kill -9 "$old"
    # The last of its threads gives its port back.
    while [ -n "$(nsenter --net="/run/netns/$NS" ss -Htln 'sport = :10250')" ]; do sleep 0.05; done
    # Upstream's binds its directory onto itself, and so hides what ours has mounted there.
    while mountpoint -q "$D/kubelet"; do umount -R "$D/kubelet"; done
    echo "$1" >"$work/whose"
    nsenter --net="/run/netns/$NS" setsid "$BIN/kubelet" --config="$D/kubelet.yaml" --kubeconfig="$D/kubelet.conf" \
        --container-runtime=remote --container-runtime-endpoint=unix:///run/up/containerd.sock \
        --image-service-endpoint=unix:///run/up/containerd.sock --hostname-override=node1 --root-dir="$D/kubelet" \
        --node-ip=172.31.0.1 >>"$D/kubelet-$1.log" 2>&1 &
    echo $! >"$D/kubelet.pid"
}

# shellcheck source=tests/peers/checks.sh
. tests/peers/checks.sh

trap down EXIT
prepare
start ours
case $what in
test) run_checks ;;
bench) run_bench ;;
*)
    log "neither test nor bench: $what"
    exit 2
    ;;
esac
