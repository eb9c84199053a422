//! Checks before anything is changed. [`judge`] is pure; [`observe`](observe::observe) looks, [`mend`] sets what can simply be set.
//!
//! A check has kubeadm's name where kubeadm has it, so that `--ignore-preflight-errors` takes what people write already.

pub(crate) mod mend;
pub(crate) mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::record::Role;

pub(crate) use observe::observe;

/// kubeadm's name of the check that swap is off.
pub(crate) const SWAP: &str = "Swap";

/// Less than this and nothing useful runs, in bytes.
const MEMORY_NEEDED: u64 = 256 << 20;
/// Less than this and the disk is full before the first image is there, in bytes.
const DISK_NEEDED: u64 = 512 << 20;
/// Directories of which the server's unit has others, or none: `PrivateTmp` and `ProtectHome` see to that.
const HIDDEN: [&str; 5] = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];
/// Below this the kubelet soon says DiskPressure (it begins at 10 %).
const DISK_WISHED_PERCENT: u64 = 15;

/// What a container runtime is like.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Runtime {
    /// It answers, and can run containers.
    Ready,
    /// It answers, and says what is wrong.
    NotReady(String),
    /// Nobody answers at its socket.
    Unreachable,
    /// It answers, but does not serve CRI.
    NoCri,
    /// Anything else.
    Failed(String),
}

/// What a machine is like, as far as a node depends on it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What it is to become.
    pub role: Role,
    /// Its name in the cluster.
    pub node: String,
    /// Whether the command runs as root.
    pub root: bool,
    /// What the service manager lacks.
    pub services: Result<(), String>,
    /// The container runtime's socket, and how it answers.
    pub endpoint: String,
    /// How the runtime answers.
    pub runtime: Runtime,
    /// Programs that are needed and not there, with Debian's package.
    pub missing_programs: Vec<(&'static str, &'static str)>,
    /// TCP ports that are needed and taken, and what for; not those that our own services hold.
    pub taken_ports: Vec<(u16, &'static str)>,
    /// The same of what a cluster can begin without.
    pub taken_addon_ports: Vec<(u16, &'static str)>,
    /// Controllers of cgroups that are needed and not there.
    pub missing_controllers: Vec<&'static str>,
    /// Swap devices in use.
    pub swap: Vec<String>,
    /// Whether the kubelets' configuration lets swap be.
    pub swap_allowed: bool,
    /// Kernel features that are needed, not there, and cannot be loaded.
    pub missing_features: Vec<&'static str>,
    /// Memory of the machine, in bytes.
    pub memory: u64,
    /// Free and whole size of the file systems that hold these directories, in bytes.
    pub disks: BTreeMap<PathBuf, (u64, u64)>,
    /// Firewalls that are active.
    pub firewalls: Vec<Firewall>,
    /// The API server's port, where it is to be one.
    pub api_port: u16,
    /// Whether the host's name can be resolved to an address.
    pub name_resolves: bool,
    /// The year that the clock shows.
    pub year: i16,
    /// Whether the clock follows others' clocks; `None` when nobody knows.
    pub clock_synchronized: Option<bool>,
    /// Files of etcd that the server is to read, and where they really are; `None` where nothing is.
    pub etcd_files: BTreeMap<PathBuf, Option<PathBuf>>,
}

/// A program that filters packets beside us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Firewall {
    /// `ufw`.
    Ufw,
    /// `firewalld`.
    Firewalld,
}

/// Whether a finding stops the command.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Level {
    /// It does.
    Error,
    /// It is only told.
    Warning,
}

/// What a check found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The check's name: what `--ignore-preflight-errors` takes.
    pub check: String,
    /// Whether it stops the command.
    pub level: Level,
    /// What is wrong and what to do.
    pub text: String,
}

/// The findings that stop a command.
#[derive(Debug)]
pub struct Failed(pub Vec<Finding>);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "ERROR",
            Level::Warning => "WARNING",
        };
        write!(f, "[{level} {}]: {}", self.check, self.text)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[preflight] Some fatal errors occurred:")?;
        for finding in &self.0 {
            writeln!(f, "\t{finding}")?;
        }
        write!(
            f,
            "[preflight] Nothing was changed. A check can be made non-fatal with `--ignore-preflight-errors={}`",
            self.0.first().map_or("NAME", |finding| &finding.check)
        )
    }
}

/// What is wrong with a machine; errors first. Those named in `ignore` (in small letters, or `all`) are warnings.
pub fn judge(facts: &Facts, ignore: &BTreeSet<String>) -> Vec<Finding> {
    let mut findings = Findings::default();
    if !facts.root {
        findings.error("IsPrivilegedUser", crate::Error::NotRoot.to_string());
    }
    judge_software(facts, &mut findings);
    judge_kernel(facts, &mut findings);
    judge_surroundings(facts, &mut findings);
    judge_etcd_files(facts, &mut findings);
    let mut findings = findings.0;
    for finding in &mut findings {
        if ignore.contains("all") || ignore.contains(&finding.check.to_lowercase()) {
            finding.level = Level::Warning;
        }
    }
    findings.sort_by_key(|finding| finding.level);
    findings
}

fn judge_software(facts: &Facts, findings: &mut Findings) {
    if let Err(missing) = &facts.services {
        findings.error("Systemd", missing.as_str());
    }
    for (program, package) in &facts.missing_programs {
        let text = format!("{program} is not installed; on Debian: apt-get install {package}");
        findings.error(format!("FileExisting-{program}"), text);
    }
    let endpoint = &facts.endpoint;
    match &facts.runtime {
        Runtime::Ready => {}
        Runtime::Unreachable => findings.error(
            "CRI",
            format!("no container runtime answers at {endpoint}; install and start one (apt-get install containerd; systemctl enable --now containerd), or name another socket with --cri-socket"),
        ),
        Runtime::NoCri => findings.error(
            "CRI",
            format!("the container runtime at {endpoint} does not serve CRI: remove \"cri\" from disabled_plugins in /etc/containerd/config.toml (Docker's package containerd.io comes so; `containerd config default > /etc/containerd/config.toml` makes a whole one), then: systemctl restart containerd"),
        ),
        Runtime::NotReady(reason) => findings.error(
            "CRI",
            format!("the container runtime at {endpoint} cannot run containers: {reason}; see: journalctl -u containerd"),
        ),
        Runtime::Failed(reason) => findings.error("CRI", format!("the container runtime at {endpoint}: {reason}")),
    }
}

fn judge_kernel(facts: &Facts, findings: &mut Findings) {
    for controller in &facts.missing_controllers {
        findings.error(
            "SystemVerification",
            format!("the kernel offers no cgroup controller {controller}; on a Raspberry Pi add `cgroup_enable={controller}` to the kernel's command line, elsewhere check cgroup_disable there"),
        );
    }
    for feature in &facts.missing_features {
        findings.error(
            format!("KernelFeature-{feature}"),
            format!("the kernel has no {feature} and `modprobe {feature}` does not bring it; install the distribution's full kernel (linux-image-amd64, not a cloud or minimal one)"),
        );
    }
    if !facts.swap.is_empty() && !facts.swap_allowed {
        let devices = facts.swap.join(", ");
        findings.error(
            SWAP,
            format!("swap is on ({devices}), and the kubelet does not start with it; run `swapoff -a` and take the line out of /etc/fstab, or give --config with a KubeletConfiguration that has `failSwapOn: false`"),
        );
    }
    if facts.memory < MEMORY_NEEDED {
        let (has, needs) = (facts.memory >> 20, MEMORY_NEEDED >> 20);
        findings.error(
            "Mem",
            format!("the system RAM ({has} MB) is less than the minimum {needs} MB"),
        );
    }
}

fn judge_surroundings(facts: &Facts, findings: &mut Findings) {
    for (port, what) in &facts.taken_ports {
        findings.error(
            format!("Port-{port}"),
            format!("Port {port} is in use, and {what} needs it; `ss -lntp sport = :{port}` shows by whom. If a cluster runs here already: skiff reset"),
        );
    }
    for (port, what) in &facts.taken_addon_ports {
        findings.warning(
            format!("Port-{port}"),
            format!("Port {port} is in use, and {what} needs it: that does not work before it is free; `ss -lntp sport = :{port}` shows by whom"),
        );
    }
    for (directory, (free, whole)) in &facts.disks {
        let directory = directory.display();
        if *free < DISK_NEEDED {
            let (has, needs) = (free >> 20, DISK_NEEDED >> 20);
            findings.error(
                "DiskSpace",
                format!("{directory} has {has} MB free, {needs} MB are needed; make room there (df -h)"),
            );
        } else if free.saturating_mul(100) < whole.saturating_mul(DISK_WISHED_PERCENT) {
            findings.warning(
                "DiskSpace",
                format!("less than {DISK_WISHED_PERCENT} % of {directory} is free: below 10 % the node turns pods away (DiskPressure)"),
            );
        }
    }
    if !crate::config::is_host_name(&facts.node) || facts.node == "localhost" {
        findings.error(
            "Hostname",
            format!("the host's name {:?} cannot name a node; set another (hostnamectl set-hostname NAME), or give --node-name", facts.node),
        );
    } else if !facts.name_resolves {
        findings.warning(
            "Hostname",
            format!(
                "hostname {:?} could not be reached: it stands neither in /etc/hosts nor in DNS",
                facts.node
            ),
        );
    }
    if facts.year < 2026 {
        findings.error(
            "Clock",
            format!(
                "the clock shows the year {}, so that no certificate would be valid; set it (timedatectl set-ntp true)",
                facts.year
            ),
        );
    } else if facts.clock_synchronized == Some(false) {
        findings.warning(
            "Clock",
            "the clock follows no other: certificates fail where clocks differ by minutes; on Debian: apt-get install systemd-timesyncd, or see: timedatectl",
        );
    }
    for firewall in &facts.firewalls {
        findings.warning("Firewall", firewall_advice(*firewall, facts.role, facts.api_port));
    }
}

fn judge_etcd_files(facts: &Facts, findings: &mut Findings) {
    const REMEDY: &str = "put it below /etc/kubernetes/pki/etcd, and name that";
    for (path, real) in &facts.etcd_files {
        let is_hidden = |path: &PathBuf| HIDDEN.iter().any(|hidden| path.starts_with(hidden));
        let text = match real {
            None => format!("there is no file {}, which etcd's flags name", path.display()),
            Some(real) if is_hidden(path) || is_hidden(real) => format!(
                "skiff-server cannot read {}: its unit is kept from people's and temporary directories ({}); {REMEDY}",
                path.display(),
                HIDDEN.join(", ")
            ),
            Some(_) => continue,
        };
        findings.error("EtcdFiles", text);
    }
}

/// The rules that a firewall needs for a node to work, ready to be typed.
fn firewall_advice(firewall: Firewall, role: Role, api_port: u16) -> String {
    let mut ports = ["10250/tcp", "8472/udp"].map(str::to_owned).to_vec();
    if role == Role::ControlPlane {
        ports.insert(0, format!("{api_port}/tcp"));
        // Cluster DNS, for other machines' pods.
        ports.extend(["53/udp", "53/tcp"].map(str::to_owned));
    }
    let rules: Vec<String> = match firewall {
        Firewall::Ufw => {
            let open = ports.iter().map(|port| format!("ufw allow {port}"));
            let pods = ["ufw default allow routed", "ufw allow in on cni0"].map(str::to_owned);
            open.chain(pods).collect()
        }
        Firewall::Firewalld => {
            let open = ports
                .iter()
                .map(|port| format!("firewall-cmd --permanent --add-port={port}"));
            let pods = ["--zone=trusted --add-interface=cni0", "--reload"];
            let pods = pods.map(|rest| {
                if rest == "--reload" {
                    format!("firewall-cmd {rest}")
                } else {
                    format!("firewall-cmd --permanent {rest}")
                }
            });
            open.chain(pods).collect()
        }
    };
    let name = match firewall {
        Firewall::Ufw => "ufw",
        Firewall::Firewalld => "firewalld",
    };
    format!(
        "{name} is active, and without these rules other nodes and pods are cut off: {}",
        rules.join("; ")
    )
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, check: impl Into<String>, text: impl Into<String>) {
        self.0.push(Finding {
            check: check.into(),
            level,
            text: text.into(),
        });
    }

    fn error(&mut self, check: impl Into<String>, text: impl Into<String>) {
        self.add(Level::Error, check, text);
    }

    fn warning(&mut self, check: impl Into<String>, text: impl Into<String>) {
        self.add(Level::Warning, check, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            role: Role::ControlPlane,
            node: "master".to_owned(),
            root: true,
            services: Ok(()),
            endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
            runtime: Runtime::Ready,
            missing_programs: Vec::new(),
            taken_ports: Vec::new(),
            taken_addon_ports: Vec::new(),
            missing_controllers: Vec::new(),
            swap: Vec::new(),
            swap_allowed: false,
            missing_features: Vec::new(),
            memory: 1 << 30,
            disks: BTreeMap::from([("/var/lib".into(), (10 << 30, 20 << 30))]),
            firewalls: Vec::new(),
            api_port: 6443,
            name_resolves: true,
            year: 2026,
            clock_synchronized: Some(true),
            etcd_files: BTreeMap::from([("/etc/etcd/ca.crt".into(), Some("/srv/ca.crt".into()))]),
        }
    }

    #[test]
    fn a_good_machine_has_nothing_to_tell() {
        assert_eq!(judge(&good(), &BTreeSet::new()), []);
    }

    #[test]
    fn each_fault_names_its_remedy() {
        type Spoil = fn(&mut Facts);
        let cases: [(Spoil, &str, Level, &str); 22] = [
            (
                |facts| drop(facts.etcd_files.insert("/etc/absent.crt".into(), None)),
                "EtcdFiles",
                Level::Error,
                "there is no file /etc/absent.crt",
            ),
            (
                |facts| {
                    drop(
                        facts
                            .etcd_files
                            .insert("/root/ca.crt".into(), Some("/srv/ca.crt".into())),
                    )
                },
                "EtcdFiles",
                Level::Error,
                "cannot read /root/ca.crt",
            ),
            (
                |facts| {
                    drop(
                        facts
                            .etcd_files
                            .insert("/etc/ca.crt".into(), Some("/home/me/ca.crt".into())),
                    )
                },
                "EtcdFiles",
                Level::Error,
                "put it below /etc/kubernetes/pki/etcd",
            ),
            (|facts| facts.root = false, "IsPrivilegedUser", Level::Error, "sudo"),
            (
                |facts| facts.services = Err("install the skiff package".to_owned()),
                "Systemd",
                Level::Error,
                "install",
            ),
            (
                |facts| facts.missing_programs.push(("conntrack", "conntrack")),
                "FileExisting-conntrack",
                Level::Error,
                "apt-get install conntrack",
            ),
            (
                |facts| facts.runtime = Runtime::Unreachable,
                "CRI",
                Level::Error,
                "systemctl enable --now containerd",
            ),
            (
                |facts| facts.runtime = Runtime::NoCri,
                "CRI",
                Level::Error,
                "disabled_plugins",
            ),
            (
                |facts| facts.runtime = Runtime::NotReady("no runc".to_owned()),
                "CRI",
                Level::Error,
                "no runc; see: journalctl",
            ),
            (
                |facts| facts.missing_controllers.push("memory"),
                "SystemVerification",
                Level::Error,
                "cgroup_enable=memory",
            ),
            (
                |facts| facts.missing_features.push("br_netfilter"),
                "KernelFeature-br_netfilter",
                Level::Error,
                "full kernel",
            ),
            (
                |facts| facts.swap.push("/dev/sda2".to_owned()),
                "Swap",
                Level::Error,
                "swapoff -a",
            ),
            (|facts| facts.memory = 1, "Mem", Level::Error, "256 MB"),
            (
                |facts| facts.taken_ports.push((6443, "the API server")),
                "Port-6443",
                Level::Error,
                "skiff reset",
            ),
            (
                |facts| facts.taken_addon_ports.push((80, "the ingress controller")),
                "Port-80",
                Level::Warning,
                "ss -lntp sport = :80",
            ),
            (
                |facts| facts.disks = BTreeMap::from([("/x".into(), (1, 1 << 40))]),
                "DiskSpace",
                Level::Error,
                "df -h",
            ),
            (
                |facts| facts.disks = BTreeMap::from([("/x".into(), (1 << 30, 1 << 40))]),
                "DiskSpace",
                Level::Warning,
                "DiskPressure",
            ),
            (
                |facts| facts.node = "localhost".to_owned(),
                "Hostname",
                Level::Error,
                "hostnamectl",
            ),
            (
                |facts| facts.name_resolves = false,
                "Hostname",
                Level::Warning,
                "/etc/hosts",
            ),
            (|facts| facts.year = 1970, "Clock", Level::Error, "timedatectl"),
            (
                |facts| facts.clock_synchronized = Some(false),
                "Clock",
                Level::Warning,
                "systemd-timesyncd",
            ),
            (
                |facts| facts.firewalls.push(Firewall::Ufw),
                "Firewall",
                Level::Warning,
                "ufw allow 6443/tcp; ufw allow 10250/tcp; ufw allow 8472/udp",
            ),
        ];
        for (spoil, check, level, remedy) in cases {
            let mut facts = good();
            spoil(&mut facts);
            let findings = judge(&facts, &BTreeSet::new());
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert_eq!((findings[0].check.as_str(), findings[0].level), (check, level));
            assert!(findings[0].text.contains(remedy), "{}", findings[0]);
        }
    }

    #[test]
    fn the_servers_unit_hides_what_is_said_to_be_hidden() {
        let unit = include_str!("../../systemd/skiff-server.service");
        for line in ["ProtectHome=yes", "PrivateTmp=yes"] {
            assert!(unit.lines().any(|found| found == line), "{line}");
        }
    }

    #[test]
    fn what_is_ignored_is_only_told() {
        let mut facts = good();
        facts.swap.push("/dev/sda2".to_owned());
        facts.taken_ports.push((6443, "the API server"));
        let some = judge(&facts, &BTreeSet::from(["swap".to_owned()]));
        let levels: Vec<_> = some
            .iter()
            .map(|finding| (finding.check.as_str(), finding.level))
            .collect();
        assert_eq!(levels, [("Port-6443", Level::Error), ("Swap", Level::Warning)]);
        let all = judge(&facts, &BTreeSet::from(["all".to_owned()]));
        assert!(all.iter().all(|finding| finding.level == Level::Warning));
    }

    #[test]
    fn a_worker_needs_no_api_port() {
        assert!(!firewall_advice(Firewall::Firewalld, Role::Worker, 6443).contains("6443"));
        let first = firewall_advice(Firewall::Firewalld, Role::ControlPlane, 7443);
        assert!(
            first.contains("--add-port=7443/tcp") && first.contains("--add-port=53/udp"),
            "{first}"
        );
    }
}
