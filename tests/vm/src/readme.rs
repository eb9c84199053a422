//! Blocks of the documents that suites type word for word, so that the two cannot drift apart. The end-to-end suites use it too.
//!
//! A comment `<!-- typed: NAME -->` before a fenced block names it.

use std::collections::BTreeMap;
use std::path::Path as File;

use anyhow::Context as _;

/// The named blocks of a document.
#[derive(Debug)]
pub(crate) struct Path {
    blocks: BTreeMap<String, String>,
}

impl Path {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or a block has no end.
    pub(crate) fn read(file: &File) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} as commands to type", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut blocks = BTreeMap::new();
        for part in text.split("<!-- typed: ").skip(1) {
            let (name, rest) = part.split_once(" -->").context("a comment without an end")?;
            let without = || format!("no block after the comment {name:?}");
            let mut lines = rest.lines().skip_while(|line| line.trim().is_empty());
            let fence = lines
                .next()
                .filter(|line| line.trim() == "```sh")
                .with_context(without)?;
            // In a list it is indented.
            let indentation = &fence[..fence.len() - fence.trim_start().len()];
            let mut commands = Vec::new();
            loop {
                let line = lines.next().with_context(without)?;
                let line = line.strip_prefix(indentation).unwrap_or(line);
                if line == "```" {
                    break;
                }
                commands.push(line);
            }
            blocks.insert(name.to_owned(), commands.join("\n"));
        }
        Ok(Self { blocks })
    }

    /// The commands of a block.
    ///
    /// # Errors
    /// When there is no such block.
    pub(crate) fn block(&self, name: &str) -> anyhow::Result<&str> {
        let block = self.blocks.get(name);
        block
            .map(String::as_str)
            .with_context(|| format!("the document has no block {name:?}"))
    }
}

/// Whether a line that was printed is what the README shows with `…` in the places of what differs from cluster to cluster.
pub(crate) fn has_shape(printed: &str, shown: &str) -> bool {
    let mut rest = printed.trim();
    let mut parts = shown.trim().split('…');
    let Some(begin) = parts.next().and_then(|first| rest.strip_prefix(first)) else {
        return false;
    };
    rest = begin;
    for part in parts {
        if part.is_empty() {
            return !rest.is_empty() && !rest.contains(char::is_whitespace);
        }
        let Some((filled, after)) = rest.split_once(part) else {
            return false;
        };
        if filled.is_empty() || filled.contains(char::is_whitespace) {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_by_their_name() {
        let path = Path::parse("a\n<!-- typed: one -->\n```sh\nfirst\nsecond\n```\ntext\n```sh\nother\n```\n<!-- typed: two -->\n```sh\nthird\n```\n").unwrap();
        assert_eq!(path.block("one").unwrap(), "first\nsecond");
        assert_eq!(path.block("two").unwrap(), "third");
        assert!(path.block("three").is_err());
        let listed =
            Path::parse("1. a\n\n   <!-- typed: one -->\n   ```sh\n   for x in y; do\n       z\n   done\n   ```\n")
                .unwrap();
        assert_eq!(listed.block("one").unwrap(), "for x in y; do\n    z\ndone");
        assert!(Path::parse("<!-- typed: one -->\n```sh\nwithout end\n").is_err());
        assert!(Path::parse("<!-- typed: one -->\ntext").is_err());
    }

    #[test]
    fn a_printed_line_has_the_shape_of_the_shown_one() {
        let shown = "skiff join …:6443 --token … --discovery-token-ca-cert-hash sha256:…";
        assert!(has_shape(
            "skiff join 10.0.0.1:6443 --token a.b --discovery-token-ca-cert-hash sha256:00\n",
            shown
        ));
        for other in [
            "skiff join 10.0.0.1:6443 --token a.b",
            "skiff join 10.0.0.1:6443 --token a.b --discovery-token-ca-cert-hash sha256:",
            "skiff join 10.0.0.1:6443 --token a b --discovery-token-ca-cert-hash sha256:00",
            "skiff join 10.0.0.1:6443 --token a.b --discovery-token-ca-cert-hash sha256:00 --more",
        ] {
            assert!(!has_shape(other, shown), "{other}");
        }
    }
}
