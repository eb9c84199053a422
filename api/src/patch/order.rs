//! The order of a merged list: as the patch wants it, with what only the server knows in between.

use std::collections::HashMap;

use serde_json::Value;

/// What tells an item apart: the value of the merge key, or a scalar itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity(String);

impl Identity {
    /// `None` when the item lacks the key.
    pub(super) fn of(item: &Value, merge_key: Option<&str>) -> Option<Identity> {
        let value = match merge_key {
            Some(key) => item.get(key)?,
            None => item,
        };
        // Quoted, so that "1" and 1 differ.
        Some(Identity(value.to_string()))
    }
}

/// First position of every item.
pub(super) fn positions(items: &[Value], merge_key: Option<&str>) -> HashMap<Identity, usize> {
    let mut out = HashMap::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        if let Some(identity) = Identity::of(item, merge_key) {
            out.entry(identity).or_insert(i);
        }
    }
    out
}

/// Puts `merged` in order. Items named by `wanted` keep its order; the others keep that of `live`; each of these comes
/// before the first wanted item that it stood before in `live`.
pub(super) fn arrange(merged: Vec<Value>, wanted: &[Value], live: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let (wanted, live) = (positions(wanted, merge_key), positions(live, merge_key));
    let place = |item: &Value, order: &HashMap<Identity, usize>| {
        Identity::of(item, merge_key).and_then(|i| order.get(&i).copied())
    };
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(item, &wanted).is_some());
    named.sort_by_key(|item| place(item, &wanted));
    others.sort_by_key(|item| place(item, &live).unwrap_or(usize::MAX));

    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let here = place(&item, &live);
        while let Some(other) = others.next_if(|other| here.zip(place(other, &live)).is_some_and(|(h, o)| o < h)) {
            out.push(other);
        }
        out.push(item);
    }
    out.extend(others);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(text: &str) -> Vec<Value> {
        text.chars().map(|c| json!(c.to_string())).collect()
    }

    #[test]
    fn arranges() {
        for (merged, wanted, live, result) in [
            ("abc", "cba", "abc", "cba"),
            ("abcd", "db", "abcd", "acdb"),
            ("abx", "x", "ab", "xab"),
            ("abx", "bx", "ab", "abx"),
            ("", "", "", ""),
        ] {
            let arranged = arrange(list(merged), &list(wanted), &list(live), None);
            assert_eq!(arranged, list(result), "{merged} {wanted} {live}");
        }
    }
}
