//! What a pod gets from its node: limits, probes, logs, exec, attach, port-forward, volumes.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::pty::{Winsize, openpty};
use parking_lot::Mutex;
use skiff_cri::testing::{FORKY, TRIXIE};
use skiff_tests::wait::until;
use skiff_tests::{Fixture, on_cluster};

const LIMIT: Duration = Duration::from_secs(45);
const BUSYBOX: &str = "docker.io/library/busybox:1.36";

fn pod(name: &str, container: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 1, \
         containers: [{{name: main, image: {BUSYBOX}, imagePullPolicy: Never, {container}}}]}}}}"
    )
}

async fn wait_for(fixture: &Fixture, pod: &str, path: &str, wanted: &str) -> anyhow::Result<()> {
    let what = format!("{path} of pod {pod} is {wanted}");
    until(
        &what,
        LIMIT,
        async || fixture.kubectl.field(&["pod", pod], path),
        |seen| seen == wanted,
    )
    .await
    .map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_over_its_memory_limit_is_oom_killed() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
        let eat =
            r#"command: [sh, -c, "dd if=/dev/zero of=/dev/null bs=200M count=1"], resources: {limits: {memory: 32Mi}}"#;
        let manifest = pod("hungry", eat).replace(
            "terminationGracePeriodSeconds: 1,",
            "terminationGracePeriodSeconds: 1, restartPolicy: Never,",
        );
        fixture.kubectl.apply(&manifest)?;
        wait_for(
            fixture,
            "hungry",
            "{.status.containerStatuses[0].state.terminated.reason}",
            "OOMKilled",
        )
        .await?;
        wait_for(fixture, "hungry", "{.status.phase}", "Failed").await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_restart_a_container_and_take_a_pod_out_of_its_service() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
    let kubectl = &fixture.kubectl;
    let live = r#"command: [sh, -c, "touch /tmp/ok; sleep 2; rm /tmp/ok; sleep 3600"], livenessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}"#;
    kubectl.apply(&pod("sick", live))?;
    let ready = r#"command: [sh, -c, "touch /tmp/ok; sleep 3600"], readinessProbe: {exec: {command: [cat, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}"#;
    kubectl.apply(&pod("moody", ready))?;
    kubectl.run(&["expose", "pod", "moody", "--port=80"])?;

    let endpoints = |wanted: &'static str| {
        let slices = ["endpointslices", "-l", "kubernetes.io/service-name=moody"];
        let look = async move || kubectl.field(&slices, "{.items[*].endpoints[*].conditions.ready}");
        async move {
            until(
                &format!("readiness of the endpoint is {wanted:?}"),
                LIMIT,
                look,
                |seen| seen == wanted,
            )
            .await
        }
    };
    endpoints("true").await?;
    kubectl.run(&["exec", "moody", "--", "rm", "/tmp/ok"])?;
    endpoints("false").await?;
    wait_for(
        fixture,
        "moody",
        "{.status.conditions[?(@.type==\"Ready\")].status}",
        "False",
    )
    .await?;
    kubectl.run(&["exec", "moody", "--", "touch", "/tmp/ok"])?;
    endpoints("true").await?;
    wait_for(fixture, "moody", "{.status.containerStatuses[0].restartCount}", "0").await?;

    let restarts = async || kubectl.field(&["pod", "sick"], "{.status.containerStatuses[0].restartCount}");
    until(
        "the failing liveness probe restarts the container",
        LIMIT,
        restarts,
        |count| count.parse().unwrap_or(0) >= 1,
    )
    .await?;
    let events = kubectl.run(&["get", "events", "--field-selector=involvedObject.name=sick"])?;
    assert!(events.contains("Unhealthy") && events.contains("Killing"), "{events}");
    Ok(())    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_exec_attach_and_port_forward_reach_a_container() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
    let kubectl = &fixture.kubectl;
    let talk = r#"command: [sh, -c, "echo one; echo two; mkdir /www; echo served > /www/index.html; httpd -p 8080 -h /www; while [ ! -e /tmp/end ]; do sleep 0.1; done; echo three; exit 3"]"#;
    kubectl.apply(&pod("talker", talk))?;
    kubectl.run(&["wait", "pod/talker", "--for=condition=Ready", "--timeout=30s"])?;

    until(
        "both lines are logged",
        LIMIT,
        async || kubectl.run(&["logs", "talker"]),
        |text| text == "one\ntwo\n",
    )
    .await?;
    assert_eq!(kubectl.run(&["logs", "talker", "--tail=1"])?, "two\n");
    assert_eq!(kubectl.run(&["logs", "talker", "--since=1h"])?, "one\ntwo\n");
    assert_eq!(
        kubectl.run(&["exec", "talker", "--", "sh", "-c", "echo $((6*7))"])?,
        "42\n"
    );
    let echoed = kubectl.attempt(&["exec", "-i", "talker", "--", "cat"], "from stdin\n")?;
    assert_eq!(
        (echoed.success, echoed.stdout.as_str()),
        (true, "from stdin\n"),
        "{}",
        echoed.stderr
    );
    let failed = kubectl.attempt(&["exec", "talker", "--", "sh", "-c", "exit 7"], "")?;
    assert!(failed.stderr.contains("exit code 7"), "{}", failed.stderr);

    port_forward(fixture)?;
    attach(fixture).await?;
    attach_with_input(fixture)?;
    attach_a_terminal(fixture).await?;

    let mut follower = kubectl
        .command()
        .args(["logs", "-f", "talker"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(follower.stdout.take().context("kubectl's output")?).lines();
    assert_eq!(lines.next().context("a first line")??, "one");
    kubectl.run(&["exec", "talker", "--", "touch", "/tmp/end"])?;
    let rest: Vec<String> = lines.collect::<Result<_, _>>()?;
    follower.wait()?;
    assert!(rest.iter().any(|line| line == "three"), "followed to the end: {rest:?}");
    wait_for(
        fixture,
        "talker",
        "{.status.containerStatuses[0].lastState.terminated.exitCode}",
        "3",
    )
    .await?;
    let previous = kubectl.run(&["logs", "talker", "--previous"])?;
    assert_eq!(previous, "one\ntwo\nthree\n");
    Ok(())    })
    .await
}

fn port_forward(fixture: &Fixture) -> anyhow::Result<()> {
    let mut forwarder = fixture
        .kubectl
        .command()
        .args(["port-forward", "pod/talker", ":8080"])
        .stdout(Stdio::piped())
        .spawn()?;
    let served = (|| {
        // Held to the end: kubectl ends when nobody reads what it says.
        let mut said = BufReader::new(forwarder.stdout.take().context("kubectl's output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let port = line
            .split("127.0.0.1:")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .with_context(|| line.clone())?;
        let mut stream = TcpStream::connect(("127.0.0.1", port.parse::<u16>()?))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        anyhow::Ok(answer)
    })();
    forwarder.kill()?;
    forwarder.wait()?;
    let served = served?;
    assert!(served.ends_with("served\n"), "{served}");
    Ok(())
}

/// Both outputs of a running container, from now on; who goes away disturbs nothing.
async fn attach(fixture: &Fixture) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    kubectl.apply(&pod(
        "ticker",
        r#"command: [sh, -c, "while true; do echo out; echo err >&2; usleep 50000; done"]"#,
    ))?;
    kubectl.run(&["wait", "pod/ticker", "--for=condition=Ready", "--timeout=30s"])?;
    for _ in 0..2 {
        let mut attached = kubectl
            .command()
            .args(["attach", "ticker"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let out = BufReader::new(attached.stdout.take().context("kubectl's output")?);
        let err = BufReader::new(attached.stderr.take().context("kubectl's errors")?);
        // kubectl has something to say first.
        let theirs = |line: &std::io::Result<String>| line.as_ref().map_or(true, |line| line == "err");
        let heard = out.lines().next().zip(err.lines().find(theirs));
        attached.kill()?;
        attached.wait()?;
        let (out, err) = heard.context("the container's output")?;
        assert_eq!((out?.as_str(), err?.as_str()), ("out", "err"));
    }
    wait_for(fixture, "ticker", "{.status.containerStatuses[0].restartCount}", "0").await?;
    kubectl.run(&["delete", "pod", "ticker", "--wait=false"]).map(drop)
}

/// `kubectl run -i`: what is typed goes in, its end is the input's end, and the exit code comes back.
fn attach_with_input(fixture: &Fixture) -> anyhow::Result<()> {
    let image = format!("--image={BUSYBOX}");
    let script = "read line; echo got $line; cat; echo sorry >&2; exit 5";
    let run = [
        "run",
        "filter",
        &image,
        "--image-pull-policy=Never",
        "--restart=Never",
        "-i",
        "--rm",
        "--quiet",
    ];
    let command = ["--command", "--", "sh", "-c", script];
    let printed = fixture.kubectl.attempt(&[&run[..], &command].concat(), "one\ntwo\n")?;
    assert!(printed.stdout.starts_with("got one\ntwo\n"), "{printed:?}");
    assert!(!printed.success && printed.stderr.contains("sorry\n"), "{printed:?}");
    assert!(
        printed.stderr.contains("pod default/filter terminated (Error)"),
        "{printed:?}"
    );
    let left = fixture.kubectl.run(&["get", "pod", "filter", "--ignore-not-found"])?;
    assert_eq!(left, "");
    Ok(())
}

/// A terminal of the test's own, with `kubectl attach -it` at it.
struct Terminal {
    kubectl: Child,
    device: PathBuf,
    keys: File,
    /// All that it has shown.
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn attach(fixture: &Fixture, pod: &str, (rows, columns): (u16, u16)) -> anyhow::Result<Self> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).context("a terminal")?;
        let device = std::fs::read_link(format!("/proc/self/fd/{}", pair.slave.as_raw_fd()))?;
        let plain = fixture.kubectl.command();
        // A change of its size is told to those whose controlling terminal it is.
        let kubectl = Command::new("setsid")
            .arg("--ctty")
            .arg(plain.get_program())
            .args(plain.get_args())
            .args(["attach", "-it", pod])
            .stdin(pair.slave.try_clone()?)
            .stdout(pair.slave.try_clone()?)
            .stderr(pair.slave)
            .spawn()
            .context("run kubectl")?;
        let keys = File::from(pair.master);
        let (mut screen, shown) = (keys.try_clone()?, Arc::<Mutex<String>>::default());
        let show = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            // An error is the end: nobody has the terminal open any more.
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                show.lock().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Ok(Self {
            kubectl,
            device,
            keys,
            shown,
        })
    }

    fn types(&mut self, line: &str) -> anyhow::Result<()> {
        self.keys
            .write_all(format!("{line}\r").as_bytes())
            .context("the terminal")
    }

    /// Waits until the terminal in the container has this size.
    async fn is_as_large_there(&mut self, (rows, columns): (u16, u16)) -> anyhow::Result<()> {
        // What is typed is shown too: the answer differs from it.
        let look = format!(
            "until [ \"$(stty size)\" = '{rows} {columns}' ]; do usleep 20000; done; echo is''{rows}x{columns}"
        );
        self.types(&look)?;
        let (shown, wanted) = (Arc::clone(&self.shown), format!("is{rows}x{columns}"));
        let screen = async || Ok(shown.lock().clone());
        until(&wanted, LIMIT, screen, |text| text.contains(&wanted))
            .await
            .map(drop)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.kubectl.kill().ok();
        self.kubectl.wait().ok();
    }
}

/// A terminal: its size there is its size here, also when that changes; the end of its shell is the end of kubectl.
async fn attach_a_terminal(fixture: &Fixture) -> anyhow::Result<()> {
    let kubectl = &fixture.kubectl;
    kubectl.apply(&pod("shell", "command: [sh], stdin: true, tty: true"))?;
    kubectl.run(&["wait", "pod/shell", "--for=condition=Ready", "--timeout=30s"])?;
    let mut terminal = Terminal::attach(fixture, "shell", (33, 111))?;
    terminal.is_as_large_there((33, 111)).await?;
    let resized = Command::new("stty")
        .arg("--file")
        .arg(&terminal.device)
        .args(["rows", "44", "columns", "122"])
        .status()?;
    assert!(resized.success());
    terminal.is_as_large_there((44, 122)).await?;
    terminal.types("exit")?;
    let ended = async || Ok(terminal.kubectl.try_wait()?);
    let ended = until("the end of kubectl attach", LIMIT, ended, Option::is_some).await?;
    assert!(
        ended.is_some_and(|status| status.success()),
        "{}",
        terminal.shown.lock()
    );
    wait_for(fixture, "shell", "{.status.containerStatuses[0].restartCount}", "1").await?;
    kubectl.run(&["delete", "pod", "shell", "--wait=false"]).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_sees_its_configuration_secrets_token_and_itself() -> anyhow::Result<()> {
    on_cluster(1, async |fixture| {
    let kubectl = &fixture.kubectl;
    kubectl.run(&["create", "configmap", "settings", "--from-literal=colour=green"])?;
    kubectl.run(&["create", "secret", "generic", "hidden", "--from-literal=key=s3cret"])?;
    let manifest = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: curious, labels: {{app: curious}}}}
spec:
  terminationGracePeriodSeconds: 0
  hostAliases: [{{ip: 10.1.2.3, hostnames: [friend]}}]
  initContainers:
  - {{name: first, image: {BUSYBOX}, imagePullPolicy: Never, command: [sh, -c, "echo init > /shared/made"], volumeMounts: [{{name: shared, mountPath: /shared}}]}}
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [sleep, "3600"]
    env:
    - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}
    - {{name: KEY, valueFrom: {{secretKeyRef: {{name: hidden, key: key}}}}}}
    - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
    - {{name: SENTENCE, value: "$(COLOUR) on $(NODE)"}}
    volumeMounts:
    - {{name: shared, mountPath: /shared}}
    - {{name: settings, mountPath: /settings}}
    - {{name: hidden, mountPath: /hidden}}
    - {{name: host, mountPath: /host}}
    resources: {{limits: {{cpu: 100m, memory: 64Mi}}}}
  volumes:
  - {{name: shared, emptyDir: {{}}}}
  - {{name: settings, configMap: {{name: settings}}}}
  - {{name: hidden, secret: {{secretName: hidden, defaultMode: 256}}}}
  - {{name: host, hostPath: {{path: /proc/version, type: File}}}}
"#
    );
    kubectl.apply(&manifest)?;
    kubectl.run(&["wait", "pod/curious", "--for=condition=Ready", "--timeout=30s"])?;
    let inside = |script: &str| kubectl.run(&["exec", "curious", "--", "sh", "-c", script]);
    assert_eq!(inside("echo $SENTENCE $KEY")?, "green on node-1 s3cret\n");
    assert_eq!(
        inside("cat /shared/made /settings/colour /hidden/key")?,
        "init\ngreens3cret"
    );
    assert_eq!(inside("stat -L -c %a /hidden/key")?, "400\n");
    assert!(inside("cat /host")?.contains("Linux"));
    assert!(inside("cat /etc/hosts")?.contains("10.1.2.3\tfriend"));
    assert!(inside("cat /etc/resolv.conf")?.contains("default.svc.cluster.local"));
    assert_eq!(inside("hostname")?, "curious\n");
    let token = inside("cat /var/run/secrets/kubernetes.io/serviceaccount/token")?;
    assert_eq!(token.split('.').count(), 3, "a token: {token}");
    assert!(inside("cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt")?.contains("BEGIN CERTIFICATE"));
    // Without the administrator's certificate: by the token alone.
        let layout = fixture.cluster.layout();
        let kubeconfig = layout.admin_kubeconfig();
        let server = kubectl.run(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
        let authority = layout.pki().join("ca.crt");
        let output = std::process::Command::new("kubectl")
            .args(["--kubeconfig", "/dev/null", "--server", &server, "--token", token.trim(), "auth", "whoami"])
            .arg("--certificate-authority")
            .arg(authority)
            .arg("--cache-dir")
            .arg(kubeconfig.with_extension("token-cache"))
            .output()?;
        let who = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(who.contains("system:serviceaccount:default:default"), "{who}");

    kubectl.run(&["patch", "configmap", "settings", "-p", r#"{"data":{"colour":"blue"}}"#])?;
    until(
        "the changed ConfigMap reaches the pod",
        LIMIT,
        async || inside("cat /settings/colour"),
        |seen| seen == "blue",
    )
    .await?;
    Ok(())    })
    .await
}

/// Upstream's clients and the runtimes of later Debians, from one end of each stream to the other.
const STREAMS: &str = "logs_exec_attach_and_port_forward_reach_a_container";

#[test]
fn streams_of_debian_13s_containerd() {
    TRIXIE.run(&[STREAMS]);
}

#[test]
fn streams_of_the_next_debians_containerd() {
    FORKY.run(&[STREAMS]);
}
