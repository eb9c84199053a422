//! The driver against a bus of its own, with a systemd on it that makes directories and remembers what it was asked.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use serde_json::json;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedVariant, fdo, interface};

use super::super::{Cgroups, Driver, Rules};
use super::*;
use crate::pod::Qos;
use crate::pod::tests::pod;

/// A bus that ends with the test.
struct Bus {
    process: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Bus {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("bus");
        let config = directory.path().join("bus.conf");
        let policy = r#"<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy>"#;
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>{policy}</busconfig>",
            socket.display()
        );
        std::fs::write(&config, text).expect("a file");
        let mut process = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg("--print-address=1")
            .arg("--config-file")
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon of Debian's dbus-daemon");
        let mut address = String::new();
        let said = process.stdout.take().expect("its output");
        BufReader::new(said).read_line(&mut address).expect("its address");
        Self {
            process,
            address: address.trim().to_owned(),
            _directory: directory,
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[derive(Debug, Default)]
struct Asked {
    calls: Vec<String>,
    units: HashMap<String, PathBuf>,
    jobs: u32,
    /// What jobs end as.
    result: Option<&'static str>,
}

/// What systemd does with slices, on a directory that stands for the hierarchy.
#[derive(Clone)]
struct Scripted {
    asked: Arc<Mutex<Asked>>,
    mount: PathBuf,
}

type Properties = Vec<(String, OwnedVariant)>;

impl Scripted {
    async fn start(bus: &str, mount: &Path) -> (Self, Connection) {
        let scripted = Self {
            asked: Arc::default(),
            mount: mount.to_owned(),
        };
        let builder = zbus::conn::Builder::address(bus)
            .serve_at(PATH, scripted.clone())
            .name(SERVICE);
        let connection = builder.build().await.expect("a place on the bus");
        (scripted, connection)
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().calls)
    }

    fn note(&self, call: &str, unit: &str, properties: &[(String, OwnedVariant)]) {
        let shown = properties
            .iter()
            .map(|(name, value)| format!(" {name}={}", plain(value)));
        let text = format!("{call} {unit}{}", shown.collect::<String>());
        self.asked.lock().calls.push(text);
    }

    async fn job(&self, unit: &str, emitter: &SignalEmitter<'_>) -> fdo::Result<OwnedObjectPath> {
        let (id, result) = {
            let mut asked = self.asked.lock();
            asked.jobs += 1;
            (asked.jobs, asked.result.unwrap_or("done"))
        };
        let path = format!("{PATH}/job/{id}");
        let job = OwnedObjectPath::try_from(path).expect("a path");
        // Before the answer to the call: the caller must have listened by then.
        Self::job_removed(emitter, id, job.clone(), unit, result).await?;
        Ok(job)
    }
}

fn plain(value: &OwnedVariant) -> String {
    let value: &Variant<'_> = value;
    match value {
        Variant::Bool(flag) => flag.to_string(),
        Variant::U64(number) => number.to_string(),
        Variant::Str(text) => format!("{:?}", text.as_str()),
        Variant::Array(array) => array.iter().map(|item| format!("{item}")).collect::<Vec<_>>().join(","),
        other => format!("{other:?}"),
    }
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    #[zbus(error)]
    Bus(zbus::Error),
    UnitExists(String),
    NoSuchUnit(String),
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Scripted {
    fn subscribe(&self) {}

    async fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: Properties,
        _aux: Vec<(String, Properties)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        assert_eq!(mode, "replace");
        if self.asked.lock().units.contains_key(name) {
            return Err(Refusal::UnitExists(format!("Unit {name} was already loaded.")));
        }
        self.note("start", name, &properties);
        let mut dir = self.mount.clone();
        let stem = name.trim_end_matches(".slice");
        for (at, _) in stem.match_indices('-') {
            dir.push(format!("{}.slice", &stem[..at]));
        }
        dir.push(name);
        std::fs::create_dir_all(&dir).expect("a cgroup");
        self.asked.lock().units.insert(name.to_owned(), dir);
        self.job(name, &emitter)
            .await
            .map_err(|error| Refusal::Bus(error.into()))
    }

    fn set_unit_properties(&self, name: &str, runtime: bool, properties: Properties) {
        assert!(runtime, "not for ever");
        self.note("set", name, &properties);
    }

    async fn stop_unit(
        &self,
        name: &str,
        _mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.note("stop", name, &[]);
        let Some(dir) = self.asked.lock().units.remove(name) else {
            return Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded.")));
        };
        std::fs::remove_dir_all(dir).expect("a cgroup");
        self.job(name, &emitter)
            .await
            .map_err(|error| Refusal::Bus(error.into()))
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

const RULES: Rules = Rules {
    page_sizes: Vec::new(),
    quota: true,
    period: Duration::from_millis(100),
    pids: 64,
    memory_capacity: 1 << 30,
    oom_group: true,
    swap: None,
};

fn sized() -> skiff_api::k8s_openapi::api::core::v1::Pod {
    let mut p = pod(&json!({"containers": [
        {"name": "c", "resources": {"limits": {"cpu": "505m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}));
    p.metadata.uid = Some("1-2-3".into());
    p
}

#[tokio::test]
async fn the_tree_of_pods_is_slices() {
    let (bus, mount) = (Bus::start(), tempfile::tempdir().expect("a directory"));
    std::fs::write(mount.path().join("cgroup.controllers"), "cpu hugetlb memory pids").expect("a file");
    let (systemd, _connection) = Scripted::start(&bus.address, mount.path()).await;
    let driver = || Driver::Systemd {
        bus: Some(bus.address.clone()),
    };
    let cgroups = Cgroups::open(mount.path(), "", driver()).await.expect("slices");
    let counted = "CPUAccounting=true MemoryAccounting=true TasksAccounting=true IOAccounting=true";
    let begun = |unit: &str, wants: &str, limits: &str| {
        format!(
            "start {unit} Description=\"Kubernetes pods: {unit}\" DefaultDependencies=false{wants} {counted}{limits}"
        )
    };
    assert_eq!(
        systemd.calls(),
        [
            begun("kubepods.slice", "", ""),
            begun("kubepods-burstable.slice", " Wants=\"kubepods.slice\"", ""),
            begun("kubepods-besteffort.slice", " Wants=\"kubepods.slice\"", " CPUWeight=1"),
        ]
    );
    let p = sized();
    cgroups.create_pod(&p, &RULES).await.expect("a slice");
    let unit = "kubepods-burstable-pod1_2_3.slice";
    let limits = "CPUWeight=35 CPUQuotaPerSecUSec=510000 CPUQuotaPeriodUSec=100000 MemoryMax=67108864 TasksMax=64";
    assert_eq!(
        systemd.calls(),
        [begun(
            unit,
            " Wants=\"kubepods-burstable.slice\"",
            &format!(" {limits}")
        )]
    );
    assert_eq!(cgroups.parent(&p), unit, "what the runtime is told");
    let path = format!("/kubepods.slice/kubepods-burstable.slice/{unit}");
    assert_eq!(cgroups.pod_path(&p), path);
    assert_eq!(
        cgroups.container_path(&p, "id"),
        format!("{path}/cri-containerd-id.scope")
    );
    assert_eq!(cgroups.pods(), ["1-2-3"]);

    // A kubelet that comes back finds its slices, and gives them their limits again.
    let again = Cgroups::open(mount.path(), "", driver()).await.expect("slices");
    assert_eq!(systemd.calls(), ["set kubepods-besteffort.slice CPUWeight=1"]);
    // systemd does not know of huge pages: they are passed on and limited by hand.
    let pages = mount.path().join(format!("{}/hugetlb.2MB.max", &path[1..]));
    std::fs::write(&pages, "max").expect("a file");
    let rules = Rules {
        page_sizes: vec!["2Mi".into()],
        ..RULES
    };
    again.create_pod(&p, &rules).await.expect("a slice");
    assert_eq!(systemd.calls(), [format!("set {unit} {limits}")]);
    let read = |file: PathBuf| std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(read(pages), "0");
    let passed = mount
        .path()
        .join("kubepods.slice/kubepods-burstable.slice/cgroup.subtree_control");
    assert_eq!(read(passed), "+hugetlb");

    again.remove_pod("1-2-3").await.expect("its end");
    assert_eq!(systemd.calls(), [format!("stop {unit}")]);
    assert_eq!(cgroups.pods(), Vec::<String>::new());
    again.remove_pod("1-2-3").await.expect("nothing to do");
    assert_eq!(systemd.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn weights_of_burstable_pods_and_reservations_are_told() {
    let (bus, mount) = (Bus::start(), tempfile::tempdir().expect("a directory"));
    std::fs::write(mount.path().join("cgroup.controllers"), "cpu memory pids").expect("a file");
    let (systemd, _connection) = Scripted::start(&bus.address, mount.path()).await;
    let driver = Driver::Systemd {
        bus: Some(bus.address.clone()),
    };
    let cgroups = Cgroups::open(mount.path(), "/a-b/c", driver).await.expect("slices");
    let p = sized();
    assert_eq!(crate::pod::qos(&p), Qos::Burstable);
    assert_eq!(cgroups.parent(&p), "a_b-c-kubepods-burstable-pod1_2_3.slice");
    systemd.calls();
    cgroups.weigh_burstable([&p, &p].into_iter()).expect("a weight");
    let told = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match systemd.calls().pop() {
                Some(call) => return call,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    let told = told.await.expect("a call");
    assert_eq!(told, "set a_b-c-kubepods-burstable.slice CPUWeight=59");
}

#[tokio::test]
async fn a_job_that_fails_and_a_bus_that_is_not_there_are_told() {
    let (bus, mount) = (Bus::start(), tempfile::tempdir().expect("a directory"));
    let (systemd, connection) = Scripted::start(&bus.address, mount.path()).await;
    let client = Systemd::new(Some(bus.address.clone()));
    client.start("a.slice", &[]).await.expect("a slice");
    systemd.asked.lock().result = Some("failed");
    let error = client.start("b.slice", &[]).await.expect_err("a failed job");
    assert!(
        matches!(&error, Error::Job { result, .. } if result == "failed"),
        "{error}"
    );
    systemd.asked.lock().result = None;

    // systemd is started anew: the next call finds it.
    connection.close().await.expect("the end");
    let (systemd, _connection) = Scripted::start(&bus.address, mount.path()).await;
    client.start("c.slice", &[]).await.expect("a slice");
    assert_eq!(systemd.calls().len(), 1);

    let nowhere = Systemd::new(Some("unix:path=/nonexistent/bus".into()));
    let error = nowhere.stop("a.slice").await.expect_err("no bus");
    assert!(error.to_string().contains("/nonexistent/bus"), "{error}");
}

#[test]
fn limits_of_both_hierarchies() {
    let all = Limits {
        shares: Some(512),
        quota: Some(25_000),
        period: Some(100_000),
        memory: Some(1 << 20),
        pids: Some(10),
    };
    let text = |unified| {
        let shown = limits(all, unified).into_iter().map(|(name, value)| match value {
            Value::Number(number) => format!("{name}={number}"),
            other => format!("{name}={other:?}"),
        });
        shown.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        text(true),
        "CPUWeight=59 CPUQuotaPerSecUSec=250000 CPUQuotaPeriodUSec=100000 MemoryMax=1048576 TasksMax=10"
    );
    assert_eq!(
        text(false),
        "CPUShares=512 CPUQuotaPerSecUSec=250000 CPUQuotaPeriodUSec=100000 MemoryLimit=1048576 TasksMax=10"
    );
    assert_eq!(limits(Limits::default(), true), []);
}
