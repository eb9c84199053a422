//! Bare machines that become nodes: `skiff init` and `join` as the product runs them, but with a directory for `/` and a supervisor for
//! systemd, which runs the same programs with the same files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use skiff_cluster::NodeLayout;
use skiff_cluster::process::Process;
use skiff_cluster::testing::BareMachines;
use skiff_machine::config::{Init, InitFlags, Join, JoinFlags, NodeFlags};
use skiff_machine::init::Initialized;
use skiff_machine::join::Joined;
use skiff_machine::reset::{Report, Wish};
use skiff_machine::services::{Error as ServiceError, State};
use skiff_machine::{Error, Layout, Machine, Say, Service, ServiceManager};

use crate::{Kubectl, binary};

/// Bare machines of one test.
#[derive(Debug)]
pub struct Machines {
    /// In their order.
    pub all: Vec<TestMachine>,
}

/// One machine.
#[derive(Debug)]
pub struct TestMachine {
    /// Where it is.
    pub node: NodeLayout,
    /// Its files.
    pub layout: Layout,
    /// Its services.
    pub services: Supervisor,
    bare: Arc<BareMachines>,
    binary: PathBuf,
    /// What was told.
    pub told: Told,
    /// What its clock shows.
    pub clock: fn() -> jiff::Timestamp,
}

/// Remembers what is told; and ends the command, as a kill would, where it is told to.
#[derive(Debug, Default)]
pub struct Told {
    lines: Mutex<Vec<String>>,
    end_at: Mutex<Option<String>>,
}

/// What a command ends with that was told to end.
struct Ended;

/// Runs services as systemd's units would.
#[derive(Debug)]
pub struct Supervisor {
    node: NodeLayout,
    layout: Layout,
    binary: PathBuf,
    bare: Arc<BareMachines>,
    running: Mutex<BTreeMap<Service, Process>>,
    /// Further arguments of the server, as `/etc/default/skiff-server` would have.
    pub server_arguments: Vec<&'static str>,
}

// === impl Told ===

impl Told {
    /// All lines so far.
    pub fn text(&self) -> String {
        self.lines.lock().join("\n")
    }
}

impl Say for Told {
    fn say(&self, phase: &str, text: &str) {
        let line = format!("[{phase}] {text}");
        self.lines.lock().push(line.clone());
        if self.end_at.lock().as_ref().is_some_and(|begin| line.starts_with(begin)) {
            // Nothing after this line is done, whatever it would have been.
            std::panic::resume_unwind(Box::new(Ended));
        }
    }
}

// === impl Machines ===

impl Machines {
    /// So many bare machines.
    ///
    /// # Errors
    /// When a container runtime does not come up.
    pub async fn start(number: usize) -> anyhow::Result<Self> {
        skiff_daemon::install_crypto();
        let binary = binary()?;
        let bare = BareMachines::start(number).await;
        let bare = Arc::new(bare.map_err(|error| anyhow::anyhow!(skiff_daemon::error_chain(&error)))?);
        let machine = |node: NodeLayout| {
            let layout = Layout::new(node.directory().join("root"));
            TestMachine {
                services: Supervisor {
                    node: node.clone(),
                    layout: layout.clone(),
                    binary: binary.clone(),
                    bare: bare.clone(),
                    running: Mutex::default(),
                    server_arguments: Vec::new(),
                },
                bare: bare.clone(),
                binary: binary.clone(),
                layout,
                node,
                told: Told::default(),
                clock: jiff::Timestamp::now,
            }
        };
        let all = bare.machines().into_iter().map(machine).collect();
        Ok(Self { all })
    }
}

// === impl TestMachine ===

impl TestMachine {
    /// What every command on this machine is given, beside its own flags.
    pub fn flags(&self) -> NodeFlags {
        NodeFlags {
            name: Some(self.node.name.clone()),
            runtime_endpoint: Some(format!("unix://{}", self.node.containerd_socket().display())),
            // The disk and the memory are those of the machine that runs the tests.
            ignore: vec!["Swap".to_owned(), "DiskSpace".to_owned()],
            ..NodeFlags::default()
        }
    }

    /// kubeadm's file: what keeps the kubelets of one real machine apart.
    pub fn file(&self, kind: &str) -> String {
        format!(
            "apiVersion: kubeadm.k8s.io/v1beta4\nkind: {kind}\nnodeRegistration:\n  kubeletExtraArgs:\n  - {{name: cgroup-root, value: {}}}\n  \
             - {{name: eviction-hard, value: 'memory.available<100Mi,nodefs.available<1%,imagefs.available<1%'}}\n",
            self.node.cgroup()
        )
    }

    /// Runs something on this machine: in its network, with everything that `skiff` would have.
    ///
    /// # Errors
    /// When its network is gone.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce(&Machine<'_>) -> T + Send) -> anyhow::Result<T> {
        let namespace = self.bare.namespace(&self.node)?;
        namespace
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let machine = Machine {
                    layout: self.layout.clone(),
                    services: &self.services,
                    binary: self.binary.clone(),
                    plugin_program: self.binary.with_file_name("skiff-cni"),
                    say: &self.told,
                    now: self.clock,
                };
                anyhow::Ok(runtime.block_on(work(&machine)))
            })
            .context("enter the machine's network")?
    }

    /// Runs something that is ended, as by SIGKILL, when it tells a line that begins so; returns whether it told one.
    ///
    /// # Errors
    /// When its network is gone, or it fails before.
    pub fn end_at<T: Send>(
        &self,
        line: &str,
        work: impl FnOnce() -> anyhow::Result<Result<T, Error>> + Send,
    ) -> anyhow::Result<bool> {
        *self.told.end_at.lock() = Some(line.to_owned());
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        *self.told.end_at.lock() = None;
        match ended {
            Ok(result) => match result? {
                Ok(_) => Ok(false),
                Err(error) => anyhow::bail!("{}\n{}", skiff_daemon::error_chain(&error), self.report()),
            },
            Err(panic) if panic.is::<Ended>() => Ok(true),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Ends the container runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn stop_runtime(&self) -> anyhow::Result<()> {
        self.bare.stop_runtime(&self.node).context("stop containerd")
    }

    /// Starts a container runtime with another configuration, and waits until it answers.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_runtime(&self, change: impl FnOnce(String) -> String) -> anyhow::Result<Process> {
        let path = self.node.containerd_config();
        let changed = self.node.directory().join("changed.toml");
        std::fs::write(&changed, change(std::fs::read_to_string(path)?))?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&changed);
        let process = self
            .bare
            .spawn(&self.node, &mut command, &self.node.directory().join("containerd.log"))?;
        while tokio::net::UnixStream::connect(self.node.containerd_socket())
            .await
            .is_err()
        {
            anyhow::ensure!(process.is_alive(), "containerd has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(process)
    }

    /// Opens a port of the machine.
    ///
    /// # Errors
    /// When it is taken.
    pub fn listen(&self, port: u16) -> anyhow::Result<std::net::TcpListener> {
        let namespace = self.bare.namespace(&self.node)?;
        let listener = namespace.run(|| std::net::TcpListener::bind(("0.0.0.0", port)))?;
        listener.with_context(|| format!("listen on {port}"))
    }

    /// `skiff init`.
    ///
    /// # Errors
    /// As it says.
    pub fn init(&self, flags: InitFlags) -> anyhow::Result<Result<Initialized, Error>> {
        let flags = InitFlags {
            node: self.flags(),
            ..flags
        };
        let wish = Init::new(flags, Some(&self.file("InitConfiguration")))?;
        self.run(async |machine| skiff_machine::init::init(machine, wish).await)
    }

    /// `skiff join`, with what `init` printed.
    ///
    /// # Errors
    /// As it says.
    pub fn join(&self, line: &str) -> anyhow::Result<Result<Joined, Error>> {
        self.join_with(line, |_| {})
    }

    /// The same with other flags.
    ///
    /// # Errors
    /// As it says.
    pub fn join_with(&self, line: &str, change: impl FnOnce(&mut JoinFlags)) -> anyhow::Result<Result<Joined, Error>> {
        let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "\\").collect();
        let [_, _, endpoint, _, token, _, pin, ref more @ ..] = words[..] else {
            anyhow::bail!("not a join line: {line}");
        };
        let key = match more {
            [] => None,
            ["--control-plane", "--certificate-key", key] => Some(key.parse().map_err(anyhow::Error::msg)?),
            _ => anyhow::bail!("not a join line: {line}"),
        };
        let mut flags = JoinFlags {
            endpoint: Some(endpoint.to_owned()),
            token: Some(token.parse().map_err(anyhow::Error::msg)?),
            pins: vec![pin.to_owned()],
            control_plane: key.is_some(),
            certificate_key: key,
            node: self.flags(),
            ..JoinFlags::default()
        };
        change(&mut flags);
        let wish = Join::new(flags, Some(&self.file("JoinConfiguration")))?;
        self.run(async |machine| skiff_machine::join::join(machine, wish).await)
    }

    /// `skiff reset`.
    ///
    /// # Errors
    /// As it says.
    pub fn reset(&self) -> anyhow::Result<Report> {
        self.reset_with(Wish::default())
    }

    /// The same with flags.
    ///
    /// # Errors
    /// As it says.
    pub fn reset_with(&self, wish: Wish) -> anyhow::Result<Report> {
        let reset = self.run(async |machine| skiff_machine::reset::reset(machine, wish).await)?;
        reset.map_err(|error| anyhow::anyhow!(skiff_daemon::error_chain(&error)))
    }

    /// `skiff` as a person types it on this machine, where a kubeconfig is all that it needs.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn skiff(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        let namespace = self.bare.namespace(&self.node)?;
        let mut command = Command::new(&self.binary);
        command
            .env("KUBECONFIG", self.layout.kubeconfig("admin"))
            .args(arguments);
        let output = namespace
            .run(|| command.output())
            .context("enter the machine's network")?;
        output.context("run skiff")
    }

    /// Where machines reach what runs beside them.
    pub fn lan_address() -> std::net::IpAddr {
        BareMachines::lan_address()
    }

    /// Whether somebody listens there, seen from this machine.
    ///
    /// # Errors
    /// When its network is gone.
    pub fn reaches(&self, address: std::net::SocketAddr) -> anyhow::Result<bool> {
        let namespace = self.bare.namespace(&self.node)?;
        let reached = namespace.run(|| std::net::TcpStream::connect(address).is_ok());
        reached.context("enter the machine's network")
    }

    /// Runs a program beside the machines, which ends with the test.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn beside(&self, command: &mut Command) -> anyhow::Result<Beside> {
        let log = self.node.directory().join("beside.log");
        Ok(Beside(self.bare.spawn_beside(command, &log)?))
    }

    /// Gives this machine an address that moves between machines, or takes it away.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn share_address(&self, address: std::net::IpAddr, here: bool) -> anyhow::Result<()> {
        Ok(self.bare.share_address(&self.node, address, here)?)
    }

    /// The power goes: nothing of skiff runs any more, and nothing was told before.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn switch_off(&self) -> anyhow::Result<()> {
        for service in Service::ALL {
            if let Some(process) = self.services.process(service) {
                process.kill()?;
            }
        }
        self.stop_runtime()
    }

    /// `kubectl` as administrator; it reaches the server only from inside the machine's network.
    ///
    /// # Errors
    /// When the command fails.
    pub fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let namespace = self.bare.namespace(&self.node)?;
        // Beside the machine's files: it keeps a cache there.
        let kubeconfig = self.node.directory().join("kubectl.conf");
        std::fs::copy(self.layout.kubeconfig("admin"), &kubeconfig).context("is the machine a control plane?")?;
        let kubectl = Kubectl::new(kubeconfig);
        namespace
            .run(|| kubectl.run(arguments))
            .context("enter the machine's network")?
    }

    /// What a person would look at after a failure.
    pub fn report(&self) -> String {
        let mut report = format!("---- {}\n{}\n", self.node.name, self.told.text());
        for service in Service::ALL {
            report += &format!(
                "---- {service} of {}\n{}\n",
                self.node.name,
                self.services.log_tail(service)
            );
        }
        report
    }
}

/// A program beside the machines.
#[derive(Debug)]
pub struct Beside(Process);

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.kill().ok();
    }
}

// === impl Supervisor ===

impl Supervisor {
    /// As in the units of `systemd/`.
    fn command(&self, service: Service) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg(service.name())
            .arg("--config")
            .arg(self.layout.config_file(service.name()));
        match service {
            Service::Kubelet => {
                command.arg("--kubeconfig").arg(self.layout.kubeconfig("kubelet"));
                let bootstrap = self.layout.kubeconfig("bootstrap-kubelet");
                if bootstrap.exists() {
                    command.arg("--bootstrap-kubeconfig").arg(bootstrap);
                }
            }
            Service::Ingress => drop(command.arg("--kubeconfig").arg(self.layout.kubeconfig("ingress"))),
            Service::Server => drop(command.args(&self.server_arguments)),
            Service::Proxy => {}
        }
        let text = std::fs::read_to_string(self.layout.environment_file(service.name())).unwrap_or_default();
        let quoted = text.split('"').nth(1).unwrap_or_default();
        command.args(quoted.split_whitespace());
        command
    }

    fn log(&self, service: Service) -> PathBuf {
        self.layout.root().join("logs").join(service.name())
    }

    /// `systemctl reload`: it reads its files anew at once, and not only when it looks the next time.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&self, service: Service) -> anyhow::Result<()> {
        let process = self.process(service).context("it does not run")?;
        let id = process.pid.to_string();
        let status = Command::new("kill").args(["-HUP", &id]).status()?;
        anyhow::ensure!(status.success(), "kill -HUP {id}");
        Ok(())
    }

    /// The process that was started last for a service.
    pub fn process(&self, service: Service) -> Option<Process> {
        self.running.lock().get(&service).copied()
    }
}

impl ServiceManager for Supervisor {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn start(&self, service: Service) -> Result<(), ServiceError> {
        self.stop(service)?;
        let process = self
            .bare
            .spawn(&self.node, &mut self.command(service), &self.log(service));
        let process = process.map_err(ServiceError::NoSystemd)?;
        self.running.lock().insert(service, process);
        Ok(())
    }

    fn stop(&self, service: Service) -> Result<(), ServiceError> {
        let process = self.running.lock().remove(&service);
        match process {
            Some(process) => process.stop(Duration::from_secs(10)).map_err(ServiceError::NoSystemd),
            None => Ok(()),
        }
    }

    fn state(&self, service: Service) -> Result<State, ServiceError> {
        Ok(match self.process(service) {
            None => State::Stopped,
            Some(process) if process.is_alive() => State::Running,
            Some(_) => State::Failed,
        })
    }

    fn log_tail(&self, service: Service) -> String {
        let text = std::fs::read_to_string(self.log(service)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn log_hint(&self, service: Service) -> String {
        format!("cat {}", self.log(service).display())
    }

    /// The container runtime of a test has a file of its own, which stays as it is.
    fn manages_cgroups(&self) -> bool {
        false
    }

    fn clock_is_synchronized(&self) -> Option<bool> {
        None
    }

    fn restart_runtime(&self) -> Result<(), ServiceError> {
        Ok(())
    }
}
