//! Bare machines that become nodes: `skiff init` and `join` as the product runs them, but with a directory for `/` and a supervisor for
//! systemd, which runs the same programs with the same files.

mod typing;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
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

use tokio::time::Instant;

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
}

/// Remembers what is told; and ends the command, as a kill would, where it is told to.
#[derive(Debug)]
pub struct Told {
    begun: Instant,
    lines: Mutex<Vec<(Duration, String)>>,
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
    /// What runs the server: `skiff`, or one with a clock of its own.
    pub server_program: PathBuf,
}

// === impl Told ===

impl Told {
    /// All lines so far, each with the seconds since the beginning.
    pub fn text(&self) -> String {
        let lines = self.lines.lock();
        let lines = lines
            .iter()
            .map(|(at, line)| format!("{:7.2} {line}\n", at.as_secs_f64()));
        lines.collect()
    }
}

impl Say for Told {
    fn say(&self, phase: &str, text: &str) {
        let line = format!("[{phase}] {text}");
        self.lines.lock().push((self.begun.elapsed(), line.clone()));
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
                    server_program: binary.clone(),
                },
                bare: bare.clone(),
                binary: binary.clone(),
                layout,
                node,
                told: Told {
                    begun: Instant::now(),
                    lines: Mutex::default(),
                    end_at: Mutex::default(),
                },
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

    /// The same, as a person types them.
    pub fn typed_flags(&self) -> Vec<String> {
        let flags = self.flags();
        let typed = [
            ("--node-name", flags.name.unwrap_or_default()),
            ("--cri-socket", flags.runtime_endpoint.unwrap_or_default()),
            ("--ignore-preflight-errors", flags.ignore.join(",")),
        ];
        typed
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
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
                    now: jiff::Timestamp::now,
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

    /// `skiff` as a person types it on this machine: its files are where every machine has them, in a mount namespace of the command's
    /// own, and `systemctl` tells how its services do.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn skiff(&self, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        self.skiff_as(&self.binary, arguments)
    }

    /// The same with another program in the place of `skiff`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn skiff_as(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        // What is written goes to this machine's files; beneath lie those of the machine that runs the tests.
        const SCRIPT: &str = r#"
            for place in etc var/lib var/backups run; do
                mkdir -p "$ROOT/$place" "$WORK/$place"
                mount -t overlay -o "lowerdir=/$place,upperdir=$ROOT/$place,workdir=$WORK/$place" overlay "/$place" || exit 70
            done
            # Locks count only on the very file that the server has open.
            [ ! -d "$ROOT/var/lib/skiff" ] || mount --bind "$ROOT/var/lib/skiff" /var/lib/skiff || exit 70
            mkdir -p /run/systemd/system
            exec "$@""#;
        let programs = self.node.directory().join("bin");
        std::fs::create_dir_all(&programs)?;
        self.services.write_systemctl(&programs.join("systemctl"))?;
        let skiff = programs.join("skiff");
        if !skiff.exists() {
            std::os::unix::fs::symlink(&self.binary, &skiff)?;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        self.output(
            Command::new("unshare")
                .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"])
                .arg(program)
                .args(arguments)
                .env("ROOT", self.layout.root())
                .env("WORK", self.node.directory().join("overlay"))
                // `kubectl` keeps a cache there.
                .env("HOME", self.node.directory())
                .env("PATH", format!("{}:{path}", programs.display())),
        )
    }

    /// Runs a command in this machine's network.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn output(&self, command: &mut Command) -> anyhow::Result<std::process::Output> {
        let namespace = self.bare.namespace(&self.node)?;
        let output = namespace
            .run(|| command.output())
            .context("enter the machine's network")?;
        output.with_context(|| format!("run {command:?}"))
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
        let program = match service {
            Service::Server => &self.server_program,
            _ => &self.binary,
        };
        let mut command = Command::new(program);
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

    /// A `systemctl` that tells how the services do now, and does nothing.
    fn write_systemctl(&self, path: &Path) -> anyhow::Result<()> {
        let mut script = "#!/bin/sh\nfor unit; do :; done\ncase $unit in\n".to_owned();
        for service in Service::ALL {
            let state = match self.state(service)? {
                State::Running => "active",
                _ => "inactive",
            };
            script += &format!(
                "{}) printf 'LoadState=loaded\nActiveState={state}\n' ;;\n",
                service.unit()
            );
        }
        std::fs::write(path, script + "*) exit 3 ;;\nesac\n")?;
        Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
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
