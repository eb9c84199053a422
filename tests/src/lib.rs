//! What the end-to-end suites share: a cluster with the test images, `kubectl`, `skiff` itself, traffic through a Service, a
//! census of what a node holds, waiting for a condition.
//!
//! The suites themselves are in `tests/tests/`, one file a theme; each test has a real cluster of its own from
//! `skiff-cluster`.

pub mod census;
pub mod clock;
#[path = "../vm/src/readme.rs"]
#[allow(dead_code, reason = "the VM suite needs more of it")]
mod document;
pub mod home;
pub mod kubectl;
pub mod machine;
pub mod modes;
pub mod tls;
pub mod traffic;
pub mod wait;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
pub use skiff_cluster::testing::Shape;
use skiff_cluster::testing::TestCluster;

pub use kubectl::Kubectl;

/// The `skiff` binary under test: `SKIFF_BINARY`, or the one that was built beside the tests.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("SKIFF_BINARY") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("find the test's own binary")?;
    let beside = test.ancestors().nth(2).map(|directory| directory.join("skiff"));
    beside
        .filter(|path| path.is_file())
        .context("build the binaries first: cargo build")
}

/// A running cluster with the test images and a `kubectl` that reaches it.
#[derive(Debug)]
pub struct Fixture {
    /// The cluster.
    pub cluster: TestCluster,
    /// `kubectl` as administrator.
    pub kubectl: Kubectl,
}

impl Fixture {
    async fn start(shape: &Shape) -> anyhow::Result<Self> {
        skiff_daemon::install_crypto();
        let binary = binary()?;
        let images = tempfile::tempdir().context("make a directory for images")?;
        build_images(&binary, images.path())?;
        let started = TestCluster::start(&binary, shape, images.path()).await;
        let cluster = started.map_err(|error| anyhow::anyhow!(skiff_daemon::error_chain(&error)))?;
        let kubectl = Kubectl::new(cluster.layout().admin_kubeconfig());
        Ok(Self { cluster, kubectl })
    }
}

/// Runs a test on a cluster of `nodes` nodes; when it fails, prints what a person would look at first.
///
/// # Errors
/// What the test returns.
pub async fn on_cluster(
    nodes: usize,
    test: impl AsyncFnOnce(&mut Fixture) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    on_shaped_cluster(&Shape::nodes(nodes), test).await
}

/// The same on a cluster that is more than a number of nodes.
///
/// # Errors
/// What the test returns.
pub async fn on_shaped_cluster(
    shape: &Shape,
    test: impl AsyncFnOnce(&mut Fixture) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut fixture = Fixture::start(shape).await?;
    let result = test(&mut fixture).await;
    if result.is_err() {
        eprintln!("{}", fixture.cluster.report());
    }
    result
}

/// Builds the archives of the test images into `directory`.
///
/// # Errors
/// When the script fails.
pub fn build_images(binary: &Path, directory: &Path) -> anyhow::Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/images/build.sh");
    let output = Command::new(script)
        .arg(binary)
        .arg(directory)
        .output()
        .context("run tests/images/build.sh")?;
    anyhow::ensure!(
        output.status.success(),
        "tests/images/build.sh: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
