//! Which names are allowed, and making up new ones.

use rand::RngExt as _;

/// No vowels, and no digits that look like them: generated names spell nothing.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
/// Longest base of a generated name: with the suffix it still is a DNS label.
const MAX_GENERATED_BASE: usize = 63 - SUFFIX;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                         '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used \
                         for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                          alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
                          'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                         with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                           '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                           'my_value',  or '12345', regex used for validation is \
                           '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// What is wrong with a name; empty when nothing is.
pub type Complaints = Vec<String>;

/// A name made of `base` and five random characters, as `metadata.generateName` asks for.
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = String::with_capacity(end + SUFFIX);
    name.push_str(&base[..end]);
    name.push_str(&random_suffix(SUFFIX));
    name
}

/// Random characters of upstream's alphabet for generated names.
pub fn random_suffix(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

/// A number written in upstream's alphabet for generated names (`pod-template-hash` and its like).
pub fn safe_encode(text: &str) -> String {
    text.bytes()
        .map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()]))
        .collect()
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63.
pub fn dns1123_label(name: &str) -> Complaints {
    let mut out = Vec::new();
    too_long(name, 63, "characters", &mut out);
    if !is_label(name) {
        // A subdomain where a label is wanted has its own, clearer text.
        out.push(if is_subdomain(name) {
            "must not contain dots".to_owned()
        } else {
            LABEL.to_owned()
        });
    }
    out
}

/// Labels joined by dots, at most 253.
pub fn dns1123_subdomain(name: &str) -> Complaints {
    let mut out = Vec::new();
    too_long(name, 253, "characters", &mut out);
    if !is_subdomain(name) {
        out.push(SUBDOMAIN.to_owned());
    }
    out
}

/// `[a-z]([-a-z0-9]*[a-z0-9])?`, at most 63.
pub fn dns1035_label(name: &str) -> Complaints {
    let mut out = Vec::new();
    too_long(name, 63, "characters", &mut out);
    if !is_label(name) || !name.as_bytes()[0].is_ascii_lowercase() {
        out.push(LABEL_1035.to_owned());
    }
    out
}

/// A name that still gets a random end: what `metadata.generateName` must satisfy is checked as if that were there.
pub fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(base) if !base.is_empty() => format!("{base}a"),
        _ => prefix.to_owned(),
    }
}

/// What may stand between slashes of a URL path (names of roles and their like).
pub fn path_segment(name: &str) -> Complaints {
    match name {
        "." | ".." => vec![format!("may not be '{name}'")],
        _ => ["/", "%"]
            .into_iter()
            .filter(|bad| name.contains(*bad))
            .map(|bad| format!("may not contain '{bad}'"))
            .collect(),
    }
}

/// A label or annotation key: `[prefix/]name`.
pub fn qualified_name(key: &str) -> Complaints {
    let mut out = Vec::new();
    let mut parts = key.split('/');
    let (prefix, name) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => (None, name),
        (Some(prefix), Some(name), None) => (Some(prefix), name),
        _ => {
            return vec![
                "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
                 an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
                    .to_owned(),
            ];
        }
    };
    match prefix {
        Some("") => out.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => out.extend(
            dns1123_subdomain(prefix)
                .into_iter()
                .map(|m| format!("prefix part {m}")),
        ),
        None => {}
    }
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_token(name) {
        out.push(QUALIFIED.to_owned());
    }
    out
}

/// A label's value: empty, or like the name part of its key.
pub fn label_value(value: &str) -> Complaints {
    let mut out = Vec::new();
    too_long(value, 63, "bytes", &mut out);
    if !value.is_empty() && !is_token(value) {
        out.push(LABEL_VALUE.to_owned());
    }
    out
}

/// Upstream counts bytes everywhere, but says "characters" of DNS names.
fn too_long(name: &str, max: usize, unit: &str, out: &mut Complaints) {
    if name.len() > max {
        out.push(format!("must be no more than {max} {unit}"));
    }
}

fn is_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(edge) && bytes.last().is_some_and(edge) && bytes.iter().all(|b| edge(b) || *b == b'-')
}

fn is_subdomain(name: &str) -> bool {
    name.split('.').all(is_label)
}

fn is_token(name: &str) -> bool {
    let bytes = name.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_and_subdomains() {
        for good in ["a", "0", "a-b", "123-abc"] {
            assert!(dns1123_label(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a b", "ä"] {
            assert_eq!(dns1123_label(bad), [LABEL], "{bad}");
            assert_eq!(dns1123_subdomain(bad), [SUBDOMAIN], "{bad}");
        }
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert!(dns1123_subdomain("a.b-c.0").is_empty());
        assert_eq!(dns1123_subdomain("a..b").len(), 1);
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
        assert_eq!(dns1035_label("1a"), [LABEL_1035]);
        assert_eq!(dns1035_label(""), [LABEL_1035]);
        assert!(dns1035_label("a1").is_empty());
    }

    #[test]
    fn keys_and_values() {
        for good in ["a", "A.b_c-1", "example.com/a", "x/y"] {
            assert!(qualified_name(good).is_empty(), "{good}");
        }
        assert_eq!(qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("a/")[0], "name part must be non-empty");
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert!(label_value("").is_empty());
        assert!(label_value("a.B_c").is_empty());
        assert_eq!(label_value("-").len(), 1);
        assert_eq!(path_segment("a/b"), ["may not contain '/'"]);
        assert_eq!(
            (mask_trailing_dash("web-"), mask_trailing_dash("-")),
            ("weba".into(), "-".into())
        );
        assert_eq!(path_segment(".."), ["may not be '..'"]);
    }

    proptest! {
        #[test]
        fn generated_names_are_labels(base in "[a-z][a-z0-9-]{0,80}") {
            let name = generate_name(&base);
            prop_assert!(dns1123_label(&name).is_empty(), "{}", name);
            prop_assert_eq!(name.len(), base.len().min(58) + 5);
        }
    }
}
