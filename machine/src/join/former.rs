//! A worker that joins once more: its certificates are new then, and nothing else is. `skiff reset` comes before other settings.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;
use skiff_pki::public_key_pins;

use crate::config::Join;
use crate::record::Record;
use crate::{Error, Layout};

/// What a node was joined as.
#[derive(Clone, Debug)]
pub(super) struct Former {
    pub(super) name: String,
    /// The container runtime's socket.
    pub(super) endpoint: String,
    /// What its kubelet is told, if it is.
    pub(super) address: Option<IpAddr>,
    /// Its kubelet's configuration; null without one.
    pub(super) kubelet: Value,
}

impl Former {
    /// What this machine's files hold, which a person may have changed since.
    pub(super) fn read(record: &Record, layout: &Layout) -> Result<Self, Error> {
        let kubelet = document(&layout.config_file("kubelet"))?;
        let arguments = fs::read_to_string(layout.environment_file("kubelet")).unwrap_or_default();
        let arguments = words(&arguments, "KUBELET_ARGS");
        let argument = |name| arguments.iter().find_map(|word| value(word, name));
        let endpoint = kubelet["containerRuntimeEndpoint"].as_str().filter(|it| !it.is_empty());
        Ok(Self {
            name: argument("--hostname-override").unwrap_or(&record.node).to_owned(),
            endpoint: endpoint.unwrap_or(&record.runtime_endpoint).to_owned(),
            // Of two families, the first one's.
            address: argument("--node-ip").and_then(|value| value.split(',').next()?.parse().ok()),
            kubelet,
        })
    }

    /// Refuses what would need other settings.
    pub(super) fn check(&self, layout: &Layout, wish: &Join) -> Result<(), Error> {
        let node = &wish.node;
        let refuse = |flag, wanted: String, has: String, process: Option<&str>| Error::SettingsStay {
            flag,
            wanted,
            has,
            file: process.map_or_else(|| layout.config_file("kubelet"), |name| layout.environment_file(name)),
        };
        let arguments = Some("kubelet");
        if let Some(name) = node.name.as_ref().filter(|name| **name != self.name) {
            return Err(refuse("--node-name", name.clone(), self.name.clone(), arguments));
        }
        if let Some(ip) = node.ip.filter(|ip| Some(*ip) != self.address) {
            let has = self.address.map_or_else(|| "none".to_owned(), |has| has.to_string());
            return Err(refuse("--node-ip", ip.to_string(), has, arguments));
        }
        match node
            .runtime_endpoint
            .as_ref()
            .filter(|wanted| **wanted != self.endpoint)
        {
            Some(wanted) => Err(refuse("--cri-socket", wanted.clone(), self.endpoint.clone(), None)),
            None => Ok(()),
        }
    }
}

/// Refuses another cluster than the one that this machine was a node of.
pub(super) fn check_cluster(layout: &Layout, ca_pem: &str) -> Result<(), Error> {
    let file = layout.ca_certificate();
    let Some(former) = fs::read_to_string(&file)
        .ok()
        .and_then(|pem| public_key_pins(&pem).ok())
    else {
        return Ok(());
    };
    let now = public_key_pins(ca_pem).unwrap_or_default();
    if former.iter().any(|pin| now.contains(pin)) {
        Ok(())
    } else {
        Err(Error::AnotherCluster { file })
    }
}

/// A configuration file of this machine; null where there is none.
fn document(path: &Path) -> Result<Value, Error> {
    match fs::read_to_string(path) {
        Ok(text) => serde_saphyr::from_str(&text).map_err(|error| Error::Settings {
            file: PathBuf::from(path),
            reason: error.to_string(),
        }),
        Err(_) => Ok(Value::Null),
    }
}

/// The words of a variable in a file that systemd reads as `EnvironmentFile`.
fn words(text: &str, variable: &str) -> Vec<String> {
    let whole = text.replace("\\\n", " ");
    let value = |line: &'_ str| line.trim().strip_prefix(variable)?.strip_prefix('=').map(str::to_owned);
    let last = whole.lines().filter_map(value).next_back().unwrap_or_default();
    let unquoted = last.trim().trim_matches(['"', '\'']);
    unquoted.split_whitespace().map(str::to_owned).collect()
}

fn value<'a>(word: &'a str, flag: &str) -> Option<&'a str> {
    let value = word.strip_prefix(flag)?.strip_prefix('=')?;
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use skiff_pki::CertificateAuthority;

    use super::*;
    use crate::config::JoinFlags;
    use crate::record::Role;

    const ENDPOINT: &str = "unix:///run/containerd/containerd.sock";

    fn worker(arguments: &str, kubelet: &str) -> (tempfile::TempDir, Layout, Record) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.config()).unwrap();
        fs::write(layout.environment_file("kubelet"), arguments).unwrap();
        fs::write(layout.config_file("kubelet"), kubelet).unwrap();
        let mut record = Record::for_test(Role::Worker, Some("then"));
        "recorded".clone_into(&mut record.node);
        ENDPOINT.clone_into(&mut record.runtime_endpoint);
        (root, layout, record)
    }

    fn wish() -> Join {
        let flags = JoinFlags {
            endpoint: Some("10.0.0.1:6443".to_owned()),
            token: Some("abcdef.0123456789abcdef".parse().unwrap()),
            unsafe_skip_ca_verification: true,
            ..JoinFlags::default()
        };
        Join::new(flags, None).unwrap()
    }

    #[test]
    fn what_a_person_makes_of_the_files_is_understood() {
        let default = ("recorded", ENDPOINT, None);
        for (arguments, kubelet, wanted) in [
            ("", "", default),
            (
                "KUBELET_ARGS=\"--hostname-override= --node-ip=\"",
                "containerRuntimeEndpoint: \"\"",
                default,
            ),
            (
                "KUBELET_ARGS=\"--node-ip=10.0.0.7 --hostname-override=one\"\n",
                "# mine\ncontainerRuntimeEndpoint: unix:///other.sock",
                ("one", "unix:///other.sock", Some("10.0.0.7")),
            ),
            (
                "KUBELET_ARGS='--v=2 --node-ip=10.0.0.7,fd00::7'\n# KUBELET_ARGS=\"--node-ip=10.0.0.9\"\n",
                "maxPods: 7",
                ("recorded", ENDPOINT, Some("10.0.0.7")),
            ),
            (
                "KUBELET_ARGS=--v=2 \\\n  --node-ip=fd00::7\n",
                "{}",
                ("recorded", ENDPOINT, Some("fd00::7")),
            ),
        ] {
            let (_root, layout, record) = worker(arguments, kubelet);
            let former = Former::read(&record, &layout).unwrap();
            let address = former.address.map(|ip| ip.to_string());
            let found = (former.name.as_str(), former.endpoint.as_str(), address.as_deref());
            assert_eq!(found, wanted, "{arguments} {kubelet}");
        }
        let (_root, layout, record) = worker("", "maxPods: [");
        let error = Former::read(&record, &layout).unwrap_err().to_string();
        assert!(error.contains("kubelet.yaml"), "{error}");
    }

    #[test]
    fn other_settings_are_refused() {
        type Ask = fn(&mut Join);
        let (_root, layout, record) = worker("KUBELET_ARGS=\"--node-ip=10.0.0.7 --hostname-override=one\"\n", "");
        let former = Former::read(&record, &layout).unwrap();
        let cases: [(Ask, Option<&str>); 7] = [
            (|_| {}, None),
            (|wish| wish.node.name = Some("one".to_owned()), None),
            (|wish| wish.node.ip = Some([10, 0, 0, 7].into()), None),
            (|wish| wish.node.runtime_endpoint = Some(ENDPOINT.to_owned()), None),
            (
                |wish| wish.node.name = Some("two".to_owned()),
                Some("--node-name two: "),
            ),
            (
                |wish| wish.node.ip = Some([10, 0, 0, 8].into()),
                Some("--node-ip 10.0.0.8: "),
            ),
            (
                |wish| wish.node.runtime_endpoint = Some("unix:///other.sock".to_owned()),
                Some("--cri-socket unix:///other.sock: "),
            ),
        ];
        for (ask, wanted) in cases {
            let mut wish = wish();
            ask(&mut wish);
            let refused = former.check(&layout, &wish).err().map(|error| error.to_string());
            match (refused, wanted) {
                (Some(text), Some(wanted)) => assert!(text.starts_with(wanted), "{text}"),
                (refused, wanted) => assert_eq!(refused.as_deref(), wanted),
            }
        }
    }

    #[test]
    fn another_cluster_is_refused() {
        let (_root, layout, _) = worker("", "");
        let authorities = [(); 2].map(|()| CertificateAuthority::generate("kubernetes").unwrap());
        let [own, other] = authorities.each_ref().map(CertificateAuthority::certificate_pem);
        check_cluster(&layout, own).unwrap();
        fs::create_dir_all(layout.pki()).unwrap();
        fs::write(layout.ca_certificate(), own).unwrap();
        check_cluster(&layout, own).unwrap();
        check_cluster(&layout, &format!("{other}{own}")).unwrap();
        let error = check_cluster(&layout, other).unwrap_err().to_string();
        assert!(error.contains("skiff reset"), "{error}");
    }
}
