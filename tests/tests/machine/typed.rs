//! Commands as a person types them, and what they print.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use skiff_machine::{Service, ServiceManager as _};
use skiff_tests::machine::TestMachine;
use skiff_tests::wait::until;

const LIMIT: Duration = Duration::from_secs(20);

/// What a command prints that succeeds.
fn ok(machine: &TestMachine, arguments: &[&str]) -> anyhow::Result<String> {
    let output = machine.skiff(arguments)?;
    let told = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "skiff {}: {told}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a command says that fails.
fn refused(machine: &TestMachine, arguments: &[&str]) -> anyhow::Result<String> {
    let output = machine.skiff(arguments)?;
    anyhow::ensure!(!output.status.success(), "skiff {} succeeds", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn json(machine: &TestMachine, arguments: &[&str]) -> anyhow::Result<Value> {
    let printed = ok(machine, &[arguments, &["--output", "json"]].concat())?;
    serde_json::from_str(&printed).with_context(|| printed.clone())
}

/// `init` or `join` with `--dry-run`, which tells what it would write.
pub(crate) fn dry_run(machine: &TestMachine, arguments: &[&str], wanted: &str) -> anyhow::Result<()> {
    let flags = machine.typed_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let typed = [arguments, &flags, &["--dry-run"]].concat();
    let told = ok(machine, &typed)?;
    let file = "[dryrun] Would write \"/etc/skiff/kubelet.yaml\" with:";
    anyhow::ensure!(told.contains(file) && told.contains(wanted), "{told}");
    for step in [
        "write \"/etc/kubernetes/proxy.conf\"",
        "start skiff-kubelet, now and at every boot",
    ] {
        anyhow::ensure!(told.contains(&format!("[dryrun] Would {step}")), "{step}: {told}");
    }
    let plan = json(machine, &typed)?;
    let steps = plan["steps"].as_array().into_iter().flatten().filter_map(Value::as_str);
    anyhow::ensure!(
        steps.clone().any(|step| step.starts_with("start skiff-proxy")),
        "{plan:#}"
    );
    let files = plan["files"].as_array().into_iter().flatten();
    let paths: Vec<_> = files.filter_map(|file| file["path"].as_str()).collect();
    anyhow::ensure!(paths.contains(&"/etc/skiff/proxy.yaml"), "{plan:#}");
    assert_eq!(plan["node"], *machine.node.name);
    Ok(())
}

/// `skiff token`, as a person types it.
pub(crate) fn tokens(master: &TestMachine) -> anyhow::Result<()> {
    let ok = |arguments: &[&str]| ok(master, arguments);
    let line = ok(&[
        "token",
        "create",
        "--ttl",
        "1h",
        "--print-join-command",
        "--description",
        "mine",
    ])?;
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..4], ["skiff", "join", "172.30.0.11:6443", "--token"], "{line}");
    let token = words[4];
    assert!(words[6].starts_with("sha256:"), "{line}");
    let listed: serde_json::Value = serde_json::from_str(&ok(&["token", "list", "--output", "json"])?)?;
    let mut listed = listed.as_array().into_iter().flatten();
    let found = listed.find(|found| found["token"] == token).context("not listed")?;
    assert_eq!(found["description"], "mine");
    let table = ok(&["token", "list"])?;
    let shown = table.lines().find(|line| line.contains(token)).unwrap_or_default();
    assert!(shown.contains("59m") || shown.contains("1h"), "{table}");
    let twice = refused(master, &["token", "create", token, "--ttl", "0"])?;
    let id = token.split('.').next().unwrap_or_default();
    assert!(
        twice.contains(&format!("a token with id {id:?} already exists")),
        "{twice}"
    );
    ok(&["token", "delete", token])?;
    assert!(!ok(&["token", "list"])?.contains(token));
    let again = refused(master, &["token", "delete", token])?;
    assert!(again.contains("there is no bootstrap token"), "{again}");
    Ok(())
}

/// `skiff certs`.
pub(crate) async fn certificates(master: &TestMachine) -> anyhow::Result<()> {
    const NAMES: [&str; 7] = [
        "admin.conf",
        "super-admin.conf",
        "proxy.conf",
        "ingress.conf",
        "apiserver",
        "apiserver-kubelet-client",
        "front-proxy-client",
    ];
    let table = ok(master, &["certs", "check-expiration"])?;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    for name in NAMES.into_iter().chain(["ca", "front-proxy-ca"]) {
        let row = rows.iter().find(|row| row.first() == Some(&name)).context(name)?;
        // A year and ten years; the last column says that the key is here.
        let days = if name.ends_with("ca") { "3649d" } else { "364d" };
        anyhow::ensure!(row.contains(&days) && row.last() == Some(&"no"), "{row:?}");
    }
    let told = json(master, &["certs", "check-expiration"])?;
    let certificates = told["certificates"].as_array().into_iter().flatten();
    let names: Vec<_> = certificates.filter_map(|found| found["name"].as_str()).collect();
    assert_eq!(names, NAMES);
    assert_eq!(told["certificateAuthorities"][0]["name"], "ca");

    let shown = || {
        let files = ["apiserver.crt", "apiserver-kubelet-client.crt"].map(|name| master.layout.pki().join(name));
        let [server, client] = files.map(std::fs::read);
        anyhow::Ok((server?, client?, std::fs::read(master.layout.kubeconfig("admin"))?))
    };
    let before = shown()?;
    let told = ok(master, &["certs", "renew", "apiserver"])?;
    assert_eq!(told, "certificate apiserver renewed\n");
    let one = shown()?;
    assert!(one.0 != before.0 && one.1 == before.1 && one.2 == before.2);
    let told = json(master, &["certs", "renew", "all"])?;
    assert_eq!(told["renewed"], serde_json::json!(NAMES));
    let all = shown()?;
    assert!(all.0 != one.0 && all.1 != one.1 && all.2 != one.2);
    let told = refused(master, &["certs", "renew", "apisever"])?;
    anyhow::ensure!(told.contains("front-proxy-client, and `all`"), "{told}");

    // All of it is used.
    master.services.reload(Service::Server)?;
    let serial = || {
        let show = format!(
            "openssl s_client -connect {}:6443 </dev/null | openssl x509",
            master.node.address
        );
        let output = master.output(std::process::Command::new("sh").args(["-c", &show]))?;
        anyhow::Ok(
            String::from_utf8_lossy(&output.stdout)
                .split_whitespace()
                .collect::<String>(),
        )
    };
    let wanted: String = String::from_utf8(all.0)?.split_whitespace().collect();
    let look = async || serial();
    until("the server shows it", LIMIT, look, |shown| *shown == wanted).await?;
    master.kubectl(&["get", "nodes"]).map(drop)
}

/// `skiff check`.
pub(crate) fn check(master: &TestMachine) -> anyhow::Result<()> {
    // The disk is that of the machine that runs the tests.
    let failed = |told: &str| {
        let lines = told
            .lines()
            .filter(|line| line.starts_with("[-] ") && !line.starts_with("[-] DiskSpace"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let told = |arguments: &[&str]| {
        let output = master.skiff(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        anyhow::Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            errors,
        ))
    };
    let (_, well, _) = told(&["check"])?;
    assert_eq!(failed(&well), [""; 0]);
    for line in [
        "[+] certificates: all 10 are valid for more than 30 days",
        "[+] skiff-server: runs",
        "[+] API server: is ready",
    ] {
        anyhow::ensure!(well.lines().any(|told| told == line), "{line}: {well}");
    }

    master.services.stop(Service::Ingress)?;
    let (success, ill, errors) = told(&["check"])?;
    assert_eq!(
        failed(&ill),
        ["[-] skiff-ingress: is stopped; start it: systemctl start skiff-ingress"]
    );
    anyhow::ensure!(!success && errors.contains("parts do not work"), "{errors}");
    let (success, ill, _) = told(&["check", "--output", "json"])?;
    let parts: Vec<Value> = serde_json::from_str(&ill).with_context(|| ill.clone())?;
    let part = parts
        .iter()
        .find(|part| part["name"] == "skiff-ingress")
        .context("skiff-ingress")?;
    anyhow::ensure!(!success && part["health"] == "failed", "{part}");
    Ok(())
}
