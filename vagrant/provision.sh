#!/bin/bash
# On a machine of the Vagrantfile: installs the package, and makes the master a cluster. May be run again.
# usage: provision.sh master|worker ADDRESS
set -euo pipefail
role=$1 address=$2
export DEBIAN_FRONTEND=noninteractive

# What the package needs is in our own box; another one gets it from Debian.
apt-get install -y -qq --no-install-recommends /tmp/skiff.deb kubernetes-client >/dev/null ||
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends /tmp/skiff.deb kubernetes-client >/dev/null; }

if [ "$role" = master ]; then
    # One that was interrupted is typed again; one that was completed is not.
    grep -qs '"completed": "' /var/lib/skiff/machine.json || skiff init --apiserver-advertise-address "$address"
    install -d -o vagrant -g vagrant -m 700 /home/vagrant/.kube
    install -o vagrant -g vagrant -m 600 /etc/kubernetes/admin.conf /home/vagrant/.kube/config
fi
