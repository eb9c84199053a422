//! The everyday fields of a pod's spec, each asked of a real container: what upstream's kubelet makes of them, ours makes too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use skiff_tests::wait::until;
use skiff_tests::{Fixture, Kubectl, on_cluster};

const LIMIT: Duration = Duration::from_secs(60);

/// What the pods name.
const OBJECTS: &str = "---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, bad-name: x}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden}
stringData: {key: s3cret}
---
apiVersion: v1
kind: Service
metadata: {name: back-end}
spec: {selector: {app: nobody}, ports: [{name: web, port: 8080}]}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: heavy}
handler: runc
overhead: {podFixed: {cpu: 10m, memory: 8Mi}}
";

/// One pod that asks for much at once.
const WHOLE: &str = r#"---
apiVersion: v1
kind: Pod
metadata: {name: whole, labels: {app: whole}, annotations: {note: "two\nlines"}}
spec:
  terminationGracePeriodSeconds: 5
  hostname: front
  subdomain: inner
  setHostnameAsFQDN: true
  shareProcessNamespace: true
  runtimeClassName: heavy
  dnsPolicy: None
  dnsConfig: {nameservers: [10.96.0.10], searches: [first.example, second.example], options: [{name: ndots, value: "3"}, {name: rotate}]}
  hostAliases: [{ip: 10.1.2.3, hostnames: [friend, pal]}]
  securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "81"}]}
  initContainers:
  - name: side
    image: IMAGE
    imagePullPolicy: Never
    restartPolicy: Always
    command: [sh, -c, 'trap "echo side >> /kept/order; exit" TERM; sleep 0.5; touch /shared/side; while true; do sleep 0.1; done']
    startupProbe: {exec: {command: [cat, /shared/side]}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /shared}, {name: kept, mountPath: /kept}]
  - name: first
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'test -e /shared/side && echo first > /shared/first']
    volumeMounts: [{name: shared, mountPath: /shared}]
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'trap "echo main >> /kept/order; exit" TERM; httpd -p 8080 -h /shared; while true; do sleep 0.1; done']
    args: [$(COLOUR)]
    workingDir: /shared
    ports: [{name: web, containerPort: 8080}]
    envFrom:
    - {prefix: CFG_, configMapRef: {name: settings}}
    - {prefix: SEC_, secretRef: {name: hidden}}
    - {configMapRef: {name: absent, optional: true}}
    env:
    - {name: COLOUR, value: blue}
    - {name: TWICE, value: "$(COLOUR)-$(CFG_colour)-$$(COLOUR)-$(NOBODY)"}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: UID_OF_POD, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MEGABYTES, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: OF_NODE, valueFrom: {resourceFieldRef: {resource: limits.ephemeral-storage}}}
    - {name: OPTIONAL, valueFrom: {secretKeyRef: {name: absent, key: k, optional: true}}}
    resources: {requests: {cpu: 150m}, limits: {cpu: 250m, memory: 64Mi}}
    startupProbe: {tcpSocket: {port: web}, periodSeconds: 1}
    readinessProbe: {httpGet: {path: /first, port: web, httpHeaders: [{name: X-Probe, value: a}]}, periodSeconds: 1}
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'echo post > /shared/post']}}
      preStop: {exec: {command: [sh, -c, 'echo prestop >> /kept/order']}}
    volumeMounts:
    - {name: shared, mountPath: /shared}
    - {name: kept, mountPath: /kept, mountPropagation: HostToContainer}
    - {name: kept, mountPath: /own, subPathExpr: "sub-$(NAME)"}
    - {name: kept, mountPath: /fixed, readOnly: true}
    - {name: memory, mountPath: /memory}
    - {name: about, mountPath: /about}
    - {name: mixed, mountPath: /mixed}
    - {name: none, mountPath: /none}
  - name: second
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'trap exit TERM; while true; do sleep 0.1; done']
    lifecycle: {postStart: {httpGet: {port: 8080, path: /side}}, preStop: {sleep: {seconds: 1}}}
  - name: third
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'trap exit TERM; while true; do sleep 0.1; done']
    lifecycle: {postStart: {tcpSocket: {port: 8080}}}
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: kept, hostPath: {path: KEPT, type: DirectoryOrCreate}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - name: about
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: notes, fieldRef: {fieldPath: metadata.annotations}}
      - {path: deep/cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}
  - name: mixed
    projected:
      defaultMode: 288
      sources:
      - configMap: {name: settings, items: [{key: colour, path: a/b, mode: 256}]}
      - secret: {name: hidden}
      - serviceAccountToken: {audience: else, expirationSeconds: 600, path: token}
      - configMap: {name: absent, optional: true}
  - {name: none, configMap: {name: absent, optional: true}}
"#;

/// Pods each of which shows one thing.
const OTHERS: &str = r#"---
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  restartPolicy: Never
  activeDeadlineSeconds: 2
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: IMAGE, imagePullPolicy: Never, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: gated}
spec:
  terminationGracePeriodSeconds: 0
  readinessGates: [{conditionType: example.com/gate}]
  containers: [{name: c, image: IMAGE, imagePullPolicy: Never, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: IMAGE, imagePullPolicy: Never, command: [sleep, "3600"], lifecycle: {postStart: {exec: {command: ["false"]}}}}
---
apiVersion: v1
kind: Pod
metadata: {name: hurried}
spec:
  terminationGracePeriodSeconds: 300
  containers:
  - name: c
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'trap "" TERM; while true; do sleep 0.1; done']
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 300
  containers:
  - name: c
    image: IMAGE
    imagePullPolicy: Never
    command: [sh, -c, 'trap "" TERM; while true; do sleep 0.1; done']
    livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: of-node}
spec:
  terminationGracePeriodSeconds: 0
  hostNetwork: true
  hostPID: true
  hostIPC: true
  dnsPolicy: ClusterFirstWithHostNet
  enableServiceLinks: false
  containers: [{name: c, image: IMAGE, imagePullPolicy: Never, command: [sh, -c, 'echo $$; while true; do sleep 0.1; done']}]
"#;

/// A directory of the node whose mounts reach containers, as those of a machine with systemd do.
struct Kept(PathBuf);

impl Kept {
    fn new(fixture: &Fixture) -> anyhow::Result<Self> {
        let path = fixture.cluster.node("node-1")?.directory().join("kept");
        std::fs::create_dir(&path).context("a directory")?;
        let kept = Self(path);
        let path = kept.0.as_os_str();
        run(Command::new("mount").arg("--bind").args([path, path]))?;
        run(Command::new("mount").arg("--make-private").arg(path))?;
        run(Command::new("mount").arg("--make-shared").arg(path))?;
        Ok(kept)
    }

    fn manifests(&self) -> String {
        let text = [OBJECTS, WHOLE, OTHERS].concat();
        let text = text.replace("IMAGE", "docker.io/library/busybox:1.36");
        text.replace("KEPT", &self.0.to_string_lossy())
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        run(Command::new("umount").args(["--recursive", "--lazy"]).arg(&self.0)).ok();
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

async fn wait_for(kubectl: &Kubectl, pod: &str, path: &str, wanted: &str) -> anyhow::Result<()> {
    let what = format!("{path} of pod {pod} is {wanted}");
    let look = async || kubectl.field(&["pod", pod], path);
    until(&what, LIMIT, look, |seen| seen == wanted).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_what_its_spec_asks_for() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let kept = Kept::new(fixture)?;
        let kubectl = &fixture.kubectl;
        kubectl.apply(&kept.manifests())?;
        kubectl.run(&["wait", "pod/whole", "--for=condition=Ready", "--timeout=45s"])?;
        environment(kubectl)?;
        files(kubectl, &kept.0)?;
        namespaces(kubectl)?;
        debugging(kubectl).await?;
        others(kubectl).await?;
        runtime_class(kubectl)?;
        // The main containers end first, after their hooks; the sidecar that served them last.
        kubectl.run(&["delete", "pod", "whole", "--wait=true", "--timeout=30s"])?;
        let order = std::fs::read_to_string(kept.0.join("order")).context("the order of ends")?;
        assert_eq!(order, "prestop\nmain\nside\n");
        kubectl.run(&["delete", "pods", "--all", "--now", "--wait=true"])?;
        Ok(())
    })
    .await
}

fn inside(kubectl: &Kubectl, script: &str) -> anyhow::Result<String> {
    kubectl.run(&["exec", "whole", "-c", "main", "--", "sh", "-c", script])
}

fn environment(kubectl: &Kubectl) -> anyhow::Result<()> {
    let pod = kubectl.get(&["pod", "whole"])?;
    let node = kubectl.get(&["node", "node-1"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ip = text(&pod["status"]["podIP"]);
    let printed = inside(kubectl, "env")?;
    let lines: Vec<&str> = printed.lines().collect();
    let storage = text(&node["status"]["allocatable"]["ephemeral-storage"]);
    let storage = storage.strip_suffix("Ki").and_then(|kibi| kibi.parse::<u64>().ok());
    let storage = storage.map_or(text(&node["status"]["allocatable"]["ephemeral-storage"]), |kibi| {
        (kibi * 1024).to_string()
    });
    let expected = [
        "CFG_colour=green".to_owned(),
        "SEC_key=s3cret".into(),
        "TWICE=blue-green-$(COLOUR)-$(NOBODY)".into(),
        "NAME=whole".into(),
        format!("UID_OF_POD={}", text(&pod["metadata"]["uid"])),
        "LABEL=whole".into(),
        format!("IPS={ip}"),
        format!("HOST={}", text(&pod["status"]["hostIP"])),
        "ACCOUNT=default".into(),
        "CPU=150".into(),
        "CPUS=1".into(),
        "MEGABYTES=64".into(),
        format!("OF_NODE={storage}"),
        "HOSTNAME=front.inner.default.svc.cluster.local".into(),
        "KUBERNETES_SERVICE_PORT=443".into(),
        "BACK_END_SERVICE_PORT_WEB=8080".into(),
    ];
    for line in expected {
        assert!(lines.contains(&line.as_str()), "{line} in:\n{printed}");
    }
    assert!(!printed.contains("OPTIONAL="), "{printed}");
    assert_eq!(inside(kubectl, "hostname")?, "front.inner.default.svc.cluster.local\n");
    let hosts = inside(kubectl, "cat /etc/hosts")?;
    assert!(
        hosts.contains(&format!("{ip}\tfront.inner.default.svc.cluster.local\tfront")),
        "{hosts}"
    );
    assert!(hosts.contains("10.1.2.3\tfriend\tpal"), "{hosts}");
    let resolver = inside(kubectl, "cat /etc/resolv.conf")?;
    let wanted = [
        "nameserver 10.96.0.10",
        "search first.example second.example",
        "options ndots:3 rotate",
    ];
    assert!(
        wanted.iter().all(|line| resolver.lines().any(|found| found == *line)),
        "{resolver}"
    );
    assert_eq!(
        inside(kubectl, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")?,
        "81\n"
    );
    assert_eq!(pod["status"]["observedGeneration"], pod["metadata"]["generation"]);
    Ok(())
}

fn files(kubectl: &Kubectl, kept: &Path) -> anyhow::Result<()> {
    assert_eq!(inside(kubectl, "pwd; cat first post")?, "/shared\nfirst\npost\n");
    let about = inside(
        kubectl,
        "cat /about/labels; echo; cat /about/notes; echo; cat /about/deep/cpu",
    )?;
    assert!(
        about.starts_with("app=\"whole\"\n") && about.ends_with("\n250"),
        "{about}"
    );
    assert!(about.contains("note=\"two\\nlines\""), "{about}");
    assert_eq!(inside(kubectl, "cat /mixed/a/b /mixed/key; ls /none")?, "greens3cret");
    assert_eq!(inside(kubectl, "stat -L -c %a /mixed/a/b /mixed/key")?, "400\n440\n");
    let token = inside(kubectl, "cat /mixed/token")?;
    assert_eq!(token.split('.').count(), 3, "{token}");
    inside(kubectl, "echo mine > /own/file")?;
    assert_eq!(
        std::fs::read_to_string(kept.join("sub-whole/file")).context("the file")?,
        "mine\n"
    );
    let refused = kubectl.attempt(&["exec", "whole", "-c", "main", "--", "touch", "/fixed/x"], "")?;
    assert!(!refused.success && refused.stderr.contains("Read-only"), "{refused:?}");
    let large = "dd if=/dev/zero of=/memory/large bs=1M count=2 2>&1; rm /memory/large";
    assert!(inside(kubectl, large)?.contains("No space left"), "a limit of 1 MiB");
    // What the host mounts later shows in a container that asked for it.
    let later = kept.join("later");
    std::fs::create_dir(&later).context("a directory")?;
    run(Command::new("mount").args(["-t", "tmpfs", "later"]).arg(&later))?;
    std::fs::write(later.join("file"), "mounted").context("a file")?;
    assert_eq!(inside(kubectl, "cat /kept/later/file")?, "mounted");
    run(Command::new("umount").arg(&later))?;
    assert_eq!(inside(kubectl, "ls /kept/later")?, "");
    Ok(())
}

fn namespaces(kubectl: &Kubectl) -> anyhow::Result<()> {
    let seen = kubectl.run(&["exec", "whole", "-c", "second", "--", "ps"])?;
    assert!(seen.contains("httpd -p 8080"), "one namespace of processes: {seen}");
    let mounts = inside(kubectl, "cat /proc/mounts")?;
    let protected = mounts.lines().find(|line| line.starts_with("proc /proc/sys "));
    assert!(
        protected.is_some_and(|line| line.contains(" ro")),
        "no container changes the kernel: {mounts}"
    );
    Ok(())
}

/// `kubectl debug`: a container that is added later and sees another one's processes; `kubectl attach` to what runs.
async fn debugging(kubectl: &Kubectl) -> anyhow::Result<()> {
    let image = "--image=docker.io/library/busybox:1.36";
    kubectl.run(&[
        "debug",
        "whole",
        image,
        "--image-pull-policy=Never",
        "--target=main",
        "-c",
        "debugger",
        "--",
        "sh",
        "-c",
        "ps; exit 4",
    ])?;
    let state = "{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}";
    wait_for(kubectl, "whole", state, "4").await?;
    let seen = kubectl.run(&["logs", "whole", "-c", "debugger"])?;
    assert!(seen.contains("httpd -p 8080"), "{seen}");
    // It ended for good, and nobody else noticed.
    let restarts = kubectl.field(&["pod", "whole"], "{.status.containerStatuses[*].restartCount}")?;
    assert_eq!(restarts, "0 0 0", "each postStart hook has succeeded");
    Ok(())
}

fn runtime_class(kubectl: &Kubectl) -> anyhow::Result<()> {
    assert_eq!(kubectl.field(&["pod", "whole"], "{.spec.overhead.memory}")?, "8Mi");
    let absent = "---\n{apiVersion: v1, kind: Pod, metadata: {name: absent}, spec: {runtimeClassName: none, containers: [{name: c, image: i}]}}";
    let refused = kubectl.attempt(&["apply", "-f", "-"], absent)?;
    let why = "pod rejected: RuntimeClass \"none\" not found";
    assert!(!refused.success && refused.stderr.contains(why), "{refused:?}");
    Ok(())
}

async fn others(kubectl: &Kubectl) -> anyhow::Result<()> {
    wait_for(
        kubectl,
        "late",
        "{.status.phase} {.status.reason}",
        "Failed DeadlineExceeded",
    )
    .await?;
    let ready = "{.status.conditions[?(@.type==\"Ready\")].status} {.status.conditions[?(@.type==\"Ready\")].reason}";
    wait_for(
        kubectl,
        "gated",
        "{.status.conditions[?(@.type==\"ContainersReady\")].status}",
        "True",
    )
    .await?;
    wait_for(kubectl, "gated", ready, "False ReadinessGatesNotReady").await?;
    let open = r#"{"status":{"conditions":[{"type":"example.com/gate","status":"True"}]}}"#;
    kubectl.run(&[
        "patch",
        "pod",
        "gated",
        "--subresource=status",
        "--type=strategic",
        "-p",
        open,
    ])?;
    wait_for(kubectl, "gated", ready, "True ").await?;

    let events =
        async |pod: &str| kubectl.run(&["get", "events", &format!("--field-selector=involvedObject.name={pod}")]);
    let told = async || events("hooked").await;
    until("the failed hook is told", LIMIT, told, |text| {
        text.contains("FailedPostStartHook")
    })
    .await?;
    // A probe's kill has five minutes; who deletes the pod has not.
    let told = async || events("hurried").await;
    until("a slow kill", LIMIT, told, |text| {
        text.contains("failed liveness probe")
    })
    .await?;
    kubectl.run(&["delete", "pod", "hurried", "--grace-period=3", "--timeout=30s"])?;
    let restarts = async |pod: &str| kubectl.field(&["pod", pod], "{.status.containerStatuses[0].restartCount}");
    let again = |count: &String| count.parse().unwrap_or(0) > 0;
    // Its own grace period is five minutes: the probe's counts.
    until(
        "the probe's grace period",
        LIMIT,
        async || restarts("stubborn").await,
        again,
    )
    .await?;
    let code = "{.status.containerStatuses[0].lastState.terminated.exitCode}";
    wait_for(kubectl, "stubborn", code, "137").await?;
    until(
        "a new start after the hook",
        LIMIT,
        async || restarts("hooked").await,
        again,
    )
    .await?;

    kubectl.run(&["wait", "pod/of-node", "--for=condition=Ready", "--timeout=30s"])?;
    let ip = kubectl.field(&["pod", "of-node"], "{.status.podIP}")?;
    assert_eq!(
        ip,
        kubectl.field(&["node", "node-1"], "{.status.addresses[0].address}")?
    );
    assert_ne!(kubectl.run(&["logs", "of-node"])?, "1\n", "the node's processes");
    let environment = kubectl.run(&["exec", "of-node", "--", "sh", "-c", "env; cat /etc/resolv.conf"])?;
    assert!(!environment.contains("BACK_END"), "no links: {environment}");
    assert!(environment.contains("KUBERNETES_SERVICE_HOST=") && environment.contains("nameserver 10.96.0.10"));
    Ok(())
}
