//! Rules of the house that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Lines of a Rust file, tests included: over the first it should be split, over the second it must be.
const MAX_LINES: usize = 800;

/// Who may depend on whom, top to bottom. Crates of one layer do not depend on each other.
const LAYERS: &[&[&str]] = &[
    &["xtask", "tests", "tests/vm"],
    &["cli"],
    &["cluster"],
    &[
        "apiserver",
        "scheduler",
        "controllers",
        "kubelet",
        "proxy",
        "dns",
        "ingress",
        "overlay",
        "cni",
        "machine",
    ],
    &["cri", "net", "pki", "store"],
    &["daemon"],
    &["api"],
];

/// `cluster` starts the `skiff` binary; it links no component.
const CLUSTER_MAY_NOT: &[&str] = &[
    "apiserver",
    "scheduler",
    "controllers",
    "kubelet",
    "proxy",
    "dns",
    "ingress",
    "overlay",
    "cni",
    "machine",
];

/// Runs every check and reports all failures at once.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut complaints = Vec::new();
    let members = members(root)?;
    for member in &members {
        let folder = root.join(member);
        let manifest = read(&folder.join("Cargo.toml"))?;
        complaints.extend(manifest_complaints(member, &manifest));
        for file in rust_files(&folder)? {
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            complaints.extend(file_complaints(&name, &read(&file)?));
        }
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    if complaints.is_empty() {
        println!("{} crates keep the rules of the house", members.len());
        return Ok(());
    }
    bail!("{} broken rules, listed above", complaints.len())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The workspace's members, from the root manifest.
fn members(root: &Path) -> Result<Vec<String>> {
    let manifest = read(&root.join("Cargo.toml"))?;
    let list = manifest
        .split_once("members = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(list, _)| list)
        .context("Cargo.toml has no `members = [`")?;
    Ok(list
        .split(',')
        .map(|m| m.trim().trim_matches('"').to_owned())
        .filter(|m| !m.is_empty())
        .collect())
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn file_complaints(name: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.ends_with("/mod.rs") {
        out.push(format!(
            "{name}: name the file after its module (foo.rs beside foo/), not mod.rs"
        ));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        out.push(format!("{name}: {lines} lines, the most is {MAX_LINES}: split it"));
    }
    out
}

fn manifest_complaints(member: &str, manifest: &str) -> Vec<String> {
    let mut out = Vec::new();
    let sections = sections(manifest);
    if !sections
        .get("lints")
        .is_some_and(|lines| lines.contains("workspace = true"))
    {
        out.push(format!("{member}/Cargo.toml: add `[lints]` with `workspace = true`"));
    }
    let layer = |name: &str| LAYERS.iter().position(|l| l.contains(&name));
    let Some(own) = layer(member) else {
        out.push(format!("{member}: give it a layer in xtask/src/check.rs"));
        return out;
    };
    for dependency in house_dependencies(&sections) {
        let wrong = match layer(dependency) {
            None => true,
            Some(its) if its <= own => true,
            Some(_) => member == "cluster" && CLUSTER_MAY_NOT.contains(&dependency),
        };
        // The CNI plugins start in milliseconds: no runtime, no API types.
        let wrong = wrong || (member == "cni" && dependency != "net");
        if wrong {
            out.push(format!("{member}/Cargo.toml: {member} must not depend on {dependency}"));
        }
    }
    out
}

/// Lines of each table of a manifest, trimmed.
fn sections(manifest: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let (mut out, mut current) = (BTreeMap::<&str, BTreeSet<&str>>::new(), "");
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            current = name;
        } else if !line.is_empty() {
            out.entry(current).or_default().insert(line);
        }
    }
    out
}

/// Crates of the house among `[dependencies]`; what only tests need may point anywhere.
fn house_dependencies<'a>(sections: &BTreeMap<&str, BTreeSet<&'a str>>) -> Vec<&'a str> {
    let lines = sections.get("dependencies").into_iter().flatten();
    lines
        .filter_map(|line| line.strip_prefix("skiff-"))
        .map(|rest| &rest[..rest.find(['.', ' ', '=']).unwrap_or(rest.len())])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests() {
        let good = "[lints]\nworkspace = true\n[dependencies]\nskiff-net.workspace = true\n";
        assert_eq!(manifest_complaints("cni", good), [""; 0]);
        assert_eq!(manifest_complaints("kubelet", good), [""; 0]);
        assert_eq!(
            manifest_complaints("api", good),
            ["api/Cargo.toml: api must not depend on net"]
        );
        let sideways = "[lints]\nworkspace = true\n[dependencies]\nskiff-kubelet = { workspace = true }\n";
        assert_eq!(manifest_complaints("proxy", sideways).len(), 1);
        assert_eq!(manifest_complaints("cluster", sideways).len(), 1);
        assert_eq!(manifest_complaints("cli", sideways), [""; 0]);
        assert_eq!(manifest_complaints("api", "").len(), 1);
        let dev = "[lints]\nworkspace = true\n[dev-dependencies]\nskiff-apiserver.workspace = true\n";
        assert_eq!(manifest_complaints("controllers", dev), [""; 0]);
    }

    #[test]
    fn files() {
        assert_eq!(file_complaints("a/src/mod.rs", "").len(), 1);
        assert_eq!(file_complaints("a/src/b.rs", &"\n".repeat(801)).len(), 1);
        assert_eq!(file_complaints("a/src/b.rs", &"\n".repeat(800)), [""; 0]);
    }
}
