//! Differences only.

use super::*;

fn chain(name: &str, rules: &[&str]) -> Chain {
    Chain {
        name: name.to_owned(),
        rules: rules.iter().map(|rule| (*rule).to_owned()).collect(),
    }
}

fn rules(endpoint: &str) -> Rules {
    Rules {
        chains: vec![
            chain("KUBE-SVC-A", &[&format!("-j KUBE-SEP-{endpoint}")]),
            chain(&format!("KUBE-SEP-{endpoint}"), &["-j DNAT"]),
        ],
        hubs: vec![(Hub::Services, "-d 10.96.0.1 -j KUBE-SVC-A".to_owned())],
        ..Rules::default()
    }
}

fn update(applied: &mut Applied, rules: Option<Rules>) -> String {
    let mut changes = Restore::new();
    applied.update(&mut changes, &"n/a".into(), rules);
    changes.text()
}

fn collect(applied: &mut Applied) -> String {
    let mut changes = Restore::new();
    applied.collect(&mut changes);
    changes.text()
}

#[test]
fn a_new_service_comes_in_at_the_start_of_the_hub() {
    let mut applied = Applied::default();
    let wanted = "*nat\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-X - [0:0]\n-A KUBE-SVC-A -j KUBE-SEP-X\n-A KUBE-SEP-X -j DNAT\n\
                  -I KUBE-SERVICES -d 10.96.0.1 -j KUBE-SVC-A\nCOMMIT\n";
    assert_eq!(update(&mut applied, Some(rules("X"))), wanted);
    assert_eq!(update(&mut applied, Some(rules("X"))), "");
    assert!(!applied.has_waste());
    assert_eq!((applied.rules("nat"), applied.rules("filter")), (3, 0));
}

#[test]
fn another_endpoint_rewrites_what_names_it_and_nothing_else() {
    let mut applied = Applied::default();
    update(&mut applied, Some(rules("X")));
    let wanted = "*nat\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-Y - [0:0]\n:KUBE-SEP-X - [0:0]\n-A KUBE-SVC-A -j KUBE-SEP-Y\n\
                  -A KUBE-SEP-Y -j DNAT\nCOMMIT\n";
    assert_eq!(update(&mut applied, Some(rules("Y"))), wanted);
    assert_eq!(
        collect(&mut applied),
        "*nat\n:KUBE-SEP-X - [0:0]\n-X KUBE-SEP-X\nCOMMIT\n"
    );
    assert!(!applied.has_waste());
}

#[test]
fn a_removed_service_is_emptied_first_and_removed_when_there_is_time() {
    let mut applied = Applied::default();
    update(&mut applied, Some(rules("X")));
    assert_eq!(
        update(&mut applied, None),
        "*nat\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-X - [0:0]\nCOMMIT\n"
    );
    // It comes back before that: the rule in the hub is still there, only the chains are written.
    let back = update(&mut applied, Some(rules("X")));
    assert!(
        back.contains("-A KUBE-SVC-A") && !back.contains("KUBE-SERVICES"),
        "{back}"
    );
    assert!(!applied.has_waste());

    update(&mut applied, None);
    let wanted = "*nat\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-X - [0:0]\n-D KUBE-SERVICES -d 10.96.0.1 -j KUBE-SVC-A\n\
                  -X KUBE-SVC-A\n-X KUBE-SEP-X\nCOMMIT\n";
    assert_eq!(collect(&mut applied), wanted);
    assert_eq!(applied.rules("nat"), 0);
}

#[test]
fn a_large_hub_waits_and_a_small_one_does_not() {
    let mut applied = Applied::default();
    update(&mut applied, Some(rules("X")));
    update(&mut applied, None);
    applied.hub_sizes.insert(Hub::Services, SMALL_HUB + 1);
    let mut changes = Restore::new();
    applied.collect_cheap(&mut changes);
    assert!(changes.is_empty() && applied.has_waste());
    applied.hub_sizes.insert(Hub::Services, SMALL_HUB);
    applied.collect_cheap(&mut changes);
    assert!(!changes.is_empty() && !applied.has_waste());
}

#[test]
fn a_rebuild_removes_what_an_earlier_process_left_and_spares_others() {
    let saved = Saved::parse(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SVC-OLD - [0:0]\n:KUBE-SVC-A - [0:0]\n:FOREIGN - [0:0]\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n",
    );
    let base = crate::plan::base(&crate::plan::Settings::default());
    let (_, transactions) = Applied::rebuild(&base, [("n/a".into(), rules("X"))].into_iter(), &saved);
    let text: String = transactions.iter().map(Restore::text).collect();
    assert!(text.contains("-X KUBE-SVC-OLD\n") && !text.contains("-X KUBE-SVC-A\n") && !text.contains("FOREIGN"));
    assert!(!text.contains("-I PREROUTING") && text.contains("-I OUTPUT"));
    let last = text.lines().rfind(|line| line.starts_with("-A KUBE-SERVICES")).unwrap();
    assert!(last.ends_with("-j KUBE-NODEPORTS"), "{last}");
}
