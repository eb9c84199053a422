//! `skiff server`s on loopback that share certificates and an etcd cluster, ended with the test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use skiff_pki::{CertificateAuthority, Identity, Kubeconfig, LEAF_LIFETIME, Request, ServiceAccountKey};
use skiff_tests::wait::until;
use skiff_tests::{Kubectl, binary};

use crate::member::Member;

pub(crate) const LIMIT: Duration = Duration::from_secs(40);
pub(crate) const LEASES: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];
/// Short, so that nobody waits long for the end of a killed server's Leases.
const ELECTION: [&str; 3] = [
    "--leader-elect-lease-duration=4s",
    "--leader-elect-renew-deadline=3s",
    "--leader-elect-retry-period=1s",
];

/// What the servers share.
pub(crate) struct Place {
    directory: tempfile::TempDir,
    /// Of each server.
    ports: [u16; 2],
    authority: CertificateAuthority,
    /// How often the authority was replaced.
    generation: u32,
    pub(crate) members: Vec<Member>,
    /// Goes over what the configuration says.
    pub(crate) more: Value,
}

/// One server, and a `kubectl` that reaches it.
pub(crate) struct Server {
    pub(crate) kubectl: Kubectl,
    process: Child,
    log: PathBuf,
}

/// The first addresses of loopback's network are used by everybody.
fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 7, number))
}

/// Nobody may be reached there.
fn advertised(number: u8) -> String {
    format!("192.0.2.{number}")
}

fn free_port(number: u8) -> anyhow::Result<u16> {
    Ok(TcpListener::bind((address(number), 0))?.local_addr()?.port())
}

impl Place {
    pub(crate) fn new(members: usize) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let pki = directory.path().join("pki");
        let authority = CertificateAuthority::generate("kubernetes")?;
        authority.save(&pki, "ca")?;
        ServiceAccountKey::load_or_generate(&pki)?;
        authority.load_or_issue(&pki, "apiserver", &server_certificate())?;
        let mut members: Vec<Member> = (0..members)
            .map(|number| Member::new(directory.path(), &format!("etcd-{number}")))
            .collect();
        let cluster: Vec<String> = members.iter().map(Member::introduction).collect();
        for member in &mut members {
            member.start(&cluster);
        }
        let port = free_port(1)?;
        Ok(Self {
            directory,
            ports: [port; 2],
            authority,
            generation: 0,
            members,
            more: json!({}),
        })
    }

    /// The second server gets a port of its own.
    pub(crate) fn with_two_ports(mut self) -> anyhow::Result<Self> {
        while self.ports[0] == self.ports[1] {
            self.ports[1] = free_port(2)?;
        }
        Ok(self)
    }

    fn port(&self, number: u8) -> u16 {
        self.ports[usize::from(number) - 1]
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn etcd_servers(&self) -> String {
        let urls: Vec<String> = self.members.iter().map(Member::url).collect();
        format!("--etcd-servers={}", urls.join(","))
    }

    /// The file of the server of that number, from one.
    pub(crate) fn configuration(&self, number: u8) -> anyhow::Result<PathBuf> {
        let mut config = json!({
            "apiVersion": "config.skiff/v1alpha1", "kind": "ServerConfiguration",
            "dataDir": self.path().join(format!("data-{number}")), "pkiDir": self.path().join("pki"),
            "bindAddress": address(number), "advertiseAddress": advertised(number), "securePort": self.port(number),
            "dns": {"enabled": false}, "nodeMonitorGracePeriodSeconds": 3600,
        });
        let more = self.more.as_object().into_iter().flatten();
        for (key, value) in more {
            config[key] = value.clone();
        }
        let path = self.path().join(format!("server-{number}.yaml"));
        std::fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Starts a server on etcd without waiting for it.
    pub(crate) fn start(&self, number: u8) -> anyhow::Result<Server> {
        self.start_with(number, &[&[self.etcd_servers().as_str()], &ELECTION[..]].concat(), &[])
    }

    /// Starts a server, on SQLite unless the arguments say otherwise.
    pub(crate) fn start_with(
        &self,
        number: u8,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> anyhow::Result<Server> {
        let log_path = self.path().join(format!("server-{number}.log"));
        let log = std::fs::File::options().create(true).append(true).open(&log_path)?;
        let process = Command::new(binary()?)
            .arg("server")
            .arg("--config")
            .arg(self.configuration(number)?)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Server {
            kubectl: self.kubectl(number)?,
            process,
            log: log_path,
        })
    }

    /// What [`endpoints`] are while these servers live.
    pub(crate) fn endpoints_of(&self, servers: &[u8]) -> String {
        let mut groups: BTreeMap<u16, Vec<String>> = BTreeMap::new();
        for number in servers {
            groups.entry(self.port(*number)).or_default().push(advertised(*number));
        }
        let groups = groups
            .iter()
            .map(|(port, addresses)| format!("{}:{port}", addresses.join(" ")));
        groups.collect::<Vec<_>>().join(" ")
    }

    /// Two servers that elect a leader, one after the other: the first leads.
    pub(crate) async fn start_two(&self) -> anyhow::Result<[Server; 2]> {
        let first = self.start(1)?;
        first.ready().await?;
        for lease in LEASES {
            first.until_leads(lease).await?;
        }
        let second = self.start(2)?;
        second.ready().await?;
        Ok([first, second])
    }

    /// An administrator's `kubectl` for the server of that number.
    pub(crate) fn kubectl(&self, number: u8) -> anyhow::Result<Kubectl> {
        let generation = self.generation;
        self.kubectl_with(number, &format!("admin-{number}-{generation}"), LEAF_LIFETIME)
    }

    /// The same with a certificate that lives so long, in a kubeconfig of that name.
    pub(crate) fn kubectl_with(&self, number: u8, name: &str, life: Duration) -> anyhow::Result<Kubectl> {
        self.kubectl_as(number, name, self.ca_pem(), &self.admin(life)?)
    }

    /// An administrator's certificate that lives so long.
    pub(crate) fn admin(&self, life: Duration) -> anyhow::Result<Identity> {
        let admin = Request::client("kubernetes-admin", &["system:masters"]);
        Ok(self.authority.issue(&admin.lifetime(life))?)
    }

    /// A `kubectl` that trusts these authorities and shows this certificate, in a kubeconfig of that name.
    pub(crate) fn kubectl_as(&self, number: u8, name: &str, ca: &str, identity: &Identity) -> anyhow::Result<Kubectl> {
        let kubeconfig = self.path().join(format!("{name}.conf"));
        Kubeconfig::embedded("servers", &self.url(number), ca, "somebody", identity).write(&kubeconfig)?;
        Ok(Kubectl::new(kubeconfig))
    }

    /// A `kubectl` that shows nothing but a token.
    pub(crate) fn kubectl_by_token(&self, number: u8, token: &str) -> anyhow::Result<Kubectl> {
        let kubeconfig = self.path().join(format!("token-{number}.conf"));
        let ca = self.authority.certificate_pem();
        Kubeconfig::with_token(&self.url(number), ca, "token", token).write(&kubeconfig)?;
        Ok(Kubectl::new(kubeconfig))
    }

    /// `HOST:PORT` of the server of that number.
    pub(crate) fn host(&self, number: u8) -> String {
        format!("{}:{}", address(number), self.port(number))
    }

    fn url(&self, number: u8) -> String {
        format!("https://{}", self.host(number))
    }

    /// The authority's certificate.
    pub(crate) fn ca_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// Replaces the servers' certificate by one that lives so long.
    pub(crate) fn renew_certificate(&self, life: Duration) -> anyhow::Result<()> {
        let identity = self.authority.issue(&server_certificate().lifetime(life))?;
        Ok(identity.save(&self.path().join("pki"), "apiserver")?)
    }

    /// Replaces the authority, and what it has signed for the servers.
    pub(crate) fn renew_authority(&mut self) -> anyhow::Result<()> {
        self.begin_authority()?;
        self.renew_certificate(LEAF_LIFETIME)
    }

    /// Another authority signs from now on, and the former one is trusted beside it.
    pub(crate) fn hand_over_authority(&mut self) -> anyhow::Result<()> {
        let former = self.ca_pem().to_owned();
        self.begin_authority()?;
        self.trust(&(self.ca_pem().to_owned() + &former))
    }

    /// What the servers' file of trusted authorities holds.
    pub(crate) fn trust(&self, authorities: &str) -> anyhow::Result<()> {
        let path = self.path().join("pki/ca.crt");
        Ok(skiff_pki::files::write_public(&path, authorities.as_bytes())?)
    }

    fn begin_authority(&mut self) -> anyhow::Result<()> {
        self.authority = CertificateAuthority::generate("kubernetes")?;
        self.generation += 1;
        Ok(self.authority.save(&self.path().join("pki"), "ca")?)
    }
}

fn server_certificate() -> Request {
    let addresses = [address(1), address(2)];
    Request::server("kube-apiserver", &["kubernetes", "localhost"], &addresses)
}

impl Server {
    /// Waits until it serves.
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        let ready = async || self.kubectl.run(&["get", "--raw", "/readyz"]);
        let reached = until("the server is ready", LIMIT, ready, |text| text == "ok").await;
        reached.with_context(|| self.report()).map(drop)
    }

    /// What it logged.
    pub(crate) fn report(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it leads, as its metrics say.
    pub(crate) fn leads(&self, lease: &str) -> anyhow::Result<bool> {
        let metrics = self.kubectl.run(&["get", "--raw", "/metrics"])?;
        Ok(metrics.contains(&format!("leader_election_master_status{{name=\"{lease}\"}} 1")))
    }

    pub(crate) async fn until_leads(&self, lease: &str) -> anyhow::Result<()> {
        let look = async || self.leads(lease);
        let reached = until("the server leads", LIMIT, look, |leads| *leads).await;
        reached.with_context(|| self.report()).map(drop)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Sends a signal by its short name.
    pub(crate) fn signal(&self, name: &str) -> anyhow::Result<()> {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &id]).status()?;
        anyhow::ensure!(status.success(), "kill -{name} {id}");
        Ok(())
    }

    /// SIGTERM, and its end.
    pub(crate) fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal("TERM")?;
        Ok(self.process.wait()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

/// Nodes that nothing runs on: pods can be bound to them.
pub(crate) fn create_nodes(kubectl: &Kubectl, count: usize) -> anyhow::Result<()> {
    let room = json!({"cpu": "64", "memory": "64Gi", "pods": "110"});
    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played"});
    let nodes: Vec<Value> = (1..=count)
        .map(|number| {
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{number}")},
                "status": {"capacity": room, "allocatable": room, "conditions": [ready]},
            })
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": nodes});
    let printed = kubectl.attempt(&["create", "-f", "-"], &list.to_string())?;
    anyhow::ensure!(printed.success, "create nodes: {}", printed.stderr);
    Ok(())
}

/// Waits until so many pods of the Deployment are bound; their names.
pub(crate) async fn until_bound(server: &Server, app: &str, count: usize) -> anyhow::Result<Vec<String>> {
    let selector = format!("app={app}");
    let path = "{range .items[?(@.spec.nodeName)]}{.metadata.name}{\"\\n\"}{end}";
    let look = async || {
        let names = server.kubectl.field(&["pods", "-l", &selector], path)?;
        Ok(names.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let bound = until("the pods are bound", LIMIT, look, |names| names.len() == count).await;
    bound.with_context(|| server.report())
}

/// The endpoints of the Service `kubernetes`, and those in its slices: `ADDRESS ADDRESS:PORT`, the same for each further port.
pub(crate) fn endpoints(server: &Server) -> anyhow::Result<(String, String)> {
    let legacy = server.kubectl.field(
        &["endpoints", "kubernetes"],
        "{range .subsets[*]}{.addresses[*].ip}:{.ports[0].port} {end}",
    )?;
    let slices = server.kubectl.field(
        &["endpointslices", "-l", "kubernetes.io/service-name=kubernetes"],
        "{range .items[*]}{.endpoints[*].addresses[0]}:{.ports[0].port} {end}",
    )?;
    Ok((legacy.trim().to_owned(), slices.trim().to_owned()))
}
