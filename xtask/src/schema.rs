//! `cargo xtask schema`: Kubernetes' published Go types to `api/schema/*.json`.
//!
//! Names, numbers, tags and markers are facts and are kept; nobody's sentences are. The result is checked against the
//! protobuf definitions and against the structured-merge schema that come in the same packages.

mod emit;
mod go;
mod merge_schema;
mod proto;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Where a file's facts are, below `k8s.io/`, and what it is called here.
struct Source {
    name: &'static str,
    path: &'static str,
    files: &'static [&'static str],
    package: &'static str,
}

const fn api(name: &'static str, path: &'static str, package: &'static str) -> Source {
    Source {
        name,
        path,
        files: &["types.go"],
        package,
    }
}

const SOURCES: &[Source] = &[
    api(
        "admissionregistration.v1",
        "api/admissionregistration/v1",
        "io.k8s.api.admissionregistration.v1",
    ),
    Source {
        name: "apiextensions.v1",
        path: "apiextensions-apiserver/pkg/apis/apiextensions/v1",
        files: &["types.go", "types_jsonschema.go"],
        package: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    },
    api("apps.v1", "api/apps/v1", "io.k8s.api.apps.v1"),
    api(
        "authentication.v1",
        "api/authentication/v1",
        "io.k8s.api.authentication.v1",
    ),
    api(
        "authorization.v1",
        "api/authorization/v1",
        "io.k8s.api.authorization.v1",
    ),
    api("autoscaling.v1", "api/autoscaling/v1", "io.k8s.api.autoscaling.v1"),
    api("autoscaling.v2", "api/autoscaling/v2", "io.k8s.api.autoscaling.v2"),
    api("batch.v1", "api/batch/v1", "io.k8s.api.batch.v1"),
    api("certificates.v1", "api/certificates/v1", "io.k8s.api.certificates.v1"),
    api("coordination.v1", "api/coordination/v1", "io.k8s.api.coordination.v1"),
    api("core.v1", "api/core/v1", "io.k8s.api.core.v1"),
    api("discovery.v1", "api/discovery/v1", "io.k8s.api.discovery.v1"),
    api("events.v1", "api/events/v1", "io.k8s.api.events.v1"),
    Source {
        name: "meta.v1",
        path: "apimachinery/pkg/apis/meta/v1",
        files: &["types.go", "watch.go"],
        package: "io.k8s.apimachinery.pkg.apis.meta.v1",
    },
    api("networking.v1", "api/networking/v1", "io.k8s.api.networking.v1"),
    api("node.v1", "api/node/v1", "io.k8s.api.node.v1"),
    api("policy.v1", "api/policy/v1", "io.k8s.api.policy.v1"),
    api("rbac.v1", "api/rbac/v1", "io.k8s.api.rbac.v1"),
    api("scheduling.v1", "api/scheduling/v1", "io.k8s.api.scheduling.v1"),
    api("storage.v1", "api/storage/v1", "io.k8s.api.storage.v1"),
];

/// Writes every file of `out` anew from the facts below `facts`.
pub(crate) fn run(facts: &Path, out: &Path) -> Result<()> {
    let root = find_root(facts)?;
    let mut packages = Vec::new();
    for source in SOURCES {
        let mut package = go::Package::default();
        for file in source.files {
            let path = root.join(source.path).join(file);
            package
                .parse(&read(&path)?)
                .with_context(|| format!("parse {}", path.display()))?;
        }
        let register = read(&root.join(source.path).join("register.go"))?;
        package.group = go::group_name(&register).with_context(|| format!("{}: no GroupName", source.path))?;
        packages.push((source, package));
    }
    let merge_schema = merge_schema::parse(&read(&root.join("client-go/applyconfigurations/internal/internal.go"))?);
    let mut complaints = Vec::new();
    for (source, package) in &packages {
        let file = emit::file(source.name, source.package, package, &packages)?;
        let numbers = proto::parse(&read(&root.join(source.path).join("generated.proto"))?);
        complaints.extend(proto::complaints(&file, &numbers));
        complaints.extend(merge_schema::complaints(&file, &merge_schema));
        let path = out.join(format!("{}.json", source.name));
        fs::write(&path, file.render()).with_context(|| format!("write {}", path.display()))?;
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} facts contradict each other, listed above", complaints.len());
    }
    println!("wrote {} files to {}", packages.len(), out.display());
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The folder that holds `api/`, given it, `k8s.io`'s parent, or the folder that packages were unpacked to.
fn find_root(facts: &Path) -> Result<std::path::PathBuf> {
    let candidates = [
        "",
        "k8s.io",
        "usr/share/gocode/src/k8s.io",
        "root/usr/share/gocode/src/k8s.io",
    ];
    candidates
        .iter()
        .map(|c| facts.join(c))
        .find(|p| p.join("api/core/v1/types.go").is_file())
        .with_context(|| {
            format!(
                "no k8s.io/api below {}: unpack the golang-k8s-*-dev packages there",
                facts.display()
            )
        })
}
