//! A worker that joins once more keeps its own settings: only what a person gives this time changes them.

use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::path::Path;

use serde_json::Value;

use crate::Layout;
use crate::config::Join;
use crate::files::Wanted;
use crate::init::Node;
use crate::record::Record;

/// What a node was joined as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Former {
    pub(super) name: String,
    /// The container runtime's socket.
    pub(super) endpoint: String,
    /// `None` where its kubelet is told none.
    pub(super) address: Option<IpAddr>,
}

impl Former {
    pub(super) fn read(record: &Record, layout: &Layout) -> Self {
        let arguments = fs::read_to_string(layout.environment_file("kubelet")).unwrap_or_default();
        Self {
            name: record.node.clone(),
            endpoint: record.runtime_endpoint.clone(),
            address: address(&arguments),
        }
    }

    /// Of a node's files those that are to be written: one that is there is a person's, too.
    pub(super) fn changed(
        &self,
        layout: &Layout,
        wish: &Join,
        node: &Node,
        endpoint: &str,
        files: Vec<Wanted>,
    ) -> Vec<Wanted> {
        let other_runtime = endpoint != self.endpoint;
        let changed = |file: Wanted| {
            let Ok(found) = fs::read_to_string(&file.path) else {
                return Some(file);
            };
            if file.path == layout.environment_file("kubelet") && wish.node.kubelet_args.is_empty() {
                let content = self.arguments(node, &found);
                return (content != found).then_some(Wanted { content, ..file });
            }
            let given = if file.path == layout.config_file("kubelet") {
                other_runtime || !wish.kubelet.is_empty() || wish.node.taints.is_some()
            } else if file.path == layout.config_file("proxy") {
                node.name != self.name || !wish.proxy.is_empty()
            } else {
                other_runtime || file.path == layout.environment_file("kubelet")
            };
            given.then_some(file)
        };
        files.into_iter().filter_map(changed).collect()
    }

    /// The kubelet's arguments as they are, but for a name or an address that is another now.
    fn arguments(&self, node: &Node, found: &str) -> String {
        let mut text = found.to_owned();
        for (flag, value, other) in [
            ("node-ip", node.address.to_string(), self.address != Some(node.address)),
            ("hostname-override", node.name.clone(), node.name != self.name),
        ] {
            if let Some(range) = value_of(&text, flag).filter(|_| other) {
                text.replace_range(range, &value);
            }
        }
        text
    }
}

/// A configuration file of this machine, if it is one.
pub(super) fn document(path: &Path) -> Option<Value> {
    let text = fs::read_to_string(path).ok()?;
    serde_saphyr::from_str(&text).ok().filter(Value::is_object)
}

/// The address that a kubelet's arguments tell it; the first of two.
fn address(arguments: &str) -> Option<IpAddr> {
    let value = &arguments[value_of(arguments, "node-ip")?];
    value.split(',').next()?.parse().ok()
}

/// Where the value of a flag stands: of two, the kubelet takes the last one.
fn value_of(arguments: &str, flag: &str) -> Option<Range<usize>> {
    let flag = format!("--{flag}=");
    let begin = arguments.rfind(&flag)? + flag.len();
    let value = &arguments[begin..];
    let length = value.find(|c: char| c.is_whitespace() || c == '"');
    Some(begin..begin + length.unwrap_or(value.len()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Argument, JoinFlags};
    use crate::init::configuration::{self, Runtime};
    use crate::record::Role;

    const ENDPOINT: &str = "unix:///run/containerd/containerd.sock";
    const ARGUMENTS: &str = "KUBELET_ARGS=\"--node-ip=192.168.56.11 --hostname-override=n --node-labels=disk=fast\"\n";

    /// A worker whose person has set something in each of its files.
    fn worker() -> (tempfile::TempDir, Layout, Former) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        fs::create_dir_all(layout.config()).unwrap();
        fs::write(layout.config_file("kubelet"), "# mine\nmaxPods: 7\n").unwrap();
        fs::write(layout.config_file("proxy"), "mode: nftables\n").unwrap();
        fs::write(layout.environment_file("kubelet"), ARGUMENTS).unwrap();
        fs::write(layout.environment_file("proxy"), "PROXY_ARGS=\"--v=4\"\n").unwrap();
        let record = Record {
            runtime_endpoint: ENDPOINT.to_owned(),
            ..Record::for_test(Role::Worker, Some("then"))
        };
        let former = Former::read(&record, &layout);
        (root, layout, former)
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

    /// The names and contents of the files that are written.
    fn written(
        (layout, former): (&Layout, &Former),
        wish: &Join,
        node: &Node,
        endpoint: &str,
    ) -> Vec<(String, String)> {
        let runtime = Runtime {
            endpoint: endpoint.to_owned(),
            ..Runtime::default()
        };
        let shared = json!({"kind": "KubeletConfiguration"});
        let files = configuration::node(layout, node, &runtime, &shared, &json!({}), "auto");
        assert_eq!(files.len(), 4);
        let changed = former.changed(layout, wish, node, endpoint, files);
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        changed
            .into_iter()
            .map(|file| (name(&file.path), file.content))
            .collect()
    }

    #[test]
    fn the_plain_line_changes_no_setting() {
        let (_root, layout, former) = worker();
        assert_eq!(former.address, Some("192.168.56.11".parse().unwrap()));
        let node = Node::for_test("n", "192.168.56.11");
        assert_eq!(written((&layout, &former), &wish(), &node, ENDPOINT), []);
        // What is not there is written.
        fs::remove_file(layout.config_file("proxy")).unwrap();
        let made = written((&layout, &former), &wish(), &node, ENDPOINT);
        assert!(
            matches!(made.as_slice(), [(name, _)] if name == "proxy.yaml"),
            "{made:?}"
        );
    }

    #[test]
    fn what_is_given_this_time_changes_the_files_it_belongs_to() {
        type Give = fn(&mut Join);
        let (_root, layout, former) = worker();
        let same = Node::for_test("n", "192.168.56.11");
        let cases: [(Give, Node, &str, &[&str]); 6] = [
            (
                |wish| drop(wish.kubelet.insert("maxPods".to_owned(), json!(9))),
                same.clone(),
                ENDPOINT,
                &["kubelet.yaml"],
            ),
            (
                |wish| wish.node.taints = Some(vec![]),
                same.clone(),
                ENDPOINT,
                &["kubelet.yaml"],
            ),
            (
                |wish| drop(wish.proxy.insert("mode".to_owned(), json!("iptables"))),
                same.clone(),
                ENDPOINT,
                &["proxy.yaml"],
            ),
            (
                |wish| {
                    wish.node.kubelet_args.push(Argument {
                        name: "v".to_owned(),
                        value: "4".to_owned(),
                    });
                },
                same.clone(),
                ENDPOINT,
                &["kubelet.env"],
            ),
            (
                |_| {},
                Node::for_test("m", "192.168.56.11"),
                ENDPOINT,
                &["kubelet.env", "proxy.yaml"],
            ),
            (|_| {}, same, "unix:///other.sock", &["kubelet.yaml", "proxy.env"]),
        ];
        for (give, node, endpoint, wanted) in cases {
            let mut wish = wish();
            give(&mut wish);
            let changed = written((&layout, &former), &wish, &node, endpoint);
            let names: Vec<_> = changed.iter().map(|(name, _)| name).collect();
            assert_eq!(names, wanted);
        }
    }

    #[test]
    fn another_address_keeps_the_other_arguments() {
        let (_root, layout, former) = worker();
        let node = Node::for_test("m", "192.168.56.12");
        let changed = written((&layout, &former), &wish(), &node, ENDPOINT);
        let wanted = ARGUMENTS.replace("56.11", "56.12").replace("=n ", "=m ");
        assert_eq!(changed[0], ("kubelet.env".to_owned(), wanted));
    }

    #[test]
    fn the_address_that_a_kubelet_is_told() {
        for (arguments, wanted) in [
            (ARGUMENTS, Some("192.168.56.11")),
            ("KUBELET_ARGS=\"--v=2 --node-ip=10.0.0.7\"", Some("10.0.0.7")),
            // kubeadm's habit: an argument that a person adds goes before ours.
            (
                "KUBELET_ARGS=\"--node-ip=10.0.0.7 --node-ip=10.0.0.8,fd00::8\"",
                Some("10.0.0.8"),
            ),
            ("KUBELET_ARGS=--node-ip=fd00::7\n", Some("fd00::7")),
            ("KUBELET_ARGS=\"--hostname-override=n\"", None),
            ("", None),
        ] {
            assert_eq!(address(arguments), wanted.map(|ip| ip.parse().unwrap()), "{arguments}");
        }
    }
}
