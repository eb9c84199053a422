//! Taking a cluster down: what `up` made goes, in reverse; its state stays unless it is to be purged.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use skiff_cri::{Client, Runtime as _, SandboxFilter, containerd};
use tokio::time::timeout;

use crate::layout::{Layout, NodeLayout};
use crate::progress::Progress;
use crate::record::Started;
use crate::up::lock;
use crate::{Cluster, Error, Record, Result, Role, leftovers, network};

/// How long a process may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Containers get a moment to end by themselves; a test cluster is not worth more.
const SWEEP_WITHIN: Duration = Duration::from_secs(20);
const AT_ONCE: usize = 8;

impl Cluster {
    /// Ends everything that runs for the cluster and removes its namespaces, mounts and cgroups; with `purge`, its
    /// directory too. A cluster that is not there is no error.
    ///
    /// # Errors
    /// When something could not be removed; all the rest is removed all the same.
    pub async fn down(home: &Path, name: &str, purge: bool, progress: &dyn Progress) -> Result<()> {
        let layout = Layout::new(home, name)?;
        let _lock = lock(&layout)?;
        let mut cluster = match Record::read(&layout.record()) {
            Ok(record) => {
                let record = record.unwrap_or_else(|| Record {
                    nodes: nodes_by_directory(&layout),
                    ..Record::default()
                });
                Self::new(layout, record)
            }
            // A garbled record must not keep anybody from purging.
            Err(error @ Error::Record { .. }) if purge => {
                tracing::warn!(%error, "going by the directories alone");
                Self {
                    record: Record {
                        nodes: nodes_by_directory(&layout),
                        ..Record::default()
                    },
                    layout,
                }
            }
            Err(error) => return Err(error),
        };
        let mut left = cluster.stop_processes(progress).await;
        progress.step("removing what is left");
        left.extend(cluster.sweep(purge));
        if left.is_empty() {
            Ok(())
        } else {
            Err(Error::Leftovers { what: left })
        }
    }

    async fn stop_processes(&mut self, progress: &dyn Progress) -> Vec<String> {
        // First those that would start or program things again.
        progress.step("kubelets and proxies");
        let mut left = self.stop(&[Role::Kubelet, Role::Proxy, Role::Ingress]).await;
        progress.step("containers");
        let nodes = self.nodes();
        futures::future::join_all(nodes.iter().map(stop_sandboxes)).await;
        progress.step("server and container runtimes");
        left.extend(self.stop(&[Role::Server, Role::Containerd]).await);
        left
    }

    async fn stop(&self, roles: &[Role]) -> Vec<String> {
        let chosen = self
            .record
            .processes
            .iter()
            .filter(|started| roles.contains(&started.role));
        let stopping = chosen.map(|Started { role, node, process }| {
            let (process, what) = (*process, format!("{role} of {node}"));
            async move {
                let stopped = tokio::task::spawn_blocking(move || process.stop(PATIENCE)).await;
                match stopped {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("stop {what}: {error}")),
                    Err(error) => Some(format!("stop {what}: {error}")),
                }
            }
        });
        futures::future::join_all(stopping)
            .await
            .into_iter()
            .flatten()
            .collect()
    }

    fn sweep(&mut self, purge: bool) -> Vec<String> {
        let directory = self.layout.directory();
        let mut left = leftovers::remove_cgroups(&self.layout.cgroup());
        for node in self.nodes() {
            left.extend(
                network::open(&node)
                    .ok()
                    .and_then(|namespace| leftovers::end_processes(&namespace).err()),
            );
            let shims = containerd::kill_shims(&node.containerd_socket());
            left.extend(
                shims
                    .err()
                    .map(|error| format!("end the shims of {}: {error}", node.name)),
            );
            containerd::remove_shim_sockets(&node.containerd_state());
            if purge {
                // Otherwise containerd, when it runs again, ends what it finds.
                containerd::remove_cni_results(&node.containerd_root());
            }
        }
        let unmounted = containerd::unmount_below(&directory);
        left.extend(
            unmounted
                .err()
                .map(|error| format!("unmount {}: {error}", directory.display())),
        );
        left.extend(
            network::remove(&self.layout, &self.nodes())
                .iter()
                .map(|error| skiff_daemon::error_chain(error)),
        );
        self.record.processes.clear();
        left.extend(self.forget(purge && left.is_empty(), &directory));
        left
    }

    /// Deletes the directory, or only notes that nothing runs any more.
    fn forget(&self, purge: bool, directory: &Path) -> Option<String> {
        if !directory.exists() {
            // Nobody would ever take it again; it fails only when it is gone already.
            std::fs::remove_file(self.layout.lock()).ok();
            return None;
        }
        let result = if purge {
            // Nothing is mounted below any more: this deletes only what is the cluster's own.
            std::fs::remove_dir_all(directory)
                .and_then(|()| std::fs::remove_file(self.layout.lock()))
                .map_err(Error::file("remove", directory))
        } else {
            self.record.write(&self.layout.record())
        };
        result.err().map(|error| skiff_daemon::error_chain(&error))
    }
}

/// Stops and removes every sandbox of a node, as far as its runtime still answers; the sweep takes what is left.
async fn stop_sandboxes(node: &NodeLayout) {
    let socket = node.containerd_socket();
    if tokio::net::UnixStream::connect(&socket).await.is_err() {
        return;
    }
    let client = Client::new(&format!("unix://{}", socket.display()));
    let sweep = async {
        let sandboxes = client.list_sandboxes(&SandboxFilter::default()).await?;
        let client = &client;
        futures::stream::iter(sandboxes)
            .for_each_concurrent(AT_ONCE, async |sandbox| {
                for result in [
                    client.stop_sandbox(&sandbox.id).await,
                    client.remove_sandbox(&sandbox.id).await,
                ] {
                    if let Err(error) = result {
                        tracing::debug!(
                            node = node.name,
                            error = skiff_daemon::error_chain(&error),
                            "sandbox stays"
                        );
                    }
                }
            })
            .await;
        Ok::<(), skiff_cri::Error>(())
    };
    match timeout(SWEEP_WITHIN, sweep).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(
            node = node.name,
            error = skiff_daemon::error_chain(&error),
            "sandboxes stay"
        ),
        Err(_) => tracing::debug!(node = node.name, "sandboxes take too long to end"),
    }
}

fn nodes_by_directory(layout: &Layout) -> Vec<String> {
    let entries = std::fs::read_dir(layout.directory().join("nodes"))
        .into_iter()
        .flatten();
    let mut nodes: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    nodes.sort_by_key(|name| name.trim_start_matches("node-").parse::<usize>().unwrap_or_default());
    nodes
}
