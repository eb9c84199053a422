//! Rules of the house that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Lines of a Rust file, tests included: over these it must be split.
const MAX_LINES: usize = 800;

/// They meet at the Kubernetes API alone.
const COMPONENTS: &[&str] = &[
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

/// Who may depend on whom, top to bottom. Crates of one layer do not depend on each other.
const LAYERS: &[&[&str]] = &[
    &["xtask", "tests", "tests/vm"],
    &["cli"],
    &["cluster"],
    COMPONENTS,
    &["cri", "net", "pki", "store"],
    &["daemon"],
    &["api"],
];

/// Named only by code that a build script generates.
const GENERATED: &[&str] = &["prost", "tonic-prost"];

/// Who writes keys and tokens: their files have their mode from the first moment on.
const WRITES_SECRETS: &[&str] = &["apiserver", "cli", "controllers", "daemon", "machine", "pki", "store"];
/// What gives a file another mode than it was made with.
const CHANGES_MODE: [&str; 2] = ["set_permissions", "chmod("];

/// Runs every check and reports all failures at once.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut complaints = Vec::new();
    let members = members(root)?;
    for member in &members {
        let folder = root.join(member);
        let manifest = read(&folder.join("Cargo.toml"))?;
        complaints.extend(manifest_complaints(member, &manifest));
        let mut code = Code::default();
        for file in rust_files(&folder)? {
            let text = read(&file)?;
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            complaints.extend(file_complaints(&name, &text));
            if WRITES_SECRETS.contains(&member.as_str()) {
                complaints.extend(mode_complaint(&name, &text));
            }
            code.add(&name, member, &text);
            for module in modules_elsewhere(&text) {
                let path = file.with_file_name(module);
                code.add(&name, member, &read(&path)?);
            }
        }
        complaints.extend(unused_dependencies(member, &manifest, &code));
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

/// A file that is made and then closed to others was open for a moment.
fn mode_complaint(name: &str, text: &str) -> Option<String> {
    let (product, _) = text.split_once("#[cfg(test)]").unwrap_or((text, ""));
    let found = CHANGES_MODE.into_iter().find(|call| product.contains(call))?;
    name.contains("/src/")
        .then(|| format!("{name}: {found}: make the file with its final mode, as pki/src/files.rs does"))
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
            // It starts the `skiff` binary, and links no component.
            Some(_) => member == "cluster" && COMPONENTS.contains(&dependency),
        };
        // The CNI plugins start in milliseconds: no runtime, no API types.
        let wrong = wrong || (member == "cni" && dependency != "net");
        if wrong {
            out.push(format!("{member}/Cargo.toml: {member} must not depend on {dependency}"));
        }
    }
    out
}

/// A crate's Rust code.
#[derive(Default)]
struct Code {
    /// What is part of the product.
    product: String,
    /// What only tests and measurements are made of.
    tests: String,
    /// What runs before the rest is built.
    build: String,
}

impl Code {
    fn add(&mut self, name: &str, member: &str, text: &str) {
        let within = name.strip_prefix(member).unwrap_or(name).trim_start_matches('/');
        let part = match within {
            "build.rs" => &mut self.build,
            _ if within.starts_with("src/") => &mut self.product,
            _ => &mut self.tests,
        };
        part.push_str(text);
    }
}

/// Files of other folders that a file takes as modules: `#[path = "…"]`.
fn modules_elsewhere(text: &str) -> impl Iterator<Item = &str> {
    let attributes = text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \""));
    attributes.filter_map(|rest| rest.split('"').next())
}

/// Dependencies that no line of code names.
fn unused_dependencies(member: &str, manifest: &str, code: &Code) -> Vec<String> {
    let Code { product, tests, build } = code;
    // The end-to-end suites are tests from the first line to the last.
    let of_product: &[&str] = if member == "tests" {
        &[product, tests]
    } else {
        &[product]
    };
    let tables: [(&str, &[&str]); 3] = [
        ("dependencies", of_product),
        ("dev-dependencies", &[product, tests]),
        ("build-dependencies", &[build]),
    ];
    let sections = sections(manifest);
    let mut out = Vec::new();
    for (table, parts) in tables {
        for line in sections.get(table).into_iter().flatten() {
            let name = &line[..line.find(['.', ' ', '=']).unwrap_or(line.len())];
            if !GENERATED.contains(&name) && !parts.iter().any(|text| names(text, &name.replace('-', "_"))) {
                out.push(format!(
                    "{member}/Cargo.toml: [{table}] {name} is not used: take it out"
                ));
            }
        }
    }
    out
}

/// Whether a text has this word.
fn names(text: &str, word: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(joins) && !after.starts_with(joins)
    })
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
    fn dependencies_that_nothing_names() {
        let manifest = "[dependencies]\nserde.workspace = true\nserde-json = { workspace = true }\nprost.workspace = true\n\
                        [dev-dependencies]\ninsta.workspace = true\n[build-dependencies]\nprotox.workspace = true\n";
        let mut code = Code::default();
        code.add("a/src/lib.rs", "a", "use serde::Serialize; my_serde_json::x()");
        code.add("a/tests/b.rs", "a", "insta::assert_snapshot!(); serde_json::json!()");
        assert_eq!(
            unused_dependencies("a", manifest, &code),
            [
                "a/Cargo.toml: [dependencies] serde-json is not used: take it out",
                "a/Cargo.toml: [build-dependencies] protox is not used: take it out"
            ]
        );
        let path: Vec<_> = modules_elsewhere("mod a;\n#[path = \"../b/c.rs\"]\nmod c;").collect();
        assert_eq!(path, ["../b/c.rs"]);
        code.add("a/build.rs", "a", "protox::compile()");
        code.add("a/src/c.rs", "a", "serde_json::to_string()");
        assert_eq!(unused_dependencies("a", manifest, &code), [""; 0]);
    }

    #[test]
    fn modes() {
        let late = "fs::set_permissions(path, mode)";
        assert!(mode_complaint("pki/src/files.rs", late).is_some());
        assert_eq!(mode_complaint("pki/tests/files.rs", late), None);
        assert_eq!(
            mode_complaint("pki/src/files.rs", &format!("#[cfg(test)]\n{late}")),
            None
        );
    }

    #[test]
    fn files() {
        assert_eq!(file_complaints("a/src/mod.rs", "").len(), 1);
        assert_eq!(file_complaints("a/src/b.rs", &"\n".repeat(801)).len(), 1);
        assert_eq!(file_complaints("a/src/b.rs", &"\n".repeat(800)), [""; 0]);
    }
}
