//! A worker that joins once more keeps its own settings, unless this time others are asked for.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};
use skiff_pki::public_key_pins;

use crate::Layout;
use crate::config::{Argument, Join};
use crate::init::configuration;
use crate::record::Record;

/// What a node was joined as.
#[derive(Clone, Debug)]
pub(super) struct Former {
    pub(super) name: String,
    /// The container runtime's socket.
    pub(super) endpoint: String,
    /// The settings that stay; `None` where they are made anew.
    pub(super) settings: Option<Settings>,
}

/// What its files hold.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) kubelet: Value,
    proxy: Value,
    /// Words, as systemd hands them to the kubelet.
    arguments: Vec<String>,
}

impl Former {
    /// Its settings stay in the cluster that it was in, whose authorities are `ca_pem` now.
    pub(super) fn read(record: &Record, layout: &Layout, wish: &Join, ca_pem: &str) -> Self {
        let settings = Settings::read(layout);
        let name = settings.named().unwrap_or(&record.node).to_owned();
        let endpoint = settings.kubelet["containerRuntimeEndpoint"].as_str();
        let endpoint = endpoint.unwrap_or(&record.runtime_endpoint).to_owned();
        let stay = settings.are_whole(&name)
            && settings.have(wish, &name, &endpoint)
            && is_same_cluster(&layout.ca_certificate(), ca_pem);
        Self {
            name,
            endpoint,
            settings: stay.then_some(settings),
        }
    }

    /// The address that its kubelet goes on with.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.settings.as_ref().and_then(Settings::address)
    }
}

impl Settings {
    fn read(layout: &Layout) -> Self {
        let arguments = fs::read_to_string(layout.environment_file("kubelet")).unwrap_or_default();
        Self {
            kubelet: document(&layout.config_file("kubelet")),
            proxy: document(&layout.config_file("proxy")),
            arguments: words(&arguments, "KUBELET_ARGS"),
        }
    }

    /// Of two, the kubelet takes the last one.
    fn argument(&self, name: &str) -> Option<&str> {
        let value = |word: &'_ String| -> Option<usize> {
            let value = word.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('=')?;
            Some(word.len() - value.len())
        };
        let mut found = self.arguments.iter().rev();
        found.find_map(|word| value(word).and_then(|at| word.get(at..)))
    }

    fn named(&self) -> Option<&str> {
        self.argument("hostname-override")
    }

    /// Of two families, the first one's.
    fn address(&self) -> Option<IpAddr> {
        self.argument("node-ip")?.split(',').next()?.parse().ok()
    }

    /// Not those of a run that was interrupted while it wrote them.
    fn are_whole(&self, name: &str) -> bool {
        let proxy = &self.proxy["hostnameOverride"];
        self.kubelet.is_object() && proxy.as_str().is_none_or(|other| other == name)
    }

    /// Whether all that is asked for this time is so already.
    fn have(&self, wish: &Join, name: &str, endpoint: &str) -> bool {
        let word = |argument: &Argument| format!("--{}={}", argument.name, argument.value);
        let node = &wish.node;
        let taints = self
            .kubelet
            .get("registerWithTaints")
            .cloned()
            .unwrap_or_else(|| json!([]));
        node.name.as_ref().is_none_or(|wanted| wanted == name)
            && node.ip.is_none_or(|wanted| self.address() == Some(wanted))
            && node.runtime_endpoint.as_ref().is_none_or(|wanted| wanted == endpoint)
            && node.taints.as_ref().is_none_or(|wanted| taints == json!(wanted))
            && node
                .kubelet_args
                .iter()
                .all(|wanted| self.arguments.contains(&word(wanted)))
            && has(&self.kubelet, &wish.kubelet)
            && has(&self.proxy, &wish.proxy)
    }
}

/// Whether a person's fields would change nothing.
fn has(document: &Value, fields: &Map<String, Value>) -> bool {
    let mut merged = document.clone();
    configuration::lay_over(&mut merged, fields);
    fields.is_empty() || merged == *document
}

/// A configuration file of this machine; null if it is none.
fn document(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_default();
    serde_saphyr::from_str(&text).unwrap_or_default()
}

/// The words of a variable in a file that systemd reads as `EnvironmentFile`.
fn words(text: &str, variable: &str) -> Vec<String> {
    let value = |line: &'_ str| line.trim().strip_prefix(variable)?.strip_prefix('=').map(str::to_owned);
    let last = text.lines().filter_map(value).next_back().unwrap_or_default();
    let unquoted = last.trim().trim_matches(['"', '\'']);
    unquoted.split_whitespace().map(str::to_owned).collect()
}

/// An authority that is replaced is beside its successor for a while.
fn is_same_cluster(former: &Path, ca_pem: &str) -> bool {
    let former = fs::read_to_string(former)
        .ok()
        .and_then(|pem| public_key_pins(&pem).ok());
    let now = public_key_pins(ca_pem).unwrap_or_default();
    former.is_some_and(|former| former.iter().any(|pin| now.contains(pin)))
}

#[cfg(test)]
mod tests {
    use skiff_pki::CertificateAuthority;

    use super::*;
    use crate::config::JoinFlags;
    use crate::record::Role;

    const ENDPOINT: &str = "unix:///run/containerd/containerd.sock";
    const ARGUMENTS: &str =
        "KUBELET_ARGS=\"--node-ip=192.168.56.11 --hostname-override=one --node-labels=disk=fast\"\n";

    /// A worker whose person has set something in each of its files.
    struct Worker {
        _root: tempfile::TempDir,
        layout: Layout,
        record: Record,
        authority: CertificateAuthority,
    }

    impl Worker {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let layout = Layout::new(root.path());
            let authority = CertificateAuthority::generate("kubernetes").unwrap();
            fs::create_dir_all(layout.config()).unwrap();
            fs::create_dir_all(layout.pki()).unwrap();
            fs::write(layout.ca_certificate(), authority.certificate_pem()).unwrap();
            let kubelet = format!("# mine\nmaxPods: 7\ncontainerRuntimeEndpoint: {ENDPOINT}\n");
            fs::write(layout.config_file("kubelet"), kubelet).unwrap();
            fs::write(layout.config_file("proxy"), "mode: nftables\nhostnameOverride: one\n").unwrap();
            fs::write(layout.environment_file("kubelet"), ARGUMENTS).unwrap();
            let mut record = Record::for_test(Role::Worker, Some("then"));
            "one".clone_into(&mut record.node);
            ENDPOINT.clone_into(&mut record.runtime_endpoint);
            Self {
                _root: root,
                layout,
                record,
                authority,
            }
        }

        fn read(&self, wish: &Join) -> Former {
            Former::read(&self.record, &self.layout, wish, self.authority.certificate_pem())
        }
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

    fn argument(name: &str, value: &str) -> Argument {
        Argument {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn settings_stay_unless_others_are_asked_for() {
        type Ask = fn(&mut Join);
        let worker = Worker::new();
        let cases: [(bool, Ask); 14] = [
            (true, |_| {}),
            (true, |wish| wish.node.name = Some("one".to_owned())),
            (true, |wish| wish.node.ip = Some([192, 168, 56, 11].into())),
            (true, |wish| wish.node.runtime_endpoint = Some(ENDPOINT.to_owned())),
            (true, |wish| wish.node.taints = Some(vec![])),
            (true, |wish| {
                wish.node.kubelet_args.push(argument("node-labels", "disk=fast"))
            }),
            (true, |wish| drop(wish.kubelet.insert("maxPods".to_owned(), json!(7)))),
            (false, |wish| wish.node.name = Some("two".to_owned())),
            (false, |wish| wish.node.ip = Some([192, 168, 56, 12].into())),
            (false, |wish| {
                wish.node.runtime_endpoint = Some("unix:///other.sock".to_owned())
            }),
            (false, |wish| {
                wish.node.taints = Some(vec![json!({"key": "k", "effect": "NoExecute"})])
            }),
            (false, |wish| {
                wish.node.kubelet_args.push(argument("node-labels", "disk=slow"))
            }),
            (false, |wish| drop(wish.kubelet.insert("maxPods".to_owned(), json!(9)))),
            (false, |wish| {
                drop(wish.proxy.insert("mode".to_owned(), json!("iptables")))
            }),
        ];
        for (at, (stay, ask)) in cases.into_iter().enumerate() {
            let mut wish = wish();
            ask(&mut wish);
            let former = worker.read(&wish);
            assert_eq!(
                (former.name.as_str(), former.endpoint.as_str()),
                ("one", ENDPOINT),
                "{at}"
            );
            assert_eq!(former.settings.is_some(), stay, "{at}");
            let address = stay.then(|| [192, 168, 56, 11].into());
            assert_eq!(former.address(), address, "{at}");
        }
    }

    #[test]
    fn settings_stay_in_one_cluster_only() {
        let worker = Worker::new();
        let other = CertificateAuthority::generate("kubernetes").unwrap();
        let (own, other) = (worker.authority.certificate_pem(), other.certificate_pem());
        let stay = |ca: &str| {
            let former = Former::read(&worker.record, &worker.layout, &wish(), ca);
            former.settings.is_some()
        };
        assert!(stay(&format!("{other}{own}")), "its next authority stands beside it");
        assert!(!stay(other));
        fs::remove_file(worker.layout.ca_certificate()).unwrap();
        assert!(!stay(own));
    }

    /// The record has the new name before any file has.
    #[test]
    fn a_run_that_gave_another_name_and_was_interrupted_goes_on() {
        let mut worker = Worker::new();
        "two".clone_into(&mut worker.record.node);
        let mut wish = wish();
        wish.node.name = Some("two".to_owned());
        assert!(worker.read(&wish).settings.is_none());
        let renamed = ARGUMENTS.replace("=one ", "=two ");
        fs::write(worker.layout.environment_file("kubelet"), renamed).unwrap();
        assert!(worker.read(&wish).settings.is_none(), "the proxy has the other name");
        wish.node.name = None;
        assert_eq!(worker.read(&wish).name, "two");
    }

    #[test]
    fn what_a_person_makes_of_the_arguments_is_understood() {
        for (text, wanted) in [
            (ARGUMENTS, Some("192.168.56.11")),
            ("KUBELET_ARGS='--v=2 --node-ip=10.0.0.7'", Some("10.0.0.7")),
            // kubeadm's habit: an argument that a person adds goes before ours.
            (
                "KUBELET_ARGS=\"--node-ip=10.0.0.7 --node-ip=10.0.0.8,fd00::8\"",
                Some("10.0.0.8"),
            ),
            (
                "KUBELET_ARGS=--node-ip=fd00::7\n# KUBELET_ARGS=\"--node-ip=10.0.0.9\"\n",
                Some("fd00::7"),
            ),
            ("KUBELET_ARGS=\"--hostname-override=one\"", None),
            ("", None),
        ] {
            let settings = Settings {
                kubelet: Value::Null,
                proxy: Value::Null,
                arguments: words(text, "KUBELET_ARGS"),
            };
            assert_eq!(settings.address(), wanted.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }
}
