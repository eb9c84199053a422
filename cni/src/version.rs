//! Versions of the CNI specification that are spoken.

use serde_json::json;

use crate::error::{Code, Error};
use crate::request::Verb;

/// Oldest first.
pub(crate) const SUPPORTED: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest.
pub(crate) const CURRENT: &str = "1.1.0";

/// What a configuration without `cniVersion` means, by the specification.
pub(crate) const ASSUMED: &str = "0.1.0";

/// Whether `version` is at least `floor`; both are of the form x.y.z.
pub(crate) fn at_least(version: &str, floor: &str) -> bool {
    let numbers = |text: &str| {
        text.split('.')
            .map(|part| part.parse().unwrap_or(0))
            .collect::<Vec<u32>>()
    };
    numbers(version) >= numbers(floor)
}

/// Words as upstream prints a list of them.
pub(crate) fn list<T: AsRef<str>>(words: &[T]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("{:?}", word.as_ref())).collect();
    format!("[{}]", quoted.join(" "))
}

/// Refuses a version that is not spoken, and a verb that the version does not have.
pub(crate) fn check(version: &str, verb: Verb) -> Result<(), Error> {
    if !SUPPORTED.contains(&version) {
        let details = format!("config is {version:?}, plugin supports {}", list(&SUPPORTED));
        return Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions").details(details));
    }
    let floor = match verb {
        Verb::Check => "0.4.0",
        Verb::Status | Verb::Gc => "1.1.0",
        Verb::Add | Verb::Del | Verb::Version => return Ok(()),
    };
    if at_least(version, floor) {
        return Ok(());
    }
    Err(Error::new(
        Code::IncompatibleVersion,
        format!("config version does not allow {verb}"),
    ))
}

/// The answer to VERSION.
pub(crate) fn reply(version: &str) -> String {
    json!({ "cniVersion": version, "supportedVersions": SUPPORTED }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_need_their_version() {
        for (version, verb, ok) in [
            ("0.3.1", Verb::Add, true),
            ("0.3.1", Verb::Check, false),
            ("0.4.0", Verb::Check, true),
            ("1.0.0", Verb::Status, false),
            ("1.0.0", Verb::Gc, false),
            ("1.1.0", Verb::Gc, true),
            ("0.2.0", Verb::Add, false),
            ("2.0.0", Verb::Del, false),
            ("", Verb::Add, false),
        ] {
            assert_eq!(check(version, verb).is_ok(), ok, "{version} {verb}");
        }
        assert!(at_least("0.10.0", "0.9.1"));
    }
}
