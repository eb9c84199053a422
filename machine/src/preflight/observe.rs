//! Looks at the machine for the preflight checks. Nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use skiff_api::config::EtcdConfiguration;
use skiff_cri::{Client, Error as CriError};

use super::{Facts, Firewall, Runtime};
use crate::Machine;
use crate::init::Node;
use crate::record::Role;
use crate::services::{Service, State};

/// Programs that skiff's processes run.
const PROGRAMS: [(&str, &str); 5] = [
    ("iptables-restore", "iptables"),
    ("iptables-save", "iptables"),
    ("conntrack", "conntrack"),
    ("mount", "mount"),
    ("runc", "runc"),
];
/// Controllers that pods' limits need; version 1 names the last one differently.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// How long a runtime may take to answer.
const RUNTIME_WITHIN: Duration = Duration::from_secs(5);

/// Looks at everything; `begun` is the node to be, whose addons are still to find their ports free.
pub(crate) async fn observe(
    machine: &Machine<'_>,
    role: Role,
    node: &str,
    endpoint: &str,
    api_port: u16,
    swap_allowed: bool,
    begun: Option<&Node>,
) -> Facts {
    Facts {
        role,
        node: node.to_owned(),
        root: rustix::process::geteuid().is_root(),
        services: machine.services.check(),
        endpoint: endpoint.to_owned(),
        runtime: runtime(endpoint).await,
        missing_programs: PROGRAMS
            .into_iter()
            .filter(|(program, _)| !is_installed(program))
            .collect(),
        taken_ports: taken_ports(machine, role, api_port),
        taken_addon_ports: begun.map_or_else(Vec::new, |node| taken(machine, addon_ports(role, node))),
        missing_controllers: missing_controllers(),
        swap: swap(&fs::read_to_string("/proc/swaps").unwrap_or_default()),
        swap_allowed,
        missing_features: super::mend::missing_features(),
        memory: memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        disks: disks(&[machine.layout.kubelet(), machine.layout.data()]),
        firewalls: firewalls(machine),
        api_port,
        name_resolves: (node, 0)
            .to_socket_addrs()
            .is_ok_and(|mut found| found.next().is_some()),
        year: (machine.now)().to_zoned(jiff::tz::TimeZone::UTC).year(),
        clock_synchronized: machine.services.clock_is_synchronized(),
        etcd_files: BTreeMap::new(),
    }
}

/// Files of etcd that the server is to read, and where links lead to in the end; `None` where nothing is.
pub(crate) fn etcd_files(etcd: Option<&EtcdConfiguration>) -> BTreeMap<PathBuf, Option<PathBuf>> {
    let named = etcd.into_iter().flat_map(crate::config::etcd::files);
    named.map(|path| (path.clone(), fs::canonicalize(path).ok())).collect()
}

async fn runtime(endpoint: &str) -> Runtime {
    let client = Client::new(endpoint).with_timeout(RUNTIME_WITHIN);
    // containerd loads its plugins after it opens its socket: just after its start it is not ready yet.
    match client.wait_until_ready(RUNTIME_WITHIN).await {
        Ok(status) => match status.runtime_ready() {
            Some(condition) if !condition.status => Runtime::NotReady(condition.message.clone()),
            _ => Runtime::Ready,
        },
        Err(CriError::Unreachable { .. }) => Runtime::Unreachable,
        Err(CriError::Unimplemented { .. }) => Runtime::NoCri,
        Err(error) => Runtime::Failed(skiff_daemon::error_chain(&error)),
    }
}

fn is_installed(program: &str) -> bool {
    // A shell of another user may lack the directories of administration.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = [
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
        "/usr/local/sbin",
        "/usr/local/bin",
    ]
    .map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(usual)
        .any(|directory| directory.join(program).is_file())
}

/// Ports that somebody else holds: those of our own services, running from a former run, do not count.
fn taken_ports(machine: &Machine<'_>, role: Role, api_port: u16) -> Vec<(u16, &'static str)> {
    let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let mut wanted = vec![
        (everywhere(10250), "the kubelet", Service::Kubelet),
        (everywhere(10248), "the kubelet's health check", Service::Kubelet),
        (everywhere(10256), "the proxy's health check", Service::Proxy),
    ];
    if role == Role::ControlPlane {
        wanted.insert(0, (everywhere(api_port), "the API server", Service::Server));
    }
    taken(machine, wanted)
}

/// Where a service listens, and what for.
type Wanted = (SocketAddr, &'static str, Service);

/// What a cluster can begin without: where somebody else listens there, only that part does not work.
fn addon_ports(role: Role, node: &Node) -> Vec<Wanted> {
    let mut wanted = Vec::new();
    if role == Role::ControlPlane {
        // At this address alone: a resolver of the machine's own listens at loopback.
        wanted.push(((node.address, 53).into(), "cluster DNS", Service::Server));
    }
    if node.ingress {
        let ports = [80, 443].map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
        wanted.extend(ports.map(|address| (address, "the ingress controller", Service::Ingress)));
    }
    if node.proxy {
        let address = (Ipv4Addr::LOCALHOST, 10249).into();
        wanted.push((address, "the proxy's metrics", Service::Proxy));
    }
    wanted
}

fn taken(machine: &Machine<'_>, wanted: Vec<Wanted>) -> Vec<(u16, &'static str)> {
    let ours = |service| {
        let state = machine.services.state(service);
        state.is_ok_and(|state| matches!(state, State::Running | State::Starting))
    };
    let taken = wanted
        .into_iter()
        .filter(|(address, _, service)| !ours(*service) && is_taken(*address));
    taken.map(|(address, what, _)| (address.port(), what)).collect()
}

fn is_taken(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

fn missing_controllers() -> Vec<&'static str> {
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    // Version 1 lists all, with a last column that says whether one is enabled.
    let enabled: Vec<String> = match unified {
        Ok(text) => text.split_whitespace().map(str::to_owned).collect(),
        Err(_) => enabled_controllers(&fs::read_to_string("/proc/cgroups").unwrap_or_default()),
    };
    CONTROLLERS
        .into_iter()
        .filter(|wanted| !enabled.iter().any(|found| found == wanted))
        .collect()
}

fn enabled_controllers(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let enabled = lines.filter_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.nth(2)? == "1").then(|| name.to_owned())
    });
    enabled.collect()
}

fn swap(text: &str) -> Vec<String> {
    let devices = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    // A swap in compressed memory is none that the kubelet would mind.
    devices
        .filter(|device| !device.starts_with("/dev/zram"))
        .map(str::to_owned)
        .collect()
}

fn memory(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    // What is not told is taken for granted.
    kilobytes.map_or(u64::MAX, |kilobytes| kilobytes << 10)
}

/// Free and whole size, in bytes, of what holds each directory, or its first parent that is there.
fn disks(directories: &[PathBuf]) -> BTreeMap<PathBuf, (u64, u64)> {
    let sizes = directories.iter().filter_map(|directory| {
        let there = directory.ancestors().find(|directory| directory.exists())?;
        let found = rustix::fs::statvfs(there).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some((there.to_owned(), (bytes(found.f_bavail), bytes(found.f_blocks))))
    });
    sizes.collect()
}

fn firewalls(machine: &Machine<'_>) -> Vec<Firewall> {
    if !machine.layout.is_whole_machine() {
        return Vec::new();
    }
    let ufw =
        fs::read_to_string("/etc/ufw/ufw.conf").is_ok_and(|text| text.lines().any(|line| line.trim() == "ENABLED=yes"));
    let mut found = Vec::new();
    if ufw {
        found.push(Firewall::Ufw);
    }
    let mut question = Command::new("systemctl");
    question
        .args(["is-active", "--quiet", "firewalld.service"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if Path::new("/run/systemd/system").is_dir() && question.status().is_ok_and(|status| status.success()) {
        found.push(Firewall::Firewalld);
    }
    found
}

/// Whether a kubelet's configuration lets swap be: upstream's default is that it does not.
pub(crate) fn swap_allowed(kubelet: &serde_json::Value) -> bool {
    kubelet["failSwapOn"] == false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes() {
        assert_eq!(
            swap("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n/dev/zram0 partition 1 0 5\n"),
            ["/dev/sda2"]
        );
        assert_eq!(memory("MemTotal:        1024 kB\n"), 1 << 20);
        assert_eq!(memory("nothing"), u64::MAX);
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t3\t1\t1\nmemory\t0\t1\t0\n";
        assert_eq!(enabled_controllers(text), ["cpu"]);
    }

    #[test]
    fn swap_is_allowed_only_in_so_many_words() {
        use serde_json::json;
        assert!(swap_allowed(&json!({"failSwapOn": false})));
        assert!(!swap_allowed(&json!({"failSwapOn": true})) && !swap_allowed(&json!({})));
    }

    #[test]
    fn a_taken_port_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Who wants it everywhere, and who wants it here; but not who wants it elsewhere.
        let [everywhere, elsewhere] = [[0, 0, 0, 0], [127, 0, 0, 53]].map(|ip| SocketAddr::from((ip, address.port())));
        assert!(is_taken(address) && is_taken(everywhere) && !is_taken(elsewhere));
        drop(listener);
        assert!(!is_taken(address));
    }

    #[test]
    fn addons_are_asked_for_where_they_are_to_run() {
        let node = |ingress: bool, proxy: bool| Node {
            ingress,
            proxy,
            ..Node::for_test("n", "10.0.0.1")
        };
        let cases = [
            (
                Role::ControlPlane,
                node(true, true),
                "10.0.0.1:53 0.0.0.0:80 0.0.0.0:443 127.0.0.1:10249",
            ),
            (Role::ControlPlane, node(false, false), "10.0.0.1:53"),
            (Role::Worker, node(false, true), "127.0.0.1:10249"),
        ];
        for (role, node, wanted) in cases {
            let asked: Vec<_> = (addon_ports(role, &node).iter())
                .map(|(address, ..)| address.to_string())
                .collect();
            assert_eq!(asked.join(" "), wanted);
        }
    }

    #[test]
    fn a_directory_that_is_not_there_yet_lies_on_its_parents_disk() {
        let directory = tempfile::tempdir().unwrap();
        let found = disks(&[directory.path().join("a/b/c")]);
        assert_eq!(found.keys().collect::<Vec<_>>(), [directory.path()]);
    }
}
