//! What the runtime asks: a verb, a container, a configuration.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::{Network, nullable};
use crate::error::{Code, Error};
use crate::version;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container to the network.
    Add,
    /// Detach it; it may be gone already.
    Del,
    /// Look whether it is attached as it should be.
    Check,
    /// Say whether ADD would work.
    Status,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Say which versions are spoken.
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

/// The variables that the runtime sets.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `CNI_COMMAND`
    pub command: Option<String>,
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_NETNS`
    pub namespace: String,
    /// `CNI_IFNAME`
    pub interface: String,
    /// `CNI_ARGS`
    pub arguments: String,
    /// `CNI_PATH`
    pub path: OsString,
}

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Self {
        let text = |name| std::env::var(name).unwrap_or_default();
        Self {
            command: std::env::var("CNI_COMMAND").ok(),
            container: text("CNI_CONTAINERID"),
            namespace: text("CNI_NETNS"),
            interface: text("CNI_IFNAME"),
            arguments: text("CNI_ARGS"),
            path: std::env::var_os("CNI_PATH").unwrap_or_default(),
        }
    }

    fn verb(&self) -> Result<Verb, Error> {
        let command = self.command.as_deref().unwrap_or_default();
        Ok(match command {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "STATUS" => Verb::Status,
            "GC" => Verb::Gc,
            "VERSION" => Verb::Version,
            "" => return Err(invalid("required env variables [CNI_COMMAND] missing")),
            _ => return Err(invalid(format!("unknown CNI_COMMAND: {command}"))),
        })
    }

    fn check_present(&self, verb: Verb) -> Result<(), Error> {
        let variables = [
            (
                "CNI_CONTAINERID",
                self.container.is_empty(),
                &[Verb::Add, Verb::Del, Verb::Check][..],
            ),
            ("CNI_NETNS", self.namespace.is_empty(), &[Verb::Add, Verb::Check]),
            (
                "CNI_IFNAME",
                self.interface.is_empty(),
                &[Verb::Add, Verb::Del, Verb::Check],
            ),
            (
                "CNI_PATH",
                self.path.is_empty(),
                &[Verb::Add, Verb::Del, Verb::Check, Verb::Status, Verb::Gc],
            ),
        ];
        let missing: Vec<_> = variables
            .iter()
            .filter(|(_, empty, verbs)| *empty && verbs.contains(&verb))
            .map(|(name, ..)| *name)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(invalid(format!(
            "required env variables [{}] missing",
            missing.join(",")
        )))
    }

    fn check_valid(&self, verb: Verb) -> Result<(), Error> {
        if matches!(verb, Verb::Add | Verb::Del | Verb::Check) {
            check_container(&self.container)?;
            check_interface(&self.interface)?;
        }
        Ok(())
    }
}

/// A request that has been checked for everything that does not depend on the plugin.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) container: String,
    /// The file of the container's namespace. Empty at DEL when the container is gone.
    pub(crate) namespace: PathBuf,
    pub(crate) interface: String,
    pub(crate) environment: Environment,
    /// The configuration's version, one that is spoken here.
    pub(crate) version: String,
    /// The part of the configuration that every plugin has.
    pub(crate) network: Network,
    /// The configuration as it came, for the plugin's own part and for other programs.
    pub(crate) input: Vec<u8>,
}

impl Request {
    pub(crate) fn read(environment: &Environment, input: &[u8]) -> Result<Self, Error> {
        // In upstream's order, so that of several mistakes the same one is told.
        let verb = environment.verb()?;
        environment.check_present(verb)?;
        if verb == Verb::Version {
            return Self::version(environment, input);
        }
        let head: Head = serde_json::from_slice(input)
            .map_err(|source| Error::new(Code::Decoding, "error unmarshall network config").with(&source))?;
        check_network(&head.name)?;
        environment.check_valid(verb)?;
        let version = Some(head.cni_version).filter(|version| !version.is_empty());
        let version = version.unwrap_or_else(|| version::ASSUMED.to_owned());
        version::check(&version, verb)?;
        let network: Network = decode(input)?;
        Ok(Self {
            verb,
            container: environment.container.clone(),
            namespace: PathBuf::from(&environment.namespace),
            interface: environment.interface.clone(),
            environment: environment.clone(),
            version,
            network,
            input: input.to_vec(),
        })
    }

    /// VERSION is about the plugin: no configuration is needed, and a bad one is none.
    fn version(environment: &Environment, input: &[u8]) -> Result<Self, Error> {
        let head: Head = serde_json::from_slice(input).unwrap_or_default();
        Ok(Self {
            verb: Verb::Version,
            container: String::new(),
            namespace: PathBuf::new(),
            interface: String::new(),
            environment: environment.clone(),
            version: Some(head.cni_version)
                .filter(|version| !version.is_empty())
                .unwrap_or_else(|| version::CURRENT.to_owned()),
            network: Network::default(),
            input: Vec::new(),
        })
    }

    /// `CNI_ARGS`, as a plugin reads it that knows some of them. Others are an error unless it says to ignore them.
    pub(crate) fn arguments(&self, known: &[&str]) -> Result<BTreeMap<String, String>, Error> {
        let pairs = split_arguments(&self.environment.arguments)?;
        let mut arguments = BTreeMap::new();
        let (mut unknown, mut ignore) = (Vec::new(), false);
        for (key, value) in pairs {
            if key == "IgnoreUnknown" {
                ignore = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => {
                        return Err(arguments_error(format!(
                            "error parsing value of pair \"{key}={value}\": boolean unmarshal error: invalid input {value}"
                        )));
                    }
                };
            } else if known.contains(&key) {
                arguments.insert(key.to_owned(), value.to_owned());
            } else {
                unknown.push(format!("{key}={value}"));
            }
        }
        if !unknown.is_empty() && !ignore {
            return Err(arguments_error(format!("unknown args {}", version::list(&unknown))));
        }
        Ok(arguments)
    }

    /// The configuration in a plugin's own shape.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T, Error> {
        decode(&self.input)
    }

    /// The same request under another verb, for undoing.
    pub(crate) fn with_verb(&self, verb: Verb) -> Self {
        let mut environment = self.environment.clone();
        environment.command = Some(verb.to_string());
        Self {
            verb,
            container: self.container.clone(),
            namespace: self.namespace.clone(),
            interface: self.interface.clone(),
            environment,
            version: self.version.clone(),
            network: self.network.clone(),
            input: self.input.clone(),
        }
    }
}

/// What is read before anything else.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Head {
    #[serde(deserialize_with = "nullable")]
    cni_version: String,
    #[serde(deserialize_with = "nullable")]
    name: String,
}

fn decode<T: DeserializeOwned>(input: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(input).map_err(|source| Error::internal("failed to load netconf", &source))
}

fn arguments_error(what: impl fmt::Display) -> Error {
    Error::new(Code::Internal, format!("ARGS: {what}"))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidEnvironment, message)
}

/// The names of containers and networks become file names: they start with a letter or digit and hold nothing else
/// but `_`, `.` and `-`.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_container(container: &str) -> Result<(), Error> {
    if is_plain(container) {
        return Ok(());
    }
    Err(invalid("invalid characters in containerID").details(container))
}

fn check_network(name: &str) -> Result<(), Error> {
    let error = |message| Err(Error::new(Code::InvalidConfiguration, message));
    match name {
        "" => error("missing network name"),
        name if !is_plain(name) => {
            error("invalid characters found in network name").map_err(|error| error.details(name))
        }
        _ => Ok(()),
    }
}

fn check_interface(name: &str) -> Result<(), Error> {
    let (message, details) = if name.len() > 15 {
        (
            "interface name is too long",
            "interface name should be less than 16 characters".to_owned(),
        )
    } else if name == "." || name == ".." {
        ("interface name is . or ..", String::new())
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        ("interface name contains / or : or whitespace characters", String::new())
    } else {
        return Ok(());
    };
    Err(invalid(message).details(details))
}

fn split_arguments(text: &str) -> Result<Vec<(&str, &str)>, Error> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(';')
        .map(|pair| {
            let parts = pair.split_once('=').filter(|(_, value)| !value.contains('='));
            parts.ok_or_else(|| arguments_error(format!("invalid pair {pair:?}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Environment {
            command: Some("ADD".into()),
            container: "abc".into(),
            namespace: "/run/netns/pod".into(),
            interface: "eth0".into(),
            arguments: String::new(),
            path: "/opt/cni/bin".into(),
        }
    }

    const CONFIG: &[u8] = br#"{"cniVersion":"1.0.0","name":"net","type":"bridge"}"#;

    fn refusal(change: impl FnOnce(&mut Environment), input: &[u8]) -> (u32, String) {
        let mut environment = environment();
        change(&mut environment);
        let error = Request::read(&environment, input).unwrap_err();
        (error.code.number(), error.message)
    }

    #[test]
    fn a_good_request_is_read() {
        let mut environment = environment();
        environment.arguments = "IgnoreUnknown=1;K8S_POD_NAME=web".into();
        let request = Request::read(&environment, CONFIG).unwrap();
        assert_eq!((request.verb, request.version.as_str()), (Verb::Add, "1.0.0"));
        assert_eq!(request.arguments(&["K8S_POD_NAME"]).unwrap()["K8S_POD_NAME"], "web");
        assert!(request.arguments(&["MAC"]).unwrap().is_empty());
    }

    #[test]
    fn bad_requests_are_refused_with_upstreams_codes() {
        let missing = "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing";
        type Change = fn(&mut Environment);
        let cases: [(Change, &[u8], u32, &str); 10] = [
            (
                |e| {
                    *e = Environment {
                        command: Some("ADD".into()),
                        ..Environment::default()
                    }
                },
                CONFIG,
                4,
                missing,
            ),
            (
                |e| e.command = Some("FROB".into()),
                CONFIG,
                4,
                "unknown CNI_COMMAND: FROB",
            ),
            (
                |e| e.container = "a/b".into(),
                CONFIG,
                4,
                "invalid characters in containerID",
            ),
            (
                |e| e.container = "../x".into(),
                CONFIG,
                4,
                "invalid characters in containerID",
            ),
            (
                |e| e.interface = "sixteen-letters0".into(),
                CONFIG,
                4,
                "interface name is too long",
            ),
            // Of several mistakes, the configuration's is told.
            (
                |e| e.container = "a/b".into(),
                br#"{"cniVersion":"1.0.0","name":"a/b"}"#,
                7,
                "invalid characters found in network name",
            ),
            (
                |_| {},
                br#"{"cniVersion":"1.0.0","name":"n","prevResult":7}"#,
                999,
                "failed to load netconf: invalid type: integer `7`, expected struct Network at line 1 column 47",
            ),
            (
                |_| {},
                br#"{"cniVersion":"9.0.0","name":"n"}"#,
                1,
                "incompatible CNI versions",
            ),
            (|_| {}, br#"{"cniVersion":"1.0.0"}"#, 7, "missing network name"),
            (
                |_| {},
                br#"{"cniVersion":"1.0.0","name":"../../etc"}"#,
                7,
                "invalid characters found in network name",
            ),
        ];
        for (change, input, code, message) in cases {
            assert_eq!(refusal(change, input), (code, message.to_owned()));
        }
        let (code, message) = refusal(|_| {}, b"{\"cniVersion\":");
        assert_eq!(code, 6);
        assert!(message.starts_with("error unmarshall network config: "), "{message}");
    }

    #[test]
    fn arguments_that_nobody_knows_are_refused_unless_they_may_be_ignored() {
        let arguments = |text: &str| {
            let mut environment = environment();
            environment.arguments = text.to_owned();
            let request = Request::read(&environment, CONFIG).unwrap();
            request.arguments(&["IP"]).map_err(|error| error.message)
        };
        assert_eq!(arguments("").unwrap().len(), 0);
        assert_eq!(
            arguments("IgnoreUnknown=true;IP=10.0.0.1;X=y").unwrap()["IP"],
            "10.0.0.1"
        );
        for (text, wanted) in [
            ("IP", "ARGS: invalid pair \"IP\""),
            ("IP=1=2", "ARGS: invalid pair \"IP=1=2\""),
            ("X=y;IP=10.0.0.1;Z=", "ARGS: unknown args [\"X=y\" \"Z=\"]"),
            ("IgnoreUnknown=0;X=y", "ARGS: unknown args [\"X=y\"]"),
        ] {
            assert_eq!(arguments(text).unwrap_err(), wanted);
        }
    }

    #[test]
    fn the_version_is_told_without_a_configuration() {
        let mut environment = environment();
        environment.command = Some("VERSION".into());
        assert_eq!(Request::read(&environment, b"").unwrap().version, "1.1.0");
        assert_eq!(Request::read(&environment, CONFIG).unwrap().version, "1.0.0");
    }

    #[test]
    fn the_namespace_may_be_gone_at_del() {
        let mut environment = environment();
        environment.command = Some("DEL".into());
        environment.namespace = String::new();
        assert_eq!(Request::read(&environment, CONFIG).unwrap().verb, Verb::Del);
    }
}
