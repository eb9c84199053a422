//! The machines and the network between them: a namespace without a name and without a way out, which ends with its processes.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use skiff_net::netns::Namespace;
use tempfile::TempDir;

use crate::machine::{COMMAND, Machine};

/// What a person who looks for the cause asks a machine first.
const REPORT: &str = "
systemctl list-units --failed --no-legend --plain
journalctl --boot --unit containerd --no-pager --lines 6 --output cat | cut -c 1-300
for unit in skiff-server skiff-kubelet skiff-proxy; do
    echo \"--- $unit: $(systemctl is-active $unit)\"
    journalctl --boot --unit $unit --no-pager --lines 30 --output short-monotonic | cut -c 1-400
done
free -m | head -n 2; uptime
";

/// Where the machines' disks and the package come from.
#[derive(Debug)]
pub(crate) struct Sources {
    /// `disk.raw`, `vmlinuz`, `initrd`.
    pub(crate) image: PathBuf,
    /// The package.
    pub(crate) package: PathBuf,
}

/// Machines on one network.
#[derive(Debug)]
pub(crate) struct Lab {
    /// In the order of their names as given.
    pub(crate) machines: Vec<Machine>,
    /// The package's content.
    pub(crate) package: Vec<u8>,
    /// Disks and consoles; removed with the lab. After the machines, so that these have ended.
    _directory: TempDir,
}

impl Lab {
    /// Makes the network and switches all machines on; returns when they are up.
    ///
    /// # Errors
    /// When a machine does not start.
    pub(crate) fn start(sources: &Sources, names: &[String]) -> anyhow::Result<Self> {
        let package = std::fs::read(&sources.package).with_context(|| format!("read {}", sources.package.display()))?;
        let directory = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(sources.image.parent().context("an image in a directory")?)
            .context("make a directory for disks")?;
        let namespace = Arc::new(Namespace::anonymous().context("make a network")?);
        let numbers = 1..=u8::try_from(names.len()).context("so many machines")?;
        plug(&namespace, numbers.clone())?;
        let machines = names.iter().zip(numbers).map(|(name, number)| {
            let mut machine = Machine::new(name, number, &namespace, directory.path(), &sources.image)?;
            machine.switch_on()?;
            Ok(machine)
        });
        let mut lab = Self {
            machines: machines.collect::<anyhow::Result<_>>()?,
            package,
            _directory: directory,
        };
        for machine in &mut lab.machines {
            if let Err(error) = machine.wait_until_up() {
                return Err(error.context(machine.last_words()));
            }
        }
        Ok(lab)
    }

    /// What every machine tells of itself.
    pub(crate) fn report(&self) -> String {
        let tell = |machine: &Machine| match machine.shell(REPORT, "", COMMAND) {
            Ok(printed) => format!("=== {}\n{}", machine.name, printed.stdout),
            // Its kernel may have said why.
            Err(error) => format!("=== {}: {error:#}\n{}", machine.name, machine.last_words()),
        };
        self.machines.iter().map(tell).collect::<Vec<_>>().join("\n")
    }

    /// How a person gets into the lab's network.
    pub(crate) fn how_to_look(&self) -> String {
        let own = std::process::id();
        format!("the machines are children of process {own}; enter their network with nsenter --net=/proc/CHILD/ns/net")
    }
}

/// A bridge, and a tap on it for each machine.
fn plug(namespace: &Namespace, numbers: impl Iterator<Item = u8>) -> anyhow::Result<()> {
    let mut batch =
        "link set lo up\nlink add lan type bridge\naddr add 192.168.57.1/24 dev lan\nlink set lan up\n".to_owned();
    for number in numbers {
        let tap = Machine::tap(number);
        batch += &format!("tuntap add dev {tap} mode tap\nlink set {tap} master lan up\n");
    }
    let spawned = namespace.run(|| Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn())?;
    let mut child = spawned.context("run ip: is iproute2 installed?")?;
    child
        .stdin
        .take()
        .context("the input of ip")?
        .write_all(batch.as_bytes())
        .context("write to ip")?;
    let status = child.wait().context("wait for ip")?;
    anyhow::ensure!(status.success(), "make the machines' network: is there a /dev/net/tun?");
    Ok(())
}
