//! The world of a plugin's test: a node's namespace, pods' namespaces, a data folder, the programs.

#![allow(dead_code, unreachable_pub, missing_docs)] // Each test file uses its part of it.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use skiff_net::netns::Namespace;

/// Debian's package containernetworking-plugins: upstream's own, to compare with.
pub const UPSTREAM: &str = "/usr/lib/cni";

pub struct World {
    pub node: Namespace,
    pub folder: tempfile::TempDir,
    pub plugins: PathBuf,
    /// Address management of another place (upstream's) instead of ours.
    pub path: String,
}

/// One call of a plugin.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub plugin: &'a str,
    pub verb: &'a str,
    pub container: &'a str,
    pub namespace: &'a Path,
    pub interface: &'a str,
    pub arguments: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub ok: bool,
    pub json: Value,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plugins = folder.path().join("bin");
        std::fs::create_dir(&plugins).unwrap();
        for name in skiff_cni::PLUGINS {
            symlink(env!("CARGO_BIN_EXE_skiff-cni"), plugins.join(name)).unwrap();
        }
        let path = plugins.display().to_string();
        Self {
            node: Namespace::anonymous().unwrap(),
            folder,
            plugins,
            path,
        }
    }

    /// The same, with upstream's plugins.
    pub fn upstream() -> Self {
        let mut world = Self::new();
        world.plugins = PathBuf::from(UPSTREAM);
        world.path = UPSTREAM.to_owned();
        assert!(
            Path::new(UPSTREAM).join("bridge").exists(),
            "install Debian's containernetworking-plugins"
        );
        world
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn leases(&self, network: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.data().join(network)).into_iter().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name.parse::<std::net::IpAddr>().is_ok());
        names.sort();
        names
    }

    pub fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "cni0",
            "isGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": self.data(),
                "ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        })
    }

    pub fn pod(&self, name: &str) -> Pod {
        let directory = self.folder.path().join("netns");
        let namespace = Namespace::create(&directory, name).unwrap();
        Pod {
            path: directory.join(name),
            namespace,
            directory,
            name: name.to_owned(),
        }
    }

    pub fn start(&self, plugin: &str, verb: &str, container: &str, namespace: &Path, config: &Value) -> Child {
        let call = Call {
            plugin,
            verb,
            container,
            namespace,
            interface: "eth0",
            arguments: "",
        };
        self.begin(&call, &config.to_string())
    }

    pub fn begin(&self, call: &Call<'_>, input: &str) -> Child {
        let mut command = Command::new(self.plugins.join(call.plugin));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("CNI_COMMAND", call.verb)
            .env("CNI_CONTAINERID", call.container)
            .env("CNI_NETNS", call.namespace)
            .env("CNI_IFNAME", call.interface)
            .env("CNI_ARGS", call.arguments)
            .env("CNI_PATH", &self.path);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.node.run(|| command.spawn()).unwrap().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        match stdin.write_all(input.as_bytes()) {
            // It refused before it read.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            result => result.unwrap(),
        }
        child
    }

    pub fn call(&self, plugin: &str, verb: &str, container: &str, namespace: &Path, config: &Value) -> Answer {
        answer(
            &self
                .start(plugin, verb, container, namespace, config)
                .wait_with_output()
                .unwrap(),
        )
    }

    pub fn add(&self, pod: &Pod, config: &Value) -> Value {
        let answer = self.call("bridge", "ADD", &pod.name, &pod.path, config);
        assert!(answer.ok, "{answer:?}");
        answer.json
    }

    pub fn del(&self, pod: &Pod, config: &Value) {
        let answer = self.call("bridge", "DEL", &pod.name, &pod.path, config);
        assert!(answer.ok, "{answer:?}");
    }

    /// Runs a program on the node.
    pub fn shell(&self, line: &str) -> String {
        shell(&self.node, line)
    }
}

pub struct Pod {
    pub path: PathBuf,
    pub namespace: Namespace,
    pub name: String,
    directory: PathBuf,
}

impl Pod {
    pub fn shell(&self, line: &str) -> String {
        shell(&self.namespace, line)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        Namespace::delete(&self.directory, &self.name).unwrap();
    }
}

pub fn answer(output: &Output) -> Answer {
    let text = String::from_utf8_lossy(&output.stdout);
    let json = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap()
    };
    Answer {
        ok: output.status.success(),
        json,
    }
}

fn shell(namespace: &Namespace, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    let output = namespace.run(|| command.output()).unwrap().unwrap();
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
