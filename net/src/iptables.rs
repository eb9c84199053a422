//! Packet rules: `iptables-restore` transactions, and what `iptables-save` says.
//!
//! One [`Restore`] is one run of `iptables-restore -w --noflush`: all of a table's changes take effect at once or not
//! at all, and chains that it does not name stay as they are, whoever owns them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Seconds that the programs wait for the lock that they share (legacy backend only).
const LOCK_SECONDS: &str = "5";
/// The exit status for "another holds the lock" and other shortages.
const RESOURCE_PROBLEM: i32 = 4;
/// The exit status of a listing of a chain that is not there.
const NO_SUCH_CHAIN: i32 = 1;
/// Chains that tell which backend a node uses; the kubelet of any version leaves one of them.
const HINTS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// A packet-rule program that could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("found no iptables-restore in {searched}: install the package iptables")]
    Missing {
        /// The directories that were looked through.
        searched: String,
    },
    /// The program could not be started.
    #[error("cannot run {program}")]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The rules could not be handed to the program.
    #[error("cannot hand the rules to {program}")]
    Feed {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process holds the lock for too long.
    #[error("{program}: another program holds the iptables lock for more than {LOCK_SECONDS} s")]
    Locked {
        /// Which.
        program: PathBuf,
    },
    /// The program refused.
    #[error("{program} failed ({status}): {message}{}", at_line(line))]
    Refused {
        /// Which.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// What it said.
        message: String,
        /// The line of the rules that it complains of.
        line: Option<String>,
    },
}

fn at_line(line: &Option<String>) -> String {
    line.as_ref().map_or_else(String::new, |line| format!(" (at: {line})"))
}

/// Which kernel interface the programs use. Rules of one are invisible to the other, so all on a node must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `nf_tables`.
    Nft,
    /// `x_tables`.
    Legacy,
}

/// The address family of the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4: `iptables`.
    V4,
    /// IPv6: `ip6tables`.
    V6,
}

/// The packet-rule programs of one family and backend. They act on the calling thread's network namespace.
#[derive(Debug, Clone)]
pub struct Iptables {
    backend: Backend,
    restore: PathBuf,
    save: PathBuf,
    lock_file: Option<PathBuf>,
}

impl Iptables {
    /// Finds the programs, and the backend that this node uses: the one that a kubelet left a hint in, else the one
    /// that holds rules already, else the distribution's choice.
    pub fn detect(family: Family) -> Result<Self, Error> {
        let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/sbin:/sbin:/usr/bin:/bin"));
        Self::detect_in(family, &path)
    }

    fn detect_in(family: Family, path: &OsString) -> Result<Self, Error> {
        let prefix = match family {
            Family::V4 => "iptables",
            Family::V6 => "ip6tables",
        };
        let find = |name: String| {
            let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
            std::env::split_paths(path)
                .chain(extra)
                .map(|folder| folder.join(&name))
                .find(|file| file.is_file())
        };
        let pair = |backend, infix: &str| {
            let restore = find(format!("{prefix}{infix}-restore"))?;
            let save = find(format!("{prefix}{infix}-save"))?;
            Some(Self {
                backend,
                restore,
                save,
                lock_file: None,
            })
        };
        let missing = || Error::Missing {
            searched: path.to_string_lossy().into_owned(),
        };
        match (pair(Backend::Nft, "-nft"), pair(Backend::Legacy, "-legacy")) {
            (Some(nft), Some(legacy)) => {
                if nft.has_hint()? {
                    Ok(nft)
                } else if legacy_in_use(family) && (legacy.has_hint()? || !nft.in_use()?) {
                    Ok(legacy)
                } else {
                    Ok(pair(distribution_choice(&nft), "").map_or(nft, |chosen| chosen))
                }
            }
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) => pair(Backend::Legacy, "")
                .map(|unnamed| Self {
                    backend: distribution_choice(&unnamed),
                    ..unnamed
                })
                .ok_or_else(missing),
        }
    }

    /// Uses another lock file than `/run/xtables.lock`, for nodes that share a file system (legacy backend).
    pub fn with_lock_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.lock_file = Some(path.into());
        self
    }

    /// The backend in use.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Applies a transaction. An empty one runs nothing.
    pub fn apply(&self, changes: &Restore) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        self.restore_text(&changes.text())
    }

    /// Applies rules in `iptables-restore`'s own format.
    pub fn restore_text(&self, rules: &str) -> Result<(), Error> {
        let output = self.run(&self.restore, &["-w", LOCK_SECONDS, "--noflush"], Some(rules))?;
        check(&self.restore, &output, Some(rules))
    }

    /// The rules of one table, or of all that are in use.
    pub fn save(&self, table: Option<&str>) -> Result<Saved, Error> {
        let arguments: Vec<&str> = table.map_or_else(Vec::new, |table| vec!["-t", table]);
        let output = self.run(&self.save, &arguments, None)?;
        check(&self.save, &output, None)?;
        Ok(Saved::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    /// The rules of one chain; `None` when the chain is not there. Its cost does not grow with the other chains.
    pub fn rules(&self, table: &str, chain: &str) -> Result<Option<Vec<String>>, Error> {
        self.list(table, chain, &[])
    }

    /// How many packets met the first rule of a chain that has some words in it; `None` when there is no such rule.
    pub fn packets(&self, table: &str, chain: &str, words: &str) -> Result<Option<u64>, Error> {
        let rules = self.list(table, chain, &["-v"])?.unwrap_or_default();
        let found = rules.iter().find(|rule| rule.contains(words));
        Ok(found.and_then(|rule| rule.split_once("-c ")?.1.split(' ').next()?.parse().ok()))
    }

    fn list(&self, table: &str, chain: &str, options: &[&str]) -> Result<Option<Vec<String>>, Error> {
        // `iptables-nft-save` and `iptables-nft` stand side by side.
        let name = self
            .save
            .file_name()
            .map(|name| name.to_string_lossy().replace("-save", ""))
            .unwrap_or_default();
        let program = self.save.with_file_name(name);
        let arguments = [&["-w", LOCK_SECONDS, "-t", table, "-S", chain], options].concat();
        let output = self.run(&program, &arguments, None)?;
        if output.status.code() == Some(NO_SUCH_CHAIN) {
            return Ok(None);
        }
        check(&program, &output, None)?;
        let prefix = format!("-A {chain} ");
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(Some(
            text.lines()
                .filter_map(|line| line.strip_prefix(&prefix))
                .map(str::to_owned)
                .collect(),
        ))
    }

    /// By chain: listing a table's would take as long as all rules of all tables are many.
    fn has_hint(&self) -> Result<bool, Error> {
        for chain in HINTS {
            if self.rules("mangle", chain)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn in_use(&self) -> Result<bool, Error> {
        Ok(self
            .save(None)?
            .tables
            .values()
            .any(|chains| chains.values().any(|rules| !rules.is_empty())))
    }

    fn run(&self, program: &Path, arguments: &[&str], input: Option<&str>) -> Result<Output, Error> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(lock) = &self.lock_file {
            command.env("XTABLES_LOCKFILE", lock);
        }
        let start = |source| Error::Start {
            program: program.to_owned(),
            source,
        };
        let mut child = command.spawn().map_err(start)?;
        let stdin = child.stdin.take();
        // Fed from a thread: the program may write more errors than a pipe holds before it has read everything.
        let (fed, output) = std::thread::scope(|scope| {
            let feeder = scope.spawn(move || match (stdin, input) {
                (Some(mut stdin), Some(input)) => stdin.write_all(input.as_bytes()),
                _ => Ok(()),
            });
            let output = child.wait_with_output();
            (
                feeder
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the feeding thread died"))),
                output,
            )
        });
        let output = output.map_err(start)?;
        match fed {
            // A program that stops at an error closes its input: its own words say more than "broken pipe".
            Err(source) if output.status.success() => Err(Error::Feed {
                program: program.to_owned(),
                source,
            }),
            _ => Ok(output),
        }
    }
}

/// Whether the legacy backend has tables in this namespace. Asking its programs would load them.
fn legacy_in_use(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(file).is_ok_and(|tables| !tables.trim().is_empty())
}

/// What the program without a backend in its name stands for, by the name at the end of its links.
fn distribution_choice(programs: &Iptables) -> Backend {
    let unnamed = programs.restore.with_file_name(
        programs
            .restore
            .file_name()
            .map(|name| name.to_string_lossy().replace("-nft", ""))
            .unwrap_or_default(),
    );
    match std::fs::canonicalize(unnamed) {
        Ok(target) if target.to_string_lossy().contains("legacy") => Backend::Legacy,
        _ => Backend::Nft,
    }
}

fn check(program: &Path, output: &Output, rules: Option<&str>) -> Result<(), Error> {
    if output.status.success() {
        return Ok(());
    }
    if output.status.code() == Some(RESOURCE_PROBLEM) && !String::from_utf8_lossy(&output.stderr).contains("line") {
        return Err(Error::Locked {
            program: program.to_owned(),
        });
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let line = rules
        .zip(complained_line(&message))
        .and_then(|(rules, number)| rules.lines().nth(number - 1));
    Err(Error::Refused {
        program: program.to_owned(),
        status: output.status.to_string(),
        line: line.map(str::to_owned),
        message,
    })
}

/// The number after the word "line" in what the program says: `line 3 failed`, `Error occurred at line: 3`.
fn complained_line(message: &str) -> Option<usize> {
    let after = message.split("line").nth(1)?.trim_start_matches([':', ' ']);
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|number| *number > 0)
}

/// An argument in the quotes of `iptables-restore`'s format, as `iptables -S` prints comments. Line breaks would end the
/// rule: they become spaces.
pub fn quote(argument: &str) -> String {
    let mut quoted = String::with_capacity(argument.len() + 2);
    quoted.push('"');
    for character in argument.chars() {
        match character {
            '"' | '\\' | '\'' => quoted.extend(['\\', character]),
            character if character.is_control() => quoted.push(' '),
            character => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

// === impl Restore ===

/// A transaction in the making: changes to chains and rules, table by table.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Restore {
    tables: Vec<(&'static str, Table)>,
}

/// The changes to one table. In the text, chains that are made or emptied come first, then the rules in the order
/// given, then the chains that go.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Table {
    declared: String,
    rules: String,
    removed: String,
}

impl Restore {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// The changes to one table, to add to.
    pub fn table(&mut self, name: &'static str) -> &mut Table {
        let at = self
            .tables
            .iter()
            .position(|(found, _)| *found == name)
            .unwrap_or_else(|| {
                self.tables.push((name, Table::default()));
                self.tables.len() - 1
            });
        &mut self.tables[at].1
    }

    /// How many rules of a table come or go, single ones and with their chains.
    pub fn rules(&self, table: &str) -> usize {
        let tables = self.tables.iter().filter(|(name, _)| *name == table);
        tables.map(|(_, table)| table.rules.lines().count()).sum()
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(|(_, table)| table.is_empty())
    }

    /// The transaction in `iptables-restore`'s format.
    pub fn text(&self) -> String {
        let length: usize = self
            .tables
            .iter()
            .map(|(name, table)| name.len() + table.length() + 16)
            .sum();
        let mut text = String::with_capacity(length);
        for (name, table) in self.tables.iter().filter(|(_, table)| !table.is_empty()) {
            line(&mut text, format_args!("*{name}"));
            text.push_str(&table.declared);
            text.push_str(&table.rules);
            text.push_str(&table.removed);
            line(&mut text, format_args!("COMMIT"));
        }
        text
    }
}

impl Table {
    /// Makes a chain, or empties it.
    pub fn chain(&mut self, name: &str) {
        line(&mut self.declared, format_args!(":{name} - [0:0]"));
    }

    /// Adds a rule at the end of a chain.
    pub fn append(&mut self, chain: &str, rule: &str) {
        line(&mut self.rules, format_args!("-A {chain} {rule}"));
    }

    /// Adds a rule at the start of a chain.
    pub fn insert(&mut self, chain: &str, rule: &str) {
        line(&mut self.rules, format_args!("-I {chain} {rule}"));
    }

    /// Removes one rule; its absence fails the whole transaction.
    pub fn delete(&mut self, chain: &str, rule: &str) {
        line(&mut self.rules, format_args!("-D {chain} {rule}"));
    }

    /// Removes a chain with its rules. No rule may jump to it any more.
    pub fn delete_chain(&mut self, name: &str) {
        self.chain(name);
        line(&mut self.removed, format_args!("-X {name}"));
    }

    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.length() == 0
    }

    fn length(&self) -> usize {
        self.declared.len() + self.rules.len() + self.removed.len()
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    text.write_fmt(arguments).ok();
    text.push('\n');
}

// === impl Saved ===

/// Rules as `iptables-save` prints them: table, chain, rules without their `-A CHAIN`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The tables, by name.
    pub tables: BTreeMap<String, BTreeMap<String, Vec<String>>>,
}

impl Saved {
    /// Reads the output of `iptables-save`. What it does not understand it leaves out.
    pub fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut chains = None;
        for line in text.lines() {
            match (line.split_at_checked(1), &mut chains) {
                (Some(("*", table)), _) => chains = Some(saved.tables.entry(table.to_owned()).or_default()),
                (Some((":", declared)), Some(chains)) => {
                    let name = declared.split(' ').next().unwrap_or_default();
                    chains.entry(name.to_owned()).or_default();
                }
                (Some(("-", rest)), Some(chains)) => {
                    if let Some((chain, rule)) = rest.strip_prefix("A ").and_then(|rest| rest.split_once(' ')) {
                        chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
                    }
                }
                _ => {}
            }
        }
        saved
    }

    /// The rules of a chain; `None` when the chain is not there.
    pub fn chain(&self, table: &str, chain: &str) -> Option<&[String]> {
        self.tables.get(table)?.get(chain).map(Vec::as_slice)
    }

    /// The names of a table's chains that start with a prefix.
    pub fn chains<'a>(&'a self, table: &str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let chains = self.tables.get(table).into_iter().flat_map(BTreeMap::keys);
        chains.map(String::as_str).filter(move |name| name.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_declares_first_and_removes_last() {
        let mut changes = Restore::new();
        let nat = changes.table("nat");
        nat.delete_chain("KUBE-SVC-OLD");
        nat.append("KUBE-SVC-NEW", "-j RETURN");
        nat.chain("KUBE-SVC-NEW");
        nat.insert("KUBE-SERVICES", "-j KUBE-SVC-NEW");
        nat.delete("KUBE-SERVICES", "-j KUBE-SVC-OLD");
        changes.table("filter");
        let wanted = "*nat\n:KUBE-SVC-OLD - [0:0]\n:KUBE-SVC-NEW - [0:0]\n-A KUBE-SVC-NEW -j RETURN\n\
                      -I KUBE-SERVICES -j KUBE-SVC-NEW\n-D KUBE-SERVICES -j KUBE-SVC-OLD\n-X KUBE-SVC-OLD\nCOMMIT\n";
        assert_eq!(changes.text(), wanted);
        assert!(!changes.is_empty());
    }

    #[test]
    fn quoted_arguments_stay_one_word_of_one_rule() {
        assert_eq!(quote("name: \"a\" it's \\"), r#""name: \"a\" it\'s \\""#);
        assert_eq!(quote("a\nCOMMIT"), "\"a COMMIT\"");
    }

    #[test]
    fn saved_rules_are_read() {
        let text = "# Generated by iptables-save\n*nat\n:PREROUTING ACCEPT [1:60]\n:KUBE-SVC-A - [0:0]\n\
                    -A PREROUTING -m comment --comment \"a b\" -j KUBE-SVC-A\nCOMMIT\n*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
        let saved = Saved::parse(text);
        assert_eq!(
            saved.chain("nat", "PREROUTING").unwrap(),
            ["-m comment --comment \"a b\" -j KUBE-SVC-A"]
        );
        assert_eq!(saved.chain("nat", "KUBE-SVC-A"), Some(&[][..]));
        assert_eq!(saved.chain("filter", "KUBE-SVC-A"), None);
        assert_eq!(saved.chains("nat", "KUBE-").collect::<Vec<_>>(), ["KUBE-SVC-A"]);
    }

    #[test]
    fn the_line_that_is_complained_of_is_found() {
        for (message, wanted) in [
            (
                "iptables-restore v1.8.9 (nf_tables): line 3: RULE_APPEND failed (No such file or directory)",
                Some(3),
            ),
            ("iptables-restore: line 12 failed", Some(12)),
            ("Error occurred at line: 7", Some(7)),
            ("Another app is currently holding the xtables lock", None),
        ] {
            assert_eq!(complained_line(message), wanted, "{message}");
        }
    }
}
