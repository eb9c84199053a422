//! The cluster on the lab's machines, as the steps see it: commands typed on the master, and what earlier steps have learnt.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::lab::Lab;
use crate::machine::{COMMAND, Machine};
use crate::readme::Path;
use crate::wait::until;

/// How long a change may take to show: containers start in seconds under emulation, and two cores run all machines.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// The machines with what was learnt of them.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The machines; the first is the master.
    pub(crate) lab: Lab,
    /// What is typed on them.
    pub(crate) readme: Path,
    /// The directory of the user's guide, whose commands are typed too.
    documents: PathBuf,
    /// The line that `skiff init` has printed for the others.
    pub(crate) join_line: String,
    /// What each machine held before it became a node.
    pub(crate) before: BTreeMap<String, String>,
}

impl Cluster {
    pub(crate) fn new(lab: Lab, readme: Path, documents: PathBuf) -> Self {
        Self {
            lab,
            readme,
            documents,
            join_line: String::new(),
            before: BTreeMap::new(),
        }
    }

    /// Types a block of the user's guide on the master; returns what it printed.
    pub(crate) fn follow(&self, document: &str, block: &str) -> anyhow::Result<String> {
        self.master().run(&self.block(document, block)?)
    }

    /// A block of the user's guide.
    pub(crate) fn block(&self, document: &str, block: &str) -> anyhow::Result<String> {
        let document = Path::read(&self.documents.join(document))?;
        document.block(block).map(str::to_owned)
    }

    /// The first machine.
    pub(crate) fn master(&self) -> &Machine {
        &self.lab.machines[0]
    }

    /// All but the first.
    pub(crate) fn workers(&self) -> &[Machine] {
        &self.lab.machines[1..]
    }

    /// Runs a command on every one of these machines at once; returns what each printed.
    pub(crate) fn on_each(machines: &[Machine], script: &str) -> anyhow::Result<Vec<String>> {
        std::thread::scope(|scope| {
            let running: Vec<_> = machines
                .iter()
                .map(|machine| scope.spawn(|| machine.run(script)))
                .collect();
            let joined = running.into_iter().map(|thread| {
                let result = thread.join();
                result.map_err(|_| anyhow::anyhow!("a thread has panicked"))?
            });
            joined.collect()
        })
    }

    /// `kubectl` on the master.
    pub(crate) fn kubectl(&self, arguments: &str) -> anyhow::Result<String> {
        self.master().run(&format!("kubectl {arguments}"))
    }

    /// `kubectl apply` of a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let printed = self.master().shell("kubectl apply -f -", manifest, COMMAND)?;
        anyhow::ensure!(printed.code == 0, "kubectl apply: {}", printed.stderr);
        Ok(())
    }

    /// `kubectl get … -o json`.
    pub(crate) fn get(&self, what: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&format!("get {what} -o json"))?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    /// The names of the nodes and whether each is Ready.
    pub(crate) fn nodes(&self) -> anyhow::Result<BTreeMap<String, bool>> {
        let nodes = self.get("nodes")?;
        let items = nodes["items"].as_array().into_iter().flatten();
        Ok(items
            .map(|node| (text(&node["metadata"]["name"]), condition(node, "Ready")))
            .collect())
    }

    /// Waits until all machines are Ready nodes.
    pub(crate) fn wait_until_ready(&self) -> anyhow::Result<()> {
        let count = self.lab.machines.len();
        let all = |nodes: &BTreeMap<String, bool>| nodes.len() == count && nodes.values().all(|ready| *ready);
        until("all nodes Ready", LIMIT, || self.nodes(), all).map(|_| ())
    }

    /// The nodes on which ready pods with this label run, one entry a pod.
    pub(crate) fn places(&self, selector: &str) -> anyhow::Result<Vec<String>> {
        let pods = self.get(&format!("pods --selector {selector}"))?;
        let items = pods["items"].as_array().into_iter().flatten();
        let ready = items.filter(|pod| condition(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null());
        Ok(ready.map(|pod| text(&pod["spec"]["nodeName"])).collect())
    }

    /// Asks a web server from a machine until it answers.
    pub(crate) fn ask(&self, from: &Machine, url: &str) -> anyhow::Result<String> {
        let command = format!("curl --silent --show-error --max-time 10 http://{url}/");
        until(
            &format!("{url} from {}", from.name),
            LIMIT,
            || from.run(&command),
            |body| body.starts_with("hello from"),
        )
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}
