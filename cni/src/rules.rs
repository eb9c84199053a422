//! What the plugins that write packet rules share: chain names, comments, and one writer at a time in a namespace.

use std::fmt::Write as _;
use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha512};
use skiff_net::iptables::{Error as RulesError, Family, Iptables};

use crate::error::{Code, Error};

/// Upstream cuts chain names at this length, which every backend takes.
const NAME_LENGTH: usize = 28;
/// The longest comment that iptables takes.
const COMMENT_LENGTH: usize = 255;

/// Both families, in the order that they are worked on.
pub(crate) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The right to read rules and then change them accordingly: plugins that run at once would otherwise each find a
/// shared rule missing, and each add it.
///
/// The lock is on the network namespace itself, so that it covers exactly the rules that are changed, needs no file of
/// its own, and ends with the process.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// Waits for the right.
    pub(crate) fn take() -> Result<Self, Error> {
        let failed = |source: &dyn std::error::Error| {
            Error::new(
                Code::Io,
                "cannot lock the network namespace for a change of its packet rules",
            )
            .with(source)
        };
        let mut file = File::open("/proc/thread-self/ns/net").map_err(|source| failed(&source))?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(Self { _lock: lock }),
                Err((same, Errno::EINTR)) => file = same,
                Err((_, errno)) => return Err(failed(&errno)),
            }
        }
    }
}

/// The programs of a family; `None` when they are not installed: then there are no rules of that family either.
pub(crate) fn programs(family: Family) -> Result<Option<Iptables>, RulesError> {
    match Iptables::detect(family) {
        Ok(programs) => Ok(Some(programs)),
        Err(RulesError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `CNI-`, the prefix, and the start of the SHA-512 of network and container in hexadecimal: upstream's name, so that
/// either's plugin finds what the other's made.
pub(crate) fn chain_name(prefix: &str, network: &str, container: &str) -> String {
    let mut name = format!("CNI-{prefix}");
    for byte in Sha512::digest(format!("{network}{container}")) {
        // Writing to a String cannot fail.
        write!(name, "{byte:02x}").ok();
    }
    name.truncate(NAME_LENGTH);
    name
}

/// A match that does nothing but carry a text.
pub(crate) fn comment(text: &str) -> String {
    let text = match text.char_indices().nth(COMMENT_LENGTH) {
        None => text.to_owned(),
        Some(_) => text.chars().take(COMMENT_LENGTH - 3).chain("...".chars()).collect(),
    };
    format!("-m comment --comment {}", skiff_net::iptables::quote(&text))
}

/// Where a rule jumps to.
pub(crate) fn target(rule: &str) -> Option<&str> {
    let (_, target) = rule.rsplit_once("-j ")?;
    target.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_are_upstreams() {
        // Seen with Debian's plugins 1.1.1.
        assert_eq!(chain_name("", "t", "abc"), "CNI-e2554e428afffaa6fb496266");
        assert_eq!(chain_name("DN-", "net", "abc"), "CNI-DN-3ce8a0924fdef86d56ad1");
    }

    #[test]
    fn comments_are_quoted_and_cut() {
        assert_eq!(comment("id: \"a\""), r#"-m comment --comment "id: \"a\"""#);
        let long = comment(&"x".repeat(300));
        assert!(
            long.ends_with("...\"") && long.len() == "-m comment --comment \"\"".len() + 255,
            "{long}"
        );
    }

    #[test]
    fn a_rules_target_is_its_last_jump() {
        assert_eq!(
            target("-s 10.0.0.0/8 -j DNAT --to-destination 10.1.0.2:80"),
            Some("DNAT")
        );
        assert_eq!(target("-m comment --comment \"-j x\" -j CNI-DN-1"), Some("CNI-DN-1"));
        assert_eq!(target("-p tcp"), None);
    }
}
