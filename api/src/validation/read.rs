//! Reading JSON values, and the checks that many kinds share.

use std::net::IpAddr;

use serde_json::Value;

use super::Errors;
use crate::field::{Error, Path};
use crate::names::Complaints;

pub(super) static NULL: Value = Value::Null;

pub(super) const NON_NEGATIVE: &str = "must be greater than or equal to 0";
pub(super) const POSITIVE: &str = "must be greater than 0";
pub(super) const IMMUTABLE: &str = "field is immutable";
pub(super) const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// The value under a key, null when there is none.
pub(super) fn get<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&NULL)
}

/// The value at the end of a dotted path.
pub(super) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, get)
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    get(value, key).as_str().unwrap_or_default()
}

pub(super) fn int(value: &Value, key: &str) -> Option<i64> {
    get(value, key).as_i64()
}

pub(super) fn flag(value: &Value, key: &str) -> bool {
    get(value, key).as_bool().unwrap_or(false)
}

pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    get(value, key).as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn has(value: &Value, key: &str) -> bool {
    !get(value, key).is_null()
}

/// Entries of the map under a key.
pub(super) fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    get(value, key)
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
}

pub(super) fn is_empty(value: &Value, key: &str) -> bool {
    match get(value, key) {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// One `Invalid` for each complaint about a value.
pub(super) fn complain(path: &Path<'_>, value: &str, complaints: Complaints, errors: &mut Errors) {
    errors.extend(
        complaints
            .into_iter()
            .map(|complaint| Error::invalid(path, value, complaint)),
    );
}

/// A text that must be there and obey a rule.
pub(super) fn required_name(
    parent: &Path<'_>,
    key: &str,
    value: &Value,
    rule: fn(&str) -> Complaints,
    errors: &mut Errors,
) {
    match text(value, key) {
        "" => errors.push(Error::required(&parent.child(key), "")),
        name => complain(&parent.child(key), name, rule(name), errors),
    }
}

/// A text that must be there.
pub(super) fn required(parent: &Path<'_>, key: &str, value: &Value, errors: &mut Errors) {
    if is_empty(value, key) {
        errors.push(Error::required(&parent.child(key), ""));
    }
}

/// A number that may not be below zero.
pub(super) fn non_negative(parent: &Path<'_>, key: &str, value: &Value, errors: &mut Errors) {
    if let Some(number) = int(value, key).filter(|number| *number < 0) {
        errors.push(Error::invalid(&parent.child(key), number, NON_NEGATIVE));
    }
}

/// One of some texts. An unset one is `Required` when `needed`, else fine.
pub(super) fn one_of(
    parent: &Path<'_>,
    key: &str,
    value: &Value,
    supported: &[&str],
    needed: bool,
    errors: &mut Errors,
) {
    match text(value, key) {
        "" if needed => errors.push(Error::required(&parent.child(key), "")),
        "" => {}
        given if supported.contains(&given) => {}
        given => errors.push(Error::not_supported(&parent.child(key), given, supported)),
    }
}

/// A field that an update may not change.
pub(super) fn immutable(parent: &Path<'_>, key: &str, new: &Value, old: &Value, errors: &mut Errors) {
    if get(new, key) != get(old, key) {
        errors.push(Error::invalid(&parent.child(key), get(new, key).clone(), IMMUTABLE));
    }
}

pub(super) fn between(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

pub(super) fn port_number(path: &Path<'_>, port: i64, errors: &mut Errors) {
    if !(1..=65535).contains(&port) {
        errors.push(Error::invalid(path, port, between(1, 65535)));
    }
}

/// What is wrong with the name of a port.
pub(super) fn port_name(name: &str) -> Complaints {
    let mut complaints = Complaints::new();
    if name.len() > 15 {
        complaints.push("must be no more than 15 characters".to_owned());
    }
    if name.is_empty()
        || !name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        complaints.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        complaints.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        complaints.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        complaints.push("must not begin or end with a hyphen".to_owned());
    }
    complaints
}

/// A port given by number or by name.
pub(super) fn port_or_name(path: &Path<'_>, port: &Value, errors: &mut Errors) {
    match port {
        Value::String(name) => complain(path, name, port_name(name), errors),
        _ => port_number(path, port.as_i64().unwrap_or(0), errors),
    }
}

pub(super) fn ip(path: &Path<'_>, address: &str, errors: &mut Errors) -> Option<IpAddr> {
    match address.parse() {
        Ok(ip) => Some(ip),
        Err(_) => {
            errors.push(Error::invalid(path, address, NOT_AN_IP));
            None
        }
    }
}

/// Addresses that a service or endpoint may not point to: they would reach into nodes themselves.
pub(super) fn non_special_ip(path: &Path<'_>, address: &str, ip: IpAddr, errors: &mut Errors) {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let complaint = if ip.is_unspecified() {
        "may not be unspecified (0.0.0.0 or ::)"
    } else if ip.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if link_local_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else {
        return;
    };
    errors.push(Error::invalid(path, address, complaint));
}

/// A block of addresses in CIDR notation.
pub(super) fn cidr(path: &Path<'_>, block: &str, errors: &mut Errors) -> Option<ipnet::IpNet> {
    match block.parse() {
        Ok(net) => Some(net),
        Err(_) => {
            errors.push(Error::invalid(
                path,
                block,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
            None
        }
    }
}

/// A key of a config map or secret, which becomes a file's name.
pub(super) fn config_key(key: &str) -> Complaints {
    let mut complaints = Complaints::new();
    if key.len() > 253 {
        complaints.push("must be no more than 253 characters".to_owned());
    }
    if key.is_empty()
        || !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        complaints.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    if key == "." || key == ".." {
        complaints.push(format!("must not be '{key}'"));
    } else if key.starts_with("..") {
        complaints.push("must not start with '..'".to_owned());
    }
    complaints
}

/// A path below the place where it is used.
pub(super) fn local_path(path: &Path<'_>, target: &str, errors: &mut Errors) {
    if target.starts_with('/') {
        errors.push(Error::invalid(path, target, "must be a relative path"));
    }
    no_back_steps(path, target, errors);
}

pub(super) fn no_back_steps(path: &Path<'_>, target: &str, errors: &mut Errors) {
    if target.split('/').any(|step| step == "..") {
        errors.push(Error::invalid(path, target, "must not contain '..'"));
    }
}

/// An absolute number or a percentage.
pub(super) fn int_or_percent(parent: &Path<'_>, key: &str, value: &Value, errors: &mut Errors) {
    match get(value, key) {
        Value::String(text) => {
            let digits = text.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                errors.push(Error::invalid(
                    &parent.child(key),
                    text.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                     regex used for validation is '[0-9]+%')",
                ));
            }
        }
        _ => non_negative(parent, key, value, errors),
    }
}

/// Number of a percentage, when the value is one.
pub(super) fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names() {
        for good in ["http", "a", "x-1", "8a"] {
            assert!(port_name(good).is_empty(), "{good}");
        }
        for (bad, count) in [
            ("80", 1),
            ("HTTP", 2),
            ("a--b", 1),
            ("-a", 1),
            ("a-very-long-port-name", 1),
            ("", 2),
        ] {
            assert_eq!(port_name(bad).len(), count, "{bad}");
        }
    }

    #[test]
    fn special_addresses() {
        let path = Path::root("ip");
        for (address, complaints) in [
            ("10.0.0.1", 0),
            ("127.0.0.1", 1),
            ("0.0.0.0", 1),
            ("169.254.169.254", 1),
            ("224.0.0.1", 1),
            ("::1", 1),
            ("fe80::1", 1),
            ("ff02::1", 1),
            ("2001:db8::1", 0),
            ("10.0.0", 1),
        ] {
            let mut errors = Errors::new();
            if let Some(ip) = ip(&path, address, &mut errors) {
                non_special_ip(&path, address, ip, &mut errors);
            }
            assert_eq!(errors.len(), complaints, "{address}");
        }
    }

    #[test]
    fn config_keys() {
        assert!(config_key("a.b-C_1").is_empty());
        assert_eq!(config_key(".."), ["must not be '..'"]);
        assert_eq!(config_key("..a"), ["must not start with '..'"]);
        assert_eq!(config_key("a/b").len(), 1);
    }
}
