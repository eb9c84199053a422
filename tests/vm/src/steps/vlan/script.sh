# shellcheck shell=sh
# Attaches four containers to one bridge, in two VLANs and in none, and tells who reaches whom and what was made.
# usage: sh script.sh DIRECTORY_OF_PLUGINS
set -eu
plugins=$1 data=$(mktemp -d)
containers='a b c d'

leave() {
    for name in vlan-node $containers; do ip netns delete "$name" 2>/dev/null || true; done
    rm -rf "$data"
}
trap leave EXIT
for name in vlan-node $containers; do ip netns add "$name"; done

call() { # VERB CONTAINER
    CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=/run/netns/$2 CNI_IFNAME=eth0 CNI_PATH=$plugins \
        ip netns exec vlan-node "$plugins/bridge" <"$data/$2.json"
}
attach() { # CONTAINER VLAN WITH_GATEWAY ADDRESS
    printf '{"cniVersion": "1.0.0", "name": "net-%s", "type": "bridge", "bridge": "br0", "vlan": %s, "isGateway": %s, "ipam": {"type":
        "host-local", "dataDir": "%s", "ranges": [[{"subnet": "10.50.0.0/24", "rangeStart": "%s"}]]}}' \
        "$1" "$2" "$3" "$data" "$4" >"$data/$1.json"
    call ADD "$1" >"$data/$1.result" || { cat "$data/$1.result"; exit 1; }
}
reach() { # CONTAINER ADDRESS
    if ip netns exec "$1" ping -c 1 -W 1 -q "$2" >/dev/null 2>&1; then echo "$1 reaches $2"; else echo "$1 does not reach $2"; fi
}
show() { # What is there, without random names.
    ip netns exec vlan-node bridge vlan show |
        awk '/^[^ \t]/ { port = $1; $1 = "" } NF { sub(/veth.*/, "veth", port); $1 = $1; print port, $0 }' | sort
    ip netns exec vlan-node ip -4 -brief address | awk 'NF > 2 { sub(/@.*/, "", $1); print $1, $3 }' | sort
    ip netns exec vlan-node ip -brief link | awk '{ sub(/@.*/, "", $1); sub(/veth.*/, "veth", $1); print $1 }' | sort
}

attach a 100 true 10.50.0.10
attach b 100 true 10.50.0.20
attach c 200 false 10.50.0.30
attach d 0 false 10.50.0.40
reach a 10.50.0.20
reach a 10.50.0.1
reach a 10.50.0.30
reach a 10.50.0.40
reach c 10.50.0.20
reach d 10.50.0.20
reach d 10.50.0.1
show
for name in $containers; do call DEL "$name"; done
echo "after DEL"
show
