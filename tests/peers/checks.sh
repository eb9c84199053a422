# What is asked of a kubelet on an upstream control plane; read by kubelet.sh, which gives kubectl, log and switch_kubelet.
# shellcheck shell=bash disable=SC2154

readonly IMAGE=docker.io/library/busybox:1.36
passed=0

check() {
    local name=$1
    shift
    if "$@"; then
        log "ok    $name"
        passed=$((passed + 1))
    else
        log "FAIL  $name"
        kubectl get pods,events >&2 || true
        return 1
    fi
}

# Asks until the command prints the text, for 60 s.
prints() {
    local wanted=$1 seen='' deadline=$((SECONDS + 60))
    shift
    while [ $SECONDS -lt $deadline ]; do
        seen=$("$@" 2>&1 || true)
        [[ $seen == *"$wanted"* ]] && return 0
        sleep 0.1
    done
    log "wanted '$wanted', seen: $seen"
    return 1
}

field() { kubectl get pod "$1" -o "jsonpath=$2"; }

apply_pods() {
    kubectl create configmap settings --from-literal=colour=green >/dev/null
    kubectl create secret generic key --from-literal=word=open-sesame >/dev/null
    kubectl apply -f - >/dev/null <<K
---
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: full}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, image: $IMAGE, imagePullPolicy: Never, command: [sh, -c, 'echo prepared > /shared/file'], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - name: main
    image: $IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'cat /shared/file; echo "I am \$NAME on \$NODE"; trap "exit 0" TERM; while true; do sleep 1; done']
    env:
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    readinessProbe: {exec: {command: [cat, /shared/file]}, periodSeconds: 1}
    resources: {limits: {memory: 32Mi, cpu: 200m}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: settings, mountPath: /settings}
    - {name: key, mountPath: /key}
    - {name: token, mountPath: /token}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: settings, configMap: {name: settings}}
  - {name: key, secret: {secretName: key, defaultMode: 0400}}
  - {name: token, projected: {sources: [{serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: fails}
spec:
  restartPolicy: Never
  containers: [{name: main, image: $IMAGE, imagePullPolicy: Never, command: [sh, -c, 'echo last words > /dev/termination-log; exit 3']}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'head -c 200m /dev/zero | tail']
    resources: {limits: {memory: 16Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: crashes}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: $IMAGE, imagePullPolicy: Never, command: [sh, -c, 'exit 1']}]
---
apiVersion: v1
kind: Pod
metadata: {name: no-image}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'localhost:1/none:1', command: [sh]}]
K
}

token_names_audience() {
    local payload
    payload=$(kubectl exec full -- cat /token/token | cut -d. -f2 | tr '_-' '/+')
    while [ $((${#payload} % 4)) != 0 ]; do payload+='='; done
    [[ $(base64 -d <<<"$payload") == *'"aud":["vault"]'* ]]
}

nothing_is_left() {
    local deadline=$((SECONDS + 60))
    while [ $SECONDS -lt $deadline ]; do
        if [ -z "$(ls "$D/kubelet/pods")" ] && [ -z "$(ls "$D/pods" 2>/dev/null)" ] &&
            ! grep -q "$D/kubelet/pods" /proc/self/mounts &&
            [ -z "$(find /sys/fs/cgroup/*/"$NS" -type d -name "pod*" -print -quit)" ] &&
            [ -z "$(ctr -a /run/up/containerd.sock -n k8s.io containers list -q)" ]; then
            return 0
        fi
        sleep 0.2
    done
    ls "$D/kubelet/pods" "$D/pods" >&2
    return 1
}

same_containers_after_a_kill() {
    local before after
    before=$(field full '{.status.containerStatuses[0].containerID}{.status.podIP}')
    switch_kubelet ours
    # The lease tells that the new one is at work.
    local seen
    seen=$(kubectl -n kube-node-lease get lease node1 -o 'jsonpath={.spec.renewTime}')
    until [ "$(kubectl -n kube-node-lease get lease node1 -o 'jsonpath={.spec.renewTime}')" != "$seen" ]; do sleep 0.2; done
    after=$(field full '{.status.containerStatuses[0].containerID}{.status.podIP}')
    [ "$before" = "$after" ] && [ "$(field full '{.status.containerStatuses[0].restartCount}')" = 0 ]
}

run_checks() {
    check "the node registers with its capacity and its runtime" prints containerd:// \
        kubectl get node node1 -o 'jsonpath={.status.capacity.cpu} {.status.nodeInfo.containerRuntimeVersion}'
    apply_pods
    check "a pod with init container, volumes and probe is Ready" kubectl wait pod/full --for=condition=Ready --timeout=60s
    check "init containers share volumes; fields become variables" prints "I am full on node1" kubectl logs full
    check "exec: a variable from a ConfigMap" prints green kubectl exec full -- sh -c "echo \$COLOUR"
    check "exec: its exit code" bash -c '! "$@"' - nsenter --net="/run/netns/$NS" kubectl --kubeconfig "$D/admin.conf" exec full -- false
    check "a Secret's file has its content" prints open-sesame kubectl exec full -- cat /key/word
    check "a projected token has the audience" token_names_audience
    check "the account's own token is there" prints ey kubectl exec full -- cat /var/run/secrets/kubernetes.io/serviceaccount/token
    kubectl create configmap settings --from-literal=colour=blue --dry-run=client -o yaml | kubectl apply -f - >/dev/null 2>&1
    check "a changed ConfigMap reaches the pod" prints blue kubectl exec full -- cat /settings/colour
    check "a failure tells its exit code and last words" prints "Failed 3 last words" \
        field fails '{.status.phase} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.message}'
    check "a container over its limit is OOMKilled" prints OOMKilled field greedy '{.status.containerStatuses[0].state.terminated.reason}'
    check "a crashing container backs off" prints CrashLoopBackOff field crashes '{.status.containerStatuses[0].state.waiting.reason}'
    check "an image that cannot be pulled is told" prints ImagePull field no-image '{.status.containerStatuses[0].state.waiting.reason}'
    check "events reach upstream's API" prints BackOff kubectl get events
    check "figures are served through upstream's API server" prints '"podRef"' kubectl get --raw /api/v1/nodes/node1/proxy/stats/summary
    check "the killed kubelet finds its containers again" same_containers_after_a_kill
    kubectl create deployment web --image "$IMAGE" --replicas 3 --dry-run=client -o json -- sleep 3600 |
        jq '.spec.template.spec.terminationGracePeriodSeconds = 0 | .spec.template.spec.containers[0].imagePullPolicy = "Never"' |
        kubectl apply -f - >/dev/null
    check "a Deployment of upstream's controllers rolls out" kubectl rollout status deployment/web --timeout=60s
    kubectl delete deployment web >/dev/null
    kubectl delete pods --all --timeout=60s >/dev/null
    check "nothing is left of pods that are gone" nothing_is_left
    echo "peers: $passed checks passed: skiff's kubelet on Kubernetes 1.20.2"
}

# Pod starts, in turns: ours, theirs, ours ... five rounds each.
run_bench() {
    local round whose
    for round in 1 2 3 4 5; do
        for whose in ours theirs; do
            switch_kubelet "$whose"
            # The first pod waits for the kubelet to be up and to have cleaned up after the other one.
            nsenter --net="/run/netns/$NS" python3 "$peers/../bench/podlat.py" "$D/admin.conf" --n 1 --burst 0 >/dev/null
            sleep 5
            echo "round $round, $whose:"
            nsenter --net="/run/netns/$NS" python3 "$peers/../bench/podlat.py" "$D/admin.conf" --n 8 --burst "${BURST:-40}"
            awk '/^VmRSS/ { printf "memory %.1f MB\n", $2 / 1024 }' "/proc/$(cat "$D/kubelet.pid")/status"
        done
    done
}
