use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn label_selectors_match() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);
    let cases: &[Case<'_>] = &[
        ("", &[], true),
        ("a=b", &[("a", "b")], true),
        ("a==b", &[("a", "c")], false),
        ("a!=b", &[], true),
        ("a!=b", &[("a", "b")], false),
        ("a", &[("a", "")], true),
        ("!a", &[("a", "")], false),
        ("a in (x, y),b notin (z)", &[("a", "y")], true),
        ("a in (x,y)", &[], false),
        ("a notin (x)", &[], true),
        ("a>3,a<5", &[("a", "4")], true),
        ("a>3", &[("a", "x")], false),
        ("x/y=", &[("x/y", "")], true),
        (" a = b , c ", &[("a", "b"), ("c", "d")], true),
        ("in=in", &[("in", "in")], true),
    ];
    for (text, set, wanted) in cases {
        assert_eq!(
            LabelSelector::parse(text).unwrap().matches(&labels(set)),
            *wanted,
            "{text}"
        );
    }
    for bad in [
        "a=b,", "=b", "a in b", "a in (b", "a b", "a=-", "a/b/c", "!", "a>x", ",a",
    ] {
        assert!(LabelSelector::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn from_objects() {
    let none = LabelSelector::from_label_selector(None).unwrap();
    assert!(none.is_nothing() && !none.matches(&labels(&[])));
    assert!(
        LabelSelector::from_label_selector(Some(&json!({})))
            .unwrap()
            .is_everything()
    );
    let selector = LabelSelector::from_label_selector(Some(&json!({
        "matchLabels": {"a": "b"},
        "matchExpressions": [{"key": "c", "operator": "In", "values": ["e", "d"]}, {"key": "f", "operator": "DoesNotExist"}],
    })))
    .unwrap();
    assert_eq!(selector.to_string(), "a=b,c in (d,e),!f");
    assert!(selector.matches(&labels(&[("a", "b"), ("c", "d")])));
    let bad = json!({"matchExpressions": [{"key": "c", "operator": "in"}]});
    assert_eq!(
        LabelSelector::from_label_selector(Some(&bad)).unwrap_err().to_string(),
        r#""in" is not a valid label selector operator"#
    );
}

#[test]
fn field_selectors() {
    let selector = FieldSelector::parse(r"spec.nodeName=n,status.phase!=Failed,a=x\,y").unwrap();
    assert_eq!(selector.exact("spec.nodeName"), Some("n"));
    assert_eq!(selector.exact("a"), Some("x,y"));
    assert!(selector.matches_with(|f| match f {
        "spec.nodeName" => Some("n".into()),
        "a" => Some("x,y".into()),
        _ => None,
    }));
    assert!(FieldSelector::parse("a").is_err());
    assert!(FieldSelector::parse(r"a=\x").is_err());
    assert!(FieldSelector::parse("a=b=c").is_err());
    assert!(FieldSelector::parse("").unwrap().is_everything());
}

proptest! {
    #[test]
    fn printed_selectors_read_back(keys in prop::collection::vec("[a-z]{1,4}", 0..4), op in 0..6) {
        let text: Vec<String> = keys.iter().map(|k| match op {
            0 => k.clone(),
            1 => format!("!{k}"),
            2 => format!("{k}=v"),
            3 => format!("{k} in (a,b)"),
            4 => format!("{k} notin (a,b)"),
            _ => format!("{k}>4"),
        }).collect();
        let selector = LabelSelector::parse(&text.join(",")).unwrap();
        prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn parsing_never_panics(text in "\\PC{0,40}") {
        LabelSelector::parse(&text).ok();
        FieldSelector::parse(&text).ok();
    }
}
