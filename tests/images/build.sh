#!/usr/bin/env bash
# Builds the images of examples and tests from Debian's busybox-static into DIRECTORY, one archive each.
# usage: tests/images/build.sh SKIFF DIRECTORY
set -euo pipefail
skiff=$1 out=$2
if [ ! -x /bin/busybox ] || ldd /bin/busybox >/dev/null 2>&1; then
    echo "$0: /bin/busybox is not there, or needs libraries that an image would not have: apt-get install busybox-static" >&2
    exit 1
fi
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

applets=()
for applet in sh cat cp date dd echo env false hostname httpd id ip kill ls mkdir mount nc nslookup ping ps rm sleep stat tail test touch true umount; do
    applets+=(--symlink "/bin/$applet=busybox")
done

# A shell and what goes with it.
"$skiff" image build --tag docker.io/library/busybox:1.36 --file /bin/busybox=/bin/busybox "${applets[@]}" \
    --directory /tmp=1777 --env PATH=/bin --cmd /bin/sh --output "$out/busybox.tar"

# A web server that says which version it is and where it runs.
for version in 1 2; do
    mkdir -p "$work/$version"
    cat >"$work/$version/serve" <<SERVE
#!/bin/sh
mkdir -p /www && echo "hello from \$(hostname), version $version" >/www/index.html
# A first process without a handler would sit out SIGTERM until the grace period is over.
httpd -f -p 8080 -h /www &
trap 'kill \$!' TERM
wait
SERVE
    chmod 755 "$work/$version/serve"
    "$skiff" image build --tag "skiff.local/hello:$version" --file /bin/busybox=/bin/busybox "${applets[@]}" \
        --file "/bin/serve=$work/$version/serve" --env PATH=/bin --entrypoint /bin/serve --output "$out/hello-$version.tar"
done
