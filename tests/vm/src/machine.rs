//! One machine: a QEMU process, and the socket through which its shell is reached.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use skiff_net::netns::Namespace;

use crate::wait::until;

/// How long a machine may take to start: it has been seen to take 20 s alone, and several start together on two cores.
pub(crate) const BOOT: Duration = Duration::from_secs(480);
/// No command of the suite takes longer.
pub(crate) const COMMAND: Duration = Duration::from_secs(180);
const SHELL_PORT: u16 = 2222;
/// Between output, exit code and errors; see packaging/image.sh.
const SEPARATOR: char = '\u{1e}';

/// A machine, running or switched off.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Its host name.
    pub(crate) name: String,
    /// Its address in the lab's network.
    pub(crate) address: IpAddr,
    number: u8,
    namespace: Arc<Namespace>,
    directory: PathBuf,
    image: PathBuf,
    process: Option<Child>,
}

/// What a command printed.
#[derive(Clone, Debug)]
pub(crate) struct Printed {
    /// Its exit code.
    pub(crate) code: i32,
    /// Its standard output.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl Machine {
    /// A machine that is switched off, with a disk of its own over the image's.
    ///
    /// # Errors
    /// When its disk cannot be made.
    pub(crate) fn new(
        name: &str,
        number: u8,
        namespace: &Arc<Namespace>,
        directory: &Path,
        image: &Path,
    ) -> anyhow::Result<Self> {
        let image = image
            .canonicalize()
            .with_context(|| format!("find the image {}", image.display()))?;
        let machine = Self {
            name: name.to_owned(),
            address: IpAddr::V4(Ipv4Addr::new(192, 168, 57, 10 + number)),
            number,
            namespace: Arc::clone(namespace),
            directory: directory.to_owned(),
            image,
            process: None,
        };
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(machine.image.join("disk.raw"))
            .arg(machine.disk())
            .status()
            .context("run qemu-img: is qemu-utils installed?")?;
        anyhow::ensure!(made.success(), "make the disk of {name}");
        Ok(machine)
    }

    /// The network device that the machine's cable is plugged into.
    pub(crate) fn tap(number: u8) -> String {
        format!("tap{number}")
    }

    fn disk(&self) -> PathBuf {
        self.directory.join(format!("{}.qcow2", self.name))
    }

    fn console_file(&self) -> PathBuf {
        self.directory.join(format!("{}.console", self.name))
    }

    /// What the machine has written to its serial console.
    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.console_file()).unwrap_or_default()).into_owned()
    }

    /// The end of what it has written to its serial console.
    pub(crate) fn last_words(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let end = &lines[lines.len().saturating_sub(40)..];
        format!("the console of {} ends:\n{}", self.name, end.join("\n"))
    }

    /// Switches it on, without waiting for it.
    ///
    /// # Errors
    /// When QEMU cannot be started.
    pub(crate) fn switch_on(&mut self) -> anyhow::Result<()> {
        let mut command = self.command();
        // On this thread, which lives as long as the suite: machines end with the thread that started them.
        let child = self
            .namespace
            .visit(|| command.spawn())?
            .context("start QEMU: is qemu-system-x86 installed?")?;
        self.process = Some(child);
        Ok(())
    }

    fn command(&self) -> Command {
        let number = self.number;
        let network = format!(
            "root=/dev/vda rw net.ifnames=0 ip={}::192.168.57.1:255.255.255.0:{}:eth0:none systemd.hostname={}",
            self.address, self.name, self.name
        );
        // Guarding against the processor's leaks is wasted on one that is emulated; a loaded host makes its timer look broken, and
        // devices look lost.
        let kernel = format!(
            "{network} console=ttyS0 quiet mitigations=off no5lvl no_timer_check \
             systemd.default_device_timeout_sec=600 systemd.default_timeout_start_sec=600"
        );
        // A suite that is killed leaves no machine behind.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "qemu-system-x86_64"]);
        command.args([
            "-name",
            &self.name,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ]);
        // The emulated cmpxchg16b leaves garbage in the flags (QEMU 7.2), which Debian 13's kernel does not outlive.
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max,svm=off,cx16=off",
            "-smp",
            "2",
            "-m",
            "1024",
        ]);
        command.arg("-kernel").arg(self.image.join("vmlinuz"));
        command.arg("-initrd").arg(self.image.join("initrd"));
        command.args(["-append", &kernel]);
        let disk = format!("file={},if=virtio,cache=unsafe,discard=unmap", self.disk().display());
        command.args(["-drive", &disk]);
        let lan = format!("tap,id=lan,ifname={},script=no,downscript=no", Self::tap(number));
        command.args(["-netdev", &lan]);
        let card = format!("virtio-net-pci,netdev=lan,mac=52:54:00:57:00:{:02x}", 10 + number);
        command.args(["-device", &card, "-device", "virtio-rng-pci"]);
        command
            .arg("-serial")
            .arg(format!("file:{}", self.console_file().display()));
        command.stdin(Stdio::null());
        command
    }

    /// Waits until systemd has started everything, and returns whether all of it is well.
    ///
    /// # Errors
    /// When that takes longer than [`BOOT`], or a unit has failed.
    pub(crate) fn wait_until_up(&mut self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(child) = &mut self.process
                && let Some(status) = child.try_wait().context("look at QEMU")?
            {
                anyhow::bail!("QEMU of {} has ended: {status}", self.name);
            }
            anyhow::ensure!(
                !self.console().contains("Kernel panic"),
                "the kernel of {} has ended",
                self.name
            );
            match self.shell("systemctl is-system-running --wait", "", COMMAND) {
                Ok(printed) if printed.stdout.trim() == "running" => return Ok(()),
                Ok(printed) if printed.stdout.trim() == "degraded" => {
                    let failed = self.run("systemctl list-units --failed --no-legend --plain")?;
                    anyhow::bail!("{} has started, but not all of it: {failed}", self.name);
                }
                Ok(seen) if begin.elapsed() > BOOT => {
                    anyhow::bail!("{} has not started within {BOOT:?}: {}", self.name, seen.stdout.trim())
                }
                Err(error) if begin.elapsed() > BOOT => {
                    return Err(error.context(format!("{} has not started within {BOOT:?}", self.name)));
                }
                _ => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    /// Restarts it from inside and waits until it is up again.
    ///
    /// # Errors
    /// When it does not come back.
    pub(crate) fn reboot(&mut self) -> anyhow::Result<()> {
        let former = self.ask_for_reboot()?;
        self.wait_for_reboot(&former)
    }

    /// Asks for a restart; returns what tells this start from the next one.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub(crate) fn ask_for_reboot(&self) -> anyhow::Result<String> {
        let former = self.boot_id()?;
        // The answer may be cut off by what was asked for.
        self.shell("systemctl reboot --no-block", "", COMMAND).ok();
        Ok(former)
    }

    /// Waits for the start after `former`.
    ///
    /// # Errors
    /// When it does not come.
    pub(crate) fn wait_for_reboot(&mut self, former: &str) -> anyhow::Result<()> {
        until("a new start", BOOT, || self.boot_id(), |now| now != former).with_context(|| self.name.clone())?;
        self.wait_until_up()
    }

    fn boot_id(&self) -> anyhow::Result<String> {
        self.run("cat /proc/sys/kernel/random/boot_id")
    }

    /// Cuts its power.
    pub(crate) fn switch_off(&mut self) {
        if let Some(mut child) = self.process.take() {
            // QEMU ends at once and tells the guest nothing, but writes to the disk's file what it holds for it.
            let pid = child.id().to_string();
            Command::new("kill").args(["-TERM", &pid]).status().ok();
            child.wait().ok();
        }
    }

    /// Runs a script as root, whatever its exit code.
    ///
    /// # Errors
    /// When the machine cannot be reached, or does not answer in time.
    pub(crate) fn shell(&self, script: &str, input: impl AsRef<[u8]>, limit: Duration) -> anyhow::Result<Printed> {
        let address = SocketAddr::new(self.address, SHELL_PORT);
        let connected = self
            .namespace
            .run(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))?;
        let mut stream = connected.with_context(|| format!("reach {}", self.name))?;
        stream.set_read_timeout(Some(limit)).context("set a time limit")?;
        stream.set_write_timeout(Some(limit)).context("set a time limit")?;
        write!(stream, "{}\n{script}", script.len()).context("send the script")?;
        // The script may have ended without reading all of its input: that is its own affair.
        stream.write_all(input.as_ref()).ok();
        stream.shutdown(Shutdown::Write).ok();
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .with_context(|| format!("{}: {script}: no answer within {limit:?}", self.name))?;
        let answer = String::from_utf8_lossy(&answer);
        let (rest, stderr) = answer.rsplit_once(SEPARATOR).context("half an answer")?;
        let (stdout, code) = rest.rsplit_once(SEPARATOR).context("half an answer")?;
        Ok(Printed {
            code: code.parse().context("an exit code")?,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        })
    }

    /// Runs a script that must succeed; returns what it printed, without the space around it.
    ///
    /// # Errors
    /// When it fails, with all that it printed.
    pub(crate) fn run(&self, script: &str) -> anyhow::Result<String> {
        let printed = self.shell(script, "", COMMAND)?;
        anyhow::ensure!(
            printed.code == 0,
            "{}: {script}: exit code {}\n{}{}",
            self.name,
            printed.code,
            printed.stdout,
            printed.stderr
        );
        Ok(printed.stdout.trim().to_owned())
    }

    /// Writes a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn put(&self, path: &str, content: &[u8]) -> anyhow::Result<()> {
        let printed = self.shell(&format!("cat >'{path}'"), content, COMMAND)?;
        anyhow::ensure!(printed.code == 0, "{}: write {path}: {}", self.name, printed.stderr);
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.switch_off();
    }
}
