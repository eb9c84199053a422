//! Slices of systemd, made and removed over D-Bus: three calls of `org.freedesktop.systemd1.Manager` and one signal.
//! See systemd's org.freedesktop.systemd1(5) and systemd.resource-control(5).

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::Mutex;
use zbus::{Connection, OwnedObjectPath, Proxy, Variant};

use super::Limits;

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// A job of systemd takes milliseconds; one that takes so long will not end.
const JOB: Duration = Duration::from_secs(30);
/// systemd keeps CPU quotas in hundredths of a core.
const QUOTA_STEP: u64 = 10_000;

/// Why systemd does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No bus, or no systemd on it.
    #[error("cannot reach systemd over D-Bus; is dbus installed and its socket {0} there?")]
    Connect(String, #[source] zbus::Error),
    /// A call failed.
    #[error("systemd refuses {call} of unit {unit}")]
    Call {
        /// Method.
        call: &'static str,
        /// Unit.
        unit: String,
        /// What it says.
        #[source]
        source: zbus::Error,
    },
    /// A job has ended badly.
    #[error("systemd's job for unit {unit} ended as {result:?}; see journalctl -u {unit}")]
    Job {
        /// Unit.
        unit: String,
        /// `failed`, `canceled`, `timeout` ...
        result: String,
    },
}

/// The value of a unit's property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Flag(bool),
    Number(u64),
    Text(String),
    Texts(Vec<String>),
}

/// A property by its D-Bus name.
pub(super) type Property = (&'static str, Value);

/// systemd; clones share one connection, which is made when it is needed, and again when it was lost.
#[derive(Clone, Debug)]
pub(super) struct Systemd {
    /// The bus; the system's when none is given.
    address: Option<String>,
    connection: Arc<Mutex<Option<Connection>>>,
}

impl Systemd {
    /// The systemd on a bus.
    pub(super) fn new(address: Option<String>) -> Self {
        Self {
            address,
            connection: Arc::default(),
        }
    }

    async fn connect(&self) -> Result<Proxy<'static>, Error> {
        let failed = |error| {
            let socket = self.address.as_deref().unwrap_or("/run/dbus/system_bus_socket");
            Error::Connect(socket.to_owned(), error)
        };
        let mut held = self.connection.lock().await;
        let connection = match &*held {
            Some(connection) => connection.clone(),
            None => {
                let builder = match &self.address {
                    Some(address) => zbus::conn::Builder::address(address.as_str()),
                    None => zbus::conn::Builder::system(),
                };
                let connection = builder.build().await.map_err(failed)?;
                let manager = manager(&connection).await.map_err(failed)?;
                // Without it systemd tells nobody of jobs that end.
                let () = manager.call("Subscribe", &()).await.map_err(failed)?;
                held.insert(connection).clone()
            }
        };
        manager(&connection).await.map_err(failed)
    }

    /// Asks; once more on a new connection when the old one was lost.
    async fn ask(&self, request: &Request<'_>) -> Result<(), Error> {
        match request.send(&self.connect().await?).await {
            Err(Error::Call { source, .. }) if is_lost(&source) => {
                *self.connection.lock().await = None;
                request.send(&self.connect().await?).await
            }
            answer => answer,
        }
    }

    /// Makes a slice with its limits; one that is there gets the limits.
    pub(super) async fn start(&self, unit: &str, limits: &[Property]) -> Result<(), Error> {
        let mut properties = slice(unit);
        properties.extend_from_slice(limits);
        match self.ask(&Request::Start(unit, &properties)).await {
            Err(Error::Call { source, .. }) if is_named(&source, "UnitExists") => self.set(unit, limits).await,
            begun => begun,
        }
    }

    /// Changes the limits of a unit until the next boot.
    pub(super) async fn set(&self, unit: &str, limits: &[Property]) -> Result<(), Error> {
        if limits.is_empty() {
            return Ok(());
        }
        self.ask(&Request::Set(unit, limits)).await
    }

    /// Ends a slice with all that is in it; succeeds when there is none.
    pub(super) async fn stop(&self, unit: &str) -> Result<(), Error> {
        match self.ask(&Request::Stop(unit)).await {
            Err(Error::Call { source, .. }) if is_named(&source, "NoSuchUnit") => Ok(()),
            stopped => stopped,
        }
    }
}

/// What systemd is asked.
enum Request<'a> {
    Start(&'a str, &'a [Property]),
    Set(&'a str, &'a [Property]),
    Stop(&'a str),
}

impl Request<'_> {
    async fn send(&self, manager: &Proxy<'static>) -> Result<(), Error> {
        match *self {
            Self::Start(unit, properties) => {
                let none: [(&str, Vec<(&str, Variant<'_>)>); 0] = [];
                let body = (unit, "replace", wire(properties), none.as_slice());
                job(manager, "StartTransientUnit", unit, &body).await
            }
            Self::Set(unit, properties) => {
                let body = (unit, true, wire(properties));
                let answer = manager.call("SetUnitProperties", &body).await;
                answer.map_err(|source| failed("SetUnitProperties", unit, source))
            }
            Self::Stop(unit) => job(manager, "StopUnit", unit, &(unit, "replace")).await,
        }
    }
}

async fn manager(connection: &Connection) -> zbus::Result<Proxy<'static>> {
    Proxy::new_owned(connection.clone(), SERVICE, PATH, MANAGER).await
}

/// Begins a job and waits until it has ended.
async fn job<B>(manager: &Proxy<'static>, call: &'static str, unit: &str, body: &B) -> Result<(), Error>
where
    B: serde::Serialize + zbus::wire::DynamicType,
{
    let failed = |error| failed(call, unit, error);
    // Listened to before the job begins, or a quick end would go unheard.
    let mut ends = manager
        .receive_signal_with_args("JobRemoved", &[(2, unit)])
        .await
        .map_err(failed)?;
    let job: OwnedObjectPath = manager.call(call, body).await.map_err(failed)?;
    let result = tokio::time::timeout(JOB, async {
        while let Some(signal) = ends.next().await {
            let body = signal.body();
            let (_, ended, _, result): (u32, OwnedObjectPath, String, String) = body.deserialize().map_err(failed)?;
            if ended == job {
                return Ok(result);
            }
        }
        Ok("lost".to_owned())
    });
    let result = result.await.unwrap_or_else(|_| Ok("timeout".into()))?;
    if result == "done" {
        return Ok(());
    }
    Err(Error::Job {
        unit: unit.to_owned(),
        result,
    })
}

fn failed(call: &'static str, unit: &str, source: zbus::Error) -> Error {
    Error::Call {
        call,
        unit: unit.to_owned(),
        source,
    }
}

fn is_named(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(full, ..) if full.rsplit('.').next() == Some(name))
}

fn is_lost(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::InputOutput(_))
        || ["Disconnected", "NoReply", "ServiceUnknown"]
            .iter()
            .any(|name| is_named(error, name))
}

fn wire(properties: &[Property]) -> Vec<(&'static str, Variant<'_>)> {
    properties.iter().map(|(name, value)| (*name, value.wire())).collect()
}

impl Value {
    fn wire(&self) -> Variant<'_> {
        match self {
            Self::Flag(flag) => Variant::from(*flag),
            Self::Number(number) => Variant::from(*number),
            Self::Text(text) => Variant::from(text.as_str()),
            Self::Texts(texts) => Variant::from(texts.iter().map(String::as_str).collect::<Vec<_>>()),
        }
    }
}

/// What every slice of pods has: its parent wanted, everything counted, and no order at shutdown that would end pods early.
fn slice(unit: &str) -> Vec<Property> {
    let parent = unit
        .trim_end_matches(".slice")
        .rsplit_once('-')
        .map(|(parent, _)| parent);
    let mut properties = vec![
        ("Description", Value::Text(format!("Kubernetes pods: {unit}"))),
        ("DefaultDependencies", Value::Flag(false)),
    ];
    properties.extend(parent.map(|parent| ("Wants", Value::Texts(vec![format!("{parent}.slice")]))));
    for name in ["CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"] {
        properties.push((name, Value::Flag(true)));
    }
    properties
}

/// Limits as properties: those of the hierarchy that systemd manages.
pub(super) fn limits(limits: Limits, unified: bool) -> Vec<Property> {
    let number = |value: i64| Value::Number(u64::try_from(value).unwrap_or(0));
    let mut properties = Vec::new();
    properties.extend(limits.shares.map(|shares| {
        if unified {
            ("CPUWeight", number(super::files::weight(shares)))
        } else {
            ("CPUShares", number(shares))
        }
    }));
    if let (Some(quota), Some(period)) = (limits.quota, limits.period) {
        let (quota, period) = (quota.max(0).unsigned_abs(), period.max(1).unsigned_abs());
        let per_second = (quota * 1_000_000).div_ceil(period).div_ceil(QUOTA_STEP) * QUOTA_STEP;
        properties.push(("CPUQuotaPerSecUSec", Value::Number(per_second)));
        properties.push(("CPUQuotaPeriodUSec", Value::Number(period)));
    }
    let memory = if unified { "MemoryMax" } else { "MemoryLimit" };
    properties.extend(limits.memory.map(|memory_limit| (memory, number(memory_limit))));
    properties.extend(limits.pids.map(|pids| ("TasksMax", number(pids))));
    properties
}

#[cfg(test)]
mod tests;
