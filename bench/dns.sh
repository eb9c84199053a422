#!/usr/bin/env bash
# Measures cluster DNS with dnsperf: answers a second, latency, and the server's own CPU time for each answer.
# usage: bench/dns.sh [SECONDS] [SERVICES]   (default 10 seconds a kind of question, 10,000 Services with 5 endpoints each)
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10} services=${2:-10000}
command -v dnsperf >/dev/null || { echo "bench/dns.sh: install dnsperf" >&2; exit 1; }

# NAMES_BINARY: another build of the same program.
run=(cargo bench --quiet -p skiff-dns --bench names)
if [ -n "${NAMES_BINARY:-}" ]; then run=("$NAMES_BINARY"); else "${run[@]}" --no-run; fi
work=$(mktemp -d)
export NAMES_PORT=5300 NAMES_SERVICES=$services
coproc SERVER { exec "${run[@]}" 2>"$work/log"; }
ask=${SERVER[1]} told=${SERVER[0]}
trap 'exec {ask}>&-; wait "$SERVER_PID" 2>/dev/null || true; rm -rf "$work"' EXIT

cpu() { # the server's CPU time so far, in microseconds
    echo >&"$ask"
    read -r used <&"$told"
    echo "$used"
}

names() { # $1: how a name is made of a number
    awk -v n="$services" -v made="$1" 'BEGIN { srand(1); for (i = 0; i < 100000; i++) { x = int(rand() * n); line = made; gsub(/#/, x, line); print line } }'
}
names 'service-#.bench.svc.cluster.local A' | grep -v '0\.bench' >"$work/cluster-ip"
names 'service-#0.bench.svc.cluster.local A' | awk -v n="$services" '{ split($1, a, /[-.]/); if (a[2] < n) print }' >"$work/headless"
names '_http._tcp.service-#.bench.svc.cluster.local SRV' >"$work/srv"
names 'missing-#.bench.svc.cluster.local A' >"$work/nxdomain"

for _ in $(seq 200); do
    printf 'service-1.bench.svc.cluster.local A\n' >"$work/one"
    dnsperf -s 127.0.0.1 -p $NAMES_PORT -d "$work/one" -n 1 -t 1 2>/dev/null | grep -q 'NOERROR 1 ' && break
    sleep 0.1
done

echo "| question, $services Services | answers/s | mean latency | lost | CPU of the server for each answer |"
echo "| --- | --- | --- | --- | --- |"
for kind in cluster-ip headless srv nxdomain; do
    before=$(cpu)
    dnsperf -s 127.0.0.1 -p $NAMES_PORT -d "$work/$kind" -l "$seconds" -c 8 -q 200 >"$work/result" 2>&1
    after=$(cpu)
    awk -v kind="$kind" -v used=$((after - before)) '
        /Queries completed/ { completed = $3 }
        /Queries lost/ { lost = $3 }
        /Queries per second/ { rate = $4 }
        /Average Latency/ { latency = $4 }
        END { printf "| %s | %.0f | %.2f ms | %d | %.1f µs |\n", kind, rate, latency * 1000, lost, used / completed }' "$work/result"
done
